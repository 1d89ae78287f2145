//! `twinbootctl bundle sign`: puts signatures into a bundle.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use serde_json::json;
use twinboot::bundle::Signatures;

use super::super::{CliError, Exit, screen};
use crate::bundle::{BundleFile, sign};

const EXAMPLES: &str = "\
Examples:
  twinbootctl bundle sign 2.0.twb --key release.key
      asks `minisign`, which asks for the password
  twinbootctl bundle extract 2.0.twb --manifest 2.0.json
  minisign -S -s release.key -m 2.0.json -x 2.0.minisig
  twinbootctl bundle sign 2.0.twb --signature 2.0.minisig
      the key stays on another machine";

/// Sign a bundle, or a file of patches: its manifest, by which all else is verified
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = EXAMPLES)]
pub(super) struct Sign {
    /// The bundle
    bundle: PathBuf,
    /// A signature of its manifest by `minisign -S`; several times for several
    #[arg(long = "signature", value_name = "FILE", required_unless_present = "key")]
    signatures: Vec<PathBuf>,
    /// Sign with this secret key, by the program `minisign`
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Leave the bundle as it is, and write the signed one here
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Sign {
    pub fn run(self, json: bool) -> Result<Exit, CliError> {
        let bundle = BundleFile::open(&self.bundle)?;
        let mut signatures = Signatures::default();
        let mut add = |bytes: &[u8], path: &Path| {
            let one = Signatures::parse(bytes).and_then(|one| signatures.add(&one));
            one.map_err(|source| crate::bundle::Failure::Refused { path: path.to_owned(), source })
        };
        for path in &self.signatures {
            add(&super::read(path)?, path)?;
        }
        if let Some(key) = &self.key {
            add(&by_minisign(key, &bundle.manifest_bytes)?, key)?;
        }
        let output = self.output.as_ref().unwrap_or(&self.bundle);
        let count = sign(&bundle, &signatures, output)?;
        if json {
            let event =
                json!({"event": "signed", "bundle": output.display().to_string(), "signatures": count});
            screen::print_line(&event.to_string())?;
        } else {
            screen::print_line(&format!("{}: {count} signatures", output.display()))?;
        }
        Ok(Exit::Done)
    }
}

/// The standard tool keeps secret keys better than one more program could, and asks for the password itself.
fn by_minisign(key: &Path, manifest: &[u8]) -> Result<Vec<u8>, CliError> {
    let directory = tempfile::tempdir()?;
    let (message, signature) = (directory.path().join("manifest.json"), directory.path().join("minisig"));
    crate::bundle::write(&message, |out| io::Write::write_all(out, manifest))?;
    let status = Command::new("minisign")
        .args(["-S", "-s"])
        .arg(key)
        .arg("-m")
        .arg(&message)
        .arg("-x")
        .arg(&signature)
        // What it says is for the person; stdout is for what this program says.
        .stdout(io::stderr())
        .status()
        .map_err(|source| CliError::Read { path: PathBuf::from("minisign (the program)"), source })?;
    if !status.success() {
        return Err(CliError::Usage(format!("`minisign` does not sign with {} ({status})", key.display())));
    }
    super::read(&signature)
}
