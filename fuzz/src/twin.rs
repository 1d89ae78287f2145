use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::time::Instant;
use twinboot::hub::Pace;
use twinboot::hub::patch::{diff, merge, tidy};
use twinboot::hub::twin::{Request, Twin};

/// More requests than a report takes: to read the twin, once more if it changed meanwhile, and to write.
const REQUESTS: usize = 8;

/// Twin documents: the first line is the report, each further one a hub's answer `STATUS DOCUMENT`.
pub fn twin(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let Some(wanted) = lines.next().and_then(report) else { return };
    let mut twin = Twin::new(Pace::default(), fastrand::Rng::with_seed(1));
    let mut now = Instant::now();
    let mut held = Map::new();
    twin.want(&Some(wanted.clone()));
    for line in lines {
        now += Duration::from_secs(3600);
        let (status, document) = line.split_at_checked(4).unwrap_or((line, b""));
        let status = std::str::from_utf8(status).ok().and_then(|status| status.trim().parse().ok());
        if twin.expire(now).is_err() {
            return;
        }
        if let Some(version) = std::str::from_utf8(line).ok().and_then(|line| line.parse().ok()) {
            twin.desired_changed(version);
        }
        if let Some(request) = twin.next_request(now) {
            let rid = rid(&request);
            if twin.answer(&rid, status.unwrap_or(200), document, now).is_err() {
                return;
            }
        }
        held = report(document).unwrap_or(held);
        merged(&held, &wanted);
    }
    settles(twin, now, held, &wanted);
}

/// An object without fractions, which no report has: the parser is not exact to the last bit of them.
fn report(text: &[u8]) -> Option<Map<String, Value>> {
    let map: Map<String, Value> = serde_json::from_slice(text).ok()?;
    map.values().all(is_exact).then_some(map)
}

fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(number) => !number.is_f64(),
        Value::Array(items) => items.iter().all(is_exact),
        Value::Object(members) => members.values().all(is_exact),
        _ => true,
    }
}

fn rid(request: &Request) -> String {
    request.topic.split_once("$rid=").expect("it has a request id").1.to_owned()
}

/// A patch makes of what the hub holds what it should hold, and is not needed twice.
fn merged(held: &Map<String, Value>, wanted: &Map<String, Value>) {
    let tidied = tidy(wanted);
    assert_eq!(tidy(&tidied), tidied, "tidy is tidy");
    let mut now_held = held.clone();
    merge(&mut now_held, diff(held, &tidied));
    assert_eq!(diff(&now_held, &tidied), Map::new(), "{now_held:?} {tidied:?}");
    let others = held.iter().filter(|(key, _)| !wanted.contains_key(*key));
    assert!(
        others.into_iter().all(|(key, value)| now_held.get(key) == Some(value)),
        "what is not ours stays"
    );
}

/// Whatever a hub said before, with an honest one the next report arrives.
fn settles(mut twin: Twin, mut now: Instant, mut held: Map<String, Value>, wanted: &Map<String, Value>) {
    held.retain(|key, _| !key.starts_with('$'));
    // Another one than the hub may have refused.
    let mut wanted = wanted.clone();
    wanted.insert("settles".to_owned(), Value::Bool(true));
    twin.want(&Some(wanted.clone()));
    twin.desired_changed(u64::MAX);
    let mut read = false;
    for _ in 0..REQUESTS {
        now += Duration::from_secs(3600);
        let Some(request) = twin.next_request(now) else { break };
        let (status, answer) = if request.payload.is_empty() {
            read = true;
            let answer = json!({"desired": {"$version": u64::MAX}, "reported": held});
            (200, serde_json::to_vec(&answer).expect("a document"))
        } else {
            let patch = serde_json::from_slice(&request.payload).expect("a patch is an object");
            merge(&mut held, patch);
            (204, Vec::new())
        };
        twin.answer(&rid(&request), status, &answer, now).expect("an honest hub's answer");
    }
    assert!(twin.settled(), "it comes to an end");
    if read {
        held.insert("settles".to_owned(), Value::Bool(true));
        assert_eq!(diff(&held, &tidy(&wanted)), Map::new(), "the hub holds the report");
    }
}
