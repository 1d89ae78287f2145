//! Bundles made and read back, and what hostile ones get.

use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use super::bytes::{put_number, put_signed};
use super::*;
use crate::update::Sha256Digest;

/// Small, so that small images have many chunks.
const CHUNKING: Chunking =
    Chunking { algorithm: Algorithm::FastCdc, min_bytes: 512, average_bytes: 1024, max_bytes: 4096 };

const CONTEXT_BYTES: u32 = 3000;

/// All parts of a bundle.
struct Made {
    image: Vec<u8>,
    manifest: Manifest,
    index: Index,
    pieces: Vec<u8>,
}

fn sha256(bytes: &[u8]) -> Sha256Digest {
    Sha256Digest(Sha256::digest(bytes).into())
}

fn part(bytes: &[u8]) -> Part {
    Part { size_bytes: bytes.len().try_into().unwrap(), sha256: sha256(bytes) }
}

/// Text that compresses, noise that does not, zeros, and both again.
fn image(seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let noise: Vec<u8> = (0..9000 + random.usize(..5000)).map(|_| random.u8(..)).collect();
    let text: Vec<u8> = (0..20_000_u32).flat_map(|n| (n / 3).to_string().into_bytes()).collect();
    let mut image = [text.as_slice(), &noise].concat();
    image.resize(image.len().next_multiple_of(4096) + random.usize(..30_000), 0);
    [image.as_slice(), &noise, &text, &[0; 5000]].concat()
}

fn cuts(image: &[u8], window: usize) -> Vec<Cut> {
    let chunker = Chunker::new(CHUNKING).unwrap();
    let window = window.max(chunker.lookahead_bytes());
    let (mut cuts, mut offset) = (Vec::new(), 0);
    loop {
        let end = image.len().min(offset + window);
        let Some(cut) = chunker.cut(offset as u64, &image[offset..end], end == image.len()) else {
            return cuts;
        };
        let (Cut::Data(length) | Cut::Zeros(length)) = cut;
        offset += length;
        match (cuts.last_mut(), cut) {
            (Some(Cut::Zeros(run)), Cut::Zeros(more)) => *run += more,
            _ => cuts.push(cut),
        }
    }
}

#[test]
fn cuts_are_those_of_fastcdc_at_level_1() {
    let mut random = fastrand::Rng::with_seed(7);
    let averages = (0..32).map(|bits| Chunking::around(1 << bits));
    let chunkers: Vec<Chunker> = averages.filter_map(|chunking| Chunker::new(chunking).ok()).collect();
    assert!(chunkers.len() > 8, "1 KiB to 1 MiB, in powers of two");
    for chunker in chunkers {
        let noise: Vec<u8> = (0..chunker.lookahead_bytes()).map(|_| random.u8(1..)).collect();
        let average = chunker.average_bytes();
        let largest = &noise[..4 * average];
        let theirs = fastcdc::v2020::FastCDC::new(largest, average / 4, average, 4 * average);
        let (_, cut) = theirs.cut(0, largest.len());
        assert_eq!(chunker.cut(0, &noise, false), Some(Cut::Data(cut)), "at {average}");
    }
}

