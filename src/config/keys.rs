//! Every key there is: its default, its range, and what must agree with what. `config/config.toml` shows
//! the same to people.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::fault::{Faults, Place};
use super::files::{self, SECTIONS, Section, Value, Written};
use super::secret_file::{self, Credential};
use super::section::{self, Findings, SectionReader, Wrong, boolean, duration, list, number, path, text};
use super::{
    Boot, Config, Credentials, DEFAULT_CONTROL_SOCKET, Health, Hooks, Hub, HubCheck, Install, Loaded, Pair,
    Slots, System,
};
use crate::boot::scheme::Scheme;
use crate::hub::auth::{ConnectionString, Proof, check_device_id, is_host_name};
use crate::hub::session::KEEP_ALIVE_MAX;
use crate::install::verify::ImageCheck;
use crate::redact::redacted;
use crate::scripts::Surroundings;

/// Below it, a time limit is a typing mistake.
const SECOND: Duration = Duration::from_secs(1);

/// A trial that takes longer than a day to judge is not being judged.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// A server that was away for a month will be found by the next request.
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

/// Some boot scripts read RAUC's counters as decimal, others as hexadecimal: up to here that is the same.
const ATTEMPTS_MOST: u8 = 9;

/// The names under which systemd hands secrets over, in place of the files that the configuration names: those
/// are not for the user that the networked part runs as.
const CONNECTION_STRING: &str = "connection-string";
const DEVICE_KEY: &str = "device-key";

/// What twinboot-network.service has systemd make them of.
const CONNECTION_STRING_FILE: &str = "/etc/twinboot/connection-string";
const DEVICE_KEY_FILE: &str = "/etc/twinboot/device.key";

/// The keys of `[hub]` that say who the device is; without any of them the connection string is at its usual place.
const IDENTITY: [&str; 5] =
    ["connection_string_file", "host_name", "device_id", "certificate_file", "key_file"];

/// Reads all files, and judges all that they say.
pub(super) fn read(
    main: &Path,
    credentials: Option<&Path>,
    network: Option<PathBuf>,
) -> Result<Loaded, Faults> {
    let mut written = files::read(main);
    let mut findings = Findings::default();
    let unparsed = !written.faults.is_empty();
    if network.is_some() {
        written.sections.remove("hub");
    }
    let config = config(&mut written, main, credentials, network.is_some(), &mut findings);
    for (name, section) in written.sections {
        if !SECTIONS.contains(&name.as_str()) {
            let place = section.place.unwrap_or_else(|| Place::whole(0, main));
            findings.unknown_section(&name, place);
        }
    }
    // As the networked part's user would: it also lists the directory of the drop-ins, and where it cannot, no word on
    // each of them is needed.
    let drop_ins = main.with_file_name("config.d");
    let listed = secret_file::check_open(&drop_ins);
    for place in written.files {
        let is_told = listed.is_err() && place.file.starts_with(&drop_ins);
        if let (false, Err(closed)) = (is_told, secret_file::check_open(&place.file)) {
            findings.note(place, String::new(), closed);
        }
    }
    if let Err(closed) = listed {
        findings.note(Place::whole(0, &drop_ins), String::new(), closed);
    }
    let (mut faults, effective, notes) = findings.into_faults();
    // What is missing may stand in the file, or behind the mistake, that could not be read.
    faults.retain(|fault| !(unparsed && fault.problem == section::MISSING));
    faults.extend(written.faults);
    faults.sort();
    match config {
        Some(config) if faults.is_empty() => {
            Ok(Loaded { config: Config { network, ..config }, effective, notes })
        }
        _ => Err(Faults(faults)),
    }
}

/// The files with secrets that are in force, as far as the configuration can be read.
pub(super) fn secret_files(main: &Path) -> Vec<PathBuf> {
    let Some(hub) = files::read(main).sections.remove("hub") else { return Vec::new() };
    if !IDENTITY.iter().any(|key| hub.settings.contains_key(*key)) {
        return vec![CONNECTION_STRING_FILE.into()];
    }
    let in_force = |key| path(&hub.settings.get(key)?.last()?.value).ok();
    ["connection_string_file", "key_file"].into_iter().filter_map(in_force).collect()
}

