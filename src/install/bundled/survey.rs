//! What the slots hold of an image already: the target at its place, the running slot anywhere.

use std::ops::Range;

use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::super::InstallError;
use super::super::slot::{ALIGN_BYTES, BLOCK_BYTES, Block, SlotDevice};
use crate::bundle::{
    BundleError, Chunker, Chunking, Cut, Entry, ImageIndex, Index, PatchTable, Piece, Source, is_zero,
};

/// A piece that the running slot does not hold.
const NOWHERE: u64 = u64::MAX;

/// One image of a bundle.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Of all images.
    pub index: &'a Index,
    /// This one's.
    pub entries: &'a [Entry],
    /// The numbers of this one's.
    pub pieces: &'a Range<usize>,
    /// Of the image.
    pub size_bytes: u64,
}

impl<'a> Wanted<'a> {
    /// Of this many bytes.
    pub fn new(index: &'a Index, image: &'a ImageIndex, size_bytes: u64) -> Self {
        let entries = index.entries.get(image.entries.clone()).unwrap_or_default();
        Self { index, entries, pieces: &image.pieces, size_bytes }
    }

    /// By number.
    pub fn piece(&self, number: u32) -> Result<&'a Piece, InstallError> {
        self.index.pieces.get(number as usize).ok_or(InstallError::Interrupted)
    }
}

/// Places of a slot that are looked at before all of it is read. If none of an image is at so many, what there may
/// still be, a few percent at most, is not worth reading the slot.
const PROBES: usize = 64;

/// Chunks at each place of the running slot: cut from anywhere, the first ones are not cut as the image was.
const PROBE_CHUNKS: usize = 8;

/// What the target slot seems to hold of an image, by a few of its pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guess {
    /// No piece.
    Nothing,
    /// To be found out.
    Some,
    /// The whole image.
    All,
}

impl Guess {
    /// Looks at pieces in their places. The first is among them: with it an install begins.
    pub fn of(image: Wanted<'_>, target: &dyn SlotDevice) -> Self {
        let step = image.entries.len().div_ceil(PROBES).max(1);
        let (mut place, mut next, mut probes, mut right, mut bytes) = (0, 0, 0, 0, Vec::new());
        for (number, entry) in image.entries.iter().enumerate() {
            let size_bytes = image.index.size_bytes(*entry);
            if let Entry::Piece(piece) = *entry
                && number >= next
            {
                bytes.resize(size_bytes as usize, 0);
                let readable = target.read_exact_at(&mut bytes, place).is_ok();
                let is_right = |piece: &Piece| readable && *Sha256::digest(&bytes) == piece.sha256.0;
                right += usize::from(image.piece(piece).is_ok_and(is_right));
                (probes, next) = (probes + 1, number + step);
            }
            place += u64::from(size_bytes);
        }
        match right {
            0 if probes > 0 => Self::Nothing,
            _ if right == probes && probes > 0 => Self::All,
            _ => Self::Some,
        }
    }
}

/// What the target slot holds where the image wants it.
#[derive(Debug, Default)]
pub struct Kept {
    /// For each entry of the image; of zeros only the blocks tell.
    pub entries: Vec<bool>,
    /// For each block of [`BLOCK_BYTES`] that is right as it is, its CRC-32.
    pub blocks: Vec<Option<u32>>,
}

impl Kept {
    /// Whether all blocks are right that have bytes of `place`.
    pub fn all(&self, place: Range<u64>) -> bool {
        let first = block_of(place.start);
        let last = block_of(place.end.saturating_sub(1));
        self.blocks.get(first..=last).is_some_and(|blocks| blocks.iter().all(Option::is_some))
    }

    /// What was found in the target, which is read once, if it seems to hold anything. What cannot be read is not kept.
    ///
    /// # Errors
    /// When the install is cancelled meanwhile.
    pub fn find(
        image: Wanted<'_>,
        target: &dyn SlotDevice,
        cancel: &watch::Receiver<bool>,
    ) -> Result<Self, InstallError> {
        if Guess::of(image, target) == Guess::Nothing {
            return Ok(Self::default());
        }
        let mut walk = Walk { image, kept: Vec::with_capacity(image.entries.len()), seen: 0, sha256: None };
        let mut block = Block::new();
        let mut blocks = Vec::new();
        let mut offset = 0;
        while offset < image.size_bytes {
            if *cancel.borrow() {
                return Err(InstallError::Cancelled);
            }
            let left = usize::try_from(image.size_bytes - offset).unwrap_or(BLOCK_BYTES);
            let (bytes, _) = block.bytes_mut().split_at_mut(left.min(BLOCK_BYTES));
            let readable = target.read_exact_at(bytes, offset).is_ok();
            let entries = walk.pass(bytes, readable)?;
            blocks.push((entries, crc32fast::hash(bytes)));
            offset += bytes.len() as u64;
        }
        let entries = walk.kept;
        let is_right = |range: Option<Range<usize>>| {
            range.and_then(|range| entries.get(range)).is_some_and(|kept| kept.iter().all(|kept| *kept))
        };
        let blocks = blocks.into_iter().map(|(range, sum)| is_right(range).then_some(sum)).collect();
        Ok(Self { entries, blocks })
    }
}

