//! Patches: what the base lacks, compressed with what of the base is like it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Write as _;

use twinboot::bundle::{
    EXTENTS_MAX, Extent, FRAME_BYTES_MAX, FRAMES_MAX, Frame, PatchPart, PatchTable, Piece, Source, pack,
};

use super::base::{BaseImage, Known};
use super::make::{Plan, part_of, spool};
use super::pipeline::in_order;
use super::{Failure, ImageFile, Progress};

/// The base is chosen from in blocks of this length, that of its file system.
const BLOCK_BYTES: u64 = 4096;

/// What a frame makes at most. Larger ones save little more, and are what a device fetches again after a cut.
const FRAME_BYTES: u32 = FRAME_BYTES_MAX / 2;

/// What a frame wants of the base at most: with the frame itself, and all else that the device holds, well within
/// 32 MiB.
const PREFIX_BYTES: u64 = 8 << 20;

/// Blocks of the base on both sides of one that is like a chunk: what lies between anchors is alike, too.
const MARGIN_BLOCKS: u64 = 2;

/// Blocks that a chunk may ask for: several times its own length.
const BLOCKS_OF_CHUNK: usize = 64;

/// A gap in the base as long as this is taken for what became the chunks between its ends.
const GAP_BYTES: u64 = 512 << 10;

/// A patch, ready to be written.
pub struct Patch {
    pub part: PatchPart,
    pub table: Vec<u8>,
    pub frames: File,
}

/// A frame before it is compressed.
struct Draft {
    /// As numbers in the index.
    pieces: Vec<u32>,
    size_bytes: u32,
    blocks: BTreeSet<u64>,
}

/// Makes the patch from `base` to the image of that number, `file`. The `others` are not to be taken for the base.
pub fn make(
    plan: &Plan,
    image: usize,
    file: &ImageFile,
    base: &BaseImage,
    others: &[&ImageFile],
    level: i32,
    progress: Progress<'_>,
) -> Result<Patch, Failure> {
    let known = base.survey(plan.chunking, progress)?;
    let Some(of_image) = plan.index.images.get(image) else { return Err(Failure::Thread) };
    let pieces = plan.index.pieces.get(of_image.pieces.clone()).unwrap_or_default();
    let first_piece = u32::try_from(of_image.pieces.start).unwrap_or(u32::MAX);
    let copies: Vec<Option<u64>> =
        pieces.iter().map(|piece| known.chunks.get(&piece.sha256).copied()).collect();
    let mut drafts = draft(plan, first_piece, pieces, &copies, file, base, &known, progress)?;
    keep_within_bounds(&mut drafts, base.image.size_bytes);
    let total = drafts.iter().map(|draft| u64::from(draft.size_bytes)).sum();
    let mut table = PatchTable {
        sources: copies.into_iter().map(|copy| copy.map_or(Source::Stored, Source::Base)).collect(),
        frames: Vec::new(),
        extents: Vec::new(),
    };
    let (mut frames, mut done, mut frames_bytes) = (spool()?, 0, 0);
    let (mut largest_frame_bytes, mut largest_prefix_bytes) = (0, 0);
    let mut drafts_in_order = drafts.iter();
    let work = |number: usize| match drafts.get(number) {
        Some(draft) => compress(plan, draft, file, base, level),
        None => Err(Failure::Thread),
    };
    in_order(drafts.len(), work, |(extents, stored)| {
        let Some(draft) = drafts_in_order.next() else { return Ok(()) };
        let number = u32::try_from(table.frames.len()).unwrap_or(u32::MAX);
        let mut offset = 0;
        for piece in &draft.pieces {
            if let Some(source) = table.sources.get_mut((piece - first_piece) as usize) {
                *source = Source::Frame { number, offset };
            }
            offset += plan.index.pieces.get(*piece as usize).map_or(0, |piece| piece.size_bytes);
        }
        let first_extent = table.extents.len();
        largest_frame_bytes = largest_frame_bytes.max(draft.size_bytes);
        largest_prefix_bytes =
            largest_prefix_bytes.max(extents.iter().map(|extent| extent.size_bytes).sum::<u32>());
        table.extents.extend(extents);
        frames.write_all(&stored).map_err(Failure::Temporary)?;
        table.frames.push(Frame {
            size_bytes: draft.size_bytes,
            stored_bytes: u32::try_from(stored.len()).unwrap_or(u32::MAX),
            stored_offset: frames_bytes,
            extents: first_extent..table.extents.len(),
        });
        frames_bytes += stored.len() as u64;
        done += u64::from(draft.size_bytes);
        progress("patching", done, total);
        Ok(())
    })?;
    let table = table.to_bytes(&plan.index, of_image);
    let part = PatchPart {
        class: base.class.clone(),
        base: base.described(known.sha256, others)?,
        table: part_of(&table)?,
        frames_bytes,
        largest_frame_bytes,
        largest_prefix_bytes,
    };
    let frames = frames.into_inner().map_err(|error| Failure::Temporary(error.into_error()))?;
    Ok(Patch { part, table, frames })
}

