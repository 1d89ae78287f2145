//! The bundle: one signed file that a device fetches in parts, each verified before it is used.
//!
//! Pure: bytes in, values out; no files, no network, no threads. `docs/bundle-format.md` is the specification.
//!
//! ```text
//! header | manifest | signatures | index | patches: table, frames | … | pieces
//! ```
//!
//! The manifest says how long everything after the signatures is, in order and without gaps: there are no offsets
//! that could overlap. It holds the digests of index and tables, and the index that of each chunk.

mod bytes;
mod chunker;
mod create;
mod error;
mod header;
mod index;
mod manifest;
mod patch;
mod piece;
mod signatures;
#[cfg(test)]
mod tests;

pub(crate) use chunker::is_zero;
pub use chunker::{Algorithm, Chunker, Chunking, Cut, ZERO_BLOCK_BYTES};
pub use create::IndexBuilder;
pub use error::BundleError;
pub use header::{FORMAT, HEADER_BYTES, Header, MAGIC};
pub use index::{Entry, ImageIndex, Index, Piece};
pub use manifest::{
    Base, Image, KEY_SERIAL_MAX, Layout, Manifest, Part, PatchFile, PatchPart, PatchRange, SAMPLE_BYTES,
    Sample, is_class,
};
pub use patch::{Extent, Frame, PatchTable, Source};
pub use piece::{Context, pack, unpack};
pub use signatures::Signatures;

/// Chunks of a bundle, zeros and repeats included: what a device can hold in memory with all it knows of each.
pub const CHUNKS_MAX: usize = 131_072;

/// A manifest for eight images with eight bases has some 20 KiB.
pub const MANIFEST_BYTES_MAX: u32 = 64 << 10;

/// Eight signatures, with room for their comments.
pub const SIGNATURES_BYTES_MAX: u32 = 16 << 10;

/// Keys that may sign.
pub const SIGNATURES_MAX: usize = 8;

/// Images of one bundle: one for each slot class.
pub const IMAGES_MAX: usize = 8;

/// Patches of one bundle.
pub const PATCHES_MAX: usize = 32;

/// The largest chunk that a bundle may choose.
pub const CHUNK_BYTES_MAX: u32 = 4 << 20;

/// What a device keeps of the image before a chunk, to decompress it.
pub const CONTEXT_BYTES_MAX: u32 = 1 << 20;

/// What a patch frame may make at once.
pub const FRAME_BYTES_MAX: u32 = 4 << 20;

/// What a patch frame may want of the base at once.
pub const PREFIX_BYTES_MAX: u32 = 16 << 20;

/// All frames of a patch: as many as there could be chunks would be no patch.
pub const FRAMES_MAX: usize = 16_384;

/// Places in the base, for all frames of a patch together.
pub const EXTENTS_MAX: usize = 65_536;

/// An index of [`CHUNKS_MAX`] chunks: a digest each, and two numbers of at most five bytes.
pub const INDEX_BYTES_MAX: u32 = 131_072 * 42;

/// A table that says more than this is larger than what it saves.
pub const TABLE_BYTES_MAX: u32 = 2 << 20;
