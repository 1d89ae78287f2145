//! The last stage: blocks go to the slot, and come back from it.

use std::io;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::thread;
use std::time::Duration;

use tokio::sync::watch;

use super::checkpoint::{Checkpoint, Key, prefix_crc32};
use super::fetch::boot_time;
use super::slot::{ALIGN_BYTES, BLOCK_BYTES, Block, SlotDevice};
use super::unpack::{Filled, Mark, Part};
use super::validator::Validator;
use super::{InstallError, Phase, Progress};
use crate::update::{Code, Image, Sha256Digest};

/// A checkpoint that saves less than this is not worth its sync.
const CHECKPOINT_BYTES: u64 = 4 << 20;

/// Readers of the slot after the write: while one waits for the medium the other compares.
const READERS: usize = 2;

/// How a slot failed.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A write.
    #[error("cannot write the slot at byte {offset}")]
    Write {
        /// In the slot.
        offset: u64,
        /// What the medium says.
        source: io::Error,
    },
    /// A read.
    #[error("cannot read the slot at byte {offset}")]
    Read {
        /// In the slot.
        offset: u64,
        /// What the medium says.
        source: io::Error,
    },
    /// A sync.
    #[error("cannot sync the slot")]
    Sync {
        /// What the medium says.
        source: io::Error,
    },
    /// Other bytes came back.
    #[error("the slot does not give back what was written to it, near byte {offset}: its medium is failing")]
    ReadBack {
        /// In the slot; start of a block of 1 MiB.
        offset: u64,
    },
}

impl WriteError {
    /// The code for the twin.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::ReadBack { .. } => Code::ReadBackMismatch,
            _ => Code::SlotFailed,
        }
    }
}

/// Where and how often to remember how far it came.
#[derive(Debug)]
pub struct Checkpoints {
    /// The file.
    pub path: PathBuf,
    /// The image.
    pub key: Key,
    /// The file at the source.
    pub validator: Validator,
    /// Least time between two.
    pub every: Duration,
}

/// What is in the slot already.
#[derive(Debug, Default)]
pub struct SoFar {
    /// CRC-32 of each whole block.
    pub sums: Vec<u32>,
    /// How many bytes.
    pub image_offset: u64,
}

/// Owns the slot for the time of an attempt.
pub struct Writer {
    /// The slot.
    pub device: Arc<dyn SlotDevice>,
    /// Memory of interrupted attempts, where the slot's content is not enough.
    pub checkpoint: Option<Checkpoints>,
    /// Told what is written.
    pub progress: watch::Sender<Progress>,
    /// Looked at while the slot is read back; before, the source ends early.
    pub cancel: watch::Receiver<bool>,
}

/// A mark whose bytes are in the slot, though perhaps not synced.
struct Reached {
    mark: Mark,
    image_offset: u64,
}

/// What a run keeps from block to block.
struct State {
    so_far: SoFar,
    scratch: Block,
    reached: Option<Reached>,
    saved_at: Duration,
    saved_offset: u64,
}

impl Writer {
    /// Writes what comes, until it is complete; then syncs, reads back, compares.
    ///
    /// Blocks are told apart by CRC-32: the enemy of the read-back is a failing medium, not a person, and a
    /// CRC costs a fraction of the SHA-256 that the source had to pass before.
    ///
    /// # Errors
    /// [`InstallError::Interrupted`] where the source did not complete; else what is wrong with the slot.
    pub fn run(
        &self,
        so_far: SoFar,
        filled: &Receiver<Filled>,
        empty: &SyncSender<Block>,
    ) -> Result<Image, InstallError> {
        let saved_offset = so_far.image_offset;
        let mut state =
            State { so_far, scratch: Block::new(), reached: None, saved_at: boot_time(), saved_offset };
        loop {
            match filled.recv() {
                Ok(Filled::Block(part)) => {
                    let block = self.take(&mut state, part)?;
                    // All blocks have room in the channel; if nobody wants them, the source has ended.
                    let _ = empty.try_send(block);
                    self.save_in_time(&mut state)?;
                }
                Ok(Filled::Kept { offset, len, sum }) => {
                    state.so_far.sums.push(sum);
                    state.so_far.image_offset = offset + len as u64;
                    self.progress.send_modify(|p| p.kept_bytes += len as u64);
                }
                Ok(Filled::Verified(source_digest)) => return self.complete(state, source_digest),
                Err(_) => {
                    // The last chance: whatever is new is worth it.
                    self.save(&mut state, 1)?;
                    return Err(InstallError::Interrupted);
                }
            }
        }
    }

    fn take(&self, state: &mut State, part: Part) -> Result<Block, WriteError> {
        let Part { block, offset, len, sum, mark } = part;
        if len > 0 {
            state.so_far.sums.push(sum);
            self.put(block.bytes().split_at(len).0, offset, &mut state.scratch)?;
        }
        state.so_far.image_offset = offset + len as u64;
        if let Some(mark) = mark {
            state.reached = Some(Reached { image_offset: offset + mark.at as u64, mark });
        }
        Ok(block)
    }