/// `None` only where a fault was recorded.
fn config(
    written: &mut Written,
    main: &Path,
    credentials: Option<&Path>,
    is_beside: bool,
    findings: &mut Findings,
) -> Option<Config> {
    let mut of = |name: &str| written.sections.remove(name);
    let hub = hub(of("hub"), main, credentials, findings);
    let state_directory = state(of("state"), main, findings);
    let (scheme, boot) = boot(of("boot"), main, findings);
    let install = install(of("install"), main, is_beside, findings);
    let health = health(of("health"), main, findings);
    let hooks = hooks(of("hooks"), main, findings);
    let system = system(of("system"), main, findings);
    let metrics_file = metrics(of("metrics"), main, findings);
    let (slots, partitions) = slots(written, main, scheme, findings);
    let scheme = match (scheme?, partitions) {
        (SchemeName::Bootcount, _) => Scheme::Bootcount,
        (SchemeName::Rauc, _) => Scheme::Rauc,
        (SchemeName::Mender, partitions) => {
            let (part_a, part_b) = partitions?;
            Scheme::Mender { part_a, part_b }
        }
    };
    Some(Config {
        hub: hub?,
        state_directory: state_directory?,
        slots: slots?,
        boot: boot?.with(scheme),
        install: install?,
        health: health?,
        hooks: hooks?,
        system: system?,
        network: None,
        scripts: Surroundings::Ours,
        metrics_file,
    })
}

/// The outer `None`: a fault was recorded; the inner: no hub.
#[expect(clippy::option_option, reason = "the two absences are different, and live for one call")]
fn hub(
    section: Option<Section>,
    main: &Path,
    credentials: Option<&Path>,
    findings: &mut Findings,
) -> Option<Option<Hub>> {
    if section.is_none() {
        return Some(None);
    }
    // A blank one says that there is no such file.
    let handed_over = |name| {
        let file = credentials?.join(name);
        std::fs::read(&file).is_ok_and(|bytes| !bytes.trim_ascii().is_empty()).then_some(file)
    };
    let (string, key) = (handed_over(CONNECTION_STRING), handed_over(DEVICE_KEY));
    let mut hub = SectionReader::new("hub".to_owned(), section, main, findings);
    hub.refuse("dps", "enrolment by DPS is not there yet", "use `connection_string_file`, or a certificate");
    let identity = identity(&mut hub, credentials.is_some(), string, key);
    let gateway_host_name = hub.optional("gateway_host_name", host_name);
    let ca_file = public_file(&mut hub, "ca_file");
    let port = hub.or("port", "8883", number(1..=u16::MAX));
    let https_port = hub.or("https_port", "443", number(1..=u16::MAX));
    let keep_alive = hub.or("keep_alive", "\"230s\"", duration(SECOND..=KEEP_ALIVE_MAX));
    hub.finish();
    let identity = identity?;
    Some(Some(Hub {
        host_name: identity.host_name,
        gateway_host_name: gateway_host_name.or(identity.gateway_host_name),
        device_id: identity.device_id,
        credentials: identity.credentials,
        ca_file,
        port: port?,
        https_port: https_port?,
        keep_alive: keep_alive?,
    }))
}

/// Who the device is, and how it proves it.
struct Identity {
    host_name: String,
    device_id: String,
    gateway_host_name: Option<String>,
    credentials: Credentials,
}

