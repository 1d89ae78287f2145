//! The bytes of one copy on its medium: a file, a block device, or NOR flash.
//!
//! Erasing flash through its character device takes an ioctl, which takes `unsafe` code; the kernel does the same
//! erase behind `/dev/mtdblockN`, so flash is written there. It is read, and a copy is marked obsolete, through
//! `/dev/mtdN`, which has no cache: a byte can be cleared without an erase. NAND and UBI have no such way: their
//! block devices know no bad blocks, or cannot write.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{MSDOS_SUPER_MAGIC, fstatfs};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::syncfs;

use super::BootEnvError;
use super::config::Location;
use crate::boot::env::{FLAGS_OFFSET_BYTES, FlagScheme, OBSOLETE};

/// Alignment that every medium's `O_DIRECT` takes: the page size of most machines, a multiple of all sector sizes.
const DIRECT_ALIGNMENT_BYTES: usize = 4096;

/// The widest word of NOR flash: a bus of 64 bits (`bankwidth` of Linux's `cfi_probe`).
const FLASH_WORD_BYTES: usize = 8;

/// The least that a disk rewrites when a byte changes.
const SECTOR_BYTES: u64 = 512;

/// What a region lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    File,
    BlockDevice { major: u64, minor: u64 },
    NorFlash { block_device: PathBuf, erase_bytes: u64 },
}

/// Where one copy is, found on this machine.
#[derive(Clone, Debug)]
pub struct Region {
    /// Without symbolic links.
    path: PathBuf,
    kind: Kind,
    /// Tells files and devices apart, whatever their paths.
    identity: (u64, u64),
    offset_bytes: u64,
    size_bytes: usize,
    sysfs: PathBuf,
}

impl Region {
    /// Finds out what `location` is and checks that the copy lies within it.
    ///
    /// # Errors
    /// When it is missing, too short, or of a kind that cannot be written safely.
    pub fn locate(location: &Location, sysfs: &Path) -> Result<Self, BootEnvError> {
        if is_ubi(&location.path) {
            return Err(unsupported(&location.path, "a UBI volume"));
        }
        let failed = |source| BootEnvError::Locate { path: location.path.clone(), source };
        let path = fs::canonicalize(&location.path).map_err(failed)?;
        let metadata = fs::metadata(&path).map_err(failed)?;
        let file_type = metadata.file_type();
        let (major, minor) = (major(metadata.rdev()), minor(metadata.rdev()));

        let kind = if file_type.is_file() {
            Kind::File
        } else if file_type.is_block_device() && major == MTD_BLOCK_MAJOR {
            // The tools would count its flags up, U-Boot takes them for a boolean.
            return Err(unsupported(&path, "the block device of flash"));
        } else if file_type.is_block_device() {
            Kind::BlockDevice { major, minor }
        } else if file_type.is_char_device() {
            flash(&path, sysfs, major, minor)?
        } else {
            return Err(unsupported(&path, "neither a file nor a device"));
        };
        let identity =
            if kind == Kind::File { (metadata.dev(), metadata.ino()) } else { (u64::MAX, metadata.rdev()) };
        let length_bytes = length(&path, &kind, sysfs, major, minor)?;
        let offset_bytes = offset_within(location, length_bytes)?;
        Ok(Self {
            path,
            kind,
            identity,
            offset_bytes,
            size_bytes: location.size_bytes,
            sysfs: sysfs.to_owned(),
        })
    }

    /// How this medium's redundant copies are told apart.
    pub fn flag_scheme(&self) -> FlagScheme {
        match self.kind {
            Kind::File | Kind::BlockDevice { .. } => FlagScheme::Incremental,
            Kind::NorFlash { .. } => FlagScheme::Boolean,
        }
    }

    /// The path without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Size of the copy.
    pub fn size_bytes(&self) -> usize {
        self.size_bytes
    }

    /// Where the copy begins.
    pub fn offset_bytes(&self) -> u64 {
        self.offset_bytes
    }

