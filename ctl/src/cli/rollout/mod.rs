//! `twinbootctl rollout`: fleets, by IoT Hub's automatic device configurations.

mod advance;
mod change;
mod create;
mod list;
mod others;
mod picture;
mod run;
mod status;

use std::time::Duration;

use clap::{Args, Subcommand};

use super::{CliError, Ctl, Exit};

/// What a table costs in queries is more than the hub gives in five seconds; they are then asked for as fast as it
/// allows.
const REFRESH_SECS: &str = "5s";

const EXAMPLES: &str = "\
Examples:
  twinbootctl rollout create fw-2 --target \"tags.site='lyon'\" --uri https://images.example/2.0.img.zst \\
      --check-file 2.0.img.zst --version 2.0
  twinbootctl rollout create fw-2 --rings \"tags.ring='1'\" --rings \"tags.ring='2'\" --rings '*' \\
      --gate-failed-percent 2 --gate-done-percent 95 --uri ... --check-value ... --version 2.0
  twinbootctl rollout run fw-2         # open ring after ring, as long as the gate allows
  twinbootctl rollout advance fw-2     # or once, from a timer; the exit code tells what it did
  twinbootctl rollout status fw-2 --watch
  twinbootctl rollout pause fw-2";

/// Roll an update out to a fleet, ring by ring
///
/// A rollout is one automatic device configuration of the hub, which sets the
/// desired property `firmware` of all devices that meet its target condition,
/// also of those that are off now or are added later. The hub looks at it
/// shortly after a change, then every five minutes.
///
/// All state is in that configuration: another operator can go on.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = EXAMPLES, verbatim_doc_comment)]
pub(super) struct RolloutCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Create(Box<create::Create>),
    Status(status::Status),
    List(list::List),
    Advance(advance::Advance),
    Run(run::Run),
    Pause(change::Pause),
    Resume(change::Resume),
    Delete(change::Delete),
}

impl RolloutCommand {
    pub(super) fn only_lists(&self) -> bool {
        match &self.action {
            Action::List(_) => true,
            Action::Status(status) => !status.watch,
            _ => false,
        }
    }

    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        match self.action {
            Action::Create(command) => command.run(ctl).await,
            Action::Status(command) => command.run(ctl).await,
            Action::List(command) => command.run(ctl).await,
            Action::Advance(command) => command.run(ctl).await,
            Action::Run(command) => command.run(ctl).await,
            Action::Pause(command) => command.run(ctl).await,
            Action::Resume(command) => command.run(ctl).await,
            Action::Delete(command) => command.run(ctl).await,
        }
    }
}

/// How often a live table is made anew.
#[derive(Debug, Args)]
struct Refresh {
    /// Time between two looks at the hub
    #[arg(long, value_name = "TIME", default_value = REFRESH_SECS, value_parser = humantime::parse_duration)]
    interval: Duration,
}