/// From the connection string, or from the names and the certificate, or from what systemd handed over.
fn identity(
    hub: &mut SectionReader<'_>,
    has_credentials: bool,
    handed_over: Option<PathBuf>,
    key_handed_over: Option<PathBuf>,
) -> Option<Identity> {
    let credential = |name| has_credentials.then_some(name);
    let is_bare = !IDENTITY.iter().any(|key| hub.has(key));
    let by_string = is_bare || hub.has("connection_string_file");
    for key in ["host_name", "device_id"].into_iter().filter(|_| by_string) {
        hub.refuse(key, "stands beside `connection_string_file`, which has it too", "remove one");
    }
    let certified = hub.has("certificate_file") || hub.has("key_file");
    let string_file = match is_bare {
        true => hub.or("connection_string_file", &format!("{CONNECTION_STRING_FILE:?}"), path),
        false => hub.optional("connection_string_file", path),
    };
    let host = hub.optional("host_name", host_name);
    let device_id = hub.optional("device_id", device_id);
    let certificate_file = public_file(hub, "certificate_file");
    let key_file = match key_handed_over {
        Some(handed_over) => hub.optional("key_file", path).map(|_| handed_over),
        None => hub.file("key_file", |file| secret_file::check(file, credential(DEVICE_KEY))),
    };
    if !has_credentials {
        let string = (CONNECTION_STRING, CONNECTION_STRING_FILE);
        note_another(hub, "connection_string_file", string_file.as_deref(), string);
        note_another(hub, "key_file", key_file.as_deref(), (DEVICE_KEY, DEVICE_KEY_FILE));
    }
    let certificate = Option::zip(certificate_file, key_file)
        .map(|(certificate_file, key_file)| Credentials::Certificate { certificate_file, key_file });

    if is_bare && hub.has("dps") {
        return None;
    }
    let is_there = |file: &PathBuf| file.exists();
    if is_bare && handed_over.is_none() && !string_file.as_ref().is_some_and(is_there) {
        let hint = format!(
            "write the connection string to {CONNECTION_STRING_FILE}, or to the file that this key names; or write \
             `host_name`, `device_id`, `certificate_file` and `key_file`; or remove `[hub]` for a device without a cloud"
        );
        hub.fault("connection_string_file", section::MISSING, hint);
        return None;
    }
    if by_string {
        let file = handed_over.or(string_file)?;
        return from_connection_string(hub, &file, credential(CONNECTION_STRING), certified, certificate);
    }
    for key in ["host_name", "device_id", "certificate_file", "key_file"] {
        hub.expect(key, "a device with a certificate needs all four of `host_name`, `device_id`, `certificate_file`, `key_file`");
    }
    Some(Identity {
        host_name: host?,
        device_id: device_id?,
        gateway_host_name: None,
        credentials: certificate?,
    })
}

/// A file that is no secret.
fn public_file(section: &mut SectionReader<'_>, key: &'static str) -> Option<PathBuf> {
    let file = section.file(key, secret_file::check_public)?;
    if let Err(closed) = secret_file::check_open(&file) {
        section.note(key, closed);
    }
    Some(file)
}

/// What the unit hands over is taken, whatever is named.
fn note_another(
    hub: &mut SectionReader<'_>,
    key: &str,
    named: Option<&Path>,
    (credential, usual): (&str, &str),
) {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    let (Some(named), Some(handed_over)) = (named, real(Path::new(usual))) else { return };
    if real(named).is_some_and(|named| named != handed_over) {
        let problem = format!(
            "twinboot-network.service is handed {usual} in its place, unless a drop-in says otherwise"
        );
        let hint = format!("remove that file; or {}", secret_file::hand_over(credential, named));
        hub.note(key, section::wrong(problem, hint));
    }
}

