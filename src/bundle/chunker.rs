//! Where an image is cut into chunks: at its content, so that what moved is still the same chunk.

use fastcdc::v2020::{self, MASKS};
use serde::{Deserialize, Serialize};

use super::{BundleError, CHUNK_BYTES_MAX};

/// Zeros are told apart in blocks of this length, aligned in the image: the block of every file system in use.
pub const ZERO_BLOCK_BYTES: usize = 4096;

/// What the algorithm takes at least and at most; its average must be a power of two.
const AVERAGE_BYTES_MIN: u32 = 1024;
const AVERAGE_BYTES_MAX: u32 = 1 << 20;

/// By which rule chunks are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Algorithm {
    /// FastCDC of 2020 with normalization level 1, between runs of zero blocks.
    #[serde(rename = "fastcdc-2020")]
    FastCdc,
}

/// How images are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunking {
    /// The rule.
    pub algorithm: Algorithm,
    /// No cut before; only the end of the image or zeros come earlier.
    pub min_bytes: u32,
    /// Aimed at.
    pub average_bytes: u32,
    /// A cut at the latest.
    pub max_bytes: u32,
}

impl Chunking {
    /// Around this average: a quarter at least, four times at most.
    #[must_use]
    pub fn around(average_bytes: u32) -> Self {
        Self {
            algorithm: Algorithm::FastCdc,
            min_bytes: average_bytes / 4,
            average_bytes,
            max_bytes: average_bytes.saturating_mul(4),
        }
    }

    /// # Errors
    /// Lengths that the algorithm does not take, or a chunk beyond the format's limit.
    pub fn check(self) -> Result<(), BundleError> {
        let Self { min_bytes, average_bytes, max_bytes, .. } = self;
        BundleError::at_least("chunking.average_bytes", average_bytes.into(), AVERAGE_BYTES_MIN.into())?;
        BundleError::at_most("chunking.average_bytes", average_bytes.into(), AVERAGE_BYTES_MAX.into())?;
        if !average_bytes.is_power_of_two() || min_bytes % 2 != 0 || max_bytes % 2 != 0 {
            let why = "must have a power of two for its average, and even numbers";
            return Err(BundleError::Field { field: "chunking", why });
        }
        BundleError::at_least("chunking.min_bytes", min_bytes.into(), u64::from(AVERAGE_BYTES_MIN) / 4)?;
        BundleError::at_most("chunking.min_bytes", min_bytes.into(), average_bytes.into())?;
        BundleError::at_least("chunking.max_bytes", max_bytes.into(), average_bytes.into())?;
        BundleError::at_most("chunking.max_bytes", max_bytes.into(), CHUNK_BYTES_MAX.into())
    }
}

/// The next stretch of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// So many bytes that are not all zeros.
    Data(usize),
    /// So many zeros.
    Zeros(usize),
}

/// Cuts an image, or what a slot holds, from its beginning to its end.
#[derive(Clone, Copy, Debug)]
pub struct Chunker {
    chunking: Chunking,
    /// For cuts before the average.
    strict_mask: u64,
    /// For cuts behind it.
    relaxed_mask: u64,
}

impl Chunker {
    /// By a rule that is right.
    ///
    /// # Errors
    /// As [`Chunking::check`].
    pub fn new(chunking: Chunking) -> Result<Self, BundleError> {
        chunking.check()?;
        // `fastcdc::v2020::select_masks` at level 1, without its logarithm: a device would load libm for that alone.
        let bits = chunking.average_bytes.ilog2() as usize;
        let mask = |bits: usize| MASKS.get(bits).copied().unwrap_or_default();
        Ok(Self { chunking, strict_mask: mask(bits + 1), relaxed_mask: mask(bits - 1) })
    }

    /// Of a chunk.
    #[must_use]
    pub fn average_bytes(&self) -> usize {
        self.chunking.average_bytes as usize
    }

    /// How many bytes [`Chunker::cut`] wants to see: a chunk, and the zero block that might end it.
    #[must_use]
    pub fn lookahead_bytes(&self) -> usize {
        self.chunking.max_bytes as usize + ZERO_BLOCK_BYTES
    }

    /// The first stretch of `bytes`, which begin `offset` bytes into the image, and end with it if `at_end`. None if
    /// there are no bytes, or less than [`Chunker::lookahead_bytes`] and more to come.
    ///
    /// A run of zeros comes in several stretches if it is longer than `bytes`.
    #[must_use]
    pub fn cut(&self, offset: u64, bytes: &[u8], at_end: bool) -> Option<Cut> {
        if bytes.is_empty() || (bytes.len() < self.lookahead_bytes() && !at_end) {
            return None;
        }
        let zeros = zeros_at(offset, bytes, at_end);
        if zeros > 0 {
            return Some(Cut::Zeros(zeros));
        }
        let Chunking { min_bytes, average_bytes, max_bytes, .. } = self.chunking;
        let near = bytes.get(..self.lookahead_bytes()).unwrap_or(bytes);
        let data = near.get(..next_zeros(offset, near).min(max_bytes as usize))?;
        let [min, average, max] = [min_bytes, average_bytes, max_bytes].map(|length| length as usize);
        let Self { strict_mask: strict, relaxed_mask: relaxed, .. } = *self;
        let (_, cut) = v2020::cut(data, min, average, max, strict, relaxed, strict << 1, relaxed << 1);
        Some(Cut::Data(cut.clamp(1, data.len())))
    }
}

/// How many bytes of aligned zero blocks are at the beginning. The last block of an image may be short.
fn zeros_at(offset: u64, bytes: &[u8], at_end: bool) -> usize {
    if !offset.is_multiple_of(ZERO_BLOCK_BYTES as u64) {
        return 0;
    }
    let whole = |block: &&[u8]| (block.len() == ZERO_BLOCK_BYTES || at_end) && is_zero(block);
    bytes.chunks(ZERO_BLOCK_BYTES).take_while(whole).map(<[u8]>::len).sum()
}

/// Where the next aligned zero block begins, or the end.
fn next_zeros(offset: u64, bytes: &[u8]) -> usize {
    let block_bytes = ZERO_BLOCK_BYTES as u64;
    let unaligned = usize::try_from((block_bytes - offset % block_bytes) % block_bytes).unwrap_or(0);
    let aligned = bytes.get(unaligned..).unwrap_or_default();
    let zeros = aligned.chunks(ZERO_BLOCK_BYTES).position(is_zero);
    zeros.map_or(bytes.len(), |block| unaligned + block * ZERO_BLOCK_BYTES)
}

/// Whether there is nothing else in it.
pub(crate) fn is_zero(block: &[u8]) -> bool {
    // In words: a debug build is to finish, too.
    let (words, rest) = block.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}
