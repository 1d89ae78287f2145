//! What happens to a machine: the update that it is told to make, and the images for it.

use hub_emulator::board::{Traits, board_image};
use ring::digest::{SHA256, digest};

use crate::uboot::Slot;

/// Not a multiple of a page: the last bytes take another way to the slot than all others.
const IMAGE_BYTES: usize = (7 << 20) + 4096 * 3 + 1000;

/// Size of each slot.
pub const SLOT_BYTES: usize = 8 << 20;

/// A decoder can start anew at each.
const FRAME_BYTES: usize = 1 << 20;

/// Version of what is in slot a at first.
pub const FACTORY_VERSION: &str = "1.0";
pub const NEW_VERSION: &str = "2.0";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Story {
    /// A good image.
    Good,
    /// The daemon is stopped in the middle of the download, and started again.
    Restarted,
    /// A good image, in several zstd frames, from slot b to slot a.
    Compressed,
    /// It boots, and fails its health check.
    Sick,
    /// It does not come up.
    Panics,
}

impl Story {
    pub const ALL: [Self; 5] = [Self::Good, Self::Restarted, Self::Compressed, Self::Sick, Self::Panics];

    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Restarted => "restarted",
            Self::Compressed => "compressed",
            Self::Sick => "sick",
            Self::Panics => "panics",
        }
    }

    /// What the twin says in the end, if the boot loader did not give the trial up.
    pub fn ends(self) -> &'static str {
        match self {
            Self::Good | Self::Restarted | Self::Compressed => "completed",
            Self::Sick | Self::Panics => "rolledBack",
        }
    }

    /// The slot that it starts from.
    pub fn origin(self) -> Slot {
        if self == Self::Compressed { Slot::B } else { Slot::A }
    }

    /// The slot that the image goes to.
    pub fn target(self) -> Slot {
        self.origin().other()
    }

    pub fn traits(self) -> Traits {
        match self {
            Self::Good | Self::Restarted | Self::Compressed => Traits::default(),
            Self::Sick => Traits::SICK,
            Self::Panics => Traits::PANICS,
        }
    }
}

/// An image: what is served, and what is in the slot afterwards.
pub struct Image {
    pub version: &'static str,
    pub traits: Traits,
    pub content: Vec<u8>,
    pub served: Vec<u8>,
    /// Of what is served, in hex.
    pub sha256: String,
}

impl Image {
    pub fn factory() -> Self {
        Self::new(FACTORY_VERSION, Traits::default(), 64 * 1024, 1, |content| content.to_vec())
    }

    pub fn of(story: Story) -> Self {
        let pack = |content: &[u8]| match story {
            Story::Compressed => {
                let frames = content.chunks(FRAME_BYTES).map(|frame| zstd::bulk::compress(frame, 1).unwrap());
                frames.collect::<Vec<_>>().concat()
            }
            _ => content.to_vec(),
        };
        Self::new(NEW_VERSION, story.traits(), IMAGE_BYTES, 2 + story as u64, pack)
    }

    fn new(
        version: &'static str,
        traits: Traits,
        size_bytes: usize,
        seed: u64,
        pack: impl Fn(&[u8]) -> Vec<u8>,
    ) -> Self {
        let content = board_image(version, traits, size_bytes, seed);
        let served = pack(&content);
        let sha256 = digest(&SHA256, &served).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { version, traits, content, served, sha256 }
    }

    /// Whether a slot holds all of it.
    pub fn is_in(&self, slot: &[u8]) -> bool {
        slot[..self.content.len()] == self.content
    }
}
