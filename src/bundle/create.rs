//! The index of a bundle in the making.

use std::collections::HashMap;

use super::index::{Entry, ImageIndex, Index, Piece};
use super::{BundleError, CHUNKS_MAX};
use crate::update::Sha256Digest;

/// Takes the chunks of all images in order; finds those that repeat.
#[derive(Debug, Default)]
pub struct IndexBuilder {
    entries: Vec<Entry>,
    pieces: Vec<Piece>,
    images: Vec<ImageIndex>,
    first_entry: usize,
    first_piece: usize,
    /// Of the image that is being taken.
    known: HashMap<Sha256Digest, u32>,
}

impl IndexBuilder {
    /// A run of zeros; joins the one before.
    ///
    /// # Errors
    /// Too many chunks.
    pub fn zeros(&mut self, mut size_bytes: u64) -> Result<(), BundleError> {
        while size_bytes > 0 {
            let room = match self.entries.get_mut(self.first_entry..).and_then(<[Entry]>::last_mut) {
                Some(Entry::Zeros(run)) if *run < u32::MAX => run,
                _ => {
                    self.push(Entry::Zeros(0))?;
                    continue;
                }
            };
            let more = u32::try_from(size_bytes).unwrap_or(u32::MAX).min(u32::MAX - *room);
            *room += more;
            size_bytes -= u64::from(more);
        }
        Ok(())
    }

    /// A chunk; whether its image had none like it before.
    ///
    /// # Errors
    /// Too many chunks.
    pub fn chunk(&mut self, sha256: Sha256Digest, size_bytes: u32) -> Result<bool, BundleError> {
        let next = u32::try_from(self.pieces.len()).unwrap_or(u32::MAX);
        let number = *self.known.entry(sha256).or_insert(next);
        self.push(Entry::Piece(number))?;
        if number == next {
            self.pieces.push(Piece { sha256, size_bytes, stored_bytes: 0, stored_offset: 0 });
        }
        Ok(number == next)
    }

    /// The image is complete; gives how many chunks it has.
    pub fn end_image(&mut self) -> u32 {
        let (entries, pieces) = (self.first_entry..self.entries.len(), self.first_piece..self.pieces.len());
        let chunks = entries.len();
        self.images.push(ImageIndex { entries, pieces });
        (self.first_entry, self.first_piece) = (self.entries.len(), self.pieces.len());
        self.known.clear();
        u32::try_from(chunks).unwrap_or(u32::MAX)
    }

    /// All images are complete. What each piece takes in the bundle is not known yet: [`Index::store`].
    #[must_use]
    pub fn finish(self) -> Index {
        Index { entries: self.entries, pieces: self.pieces, images: self.images }
    }

    fn push(&mut self, entry: Entry) -> Result<(), BundleError> {
        let chunks = self.entries.len() as u64 + 1;
        BundleError::at_most("the number of chunks", chunks, CHUNKS_MAX as u64)?;
        self.entries.push(entry);
        Ok(())
    }
}

impl Index {
    /// Says what each piece takes in the bundle; gives what they take together.
    ///
    /// # Errors
    /// Another number of pieces.
    pub fn store(&mut self, stored_bytes: &[u32]) -> Result<u64, BundleError> {
        BundleError::same("the number of pieces", stored_bytes.len() as u64, self.pieces.len() as u64)?;
        let mut offset = 0;
        for (piece, stored_bytes) in self.pieces.iter_mut().zip(stored_bytes) {
            (piece.stored_bytes, piece.stored_offset) = (*stored_bytes, offset);
            offset += u64::from(*stored_bytes);
        }
        Ok(offset)
    }
}
