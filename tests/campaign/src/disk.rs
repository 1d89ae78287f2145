//! Four media with a volatile cache: what was written is there until the power goes, what was flushed stays.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastrand::Rng;
use serde::{Deserialize, Serialize};

use crate::uboot::Slot;

/// A sector lands whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// ext4's first block, with the superblock and its checksum. ext4 counts on it to land whole: torn between its two
/// sectors, neither the kernel nor e2fsck takes the file system any more.
const SUPERBLOCK_BYTES: usize = 4096;

/// In the daemon's campaign each has a cache of its own: a flush of one makes nothing durable on another. That is the
/// harder case; on a disk with all four as its partitions, a power cut can leave no more states than there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Medium {
    /// The raw redundant U-Boot environment.
    Environment,
    /// rootfs_a.
    SlotA,
    /// rootfs_b.
    SlotB,
    /// ext4, with the state directory.
    Data,
}

impl Slot {
    pub fn medium(self) -> Medium {
        if self == Self::A { Medium::SlotA } else { Medium::SlotB }
    }
}

impl Medium {
    pub const ALL: [Self; 4] = [Self::Environment, Self::SlotA, Self::SlotB, Self::Data];

    pub fn name(self) -> &'static str {
        match self {
            Self::Environment => "environment",
            Self::SlotA => "rootfs_a",
            Self::SlotB => "rootfs_b",
            Self::Data => "data",
        }
    }
}

/// The bytes of all media.
#[derive(Clone, Debug, Default)]
pub struct Media(pub [Vec<u8>; 4]);

impl Media {
    pub fn of(&self, medium: Medium) -> &[u8] {
        &self.0[medium as usize]
    }

    pub fn write(&mut self, write: &Write) {
        self.put(write.medium, write.offset, &write.data);
    }

    pub fn put(&mut self, medium: Medium, offset: usize, data: &[u8]) {
        self.0[medium as usize][offset..offset + data.len()].copy_from_slice(data);
    }
}

#[derive(Clone, Debug)]
pub struct Write {
    pub medium: Medium,
    pub offset: usize,
    pub data: Arc<[u8]>,
}

/// What happened, in order.
#[derive(Clone, Debug)]
pub enum Entry {
    Write(Write),
    Flush(Medium),
    Note(Note),
}

/// What somebody outside of the disk knows from here on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The method was answered: the update goes on whatever happens.
    Accepted,
    /// U-Boot gave the trial up.
    FellBack,
    /// The twin says how the update ended: `completed` or `rolledBack`.
    Ended(String),
}

/// A part of a write that landed: medium, offset, bytes.
pub type Piece<'write> = (Medium, usize, &'write [u8]);

/// What a power cut leaves of the writes that were not flushed: all of them, none, a torn tail, or any subset of
/// them and of their sectors.
pub fn survivors<'write>(pending: &'write [Write], rng: &mut Rng) -> Vec<Piece<'write>> {
    let kept = rng.f64();
    match rng.u8(0..5) {
        0 => Vec::new(),
        1 => pending.iter().flat_map(|write| sectors(write, |_| true)).collect(),
        2 => {
            let whole = rng.usize(0..=pending.len());
            let torn =
                pending.get(whole).map(|write| (write, rng.usize(0..=write.data.len() / SECTOR_BYTES)));
            let landed = pending[..whole].iter().flat_map(|write| sectors(write, |_| true));
            let tail = torn.map(|(write, count)| sectors(write, |sector| sector < count));
            landed.chain(tail.into_iter().flatten()).collect()
        }
        3 => {
            let subset: Vec<&Write> = pending.iter().filter(|_| rng.f64() < kept).collect();
            subset.into_iter().flat_map(|write| sectors(write, |_| true)).collect()
        }
        _ => pending.iter().flat_map(|write| sectors(write, |_| rng.f64() < kept)).collect(),
    }
}

/// The sectors of a write that landed, neighbours joined.
fn sectors(write: &Write, mut landed: impl FnMut(usize) -> bool) -> Vec<Piece<'_>> {
    let mut pieces: Vec<(usize, usize)> = Vec::new();
    let mut superblock = None;
    for start in (0..write.data.len()).step_by(SECTOR_BYTES) {
        let mut landed = || landed(start / SECTOR_BYTES);
        let is_superblock = write.medium == Medium::Data && write.offset + start < SUPERBLOCK_BYTES;
        if if is_superblock { *superblock.get_or_insert_with(landed) } else { landed() } {
            let end = (start + SECTOR_BYTES).min(write.data.len());
            match pieces.last_mut() {
                Some(last) if last.1 == start => last.1 = end,
                _ => pieces.push((start, end)),
            }
        }
    }
    let piece = |(start, end)| (write.medium, write.offset + start, &write.data[start..end]);
    pieces.into_iter().map(piece).collect()
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Read,
    /// A write or a flush.
    Change,
}

/// So many of a kind must happen.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// `None`: on any.
    pub medium: Option<Medium>,
    pub kind: Kind,
    pub count: usize,
}

impl Step {
    /// The `count`-th write or flush of all.
    pub fn change(count: usize) -> Self {
        Self { medium: None, kind: Kind::Change, count }
    }

    fn counts(&self, kind: Kind, media: &[Medium]) -> bool {
        self.kind == kind && self.medium.is_none_or(|medium| media.contains(&medium))
    }
}

/// What happened since the power came, of each medium in the order of `Medium::ALL`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Progress {
    pub reads: [usize; 4],
    /// Writes and flushes.
    pub changes: [usize; 4],
    /// What happened last.
    pub last: [Option<Kind>; 4],
    /// Writes and flushes of all; a flush of several is one.
    pub all_changes: usize,
    /// Where the power went, if that was at one.
    pub cut_at: Option<Medium>,
}

