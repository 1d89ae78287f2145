//! `twinbootctl reboot`.

use clap::Args;
use serde_json::Value;

use super::{CliError, Ctl, Exit, shown_by};
use crate::service::Patience;

/// Reboot a device
///
/// The device refuses while an update is under way.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Reboot {
    /// Its name in the hub
    device: String,
}

impl Reboot {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        let answer = ctl.service.call(&self.device, "rebootDevice", Value::Null, Patience::DEFAULT).await;
        let answer = shown_by(answer, &format!("status {}", self.device))?;
        ctl.print_answer(&self.device, &answer)?;
        Ok(Exit::Done)
    }
}
