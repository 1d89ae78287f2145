//! The slots: there, apart, big enough, free, and the one that runs known.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

use super::{Finding, Seen};
use crate::boot::booted::{BootedError, agreement};
use crate::boot::fw_env::CopyFound;
use crate::causes::one_line;
use crate::install::slot::check_free;
use crate::update::Slot;

/// sysfs counts in these, whatever the device has.
const SECTOR_BYTES: u64 = 512;

pub(super) fn check(seen: &Seen<'_>) -> Vec<Finding> {
    let devices = [Slot::A, Slot::B].map(|slot| Device::find(seen, slot));
    let mut findings: Vec<Finding> = devices.iter().map(there).collect();
    if let [(_, Ok(a)), (_, Ok(b))] = &devices {
        findings.push(apart(a, b));
        findings.push(size(seen, a, b));
        findings.push(free(seen));
        findings.push(beside_environment(seen, [a, b]));
    }
    findings.push(booted(seen));
    findings.extend(agrees(seen));
    findings
}

/// A slot as this machine has it.
struct Device {
    slot: Slot,
    path: PathBuf,
    is_block: bool,
    /// Device number; of a file, its inode.
    identity: (u64, u64),
    capacity_bytes: u64,
    extent: Option<Extent>,
    read_only: bool,
}

/// Where a block device, or a part of it, lies on its disk.
pub(super) struct Extent {
    /// The disk's directory in sysfs.
    disk: PathBuf,
    pub(super) start_bytes: u64,
    end_bytes: u64,
}

impl Extent {
    fn of(sysfs: &Path, (major, minor): (u64, u64)) -> Option<Self> {
        Self::at(&fs::canonicalize(sysfs.join(format!("dev/block/{major}:{minor}"))).ok()?)
    }

    /// That of a copy of the environment, which may be within a partition.
    pub(super) fn of_copy(sysfs: &Path, copy: &CopyFound) -> Option<Self> {
        let device = Self::of(sysfs, copy.block_device?)?;
        let start_bytes = device.start_bytes + copy.offset_bytes;
        Some(Self { start_bytes, end_bytes: start_bytes + copy.size_bytes as u64, ..device })
    }

