//! From an address to a verified slot.

use crate::update::{Failure, Image, Sha256Digest};

/// What is to be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    /// `https://`, `http://` or `file://`.
    pub uri: String,
    /// SHA-256 of the bytes at `uri`.
    pub check_value: Option<Sha256Digest>,
    /// Size in bytes of what is at `uri`.
    pub size_bytes: Option<u64>,
}

/// How far an install is; a level, for the report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What the installer does now.
    pub phase: Phase,
    /// Bytes of the source taken so far, those kept from an earlier attempt included.
    pub bytes: u64,
    /// Bytes at the source, where known.
    pub total_bytes: Option<u64>,
    /// Bytes that an earlier attempt had already put in place.
    pub resumed_bytes: u64,
    /// Bytes written to the slot; blocks that were right already are not among them.
    pub written_bytes: u64,
}

/// The steps of an install that a person can tell apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Fetching, decoding, and writing.
    #[default]
    Downloading,
    /// The server is away; asked again after a pause.
    Waiting,
    /// Everything is written; the slot is synced, read back and compared.
    Verifying,
}

/// An install ends with the image in the slot, read back, or with the reason.
pub type Outcome = Result<Image, Failure>;
