//! What happens to a machine: the update that it is told to make, what is wrong with it, and what people do meanwhile.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::OnceLock;

use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use twinboot::bundle::{Entry, HEADER_BYTES, Header, Index, Layout, Manifest, PatchTable, Source};
use twinboot::update::Code;
use twinboot::update::step::INSTALL_ATTEMPTS_MAX;

use crate::disk::Lie;
use crate::life::Tally;
use crate::site::ATTEMPTS;
use crate::uboot::{Scheme, Slot};

/// A slot has a little more room than the image needs.
const ROOM_BYTES: usize = 1 << 16;

/// Not a multiple of a page: the last bytes take another way to the slot than all others.
const IMAGE_BYTES: usize = (1 << 16) + 4096 * 3 + 1000;

/// More than a block.
const LARGE_IMAGE_BYTES: usize = (1 << 20) + IMAGE_BYTES;

/// Twice what a checkpoint must save at least.
const LONG_IMAGE_BYTES: usize = (9 << 20) + 1000;

/// What a file system is made of.
const PAGE_BYTES: usize = 4096;

/// What a disk writes whole.
const SECTOR_BYTES: usize = 512;

/// Of the manifests in `data`.
const YEAR: &[u8] = b"\"created\": \"2025";

/// So many bytes of a bundle are fetched unasked, to make one request of two.
const GAP_BYTES: u64 = 1024;

/// Where a slot holds less than one of so many chunks in their places, nobody may notice.
const CHUNKS_PER_PROBE: usize = 8;

/// Of the system that runs before a bundle.
const OLD_PAGES: u32 = 160;

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

/// Of a large bundle.
#[derive(Debug)]
struct Chunk {
    /// Where the image has it first.
    place: Range<usize>,
    /// Where the bundle has it.
    stored: Range<u64>,
    /// Whether what runs before has it too.
    runs: bool,
}

/// A root filesystem, as far as it matters.
#[derive(Debug)]
pub struct Image {
    pub name: &'static str,
    pub version: &'static str,
    pub nature: Nature,
    pub content: Vec<u8>,
    /// What is in the slot's other device, where it has one.
    pub kernel: Vec<u8>,
    /// The bundle that brings it, if one does.
    pub bundle: Option<&'static [u8]>,
    /// Of its patches.
    chunks: Vec<Chunk>,
    /// Of the image, or of the bundle's manifest.
    pub digest: String,
}

impl Image {
    /// Noise: no two sectors are alike.
    fn new(name: &'static str, nature: Nature, size: usize) -> Self {
        let mut content = format!("a system, {name}, {nature:?}, {size} bytes\n").into_bytes();
        let mut noise = Noise(content.iter().map(|byte| u64::from(*byte)).sum());
        content.resize_with(size, || noise.next());
        let digest = digest_of(&content);
        let version = "2.0";
        Self { name, version, nature, content, kernel: Vec::new(), bundle: None, chunks: Vec::new(), digest }
    }

    /// As a file system is: of few bytes when it is compressed, with what repeats, and what older ones have.
    fn paged(name: &'static str, nature: Nature, pages: impl Iterator<Item = Page>) -> Self {
        let mut image = Self::new(name, nature, PAGE_BYTES);
        image.content.extend(pages.flat_map(Page::content));
        image.digest = digest_of(&image.content);
        image
    }

    fn with_kernel(self, pages: impl Iterator<Item = Page>) -> Self {
        Self { kernel: pages.flat_map(Page::content).collect(), ..self }
    }

    fn brought_by(self, bundle: &'static [u8]) -> Self {
        Self { digest: digest_of(parts(bundle).1), bundle: Some(bundle), chunks: chunks_of(bundle), ..self }
    }

    fn of_the_factory(self) -> Self {
        Self { version: "1.0", ..self }
    }

    /// What the server has of it.
    pub fn package(&self) -> &[u8] {
        self.bundle.unwrap_or(&self.content)
    }

    /// Of the list of keys that it brings.
    pub fn key_serial(&self) -> Option<u64> {
        Some(manifest_of(self.bundle?).keys?.serial)
    }

    /// Whether the devices of a slot hold all of it.
    pub fn is_in(&self, slot: &[u8], kernel: &[u8]) -> bool {
        slot.starts_with(&self.content) && kernel.starts_with(&self.kernel)
    }
}

/// Header and manifest.
fn parts(bundle: &[u8]) -> (Header, &[u8]) {
    let header = Header::parse(bundle).expect("a bundle");
    (header, &bundle[HEADER_BYTES..][..header.manifest_bytes as usize])
}

