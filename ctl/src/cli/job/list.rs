//! `twinbootctl job list`.

use clap::Args;

use super::super::screen::{Tone, print_line, print_text, seconds, table};
use super::super::{CliError, Ctl, Exit};
use super::{count, text};

/// List the jobs of this hub that call methods
#[derive(Debug, Args)]
pub(super) struct List {}

impl List {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        let jobs = ctl.service.jobs().await?;
        if ctl.json {
            jobs.iter().try_for_each(|job| print_line(&job.to_string()))?;
            return Ok(Exit::Done);
        }
        let rows = jobs.iter().map(|job| {
            let counts = ["deviceCount", "succeededCount", "failedCount"].map(|key| count(job, key));
            let [devices, succeeded, failed] = counts;
            let cells = [
                text(job, "jobId"),
                text(job, "status"),
                seconds(&text(job, "startTime")),
                devices,
                succeeded,
                failed,
            ];
            (cells, Tone::Plain)
        });
        print_text(&table(["NAME", "STATUS", "START", "DEVICES", "ANSWERED", "FAILED"], rows))?;
        Ok(Exit::Done)
    }
}
