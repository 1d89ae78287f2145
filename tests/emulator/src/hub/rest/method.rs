//! `/twins/{id}/methods`: direct methods.

use serde_json::json;

use super::{Answer, Call};
use crate::hub::failure::Failure;
use crate::hub::method;

pub(super) async fn call(call: &Call<'_>, id: &str) -> Result<Answer, Failure> {
    let method = method::Call::from_body(&call.json()?)?;
    let response = call.hub.call(id, &method).await?;
    Ok(Answer::ok(json!({ "status": response.status, "payload": response.payload })))
}