fn made(image: Vec<u8>) -> Made {
    let mut builder = IndexBuilder::default();
    let (mut offset, mut context) = (0, Context::new(CONTEXT_BYTES));
    let (mut pieces, mut stored_bytes) = (Vec::new(), Vec::new());
    for cut in cuts(&image, usize::MAX / 2) {
        match cut {
            Cut::Zeros(length) => {
                builder.zeros(length as u64).unwrap();
                offset += length;
            }
            Cut::Data(length) => {
                let chunk = &image[offset..offset + length];
                if builder.chunk(sha256(chunk), length.try_into().unwrap()).unwrap() {
                    let stored = pack(chunk, context.as_slice(), 3).unwrap();
                    stored_bytes.push(stored.len().try_into().unwrap());
                    pieces.extend(stored);
                }
                context.push(chunk);
                offset += length;
            }
        }
    }
    let chunks = builder.end_image();
    let mut index = builder.finish();
    let pieces_bytes = index.store(&stored_bytes).unwrap();
    let created = "2026-11-23T00:00:00Z".to_owned();
    let mut manifest = Manifest::new("2.0".to_owned(), created, CHUNKING, part(&index.to_bytes()));
    let (size_bytes, digest) = (image.len() as u64, sha256(&image));
    manifest.images.push(Image { class: "rootfs".to_owned(), size_bytes, sha256: digest, chunks });
    (manifest.context_bytes, manifest.pieces_bytes) = (CONTEXT_BYTES, pieces_bytes);
    Made { image, manifest, index, pieces }
}

/// As a device does it.
fn installed(made: &Made, index: &Index) -> Result<Vec<u8>, BundleError> {
    let (mut image, mut context, mut chunk) = (Vec::new(), Context::new(CONTEXT_BYTES), Vec::new());
    let mut places = std::collections::HashMap::new();
    for entry in &index.entries {
        match *entry {
            Entry::Zeros(length) => image.resize(image.len() + length as usize, 0),
            Entry::Piece(number) => {
                let piece = &index.pieces[number as usize];
                if let Some(place) = places.insert(number, image.len()) {
                    chunk = image[place..place + piece.size_bytes as usize].to_vec();
                } else {
                    let start: usize = piece.stored_offset.try_into().unwrap();
                    let stored = &made.pieces[start..start + piece.stored_bytes as usize];
                    unpack(stored, piece.size_bytes, context.as_slice(), &mut chunk)?;
                }
                assert_eq!(sha256(&chunk), piece.sha256);
                context.push(&chunk);
                image.extend_from_slice(&chunk);
            }
        }
    }
    Ok(image)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_was_made_is_what_is_installed(seed: u64) {
        let made = made(image(seed));
        let manifest = Manifest::parse(&made.manifest.to_bytes().unwrap()).unwrap();
        prop_assert_eq!(&manifest, &made.manifest);
        let index = Index::parse(&made.index.to_bytes(), &manifest).unwrap();
        prop_assert_eq!(&index, &made.index);
        prop_assert!(index.pieces.len() < index.entries.len() - 2, "nothing repeats");
        prop_assert!(installed(&made, &index).unwrap() == made.image);
    }

    #[test]
    fn an_image_is_cut_the_same_however_it_is_read(seed: u64, window in 8192_usize..100_000) {
        let image = image(seed);
        prop_assert_eq!(cuts(&image, window), cuts(&image, usize::MAX / 2));
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = Header::parse(&bytes);
        let _ = Manifest::parse(&bytes);
        let _ = PatchFile::parse(&bytes);
        let _ = Signatures::parse(&bytes);
        let _ = unpack(&bytes, 1000, b"prefix", &mut Vec::new());
        let mut made = made(b"some image".repeat(100));
        made.manifest.index = part(&bytes);
        let _ = Index::parse(&bytes, &made.manifest);
        let patch = patch(&bytes);
        let _ = PatchTable::parse(&bytes, &patch, &made.index, &made.index.images[0]);
    }
}

#[test]
fn what_moved_is_found_again() {
    let mut random = fastrand::Rng::with_seed(1);
    let image: Vec<u8> = (0..200_000).map(|_| random.u8(..)).collect();
    let moved = [vec![7; 5000], image.clone()].concat();
    let digests = |image: &[u8]| {
        let mut offset = 0;
        let cuts = cuts(image, usize::MAX / 2).into_iter().filter_map(move |cut| {
            let (Cut::Data(length) | Cut::Zeros(length)) = cut;
            offset += length;
            matches!(cut, Cut::Data(_)).then(|| sha256(&image[offset - length..offset]))
        });
        cuts.collect::<std::collections::HashSet<_>>()
    };
    let (old, new) = (digests(&image), digests(&moved));
    assert!(new.intersection(&old).count() * 10 > new.len() * 9, "of {} chunks", new.len());
}