    /// Major and minor number of the block device that it is on.
    pub fn block_device(&self) -> Option<(u64, u64)> {
        match self.kind {
            Kind::BlockDevice { major, minor } => Some((major, minor)),
            Kind::File | Kind::NorFlash { .. } => None,
        }
    }

    /// A region of another size at the same place, which may reach past the end of the medium.
    pub fn resized(&self, size_bytes: usize) -> Self {
        Self { size_bytes, ..self.clone() }
    }

    /// Whether a write to one, cut short, can harm the other.
    pub fn endangers(&self, other: &Self) -> bool {
        let (one, two) = (self.touched(), other.touched());
        self.identity == other.identity && one.start < two.end && two.start < one.end
    }

    /// What a write of the copy rewrites.
    fn touched(&self) -> Range<u64> {
        let unit = match self.kind {
            Kind::NorFlash { erase_bytes, .. } => erase_bytes.max(1),
            Kind::File | Kind::BlockDevice { .. } => SECTOR_BYTES,
        };
        let end = self.offset_bytes.saturating_add(self.size_bytes as u64);
        (self.offset_bytes / unit * unit)..end.div_ceil(unit).saturating_mul(unit)
    }

    /// The copy as the medium has it. After a sync that failed, the page cache can hold what the medium does not, so
    /// it is passed by where the medium lets it be, and dropped where not.
    ///
    /// # Errors
    /// When the medium cannot be read in full.
    pub fn read(&self) -> Result<Vec<u8>, BootEnvError> {
        match self.read_direct() {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.read_uncached(),
            result => result,
        }
        .map_err(|source| BootEnvError::Read {
            path: self.path.clone(),
            offset_bytes: self.offset_bytes,
            source,
        })
    }

    /// `EINVAL` where the medium does not know `O_DIRECT`: tmpfs, character devices.
    fn read_direct(&self) -> io::Result<Vec<u8>> {
        let file = OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(&self.path)?;
        let alignment = DIRECT_ALIGNMENT_BYTES as u64;
        let start_bytes = self.offset_bytes / alignment * alignment;
        let skipped = usize::try_from(self.offset_bytes - start_bytes).map_err(io::Error::other)?;
        let wanted = skipped + self.size_bytes;
        let window = wanted.next_multiple_of(DIRECT_ALIGNMENT_BYTES);

        let mut memory = vec![0; window + DIRECT_ALIGNMENT_BYTES];
        let padding = memory.as_ptr().align_offset(DIRECT_ALIGNMENT_BYTES);
        let aligned = memory.get_mut(padding..padding + window).ok_or(io::ErrorKind::InvalidInput)?;
        // The window may reach past the end of the medium; the copy does not.
        read_at_least(&file, aligned, start_bytes, wanted)?;
        let copy = aligned.get(skipped..wanted).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(copy.to_vec())
    }

    fn read_uncached(&self) -> io::Result<Vec<u8>> {
        let file = File::open(&self.path)?;
        // Advice: what has no page cache says no, and needs none.
        let _ = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        let mut copy = vec![0; self.size_bytes];
        file.read_exact_at(&mut copy, self.offset_bytes)?;
        Ok(copy)
    }

    /// Writes the copy in place and syncs it. Never makes a file, never shortens or lengthens one.
    ///
    /// # Errors
    /// When any byte did not provably leave for the medium.
    pub fn overwrite(&self, image: &[u8]) -> Result<(), BootEnvError> {
        self.check_writable()?;
        let target = self.written_through();
        let file = open_for_writing(target)?;
        file.write_all_at(image, self.offset_bytes).map_err(|source| BootEnvError::Write {
            path: target.to_owned(),
            offset_bytes: self.offset_bytes,
            source,
        })?;
        self.sync_through(&file)
    }

    /// Returns once the copy is on the medium as it is read.
    ///
    /// # Errors
    /// When that is not certain.
    pub fn sync(&self) -> Result<(), BootEnvError> {
        let path = self.written_through();
        let file = File::open(path).map_err(|source| BootEnvError::Open { path: path.to_owned(), source })?;
        self.sync_through(&file)
    }

