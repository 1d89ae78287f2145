//! One device: the daemon's own agent and hub session, boot after boot, on a machine in memory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use twinboot::agent::{self, AgentError, Start};
use twinboot::boot::scheme::Scheme;
use twinboot::config::{self, Config};
use twinboot::control::Status;
use twinboot::hub::auth::{AuthError, ConnectionString, Proof};
use twinboot::install::verify::ImageCheck;
use twinboot::scripts::Surroundings;

use super::machine::{Simulated, checks};

/// Why a connection string is no good here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// It is none.
    #[error(transparent)]
    NotUnderstood(#[from] AuthError),
    /// It has no key in it.
    #[error("device {0} has a certificate; a fleet takes keys")]
    Certificate(String),
}

/// How a device reaches the hub.
pub(super) fn hub(text: &str, port: u16, ca_file: Option<&Path>) -> Result<config::Hub, ConnectError> {
    let ConnectionString { host_name, device_id, gateway_host_name, proof } = text.parse()?;
    let Proof::SharedAccessKey(key) = proof else { return Err(ConnectError::Certificate(device_id)) };
    Ok(config::Hub {
        host_name,
        gateway_host_name,
        device_id,
        credentials: config::Credentials::SharedAccessKey(key),
        ca_file: ca_file.map(Path::to_owned),
        port,
        // The daemon's default.
        https_port: 443,
        keep_alive: Duration::from_secs(230),
    })
}

/// Lives until it is aborted. `status` shows what the agent does; no hub session while there is no agent.
pub(super) async fn live(
    machine: Simulated,
    hub: config::Hub,
    status: watch::Sender<Status>,
) -> Result<(), AgentError> {
    let config = config(hub);
    loop {
        let found = machine.boot().await;
        let (_nobody, calls) = mpsc::channel(1);
        let start = Start { config: config.clone(), found, calls, status: status.clone() };
        agent::run_on(machine.clone(), start, machine.reboot_asked()).await?;
        status.send_modify(|status| status.hub_connected = false);
    }
}

/// As on a board, but for what is in memory here: no path is ever opened.
fn config(hub: config::Hub) -> Config {
    let nowhere = PathBuf::new;
    Config {
        hub: Some(hub),
        network: None,
        state_directory: nowhere(),
        slots: config::Slots { a: nowhere(), b: nowhere(), others: std::collections::BTreeMap::new() },
        boot: config::Boot {
            scheme: Scheme::Bootcount,
            environment: nowhere(),
            attempts: 3,
            lock_files: Vec::new(),
        },
        install: config::Install {
            compatible: None,
            check: ImageCheck::Required,
            keys: nowhere(),
            ca_file: None,
            retry_limit: Duration::ZERO,
            allow_downgrade: false,
        },
        health: checks(),
        hooks: config::Hooks {
            directory: nowhere(),
            limit: Duration::ZERO,
            defer_interval: Duration::ZERO,
            defer_limit: Duration::ZERO,
        },
        system: config::System {
            reboot_command: Vec::new(),
            clock_check_command: Vec::new(),
            proc: nowhere(),
            control_socket: nowhere(),
            os_release: nowhere(),
        },
        scripts: Surroundings::Ours,
        metrics_file: None,
    }
}
