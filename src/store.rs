//! The state file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::ownership::{self, OwnershipError};
use crate::update::record::{RecordError, SIZE_BYTES_MAX};
use crate::update::{Code, Failure, Record};

/// Why the state could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The state directory cannot be made.
    #[error("cannot make the state directory {}", path.display())]
    MakeDirectory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could change what is believed.
    #[error("the state directory {} is not root's alone", path.display())]
    Untrusted {
        /// Which.
        path: PathBuf,
        /// Who could.
        source: OwnershipError,
    },
    /// The state file is there and cannot be read.
    #[error("cannot read the state file {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A damaged state file cannot be moved aside.
    #[error("cannot move the damaged state file {} aside", path.display())]
    Quarantine {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The record cannot be put into bytes.
    #[error("cannot encode the state")]
    Encode(#[source] RecordError),
    /// The state did not provably reach the disk.
    #[error("cannot save the state to {}", path.display())]
    Save {
        /// Which file.
        path: PathBuf,
        /// Whether the file is the one before, for certain.
        is_unchanged: bool,
        /// Why.
        source: io::Error,
    },
    /// The thread that saves it ended.
    #[error("saving the state was interrupted")]
    Interrupted,
}

/// In the state directory.
const FILE: &str = "state";

/// The state directory.
#[derive(Clone, Debug)]
pub struct StateStore {
    directory: PathBuf,
}

/// What was found at start.
#[derive(Debug)]
pub struct Loaded {
    /// The state; at rest, where there was none, a damaged one, or one of a newer version.
    pub record: Record,
    /// Why the file that was there is not believed, or not in all; it was kept as `state.damaged`. The record says
    /// so from now on.
    pub damage: Option<RecordError>,
}

impl StateStore {
    /// Makes the directory if it is missing, durably: a state that is saved in a directory that is lost is lost with
    /// it. Durable is then also what a daemon left that was killed between a rename and its sync: nobody is to be
    /// told of a state that a power cut takes back. Blocks.
    ///
    /// # Errors
    /// When that is not certain, or others could put another state there: it holds the keys that count.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(directory)
            .and_then(|()| sync_if_written(directory.parent().unwrap_or(directory)))
            .and_then(|()| sync_if_written(directory))
            .map_err(|source| StoreError::MakeDirectory { path: directory.to_owned(), source })?;
        ownership::check(directory)
            .map_err(|source| StoreError::Untrusted { path: directory.to_owned(), source })?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Where an interrupted install is remembered.
    #[must_use]
    pub fn checkpoint(&self) -> PathBuf {
        self.directory.join("checkpoint")
    }

    fn file(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// Reads the state; a damaged file is kept aside, and so is one of a newer version, whose safe part is
    /// taken. To be at rest is then safe: an armed or running trial that nobody commits is undone by the boot
    /// loader. Blocks.
    ///
    /// # Errors
    /// When the file is there and cannot be read, or cannot be moved.
    pub fn load(&self) -> Result<Loaded, StoreError> {
        let path = self.file();
        let Some(bytes) = read(&path)? else {
            return Ok(Loaded { record: Record::default(), damage: None });
        };
        match Record::decode(&bytes) {
            Ok(record) => Ok(Loaded { record, damage: None }),
            Err(damage) => {
                let quarantine = |source| StoreError::Quarantine { path: path.clone(), source };
                let aside = self.directory.join("state.damaged");
                // A power cut before the state is saved repeats both: the file is there until another takes its place.
                write_durably(&aside, &bytes).map_err(quarantine)?;
                let record = Record::safe_part(&bytes).unwrap_or_default();
                let message = format!("{damage}; it was moved aside, and what was under way is not known");
                let fault = Some(Failure::new(Code::StateDamaged, message));
                let record = Record { fault, ..record };
                self.save(&record)?;
                Ok(Loaded { record, damage: Some(damage) })
            }
        }
    }

    /// On success the state is on disk, whatever happens next. Blocks.
    ///
    /// # Errors
    /// When that is not certain.
    pub fn save(&self, record: &Record) -> Result<(), StoreError> {
        let bytes = record.encode().map_err(StoreError::Encode)?;
        let path = self.file();
        write_durably(&path, &bytes).map_err(|source| {
            let is_unchanged = read(&path).is_ok_and(|found| found.as_ref() != Some(&bytes));
            StoreError::Save { path, is_unchanged, source }
        })
    }
}

/// The state in `directory` as it is, or why it is not believed; `None` where there is none. Changes nothing. Blocks.
///
/// # Errors
/// When it cannot be read.
pub fn peek(directory: &Path) -> Result<Option<Result<Record, RecordError>>, StoreError> {
    Ok(read(&directory.join(FILE))?.map(|bytes| Record::decode(&bytes)))
}

/// A file that is not there is `None`.
fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let failed = |source| StoreError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    // One byte more than allowed: a file that is too long then fails its length check.
    let limit = u64::try_from(SIZE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Some(bytes))
}

/// Replaces a file so that after a power cut it has the old content or the new, and after success the new.
/// Only its owner may read it. Blocks.
///
/// # Errors
/// When the new content did not provably reach the disk.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    sync(&file)?;
    fs::rename(&temporary, path)?;
    sync_directory(directory)
}

