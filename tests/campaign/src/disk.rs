//! Four media with a volatile cache: what was written is there until the power goes, what was flushed stays.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fastrand::Rng;

use crate::uboot::Slot;

/// A sector lands whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// ext4's first block, with the superblock and its checksum. ext4 counts on it to land whole: torn between its two
/// sectors, neither the kernel nor e2fsck takes the file system any more.
const SUPERBLOCK_BYTES: usize = 4096;

/// Each has a cache of its own: a flush of one makes nothing durable on another. That is the harder case; on a
/// disk with all four as its partitions, a power cut can leave no more states than here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug)]
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
    events: usize,
    cut_at: usize,
    power: Power,
}

/// The media while they have power.
pub struct Disk(Mutex<State>);

impl Disk {
    /// With power until its `cut_at`-th write or flush.
    pub fn new(media: Media, cut_at: usize, is_recorded: bool) -> Arc<Self> {
        let state = State {
            safe: media.clone(),
            now: media,
            pending: Vec::new(),
            log: Vec::new(),
            is_recorded,
            events: 0,
            cut_at,
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
        let state = self.state();
        let bytes = state.now.of(medium);
        let start = offset.min(bytes.len());
        let read = bytes[start..(start + len).min(bytes.len())].to_vec();
        // Reads make no difference, so the machine may go on with them until its next write.
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
        state.count()
    }

    pub fn flush(&self, medium: Medium) -> Verdict {
        let mut state = self.state();
        if state.power != Power::On {
            return state.refusal();
        }
        let verdict = state.count();
        if verdict == Verdict::Done {
            let State { safe, pending, .. } = &mut *state;
            pending.extract_if(.., |write| write.medium == medium).for_each(|write| safe.write(&write));
            if state.is_recorded {
                state.log.push(Entry::Flush(medium));
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

    pub fn events(&self) -> usize {
        self.state().events
    }

    /// As a reset leaves them: it takes no power from the media.
    pub fn now(&self) -> Media {
        self.state().now.clone()
    }

    /// As a power cut leaves them.
    pub fn after_cut(&self, rng: &mut Rng) -> Media {
        let state = self.state();
        let mut media = state.safe.clone();
        for (medium, offset, data) in survivors(&state.pending, rng) {
            media.put(medium, offset, data);
        }
        media
    }

    pub fn take_log(&self) -> Vec<Entry> {
        std::mem::take(&mut self.state().log)
    }
}

impl State {
    fn count(&mut self) -> Verdict {
        self.events += 1;
        if self.events >= self.cut_at {
            self.power = Power::Cut;
            return Verdict::Hold;
        }
        Verdict::Done
    }

    fn refusal(&self) -> Verdict {
        if self.power == Power::Cut { Verdict::Hold } else { Verdict::Refuse }
    }
}