    /// A partition is a directory in that of its disk.
    fn at(directory: &Path) -> Option<Self> {
        let bytes = |name| Some(number(&directory.join(name))? * SECTOR_BYTES);
        let size_bytes = bytes("size")?;
        let (disk, start_bytes) = if directory.join("partition").exists() {
            (directory.parent()?.to_owned(), bytes("start")?)
        } else {
            (directory.to_owned(), 0)
        };
        Some(Self { disk, start_bytes, end_bytes: start_bytes + size_bytes })
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.disk == other.disk && self.start_bytes < other.end_bytes && other.start_bytes < self.end_bytes
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl Device {
    fn find(seen: &Seen<'_>, slot: Slot) -> (Slot, Result<Self, String>) {
        let path = seen.config.slots.device(slot);
        let found = Self::look(seen.sysfs, slot, path);
        (slot, found.map_err(|error| format!("slot {slot}: {}: {error}", path.display())))
    }

    fn look(sysfs: &Path, slot: Slot, path: &Path) -> io::Result<Self> {
        let path = fs::canonicalize(path)?;
        let metadata = fs::metadata(&path)?;
        let is_block = metadata.file_type().is_block_device();
        if !is_block && !metadata.is_file() {
            return Err(io::Error::other("neither a block device nor a file"));
        }
        let capacity_bytes = File::open(&path)?.seek(SeekFrom::End(0))?;
        let numbers = (major(metadata.rdev()), minor(metadata.rdev()));
        let attribute = sysfs.join(format!("dev/block/{}:{}/ro", numbers.0, numbers.1));
        Ok(Self {
            slot,
            is_block,
            identity: if is_block { numbers } else { (metadata.dev(), metadata.ino()) },
            capacity_bytes,
            extent: if is_block { Extent::of(sysfs, numbers) } else { None },
            read_only: is_block && number(&attribute) == Some(1),
            path,
        })
    }
}

fn there((slot, device): &(Slot, Result<Device, String>)) -> Finding {
    let check = if *slot == Slot::A { "slots.a" } else { "slots.b" };
    match device {
        Err(why) => Finding::fault(check, why, "see `[[slot]]`, and the names in /dev/disk/by-partlabel"),
        Ok(device) if device.read_only => Finding::fault(
            check,
            format!("slot {slot}: {} is read-only", device.path.display()),
            "`blockdev --setrw`, and find out who made it read-only",
        ),
        Ok(device) => {
            let kind = if device.is_block { "" } else { ", a file" };
            let evidence =
                format!("slot {slot}: {}{kind}, {} MiB", device.path.display(), device.capacity_bytes >> 20);
            Finding::ok(check, evidence)
        }
    }
}

fn apart(a: &Device, b: &Device) -> Finding {
    const CHECK: &str = "slots.distinct";
    const ADVICE: &str = "each slot is a partition of its own";
    let overlap = Option::zip(a.extent.as_ref(), b.extent.as_ref()).is_some_and(|(a, b)| a.overlaps(b));
    let pair = format!("{} and {}", a.path.display(), b.path.display());
    if a.is_block == b.is_block && a.identity == b.identity {
        Finding::fault(CHECK, format!("{pair} are one device"), ADVICE)
    } else if overlap {
        Finding::fault(CHECK, format!("{pair} overlap on their disk"), ADVICE)
    } else {
        Finding::ok(CHECK, format!("{pair} are apart"))
    }
}

/// What runs must fit into the other slot; and an image for one should fit both.
fn size(seen: &Seen<'_>, a: &Device, b: &Device) -> Finding {
    const CHECK: &str = "slots.size";
    const ADVICE: &str =
        "an update cannot change the partition table: give both the same size at the factory";
    if let Ok(booted) = &seen.booted {
        let (runs, other) = if booted.slot == Slot::A { (a, b) } else { (b, a) };
        if let Some(needed) = file_system_bytes(&runs.path).filter(|needed| *needed > other.capacity_bytes) {
            let evidence = format!(
                "the file system that runs has {needed} bytes, slot {} has {}",
                other.slot, other.capacity_bytes
            );
            return Finding::fault(CHECK, evidence, ADVICE);
        }
    }
    if a.capacity_bytes == b.capacity_bytes {
        return Finding::ok(CHECK, format!("both have {} bytes", a.capacity_bytes));
    }
    let evidence = format!("slot a has {} bytes, slot b has {}", a.capacity_bytes, b.capacity_bytes);
    Finding::warning(CHECK, evidence, ADVICE)
}

/// By the superblock of ext2/3/4 or squashfs; `None` for any other.
fn file_system_bytes(path: &Path) -> Option<u64> {
    let mut head = [0; 2048];
    File::open(path).ok()?.read_exact(&mut head).ok()?;
    let field = |at: usize, length: usize| {
        let bytes = head.get(at..at + length)?.iter().rev();
        Some(bytes.fold(0_u64, |number, byte| number << 8 | u64::from(*byte)))
    };
    if head.starts_with(b"hsqs") {
        return field(40, 8);
    }
    let is_ext = field(1024 + 56, 2)? == 0xEF53;
    is_ext.then(|| {
        field(1024 + 4, 4)?.checked_mul(1024_u64.checked_shl(u32::try_from(field(1024 + 24, 4)?).ok()?)?)
    })?
}

/// The one that an update would write.
fn free(seen: &Seen<'_>) -> Finding {
    const CHECK: &str = "slots.free";
    let Ok(booted) = &seen.booted else {
        return Finding::warning(
            CHECK,
            "which slot an update would write is not known",
            "see `slots.booted`",
        );
    };
    let target = booted.slot.other();
    match check_free(seen.config.slots.device(target), &seen.config.system.proc) {
        Ok(()) => Finding::ok(CHECK, format!("slot {target} is not mounted, no swap, and held by nobody")),
        Err(error) => Finding::fault(CHECK, one_line(&error), "an update would be refused; see /etc/fstab"),
    }
}

/// A classic: the environment in the raw area, and a partition that begins before its end.
fn beside_environment(seen: &Seen<'_>, slots: [&Device; 2]) -> Finding {
    const CHECK: &str = "slots.environment";
    const ADVICE: &str = "move the partition, or the environment: one destroys the other";
    let Ok(inspection) = &seen.environment else {
        return Finding::warning(
            CHECK,
            "where the environment lies is not known",
            "see `environment.location`",
        );
    };
    let mut partition = None;
    for copy in &inspection.copies {
        let Some(extent) = Extent::of_copy(seen.sysfs, copy) else { continue };
        let is_disk = extent.start_bytes == copy.offset_bytes;
        let at = format!("the copy at {:#x} of {}", copy.offset_bytes, copy.path.display());
        if let Some(slot) =
            slots.iter().find(|slot| slot.extent.as_ref().is_some_and(|slot| slot.overlaps(&extent)))
        {
            return Finding::fault(CHECK, format!("{at} lies in slot {}", slot.slot), ADVICE);
        }
        let inside = is_disk.then(|| partition_over(&extent)).flatten();
        partition = partition.or(inside.map(|name| format!("{at} lies in the partition {name}")));
    }
    match partition {
        Some(evidence) => {
            Finding::warning(CHECK, evidence, "right only if that partition is for nothing else")
        }
        None => Finding::ok(CHECK, "no copy of the environment lies in a slot"),
    }
}

/// A partition of the same disk that covers a part of it.
fn partition_over(extent: &Extent) -> Option<String> {
    let entries = fs::read_dir(&extent.disk).ok()?.flatten();
    let mut partitions = entries.map(|entry| entry.path()).filter(|path| path.join("partition").exists());
    let found = partitions.find(|path| Extent::at(path).is_some_and(|other| other.overlaps(extent)))?;
    Some(found.file_name()?.to_string_lossy().into_owned())
}

fn booted(seen: &Seen<'_>) -> Finding {
    const CHECK: &str = "slots.booted";
    match &seen.booted {
        Ok(evidence) => Finding::ok(CHECK, evidence.to_string()),
        Err(error @ BootedError::NeitherSlot { .. }) => Finding::fault(
            CHECK,
            error.to_string(),
            "boot from a slot, or let the boot script pass `twinboot.slot=a` or `b`",
        ),
        Err(error) => {
            Finding::fault(CHECK, one_line(error), "the daemon does not start before that is settled")
        }
    }
}

fn agrees(seen: &Seen<'_>) -> Option<Finding> {
    const CHECK: &str = "slots.agreement";
    let booted = seen.booted.as_ref().ok()?;
    let variables = seen.environment.as_ref().ok()?.variables()?;
    let view = seen.config.boot.scheme.view(&variables).ok()?;
    Some(match agreement(&view, booted) {
        Ok(()) => Finding::ok(CHECK, format!("slot {} runs, and the environment agrees", booted.slot)),
        Err(error) => {
            let advice = "no update is taken; compare `fw_printenv` with `printenv` at U-Boot's prompt";
            Finding::fault(CHECK, error.to_string(), advice)
        }
    })
}