    fn sync_through(&self, file: &File) -> Result<(), BootEnvError> {
        // tests/campaign shows that it finds a sync that is missing.
        if cfg!(twinboot_no_sync = "environment") {
            return Ok(());
        }
        file.sync_all()
            .map_err(|source| BootEnvError::Sync { path: self.written_through().to_owned(), source })
    }

    fn written_through(&self) -> &Path {
        match &self.kind {
            Kind::NorFlash { block_device, .. } => block_device,
            Kind::File | Kind::BlockDevice { .. } => &self.path,
        }
    }

    /// Clears the flags of a superseded copy on flash, which takes no erase and no sync. What shares a word with them is
    /// written as it is: the kernel would fill it up with ones, which change nothing on flash, but overwrite what is
    /// there where QEMU emulates it.
    ///
    /// # Errors
    /// When the copy cannot be read or written.
    pub fn mark_obsolete(&self) -> Result<(), BootEnvError> {
        let mut copy = self.read()?;
        if let Some(flags) = copy.get_mut(FLAGS_OFFSET_BYTES) {
            *flags = OBSOLETE;
        }
        copy.truncate(FLASH_WORD_BYTES);
        open_for_writing(&self.path)?.write_all_at(&copy, self.offset_bytes).map_err(|source| {
            BootEnvError::Write { path: self.path.clone(), offset_bytes: self.offset_bytes, source }
        })
    }

    /// Puts a new file in the place of this one, which is all of its file: the only safe write where there is no
    /// second copy.
    ///
    /// # Errors
    /// When this is no such file, or its file system cannot replace it at once.
    pub fn replace(&self, image: &[u8]) -> Result<(), BootEnvError> {
        let metadata = self.check_replaceable()?;
        let mut new = self.path.clone().into_os_string();
        new.push(".twinboot-new");
        let new = PathBuf::from(new);
        write_replacement(&new, image, &metadata)
            .map_err(|source| BootEnvError::WriteReplacement { path: new.clone(), source })?;
        fs::rename(&new, &self.path).map_err(|source| BootEnvError::Rename {
            from: new,
            to: self.path.clone(),
            source,
        })?;
        self.sync_replaced()
    }

    /// Returns once the copy is on the medium where the boot loader looks for it: the file that is all of it may be a
    /// new one, or a process was killed before it could say so.
    ///
    /// # Errors
    /// When that is not certain.
    pub fn sync_replaced(&self) -> Result<(), BootEnvError> {
        if self.kind != Kind::File {
            return self.sync();
        }
        let path = self.path.parent().unwrap_or(Path::new("/"));
        let directory =
            File::open(path).map_err(|source| BootEnvError::Open { path: path.to_owned(), source })?;
        sync_to_its_place(&directory).map_err(|source| BootEnvError::Sync { path: path.to_owned(), source })
    }

    /// Whether [`Self::replace`] could be done; gives what the present file is.
    ///
    /// # Errors
    /// As those of [`Self::replace`].
    pub fn check_replaceable(&self) -> Result<fs::Metadata, BootEnvError> {
        let path = || self.path.clone();
        let metadata =
            fs::metadata(&self.path).map_err(|source| BootEnvError::Locate { path: path(), source })?;
        if self.kind != Kind::File || self.offset_bytes != 0 || metadata.len() != self.size_bytes as u64 {
            return Err(BootEnvError::SingleCopy { path: path() });
        }
        let directory_path = self.path.parent().unwrap_or(Path::new("/"));
        let directory = File::open(directory_path)
            .map_err(|source| BootEnvError::Open { path: directory_path.to_owned(), source })?;
        let file_system = fstatfs(&directory).map_err(|errno| BootEnvError::Locate {
            path: directory_path.to_owned(),
            source: errno.into(),
        })?;
        if file_system.filesystem_type() == MSDOS_SUPER_MAGIC {
            return Err(BootEnvError::SingleCopyOnFat { path: path() });
        }
        self.check_writable()?;
        Ok(metadata)
    }

