//! The disk of a guest that somebody else runs and cuts: a request, a line of JSON, on stdin; an answer on stdout.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fastrand::Rng;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::disk::{Disk, Left, Media, Medium, Progress, Step};
use crate::fuse::{Device, Mounted};
use crate::judge::Update;
use crate::kept::Kept;
use crate::machine::Fault;
use crate::replay::read_data;
use crate::uboot::{Environment, Slot};

#[derive(clap::Args)]
pub struct Options {
    /// Where the files of the disk are to be seen
    #[arg(long, value_name = "DIR")]
    at: PathBuf,
    /// Files of a board as it leaves the factory, and what is where in them, as JSON
    #[arg(long, value_name = "JSON", value_parser = parse_layout)]
    layout: Layout,
}

/// All media are somewhere in these.
type Layout = Vec<FileLayout>;

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLayout {
    path: PathBuf,
    media: Vec<Place>,
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    medium: Medium,
    start_bytes: usize,
    size_bytes: usize,
}

fn parse_layout(text: &str) -> Result<Layout, serde_json::Error> {
    serde_json::from_str(text)
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    /// As the board left the factory.
    Factory,
    PowerOn,
    /// When these steps were made from here.
    CutAfter(Vec<Step>),
    /// Now.
    Cut,
    Progress,
    /// The guest is being killed: whoever waits for the disk comes free.
    Release,
    /// The guest is gone.
    Judge(Box<Case>),
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Done,
    Progress { is_cut: bool, progress: Progress },
    Verdict(Box<Verdict>),
}

/// What is to be judged.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// Of what survives.
    seed: u64,
    update_id: String,
    from: Slot,
    /// A file with what the slot `from` holds, and one with what the other is to hold.
    from_image: PathBuf,
    image: PathBuf,
    accepted: bool,
    fell_back: bool,
    ended: Option<String>,
}

/// What came of it.
#[derive(Default, Serialize)]
struct Verdict {
    fault: Option<Fault>,
    /// Of the sectors that were written and not flushed.
    left: Left,
    /// The slot that boots next.
    slot: Option<Slot>,
    is_trial: bool,
    /// The state, where the state file is of this update.
    phase: Option<&'static str>,
    is_installed: bool,
    proven_bytes: u64,
}

struct Guest<'options> {
    options: &'options Options,
    media: Media,
    powered: Option<(Arc<Disk>, Mounted)>,
    images: HashMap<PathBuf, Arc<[u8]>>,
    scratch: TempDir,
}

/// Until stdin ends.
pub fn serve(options: &Options) -> io::Result<()> {
    fs::create_dir_all(&options.at)?;
    let scratch = tempfile::Builder::new().prefix("twinboot-guest-").tempdir_in("/dev/shm")?;
    let media = factory(&options.layout)?;
    let mut guest = Guest { options, media, powered: None, images: HashMap::new(), scratch };
    for line in io::stdin().lock().lines() {
        let answer = guest.answer(serde_json::from_str(&line?)?)?;
        writeln!(io::stdout(), "{}", serde_json::to_string(&answer)?)?;
    }
    Ok(())
}

fn factory(layout: &Layout) -> io::Result<Media> {
    let mut media = Media(std::array::from_fn(|_| Vec::new()));
    for file in layout {
        let source = File::open(&file.path)?;
        for place in &file.media {
            let mut bytes = vec![0; place.size_bytes];
            source.read_exact_at(&mut bytes, place.start_bytes as u64)?;
            media.0[place.medium as usize] = bytes;
        }
    }
    Ok(media)
}

