//! The middle stage: source bytes are verified, decoded, and cut into blocks.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};

use super::checkpoint::{Checkpoint, Key};
use super::decode::{Decoder, Format, MAGIC_BYTES, Step};
use super::fetch::Validator;
use super::slot::{BLOCK_BYTES, Block, SlotDevice};
use super::verify::{Check, Verifier};
use super::write::{SoFar, WriteError};
use super::{Feed, InstallError};
use crate::update::Sha256Digest;

/// What an earlier attempt left, proven by the slot's content; by default nothing.
#[derive(Debug, Default)]
pub struct Start {
    /// Source bytes that need not come again.
    pub source_offset: u64,
    /// The file that they are of.
    pub validator: Option<Validator>,
    source_sha256: Sha256,
    format: Option<Format>,
    image_offset: u64,
    image_sha256: Sha256,
    /// CRC-32 of each whole block before `image_offset`.
    sums: Vec<u32>,
    /// Holds the image bytes before `image_offset` that make no whole block.
    head: Option<Block>,
}

impl Start {
    /// Reads what the checkpoint at `path` claims to be in the slot. Where there is no checkpoint, or the slot
    /// holds something else, the start is the beginning.
    ///
    /// # Errors
    /// When the slot cannot be read, or the install is cancelled meanwhile.
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
        if !is_usable || claim.image_offset > device.capacity_bytes() {
            return Ok(Self::default());
        }
        let mut found = Self::default();
        let (image_sha256, sums) = (&mut found.image_sha256, &mut found.sums);
        found.head = read_prefix(device, claim.image_offset, |bytes| {
            image_sha256.update(bytes);
            if bytes.len() == BLOCK_BYTES {
                sums.push(crc32fast::hash(bytes));
            }
            if *cancel.borrow() { Err(InstallError::Cancelled) } else { Ok(()) }
        })?;
        if Sha256Digest(found.image_sha256.clone().finalize().into()) != claim.image_digest {
            tracing::warn!(bytes = claim.image_offset, "the slot does not hold what the checkpoint says");
            return Ok(Self::default());
        }
        Ok(Self {
            source_offset: claim.source_offset,
            source_sha256: if raw { found.image_sha256.clone() } else { source_sha256 },
            validator: Some(claim.validator),
            format: Some(claim.format),
            image_offset: claim.image_offset,
            ..found
        })
    }

    /// The writer's share of it.
    #[must_use]
    pub fn so_far(&self) -> SoFar {
        SoFar {
            sums: self.sums.clone(),
            image_sha256: self.image_sha256.clone(),
            image_offset: self.image_offset,
        }
    }
}

/// Shows `visit` the first `end` bytes of the slot, block by block; gives the last block if it is not whole.
fn read_prefix(
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

/// What the slot and the source allow.
pub struct Room {
    /// The slot: to see again what an earlier attempt put there.
    pub device: Arc<dyn SlotDevice>,
    /// Size of the whole source in bytes, where known.
    pub source_bytes: Option<u64>,
}

/// A point of the source at which a fresh decoder can start.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Offset in the block of the image bytes that follow.
    pub at: usize,
    /// How the source is packed.
    pub format: Format,
    /// Source bytes before the mark.
    pub source_offset: u64,
    /// Over those.
    pub source_sha256: Sha256,
}

/// What the writer is told.
#[derive(Debug)]
pub enum Filled {
    /// The next part of the image.
    Block(Part),
    /// The source was complete, and verified.
    Verified(Sha256Digest),
}

/// Image bytes for one place of the slot.
#[derive(Debug)]
pub struct Part {
    /// Holds them, at its beginning.
    pub block: Block,
    /// Offset in the slot; a multiple of [`BLOCK_BYTES`].
    pub offset: u64,
    /// How many.
    pub len: usize,
    /// So many of them were in the slot before.
    pub known: usize,
    /// The last mark within them.
    pub mark: Option<Mark>,
    /// Whether the image is the source itself, and needs no digest of its own.
    pub raw: bool,
}

/// Runs the stage until the source ends, is cut off, or is found to be bad.
///
/// # Errors
/// [`InstallError::Interrupted`] where a neighbour stopped; else what is wrong with the source.
pub fn run(
    start: Start,
    check: &Check,
    room: Room,
    mut chunks: mpsc::Receiver<Feed>,
    empty: &Receiver<Block>,
    filled: &SyncSender<Filled>,
) -> Result<(), InstallError> {
    let mut unpacker = Unpacker::new(start, check, room, empty, filled)?;
    loop {
        match chunks.blocking_recv() {
            Some(Feed::Chunk(bytes)) => unpacker.push(&bytes)?,
            Some(Feed::End) => return unpacker.finish(),
            None => return Err(InstallError::Interrupted),
        }
    }
}

struct Unpacker<'a> {
    verifier: Verifier<'a>,
    room: Room,
    empty: &'a Receiver<Block>,
    filled: &'a SyncSender<Filled>,
    /// Absent until the magic is known.
    decoder: Option<Decoder>,
    /// Fewer than [`MAGIC_BYTES`], kept until there are enough.
    magic: Vec<u8>,
    source_offset: u64,
    /// The block being filled.
    block: Option<Block>,
    offset: u64,
    len: usize,
    known: usize,
    mark: Option<Mark>,
    may_mark_packed: bool,
}

