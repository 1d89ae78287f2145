use twinboot::hub::topic::{Incoming, method_answer, parse, twin_get, twin_patch};

/// Topics that the hub publishes to.
pub fn topics(data: &[u8]) {
    let Ok(topic) = std::str::from_utf8(data) else { return };
    let Some(incoming) = parse(topic) else { return };
    assert!(topic.len() <= 2048, "a topic is bounded");
    let written = match &incoming {
        Incoming::Method { name, rid } => {
            answerable(rid);
            let name: String = name.bytes().map(|byte| format!("%{byte:02X}")).collect();
            format!("$iothub/methods/POST/{name}/?$rid={rid}")
        }
        Incoming::TwinAnswer { status, rid } => {
            answerable(rid);
            format!("$iothub/twin/res/{status}/?$rid={rid}")
        }
        Incoming::DesiredChange { version } => {
            format!("$iothub/twin/PATCH/properties/desired/?$version={version}")
        }
    };
    if written.len() <= 2048 {
        assert_eq!(parse(&written), Some(incoming), "{written}");
    }
}

/// A request id becomes a part of a topic, and must not change which topic it is.
fn answerable(rid: &str) {
    for topic in [method_answer(200, rid), twin_get(rid), twin_patch(rid)] {
        let (path, query) = topic.split_once("/?$rid=").expect("it has a request id");
        assert_eq!(query, rid);
        assert!(!topic.contains(|c: char| c.is_control() || matches!(c, '+' | '#')), "{topic:?}");
        assert!(!query.contains('/') && path.len() < 64 && !query.is_empty() && query.len() <= 128);
    }
}
