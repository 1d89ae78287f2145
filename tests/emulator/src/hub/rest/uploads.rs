//! What a device has uploaded. The emulator's own: the real hub tells of files over AMQP, which this one lacks.

use serde_json::{Value, json};

use super::{Answer, Call};
use crate::hub::upload::Upload;

/// The device's uploads that are still kept, oldest first. `path` is where the file is, for the same token.
pub(super) fn list(call: &Call, id: &str) -> Answer {
    let uploads = call.hub.read(|state| state.uploads.of(id));
    Answer::ok(uploads.iter().map(for_service).collect())
}

fn for_service(upload: &Upload) -> Value {
    json!({
        "name": upload.name,
        "path": upload.path(),
        "sizeBytes": upload.bytes.as_ref().map(|bytes| bytes.len()),
        "notification": upload.notification,
    })
}
