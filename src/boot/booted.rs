//! Which slot this boot runs from, and which boot it is.
//!
//! Three witnesses, strongest first: the device that `/` is mounted from, `root=` of the kernel command line, and the
//! slot that the boot script names there. All that know the answer must give the same one.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use super::scheme::View;
use crate::config::Slots;
use crate::update::{BootId, Slot};

/// Far more than a container host's mount table; the kernel's command line is at most a few KiB.
const MAX_TEXT_BYTES: u64 = 1 << 20;

/// Where udev links block devices by what they hold.
const DISK_LINKS: &str = "/dev/disk";

/// Kernel arguments by which a boot script names the slot.
const SLOT_ARGUMENTS: [&str; 2] = ["twinboot.slot", "rauc.slot"];

/// Why the booted slot, or the boot id, is not known.
#[derive(Debug, thiserror::Error)]
pub enum BootedError {
    /// A file of procfs.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not what procfs has.
    #[error("{} has more than {MAX_TEXT_BYTES} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// Not a boot id.
    #[error("{} holds no boot id", path.display())]
    BadBootId {
        /// The file.
        path: PathBuf,
        /// What it holds.
        source: crate::update::BadBootId,
    },
    /// Both `[[slot]]`s are one device.
    #[error("slots a and b are the same device: {} and {}", a.display(), b.display())]
    SlotsAreOne {
        /// Device of slot `a`.
        a: PathBuf,
        /// Device of slot `b`.
        b: PathBuf,
    },
    /// The boot script names a slot that there is not.
    #[error("the kernel command line has `{name}={value}`; a slot is `A` or `B`")]
    BadSlotArgument {
        /// The argument.
        name: &'static str,
        /// As it is, cut short.
        value: String,
    },
    /// Two witnesses say different things.
    #[error("two facts disagree on the booted slot: {first}, but {second}")]
    WitnessesDisagree {
        /// The stronger.
        first: Evidence,
        /// The weaker.
        second: Evidence,
    },
    /// No witness knows.
    #[error(
        "this boot runs from neither slot: `/` is mounted from {root}, the kernel command line has {arguments}; \
         slot a is {}, slot b is {}",
        a.display(), b.display()
    )]
    NeitherSlot {
        /// Device number and source of `/`.
        root: String,
        /// `root=` and what names a slot.
        arguments: String,
        /// Device of slot `a`.
        a: PathBuf,
        /// Device of slot `b`.
        b: PathBuf,
    },
}

/// A slot, and by what it is known to be the booted one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// The booted slot.
    pub slot: Slot,
    /// How that is known.
    pub fact: Fact,
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// `/` is mounted from the slot's device, perhaps below an overlay.
    RootMount(DeviceNumber),
    /// `root=` names the slot's device.
    RootArgument(String),
    /// The boot script names the slot.
    SlotArgument {
        /// `twinboot.slot` or `rauc.slot`.
        name: &'static str,
        /// As it is.
        value: String,
    },
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slot = self.slot;
        match &self.fact {
            Fact::RootMount(device) => write!(f, "`/` is on device {device}, which is slot {slot}"),
            Fact::RootArgument(value) => write!(f, "the kernel has `root={value}`, which is slot {slot}"),
            Fact::SlotArgument { name, value } => write!(f, "the kernel has `{name}={value}`"),
        }
    }
}

/// Major and minor number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceNumber {
    major: u64,
    minor: u64,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl DeviceNumber {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    /// Of the block device at `path`, links followed; regular files have none.
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok().filter(|metadata| metadata.file_type().is_block_device())?;
        Some(Self { major: major(metadata.rdev()), minor: minor(metadata.rdev()) })
    }
}

/// The boot environment and the booted slot contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "two facts disagree: the boot environment has slot {environment} first and no trial is under way, but {booted}; \
     is `boot.environment` the one that this board's boot loader reads?"
)]
pub struct Disagreement {
    /// The slot that the environment names.
    pub environment: Slot,
    /// The slot that runs.
    pub booted: Evidence,
}

/// Outside a trial, what the boot loader tries first must be what runs. During one, either may.
///
/// # Errors
/// When it is not.
pub fn agreement(view: &View, booted: &Evidence) -> Result<(), Disagreement> {
    if view.trial || view.primary == booted.slot {
        return Ok(());
    }
    Err(Disagreement { environment: view.primary, booted: booted.clone() })
}

