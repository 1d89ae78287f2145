//! `twinboot diagnostics`: everything about the last update in one file.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::run::{keep_memory_private, runtime};
use super::{CliError, Exit, credentials_directory};
use crate::causes::one_line;
use crate::config::{Config, DEFAULT_CONTROL_SOCKET, DEFAULT_PATH};
use crate::control::{Client, ClientError};
use crate::diagnostics::{self, Sources};

/// Collect state, logs and boot environment into one file
///
/// A tar.gz for whoever has to find out why an update failed: configuration,
/// state, slots, boot variables, the journal of this boot and of those before
/// it, and the kernel's last words in pstore. Keys, passwords, tokens and the
/// queries of addresses are taken out. Run it as root; the daemon may be down.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Diagnostics {
    /// Where to; must not exist. `-` is the standard output
    #[arg(long, short, value_name = "FILE", default_value = "twinboot-diagnostics.tar.gz")]
    output: PathBuf,
    /// Configuration; drop-ins are read from config.d beside it
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
}

impl Diagnostics {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        keep_memory_private()?;
        let (config, faults) = match Config::load(&self.config, credentials_directory().as_deref()) {
            Ok(loaded) => (Ok(loaded.config), None),
            // Where the hub alone is at fault, the rest still says where everything is.
            Err(faults) => match Config::load_beside(&self.config, PathBuf::new()) {
                Ok(rest) => (Ok(rest.config), Some(faults.to_string())),
                Err(_) => (Err(faults.to_string()), None),
            },
        };
        let socket =
            config.as_ref().map_or(Path::new(DEFAULT_CONTROL_SOCKET), |config| &config.system.control_socket);
        let status = status(socket).unwrap_or_else(|error| format!("{}\n", one_line(&error)));
        let bundle = diagnostics::bundle(Sources { faults, ..Sources::usual(config, status) });
        let bytes = runtime()?.block_on(bundle).map_err(CliError::Bundle)?;
        if self.output == Path::new("-") {
            io::stdout().lock().write_all(&bytes)?;
            return Ok(Exit::Done);
        }
        let mut file = OpenOptions::new();
        let file = file.write(true).create_new(true).mode(0o600).open(&self.output);
        let written = file.and_then(|mut file| file.write_all(&bytes));
        written.map_err(|source| CliError::Write { path: self.output.clone(), source })?;
        writeln!(io::stdout(), "{}: {} bytes", self.output.display(), bytes.len())?;
        Ok(Exit::Done)
    }
}

/// As the daemon shows it, if there is one.
fn status(socket: &Path) -> Result<String, ClientError> {
    Client::status(socket).map(|status| format!("{:#}\n", serde_json::json!(status)))
}