/// A way through the entries, block by block.
struct Walk<'a> {
    image: Wanted<'a>,
    /// Those that are passed. Zeros count as kept here: each block has said what it has of them.
    kept: Vec<bool>,
    /// Bytes of the present one that are passed.
    seen: u64,
    /// Over those; none where they could not be read.
    sha256: Option<Sha256>,
}

impl Walk<'_> {
    /// Passes the next bytes of the slot; gives the entries that have some of them, unless there are zeros among
    /// those that are none here.
    fn pass(&mut self, mut bytes: &[u8], readable: bool) -> Result<Option<Range<usize>>, InstallError> {
        let (first, mut zeros_are_right) = (self.kept.len(), true);
        let mut last = first;
        while !bytes.is_empty() {
            last = self.kept.len();
            let Some(entry) = self.image.entries.get(last).copied() else { break };
            let size_bytes = u64::from(self.image.index.size_bytes(entry));
            let left = usize::try_from(size_bytes - self.seen).unwrap_or(usize::MAX);
            let (part, rest) = bytes.split_at(left.min(bytes.len()));
            bytes = rest;
            match entry {
                Entry::Zeros(_) => zeros_are_right &= readable && is_zero(part),
                Entry::Piece(_) => {
                    if self.seen == 0 {
                        self.sha256 = Some(Sha256::new());
                    }
                    self.sha256 = self.sha256.take().filter(|_| readable).map(|sum| sum.chain_update(part));
                }
            }
            self.seen += part.len() as u64;
            if self.seen == size_bytes {
                self.end(entry)?;
            }
        }
        Ok((zeros_are_right && readable).then_some(first..last + 1))
    }

    fn end(&mut self, entry: Entry) -> Result<(), InstallError> {
        let kept = match entry {
            Entry::Zeros(_) => true,
            Entry::Piece(number) => {
                let expected = self.image.piece(number)?.sha256.0;
                self.sha256.take().is_some_and(|sum| *sum.finalize() == expected)
            }
        };
        self.kept.push(kept);
        self.seen = 0;
        Ok(())
    }
}

/// Where the running slot seemed to hold pieces of the image: a guess, to be read and hashed again.
#[derive(Debug, Default)]
pub struct Copies {
    /// For each piece of the image.
    places: Vec<u64>,
}

impl Copies {
    /// Where a piece of the image is, by its number among them.
    pub fn place(&self, number: usize) -> Option<u64> {
        self.places.get(number).copied().filter(|place| *place != NOWHERE)
    }

    /// Where a patch knows them, and where they are: whoever mounts a file system changes some of it.
    ///
    /// # Errors
    /// When the install is cancelled meanwhile.
    pub fn by_patch(
        image: Wanted<'_>,
        table: &PatchTable,
        running: &dyn SlotDevice,
        cancel: &watch::Receiver<bool>,
    ) -> Result<Self, InstallError> {
        let pieces = image.index.pieces.get(image.pieces.clone()).unwrap_or_default();
        let mut bytes = Vec::new();
        let mut place_of = |(piece, source): (&Piece, &Source)| {
            if *cancel.borrow() {
                return Err(InstallError::Cancelled);
            }
            let Source::Base(place) = *source else { return Ok(NOWHERE) };
            bytes.resize(piece.size_bytes as usize, 0);
            let readable = running.read_exact_at(&mut bytes, place).is_ok();
            let is_there = readable && *Sha256::digest(&bytes) == piece.sha256.0;
            Ok(if is_there { place } else { NOWHERE })
        };
        let places = pieces.iter().zip(&table.sources).map(&mut place_of).collect::<Result<_, _>>()?;
        Ok(Self { places })
    }

    /// Cuts what the running slot holds as the image was cut, and looks for its pieces, if there seem to be any.
    ///
    /// # Errors
    /// When the install is cancelled meanwhile. A slot that cannot be read on holds no more.
    pub fn find(
        image: Wanted<'_>,
        chunking: Chunking,
        running: &dyn SlotDevice,
        cancel: &watch::Receiver<bool>,
    ) -> Result<Self, InstallError> {
        let pieces = image.index.pieces.get(image.pieces.clone()).unwrap_or_default();
        let known = ByDigest::of(pieces);
        let mut scan = Scan::new(chunking, running, image.size_bytes)?;
        if !scan.finds_any(&known) {
            return Ok(Self::default());
        }
        let mut places = vec![NOWHERE; pieces.len()];
        let mut missing = pieces.len();
        while missing > 0
            && let Some((place, chunk)) = scan.next()
        {
            if *cancel.borrow() {
                return Err(InstallError::Cancelled);
            }
            if let Some(known) = known.number(chunk).and_then(|number| places.get_mut(number))
                && *known == NOWHERE
            {
                *known = place;
                missing -= 1;
            }
        }
        Ok(Self { places })
    }
}

