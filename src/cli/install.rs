//! `twinboot install`: an update from here, followed to its end.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value};
use url::Url;

use super::package_file::PackageFile;
use super::progress::Progress;
use super::view::{Stage, View};
use super::{CliError, Exit, Socket};
use crate::control::{Client, ClientError, Command};
use crate::update::{Sha256Digest, UpdateId};

/// During one install. systemd restarts a daemon after 10 s; one that needs more than a handful of restarts
/// needs a person.
const RECONNECT_ATTEMPTS: u32 = 60;

/// Between two attempts.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

const EXAMPLES: &str = "\
Examples:
  twinboot install rootfs.ext4.zst
      from a file; its check value is computed here
  twinboot install --signed /media/stick/release.twb
      a bundle, by nothing but its signature
  twinboot install https://images.example/gateway-1.4.2.img.zst --version 1.4.2 --check-value 9f86d0...
      as the hub would ask for it
  twinboot install old.ext4 --force
      although it is older, or was rolled back before";

/// Install an image from a file or an address
///
/// Writes it to the slot that does not run, and reboots into it; the image may
/// be a bundle, or compressed with zstd, gzip or xz. Follows the update until
/// its end, or until the device goes down for the reboot: afterwards `twinboot
/// status` tells whether the new system was kept.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = EXAMPLES, verbatim_doc_comment)]
pub(super) struct Install {
    /// File on this device, or an https://, http:// or file:// address
    #[arg(value_name = "FILE|URL")]
    source: String,
    /// SHA-256 of the file, or of a bundle's manifest; computed for a FILE if not given
    #[arg(long, value_name = "HEX")]
    check_value: Option<Sha256Digest>,
    /// Compute no check value: only a signature by one of this device's keys counts
    #[arg(long, conflicts_with = "check_value")]
    signed: bool,
    /// Version that it brings; a bundle tells it itself
    #[arg(long, value_name = "V")]
    version: Option<String>,
    /// Size in bytes of the file as it is at its source; taken from a FILE
    #[arg(long, value_name = "N")]
    size: Option<u64>,
    /// Name for this update; asking twice under one name installs once
    #[arg(long, value_name = "ID")]
    update_id: Option<UpdateId>,
    /// Take it although it is older, or was rolled back before
    #[arg(long)]
    force: bool,
    /// Return as soon as the daemon has taken it
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    socket: Socket,
}

impl Install {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let payload = self.payload()?;
        let command = Command::Install { payload, force: self.force };
        let (message, update_id) = self.socket.ask("install", &command)?;
        // Whether anybody reads it or not, the update goes on, and its end is the answer.
        let _ = writeln!(io::stdout(), "{message}");
        match update_id {
            Some(update_id) if !self.no_wait => follow(self.socket.path(), update_id.as_str()),
            _ => Ok(Exit::Done),
        }
    }

    /// As in the direct method.
    fn payload(&self) -> Result<Value, CliError> {
        let source = self.describe()?;
        let entries = [
            ("fwPackageUri", Some(Value::from(source.uri.as_str()))),
            ("fwPackageCheckValue", source.check_value.map(|value| Value::from(value.to_string()))),
            ("fwVersion", source.version.map(Value::from)),
            ("fwSize", source.size_bytes.map(Value::from)),
            ("updateId", self.update_id.as_ref().map(|id| Value::from(id.as_str()))),
        ];
        let given = entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        Ok(Value::Object(given.collect::<Map<_, _>>()))
    }

    fn describe(&self) -> Result<Source, CliError> {
        let (check_value, size_bytes, version) = (self.check_value, self.size, self.version.clone());
        if self.source.contains("://") {
            let uri = parse_url(&self.source)?;
            return Ok(Source { uri, check_value, size_bytes, version });
        }
        let path = Path::new(&self.source);
        let read = |source| CliError::Read { path: path.to_owned(), source };
        // The daemon has another working directory, and a link may be gone when it looks.
        let path = path.canonicalize().map_err(read)?;
        if !path.is_file() {
            return Err(CliError::Usage(format!("{} is no file; name an image", path.display())));
        }
        let uri = Url::from_file_path(&path)
            .map_err(|()| CliError::Usage(format!("{} cannot be written as an address", path.display())))?;
        let file = PackageFile::open(&path).map_err(read)?;
        let check_value = match check_value {
            None if !self.signed => Some(file.check_value().map_err(read)?),
            given => given,
        };
        let size_bytes = size_bytes.or(Some(file.size_bytes));
        // The daemon reads it again, and trusts nothing of it before it was verified.
        let version = version.or_else(|| file.version());
        Ok(Source { uri, check_value, size_bytes, version })
    }
}

