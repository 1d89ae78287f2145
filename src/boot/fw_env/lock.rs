//! The lock files of the environment tools.
//!
//! U-Boot's own tools and libubootenv do not agree on one path, and neither do their versions, so all are held.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use super::BootEnvError;

/// `flock` has no time limit of its own. A holder is done in milliseconds, so this pause is seldom taken.
const PAUSE: Duration = Duration::from_millis(50);

/// All lock files, held; dropping releases them.
pub type Locks = Vec<Flock<File>>;

/// Takes every lock, in the order given, waiting up to `limit` for each.
///
/// # Errors
/// When a lock file can be neither opened nor made, or stays held for too long.
pub fn take(files: &[PathBuf], limit: Duration) -> Result<Locks, BootEnvError> {
    let mut locks = Locks::new();
    for path in files {
        let file = open(path).map_err(|source| BootEnvError::OpenLock { path: path.clone(), source })?;
        // Two names of one file (`/var/lock` is often a link) would wait for each other.
        if !locks.iter().any(|held| is_same_file(held, &file)) {
            locks.push(wait_for(path, file, limit)?);
        }
    }
    Ok(locks)
}

/// Without `O_CREAT` where it exists: in a sticky directory the kernel refuses that for another user's file.
fn open(path: &Path) -> io::Result<File> {
    let no_follow = OFlag::O_NOFOLLOW.bits();
    match OpenOptions::new().read(true).custom_flags(no_follow).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            OpenOptions::new().write(true).create(true).truncate(false).custom_flags(no_follow).open(path)
        }
        opened => opened,
    }
}

fn is_same_file(one: &File, other: &File) -> bool {
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

fn wait_for(path: &Path, mut file: File, limit: Duration) -> Result<Flock<File>, BootEnvError> {
    let mut waited = Duration::ZERO;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((_, Errno::EWOULDBLOCK)) if waited >= limit => {
                return Err(BootEnvError::LockHeld { path: path.to_owned(), limit });
            }
            Err((unlocked, Errno::EWOULDBLOCK | Errno::EINTR)) => file = unlocked,
            Err((_, errno)) => {
                return Err(BootEnvError::TakeLock { path: path.to_owned(), source: errno.into() });
            }
        }
        std::thread::sleep(PAUSE);
        waited += PAUSE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows F11.
    #[test]
    fn a_lock_that_is_held_is_given_up_after_the_limit_and_free_once_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let files = [dir.path().join("one"), dir.path().join("two")];
        let held = take(&files[1..], Duration::ZERO).unwrap();
        let error = take(&files, PAUSE).unwrap_err();
        assert!(matches!(&error, BootEnvError::LockHeld { path, .. } if *path == files[1]), "{error}");
        drop(held);
        assert_eq!(take(&files, Duration::ZERO).unwrap().len(), 2);
    }

    #[test]
    fn two_names_of_one_lock_file_are_one_lock() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("lock");
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        let files = [name, dir.path().join("link/lock")];
        assert_eq!(take(&files, Duration::ZERO).unwrap().len(), 1);
    }

    #[test]
    fn a_lock_file_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing/lock");
        let error = take(std::slice::from_ref(&path), Duration::ZERO).unwrap_err();
        assert!(matches!(error, BootEnvError::OpenLock { path: named, .. } if named == path));
    }
}
