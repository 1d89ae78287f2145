//! The command line: one file per subcommand.

mod bundle;
mod cancel;
mod completions;
mod devices;
mod job;
mod man;
mod package;
mod reboot;
mod rollout;
mod screen;
mod status;
mod story;
mod twin;
mod update;
mod watch;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::rollout::NotARollout;
use crate::service::{MethodAnswer, Service, ServiceError};
use crate::settings::{Settings, SettingsError};

const EXIT_CODES: &str = "\
Exit codes:
  0   done; for `update`: completed, and committed on the device
  1   failed for another reason
  2   the command line or the settings are not right
  3   the hub cannot be reached, or not understood; or this machine's clock is wrong
  4   the update failed; the device runs what it ran before
  5   the update was rolled back; the device runs what it ran before
  6   the device refuses
  7   not authorised
  8   no such device, rollout or job; or it is there already
  9   the device is offline, or did not answer in time
  10  throttled, or a quota of the hub is used up
  11  --timeout has passed, and the update still runs
  20  `rollout advance`: not yet
  21  `rollout advance` and `rollout run`: stopped by the gate
  22  `rollout advance`: all rings are open and done";

const EXAMPLES: &str = r#"Examples:
  export IOTHUB_CONNECTION_STRING="$(cat hub.secret)"
      HostName=...;SharedAccessKeyName=...;SharedAccessKey=..., as the hub shows it for a policy
  twinbootctl devices
      what runs where
  twinbootctl update gateway-1 --uri https://images.example/2.0.img.zst --check-file 2.0.img.zst --version 2.0
      update one device, and follow it to the end
  twinbootctl watch gateway-1
      follow what somebody else began
  twinbootctl rollout --help
      fleets, ring by ring
  twinbootctl bundle --help
      small downloads: make and sign what devices fetch

Files:
  ~/.config/twinbootctl/config.toml   connection_string_file = "/path" and ca_file = "/path"; both optional"#;

/// Firmware updates of devices on Azure IoT Hub that run twinboot.
///
/// One device is updated by the direct method `firmwareUpdate` and followed
/// in its device twin; a fleet by IoT Hub's own automatic device
/// configurations and jobs. Nothing is kept on this machine: another
/// operator can go on where you stopped.
#[derive(Debug, Parser)]
#[command(name = "twinbootctl", version, arg_required_else_help = true, verbatim_doc_comment)]
#[command(after_help = EXIT_CODES, after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
    /// Print JSON, one object a line
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    Update(Box<update::Update>),
    Watch(watch::Watch),
    Status(status::StatusCommand),
    Devices(devices::Devices),
    Twin(twin::Twin),
    Cancel(cancel::Cancel),
    Reboot(reboot::Reboot),
    Rollout(rollout::RolloutCommand),
    Job(job::JobCommand),
    Bundle(bundle::BundleCommand),
    Completions(completions::Completions),
    Man(man::Man),
}

