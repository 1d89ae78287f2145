//! What to install: the arguments that all ways of asking for an update share.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Map, Value};
use twinboot::bundle::MAGIC;
use twinboot::cli::PackageFile;
use twinboot::redact::display_url;
use twinboot::update::{Sha256Digest, UpdateId, UpdateRequest};

use super::CliError;
use crate::bundle::BundleFile;

#[derive(Debug, Args)]
#[command(next_help_heading = "The image")]
pub(super) struct Package {
    /// Where devices fetch the image: https://, http:// or file:// on the device
    #[arg(long, value_name = "URL")]
    uri: String,
    /// SHA-256 of the file at the address; of its manifest, if it is a bundle
    #[arg(long, value_name = "HEX", conflicts_with = "check_file")]
    check_value: Option<Sha256Digest>,
    /// Take check value and size, and a bundle's version, from this copy of the file at the address
    #[arg(long, value_name = "LOCALFILE")]
    check_file: Option<PathBuf>,
    /// Version that it brings
    #[arg(long, value_name = "V")]
    version: Option<String>,
    /// Size in bytes of the file at the address
    #[arg(long, value_name = "N")]
    size: Option<u64>,
    /// Name for this update; a device that did it does not do it again (default: made of the above)
    #[arg(long, value_name = "ID")]
    update_id: Option<UpdateId>,
}

/// An update, as it is asked for.
pub(super) struct Wanted {
    /// By which its reports are known.
    pub id: String,
    /// That it brings, where known.
    pub version: Option<String>,
    /// For messages: `2.0 from https://host/a.img`.
    pub name: String,
    /// The direct method's payload, and the desired property.
    pub payload: Value,
}

impl Package {
    /// Reads the copy, and looks at all with the device's own eyes. `uri_key` is `fwPackageUri` in the method and
    /// `fwPackageURI` in the desired property, as in Microsoft's tutorials.
    pub async fn wanted(&self, uri_key: &str) -> Result<Wanted, CliError> {
        let (mut check, mut size, mut version) = (self.check_value, self.size, self.version.clone());
        if let Some(path) = self.check_file.clone() {
            let measured = tokio::task::spawn_blocking(move || measure(&path)).await;
            let copy = measured.map_err(io::Error::other)??;
            (check, size) = (Some(copy.check_value), size.or(Some(copy.size_bytes)));
            version = one_version(version, copy.version)?;
        }
        let entries = [
            (uri_key, Some(Value::from(self.uri.as_str()))),
            ("fwPackageCheckValue", check.map(|value| Value::from(value.to_string()))),
            ("fwVersion", version.as_deref().map(Value::from)),
            ("fwSize", size.map(Value::from)),
            ("updateId", self.update_id.as_ref().map(|id| Value::from(id.as_str()))),
        ];
        let given = entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        let mut fields: Map<String, Value> = given.collect();
        let request = UpdateRequest::from_value(&Value::Object(fields.clone()))
            .map_err(|invalid| CliError::Usage(invalid.message))?;
        let id = request.id.to_string();
        // Told, though the device would make the same: its reports are to be known by it.
        fields.insert("updateId".to_owned(), Value::from(id.as_str()));
        let uri = display_url(&self.uri);
        let name = version.as_ref().map_or_else(|| uri.clone(), |version| format!("{version} from {uri}"));
        Ok(Wanted { id, version, name, payload: Value::Object(fields) })
    }
}

/// What a copy of the file at the address tells.
struct Measured {
    check_value: Sha256Digest,
    size_bytes: u64,
    /// Of a bundle.
    version: Option<String>,
}

/// A bundle's check value is of its beginning alone: whether the rest is there is looked at here, before every device
/// finds out.
fn measure(path: &Path) -> Result<Measured, CliError> {
    let read = |source| CliError::Read { path: path.to_owned(), source };
    let mut head = Vec::new();
    File::open(path).and_then(|file| file.take(MAGIC.len() as u64).read_to_end(&mut head)).map_err(read)?;
    if head == MAGIC {
        let bundle = BundleFile::open(path)?;
        let manifest = bundle.manifest().ok_or_else(|| {
            CliError::Untrusted(format!(
                "{} is a file of patches: give the bundle that it is for, beside which devices find it",
                path.display()
            ))
        })?;
        let (check_value, size_bytes) = (bundle.digest(), bundle.size_bytes);
        return Ok(Measured { check_value, size_bytes, version: Some(manifest.version.clone()) });
    }
    let file = PackageFile::open(path).map_err(read)?;
    let check_value = file.check_value().map_err(read)?;
    Ok(Measured { check_value, size_bytes: file.size_bytes, version: None })
}

/// Devices refuse a bundle that was asked for as another version.
fn one_version(given: Option<String>, told: Option<String>) -> Result<Option<String>, CliError> {
    match (given, told) {
        (Some(given), Some(told)) if given != told => {
            Err(CliError::Usage(format!("the bundle brings version {told}, and --version says {given}")))
        }
        (given, told) => Ok(given.or(told)),
    }
}
