//! What a device has sent to the cloud. The emulator's own: the real hub hands it on over AMQP, which this one lacks.

use serde_json::{Value, json};

use super::{Answer, Call};
use crate::hub::events::Event;

/// The device's messages that are still kept, oldest first.
pub(super) fn list(call: &Call, id: &str) -> Answer {
    let events = call.hub.read(|state| state.events.of(id));
    Answer::ok(events.iter().map(for_service).collect())
}

fn for_service(event: &Event) -> Value {
    json!({
        "properties": event.properties,
        "body": String::from_utf8_lossy(&event.body),
        "enqueuedTime": event.enqueued_time,
    })
}
