//! The diagnostics bundle: what somebody elsewhere needs to see why an update went as it did.
//!
//! A `tar.gz` of texts. Configured secrets never come near it, and every text passes [`redacted`].

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::boot::{BootControl, booted};
use crate::causes::one_line;
use crate::config::{Config, Credentials};
use crate::doctor::{self, Patient};
use crate::redact::redacted;
use crate::system;
use crate::update::Slot;

/// Of all texts together: a bundle passes a metered link, and compresses to a tenth of it.
const TOTAL_LIMIT_BYTES: usize = 4 << 20;

/// Of one text: all of the journal's together leave room for the others.
const TEXT_LIMIT_BYTES: usize = 384 << 10;

/// A directory with more is not what it should be.
const DIRECTORY_LIMIT: usize = 64;

/// For each look at the journal, which may be large, on slow flash.
const JOURNAL_LIMIT: Duration = Duration::from_secs(20);

/// What a bundle is made of.
#[derive(Clone, Debug)]
pub struct Sources {
    /// In force; or why there is none.
    pub config: Result<Config, String>,
    /// What the daemon says of itself, or why it does not.
    pub status: String,
    /// What is wrong with a configuration of which the rest is of use.
    pub faults: Option<String>,
    /// Where the kernel, and systemd after it, leave the last words of a boot.
    pub pstore: Vec<PathBuf>,
    /// `journalctl`; arguments are added.
    pub journal_command: Vec<String>,
}

impl Sources {
    /// Those of a usual Linux system.
    #[must_use]
    pub fn usual(config: Result<Config, String>, status: String) -> Self {
        let pstore = ["/sys/fs/pstore", "/var/lib/systemd/pstore"].map(PathBuf::from).to_vec();
        let journal_command = ["journalctl", "--no-pager", "--output=short-iso"].map(str::to_owned).to_vec();
        Self { config, status, faults: None, pstore, journal_command }
    }
}

/// A bundle in memory: at most some 4 MiB. What cannot be read says so in its place.
///
/// # Errors
/// When the archive cannot be made.
pub async fn bundle(sources: Sources) -> io::Result<Vec<u8>> {
    let journal = journal(&sources.journal_command).await;
    let doctor = doctor(&sources).await;
    let pack = move || {
        let mut texts = Texts::new(sources.config.as_ref().ok());
        texts.add("about.txt", &about());
        texts.add("status.json", &sources.status);
        texts.add("doctor.json", &doctor);
        match &sources.config {
            Ok(config) => of_config(&mut texts, config),
            Err(why) => texts.add("config.txt", why),
        }
        if let Some(faults) = &sources.faults {
            texts.add("faults.txt", faults);
        }
        journal.iter().for_each(|(name, text)| texts.add(name, text));
        for directory in &sources.pstore {
            of_pstore(&mut texts, directory);
        }
        texts.archive()
    };
    tokio::task::spawn_blocking(pack).await?
}

/// As `twinboot doctor --json` would say, but without a try at the hub.
async fn doctor(sources: &Sources) -> String {
    let Ok(config) = &sources.config else { return String::new() };
    let daemon = serde_json::from_str(&sources.status).map_err(|_| sources.status.trim().to_owned());
    let report = doctor::examine(Patient::usual(config.clone(), daemon, false)).await;
    format!("{:#}\n", report.as_json())
}

fn about() -> String {
    let now =
        humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_secs(system::unix_now()));
    format!("twinboot {}\nat {now}, up {} s\n", env!("CARGO_PKG_VERSION"), system::uptime().as_secs())
}

/// This boot, and as many before it as a trial usually takes; the newest line first, so that the oldest are left out
/// where there are too many.
async fn journal(command: &[String]) -> Vec<(String, String)> {
    let unit = ["--unit=twinboot*", "--lines=2000"].as_slice();
    let warnings = ["--priority=warning", "--lines=1000"].as_slice();
    let mut texts = Vec::new();
    for boot in ["0", "-1", "-2", "-3"] {
        for (name, arguments) in [("twinboot", unit), ("warnings", warnings)] {
            let arguments = arguments.iter().map(|argument| (*argument).to_owned());
            let boot_and_order = [format!("--boot={boot}"), "--reverse".to_owned()];
            let command: Vec<String> =
                command.iter().cloned().chain(boot_and_order).chain(arguments).collect();
            let printed = system::printed(&command, JOURNAL_LIMIT, TEXT_LIMIT_BYTES).await;
            let text = printed.map_or_else(|error| error.to_string(), |bytes| lossy(&bytes));
            texts.push((format!("journal/boot{boot}-{name}.txt"), text));
        }
    }
    texts
}

