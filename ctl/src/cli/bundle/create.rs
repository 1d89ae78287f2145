//! `twinbootctl bundle create`: from images to a bundle.

use std::collections::BTreeMap;
use std::env::{self, VarError};
use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use minisign_verify::PublicKey;
use serde_json::json;
use twinboot::bundle::KEY_SERIAL_MAX;
use twinboot::install::ROOT_CLASS;
use twinboot::update::{KeyList, Sha256Digest};

use super::super::{CliError, Exit, screen};
use crate::bundle::{BaseImage, Failure, ImageFile, Maker, Progress, Recipe};

const EXAMPLES: &str = "\
Examples:
  twinbootctl bundle create --version 2.0 --compatible edison --image rootfs=root.ext4 -o 2.0.twb
  twinbootctl bundle create --version 2.0 --image rootfs=new.ext4 --image boot=boot.vfat \\
      --base rootfs=1.0.ext4@1.0 --base rootfs=1.1.ext4@1.1 -o 2.0.twb
      with patches: devices that run 1.0 or 1.1 fetch less
  twinbootctl bundle create --version 2.0 --image rootfs=new.ext4 --patches-to 2.0-patches.twb -o 2.0.twb
      patches may follow: the same again with --base makes them
  twinbootctl bundle sign 2.0.twb --key release.key
      afterwards, here or on another machine
  twinbootctl bundle create --version 2.0 --image rootfs=root.ext4 -o 2.0.twb \\
      --trust 2027.pub --trust spare.pub --trust-serial 4
      new signing keys; sign it with the old one and with a new one";

/// Make a bundle of images
///
/// The same input gives the same bytes: with `--created` or
/// SOURCE_DATE_EPOCH, or images of the same age.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = EXAMPLES, verbatim_doc_comment)]
pub(super) struct Create {
    /// An image, raw or in zstd, gzip or xz, and the class of slots it is for; once for each class
    #[arg(long = "image", value_name = "CLASS=FILE", required = true, value_parser = class_and_file)]
    images: Vec<(String, PathBuf)>,
    #[command(flatten)]
    options: Options,
}

/// What `create` and `convert` share.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Version that the bundle brings
    #[arg(long, value_name = "V")]
    version: String,
    /// The bundle
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// A board that it is for; several times for several (default: any)
    #[arg(long, value_name = "BOARD")]
    compatible: Vec<String>,
    /// Time that it is said to be made at (default: $SOURCE_DATE_EPOCH, or when the newest image was changed)
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    created: Option<SystemTime>,
    /// Oldest twinboot that can install it
    #[arg(long, value_name = "V")]
    min_agent_version: Option<String>,
    /// Oldest firmware that can be updated to it
    #[arg(long, value_name = "V")]
    min_previous_version: Option<String>,
    /// A public key that counts on devices once they have committed this bundle, in place of all others; several
    /// times for several. The bundle must be signed by a key that counts before, and by one of these
    #[arg(long = "trust", value_name = "FILE", requires = "trust_serial")]
    trusted: Vec<PathBuf>,
    /// Number of that list of keys: higher than that of any before
    #[arg(long, value_name = "N", requires = "trusted",
          value_parser = clap::value_parser!(u64).range(1..=KEY_SERIAL_MAX))]
    trust_serial: Option<u64>,
    /// An older image that devices run: they fetch patches instead of chunks; several times for several
    #[arg(long = "base", value_name = "CLASS=FILE[@VERSION]", value_parser = class_and_file)]
    bases: Vec<(String, PathBuf)>,
    /// Put the patches into a file of their own, which devices find beside the bundle by its name. The bundle is the
    /// same without --base, so that patches can be made for it when it is published already; it is left as it is then
    #[arg(long, value_name = "FILE")]
    patches_to: Option<PathBuf>,
    /// zstd's level
    #[arg(long, value_name = "N", default_value_t = 19, value_parser = clap::value_parser!(i32).range(1..=22))]
    level: i32,
    /// Average length of a chunk, a power of two (default: the smallest that a device has room for)
    #[arg(long, value_name = "BYTES")]
    chunk_bytes: Option<u32>,
    /// Length of what a chunk is compressed with: the image before it
    #[arg(long, value_name = "BYTES", default_value_t = 128 << 10)]
    context_bytes: u32,
}

impl Create {
    pub fn run(self, json: bool) -> Result<Exit, CliError> {
        self.options.make(self.images, json)
    }
}

