//! One update as its twin shows it, from the call to its end: pure.

use std::time::SystemTime;

use serde_json::{Value, json};

use crate::report::{Amount, Ending, Report};

/// The steps, in the words of the tutorial's own service program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    Waiting,
    Downloading,
    Applying,
    Applied,
    Failed,
    RolledBack,
}

impl Word {
    pub fn text(self) -> &'static str {
        match self {
            Self::Waiting => "Waiting on device...",
            Self::Downloading => "Downloading firmware...",
            Self::Applying => "Download complete, applying firmware...",
            Self::Applied => "Firmware applied",
            Self::Failed => "Firmware update failed",
            Self::RolledBack => "Firmware rolled back",
        }
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Completed,
    Failed(String),
    RolledBack(String),
    /// The device is at another update: ours was cancelled, or its end was missed.
    Replaced(String),
    /// The device reports no update any more.
    Lost,
}

/// What one look at the twin shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    pub word: Word,
    /// The device's own sentence.
    pub sentence: Option<String>,
    /// While it downloads.
    pub amount: Option<Amount>,
    /// Between the last two reports.
    pub bytes_per_sec: Option<u64>,
    pub outcome: Option<Outcome>,
}

/// Follows one update.
#[derive(Debug)]
pub struct Follow {
    /// None where the device names none, as the tutorials' devices do not.
    id: Option<String>,
    /// The update that was in the twin before the call.
    before: Option<String>,
    /// An end that was there with it, and is not ours.
    stale: Option<Mark>,
    seen: bool,
    /// The device itself says that it is completed: the twin may be about a later one.
    over: bool,
    /// The last look showed neither ours nor the one from before.
    strange: bool,
    pace: Pace,
}

/// How fast a download is: devices report seldom, so it is measured by when they did and not by when we looked.
#[derive(Debug, Default)]
struct Pace {
    last: Option<(u64, SystemTime)>,
    bytes_per_sec: Option<u64>,
}

impl Pace {
    fn look(&mut self, report: Report<'_>) -> Option<u64> {
        let now = (report.amount()?.bytes, report.amount_at()?);
        if self.last == Some(now) {
            return self.bytes_per_sec;
        }
        let (before, since) = self.last.replace(now)?;
        let millis = u64::try_from(now.1.duration_since(since).ok()?.as_millis()).ok()?;
        self.bytes_per_sec = now.0.checked_sub(before)?.saturating_mul(1000).checked_div(millis);
        self.bytes_per_sec
    }
}

/// What tells two ends of the same update apart: it may have been tried before.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    ending: Ending,
    id: Option<String>,
    started: Option<String>,
    ended: Option<String>,
}

impl Mark {
    fn of(report: Report<'_>) -> Option<Self> {
        Some(Self {
            ending: report.ending()?,
            id: report.update_id().map(str::to_owned),
            started: report.reported("firmware/lastFwUpdateStartTime"),
            ended: report
                .reported("firmware/lastFwUpdateEndTime")
                .or_else(|| report.reported("lastFirmwareUpdate")),
        })
    }
}

impl Follow {
    /// Follows an update that was started after `before` was read.
    pub fn started(id: Option<String>, before: &Value) -> Self {
        let before = Report::of(before);
        let (stale, before) = (Mark::of(before), before.update_id().map(str::to_owned));
        Self { id, before, stale, ..Self::any() }
    }

    /// An update that the device says it has completed.
    pub fn completed() -> Self {
        Self { over: true, ..Self::any() }
    }

    /// Follows whichever update the device is at.
    pub fn any() -> Self {
        let (seen, over, strange) = (false, false, false);
        Self { id: None, before: None, stale: None, seen, over, strange, pace: Pace::default() }
    }

    /// Whether the twin has shown this update yet.
    pub fn seen(&self) -> bool {
        self.seen
    }