/// What is where the configuration says. Files with secrets are named in it, and not opened.
fn of_config(texts: &mut Texts, config: &Config) {
    texts.add("config.txt", &format!("{config:#?}\n"));
    let state = &config.state_directory;
    for name in ["state", "state.damaged", "checkpoint"] {
        texts.add_file(&format!("state/{name}"), &state.join(name));
    }
    texts.add("slots.txt", &slots(config));
    texts.add("environment.txt", &environment(config));
    texts.add_file("os-release", &config.system.os_release);
    for name in ["cmdline", "version", "self/mountinfo", "partitions", "uptime", "meminfo"] {
        texts.add_file(&format!("proc/{name}"), &config.system.proc.join(name));
    }
    let hooks = files(&config.hooks.directory);
    let programs = [&config.health.scripts].into_iter().chain(&hooks);
    texts.add("programs.txt", &programs.map(|directory| listing(directory)).collect::<String>());
    texts.add("keys.txt", &listing(&config.install.keys));
}

fn slots(config: &Config) -> String {
    let booted = booted::booted_slot(&config.system.proc, &config.slots);
    let booted = booted.map_or_else(|error| error.to_string(), |evidence| evidence.to_string());
    let devices = [Slot::A, Slot::B].map(|slot| {
        let device = config.slots.device(slot);
        let found = fs::canonicalize(device).and_then(|found| Ok((fs::metadata(&found)?, found)));
        let found = found.map_or_else(
            |error| error.to_string(),
            |(metadata, found)| format!("{}, {}", found.display(), kind(&metadata)),
        );
        format!("slot {slot}: {}: {found}\n", device.display())
    });
    format!("{booted}\n{}", devices.concat())
}

fn kind(metadata: &Metadata) -> String {
    let kind = if metadata.file_type().is_block_device() { "block device" } else { "file" };
    format!("{kind} of mode {:o}, {} bytes", metadata.permissions().mode() & 0o7777, metadata.len())
}

/// The variables of the scheme alone: a board may keep anything in the others.
fn environment(config: &Config) -> String {
    let variables = BootControl::open(&config.boot)
        .map_err(|error| one_line(&error))
        .and_then(|mut boot| boot.variables().map_err(|error| one_line(&error)));
    match variables {
        Ok(variables) => variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect(),
        Err(why) => format!("{why}\n"),
    }
}

/// Names, modes and sizes.
fn listing(directory: &Path) -> String {
    let lines = files(directory).into_iter().map(|path| {
        let kind = fs::metadata(&path).map_or_else(|error| error.to_string(), |metadata| kind(&metadata));
        format!("{}: {kind}\n", path.display())
    });
    lines.collect()
}

fn of_pstore(texts: &mut Texts, directory: &Path) {
    for path in files(directory) {
        // systemd moves each crash into a directory of its own.
        let below = if path.is_dir() { files(&path) } else { vec![path] };
        for path in below.into_iter().filter(|path| path.is_file()) {
            let name = path.to_string_lossy().trim_start_matches('/').replace('/', "_");
            texts.add_file(&format!("pstore/{name}"), &path);
        }
    }
}

/// In name order; none where there is no such directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.take(DIRECTORY_LIMIT).map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The archive while it grows.
struct Texts {
    archive: tar::Builder<GzEncoder<Vec<u8>>>,
    left_bytes: usize,
    /// The device's own key, as it is configured.
    key: Option<String>,
    failed: Option<io::Error>,
}

