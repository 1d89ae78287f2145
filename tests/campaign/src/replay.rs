//! Crash states of recorded runs: at every prefix of the log, what a power cut could leave of it.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;

use fastrand::Rng;

use crate::disk::{Entry, Media, Medium, Note, Piece, Write, survivors};
use crate::judge::Update;
use crate::kept::Kept;
use crate::machine::Fault;
use crate::recording::Recording;
use crate::sandbox::Sandbox;
use crate::site::Site;
use crate::story::Story;
use crate::uboot::Environment;

/// How many states, and what is looked at beyond what costs nothing.
pub struct Plan {
    pub states: usize,
    pub seed: u64,
    /// Of so many states the file system is mounted, and the state file read.
    pub mount_every: usize,
    /// So many are shown to U-Boot itself.
    pub uboot_every: usize,
    /// This state alone.
    pub only: Option<usize>,
}

/// What came of it.
#[derive(Default)]
pub struct Tally {
    pub states: usize,
    pub mounted: usize,
    pub by_uboot: usize,
    pub faults: Vec<(usize, Fault)>,
}

/// What is certain at a point of the log.
struct Point<'run> {
    site: &'run Site,
    story: Story,
    safe: Media,
    pending: Vec<Write>,
    accepted: bool,
    fell_back: bool,
    ended: Option<String>,
    /// Whether what is certain of each slot is a whole image.
    is_whole: [Option<bool>; 2],
}

/// A state's number is that of its point in all logs, times this, and that of the throw of dice that made it.
const THROWS: usize = 1_000_000;

/// Judges different crash states of all recordings, spread over every point at which something is not flushed. Where
/// everything is, there is one.
pub fn judge(
    site: &Site,
    recordings: &[Recording],
    plan: &Plan,
    sandbox: Option<&Sandbox>,
) -> io::Result<Tally> {
    let points = recordings.iter().map(|recording| unsettled(&recording.log)).sum::<usize>().max(1);
    // Some points have few different states; the next ones make up for them, but for the last.
    let each = (plan.states + plan.states / 20).div_ceil(points);
    let mut tally = Tally::default();
    let (mut first, mut due) = (0, 0);
    for recording in recordings {
        let mut point = Point::new(site, recording.story);
        for entry in recording.log.iter().map(Some).chain([None]) {
            if !point.pending.is_empty() {
                due += each;
            }
            point.judge(first, each.max(due.saturating_sub(tally.states)), plan, sandbox, &mut tally)?;
            first += THROWS;
            if let Some(entry) = entry {
                point.pass(entry);
            }
        }
    }
    Ok(tally)
}

/// At how many points something is not flushed.
fn unsettled(log: &[Entry]) -> usize {
    let mut pending: Vec<Medium> = Vec::new();
    let is_unsettled = |entry: &&Entry| {
        match entry {
            Entry::Write(write) => pending.push(write.medium),
            Entry::Flush(medium) => pending.retain(|other| other != medium),
            Entry::Note(_) => {}
        }
        !pending.is_empty()
    };
    log.iter().filter(is_unsettled).count()
}

impl<'run> Point<'run> {
    fn new(site: &'run Site, story: Story) -> Self {
        Self {
            site,
            story,
            safe: site.factory(story),
            pending: Vec::new(),
            accepted: false,
            fell_back: false,
            ended: None,
            is_whole: [None; 2],
        }
    }

    fn pass(&mut self, entry: &Entry) {
        match entry {
            Entry::Write(write) => self.pending.push(write.clone()),
            Entry::Flush(medium) => {
                let Self { safe, pending, .. } = self;
                pending.extract_if(.., |write| write.medium == *medium).for_each(|write| safe.write(&write));
                self.is_whole = [None; 2];
            }
            Entry::Note(Note::Accepted) => self.accepted = true,
            Entry::Note(Note::FellBack) => self.fell_back = true,
            Entry::Note(Note::Ended(status)) => self.ended = Some(status.clone()),
        }
    }

