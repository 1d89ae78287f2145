//! `/twins/{id}`: tags, desired and reported properties.

use serde_json::Value;

use super::{Answer, Call};
use crate::hub::failure::Failure;
use crate::hub::state::State;

pub(super) fn get(call: &Call, id: &str) -> Result<Answer, Failure> {
    call.hub.change(|state| show(state, id))
}

pub(super) fn patch(call: &Call, id: &str) -> Result<Answer, Failure> {
    let patch: Value = call.json()?;
    call.hub.change(|state| {
        call.check_etag(&state.device(id)?.twin.etag())?;
        state.patch_twin(id, &patch)?;
        show(state, id)
    })
}

fn show(state: &mut State, id: &str) -> Result<Answer, Failure> {
    let device = state.device(id)?;
    Ok(Answer::tagged(device.twin_for_service(id), &device.twin.etag()))
}
