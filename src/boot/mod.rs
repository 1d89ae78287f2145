//! Slots, and the boot loader's variables that choose between them.

pub mod booted;
pub mod env;
pub mod fw_env;
pub mod scheme;

use std::collections::BTreeMap;
use std::path::PathBuf;

use self::fw_env::{BootEnvError, UbootEnv};
use self::scheme::{Scheme, SchemeError, View};
use crate::config;
use crate::update::Slot;

/// The variable, of ours and none of the boot loader's, that remembers the version that was committed last.
const MIN_VERSION: &str = "twinboot_min_version";

/// Names and values of a boot environment.
pub type Variables = BTreeMap<String, String>;

/// Variables to write in one transaction; `None` deletes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnvPatch(pub BTreeMap<String, Option<String>>);

/// The boot loader's variables, on whatever medium they live.
pub trait BootEnv: Send {
    /// All variables of the copy that the boot loader would take.
    ///
    /// # Errors
    /// When the medium cannot be read, or no copy has a good checksum.
    fn read(&mut self) -> Result<Variables, BootEnvError>;

    /// All or nothing: after an error the environment is the old one or the new one. On success it was
    /// synced, read back from the medium and found to be the copy that wins. A patch that changes nothing
    /// writes nothing, unless a copy cannot be read.
    ///
    /// # Errors
    /// When the new environment does not fit, or did not provably reach the medium.
    fn write(&mut self, patch: &EnvPatch) -> Result<Written, BootEnvError>;
}

/// What a write found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The environment already was as asked, and nothing was written.
    Unchanged {
        /// Whether the copy that is not taken has a wrong checksum; the next change repairs it.
        damaged: bool,
    },
    /// The environment is now as asked.
    Changed {
        /// Whether the copy that was overwritten had a wrong checksum before, or could not be read.
        repaired: bool,
    },
}

/// Why a decision was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The environment could not be read or written.
    #[error("the boot environment cannot be used")]
    Environment {
        /// Why.
        #[from]
        source: BootEnvError,
    },
    /// It says nothing about the slots.
    #[error("the boot environment is not as `boot.scheme` says")]
    Scheme {
        /// The variable.
        #[from]
        source: SchemeError,
    },
}

/// The files and directories, not the devices, that a decision writes; none where `fw_env.config` does not tell. Blocks.
#[must_use]
pub fn written_files(config: &config::Boot) -> Vec<PathBuf> {
    let environment = UbootEnv::new(&config.environment, &[]);
    let paths = environment.map(|environment| environment.written_paths()).unwrap_or_default();
    paths.into_iter().filter(|path| !path.starts_with("/dev")).collect()
}

/// The decisions about slots, each one transaction and each safe to make twice. All of them block.
pub struct BootControl {
    environment: Box<dyn BootEnv>,
    scheme: Scheme,
    attempts: u8,
}

impl BootControl {
    /// Decides in `environment` as the boot script behind `scheme` reads it; a trial may take `attempts` boots.
    #[must_use]
    pub fn new(environment: Box<dyn BootEnv>, scheme: Scheme, attempts: u8) -> Self {
        Self { environment, scheme, attempts }
    }

    /// Decides in the U-Boot environment that is configured. Only `fw_env.config` is read yet.
    ///
    /// # Errors
    /// When that file does not say where the environment is.
    pub fn open(config: &config::Boot) -> Result<Self, BootEnvError> {
        let environment = UbootEnv::new(&config.environment, &config.lock_files)?;
        Ok(Self::new(Box::new(environment), config.scheme, config.attempts))
    }

    /// What the boot loader will do.
    ///
    /// # Errors
    /// When the environment cannot be read, or says nothing about the slots.
    pub fn view(&mut self) -> Result<View, BootError> {
        Ok(self.scheme.view(&self.environment.read()?)?)
    }

    /// The variables that the scheme reads and writes, with their values.
    ///
    /// # Errors
    /// When the environment cannot be read.
    pub fn variables(&mut self) -> Result<Variables, BootError> {
        let own = [Slot::A, Slot::B].map(|slot| self.scheme.activate(slot, self.attempts).0);
        let mut variables = self.environment.read()?;
        variables.retain(|name, _| name == MIN_VERSION || own.iter().any(|patch| patch.contains_key(name)));
        Ok(variables)
    }

    /// Sees to it that `target`, about to be overwritten, is not booted, where the scheme can say so.
    ///
    /// # Errors
    /// When the environment cannot be read, or the change did not provably reach the medium.
    pub fn disable(&mut self, target: Slot) -> Result<Written, BootError> {
        Ok(self.environment.write(&self.scheme.disable(target))?)
    }

    /// Boots `target` next, on trial.
    ///
    /// # Errors
    /// As [`Self::disable`].
    pub fn activate(&mut self, target: Slot) -> Result<Written, BootError> {
        Ok(self.environment.write(&self.scheme.activate(target, self.attempts))?)
    }

    /// Keeps `slot`.
    ///
    /// # Errors
    /// As [`Self::disable`], and when the environment says nothing about the slots.
    pub fn commit(&mut self, slot: Slot) -> Result<Written, BootError> {
        let variables = self.environment.read()?;
        let patch = self.scheme.commit(slot, self.attempts, &variables)?;
        Ok(self.environment.write(&patch)?)
    }

    /// Boots `to` next, for good.
    ///
    /// # Errors
    /// As [`Self::disable`].
    pub fn roll_back(&mut self, to: Slot) -> Result<Written, BootError> {
        Ok(self.environment.write(&self.scheme.roll_back(to, self.attempts))?)
    }

    /// The version that was committed last, as far as [`Self::keep_version`] was told.
    ///
    /// # Errors
    /// When the environment cannot be read.
    pub fn min_version(&mut self) -> Result<Option<String>, BootError> {
        Ok(self.environment.read()?.remove(MIN_VERSION).filter(|version| !version.is_empty()))
    }

    /// Remembers the version that was committed last. Not part of a decision: one must not fail for want of room
    /// for this.
    ///
    /// # Errors
    /// As [`Self::disable`].
    pub fn keep_version(&mut self, version: &str) -> Result<Written, BootError> {
        let patch = EnvPatch([(MIN_VERSION.to_owned(), Some(version.to_owned()))].into());
        Ok(self.environment.write(&patch)?)
    }

    /// Gives a committed `slot` back what the boot script took for this boot, once it is known to be well.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn confirm(&mut self, slot: Slot) -> Result<Written, BootError> {
        let variables = self.environment.read()?;
        let patch = self.scheme.confirm(slot, self.attempts, &variables)?;
        Ok(self.environment.write(&patch)?)
    }
}
