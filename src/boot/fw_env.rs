//! The U-Boot environment on its medium.
//!
//! A write goes to the copy that the boot loader would not take, so a power cut at any byte leaves the other one.
//! It counts as done when it was synced, read back from the medium, and is the copy that the boot loader takes.

pub mod config;
mod inspect;
mod lock;
mod medium;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::slice;
use std::time::Duration;

pub use self::config::{ConfigError, FwEnvConfig, Location};
pub use self::inspect::{CopyFound, Inspection};
use self::medium::Region;
use super::env::{ByteOrder, CopyIndex, Environment, FlagScheme, GoodCopy, Layout, PatchError, select};
use super::{BootEnv, EnvPatch, Variables, Written};
use crate::ownership;

/// A `fw_env.config` is some lines; the limit bounds memory where a wrong path is configured.
const MAX_CONFIG_BYTES: u64 = 64 << 10;

/// How long another tool may hold the lock. `fw_setenv` holds it for 0.1 s on a slow board; a boot script that
/// wraps it may take seconds.
const LOCK_LIMIT: Duration = Duration::from_secs(10);

/// Why an environment could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootEnvError {
    /// `fw_env.config` itself.
    #[error("cannot read {}", path.display())]
    ReadConfig {
        /// `boot.environment`.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its contents.
    #[error("{} does not say where the environment is", path.display())]
    Config {
        /// `boot.environment`.
        path: PathBuf,
        /// The line, and what is wrong there.
        source: ConfigError,
    },
    /// The lock's directory is missing, for one.
    #[error("cannot open the lock file {}", path.display())]
    OpenLock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// `flock` failed.
    #[error("cannot lock {}", path.display())]
    TakeLock {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another program holds it.
    #[error("{} is held by another program for more than {limit:?}; `fuser -v` tells by which", path.display())]
    LockHeld {
        /// The lock file.
        path: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// The device or file of a copy is missing, or what it is cannot be found out.
    #[error("cannot find out what {} is", path.display())]
    Locate {
        /// The device, the file, or an attribute of it in sysfs.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A medium that cannot be written safely.
    #[error(
        "{} is {what}, to which the environment cannot be written safely; \
         use a file, a partition, or NOR flash by its `/dev/mtdN`",
        path.display()
    )]
    Unsupported {
        /// The device.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Flash is written through its block device.
    #[error(
        "{} is written through {}, which is missing; the kernel needs CONFIG_MTD_BLOCK (module mtdblock)",
        path.display(), block_device.display()
    )]
    NoMtdBlock {
        /// The character device.
        path: PathBuf,
        /// The block device of the same flash.
        block_device: PathBuf,
    },
    /// `fw_env.config` points past the end.
    #[error("a copy of {size_bytes:#x} bytes at {offset_bytes:#x} is not within {}, which has {length_bytes:#x}", path.display())]
    OutOfRange {
        /// The device or file.
        path: PathBuf,
        /// As configured: from the end where negative.
        offset_bytes: i64,
        /// Of the copy.
        size_bytes: usize,
        /// Of the device or file.
        length_bytes: u64,
    },
    /// Both copies would go in one cut.
    #[error("the two copies overlap, or share a sector or an erase block, on {}", path.display())]
    CopiesTooClose {
        /// The device or file.
        path: PathBuf,
    },
    /// The flags of the two copies would mean different things.
    #[error("one copy is on flash and the other is not: {} and {}", first.display(), second.display())]
    MixedMedia {
        /// Of the first copy.
        first: PathBuf,
        /// Of the second copy.
        second: PathBuf,
    },
    /// The device or file cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The device or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The copy cannot be read from the medium.
    #[error("cannot read {} at {offset_bytes:#x}", path.display())]
    Read {
        /// The device or file.
        path: PathBuf,
        /// Where the copy begins.
        offset_bytes: u64,
        /// Why.
        source: io::Error,
    },
    /// No copy has a good checksum: the boot loader runs on its built-in environment, and nothing is written.
    #[error(
        "no copy of the environment has a good checksum ({}); nothing was written. The size in fw_env.config must be \
         U-Boot's CONFIG_ENV_SIZE, with two lines exactly where U-Boot keeps two copies; if it is, `saveenv` in U-Boot \
         makes a good one",
        first.display()
    )]
    NoGoodCopy {
        /// Of the only or first copy.
        first: PathBuf,
    },
    /// The change itself is refused; nothing was written.
    #[error("the change to the environment cannot be stored; nothing was written")]
    Patch {
        /// Why.
        #[from]
        source: PatchError,
    },
    /// An eMMC boot partition that the kernel protects.
    #[error(
        "{} is an eMMC boot partition that the kernel write-protects; \
         write 0 to {} before, for example by a udev rule", path.display(), attribute.display()
    )]
    ForceReadOnly {
        /// The block device.
        path: PathBuf,
        /// `force_ro` of that device.
        attribute: PathBuf,
    },
    /// The kernel says it is read-only.
    #[error("{} is read-only", path.display())]
    ReadOnly {
        /// The device.
        path: PathBuf,
    },
    /// One copy only, and not a file that could be replaced.
    #[error(
        "the only copy of the environment, in {}, cannot be written safely: a power cut would lose it. \
         Configure a redundant environment (CONFIG_ENV_REDUNDANT in U-Boot, two lines in fw_env.config)",
        path.display()
    )]
    SingleCopy {
        /// The device or file.
        path: PathBuf,
    },
    /// FAT has no journal: a cut in a rename can lose both names.
    #[error(
        "the only copy of the environment, {}, is on a FAT file system, which cannot replace a file safely. \
         Configure a redundant environment (CONFIG_ENV_REDUNDANT in U-Boot, two lines in fw_env.config)",
        path.display()
    )]
    SingleCopyOnFat {
        /// The file.
        path: PathBuf,
    },
    /// The copy, or its flags, did not go out.
    #[error("cannot write {} at {offset_bytes:#x}", path.display())]
    Write {
        /// The device or file.
        path: PathBuf,
        /// Where.
        offset_bytes: u64,
        /// Why.
        source: io::Error,
    },
    /// What was written may be lost.
    #[error("cannot sync {}", path.display())]
    Sync {
        /// The device, file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file that is to replace a single copy.
    #[error("cannot write {}", path.display())]
    WriteReplacement {
        /// The new file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The replacement itself.
    #[error("cannot rename {} to {}", from.display(), to.display())]
    Rename {
        /// The new file.
        from: PathBuf,
        /// The environment.
        to: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The medium lies, or another program wrote without the locks.
    #[error("{} does not hold what was written to it and synced", path.display())]
    ReadBackDiffers {
        /// The device or file.
        path: PathBuf,
    },
    /// The boot loader would still take the old copy.
    #[error("the new copy in {} is good, but the boot loader would not take it", path.display())]
    NotTaken {
        /// The device or file.
        path: PathBuf,
    },
}

/// The environment that a `fw_env.config` describes. Devices are looked for at each use, and nothing is kept between
/// two: the boot loader writes too.
#[derive(Debug)]
pub struct UbootEnv {
    config: FwEnvConfig,
    lock_files: Vec<PathBuf>,
    lock_limit: Duration,
    sysfs: PathBuf,
}

impl UbootEnv {
    /// Reads `fw_env.config`, and nothing else yet.
    ///
    /// # Errors
    /// When the file cannot be read, or does not say where the environment is.
    pub fn new(config: &Path, lock_files: &[PathBuf]) -> Result<Self, BootEnvError> {
        let text = read_config(config)
            .map_err(|source| BootEnvError::ReadConfig { path: config.to_owned(), source })?;
        let parsed = config::parse(&text)
            .map_err(|source| BootEnvError::Config { path: config.to_owned(), source })?;
        Ok(Self {
            config: parsed,
            lock_files: lock_files.to_vec(),
            lock_limit: LOCK_LIMIT,
            sysfs: PathBuf::from("/sys"),
        })
    }

    /// The devices, or files, that the copies are on, as configured and once each; of flash also the block device that
    /// it is written through.
    #[must_use]
    pub fn paths(&self) -> Vec<PathBuf> {
        let locations = match &self.config {
            FwEnvConfig::Single(only) => slice::from_ref(only),
            FwEnvConfig::Redundant(both) => both.as_slice(),
        };
        let mut paths = Vec::new();
        for location in locations {
            // Flash by its name is a link to `/dev/mtdN`.
            let node = fs::canonicalize(&location.path).unwrap_or_else(|_| location.path.clone());
            for path in [Some(location.path.clone()), medium::block_device_of_flash(&node)] {
                paths.extend(path.filter(|path| !paths.contains(path)));
            }
        }
        paths
    }

    /// What of the file system or of devices is written: the only copy, in a file, is replaced by another one beside it.
    #[must_use]
    pub fn written_paths(&self) -> Vec<PathBuf> {
        let paths = self.paths();
        match paths.as_slice() {
            [only] if !only.starts_with("/dev") => {
                let file = fs::canonicalize(only).unwrap_or_else(|_| only.clone());
                file.parent().map(Path::to_owned).into_iter().collect()
            }
            _ => paths,
        }
    }

    /// Writes what the boot loader takes over the other copy too, which may be damaged or out of date.
    ///
    /// # Errors
    /// As those of [`BootEnv::write`]; where no copy is good nothing is written.
    pub fn renew_other_copy(&self) -> Result<(), BootEnvError> {
        let _locks = lock::take(&self.lock_files, self.lock_limit)?;
        let storage = self.storage()?;
        let good = storage.load()?;
        storage.put(&good.environment, &good)
    }

    fn storage(&self) -> Result<Storage, BootEnvError> {
        match &self.config {
            FwEnvConfig::Single(only) => Region::locate(only, &self.sysfs).map(Storage::Single),
            FwEnvConfig::Redundant([first, second]) => Storage::redundant([
                Region::locate(first, &self.sysfs)?,
                Region::locate(second, &self.sysfs)?,
            ]),
        }
    }
}

fn read_config(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    ownership::open(path)?.take(MAX_CONFIG_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

impl BootEnv for UbootEnv {
    fn read(&mut self) -> Result<Variables, BootEnvError> {
        let _locks = lock::take(&self.lock_files, self.lock_limit)?;
        Ok(self.storage()?.load()?.environment.variables())
    }

    fn write(&mut self, patch: &EnvPatch) -> Result<Written, BootEnvError> {
        let _locks = lock::take(&self.lock_files, self.lock_limit)?;
        self.storage()?.write(patch)
    }
}

/// Where the copies are, found on this machine.
enum Storage {
    Single(Region),
    Redundant([Region; 2]),
}

/// What the boot loader would take.
struct Loaded {
    environment: Environment,
    flags: u8,
    taken: CopyIndex,
    /// Whether there is a second copy, and its checksum is wrong or it cannot be read.
    other_is_bad: bool,
    /// Whether it cannot be read: it may have been the newer one.
    other_is_unreadable: bool,
}

impl Storage {
    fn redundant(copies: [Region; 2]) -> Result<Self, BootEnvError> {
        let [first, second] = &copies;
        if first.flag_scheme() != second.flag_scheme() {
            let (first, second) = (first.path().to_owned(), second.path().to_owned());
            return Err(BootEnvError::MixedMedia { first, second });
        }
        if first.endangers(second) {
            return Err(BootEnvError::CopiesTooClose { path: first.path().to_owned() });
        }
        Ok(Self::Redundant(copies))
    }

    fn first(&self) -> &Region {
        match self {
            Self::Single(only) | Self::Redundant([only, _]) => only,
        }
    }

    fn copies(&self) -> &[Region] {
        match self {
            Self::Single(only) => slice::from_ref(only),
            Self::Redundant(both) => both,
        }
    }

    fn flag_scheme(&self) -> FlagScheme {
        self.first().flag_scheme()
    }

    fn layout(&self) -> Layout {
        Layout {
            size_bytes: self.first().size_bytes(),
            redundant: matches!(self, Self::Redundant(_)),
            byte_order: ByteOrder::NATIVE,
        }
    }

    /// The bytes of each copy. One of two that cannot be read has none, and is bad: the boot loader goes on with the
    /// other, and a sector that a power cut tore can be read again once it was written.
    fn read(&self) -> Result<[Vec<u8>; 2], BootEnvError> {
        match self {
            Self::Single(only) => Ok([only.read()?, Vec::new()]),
            Self::Redundant(both) => match both.each_ref().map(Region::read) {
                [Err(error), Err(_)] => Err(error),
                either => Ok(either.map(Result::unwrap_or_default)),
            },
        }
    }

    fn load(&self) -> Result<Loaded, BootEnvError> {
        let bytes = self.read()?;
        let layout = self.layout();
        let good = bytes.each_ref().map(|bytes| layout.decode(bytes));
        let taken = select(self.flag_scheme(), good.map(|copy| copy.map(|copy| copy.flags)));
        let found = taken.and_then(|taken| Some((taken, (*taken.of(&good))?)));
        let (taken, GoodCopy { flags, data }) =
            found.ok_or_else(|| BootEnvError::NoGoodCopy { first: self.first().path().to_owned() })?;
        Ok(Loaded {
            environment: Environment::parse(data),
            flags,
            taken,
            other_is_bad: layout.redundant && taken.other().of(&good).is_none(),
            other_is_unreadable: layout.redundant && taken.other().of(&bytes).is_empty(),
        })
    }

    fn write(&self, patch: &EnvPatch) -> Result<Written, BootEnvError> {
        let old = self.load()?;
        let new = old.environment.patched(patch, self.layout().data_bytes())?;
        if new == old.environment && !old.other_is_unreadable {
            // A process that was killed before it could sync may have written it.
            self.sync(old.taken)?;
            return Ok(Written::Unchanged { damaged: old.other_is_bad });
        }
        self.put(&new, &old)?;
        Ok(Written::Changed { repaired: old.other_is_bad })
    }

    fn sync(&self, taken: CopyIndex) -> Result<(), BootEnvError> {
        match self {
            Self::Single(only) => only.sync_replaced(),
            Self::Redundant(copies) => taken.of(copies).sync(),
        }
    }

    /// Writes `environment` in the place of `old`, or beside it.
    fn put(&self, environment: &Environment, old: &Loaded) -> Result<(), BootEnvError> {
        let flags = self.flag_scheme().successor(old.flags);
        let image = self.layout().encode(environment, flags).map_err(PatchError::from)?;
        self.store(&image, old.taken)
    }

    /// Writes `image` over the copy that was not `taken`, and sees to it that the boot loader takes that one.
    fn store(&self, image: &[u8], taken: CopyIndex) -> Result<(), BootEnvError> {
        match self {
            Self::Single(only) => {
                only.replace(image)?;
                check_read_back(only, image)
            }
            Self::Redundant(copies) => {
                let target = taken.other().of(copies);
                target.overwrite(image)?;
                check_read_back(target, image)?;
                if self.flag_scheme() == FlagScheme::Boolean {
                    taken.of(copies).mark_obsolete()?;
                }
                if self.load()?.taken == taken {
                    return Err(BootEnvError::NotTaken { path: target.path().to_owned() });
                }
                Ok(())
            }
        }
    }
}

fn check_read_back(region: &Region, image: &[u8]) -> Result<(), BootEnvError> {
    if region.read()? != image {
        return Err(BootEnvError::ReadBackDiffers { path: region.path().to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