impl Texts {
    fn new(config: Option<&Config>) -> Self {
        let key = config.and_then(|config| match &config.hub.as_ref()?.credentials {
            Credentials::SharedAccessKey(key) => Some(key.expose().to_owned()),
            Credentials::Certificate { .. } => None,
        });
        let archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        Self { archive, left_bytes: TOTAL_LIMIT_BYTES, key, failed: None }
    }

    /// The beginning of a file; what is no text in it is replaced.
    fn add_file(&mut self, name: &str, path: &Path) {
        let mut bytes = Vec::new();
        let limit = u64::try_from(TEXT_LIMIT_BYTES).unwrap_or(u64::MAX);
        match File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)) {
            Ok(_) => self.add(name, &lossy(&bytes)),
            Err(error) => self.add(name, &format!("cannot read {}: {error}\n", path.display())),
        }
    }

    fn add(&mut self, name: &str, text: &str) {
        if self.left_bytes == 0 {
            return;
        }
        let mut text = match &self.key {
            Some(key) => redacted(&text.replace(key, "[secret]")),
            None => redacted(text),
        };
        if text.len() > self.left_bytes {
            let end = (0..=self.left_bytes).rev().find(|end| text.is_char_boundary(*end));
            text.truncate(end.unwrap_or_default());
        }
        self.left_bytes -= text.len();
        let mut header = tar::Header::new_ustar();
        header.set_size(u64::try_from(text.len()).unwrap_or(u64::MAX));
        header.set_mode(0o600);
        header.set_mtime(system::unix_now());
        let name = format!("twinboot-diagnostics/{name}");
        let added = self.archive.append_data(&mut header, name, text.as_bytes());
        self.failed = self.failed.take().or(added.err());
    }

    fn archive(self) -> io::Result<Vec<u8>> {
        match self.failed {
            Some(error) => Err(error),
            None => self.archive.into_inner()?.finish(),
        }
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use flate2::read::GzDecoder;

    use super::*;
    use crate::boot::scheme::Scheme;
    use crate::config::{self, HubCheck};
    use crate::redact::Secret;
    use crate::scripts::Surroundings;
    use crate::store;

    const KEY: &str = "c2VjcmV0c2VjcmV0c2VjcmV0";
    const PLANTED: &str = "h1dden";

    fn put(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        store::write_durably(path, text.as_bytes()).unwrap();
    }

    /// As a device has it, below `root`; in all that can be read there is a secret.
    fn device(root: &Path) -> Sources {
        let leak = format!("token={PLANTED} https://h.example/a?sig={PLANTED} key {KEY}\n");
        let at = |name: &str| root.join(name);
        for name in ["state/state", "state/checkpoint", "os-release", "proc/cmdline", "proc/self/mountinfo"] {
            put(&at(name), &format!("of {name}: {leak}"));
        }
        put(&at("pstore/1795423626/dmesg.txt"), &format!("panic: {leak}"));
        put(&at("health.d/10-app"), &leak);
        put(&at("hooks.d/before-reboot/20-line"), &leak);
        put(&at("key"), KEY);
        let hub = config::Hub {
            host_name: "hub.example".into(),
            gateway_host_name: None,
            device_id: "gateway-1".into(),
            credentials: Credentials::SharedAccessKey(Secret::new(KEY)),
            ca_file: None,
            port: 8883,
            https_port: 443,
            keep_alive: Duration::from_secs(1),
        };
        let config = Config {
            network: None,
            hub: Some(hub),
            state_directory: at("state"),
            slots: config::Slots { a: at("os-release"), b: at("nowhere"), others: BTreeMap::new() },
            boot: config::Boot {
                scheme: Scheme::Bootcount,
                environment: at("fw_env.config"),
                attempts: 3,
                lock_files: Vec::new(),
            },
            install: config::Install {
                compatible: None,
                check: crate::install::verify::ImageCheck::Required,
                keys: at("keys"),
                ca_file: None,
                retry_limit: Duration::ZERO,
                allow_downgrade: false,
            },
            health: config::Health {
                deadline: Duration::ZERO,
                hub: HubCheck::Never,
                units: Vec::new(),
                scripts: at("health.d"),
            },
            hooks: config::Hooks {
                directory: at("hooks.d"),
                limit: Duration::ZERO,
                defer_interval: Duration::ZERO,
                defer_limit: Duration::ZERO,
            },
            system: config::System {
                reboot_command: Vec::new(),
                clock_check_command: Vec::new(),
                proc: at("proc"),
                control_socket: at("socket"),
                os_release: at("os-release"),
            },
            scripts: Surroundings::Ours,
            metrics_file: None,
        };
        let journal_command = ["sh", "-c", "echo \"asked $*: $0\"", &leak].map(str::to_owned).to_vec();
        let pstore = vec![at("pstore")];
        Sources { config: Ok(config), status: leak, faults: None, pstore, journal_command }
    }

    fn unpacked(bytes: &[u8]) -> BTreeMap<String, String> {
        let mut archive = tar::Archive::new(GzDecoder::new(bytes));
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            (name.strip_prefix("twinboot-diagnostics/").unwrap().to_owned(), text)
        });
        entries.collect()
    }

    #[tokio::test]
    async fn a_bundle_has_everything_but_the_secrets() {
        let root = tempfile::tempdir().unwrap();
        let sources = device(root.path());
        let texts = unpacked(&bundle(sources).await.unwrap());
        for (name, text) in &texts {
            assert!(!text.contains(PLANTED) && !text.contains(KEY), "{name}: {text}");
        }
        for name in ["state/state", "state/checkpoint", "os-release", "proc/cmdline", "proc/self/mountinfo"] {
            assert!(texts[name].starts_with(&format!("of {name}: token=[secret]")), "{}", texts[name]);
        }
        let pstore = texts.iter().find(|(name, _)| name.starts_with("pstore/")).unwrap();
        assert!(pstore.0.ends_with("1795423626_dmesg.txt") && pstore.1.starts_with("panic: "), "{pstore:?}");
        let journal = &texts["journal/boot-1-twinboot.txt"];
        assert!(journal.starts_with("asked --boot=-1 --reverse --unit=twinboot*"), "{journal}");
        assert!(texts["config.txt"].contains("hub.example") && texts["programs.txt"].contains("10-app"));
        assert!(texts["programs.txt"].contains("before-reboot/20-line: file of mode 600"), "{texts:#?}");
        assert!(texts["environment.txt"].contains("cannot read"), "{}", texts["environment.txt"]);
        let doctor: serde_json::Value = serde_json::from_str(&texts["doctor.json"]).unwrap();
        assert!(
            doctor["level"] == "fault" && doctor["checks"][0]["check"] == "environment.location",
            "{doctor:#}"
        );
        assert!(texts["slots.txt"].contains("slot b: "), "{}", texts["slots.txt"]);
    }

    #[tokio::test]
    async fn a_bundle_has_a_largest_size() {
        let root = tempfile::tempdir().unwrap();
        let mut sources = device(root.path());
        // More than each limit, and hardly to be compressed.
        let mut random = fastrand::Rng::with_seed(7);
        let noise: String =
            std::iter::repeat_with(|| random.char(' '..'~')).take(TEXT_LIMIT_BYTES + 1).collect();
        for n in 0..4 {
            put(&root.path().join(format!("pstore/{n}")), &noise);
        }
        sources.journal_command = ["sh", "-c", "yes one line of very many"].map(str::to_owned).to_vec();
        let bytes = bundle(sources).await.unwrap();
        assert!(bytes.len() < TOTAL_LIMIT_BYTES, "{}", bytes.len());
        let texts = unpacked(&bytes);
        assert_eq!(texts["journal/boot0-twinboot.txt"].len(), TEXT_LIMIT_BYTES);
        assert_eq!(texts.values().map(String::len).sum::<usize>(), TOTAL_LIMIT_BYTES);
    }

    #[tokio::test]
    async fn without_a_configuration_there_is_a_bundle_all_the_same() {
        let root = tempfile::tempdir().unwrap();
        let sources = Sources { config: Err("no such file".into()), ..device(root.path()) };
        let texts = unpacked(&bundle(sources).await.unwrap());
        assert_eq!(texts["config.txt"], "no such file");
        assert!(texts.contains_key("journal/boot0-twinboot.txt"));
    }
}