impl Progress {
    fn count(&mut self, kind: Kind, media: &[Medium]) {
        self.all_changes += usize::from(kind == Kind::Change);
        for medium in media.iter().map(|medium| *medium as usize) {
            self.reads[medium] += usize::from(kind == Kind::Read);
            self.changes[medium] += usize::from(kind == Kind::Change);
            self.last[medium] = Some(kind);
        }
    }
}

/// Sectors that were written and not flushed when the power went, and how many of them landed.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Left {
    pub unflushed: usize,
    pub landed: usize,
}

/// Whether it has power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    On,
    /// The moment of the cut: nothing lands any more, and nothing is answered.
    Cut,
    /// Those who wait are let go, with errors.
    Dead,
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Done,
    Hold,
    Refuse,
}

struct State {
    now: Media,
    safe: Media,
    pending: Vec<Write>,
    log: Vec<Entry>,
    is_recorded: bool,
    progress: Progress,
    /// What is still to happen before the cut; empty: there is none.
    until: VecDeque<Step>,
    power: Power,
}

/// The media while they have power.
pub struct Disk(Mutex<State>);

impl Disk {
    /// With power until the last of these steps, or until it is cut.
    pub fn new(media: Media, until: Vec<Step>, is_recorded: bool) -> Arc<Self> {
        let state = State {
            safe: media.clone(),
            now: media,
            pending: Vec::new(),
            log: Vec::new(),
            is_recorded,
            progress: Progress::default(),
            until: until.into(),
            power: Power::On,
        };
        Arc::new(Self(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn size_bytes(&self, medium: Medium) -> usize {
        self.state().now.of(medium).len()
    }

    pub fn read(&self, medium: Medium, offset: usize, len: usize) -> (Verdict, Vec<u8>) {
        let mut state = self.state();
        let bytes = state.now.of(medium);
        let start = offset.min(bytes.len());
        let read = bytes[start..(start + len).min(bytes.len())].to_vec();
        // Reads make no difference, so the machine may go on with them until its next write.
        if state.power == Power::On {
            state.count(Kind::Read, &[medium]);
        }
        (if state.power == Power::Dead { Verdict::Refuse } else { Verdict::Done }, read)
    }

    pub fn write(&self, medium: Medium, offset: usize, data: &[u8]) -> Verdict {
        let mut state = self.state();
        if state.power != Power::On {
            return state.refusal();
        }
        let write = Write { medium, offset, data: data.into() };
        state.now.write(&write);
        if state.is_recorded {
            state.log.push(Entry::Write(write.clone()));
        }
        state.pending.push(write);
        state.count(Kind::Change, &[medium])
    }

    /// Of the media that have one cache.
    pub fn flush(&self, media: &[Medium]) -> Verdict {
        let mut state = self.state();
        if state.power != Power::On {
            return state.refusal();
        }
        let verdict = state.count(Kind::Change, media);
        if verdict == Verdict::Done {
            let State { safe, pending, .. } = &mut *state;
            pending
                .extract_if(.., |write| media.contains(&write.medium))
                .for_each(|write| safe.write(&write));
            if state.is_recorded {
                state.log.extend(media.iter().copied().map(Entry::Flush));
            }
        }
        verdict
    }

    pub fn note(&self, note: Note) {
        let mut state = self.state();
        if state.is_recorded && state.power == Power::On {
            state.log.push(Entry::Note(note));
        }
    }

    pub fn is_cut(&self) -> bool {
        self.state().power != Power::On
    }

    /// Now, whatever was planned.
    pub fn cut(&self) {
        self.state().power = Power::Cut;
    }

    /// After a cut, every request fails: what waits in the kernel comes free.
    pub fn bury(&self) {
        let mut state = self.state();
        if state.power == Power::Cut {
            state.power = Power::Dead;
        }
    }

    /// With power until the last of these steps, counted from here.
    pub fn cut_after(&self, until: Vec<Step>) {
        self.state().until = until.into();
    }

    pub fn progress(&self) -> Progress {
        self.state().progress.clone()
    }

    /// As a reset leaves them: it takes no power from the media.
    pub fn now(&self) -> Media {
        self.state().now.clone()
    }

    /// As a power cut leaves them; they are taken out of this disk. Also how much of what was not flushed is left.
    pub fn after_cut(&self, rng: &mut Rng) -> (Media, Left) {
        let mut state = self.state();
        let mut media = std::mem::take(&mut state.safe);
        let sectors = |bytes: usize| bytes.div_ceil(SECTOR_BYTES);
        let unflushed = state.pending.iter().map(|write| sectors(write.data.len())).sum();
        let mut left = Left { unflushed, landed: 0 };
        for (medium, offset, data) in survivors(&state.pending, rng) {
            left.landed += sectors(data.len());
            media.put(medium, offset, data);
        }
        (media, left)
    }

    pub fn take_log(&self) -> Vec<Entry> {
        std::mem::take(&mut self.state().log)
    }
}

impl State {
    fn count(&mut self, kind: Kind, media: &[Medium]) -> Verdict {
        self.progress.count(kind, media);
        let Some(step) = self.until.front_mut().filter(|step| step.counts(kind, media)) else {
            return Verdict::Done;
        };
        step.count = step.count.saturating_sub(1);
        if step.count == 0 {
            self.until.pop_front();
            if self.until.is_empty() {
                self.power = Power::Cut;
                self.progress.cut_at = media.first().copied();
                return Verdict::Hold;
            }
        }
        Verdict::Done
    }

    fn refusal(&self) -> Verdict {
        if self.power == Power::Cut { Verdict::Hold } else { Verdict::Refuse }
    }
}
