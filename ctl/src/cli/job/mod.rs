//! `twinbootctl job`: many devices at once, by IoT Hub's jobs.

mod cancel;
mod create;
mod list;
mod status;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{CliError, Ctl, Exit};

const EXAMPLES: &str = "\
Examples:
  twinbootctl job create fw-2-lyon --target \"tags.site='lyon'\" --uri https://images.example/2.0.img.zst \\
      --check-value 9f86d0... --version 2.0 --at 2026-11-24T02:00:00Z --within 2h
  twinbootctl job status fw-2-lyon --watch
  twinbootctl devices --query \"tags.site='lyon'\"";

/// Call `firmwareUpdate` of many devices, at a time, by a job of the hub
///
/// A job reaches only devices that are online then; a rollout also reaches
/// the others, later. A job is done when the devices have answered; how their
/// updates go, `devices` and `watch` tell.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = EXAMPLES, verbatim_doc_comment)]
pub(super) struct JobCommand {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Create(Box<create::Create>),
    Status(status::Status),
    List(list::List),
    Cancel(cancel::Cancel),
}

impl JobCommand {
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
            Action::Cancel(command) => command.run(ctl).await,
        }
    }
}

/// A text of a job, or a dash.
fn text(job: &Value, key: &str) -> String {
    twinboot::cli::paint::harmless(job.get(key).and_then(Value::as_str).unwrap_or("-"))
}

/// A number of its statistics, or a dash.
fn count(job: &Value, key: &str) -> String {
    let count = job.pointer(&format!("/deviceJobStatistics/{key}")).and_then(Value::as_u64);
    count.map_or_else(|| "-".to_owned(), |count| count.to_string())
}
