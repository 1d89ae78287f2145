//! The hub's topic grammar: what comes in, taken apart; what goes out, put together.

use percent_encoding::percent_decode_str;

/// Direct methods, for the subscription.
pub const METHODS: &str = "$iothub/methods/POST/#";
/// Answers to twin requests, for the subscription.
pub const TWIN_ANSWERS: &str = "$iothub/twin/res/#";
/// Changes of the desired properties, for the subscription.
pub const DESIRED_CHANGES: &str = "$iothub/twin/PATCH/properties/desired/#";

/// Longer topics are not the hub's: a method name has at most 100 characters, which percent-encoding
/// makes 1200 bytes at worst.
const TOPIC_MAX_BYTES: usize = 2048;

/// The hub's request ids are short counters.
const RID_MAX_BYTES: usize = 128;

/// A topic that the hub publishes to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A direct method call.
    Method {
        /// Percent-decoded.
        name: String,
        /// To be given back with the answer, as it is.
        rid: &'a str,
    },
    /// The answer to a twin request.
    TwinAnswer {
        /// HTTP-like.
        status: u16,
        /// Which request.
        rid: &'a str,
    },
    /// The desired properties changed.
    DesiredChange {
        /// The version they have now.
        version: u64,
    },
}

/// Takes an incoming topic apart; `None` is a topic that no hub sends here.
#[must_use]
pub fn parse(topic: &str) -> Option<Incoming<'_>> {
    if topic.len() > TOPIC_MAX_BYTES {
        return None;
    }
    let (path, query) = topic.strip_prefix("$iothub/")?.split_once("/?")?;
    if let Some(name) = path.strip_prefix("methods/POST/") {
        if name.is_empty() || name.contains('/') {
            return None; // one topic level; a slash in the name itself comes encoded
        }
        let name = percent_decode_str(name).decode_utf8().ok()?.into_owned();
        return Some(Incoming::Method { name, rid: rid(query)? });
    }
    if let Some(status) = path.strip_prefix("twin/res/") {
        return Some(Incoming::TwinAnswer { status: number(status)?, rid: rid(query)? });
    }
    if path == "twin/PATCH/properties/desired" {
        return Some(Incoming::DesiredChange { version: number(value(query, "$version")?)? });
    }
    None
}

/// The request id, if it can be given back: it becomes a part of a topic.
fn rid(query: &str) -> Option<&str> {
    let rid = value(query, "$rid")?;
    let usable = !rid.is_empty()
        && rid.len() <= RID_MAX_BYTES
        && !rid.contains(|c: char| c.is_control() || matches!(c, '/' | '+' | '#'));
    usable.then_some(rid)
}

fn value<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
}

/// Digits only: `parse` alone would take `+1` too.
fn number<N: std::str::FromStr>(text: &str) -> Option<N> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Where the answer to a direct method goes.
#[must_use]
pub fn method_answer(status: u16, rid: &str) -> String {
    format!("$iothub/methods/res/{status}/?$rid={rid}")
}

/// Asks for the whole twin.
#[must_use]
pub fn twin_get(rid: &str) -> String {
    format!("$iothub/twin/GET/?$rid={rid}")
}

/// Changes the reported properties.
#[must_use]
pub fn twin_patch(rid: &str) -> String {
    format!("$iothub/twin/PATCH/properties/reported/?$rid={rid}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_hubs_topics_are_understood() {
        let method = |name: &str, rid| Some(Incoming::Method { name: name.to_owned(), rid });
        for (topic, expected) in [
            ("$iothub/methods/POST/firmwareUpdate/?$rid=7", method("firmwareUpdate", "7")),
            ("$iothub/methods/POST/a%2Fb%20c/?$rid=1f", method("a/b c", "1f")),
            ("$iothub/methods/POST/m/?$rid=1&later=x", method("m", "1")),
            ("$iothub/twin/res/200/?$rid=1", Some(Incoming::TwinAnswer { status: 200, rid: "1" })),
            ("$iothub/twin/res/204/?$rid=2&$version=6", Some(Incoming::TwinAnswer { status: 204, rid: "2" })),
            (
                "$iothub/twin/PATCH/properties/desired/?$version=18",
                Some(Incoming::DesiredChange { version: 18 }),
            ),
        ] {
            assert_eq!(parse(topic), expected, "{topic}");
        }
    }

    #[test]
    fn other_topics_are_not() {
        let long = format!("$iothub/methods/POST/{}/?$rid=7", "m".repeat(TOPIC_MAX_BYTES));
        let long_rid = format!("$iothub/methods/POST/m/?$rid={}", "7".repeat(RID_MAX_BYTES + 1));
        for topic in [
            "",
            "$iothub/",
            "$iothub/methods/POST/",
            "$iothub/methods/POST//?$rid=7",
            "$iothub/methods/POST/m?$rid=7",
            "$iothub/methods/POST/a/b/?$rid=7",
            "$iothub/methods/POST/m/?rid=7",
            "$iothub/methods/POST/m/?$rid=",
            "$iothub/methods/POST/m/?$rid=#",
            "$iothub/methods/POST/%ff/?$rid=7",
            "$iothub/methods/GET/m/?$rid=7",
            "$iothub/twin/res//?$rid=1",
            "$iothub/twin/res/+200/?$rid=1",
            "$iothub/twin/res/70000/?$rid=1",
            "$iothub/twin/res/200/",
            "$iothub/twin/PATCH/properties/desired/?$version=-1",
            "$iothub/twin/PATCH/properties/desired/?$version=99999999999999999999",
            "$iothub/twin/PATCH/properties/reported/?$version=1",
            "devices/d/messages/devicebound/x",
            &long,
            &long_rid,
        ] {
            assert_eq!(parse(topic), None, "{topic}");
        }
    }

    #[test]
    fn outgoing_topics_are_what_the_hub_takes() {
        assert_eq!(method_answer(200, "7"), "$iothub/methods/res/200/?$rid=7");
        assert_eq!(twin_get("1"), "$iothub/twin/GET/?$rid=1");
        assert_eq!(twin_patch("2"), "$iothub/twin/PATCH/properties/reported/?$rid=2");
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(topic in "\\PC*") {
            let _ = parse(&topic);
        }

        #[test]
        fn nearly_right_topics_are_parsed_or_refused(
            topic in "\\$iothub/(methods/POST|twin/res|twin/PATCH/properties/desired)/?[a-z0-9%/]{0,9}/?\\?\\$?(rid|version)=[^/]{0,9}",
        ) {
            let _ = parse(&topic);
        }

        #[test]
        fn a_method_call_is_answered_under_its_own_id(name in "[a-zA-Z0-9_]{1,100}", rid in "[0-9a-zA-Z-]{1,36}") {
            let topic = format!("$iothub/methods/POST/{name}/?$rid={rid}");
            prop_assert_eq!(parse(&topic), Some(Incoming::Method { name, rid: &rid }));
        }
    }
}
