//! The third stage: source bytes are decoded and cut into blocks.

use std::sync::mpsc::{Receiver, SyncSender};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::InstallError;
use super::decode::{DecodeError, Decoder, Format, MAGIC_BYTES, Step};
use super::resume::Start;
use super::slot::{BLOCK_BYTES, Block};
use super::verify::{Chunk, Seen};
use crate::bundle::MAGIC;
use crate::update::Sha256Digest;

/// What the slot and the source allow.
pub struct Room {
    /// The slot's size in bytes.
    pub capacity_bytes: u64,
    /// Size of the whole source in bytes, where known.
    pub source_bytes: Option<u64>,
    /// Whether an install of compressed data can go on from a mark.
    pub may_mark_packed: bool,
}

/// A point of the source at which a fresh decoder can start: anywhere in a raw image, else between frames.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Offset in the block of the image bytes that follow.
    pub at: usize,
    /// How the source is packed.
    pub format: Format,
    /// Source bytes before the mark.
    pub source_offset: u64,
    /// Over the source before `chunk`.
    before: Sha256,
    /// Holds the mark.
    chunk: Bytes,
    /// Bytes of `chunk` before the mark.
    used: usize,
}

impl Mark {
    /// Over the source bytes before the mark. Few marks are asked, so it is not kept up to date.
    #[must_use]
    pub fn source_sha256(&self) -> Sha256 {
        self.before.clone().chain_update(self.chunk.split_at(self.used).0)
    }
}

/// What the writer is told.
#[derive(Debug)]
pub enum Filled {
    /// The next part of the image.
    Block(Part),
    /// The next part of the image, which the slot was found to hold.
    Kept {
        /// Offset in the slot; a multiple of [`BLOCK_BYTES`].
        offset: u64,
        /// How many bytes.
        len: usize,
        /// CRC-32 of them.
        sum: u32,
    },
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
    /// The last mark within them.
    pub mark: Option<Mark>,
}

/// Runs the stage until the source ends, is cut off, or is found to be bad.
///
/// # Errors
/// [`InstallError::Interrupted`] where a neighbour stopped; else what is wrong with the source.
pub fn run(
    start: Start,
    room: Room,
    seen: &Receiver<Seen>,
    empty: &Receiver<Block>,
    filled: &SyncSender<Filled>,
) -> Result<(), InstallError> {
    let mut unpacker = Unpacker::new(start, room, empty, filled)?;
    loop {
        match seen.recv() {
            Ok(Seen::Chunks(chunks)) => chunks.into_iter().try_for_each(|chunk| unpacker.push(chunk))?,
            Ok(Seen::Verified(digest)) => return unpacker.finish(digest),
            Err(_) => return Err(InstallError::Interrupted),
        }
    }
}

struct Unpacker<'a> {
    room: Room,
    empty: &'a Receiver<Block>,
    filled: &'a SyncSender<Filled>,
    /// Absent until the magic is known.
    decoder: Option<Decoder>,
    /// Fewer than [`MAGIC_BYTES`], kept until there are enough.
    head: Option<Bytes>,
    source_offset: u64,
    /// The block being filled.
    block: Option<Block>,
    offset: u64,
    len: usize,
    mark: Option<Mark>,
}

impl<'a> Unpacker<'a> {
    fn new(
        start: Start,
        room: Room,
        empty: &'a Receiver<Block>,
        filled: &'a SyncSender<Filled>,
    ) -> Result<Self, InstallError> {
        let known = usize::try_from(start.image_offset % BLOCK_BYTES as u64).unwrap_or_default();
        Ok(Self {
            room,
            empty,
            filled,
            decoder: start.format.map(|format| Decoder::new(format, start.source_offset)).transpose()?,
            head: None,
            source_offset: start.source_offset,
            block: start.head,
            offset: start.image_offset - known as u64,
            len: known,
            mark: None,
        })
    }

    fn push(&mut self, Chunk { bytes, before }: Chunk) -> Result<(), InstallError> {
        if self.decoder.is_some() {
            return self.decode(&bytes, &before);
        }
        let Some(head) = self.head.take() else { return self.begin(bytes, before) };
        // Only the very first bytes of a source are ever kept.
        self.begin(Bytes::from([head, bytes].concat()), Sha256::new())
    }

