//! The medium that an image is written to.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};
use nix::sys::stat::{major, minor};

use crate::ownership::{self, OwnershipError};
use crate::update::Code;

/// What the installer writes and compares at a time. 1 MiB is a whole erase block of most eMMC, and large enough
/// that the cost of a request vanishes; a few of these fit the memory limit.
pub const BLOCK_BYTES: usize = 1 << 20;

/// Alignment of direct I/O: a page, and the largest logical sector in use.
pub const ALIGN_BYTES: usize = 4096;

/// Positioned, synced access to a slot.
pub trait SlotDevice: Send + Sync {
    /// Size in bytes.
    fn capacity_bytes(&self) -> u64;

    /// Writes all of `data` at `offset`.
    ///
    /// # Errors
    /// What the medium says; some of the data may have been written.
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// What the medium says, or `UnexpectedEof` past the end.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Returns once everything written is on the medium, and no later read is answered from memory.
    ///
    /// # Errors
    /// What the medium says; then nothing that was written since the last sync is certain.
    fn sync(&self) -> io::Result<()>;
}

/// Why a path cannot be the slot that is written.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// Missing, or not ours to look at.
    #[error("cannot inspect slot device {}", path.display())]
    Inspect {
        /// The slot's path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Others than root could change it, or put another one there.
    #[error("{} is not safe to use", path.display())]
    Untrusted {
        /// The slot's path.
        path: PathBuf,
        /// Who, and what to do.
        source: OwnershipError,
    },
    /// Between a look at it and its use.
    #[error("{} became another device while it was opened", path.display())]
    Replaced {
        /// The slot's path.
        path: PathBuf,
    },
    /// A directory, a character device, ...
    #[error("{} is neither a block device nor a regular file", path.display())]
    NotADevice {
        /// The slot's path.
        path: PathBuf,
    },
    /// The slot that runs.
    #[error("{} is the same device as {}, which this system runs from", path.display(), running.display())]
    Running {
        /// The slot's path.
        path: PathBuf,
        /// The running slot's path.
        running: PathBuf,
    },
    /// A filesystem of it is mounted.
    #[error("{} is mounted at {}: unmount it", path.display(), at)]
    Mounted {
        /// The slot's path.
        path: PathBuf,
        /// A mount point.
        at: String,
    },
    /// Swap space.
    #[error("{} is used as swap", path.display())]
    Swap {
        /// The slot's path.
        path: PathBuf,
    },
    /// Part of a device mapper, RAID or similar device.
    #[error("{} is held by {holder}", path.display())]
    Held {
        /// The slot's path.
        path: PathBuf,
        /// Kernel name of the holder.
        holder: String,
    },
    /// The kernel refuses exclusive use.
    #[error("{} is in use by another program", path.display())]
    InUse {
        /// The slot's path.
        path: PathBuf,
    },
    /// It cannot be opened for writing.
    #[error("cannot open {} for writing", path.display())]
    Open {
        /// The slot's path.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl SlotError {
    /// The code for the twin.
    #[must_use]
    pub fn code(&self) -> Code {
        Code::SlotUnusable
    }
}

/// A block device, or a regular file of fixed length.
#[derive(Debug)]
pub struct BlockDevice {
    /// Bypasses the page cache; absent where the medium cannot.
    direct: Option<File>,
    /// For what is not aligned, and for the sync. Holds the exclusive claim on a block device.
    buffered: File,
    capacity_bytes: u64,
}

impl BlockDevice {
    /// Opens `path` for exclusive use after it was found to be nobody else's. Nothing is created or written.
    ///
    /// `running` is the device of the slot that this system runs from, `proc` where procfs is mounted.
    ///
    /// # Errors
    /// [`SlotError`]: booted, mounted, swap, held, in use, missing, or no device at all.
    pub fn open(path: &Path, running: Option<&Path>, proc: &Path) -> Result<Self, SlotError> {
        let inspect = |source| SlotError::Inspect { path: path.to_owned(), source };
        let node = node(path)?;
        let metadata = node.symlink_metadata().map_err(inspect)?;
        let is_block = metadata.file_type().is_block_device();
        if !is_block && !metadata.is_file() {
            return Err(SlotError::NotADevice { path: path.to_owned() });
        }
        refuse_running(path, &metadata, running)?;
        if is_block {
            refuse_occupied(path, metadata.rdev(), proc)?;
        }
        let open = |flags: OFlag| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags((OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | flags).bits())
                .open(&node)
        };
        // On a block device O_EXCL without O_CREAT claims it against mounts and other claims.
        let exclusive = if is_block { OFlag::O_EXCL } else { OFlag::empty() };
        let mut buffered = open(exclusive).map_err(|source| match source.raw_os_error() {
            Some(errno) if errno == Errno::EBUSY as i32 => SlotError::InUse { path: path.to_owned() },
            _ => SlotError::Open { path: path.to_owned(), source },
        })?;
        let capacity_bytes = buffered.seek(SeekFrom::End(0)).map_err(inspect)?;
        let direct = open(OFlag::O_DIRECT).ok().filter(direct_reads_work);
        for file in std::iter::once(&buffered).chain(&direct) {
            if identity(&file.metadata().map_err(inspect)?) != identity(&metadata) {
                return Err(SlotError::Replaced { path: path.to_owned() });
            }
        }
        Ok(Self { direct, buffered, capacity_bytes })
    }

    /// Opens `path` only to read it: the slot that this system runs from.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open_to_read(path: &Path) -> Result<Self, SlotError> {
        let inspect = |source| SlotError::Inspect { path: path.to_owned(), source };
        let open = |flags: OFlag| {
            OpenOptions::new().read(true).custom_flags((OFlag::O_CLOEXEC | flags).bits()).open(path)
        };
        let mut buffered = open(OFlag::empty()).map_err(inspect)?;
        let capacity_bytes = buffered.seek(SeekFrom::End(0)).map_err(inspect)?;
        let direct = open(OFlag::O_DIRECT).ok().filter(direct_reads_work);
        Ok(Self { direct, buffered, capacity_bytes })
    }

    /// How many of `len` bytes at `address` and `offset` can go past the page cache.
    fn direct_part(&self, address: *const u8, len: usize, offset: u64) -> Option<(&File, usize)> {
        let aligned = address.align_offset(ALIGN_BYTES) == 0 && offset.is_multiple_of(ALIGN_BYTES as u64);
        let whole = len - len % ALIGN_BYTES;
        self.direct.as_ref().filter(|_| aligned && whole > 0).map(|file| (file, whole))
    }
}

