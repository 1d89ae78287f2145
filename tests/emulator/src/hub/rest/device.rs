//! `/devices/{id}`: the identity registry.

use serde_json::Value;

use super::{Answer, Call};
use crate::hub::failure::Failure;
use crate::hub::identity::{Authentication, is_device_id};
use crate::hub::state::State;

pub(super) fn get(call: &Call, id: &str) -> Result<Answer, Failure> {
    call.hub.change(|state| show(state, id))
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
    let enabled = body.get("status").and_then(Value::as_str) != Some("disabled");
    let authentication = Authentication::from_body(&body)?;
    call.hub.change(|state| {
        if call.if_match().is_some() {
            call.check_etag(&state.device(id)?.identity.etag())?;
        } else if state.devices.contains_key(id) {
            let message = format!("A device with ID '{id}' is already registered.");
            return Err(Failure::new(409, "DeviceAlreadyExists", message));
        }
        state.register(id, authentication, enabled);
        show(state, id)
    })
}

pub(super) fn delete(call: &Call, id: &str) -> Result<Answer, Failure> {
    call.hub.change(|state| {
        let etag = state.device(id)?.identity.etag();
        if call.if_match().is_none() {
            return Err(Failure::new(412, "PreconditionFailed", "Etag missing"));
        }
        call.check_etag(&etag)?;
        if let Some(mut device) = state.devices.remove(id) {
            device.detach();
        }
        Ok(Answer::no_content())
    })
}

fn show(state: &mut State, id: &str) -> Result<Answer, Failure> {
    let device = state.device(id)?;
    Ok(Answer::tagged(device.identity_for_service(id), &device.identity.etag()))
}