fn manifest_of(bundle: &[u8]) -> Manifest {
    Manifest::parse(parts(bundle).1).expect("a manifest")
}

fn layout_of(bundle: &[u8]) -> Layout {
    manifest_of(bundle).layout(parts(bundle).0)
}

/// None of a bundle without patches.
fn chunks_of(bundle: &[u8]) -> Vec<Chunk> {
    let (manifest, layout) = (manifest_of(bundle), layout_of(bundle));
    let part = |range: &Range<u64>| &bundle[range.start as usize..range.end as usize];
    let index = Index::parse(part(&layout.index), &manifest).expect("an index");
    let image = &index.images[0];
    let Some((patch, at)) = manifest.patches.first().zip(layout.patches.first()) else { return Vec::new() };
    let table = PatchTable::parse(part(&at.table), patch, &index, image).expect("a table");
    let (mut chunks, mut place) = (Vec::new(), 0);
    for entry in &index.entries[image.entries.clone()] {
        let size_bytes = index.size_bytes(*entry) as usize;
        if let Entry::Piece(number) = *entry
            && number as usize == chunks.len()
        {
            let piece = &index.pieces[chunks.len()];
            let start = piece.stored_offset;
            chunks.push(Chunk {
                place: place..place + size_bytes,
                stored: start..start + u64::from(piece.stored_bytes),
                runs: matches!(table.sources[chunks.len()], Source::Base(_)),
            });
        }
        place += size_bytes;
    }
    chunks
}

fn digest_of(content: &[u8]) -> String {
    digest(&SHA256, content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Knuth's generator.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0.to_be_bytes()[0]
    }
}

/// A block of a file system.
#[derive(Clone, Copy)]
enum Page {
    Free,
    /// Those of one number are alike; else no two sectors are.
    Data(u32),
    /// What no compression makes smaller: a damaged byte is another one, and nothing else.
    Noise,
}

impl Page {
    fn content(self) -> Vec<u8> {
        let mut content = vec![0; PAGE_BYTES];
        match self {
            Self::Free => {}
            Self::Noise => {
                let mut noise = Noise(1);
                content.fill_with(|| noise.next());
            }
            Self::Data(number) => {
                let mut noise = Noise(u64::from(number) << 32);
                for sector in content.chunks_mut(SECTOR_BYTES) {
                    sector.fill(noise.next());
                    sector[..12].fill_with(|| noise.next());
                }
            }
        }
        content
    }
}

/// What runs, with a part moved, another one changed in places, free room, and what is new. More than a block.
fn bundled_pages() -> impl Iterator<Item = Page> {
    let moved = [1_000].into_iter().chain(0..80);
    let changed = (80..OLD_PAGES).map(|page| if page % 16 == 0 { 2_000 + page } else { page });
    let new = (0..60).chain(0..8).map(|page| 3_000 + page);
    let free = std::iter::repeat_n(Page::Free, 100);
    moved.chain(changed).map(Page::Data).chain(free).chain(new.map(Page::Data)).chain([Page::Noise])
}

/// Every image there is.
#[derive(Debug)]
pub struct Images {
    pub factory: Image,
    pub paged_factory: Image,
    pub good: Image,
    pub large: Image,
    pub long: Image,
    pub bundled: Image,
    pub bundled_offline: Image,
    /// With a kernel in a device of its own.
    pub paired_factory: Image,
    pub paired: Image,
    pub offline: Image,
    pub late: Image,
    pub panics: Image,
    pub no_daemon: Image,
}

