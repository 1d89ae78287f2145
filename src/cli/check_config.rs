//! `twinboot check-config`: what the daemon would start with, or why it would not.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::Args;

use super::{CliError, Exit, credentials_directory};
use crate::config::{Config, Credentials, DEFAULT_PATH, Effective, Hub};

/// Check the configuration, and show what is in force
///
/// Prints every key with its value and where that was written, as one TOML
/// file; or every fault of every file, each with file, line and what to write
/// instead. Secrets are not shown.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct CheckConfig {
    /// Configuration; drop-ins are read from config.d beside it
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
}

impl CheckConfig {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let credentials = credentials_directory();
        let loaded = Config::load(&self.config, credentials.as_deref()).map_err(CliError::Config)?;
        let mut out = io::stdout().lock();
        writeln!(out, "# {}: ok", self.config.display())?;
        writeln!(out, "# {}", hub_line(loaded.config.hub.as_ref()))?;
        out.write_all(as_toml(&loaded.effective).as_bytes())?;
        Ok(Exit::Done)
    }
}

fn hub_line(hub: Option<&Hub>) -> String {
    let Some(hub) = hub else {
        return "no [hub]: this device is updated by its own command line alone".to_owned();
    };
    let proof = match &hub.credentials {
        Credentials::SharedAccessKey(_) => "a symmetric key",
        Credentials::Certificate { .. } => "a certificate",
    };
    let dialled = hub.gateway_host_name.as_ref().unwrap_or(&hub.host_name);
    format!("device {} of {}, reached at {dialled}:{}, with {proof}", hub.device_id, hub.host_name, hub.port)
}

/// The settings as one file, with their origins as comments.
fn as_toml(effective: &[Effective]) -> String {
    let mut text = String::new();
    let mut section = "";
    for setting in effective {
        if setting.section != section {
            section = &setting.section;
            let header =
                if section.starts_with("slot") { "[[slot]]".to_owned() } else { format!("[{section}]") };
            text.push_str(&format!("\n{header}\n"));
        }
        let line = format!("{} = {}", setting.key, setting.value);
        let origin = setting.place.as_ref().map_or_else(|| "default".to_owned(), ToString::to_string);
        text.push_str(&format!("{line:<48} # {origin}\n"));
    }
    text
}