/// Some filesystems accept the flag and then refuse each transfer.
fn direct_reads_work(file: &File) -> bool {
    #[repr(align(4096))]
    struct Page([u8; ALIGN_BYTES]);
    file.read_at(&mut Page([0; ALIGN_BYTES]).0, 0).is_ok()
}

impl SlotDevice for BlockDevice {
    fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        // A write past the end of a regular file would make it grow.
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > self.capacity_bytes) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        match self.direct_part(data.as_ptr(), data.len(), offset) {
            Some((file, whole)) => {
                let (aligned, rest) = data.split_at(whole);
                file.write_all_at(aligned, offset)?;
                self.buffered.write_all_at(rest, offset + whole as u64)
            }
            None => self.buffered.write_all_at(data, offset),
        }
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self.direct_part(buffer.as_ptr(), buffer.len(), offset) {
            Some((file, whole)) => {
                let (aligned, rest) = buffer.split_at_mut(whole);
                file.read_exact_at(aligned, offset)?;
                self.buffered.read_exact_at(rest, offset + whole as u64)
            }
            None => self.buffered.read_exact_at(buffer, offset),
        }
    }

    fn sync(&self) -> io::Result<()> {
        // tests/campaign shows that it finds a sync that is missing.
        if cfg!(twinboot_no_sync = "slot") {
            return Ok(());
        }
        // Also flushes the device's own cache, for what went past the page cache.
        self.buffered.sync_all()?;
        // Clean pages only; dirty ones are gone after the sync.
        posix_fadvise(&self.buffered, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        Ok(())
    }
}

/// A buffer that direct I/O accepts, of [`BLOCK_BYTES`].
#[derive(Debug)]
pub struct Block {
    storage: Vec<u8>,
    start: usize,
}

impl Block {
    /// Zeroed.
    #[must_use]
    pub fn new() -> Self {
        let storage = vec![0; BLOCK_BYTES + ALIGN_BYTES];
        let start = storage.as_ptr().align_offset(ALIGN_BYTES).min(ALIGN_BYTES);
        Self { storage, start }
    }

    /// All of it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.storage.split_at(self.start).1.split_at(BLOCK_BYTES).0
    }

    /// All of it.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.storage.split_at_mut(self.start).1.split_at_mut(BLOCK_BYTES).0
    }
}

