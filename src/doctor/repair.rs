//! What the doctor may repair by itself: each is safe at any time, and does nothing where nothing is wrong.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::boot::BootControl;
use crate::boot::booted::booted_slot;
use crate::boot::fw_env::UbootEnv;
use crate::causes::one_line;
use crate::config::Config;
use crate::ownership;
use crate::store::StateStore;
use crate::trial::Mark;

/// A repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Write the copy of the environment that is taken over the other.
    EnvironmentCopy,
    /// Keep the slot that runs, and end the trial that nobody conducts.
    TrialVariables,
    /// Remove the mark of a trial that is over.
    TrialMark,
    /// Make the state directory.
    StateDirectory,
    /// Take a secret file away from other users.
    SecretMode(PathBuf),
}

impl Repair {
    /// Does it, and says in one line what was done. Blocks. Only [`Repair::SecretMode`] does without a configuration.
    ///
    /// # Errors
    /// One line: why it could not be done.
    pub fn perform(&self, config: Option<&Config>) -> Result<String, String> {
        match (self, config) {
            (Self::SecretMode(path), _) => hide(path),
            (_, None) => Err("there is no configuration to repair by".to_owned()),
            (Self::EnvironmentCopy, Some(config)) => {
                UbootEnv::new(&config.boot.environment, &config.boot.lock_files)
                    .and_then(|environment| environment.renew_other_copy())
                    .map(|()| "wrote the good copy of the environment over the other one".to_owned())
                    .map_err(|error| one_line(&error))
            }
            (Self::TrialVariables, Some(config)) => settle(config),
            (Self::TrialMark, Some(config)) => Mark::new(&config.state_directory)
                .disarm()
                .map(|()| "removed the mark of a trial that is over".to_owned())
                .map_err(|error| one_line(&error)),
            (Self::StateDirectory, Some(config)) => make(config),
        }
    }
}

fn settle(config: &Config) -> Result<String, String> {
    let slot = booted_slot(&config.system.proc, &config.slots).map_err(|error| one_line(&error))?.slot;
    let mut boot = BootControl::open(&config.boot).map_err(|error| one_line(&error))?;
    // No boot of a committed slot has the mark: it is gone before.
    Mark::new(&config.state_directory).disarm().map_err(|error| one_line(&error))?;
    boot.commit(slot).map_err(|error| one_line(&error))?;
    Ok(format!("kept slot {slot}, and ended the trial in the environment"))
}

fn make(config: &Config) -> Result<String, String> {
    let path = &config.state_directory;
    StateStore::open(path).map_err(|error| one_line(&error))?;
    let mode = fs::set_permissions(path, Permissions::from_mode(0o700));
    mode.map(|()| format!("made {}", path.display())).map_err(|error| error.to_string())
}

fn hide(path: &Path) -> Result<String, String> {
    // A path that is another user's could lead to any file.
    let hidden = ownership::open_own(path).and_then(|file| {
        let mode = file.metadata()?.mode() & 0o770;
        file.set_permissions(Permissions::from_mode(mode)).map(|()| mode)
    });
    hidden
        .map(|mode| format!("{} is of mode {mode:o} now", path.display()))
        .map_err(|error| format!("cannot change the mode of {}: {error}", path.display()))
}
