//! The points of an update at which people's own programs run, and what these may say.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Image, Moment, Update};

/// A point of an update at which hooks run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// The update was accepted; nothing is written yet.
    BeforeInstall,
    /// The target holds the image, and was read back.
    AfterInstall,
    /// The target is about to be armed, and then booted.
    BeforeReboot,
    /// The target is committed.
    AfterCommit,
    /// The target was given up; the old system runs.
    AfterRollback,
}

impl Hook {
    /// In the order of an update.
    pub const ALL: [Self; 5] =
        [Self::BeforeInstall, Self::AfterInstall, Self::BeforeReboot, Self::AfterCommit, Self::AfterRollback];

    /// Whether the update waits for its answer; the others only hear how it ended.
    #[must_use]
    pub fn decides(self) -> bool {
        matches!(self, Self::BeforeInstall | Self::AfterInstall | Self::BeforeReboot)
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BeforeInstall => "before-install",
            Self::AfterInstall => "after-install",
            Self::BeforeReboot => "before-reboot",
            Self::AfterCommit => "after-commit",
            Self::AfterRollback => "after-rollback",
        })
    }
}

/// Where an update does not go on before its hooks let it. The boot loader was told nothing yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "hook", rename_all = "kebab-case")]
pub enum Gate {
    /// The target still holds what it held.
    BeforeInstall,
    /// The target holds the image.
    AfterInstall {
        /// What.
        image: Image,
    },
    /// The target holds the image, and all agreed to it.
    BeforeReboot {
        /// What.
        image: Image,
    },
}

impl Gate {
    /// The hooks that are asked.
    #[must_use]
    pub fn hook(&self) -> Hook {
        match self {
            Self::BeforeInstall => Hook::BeforeInstall,
            Self::AfterInstall { .. } => Hook::AfterInstall,
            Self::BeforeReboot { .. } => Hook::BeforeReboot,
        }
    }
}

/// What all hooks of a point say together; the first that does not let go on decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing speaks against it, or there are no hooks.
    GoOn,
    /// Not now: ask again. Who says so, and why.
    Later(String),
    /// Not at all. Who says so, and why.
    Refuse(String),
}

/// Hooks asked for more time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deferral {
    /// Who, and why.
    pub reason: String,
    /// How long they had it until `at`, without the time in which the device was off.
    pub spent_secs: u64,
    /// When they last said so.
    pub at: Moment,
}

impl Deferral {
    /// How long they had it until now. Each answer costs something: no clock may make it endless.
    #[must_use]
    pub fn spent_secs(&self, now: Moment) -> u64 {
        let elapsed_secs =
            if self.at.boot == now.boot { now.uptime_secs.saturating_sub(self.at.uptime_secs) } else { 0 };
        self.spent_secs.saturating_add(elapsed_secs.max(1))
    }
}

/// Hooks that hear how an update ended; kept until they did.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Afterword {
    /// Which.
    pub hook: Hook,
    /// The update.
    pub update: Update,
    /// Why it was given up.
    pub reason: Option<String>,
    /// How many starts of the daemon have run them: what takes the device down is not run for ever.
    pub runs: u8,
}

/// One run of the hooks of a point.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HookRun {
    /// Which.
    pub hook: Hook,
    /// The update.
    pub update: Update,
    /// The version that the update replaces, where known.
    pub from_version: Option<String>,
    /// Why it was given up.
    pub reason: Option<String>,
    /// They asked for more time: pause before this run.
    pub again: bool,
}
