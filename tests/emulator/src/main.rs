//! `hub-emulator`: an IoT Hub on this machine, to point a device and one's own tools at.

mod demo;
mod fleet;
mod lone_board;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// An Azure IoT Hub on this machine, to try a device against.
///
/// It speaks MQTT 3.1.1 over TLS or WebSocket to devices (SAS and X.509, direct methods, twins, messages, file
/// upload, self-registration) and the REST API to operate them. Only this machine reaches it, and it forgets
/// everything when it ends, unless told otherwise.
#[derive(Parser)]
#[command(name = "hub-emulator", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the hub until Ctrl-C
    #[command(after_help = serve::HELP)]
    Serve(Box<serve::Serve>),
    /// Shows one update of an emulated board, from the method call to its end
    Demo(demo::Demo),
    /// Runs an emulated board against a hub that runs already, and offers an image for it, until Ctrl-C
    Board(lone_board::LoneBoard),
    /// Runs a whole fleet of simulated devices, to rehearse a rollout or an outage
    #[command(after_help = fleet::HELP)]
    Fleet(fleet::Fleet),
}

#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("start the runtime: {0}")]
    Runtime(#[source] std::io::Error),
    #[error(transparent)]
    Serve(#[from] serve::ServeError),
    #[error(transparent)]
    Demo(#[from] demo::DemoError),
    #[error(transparent)]
    Board(#[from] lone_board::LoneBoardError),
    #[error(transparent)]
    Fleet(#[from] fleet::FleetError),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    match run(&command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hub-emulator: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<(), CliError> {
    let runtime = tokio::runtime::Runtime::new().map_err(CliError::Runtime)?;
    match command {
        Command::Serve(options) => Ok(runtime.block_on(serve::run(options))?),
        Command::Demo(options) => Ok(runtime.block_on(demo::run(options))?),
        Command::Board(options) => Ok(runtime.block_on(lone_board::run(options))?),
        Command::Fleet(options) => Ok(runtime.block_on(fleet::run(options))?),
    }
}
