//! `/devices/{id}/commands` and `/devices/{id}/messages/devicebound`: messages to a device.

use serde_json::json;

use super::{Answer, Call};
use crate::hub::failure::Failure;

/// What the name of a header starts with that is a property of the message, as where devices send over HTTPS.
const PROPERTY: &str = "iothub-app-";

/// Sends the body to the device. The emulator's own: the real hub takes these over AMQP, which it has not.
pub(super) fn send(call: &Call, id: &str) -> Result<Answer, Failure> {
    let headers = call.head.headers.iter();
    let properties: Vec<_> = headers
        .filter_map(|(name, value)| Some((name.as_str().strip_prefix(PROPERTY)?, value.to_str().ok()?)))
        .collect();
    let sent = call.hub.change(|state| state.send_to_device(id, call.body.clone(), &properties));
    Ok(Answer::ok(json!({ "messageId": sent? })))
}

/// Forgets what the device has not taken yet.
pub(super) fn purge(call: &Call, id: &str) -> Result<Answer, Failure> {
    let purged = call.hub.change(|state| state.device(id).map(|device| device.inbox.purge()))?;
    Ok(Answer::ok(json!({ "deviceId": id, "moduleId": null, "totalMessagesPurged": purged })))
}
