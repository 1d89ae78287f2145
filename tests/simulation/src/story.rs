//! What happens to a machine: the update that it is told to make, what is wrong with it, and what people do meanwhile.

use std::sync::OnceLock;

use ring::digest::{SHA256, digest};

use crate::disk::Lie;
use crate::uboot::Slot;

/// A slot has a little more room than the image needs.
const ROOM_BYTES: usize = 1 << 16;

/// Not a multiple of a page: the last bytes take another way to the slot than all others.
const IMAGE_BYTES: usize = (1 << 16) + 4096 * 3 + 1000;

/// More than a block.
const LARGE_IMAGE_BYTES: usize = (1 << 20) + IMAGE_BYTES;

/// Twice what a checkpoint must save at least.
const LONG_IMAGE_BYTES: usize = (9 << 20) + 1000;

/// What a system does when it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// What it should.
    Good,
    /// It does not find the hub.
    Offline,
    /// It finds the hub when the time of a trial is over.
    Late,
    /// The kernel does not come up.
    Panics,
    /// The daemon does not start.
    NoDaemon,
}

/// A root filesystem, as far as it matters.
#[derive(Debug)]
pub struct Image {
    pub version: &'static str,
    pub nature: Nature,
    pub content: Vec<u8>,
    pub digest: String,
}

impl Image {
    fn new(version: &'static str, nature: Nature, size: usize) -> Self {
        let mut content = format!("a system of version {version}, {nature:?}, {size} bytes\n").into_bytes();
        // Knuth's generator: data/make signs the same bytes.
        let mut state: u64 = content.iter().map(|byte| u64::from(*byte)).sum();
        content.resize_with(size, || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        });
        let digest = digest(&SHA256, &content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { version, nature, content, digest }
    }

    pub fn is_in(&self, slot: &[u8]) -> bool {
        slot.starts_with(&self.content)
    }
}

/// Every image there is.
#[derive(Debug)]
pub struct Images {
    pub factory: Image,
    pub good: Image,
    pub large: Image,
    pub long: Image,
    pub offline: Image,
    pub late: Image,
    pub panics: Image,
    pub no_daemon: Image,
}

impl Images {
    pub fn all() -> &'static Self {
        static IMAGES: OnceLock<Images> = OnceLock::new();
        IMAGES.get_or_init(|| Self {
            factory: Image::new("1.0", Nature::Good, IMAGE_BYTES / 2),
            good: Image::new("2.0", Nature::Good, IMAGE_BYTES),
            large: Image::new("2.0", Nature::Good, LARGE_IMAGE_BYTES),
            long: Image::new("2.0", Nature::Good, LONG_IMAGE_BYTES),
            offline: Image::new("2.0", Nature::Offline, IMAGE_BYTES),
            late: Image::new("2.0", Nature::Late, IMAGE_BYTES),
            panics: Image::new("2.0", Nature::Panics, IMAGE_BYTES),
            no_daemon: Image::new("2.0", Nature::NoDaemon, IMAGE_BYTES),
        })
    }

    /// The system that a slot holds whole.
    pub fn in_slot(&self, slot: &[u8]) -> Option<&Image> {
        let Self { factory, good, large, long, offline, late, panics, no_daemon } = self;
        [factory, good, large, long, offline, late, panics, no_daemon]
            .into_iter()
            .find(|image| image.is_in(slot))
    }
}

/// What people do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    None,
    /// The update is cancelled once its download has begun.
    Cancel,
    /// The daemon is restarted in the middle of the download.
    Restart,
    /// Somebody at the device commits the trial.
    Commit,
    /// Somebody at the device goes back from the update that is completed.
    RollBack,
}

/// What the image is verified by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    Digest,
    Signature,
    /// The check value of another image.
    ForeignDigest,
    /// The signature of another image.
    ForeignSignature,
}

impl Check {
    pub fn is_right(self) -> bool {
        matches!(self, Self::Digest | Self::Signature)
    }
}

/// How the machine is before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// As from the factory.
    New,
    /// One copy of the boot environment is damaged: the one in force, or the other.
    EnvironmentDamaged,
    /// A newer daemon was here, and its state file has another schema.
    NewerState,
    /// An older daemon was here, and its state file has fewer fields.
    OlderState,
}

