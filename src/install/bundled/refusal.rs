//! Whether a bundle is for this device.

use std::cmp::Ordering;

use crate::bundle::Manifest;
use crate::update::record::Denied;
use crate::update::{Code, Failure, Sha256Digest, version};

/// Why a bundle is not for this device; found out before the first byte is written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Asked for as another version.
    #[error("the bundle brings version {bundle}, and the request says {asked}")]
    OtherVersion {
        /// By the manifest.
        bundle: String,
        /// By the request.
        asked: String,
    },
    /// No way back by an old bundle.
    #[error("the bundle's version {bundle} is not newer than {running}, which runs")]
    NotNewer {
        /// By the manifest.
        bundle: String,
        /// What runs.
        running: String,
    },
    /// No way back by the slot that runs, either.
    #[error("the bundle's version {bundle} is older than {least}, which was committed on this device")]
    BelowMinimum {
        /// By the manifest.
        bundle: String,
        /// What was committed last.
        least: String,
    },
    /// For other hardware.
    #[error("the bundle is for {boards}, and this device is {}", match ours {
        Some(ours) => ours.as_str(),
        None => "none of them as long as `install.compatible` does not say so",
    })]
    OtherBoard {
        /// By the manifest.
        boards: String,
        /// By the configuration.
        ours: Option<String>,
    },
    /// It needs something that this program has not.
    #[error("the bundle needs twinboot {needed}, and this is {ours}: update twinboot first")]
    OldAgent {
        /// By the manifest.
        needed: String,
        /// This program's.
        ours: &'static str,
    },
    /// It was given up here.
    #[error("{}", .0.message)]
    RolledBackBefore(Failure),
    /// An update in between was left out.
    #[error("the bundle needs version {needed} to come from, and {} runs: install that first", match running {
        Some(running) => running.as_str(),
        None => "an unknown one",
    })]
    OldPrevious {
        /// By the manifest.
        needed: String,
        /// What runs.
        running: Option<String>,
    },
    /// An image for a slot that there is not.
    #[error("the bundle has an image of class `{class}`, and the slots have none such: see [slot.images]")]
    UnknownClass {
        /// By the manifest.
        class: String,
    },
    /// The slot would hold new and old together.
    #[error("the bundle has no image of class `{class}`, which the slots have")]
    MissingClass {
        /// By the configuration.
        class: String,
    },
}

impl Refusal {
    /// The code for the twin.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::OtherVersion { .. } => Code::VersionMismatch,
            Self::NotNewer { .. } => Code::VersionNotNewer,
            Self::BelowMinimum { .. } => Code::VersionBelowMinimum,
            Self::OtherBoard { .. } => Code::BoardIncompatible,
            Self::OldAgent { .. } => Code::AgentTooOld,
            Self::RolledBackBefore(failure) => failure.code,
            Self::OldPrevious { .. } => Code::PreviousTooOld,
            Self::UnknownClass { .. } | Self::MissingClass { .. } => Code::SlotClassMismatch,
        }
    }
}

/// What of this device decides which bundles it takes.
#[derive(Clone, Debug, Default)]
pub struct Device {
    /// `install.compatible`.
    pub compatible: Option<String>,
    /// What it has been through.
    pub past: Past,
    /// Whether one that is older, or the same, is taken.
    pub allow_downgrade: bool,
}

/// What a device has been through.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// The version that runs, where known.
    pub running_version: Option<String>,
    /// The version that was committed last, where known.
    pub min_version: Option<String>,
    /// What is not taken again.
    pub denied: Vec<Denied>,
}

impl Device {
    /// Whether this device takes a bundle, which was asked for as version `asked`; `digest` is its manifest's.
    ///
    /// # Errors
    /// Why not.
    pub fn admits(
        &self,
        manifest: &Manifest,
        digest: Sha256Digest,
        asked: Option<&str>,
    ) -> Result<(), Refusal> {
        let ours = env!("CARGO_PKG_VERSION");
        let Self { compatible, past: Past { running_version, min_version, denied }, allow_downgrade } = self;
        if let Some(failure) = Denied::refusal(denied, digest) {
            return Err(Refusal::RolledBackBefore(failure));
        }
        let bundle = manifest.version.clone();
        let is_older = |version: &str, than: &String| version::compare(version, than) == Ordering::Less;
        if let Some(asked) = asked.filter(|asked| *asked != bundle) {
            return Err(Refusal::OtherVersion { bundle, asked: asked.to_owned() });
        }
        let boards = &manifest.compatible;
        if !boards.is_empty() && !compatible.as_ref().is_some_and(|ours| boards.contains(ours)) {
            return Err(Refusal::OtherBoard { boards: boards.join(", "), ours: compatible.clone() });
        }
        if let Some(needed) = manifest.min_agent_version.clone().filter(|needed| is_older(ours, needed)) {
            return Err(Refusal::OldAgent { needed, ours });
        }
        let comes_from = |needed: &String| running_version.as_ref().is_some_and(|v| !is_older(v, needed));
        if let Some(needed) = manifest.min_previous_version.clone().filter(|needed| !comes_from(needed)) {
            return Err(Refusal::OldPrevious { needed, running: running_version.clone() });
        }
        if *allow_downgrade {
            return Ok(());
        }
        if let Some(running) = running_version.clone().filter(|running| !is_older(running, &bundle)) {
            return Err(Refusal::NotNewer { bundle, running });
        }
        match min_version.clone().filter(|least| is_older(&bundle, least)) {
            Some(least) => Err(Refusal::BelowMinimum { bundle, least }),
            None => Ok(()),
        }
    }
}