#[test]
fn a_hostile_header_is_refused() {
    let header = Header { manifest_bytes: 100, signatures_bytes: 0 };
    assert_eq!(Header::parse(&header.to_bytes()).unwrap(), header);
    let with = |at: usize, number: u32| {
        let mut bytes = header.to_bytes();
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        Header::parse(&bytes).unwrap_err()
    };
    assert!(matches!(with(0, 0), BundleError::NotABundle));
    assert!(matches!(with(8, 2), BundleError::UnknownFormat { format: 2, known: 1 }));
    assert!(matches!(with(12, u32::MAX), BundleError::TooLarge { .. }));
    assert!(matches!(with(12, 0), BundleError::TooSmall { .. }));
    assert!(matches!(with(16, MANIFEST_BYTES_MAX), BundleError::TooLarge { .. }));
    let short = Header::parse(&header.to_bytes()[..19]).unwrap_err();
    assert!(matches!(short, BundleError::Truncated { missing_bytes: 1, .. }));
}

/// Shows F2; F3; F4.
#[test]
fn a_hostile_manifest_is_refused() {
    let made = made(b"some image".repeat(100));
    let json: serde_json::Value = serde_json::to_value(&made.manifest).unwrap();
    let refused = |pointer: &str, value: serde_json::Value| {
        let mut json = json.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = json.pointer_mut(parent).unwrap();
        match key.parse::<usize>() {
            Ok(_) => parent.as_array_mut().unwrap().push(value),
            Err(_) => drop(parent.as_object_mut().unwrap().insert(key.to_owned(), value)),
        }
        Manifest::parse(&serde_json::to_vec(&json).unwrap()).unwrap_err()
    };
    let many_chunks = CHUNKS_MAX + 1;
    for (pointer, value) in [
        ("/unknown", 1.into()),
        ("/format", "another".into()),
        ("/images/0/unknown", 1.into()),
        ("/version", "a\nb".into()),
        ("/version", "".into()),
        ("/created", "yesterday".into()),
        ("/images", serde_json::json!([])),
        ("/images/1", json["images"][0].clone()),
        ("/images/0/class", "../root".into()),
        ("/images/0/size_bytes", 0.into()),
        ("/images/0/size_bytes", u64::MAX.into()),
        ("/images/0/size_bytes", (-1).into()),
        ("/images/0/chunks", many_chunks.into()),
        ("/images/0/sha256", "12".into()),
        ("/chunking/average_bytes", 1000.into()),
        ("/chunking/max_bytes", (CHUNK_BYTES_MAX + 2).into()),
        ("/chunking/min_bytes", 513.into()),
        ("/chunking/algorithm", "magic".into()),
        ("/context_bytes", (CONTEXT_BYTES_MAX + 1).into()),
        ("/index/size_bytes", (INDEX_BYTES_MAX + 1).into()),
        ("/pieces_bytes", 1_000_000.into()),
        ("/compatible", serde_json::json!(vec!["board"; 65])),
        ("/patches", serde_json::json!([patch(b"")])),
    ] {
        let error = refused(pointer, value);
        assert!(!error.to_string().is_empty(), "{pointer}");
    }
    let twice = br#"{"format":"twinboot bundle","version":"1","version":"2"}"#;
    assert!(matches!(Manifest::parse(twice), Err(BundleError::Manifest { .. })));
}

