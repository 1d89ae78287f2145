//! Small bundles, made here.

use std::collections::HashMap;

use sha2::{Digest, Sha256};
use twinboot::bundle::{
    Base, Chunker, Chunking, Context, Cut, Extent, Frame, Header, Image, Index, IndexBuilder, Manifest, Part,
    PatchFile, PatchPart, PatchTable, Sample, Source, pack,
};
use twinboot::update::Sha256Digest;

pub fn digest(bytes: &[u8]) -> Sha256Digest {
    Sha256Digest(Sha256::digest(bytes).into())
}

pub struct Made {
    pub bytes: Vec<u8>,
    pub manifest: Vec<u8>,
    pub pieces_offset: usize,
}

/// A bundle of this image, whose manifest may say something else.
pub fn made(image: &[u8], edit: impl FnOnce(&mut Manifest)) -> Made {
    made_of(&[("rootfs", image)], |_| Vec::new(), edit)
}

pub fn made_of(
    images: &[(&str, &[u8])],
    sign: impl FnOnce(&[u8]) -> Vec<u8>,
    edit: impl FnOnce(&mut Manifest),
) -> Made {
    let cut = Cuts::of(images);
    cut.bundle(&[], sign, edit)
}

/// A bundle of this image with a patch from an older one.
pub fn made_patched(old: &[u8], new: &[u8]) -> Made {
    let cuts = Cuts::of(&[("rootfs", new)]);
    let (patch, bytes) = cuts.patch(old, new);
    let edit = |manifest: &mut Manifest| manifest.patches = vec![patch];
    cuts.bundle(&bytes, |_| Vec::new(), edit)
}

/// A bundle that names a file beside it, and that file: with a patch from an older image, for `bundle` if it is not the
/// bundle.
pub fn made_beside(
    (old, new): (&[u8], &[u8]),
    name: &str,
    bundle: Option<Sha256Digest>,
    sign: impl Fn(&[u8]) -> Vec<u8>,
) -> (Made, Vec<u8>) {
    let cuts = Cuts::of(&[("rootfs", new)]);
    let (patch, bytes) = cuts.patch(old, new);
    let made = cuts.bundle(&[], &sign, |manifest| manifest.patches_file = Some(name.to_owned()));
    let bundle = bundle.unwrap_or_else(|| digest(&made.manifest));
    let manifest = PatchFile::new(bundle, vec![patch]).to_bytes().unwrap();
    (made, [head(&manifest, &sign(&manifest)), bytes].concat())
}

fn head(manifest: &[u8], signatures: &[u8]) -> Vec<u8> {
    let header = Header {
        manifest_bytes: u32::try_from(manifest.len()).unwrap(),
        signatures_bytes: u32::try_from(signatures.len()).unwrap(),
    };
    [&header.to_bytes(), manifest, signatures].concat()
}

/// Images in chunks.
struct Cuts {
    index: Index,
    described: Vec<Image>,
    pieces: Vec<u8>,
    /// Of each piece in its image.
    places: Vec<u64>,
}

impl Cuts {
    fn of(images: &[(&str, &[u8])]) -> Self {
        let chunker = Chunker::new(Chunking::around(16 << 10)).unwrap();
        let (mut builder, mut stored, mut pieces) = (IndexBuilder::default(), Vec::new(), Vec::new());
        let (mut described, mut places) = (Vec::new(), Vec::new());
        for (class, image) in images {
            let (mut offset, mut context) = (0, Context::new(64 << 10));
            while let Some(cut) = chunker.cut(offset as u64, &image[offset..], true) {
                let (Cut::Data(len) | Cut::Zeros(len)) = cut;
                let chunk = &image[offset..offset + len];
                if let Cut::Zeros(_) = cut {
                    builder.zeros(len as u64).unwrap();
                } else {
                    if builder.chunk(digest(chunk), u32::try_from(len).unwrap()).unwrap() {
                        let packed = pack(chunk, context.as_slice(), 3).unwrap();
                        stored.push(u32::try_from(packed.len()).unwrap());
                        pieces.extend_from_slice(&packed);
                        places.push(offset as u64);
                    }
                    context.push(chunk);
                }
                offset += len;
            }
            described.push(Image {
                class: (*class).to_owned(),
                size_bytes: image.len() as u64,
                sha256: digest(image),
                chunks: builder.end_image(),
            });
        }
        let mut index = builder.finish();
        index.store(&stored).unwrap();
        Self { index, described, pieces, places }
    }

