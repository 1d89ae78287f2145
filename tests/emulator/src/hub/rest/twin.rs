//! `/twins/{id}`: tags, desired and reported properties.

use serde_json::Value;

use super::{Answer, Call};
use crate::hub::failure::Failure;
use crate::hub::state::State;
use crate::hub::twin::Write;

pub(super) fn get(call: &Call, key: &str) -> Result<Answer, Failure> {
    call.hub.read(|state| show(state, key))
}

/// `PATCH` merges, `PUT` replaces.
pub(super) fn write(call: &Call, key: &str, write: Write) -> Result<Answer, Failure> {
    let content: Value = call.json()?;
    call.hub.change(|state| {
        call.check_etag(&state.device(key)?.twin.etag())?;
        state.write_twin(key, write, &content)?;
        show(state, key)
    })
}

fn show(state: &State, key: &str) -> Result<Answer, Failure> {
    let device = state.devices.get(key).ok_or_else(|| Failure::device_not_found(key))?;
    Ok(Answer::tagged(device.twin_for_service(key), &device.twin.etag()))
}