impl Images {
    pub fn all() -> &'static Self {
        static IMAGES: OnceLock<Images> = OnceLock::new();
        IMAGES.get_or_init(|| Self {
            factory: Image::new("factory", Nature::Good, IMAGE_BYTES / 2).of_the_factory(),
            paged_factory: Image::paged("paged-factory", Nature::Good, (0..OLD_PAGES).map(Page::Data))
                .of_the_factory(),
            good: Image::new("good", Nature::Good, IMAGE_BYTES),
            large: Image::new("large", Nature::Good, LARGE_IMAGE_BYTES),
            long: Image::new("long", Nature::Good, LONG_IMAGE_BYTES),
            bundled: Image::paged("bundled", Nature::Good, bundled_pages())
                .brought_by(include_bytes!("../data/bundled.twb")),
            bundled_offline: Image::paged("bundled-offline", Nature::Offline, bundled_pages())
                .brought_by(include_bytes!("../data/bundled-offline.twb")),
            paired_factory: Image::paged("paired-factory", Nature::Good, (0..12).map(Page::Data))
                .with_kernel((4_000..4_004).map(Page::Data))
                .of_the_factory(),
            paired: Image::paged("paired", Nature::Good, (6..18).map(Page::Data))
                .with_kernel((4_002..4_008).map(Page::Data))
                .brought_by(include_bytes!("../data/paired.twb")),
            offline: Image::new("offline", Nature::Offline, IMAGE_BYTES),
            late: Image::new("late", Nature::Late, IMAGE_BYTES),
            panics: Image::new("panics", Nature::Panics, IMAGE_BYTES),
            no_daemon: Image::new("no-daemon", Nature::NoDaemon, IMAGE_BYTES),
        })
    }

    fn each(&self) -> [&Image; 13] {
        let Self { factory, paged_factory, paired_factory, good, large, long, .. } = self;
        let Self { bundled, bundled_offline, paired, offline, late, panics, no_daemon, .. } = self;
        [
            factory,
            paged_factory,
            paired_factory,
            good,
            large,
            long,
            bundled,
            bundled_offline,
            paired,
            offline,
            late,
            panics,
            no_daemon,
        ]
    }

    pub fn named(&self, name: &str) -> Option<&Image> {
        self.each().into_iter().find(|image| image.name == name)
    }

    /// The system that a slot holds whole.
    pub fn in_slot(&self, slot: &[u8], kernel: &[u8]) -> Option<&Image> {
        self.each().into_iter().find(|image| image.is_in(slot, kernel))
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
    /// That of the bundle, whose patches are damaged.
    DamagedPatches,
    /// That of the bundle, whose patches and last chunk are.
    DamagedChunks,
}

