use sha2::{Digest as _, Sha256};
use twinboot::bundle::{
    BundleError, Context, Entry, HEADER_BYTES, Header, Index, Manifest, PatchFile, PatchTable, Signatures,
    Source, unpack,
};
use twinboot::update::Sha256Digest;

/// What is unpacked of one input: time is bounded, and what a chunk takes is bounded by the format.
const UNPACKED_BYTES_MAX: usize = 1 << 20;

/// Numbers of the manifest that may be made to fit the index.
const CORRECTIONS: usize = 20;

/// Bundles: a whole file, whose digests and sums are made right so that every part is looked at; or a manifest alone.
pub fn bundle(data: &[u8]) {
    if let Some(manifest) = manifest(data) {
        check_layout(&manifest, Header { manifest_bytes: 2, signatures_bytes: 0 });
    }
    patch_file(data);
    let Some((header, rest)) = data.split_at_checked(HEADER_BYTES) else { return };
    let Ok(header) = Header::parse(header) else { return };
    assert_eq!(header.to_bytes(), &data[..HEADER_BYTES]);
    let Some((first, rest)) = rest.split_at_checked(header.manifest_bytes as usize) else { return };
    let Some((second, _)) = rest.split_at_checked(header.signatures_bytes as usize) else { return };
    if let Ok(signatures) = Signatures::parse(second) {
        assert_eq!(Signatures::parse(&signatures.to_bytes()).expect("what was written is read"), signatures);
    }
    if let Some(manifest) = manifest(first) {
        check_layout(&manifest, header);
        parts(data, manifest, header);
    }
}

fn manifest(bytes: &[u8]) -> Option<Manifest> {
    let manifest = Manifest::parse(bytes).ok()?;
    // Written with blanks, it may be longer than is taken.
    if let Ok(written) = manifest.to_bytes() {
        assert_eq!(Manifest::parse(&written).expect("what was written is read"), manifest);
    }
    Some(manifest)
}

fn patch_file(bytes: &[u8]) {
    let Ok(file) = PatchFile::parse(bytes) else { return };
    if let Ok(written) = file.to_bytes() {
        assert_eq!(PatchFile::parse(&written).expect("what was written is read"), file);
    }
    let (ranges, end) = file.layout(Header { manifest_bytes: 2, signatures_bytes: 0 });
    assert!(ranges.iter().all(|range| range.table.start <= range.table.end && range.frames.end <= end));
}

/// One part follows the other.
fn check_layout(manifest: &Manifest, header: Header) {
    let layout = manifest.layout(header);
    let patches = layout.patches.iter().flat_map(|patch| [&patch.table, &patch.frames]);
    let mut end = header.body_offset();
    for range in std::iter::once(&layout.index).chain(patches).chain([&layout.pieces]) {
        assert!(range.start == end && range.end >= end);
        end = range.end;
    }
}

fn part<'a>(data: &'a [u8], range: &std::ops::Range<u64>) -> Option<&'a [u8]> {
    data.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
}

fn digest(bytes: &[u8]) -> Sha256Digest {
    Sha256Digest(Sha256::digest(bytes).into())
}

fn parts(data: &[u8], mut manifest: Manifest, header: Header) {
    let layout = manifest.layout(header);
    let Some(index_bytes) = part(data, &layout.index) else { return };
    let Some(index) = index(index_bytes, &mut manifest) else { return };
    assert_eq!(index.to_bytes(), index_bytes, "there is one spelling");
    let pieces = data.get(usize::try_from(layout.pieces.start).unwrap_or(usize::MAX)..).unwrap_or_default();
    chunks(&index, pieces, &manifest);
    for (number, range) in layout.patches.iter().enumerate() {
        let Some(table) = part(data, &range.table) else { return };
        patch(
            table,
            data.get(usize::try_from(range.frames.start).unwrap_or(usize::MAX)..),
            number,
            &mut manifest,
            &index,
        );
    }
}

/// The index, after the manifest's digest and sums were made to fit it.
fn index(bytes: &[u8], manifest: &mut Manifest) -> Option<Index> {
    manifest.index.sha256 = digest(bytes);
    for _ in 0..CORRECTIONS {
        match Index::parse(bytes, manifest) {
            Ok(index) => return Some(index),
            Err(BundleError::Mismatch { what: "pieces_bytes", expected, .. }) => {
                manifest.pieces_bytes = expected
            }
            Err(BundleError::Mismatch { what: "the length of an image's chunks", actual, expected }) => {
                let image = manifest.images.iter_mut().find(|image| image.size_bytes == expected)?;
                image.size_bytes = actual;
            }
            Err(_) => return None,
        }
    }
    None
}

