//! `twinbootctl bundle`: one signed file for small downloads. No hub is asked.

mod convert;
mod create;
mod extract;
mod inspect;
mod sign;
mod verify;

use std::io::{self, IsTerminal as _};
use std::sync::Mutex;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{CliError, Exit};

/// Make, look into, sign and verify bundles
///
/// A bundle holds the images of a version in chunks, so that a device fetches
/// what it lacks, and patches from older images, so that it fetches still less.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct BundleCommand {
    #[command(subcommand)]
    command: BundleCommands,
}

#[derive(Debug, Subcommand)]
enum BundleCommands {
    Create(Box<create::Create>),
    Convert(Box<convert::Convert>),
    Inspect(inspect::Inspect),
    Verify(verify::Verify),
    Extract(extract::Extract),
    Sign(sign::Sign),
}

impl BundleCommand {
    pub(super) fn only_lists(&self) -> bool {
        matches!(self.command, BundleCommands::Inspect(_))
    }

    pub fn run(self, json: bool) -> Result<Exit, CliError> {
        match self.command {
            BundleCommands::Create(command) => command.run(json),
            BundleCommands::Convert(command) => command.run(json),
            BundleCommands::Inspect(command) => command.run(json),
            BundleCommands::Verify(command) => command.run(json),
            BundleCommands::Extract(command) => command.run(json),
            BundleCommands::Sign(command) => command.run(json),
        }
    }
}

/// Gives `work` what to tell its progress to: a bar on a terminal.
fn with_bar<T, E>(
    json: bool,
    work: impl FnOnce(crate::bundle::Progress<'_>) -> Result<T, E>,
) -> Result<T, E> {
    if json || !io::stderr().is_terminal() {
        return work(&|_, _, _| {});
    }
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let template = "{msg:20} [{bar:24}] {percent:>3} %";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("##-"));
    let step = Mutex::new("");
    let done = work(&|name, done, total| {
        if let Ok(mut step) = step.lock()
            && *step != name
        {
            *step = name;
            bar.set_message(name);
        }
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    done
}

/// Reads a small file.
fn read(path: &std::path::Path) -> Result<Vec<u8>, CliError> {
    std::fs::read(path).map_err(|source| CliError::Read { path: path.to_owned(), source })
}
