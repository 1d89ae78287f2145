//! `twinbootctl man`: manual pages.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::{Args, CommandFactory as _};
use clap_mangen::Man as Page;

use super::{Cli, CliError, Exit};

/// Print the manual page, or write one for each command
#[derive(Debug, Args)]
pub(super) struct Man {
    /// Write all pages into this directory
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        match self.directory {
            Some(directory) => clap_mangen::generate_to(Cli::command(), directory)?,
            None => {
                let mut page = Vec::new();
                Page::new(Cli::command()).render(&mut page)?;
                io::stdout().write_all(&page)?;
            }
        }
        Ok(Exit::Done)
    }
}
