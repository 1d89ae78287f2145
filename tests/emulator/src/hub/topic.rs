//! The topics a device may subscribe and publish to.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::identity::is_module;

/// What RFC 3986 has escaped in the properties of a topic.
const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The filter that registers a device for direct methods.
pub(super) const METHODS: &str = "$iothub/methods/POST/#";
/// The filter for changes of the desired properties.
pub(super) const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/#";
/// The filter for the hub's answers to twin requests.
const TWIN_ANSWERS: &str = "$iothub/twin/res/#";
/// How the filter for messages to the device ends.
pub(super) const DEVICE_BOUND: &str = "/messages/devicebound/#";
/// The same for messages from other modules.
const MODULE_INPUTS: &str = "/inputs/#";

/// What a device asks for by publishing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request<'a> {
    /// A message for the cloud, with its properties as they came.
    Telemetry { bag: &'a str },
    /// The whole twin.
    GetTwin { request: &'a str },
    /// A change of the reported properties; refused if `version` is given and stale.
    PatchReported { request: &'a str, version: Option<i64> },
    /// The answer to a direct method.
    MethodResponse { status: i64, request: &'a str },
}

/// What follows `devices/{device}`, or `devices/{device}/modules/{module}`, in a topic or filter of `key`'s own.
fn below_own<'a>(key: &str, topic: &'a str) -> Option<&'a str> {
    let rest = topic.strip_prefix("devices/")?;
    match key.split_once('/') {
        None => rest.strip_prefix(key),
        Some((device, module)) => rest.strip_prefix(device)?.strip_prefix("/modules/")?.strip_prefix(module),
    }
}

/// Whether the device or module `key` may subscribe to `filter`: the documented filters, to the letter.
pub(super) fn is_filter_of(key: &str, filter: &str) -> bool {
    let own = if is_module(key) { MODULE_INPUTS } else { DEVICE_BOUND };
    [METHODS, DESIRED, TWIN_ANSWERS].contains(&filter) || below_own(key, filter) == Some(own)
}

/// Reads the topic of a PUBLISH from `key`. The hub closes the connection on any topic that means nothing.
pub(super) fn parse<'a>(key: &str, topic: &'a str) -> Option<Request<'a>> {
    if topic.starts_with("devices/") {
        let bag = below_own(key, topic)?.strip_prefix("/messages/events")?;
        return (bag.is_empty() || bag.starts_with('/'))
            .then(|| Request::Telemetry { bag: bag.strip_prefix('/').unwrap_or(bag) });
    }
    let rest = topic.strip_prefix("$iothub/")?;
    if let Some(query) = rest.strip_prefix("twin/GET/?$rid=") {
        let request = query.split('&').next().filter(|request| is_id(request))?;
        return Some(Request::GetTwin { request });
    }
    if let Some(query) = rest.strip_prefix("twin/PATCH/properties/reported/?$rid=") {
        let (request, version) = match query.split_once("&$version=") {
            Some((request, version)) => (request, Some(version.parse().ok()?)),
            None => (query, None),
        };
        return is_id(request).then_some(Request::PatchReported { request, version });
    }
    let (status, request) = rest.strip_prefix("methods/res/")?.split_once("/?$rid=")?;
    let status = status.parse().ok()?;
    is_id(request).then_some(Request::MethodResponse { status, request })
}

/// The topic of a message to `device`.
pub(super) fn device_bound(device: &str, message_id: &str, properties: &[(&str, &str)]) -> String {
    let encode = |text: &str| utf8_percent_encode(text, UNRESERVED).to_string();
    let to = format!("/devices/{device}/messages/deviceBound");
    let system = [("$.to", to.as_str()), ("$.mid", message_id)];
    let pairs =
        system.iter().chain(properties).map(|(key, value)| format!("{}={}", encode(key), encode(value)));
    let bag: Vec<_> = pairs.collect();
    format!("devices/{device}/messages/devicebound/{}", bag.join("&"))
}

/// Whether a device's will may go to `topic`: it is to be a message for the cloud.
pub(super) fn may_be_will(device: &str, topic: &str) -> bool {
    matches!(parse(device, topic), Some(Request::Telemetry { .. }))
}

fn is_id(text: &str) -> bool {
    !text.is_empty() && !text.contains(['&', '/'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_documented_topic_is_understood() {
        assert_eq!(parse("d", "$iothub/twin/GET/?$rid=a1"), Some(Request::GetTwin { request: "a1" }));
        assert_eq!(parse("d", "$iothub/twin/GET/?$rid=a1&x=y"), Some(Request::GetTwin { request: "a1" }));
        let patch = |version| Some(Request::PatchReported { request: "7", version });
        assert_eq!(parse("d", "$iothub/twin/PATCH/properties/reported/?$rid=7"), patch(None));
        assert_eq!(parse("d", "$iothub/twin/PATCH/properties/reported/?$rid=7&$version=3"), patch(Some(3)));
        let response = Some(Request::MethodResponse { status: -1, request: "2f" });
        assert_eq!(parse("d", "$iothub/methods/res/-1/?$rid=2f"), response);
        assert_eq!(parse("d", "devices/d/messages/events/a=b"), Some(Request::Telemetry { bag: "a=b" }));
        let module = parse("d/m", "devices/d/modules/m/messages/events/a=b");
        assert_eq!(module, Some(Request::Telemetry { bag: "a=b" }));
    }

    #[test]
    fn a_topic_that_is_nearly_right_is_refused() {
        for topic in [
            "$iothub/twin/GET/",
            "$iothub/twin/GET/?$rid=",
            "$iothub/twin/PATCH/properties/desired/?$rid=7",
            "$iothub/methods/res/200?$rid=7",
            "$iothub/methods/res/ok/?$rid=7",
            "devices/other/messages/events/",
            "devices/d/messages/eventsandmore",
            "anything",
        ] {
            assert_eq!(parse("d", topic), None, "{topic}");
        }
        assert_eq!(parse("d/m", "devices/d/messages/events/"), None);
        assert_eq!(parse("d", "devices/d/modules/m/messages/events/"), None);
    }

    #[test]
    fn only_the_documented_filters_may_be_subscribed_to() {
        assert!(is_filter_of("d", METHODS));
        assert!(is_filter_of("d", "devices/d/messages/devicebound/#"));
        assert!(is_filter_of("d/m", "devices/d/modules/m/inputs/#"));
        assert!(!is_filter_of("d/m", "devices/d/messages/devicebound/#"));
        assert!(!is_filter_of("d", "devices/e/messages/devicebound/#"));
        assert!(!is_filter_of("d", "$iothub/#"));
        assert!(!is_filter_of("d", "#"));
    }
}
