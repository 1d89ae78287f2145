//! `twinboot commit`: keeps the slot that runs.

use clap::Args;

use super::{CliError, Exit, Socket};
use crate::control::Command;

/// Keep the running trial, whatever the health checks would say
///
/// The daemon commits by itself once all checks have passed: this is for a
/// person who knows better. Where no update is known, since the state was
/// lost, it keeps the slot that runs.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Commit {
    #[command(flatten)]
    socket: Socket,
}

impl Commit {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        self.socket.order("commit", &Command::Commit)
    }
}
