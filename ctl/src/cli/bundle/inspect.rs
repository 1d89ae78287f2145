//! `twinbootctl bundle inspect`: what a bundle says of itself.

use std::path::PathBuf;

use clap::Args;
use indicatif::BinaryBytes;
use serde_json::json;
use twinboot::bundle::Manifest;
use twinboot::cli::paint::harmless;

use super::super::{CliError, Exit, screen};
use crate::bundle::{BundleFile, Contents};

/// Show what a bundle brings, and its check value
///
/// Nothing is verified but its form: see `bundle verify`.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Inspect {
    /// The bundle, or a file of patches
    bundle: PathBuf,
}

impl Inspect {
    pub fn run(self, json: bool) -> Result<Exit, CliError> {
        let bundle = BundleFile::open(&self.bundle)?;
        if json {
            let manifest = match &bundle.contents {
                Contents::Bundle(manifest) => serde_json::to_value(manifest),
                Contents::Patches(patches) => serde_json::to_value(patches),
            };
            let manifest = manifest.map_err(std::io::Error::other)?;
            let event = json!({"event": "bundle", "bundle": self.bundle.display().to_string(),
                "check_value": bundle.digest(), "size_bytes": bundle.size_bytes, "signatures": comments(&bundle), "manifest": manifest});
            screen::print_line(&event.to_string())?;
            return Ok(Exit::Done);
        }
        let mut lines = vec![
            ("check value", bundle.digest().to_string()),
            ("size", BinaryBytes(bundle.size_bytes).to_string()),
        ];
        match &bundle.contents {
            Contents::Bundle(manifest) => describe(manifest, &mut lines),
            Contents::Patches(patches) => lines.push(("patches for", patches.bundle.to_string())),
        }
        for patch in bundle.patches() {
            let version =
                patch.base.version.as_deref().map(|version| format!("{version}, ")).unwrap_or_default();
            let bytes = patch.frames_bytes + u64::from(patch.table.size_bytes);
            let (class, sha256) = (&patch.class, patch.base.sha256);
            lines.push(("patch", format!("{class} from {version}{sha256}: {}", BinaryBytes(bytes))));
        }
        let comments = comments(&bundle);
        if comments.is_empty() {
            lines.push(("signatures", "none".to_owned()));
        }
        lines.extend(comments.into_iter().map(|comment| ("signature", comment)));
        for (name, value) in lines {
            screen::print_line(&format!("{name:<14}{}", harmless(&value)))?;
        }
        Ok(Exit::Done)
    }
}

fn describe(manifest: &Manifest, lines: &mut Vec<(&'static str, String)>) {
    lines.push(("version", manifest.version.clone()));
    let boards = manifest.compatible.join(", ");
    lines.push(("compatible", if boards.is_empty() { "any board".to_owned() } else { boards }));
    lines.push(("created", manifest.created.clone()));
    for (name, version) in
        [("min. agent", &manifest.min_agent_version), ("min. previous", &manifest.min_previous_version)]
    {
        lines.extend(version.iter().map(|version| (name, version.clone())));
    }
    lines.extend(manifest.keys.iter().map(|list| ("trusts", list.to_string())));
    for image in &manifest.images {
        let (class, size, chunks) = (&image.class, BinaryBytes(image.size_bytes), image.chunks);
        lines.push(("image", format!("{class}: {size} in {chunks} chunks, SHA-256 {}", image.sha256)));
    }
    lines.push(("index", BinaryBytes(manifest.index.size_bytes.into()).to_string()));
    lines.push(("pieces", BinaryBytes(manifest.pieces_bytes).to_string()));
    lines.extend(manifest.patches_file.iter().map(|name| ("patches in", format!("{name}, if it is there"))));
}

/// The trusted comments; whether they are to be trusted, `verify` says.
fn comments(bundle: &BundleFile) -> Vec<String> {
    let comment = |text: &String| text.lines().nth(2).unwrap_or_default().replace('\t', " ");
    bundle.signatures.texts().iter().map(comment).collect()
}
