//! The conversation about the device twin, without its transport: which request to send next, and
//! what an answer means.

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{Pace, Reported, patch, topic};

/// A pause after repeated 429s is doubled at most this often: 10 s becomes 160 s.
const THROTTLED_DOUBLINGS: u32 = 4;

/// One unanswered request can be a lost message; two in a row are a dead session.
const MISSES_MAX: u8 = 2;

/// A session whose twin cannot be talked about.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TwinError {
    /// Two requests in a row without an answer.
    #[error("the hub does not answer twin requests")]
    Silent,
    /// A twin that is not a JSON object with both sections.
    #[error("the hub sent a twin that is not understood")]
    NotATwin,
}

/// A message to publish.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// Holds the request id.
    pub topic: String,
    /// JSON, or empty.
    pub payload: Vec<u8>,
}

/// The request under way.
#[derive(Debug)]
struct Pending {
    rid: String,
    kind: Kind,
    answer_by: Instant,
}

#[derive(Debug)]
enum Kind {
    Get,
    Patch {
        patch: Map<String, Value>,
        /// The wanted value that it was made from: by the answer there may be a newer one.
        made_from: Option<Map<String, Value>>,
    },
}

/// What one session knows of the twin, and wants of it. One request is under way at a time, so an
/// answer never describes a twin that another request has changed meanwhile.
#[derive(Debug)]
pub struct Twin {
    pace: Pace,
    random: fastrand::Rng,
    last_rid: u32,
    pending: Option<Pending>,
    /// Whether the twin must be read (again) before anything else.
    stale: bool,
    paused_until: Option<Instant>,
    throttled: u32,
    misses: u8,
    /// The newest version that the hub has told of.
    announced_version: u64,
    known_version: Option<u64>,
    /// The reported section as the hub holds it.
    held: Map<String, Value>,
    /// The reported section as it should be.
    wanted: Option<Map<String, Value>>,
    /// A wanted value that the hub refused: not sent again until it changes.
    refused: Option<Map<String, Value>>,
}

impl Twin {
    /// Of a session that has just begun: nothing is known.
    #[must_use]
    pub fn new(pace: Pace, random: fastrand::Rng) -> Self {
        Self {
            pace,
            random,
            last_rid: 0,
            pending: None,
            stale: true,
            paused_until: None,
            throttled: 0,
            misses: 0,
            announced_version: 0,
            known_version: None,
            held: Map::new(),
            wanted: None,
            refused: None,
        }
    }

    /// Sets what the reported section should be. Only the newest value counts.
    pub fn want(&mut self, reported: &Reported) {
        self.wanted = reported.as_ref().map(patch::tidy);
    }

    /// Whether the hub holds all that is wanted, as far as it can be had.
    #[must_use]
    pub fn settled(&self) -> bool {
        self.pending.is_none() && !self.stale && self.missing().is_none()
    }

    /// Whether an answer is awaited.
    #[must_use]
    pub fn awaits_answer(&self) -> bool {
        self.pending.is_some()
    }

    /// The request to send now, if any.
    pub fn next_request(&mut self, now: Instant) -> Option<Request> {
        if self.pending.is_some() || self.paused_until.is_some_and(|until| now < until) {
            return None;
        }
        self.paused_until = None;
        let kind = if self.stale {
            Kind::Get
        } else {
            Kind::Patch { patch: self.missing()?, made_from: self.wanted.clone() }
        };
        self.last_rid = self.last_rid.wrapping_add(1);
        let rid = self.last_rid.to_string();
        let request = match &kind {
            Kind::Get => Request { topic: topic::twin_get(&rid), payload: Vec::new() },
            Kind::Patch { patch, .. } => Request {
                topic: topic::twin_patch(&rid),
                // A map of texts and values always has a JSON form.
                payload: serde_json::to_vec(patch).unwrap_or_default(),
            },
        };
        self.stale = false;
        self.pending = Some(Pending { rid, kind, answer_by: now + self.pace.answer_limit });
        Some(request)
    }

