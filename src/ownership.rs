//! Who else could change a file: what this program believes, runs or overwrites must be root's alone.
//!
//! A file is as safe as the way to it. The kernel is asked for each directory and each symbolic link on that way, and
//! for the file once it is open: between two looks nobody but root can put another one there.

use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::OFlag;
use nix::unistd::Uid;

/// Why a file is not trusted.
#[derive(Debug, thiserror::Error)]
pub enum OwnershipError {
    /// It, or what leads to it, is missing or out of sight.
    #[error("cannot look at {}", path.display())]
    Look {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another user's: he can change it whatever its mode is.
    #[error("{} belongs to user {uid}, who could change it: `chown root {}`", path.display(), path.display())]
    Owner {
        /// The file, or a directory or link on the way to it.
        path: PathBuf,
        /// Whose.
        uid: u32,
    },
    /// Others may write.
    #[error("{} has mode {mode:o}, so that others could change it: `chmod go-w {}`", path.display(), path.display())]
    Writable {
        /// The file, or a directory on the way to it.
        path: PathBuf,
        /// The permission bits.
        mode: u32,
    },
    /// As the kernel's own limit.
    #[error("{} leads through more than {LINKS_MAX} symbolic links", path.display())]
    Links {
        /// As asked for.
        path: PathBuf,
    },
}

/// Linux follows no more either.
const LINKS_MAX: usize = 40;

/// Opens a file to read that nobody but root could change. This process's own user counts as root, since it could
/// do anything here itself.
///
/// # Errors
/// What the system says, or an [`OwnershipError`] inside.
pub fn open(path: &Path) -> io::Result<File> {
    open_judged(path, judge)
}

/// The same where others may still write to the file itself: its mode is to be mended.
///
/// # Errors
/// As those of [`open`].
pub fn open_own(path: &Path) -> io::Result<File> {
    open_judged(path, judge_owner)
}

fn open_judged(path: &Path, judge: fn(&Path, &Metadata) -> Result<(), OwnershipError>) -> io::Result<File> {
    let end = way(path).map_err(into_io)?;
    // The end of the way is no link; and a pipe in its place must not keep us waiting.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(&end)?;
    judge(&end, &file.metadata()?).map_err(into_io)?;
    Ok(file)
}

/// Whether nobody but root could change what is at `path`: a file, or a directory.
///
/// # Errors
/// Who could.
pub fn check(path: &Path) -> Result<(), OwnershipError> {
    let end = way(path)?;
    judge(&end, &look(&end)?)
}

/// Where a device is, or a file in its place. Its group may write: for disks there is one.
///
/// # Errors
/// Who else could change it, or put another one there.
pub fn device(path: &Path) -> Result<PathBuf, OwnershipError> {
    let end = way(path)?;
    judge_mode(&end, &look(&end)?, 0o002)?;
    Ok(end)
}

/// Where `path` leads, over directories and links that nobody but root could change. What is there may still be
/// anybody's.
///
/// # Errors
/// Who could change the way, or where it breaks off.
fn way(path: &Path) -> Result<PathBuf, OwnershipError> {
    let whole =
        std::path::absolute(path).map_err(|source| OwnershipError::Look { path: path.to_owned(), source })?;
    let mut at = PathBuf::from("/");
    judge(&at, &look(&at)?)?;
    let (mut left, mut links) = (steps(&whole), 0);
    while let Some(name) = left.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        at.push(name);
        let metadata = look(&at)?;
        if metadata.is_symlink() {
            links += 1;
            if links > LINKS_MAX {
                return Err(OwnershipError::Links { path: path.to_owned() });
            }
            judge_owner(&at, &metadata)?;
            let target =
                at.read_link().map_err(|source| OwnershipError::Look { path: at.clone(), source })?;
            at =
                if target.is_absolute() { PathBuf::from("/") } else { at.parent().unwrap_or(&at).to_owned() };
            left.extend(steps(&target));
        } else if metadata.is_dir() {
            judge(&at, &metadata)?;
        }
    }
    Ok(at)
}

/// The names in a path, the last first.
fn steps(path: &Path) -> Vec<OsString> {
    let names = path.components().rev().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    });
    names.collect()
}

fn look(path: &Path) -> Result<Metadata, OwnershipError> {
    path.symlink_metadata().map_err(|source| OwnershipError::Look { path: path.to_owned(), source })
}

