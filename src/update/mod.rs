//! The update policy: pure. No I/O, no clock, no async.
//!
//! The shell's contract, and the only order it may use: [`step`]; if the record changed, make it
//! durable; then run the effects in order. Every effect is safe to run twice. After a restart the shell
//! loads the record and feeds [`Event::Started`]; nothing else is remembered.

pub mod code;
pub mod hook;
pub mod keys;
pub mod metrics;
pub mod moment;
pub mod record;
pub mod report;
pub mod request;
pub mod step;
pub mod version;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use code::{Code, Failure};
pub use hook::{Afterword, Deferral, Gate, Hook, HookRun, Verdict};
pub use keys::KeyList;
pub use moment::Moment;
pub use record::{Denied, Finished, Outcome, Record, State, Update};
pub use request::{Sha256Digest, UpdateId, UpdateRequest};
pub use step::{Context, Effect, Environment, Event, Origin, Policy, Response, Step, step};

/// One of the two root filesystem slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slot {
    /// The first.
    A,
    /// The second.
    B,
}

impl Slot {
    /// The one that is not this one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "a",
            Self::B => "b",
        })
    }
}

/// `/proc/sys/kernel/random/boot_id`. Compared for equality, never ordered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct BootId(pub u128);

/// A text that is no boot id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no boot id: 32 hex digits, with or without hyphens")]
pub struct BadBootId(String);

impl FromStr for BootId {
    type Err = BadBootId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
        let bad = || BadBootId(text.trim().chars().take(64).collect());
        if digits.len() != 32 {
            return Err(bad());
        }
        u128::from_str_radix(&digits, 16).map(Self).map_err(|_| bad())
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BootId({self})")
    }
}

impl From<BootId> for String {
    fn from(id: BootId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for BootId {
    type Error = BadBootId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// What is true for the whole life of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Boot {
    /// Which boot this is.
    pub id: BootId,
    /// The slot that this boot runs from.
    pub slot: Slot,
}

/// What an install put into the slot and read back from it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// SHA-256 of the bytes at the URI; of a bundle's manifest.
    pub source_digest: Sha256Digest,
    /// Size of the image in the slot, in bytes; of all images of a bundle together.
    pub size_bytes: u64,
    /// What it says of itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Whose signatures count once it is committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys: Option<KeyList>,
}
