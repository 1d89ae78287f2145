//! The last stage: what was synced is read back from the medium and compared, while the rest is still on its way.

use std::sync::mpsc::Receiver;

use tokio::sync::watch;

use super::InstallError;
use super::slot::{BLOCK_BYTES, Block, SlotDevice};
use super::write::WriteError;

/// Of so many blocks one is read again when everything is written: a medium with less room than it says has
/// written over blocks that were right before.
const AGAIN: usize = 16;

/// What the reader is told.
#[derive(Debug)]
pub enum Synced {
    /// CRC-32 of each of the next blocks.
    Blocks(Vec<u32>),
    /// CRC-32 of each of the last blocks, and the size of the image in bytes.
    End(Vec<u32>, u64),
}

/// Reads all blocks that it is told of, and some again at the end. Once cancelled it reads no more, and takes the
/// writer's messages all the same, so that the writer can still save how far it came.
///
/// Blocks are told apart by CRC-32: the enemy here is a failing medium, not a person, and a CRC costs a fraction of
/// the SHA-256 that the source has to pass.
///
/// # Errors
/// The first block that cannot be read, or is another one.
pub fn run(
    device: &dyn SlotDevice,
    synced: Receiver<Synced>,
    cancel: &watch::Receiver<bool>,
) -> Result<(), InstallError> {
    let (mut block, mut sums) = (Block::new(), Vec::new());
    for message in synced {
        let (next, size_bytes) = match message {
            Synced::Blocks(next) => (next, None),
            Synced::End(next, size_bytes) => (next, Some(size_bytes)),
        };
        let first = sums.len();
        sums.extend(next);
        let new = sums.iter().enumerate().skip(first);
        let again = sums.iter().enumerate().take(first).step_by(AGAIN).filter(|_| size_bytes.is_some());
        for (index, sum) in new.chain(again) {
            if *cancel.borrow() {
                break;
            }
            compare(device, &mut block, index as u64 * BLOCK_BYTES as u64, size_bytes, *sum)?;
        }
        if size_bytes.is_some() && *cancel.borrow() {
            return Err(InstallError::Cancelled);
        }
    }
    Ok(())
}

/// Only the last block of an image, whose size is known by then, is shorter than others.
fn compare(
    device: &dyn SlotDevice,
    block: &mut Block,
    offset: u64,
    size_bytes: Option<u64>,
    sum: u32,
) -> Result<(), WriteError> {
    let left = size_bytes.map_or(u64::MAX, |size| size - offset);
    let len = usize::try_from(left).map_or(BLOCK_BYTES, |left| left.min(BLOCK_BYTES));
    let (bytes, _) = block.bytes_mut().split_at_mut(len);
    device.read_exact_at(bytes, offset).map_err(|source| WriteError::Read { offset, source })?;
    if crc32fast::hash(bytes) == sum { Ok(()) } else { Err(WriteError::ReadBack { offset }) }
}
