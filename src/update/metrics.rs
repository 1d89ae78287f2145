//! What Prometheus is shown: a pure projection, as the report is.
//!
//! The text is both OpenMetrics and what node_exporter's textfile collector reads, Prometheus' older format. That
//! has no state sets, no infos, and other names for counters: everything is a gauge here.

use std::fmt::{Display, Write as _};

use super::record::{Outcome, State};
use super::report::{Facts, Phase, Progress};
use super::step::Environment;
use super::{Moment, Slot};

const STATES: [&str; 9] = [
    "idle",
    "asking_hooks",
    "downloading",
    "waiting",
    "verifying",
    "activating",
    "rebooting",
    "trial",
    "rolling_back",
];
const RESULTS: [&str; 3] = ["succeeded", "failed", "rolled_back"];

/// All metrics; `transfer` is the last install's since this process began.
#[must_use]
pub fn metrics(facts: &Facts<'_>, hub_connected: bool, transfer: Option<Progress>) -> String {
    let mut text = Text::default();
    let record = facts.record;
    text.family("twinboot_build_info", "The running daemon.");
    text.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    text.family("twinboot_hub_connected", "Whether the session with the IoT hub is up.");
    text.sample(&[], u8::from(hub_connected));
    text.family("twinboot_ready", "Whether state and boot environment are in order; 0 in a trial.");
    text.sample(&[], u8::from(record.fault.is_none() && *facts.environment == Environment::Committed));
    text.set("twinboot_state", "What the daemon does.", "state", &STATES, state(facts));
    text.family("twinboot_slot_info", "What each slot holds, where known.");
    for slot in [Slot::A, Slot::B] {
        let booted = if slot == facts.boot.slot { "true" } else { "false" };
        let version = facts.version(slot).unwrap_or_default();
        text.sample(&[("slot", &slot.to_string()), ("version", version), ("booted", booted)], 1);
    }
    text.family("twinboot_denied_images", "Images that were rolled back here and are not taken again.");
    text.sample(&[], record.denied.len());
    running(&mut text, facts, transfer);
    last(&mut text, facts);
    text.0.push_str("# EOF\n");
    text.0
}

fn running(text: &mut Text, facts: &Facts<'_>, transfer: Option<Progress>) {
    let attempts = match facts.record.state {
        State::Installing { attempt, .. } => attempt,
        _ => 0,
    };
    text.family("twinboot_update_attempts", "Attempts of the running install without headway.");
    text.sample(&[], attempts);
    if let Some(total_bytes) = facts.progress.and_then(|progress| progress.total_bytes) {
        text.family("twinboot_update_size_bytes", "Size of the source of the running install.");
        text.sample(&[], total_bytes);
    }
    if let Some(last) = transfer {
        for (name, help, bytes) in [
            ("twinboot_update_fetched_bytes", "Fetched by the last install since start.", last.fetched_bytes),
            ("twinboot_update_saved_bytes", "At the source, and not to be fetched.", last.saved_bytes),
            ("twinboot_update_copied_bytes", "Copied from the running slot.", last.copied_bytes),
            ("twinboot_update_kept_bytes", "Held by the slot already.", last.kept_bytes),
            ("twinboot_update_written_bytes", "Written to the slot, which lacked them.", last.written_bytes),
        ] {
            text.family(name, help);
            text.sample(&[], bytes);
        }
    }
}

/// The last update that ended, and how long the parts of the last one took.
fn last(text: &mut Text, facts: &Facts<'_>) {
    let times = &facts.record.times;
    if let State::Idle { last: Some(last) } = &facts.record.state {
        let (result, failure) = match &last.outcome {
            Outcome::Succeeded => ("succeeded", None),
            Outcome::Failed(failure) => ("failed", Some(failure)),
            Outcome::RolledBack(failure) => ("rolled_back", Some(failure)),
        };
        let help = "How the last update ended.";
        text.set("twinboot_last_update_result", help, "result", &RESULTS, result);
        text.family("twinboot_last_update_info", "Which one that was, and the code of its failure.");
        let code = failure.map(|failure| failure.code.to_string()).unwrap_or_default();
        let request = &last.update.request;
        let version = request.version.as_deref().unwrap_or_default();
        text.sample(&[("update_id", request.id.as_str()), ("version", version), ("code", &code)], 1);
    }
    let phases = [
        ("download", times.accepted, times.downloaded),
        ("apply", times.applying, times.finished),
        ("total", times.accepted, times.finished),
    ];
    let known: Vec<_> = phases
        .into_iter()
        .filter_map(|(phase, from, to)| Some((phase, seconds_between(from?, to?)?)))
        .collect();
    if !known.is_empty() {
        text.family("twinboot_update_duration_seconds", "How long the last update took.");
        known.into_iter().for_each(|(phase, seconds)| text.sample(&[("phase", phase)], seconds));
    }
    for (name, help, moment) in [
        ("twinboot_last_update_end_timestamp_seconds", "When the last update ended.", times.finished),
        ("twinboot_last_success_timestamp_seconds", "When an update last succeeded.", times.succeeded),
    ] {
        if let Some(unix_secs) = moment.and_then(|moment| moment.unix_secs) {
            text.family(name, help);
            text.sample(&[], unix_secs);
        }
    }
}

fn state(facts: &Facts<'_>) -> &'static str {
    match &facts.record.state {
        State::Idle { .. } => "idle",
        State::Asking { .. } => "asking_hooks",
        State::Installing { .. } => match facts.progress.unwrap_or_default().phase {
            Phase::Downloading => "downloading",
            Phase::Waiting => "waiting",
            Phase::Verifying => "verifying",
        },
        State::Installed { .. } => "activating",
        State::Rebooting { .. } => "rebooting",
        State::Trial { .. } => "trial",
        State::RollingBack { .. } => "rolling_back",
    }
}

/// By the clock of the boot where both were in one, else by the wall clock.
fn seconds_between(from: Moment, to: Moment) -> Option<u64> {
    if from.boot == to.boot {
        return to.uptime_secs.checked_sub(from.uptime_secs);
    }
    to.unix_secs?.checked_sub(from.unix_secs?)
}

/// The text so far, and the family that is being written.
#[derive(Default)]
struct Text(String, &'static str);

impl Text {
    fn family(&mut self, name: &'static str, help: &str) {
        self.1 = name;
        // Writing to a `String` cannot fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} gauge\n");
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<_> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{}{labels} {value}", self.1);
    }

    /// One of these holds.
    fn set(&mut self, name: &'static str, help: &str, label: &str, all: &[&str], holds: &str) {
        self.family(name, help);
        all.iter().for_each(|each| self.sample(&[(label, each)], u8::from(*each == holds)));
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