/// Which boot this is, from `<proc>/sys/kernel/random/boot_id`.
///
/// # Errors
/// When it cannot be read.
pub fn boot_id(proc: &Path) -> Result<BootId, BootedError> {
    let path = proc.join("sys/kernel/random/boot_id");
    let text = read_text(&path)?;
    text.parse().map_err(|source| BootedError::BadBootId { path, source })
}

/// Which slot this boot runs from, by the strongest of the witnesses below `proc`.
///
/// # Errors
/// When no witness knows, or two contradict each other.
pub fn booted_slot(proc: &Path, slots: &Slots) -> Result<Evidence, BootedError> {
    find(proc, Path::new(DISK_LINKS), slots)
}

/// The last value of an argument of the kernel command line.
///
/// # Errors
/// When that cannot be read.
pub fn argument(proc: &Path, name: &str) -> Result<Option<String>, BootedError> {
    let arguments = parse_arguments(&read_text(&proc.join("cmdline"))?);
    Ok(last_value(&arguments, name).map(str::to_owned))
}

fn find(proc: &Path, disk_links: &Path, slots: &Slots) -> Result<Evidence, BootedError> {
    let devices = SlotDevices::look_up(slots)?;
    let mounts = parse_mounts(&read_text(&proc.join("self/mountinfo"))?);
    let command_line = read_text(&proc.join("cmdline"))?;
    let arguments = parse_arguments(&command_line);
    let root_argument = last_value(&arguments, "root");

    let mut witnesses = Vec::new();
    witnesses.extend(by_root_mount(&mounts, &devices));
    witnesses.extend(root_argument.and_then(|value| by_root_argument(value, disk_links, &devices)));
    for name in SLOT_ARGUMENTS {
        witnesses.extend(by_slot_argument(name, &arguments)?);
    }

    let mut witnesses = witnesses.into_iter();
    let Some(first) = witnesses.next() else {
        return Err(neither_slot(&mounts, root_argument, slots));
    };
    match witnesses.find(|witness| witness.slot != first.slot) {
        Some(second) => Err(BootedError::WitnessesDisagree { first, second }),
        None => Ok(first),
    }
}

fn neither_slot(mounts: &[Mount], root_argument: Option<&str>, slots: &Slots) -> BootedError {
    let root = root_mount(mounts)
        .map_or("nowhere".to_owned(), |mount| format!("{} ({})", mount.device, mount.source));
    let arguments =
        root_argument.map_or("neither `root=` nor a slot".to_owned(), |value| format!("`root={value}`"));
    BootedError::NeitherSlot { root, arguments, a: slots.a.clone(), b: slots.b.clone() }
}

/// Text of procfs; bytes that are not UTF-8 become U+FFFD and match nothing.
fn read_text(path: &Path) -> Result<String, BootedError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_TEXT_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|source| BootedError::Read { path: path.to_owned(), source })?;
    if bytes.len() as u64 > MAX_TEXT_BYTES {
        return Err(BootedError::TooLong { path: path.to_owned() });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The slots as this machine has them; a missing one is no reason not to know the other.
struct SlotDevices {
    numbers: [(Slot, Option<DeviceNumber>); 2],
    paths: [(Slot, Option<PathBuf>); 2],
}

impl SlotDevices {
    fn look_up(slots: &Slots) -> Result<Self, BootedError> {
        let numbers = [Slot::A, Slot::B].map(|slot| (slot, DeviceNumber::of(slots.device(slot))));
        let paths = [Slot::A, Slot::B].map(|slot| (slot, fs::canonicalize(slots.device(slot)).ok()));
        let [(_, a_number), (_, b_number)] = &numbers;
        let [(_, a_path), (_, b_path)] = &paths;
        if (a_number.is_some() && a_number == b_number) || (a_path.is_some() && a_path == b_path) {
            return Err(BootedError::SlotsAreOne { a: slots.a.clone(), b: slots.b.clone() });
        }
        Ok(Self { numbers, paths })
    }

    fn by_number(&self, number: DeviceNumber) -> Option<Slot> {
        self.numbers.iter().find(|(_, device)| *device == Some(number)).map(|(slot, _)| *slot)
    }

    /// Regular files, which a simulated board has for slots, are found by their names alone.
    fn by_path(&self, path: &Path) -> Option<Slot> {
        let by_number = DeviceNumber::of(path).and_then(|number| self.by_number(number));
        by_number.or_else(|| {
            let path = fs::canonicalize(path).ok()?;
            self.paths.iter().find(|(_, device)| device.as_ref() == Some(&path)).map(|(slot, _)| *slot)
        })
    }
}

/// A line of `mountinfo`, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    device: DeviceNumber,
    mount_point: PathBuf,
    file_system: String,
    source: String,
    options: String,
}