/// Shows F2.
#[test]
fn a_hostile_index_is_refused() {
    let made = made(b"some image".repeat(1000));
    let digest = [9; 32];
    let entry = |kind: u64, value: u64, more: &[u64], digest: &[u8]| {
        let mut bytes = Vec::new();
        put_number(&mut bytes, value << 2 | kind);
        more.iter().for_each(|number| put_number(&mut bytes, *number));
        [bytes.as_slice(), digest].concat()
    };
    let good = made.index.to_bytes();
    let parse = |bytes: &[u8], chunks: u32, pieces_bytes: u64| {
        let mut manifest = made.manifest.clone();
        (manifest.index, manifest.images[0].chunks, manifest.pieces_bytes) =
            (part(bytes), chunks, pieces_bytes);
        Index::parse(bytes, &manifest).unwrap_err()
    };
    let (chunks, stored) = (made.manifest.images[0].chunks, made.manifest.pieces_bytes);
    let new = |size: u64, stored: u64| entry(1, size, &[stored], &digest);
    let cases: [(&str, Vec<u8>, u32, u64); 12] = [
        ("nothing", Vec::new(), 1, 0),
        ("cut short", good[..good.len() - 1].to_vec(), chunks, stored),
        ("more than announced", [good.as_slice(), &[0]].concat(), chunks, stored),
        ("fewer chunks than announced", good.clone(), chunks + 1, stored),
        ("other pieces than announced", good.clone(), chunks, stored + 1),
        ("too little of the image", new(4000, 10), 1, 10),
        ("too much of the image", [new(4096, 1), new(4096, 1), new(4096, 1)].concat(), 3, 3),
        ("a chunk of no length", new(0, 0), 1, 0),
        ("a chunk beyond the largest", new(4097, 10), 1, 10),
        ("stored longer than it is", new(4000, 4001), 1, 4001),
        ("again what never was", entry(2, 1, &[], &[]), 1, 0),
        ("an unknown kind", entry(3, 1, &[], &[]), 1, 0),
    ];
    for (name, bytes, chunks, pieces_bytes) in cases {
        let error = parse(&bytes, chunks, pieces_bytes);
        assert!(!matches!(error, BundleError::Digest { .. }), "{name}: {error}");
    }
    let mut other = good;
    other[0] ^= 1;
    assert!(matches!(Index::parse(&other, &made.manifest), Err(BundleError::Digest { .. })));
}

/// A patch with this table, from a base of 10,000 bytes, with frames of at most 4096 and prefixes of 8192 bytes.
fn patch(table: &[u8]) -> PatchPart {
    PatchPart {
        class: "boot".to_owned(),
        base: Base {
            version: None,
            size_bytes: 10_000,
            sha256: sha256(b"base"),
            samples: vec![Sample { offset: 0, sha256: sha256(b"sample") }],
        },
        table: part(table),
        frames_bytes: 100,
        largest_frame_bytes: 4096,
        largest_prefix_bytes: 8192,
    }
}

/// An index of four pieces of 1000 bytes.
fn four_pieces() -> Index {
    let mut builder = IndexBuilder::default();
    for number in 0..4_u8 {
        builder.chunk(sha256(&[number]), 1000).unwrap();
    }
    builder.end_image();
    builder.finish()
}

#[test]
fn a_table_reads_back() {
    let index = four_pieces();
    let table = PatchTable {
        sources: vec![
            Source::Frame { number: 0, offset: 0 },
            Source::Base(9000),
            Source::Frame { number: 0, offset: 1000 },
            Source::Base(7000),
        ],
        frames: vec![Frame { size_bytes: 2000, stored_bytes: 100, stored_offset: 0, extents: 0..2 }],
        extents: vec![Extent { offset: 4096, size_bytes: 4096 }, Extent { offset: 0, size_bytes: 4096 }],
    };
    let bytes = table.to_bytes(&index, &index.images[0]);
    let read = PatchTable::parse(&bytes, &patch(&bytes), &index, &index.images[0]).unwrap();
    assert_eq!(read, table);
}