    /// Whether the kernel lets the copy be written. Its own answer would be `EPERM` or `EROFS`, which sends one looking
    /// in the wrong place.
    ///
    /// # Errors
    /// When it is write-protected.
    pub fn check_writable(&self) -> Result<(), BootEnvError> {
        let directory = match &self.kind {
            Kind::File => {
                let mount = statvfs(&self.path);
                if mount.is_ok_and(|mount| mount.flags().contains(FsFlags::ST_RDONLY)) {
                    return Err(BootEnvError::ReadOnly { path: self.path.clone() });
                }
                return Ok(());
            }
            Kind::BlockDevice { major, minor } => self.sysfs.join(format!("dev/block/{major}:{minor}")),
            // Read-only where the flash is: `read-only;` in the device tree, or the module mtdblock_ro.
            Kind::NorFlash { block_device, .. } => {
                self.sysfs.join("class/block").join(block_device.file_name().unwrap_or_default())
            }
        };
        let is_set = |attribute: &Path| fs::read_to_string(attribute).is_ok_and(|text| text.trim() == "1");
        let force_ro = directory.join("force_ro");
        if is_set(&force_ro) {
            let attribute = fs::canonicalize(&force_ro).unwrap_or(force_ro);
            return Err(BootEnvError::ForceReadOnly { path: self.path.clone(), attribute });
        }
        if is_set(&directory.join("ro")) {
            return Err(BootEnvError::ReadOnly { path: self.path.clone() });
        }
        Ok(())
    }
}

/// Linux: `Documentation/admin-guide/devices.txt`.
const MTD_BLOCK_MAJOR: u64 = 31;
/// Linux: `Documentation/admin-guide/devices.txt`. Minor 2N is `/dev/mtdN`, 2N+1 is read-only.
const MTD_CHARACTER_MAJOR: u64 = 90;

/// `/dev/ubi0_1`, or a volume by its name: `/dev/ubi0:env`, `/dev/mtd3:env`.
fn is_ubi(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.starts_with("/dev/ubi") || (text.starts_with("/dev/mtd") && text.contains(':'))
}

/// `/dev/mtdblockN` of `/dev/mtdN`.
pub fn block_device_of_flash(path: &Path) -> Option<PathBuf> {
    let number: u32 = path.file_name()?.to_str()?.strip_prefix("mtd")?.parse().ok()?;
    Some(path.with_file_name(format!("mtdblock{number}")))
}

fn unsupported(path: &Path, what: &'static str) -> BootEnvError {
    BootEnvError::Unsupported { path: path.to_owned(), what }
}

fn flash(path: &Path, sysfs: &Path, major: u64, minor: u64) -> Result<Kind, BootEnvError> {
    if major != MTD_CHARACTER_MAJOR {
        return Err(unsupported(path, "a character device other than MTD (UBI?)"));
    }
    if minor % 2 == 1 {
        return Err(BootEnvError::ReadOnly { path: path.to_owned() });
    }
    match attribute(sysfs, major, minor, "type")?.as_str() {
        "nor" | "dataflash" => {}
        "nand" | "mlc-nand" => return Err(unsupported(path, "NAND flash, with bad blocks")),
        _ => return Err(unsupported(path, "flash that is neither NOR nor dataflash")),
    }
    let erase_bytes = number_attribute(sysfs, major, minor, "erasesize")?;
    let block_device = path.with_file_name(format!("mtdblock{}", minor / 2));
    let is_there = fs::metadata(&block_device).is_ok_and(|metadata| metadata.file_type().is_block_device());
    if !is_there {
        return Err(BootEnvError::NoMtdBlock { path: path.to_owned(), block_device });
    }
    Ok(Kind::NorFlash { block_device, erase_bytes })
}

fn attribute(sysfs: &Path, major: u64, minor: u64, name: &str) -> Result<String, BootEnvError> {
    let path = sysfs.join(format!("dev/char/{major}:{minor}/{name}"));
    let text = fs::read_to_string(&path).map_err(|source| BootEnvError::Locate { path, source })?;
    Ok(text.trim().to_owned())
}

