//! What devices have sent to the cloud: the newest messages of all of them.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use percent_encoding::percent_decode_str;

use super::clock;

/// Messages kept. A consumer of the real hub would have read them by then.
const EVENT_LIMIT: usize = 10_000;
/// The memory for their bodies.
const BODIES_LIMIT_BYTES: usize = 64 << 20;

/// A message from a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The device, or `device/module`.
    pub device_id: String,
    /// The application's properties and, by the names they have on the wire (`$.mid`, `$.ct`…), the system's.
    pub properties: BTreeMap<String, String>,
    /// The body.
    pub body: Bytes,
    /// When the hub took it, as RFC 3339 in UTC.
    pub enqueued_time: String,
}

/// The newest messages, oldest first.
#[derive(Debug, Default)]
pub(super) struct Events {
    kept: VecDeque<Event>,
    bodies_bytes: usize,
}

impl Events {
    /// Takes a message with the properties of its topic and one of the hub's own, if there is one.
    pub fn push(&mut self, device: &str, bag: &str, added: Option<(&str, &str)>, body: Bytes) {
        let mut properties = properties(bag);
        properties.extend(added.map(|(key, value)| (key.to_owned(), value.to_owned())));
        self.bodies_bytes = self.bodies_bytes.saturating_add(body.len());
        let (device_id, enqueued_time) = (device.to_owned(), clock::now_text());
        self.kept.push_back(Event { device_id, properties, body, enqueued_time });
        while self.kept.len() > EVENT_LIMIT || self.bodies_bytes > BODIES_LIMIT_BYTES {
            let Some(dropped) = self.kept.pop_front() else { return };
            self.bodies_bytes = self.bodies_bytes.saturating_sub(dropped.body.len());
        }
    }

    /// The messages of one device, oldest first.
    pub fn of(&self, device: &str) -> Vec<Event> {
        self.kept.iter().filter(|event| event.device_id == device).cloned().collect()
    }
}

/// Reads `key=value&key=value`, percent-encoded; a leading `?` and a trailing `/` are tolerated.
fn properties(bag: &str) -> BTreeMap<String, String> {
    let bag = bag.strip_prefix('?').unwrap_or(bag);
    let bag = bag.strip_suffix('/').unwrap_or(bag);
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pairs = bag.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decoded(key), decoded(value)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_read_as_microsofts_kits_write_them() {
        let bag = "%24.mid=mid%201&%24.ct=application%2Fjson&a=1&b%20k=v%2F%C3%A9&empty=&none";
        let expected = [
            ("$.mid", "mid 1"),
            ("$.ct", "application/json"),
            ("a", "1"),
            ("b k", "v/é"),
            ("empty", ""),
            ("none", ""),
        ];
        let expected: BTreeMap<_, _> = expected.map(|(key, value)| (key.into(), value.into())).into();
        assert_eq!(properties(bag), expected);
        assert_eq!(properties(&format!("?{bag}/")), expected);
        assert!(properties("").is_empty());
    }

    #[test]
    fn the_oldest_go_when_there_is_no_more_room() {
        let mut events = Events::default();
        let large = Bytes::from(vec![0; 1 << 20]);
        for n in 0..70 {
            events.push("d", &format!("n={n}"), None, large.clone());
        }
        let kept = events.of("d");
        assert_eq!((kept.len(), kept[0].properties["n"].as_str()), (64, "6"));
        for _ in 0..=EVENT_LIMIT {
            events.push("e", "", None, Bytes::new());
        }
        assert_eq!(events.of("e").len(), EVENT_LIMIT);
    }
}
