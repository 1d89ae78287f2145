//! `twinbootctl bundle extract`: parts of a bundle as files.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;

use super::super::{CliError, Exit};
use crate::bundle::{BundleFile, write};

/// Write the manifest, the signatures or images of a bundle to files
#[derive(Debug, Args)]
pub(super) struct Extract {
    /// The bundle
    bundle: PathBuf,
    /// Where to write the manifest: what `minisign -S` is to sign
    #[arg(long, value_name = "FILE")]
    manifest: Option<PathBuf>,
    /// Where to write the signatures: FILE.1, FILE.2, ...
    #[arg(long, value_name = "FILE")]
    signatures: Option<PathBuf>,
    /// Where to write the image of a class, raw
    #[arg(long = "image", value_name = "CLASS=FILE", value_parser = super::create::class_and_file)]
    images: Vec<(String, PathBuf)>,
}

impl Extract {
    pub fn run(self, json: bool) -> Result<Exit, CliError> {
        if self.manifest.is_none() && self.signatures.is_none() && self.images.is_empty() {
            return Err(CliError::Usage("extract what? --manifest, --signatures or --image".to_owned()));
        }
        let bundle = BundleFile::open(&self.bundle)?;
        if let Some(path) = &self.manifest {
            write(path, |out| out.write_all(&bundle.manifest_bytes))?;
        }
        if let Some(path) = &self.signatures {
            for (number, text) in bundle.signatures.texts().iter().enumerate() {
                let name = format!("{}.{}", path.display(), number + 1);
                write(&PathBuf::from(name), |out| out.write_all(text.as_bytes()))?;
            }
        }
        for (class, path) in &self.images {
            let manifest = bundle.manifest();
            let number = manifest.and_then(|of| of.images.iter().position(|image| image.class == *class));
            let (Some(manifest), Some(number)) = (manifest, number) else {
                let bundle = self.bundle.display();
                return Err(CliError::Usage(format!("{bundle} has no image of class `{class}`")));
            };
            super::with_bar(json, |progress| {
                let index = bundle.index(manifest)?;
                crate::bundle::replace(path, |out| bundle.unpack((manifest, &index), number, out, progress))
            })?;
        }
        Ok(Exit::Done)
    }
}
