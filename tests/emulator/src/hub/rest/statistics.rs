//! `/statistics/…`: how many devices there are, and how many are connected.

use serde_json::json;

use super::{Answer, Call};
use crate::hub::failure::Failure;

pub(super) fn devices(call: &Call) -> Result<Answer, Failure> {
    let (total, enabled) = call.hub.read(|state| {
        (state.seen().count(), state.seen().filter(|seen| seen.device.identity.enabled).count())
    });
    let disabled = total.saturating_sub(enabled);
    Ok(Answer::ok(json!({
        "totalDeviceCount": total,
        "enabledDeviceCount": enabled,
        "disabledDeviceCount": disabled,
    })))
}

pub(super) fn service(call: &Call) -> Result<Answer, Failure> {
    let connected =
        |state: &crate::hub::state::State| state.seen().filter(|seen| seen.device.link.is_some()).count();
    Ok(Answer::ok(json!({ "connectedDeviceCount": call.hub.read(connected) })))
}
