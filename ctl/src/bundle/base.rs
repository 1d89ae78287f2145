//! An older image, and where in it are bytes that a newer one has too.

use std::collections::HashMap;

use sha2::{Digest as _, Sha256};
use twinboot::bundle::{Algorithm, Base, Chunker, Chunking, Cut, SAMPLE_BYTES, Sample};
use twinboot::update::Sha256Digest;

use super::{Failure, ImageFile, Progress, sha256_of};

/// A base is known by so many places.
const SAMPLES: usize = 16;

/// A sample's length, in memory.
#[expect(clippy::cast_possible_truncation, reason = "4096")]
const SAMPLE: usize = SAMPLE_BYTES as usize;

/// Anchors are chunks as small as the algorithm cuts them: what two builds of one program share lies between
/// addresses that changed.
const ANCHORS: Chunking =
    Chunking { algorithm: Algorithm::FastCdc, min_bytes: 64, average_bytes: 256, max_bytes: 1024 };

/// An older image of a slot class.
#[derive(Debug)]
pub struct BaseImage {
    pub class: String,
    pub version: Option<String>,
    pub image: ImageFile,
}

/// What is where in a base.
pub struct Known {
    pub sha256: Sha256Digest,
    /// Whole chunks, as the new image is cut.
    pub chunks: HashMap<Sha256Digest, u64>,
    /// Offsets of anchors; of those with the same bytes, the first.
    anchors: HashMap<u64, u64>,
}

impl BaseImage {
    /// Reads all of it.
    pub fn survey(&self, chunking: Chunking, progress: Progress<'_>) -> Result<Known, Failure> {
        let mut chunks = HashMap::new();
        let mut anchors = HashMap::new();
        let sha256 = self.image.cut(
            &Chunker::new(chunking)?,
            "reading the base",
            progress,
            |offset, cut, bytes| {
                if let Cut::Data(_) = cut {
                    chunks.entry(sha256_of(bytes)).or_insert(offset);
                    for (within, key) in anchors_of(bytes) {
                        anchors.entry(key).or_insert(offset + within);
                    }
                }
                Ok(())
            },
        )?;
        Ok(Known { sha256, chunks, anchors })
    }

    /// How a device knows it: by places that the `others` do not share, as far as there are such.
    pub fn described(&self, sha256: Sha256Digest, others: &[&ImageFile]) -> Result<Base, Failure> {
        let blocks = self.image.size_bytes / SAMPLE_BYTES;
        let (mut own, mut shared) = (Vec::new(), Vec::new());
        let mut theirs = vec![0; SAMPLE];
        for block in 0..blocks {
            let offset = block * SAMPLE_BYTES;
            let bytes = self.image.bytes_at(offset, SAMPLE)?;
            if bytes.iter().all(|byte| *byte == 0) {
                continue;
            }
            let mut differs = true;
            for other in others {
                if offset + SAMPLE_BYTES <= other.size_bytes {
                    other.read_at(offset, &mut theirs)?;
                    differs &= theirs != bytes;
                }
            }
            if differs { own.push(offset) } else { shared.push(offset) }
        }
        let mut offsets = spread(&own, SAMPLES);
        offsets.extend(spread(&shared, SAMPLES - offsets.len()));
        if offsets.is_empty() {
            offsets.push(0);
        }
        offsets.sort_unstable();
        let sample = |offset| {
            let bytes = self.image.bytes_at(offset, SAMPLE)?;
            Ok(Sample { offset, sha256: sha256_of(&bytes) })
        };
        let samples = offsets.into_iter().map(sample).collect::<Result<_, Failure>>()?;
        Ok(Base { version: self.version.clone(), size_bytes: self.image.size_bytes, sha256, samples })
    }
}

impl Known {
    /// Offsets in the base of the anchors that `chunk` has too.
    pub fn shared<'a>(&'a self, chunk: &'a [u8]) -> impl Iterator<Item = u64> + 'a {
        anchors_of(chunk).filter_map(|(_, key)| self.anchors.get(&key).copied())
    }
}

/// The anchors in a chunk, and what they are known by.
fn anchors_of(bytes: &[u8]) -> impl Iterator<Item = (u64, u64)> + '_ {
    let Chunking { min_bytes, average_bytes, max_bytes, .. } = ANCHORS;
    let cuts =
        fastcdc::v2020::FastCDC::new(bytes, min_bytes as usize, average_bytes as usize, max_bytes as usize);
    cuts.filter_map(|cut| {
        let anchor = bytes.get(cut.offset..cut.offset + cut.length)?;
        let key = Sha256::digest(anchor);
        Some((cut.offset as u64, u64::from_le_bytes(*key.first_chunk()?)))
    })
}

/// So many of them, far apart.
fn spread(offsets: &[u64], count: usize) -> Vec<u64> {
    let count = count.min(offsets.len());
    (0..count)
        .filter_map(|number| offsets.get((2 * number + 1) * offsets.len() / (2 * count)).copied())
        .collect()
}