    fn bundle(
        self,
        patches: &[u8],
        sign: impl FnOnce(&[u8]) -> Vec<u8>,
        edit: impl FnOnce(&mut Manifest),
    ) -> Made {
        let index = self.index.to_bytes();
        let part = Part { size_bytes: u32::try_from(index.len()).unwrap(), sha256: digest(&index) };
        let chunking = Chunking::around(16 << 10);
        let mut manifest = Manifest::new("2.0".into(), "2026-11-23T00:00:00Z".into(), chunking, part);
        manifest.context_bytes = 64 << 10;
        manifest.images = self.described;
        manifest.pieces_bytes = self.pieces.len() as u64;
        edit(&mut manifest);
        let manifest = manifest.to_bytes().unwrap();
        let signatures = sign(&manifest);
        let before = [head(&manifest, &signatures), index, patches.to_vec()].concat();
        let pieces_offset = before.len();
        Made { bytes: [before, self.pieces].concat(), manifest, pieces_offset }
    }

    /// From an older image; a frame for each piece that it has not.
    fn patch(&self, old: &[u8], new: &[u8]) -> (PatchPart, Vec<u8>) {
        let known = Self::of(&[("rootfs", old)]);
        let known: HashMap<_, _> =
            known.index.pieces.iter().zip(known.places).map(|(piece, place)| (piece.sha256, place)).collect();
        let mut table = PatchTable { sources: Vec::new(), frames: Vec::new(), extents: Vec::new() };
        let mut frames = Vec::new();
        for (piece, place) in self.index.pieces.iter().zip(&self.places) {
            if let Some(place) = known.get(&piece.sha256) {
                table.sources.push(Source::Base(*place));
                continue;
            }
            let frame = u32::try_from(table.frames.len()).unwrap();
            let extent = Extent {
                offset: place.saturating_sub(20_000).min(old.len() as u64 - 60_000),
                size_bytes: 60_000,
            };
            let from = usize::try_from(extent.offset).unwrap();
            let start = usize::try_from(*place).unwrap();
            let chunk = &new[start..start + piece.size_bytes as usize];
            let packed = pack(chunk, &old[from..from + 60_000], 3).unwrap();
            table.sources.push(Source::Frame { number: frame, offset: 0 });
            table.frames.push(Frame {
                size_bytes: piece.size_bytes,
                stored_bytes: u32::try_from(packed.len()).unwrap(),
                stored_offset: frames.len() as u64,
                extents: table.extents.len()..table.extents.len() + 1,
            });
            table.extents.push(extent);
            frames.extend_from_slice(&packed);
        }
        let table = table.to_bytes(&self.index, &self.index.images[0]);
        let sample =
            |offset: usize| Sample { offset: offset as u64, sha256: digest(&old[offset..offset + 4096]) };
        let patch = PatchPart {
            class: "rootfs".into(),
            base: Base {
                version: None,
                size_bytes: old.len() as u64,
                sha256: digest(old),
                samples: (0..8).map(|i| sample(i * 300_000)).collect(),
            },
            table: Part { size_bytes: u32::try_from(table.len()).unwrap(), sha256: digest(&table) },
            frames_bytes: frames.len() as u64,
            largest_frame_bytes: 64 << 10,
            largest_prefix_bytes: 60_000,
        };
        (patch, [table, frames].concat())
    }
}