/// Makes what was created, renamed and removed in a directory durable. Blocks.
///
/// # Errors
/// When that is not certain.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    sync(&File::open(directory)?)
}

fn sync(file: &File) -> io::Result<()> {
    // tests/campaign shows that it finds a sync that is missing.
    if cfg!(twinboot_no_sync = "state") { Ok(()) } else { file.sync_all() }
}

/// What cannot be written loses nothing any more: squashfs and erofs have no sync at all, and ext4 refuses it once an
/// error has made it read-only. That nothing can be saved there is told when something is to be.
fn sync_if_written(directory: &Path) -> io::Result<()> {
    match sync_directory(directory) {
        Err(error) if is_never_written(&error) => Ok(()),
        synced => synced,
    }
}

fn is_never_written(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::ReadOnlyFilesystem)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn store() -> (tempfile::TempDir, StateStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = StateStore::open(&directory.path().join("state")).unwrap();
        (directory, store)
    }

    fn record() -> Record {
        Record { desired: Some("fw-1".parse().unwrap()), ..Record::default() }
    }

    #[test]
    fn a_new_device_is_at_rest() {
        let (_directory, store) = store();
        let loaded = store.load().unwrap();
        assert_eq!(loaded.record, Record::default());
        assert!(loaded.damage.is_none());
    }

    #[test]
    fn what_was_saved_is_loaded_and_is_nobody_elses_to_read() {
        let (_directory, store) = store();
        store.save(&Record::default()).unwrap();
        store.save(&record()).unwrap();
        assert_eq!(store.load().unwrap().record, record());
        assert_eq!(fs::metadata(store.file()).unwrap().permissions().mode() & 0o777, 0o600);
    }

    /// As squashfs and erofs, procfs has no sync.
    #[test]
    fn a_parent_that_is_never_written_need_not_be_synced() {
        assert!(is_never_written(&sync_directory(Path::new("/proc")).unwrap_err()));
        assert!(!is_never_written(&sync_directory(Path::new("/no-such-directory")).unwrap_err()));
    }

    #[test]
    fn a_directory_that_others_can_write_is_not_believed() {
        let (directory, store) = store();
        for path in [store.directory.as_path(), directory.path()] {
            let mode = |mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
            mode(0o777);
            assert!(matches!(StateStore::open(&store.directory), Err(StoreError::Untrusted { .. })));
            mode(0o700);
            StateStore::open(&store.directory).unwrap();
        }
    }

    #[test]
    fn a_damaged_file_is_moved_aside_and_kept() {
        let (_directory, store) = store();
        store.save(&record()).unwrap();
        let mut bytes = fs::read(store.file()).unwrap();
        let last = bytes.len() - 3;
        bytes[last] ^= 1;
        write_durably(&store.file(), &bytes).unwrap();
        let loaded = store.load().unwrap();
        assert!(matches!(loaded.damage, Some(RecordError::Checksum { .. })));
        assert_eq!(loaded.record.fault.as_ref().map(|fault| fault.code), Some(Code::StateDamaged));
        assert_eq!(fs::read(store.directory.join("state.damaged")).unwrap(), bytes);
        let again = store.load().unwrap();
        assert!(again.damage.is_none());
        assert_eq!(again.record, loaded.record, "it is still to be told");
    }

    /// Shows F24.
    #[test]
    fn of_a_newer_file_the_safe_part_stays_and_the_whole_is_kept_aside() {
        let (_directory, store) = store();
        let content = record().encode().unwrap();
        let newer = String::from_utf8(content).unwrap().replacen("state 1 ", "state 2 ", 1);
        write_durably(&store.file(), newer.as_bytes()).unwrap();
        let loaded = store.load().unwrap();
        assert!(matches!(loaded.damage, Some(RecordError::Schema { found: 2 })));
        assert!(loaded.record.fault.is_some());
        assert_eq!(Record { fault: None, ..loaded.record.clone() }, record());
        assert_eq!(fs::read_to_string(store.directory.join("state.damaged")).unwrap(), newer);
        let again = store.load().unwrap();
        assert_eq!(again.record, loaded.record);
        assert!(again.damage.is_none());
    }

    #[test]
    fn an_endless_file_is_not_read_to_its_end() {
        let (_directory, store) = store();
        let file = File::create(store.file()).unwrap();
        file.set_len(1 << 40).unwrap();
        assert!(store.load().unwrap().damage.is_some());
    }

    #[test]
    fn a_state_that_cannot_be_saved_is_an_error_and_leaves_the_old_one() {
        let (_directory, store) = store();
        store.save(&record()).unwrap();
        // A directory in the way of the temporary file: true for root as well.
        fs::create_dir(store.file().with_extension("new")).unwrap();
        assert!(matches!(store.save(&Record::default()), Err(StoreError::Save { .. })));
        assert_eq!(store.load().unwrap().record, record());
    }
}
