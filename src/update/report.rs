//! What the twin shows: a pure projection of boot, record and progress.

use serde_json::{Map, Value, json};

use super::hook::{Deferral, Gate};
use super::record::{Finished, Outcome, Record, State};
use super::request::INTEGER_MAX;
use super::step::Environment;
use super::{Boot, Failure, Moment, Slot};

/// How far an install is; a level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What the installer does now.
    pub phase: Phase,
    /// Bytes of the source taken so far, those kept from an earlier attempt included; of a bundle, bytes of its
    /// images that are ready.
    pub bytes: u64,
    /// Of how many, where known.
    pub total_bytes: Option<u64>,
    /// Bytes fetched by this attempt.
    pub fetched_bytes: u64,
    /// Bytes at the source that need not be fetched: an earlier attempt did, or a slot holds what they make.
    pub saved_bytes: u64,
    /// Bytes copied from the running slot.
    pub copied_bytes: u64,
    /// Bytes that the slot held already.
    pub kept_bytes: u64,
    /// Bytes written to the slot.
    pub written_bytes: u64,
    /// Bytes that no attempt before had come to, which is headway: written, or, of a plain image that was resumed, behind
    /// the next checkpoint.
    pub fresh_bytes: u64,
}

impl Progress {
    /// Whole percent of the source, where its size is known.
    #[must_use]
    pub fn percent(&self) -> Option<u64> {
        let total_bytes = self.total_bytes.filter(|total| *total > 0)?;
        self.bytes.min(total_bytes).checked_mul(100)?.checked_div(total_bytes)
    }
}

/// The steps of an install that a person can tell apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Fetching, decoding, and writing.
    #[default]
    Downloading,
    /// The server is away; asked again after a pause.
    Waiting,
    /// Everything is written; the slot is read back and compared.
    Verifying,
}

/// All that a report is made of.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// This boot.
    pub boot: Boot,
    /// What is durable.
    pub record: &'a Record,
    /// Of the running install.
    pub progress: Option<Progress>,
    /// What the boot loader's variables say.
    pub environment: &'a Environment,
    /// The version of the running system, where known.
    pub running_version: Option<&'a str>,
    /// When this process began to stand by.
    pub started: Moment,
    /// Why the desired property is not understood.
    pub desired_fault: Option<&'a Failure>,
    /// Why what was to begin, or to go on, could not be saved: it did not.
    pub unsaved: Option<&'a Failure>,
}

impl Facts<'_> {
    /// Of the slot that runs.
    #[must_use]
    pub fn running_version(&self) -> Option<&str> {
        self.version(self.boot.slot)
    }

    /// A state that was lost goes before one that cannot be saved.
    fn unsaved(&self) -> Option<&Failure> {
        self.unsaved.filter(|_| self.record.fault.is_none())
    }

    /// An update's word counts more than the running system's own.
    #[must_use]
    pub fn version(&self, slot: Slot) -> Option<&str> {
        self.record.versions.get(slot).or(self.running_version.filter(|_| slot == self.boot.slot))
    }
}

/// IoT Hub takes no longer text in a twin.
pub const TEXT_BYTES_MAX: usize = 4096;

/// The reported properties. What no longer holds is `null`.
#[must_use]
pub fn reported(facts: &Facts<'_>) -> Map<String, Value> {
    let times = &facts.record.times;
    let time = |moment: Option<Moment>| moment.and_then(Moment::rfc3339);
    let mut reported = Map::new();
    reported.insert("firmwareStatus".into(), json!(firmware_status(facts)));
    reported.insert("logTime".into(), json!(time(Some(facts.started))));
    reported.insert("downloadComplete".into(), json!(time(times.downloaded)));
    reported.insert("startedApplyingImage".into(), json!(time(times.applying)));
    reported.insert("lastFirmwareUpdate".into(), json!(time(times.succeeded)));
    let (status, substatus) = update_status(facts);
    let running_version = facts.running_version();
    reported.insert(
        "firmware".into(),
        json!({
            "currentFwVersion": running_version.unwrap_or_default(),
            "pendingFwVersion": pending_version(&facts.record.state),
            "fwUpdateStatus": status,
            "fwUpdateSubstatus": cut(&substatus),
            "lastFwUpdateStartTime": time(times.accepted),
            "lastFwUpdateEndTime": time(times.finished),
            "updateId": facts.record.state.subject().map(|update| update.request.id.as_str()),
            "progress": facts.progress.map(|progress| json!({
                "bytes": progress.bytes,
                // Any number, as far as a server is concerned.
                "totalBytes": progress.total_bytes.filter(|bytes| *bytes <= INTEGER_MAX),
                "percent": progress.percent(),
                "fetchedBytes": progress.fetched_bytes,
                "savedBytes": progress.saved_bytes,
                "copiedBytes": progress.copied_bytes,
                "keptBytes": progress.kept_bytes,
                "writtenBytes": progress.written_bytes,
            })),
            "error": failure(facts).map(|failure| json!({
                "code": failure.code, "message": cut(&failure.message),
            })),
            "slots": {
                "booted": facts.boot.slot,
                "a": slot(facts, Slot::A),
                "b": slot(facts, Slot::B),
            },
            "keySerial": facts.record.keys.as_ref().map(|list| list.serial),
            "agentVersion": env!("CARGO_PKG_VERSION"),
        }),
    );
    reported
}

