//! The first bytes of a bundle: what it is, and where manifest and signatures end.

use super::bytes::Reader;
use super::{BundleError, MANIFEST_BYTES_MAX, SIGNATURES_BYTES_MAX};

/// As PNG's: a high bit, and line ends of both kinds, so that a transfer as text is seen at once.
pub const MAGIC: [u8; 8] = *b"\x89TWB\r\n\x1a\n";

/// The format that this program writes and reads.
pub const FORMAT: u32 = 1;

/// Magic and three numbers.
pub const HEADER_BYTES: usize = 20;

/// All that is not signed: what is needed to find manifest and signatures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Length of the manifest, which follows the header.
    pub manifest_bytes: u32,
    /// Length of the signatures, which follow the manifest; 0 if there are none.
    pub signatures_bytes: u32,
}

impl Header {
    /// Reads the first [`HEADER_BYTES`] of a file; what follows is not looked at.
    ///
    /// # Errors
    /// When it is no bundle, of another format, or wants too much.
    pub fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        let mut reader = Reader::new("header", bytes);
        let magic = reader.array()?;
        if magic != MAGIC {
            return Err(BundleError::NotABundle);
        }
        let format = reader.u32()?;
        if format != FORMAT {
            return Err(BundleError::UnknownFormat { format, known: FORMAT });
        }
        let (manifest_bytes, signatures_bytes) = (reader.u32()?, reader.u32()?);
        BundleError::at_least("the manifest's length", manifest_bytes.into(), 2)?;
        BundleError::at_most("the manifest's length", manifest_bytes.into(), MANIFEST_BYTES_MAX.into())?;
        BundleError::at_most("the signatures' length", signatures_bytes.into(), SIGNATURES_BYTES_MAX.into())?;
        Ok(Self { manifest_bytes, signatures_bytes })
    }

    /// As it is written.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let numbers = [FORMAT, self.manifest_bytes, self.signatures_bytes];
        MAGIC.into_iter().chain(numbers.into_iter().flat_map(u32::to_le_bytes)).collect()
    }

    /// Where the signatures end and the index, or the first table, begins.
    #[must_use]
    pub fn body_offset(self) -> u64 {
        HEADER_BYTES as u64 + u64::from(self.manifest_bytes) + u64::from(self.signatures_bytes)
    }
}