fn from_connection_string(
    hub: &mut SectionReader<'_>,
    file: &Path,
    credential: Credential,
    certified: bool,
    certificate: Option<Credentials>,
) -> Option<Identity> {
    const KEY: &str = "connection_string_file";
    let place = hub.place(KEY);
    let parsed = secret_file::read(file, credential).and_then(|text| {
        text.parse::<ConnectionString>().map_err(|error| {
            section::wrong(
                format!("{}: {error}", file.display()),
                "`az iot hub device-identity connection-string show` prints the right one",
            )
        })
    });
    let string = match parsed {
        Ok(string) => string,
        Err(Wrong { problem, hint }) => {
            hub.fault_at(place, KEY, problem, hint);
            return None;
        }
    };
    let credentials = match (string.proof, certified) {
        (Proof::SharedAccessKey(key), false) => Credentials::SharedAccessKey(key),
        (Proof::SharedAccessKey(_), true) => {
            hub.fault_at(place, KEY, "brings a key, and `certificate_file` stands beside it", "remove one");
            return None;
        }
        (Proof::Certificate, _) => {
            for key in ["certificate_file", "key_file"] {
                hub.expect(key, "the connection string says `x509=true`");
            }
            certificate?
        }
    };
    Some(Identity {
        host_name: string.host_name,
        device_id: string.device_id,
        gateway_host_name: string.gateway_host_name,
        credentials,
    })
}

fn state(section: Option<Section>, main: &Path, findings: &mut Findings) -> Option<PathBuf> {
    let mut state = SectionReader::new("state".to_owned(), section, main, findings);
    let directory = state.or("directory", "\"/var/lib/twinboot\"", path);
    state.finish();
    directory
}

/// `boot.scheme` before the slots' partitions are known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SchemeName {
    Bootcount,
    Rauc,
    Mender,
}

/// `[boot]` without its scheme.
struct BootKeys {
    environment: PathBuf,
    attempts: u8,
    lock_files: Vec<PathBuf>,
}

impl BootKeys {
    fn with(self, scheme: Scheme) -> Boot {
        let Self { environment, attempts, lock_files } = self;
        Boot { scheme, environment, attempts, lock_files }
    }
}

fn boot(
    section: Option<Section>,
    main: &Path,
    findings: &mut Findings,
) -> (Option<SchemeName>, Option<BootKeys>) {
    let names =
        [("bootcount", SchemeName::Bootcount), ("rauc", SchemeName::Rauc), ("mender", SchemeName::Mender)];
    let mut boot = SectionReader::new("boot".to_owned(), section, main, findings);
    // No default: a wrong guess would write variables that this board's script does not read.
    let scheme = boot.required(
        "scheme",
        "`scheme = \"bootcount\"`, \"rauc\" or \"mender\": the variables that this board's boot script reads",
        section::one_of(&names),
    );
    let environment = boot.or("environment", "\"/etc/fw_env.config\"", path);
    let attempts = boot.or("attempts", "3", number(1..=ATTEMPTS_MOST));
    // One path of libubootenv, one of U-Boot's own tools: only both exclude either.
    let default = r#"["/var/lock/fw_printenv.lock", "/run/fw_printenv.lock"]"#;
    let lock_files = boot.or("lock_files", default, list(path));
    boot.finish();
    let keys = || Some(BootKeys { environment: environment?, attempts: attempts?, lock_files: lock_files? });
    (scheme, keys())
}

fn install(
    section: Option<Section>,
    main: &Path,
    is_beside: bool,
    findings: &mut Findings,
) -> Option<Install> {
    let checks = [
        ("required", ImageCheck::Required),
        ("signature", ImageCheck::Signature),
        ("optional", ImageCheck::Optional),
    ];
    let mut install = SectionReader::new("install".to_owned(), section, main, findings);
    let check = install.or("check", "\"required\"", section::one_of(&checks));
    let keys = install.or("keys", "\"/etc/twinboot/keys\"", path);
    let compatible = install.optional("compatible", text);
    // Beside a networked part nobody else reads it: a file that is just being renewed is to end no agent.
    let ca_file = match is_beside {
        true => install.optional("ca_file", path),
        false => public_file(&mut install, "ca_file"),
    };
    let retry_limit = install.or("retry_limit", "\"24h\"", duration(SECOND..=MONTH));
    let allow_downgrade = install.or("allow_downgrade", "false", boolean);
    install.finish();
    Some(Install {
        check: check?,
        keys: keys?,
        compatible,
        ca_file,
        retry_limit: retry_limit?,
        allow_downgrade: allow_downgrade?,
    })
}

