//! Where each piece of an image is to come from.

use std::ops::Range;

use super::patch::Patch;
use super::survey::{Copies, Kept, Wanted};
use crate::bundle::Entry;

/// Where a piece is to come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The target slot holds it at its first place, or it is not needed there.
    Target,
    /// The running slot seems to hold it.
    Running,
    /// A frame of the patch.
    Frame(u32),
    /// The bundle.
    Stored,
}

/// For one image.
#[derive(Debug)]
pub struct Plan {
    /// What the target slot holds.
    pub kept: Kept,
    copies: Copies,
    /// For each piece of the image.
    origins: Vec<Origin>,
}

impl Plan {
    /// The cheapest that is possible.
    #[must_use]
    pub fn new(image: Wanted<'_>, kept: Kept, copies: Copies, patch: Option<&Patch>) -> Self {
        let mut origins = vec![None; image.pieces.len()];
        let mut place = 0;
        for (number, entry) in image.entries.iter().enumerate() {
            let size_bytes = u64::from(image.index.size_bytes(*entry));
            if let Entry::Piece(piece) = *entry {
                let of_image = (piece as usize).saturating_sub(image.pieces.start);
                let is_kept = kept.entries.get(number) == Some(&true) || kept.all(place..place + size_bytes);
                let origin = match copies.place(of_image) {
                    _ if is_kept => Origin::Target,
                    Some(_) => Origin::Running,
                    None => patch
                        .and_then(|patch| patch.frame_of(of_image))
                        .map_or(Origin::Stored, |(frame, _)| Origin::Frame(frame)),
                };
                // Only the first use counts: the others are copied from there.
                if let Some(first) = origins.get_mut(of_image) {
                    first.get_or_insert(origin);
                }
            }
            place += size_bytes;
        }
        let origins = origins.into_iter().map(|origin| origin.unwrap_or(Origin::Stored)).collect();
        let mut plan = Self { kept, copies, origins };
        if let Some(patch) = patch {
            plan.leave_out_frames(image, patch);
        }
        plan
    }

    /// A frame that is hardly needed may be more than the pieces that it would make.
    fn leave_out_frames(&mut self, image: Wanted<'_>, patch: &Patch) {
        let mut needed_bytes = vec![0_u64; patch.table.frames.len()];
        let pieces = image.index.pieces.get(image.pieces.clone()).unwrap_or_default();
        for (piece, origin) in pieces.iter().zip(&self.origins) {
            if let Origin::Frame(frame) = origin
                && let Some(bytes) = needed_bytes.get_mut(*frame as usize)
            {
                *bytes += u64::from(piece.stored_bytes);
            }
        }
        for origin in &mut self.origins {
            if let Origin::Frame(number) = *origin {
                let needed_bytes = needed_bytes.get(number as usize).copied().unwrap_or_default();
                let frame = patch.table.frames.get(number as usize);
                if frame.is_none_or(|frame| needed_bytes <= u64::from(frame.stored_bytes)) {
                    *origin = Origin::Stored;
                }
            }
        }
    }

    /// Of a piece, by its number in the image.
    #[must_use]
    pub fn origin(&self, of_image: usize) -> Origin {
        self.origins.get(of_image).copied().unwrap_or(Origin::Stored)
    }

    /// Where in the running slot a piece seems to be.
    #[must_use]
    pub fn copy(&self, of_image: usize) -> Option<u64> {
        self.copies.place(of_image)
    }

    /// What is to be fetched, in the order in which it is needed; the pieces begin at `pieces_offset`.
    pub fn stored<'a>(
        &'a self,
        image: Wanted<'a>,
        pieces_offset: u64,
        patch: Option<&'a Patch>,
    ) -> impl Iterator<Item = Range<u64>> + 'a {
        let pieces = image.index.pieces.get(image.pieces.clone()).unwrap_or_default();
        let mut last_frame = None;
        pieces.iter().zip(&self.origins).filter_map(move |(piece, origin)| match *origin {
            Origin::Stored => {
                let start = pieces_offset + piece.stored_offset;
                Some(start..start + u64::from(piece.stored_bytes))
            }
            Origin::Frame(frame) if last_frame.replace(frame) != Some(frame) => Some(patch?.frame(frame)?.1),
            Origin::Frame(_) | Origin::Target | Origin::Running => None,
        })
    }
}
