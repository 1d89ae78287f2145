//! `twinboot commit`: keeps the slot that runs.

use std::io::{self, Write as _};
use std::thread;
use std::time::Duration;

use clap::Args;

use super::view::View;
use super::{CliError, Exit, Socket};
use crate::control::{Client, Command};

const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// In a minute and a half: the daemon tries three times, and waits for the environment's lock each time.
const LOOKS_MAX: usize = 450;

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
    /// Until it is seen to be done: what was only begun may fail.
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let (message, _) = self.socket.ask("commit", &Command::Commit)?;
        let mut out = io::stdout();
        writeln!(out, "{message}")?;
        for _ in 0..LOOKS_MAX {
            let status = Client::status(self.socket.path())?;
            let view = View::of(&status);
            let state = view.running_slot().and_then(|slot| view.slot(slot).state);
            match state.as_deref() {
                Some("committed") => return Ok(Exit::Done),
                Some("trial" | "uncommitted") => thread::sleep(LOOK_AGAIN),
                _ => break,
            }
        }
        writeln!(out, "the slot is not committed: `journalctl -u twinboot` tells why")?;
        Ok(Exit::Failed)
    }
}
