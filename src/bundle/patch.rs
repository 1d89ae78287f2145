//! The table of a patch: where in the base each piece is, or which frame makes it.

use sha2::{Digest as _, Sha256};

use super::bytes::{Reader, put_number, put_signed};
use super::index::{ImageIndex, Index, Piece};
use super::{BundleError, EXTENTS_MAX, FRAMES_MAX, PatchPart};
use crate::update::Sha256Digest;

const PART: &str = "table";

/// Kinds of runs: the lowest two bits of a run's first number; its count of pieces is above them.
const STORED: u64 = 0;
const COPY: u64 = 1;
const FRAME: u64 = 2;

/// Where to take a piece from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The patch does not help: as without it.
    Stored,
    /// So many bytes into the base.
    Base(u64),
    /// Out of [`PatchTable::frames`] by number, so many bytes into it.
    Frame {
        /// Which.
        number: u32,
        /// Into what it makes.
        offset: u32,
    },
}

/// Pieces that are made at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it makes.
    pub size_bytes: u32,
    /// What it takes in the bundle: compressed if it is less than `size_bytes`.
    pub stored_bytes: u32,
    /// Where it is stored: from where the frames begin.
    pub stored_offset: u64,
    /// One after the other they are the prefix it was compressed with: a range of [`PatchTable::extents`].
    pub extents: std::ops::Range<usize>,
}

/// A stretch of the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Into the base.
    pub offset: u64,
    /// Its length.
    pub size_bytes: u32,
}

/// All that a patch says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchTable {
    /// For each piece of the image, in order.
    pub sources: Vec<Source>,
    /// In the order in which they are stored, and in which the image needs them.
    pub frames: Vec<Frame>,
    /// Of all frames.
    pub extents: Vec<Extent>,
}

impl PatchTable {
    /// Reads the table that the manifest announces, for the image of its class.
    ///
    /// # Errors
    /// Another digest; what is outside the base, or more than announced; what does not fit the index.
    pub fn parse(
        bytes: &[u8],
        patch: &PatchPart,
        index: &Index,
        image: &ImageIndex,
    ) -> Result<Self, BundleError> {
        BundleError::same("a table's length", bytes.len() as u64, patch.table.size_bytes.into())?;
        let actual = Sha256Digest(Sha256::digest(bytes).into());
        if actual != patch.table.sha256 {
            return Err(BundleError::Digest { part: PART, actual, expected: patch.table.sha256 });
        }
        let mut reader = Reader::new(PART, bytes);
        let sizes: Vec<u32> = index
            .pieces
            .get(image.pieces.clone())
            .unwrap_or_default()
            .iter()
            .map(|piece| piece.size_bytes)
            .collect();
        let sources = Vec::with_capacity(sizes.len());
        let mut table = Self { sources, frames: Vec::new(), extents: Vec::new() };
        table.read_sources(&mut reader, &sizes, patch)?;
        table.read_frames(&mut reader, &sizes, patch)?;
        reader.finish()?;
        Ok(table)
    }

    /// Runs of pieces with sources of one kind. Those of frames get their places when the frames are read.
    fn read_sources(
        &mut self,
        reader: &mut Reader<'_>,
        sizes: &[u32],
        patch: &PatchPart,
    ) -> Result<(), BundleError> {
        let mut expected = 0_u64;
        while self.sources.len() < sizes.len() {
            let offset = reader.offset();
            let first = reader.number()?;
            let left = sizes.len() - self.sources.len();
            BundleError::at_least("the length of a run", first >> 2, 1)?;
            BundleError::at_most("the length of a run", first >> 2, left as u64)?;
            let count = usize::try_from(first >> 2).unwrap_or(left);
            match first & 3 {
                STORED => self.sources.extend(std::iter::repeat_n(Source::Stored, count)),
                FRAME => {
                    let nowhere = Source::Frame { number: u32::MAX, offset: 0 };
                    self.sources.extend(std::iter::repeat_n(nowhere, count));
                }
                COPY => {
                    let mut at = moved(expected, reader.signed()?, patch.base.size_bytes)?;
                    for size in sizes.iter().skip(self.sources.len()).take(count) {
                        self.sources.push(Source::Base(at));
                        at += u64::from(*size);
                    }
                    BundleError::at_most("the end of a copy in the base", at, patch.base.size_bytes)?;
                    expected = at;
                }
                kind => return Err(BundleError::UnknownKind { part: PART, what: "run", kind, offset }),
            }
        }
        Ok(())
    }

