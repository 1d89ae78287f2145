//! How far an install came, kept across restarts; a claim that the slot's content must prove.
//!
//! A raw image can go on at any block. Compressed data can go on only where a frame (zstd), member (gzip) or
//! stream (xz) ends, since a decoder's state is not kept: a file of one frame is fetched again from its start,
//! though blocks that are right already are not written again. `pzstd`, or several files compressed one by one
//! and joined, make files of many frames.

use std::fs;
use std::io;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc32fast::Hasher;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use sha2::digest::common::hazmat::{SerializableState, SerializedState};

use super::ImageSpec;
use super::decode::Format;
use super::slot::BLOCK_BYTES;
use super::validator::Validator;
use crate::store::write_durably;
use crate::update::Sha256Digest;

/// A checkpoint is a few hundred bytes; a larger file is not one.
const SIZE_LIMIT_BYTES: u64 = 64 * 1024;

/// Which image a checkpoint belongs to. Without the URI's query: a link signed anew leads to the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Key {
    uri: String,
    check_value: Option<Sha256Digest>,
    size_bytes: Option<u64>,
}

impl Key {
    /// Of what is to be installed.
    #[must_use]
    pub fn of(spec: &ImageSpec) -> Self {
        let uri = spec.uri.split(['?', '#']).next().unwrap_or_default();
        // What stands before an `@` may be a password.
        let uri = match uri.split_once("://") {
            Some((scheme, rest)) => {
                let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
                let host = authority.rsplit('@').next().unwrap_or_default();
                format!("{scheme}://{host}/{path}")
            }
            None => uri.to_owned(),
        };
        Self { uri, check_value: spec.check_value, size_bytes: spec.size_bytes }
    }
}

/// A point at which a new process can go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Checkpoint {
    /// The image that was being installed.
    pub key: Key,
    /// What the server said about it.
    pub validator: Validator,
    /// How it is packed; in the middle of a raw image there is no telling.
    pub format: Format,
    /// Source bytes behind this point; a fresh decoder can start here.
    pub source_offset: u64,
    /// SHA-256 of those, to be continued: the hasher's state in base64.
    source_state: String,
    /// Image bytes behind this point, all of them synced to the slot.
    pub image_offset: u64,
    /// CRC-32 of those, as [`prefix_crc32`] gives it.
    pub image_crc32: u32,
}

impl Checkpoint {
    /// Of a point where `source` has taken all bytes up to `source_offset`.
    #[must_use]
    pub fn new(
        key: Key,
        validator: Validator,
        format: Format,
        source: (u64, &Sha256),
        image: (u64, u32),
    ) -> Self {
        Self {
            key,
            validator,
            format,
            source_offset: source.0,
            source_state: STANDARD.encode(source.1.serialize()),
            image_offset: image.0,
            image_crc32: image.1,
        }
    }

    /// The hasher over the source, ready for the byte at `source_offset`.
    #[must_use]
    pub fn source_hasher(&self) -> Option<Sha256> {
        let bytes = STANDARD.decode(&self.source_state).ok()?;
        let state = SerializedState::<Sha256>::try_from(bytes.as_slice()).ok()?;
        Sha256::deserialize(&state).ok()
    }

    /// The checkpoint at `path`, if it is one and belongs to `key`. Anything else only costs a new start.
    #[must_use]
    pub fn load(path: &Path, key: &Key) -> Option<Self> {
        let size = fs::metadata(path).ok()?.len();
        let text = (size <= SIZE_LIMIT_BYTES).then(|| fs::read(path).ok()).flatten()?;
        let checkpoint: Self = serde_json::from_slice(&text).ok()?;
        (checkpoint.key == *key).then_some(checkpoint)
    }

    /// Puts it at `path` so that a power cut leaves the old one or the new one.
    ///
    /// # Errors
    /// When it cannot be written or synced.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        write_durably(path, &serde_json::to_vec(self)?)
    }
}

/// CRC-32 of whole blocks, of which the `sums` are known, and of `(sum, length in bytes)` of what follows them.
///
/// It tells a slot that was not written, or not kept, from one that was; whether these are the right bytes is for
/// the check of the source.
#[must_use]
pub fn prefix_crc32(sums: &[u32], rest: (u32, u64)) -> u32 {
    let mut prefix = Hasher::new();
    for (sum, len) in
        sums.iter().map(|sum| (*sum, BLOCK_BYTES as u64)).chain(Some(rest).filter(|(_, len)| *len > 0))
    {
        prefix.combine(&Hasher::new_with_initial_len(sum, len));
    }
    prefix.finalize()
}

/// Forgets the checkpoint at `path`. One that stays behind does no harm: its content is checked before use.
pub fn discard(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove the install checkpoint");
    }
}

#[cfg(test)]
mod tests {
    use sha2::Digest;

    use super::*;

    fn spec(uri: &str) -> ImageSpec {
        ImageSpec { uri: uri.to_owned(), check_value: None, size_bytes: Some(9) }
    }

    #[test]
    fn a_saved_checkpoint_goes_on_where_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("checkpoint.json");
        let hasher = Sha256::new_with_prefix(b"some bytes");
        let key = Key::of(&spec("https://host/a.img?sig=1"));
        let written =
            Checkpoint::new(key.clone(), Validator::default(), Format::Zstd, (10, &hasher), (20, 3));
        written.save(&path).unwrap();
        let read = Checkpoint::load(&path, &key).unwrap();
        assert_eq!(read, written);
        let resumed = read.source_hasher().unwrap().chain_update(b", and more").finalize();
        assert_eq!(resumed, Sha256::digest(b"some bytes, and more"));
        assert_eq!(Checkpoint::load(&path, &Key::of(&spec("https://host/b.img"))), None);
        write_durably(&path, b"{\"key\":").unwrap();
        assert_eq!(Checkpoint::load(&path, &key), None);
    }

    #[test]
    fn the_sum_of_a_prefix_is_that_of_its_bytes() {
        let bytes: Vec<u8> = (0..3 * BLOCK_BYTES + 5).map(|i| i.to_le_bytes()[1]).collect();
        for len in [0, 5, BLOCK_BYTES, BLOCK_BYTES + 1, bytes.len()] {
            let blocks = bytes[..len].chunks_exact(BLOCK_BYTES);
            let rest = (crc32fast::hash(blocks.remainder()), blocks.remainder().len() as u64);
            let sums: Vec<u32> = blocks.map(crc32fast::hash).collect();
            assert_eq!(prefix_crc32(&sums, rest), crc32fast::hash(&bytes[..len]), "{len}");
        }
    }

    #[test]
    fn a_key_holds_no_credentials() {
        let key = Key::of(&spec("https://user:word@host/a.img?sig=abc#x"));
        assert_eq!(key.uri, "https://host/a.img");
        assert_eq!(key, Key::of(&spec("https://host/a.img?sig=other")));
    }
}