impl Subcommands {
    /// Whether it changes nothing, and follows nothing to an end that counts.
    fn only_lists(&self) -> bool {
        match self {
            Self::Status(_) | Self::Devices(_) | Self::Twin(_) | Self::Completions(_) | Self::Man(_) => true,
            Self::Rollout(command) => command.only_lists(),
            Self::Job(command) => command.only_lists(),
            Self::Bundle(command) => command.only_lists(),
            Self::Update(_) | Self::Watch(_) | Self::Cancel(_) | Self::Reboot(_) => false,
        }
    }
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
    Refused = 6,
    NotAuthorised = 7,
    NotFound = 8,
    Offline = 9,
    Throttled = 10,
    Late = 11,
    GateWaits = 20,
    GateStops = 21,
    Complete = 22,
}

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// No answer to something that may have been done; the command shows whether it was.
    #[error("{source}")]
    Doubtful { source: Box<ServiceError>, shown_by: String },
    #[error("device `{device}` refuses: {why}")]
    Refused { device: String, why: String },
    #[error(transparent)]
    NotARollout(NotARollout),
    #[error(
        "rollout `{name}` is another one than before: it was deleted and created anew; look at it, and decide again"
    )]
    AnotherRollout { name: String },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// A bundle that is not what it should be.
    #[error("{0}")]
    Untrusted(String),
    #[error(transparent)]
    Bundle(#[from] crate::bundle::Failure),
    #[error("cannot write the output")]
    Output(#[from] io::Error),
}

impl CliError {
    fn exit(&self) -> Exit {
        match self {
            Self::Settings(SettingsError::Service(error)) | Self::Service(error) => service_exit(error),
            Self::Doubtful { source, .. } => service_exit(source),
            Self::Usage(_) | Self::Settings(_) => Exit::Usage,
            Self::Refused { .. } => Exit::Refused,
            Self::NotARollout(_) | Self::AnotherRollout { .. } => Exit::NotFound,
            Self::Read { .. } | Self::Untrusted(_) | Self::Bundle(_) | Self::Output(_) => Exit::Failed,
        }
    }

    /// Whether it may be gone the next time, by itself.
    fn is_passing(&self) -> bool {
        match self {
            Self::Service(error) => error.is_passing(),
            Self::Doubtful { source, .. } => source.is_passing(),
            _ => false,
        }
    }

    /// What the operator can do about it; may be empty.
    fn advice(&self) -> String {
        match self {
            Self::Settings(SettingsError::Service(error)) | Self::Service(error) => error.advice().to_owned(),
            Self::Doubtful { source, shown_by } => {
                let doubt = format!("it may have been done all the same: `twinbootctl {shown_by}` tells");
                match source.advice() {
                    "" => doubt,
                    advice => format!("{advice}; {doubt}"),
                }
            }
            _ => String::new(),
        }
    }
}

/// What came of a request that is not to be made twice: where the error leaves open whether it was carried out, it names
/// the command that shows it.
fn shown_by<T>(done: Result<T, ServiceError>, command: &str) -> Result<T, CliError> {
    done.map_err(|error| match error {
        // This one says so itself.
        ServiceError::NoAnswer { .. } => error.into(),
        source if source.leaves_doubt() => {
            CliError::Doubtful { source: Box::new(source), shown_by: command.to_owned() }
        }
        error => error.into(),
    })
}

/// What was created. Where the answer is lost, the hub is asked by `find` whether it has it.
async fn created<T>(
    created: Result<T, ServiceError>,
    find: impl AsyncFnOnce() -> Result<Option<T>, ServiceError>,
    command: &str,
) -> Result<T, CliError> {
    let error = match created {
        Err(error) if error.leaves_doubt() => error,
        created => return Ok(created?),
    };
    notice(&format!("{}; looking whether it was created", chain(&error)));
    match find().await {
        Ok(Some(there)) => Ok(there),
        Ok(None) | Err(ServiceError::NotFound { .. }) => Err(error.into()),
        Err(_) => shown_by(Err(error), command),
    }
}

fn service_exit(error: &ServiceError) -> Exit {
    match error {
        ServiceError::Tls(_) | ServiceError::Client(_) | ServiceError::Token(_) => Exit::Usage,
        ServiceError::Unreachable { .. }
        | ServiceError::Untrusted { .. }
        | ServiceError::Late { .. }
        | ServiceError::Garbled { .. }
        | ServiceError::ClockWrong { .. } => Exit::Unreachable,
        ServiceError::NotAuthorised { .. } => Exit::NotAuthorised,
        ServiceError::NotFound { .. } | ServiceError::Exists { .. } => Exit::NotFound,
        ServiceError::Offline { .. } | ServiceError::NoAnswer { .. } => Exit::Offline,
        ServiceError::Throttled { .. } | ServiceError::TooManyJobs | ServiceError::QuotaUsedUp => {
            Exit::Throttled
        }
        ServiceError::Condition { .. } => Exit::Usage,
        ServiceError::Changed { .. } | ServiceError::Refused { .. } => Exit::Failed,
    }
}

/// What all commands that speak to the hub have.
struct Ctl {
    service: Service,
    json: bool,
}

impl Ctl {
    /// Prints an answer with a 2xx status; any other is the device's refusal.
    fn print_answer(&self, device: &str, answer: &MethodAnswer) -> Result<(), CliError> {
        let text = |pointer| answer.payload.pointer(pointer).and_then(serde_json::Value::as_str);
        if !(200..300).contains(&answer.status) {
            let why = match (text("/error/code"), text("/error/message")) {
                (Some(code), message) => format!("{code}: {}", message.unwrap_or_default()),
                (None, _) => answer.payload.to_string(),
            };
            let why = twinboot::cli::paint::harmless(&format!("{why} ({})", answer.status));
            return Err(CliError::Refused { device: device.to_owned(), why });
        }
        if self.json {
            let event = serde_json::json!({"event": "answer", "device": device, "status": answer.status,
                "payload": answer.payload});
            return screen::print_line(&event.to_string());
        }
        let said = text("/Response").map_or_else(|| answer.payload.to_string(), str::to_owned);
        screen::print_line(&twinboot::cli::paint::harmless(&format!("{device}: {said}")))
    }
}

/// Parses the arguments, does what they say, and tells what went wrong on one line.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let only_lists = cli.command.only_lists();
    let exit = run(cli).unwrap_or_else(|error| match error {
        // `twinbootctl devices | head` has seen enough.
        CliError::Output(error) if only_lists && error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        error => {
            match error.advice().as_str() {
                "" => notice(&chain(&error)),
                advice => notice(&format!("{}; {advice}", chain(&error))),
            }
            error.exit()
        }
    });
    ExitCode::from(exit as u8)
}

