//! `twinboot network`: the networked part.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use clap::Args;
use tracing::{Level, info};

use super::run::{keep_memory_private, on_one_thread, stopped};
use super::{CliError, Exit, credentials_directory, logging};
use crate::config::{Config, DEFAULT_PATH};
use crate::network::serve;

/// Speak with the network for the daemon
///
/// systemd starts it as twinboot-network.service, beside a daemon that has no
/// network: it holds the session with the hub, and fetches images. It writes
/// nothing; what it fetches is verified by the daemon.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Network {
    /// Configuration; drop-ins are read from config.d beside it
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Listen here; without it, on the socket that is the standard input
    #[arg(long, value_name = "SOCKET")]
    socket: Option<PathBuf>,
    /// Log every step
    #[arg(long, short)]
    verbose: bool,
}

impl Network {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        keep_memory_private()?;
        let credentials = credentials_directory();
        let config = Config::load(&self.config, credentials.as_deref()).map_err(CliError::Config)?.config;
        logging::init(if self.verbose { Level::DEBUG } else { Level::INFO }).map_err(CliError::Logging)?;
        info!("the networked part of twinboot {} starts", env!("CARGO_PKG_VERSION"));
        let network = serve::Network::new(config, credentials);
        on_one_thread(async {
            let stop = stopped()?;
            let listener = listener(self.socket.as_deref()).map_err(CliError::Listen)?;
            network.serve(listener, stop).await.map_err(CliError::Serve)?;
            Ok(Exit::Done)
        })
    }
}

/// The systemd socket unit's, as `StandardInput=socket` gives it, or one of our own.
fn listener(path: Option<&Path>) -> io::Result<UnixListener> {
    let Some(path) = path else {
        return Ok(UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?));
    };
    // Left by an earlier run; only who may write the directory can put anything there.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path),
    }
}