    pub fn look(&mut self, twin: &Value) -> Look {
        let report = Report::of(twin);
        let sentence = report.reported("firmware/fwUpdateSubstatus");
        let waiting =
            Look { word: Word::Waiting, sentence: None, amount: None, bytes_per_sec: None, outcome: None };
        if self.over {
            return Look { word: Word::Applied, outcome: Some(Outcome::Completed), ..waiting };
        }
        if self.id.is_some() && self.id.as_deref() != report.update_id() {
            return Look { outcome: self.gone(report), ..waiting };
        }
        if self.stale.is_some() && Mark::of(report) == self.stale {
            return waiting;
        }
        let why = report.error().or_else(|| sentence.clone()).unwrap_or_default();
        let (word, outcome) = match (report.ending(), report.firmware_status()) {
            (Some(Ending::Completed), _) => (Word::Applied, Some(Outcome::Completed)),
            (Some(Ending::Failed), _) => (Word::Failed, Some(Outcome::Failed(why))),
            (Some(Ending::RolledBack), _) => (Word::RolledBack, Some(Outcome::RolledBack(why))),
            (None, Some("downloading")) => (Word::Downloading, None),
            (None, Some("applying")) => (Word::Applying, None),
            (None, _) => return waiting,
        };
        // It runs or has ended: an old end that looks the same would be a new one.
        self.seen = true;
        self.stale = None;
        let amount = report.amount().filter(|_| word == Word::Downloading);
        Look { word, sentence, amount, bytes_per_sec: self.pace.look(report), outcome }
    }

    /// How it ended, where the twin shows another update or none: at once if ours was there; if not, at the second look,
    /// for a report from before the call may come late.
    fn gone(&mut self, report: Report<'_>) -> Option<Outcome> {
        let was_strange = self.strange;
        self.strange = self.before.as_deref() != report.update_id();
        let by = || report.reported("firmware/updateId").map_or(Outcome::Lost, Outcome::Replaced);
        (self.seen || was_strange && self.strange).then(by)
    }
}

impl Look {
    /// One JSON line.
    pub fn event(&self, device: &str) -> Value {
        let progress = self.amount.map(|amount| {
            json!({"bytes": amount.bytes, "totalBytes": amount.total_bytes, "percent": amount.percent(),
                "bytesPerSec": self.bytes_per_sec})
        });
        json!({"event": "status", "device": device, "status": self.word.text(), "detail": self.sentence,
            "progress": progress})
    }
}