impl Check {
    pub fn is_right(self) -> bool {
        matches!(self, Self::Digest | Self::Signature | Self::DamagedPatches)
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
    /// In it.
    pub factory: fn(&'static Images) -> &'static Image,
    pub image: fn(&'static Images) -> &'static Image,
    /// The request comes by a desired property, instead of a direct method.
    pub is_desired: bool,
    pub check: Check,
    pub act: Act,
    pub before: Before,
    pub scheme: Scheme,
    /// How often the machine is switched on again when all is over.
    pub encores: u8,
    /// What does not do what it says.
    pub liar: Option<(Liar, Lie)>,
    /// What the twin says in the end.
    pub ends: &'static str,
    /// Why, unless failures of the power had a part in it.
    pub code: Option<Code>,
}

/// A medium that lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liar {
    Target,
    Environment,
}

/// So often a decision is tried to be written into the environment.
const TRIES: u32 = 3;

const GOOD: Story = Story {
    name: "good",
    origin: Slot::A,
    factory: |images| &images.factory,
    image: |images| &images.good,
    is_desired: false,
    check: Check::Digest,
    act: Act::None,
    before: Before::New,
    scheme: Scheme::Bootcount,
    encores: 1,
    liar: None,
    ends: "completed",
    code: None,
};

const SICK: Story = Story {
    name: "sick",
    image: |images| &images.offline,
    ends: "rolledBack",
    code: Some(Code::HealthCheckFailed),
    ..GOOD
};

const PANICS: Story =
    Story { name: "panics", image: |images| &images.panics, code: Some(Code::BootFailed), ..SICK };

const ROLL_BACK: Story = Story {
    name: "roll-back",
    act: Act::RollBack,
    ends: "rolledBack",
    code: Some(Code::OperatorRollBack),
    ..GOOD
};

const BUNDLE: Story = Story {
    name: "bundle",
    factory: |images| &images.paged_factory,
    image: |images| &images.bundled,
    check: Check::Signature,
    ..GOOD
};

const PAIR: Story = Story {
    name: "pair",
    factory: |images| &images.paired_factory,
    image: |images| &images.paired,
    ..BUNDLE
};

pub static STORIES: &[Story] = &[
    GOOD,
    Story { name: "large", image: |images| &images.large, ..GOOD },
    Story { name: "desired", origin: Slot::B, is_desired: true, ..GOOD },
    SICK,
    PANICS,
    Story { name: "no-daemon", image: |images| &images.no_daemon, ..PANICS },
    Story { name: "signed", check: Check::Signature, ..GOOD },
    Story {
        name: "bad-digest",
        check: Check::ForeignDigest,
        ends: "failed",
        code: Some(Code::DigestMismatch),
        ..GOOD
    },
    Story {
        name: "bad-signature",
        check: Check::ForeignSignature,
        ends: "failed",
        code: Some(Code::SignatureInvalid),
        ..GOOD
    },
    Story {
        name: "cancel",
        image: |images| &images.large,
        act: Act::Cancel,
        ends: "failed",
        code: Some(Code::Cancelled),
        ..GOOD
    },
    Story { name: "resume", image: |images| &images.long, act: Act::Restart, ..GOOD },
    Story { name: "commit", image: |images| &images.late, act: Act::Commit, ..GOOD },
    ROLL_BACK,
    Story { name: "environment", before: Before::EnvironmentDamaged, ..GOOD },
    Story { name: "newer-state", before: Before::NewerState, ..GOOD },
    Story { name: "older-state", before: Before::OlderState, ..GOOD },
    Story {
        name: "lying-slot",
        liar: Some((Liar::Target, Lie::Flips(2))),
        ends: "failed",
        code: Some(Code::ReadBackMismatch),
        ..GOOD
    },
    Story {
        name: "lying-environment",
        liar: Some((Liar::Environment, Lie::Drops(TRIES))),
        ends: "failed",
        code: Some(Code::ActivateFailed),
        ..GOOD
    },
    Story {
        name: "failing-environment",
        liar: Some((Liar::Environment, Lie::Refuses(TRIES))),
        ends: "failed",
        code: Some(Code::EnvironmentUnusable),
        ..GOOD
    },
    Story { name: "environment-lies-twice", liar: Some((Liar::Environment, Lie::Drops(TRIES - 1))), ..GOOD },
    Story {
        name: "environment-fails-twice",
        liar: Some((Liar::Environment, Lie::Refuses(TRIES - 1))),
        ..GOOD
    },
    // The script takes an attempt at each boot, and gets it back.
    Story { name: "rauc", scheme: Scheme::Rauc, encores: ATTEMPTS, ..GOOD },
    Story { name: "rauc-sick", origin: Slot::B, scheme: Scheme::Rauc, ..SICK },
    Story { name: "rauc-panics", scheme: Scheme::Rauc, ..PANICS },
    Story { name: "rauc-roll-back", scheme: Scheme::Rauc, ..ROLL_BACK },
    Story { name: "mender", origin: Slot::B, scheme: Scheme::Mender, ..GOOD },
    Story { name: "mender-panics", scheme: Scheme::Mender, ..PANICS },
    BUNDLE,
    Story { name: "bundle-resume", check: Check::Digest, act: Act::Restart, ..BUNDLE },
    Story {
        name: "bundle-sick",
        image: |images| &images.bundled_offline,
        ends: "rolledBack",
        code: Some(Code::HealthCheckFailed),
        ..BUNDLE
    },
    Story {
        name: "bundle-bad-signature",
        check: Check::ForeignSignature,
        ends: "failed",
        code: Some(Code::SignatureInvalid),
        ..BUNDLE
    },
    Story { name: "bundle-bad-patches", check: Check::DamagedPatches, ..BUNDLE },
    Story {
        name: "bundle-bad-chunks",
        check: Check::DamagedChunks,
        ends: "failed",
        code: Some(Code::DigestMismatch),
        ..BUNDLE
    },
    PAIR,
    Story {
        name: "pair-bad-chunks",
        check: Check::DamagedChunks,
        ends: "failed",
        code: Some(Code::DigestMismatch),
        ..PAIR
    },
];

impl Story {
    pub fn named(name: &str) -> Option<&'static Self> {
        STORIES.iter().find(|story| story.name == name)
    }

    pub fn image(&self) -> &'static Image {
        (self.image)(Images::all())
    }