impl Options {
    pub fn make(self, images: Vec<(String, PathBuf)>, json: bool) -> Result<Exit, CliError> {
        if !images.iter().any(|(class, _)| class == ROOT_CLASS) {
            let why =
                format!("there is no --image of class `{ROOT_CLASS}`: no device takes a bundle without it");
            return Err(CliError::Usage(why));
        }
        for (class, _) in &self.bases {
            if !images.iter().any(|(known, _)| known == class) {
                return Err(CliError::Usage(format!(
                    "--base {class}=…: there is no --image of class `{class}`"
                )));
            }
        }
        if self.patches_to.as_ref().is_some_and(|path| path.file_name() == self.output.file_name()) {
            let why = "--patches-to and --output have the same name: devices look for both in one directory";
            return Err(CliError::Usage(why.to_owned()));
        }
        let (output, patches_to) = (self.output.clone(), self.patches_to.clone());
        // Without a base there are no patches, and no such file yet.
        let written = patches_to.clone().filter(|_| !self.bases.is_empty());
        let digest = super::with_bar(json, |progress| -> Result<_, CliError> {
            let maker = self.maker(images, progress)?;
            Ok(maker.make(&output, patches_to.as_deref(), progress)?)
        })?;
        report(&output, written.as_deref(), digest, json)
    }

    fn maker(self, images: Vec<(String, PathBuf)>, progress: Progress<'_>) -> Result<Maker, CliError> {
        let open = |(class, path): (String, PathBuf)| Ok((class, ImageFile::open(&path, progress)?));
        let images = images.into_iter().map(open).collect::<Result<Vec<_>, Failure>>()?;
        let newest = images.iter().map(|(_, image)| image.modified).max().unwrap_or(UNIX_EPOCH);
        let created = self.created.map_or_else(source_date, |created| Ok(Some(created)))?.unwrap_or(newest);
        let recipe = Recipe {
            version: self.version,
            compatible: self.compatible,
            created: rfc3339(created)?,
            min_agent_version: self.min_agent_version,
            min_previous_version: self.min_previous_version,
            keys: self.trust_serial.map(|serial| key_list(serial, &self.trusted)).transpose()?,
            level: self.level,
            average_bytes: self.chunk_bytes,
            context_bytes: self.context_bytes,
        };
        let base = |(class, path): (String, PathBuf)| {
            let (path, version) = file_and_version(path);
            Ok(BaseImage { class, version, image: ImageFile::open(&path, progress)? })
        };
        let bases = self.bases.into_iter().map(base).collect::<Result<_, Failure>>()?;
        Ok(Maker { recipe, images, bases })
    }
}

fn report(
    output: &std::path::Path,
    patches_to: Option<&std::path::Path>,
    digest: Sha256Digest,
    json: bool,
) -> Result<Exit, CliError> {
    if json {
        let event = json!({"event": "created", "bundle": output.display().to_string(), "check_value": digest,
            "patches": patches_to.map(|path| path.display().to_string())});
        screen::print_line(&event.to_string())?;
    } else {
        screen::print_line(&format!("{}: check value {digest}", output.display()))?;
    }
    Ok(Exit::Done)
}

pub(super) fn class_and_file(text: &str) -> Result<(String, PathBuf), String> {
    let (class, file) = text.split_once('=').ok_or("write CLASS=FILE, like rootfs=root.ext4")?;
    Ok((class.to_owned(), PathBuf::from(file)))
}

/// Each key by the name of its file.
fn key_list(serial: u64, files: &[PathBuf]) -> Result<KeyList, CliError> {
    let mut trusted = BTreeMap::new();
    for path in files {
        let failed = |source| CliError::Read { path: path.clone(), source };
        let text = std::fs::read_to_string(path).map_err(failed)?;
        if PublicKey::decode(&text).is_err() {
            return Err(failed(io::Error::other("not a minisign public key")));
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let key = text.lines().nth(1).unwrap_or_default().trim().to_owned();
        if trusted.insert(name.clone(), key).is_some() {
            return Err(CliError::Usage(format!(
                "--trust: two keys are named `{name}`: rename one of the files"
            )));
        }
    }
    Ok(KeyList { serial, trusted })
}

/// `old.ext4@1.0`; a file whose own name is that is taken as it is.
fn file_and_version(path: PathBuf) -> (PathBuf, Option<String>) {
    let split = path.to_str().filter(|_| !path.exists()).and_then(|text| text.rsplit_once('@'));
    match split {
        Some((file, version)) => (PathBuf::from(file), Some(version.to_owned())),
        None => (path, None),
    }
}

/// The convention of reproducible builds.
#[expect(clippy::disallowed_methods, reason = "a build tool is set up by its environment")]
fn source_date() -> Result<Option<SystemTime>, CliError> {
    let text = match env::var("SOURCE_DATE_EPOCH") {
        Err(VarError::NotPresent) => return Ok(None),
        text => text.unwrap_or_default(),
    };
    let time = text.parse().ok().and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    let why = "SOURCE_DATE_EPOCH is not a number of seconds since 1970";
    time.map(Some).ok_or_else(|| CliError::Usage(why.to_owned()))
}

/// The formatter has no words for times before 1970, nor for years of five digits.
fn rfc3339(time: SystemTime) -> Result<String, CliError> {
    let mut text = String::new();
    let is_told = time >= UNIX_EPOCH && write!(text, "{}", humantime::format_rfc3339_seconds(time)).is_ok();
    let why = "the bundle's time is not in the years 1970 to 9999: give another with --created";
    is_told.then_some(text).ok_or_else(|| CliError::Usage(why.to_owned()))
}