impl<'a> Unpacker<'a> {
    fn new(
        start: Start,
        check: &'a Check,
        room: Room,
        empty: &'a Receiver<Block>,
        filled: &'a SyncSender<Filled>,
    ) -> Result<Self, InstallError> {
        let mut verifier = check.start()?;
        let signed = matches!(check, Check::Signature(_));
        if signed && start.source_offset > 0 {
            read_prefix(room.device.as_ref(), start.image_offset, |bytes| {
                verifier.update(bytes);
                Ok(())
            })?;
        } else {
            verifier.sha256 = start.source_sha256;
        }
        let decoder = start.format.map(|format| Decoder::new(format, start.source_offset)).transpose()?;
        let known = usize::try_from(start.image_offset % BLOCK_BYTES as u64).unwrap_or_default();
        Ok(Self {
            verifier,
            room,
            empty,
            filled,
            decoder,
            magic: Vec::new(),
            source_offset: start.source_offset,
            block: start.head,
            offset: start.image_offset - known as u64,
            len: known,
            known,
            mark: None,
            may_mark_packed: !signed,
        })
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), InstallError> {
        if self.decoder.is_some() {
            return self.decode(bytes);
        }
        self.magic.extend_from_slice(bytes);
        if self.magic.len() < MAGIC_BYTES { Ok(()) } else { self.decode_first() }
    }

    /// Decodes what was kept to tell the format by.
    fn decode_first(&mut self) -> Result<(), InstallError> {
        let first = std::mem::take(&mut self.magic);
        let format = Format::of(&first);
        let capacity_bytes = self.room.device.capacity_bytes();
        if format == Format::Raw && self.room.source_bytes.is_some_and(|size| size > capacity_bytes) {
            return Err(InstallError::TooLarge { size_bytes: self.room.source_bytes, capacity_bytes });
        }
        self.decoder = Some(Decoder::new(format, 0)?);
        self.decode(&first)
    }

    fn decode(&mut self, mut input: &[u8]) -> Result<(), InstallError> {
        loop {
            let (step, offered) = self.step(input)?;
            input = input.split_at(step.consumed).1;
            if self.len == BLOCK_BYTES {
                self.hand_over()?;
            }
            let at_boundary = self.decoder.as_ref().is_some_and(Decoder::at_boundary);
            if input.is_empty() && (step.produced < offered || at_boundary) {
                return Ok(());
            }
        }
    }

    /// One step of the decoder into the present block; also says how much room it had.
    fn step(&mut self, input: &[u8]) -> Result<(Step, usize), InstallError> {
        let Some(decoder) = &mut self.decoder else { return Err(InstallError::Interrupted) };
        let capacity_bytes = self.room.device.capacity_bytes();
        let left = capacity_bytes - self.offset - self.len as u64;
        let mut excess = [0];
        let (step, offered) = if left == 0 {
            let step = decoder.step(input, &mut excess)?;
            if step.produced > 0 {
                return Err(InstallError::TooLarge { size_bytes: None, capacity_bytes });
            }
            (step, excess.len())
        } else {
            let block = match self.block.take() {
                Some(block) => block,
                None => self.empty.recv().map_err(|_| InstallError::Interrupted)?,
            };
            let block = self.block.insert(block);
            let offered = usize::try_from(left).map_or(BLOCK_BYTES, |left| left.min(BLOCK_BYTES - self.len));
            let (_, free) = block.bytes_mut().split_at_mut(self.len);
            (decoder.step(input, free.split_at_mut(offered).0)?, offered)
        };
        self.verifier.update(input.split_at(step.consumed).0);
        self.source_offset += step.consumed as u64;
        self.len += step.produced;
        let format = decoder.format();
        if decoder.at_boundary() && (self.may_mark_packed || format == Format::Raw) {
            self.mark = Some(Mark {
                at: self.len,
                format,
                source_offset: self.source_offset,
                source_sha256: self.verifier.sha256.clone(),
            });
        }
        Ok((step, offered))
    }

    fn hand_over(&mut self) -> Result<(), InstallError> {
        let block = match self.block.take() {
            Some(block) => block,
            // The end of the source may lie behind the end of the image.
            None if self.mark.is_some() => self.empty.recv().map_err(|_| InstallError::Interrupted)?,
            None => return Ok(()),
        };
        let raw = self.decoder.as_ref().is_some_and(|decoder| decoder.format() == Format::Raw);
        let (offset, len, known) = (self.offset, self.len, self.known);
        let part = Part { block, offset, len, known, mark: self.mark.take(), raw };
        self.offset += len as u64;
        (self.len, self.known) = (0, 0);
        self.filled.send(Filled::Block(part)).map_err(|_| InstallError::Interrupted)
    }

    fn finish(mut self) -> Result<(), InstallError> {
        if self.decoder.is_none() {
            self.decode_first()?;
        }
        let (decoder, verifier) = (self.decoder.as_ref(), self.verifier.clone());
        let digest = verifier.finish()?;
        decoder.map_or(Ok(()), Decoder::finish)?;
        self.hand_over()?;
        self.filled.send(Filled::Verified(digest)).map_err(|_| InstallError::Interrupted)
    }
}