#[test]
fn a_hostile_table_is_refused() {
    let index = four_pieces();
    // Runs as (kind, count, offset for copies), then what follows.
    let table = |runs: &[(u64, u64, i64)], rest: &[u64]| {
        let mut bytes = Vec::new();
        for (kind, count, offset) in runs {
            put_number(&mut bytes, count << 2 | kind);
            if *kind == 1 {
                put_signed(&mut bytes, *offset);
            }
        }
        rest.iter().for_each(|number| put_number(&mut bytes, *number));
        bytes
    };
    let cases: [(&str, Vec<u8>); 16] = [
        ("nothing", Vec::new()),
        ("an unknown kind", table(&[(3, 4, 0)], &[])),
        ("an empty run", table(&[(0, 0, 0)], &[])),
        ("more pieces than there are", table(&[(0, 5, 0)], &[])),
        ("an endless run", table(&[(0, u64::MAX >> 2, 0)], &[])),
        ("a copy before the base", table(&[(1, 4, -1)], &[])),
        ("a copy beyond the base", table(&[(1, 4, 6001)], &[])),
        ("a copy far beyond the base", table(&[(1, 4, i64::MAX)], &[])),
        ("frames without a frame", table(&[(2, 4, 0)], &[])),
        ("a frame of nothing", table(&[(2, 4, 0)], &[0, 100, 0])),
        ("a frame of more than is left", table(&[(2, 2, 0), (0, 2, 0)], &[3, 100, 0])),
        ("a frame stored longer than it is", table(&[(2, 4, 0)], &[4, 4001, 0])),
        ("a prefix beyond its bound", table(&[(2, 4, 0)], &[4, 100, 2, 0, 8192, 1, 1])),
        ("a prefix beyond the base", table(&[(2, 4, 0)], &[4, 100, 1, 2 * 9999, 2])),
        ("more extents than are granted", table(&[(2, 4, 0)], &[4, 100, EXTENTS_MAX as u64 + 1])),
        ("something after the end", table(&[(2, 4, 0)], &[4, 100, 0, 0])),
    ];
    for (name, bytes) in cases {
        let error = PatchTable::parse(&bytes, &patch(&bytes), &index, &index.images[0]).unwrap_err();
        assert!(!matches!(error, BundleError::Digest { .. }), "{name}: {error}");
    }
    let mut frame_too_large = patch(&table(&[(2, 4, 0)], &[4, 100, 0]));
    frame_too_large.largest_frame_bytes = 3999;
    let bytes = table(&[(2, 4, 0)], &[4, 100, 0]);
    assert!(matches!(
        PatchTable::parse(&bytes, &frame_too_large, &index, &index.images[0]),
        Err(BundleError::TooLarge { what: "the length of a frame", .. })
    ));
}

#[test]
fn a_hostile_chunk_makes_no_more_than_it_should() {
    let bomb = pack(&vec![0; 1 << 20], b"", 19).unwrap();
    let mut out = Vec::new();
    assert!(matches!(unpack(&bomb, 1000, b"", &mut out), Err(BundleError::Unpack { .. })));
    assert!(out.capacity() < 8192);
    let short = pack(&[7; 900], b"", 19).unwrap();
    assert!(matches!(unpack(&short, 1000, b"", &mut out), Err(BundleError::Unpack { .. })));
    let patched =
        pack(&[b"prefix ".repeat(99), b"more".repeat(9)].concat(), &b"prefix ".repeat(99), 19).unwrap();
    unpack(&patched, 99 * 7 + 36, &b"prefix ".repeat(99), &mut out).unwrap();
    let right = out.clone();
    // Another prefix makes another chunk, or none: its digest tells.
    assert!(unpack(&patched, 99 * 7 + 36, &b"other! ".repeat(99), &mut out).is_err() || out != right);
    // A frame that says it makes 2^63 bytes, with a window as large.
    let boast = [0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x01, 0, 0];
    assert!(unpack(&boast, 1000, b"", &mut out).is_err());
}