/// Pieces of an image by their digests.
struct ByDigest<'a>(Vec<(&'a [u8; 32], usize)>);

impl<'a> ByDigest<'a> {
    fn of(pieces: &'a [Piece]) -> Self {
        let mut known: Vec<_> =
            pieces.iter().enumerate().map(|(number, piece)| (&piece.sha256.0, number)).collect();
        known.sort_unstable();
        Self(known)
    }

    /// Which piece this chunk is.
    fn number(&self, chunk: &[u8]) -> Option<usize> {
        let digest: [u8; 32] = Sha256::digest(chunk).into();
        let at = self.0.binary_search_by(|(known, _)| (*known).cmp(&digest)).ok()?;
        self.0.get(at).map(|(_, number)| *number)
    }
}

/// The chunks of a slot, zeros left out.
struct Scan<'a> {
    chunker: Chunker,
    slot: &'a dyn SlotDevice,
    /// Beyond it nothing is looked for.
    end: u64,
    block: Block,
    /// Read, and from `start` on not cut yet.
    window: Vec<u8>,
    start: usize,
    /// Of the window in the slot.
    offset: u64,
}

impl<'a> Scan<'a> {
    fn new(chunking: Chunking, slot: &'a dyn SlotDevice, image_bytes: u64) -> Result<Self, BundleError> {
        Ok(Self {
            chunker: Chunker::new(chunking)?,
            slot,
            // The image that runs may be larger than the next one, but a slot's empty rest is not worth reading.
            end: slot.capacity_bytes().min(image_bytes.saturating_mul(2)),
            block: Block::new(),
            window: Vec::new(),
            start: 0,
            offset: 0,
        })
    }

    /// Looks at a few places, before the first [`Scan::next`].
    fn finds_any(&mut self, known: &ByDigest<'_>) -> bool {
        let step = self.end / PROBES as u64;
        (0..PROBES as u64).any(|number| self.finds_any_at(known, number * step).unwrap_or(false))
    }

    fn finds_any_at(&mut self, known: &ByDigest<'_>, place: u64) -> Option<bool> {
        let place = place - place % ALIGN_BYTES as u64;
        let len = (self.chunker.average_bytes() * PROBE_CHUNKS).min(BLOCK_BYTES);
        let len = usize::try_from(self.end - place).map_or(len, |left| left.min(len));
        let bytes = self.block.bytes_mut().get_mut(..len)?;
        self.slot.read_exact_at(bytes, place).ok()?;
        let mut at = 0;
        while let Some(cut) = self.chunker.cut(place + at as u64, bytes.get(at..)?, true) {
            let (Cut::Data(len) | Cut::Zeros(len)) = cut;
            if matches!(cut, Cut::Data(_)) && known.number(bytes.get(at..at + len)?).is_some() {
                return Some(true);
            }
            at += len;
        }
        Some(false)
    }

    fn next(&mut self) -> Option<(u64, &[u8])> {
        let (place, len) = loop {
            self.fill();
            let at = self.offset + self.start as u64;
            let at_end = self.offset + self.window.len() as u64 == self.end;
            match self.chunker.cut(at, self.window.get(self.start..)?, at_end)? {
                Cut::Zeros(len) => self.start += len,
                Cut::Data(len) => break (at, len),
            }
        };
        let from = self.start;
        self.start += len;
        Some((place, self.window.get(from..from + len)?))
    }

    /// Reads on, until there is enough to find a cut.
    fn fill(&mut self) {
        let lookahead_bytes = self.chunker.lookahead_bytes();
        if self.window.len() - self.start >= lookahead_bytes {
            return;
        }
        self.window.drain(..self.start);
        self.offset += self.start as u64;
        self.start = 0;
        while self.window.len() < lookahead_bytes {
            let at = self.offset + self.window.len() as u64;
            let len = usize::try_from(self.end - at).map_or(BLOCK_BYTES, |left| left.min(BLOCK_BYTES));
            let (bytes, _) = self.block.bytes_mut().split_at_mut(len);
            if len == 0 || self.slot.read_exact_at(bytes, at).is_err() {
                self.end = at;
                return;
            }
            self.window.extend_from_slice(bytes);
        }
    }
}

/// Which block a byte is in.
pub fn block_of(offset: u64) -> usize {
    usize::try_from(offset / BLOCK_BYTES as u64).unwrap_or(usize::MAX)
}
