//! What an earlier attempt left, claimed by a checkpoint and proven by the slot.

use std::path::Path;

use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::InstallError;
use super::checkpoint::{Checkpoint, Key, prefix_crc32};
use super::decode::Format;
use super::slot::{BLOCK_BYTES, Block, SlotDevice};
use super::validator::Validator;
use super::verify::Check;
use super::write::{SoFar, WriteError};
use crate::causes::one_line;

/// What an earlier attempt left, proven by the slot's content; by default nothing.
#[derive(Debug, Default)]
pub struct Start {
    /// Source bytes that need not come again.
    pub source_offset: u64,
    /// The file that they are of.
    pub validator: Option<Validator>,
    /// Over those.
    pub source_sha256: Sha256,
    /// How the source is packed; unknown at its beginning.
    pub format: Option<Format>,
    /// Image bytes that are in the slot.
    pub image_offset: u64,
    /// CRC-32 of each whole block before `image_offset`.
    sums: Vec<u32>,
    /// Holds the image bytes before `image_offset` that make no whole block.
    pub head: Option<Block>,
}

impl Start {
    /// Reads what the checkpoint at `path` claims to be in the slot. Where there is no checkpoint, or the slot
    /// holds something else or cannot be read, the start is the beginning.
    ///
    /// # Errors
    /// When the install is cancelled meanwhile.
    pub fn from_checkpoint(
        path: &Path,
        key: &Key,
        device: &dyn SlotDevice,
        check: &Check,
        cancel: &watch::Receiver<bool>,
    ) -> Result<Self, InstallError> {
        let Some(claim) = Checkpoint::load(path, key) else { return Ok(Self::default()) };
        let Some(source_sha256) = claim.source_hasher() else { return Ok(Self::default()) };
        let raw = claim.format == Format::Raw;
        // A signature needs to see all of the source, and only a raw one can be read from the slot.
        let is_usable = if raw {
            claim.source_offset == claim.image_offset
        } else {
            !matches!(check, Check::Signature(_))
        };
        // Where nothing is checked, only the server can tell that the rest is of the same file.
        let is_proven = !matches!(check, Check::Unchecked) || claim.validator.is_strong();
        if !is_usable || !is_proven || claim.image_offset > device.capacity_bytes() {
            return Ok(Self::default());
        }
        let (mut image_sha256, mut sums, mut rest) = (Sha256::new(), Vec::new(), (0, 0));
        let head = read_prefix(device, claim.image_offset, |bytes| {
            if raw {
                image_sha256.update(bytes);
            }
            match crc32fast::hash(bytes) {
                sum if bytes.len() == BLOCK_BYTES => sums.push(sum),
                sum => rest = (sum, bytes.len() as u64),
            }
            if *cancel.borrow() { Err(InstallError::Cancelled) } else { Ok(()) }
        });
        let head = match head {
            Err(error @ InstallError::Write(_)) => {
                tracing::warn!(reason = %one_line(&error), "what the slot held is lost: starting over");
                return Ok(Self::default());
            }
            head => head?,
        };
        if prefix_crc32(&sums, rest) != claim.image_crc32 {
            tracing::warn!(bytes = claim.image_offset, "the slot does not hold what the checkpoint says");
            return Ok(Self::default());
        }
        Ok(Self {
            source_offset: claim.source_offset,
            source_sha256: if raw { image_sha256 } else { source_sha256 },
            validator: Some(claim.validator),
            format: Some(claim.format),
            image_offset: claim.image_offset,
            sums,
            head,
        })
    }

    /// The writer's share of it.
    #[must_use]
    pub fn so_far(&self) -> SoFar {
        SoFar { sums: self.sums.clone(), image_offset: self.image_offset }
    }
}

/// Shows `visit` the first `end` bytes of the slot, block by block; gives the last block if it is not whole.
///
/// # Errors
/// When the slot cannot be read, or `visit` says so.
pub fn read_prefix(
    device: &dyn SlotDevice,
    end: u64,
    mut visit: impl FnMut(&[u8]) -> Result<(), InstallError>,
) -> Result<Option<Block>, InstallError> {
    let mut block = Block::new();
    let mut offset = 0;
    loop {
        let len = usize::try_from(end - offset).map_or(BLOCK_BYTES, |left| left.min(BLOCK_BYTES));
        let (bytes, _) = block.bytes_mut().split_at_mut(len);
        device.read_exact_at(bytes, offset).map_err(|source| WriteError::Read { offset, source })?;
        visit(bytes)?;
        offset += len as u64;
        if offset == end {
            return Ok((len < BLOCK_BYTES).then_some(block));
        }
    }
}
