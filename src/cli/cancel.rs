//! `twinboot cancel`: stops the running update.

use clap::Args;

use super::{CliError, Exit, Socket};
use crate::control::Command;
use crate::update::UpdateId;

/// Cancel the running update
///
/// Possible until the new slot is handed to the boot loader; afterwards
/// `twinboot rollback` does it. The running system is not touched.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Cancel {
    /// Cancel this update alone; without it, whichever runs
    #[arg(value_name = "UPDATE_ID")]
    update_id: Option<UpdateId>,
    #[command(flatten)]
    socket: Socket,
}

impl Cancel {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        self.socket.order("cancel", &Command::Cancel { update_id: self.update_id })
    }
}
