//! One image out of what there is of it: kept, copied, or fetched; each chunk hashed before it may reach the slot.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender};

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::super::slot::{BLOCK_BYTES, Block, SlotDevice};
use super::super::unpack::{Filled, Part};
use super::super::write::WriteError;
use super::super::{InstallError, Progress};
use super::patch::Patch;
use super::plan::{Origin, Plan};
use super::supply::Supply;
use super::survey::{Wanted, block_of};
use crate::bundle::{Context, Entry, Piece, unpack};
use crate::update::Sha256Digest;

/// A piece that was not needed yet.
const NOT_YET: u64 = u64::MAX;

/// What an assembly works with.
pub struct Bench<'a> {
    /// What.
    pub image: Wanted<'a>,
    /// From where.
    pub plan: &'a Plan,
    /// Where the pieces begin in the file.
    pub pieces_offset: u64,
    /// Of the manifest.
    pub context_bytes: u32,
    /// Where to.
    pub target: &'a dyn SlotDevice,
    /// What runs.
    pub running: Option<&'a dyn SlotDevice>,
    /// From what runs, if it is the base of one.
    pub patch: Option<&'a Patch>,
    /// The network.
    pub supply: &'a mut Supply,
    /// Told what is done.
    pub progress: &'a watch::Sender<Progress>,
    /// Looked at before each chunk.
    pub cancel: &'a watch::Receiver<bool>,
}

/// The image so far.
pub struct Assembly<'a> {
    bench: Bench<'a>,
    blocks: Blocks<'a>,
    /// For each piece of the image, where it was used first.
    places: Vec<u64>,
    context: Context,
    /// Entries that the context knows.
    known: usize,
    /// The present chunk.
    chunk: Vec<u8>,
    stored: Vec<u8>,
    /// The last frame, and what it makes; nothing if it could not be made.
    frame: (Option<u32>, Vec<u8>),
}

impl<'a> Assembly<'a> {
    /// Of nothing yet. Blocks that the writer is done with come back by `empty`.
    pub fn new(
        bench: Bench<'a>,
        spare: Vec<Block>,
        empty: &'a Receiver<Block>,
        filled: &'a SyncSender<Filled>,
    ) -> Self {
        let blocks = Blocks {
            right: &bench.plan.kept.blocks,
            target: bench.target,
            empty,
            filled,
            spare,
            written_soon: VecDeque::new(),
            block: None,
            offset: 0,
            len: 0,
        };
        Self {
            places: vec![NOT_YET; bench.image.pieces.len()],
            context: Context::new(bench.context_bytes),
            known: 0,
            chunk: Vec::new(),
            stored: Vec::new(),
            frame: (None, Vec::new()),
            blocks,
            bench,
        }
    }

    /// Gives the writer the whole image.
    ///
    /// # Errors
    /// [`InstallError::Interrupted`] where a neighbour stopped; else what is wrong with the bundle or a slot.
    pub fn run(mut self, digest: Sha256Digest) -> Result<(), InstallError> {
        let mut place = 0;
        for (number, entry) in self.bench.image.entries.iter().enumerate() {
            if *self.bench.cancel.borrow() {
                return Err(InstallError::Cancelled);
            }
            let size_bytes = u64::from(self.bench.image.index.size_bytes(*entry));
            self.entry(number, *entry, place, size_bytes)?;
            place += size_bytes;
            self.bench.progress.send_modify(|p| p.bytes += size_bytes);
        }
        self.blocks.hand_over()?;
        self.blocks.filled.send(Filled::Verified(digest)).map_err(|_| InstallError::Interrupted)
    }

    fn entry(
        &mut self,
        number: usize,
        entry: Entry,
        place: u64,
        size_bytes: u64,
    ) -> Result<(), InstallError> {
        let needed = !self.bench.plan.kept.all(place..place + size_bytes);
        if matches!(entry, Entry::Zeros(_)) && self.known == number {
            self.known += 1;
        }
        match entry {
            Entry::Zeros(_) if needed => self.blocks.push(size_bytes, |part, _| part.fill(0)),
            Entry::Zeros(_) => self.blocks.push(size_bytes, |_, _| {}),
            Entry::Piece(piece) => {
                if needed {
                    self.make(number, piece, place)?;
                    self.remember(number);
                    let chunk = &self.chunk;
                    self.blocks.push(size_bytes, |part, from| {
                        part.copy_from_slice(chunk.get(from..from + part.len()).unwrap_or_default());
                    })?;
                } else {
                    self.blocks.push(size_bytes, |_, _| {})?;
                }
                let of_image = self.of_image(piece);
                let first = self.places.get_mut(of_image).ok_or(InstallError::Interrupted)?;
                *first = (*first).min(place);
                Ok(())
            }
        }
    }

    /// A piece's number among those of its image.
    fn of_image(&self, piece: u32) -> usize {
        (piece as usize).saturating_sub(self.bench.image.pieces.start)
    }

