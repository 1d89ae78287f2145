//! The codes an operator's tooling may match on: append-only.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a request was refused or an update ended; the `code` in the twin and in method answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Code {
    // Requests that were not taken.
    /// A method's payload, or the desired object, is not understood.
    InvalidPayload,
    /// The device has no such method.
    UnknownMethod,
    /// Another update is running.
    Busy,
    /// The running slot is not committed.
    Uncommitted,
    /// Neither check value nor signature to verify the image by.
    Unverifiable,
    /// The version is not newer than the running one.
    VersionNotNewer,
    /// The version is older than one that was committed here before.
    VersionBelowMinimum,
    /// This very image was rolled back on this device before.
    RolledBackBefore,
    /// The boot loader's environment and the running system disagree, or it cannot be read.
    EnvironmentUnusable,
    /// There is no slot to go back to.
    NothingToRollBack,
    /// There is nothing to cancel, or it is too late.
    NothingToCancel,
    /// No trial is running that could be committed.
    NothingToCommit,
    /// The device has nowhere to keep that it has begun.
    StateUnsaved,

    // The image at its source.
    /// 404 or 410, or no such file.
    ImageNotFound,
    /// 401 or 403: the link has expired or asks for credentials.
    ImageForbidden,
    /// The server stayed away until the retry limit.
    ServerUnreachable,
    /// An answer that will not get better by asking again.
    ServerRefused,
    /// The image changed while it was fetched, or may have where nothing would tell, more often than is tried again.
    ImageChanged,
    /// More or fewer bytes than announced.
    SizeMismatch,
    /// SHA-256 differs from the check value.
    DigestMismatch,
    /// No signature, a bad one, or one by an unknown key.
    SignatureInvalid,
    /// The compressed data is damaged.
    DecodeFailed,
    /// Decompression would need more memory than the device grants.
    DecoderMemory,
    /// Larger than the slot.
    ImageTooLarge,

    // A bundle.
    /// It is damaged, or of a format that this program does not know.
    BundleInvalid,
    /// It brings another version than was asked for.
    VersionMismatch,
    /// It is for other boards.
    BoardIncompatible,
    /// It needs a newer version of this program.
    AgentTooOld,
    /// It needs a newer firmware to come from.
    PreviousTooOld,
    /// Its images and the configured slots are not of the same classes.
    SlotClassMismatch,
    /// The list of keys that it brings is not signed as it must be, or contradicts the one in force.
    KeysRefused,

    // The slot.
    /// Booted, mounted, in use, missing, or not a slot at all.
    SlotUnusable,
    /// A write, a sync or a read of the slot failed.
    SlotFailed,
    /// The slot did not give back what was written.
    ReadBackMismatch,

    // The update as a whole.
    /// Cancelled by an operator.
    Cancelled,
    /// A hook of this device refused it, or deferred it for too long.
    HookRefused,
    /// Interrupted more often than is tried again.
    AttemptsExhausted,
    /// The boot environment could not be written.
    ActivateFailed,
    /// The boot loader gave the new slot up and came back.
    BootFailed,
    /// A health check of the trial failed, or did not answer in time.
    HealthCheckFailed,
    /// The trial could not be committed.
    CommitFailed,
    /// Rolled back by an operator.
    OperatorRollBack,
    /// The state file was damaged; what was running is unknown.
    StateDamaged,

    /// A code of a newer version of this program, met in its state file.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A code and one sentence for a person.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Stable.
    pub code: Code,
    /// What failed, where, and what to do; no secrets.
    pub message: String,
}

impl Failure {
    /// A failure with this sentence.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}
