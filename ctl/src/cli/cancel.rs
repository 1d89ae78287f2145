//! `twinbootctl cancel`: stop an update that has not been activated yet.

use clap::Args;
use serde_json::{Value, json};
use twinboot::update::UpdateId;

use super::{CliError, Ctl, Exit, shown_by};
use crate::service::Patience;

/// Stop the update of a device, while it can still be stopped
///
/// It can until the device reboots into the new system; then its health
/// checks decide.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Cancel {
    /// Its name in the hub
    device: String,
    /// Only if it is this one that runs
    #[arg(long, value_name = "ID")]
    update_id: Option<UpdateId>,
}

impl Cancel {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        let payload = self.update_id.map_or(Value::Null, |id| json!({ "updateId": id.as_str() }));
        let answer = ctl.service.call(&self.device, "cancelFirmwareUpdate", payload, Patience::DEFAULT).await;
        let answer = shown_by(answer, &format!("status {}", self.device))?;
        ctl.print_answer(&self.device, &answer)?;
        Ok(Exit::Done)
    }
}