#[test]
fn signatures_are_four_lines_each() {
    let one = include_bytes!("../../tests/data/bundle/tiny.minisig");
    let signatures = Signatures::parse(one).unwrap();
    assert_eq!(signatures.texts().len(), 1);
    let mut same = signatures.clone();
    same.add(&signatures).unwrap();
    assert_eq!(same, signatures);
    assert!(Signatures::parse(b"").unwrap().texts().is_empty());
    let text = std::str::from_utf8(one).unwrap();
    for wrong in [&text[1..], &text[..text.len() - 20], "a\nb\nc\nd\n", &format!("{text}\n")] {
        assert!(
            matches!(Signatures::parse(wrong.as_bytes()), Err(BundleError::NotASignature { .. })),
            "{wrong}"
        );
    }
    assert!(matches!(Signatures::parse(text.repeat(9).as_bytes()), Err(BundleError::TooLarge { .. })));
}

/// The test vector of `docs/bundle-format.md`.
#[test]
fn the_tiny_bundle_is_understood() {
    let file = include_bytes!("../../tests/data/bundle/tiny.twb");
    let header = Header::parse(file).unwrap();
    let slice =
        |range: std::ops::Range<u64>| &file[range.start.try_into().unwrap()..range.end.try_into().unwrap()];
    let manifest_end = HEADER_BYTES as u64 + u64::from(header.manifest_bytes);
    let manifest = slice(HEADER_BYTES as u64..manifest_end);
    assert_eq!(
        Manifest::digest(manifest).to_string(),
        "71c25552eb59bc73d2cd648bf1724b335fd2b61bda3a16203994d1504ac9de1a"
    );
    let signatures = Signatures::parse(slice(manifest_end..header.body_offset())).unwrap();
    let key = minisign_verify::PublicKey::decode(include_str!("../../tests/data/bundle/tiny.pub")).unwrap();
    let signature = minisign_verify::Signature::decode(&signatures.texts()[0]).unwrap();
    key.verify(manifest, &signature, false).unwrap();

    let manifest = Manifest::parse(manifest).unwrap();
    let layout = manifest.layout(header);
    assert_eq!(layout.pieces.end, file.len() as u64);
    let index = Index::parse(slice(layout.index), &manifest).unwrap();
    let table = slice(layout.patches[0].table.clone());
    let table = PatchTable::parse(table, &manifest.patches[0], &index, &index.images[0]).unwrap();
    assert_eq!(table.frames.len(), 1);

    let base = [numbers(0..1000), vec![0; 8960]].concat();
    assert_eq!(sha256(&base), manifest.patches[0].base.sha256);
    let image = [
        [numbers(0..300), b"twinboot".repeat(512), numbers(300..600)].concat(),
        [numbers(2000..2020), numbers(600..1000), vec![0; 12_416], numbers(0..200)].concat(),
    ];
    assert_eq!(sha256(&image.concat()), manifest.images[0].sha256);

    let prefix: Vec<u8> = (table.extents.iter())
        .flat_map(|extent| &base[extent.offset.try_into().unwrap()..][..extent.size_bytes as usize])
        .copied()
        .collect();
    let mut frame = Vec::new();
    unpack(slice(layout.patches[0].frames.clone()), table.frames[0].size_bytes, &prefix, &mut frame).unwrap();
    for (piece, source) in index.pieces.iter().zip(&table.sources) {
        let chunk = match source {
            Source::Base(offset) => &base[(*offset).try_into().unwrap()..][..piece.size_bytes as usize],
            Source::Frame { offset, .. } => &frame[*offset as usize..][..piece.size_bytes as usize],
            Source::Stored => panic!("a patch that helps nothing"),
        };
        assert_eq!(sha256(chunk), piece.sha256);
    }
}

/// SHA-256 of decimal numbers, one after the other.
fn numbers(range: std::ops::Range<u32>) -> Vec<u8> {
    range.flat_map(|number| Sha256::digest(number.to_string())).collect()
}