/// Shares out what the base lacks among frames, in the order of the image, each with the blocks that are like it.
#[expect(clippy::too_many_arguments, reason = "all of them are read, and belong together nowhere else")]
fn draft(
    plan: &Plan,
    first_piece: u32,
    pieces: &[Piece],
    copies: &[Option<u64>],
    file: &ImageFile,
    base: &BaseImage,
    known: &Known,
    progress: Progress<'_>,
) -> Result<Vec<Draft>, Failure> {
    let gaps = gaps(pieces, copies);
    let mut drafts: Vec<Draft> = Vec::new();
    for (position, ((number, piece), copy)) in (first_piece..).zip(pieces).zip(copies).enumerate() {
        if copy.is_some() {
            continue;
        }
        let entry = plan.first_uses.get(number as usize).copied().unwrap_or(0);
        let offset = plan.offsets.get(entry).copied().unwrap_or(0);
        let chunk = file.bytes_at(offset, piece.size_bytes as usize)?;
        let mut wanted = alike(&chunk, known, base.image.size_bytes);
        if let Some((from, to)) = gaps.get(&position) {
            wanted.extend(from / BLOCK_BYTES..to.div_ceil(BLOCK_BYTES));
        }
        wanted.retain(|block| block * BLOCK_BYTES < base.image.size_bytes);
        match drafts.last_mut() {
            Some(last)
                if last.size_bytes + piece.size_bytes <= FRAME_BYTES
                    && (last.blocks.union(&wanted).count() as u64) * BLOCK_BYTES <= PREFIX_BYTES =>
            {
                last.pieces.push(number);
                last.size_bytes += piece.size_bytes;
                last.blocks.append(&mut wanted);
            }
            _ => drafts.push(Draft { pieces: vec![number], size_bytes: piece.size_bytes, blocks: wanted }),
        }
        progress("looking for likeness", position as u64, pieces.len() as u64);
    }
    Ok(drafts)
}

/// As many as a device takes in one table; the pieces of the others stay as they are stored.
fn keep_within_bounds(drafts: &mut Vec<Draft>, base_bytes: u64) {
    drafts.truncate(FRAMES_MAX);
    let mut room = EXTENTS_MAX;
    drafts.retain(|draft| {
        let left = room.checked_sub(extents(&draft.blocks, base_bytes).len());
        room = left.unwrap_or(room);
        left.is_some()
    });
}

/// The blocks of the base that share most with a chunk, and those around them.
fn alike(chunk: &[u8], known: &Known, base_bytes: u64) -> BTreeSet<u64> {
    let mut votes: BTreeMap<u64, u32> = BTreeMap::new();
    for offset in known.shared(chunk) {
        *votes.entry(offset / BLOCK_BYTES).or_default() += 1;
    }
    let mut ranked: Vec<(u64, u32)> = votes.into_iter().collect();
    ranked.sort_by_key(|(block, votes)| (std::cmp::Reverse(*votes), *block));
    let last_block = base_bytes.saturating_sub(1) / BLOCK_BYTES;
    let mut blocks = BTreeSet::new();
    for (block, _) in ranked {
        if blocks.len() >= BLOCKS_OF_CHUNK {
            break;
        }
        blocks.extend(block.saturating_sub(MARGIN_BLOCKS)..=(block + MARGIN_BLOCKS).min(last_block));
    }
    blocks
}

/// For pieces between two that the base has, not far apart there: what lies between those.
fn gaps(pieces: &[Piece], copies: &[Option<u64>]) -> HashMap<usize, (u64, u64)> {
    let mut gaps = HashMap::new();
    let mut before: Option<(usize, u64)> = None;
    for (position, (piece, copy)) in pieces.iter().zip(copies).enumerate() {
        let Some(offset) = copy else { continue };
        if let Some((last, end)) = before
            && position > last + 1
            && *offset > end
            && offset - end <= GAP_BYTES
        {
            gaps.extend((last + 1..position).map(|missing| (missing, (end, *offset))));
        }
        before = Some((position, offset + u64::from(piece.size_bytes)));
    }
    gaps
}

fn compress(
    plan: &Plan,
    draft: &Draft,
    file: &ImageFile,
    base: &BaseImage,
    level: i32,
) -> Result<(Vec<Extent>, Vec<u8>), Failure> {
    let extents = extents(&draft.blocks, base.image.size_bytes);
    let (mut prefix, mut frame) = (Vec::new(), Vec::new());
    for extent in &extents {
        prefix.extend(base.image.bytes_at(extent.offset, extent.size_bytes as usize)?);
    }
    for piece in &draft.pieces {
        let entry = plan.first_uses.get(*piece as usize).copied().unwrap_or(0);
        let offset = plan.offsets.get(entry).copied().unwrap_or(0);
        let size_bytes = plan.index.pieces.get(*piece as usize).map_or(0, |piece| piece.size_bytes);
        frame.extend(file.bytes_at(offset, size_bytes as usize)?);
    }
    Ok((extents, pack(&frame, &prefix, level)?))
}

/// Runs of blocks; the last block of a base may be short.
fn extents(blocks: &BTreeSet<u64>, base_bytes: u64) -> Vec<Extent> {
    let mut extents: Vec<Extent> = Vec::new();
    for block in blocks {
        let offset = block * BLOCK_BYTES;
        let size_bytes = u32::try_from(BLOCK_BYTES.min(base_bytes - offset)).unwrap_or(0);
        match extents.last_mut() {
            Some(last) if last.offset + u64::from(last.size_bytes) == offset => last.size_bytes += size_bytes,
            _ => extents.push(Extent { offset, size_bytes }),
        }
    }
    extents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_no_more_frames_and_extents_than_a_device_takes() {
        let drafts = |count, extents: u64| -> Vec<Draft> {
            let draft = || Draft {
                pieces: Vec::new(),
                size_bytes: 1,
                blocks: (0..extents).map(|block| 2 * block).collect(),
            };
            std::iter::repeat_with(draft).take(count).collect()
        };
        let mut many = drafts(FRAMES_MAX + 1, 0);
        keep_within_bounds(&mut many, u64::MAX);
        assert_eq!(many.len(), FRAMES_MAX);
        let mut scattered = drafts(100, 1000);
        scattered.extend(drafts(1, 1));
        keep_within_bounds(&mut scattered, u64::MAX);
        assert_eq!(scattered.len(), EXTENTS_MAX / 1000 + 1, "a small one after them has room");
    }
}