fn number_attribute(sysfs: &Path, major: u64, minor: u64, name: &str) -> Result<u64, BootEnvError> {
    let text = attribute(sysfs, major, minor, name)?;
    text.parse().map_err(|_| BootEnvError::Locate {
        path: sysfs.join(format!("dev/char/{major}:{minor}/{name}")),
        source: io::ErrorKind::InvalidData.into(),
    })
}

/// A block device has no length in its metadata, but an end to seek to.
fn length(path: &Path, kind: &Kind, sysfs: &Path, major: u64, minor: u64) -> Result<u64, BootEnvError> {
    if matches!(kind, Kind::NorFlash { .. }) {
        return number_attribute(sysfs, major, minor, "size");
    }
    let mut file = File::open(path).map_err(|source| BootEnvError::Open { path: path.to_owned(), source })?;
    io::Seek::seek(&mut file, io::SeekFrom::End(0))
        .map_err(|source| BootEnvError::Locate { path: path.to_owned(), source })
}

fn offset_within(location: &Location, length_bytes: u64) -> Result<u64, BootEnvError> {
    let offset = if location.offset_bytes < 0 {
        length_bytes.checked_sub(location.offset_bytes.unsigned_abs())
    } else {
        Some(location.offset_bytes.unsigned_abs())
    };
    let end = |offset: &u64| offset.checked_add(location.size_bytes as u64);
    offset.filter(|offset| end(offset).is_some_and(|end| end <= length_bytes)).ok_or_else(|| {
        BootEnvError::OutOfRange {
            path: location.path.clone(),
            offset_bytes: location.offset_bytes,
            size_bytes: location.size_bytes,
            length_bytes,
        }
    })
}

fn open_for_writing(path: &Path) -> Result<File, BootEnvError> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .map_err(|source| BootEnvError::Open { path: path.to_owned(), source })
}