    /// The frames, which share out among them all pieces that are for frames.
    fn read_frames(
        &mut self,
        reader: &mut Reader<'_>,
        sizes: &[u32],
        patch: &PatchPart,
    ) -> Result<(), BundleError> {
        let mut waiting = sizes
            .iter()
            .zip(&mut self.sources)
            .filter(|(_, source)| matches!(source, Source::Frame { .. }))
            .peekable();
        let (mut stored_offset, mut expected) = (0_u64, 0_u64);
        while waiting.peek().is_some() {
            let number = self.frames.len();
            BundleError::at_most("the number of frames", number as u64 + 1, FRAMES_MAX as u64)?;
            let number = u32::try_from(number).unwrap_or(u32::MAX);
            let count = reader.number()?;
            BundleError::at_least("the number of pieces of a frame", count, 1)?;
            let mut size_bytes = 0_u32;
            for _ in 0..count {
                let Some((size, source)) = waiting.next() else {
                    return Err(BundleError::Truncated { part: PART, missing_bytes: 1 });
                };
                *source = Source::Frame { number, offset: size_bytes };
                size_bytes = size_bytes.saturating_add(*size);
                let limit = patch.largest_frame_bytes.into();
                BundleError::at_most("the length of a frame", size_bytes.into(), limit)?;
            }
            let stored_bytes = reader.u32_up_to("the stored length of a frame", size_bytes)?;
            BundleError::at_least("the stored length of a frame", stored_bytes.into(), 1)?;
            let extents = read_extents(reader, &mut self.extents, &mut expected, patch)?;
            self.frames.push(Frame { size_bytes, stored_bytes, stored_offset, extents });
            stored_offset += u64::from(stored_bytes);
        }
        BundleError::same("frames_bytes", patch.frames_bytes, stored_offset)
    }

    /// As it is written; its digest and length belong into the manifest. `image` is as for [`PatchTable::parse`].
    #[must_use]
    pub fn to_bytes(&self, index: &Index, image: &ImageIndex) -> Vec<u8> {
        let mut out = Vec::new();
        self.put_sources(&mut out, index.pieces.get(image.pieces.clone()).unwrap_or_default());
        let mut of_frame = vec![0_u64; self.frames.len()];
        for source in &self.sources {
            if let Source::Frame { number, .. } = source
                && let Some(count) = of_frame.get_mut(*number as usize)
            {
                *count += 1;
            }
        }
        let mut expected = 0;
        for (frame, pieces) in self.frames.iter().zip(of_frame) {
            put_number(&mut out, pieces);
            put_number(&mut out, frame.stored_bytes.into());
            let extents = self.extents.get(frame.extents.clone()).unwrap_or_default();
            put_number(&mut out, extents.len() as u64);
            for extent in extents {
                put_signed(&mut out, extent.offset.wrapping_sub(expected).cast_signed());
                put_number(&mut out, extent.size_bytes.into());
                expected = extent.offset + u64::from(extent.size_bytes);
            }
        }
        out
    }

    fn put_sources(&self, out: &mut Vec<u8>, pieces: &[Piece]) {
        // Where the copy of this piece would be if it went on from the last one.
        let (mut goes_on, mut expected) = (None, 0);
        let mut run: Option<(u64, u64, i64)> = None;
        for (source, piece) in self.sources.iter().zip(pieces) {
            let (kind, offset) = match source {
                Source::Stored => (STORED, None),
                Source::Frame { .. } => (FRAME, None),
                Source::Base(offset) => (COPY, Some(*offset)),
            };
            match &mut run {
                Some((of, count, _)) if *of == kind && offset == goes_on => *count += 1,
                _ => {
                    put_run(out, run.take());
                    let step = offset.map_or(0, |offset| offset.wrapping_sub(expected).cast_signed());
                    run = Some((kind, 1, step));
                }
            }
            goes_on = offset.map(|offset| offset + u64::from(piece.size_bytes));
            expected = goes_on.unwrap_or(expected);
        }
        put_run(out, run);
    }
}

/// A kind, how many pieces, and for copies how far from where the last one ended.
fn put_run(out: &mut Vec<u8>, run: Option<(u64, u64, i64)>) {
    let Some((kind, count, step)) = run else { return };
    put_number(out, count << 2 | kind);
    if kind == COPY {
        put_signed(out, step);
    }
}

/// The extents of one frame; gives their range.
fn read_extents(
    reader: &mut Reader<'_>,
    extents: &mut Vec<Extent>,
    expected: &mut u64,
    patch: &PatchPart,
) -> Result<std::ops::Range<usize>, BundleError> {
    let first = extents.len();
    let count = reader.number()?;
    BundleError::at_most("the number of extents", count, (EXTENTS_MAX - first) as u64)?;
    let mut prefix_bytes = 0_u64;
    for _ in 0..count {
        let offset = moved(*expected, reader.signed()?, patch.base.size_bytes)?;
        let size_bytes = reader.u32_up_to("the length of an extent", patch.largest_prefix_bytes)?;
        prefix_bytes += u64::from(size_bytes);
        BundleError::at_most("the prefix of a frame", prefix_bytes, patch.largest_prefix_bytes.into())?;
        *expected = offset + u64::from(size_bytes);
        BundleError::at_most("the end of an extent in the base", *expected, patch.base.size_bytes)?;
        extents.push(Extent { offset, size_bytes });
    }
    Ok(first..extents.len())
}

/// An offset into the base, as the way from another.
fn moved(from: u64, by: i64, base_bytes: u64) -> Result<u64, BundleError> {
    let what = "an offset into the base";
    let value = from.checked_add_signed(by).ok_or(BundleError::TooLarge {
        what,
        value: by.unsigned_abs(),
        limit: base_bytes,
    })?;
    BundleError::at_most(what, value, base_bytes)?;
    Ok(value)
}