    /// When [`Twin::expire`] or [`Twin::next_request`] has something to do, if nothing else happens.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let work = self.stale || self.missing().is_some();
        let answer_by = self.pending.as_ref().map(|pending| pending.answer_by);
        answer_by.or(self.paused_until.filter(|_| work))
    }

    /// Gives up on a request whose time is over. Whether a patch was applied is then unknown, so the
    /// twin is read again.
    ///
    /// # Errors
    /// [`TwinError::Silent`] the second time in a row.
    pub fn expire(&mut self, now: Instant) -> Result<(), TwinError> {
        if self.pending.as_ref().is_none_or(|pending| now < pending.answer_by) {
            return Ok(());
        }
        self.pending = None;
        self.stale = true;
        self.misses = self.misses.saturating_add(1);
        if self.misses >= MISSES_MAX { Err(TwinError::Silent) } else { Ok(()) }
    }

    /// Takes the answer to the request `rid`. Gives the desired section if it is news.
    ///
    /// # Errors
    /// [`TwinError::NotATwin`].
    pub fn answer(
        &mut self,
        rid: &str,
        status: u16,
        payload: &[u8],
        now: Instant,
    ) -> Result<Option<Map<String, Value>>, TwinError> {
        let Some(pending) = self.pending.take_if(|pending| pending.rid == rid) else {
            debug!(rid, status, "an answer to no request");
            return Ok(None);
        };
        self.misses = 0;
        match (pending.kind, status) {
            (Kind::Get, 200) => {
                self.throttled = 0;
                return self.read(payload);
            }
            (Kind::Patch { patch, .. }, 200..=299) => {
                self.throttled = 0;
                patch::merge(&mut self.held, patch);
            }
            (Kind::Patch { made_from, .. }, 400 | 413) => {
                // The same patch would be refused for ever; another value may pass.
                self.refused = made_from;
                warn!(status, "the hub refuses the report: {}", excerpt(payload));
            }
            (kind, status) => {
                self.stale |= matches!(kind, Kind::Get);
                self.pause(now);
                match status {
                    // Too busy, or ill.
                    429 | 500.. => debug!(status, "the hub asks for a pause"),
                    _ => warn!(status, "the hub does not do as asked: {}", excerpt(payload)),
                }
            }
        }
        Ok(None)
    }

    /// The hub says that the desired section has a new version.
    ///
    /// The message itself is not used. It holds the changed parts, or, after a replacement, the whole
    /// section, and does not say which: merged wrongly, a new image could keep the old one's size.
    /// The read that follows is affordable: the hub lets reads through at twice the rate of writes.
    pub fn desired_changed(&mut self, version: u64) {
        self.announced_version = self.announced_version.max(version);
        if !matches!(self.pending, Some(Pending { kind: Kind::Get, .. }))
            && self.known_version.is_none_or(|known| version > known)
        {
            self.stale = true;
        }
    }

    /// Takes the whole twin. Gives the desired section if its version is new.
    fn read(&mut self, payload: &[u8]) -> Result<Option<Map<String, Value>>, TwinError> {
        let Ok(Value::Object(mut twin)) = serde_json::from_slice(payload) else {
            return Err(TwinError::NotATwin);
        };
        let Some(Value::Object(mut desired)) = twin.remove("desired") else {
            return Err(TwinError::NotATwin);
        };
        let Some(Value::Object(mut reported)) = twin.remove("reported") else {
            return Err(TwinError::NotATwin);
        };
        let version = desired.get("$version").and_then(Value::as_u64);
        // The service's own members, not properties.
        desired.retain(|key, _| !key.starts_with('$'));
        reported.retain(|key, _| !key.starts_with('$'));
        self.held = reported;

        // Announced while the answer was on its way: read once more, but never in circles.
        self.stale = version.is_some_and(|version| version < self.announced_version);
        self.announced_version = 0;
        let news = version.is_none() || version != self.known_version;
        self.known_version = version;
        Ok(news.then_some(desired))
    }

    /// The patch that would make the held section the wanted one.
    fn missing(&self) -> Option<Map<String, Value>> {
        let wanted = self.wanted.as_ref().filter(|wanted| self.refused.as_ref() != Some(wanted))?;
        let patch = patch::diff(&self.held, wanted);
        (!patch.is_empty()).then_some(patch)
    }

    fn pause(&mut self, now: Instant) {
        let doubled = 2_u32.saturating_pow(self.throttled.min(THROTTLED_DOUBLINGS));
        self.throttled = self.throttled.saturating_add(1);
        let least: Duration = self.pace.throttled_pause.saturating_mul(doubled);
        self.paused_until = Some(now + least.mul_f64(1.0 + self.random.f64()));
    }
}