fn read_at_least(file: &File, buffer: &mut [u8], start_bytes: u64, wanted: usize) -> io::Result<()> {
    let mut filled = 0;
    while filled < wanted {
        let rest = buffer.get_mut(filled..).ok_or(io::ErrorKind::InvalidInput)?;
        match file.read_at(rest, start_bytes + filled as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// ext4 syncs a rename to its journal, which U-Boot does not read: it would find the old file until the kernel has
/// written the directory itself, half a minute later. `syncfs` does that now, and the second sync, for which nothing
/// is left to write, flushes the medium's own cache.
fn sync_to_its_place(directory: &File) -> io::Result<()> {
    directory.sync_all()?;
    syncfs(directory)?;
    directory.sync_all()
}

/// The new file under its own name, with the mode of the old one and, where that may be, its owner, synced.
fn write_replacement(path: &Path, image: &[u8], old: &fs::Metadata) -> io::Result<()> {
    // What a power cut left; the locks are held, so nobody else writes it now.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(image)?;
    let mut mode = old.mode() & 0o7777;
    match std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid())) {
        // The packaged service may give nothing away; what the old group might do, the new one is not to.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => mode &= 0o7707 | (mode & 0o7) << 3,
        changed => changed?,
    }
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

#[cfg(test)]
impl Region {
    /// A file that plays the character device and the block device of NOR flash.
    pub fn flash_like(path: &Path, offset_bytes: u64, size_bytes: usize, erase_bytes: u64) -> Self {
        Self {
            path: path.to_owned(),
            kind: Kind::NorFlash { block_device: path.to_owned(), erase_bytes },
            identity: (0, 0),
            offset_bytes,
            size_bytes,
            sysfs: PathBuf::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysfs(attributes: &[(&str, &str)]) -> tempfile::TempDir {
        let sysfs = tempfile::tempdir().unwrap();
        for (name, value) in attributes {
            let path = sysfs.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            File::create(path).unwrap().write_all(format!("{value}\n").as_bytes()).unwrap();
        }
        sysfs
    }

    fn disk(sysfs: &Path) -> Region {
        Region {
            path: "/dev/mmcblk0boot1".into(),
            kind: Kind::BlockDevice { major: 179, minor: 16 },
            identity: (0, 0),
            offset_bytes: 0,
            size_bytes: 0x4000,
            sysfs: sysfs.to_owned(),
        }
    }

    /// Shows rauc/rauc#643, #165, meta-rauc-community#33.
    #[test]
    fn a_protected_emmc_boot_partition_is_refused_by_the_name_of_its_attribute() {
        let sys = sysfs(&[("dev/block/179:16/force_ro", "1"), ("dev/block/179:16/ro", "1")]);
        let message = disk(sys.path()).check_writable().unwrap_err().to_string();
        assert!(message.contains("dev/block/179:16/force_ro"), "{message}");

        let sys = sysfs(&[("dev/block/179:16/force_ro", "0"), ("dev/block/179:16/ro", "1")]);
        assert!(matches!(disk(sys.path()).check_writable(), Err(BootEnvError::ReadOnly { .. })));

        let sys = sysfs(&[("dev/block/179:16/force_ro", "0"), ("dev/block/179:16/ro", "0")]);
        disk(sys.path()).check_writable().unwrap();
        disk(sysfs(&[]).path()).check_writable().unwrap();
    }

    /// Shows openwrt/openwrt#4434.
    #[test]
    fn flash_that_the_device_tree_makes_read_only_is_refused_before_it_is_written() {
        let flash = |ro: &str| {
            let sys = sysfs(&[("class/block/mtdblock1/ro", ro)]);
            let path = Path::new("/nowhere/mtdblock1");
            Region { sysfs: sys.path().to_owned(), ..Region::flash_like(path, 0, 0x4000, 0x1_0000) }
                .check_writable()
        };
        assert!(matches!(flash("1"), Err(BootEnvError::ReadOnly { .. })));
        flash("0").unwrap();
    }

    #[test]
    fn flash_is_taken_or_refused_by_its_kind() {
        let path = Path::new("/nowhere/mtd1");
        let classified = |kind: &str, minor: u64| {
            let (name, size) =
                (format!("dev/char/90:{minor}/type"), format!("dev/char/90:{minor}/erasesize"));
            let sys = sysfs(&[(&name, kind), (&size, "65536")]);
            flash(path, sys.path(), MTD_CHARACTER_MAJOR, minor).unwrap_err()
        };
        for nor in ["nor", "dataflash"] {
            let error = classified(nor, 2);
            let expected = Path::new("/nowhere/mtdblock1");
            assert!(
                matches!(&error, BootEnvError::NoMtdBlock { block_device, .. } if block_device == expected)
            );
        }
        for other in ["nand", "mlc-nand", "ubi", "ram"] {
            let message = classified(other, 2).to_string();
            assert!(message.contains("use a file, a partition, or NOR flash"), "{message}");
        }
        assert!(matches!(classified("nor", 3), BootEnvError::ReadOnly { .. }));
        let ubi = flash(path, Path::new("/nowhere"), 240, 0).unwrap_err();
        assert!(matches!(ubi, BootEnvError::Unsupported { .. }));
        for name in ["/dev/ubi0_0", "/dev/ubi0:env", "/dev/mtd3:env"] {
            assert!(is_ubi(Path::new(name)), "{name}");
        }
        assert!(!is_ubi(Path::new("/dev/disk/by-path/platform-fe330000.mmc:part2")));
    }

    #[test]
    fn copies_on_flash_may_not_share_an_erase_block() {
        let path = Path::new("/dev/mtd0");
        let copy = |offset| Region::flash_like(path, offset, 0x4000, 0x1_0000);
        assert!(copy(0).endangers(&copy(0x4000)));
        assert!(copy(0x1_0000).endangers(&copy(0x1_4000)));
        assert!(!copy(0).endangers(&copy(0x1_0000)));
    }
}
