//! The files that a device has uploaded. The emulator's own: the real hub leaves them in its user's storage.

use serde_json::{Value, json};

use super::{Answer, Call};
use crate::hub::upload::Upload;

/// The device's uploads that are remembered, oldest first.
pub(super) fn list(call: &Call, id: &str) -> Answer {
    let uploads = call.hub.read(|state| state.uploads.of(id));
    Answer::ok(uploads.iter().map(for_service).collect())
}

fn for_service(upload: &Upload) -> Value {
    json!({
        "name": upload.name,
        "body": upload.bytes.as_deref().map(String::from_utf8_lossy),
        "notification": upload.notification.as_ref().map(|said| json!({
            "isSuccess": said.is_success,
            "statusCode": said.status_code,
            "statusDescription": said.status_description,
        })),
    })
}
