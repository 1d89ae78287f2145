//! Bundles on a workstation: made, looked into, verified, taken apart.

mod base;
mod file;
mod image;
mod make;
mod patches;
mod pipeline;

use std::io;
use std::path::PathBuf;

pub use base::BaseImage;
pub use file::{BundleFile, Contents};
pub use image::ImageFile;
pub use make::{Maker, Recipe, replace, sign, write};
use sha2::{Digest as _, Sha256};
use twinboot::bundle::BundleError;
use twinboot::update::Sha256Digest;

/// Why a bundle cannot be made or is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot make room for temporary data: set TMPDIR to a larger file system")]
    Temporary(#[source] io::Error),
    #[error("{} is not an image that a device could decompress", path.display())]
    Decode { path: PathBuf, source: twinboot::install::decode::DecodeError },
    #[error("{} is empty", path.display())]
    Empty { path: PathBuf },
    #[error(
        "{} is a bundle, not an image: `twinbootctl bundle extract --image CLASS=FILE` gives its image",
        path.display()
    )]
    NoImage { path: PathBuf },
    #[error("{}", path.display())]
    Refused { path: PathBuf, source: BundleError },
    #[error(transparent)]
    Format(#[from] BundleError),
    #[error("`{class}` of {} has SHA-256 {actual}, and must have {expected}", path.display())]
    Image { path: PathBuf, class: String, actual: Sha256Digest, expected: Sha256Digest },
    #[error("chunk {number} of {} is damaged: its SHA-256 is another", path.display())]
    Chunk { path: PathBuf, number: u32 },
    #[error("{} has {actual} bytes, and its manifest makes {expected}: copy it again", path.display())]
    Length { path: PathBuf, actual: u64, expected: u64 },
    #[error(
        "{} is another bundle, with the check value {actual} and not {expected}: patches are for one that is made of the \
         same images, times and options; remove it to make both anew",
        path.display()
    )]
    AnotherBundle { path: PathBuf, actual: Sha256Digest, expected: Sha256Digest },
    #[error("a thread of this program ended early")]
    Thread,
}

/// Told how much of how much is done, in bytes, and of which step.
pub type Progress<'a> = &'a (dyn Fn(&'static str, u64, u64) + Sync);

fn sha256_of(bytes: &[u8]) -> Sha256Digest {
    Sha256Digest(Sha256::digest(bytes).into())
}
