//! The operator's tool: firmware updates of devices on Azure IoT Hub, one or a fleet, from a workstation.

mod bundle;
mod cli;
mod follow;
mod report;
mod rollout;
mod service;
mod settings;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
