//! `twinbootctl completions`: for the shell.

use std::io;

use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate};

use super::{Cli, CliError, Exit};

const EXAMPLES: &str = "\
Examples:
  twinbootctl completions bash > /etc/bash_completion.d/twinbootctl
  twinbootctl completions zsh > \"${fpath[1]}/_twinbootctl\"
  twinbootctl completions fish > ~/.config/fish/completions/twinbootctl.fish";

/// Print a script that completes this tool's arguments in a shell
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = EXAMPLES)]
pub(super) struct Completions {
    /// Which shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "twinbootctl", &mut script);
        io::Write::write_all(&mut io::stdout(), &script)?;
        Ok(Exit::Done)
    }
}
