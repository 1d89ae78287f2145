//! `twinboot run`: the daemon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use nix::sys::prctl;
use nix::sys::statvfs::{FsFlags, statvfs};
use sd_notify::NotifyState;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{Level, info, warn};

use super::{CliError, Exit, credentials_directory, logging};
use crate::agent;
use crate::boot;
use crate::config::{Config, DEFAULT_PATH};
use crate::scripts::Surroundings;

/// A write to a slow slot may still run on a thread of its own. Whatever it leaves, the next start reads and
/// compares: it is not worth more of the time that systemd gives.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);

/// Run the daemon
///
/// systemd starts it as twinboot.service. It connects to the hub named in the
/// configuration, or stays offline without one, and serves the control socket
/// for the other commands.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Run {
    /// Configuration; drop-ins are read from config.d beside it
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Leave the network to `twinboot network`, which listens here
    #[arg(long, value_name = "SOCKET")]
    network: Option<PathBuf>,
    /// Run hooks and health checks as services of their own, outside of this one's sandbox
    #[arg(long)]
    script_services: bool,
    /// Log every step
    #[arg(long, short)]
    verbose: bool,
}

/// No core dump, and no debugger without root's capabilities: the memory may hold the device's key.
pub(super) fn keep_memory_private() -> Result<(), CliError> {
    prctl::set_dumpable(false).map_err(|errno| CliError::Runtime(errno.into()))
}

impl Run {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        keep_memory_private()?;
        let loaded = match self.network {
            Some(network) => Config::load_beside(&self.config, network),
            None => Config::load(&self.config, credentials_directory().as_deref()),
        };
        let mut config = loaded.map_err(CliError::Config)?.config;
        if self.script_services {
            config.scripts = Surroundings::Service;
        }
        logging::init(if self.verbose { Level::DEBUG } else { Level::INFO }).map_err(CliError::Logging)?;
        info!("twinboot {} starts with {}", env!("CARGO_PKG_VERSION"), self.config.display());
        warn_of_read_only(&config);
        on_one_thread(async {
            let stop = stopped()?;
            agent::run(config, stop).await.map(|()| Exit::Done).map_err(CliError::Agent)
        })
    }
}

/// The service's sandbox makes it so where the drop-in is missing, and nobody else sees that before the first update.
fn warn_of_read_only(config: &Config) {
    let is_read_only =
        |path: &Path| statvfs(path).is_ok_and(|found| found.flags().contains(FsFlags::ST_RDONLY));
    for path in [config.state_directory.clone()].into_iter().chain(boot::written_files(&config.boot)) {
        if is_read_only(&path) {
            warn!(
                "{} is read-only, and no update can succeed: mount it writable; if it is, let the service write it, by \
                 the drop-in of `twinboot check-config --unit`",
                path.display()
            );
        }
    }
}

/// Of one thread.
pub(super) fn runtime() -> Result<Runtime, CliError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CliError::Runtime)
}

/// Runs a daemon to its end.
pub(super) fn on_one_thread(daemon: impl Future<Output = Result<Exit, CliError>>) -> Result<Exit, CliError> {
    let runtime = runtime()?;
    let ended = runtime.block_on(daemon);
    runtime.shutdown_timeout(SHUTDOWN_LIMIT);
    ended
}

/// Ends when the service manager, or a person, wants the daemon to end.
pub(super) fn stopped() -> Result<impl Future<Output = ()>, CliError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(CliError::Runtime)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CliError::Runtime)?;
    Ok(async move {
        let stopped = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        info!("stopping on {stopped}");
        // Without a service manager nobody listens.
        let _ = sd_notify::notify(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    })
}
