//! Slots, and the boot loader's variables that choose between them.

pub mod booted;
pub mod env;
pub mod fw_env;
pub mod scheme;

use std::collections::BTreeMap;

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
    fn read(&mut self) -> Result<Variables, fw_env::BootEnvError>;

    /// All or nothing: after an error the environment is the old one or the new one. On success it was
    /// synced, read back from the medium and found to be the copy that wins. A patch that changes nothing
    /// writes nothing.
    ///
    /// # Errors
    /// When the new environment does not fit, or did not provably reach the medium.
    fn write(&mut self, patch: &EnvPatch) -> Result<Written, fw_env::BootEnvError>;
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
        /// Whether the copy that was overwritten had a wrong checksum before.
        repaired: bool,
    },
}
