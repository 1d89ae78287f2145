//! An image of a slot: a plain file, or what a compressed one holds, unpacked where it takes no name.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};
use twinboot::bundle::{Chunker, Cut, MAGIC};
use twinboot::install::decode::{Decoder, Format, MAGIC_BYTES};
use twinboot::update::Sha256Digest;

use super::{Failure, Progress};

const PIECE_BYTES: usize = 4 << 20;

/// The bytes that a slot gets.
#[derive(Debug)]
pub struct ImageFile {
    pub path: PathBuf,
    pub size_bytes: u64,
    pub modified: SystemTime,
    file: File,
}

impl ImageFile {
    /// Opens a raw image, or unpacks one in zstd, gzip or xz, as a device would; refuses a bundle.
    pub fn open(path: &Path, progress: Progress<'_>) -> Result<Self, Failure> {
        let read = |source| Failure::Read { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        let modified = metadata.modified().map_err(read)?;
        let mut head = Vec::new();
        (&mut file).take(MAGIC_BYTES as u64).read_to_end(&mut head).map_err(read)?;
        file.rewind().map_err(read)?;
        let format = Format::of(&head);
        if format != Format::Raw {
            file = unpacked(path, file, format, metadata.len(), progress)?;
        }
        // A block device has no length in its metadata.
        let size_bytes = file.seek(io::SeekFrom::End(0)).map_err(read)?;
        if size_bytes == 0 {
            return Err(Failure::Empty { path: path.to_owned() });
        }
        let image = Self { path: path.to_owned(), size_bytes, modified, file };
        // No slot boots it, and as a base it would give patches for images that no device runs.
        if size_bytes >= MAGIC.len() as u64 && image.bytes_at(0, MAGIC.len())? == MAGIC {
            return Err(Failure::NoImage { path: path.to_owned() });
        }
        Ok(image)
    }

    /// Fills `buffer` from there.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Failure> {
        let read = |source| Failure::Read { path: self.path.clone(), source };
        self.file.read_exact_at(buffer, offset).map_err(read)
    }

    /// Bytes of their own.
    pub fn bytes_at(&self, offset: u64, size_bytes: usize) -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![0; size_bytes];
        self.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Of all bytes.
    pub fn sha256(&self) -> Result<Sha256Digest, Failure> {
        let (mut sha256, mut offset) = (Sha256::new(), 0);
        while offset < self.size_bytes {
            let bytes =
                usize::try_from(self.size_bytes - offset).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
            sha256.update(self.bytes_at(offset, bytes)?);
            offset += bytes as u64;
        }
        Ok(Sha256Digest(sha256.finalize().into()))
    }

    /// Cuts the image; gives each stretch and its bytes (none for zeros) to `take`, and in the end the digest of all.
    pub fn cut(
        &self,
        chunker: &Chunker,
        step: &'static str,
        progress: Progress<'_>,
        mut take: impl FnMut(u64, Cut, &[u8]) -> Result<(), Failure>,
    ) -> Result<Sha256Digest, Failure> {
        let (mut sha256, mut buffer, mut begin) = (Sha256::new(), Vec::new(), 0);
        let (mut offset, mut read_bytes) = (0, 0);
        loop {
            while let Some(cut) = chunker.cut(offset, tail(&buffer, begin), read_bytes == self.size_bytes) {
                let (Cut::Data(length) | Cut::Zeros(length)) = cut;
                let bytes = tail(&buffer, begin).get(..length).unwrap_or_default();
                take(offset, cut, if matches!(cut, Cut::Data(_)) { bytes } else { &[] })?;
                begin += length;
                offset += length as u64;
            }
            progress(step, offset, self.size_bytes);
            if read_bytes == self.size_bytes {
                return Ok(Sha256Digest(sha256.finalize().into()));
            }
            buffer.drain(..begin);
            begin = 0;
            let kept = buffer.len();
            let more = usize::try_from(self.size_bytes - read_bytes)
                .map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
            buffer.resize(kept + more, 0);
            let fresh = buffer.get_mut(kept..).unwrap_or_default();
            self.read_at(read_bytes, fresh)?;
            sha256.update(&*fresh);
            read_bytes += more as u64;
        }
    }
}

fn tail(buffer: &[u8], begin: usize) -> &[u8] {
    buffer.get(begin..).unwrap_or_default()
}

fn unpacked(
    path: &Path,
    mut source: File,
    format: Format,
    packed_bytes: u64,
    progress: Progress<'_>,
) -> Result<File, Failure> {
    let damaged = |source| Failure::Decode { path: path.to_owned(), source };
    let mut image = tempfile::tempfile().map_err(Failure::Temporary)?;
    let mut decoder = Decoder::new(format, 0).map_err(damaged)?;
    let (mut input, mut output) = (vec![0; 1 << 20], vec![0; PIECE_BYTES]);
    let mut done = 0;
    loop {
        let read =
            source.read(&mut input).map_err(|source| Failure::Read { path: path.to_owned(), source })?;
        if read == 0 {
            decoder.finish().map_err(damaged)?;
            return Ok(image);
        }
        let mut rest = input.get(..read).unwrap_or_default();
        loop {
            let step = decoder.step(rest, &mut output).map_err(damaged)?;
            rest = rest.get(step.consumed..).unwrap_or_default();
            image.write_all(output.get(..step.produced).unwrap_or_default()).map_err(Failure::Temporary)?;
            if rest.is_empty() && (step.produced < output.len() || decoder.at_boundary()) {
                break;
            }
        }
        done += read as u64;
        progress("unpacking", done, packed_bytes);
    }
}