    /// Puts the piece that belongs to `place` into `self.chunk`.
    fn make(&mut self, entry: usize, number: u32, place: u64) -> Result<(), InstallError> {
        let piece = self.bench.image.piece(number)?;
        self.chunk.resize(piece.size_bytes as usize, 0);
        let of_image = self.of_image(number);
        let first = self.places.get(of_image).copied().unwrap_or(NOT_YET);
        let kept = self.bench.plan.kept.entries.get(entry).copied().unwrap_or_default();
        if kept && self.bench.target.read_exact_at(&mut self.chunk, place).is_ok() && self.is(piece) {
            return Ok(());
        }
        if first != NOT_YET {
            self.blocks.read(first, &mut self.chunk)?;
            let read_back = WriteError::ReadBack { offset: first };
            return if self.is(piece) { Ok(()) } else { Err(read_back.into()) };
        }
        if let Some(from) = self.bench.plan.copy(of_image)
            && self.bench.running.is_some_and(|running| running.read_exact_at(&mut self.chunk, from).is_ok())
            && self.is(piece)
        {
            self.bench.progress.send_modify(|p| p.copied_bytes += u64::from(piece.size_bytes));
            return Ok(());
        }
        if let Origin::Frame(frame) = self.bench.plan.origin(of_image)
            && self.cut_from_frame(frame, of_image, piece)?
        {
            return Ok(());
        }
        self.fetch(entry, of_image, piece)
    }

    /// Puts a piece into `self.chunk` that a frame makes; gives whether it is the right one.
    fn cut_from_frame(&mut self, number: u32, of_image: usize, piece: &Piece) -> Result<bool, InstallError> {
        let Some(patch) = self.bench.patch else { return Ok(false) };
        if self.frame.0 != Some(number) {
            // The last one goes first: there is memory for one.
            self.frame = (None, Vec::new());
            self.frame = (Some(number), self.make_frame(patch, number)?);
        }
        let Some((_, offset)) = patch.frame_of(of_image) else { return Ok(false) };
        let range = offset as usize..offset as usize + piece.size_bytes as usize;
        let Some(made) = self.frame.1.get(range) else { return Ok(false) };
        self.chunk.copy_from_slice(made);
        Ok(self.is(piece))
    }

    /// What a frame makes of the base. What is wrong with it, or with the base, shows in its pieces.
    fn make_frame(&mut self, patch: &Patch, number: u32) -> Result<Vec<u8>, InstallError> {
        let mut made = Vec::new();
        let Some((frame, part)) = patch.frame(number) else { return Ok(made) };
        self.bench.supply.take(part, &mut self.stored)?;
        let prefix = self.bench.running.and_then(|base| patch.prefix(frame, base).ok());
        if prefix.is_none_or(|prefix| unpack(&self.stored, frame.size_bytes, &prefix, &mut made).is_err()) {
            made.clear();
        }
        Ok(made)
    }

    /// From the bundle; what comes damaged is asked for once more.
    fn fetch(&mut self, entry: usize, of_image: usize, piece: &Piece) -> Result<(), InstallError> {
        let start = self.bench.pieces_offset + piece.stored_offset;
        let part = start..start + u64::from(piece.stored_bytes);
        self.catch_up(entry)?;
        let comes_by = self.bench.plan.origin(of_image) == Origin::Stored || self.bench.supply.is_whole;
        if comes_by
            && self.bench.supply.take(part.clone(), &mut self.stored).is_ok()
            && self.unpack(piece).is_ok()
            && self.is(piece)
        {
            return Ok(());
        }
        self.stored = self.bench.supply.demand(part)?;
        self.unpack(piece)?;
        let actual = Sha256Digest(Sha256::digest(&self.chunk).into());
        if actual == piece.sha256 {
            return Ok(());
        }
        Err(InstallError::Chunk { offset: start, expected: piece.sha256, actual })
    }

    fn unpack(&mut self, piece: &Piece) -> Result<(), InstallError> {
        Ok(unpack(&self.stored, piece.size_bytes, self.context.as_slice(), &mut self.chunk)?)
    }

    /// Whether `self.chunk` is this piece.
    fn is(&self, piece: &Piece) -> bool {
        *Sha256::digest(&self.chunk) == piece.sha256.0
    }

    /// Lets the context know the present chunk, if it knows all before it.
    fn remember(&mut self, entry: usize) {
        if self.known == entry {
            self.context.push(&self.chunk);
            self.known = entry + 1;
        }
    }

