//! Why a bundle is refused.

use crate::update::Sha256Digest;

/// One variant for each refusal. `part` says where: `header`, `manifest`, `index`, …
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Ends before it should.
    #[error("the {part} of the bundle ends in the middle, {missing_bytes} bytes early")]
    Truncated {
        /// Where.
        part: &'static str,
        /// At least so many.
        missing_bytes: u64,
    },
    /// Another file.
    #[error("this is not a bundle: it begins with other bytes")]
    NotABundle,
    /// Made by a later tool.
    #[error("the bundle has format {format}, and this program knows format {known}: update twinboot first")]
    UnknownFormat {
        /// Of the bundle.
        format: u32,
        /// Ours.
        known: u32,
    },
    /// More than is granted.
    #[error("{what} of the bundle is {value}; at most {limit} is taken")]
    TooLarge {
        /// Which number.
        what: &'static str,
        /// What it says.
        value: u64,
        /// What is granted.
        limit: u64,
    },
    /// Less than makes sense.
    #[error("{what} of the bundle is {value}; at least {limit} is needed")]
    TooSmall {
        /// Which number.
        what: &'static str,
        /// What it says.
        value: u64,
        /// The least.
        limit: u64,
    },
    /// The JSON of the manifest.
    #[error("the manifest of the bundle is not understood")]
    Manifest {
        /// The parser's words.
        source: serde_json::Error,
    },
    /// A text of the manifest.
    #[error("`{field}` of the manifest {why}")]
    Field {
        /// Its key.
        field: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Something that is none of what the format has.
    #[error("the {part} of the bundle holds a {what} of unknown kind {kind} at byte {offset}")]
    UnknownKind {
        /// Where.
        part: &'static str,
        /// Of what.
        what: &'static str,
        /// The kind.
        kind: u64,
        /// In the part.
        offset: u64,
    },
    /// A number that takes more bytes than it has to, or than a number can have.
    #[error("the {part} of the bundle holds a malformed number at byte {offset}")]
    Number {
        /// Where.
        part: &'static str,
        /// In the part.
        offset: u64,
    },
    /// More follows than is announced.
    #[error("the {part} of the bundle has {extra_bytes} bytes too many")]
    Trailing {
        /// Where.
        part: &'static str,
        /// So many.
        extra_bytes: u64,
    },
    /// Counts or sums that do not agree.
    #[error("{what} of the bundle is {actual}, and must be {expected}")]
    Mismatch {
        /// Which number.
        what: &'static str,
        /// As it is.
        actual: u64,
        /// As it should be.
        expected: u64,
    },
    /// Two of the same name.
    #[error("the bundle names {what} `{name}` twice")]
    Twice {
        /// Of which kind.
        what: &'static str,
        /// Which.
        name: String,
    },
    /// Other bytes than were signed.
    #[error("the SHA-256 of the {part} of the bundle is {actual}, and must be {expected}")]
    Digest {
        /// Which part.
        part: &'static str,
        /// As it is.
        actual: Sha256Digest,
        /// As signed.
        expected: Sha256Digest,
    },
    /// No minisign texts.
    #[error("the signatures of the bundle are not minisign signatures: line {line}")]
    NotASignature {
        /// Of the part; the first is 1.
        line: usize,
    },
    /// zstd refuses, or makes another number of bytes.
    #[error("a {what} of the bundle does not decompress: {why}")]
    Unpack {
        /// Chunk or frame.
        what: &'static str,
        /// The decoder's words.
        why: &'static str,
    },
    /// zstd cannot compress.
    #[error("a {what} of the bundle cannot be compressed: {why}")]
    Pack {
        /// Chunk or frame.
        what: &'static str,
        /// The encoder's words.
        why: &'static str,
    },
}

impl BundleError {
    /// `Ok` if `value` is at most `limit`.
    pub(super) fn at_most(what: &'static str, value: u64, limit: u64) -> Result<(), Self> {
        if value <= limit { Ok(()) } else { Err(Self::TooLarge { what, value, limit }) }
    }

    /// `Ok` if `value` is at least `limit`.
    pub(super) fn at_least(what: &'static str, value: u64, limit: u64) -> Result<(), Self> {
        if value >= limit { Ok(()) } else { Err(Self::TooSmall { what, value, limit }) }
    }

    /// `Ok` if both are the same.
    pub(super) fn same(what: &'static str, actual: u64, expected: u64) -> Result<(), Self> {
        if actual == expected { Ok(()) } else { Err(Self::Mismatch { what, actual, expected }) }
    }
}
