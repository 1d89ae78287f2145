//! The manifest: what is signed, and what says how long all that follows is.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use minisign_verify::PublicKey;
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest as _, Sha256};

use super::chunker::Chunking;
use super::header::Header;
use super::{
    BundleError, CHUNKS_MAX, CONTEXT_BYTES_MAX, FRAME_BYTES_MAX, IMAGES_MAX, INDEX_BYTES_MAX, PATCHES_MAX,
    PREFIX_BYTES_MAX, TABLE_BYTES_MAX,
};
use crate::update::request::INTEGER_MAX;
use crate::update::{KeyList, Sha256Digest};

/// Larger than any slot, and small enough that sums of all parts cannot overflow.
const IMAGE_BYTES_MAX: u64 = 1 << 40;

/// Versions, boards and slot classes: for a person to read.
const TEXT_BYTES_MAX: usize = 128;

const COMPATIBLE_MAX: usize = 64;

/// Places of a base that are looked at, to know it again.
const SAMPLES_MAX: usize = 64;

/// One that signs, one in the safe, and what is left of their predecessors.
const KEYS_MAX: usize = 16;

/// The highest number of a key list, which a device reports.
pub const KEY_SERIAL_MAX: u64 = INTEGER_MAX;

/// Length of a sample.
pub const SAMPLE_BYTES: u64 = 4096;

/// What the manifest is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum OfBundle {
    #[serde(rename = "twinboot bundle")]
    Bundle,
}

/// What the manifest is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum OfPatches {
    #[serde(rename = "twinboot patches")]
    Patches,
}

/// What a bundle brings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    #[serde(rename = "format")]
    of: OfBundle,
    /// The firmware's version.
    pub version: String,
    /// Boards it is for; none: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compatible: Vec<String>,
    /// RFC 3339, in UTC.
    pub created: String,
    /// The oldest agent that may install it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_agent_version: Option<String>,
    /// The oldest firmware that may be updated to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_previous_version: Option<String>,
    /// One for each slot class, in the order of the index.
    pub images: Vec<Image>,
    /// How the images were cut.
    pub chunking: Chunking,
    /// What a device keeps of an image before a chunk, to decompress it; 0: nothing.
    pub context_bytes: u32,
    /// The index.
    pub index: Part,
    /// All stored pieces together.
    pub pieces_bytes: u64,
    /// In the order of their tables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patches: Vec<PatchPart>,
    /// Whose signatures count on a device that has committed it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "closed_list")]
    pub keys: Option<KeyList>,
    /// The name of a file beside the bundle that may have more: a [`PatchFile`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patches_file: Option<String>,
}

/// One image, for all slots of a class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// The slot class: `rootfs`, `boot`, …
    pub class: String,
    /// Of the image as it is written.
    pub size_bytes: u64,
    /// Of the image as it is written.
    pub sha256: Sha256Digest,
    /// Entries of the index that make it.
    pub chunks: u32,
}

/// A part that is read whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Its length.
    pub size_bytes: u32,
    /// Its digest.
    pub sha256: Sha256Digest,
}

/// What turns a known older image into one of the bundle's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchPart {
    /// The slot class.
    pub class: String,
    /// The older image.
    pub base: Base,
    /// What is where in the base.
    pub table: Part,
    /// All frames together.
    pub frames_bytes: u64,
    /// What the largest frame makes.
    pub largest_frame_bytes: u32,
    /// What the most demanding frame wants of the base.
    pub largest_prefix_bytes: u32,
}

/// An older image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Base {
    /// Its version, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its size.
    pub size_bytes: u64,
    /// Its digest: no two bases are the same.
    pub sha256: Sha256Digest,
    /// What a device knows it by: three quarters of them must be right. A mounted file system changes some.
    pub samples: Vec<Sample>,
}

/// The digest of [`SAMPLE_BYTES`] of a base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Where in the base.
    pub offset: u64,
    /// Of the bytes there.
    pub sha256: Sha256Digest,
}

/// The manifest of a side file: patches for a bundle that was made before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchFile {
    #[serde(rename = "format")]
    of: OfPatches,
    /// SHA-256 of the bundle's manifest.
    pub bundle: Sha256Digest,
    /// In the order of their tables.
    pub patches: Vec<PatchPart>,
}

/// Where a patch is in its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatchRange {
    /// The table.
    pub table: Range<u64>,
    /// The frames.
    pub frames: Range<u64>,
}

/// Where all parts are in a bundle, in bytes from its beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The index.
    pub index: Range<u64>,
    /// One for each of [`Manifest::patches`].
    pub patches: Vec<PatchRange>,
    /// The stored pieces; the file ends with them.
    pub pieces: Range<u64>,
}