/// The tutorial's word.
fn firmware_status(facts: &Facts<'_>) -> &'static str {
    match &facts.record.state {
        State::Idle { last: None } => "standBy",
        State::Idle { last: Some(last) } => match last.outcome {
            Outcome::Succeeded => "completed",
            Outcome::Failed(_) => "failed",
            Outcome::RolledBack(_) => "rolledBack",
        },
        State::Asking { gate: Gate::BeforeInstall, .. } => "downloading",
        State::Installing { .. } => match facts.progress.unwrap_or_default().phase {
            Phase::Downloading | Phase::Waiting => "downloading",
            Phase::Verifying => "applying",
        },
        State::Asking { .. }
        | State::Installed { .. }
        | State::Rebooting { .. }
        | State::Trial { .. }
        | State::RollingBack { .. } => "applying",
    }
}

/// Microsoft's later word, and a sentence.
#[must_use]
pub fn update_status(facts: &Facts<'_>) -> (&'static str, String) {
    if let Some(unsaved) = facts.unsaved() {
        return ("error", unsaved.message.clone());
    }
    match &facts.record.state {
        State::Idle { last } => idle_status(facts, last.as_deref()),
        State::Asking { update, gate, deferral, .. } => asking_status(update.target, gate, deferral.as_ref()),
        State::Installing { update, .. } => match facts.progress.unwrap_or_default().phase {
            Phase::Downloading => ("downloading", format!("Downloading to slot {}", update.target)),
            Phase::Waiting => ("downloading", "Waiting for the server".to_owned()),
            Phase::Verifying => ("verifying", format!("Reading slot {} back", update.target)),
        },
        State::Installed { update, .. } => ("applying", format!("Activating slot {}", update.target)),
        State::Rebooting { update, .. } => ("rebooting", format!("Rebooting into slot {}", update.target)),
        State::Trial { update, .. } => ("applying", format!("Checking the health of slot {}", update.target)),
        State::RollingBack { to, failure, .. } => {
            ("applying", format!("Rolling back to slot {to}: {}", failure.message))
        }
    }
}

/// Hooks that let go on at once are not worth a word of their own.
fn asking_status(target: Slot, gate: &Gate, deferral: Option<&Deferral>) -> (&'static str, String) {
    let (status, sentence) = match gate {
        Gate::BeforeInstall => ("downloading", format!("Preparing slot {target}")),
        Gate::AfterInstall { .. } | Gate::BeforeReboot { .. } => {
            ("applying", format!("Activating slot {target}"))
        }
    };
    (status, deferral.map_or(sentence, |deferral| format!("Waiting: {}", deferral.reason)))
}

/// A state that was lost goes before all; how the last update ended before a desired property that nobody understands.
fn idle_status(facts: &Facts<'_>, last: Option<&Finished>) -> (&'static str, String) {
    let outcome = last.map(|last| &last.outcome);
    if let Some(lost) = &facts.record.fault {
        return ("error", lost.message.clone());
    }
    match (facts.environment, outcome, facts.desired_fault) {
        (Environment::Uncommitted, _, _) => {
            ("current", format!("Slot {} is not committed; no update is taken", facts.boot.slot))
        }
        (Environment::Unusable(why), _, _) => ("error", format!("No update is taken: {why}")),
        (Environment::Committed, Some(Outcome::Failed(failure)), _) => ("error", failure.message.clone()),
        (Environment::Committed, Some(Outcome::RolledBack(failure)), _) => {
            ("rolledback", format!("Rolled back to slot {}: {}", facts.boot.slot, failure.message))
        }
        (Environment::Committed, None | Some(Outcome::Succeeded), Some(fault)) => {
            ("error", fault.message.clone())
        }
        (Environment::Committed, Some(Outcome::Succeeded), None) => {
            ("current", "Firmware applied".to_owned())
        }
        (Environment::Committed, None, None) => ("current", "Standing by".to_owned()),
    }
}

fn pending_version(state: &State) -> Option<&str> {
    state.update().and_then(|update| update.request.version.as_deref())
}

fn failure<'a>(facts: &'a Facts<'_>) -> Option<&'a Failure> {
    if let Some(unsaved) = facts.unsaved() {
        return Some(unsaved);
    }
    match &facts.record.state {
        State::Idle { last } => {
            let failure = last.as_ref().and_then(|last| last.outcome.failure());
            facts.record.fault.as_ref().or(failure).or(facts.desired_fault)
        }
        State::RollingBack { failure, .. } => Some(failure),
        State::Asking { .. }
        | State::Installing { .. }
        | State::Installed { .. }
        | State::Rebooting { .. }
        | State::Trial { .. } => None,
    }
}

fn slot(facts: &Facts<'_>, slot: Slot) -> Value {
    json!({ "version": facts.version(slot), "state": slot_state(facts, slot) })
}

fn slot_state(facts: &Facts<'_>, slot: Slot) -> &'static str {
    let booted = slot == facts.boot.slot;
    match &facts.record.state {
        State::Trial { .. } if booted => "trial",
        State::Idle { .. } if booted && *facts.environment == Environment::Uncommitted => "uncommitted",
        State::RollingBack { to, .. } if slot != *to => "bad",
        State::Installing { update, .. } if slot == update.target => "writing",
        State::Asking { update, gate: Gate::AfterInstall { .. } | Gate::BeforeReboot { .. }, .. }
        | State::Installed { update, .. }
            if slot == update.target =>
        {
            "installed"
        }
        State::Rebooting { update, .. } if slot == update.target => "armed",
        State::Idle { .. }
        | State::Asking { .. }
        | State::Installing { .. }
        | State::Installed { .. }
        | State::Rebooting { .. }
        | State::Trial { .. }
        | State::RollingBack { .. } => {
            if booted {
                "committed"
            } else if facts.record.fallback == Some(slot) || matches!(facts.record.state, State::Trial { .. })
            {
                "fallback"
            } else if facts.record.versions.get(slot).is_some() {
                "bad"
            } else {
                "unknown"
            }
        }
    }
}

fn cut(text: &str) -> &str {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::{BootId, Code, Image, Sha256Digest, Update, UpdateRequest};
    use super::*;

    fn update() -> Update {
        let request = UpdateRequest {
            version: Some("2.0".into()),
            ..UpdateRequest::from_payload(br#""https://host.example/2.img""#).unwrap()
        };
        Update { request, target: Slot::B, online_before: true }
    }

    fn image() -> Image {
        let digest = Sha256Digest([1; 32]);
        Image { source_digest: digest, size_bytes: 1, version: None, keys: None }
    }

    fn at(unix_secs: Option<u64>) -> Moment {
        Moment { boot: BootId(1), uptime_secs: 5, unix_secs }
    }

    fn report(slot: Slot, record: &Record, progress: Option<Progress>) -> Map<String, Value> {
        reported(&Facts {
            boot: Boot { id: BootId(1), slot },
            record,
            progress,
            environment: &Environment::Committed,
            running_version: Some("1.0"),
            started: at(None),
            desired_fault: None,
            unsaved: None,
        })
    }

    #[test]
    fn each_state_has_the_tutorials_word_and_microsofts() {
        let failure = Failure::new(Code::BootFailed, "m");
        let last = |outcome| State::Idle { last: Some(Box::new(Finished { update: update(), outcome })) };
        let (update, image) = (update(), image());
        let to = Slot::A;
        let rows = [
            (State::Idle { last: None }, "standBy", "current"),
            (last(Outcome::Succeeded), "completed", "current"),
            (last(Outcome::Failed(failure.clone())), "failed", "error"),
            (last(Outcome::RolledBack(failure.clone())), "rolledBack", "rolledback"),
            (State::Installing { update: update.clone(), attempt: 1 }, "downloading", "downloading"),
            (State::Installed { update: update.clone(), image: image.clone() }, "applying", "applying"),
            (
                State::Rebooting { update: update.clone(), image: image.clone(), armed_in: BootId(1) },
                "applying",
                "rebooting",
            ),
            (
                State::Trial { update: update.clone(), image, since: at(None), judged: false },
                "applying",
                "applying",
            ),
            (
                State::RollingBack { update, image: None, to, failure, asked_in: None, reboots: 0, tries: 0 },
                "applying",
                "applying",
            ),
        ];
        for (state, firmware_status, update_status) in rows {
            let record = Record { state, ..Record::default() };
            let report = report(Slot::A, &record, None);
            assert_eq!(report["firmwareStatus"], firmware_status);
            assert_eq!(report["firmware"]["fwUpdateStatus"], update_status);
        }
    }

    #[test]
    fn how_an_update_ended_goes_before_a_desired_property_that_nobody_understands() {
        let unknown = Failure::new(Code::InvalidPayload, "not understood");
        let told_beside = |outcome: Option<Outcome>, fault: Option<Failure>, unsaved: Option<&Failure>| {
            let last = outcome.map(|outcome| Box::new(Finished { update: update(), outcome }));
            let record = Record { state: State::Idle { last }, fault, ..Record::default() };
            let facts = Facts {
                boot: Boot { id: BootId(1), slot: Slot::A },
                record: &record,
                progress: None,
                environment: &Environment::Committed,
                running_version: None,
                started: at(None),
                desired_fault: Some(&unknown),
                unsaved,
            };
            let report = reported(&facts);
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (text(&report["firmware"]["fwUpdateStatus"]), text(&report["firmware"]["error"]["code"]))
        };
        let told = |outcome, fault| told_beside(outcome, fault, None);
        let unhealthy = || Failure::new(Code::HealthCheckFailed, "m");
        let pair = |status: &str, code: &str| (status.to_owned(), code.to_owned());
        assert_eq!(
            told(Some(Outcome::RolledBack(unhealthy())), None),
            pair("rolledback", "HealthCheckFailed")
        );
        assert_eq!(told(Some(Outcome::Failed(unhealthy())), None), pair("error", "HealthCheckFailed"));
        assert_eq!(told(Some(Outcome::Succeeded), None), pair("error", "InvalidPayload"));
        assert_eq!(told(None, None), pair("error", "InvalidPayload"));
        let lost = Failure::new(Code::StateDamaged, "m");
        assert_eq!(told(Some(Outcome::Failed(unhealthy())), Some(lost)), pair("error", "StateDamaged"));
        let unsaved = Failure::new(Code::StateUnsaved, "m");
        for outcome in [None, Some(Outcome::Succeeded), Some(Outcome::RolledBack(unhealthy()))] {
            assert_eq!(told_beside(outcome, None, Some(&unsaved)), pair("error", "StateUnsaved"));
        }
    }

    #[test]
    fn what_does_not_hold_is_null_and_no_time_is_told_while_the_clock_is_not_set() {
        let mut record = Record::default();
        record.times.succeeded = Some(at(None));
        let report = report(Slot::A, &record, None);
        for key in ["logTime", "downloadComplete", "startedApplyingImage", "lastFirmwareUpdate"] {
            assert_eq!(report[key], Value::Null, "{key}");
        }
        for key in ["pendingFwVersion", "progress", "error", "updateId"] {
            assert_eq!(report["firmware"][key], Value::Null, "{key}");
        }
    }

    /// Shows rauc/rauc#808, #1672, rauc-hawkbit-updater#73, #155.
    #[test]
    fn a_running_install_shows_its_progress() {
        let record =
            Record { state: State::Installing { update: update(), attempt: 1 }, ..Record::default() };
        let progress = Progress {
            phase: Phase::Verifying,
            bytes: 10,
            total_bytes: Some(30),
            fetched_bytes: 4,
            saved_bytes: 6,
            copied_bytes: 5,
            kept_bytes: 3,
            written_bytes: 7,
            fresh_bytes: 7,
        };
        let report = report(Slot::A, &record, Some(progress));
        let shown = json!({
            "bytes": 10, "totalBytes": 30, "percent": 33, "fetchedBytes": 4, "savedBytes": 6, "copiedBytes": 5,
            "keptBytes": 3, "writtenBytes": 7,
        });
        assert_eq!(report["firmware"]["progress"], shown);
        assert_eq!(report["firmware"]["fwUpdateStatus"], "verifying");
        assert_eq!(report["firmware"]["slots"]["b"], json!({"version": null, "state": "writing"}));
        assert_eq!(report["firmware"]["slots"]["a"], json!({"version": "1.0", "state": "committed"}));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = "ä".repeat(TEXT_BYTES_MAX);
        assert_eq!(cut(&text).len(), TEXT_BYTES_MAX);
        assert_eq!(cut(&text[2..]).len(), TEXT_BYTES_MAX);
        assert_eq!(cut(&format!("x{text}")).len(), TEXT_BYTES_MAX - 1);
        assert_eq!(cut("short"), "short");
    }
}
