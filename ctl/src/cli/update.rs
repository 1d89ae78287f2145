//! `twinbootctl update`: one device, from the call to the end.

use std::time::Duration;

use clap::Args;
use tokio::time::{Instant, timeout_at};
use twinboot::cli::paint::harmless;

use super::package::Package;
use super::story::Story;
use super::{CliError, Ctl, Exit};
use crate::follow::{Follow, Outcome};
use crate::report::Report;
use crate::service::{ANSWER_SECS, MethodAnswer, Patience};

/// A device that took a call without answering it shows that within seconds.
const DOUBT_LIMIT: Duration = Duration::from_secs(60);

/// What a device says to a request for what it has committed.
const COMPLETED: &str = "Firmware update already completed";

const EXAMPLES: &str = "\
Examples:
  twinbootctl update gateway-1 --uri https://images.example/2.0.img.zst --check-file 2.0.img.zst --version 2.0
      check value and size are taken from a copy of the file here
  twinbootctl update gateway-1 --uri https://images.example/2.0.img.zst --check-value 9f86d0... --no-wait
      only start it
  twinbootctl update gateway-1 --uri ... --check-value ... --json --timeout 1h
      events as JSON lines, for a script; exit code 11 after an hour

Exit codes: 0 completed, 4 failed, 5 rolled back, 6 refused by the device, 9 offline, 11 still running at --timeout;
`twinbootctl --help` has all.";

/// Update one device, and follow it to the end
///
/// Calls `firmwareUpdate`, then follows the device twin. Safe to repeat: a
/// device that runs this update, or has completed it, does not begin again.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = EXAMPLES, verbatim_doc_comment)]
pub(super) struct Update {
    /// Its name in the hub
    device: String,
    /// Return as soon as the device has taken it
    #[arg(long)]
    no_wait: bool,
    /// Stop following after this time, such as 30m; the update goes on
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Wait up to so many seconds for the device to come online
    #[arg(long, value_name = "SECS", default_value_t = 0,
        value_parser = clap::value_parser!(u64).range(..=*ANSWER_SECS.end()))]
    connect_timeout: u64,
    #[command(flatten)]
    package: Package,
}

impl Update {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        let wanted = self.package.wanted("fwPackageUri").await?;
        let before = ctl.service.twin(&self.device).await?;
        let called = ctl.service.call(&self.device, "firmwareUpdate", wanted.payload, self.patience()).await;
        let (mut follow, doubt) = match called {
            Ok(answer) => {
                ctl.print_answer(&self.device, &answer)?;
                let id = answer.payload.get("updateId").and_then(|id| id.as_str()).map(str::to_owned);
                let follow = if is_over(&answer) {
                    self.expect_version(ctl, &wanted.id, wanted.version.as_deref()).await?;
                    Follow::completed()
                } else {
                    Follow::started(id, &before)
                };
                (follow, None)
            }
            Err(error) if !self.no_wait && error.leaves_doubt() => {
                super::notice(&format!("{}; looking whether it began", super::chain(&error)));
                (Follow::started(Some(wanted.id), &before), Some(error))
            }
            Err(error) => return super::shown_by(Err(error), &format!("status {}", self.device)),
        };
        if self.no_wait {
            return Ok(Exit::Done);
        }
        let limit = self.timeout.and_then(|limit| Instant::now().checked_add(limit));
        let following = self.follow(ctl, &mut follow, doubt.is_some());
        let exit = match limit {
            None => following.await?,
            Some(limit) => timeout_at(limit, following).await.unwrap_or(Ok(None))?,
        };
        match (exit, doubt) {
            (Some(exit), _) => Ok(exit),
            (None, Some(error)) if !follow.seen() => {
                super::notice("the device does not show that it began; it may all the same");
                Err(error.into())
            }
            (None, _) => {
                let device = &self.device;
                super::notice(&format!("the update still runs: `twinbootctl watch {device}` follows it"));
                Ok(Exit::Late)
            }
        }
    }

    /// A device knows what it has completed by the id alone, which may have been given to another version.
    async fn expect_version(&self, ctl: &Ctl, id: &str, version: Option<&str>) -> Result<(), CliError> {
        let Some(version) = version.map(harmless) else { return Ok(()) };
        let twin = ctl.service.twin(&self.device).await?;
        let runs = Report::of(&twin).reported("firmware/currentFwVersion");
        if runs.as_ref() == Some(&version) {
            return Ok(());
        }
        let runs = runs.map_or_else(|| "no known version".to_owned(), |runs| format!("version {runs}"));
        let why = format!(
            "it has completed update `{id}` already, and runs {runs}, not {version}: give another --update-id"
        );
        Err(CliError::Refused { device: self.device.clone(), why })
    }

    fn patience(&self) -> Patience {
        // The hub demands an answer limit beyond the connect limit, and has 30 s as its own default.
        let answer_secs = (self.connect_timeout + 30).min(*ANSWER_SECS.end());
        Patience { connect_secs: self.connect_timeout, answer_secs }
    }

    /// Until its end; where it is `doubtful` whether it began, until that is confirmed.
    async fn follow(&self, ctl: &Ctl, follow: &mut Follow, doubtful: bool) -> Result<Option<Exit>, CliError> {
        let mut story = Story::new(ctl, &self.device, !doubtful);
        let begun = Instant::now();
        loop {
            let twin = story.twin().await?;
            let look = follow.look(&twin);
            story.tell(&twin, &look)?;
            if let Some(outcome) = look.outcome {
                return Ok(Some(exit(&outcome)));
            }
            if doubtful && !follow.seen() && begun.elapsed() >= DOUBT_LIMIT {
                return Ok(None);
            }
        }
    }
}

fn is_over(answer: &MethodAnswer) -> bool {
    answer.payload.get("Response").and_then(|said| said.as_str()) == Some(COMPLETED)
}

fn exit(outcome: &Outcome) -> Exit {
    match outcome {
        Outcome::Completed => Exit::Done,
        Outcome::Failed(_) => Exit::UpdateFailed,
        Outcome::RolledBack(_) => Exit::RolledBack,
        Outcome::Replaced(_) | Outcome::Lost => Exit::Failed,
    }
}