impl Default for Block {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether the slot at `path`, which does not run, could be written: nothing is opened.
///
/// # Errors
/// As [`BlockDevice::open`], but for what only an exclusive claim finds out.
pub fn check_free(path: &Path, proc: &Path) -> Result<(), SlotError> {
    let inspect = |source| SlotError::Inspect { path: path.to_owned(), source };
    let metadata = node(path)?.symlink_metadata().map_err(inspect)?;
    if metadata.file_type().is_block_device() {
        refuse_occupied(path, metadata.rdev(), proc)
    } else if metadata.is_file() {
        Ok(())
    } else {
        Err(SlotError::NotADevice { path: path.to_owned() })
    }
}

/// Where a slot's path leads.
fn node(path: &Path) -> Result<PathBuf, SlotError> {
    ownership::device(path).map_err(|error| match error {
        OwnershipError::Look { source, .. } => SlotError::Inspect { path: path.to_owned(), source },
        source => SlotError::Untrusted { path: path.to_owned(), source },
    })
}

/// What is the same for two names of one device, or of one file.
fn identity(metadata: &Metadata) -> (bool, u64, u64) {
    if metadata.file_type().is_block_device() {
        (true, metadata.rdev(), 0)
    } else {
        (false, metadata.dev(), metadata.ino())
    }
}

fn refuse_running(path: &Path, metadata: &Metadata, running: Option<&Path>) -> Result<(), SlotError> {
    let Some(running) = running else { return Ok(()) };
    let other =
        running.metadata().map_err(|source| SlotError::Inspect { path: running.to_owned(), source })?;
    if identity(metadata) == identity(&other) {
        return Err(SlotError::Running { path: path.to_owned(), running: running.to_owned() });
    }
    Ok(())
}

fn refuse_occupied(path: &Path, device: u64, proc: &Path) -> Result<(), SlotError> {
    let number = format!("{}:{}", major(device), minor(device));
    if let Some(at) = mount_point(&kernel_text(&proc.join("self/mountinfo"))?, &number) {
        return Err(SlotError::Mounted { path: path.to_owned(), at: at.to_owned() });
    }
    let swaps = match kernel_text(&proc.join("swaps")) {
        // A kernel without swap has no such file.
        Err(SlotError::Inspect { source, .. }) if source.kind() == io::ErrorKind::NotFound => String::new(),
        swaps => swaps?,
    };
    let is_device = |name: &str| Path::new(name).metadata().is_ok_and(|m| m.rdev() == device);
    if swap_names(&swaps).any(is_device) {
        return Err(SlotError::Swap { path: path.to_owned() });
    }
    let holders = Path::new("/sys/dev/block").join(&number).join("holders");
    let holder = holders.read_dir().ok().and_then(|mut entries| entries.next()).and_then(Result::ok);
    match holder {
        Some(entry) => Err(SlotError::Held {
            path: path.to_owned(),
            holder: entry.file_name().to_string_lossy().into_owned(),
        }),
        None => Ok(()),
    }
}

/// What the kernel says of others' mounts and files, whose names need not be text.
fn kernel_text(path: &Path) -> Result<String, SlotError> {
    let inspect = |source| SlotError::Inspect { path: path.to_owned(), source };
    Ok(String::from_utf8_lossy(&std::fs::read(path).map_err(inspect)?).into_owned())
}

/// The devices and files of a `/proc/swaps` (proc_swaps(5)).
pub fn swap_names(swaps: &str) -> impl Iterator<Item = &str> {
    swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next())
}

/// The first mount point of device `number` (`major:minor`) in a `mountinfo` text (proc_pid_mountinfo(5)).
#[must_use]
pub fn mount_point<'a>(mountinfo: &'a str, number: &str) -> Option<&'a str> {
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ');
        (fields.nth(2)? == number).then(|| fields.nth(1)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_found_by_device_number() {
        let text = "22 1 179:2 / / rw,noatime - ext4 /dev/root rw\n\
                    36 22 179:3 / /mnt/old rw - ext4 /dev/mmcblk0p3 rw\n";
        assert_eq!(mount_point(text, "179:3"), Some("/mnt/old"));
        assert_eq!(mount_point(text, "179:4"), None);
        assert_eq!(mount_point("garbage\n\n", "179:4"), None);
    }

    #[test]
    fn names_that_are_no_text_hide_nobody() {
        let proc = tempfile::tempdir().unwrap();
        let put = |name: &str, bytes: &[u8]| {
            let path = proc.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            File::create(path).unwrap().write_all_at(bytes, 0).unwrap();
        };
        // The null device plays the slot: any machine has it.
        let number = std::fs::metadata("/dev/null").unwrap().rdev();
        let look = || refuse_occupied(Path::new("/dev/null"), number, proc.path());
        put("self/mountinfo", b"36 22 8:1 / /mnt/\xff rw - ext4 /dev/sda1 rw\n");
        assert!(look().is_ok(), "there may be no swap");
        put("swaps", b"Filename\tType\n/mnt/\xff file 8 0 -2\n/dev/null partition 8 0 -3\n");
        assert!(matches!(look(), Err(SlotError::Swap { .. })));
        put(
            "self/mountinfo",
            b"36 22 8:1 / /mnt/\xff rw - ext4 /dev/sda1 rw\n37 22 1:3 / /a rw - ext4 x rw\n",
        );
        assert!(matches!(look(), Err(SlotError::Mounted { .. })));
    }

    #[test]
    fn a_block_is_aligned_for_direct_transfers() {
        let block = Block::new();
        assert_eq!(block.bytes().as_ptr().align_offset(ALIGN_BYTES), 0);
        assert_eq!(block.bytes().len(), BLOCK_BYTES);
    }

    #[test]
    fn the_unaligned_end_of_an_odd_file_is_written_and_what_follows_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("slot");
        let file = File::create(&path).unwrap();
        file.write_all_at(&[7; 10_001], 0).unwrap();
        let slot = BlockDevice::open(&path, None, Path::new("/proc")).unwrap();
        let mut block = Block::new();
        let (data, _) = block.bytes_mut().split_at_mut(9_000);
        data.fill(1);
        slot.write_all_at(data, 0).unwrap();
        slot.sync().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert!(bytes.len() == 10_001 && bytes[..9_000] == [1; 9_000] && bytes[9_000..] == [7; 1_001]);
        let full = slot.write_all_at(&[1; 2], 10_000).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    }
}