impl Manifest {
    /// With what every bundle has; the rest is empty.
    #[must_use]
    pub fn new(version: String, created: String, chunking: Chunking, index: Part) -> Self {
        Self {
            of: OfBundle::Bundle,
            version,
            compatible: Vec::new(),
            created,
            min_agent_version: None,
            min_previous_version: None,
            images: Vec::new(),
            chunking,
            context_bytes: 0,
            index,
            pieces_bytes: 0,
            patches: Vec::new(),
            keys: None,
            patches_file: None,
        }
    }

    /// Reads the manifest of a bundle. Whoever signed it is to be asked before.
    ///
    /// # Errors
    /// Unknown or missing keys, and values beyond what the format grants.
    pub fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|source| BundleError::Manifest { source })?;
        manifest.check()?;
        Ok(manifest)
    }

    /// As it is signed and written.
    ///
    /// # Errors
    /// What [`Manifest::parse`] would refuse.
    pub fn to_bytes(&self) -> Result<Vec<u8>, BundleError> {
        self.check()?;
        to_bytes(self)
    }

    /// The digest by which a bundle is named: what `fwPackageCheckValue` has to be.
    #[must_use]
    pub fn digest(bytes: &[u8]) -> Sha256Digest {
        Sha256Digest(Sha256::digest(bytes).into())
    }

    /// Where everything is.
    #[must_use]
    pub fn layout(&self, header: Header) -> Layout {
        let start = header.body_offset();
        let index = start..start + u64::from(self.index.size_bytes);
        let (patches, end) = patch_ranges(&self.patches, index.end);
        Layout { index, patches, pieces: end..end + self.pieces_bytes }
    }

    fn check(&self) -> Result<(), BundleError> {
        text("version", &self.version)?;
        self.compatible.iter().try_for_each(|board| text("compatible", board))?;
        BundleError::at_most("the number of boards", self.compatible.len() as u64, COMPATIBLE_MAX as u64)?;
        if humantime::parse_rfc3339(&self.created).is_err() {
            return Err(BundleError::Field { field: "created", why: "is not a time in UTC (RFC 3339)" });
        }
        for (field, version) in [
            ("min_agent_version", &self.min_agent_version),
            ("min_previous_version", &self.min_previous_version),
        ] {
            version.iter().try_for_each(|version| text(field, version))?;
        }
        self.keys.iter().try_for_each(check_keys)?;
        self.check_images()?;
        self.chunking.check()?;
        BundleError::at_most("context_bytes", self.context_bytes.into(), CONTEXT_BYTES_MAX.into())?;
        BundleError::at_most("the index's length", self.index.size_bytes.into(), INDEX_BYTES_MAX.into())?;
        let images_bytes = self.images.iter().map(|image| image.size_bytes).sum();
        BundleError::at_most("pieces_bytes", self.pieces_bytes, images_bytes)?;
        let classes: HashSet<_> = self.images.iter().map(|image| image.class.as_str()).collect();
        check_patches(&self.patches)?;
        if !self.patches.iter().all(|patch| classes.contains(patch.class.as_str())) {
            return Err(BundleError::Field { field: "patches", why: "names a class that has no image" });
        }
        self.patches_file.iter().try_for_each(|name| file_name(name))
    }

    fn check_images(&self) -> Result<(), BundleError> {
        BundleError::at_least("the number of images", self.images.len() as u64, 1)?;
        BundleError::at_most("the number of images", self.images.len() as u64, IMAGES_MAX as u64)?;
        let mut classes = HashSet::new();
        for image in &self.images {
            class(&image.class)?;
            if !classes.insert(&image.class) {
                return Err(BundleError::Twice { what: "class", name: image.class.clone() });
            }
            BundleError::at_least("the size of an image", image.size_bytes, 1)?;
            BundleError::at_most("the size of an image", image.size_bytes, IMAGE_BYTES_MAX)?;
            BundleError::at_least("the number of chunks of an image", image.chunks.into(), 1)?;
        }
        let chunks = self.images.iter().map(|image| u64::from(image.chunks)).sum();
        BundleError::at_most("the number of chunks", chunks, CHUNKS_MAX as u64)
    }
}

impl PatchFile {
    /// For the bundle whose manifest has this digest.
    #[must_use]
    pub fn new(bundle: Sha256Digest, patches: Vec<PatchPart>) -> Self {
        Self { of: OfPatches::Patches, bundle, patches }
    }

    /// Reads the manifest of a side file. Whoever signed it is to be asked before.
    ///
    /// # Errors
    /// Unknown or missing keys, and values beyond what the format grants.
    pub fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        let file: Self = serde_json::from_slice(bytes).map_err(|source| BundleError::Manifest { source })?;
        check_patches(&file.patches)?;
        Ok(file)
    }

    /// As it is signed and written.
    ///
    /// # Errors
    /// What [`PatchFile::parse`] would refuse.
    pub fn to_bytes(&self) -> Result<Vec<u8>, BundleError> {
        check_patches(&self.patches)?;
        to_bytes(self)
    }

    /// Where everything is, and where the file ends.
    #[must_use]
    pub fn layout(&self, header: Header) -> (Vec<PatchRange>, u64) {
        patch_ranges(&self.patches, header.body_offset())
    }
}