impl Outcome {
    /// The last JSON line.
    pub fn event(&self, device: &str) -> Value {
        let (outcome, reason) = match self {
            Self::Completed => ("completed", None),
            Self::Failed(why) => ("failed", Some(why)),
            Self::RolledBack(why) => ("rolledBack", Some(why)),
            Self::Replaced(by) => ("replaced", Some(by)),
            Self::Lost => ("lost", None),
        };
        json!({"event": "end", "device": device, "outcome": outcome, "reason": reason})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn twin(status: &str, id: &str, started: &str) -> Value {
        json!({"properties": {"reported": {"firmwareStatus": status, "firmware": {
            "updateId": id, "lastFwUpdateStartTime": started,
            "fwUpdateSubstatus": "s", "error": {"code": "BootFailed", "message": "m"},
            "progress": {"bytes": 1, "totalBytes": 4}}}}})
    }

    fn walk(mut follow: Follow, twins: &[Value]) -> Vec<(Word, Option<Outcome>)> {
        twins.iter().map(|twin| follow.look(twin)).map(|look| (look.word, look.outcome)).collect()
    }

    #[test]
    fn an_update_is_told_in_the_tutorials_words() {
        let before = twin("completed", "old", "t0");
        let follow = Follow::started(Some("new".into()), &before);
        let seen = walk(
            follow,
            &[
                before.clone(),
                twin("downloading", "new", "t1"),
                twin("applying", "new", "t1"),
                twin("completed", "new", "t1"),
            ],
        );
        let expected = [
            (Word::Waiting, None),
            (Word::Downloading, None),
            (Word::Applying, None),
            (Word::Applied, Some(Outcome::Completed)),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn an_older_end_of_the_same_update_is_not_taken_for_the_new_one() {
        let before = twin("failed", "u", "t0");
        let ended = (Word::Failed, Some(Outcome::Failed("BootFailed: m".into())));
        let again =
            walk(Follow::started(Some("u".into()), &before), &[before.clone(), twin("failed", "u", "t1")]);
        assert_eq!(again, [(Word::Waiting, None), ended.clone()]);
        // A device without a clock tells no times: that it ran in between is enough.
        let seen = walk(
            Follow::started(Some("u".into()), &before),
            &[before.clone(), twin("downloading", "u", "t0"), before.clone()],
        );
        assert_eq!(seen, [(Word::Waiting, None), (Word::Downloading, None), ended]);
        // Whatever the twin tells of a later one.
        assert_eq!(walk(Follow::completed(), &[before]), [(Word::Applied, Some(Outcome::Completed))]);
    }

    #[test]
    fn an_update_that_another_one_took_the_place_of_has_ended() {
        let before = twin("completed", "old", "t0");
        let begun = || {
            let mut follow = Follow::started(Some("u".into()), &before);
            assert_eq!(follow.look(&before).outcome, None, "not begun yet");
            let amount = follow.look(&twin("downloading", "u", "t1")).amount;
            assert_eq!(amount.and_then(Amount::percent), Some(25));
            follow
        };
        let outcome = begun().look(&twin("downloading", "other\u{1b}", "t2")).outcome;
        assert_eq!(outcome, Some(Outcome::Replaced("other\u{fffd}".into())), "safe to print");
        let none = json!({"properties": {"reported": {"firmwareStatus": "standBy"}}});
        assert_eq!(begun().look(&none).outcome, Some(Outcome::Lost));
    }

    #[test]
    fn an_update_that_another_one_took_the_place_of_unseen_has_ended() {
        let before = twin("completed", "old", "t0");
        let mut follow = Follow::started(Some("u".into()), &before);
        let other = twin("downloading", "other", "t1");
        assert_eq!(follow.look(&other).outcome, None, "it may be a report that came late");
        assert_eq!(follow.look(&before).outcome, None);
        assert_eq!(follow.look(&other).outcome, None);
        assert_eq!(follow.look(&other).outcome, Some(Outcome::Replaced("other".into())));
    }

    #[test]
    fn the_rate_is_measured_between_two_reports() {
        let twin = |bytes: u64, at: &str| {
            let updated = json!({"firmware": {"progress": {"bytes": {"$lastUpdated": at}}}});
            json!({"properties": {"reported": {"firmwareStatus": "downloading", "$metadata": updated,
                "firmware": {"progress": {"bytes": bytes, "totalBytes": 10_000}}}}})
        };
        let mut follow = Follow::any();
        let mut rate = |bytes, at| follow.look(&twin(bytes, at)).bytes_per_sec;
        assert_eq!(rate(1000, "2026-11-23T10:00:00Z"), None);
        assert_eq!(rate(6000, "2026-11-23T10:00:10Z"), Some(500));
        assert_eq!(rate(6000, "2026-11-23T10:00:10Z"), Some(500), "looked at again before the next report");
        assert_eq!(rate(7000, "2026-11-23T10:00:10.5Z"), Some(2000));
        assert_eq!(rate(0, "2026-11-23T10:00:20Z"), None, "it began anew");
    }

    #[test]
    fn a_device_without_ids_is_followed_by_its_status() {
        let twin = |status| json!({"properties": {"reported": {"firmwareStatus": status}}});
        let before = twin("completed");
        let seen = walk(
            Follow::started(None, &before),
            &[before.clone(), twin("downloading"), twin("applying"), before.clone()],
        );
        let words: Vec<_> = seen.into_iter().map(|(word, _)| word).collect();
        assert_eq!(words, [Word::Waiting, Word::Downloading, Word::Applying, Word::Applied]);
        assert_eq!(walk(Follow::any(), &[twin("standBy")]), [(Word::Waiting, None)]);
    }
}