fn run(cli: Cli) -> Result<Exit, CliError> {
    match cli.command {
        Subcommands::Completions(command) => return command.run(),
        Subcommands::Man(command) => return command.run(),
        Subcommands::Bundle(command) => return command.run(cli.json),
        _ => {}
    }
    let ctl = Ctl { service: cli.settings.service(notice)?, json: cli.json };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match cli.command {
            Subcommands::Update(command) => command.run(&ctl).await,
            Subcommands::Watch(command) => command.run(&ctl).await,
            Subcommands::Status(command) => command.run(&ctl).await,
            Subcommands::Devices(command) => command.run(&ctl).await,
            Subcommands::Twin(command) => command.run(&ctl).await,
            Subcommands::Cancel(command) => command.run(&ctl).await,
            Subcommands::Reboot(command) => command.run(&ctl).await,
            Subcommands::Job(command) => Box::pin(command.run(&ctl)).await,
            Subcommands::Rollout(command) => Box::pin(command.run(&ctl)).await,
            Subcommands::Bundle(_) | Subcommands::Completions(_) | Subcommands::Man(_) => Ok(Exit::Done),
        }
    })
}

/// Looks again and again, until there is an end. Once it has begun, it outlives a network that is away for minutes, a
/// hub in trouble, and another operator's hand.
async fn keep_looking(
    interval: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<Exit>, CliError>,
) -> Result<Exit, CliError> {
    let mut has_begun = false;
    loop {
        match look().await {
            Ok(Some(exit)) => return Ok(exit),
            Ok(None) => has_begun = true,
            Err(error) if has_begun && error.is_passing() => {
                notice(&format!("{}; looking again", chain(&error)));
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(interval).await;
    }
}

/// Where stderr is gone, nobody is told.
fn notice(text: &str) {
    screen::interrupted();
    let _ = writeln!(io::stderr(), "twinbootctl: {}", twinboot::cli::paint::harmless(text));
}

/// An error and its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| {
        let cause = cause.to_string();
        // Libraries' messages may have taken their cause in already.
        if line.contains(&cause) { line } else { format!("{line}: {cause}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn once_begun_it_outlives_a_hub_in_trouble() {
        let trouble = |status| {
            let (what, symbol, message) = (String::new(), String::new(), String::new());
            Err(CliError::Service(ServiceError::Refused { what, status, symbol, message }))
        };
        let walk = async |looks: Vec<Result<Option<Exit>, CliError>>| {
            let mut looks = looks.into_iter();
            let end = keep_looking(Duration::ZERO, async || looks.next().unwrap()).await;
            (end.ok(), looks.len())
        };
        let end = walk(vec![Ok(None), trouble(500), trouble(503), Ok(Some(Exit::Done))]).await;
        assert_eq!(end, (Some(Exit::Done), 0));
        assert_eq!(walk(vec![Ok(None), trouble(400), Ok(Some(Exit::Done))]).await, (None, 1));
        assert_eq!(walk(vec![trouble(500), Ok(Some(Exit::Done))]).await, (None, 1), "not begun");
    }
}