impl Mount {
    /// The value of one of its options.
    fn option(&self, name: &str) -> Option<&str> {
        self.options.split(',').find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
    }

    /// btrfs, for one, has device numbers of its own, but names the device it is on.
    fn device_numbers(&self) -> Vec<DeviceNumber> {
        let named = (self.device.major == 0).then(|| DeviceNumber::of(Path::new(&self.source))).flatten();
        [Some(self.device), named].into_iter().flatten().collect()
    }
}

/// The mount that a path is on; of several on one point the last hides the others.
fn holder<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let holders = mounts.iter().filter(|mount| path.starts_with(&mount.mount_point));
    holders.max_by_key(|mount| mount.mount_point.as_os_str().len())
}

/// A line that is not one says nothing.
fn parse_mounts(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_mount).collect()
}

/// `id parent major:minor root mount-point options [tag…] - file-system source super-options`: proc(5).
fn parse_mount(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ');
    let device = DeviceNumber::parse(fields.nth(2)?)?;
    let mount_point = PathBuf::from(unescape(fields.nth(1)?));
    let mut fields = fields.skip_while(|field| *field != "-").skip(1);
    let file_system = fields.next()?.to_owned();
    let source = unescape(fields.next()?);
    let options = unescape(fields.next().unwrap_or_default());
    Some(Mount { device, mount_point, file_system, source, options })
}

/// The kernel writes blanks and backslashes as `\` and three octal digits.
fn unescape(field: &str) -> String {
    let mut pieces = field.split('\\');
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let code = piece.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (code.filter(u8::is_ascii), piece.get(3..)) {
            (Some(code), Some(rest)) => {
                text.push(char::from(code));
                text.push_str(rest);
            }
            _ => {
                text.push('\\');
                text.push_str(piece);
            }
        }
    }
    text
}

/// Of several mounts on `/`, the last hides the others.
fn root_mount(mounts: &[Mount]) -> Option<&Mount> {
    mounts.iter().rev().find(|mount| mount.mount_point == Path::new("/"))
}

fn by_root_mount(mounts: &[Mount], devices: &SlotDevices) -> Option<Evidence> {
    let root = root_mount(mounts)?;
    let mut candidates = root.device_numbers();
    if root.file_system == "overlay" {
        candidates.extend(lower_devices(root, mounts));
    }
    candidates
        .into_iter()
        .find_map(|device| Some(Evidence { slot: devices.by_number(device)?, fact: Fact::RootMount(device) }))
}

/// Devices of the file systems that hold an overlay's lower directories, the lowest first.
fn lower_devices(overlay: &Mount, mounts: &[Mount]) -> Vec<DeviceNumber> {
    // `lowerdir+=` is the new mount interface's way to name them one by one, in the same order.
    let directories = overlay.options.split(',').filter_map(|option| {
        let option = option.strip_prefix("lowerdir")?;
        option.strip_prefix('+').unwrap_or(option).strip_prefix('=')
    });
    let mut directories: Vec<&str> = directories.flat_map(|list| list.split(':')).collect();
    directories.reverse();
    directories
        .into_iter()
        .filter_map(|directory| Some(holder(mounts, Path::new(directory))?.device))
        .collect()
}

/// The kernel's own arguments, in order; what follows `--` is for init. Quotes join blanks into a value.
fn parse_arguments(command_line: &str) -> Vec<(String, String)> {
    let mut in_quotes = false;
    let words = command_line.trim().split(|c: char| {
        in_quotes ^= c == '"';
        !in_quotes && c.is_ascii_whitespace()
    });
    words
        .take_while(|word| *word != "--")
        .filter_map(|word| word.trim_matches('"').split_once('='))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned()))
        .collect()
}

