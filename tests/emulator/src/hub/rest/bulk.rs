//! `POST /devices`: many devices at once.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Call, unquoted};
use crate::hub::failure::Failure;
use crate::hub::identity::{Registration, is_device_id, module_key};
use crate::hub::state::State;
use crate::hub::twin::Write;

/// Devices in one call.
const BULK_LIMIT: usize = 100;

/// What to do with a device. `…IfMatchETag` compares the etag that comes with it. Microsoft's Node kit begins some with
/// a capital.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Mode {
    Create,
    #[serde(alias = "Update")]
    Update,
    #[serde(rename = "updateIfMatchETag", alias = "UpdateIfMatchETag")]
    UpdateIfMatch,
    #[default]
    CreateOrUpdate,
    #[serde(rename = "createOrUpdateIfMatchETag")]
    CreateOrUpdateIfMatch,
    #[serde(alias = "Delete")]
    Delete,
    #[serde(rename = "deleteIfMatchETag", alias = "DeleteIfMatchETag")]
    DeleteIfMatch,
    UpdateTwin,
    #[serde(rename = "updateTwinIfMatchETag")]
    UpdateTwinIfMatch,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    id: String,
    module_id: Option<String>,
    #[serde(default)]
    import_mode: Mode,
    #[serde(rename = "eTag", alias = "etag")]
    etag: Option<String>,
    #[serde(rename = "twinETag")]
    twin_etag: Option<String>,
}

/// Each device is done or refused by itself; the call has failed if one was refused.
pub(super) fn write(call: &Call) -> Result<Answer, Failure> {
    let bodies: Vec<Value> = call.json()?;
    if bodies.len() > BULK_LIMIT {
        let message = format!("{} devices at once; {BULK_LIMIT} are allowed.", bodies.len());
        return Err(Failure::new(413, "TooManyDevices", message));
    }
    let error = |body: &Value, failure: Failure| {
        json!({
            "deviceId": body.get("id"),
            "moduleId": body.get("moduleId"),
            "errorCode": failure.symbol,
            "errorStatus": failure.message,
        })
    };
    let errors: Vec<Value> = call.hub.change(|state| {
        let refused = |body: &Value| write_one(state, body).err().map(|failure| error(body, failure));
        bodies.iter().filter_map(refused).collect()
    });
    let successful = errors.is_empty();
    let mut answer =
        Answer::ok(json!({ "isSuccessful": successful, "errors": errors, "warnings": Vec::<Value>::new() }));
    if !successful {
        answer.status = hyper::StatusCode::BAD_REQUEST;
    }
    Ok(answer)
}

fn write_one(state: &mut State, body: &Value) -> Result<(), Failure> {
    let item = Item::deserialize(body).map_err(|error| Failure::bad_argument(error.to_string()))?;
    if !is_device_id(&item.id) {
        return Err(Failure::bad_argument(format!("'{}' is not a device ID.", item.id)));
    }
    let key = match &item.module_id {
        Some(module) => module_key(&item.id, module),
        None => item.id,
    };
    let exists = state.devices.contains_key(&key);
    match item.import_mode {
        Mode::Create if exists => return Err(Failure::device_already_exists(&key)),
        Mode::Create => {}
        Mode::CreateOrUpdate | Mode::CreateOrUpdateIfMatch if !exists => {}
        _ => {
            state.device(&key)?;
        }
    }
    match item.import_mode {
        Mode::UpdateIfMatch | Mode::CreateOrUpdateIfMatch | Mode::DeleteIfMatch if exists => {
            check(item.etag.as_deref(), &state.device(&key)?.identity.etag())?;
        }
        Mode::UpdateTwinIfMatch => check(item.twin_etag.as_deref(), &state.device(&key)?.twin.etag())?,
        _ => {}
    }
    match item.import_mode {
        Mode::Delete | Mode::DeleteIfMatch => {
            state.remove(&key);
            return Ok(());
        }
        Mode::UpdateTwin | Mode::UpdateTwinIfMatch => {}
        _ => state.register(&key, Registration::from_body(body)?),
    }
    if body.get("tags").is_some() || body.get("properties").is_some() {
        state.write_twin(&key, Write::Patch, body)?;
    }
    Ok(())
}

fn check(asked: Option<&str>, current: &str) -> Result<(), Failure> {
    let matches = |asked: &str| asked == "*" || unquoted(asked) == current;
    if asked.is_some_and(matches) { Ok(()) } else { Err(Failure::stale(current)) }
}
