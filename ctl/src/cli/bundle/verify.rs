//! `twinbootctl bundle verify`: whether a device would take it.

use std::path::PathBuf;

use clap::Args;
use minisign_verify::{PublicKey, Signature};
use serde_json::json;
use twinboot::cli::paint::harmless;
use twinboot::install::verify::listed;
use twinboot::update::Sha256Digest;

use super::super::{CliError, Exit, chain, screen};
use crate::bundle::{BundleFile, ImageFile};

const EXAMPLES: &str = "\
Examples:
  twinbootctl bundle verify 2.0.twb --key release.pub
  twinbootctl bundle verify 2.0.twb --check-value 9f86d0... --base 1.0.ext4
  twinbootctl bundle verify 1.0-to-2.0.twb --bundle 2.0.twb --key release.pub --base 1.0.ext4
      a file of patches";

/// Verify signature, index, and every chunk and patch
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = EXAMPLES)]
pub(super) struct Verify {
    /// The bundle, or a file of patches
    bundle: PathBuf,
    /// Who must have signed it: a minisign public key; one of several is enough. A list of keys that it brings must be
    /// signed by one of that list too, with or without this
    #[arg(long = "key", value_name = "FILE")]
    keys: Vec<PathBuf>,
    /// SHA-256 that its manifest must have
    #[arg(long, value_name = "HEX")]
    check_value: Option<Sha256Digest>,
    /// An older image: patches from it are tried
    #[arg(long = "base", value_name = "FILE")]
    bases: Vec<PathBuf>,
    /// The bundle that a file of patches is for
    #[arg(long = "bundle", value_name = "FILE")]
    of: Option<PathBuf>,
}

impl Verify {
    pub fn run(self, json: bool) -> Result<Exit, CliError> {
        let file = BundleFile::open(&self.bundle)?;
        let signed = self.signed(&file)?;
        let of = self.of.as_ref().map(|path| BundleFile::open(path)).transpose()?;
        let bundle = match (&file.contents, &of) {
            (crate::bundle::Contents::Bundle(_), _) => &file,
            (crate::bundle::Contents::Patches(patches), Some(of)) if of.digest() == patches.bundle => of,
            (crate::bundle::Contents::Patches(patches), _) => {
                return Err(CliError::Usage(format!(
                    "{} has patches for the bundle with the check value {}: give it with --bundle",
                    self.bundle.display(),
                    patches.bundle
                )));
            }
        };
        let verified = super::with_bar(json, |progress| {
            let open = |path: &PathBuf| ImageFile::open(path, progress);
            let bases = self.bases.iter().map(open).collect::<Result<Vec<_>, _>>()?;
            file.verify(bundle, &bases, progress)
        })?;
        if json {
            let event = json!({"event": "verified", "bundle": self.bundle.display().to_string(), "check_value": file.digest(),
                "signed_by_key": signed, "chunks": verified.chunks, "images_bytes": verified.images_bytes,
                "frames": verified.frames, "patches_left_out": verified.patches_left_out});
            screen::print_line(&event.to_string())?;
            return Ok(Exit::Done);
        }
        let signed =
            signed.map_or("signature not looked at: no --key".to_owned(), |key| format!("signed by {key}"));
        screen::print_line(&format!("check value {}, {signed}", file.digest()))?;
        let frames = match verified.frames {
            0 => String::new(),
            frames => format!(" and {frames} patch frames"),
        };
        screen::print_line(&format!("{} chunks{frames} are right", verified.chunks))?;
        if verified.patches_left_out > 0 {
            let count = verified.patches_left_out;
            screen::print_line(&format!(
                "{count} patches not tried: their bases were not given with --base"
            ))?;
        }
        Ok(Exit::Done)
    }

    /// By which of the keys; none if none are given.
    fn signed(&self, file: &BundleFile) -> Result<Option<String>, CliError> {
        if let Some(expected) = self.check_value.filter(|expected| *expected != file.digest()) {
            let (path, actual) = (self.bundle.display(), file.digest());
            return Err(CliError::Untrusted(format!(
                "{path} has check value {actual}, and must have {expected}"
            )));
        }
        let by = self.key_given(file)?;
        self.listed_key(file)?;
        Ok(by)
    }

    fn key_given(&self, file: &BundleFile) -> Result<Option<String>, CliError> {
        for path in &self.keys {
            let text = String::from_utf8_lossy(&super::read(path)?).into_owned();
            let key = PublicKey::decode(&text)
                .map_err(|_| CliError::Usage(format!("{} is not a minisign public key", path.display())))?;
            if is_signed_by(file, &key) {
                return Ok(Some(path.display().to_string()));
            }
        }
        match self.keys.as_slice() {
            [] => Ok(None),
            _ => {
                Err(CliError::Untrusted(format!("{} is signed by none of these keys", self.bundle.display())))
            }
        }
    }

    /// Devices take no list of keys that none of its own has signed, whoever else has, and whatever the images are
    /// verified by.
    fn listed_key(&self, file: &BundleFile) -> Result<(), CliError> {
        let Some(list) = file.manifest().and_then(|manifest| manifest.keys.as_ref()) else { return Ok(()) };
        let bundle = self.bundle.display();
        let keys =
            listed(list).map_err(|error| CliError::Untrusted(format!("{bundle}: {}", chain(&error))))?;
        if keys.iter().any(|key| is_signed_by(file, key)) {
            return Ok(());
        }
        let names: Vec<&str> = list.trusted.keys().map(String::as_str).collect();
        Err(CliError::Untrusted(format!(
            "{bundle} brings key list {}, and is signed by none of its keys, so no device takes it: sign it by one of \
             them too ({}), with `twinbootctl bundle sign`",
            list.serial,
            harmless(&names.join(", "))
        )))
    }
}

fn is_signed_by(file: &BundleFile, key: &PublicKey) -> bool {
    file.signatures.texts().iter().any(|text| {
        Signature::decode(text)
            .is_ok_and(|signature| key.verify(&file.manifest_bytes, &signature, false).is_ok())
    })
}