/// Where the image is, and what is known of it.
struct Source {
    uri: Url,
    check_value: Option<Sha256Digest>,
    size_bytes: Option<u64>,
    version: Option<String>,
}

fn parse_url(text: &str) -> Result<Url, CliError> {
    let url = Url::parse(text).map_err(|error| CliError::Usage(format!("not an address: {error}")))?;
    if matches!(url.scheme(), "https" | "http" | "file") {
        Ok(url)
    } else {
        Err(CliError::Usage(format!("cannot fetch by {}://; use https://, http:// or file://", url.scheme())))
    }
}

/// Watches the update until its end, until the device reboots, or until the daemon stays away.
fn follow(socket: &Path, update_id: &str) -> Result<Exit, CliError> {
    let mut progress = Progress::new(io::stderr());
    for _ in 0..RECONNECT_ATTEMPTS {
        match watch_once(socket, update_id, &mut progress) {
            Ok(Seen::End(exit, sentence)) => {
                progress.finish();
                let _ = writeln!(io::stdout(), "{sentence}");
                return Ok(exit);
            }
            Ok(Seen::Closed) | Err(CliError::Client(ClientError::Connect { .. } | ClientError::Closed)) => {
                progress.show("the daemon is away; the update goes on once it is back", None, None);
            }
            Err(error) => {
                progress.finish();
                return Err(error);
            }
        }
        std::thread::sleep(RECONNECT_PAUSE);
    }
    progress.finish();
    Err(ClientError::Closed.into())
}

/// What one connection showed.
enum Seen {
    End(Exit, String),
    /// The daemon closed it in the midst of the update.
    Closed,
}

fn watch_once(socket: &Path, update_id: &str, progress: &mut Progress<io::Stderr>) -> Result<Seen, CliError> {
    let mut rebooting = false;
    for status in Client::connect(socket)?.watch()? {
        let status = status?;
        let view = View::of(&status);
        if let Some(other) = view.text("updateId").filter(|id| id != update_id) {
            let sentence = format!("update {update_id} is no longer there: the device is at {other}");
            return Ok(Seen::End(Exit::Failed, sentence));
        }
        let summary = view.summary();
        if view.knows_no_update() {
            let sentence = format!("update {update_id} is no longer there: {summary}");
            return Ok(Seen::End(Exit::Failed, sentence));
        }
        let ended = |exit| {
            let sentence = view.error().unwrap_or_else(|| summary.clone());
            Ok(Seen::End(exit, sentence))
        };
        rebooting = view.stage() == Stage::Rebooting;
        match view.stage() {
            // With an error, the summary is of something else that is wrong.
            Stage::Completed if view.error().is_some() => {
                return Ok(Seen::End(Exit::Done, "firmware applied".to_owned()));
            }
            Stage::Completed => return Ok(Seen::End(Exit::Done, summary)),
            Stage::Failed => return ended(Exit::UpdateFailed),
            Stage::RolledBack => return ended(Exit::RolledBack),
            Stage::Running | Stage::Rebooting | Stage::StandBy => {
                let amount = view.amount().filter(|_| status.bytes_per_sec.is_some());
                progress.show(&summary, amount, status.bytes_per_sec);
            }
        }
    }
    if rebooting {
        let sentence = "installed; the device reboots into it now, and keeps it if it is healthy: \
                        `twinboot status` tells afterwards";
        return Ok(Seen::End(Exit::Done, sentence.to_owned()));
    }
    Ok(Seen::Closed)
}