/// Chunks make the image as long as it is said to be, and each what it is said to be, whatever is stored for it.
fn chunks(index: &Index, stored: &[u8], manifest: &Manifest) {
    for (image, of_image) in manifest.images.iter().zip(&index.images) {
        let entries = &index.entries[of_image.entries.clone()];
        assert_eq!(entries.len(), image.chunks as usize);
        assert_eq!(
            entries.iter().map(|entry| u64::from(index.size_bytes(*entry))).sum::<u64>(),
            image.size_bytes
        );
        let of_others = |entry: &Entry| matches!(entry, Entry::Piece(number) if !of_image.pieces.contains(&(*number as usize)));
        assert!(!entries.iter().any(of_others), "an image is made of its own chunks");
    }
    let (mut context, mut out, mut made) = (Context::new(manifest.context_bytes), Vec::new(), 0);
    let mut end = 0;
    for piece in &index.pieces {
        assert_eq!(piece.stored_offset, end, "there are no gaps");
        assert!(piece.stored_bytes <= piece.size_bytes && piece.size_bytes <= manifest.chunking.max_bytes);
        end += u64::from(piece.stored_bytes);
        made += piece.size_bytes as usize;
        if made > UNPACKED_BYTES_MAX {
            continue;
        }
        let Some(stored) = part(stored, &(piece.stored_offset..end)) else { return };
        if unpack(stored, piece.size_bytes, context.as_slice(), &mut out).is_ok() {
            assert_eq!(out.len(), piece.size_bytes as usize);
            context.push(&out);
            assert!(context.as_slice().len() <= manifest.context_bytes as usize);
        }
        assert!(out.len() <= piece.size_bytes as usize, "nothing is made beyond");
    }
    assert_eq!(end, manifest.pieces_bytes);
}

/// Whatever a table takes of the base is in the base.
fn patch(bytes: &[u8], frames: Option<&[u8]>, number: usize, manifest: &mut Manifest, index: &Index) {
    let patch = &mut manifest.patches[number];
    patch.table.sha256 = digest(bytes);
    let of_class = manifest.images.iter().position(|image| image.class == patch.class);
    let image = &index.images[of_class.expect("the manifest was checked")];
    let table = match PatchTable::parse(bytes, patch, index, image) {
        Err(BundleError::Mismatch { what: "frames_bytes", expected, .. }) => {
            patch.frames_bytes = expected;
            PatchTable::parse(bytes, patch, index, image)
        }
        table => table,
    };
    let Ok(table) = table else { return };
    let base_bytes = patch.base.size_bytes;
    let pieces = &index.pieces[image.pieces.clone()];
    assert_eq!(table.sources.len(), pieces.len());
    for (source, piece) in table.sources.iter().zip(pieces) {
        match *source {
            Source::Stored => {}
            Source::Base(offset) => assert!(offset + u64::from(piece.size_bytes) <= base_bytes),
            Source::Frame { number, offset } => {
                let frame = &table.frames[number as usize];
                assert!(offset + piece.size_bytes <= frame.size_bytes);
            }
        }
    }
    let (mut out, mut made) = (Vec::new(), 0);
    for frame in &table.frames {
        let extents = &table.extents[frame.extents.clone()];
        assert!(extents.iter().all(|extent| extent.offset + u64::from(extent.size_bytes) <= base_bytes));
        let prefix_bytes = extents.iter().map(|extent| extent.size_bytes).sum::<u32>();
        assert!(prefix_bytes <= patch.largest_prefix_bytes && frame.size_bytes <= patch.largest_frame_bytes);
        made += frame.size_bytes as usize + prefix_bytes as usize;
        if made > UNPACKED_BYTES_MAX {
            continue;
        }
        let range = frame.stored_offset..frame.stored_offset + u64::from(frame.stored_bytes);
        let Some(stored) = frames.and_then(|frames| part(frames, &range)) else { return };
        let prefix = vec![0; prefix_bytes as usize];
        let unpacked = unpack(stored, frame.size_bytes, &prefix, &mut out);
        assert!(unpacked.is_err() || out.len() == frame.size_bytes as usize);
    }
    // Two spellings of one table: a run may be written as two.
    let written = table.to_bytes(index, image);
    patch.table.size_bytes = u32::try_from(written.len()).expect("no longer than it was");
    patch.table.sha256 = digest(&written);
    assert_eq!(PatchTable::parse(&written, patch, index, image).expect("what was written is read"), table);
}