impl Guest<'_> {
    fn answer(&mut self, request: Request) -> io::Result<Answer> {
        match request {
            Request::Factory => self.media = factory(&self.options.layout)?,
            Request::PowerOn => self.power_on()?,
            Request::CutAfter(until) => self.disk()?.cut_after(until),
            Request::Cut => self.disk()?.cut(),
            Request::Progress => {
                let disk = self.disk()?;
                return Ok(Answer::Progress { is_cut: disk.is_cut(), progress: disk.progress() });
            }
            Request::Release => {
                self.disk()?.cut();
                self.powered.iter().for_each(|(_, mounted)| mounted.bury());
            }
            Request::Judge(case) => return Ok(Answer::Verdict(Box::new(self.judge(&case)?))),
        }
        Ok(Answer::Done)
    }

    fn disk(&self) -> io::Result<&Disk> {
        let disk = self.powered.as_ref().map(|(disk, _)| &**disk);
        disk.ok_or_else(|| io::Error::other("there is no power"))
    }

    fn power_on(&mut self) -> io::Result<()> {
        let mut devices = Vec::new();
        for file in &self.options.layout {
            let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let media = file.media.iter().map(|place| (place.start_bytes, place.medium)).collect();
            devices.push(Device { name, around: Some(File::open(&file.path)?), media });
        }
        let disk = Disk::new(std::mem::take(&mut self.media), Vec::new(), false);
        let mounted = Mounted::new(&disk, devices, &self.options.at)?;
        self.powered = Some((disk, mounted));
        Ok(())
    }

    /// Lets what is not flushed be lost or torn, and judges what is left.
    fn judge(&mut self, case: &Case) -> io::Result<Verdict> {
        let (from_image, image) = (self.image(&case.from_image)?, self.image(&case.image)?);
        let (disk, _) = self.powered.take().ok_or_else(|| io::Error::other("there is no power"))?;
        let left;
        (self.media, left) = disk.after_cut(&mut Rng::with_seed(case.seed));
        let update = Update {
            from: case.from,
            image: &image,
            accepted: case.accepted,
            fell_back: case.fell_back,
            ended: case.ended.as_deref(),
        };
        let mut verdict = Verdict { left, ..Verdict::default() };
        verdict.fault = self.examine(case, &update, &from_image, &mut verdict)?.err();
        Ok(verdict)
    }

    fn examine(
        &self,
        case: &Case,
        update: &Update<'_>,
        from_image: &[u8],
        verdict: &mut Verdict,
    ) -> io::Result<Result<(), Fault>> {
        let medium = self.media.of(Medium::Environment);
        let environment = Environment::load(medium);
        verdict.is_trial = environment.is_trial();
        let is_whole = |slot: Slot| {
            let image = if slot == case.from { from_image } else { update.image };
            self.media.of(slot.medium()).starts_with(image)
        };
        match update.boots(medium.to_owned(), is_whole) {
            Ok(slot) => verdict.slot = Some(slot),
            Err(fault) => return Ok(Err(fault)),
        }
        let kept = match read_data(self.scratch.path(), self.media.of(Medium::Data))? {
            Ok(kept) => kept,
            Err(fault) => return Ok(Err(fault)),
        };
        if kept.update_id().as_ref() != Some(&case.update_id) {
            // Until it is accepted, the file is of the update before.
            let fault =
                case.accepted.then(|| format!("{} was answered with 200 and is not known", case.update_id));
            return Ok(fault.map_or(Ok(()), Err));
        }
        verdict.phase = Some(kept.phase());
        verdict.is_installed = kept.is_installed();
        verdict.proven_bytes = kept.proven_bytes();
        Ok(self.agrees(case, update, &kept, &environment))
    }

    fn agrees(
        &self,
        case: &Case,
        update: &Update<'_>,
        kept: &Kept,
        environment: &Environment,
    ) -> Result<(), Fault> {
        update.agrees(kept, environment, self.media.of(case.from.other().medium()))?;
        match &case.ended {
            Some(status) if kept.status() != Some(status.as_str()) => {
                Err(format!("the twin says {status}, the state file {:?}", kept.outcome()))
            }
            _ => Ok(()),
        }
    }

    fn image(&mut self, path: &Path) -> io::Result<Arc<[u8]>> {
        if let Some(image) = self.images.get(path) {
            return Ok(Arc::clone(image));
        }
        let image: Arc<[u8]> = fs::read(path)?.into();
        self.images.insert(path.to_owned(), Arc::clone(&image));
        Ok(image)
    }
}