    /// Tells the format by the first bytes, once there are enough.
    fn begin(&mut self, bytes: Bytes, before: Sha256) -> Result<(), InstallError> {
        if bytes.len() < MAGIC_BYTES {
            self.head = Some(bytes);
            return Ok(());
        }
        self.decoder = Some(self.decoder_for(&bytes)?);
        self.decode(&bytes, &before)
    }

    fn decoder_for(&self, first: &[u8]) -> Result<Decoder, InstallError> {
        if MAGIC.starts_with(first.get(..MAGIC_BYTES).unwrap_or(first)) {
            return Err(InstallError::IsBundle);
        }
        let format = Format::of(first);
        let Room { capacity_bytes, source_bytes, .. } = self.room;
        if format == Format::Raw && source_bytes.is_some_and(|size| size > capacity_bytes) {
            return Err(InstallError::TooLarge { size_bytes: source_bytes, capacity_bytes });
        }
        Ok(Decoder::new(format, 0)?)
    }

    fn decode(&mut self, chunk: &Bytes, before: &Sha256) -> Result<(), InstallError> {
        let mut used = 0;
        loop {
            let (step, offered) = self.step(chunk.split_at(used).1)?;
            used += step.consumed;
            let at_boundary = self.note_mark(chunk, used, before);
            if self.len == BLOCK_BYTES {
                self.hand_over()?;
            }
            if used == chunk.len() && (step.produced < offered || at_boundary) {
                return Ok(());
            }
        }
    }

    /// One step of the decoder into the present block; also says how much room it had.
    fn step(&mut self, input: &[u8]) -> Result<(Step, usize), InstallError> {
        let Some(decoder) = &mut self.decoder else { return Err(InstallError::Interrupted) };
        let capacity_bytes = self.room.capacity_bytes;
        let left = capacity_bytes - self.offset - self.len as u64;
        let (step, offered) = if left == 0 {
            let mut excess = [0];
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
            let room = usize::try_from(left).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES - self.len);
            let (piece, _) = block.bytes_mut().split_at_mut(self.len).1.split_at_mut(room);
            let step = decoder.step(input, piece)?;
            (step, piece.len())
        };
        self.source_offset += step.consumed as u64;
        self.len += step.produced;
        Ok((step, offered))
    }

    /// Whether a fresh decoder could start here; then that is noted.
    fn note_mark(&mut self, chunk: &Bytes, used: usize, before: &Sha256) -> bool {
        let Some(decoder) = &self.decoder else { return false };
        let format = decoder.format();
        if decoder.at_boundary() && (self.room.may_mark_packed || format == Format::Raw) {
            self.mark = Some(Mark {
                at: self.len,
                format,
                source_offset: self.source_offset,
                before: before.clone(),
                chunk: chunk.clone(),
                used,
            });
        }
        decoder.at_boundary()
    }

    fn hand_over(&mut self) -> Result<(), InstallError> {
        let block = match self.block.take() {
            Some(block) => block,
            // The end of the source may lie behind the end of the image.
            None if self.mark.is_some() => self.empty.recv().map_err(|_| InstallError::Interrupted)?,
            None => return Ok(()),
        };
        let (offset, len) = (self.offset, self.len);
        let part = Part { block, offset, len, mark: self.mark.take() };
        self.offset += len as u64;
        self.len = 0;
        self.filled.send(Filled::Block(part)).map_err(|_| InstallError::Interrupted)
    }

    /// The source has ended, and is the one that was meant.
    fn finish(mut self, digest: Sha256Digest) -> Result<(), InstallError> {
        if let Some(head) = self.head.take() {
            self.decoder = Some(self.decoder_for(&head)?);
            self.decode(&head, &Sha256::new())?;
        }
        let Some(decoder) = &self.decoder else { return Err(DecodeError::Empty.into()) };
        decoder.finish()?;
        // Frames of nothing are whole, and no image: what the slot held before would be taken for it.
        if self.offset + self.len as u64 == 0 {
            return Err(DecodeError::Empty.into());
        }
        self.hand_over()?;
        self.filled.send(Filled::Verified(digest)).map_err(|_| InstallError::Interrupted)
    }
}
