//! `/twins/{id}/methods`: direct methods.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Call};
use crate::hub::failure::Failure;
use crate::hub::state;

const PAYLOAD_LIMIT_BYTES: usize = 128 * 1024;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    method_name: String,
    #[serde(default)]
    payload: Value,
    #[serde(default = "default_response_timeout_secs", rename = "responseTimeoutInSeconds")]
    response_timeout_secs: u64,
    #[serde(default, rename = "connectTimeoutInSeconds")]
    connect_timeout_secs: u64,
}

/// The hub's own default.
fn default_response_timeout_secs() -> u64 {
    30
}

pub(super) async fn call(call: &Call<'_>, id: &str) -> Result<Answer, Failure> {
    let method = call.json::<Body>()?.checked()?;
    let response = call.hub.call(id, &method).await?;
    Ok(Answer::ok(json!({ "status": response.status, "payload": response.payload })))
}

impl Body {
    fn checked(self) -> Result<state::Call, Failure> {
        let (response, connect) = (self.response_timeout_secs, self.connect_timeout_secs);
        if !(5..=300).contains(&response) || connect > 300 {
            return Err(Failure::bad_argument(
                "Response timeouts are 5 to 300 s, connection timeouts 0 to 300 s.",
            ));
        }
        if connect > response {
            let message = "Device connection timeout cannot be longer than an overall call timeout.";
            return Err(Failure::bad_argument(message));
        }
        let name = self.method_name;
        if name.trim().is_empty() || name.chars().count() > 100 {
            return Err(Failure::bad_argument("A method's name has 1 to 100 characters."));
        }
        if self.payload.to_string().len() > PAYLOAD_LIMIT_BYTES {
            let message = format!("Payload should not be greater than {PAYLOAD_LIMIT_BYTES} bytes.");
            return Err(Failure::bad_argument(message));
        }
        let (response_limit, connect_limit) = (Duration::from_secs(response), Duration::from_secs(connect));
        Ok(state::Call { name, payload: self.payload, response_limit, connect_limit })
    }
}