#[derive(Debug)]
pub struct Story {
    pub name: &'static str,
    /// Runs before.
    pub origin: Slot,
    pub image: fn(&'static Images) -> &'static Image,
    /// The request comes by a desired property, instead of a direct method.
    pub is_desired: bool,
    pub check: Check,
    pub act: Act,
    pub before: Before,
    /// What does not do what it says.
    pub liar: Option<(Liar, Lie)>,
    /// What the twin says in the end.
    pub ends: &'static str,
}

/// A medium that lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liar {
    Target,
    Environment,
}

const GOOD: Story = Story {
    name: "good",
    origin: Slot::A,
    image: |images| &images.good,
    is_desired: false,
    check: Check::Digest,
    act: Act::None,
    before: Before::New,
    liar: None,
    ends: "completed",
};

pub static STORIES: &[Story] = &[
    GOOD,
    Story { name: "large", image: |images| &images.large, ..GOOD },
    Story { name: "desired", origin: Slot::B, is_desired: true, ..GOOD },
    Story { name: "sick", image: |images| &images.offline, ends: "rolledBack", ..GOOD },
    Story { name: "panics", image: |images| &images.panics, ends: "rolledBack", ..GOOD },
    Story { name: "no-daemon", image: |images| &images.no_daemon, ends: "rolledBack", ..GOOD },
    Story { name: "signed", check: Check::Signature, ..GOOD },
    Story { name: "bad-digest", check: Check::ForeignDigest, ends: "failed", ..GOOD },
    Story { name: "bad-signature", check: Check::ForeignSignature, ends: "failed", ..GOOD },
    Story { name: "cancel", image: |images| &images.large, act: Act::Cancel, ends: "failed", ..GOOD },
    Story { name: "resume", image: |images| &images.long, act: Act::Restart, ..GOOD },
    Story { name: "commit", image: |images| &images.late, act: Act::Commit, ..GOOD },
    Story { name: "roll-back", act: Act::RollBack, ends: "rolledBack", ..GOOD },
    Story { name: "environment", before: Before::EnvironmentDamaged, ..GOOD },
    Story { name: "newer-state", before: Before::NewerState, ..GOOD },
    Story { name: "older-state", before: Before::OlderState, ..GOOD },
    Story { name: "lying-slot", liar: Some((Liar::Target, Lie::Flips(2))), ends: "failed", ..GOOD },
    Story {
        name: "lying-environment",
        liar: Some((Liar::Environment, Lie::Drops(1))),
        ends: "failed",
        ..GOOD
    },
    Story {
        name: "failing-environment",
        liar: Some((Liar::Environment, Lie::Refuses(1))),
        ends: "failed",
        ..GOOD
    },
];

impl Story {
    pub fn named(name: &str) -> Option<&'static Self> {
        STORIES.iter().find(|story| story.name == name)
    }

    pub fn image(&self) -> &'static Image {
        (self.image)(Images::all())
    }

    /// What lies beside the image.
    pub fn signature(&self) -> &'static [u8] {
        match self.check {
            Check::ForeignSignature => include_bytes!("../data/factory.minisig"),
            Check::Signature | Check::Digest | Check::ForeignDigest => include_bytes!("../data/good.minisig"),
        }
    }

    pub fn target(&self) -> Slot {
        if self.origin == Slot::A { Slot::B } else { Slot::A }
    }

    /// Whether the twin may end with this after so many failures, too.
    pub fn may_end(&self, status: &str, failures: usize) -> bool {
        let may = match status {
            // A medium that lied once lies to nobody who writes again.
            "completed" => self.liar.is_some() && failures > 0,
            // A trial may take no more boots.
            "rolledBack" => (self.ends == "completed" || self.liar.is_some()) && failures >= 3,
            // Nor an install more interruptions.
            "failed" => failures >= 10,
            _ => false,
        };
        may || status == self.ends
    }

    pub fn slot_bytes(&self) -> usize {
        self.image().content.len().next_multiple_of(ROOM_BYTES) + ROOM_BYTES
    }
}
