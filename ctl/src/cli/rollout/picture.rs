//! A rollout as it is now: its configuration, and what the devices of its open rings report.

use serde::Deserialize;
use serde_json::{Value, json};
use twinboot::cli::paint::harmless;

use super::super::screen::{Tone, table};
use super::super::{CliError, Ctl};
use crate::rollout::gate::{Tally, Verdict};
use crate::rollout::why::{Reason, reasons};
use crate::rollout::{Identity, NotARollout, Rollout};
use crate::service::PAGE_ROWS_MAX;

/// A table is for a glance; `--json` has more.
const MESSAGE_CHARS_MAX: usize = 80;
const REASONS_MAX: usize = 10;

pub(super) struct Picture {
    pub configuration: Value,
    pub rollout: Rollout,
    /// Of the open rings.
    pub tallies: Vec<Tally>,
    pub reasons: Vec<Reason>,
    /// There are more failures than were read.
    is_partial: bool,
}

/// A row of `SELECT COUNT() AS n`.
#[derive(Deserialize)]
struct Count {
    n: u64,
}

/// A row of [`Rollout::states_query`].
#[derive(Deserialize)]
struct State {
    #[serde(default)]
    status: Option<String>,
    n: u64,
}

/// Asks a query for a number.
pub(super) async fn ask_count(ctl: &Ctl, query: &str) -> Result<u64, CliError> {
    let rows: Vec<Count> = ctl.service.rows(query).await?;
    Ok(rows.first().map_or(0, |row| row.n))
}

/// Reads the configuration of a rollout.
pub(super) async fn read(ctl: &Ctl, name: &str) -> Result<(Value, Rollout), CliError> {
    let configuration = ctl.service.configuration(name).await?;
    let rollout = Rollout::of(&configuration)?;
    Ok((configuration, rollout))
}

/// Reads the configuration of a rollout again, which may be another one's by now.
pub(super) async fn read_same(
    ctl: &Ctl,
    name: &str,
    identity: &Identity,
) -> Result<(Value, Rollout), CliError> {
    let (configuration, rollout) = read(ctl, name).await?;
    if rollout.identity(&configuration) == *identity {
        return Ok((configuration, rollout));
    }
    Err(CliError::AnotherRollout { name: name.to_owned() })
}

/// How far the devices of each open ring are.
pub(super) async fn tallies(ctl: &Ctl, rollout: &Rollout) -> Result<Vec<Tally>, CliError> {
    let mut tallies = Vec::new();
    for condition in rollout.open_rings() {
        tallies.push(tally(ctl, rollout, condition).await?);
    }
    Ok(tallies)
}

/// How far the devices of a ring are.
async fn tally(ctl: &Ctl, rollout: &Rollout, condition: &str) -> Result<Tally, CliError> {
    let devices = ask_count(ctl, &Rollout::count_query(condition)).await?;
    let states: Vec<State> = ctl.service.rows(&rollout.states_query(condition)).await?;
    let states: Vec<_> =
        states.into_iter().map(|state| (state.status.unwrap_or_default(), state.n)).collect();
    let mut tally = Tally::of(devices, &states);
    // Queries are scarce: where nobody waits, nobody had it before.
    if tally.waiting() > 0 {
        let had_it = ask_count(ctl, &rollout.had_it_query(condition)).await?;
        tally.current = tally.current.saturating_add(had_it);
    }
    Ok(tally)
}

impl Picture {
    pub async fn take(ctl: &Ctl, name: &str) -> Result<Self, CliError> {
        Self::of(ctl, read(ctl, name).await?).await
    }

    /// Of the same rollout as before.
    pub async fn take_same(ctl: &Ctl, name: &str, identity: &Identity) -> Result<Self, CliError> {
        Self::of(ctl, read_same(ctl, name, identity).await?).await
    }

    async fn of(ctl: &Ctl, (configuration, rollout): (Value, Rollout)) -> Result<Self, CliError> {
        let tallies = tallies(ctl, &rollout).await?;
        let (mut failures, mut is_partial) = (Vec::new(), false);
        if tallies.iter().any(|tally| tally.error + tally.rolledback > 0) {
            let page = ctl.service.page(&rollout.failures_query(), PAGE_ROWS_MAX, None).await?;
            (failures, is_partial) = (page.rows, page.next.is_some());
        }
        Ok(Self { configuration, rollout, tallies, reasons: reasons(&failures), is_partial })
    }

    pub fn identity(&self) -> Identity {
        self.rollout.identity(&self.configuration)
    }

    pub fn verdict(&self) -> Verdict {
        self.rollout.decide(&self.tallies)
    }

    /// One JSON line.
    pub fn json(&self) -> Value {
        let Rollout { name, version, update_id, gate, paused, open, .. } = &self.rollout;
        let rings: Vec<Value> = (0..)
            .zip(&self.rollout.rings)
            .map(|(index, condition)| json!({"target": condition, "devices": self.tallies.get(index)}))
            .collect();
        let verdict = self.verdict();
        let (word, why) = words(&verdict);
        json!({"rollout": name, "version": version, "updateId": update_id, "paused": paused, "ringsOpen": open,
            "rings": rings, "gate": gate, "verdict": word, "why": why, "failures": self.reasons,
            "failuresPartial": self.is_partial,
            "systemMetrics": self.configuration.pointer("/systemMetrics/results"),
            "metrics": self.configuration.pointer("/metrics/results")})
    }

