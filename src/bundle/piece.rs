//! One chunk or one frame, compressed: a zstd frame that may refer to bytes that both sides have.

use zstd::zstd_safe::{CCtx, CParameter, DCtx, get_error_name};

use super::BundleError;

/// Decompresses what is stored into `out`, which then has exactly `size_bytes`. `prefix` is what it was compressed
/// with. Nothing else is allocated than that, and the decoder's 160 KiB.
///
/// # Errors
/// When it is damaged, or makes another number of bytes.
pub fn unpack(stored: &[u8], size_bytes: u32, prefix: &[u8], out: &mut Vec<u8>) -> Result<(), BundleError> {
    let what = "chunk";
    let size = size_bytes as usize;
    out.clear();
    if stored.len() == size {
        out.extend_from_slice(stored);
        return Ok(());
    }
    out.resize(size, 0);
    let mut context = DCtx::try_create().ok_or(BundleError::Unpack { what, why: "there is no memory" })?;
    let failed = |code| BundleError::Unpack { what, why: get_error_name(code) };
    context.ref_prefix(prefix).map_err(failed)?;
    let made = context.decompress(out.as_mut_slice(), stored).map_err(failed)?;
    if made == size { Ok(()) } else { Err(BundleError::Unpack { what, why: "it makes less than it says" }) }
}

/// From here on zstd weighs all matches that it finds in its trees.
const SEARCHING_LEVEL: i32 = 16;

/// How deep those trees are searched for a chunk: 8 steps, not 128. Nearly all the time goes into entering the same prefix
/// again for each chunk; this takes 0.6 of the time, and 0.6 % more bytes.
const SEARCH_LOG: u32 = 3;

/// What [`unpack`] decompresses, at a zstd level; as it is if that is no longer.
///
/// # Errors
/// When zstd cannot, for want of memory.
pub fn pack(bytes: &[u8], prefix: &[u8], level: i32) -> Result<Vec<u8>, BundleError> {
    let what = "chunk";
    let mut context = CCtx::try_create().ok_or(BundleError::Pack { what, why: "there is no memory" })?;
    let failed = |code| BundleError::Pack { what, why: get_error_name(code) };
    context.set_parameter(CParameter::CompressionLevel(level)).map_err(failed)?;
    if prefix.len() + bytes.len() > 1 << 20 {
        // Far matches are what a patch lives on.
        let window_log = (prefix.len() + bytes.len()).next_power_of_two().ilog2();
        context.set_parameter(CParameter::WindowLog(window_log)).map_err(failed)?;
    } else if level >= SEARCHING_LEVEL {
        context.set_parameter(CParameter::SearchLog(SEARCH_LOG)).map_err(failed)?;
    }
    context.ref_prefix(prefix).map_err(failed)?;
    let mut stored = Vec::with_capacity(zstd::zstd_safe::compress_bound(bytes.len()));
    context.compress2(&mut stored, bytes).map_err(failed)?;
    if stored.len() >= bytes.len() {
        bytes.clone_into(&mut stored);
    }
    Ok(stored)
}

/// The last bytes of an image before a chunk, zero runs left out: what the chunk was compressed with.
#[derive(Clone, Debug)]
pub struct Context {
    size_bytes: usize,
    bytes: Vec<u8>,
}

impl Context {
    /// At the beginning of an image.
    #[must_use]
    pub fn new(size_bytes: u32) -> Self {
        Self { size_bytes: size_bytes as usize, bytes: Vec::new() }
    }

    /// A chunk that is no run of zeros, wherever it came from.
    pub fn push(&mut self, chunk: &[u8]) {
        if self.size_bytes == 0 {
            return;
        }
        let surplus = (self.bytes.len() + chunk.len()).saturating_sub(self.size_bytes);
        // Moved seldom, not for each chunk.
        if surplus > self.size_bytes {
            self.bytes.drain(..surplus.min(self.bytes.len()));
        }
        self.bytes
            .extend_from_slice(chunk.get(chunk.len().saturating_sub(self.size_bytes)..).unwrap_or(chunk));
    }

    /// What the next chunk was compressed with.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(self.bytes.len().saturating_sub(self.size_bytes)..).unwrap_or_default()
    }
}
