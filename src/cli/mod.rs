//! The command line: one file per subcommand. All but `run`, `network`, `check-config`, `doctor` and `diagnostics` need the
//! running daemon.

mod cancel;
mod check_config;
mod commit;
mod diagnostics;
mod doctor;
mod install;
mod logging;
mod network;
mod package_file;
pub mod paint;
mod progress;
mod rollback;
mod run;
mod slots;
mod status;
mod view;

pub use package_file::PackageFile;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::agent::AgentError;
use crate::boot::fw_env::BootEnvError;
use crate::causes::one_line;
use crate::config::{DEFAULT_CONTROL_SOCKET, Faults};
use crate::control::{Answer, Client, ClientError, Command};
use crate::update::{Code, Failure, UpdateId};

const EXIT_CODES: &str = "\
Exit codes:
  0  done; for `install` also: installed, and the device reboots into it
  1  refused, or failed
  2  the command line or the configuration is not right
  3  the daemon cannot be reached
  4  the update failed; the running system is untouched
  5  the update was rolled back; the device runs the old system again
  6  `doctor`: there are warnings
  7  `doctor`: there is a fault

Examples:
  twinboot status                       what the device does, and how the last update ended
  twinboot install rootfs.ext4.zst      update from a file on this device
  twinboot check-config                 every fault of the configuration, before a restart
  twinboot doctor                       whether this board is wired right, and what to do";

/// Firmware updates for this device, directed by Azure IoT Hub or from here.
///
/// An update is written to the slot that does not run, the boot loader tries
/// it, and it stays only if the device is healthy with it. The daemon
/// `twinboot run` does the work; the other commands talk to it.
#[derive(Debug, Parser)]
#[command(name = "twinboot", version, after_help = EXIT_CODES, after_long_help = EXIT_CODES, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    Run(run::Run),
    Network(network::Network),
    Status(status::StatusCommand),
    Slots(slots::Slots),
    Install(install::Install),
    Cancel(cancel::Cancel),
    Commit(commit::Commit),
    Rollback(rollback::Rollback),
    CheckConfig(check_config::CheckConfig),
    Doctor(doctor::Doctor),
    Diagnostics(diagnostics::Diagnostics),
}

/// How a command ended, as a script sees it. [`EXIT_CODES`] says the same to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Unreachable = 3,
    UpdateFailed = 4,
    RolledBack = 5,
    Warnings = 6,
    Faults = 7,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("{0}")]
    Config(Faults),
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot {what}: {}", failure.message)]
    Refused { what: &'static str, failure: Failure },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot start logging")]
    Logging(#[source] tracing_subscriber::util::TryInitError),
    #[error("cannot start")]
    Runtime(#[source] io::Error),
    #[error("the agent stopped")]
    Agent(#[source] AgentError),
    #[error(transparent)]
    Environment(#[from] BootEnvError),
    #[error("cannot listen for the agent")]
    Listen(#[source] io::Error),
    #[error("cannot serve the agent")]
    Serve(#[source] io::Error),
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot make the bundle")]
    Bundle(#[source] io::Error),
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}

impl CliError {
    fn exit(&self) -> Exit {
        match self {
            Self::Config(_) | Self::Usage(_) => Exit::Usage,
            Self::Client(_) => Exit::Unreachable,
            // `twinboot status --watch | head` has seen enough.
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
            Self::Refused { .. }
            | Self::Read { .. }
            | Self::Write { .. }
            | Self::Bundle(_)
            | Self::Logging(_)
            | Self::Runtime(_)
            | Self::Agent(_)
            | Self::Environment(_)
            | Self::Listen(_)
            | Self::Serve(_)
            | Self::Output(_) => Exit::Failed,
        }
    }

    /// What a person at the device can do about it; may be empty.
    fn advice(&self) -> &'static str {
        match self {
            Self::Client(error) => error.advice(),
            Self::Refused { failure, .. } => match failure.code {
                Code::VersionNotNewer | Code::VersionBelowMinimum | Code::RolledBackBefore => {
                    "`--force` takes it all the same"
                }
                _ => "",
            },
            _ => "",
        }
    }

    /// To stderr: each fault of a configuration on its line, anything else on one. Where nobody reads it, the exit code
    /// has to do.
    fn report(&self) {
        let text = match self {
            Self::Config(Faults(faults)) => {
                let (count, s) = (faults.len(), if faults.len() == 1 { "" } else { "s" });
                format!("{self}\ntwinboot: the configuration has {count} fault{s}")
            }
            _ => match self.advice() {
                "" => format!("twinboot: {}", one_line(self)),
                advice => format!("twinboot: {}; {advice}", one_line(self)),
            },
        };
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// Where the daemon listens.
#[derive(Debug, Args)]
struct Socket {
    /// Control socket of the daemon
    #[arg(long, value_name = "PATH", default_value = DEFAULT_CONTROL_SOCKET)]
    socket: PathBuf,
}

impl Socket {
    fn path(&self) -> &Path {
        &self.socket
    }

    /// Asks for something to be done; `what` completes "cannot ...".
    fn ask(&self, what: &'static str, command: &Command) -> Result<(String, Option<UpdateId>), CliError> {
        match Client::connect(self.path())?.call(command)? {
            Answer::Ok { message, update_id } => Ok((message, update_id)),
            Answer::Refused(failure) => Err(CliError::Refused { what, failure }),
            Answer::Status(_) => Err(ClientError::Unexpected.into()),
        }
    }

    /// As [`Self::ask`], and prints the answer.
    fn order(&self, what: &'static str, command: &Command) -> Result<Exit, CliError> {
        let (message, _) = self.ask(what, command)?;
        writeln!(io::stdout(), "{message}")?;
        Ok(Exit::Done)
    }
}

/// The command line as it is defined: what the manual pages and the shells' completions are made from.
#[must_use]
pub fn definition() -> clap::Command {
    Cli::command()
}

/// Parses the arguments, does what they say, and tells what went wrong on one line.
#[must_use]
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Subcommands::Run(command) => command.run(),
        Subcommands::Network(command) => command.run(),
        Subcommands::Status(command) => command.run(),
        Subcommands::Slots(command) => command.run(),
        Subcommands::Install(command) => command.run(),
        Subcommands::Cancel(command) => command.run(),
        Subcommands::Commit(command) => command.run(),
        Subcommands::Rollback(command) => command.run(),
        Subcommands::CheckConfig(command) => command.run(),
        Subcommands::Doctor(command) => command.run(),
        Subcommands::Diagnostics(command) => command.run(),
    };
    let exit = done.unwrap_or_else(|error| {
        let exit = error.exit();
        if exit != Exit::Done {
            error.report();
        }
        exit
    });
    exit.into()
}

/// The few settings that come from the environment by convention: systemd's, and `NO_COLOR`.
#[expect(clippy::disallowed_methods, reason = "these are the interfaces of systemd and of terminals")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// systemd's directory of secrets for this service.
fn credentials_directory() -> Option<PathBuf> {
    environment("CREDENTIALS_DIRECTORY").map(PathBuf::from)
}