    /// So many (`count`) different states of this point, where there are so many.
    fn judge(
        &mut self,
        first: usize,
        count: usize,
        plan: &Plan,
        sandbox: Option<&Sandbox>,
        tally: &mut Tally,
    ) -> io::Result<()> {
        let pending = self.pending.clone();
        let mut seen = HashSet::new();
        for number in first..first + 4 * count {
            if plan.only.is_some_and(|only| only != number) {
                continue;
            }
            if self.site.is_interrupted.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let mut rng = Rng::with_seed(plan.seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
            let pieces = survivors(&pending, &mut rng);
            let places = pieces.iter().map(|(medium, offset, data)| (*medium as u8, *offset, data.len()));
            if !seen.insert(places.collect::<Vec<_>>()) {
                continue;
            }
            if let Err(fault) = self.judge_state(&pieces, plan, sandbox, tally)? {
                tally.faults.push((number, format!("{}: {fault}", self.story.name())));
            }
            if pending.is_empty() || seen.len() == count {
                break;
            }
        }
        Ok(())
    }

    fn judge_state(
        &mut self,
        pieces: &[Piece<'_>],
        plan: &Plan,
        sandbox: Option<&Sandbox>,
        tally: &mut Tally,
    ) -> io::Result<Result<(), Fault>> {
        let number = tally.states;
        tally.states += 1;
        let mut judged = self.boots(pieces);
        if judged.is_ok() && (number.is_multiple_of(plan.mount_every) || plan.only.is_some()) {
            tally.mounted += 1;
            judged = self.agrees(pieces)?;
        }
        if let Some(sandbox) = sandbox
            && judged.is_ok()
            && number.is_multiple_of(plan.uboot_every)
        {
            tally.by_uboot += 1;
            judged = sandbox.agrees(&self.medium(Medium::Environment, pieces))?;
        }
        Ok(judged)
    }

    /// What a medium holds in this state.
    fn medium(&self, medium: Medium, pieces: &[Piece<'_>]) -> Vec<u8> {
        let mut bytes = self.safe.of(medium).to_vec();
        for (_, offset, data) in pieces.iter().filter(|piece| piece.0 == medium) {
            bytes[*offset..offset + data.len()].copy_from_slice(data);
        }
        bytes
    }

    fn update(&self) -> Update<'_> {
        Update {
            from: self.story.origin(),
            image: &self.site.image(self.story).content,
            accepted: self.accepted,
            fell_back: self.fell_back,
            ended: self.ended.as_deref(),
        }
    }

    fn boots(&mut self, pieces: &[Piece<'_>]) -> Result<(), Fault> {
        let medium = self.medium(Medium::Environment, pieces);
        let mut known = self.is_whole;
        let judged = self.update().boots(medium, |slot| {
            if pieces.iter().any(|piece| piece.0 == slot.medium()) {
                return self.site.content(self.story, &self.medium(slot.medium(), pieces)).is_some();
            }
            let look = || self.site.content(self.story, self.safe.of(slot.medium())).is_some();
            *known[slot as usize].get_or_insert_with(look)
        });
        self.is_whole = known;
        judged.map(|_| ())
    }

    /// State file, environment and slot do not contradict each other.
    fn agrees(&mut self, pieces: &[Piece<'_>]) -> io::Result<Result<(), Fault>> {
        let data = self.medium(Medium::Data, pieces);
        let kept = match read_data(self.site.directory.path(), &data)? {
            Ok(kept) => kept,
            Err(fault) => return Ok(Err(fault)),
        };
        let environment = Environment::load(&self.medium(Medium::Environment, pieces));
        let target = self.medium(self.story.target().medium(), pieces);
        Ok(self.update().agrees(&kept, &environment, &target))
    }
}

/// Mounts a file system as after a power cut, and reads the state directory.
pub fn read_data(scratch: &Path, data: &[u8]) -> io::Result<Result<Kept, Fault>> {
    let (file, at): (PathBuf, PathBuf) = (scratch.join("crashed.img"), scratch.join("crashed"));
    fs::write(&file, data)?;
    fs::create_dir_all(&at)?;
    let mounted =
        Command::new("mount").args(["-t", "ext4", "-o", "loop,noatime"]).arg(&file).arg(&at).output()?;
    if !mounted.status.success() {
        return Ok(Err(format!("data cannot be mounted: {}", String::from_utf8_lossy(&mounted.stderr))));
    }
    let kept = Kept::read(&at.join("twinboot"));
    let unmounted = Command::new("umount").arg(&at).status()?;
    if !unmounted.success() {
        return Err(io::Error::other(format!("umount ended with {unmounted}")));
    }
    Ok(kept)
}