    pub fn factory(&self) -> &'static Image {
        (self.factory)(Images::all())
    }

    /// What lies beside the image.
    pub fn signature(&self) -> &'static [u8] {
        match self.check {
            Check::ForeignSignature => include_bytes!("../data/factory.minisig"),
            Check::Signature
            | Check::Digest
            | Check::ForeignDigest
            | Check::DamagedPatches
            | Check::DamagedChunks => include_bytes!("../data/good.minisig"),
        }
    }

    /// The package as the server sends it.
    pub fn sent_package(&self) -> Cow<'static, [u8]> {
        let mut package = Cow::Borrowed(self.image().package());
        for at in self.damaged() {
            package.to_mut()[at] ^= 1;
        }
        package
    }

    fn damaged(&self) -> Vec<usize> {
        let Some(bundle) = self.image().bundle else { return Vec::new() };
        match self.check {
            Check::Digest | Check::Signature | Check::ForeignDigest => Vec::new(),
            // The manifest stays one, which says something else.
            Check::ForeignSignature => {
                let year = bundle.windows(YEAR.len()).position(|text| text == YEAR).expect("a year");
                vec![year + YEAR.len() - 1]
            }
            Check::DamagedPatches | Check::DamagedChunks => {
                let layout = layout_of(bundle);
                // Where the large bundles have noise, which decompresses to something else; or else within the kernel.
                let from_end = if self.has_kernel() { 20 } else { PAGE_BYTES / 2 };
                let chunks = (self.check == Check::DamagedChunks).then_some(layout.pieces);
                let parts = layout.patches.into_iter().map(|patch| patch.frames).chain(chunks);
                parts.map(|part| part.end as usize - from_end).collect()
            }
        }
    }

    /// The most that is worth fetching of the package.
    pub fn needed_bytes(&self) -> usize {
        let package_bytes = self.image().package().len();
        match self.image().bundle {
            None => package_bytes,
            // More than half of it runs already.
            Some(_) if self.is_large_bundle() => package_bytes / 2,
            // Its beginning comes more than once.
            Some(_) => 2 * package_bytes,
        }
    }

    /// Where the patches of a bundle begin in it, and the chunks.
    pub fn chunks_offset(&self) -> u64 {
        let Some(bundle) = self.image().bundle else { return 0 };
        let layout = layout_of(bundle);
        layout.patches.first().map_or(layout.pieces.start, |patch| patch.frames.start)
    }

    /// The most of them that a daemon may fetch which finds this in the target slot: a patch is worth it only in the
    /// place of more. `None`: what is there may escape its notice, or the server sends what has to be asked for again.
    pub fn missing_bytes(&self, target: &[u8]) -> Option<u64> {
        let chunks = &self.image().chunks;
        let is_there = |chunk: &Chunk| {
            let Range { start, end } = chunk.place;
            target.get(start..end) == self.image().content.get(start..end)
        };
        let there: Vec<_> = chunks.iter().map(is_there).collect();
        let is_noticed = there.iter().filter(|there| **there).count() * CHUNKS_PER_PROBE > chunks.len();
        if !matches!(self.check, Check::Digest | Check::Signature) || !is_noticed {
            return None;
        }
        let missing = chunks.iter().zip(there).filter(|(chunk, there)| !there && !chunk.runs);
        let (mut bytes, mut end) = (0, None);
        for (Chunk { stored, .. }, _) in missing {
            let gap = end.map_or(u64::MAX, |end| stored.start - end);
            bytes += stored.end - stored.start + if gap <= GAP_BYTES { gap } else { 0 };
            end = Some(stored.end);
        }
        Some(bytes)
    }

    /// Those for slots of two devices are small.
    pub fn is_large_bundle(&self) -> bool {
        self.image().bundle.is_some() && !self.has_kernel()
    }

    pub fn target(&self) -> Slot {
        if self.origin == Slot::A { Slot::B } else { Slot::A }
    }

    /// Whether the twin may end with this status and reason.
    pub fn may_end(&self, status: &str, code: &Value, tally: &Tally) -> bool {
        let Tally { failures, fell_back, .. } = *tally;
        if status == self.ends && *code == json!(self.code) {
            return true;
        }
        let is = |expected: Code| *code == json!(expected);
        match status {
            // A medium that lied once lies to nobody who writes again.
            "completed" => self.liar.is_some() && failures > 0,
            // A trial takes no more boots than it may.
            "rolledBack" => fell_back && is(Code::BootFailed),
            // Nor an install more interruptions. An operator, who had no answer, may have begun it again: what a
            // signature alone vouches for is known by its content.
            "failed" => {
                let again = self.ends == "rolledBack" && self.check == Check::Signature;
                failures >= usize::from(INSTALL_ATTEMPTS_MAX) && is(Code::AttemptsExhausted)
                    || again && is(Code::RolledBackBefore)
            }
            _ => false,
        }
    }

    /// In a device of its own.
    pub fn has_kernel(&self) -> bool {
        !self.image().kernel.is_empty()
    }

    pub fn slot_bytes(&self) -> usize {
        let largest_bytes = self.image().content.len().max(self.factory().content.len());
        largest_bytes.next_multiple_of(ROOM_BYTES) + ROOM_BYTES
    }
}
