//! The mark of an armed trial in the state directory. By it, systemd alone ends a trial that nobody commits:
//! `systemd/twinboot-trial.service` needs neither this program nor its configuration for that.
//!
//! In `trial/` each `reboot-<n>` allows one reboot, which renames it to `done-reboot-<n>`: a mark that was left
//! over cannot keep a good system from staying up. `armed-by` is the kernel command line of the system that
//! armed the trial, and must never be rebooted on account of it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::store::{sync_directory, write_durably};

/// The mark could not be made or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot read or change the mark of the trial in {}", directory.display())]
pub struct MarkError {
    directory: PathBuf,
    source: io::Error,
}

/// The mark of one device. All of its functions block.
#[derive(Clone, Debug)]
pub struct Mark {
    directory: PathBuf,
}

const ALLOWED: &str = "reboot-";
const DONE: &str = "done-";

impl Mark {
    /// The one in this state directory.
    #[must_use]
    pub fn new(state_directory: &Path) -> Self {
        Self { directory: state_directory.join("trial") }
    }

    /// Before the boot loader is told: allows as many reboots as a trial may take boots. `command_line` is
    /// that of the running, committed system.
    ///
    /// # Errors
    /// When the mark did not provably reach the disk.
    pub fn arm(&self, command_line: &Path, boots: u8) -> Result<(), MarkError> {
        let armed = || {
            fs::create_dir_all(&self.directory)?;
            sync_directory(self.directory.parent().unwrap_or(&self.directory))?;
            write_durably(&self.directory.join("armed-by"), &fs::read(command_line)?)?;
            self.remove(DONE)?;
            self.allow(boots)
        };
        armed().map_err(|source| self.failed(source))
    }

    /// In a trial whose mark was removed for a commit that the power cut.
    ///
    /// # Errors
    /// As [`Self::arm`].
    pub fn arm_again(&self, boots: u8) -> Result<(), MarkError> {
        let again = || if self.count(ALLOWED)? > 0 { Ok(()) } else { self.allow(boots) };
        again().map_err(|source| self.failed(source))
    }

    /// Before a commit, and after a roll back: what runs is not rebooted any more.
    ///
    /// # Errors
    /// When that is not certain.
    pub fn disarm(&self) -> Result<(), MarkError> {
        let disarmed = || {
            self.remove(ALLOWED)?;
            self.remove(DONE)
        };
        disarmed().map_err(|source| self.failed(source))
    }

    /// How many boots of the trial were ended by systemd. Zero, where that cannot be told.
    #[must_use]
    pub fn reboots(&self) -> usize {
        self.count(DONE).unwrap_or_default()
    }

    /// Whether systemd would end a trial.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn is_armed(&self) -> Result<bool, MarkError> {
        self.count(ALLOWED).map(|count| count > 0).map_err(|source| self.failed(source))
    }

    /// Whether this boot is one of a trial: armed, and by another system than the one with this command line.
    #[must_use]
    pub fn is_of_this_boot(&self, command_line: &Path) -> bool {
        let armed_by = fs::read(self.directory.join("armed-by"));
        self.is_armed().unwrap_or(false) && armed_by.ok() != fs::read(command_line).ok()
    }

    fn allow(&self, boots: u8) -> io::Result<()> {
        for number in 1..=boots {
            File::create(self.directory.join(format!("{ALLOWED}{number}")))?;
        }
        sync_directory(&self.directory)
    }

    fn remove(&self, prefix: &str) -> io::Result<()> {
        for file in self.files(prefix)? {
            fs::remove_file(file)?;
        }
        // Also where nothing is left: a daemon that was killed may have removed it, and not synced.
        match sync_directory(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            synced => synced,
        }
    }

    fn count(&self, prefix: &str) -> io::Result<usize> {
        self.files(prefix).map(|files| files.len())
    }

    fn files(&self, prefix: &str) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        let is_one =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        paths.filter(|path| path.as_ref().map_or(true, is_one)).collect()
    }

    fn failed(&self, source: io::Error) -> MarkError {
        MarkError { directory: self.directory.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_used_up_mended_only_where_nothing_is_left_of_it_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let command_line = directory.path().join("cmdline");
        write_durably(&command_line, b"twinboot.slot=a\n").unwrap();
        let mark = Mark::new(&directory.path().join("state"));
        mark.disarm().unwrap();
        assert_eq!(mark.reboots(), 0, "there is none yet");

        mark.arm(&command_line, 2).unwrap();
        assert_eq!(mark.count(ALLOWED).unwrap(), 2);
        assert_eq!(fs::read(mark.directory.join("armed-by")).unwrap(), b"twinboot.slot=a\n");
        // As `twinboot-trial.service` does it.
        let reboot = |number| {
            let name = |prefix: &str| mark.directory.join(format!("{prefix}reboot-{number}"));
            fs::rename(name(""), name(DONE)).unwrap();
        };
        reboot(1);
        mark.arm_again(2).unwrap();
        assert_eq!((mark.count(ALLOWED).unwrap(), mark.reboots()), (1, 1));
        reboot(2);
        mark.arm_again(2).unwrap();
        assert_eq!((mark.count(ALLOWED).unwrap(), mark.reboots()), (2, 2));

        mark.arm(&command_line, 3).unwrap();
        assert_eq!((mark.count(ALLOWED).unwrap(), mark.reboots()), (3, 0), "a new trial begins at nought");
        assert!(!mark.is_of_this_boot(&command_line), "it armed the trial itself");
        let other = directory.path().join("other");
        write_durably(&other, b"twinboot.slot=b\n").unwrap();
        assert!(mark.is_of_this_boot(&other));
        mark.disarm().unwrap();
        assert_eq!((mark.count(ALLOWED).unwrap(), mark.reboots()), (0, 0));
        assert!(!mark.is_of_this_boot(&other));
    }
}