fn patch_ranges(patches: &[PatchPart], mut end: u64) -> (Vec<PatchRange>, u64) {
    let mut take = |bytes: u64| {
        let start = end;
        end += bytes;
        start..end
    };
    let ranges = patches.iter().map(|patch| PatchRange {
        table: take(patch.table.size_bytes.into()),
        frames: take(patch.frames_bytes),
    });
    let ranges = ranges.collect();
    (ranges, end)
}

fn check_patches(patches: &[PatchPart]) -> Result<(), BundleError> {
    BundleError::at_most("the number of patches", patches.len() as u64, PATCHES_MAX as u64)?;
    let mut bases = HashSet::new();
    for patch in patches {
        class(&patch.class)?;
        if !bases.insert((&patch.class, patch.base.sha256)) {
            return Err(BundleError::Twice { what: "base", name: patch.base.sha256.to_string() });
        }
        patch.base.version.iter().try_for_each(|version| text("base.version", version))?;
        BundleError::at_least("the size of a base", patch.base.size_bytes, SAMPLE_BYTES)?;
        BundleError::at_most("the size of a base", patch.base.size_bytes, IMAGE_BYTES_MAX)?;
        BundleError::at_least("the number of samples", patch.base.samples.len() as u64, 1)?;
        BundleError::at_most("the number of samples", patch.base.samples.len() as u64, SAMPLES_MAX as u64)?;
        let last_offset = patch.base.size_bytes.saturating_sub(SAMPLE_BYTES);
        for sample in &patch.base.samples {
            BundleError::at_most("the offset of a sample", sample.offset, last_offset)?;
        }
        BundleError::at_most("a table's length", patch.table.size_bytes.into(), TABLE_BYTES_MAX.into())?;
        BundleError::at_most("frames_bytes", patch.frames_bytes, IMAGE_BYTES_MAX)?;
        let (frame, prefix) = (patch.largest_frame_bytes, patch.largest_prefix_bytes);
        BundleError::at_most("largest_frame_bytes", frame.into(), FRAME_BYTES_MAX.into())?;
        BundleError::at_most("largest_prefix_bytes", prefix.into(), PREFIX_BYTES_MAX.into())?;
    }
    Ok(())
}

/// In a manifest unknown keys are refused; in the state file, which an older program may have to read, they are not.
fn closed_list<'de, D: Deserializer<'de>>(from: D) -> Result<Option<KeyList>, D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Closed {
        serial: u64,
        trusted: BTreeMap<String, String>,
    }
    let Closed { serial, trusted } = Closed::deserialize(from)?;
    Ok(Some(KeyList { serial, trusted }))
}

fn check_keys(list: &KeyList) -> Result<(), BundleError> {
    BundleError::at_least("the number of a key list", list.serial, 1)?;
    BundleError::at_most("the number of a key list", list.serial, KEY_SERIAL_MAX)?;
    BundleError::at_least("the number of keys", list.trusted.len() as u64, 1)?;
    BundleError::at_most("the number of keys", list.trusted.len() as u64, KEYS_MAX as u64)?;
    for (name, key) in &list.trusted {
        text("keys", name)?;
        if PublicKey::from_base64(key).is_err() {
            return Err(BundleError::Field { field: "keys", why: "has one that is no minisign public key" });
        }
    }
    Ok(())
}

fn text(field: &'static str, text: &str) -> Result<(), BundleError> {
    if text.is_empty() || text.len() > TEXT_BYTES_MAX || text.chars().any(char::is_control) {
        return Err(BundleError::Field { field, why: "must have 1 to 128 bytes, and no control characters" });
    }
    Ok(())
}

/// Beside the bundle, and nowhere else.
fn file_name(name: &str) -> Result<(), BundleError> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let why = "must have 1 to 128 of letters, digits, `-`, `_` and `.`, and not begin with `.`";
    if name.is_empty() || name.len() > TEXT_BYTES_MAX || name.starts_with('.') || !name.bytes().all(legal) {
        return Err(BundleError::Field { field: "patches_file", why });
    }
    Ok(())
}

/// Whether a slot class may be called so.
#[must_use]
pub fn is_class(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    (1..=32).contains(&name.len()) && name.bytes().all(legal)
}

fn class(name: &str) -> Result<(), BundleError> {
    if !is_class(name) {
        return Err(BundleError::Field { field: "class", why: "must have 1 to 32 of a-z, 0-9, `-` and `_`" });
    }
    Ok(())
}

fn to_bytes(manifest: &impl Serialize) -> Result<Vec<u8>, BundleError> {
    let mut bytes = serde_json::to_vec_pretty(manifest).map_err(|source| BundleError::Manifest { source })?;
    bytes.push(b'\n');
    BundleError::at_most("the manifest's length", bytes.len() as u64, super::MANIFEST_BYTES_MAX.into())?;
    Ok(bytes)
}