fn judge(path: &Path, metadata: &Metadata) -> Result<(), OwnershipError> {
    // An ordinary user's group is mostly his own.
    judge_mode(path, metadata, if metadata.uid() == 0 { 0o022 } else { 0o002 })
}

fn judge_mode(path: &Path, metadata: &Metadata, others: u32) -> Result<(), OwnershipError> {
    judge_owner(path, metadata)?;
    // In a sticky directory, as /tmp is, nobody replaces what is another's.
    let is_sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
    if metadata.mode() & others == 0 || is_sticky {
        return Ok(());
    }
    Err(OwnershipError::Writable { path: path.to_owned(), mode: metadata.mode() & 0o7777 })
}

fn judge_owner(path: &Path, metadata: &Metadata) -> Result<(), OwnershipError> {
    let owner = Uid::from_raw(metadata.uid());
    if owner.is_root() || owner == Uid::effective() {
        Ok(())
    } else {
        Err(OwnershipError::Owner { path: path.to_owned(), uid: owner.as_raw() })
    }
}

fn into_io(error: OwnershipError) -> io::Error {
    match error {
        OwnershipError::Look { source, .. } => source,
        untrusted => io::Error::other(untrusted),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    /// A file two directories deep.
    fn nest() -> (tempfile::TempDir, PathBuf) {
        let nest = tempfile::tempdir().unwrap();
        let file = nest.path().join("a/b/file");
        fs::create_dir_all(nest.path().join("a/b")).unwrap();
        crate::store::write_durably(&file, b"text").unwrap();
        for path in ["a", "a/b"] {
            set_mode(&nest.path().join(path), 0o755);
        }
        (nest, file)
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_is_as_safe_as_each_directory_on_the_way() {
        let (nest, file) = nest();
        open(&file).unwrap();
        for (name, mode) in [("a/b/file", 0o646), ("a/b", 0o757), ("a", 0o777)] {
            let path = nest.path().join(name);
            set_mode(&path, mode);
            let refused = check(&file).unwrap_err();
            assert!(
                matches!(&refused, OwnershipError::Writable { path: found, .. } if *found == path),
                "{refused}"
            );
            let text = open(&file).unwrap_err().to_string();
            assert!(text.contains(&format!("mode {mode:o}")) && text.contains("chmod go-w"), "{text}");
            set_mode(&path, 0o700);
        }
        check(&file).unwrap();
    }

    #[test]
    fn in_a_sticky_directory_others_replace_nothing() {
        let (nest, file) = nest();
        set_mode(&nest.path().join("a"), 0o1777);
        open(&file).unwrap();
    }

    #[test]
    fn a_link_is_followed_where_the_way_behind_it_is_safe_too() {
        let (nest, file) = nest();
        let link = nest.path().join("link");
        symlink("a/../a/b/file", &link).unwrap();
        open(&link).unwrap();
        set_mode(&nest.path().join("a/b"), 0o777);
        assert!(matches!(check(&link), Err(OwnershipError::Writable { .. })));
        fs::remove_file(&link).unwrap();
        symlink(&link, &link).unwrap();
        assert!(matches!(check(&link), Err(OwnershipError::Links { .. })));
        drop(file);
    }

    #[test]
    fn another_users_file_link_or_directory_is_refused() {
        if !Uid::effective().is_root() {
            // Only root gives files away; tests/run says where it leaves something out.
            return;
        }
        const NOBODY: u32 = 65534;
        for name in ["a/b/file", "a/b", "a"] {
            let (nest, file) = nest();
            let path = nest.path().join(name);
            chown(&path, Some(NOBODY), None).unwrap();
            let refused = open(&file).unwrap_err().to_string();
            assert_eq!(
                refused,
                format!(
                    "{} belongs to user 65534, who could change it: `chown root {}`",
                    path.display(),
                    path.display()
                )
            );
        }
        let (nest, file) = nest();
        let link = nest.path().join("link");
        symlink(&file, &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(NOBODY), None).unwrap();
        assert!(matches!(check(&link), Err(OwnershipError::Owner { .. })));
    }

    #[test]
    fn what_is_missing_says_so_as_the_system_does() {
        let (nest, _) = nest();
        assert_eq!(open(&nest.path().join("none/at/all")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_pipe_in_place_of_a_file_keeps_nobody_waiting() {
        let (nest, _) = nest();
        let pipe = nest.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
        open(&pipe).unwrap();
    }
}