fn health(section: Option<Section>, main: &Path, findings: &mut Findings) -> Option<Health> {
    let checks = [
        ("always", HubCheck::Always),
        ("if-online-before", HubCheck::IfOnlineBefore),
        ("never", HubCheck::Never),
    ];
    let mut health = SectionReader::new("health".to_owned(), section, main, findings);
    let deadline = health.or("deadline", "\"10m\"", duration(SECOND..=DAY));
    let hub = health.or("hub", "\"if-online-before\"", section::one_of(&checks));
    let units = health.or("units", "[]", list(text));
    let scripts = health.or("scripts", "\"/etc/twinboot/health.d\"", path);
    health.finish();
    Some(Health { deadline: deadline?, hub: hub?, units: units?, scripts: scripts? })
}

fn hooks(section: Option<Section>, main: &Path, findings: &mut Findings) -> Option<Hooks> {
    let mut hooks = SectionReader::new("hooks".to_owned(), section, main, findings);
    let directory = hooks.or("directory", "\"/etc/twinboot/hooks.d\"", path);
    let limit = hooks.or("limit", "\"5m\"", duration(SECOND..=DAY));
    let defer_interval = hooks.or("defer_interval", "\"1m\"", duration(SECOND..=DAY));
    let defer_limit = hooks.or("defer_limit", "\"24h\"", duration(SECOND..=MONTH));
    hooks.finish();
    Some(Hooks {
        directory: directory?,
        limit: limit?,
        defer_interval: defer_interval?,
        defer_limit: defer_limit?,
    })
}

