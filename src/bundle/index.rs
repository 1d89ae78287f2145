//! The index: all chunks of all images, in order, and what is stored for each.

use sha2::{Digest as _, Sha256};

use super::bytes::{Reader, put_number};
use super::{BundleError, CHUNKS_MAX, Manifest};
use crate::update::Sha256Digest;

const PART: &str = "index";

/// Kinds of entries: the lowest two bits of an entry's first number. Above them is its length, or for [`AGAIN`] how
/// many pieces back.
const ZEROS: u64 = 0;
const NEW: u64 = 1;
const AGAIN: u64 = 2;

/// What a stretch of an image is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// So many zeros.
    Zeros(u32),
    /// [`Index::pieces`] by number: the first time it is used, or again in the same image.
    Piece(u32),
}

/// What is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Of the chunk.
    pub sha256: Sha256Digest,
    /// Of the chunk.
    pub size_bytes: u32,
    /// As it is stored: compressed if it is less than `size_bytes`, as it is if both are the same.
    pub stored_bytes: u32,
    /// Where it is stored: from where the pieces begin.
    pub stored_offset: u64,
}

/// All chunks of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// In order, image after image.
    pub entries: Vec<Entry>,
    /// In the order of their first use, which is also that in which they are stored.
    pub pieces: Vec<Piece>,
    /// For each image, its entries and pieces.
    pub images: Vec<ImageIndex>,
}

/// What of an index makes one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageIndex {
    /// Of [`Index::entries`].
    pub entries: std::ops::Range<usize>,
    /// Of [`Index::pieces`]: an image shares none with another.
    pub pieces: std::ops::Range<usize>,
}

impl Index {
    /// Reads the index that the manifest announces.
    ///
    /// # Errors
    /// Another digest, and entries that do not make exactly the images and the stored pieces of the manifest.
    pub fn parse(bytes: &[u8], manifest: &Manifest) -> Result<Self, BundleError> {
        BundleError::same("the index's length", bytes.len() as u64, manifest.index.size_bytes.into())?;
        let actual = Sha256Digest(Sha256::digest(bytes).into());
        if actual != manifest.index.sha256 {
            return Err(BundleError::Digest { part: PART, actual, expected: manifest.index.sha256 });
        }
        let mut reader = Reader::new(PART, bytes);
        // Room for all at once: growing would hold them twice.
        let chunks = manifest.images.iter().map(|image| image.chunks as usize).sum::<usize>().min(CHUNKS_MAX);
        let (entries, pieces) = (Vec::with_capacity(chunks), Vec::with_capacity(chunks));
        let mut index = Self { entries, pieces, images: Vec::new() };
        let mut stored_offset = 0;
        for image in &manifest.images {
            let (first_entry, first_piece) = (index.entries.len(), index.pieces.len());
            let mut size_bytes = 0_u64;
            for _ in 0..image.chunks {
                size_bytes +=
                    u64::from(index.read(&mut reader, manifest, first_piece, &mut stored_offset)?);
            }
            BundleError::same("the length of an image's chunks", size_bytes, image.size_bytes)?;
            let (entries, pieces) = (first_entry..index.entries.len(), first_piece..index.pieces.len());
            index.images.push(ImageIndex { entries, pieces });
        }
        reader.finish()?;
        BundleError::same("pieces_bytes", manifest.pieces_bytes, stored_offset)?;
        Ok(index)
    }

    /// Reads one entry; gives its length.
    fn read(
        &mut self,
        reader: &mut Reader<'_>,
        manifest: &Manifest,
        first_piece: usize,
        stored_offset: &mut u64,
    ) -> Result<u32, BundleError> {
        let offset = reader.offset();
        let first = reader.number()?;
        let value = first >> 2;
        let length = |limit: u32| {
            BundleError::at_least("the length of a chunk", value, 1)?;
            BundleError::at_most("the length of a chunk", value, limit.into())?;
            Ok(u32::try_from(value).unwrap_or(limit))
        };
        match first & 3 {
            ZEROS => {
                let size_bytes = length(u32::MAX)?;
                self.entries.push(Entry::Zeros(size_bytes));
                Ok(size_bytes)
            }
            NEW => {
                let size_bytes = length(manifest.chunking.max_bytes)?;
                let stored_bytes = reader.u32_up_to("the stored length of a chunk", size_bytes)?;
                BundleError::at_least("the stored length of a chunk", stored_bytes.into(), 1)?;
                self.entries.push(Entry::Piece(number_of(self.pieces.len())?));
                let (sha256, offset) = (reader.digest()?, *stored_offset);
                self.pieces.push(Piece { sha256, size_bytes, stored_bytes, stored_offset: offset });
                *stored_offset += u64::from(stored_bytes);
                Ok(size_bytes)
            }
            AGAIN => {
                let of_image = (self.pieces.len() - first_piece) as u64;
                BundleError::at_least("the way back to a chunk", value, 1)?;
                BundleError::at_most("the way back to a chunk", value, of_image)?;
                let number = number_of(self.pieces.len())? - u32::try_from(value).unwrap_or(0);
                self.entries.push(Entry::Piece(number));
                Ok(self.pieces.get(number as usize).map_or(0, |piece| piece.size_bytes))
            }
            kind => Err(BundleError::UnknownKind { part: PART, what: "chunk", kind, offset }),
        }
    }

    /// As it is written; its digest and length belong into the manifest.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let (mut out, mut written) = (Vec::new(), 0_u32);
        for entry in &self.entries {
            match *entry {
                Entry::Zeros(size_bytes) => put_number(&mut out, u64::from(size_bytes) << 2 | ZEROS),
                Entry::Piece(number) => {
                    let Some(piece) = self.pieces.get(number as usize) else { continue };
                    if number < written {
                        put_number(&mut out, u64::from(written - number) << 2 | AGAIN);
                    } else {
                        put_number(&mut out, u64::from(piece.size_bytes) << 2 | NEW);
                        put_number(&mut out, piece.stored_bytes.into());
                        out.extend_from_slice(&piece.sha256.0);
                        written += 1;
                    }
                }
            }
        }
        out
    }

    /// The length of an entry's chunk.
    #[must_use]
    pub fn size_bytes(&self, entry: Entry) -> u32 {
        match entry {
            Entry::Zeros(size_bytes) => size_bytes,
            Entry::Piece(number) => self.pieces.get(number as usize).map_or(0, |piece| piece.size_bytes),
        }
    }
}

fn number_of(pieces: usize) -> Result<u32, BundleError> {
    let value = pieces as u64;
    BundleError::at_most("the number of chunks", value, CHUNKS_MAX as u64)?;
    // It is no more than that.
    Ok(u32::try_from(value).unwrap_or(u32::MAX))
}
