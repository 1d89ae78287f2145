//! A file to be installed, here or at its address: what devices compare it by.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::progress::{Progress, percent, uptime};
use super::view::Amount;
use crate::bundle::{HEADER_BYTES, Header, Manifest};
use crate::update::Sha256Digest;

/// Large enough that reading is not the work.
const BLOCK_BYTES: usize = 256 * 1024;

/// A plain image or a bundle, in a file.
#[derive(Debug)]
pub struct PackageFile {
    path: PathBuf,
    /// Of the file.
    pub size_bytes: u64,
    /// Of a bundle.
    manifest: Option<Vec<u8>>,
}

impl PackageFile {
    /// Looks at its first bytes.
    ///
    /// # Errors
    /// The file cannot be read, or is a bundle that ends within its manifest.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let size_bytes = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), size_bytes, manifest: manifest(file)? })
    }

    /// By its own word: devices trust it no earlier than it is verified. Only a bundle says it.
    #[must_use]
    pub fn version(&self) -> Option<String> {
        Some(Manifest::parse(self.manifest.as_deref()?).ok()?.version)
    }

    /// What `fwPackageCheckValue` is: SHA-256 of a bundle's manifest, or of the whole file; stderr shows how far it is.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn check_value(&self) -> io::Result<Sha256Digest> {
        match &self.manifest {
            Some(manifest) => Ok(Manifest::digest(manifest)),
            None => sha256(&self.path, self.size_bytes),
        }
    }
}

/// The manifest of a bundle, if the file is one.
fn manifest(file: File) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    (&file).take(HEADER_BYTES as u64).read_to_end(&mut bytes)?;
    let Ok(header) = Header::parse(&bytes) else { return Ok(None) };
    bytes.clear();
    let read_bytes = file.take(header.manifest_bytes.into()).read_to_end(&mut bytes)?;
    if read_bytes < header.manifest_bytes as usize {
        let why = "the bundle ends within its manifest: copy it again";
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
    }
    Ok(Some(bytes))
}

fn sha256(path: &Path, size_bytes: u64) -> io::Result<Sha256Digest> {
    let mut file = File::open(path)?;
    let mut progress = Progress::new(io::stderr());
    progress.title(&format!("computing the check value of {}", path.display()));
    let mut hasher = Sha256::new();
    let mut block = vec![0; BLOCK_BYTES];
    let mut bytes = 0_u64;
    let start = uptime();
    loop {
        let filled = match file.read(&mut block) {
            Ok(0) => break,
            Ok(filled) => filled,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(block.get(..filled).unwrap_or_default());
        bytes = bytes.saturating_add(u64::try_from(filled).unwrap_or(u64::MAX));
        let millis = u64::try_from(uptime().saturating_sub(start).as_millis()).unwrap_or(u64::MAX);
        let rate = bytes.saturating_mul(1000).checked_div(millis);
        let amount = Amount { bytes, total_bytes: Some(size_bytes) };
        progress.show(&format!("check value: {} %", percent(amount).unwrap_or(100)), Some(amount), rate);
    }
    progress.finish();
    Ok(Sha256Digest(hasher.finalize().into()))
}