fn system(section: Option<Section>, main: &Path, findings: &mut Findings) -> Option<System> {
    let socket = format!("\"{DEFAULT_CONTROL_SOCKET}\"");
    let clock = r#"["timedatectl", "show", "-p", "NTPSynchronized", "--value"]"#;
    let mut system = SectionReader::new("system".to_owned(), section, main, findings);
    let reboot_command = system.or("reboot_command", r#"["systemctl", "reboot"]"#, section::command);
    let clock_check_command = system.or("clock_check_command", clock, section::command);
    let proc = system.or("proc", "\"/proc\"", path);
    let control_socket = system.or("control_socket", &socket, path);
    let os_release = system.or("os_release", "\"/etc/os-release\"", path);
    system.finish();
    Some(System {
        reboot_command: reboot_command?,
        clock_check_command: clock_check_command?,
        proc: proc?,
        control_socket: control_socket?,
        os_release: os_release?,
    })
}

/// The collector reads no other files.
fn prom_file(value: &Value) -> Result<PathBuf, Wrong> {
    let file = path(value)?;
    if file.extension().is_some_and(|extension| extension == "prom") {
        Ok(file)
    } else {
        let hint = "end it in `.prom`: it reads no other files";
        Err(section::wrong(format!("{} is no file for node_exporter", value.to_toml()), hint))
    }
}

fn metrics(section: Option<Section>, main: &Path, findings: &mut Findings) -> Option<PathBuf> {
    let mut metrics = SectionReader::new("metrics".to_owned(), section, main, findings);
    let file = metrics.optional("file", prom_file);
    metrics.finish();
    file
}

/// The devices of the slots, and their partition numbers where the scheme wants them.
fn slots(
    written: &mut Written,
    main: &Path,
    scheme: Option<SchemeName>,
    findings: &mut Findings,
) -> (Option<Slots>, Option<(u32, u32)>) {
    let both = ["a", "b"].map(|name| written.slots.get(name).cloned());
    let SlotKeys { device: a, partition: part_a, images: images_a } =
        slot(written.slots.remove("a"), "a", main, scheme, findings);
    let SlotKeys { device: b, partition: part_b, images: images_b } =
        slot(written.slots.remove("b"), "b", main, scheme, findings);
    for (name, section) in std::mem::take(&mut written.slots) {
        let mut slot = SectionReader::new("slot".to_owned(), Some(section), main, findings);
        let place = slot.place("name");
        slot.fault_at(place, "name", format!("\"{name}\" is no slot"), "there are \"a\" and \"b\"");
    }
    let mut slot = SectionReader::new("slot".to_owned(), None, main, findings);
    // Of two that do not go together, the one that was written last.
    let mut fault = |key, problem, hint| {
        let last = both.iter().flatten().filter_map(|section| section.place(key)).max();
        slot.fault_at(last.unwrap_or_else(|| slot.place(key)), key, problem, hint);
    };
    if a.is_some() && a == b {
        fault("device", "both slots have the same", "each slot is a partition of its own");
    }
    if part_a.is_some() && part_a == part_b {
        fault("partition", "both slots have the same", "each slot is a partition of its own");
    }
    if !images_a.keys().eq(images_b.keys()) {
        fault("images", "both slots have other ones", "write the same classes for both");
    }
    let devices: Vec<&PathBuf> =
        [&a, &b].into_iter().flatten().chain(images_a.values()).chain(images_b.values()).collect();
    if a != b && devices.iter().collect::<BTreeSet<_>>().len() < devices.len() {
        fault("images", "two images have the same device", "each is a partition of its own");
    }
    let pairs = images_a.into_iter().zip(images_b.into_values());
    let others = pairs.map(|((class, a), b)| (class, Pair { a, b })).collect();
    let slots = Option::zip(a, b).map(|(a, b)| Slots { a, b, others });
    (slots, Option::zip(part_a, part_b))
}

/// `[[slot]]`, as far as it is right.
#[derive(Default)]
struct SlotKeys {
    device: Option<PathBuf>,
    partition: Option<u32>,
    images: BTreeMap<String, PathBuf>,
}

fn slot(
    section: Option<Section>,
    name: &str,
    main: &Path,
    scheme: Option<SchemeName>,
    findings: &mut Findings,
) -> SlotKeys {
    let is_there = section.is_some();
    let mut slot = SectionReader::new(format!("slot \"{name}\""), section, main, findings);
    if !is_there {
        let hint = format!("write `[[slot]]`, `name = \"{name}\"` and `device = \"/dev/...\"`");
        slot.fault("name", section::MISSING, hint);
        return SlotKeys::default();
    }
    slot.optional("name", text);
    let example = format!("the slot's partition, as in `device = \"/dev/disk/by-partlabel/rootfs_{name}\"`");
    let device = slot.required("device", &example, path);
    let partition = slot.optional("partition", number(1..=255_u32));
    let images = slot.optional("images", section::images).unwrap_or_default();
    match scheme {
        Some(SchemeName::Mender) => {
            slot.expect("partition", "write its number: `boot.scheme = \"mender\"` tells slots apart by it");
        }
        Some(_) => slot.refuse("partition", "is for `boot.scheme = \"mender\"` alone", "remove it"),
        None => {}
    }
    slot.finish();
    SlotKeys { device, partition, images }
}

/// A host alone, as it stands in a certificate.
fn host_name(value: &Value) -> Result<String, Wrong> {
    let name = text(value)?;
    if is_host_name(&name) {
        Ok(name)
    } else {
        let hint = "write the name alone, as in \"myhub.azure-devices.net\": no `https://`, no port";
        Err(section::wrong(format!("{} is no host name", redacted(&value.to_toml())), hint))
    }
}

/// As IoT Hub's registry has it.
fn device_id(value: &Value) -> Result<String, Wrong> {
    let id = text(value)?;
    match check_device_id(&id) {
        Ok(()) => Ok(id),
        Err(error) => {
            let shown = redacted(&value.to_toml());
            Err(section::wrong(format!("{shown} is no device id"), error.to_string()))
        }
    }
}
