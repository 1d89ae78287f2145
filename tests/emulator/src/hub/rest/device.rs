//! `/devices` and `/devices/{id}`: the identity registry.

use serde_json::Value;

use super::{Answer, Call};
use crate::hub::device::Seen;
use crate::hub::failure::Failure;
use crate::hub::identity::{Registration, is_device_id};
use crate::hub::state::State;

/// Devices in one list.
const LIST_LIMIT: usize = 1000;

pub(super) fn list(call: &Call) -> Result<Answer, Failure> {
    let top = call.top(LIST_LIMIT)?;
    let devices = call.hub.read(|state| state.seen().take(top).map(|seen| seen.identity()).collect());
    Ok(Answer::ok(Value::Array(devices)))
}

pub(super) fn get(call: &Call, id: &str) -> Result<Answer, Failure> {
    call.hub.read(|state| show(state, id))
}

/// Without `If-Match` it creates and does nothing else; with it, it replaces and does nothing else.
pub(super) fn put(call: &Call, id: &str) -> Result<Answer, Failure> {
    let body: Value = call.json()?;
    if !is_device_id(id) {
        return Err(Failure::bad_argument(format!("'{id}' is not a device ID.")));
    }
    if body.get("deviceId").and_then(Value::as_str) != Some(id) {
        return Err(Failure::bad_argument("deviceId in the body is not the one in the path."));
    }
    let registration = Registration::from_body(&body)?;
    call.hub.change(|state| {
        if call.if_match().is_some() {
            call.check_etag(&state.device(id)?.identity.etag())?;
        } else if state.devices.contains_key(id) {
            return Err(Failure::device_already_exists(id));
        }
        state.register(id, registration);
        show(state, id)
    })
}

pub(super) fn delete(call: &Call, id: &str) -> Result<Answer, Failure> {
    call.hub.change(|state| {
        call.check_etag_given(&state.device(id)?.identity.etag())?;
        state.remove(id);
        Ok(Answer::no_content())
    })
}

/// The identity of a device or a module.
pub(super) fn show(state: &State, key: &str) -> Result<Answer, Failure> {
    let device = state.devices.get(key).ok_or_else(|| Failure::device_not_found(key))?;
    Ok(Answer::tagged(Seen { key, device }.identity(), &device.identity.etag()))
}
