//! `twinboot check-config`: what the daemon would start with, or why it would not.

use std::io::{self, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use clap::Args;

use super::run::keep_memory_private;
use super::{CliError, Exit, credentials_directory};
use crate::boot::fw_env::UbootEnv;
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
    /// Print a drop-in that leaves twinboot.service the devices of this configuration alone
    #[arg(long)]
    unit: bool,
}

impl CheckConfig {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        keep_memory_private()?;
        let credentials = credentials_directory();
        let loaded = Config::load(&self.config, credentials.as_deref()).map_err(CliError::Config)?;
        let mut out = io::stdout().lock();
        if self.unit {
            out.write_all(drop_in(&loaded.config)?.as_bytes())?;
            return Ok(Exit::Done);
        }
        writeln!(out, "# {}: ok", self.config.display())?;
        writeln!(out, "# {}", hub_line(loaded.config.hub.as_ref()))?;
        for note in &loaded.notes {
            writeln!(out, "# {note}")?;
        }
        out.write_all(as_toml(&loaded.effective).as_bytes())?;
        Ok(Exit::Done)
    }
}

/// What the service may reach on this board, in place of every device.
fn drop_in(config: &Config) -> Result<String, CliError> {
    let environment = UbootEnv::new(&config.boot.environment, &[])?;
    let slots: Vec<&Path> = config.slots.devices().map(PathBuf::as_path).collect();
    let environment = environment.written_paths();
    let others = environment.iter().map(PathBuf::as_path).chain([config.state_directory.as_path()]);
    let locks = config.boot.lock_files.iter().map(PathBuf::as_path);
    let mut reachable: Vec<&Path> = slots.iter().copied().chain(others).chain(locks).collect();
    reachable.dedup();
    let mut text =
        "# Made by `twinboot check-config --unit`; belongs into twinboot.service.d.\n[Unit]\n".to_owned();
    let media = environment.iter().map(PathBuf::as_path).filter(|path| is_block_device(path));
    let mut awaited: Vec<&Path> = slots.into_iter().chain(media).collect();
    awaited.dedup();
    for device in awaited.into_iter().filter(|path| path.starts_with("/dev")) {
        // The list of devices is made when the service starts.
        let unit = device_unit(device);
        text.push_str(&format!("Wants={unit}\nAfter={unit}\n"));
    }
    text.push_str("\n[Service]\nDeviceAllow=\n");
    for path in reachable {
        let is_device = path.starts_with("/dev");
        let (key, may_lack, rights) =
            if is_device { ("DeviceAllow=", "", " rw") } else { ("ReadWritePaths=", "-", "") };
        let path = word(&format!("{may_lack}{}", path.display()));
        text.push_str(&format!("{key}{path}{rights}\n"));
    }
    Ok(text)
}

/// systemd waits for no others: flash of `/dev/mtd0`'s kind has no unit.
fn is_block_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device())
}

/// One word of a unit file, where systemd splits at blanks, takes backslashes and quotes away, and expands `%`. udev has
/// a blank of a partition's name as `\x20`.
fn word(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '\\' | '"' | '\'' => escaped.extend(['\\', character]),
            '%' => escaped.push_str("%%"),
            _ => escaped.push(character),
        }
    }
    if escaped.contains(char::is_whitespace) { format!("\"{escaped}\"") } else { escaped }
}

/// As `systemd-escape --path --suffix=device` has it.
fn device_unit(path: &Path) -> String {
    let path = path.to_string_lossy();
    let escaped: String = path
        .trim_matches('/')
        .bytes()
        .map(|byte| match byte {
            b'/' => "-".to_owned(),
            b'.' | b'_' | b':' => char::from(byte).to_string(),
            byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            byte => format!("\\x{byte:02x}"),
        })
        .collect();
    format!("{escaped}.device")
}

fn hub_line(hub: Option<&Hub>) -> String {
    let Some(hub) = hub else {
        return "no [hub]: this device is updated by its own command line alone".to_owned();
    };
    let proof = match &hub.credentials {
        Credentials::SharedAccessKey(_) => "a symmetric key",
        Credentials::Certificate { .. } => "a certificate",
    };
    let dialled = hub.dialled();
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
