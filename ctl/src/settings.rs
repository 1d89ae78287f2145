//! Where the credentials come from: a file, the environment, or a file that the configuration names.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;

use crate::service::{Credentials, CredentialsError, Service, ServiceError};

/// A connection string has some 200 bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Which hub, and by what right. The secret itself is never an argument: every user of the machine can read those.
#[derive(Debug, Args)]
#[command(next_help_heading = "The hub")]
pub struct Settings {
    /// File with the connection string of the service (default: $IOTHUB_CONNECTION_STRING)
    #[arg(long, value_name = "FILE", global = true)]
    connection_string_file: Option<PathBuf>,
    /// Trust these certificates (PEM) in place of the system's (default: $TWINBOOTCTL_CA_FILE)
    #[arg(long, value_name = "FILE", global = true)]
    ca_file: Option<PathBuf>,
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error(
        "no connection string: set IOTHUB_CONNECTION_STRING, give --connection-string-file, or name \
         `connection_string_file` in {}", config.display()
    )]
    NoConnectionString { config: PathBuf },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("every user of this machine can read {}: take that away with `chmod o= {0}`", path.display())]
    Public { path: PathBuf },
    #[error("{}, line {line}: {why}", path.display())]
    Config { path: PathBuf, line: usize, why: String },
    #[error("{origin}")]
    ConnectionString { origin: String, source: CredentialsError },
    #[error(transparent)]
    Service(#[from] ServiceError),
}

/// `~/.config/twinbootctl/config.toml`; it holds no secrets.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    connection_string_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
}

impl Settings {
    /// A client for the hub that is meant. Reads files: not for an async thread.
    pub fn service(&self, notice: fn(&str)) -> Result<Service, SettingsError> {
        let config_path = config_path();
        let config = load(&config_path)?;
        let environment = environment("IOTHUB_CONNECTION_STRING");
        let (origin, text) = match (&self.connection_string_file, environment, &config.connection_string_file)
        {
            (Some(path), _, _) => (path.display().to_string(), read_secret(path)?),
            (None, Some(text), _) => ("IOTHUB_CONNECTION_STRING".to_owned(), text),
            (None, None, Some(path)) => (path.display().to_string(), read_secret(path)?),
            (None, None, None) => return Err(SettingsError::NoConnectionString { config: config_path }),
        };
        let credentials: Credentials =
            text.parse().map_err(|source| SettingsError::ConnectionString { origin, source })?;
        let ca_file = self.ca_file.clone();
        let ca_file = ca_file.or_else(|| environment_path("TWINBOOTCTL_CA_FILE")).or(config.ca_file);
        Ok(Service::new(credentials, ca_file.as_deref(), notice)?)
    }
}

fn config_path() -> PathBuf {
    let directory = environment_path("XDG_CONFIG_HOME")
        .or_else(|| Some(environment_path("HOME")?.join(".config")))
        .unwrap_or_else(|| PathBuf::from("/etc"));
    directory.join("twinbootctl").join("config.toml")
}

fn load(path: &Path) -> Result<Config, SettingsError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Config::default()),
        Err(source) => return Err(SettingsError::Read { path: path.to_owned(), source }),
    };
    toml::from_str(&text).map_err(|error| {
        // In full it shows the line itself, in which somebody may have put a key.
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        SettingsError::Config { path: path.to_owned(), line, why: error.message().to_owned() }
    })
}

fn read_secret(path: &Path) -> Result<String, SettingsError> {
    let unreadable = |source| SettingsError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.mode() & 0o007 != 0 {
        return Err(SettingsError::Public { path: path.to_owned() });
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(unreadable)?;
    Ok(text)
}

fn environment_path(name: &str) -> Option<PathBuf> {
    environment(name).map(PathBuf::from)
}

/// A secret in the environment is seen by its owner only, and is how CI systems hand it over.
#[expect(clippy::disallowed_methods, reason = "an operator's tool is set up by its environment")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test's files need not survive a power cut")]
    fn a_key_in_the_wrong_file_is_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.toml");
        let key = "HostName=h;SharedAccessKeyName=service;SharedAccessKey=c2VjcmV0";
        for line in
            [format!("connection_string = \"{key}\""), key.to_owned(), format!("ca_file = [\"{key}\"]")]
        {
            std::fs::write(&path, format!("# ours\n{line}\n")).unwrap();
            let error = load(&path).unwrap_err().to_string();
            assert!(error.contains("config.toml, line 2: "), "{error}");
            assert!(!error.contains("c2VjcmV0") && error.lines().count() == 1, "{error}");
        }
    }
}
