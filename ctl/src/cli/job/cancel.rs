//! `twinbootctl job cancel`.

use clap::Args;

use super::super::screen::print_line;
use super::super::{CliError, Ctl, Exit, shown_by};

/// Cancel a job that has not begun
///
/// One that runs cannot be stopped; `twinbootctl cancel` stops the update of
/// one device.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Cancel {
    /// Of the job
    name: String,
}

impl Cancel {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        shown_by(ctl.service.cancel_job(&self.name).await, &format!("job status {}", self.name))?;
        if ctl.json {
            print_line(&serde_json::json!({"event": "cancelled", "job": self.name}).to_string())?;
        } else {
            print_line(&format!("job {} cancelled", self.name))?;
        }
        Ok(Exit::Done)
    }
}
