//! What to install: the arguments that all ways of asking for an update share.

use std::io;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value};
use twinboot::cli::PackageFile;
use twinboot::redact::display_url;
use twinboot::update::{Sha256Digest, UpdateId, UpdateRequest};

use super::CliError;

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
            let copy = path.clone();
            let measure = move || PackageFile::open(&copy).and_then(|file| Ok((file.check_value()?, file)));
            let measured = tokio::task::spawn_blocking(measure).await.map_err(io::Error::other);
            let read = |source| CliError::Read { path: path.clone(), source };
            let (digest, file) = measured.and_then(|measured| measured).map_err(read)?;
            (check, size) = (Some(digest), size.or(Some(file.size_bytes)));
            version = one_version(version, file.version())?;
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

/// Devices refuse a bundle that was asked for as another version.
fn one_version(given: Option<String>, told: Option<String>) -> Result<Option<String>, CliError> {
    match (given, told) {
        (Some(given), Some(told)) if given != told => {
            Err(CliError::Usage(format!("the bundle brings version {told}, and --version says {given}")))
        }
        (given, told) => Ok(given.or(told)),
    }
}