    /// For a person.
    pub fn text(&self) -> String {
        let verdict = self.verdict();
        let (word, why) = words(&verdict);
        let result = if why.is_empty() { word.to_owned() } else { format!("{word}: {why}") };
        [self.heading(), self.rings(), self.why(), format!("{result}\n")].concat()
    }

    fn heading(&self) -> String {
        let Rollout { name, version, rings, open, gate, paused, .. } = &self.rollout;
        format!(
            "{}: version {}{}, {open} of {} rings open, gate at {} % failed and {} % done\n\
             the hub: {} devices targeted, {} applied (it looks every five minutes)\n",
            harmless(name),
            harmless(version),
            if *paused { ", PAUSED" } else { "" },
            rings.len(),
            gate.failed_percent,
            gate.done_percent,
            system_metric(&self.configuration, "targetedCount"),
            system_metric(&self.configuration, "appliedCount"),
        )
    }

    fn rings(&self) -> String {
        let rows = (0..).zip(&self.rollout.rings).map(|(index, condition)| {
            let condition = harmless(condition);
            let ring = (index + 1).to_string();
            let Some(tally) = self.tallies.get(index) else {
                let closed = || "-".to_owned();
                let cells =
                    [ring, closed(), closed(), closed(), closed(), closed(), closed(), closed(), condition];
                return (cells, Tone::Plain);
            };
            let counts = [tally.devices, tally.waiting(), tally.downloading, tally.applying, tally.current];
            let [devices, waiting, downloading, applying, current] = counts.map(|count| count.to_string());
            let failed = [tally.error, tally.rolledback].map(|count| count.to_string());
            let [error, rolledback] = failed;
            let tone = match (tally.error + tally.rolledback, tally.current) {
                (1.., _) => Tone::Bad,
                (0, current) if current >= tally.devices => Tone::Good,
                (0, _) => Tone::Notable,
            };
            let cells =
                [ring, devices, waiting, downloading, applying, current, error, rolledback, condition];
            (cells, tone)
        });
        let header = [
            "RING",
            "DEVICES",
            "WAITING",
            "DOWNLOADING",
            "APPLYING",
            "CURRENT",
            "ERROR",
            "ROLLEDBACK",
            "TARGET",
        ];
        table(header, rows)
    }

    fn why(&self) -> String {
        if self.reasons.is_empty() {
            return String::new();
        }
        let rows = self.reasons.iter().take(REASONS_MAX).map(|reason| {
            let cut: String = harmless(&reason.message).chars().take(MESSAGE_CHARS_MAX).collect();
            let devices = harmless(&reason.examples.join(", "));
            let (status, code) = (harmless(&reason.status), harmless(&reason.code));
            ([reason.devices.to_string(), status, code, cut, devices], Tone::Plain)
        });
        let mut text = format!("\n{}", table(["COUNT", "STATUS", "WHY", "MESSAGE", "FOR EXAMPLE"], rows));
        if let more @ 1.. = self.reasons.len().saturating_sub(REASONS_MAX) {
            text.push_str(&format!("and {more} other reasons\n"));
        }
        if self.is_partial {
            text.push_str(&format!("of the first {PAGE_ROWS_MAX} failures\n"));
        }
        text + "\n"
    }
}

/// A count of the hub's, once it has one.
pub(super) fn system_metric(configuration: &Value, name: &str) -> String {
    let result = configuration.pointer(&format!("/systemMetrics/results/{name}"));
    result.and_then(Value::as_u64).map_or_else(|| "-".to_owned(), |count| count.to_string())
}

/// A verdict's word and its reason.
pub(super) fn words(verdict: &Verdict) -> (&'static str, &str) {
    match verdict {
        Verdict::Open => ("the next ring may open", ""),
        Verdict::Wait(why) => ("waits", why),
        Verdict::Stop(why) => ("stopped by the gate", why),
        Verdict::Complete => ("complete", ""),
    }
}

impl From<NotARollout> for CliError {
    fn from(error: NotARollout) -> Self {
        Self::NotARollout(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::gate::Gate;

    #[test]
    fn a_configuration_cannot_steer_the_terminal() {
        let escape = || "\u{1b}[2J".to_owned();
        let (name, version, update_id, rings) = (escape(), escape(), escape(), vec![escape()]);
        let gate = Gate { failed_percent: 2, done_percent: 95 };
        let rollout = Rollout { name, version, update_id, rings, open: 1, gate, paused: false };
        let (configuration, tallies, reasons) = (json!({}), Vec::new(), Vec::new());
        let text = Picture { configuration, rollout, tallies, reasons, is_partial: false }.text();
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
}
