//! What turns the image that runs into the new one, if it is one that the bundle knows.

use std::ops::Range;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::super::InstallError;
use super::super::parts::Remote;
use super::super::slot::{BlockDevice, SlotDevice};
use super::survey::{Guess, Wanted};
use crate::bundle::{
    Base, Frame, Image, ImageIndex, Index, PatchPart, PatchRange, PatchTable, SAMPLE_BYTES, Source,
};

/// A table, and where its frames are in the file.
#[derive(Debug)]
pub struct Patch {
    /// For each piece, where it is in the base, or which frame makes it.
    pub table: PatchTable,
    /// Of the first frame.
    pub frames_offset: u64,
}

impl Patch {
    /// Which frame makes a piece, by its number in the image, and where in what the frame makes.
    pub fn frame_of(&self, of_image: usize) -> Option<(u32, u32)> {
        match self.table.sources.get(of_image)? {
            Source::Frame { number, offset } => Some((*number, *offset)),
            Source::Base(_) | Source::Stored => None,
        }
    }

    /// A frame, and where it is in the file.
    pub fn frame(&self, number: u32) -> Option<(&Frame, Range<u64>)> {
        let frame = self.table.frames.get(number as usize)?;
        let start = self.frames_offset + frame.stored_offset;
        Some((frame, start..start + u64::from(frame.stored_bytes)))
    }

    /// All that a frame wants of the base.
    ///
    /// # Errors
    /// What the medium says.
    pub fn prefix(&self, frame: &Frame, base: &dyn SlotDevice) -> std::io::Result<Vec<u8>> {
        let extents = self.table.extents.get(frame.extents.clone()).unwrap_or_default();
        let size_bytes = extents.iter().map(|extent| extent.size_bytes as usize).sum();
        let mut prefix = vec![0; size_bytes];
        let mut rest = prefix.as_mut_slice();
        for extent in extents {
            let (part, after) = rest.split_at_mut(extent.size_bytes as usize);
            base.read_exact_at(part, extent.offset)?;
            rest = after;
        }
        Ok(prefix)
    }
}

/// The search for a patch of one image.
#[derive(Debug)]
pub struct Search {
    class: String,
    size_bytes: u64,
    image: ImageIndex,
    index: Arc<Index>,
    running: Arc<BlockDevice>,
}

impl Search {
    /// Nothing to search where the target slot seems to hold the image already.
    pub async fn new(
        image: &Image,
        indexed: ImageIndex,
        index: Arc<Index>,
        (running, target): (Arc<BlockDevice>, Arc<dyn SlotDevice>),
    ) -> Option<Self> {
        let (class, size_bytes) = (image.class.clone(), image.size_bytes);
        let search = Self { class, size_bytes, image: indexed, index, running };
        let look = move || {
            let wanted = Wanted::new(&search.index, &search.image, search.size_bytes);
            (Guess::of(wanted, target.as_ref()) != Guess::All).then_some(search)
        };
        tokio::task::spawn_blocking(look).await.ok().flatten()
    }

    /// The first whose base runs; its table is fetched.
    async fn find(
        &self,
        known: &[(PatchPart, PatchRange)],
        remote: &Remote,
    ) -> Result<Option<Patch>, InstallError> {
        for (part, range) in known.iter().filter(|(part, _)| part.class == self.class && is_modest(part)) {
            let (base, running) = (part.base.clone(), self.running.clone());
            let fits = tokio::task::spawn_blocking(move || is_base(running.as_ref(), &base)).await;
            if fits.unwrap_or_default() {
                let bytes = remote.read(range.table.clone()).await?;
                let table = PatchTable::parse(&bytes, part, &self.index, &self.image)?;
                return Ok(Some(Patch { table, frames_offset: range.frames.start }));
            }
        }
        Ok(None)
    }
}

/// Puts what is found into `patches`, by the number of the image; gives what goes on searching.
///
/// # Errors
/// The source; a table that makes no sense.
pub async fn find_all(
    searches: Vec<(usize, Search)>,
    known: &[(PatchPart, PatchRange)],
    remote: &Remote,
    patches: &mut [Option<Patch>],
) -> Result<Vec<(usize, Search)>, InstallError> {
    let mut left = Vec::new();
    for (number, search) in searches {
        let found = search.find(known, remote).await?;
        match patches.get_mut(number) {
            Some(patch) if found.is_some() => *patch = found,
            _ => left.push((number, search)),
        }
    }
    Ok(left)
}

/// What the frames of a patch may take in memory: what stays of the daemon's 32 MiB, and what `twinbootctl` keeps to.
const MEMORY_BYTES: u64 = 14 << 20;

/// Whether its frames, as stored and as made, and what they want of the base are not too much for a device.
pub fn is_modest(patch: &PatchPart) -> bool {
    u64::from(patch.largest_prefix_bytes) + 2 * u64::from(patch.largest_frame_bytes) <= MEMORY_BYTES
}

/// Whether a slot holds this image: three quarters of the samples are enough, since whoever mounts a file system
/// changes some of it.
pub fn is_base(slot: &dyn SlotDevice, base: &Base) -> bool {
    let mut bytes = vec![0; usize::try_from(SAMPLE_BYTES).unwrap_or_default()];
    let mut is_right = |offset: u64, sha256: &[u8; 32]| {
        slot.read_exact_at(&mut bytes, offset).is_ok() && *Sha256::digest(&bytes) == *sha256
    };
    let right = base.samples.iter().filter(|sample| is_right(sample.offset, &sample.sha256.0)).count();
    !base.samples.is_empty() && right * 4 >= base.samples.len() * 3
}