/// The kernel too takes the last.
fn last_value<'text>(arguments: &'text [(String, String)], name: &str) -> Option<&'text str> {
    arguments.iter().rev().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
}

/// What a path is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    /// The slot whose file system holds it, below an overlay too.
    pub slot: Option<Slot>,
    /// The type of the file system that writes go to, where mountinfo tells.
    pub file_system: Option<String>,
}

impl Home {
    /// Whether a power cut takes everything that is there.
    #[must_use]
    pub fn is_volatile(&self) -> bool {
        matches!(self.file_system.as_deref(), Some("tmpfs" | "ramfs" | "rootfs"))
    }
}

/// What `path` is on, by its device number and `<proc>/self/mountinfo`.
///
/// # Errors
/// When either cannot be read.
pub fn home(proc: &Path, path: &Path, slots: &Slots) -> Result<Home, BootedError> {
    let read = |source| BootedError::Read { path: path.to_owned(), source };
    let path = fs::canonicalize(path).map_err(read)?;
    let number = fs::metadata(&path).map_err(read)?.dev();
    let number = DeviceNumber { major: major(number), minor: minor(number) };
    let mounts = parse_mounts(&read_text(&proc.join("self/mountinfo"))?);
    let devices = SlotDevices::look_up(slots)?;

    let mount = mounts.iter().rev().find(|mount| mount.device == number);
    // Subvolumes of btrfs have numbers that no mount has.
    let mount = mount.or_else(|| holder(&mounts, &path).filter(|mount| mount.file_system == "btrfs"));
    let mount = mount.and_then(|mount| match mount.option("upperdir") {
        Some(upper) if mount.file_system == "overlay" => holder(&mounts, Path::new(upper)),
        _ => Some(mount),
    });
    let numbers = mount.map_or(vec![number], |mount| mount.device_numbers());
    let slot = numbers.into_iter().find_map(|number| devices.by_number(number));
    Ok(Home { slot, file_system: mount.map(|mount| mount.file_system.clone()) })
}

fn by_root_argument(value: &str, disk_links: &Path, devices: &SlotDevices) -> Option<Evidence> {
    let slot = match DeviceNumber::parse(value) {
        Some(number) => devices.by_number(number),
        None => devices.by_path(&root_path(value, disk_links)?),
    };
    Some(Evidence { slot: slot?, fact: Fact::RootArgument(value.to_owned()) })
}

fn root_path(value: &str, disk_links: &Path) -> Option<PathBuf> {
    let link = |directory: &str, name: String| Some(disk_links.join(directory).join(name));
    match value.split_once('=') {
        // The kernel compares it without case; udev writes it in lower case.
        Some(("PARTUUID", id)) => link("by-partuuid", escape_link(&id.to_ascii_lowercase())),
        Some(("PARTLABEL", label)) => link("by-partlabel", escape_link(label)),
        Some(("UUID", id)) => link("by-uuid", escape_link(id)),
        Some(("LABEL", label)) => link("by-label", escape_link(label)),
        _ if value.starts_with('/') => Some(PathBuf::from(value)),
        _ => None,
    }
}

/// As udev names its links: other ASCII than these as `\x` and two hex digits.
fn escape_link(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "#+-.:=@_".contains(c) || !c.is_ascii() {
                c.to_string()
            } else {
                format!("\\x{:02x}", u32::from(c))
            }
        })
        .collect()
}

fn by_slot_argument(
    name: &'static str,
    arguments: &[(String, String)],
) -> Result<Option<Evidence>, BootedError> {
    let Some(value) = last_value(arguments, name) else { return Ok(None) };
    let slot = match value {
        "a" | "A" => Slot::A,
        "b" | "B" => Slot::B,
        _ => {
            return Err(BootedError::BadSlotArgument { name, value: value.chars().take(64).collect() });
        }
    };
    Ok(Some(Evidence { slot, fact: Fact::SlotArgument { name, value: value.to_owned() } }))
}

#[cfg(test)]
mod tests;