    /// Writes a block, unless the slot holds it already.
    fn put(&self, bytes: &[u8], offset: u64, scratch: &mut Block) -> Result<(), WriteError> {
        // An unreadable old block is no reason not to write the new one.
        if self.holds(bytes, offset, scratch).unwrap_or(false) {
            self.progress.send_modify(|p| p.kept_bytes += bytes.len() as u64);
            return Ok(());
        }
        self.device.write_all_at(bytes, offset).map_err(|source| WriteError::Write { offset, source })?;
        self.progress.send_modify(|p| p.written_bytes += bytes.len() as u64);
        Ok(())
    }

    fn holds(&self, bytes: &[u8], offset: u64, scratch: &mut Block) -> io::Result<bool> {
        let (old, _) = scratch.bytes_mut().split_at_mut(bytes.len());
        // Mostly the first page tells already.
        let first = bytes.len().min(ALIGN_BYTES);
        let (old_page, _) = old.split_at_mut(first);
        self.device.read_exact_at(old_page, offset)?;
        if *old_page != *bytes.split_at(first).0 {
            return Ok(false);
        }
        self.device.read_exact_at(old, offset)?;
        Ok(old == bytes)
    }

    fn save_in_time(&self, state: &mut State) -> Result<(), WriteError> {
        match &self.checkpoint {
            Some(checkpoint) if boot_time().saturating_sub(state.saved_at) >= checkpoint.every => {
                self.save(state, CHECKPOINT_BYTES)
            }
            _ => Ok(()),
        }
    }

    /// Remembers how far it came, if that is `least_bytes` further than before, once those are on the medium.
    fn save(&self, state: &mut State, least_bytes: u64) -> Result<(), WriteError> {
        let Some(memory) = &self.checkpoint else { return Ok(()) };
        let least_offset = state.saved_offset + least_bytes;
        let Some(reached) = state.reached.take_if(|reached| reached.image_offset >= least_offset) else {
            return Ok(());
        };
        self.device.sync().map_err(|source| WriteError::Sync { source })?;
        let Reached { mark, image_offset } = reached;
        let rest_bytes = image_offset % BLOCK_BYTES as u64;
        let whole = usize::try_from(image_offset / BLOCK_BYTES as u64).unwrap_or(usize::MAX);
        let sums = state.so_far.sums.get(..whole).unwrap_or_default();
        let checkpoint = Checkpoint::new(
            memory.key.clone(),
            memory.validator.clone(),
            mark.format,
            (mark.source_offset, &mark.source_sha256()),
            (image_offset, prefix_crc32(sums, (mark.sum, rest_bytes))),
        );
        if let Err(error) = checkpoint.save(&memory.path) {
            // Without it an interrupted install only has to start over.
            tracing::warn!(path = %memory.path.display(), %error, "cannot save the install checkpoint");
        }
        (state.saved_at, state.saved_offset) = (boot_time(), image_offset);
        Ok(())
    }

    fn complete(&self, mut state: State, source_digest: Sha256Digest) -> Result<Image, InstallError> {
        self.progress.send_modify(|p| p.phase = Phase::Verifying);
        self.save_in_time(&mut state)?;
        self.device.sync().map_err(|source| WriteError::Sync { source })?;
        let SoFar { sums, image_offset } = state.so_far;
        drop(state.scratch);
        self.read_back(&sums, image_offset)?;
        Ok(Image { source_digest, size_bytes: image_offset, version: None, keys: None })
    }

    fn read_back(&self, sums: &[u32], size_bytes: u64) -> Result<(), InstallError> {
        let next = AtomicUsize::new(0);
        let compare = || self.compare_blocks(sums, size_bytes, &next);
        let readers = thread::available_parallelism().map_or(1, NonZero::get).min(READERS);
        thread::scope(|scope| {
            // Where there is no thread to be had, this one reads all.
            let others: Vec<_> = (1..readers)
                .filter_map(|_| thread::Builder::new().spawn_scoped(scope, compare).ok())
                .collect();
            let mut result = compare();
            for other in others {
                result = result.and(other.join().unwrap_or(Err(InstallError::Interrupted)));
            }
            result
        })
    }

    /// Compares blocks that no other reader took, until none is left.
    fn compare_blocks(&self, sums: &[u32], size_bytes: u64, next: &AtomicUsize) -> Result<(), InstallError> {
        let mut block = Block::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(sum) = sums.get(index) else { return Ok(()) };
            if *self.cancel.borrow() {
                return Err(InstallError::Cancelled);
            }
            let offset = index as u64 * BLOCK_BYTES as u64;
            let left = size_bytes - offset;
            let len = usize::try_from(left).map_or(BLOCK_BYTES, |left| left.min(BLOCK_BYTES));
            let (bytes, _) = block.bytes_mut().split_at_mut(len);
            self.device.read_exact_at(bytes, offset).map_err(|source| WriteError::Read { offset, source })?;
            if crc32fast::hash(bytes) != *sum {
                // The other readers need not go on.
                next.store(sums.len(), Ordering::Relaxed);
                return Err(WriteError::ReadBack { offset }.into());
            }
        }
    }
}
