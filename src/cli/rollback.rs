//! `twinboot rollback`: back to the other slot.

use clap::Args;

use super::{CliError, Exit, Socket};
use crate::control::Command;

/// Go back to the other slot; reboots the device
///
/// Ends a trial, or undoes the last update as long as its predecessor is still
/// in the other slot.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Rollback {
    #[command(flatten)]
    socket: Socket,
}

impl Rollback {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        self.socket.order("roll back", &Command::RollBack)
    }
}