    /// Lets the context know what comes before an entry: what was kept was not read.
    fn catch_up(&mut self, entry: usize) -> Result<(), InstallError> {
        let context_bytes = u64::from(self.bench.context_bytes);
        let image = self.bench.image;
        let (mut first, mut have) = (entry, 0);
        let mut place = self.blocks.offset + self.blocks.len as u64;
        while first > self.known && have < context_bytes {
            first -= 1;
            let Some(before) = image.entries.get(first) else { break };
            let size_bytes = u64::from(image.index.size_bytes(*before));
            place -= size_bytes;
            if matches!(before, Entry::Piece(_)) {
                have += size_bytes;
            }
        }
        let mut bytes = Vec::new();
        for before in image.entries.get(first..entry).unwrap_or_default() {
            let size_bytes = image.index.size_bytes(*before);
            if matches!(before, Entry::Piece(_)) && context_bytes > 0 {
                bytes.resize(size_bytes as usize, 0);
                self.blocks.read(place, &mut bytes)?;
                self.context.push(&bytes);
            }
            place += u64::from(size_bytes);
        }
        self.known = entry;
        Ok(())
    }
}

/// The blocks of the image: on their way to the writer, except those that the slot has already.
struct Blocks<'a> {
    /// CRC-32 of those.
    right: &'a [Option<u32>],
    target: &'a dyn SlotDevice,
    /// From the writer, in the order in which they were handed over: what comes back is in the slot.
    empty: &'a Receiver<Block>,
    filled: &'a SyncSender<Filled>,
    spare: Vec<Block>,
    /// Those that have not come back.
    written_soon: VecDeque<u64>,
    /// The present one, unless it is right already.
    block: Option<Block>,
    /// Of the present one.
    offset: u64,
    /// Bytes of it that are there.
    len: usize,
}

impl Blocks<'_> {
    fn sum(&self, offset: u64) -> Option<u32> {
        self.right.get(block_of(offset)).copied().flatten()
    }

    /// Lets `fill` make the next `size_bytes`, where they are needed: it gets the room for some of them, and how
    /// many come before.
    fn push(&mut self, size_bytes: u64, mut fill: impl FnMut(&mut [u8], usize)) -> Result<(), InstallError> {
        let mut done = 0;
        while done < size_bytes {
            let room = BLOCK_BYTES - self.len;
            let len = usize::try_from(size_bytes - done).map_or(room, |left| left.min(room));
            if self.sum(self.offset).is_none() {
                let mut block = match self.block.take() {
                    Some(block) => block,
                    None => self.empty_block()?,
                };
                let (_, rest) = block.bytes_mut().split_at_mut(self.len);
                fill(rest.split_at_mut(len).0, usize::try_from(done).unwrap_or(usize::MAX));
                self.block = Some(block);
            }
            self.len += len;
            done += len as u64;
            if self.len == BLOCK_BYTES {
                self.hand_over()?;
            }
        }
        Ok(())
    }

    /// The present block is complete, or the image is.
    fn hand_over(&mut self) -> Result<(), InstallError> {
        let (offset, len) = (self.offset, self.len);
        let filled = match (self.sum(offset), self.block.take()) {
            _ if len == 0 => return Ok(()),
            (Some(sum), _) => Filled::Kept { offset, len, sum },
            (None, Some(block)) => {
                self.written_soon.push_back(offset);
                Filled::Block(Part { block, offset, len, mark: None })
            }
            (None, None) => return Err(InstallError::Interrupted),
        };
        self.offset += len as u64;
        self.len = 0;
        self.filled.send(filled).map_err(|_| InstallError::Interrupted)
    }

    fn empty_block(&mut self) -> Result<Block, InstallError> {
        match self.spare.pop() {
            Some(block) => Ok(block),
            None => self.come_back(),
        }
    }

    /// Waits until the oldest block on its way is in the slot.
    fn come_back(&mut self) -> Result<Block, InstallError> {
        let block = self.empty.recv().map_err(|_| InstallError::Interrupted)?;
        self.written_soon.pop_front();
        Ok(block)
    }

    /// Bytes of the image that were there before.
    fn read(&mut self, place: u64, bytes: &mut [u8]) -> Result<(), InstallError> {
        let Range { mut start, end } = place..place + bytes.len() as u64;
        let mut rest = bytes;
        while start < end {
            let in_block = usize::try_from(start % BLOCK_BYTES as u64).unwrap_or_default();
            let (part, after) = rest.split_at_mut(rest.len().min(BLOCK_BYTES - in_block));
            let offset = start - in_block as u64;
            match &self.block {
                Some(block) if offset == self.offset => {
                    let here = block.bytes().get(in_block..in_block + part.len());
                    part.copy_from_slice(here.ok_or(InstallError::Interrupted)?);
                }
                _ => {
                    while self.written_soon.contains(&offset) {
                        let block = self.come_back()?;
                        self.spare.push(block);
                    }
                    self.target
                        .read_exact_at(part, start)
                        .map_err(|source| WriteError::Read { offset: start, source })?;
                }
            }
            start += part.len() as u64;
            rest = after;
        }
        Ok(())
    }
}
