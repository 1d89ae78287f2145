//! `twinbootctl rollout advance`: one look at the gate.

use clap::Args;
use serde_json::{Value, json};

use super::super::screen::print_line;
use super::super::{CliError, Ctl, Exit, shown_by};
use super::picture::{read, read_same, tallies, words};
use crate::rollout::Rollout;
use crate::rollout::gate::Verdict;

const CODES: &str = "\
Exit codes:
  0   the next ring was opened
  20  not yet: too few devices of the last ring are done, or the rollout is paused
  21  stopped by the gate: too many of an open ring failed or were rolled back
  22  complete: all rings are open, and enough of the last one is done";

/// Look at the gate once, and open the next ring if it allows
///
/// For a timer, or a pipeline.
#[derive(Debug, Args)]
#[command(after_help = CODES, after_long_help = CODES)]
pub(super) struct Advance {
    /// Of the rollout
    name: String,
}

impl Advance {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        let (configuration, rollout) = read(ctl, &self.name).await?;
        let verdict = rollout.decide(&tallies(ctl, &rollout).await?);
        if verdict == Verdict::Open {
            open_next(ctl, configuration, &rollout).await?;
        }
        tell(ctl, &rollout, &verdict)?;
        Ok(match verdict {
            Verdict::Open => Exit::Done,
            Verdict::Wait(_) => Exit::GateWaits,
            Verdict::Stop(_) => Exit::GateStops,
            Verdict::Complete => Exit::Complete,
        })
    }
}

/// Opens the next ring, if the rollout still is as it was read. That was before the queries, which may take minutes:
/// another one of this name may have the same etag by now.
pub(super) async fn open_next(ctl: &Ctl, configuration: Value, rollout: &Rollout) -> Result<(), CliError> {
    read_same(ctl, &rollout.name, &rollout.identity(&configuration)).await?;
    let next = Rollout { open: rollout.open + 1, ..rollout.clone() };
    let written = ctl.service.update_configuration(&rollout.name, next.write_to(configuration)).await;
    shown_by(written, &format!("rollout status {}", rollout.name))
}

/// One line.
pub(super) fn tell(ctl: &Ctl, rollout: &Rollout, verdict: &Verdict) -> Result<(), CliError> {
    let (word, why) = words(verdict);
    if ctl.json {
        let word = if *verdict == Verdict::Open { "opened" } else { word };
        let open = rollout.open + usize::from(*verdict == Verdict::Open);
        let event =
            json!({"event": "gate", "rollout": rollout.name, "verdict": word, "why": why, "ringsOpen": open});
        return print_line(&event.to_string());
    }
    match verdict {
        Verdict::Open => print_line(&format!("ring {} of {} opened", rollout.open + 1, rollout.rings.len())),
        Verdict::Complete => print_line(word),
        Verdict::Wait(_) | Verdict::Stop(_) => print_line(&format!("{word}: {why}")),
    }
}
