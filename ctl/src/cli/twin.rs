//! `twinbootctl twin`: everything the hub knows of a device.

use clap::Args;

use super::screen::print_line;
use super::{CliError, Ctl, Exit};

/// Print the whole device twin, as JSON
#[derive(Debug, Args)]
pub(super) struct Twin {
    /// Its name in the hub
    device: String,
}

impl Twin {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        let twin = ctl.service.twin(&self.device).await?;
        print_line(&if ctl.json { twin.to_string() } else { format!("{twin:#}") })?;
        Ok(Exit::Done)
    }
}
