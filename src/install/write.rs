//! The fourth stage: blocks go to the slot.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::checkpoint::{Checkpoint, Key, prefix_crc32};
use super::fetch::boot_time;
use super::read_back::{self, Synced};
use super::slot::{ALIGN_BYTES, BLOCK_BYTES, Block, SlotDevice};
use super::unpack::{Filled, Mark, Part};
use super::validator::Validator;
use super::{InstallError, Phase, Progress};
use crate::update::{Code, Image};

/// A checkpoint that saves less than this is not worth its sync.
const CHECKPOINT_BYTES: u64 = 4 << 20;

/// How many blocks are synced and given to the reader at a time: little is left to read at the end, and a sync for
/// each 32 MiB is no burden to any medium.
const SECTION_BLOCKS: usize = 32;

/// Sections that wait for the reader; the writer waits for a medium that reads slower than it writes.
const SECTIONS: usize = 2;

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
    /// The system has no room for it.
    #[error("cannot start the thread that reads the slot back")]
    Reader {
        /// What the system says.
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
    /// Looked at while the slot is read back.
    pub cancel: watch::Receiver<bool>,
    /// Whether the install is complete with it.
    pub is_last: bool,
    /// Told once nothing more can be taken, so that nobody waits for a server in vain.
    pub failed: Arc<Notify>,
}

/// A mark whose bytes are in the slot, though perhaps not synced.
struct Reached {
    mark: Mark,
    image_offset: u64,
    /// CRC-32 of its block's bytes before it.
    sum: u32,
}

/// What a run keeps from block to block.
struct State {
    so_far: SoFar,
    scratch: Block,
    reached: Option<Reached>,
    saved_at: Duration,
    saved_offset: u64,
    /// Blocks that the reader knows of.
    handed_on: usize,
}

impl Writer {
    /// Writes what comes, until it is complete; each section is synced, read back and compared meanwhile.
    ///
    /// # Errors
    /// [`InstallError::Interrupted`] where the source did not complete; else what is wrong with the slot.
    pub fn run(
        &self,
        so_far: SoFar,
        filled: &Receiver<Filled>,
        empty: &SyncSender<Block>,
    ) -> Result<Image, InstallError> {
        let (hand_on, synced) = sync_channel(SECTIONS);
        let tell = |_: &InstallError| self.failed.notify_one();
        let read_back = move || read_back::run(self.device.as_ref(), synced, &self.cancel).inspect_err(tell);
        thread::scope(|scope| {
            let reader = thread::Builder::new()
                .spawn_scoped(scope, read_back)
                .map_err(|source| WriteError::Reader { source }.into())
                .inspect_err(tell)?;
            let written = self.write(so_far, filled, empty, hand_on).inspect_err(tell);
            // A reader that found a fault has stopped the writer.
            reader.join().unwrap_or(Err(InstallError::Interrupted)).and(written)
        })
    }

    fn write(
        &self,
        so_far: SoFar,
        filled: &Receiver<Filled>,
        empty: &SyncSender<Block>,
        hand_on: SyncSender<Synced>,
    ) -> Result<Image, InstallError> {
        let saved_offset = so_far.image_offset;
        let (scratch, saved_at) = (Block::new(), boot_time());
        let mut state = State { so_far, scratch, reached: None, saved_at, saved_offset, handed_on: 0 };
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
                Ok(Filled::Verified(source_digest)) => {
                    self.complete(&mut state, &hand_on)?;
                    let size_bytes = state.so_far.image_offset;
                    return Ok(Image { source_digest, size_bytes, version: None, keys: None });
                }
                Err(_) => {
                    // The last chance: whatever is new is worth it.
                    self.save(&mut state, 1)?;
                    return Err(InstallError::Interrupted);
                }
            }
            // The last block may be a short one, and is left for the end.
            if state.so_far.sums.len() > state.handed_on + SECTION_BLOCKS {
                let next = self.sync_section(&mut state, 1)?;
                hand_on.send(Synced::Blocks(next)).map_err(|_| InstallError::Interrupted)?;
            }
        }
    }

    fn take(&self, state: &mut State, part: Part) -> Result<Block, WriteError> {
        let Part { block, offset, len, mark } = part;
        let (bytes, _) = block.bytes().split_at(len);
        let (before, after) = bytes.split_at(mark.as_ref().map_or(0, |mark| mark.at));
        let mut sum = crc32fast::Hasher::new();
        sum.update(before);
        if let Some(mark) = mark {
            let image_offset = offset + mark.at as u64;
            state.reached = Some(Reached { image_offset, sum: sum.clone().finalize(), mark });
        }
        if len > 0 {
            sum.update(after);
            state.so_far.sums.push(sum.finalize());
            self.put(bytes, offset, &mut state.scratch)?;
        }
        state.so_far.image_offset = offset + len as u64;
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
        self.progress.send_modify(|p| {
            p.written_bytes += bytes.len() as u64;
            p.fresh_bytes = p.fresh_bytes.max(p.written_bytes);
        });
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
        let Reached { mark, image_offset, sum } = reached;
        let rest_bytes = image_offset % BLOCK_BYTES as u64;
        let whole = usize::try_from(image_offset / BLOCK_BYTES as u64).unwrap_or(usize::MAX);
        let sums = state.so_far.sums.get(..whole).unwrap_or_default();
        let checkpoint = Checkpoint::new(
            memory.key.clone(),
            memory.validator.clone(),
            mark.format,
            (mark.source_offset, &mark.source_sha256()),
            (image_offset, prefix_crc32(sums, (sum, rest_bytes))),
        );
        match checkpoint.save(&memory.path) {
            // Headway, also where the slot held those already: no attempt to come passes them again. But those of an
            // attempt that began at the beginning may have been passed by others, which could not go on either.
            Ok(()) => self.progress.send_modify(|p| {
                let beyond = if p.saved_bytes > 0 { image_offset - state.saved_offset } else { 0 };
                p.fresh_bytes = p.fresh_bytes.max(beyond);
            }),
            // Without it an interrupted install only has to start over.
            Err(error) => {
                tracing::warn!(path = %memory.path.display(), %error, "cannot save the install checkpoint");
            }
        }
        (state.saved_at, state.saved_offset) = (boot_time(), image_offset);
        Ok(())
    }

    fn complete(&self, state: &mut State, hand_on: &SyncSender<Synced>) -> Result<(), InstallError> {
        if self.is_last {
            self.progress.send_modify(|p| p.phase = Phase::Verifying);
        }
        self.save_in_time(state)?;
        let last = self.sync_section(state, 0)?;
        hand_on.send(Synced::End(last, state.so_far.image_offset)).map_err(|_| InstallError::Interrupted)
    }

    /// Syncs; gives the sums of the blocks that the reader does not know, but for the last `but`.
    fn sync_section(&self, state: &mut State, but: usize) -> Result<Vec<u32>, WriteError> {
        self.device.sync().map_err(|source| WriteError::Sync { source })?;
        let sums = &state.so_far.sums;
        let end = sums.len().saturating_sub(but);
        let next = sums.get(state.handed_on..end).unwrap_or_default().to_vec();
        state.handed_on = end;
        Ok(next)
    }
}