/// The beginning of a hub's error text, for the log.
fn excerpt(payload: &[u8]) -> String {
    String::from_utf8_lossy(payload).chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            other => panic!("not an object: {other}"),
        }
    }

    /// A conversation with a clock of its own.
    struct Talk {
        twin: Twin,
        now: Instant,
    }

    impl Talk {
        fn begin() -> Self {
            Self { twin: Twin::new(Pace::default(), fastrand::Rng::with_seed(1)), now: Instant::now() }
        }

        /// As far as a known twin: desired and reported as given.
        fn known(desired: Value, reported: Value) -> Self {
            let mut talk = Self::begin();
            talk.expect("$iothub/twin/GET/?$rid=1", None);
            let twin = json!({"desired": desired, "reported": reported});
            talk.answer("1", 200, &twin).unwrap().unwrap();
            talk
        }

        fn want(&mut self, reported: Value) {
            self.twin.want(&Some(object(reported)));
        }

        fn answer(
            &mut self,
            rid: &str,
            status: u16,
            payload: &Value,
        ) -> Result<Option<Map<String, Value>>, TwinError> {
            self.twin.answer(rid, status, payload.to_string().as_bytes(), self.now)
        }

        #[track_caller]
        fn expect(&mut self, topic: &str, payload: Option<Value>) {
            let request = self.twin.next_request(self.now).unwrap();
            assert_eq!(request.topic, topic);
            assert_eq!(serde_json::from_slice::<Value>(&request.payload).ok(), payload);
        }

        #[track_caller]
        fn expect_silence(&mut self) {
            assert_eq!(self.twin.next_request(self.now), None);
        }

        fn pass(&mut self, secs: u64) {
            self.now += Duration::from_secs(secs);
        }
    }

    #[test]
    fn the_twin_is_read_first_and_its_desired_section_is_news() {
        let mut talk = Talk::begin();
        talk.want(json!({"a": 1}));
        talk.expect("$iothub/twin/GET/?$rid=1", None);
        talk.expect_silence();
        let twin = json!({"desired": {"firmware": {"v": 2}, "$version": 4}, "reported": {"$version": 1}});
        assert_eq!(talk.answer("9", 200, &twin), Ok(None), "an answer to another request");
        assert_eq!(talk.answer("1", 200, &twin), Ok(Some(object(json!({"firmware": {"v": 2}})))));
        talk.expect("$iothub/twin/PATCH/properties/reported/?$rid=2", Some(json!({"a": 1})));
    }

    #[test]
    fn a_report_that_the_twin_holds_already_costs_nothing() {
        let mut talk = Talk::known(json!({"$version": 1}), json!({"a": {"b": 1}, "other": 2, "$version": 1}));
        talk.want(json!({"a": {"b": 1, "c": null}, "gone": null}));
        talk.expect_silence();
        assert!(talk.twin.settled());
        assert_eq!(talk.twin.wake_at(), None, "an idle session sets no timer");
    }

    #[test]
    fn one_patch_is_under_way_and_the_newest_value_follows() {
        let mut talk = Talk::known(json!({"$version": 1}), json!({}));
        talk.want(json!({"progress": 1}));
        talk.expect("$iothub/twin/PATCH/properties/reported/?$rid=2", Some(json!({"progress": 1})));
        for progress in 2..9 {
            talk.want(json!({"progress": progress}));
            talk.expect_silence();
        }
        talk.answer("2", 204, &Value::Null).unwrap();
        talk.expect("$iothub/twin/PATCH/properties/reported/?$rid=3", Some(json!({"progress": 8})));
        talk.answer("3", 204, &Value::Null).unwrap();
        talk.expect_silence();
        assert!(talk.twin.settled());
    }

    #[test]
    fn a_refused_report_is_not_sent_again_until_it_changes() {
        let mut talk = Talk::known(json!({"$version": 1}), json!({}));
        talk.want(json!({"bad": 1}));
        talk.expect("$iothub/twin/PATCH/properties/reported/?$rid=2", Some(json!({"bad": 1})));
        talk.answer("2", 400, &json!({"errorCode": 400_027})).unwrap();
        talk.pass(3600);
        talk.want(json!({"bad": 1}));
        talk.expect_silence();
        assert!(talk.twin.settled());
        talk.want(json!({"good": 1}));
        talk.expect("$iothub/twin/PATCH/properties/reported/?$rid=3", Some(json!({"good": 1})));
    }

    #[test]
    fn a_refusal_is_that_of_what_was_sent_and_not_of_what_is_wanted_by_then() {
        let mut talk = Talk::known(json!({"$version": 1}), json!({}));
        talk.want(json!({"bad": 1}));
        talk.expect("$iothub/twin/PATCH/properties/reported/?$rid=2", Some(json!({"bad": 1})));
        talk.want(json!({"good": 1}));
        talk.answer("2", 413, &Value::Null).unwrap();
        talk.expect("$iothub/twin/PATCH/properties/reported/?$rid=3", Some(json!({"good": 1})));
        talk.answer("3", 204, &Value::Null).unwrap();
        talk.want(json!({"bad": 1}));
        talk.expect_silence();
    }

    /// 403: the hub's daily quota is used up. It says nothing about the report.
    #[test]
    fn a_report_that_is_not_taken_now_waits_longer_each_time() {
        for status in [429, 403] {
            let mut talk = Talk::known(json!({"$version": 1}), json!({}));
            talk.want(json!({"a": 1}));
            for (rid, least_secs) in [("2", 10), ("3", 20), ("4", 40), ("5", 80), ("6", 160), ("7", 160)] {
                talk.expect(&topic::twin_patch(rid), Some(json!({"a": 1})));
                talk.answer(rid, status, &Value::Null).unwrap();
                talk.pass(least_secs - 1);
                talk.expect_silence();
                assert!(talk.twin.wake_at().unwrap() <= talk.now + Duration::from_secs(least_secs + 1));
                talk.pass(least_secs + 1);
            }
            talk.expect(&topic::twin_patch("8"), Some(json!({"a": 1})));
            talk.answer("8", 204, &Value::Null).unwrap();
            assert!(talk.twin.settled());
        }
    }

    #[test]
    fn an_unanswered_patch_is_checked_by_reading_and_two_misses_end_the_session() {
        let mut talk = Talk::known(json!({"$version": 1}), json!({}));
        talk.want(json!({"a": 1}));
        talk.expect(&topic::twin_patch("2"), Some(json!({"a": 1})));
        assert_eq!(talk.twin.wake_at(), Some(talk.now + Duration::from_secs(60)));
        talk.pass(59);
        assert_eq!(talk.twin.expire(talk.now), Ok(()));
        talk.expect_silence();
        talk.pass(1);
        assert_eq!(talk.twin.expire(talk.now), Ok(()));
        talk.expect(&topic::twin_get("3"), None);
        // The patch had arrived after all: nothing is left to do.
        let mut answered =
            talk.twin.answer("3", 200, br#"{"desired":{"$version":1},"reported":{"a":1}}"#, talk.now);
        assert_eq!(answered, Ok(None), "the desired section is no news");
        assert!(talk.twin.settled());

        talk.want(json!({"a": 2}));
        talk.expect(&topic::twin_patch("4"), Some(json!({"a": 2})));
        talk.pass(60);
        assert_eq!(talk.twin.expire(talk.now), Ok(()));
        talk.expect(&topic::twin_get("5"), None);
        talk.pass(60);
        assert_eq!(talk.twin.expire(talk.now), Err(TwinError::Silent));
        answered = talk.answer("5", 200, &json!({}));
        assert_eq!(answered, Ok(None), "too late to matter");
    }

    #[test]
    fn a_desired_change_is_read_once_however_often_it_is_announced() {
        let mut talk = Talk::known(json!({"$version": 4}), json!({}));
        talk.twin.desired_changed(3);
        talk.twin.desired_changed(4);
        talk.expect_silence();

        talk.twin.desired_changed(5);
        talk.twin.desired_changed(6);
        talk.expect(&topic::twin_get("2"), None);
        let news = talk.answer("2", 200, &json!({"desired": {"f": 6, "$version": 6}, "reported": {}}));
        assert_eq!(news, Ok(Some(object(json!({"f": 6})))));
        talk.expect_silence();
    }

    #[test]
    fn a_change_announced_while_the_answer_is_on_its_way_is_read_too() {
        let mut talk = Talk::known(json!({"$version": 4}), json!({}));
        talk.twin.desired_changed(5);
        talk.expect(&topic::twin_get("2"), None);
        talk.twin.desired_changed(6);
        talk.answer("2", 200, &json!({"desired": {"f": 5, "$version": 5}, "reported": {}})).unwrap().unwrap();
        talk.expect(&topic::twin_get("3"), None);
        // A hub that contradicts itself is not asked for ever.
        talk.answer("3", 200, &json!({"desired": {"f": 5, "$version": 5}, "reported": {}})).unwrap();
        talk.expect_silence();
    }

    #[test]
    fn a_twin_that_cannot_be_read_now_is_read_later() {
        for status in [429, 500, 404] {
            let mut talk = Talk::begin();
            talk.expect(&topic::twin_get("1"), None);
            assert_eq!(talk.answer("1", status, &Value::Null), Ok(None));
            talk.expect_silence();
            talk.pass(20);
            talk.expect(&topic::twin_get("2"), None);
        }
    }

    #[test]
    fn a_document_that_is_no_twin_ends_the_session() {
        for payload in ["", "[]", "{}", r#"{"desired":{}}"#, r#"{"desired":1,"reported":{}}"#, "\u{0}"] {
            let mut talk = Talk::begin();
            talk.expect(&topic::twin_get("1"), None);
            let answer = talk.twin.answer("1", 200, payload.as_bytes(), talk.now);
            assert_eq!(answer, Err(TwinError::NotATwin), "{payload}");
        }
    }
}
