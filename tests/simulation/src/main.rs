//! The whole agent on a simulated disk, clock, network, hub and boot loader, in one process. README.md tells how.

#![expect(clippy::disallowed_methods, reason = "what is durable here is for the simulated disk to say")]

#[path = "../../emulator/src/board/boot_script.rs"]
mod boot_script;
mod cloud;
mod disk;
mod judge;
#[path = "../../campaign/src/kept.rs"]
#[expect(dead_code, reason = "the campaign needs more of it")]
mod kept;
mod life;
mod plans;
mod scheduler;
mod seam;
mod site;
mod story;
#[path = "../../campaign/src/uboot.rs"]
mod uboot;
mod workers;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;

use life::{Fault, Plan};
use plans::{Campaign, InTurn, Share};
use site::Site;
use story::Images;

/// Lives an update through every failure of its power
#[derive(Debug, Parser)]
struct Options {
    /// So many random runs
    #[arg(long, default_value_t = 100_000)]
    runs: u64,
    /// Failures one by one, and not by pairs
    #[arg(long)]
    singles: bool,
    /// Random runs alone
    #[arg(long, conflicts_with = "singles")]
    random: bool,
    /// The first fault is enough
    #[arg(long)]
    until_fault: bool,
    /// This random run alone, with the daemon's log
    #[arg(long)]
    seed: Option<u64>,
    /// This story alone
    #[arg(long)]
    story: Option<String>,
    /// Fails in this story after so many durable operations, and then again: AFTER:LOSS, where what is lost of what was
    /// not synced is all, nothing, sectors, blocks, or nothing since the daemon alone was killed
    #[arg(long, value_name = "AFTER:LOSS", requires = "story")]
    fail: Vec<String>,
    /// Processes
    #[arg(long, overrides_with = "workers", default_value_t = std::thread::available_parallelism().map_or(1, usize::from))]
    workers: usize,
    /// Only writes this image, or NAME.kernel, to standard output, for `data/make`
    #[arg(long, hide = true)]
    image: Option<String>,
    /// This worker of them
    #[arg(long, hide = true)]
    worker: Option<usize>,
}

impl Options {
    fn campaign(&self) -> Campaign<'_> {
        let &Self { singles, random, until_fault, runs, .. } = self;
        let in_turn = match (random, singles) {
            (true, _) => InTurn::Nothing,
            (false, true) => InTurn::Singles,
            (false, false) => InTurn::Pairs,
        };
        Campaign { in_turn, until_fault, runs, story: self.story.as_deref() }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(name) = &options.image {
        return write_image(name);
    }
    let done = match plans::one(options.seed, options.story.as_deref(), &options.fail) {
        Err(why) => Err(why),
        Ok(Some(plan)) => show(&plan),
        Ok(None) => match options.worker {
            Some(worker) => {
                // Slower without.
                let _ = workers::take_processor(worker);
                let share = Share { worker, workers: options.workers };
                simulated(|site| plans::work(site, &options.campaign(), share))
            }
            None => workers::run(options.workers),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            eprintln!("{fault}");
            ExitCode::FAILURE
        }
    }
}

fn write_image(name: &str) -> ExitCode {
    let image = |name| Images::all().named(name);
    let bytes = match name.strip_suffix(".kernel") {
        Some(name) => image(name).map(|image| &image.kernel),
        None => image(name).map(|image| &image.content),
    };
    match bytes.map(|bytes| std::io::stdout().write_all(bytes)) {
        Some(Ok(())) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// One run, with the daemon's log.
fn show(plan: &Plan) -> Result<(), Fault> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    simulated(|site| {
        let tally = life::live(site, plan)?;
        println!("{}: {tally:?}", plans::name(plan));
        Ok(())
    })
}

/// From here on, time, threads and files of this process are the simulation's.
fn simulated(work: impl FnOnce(&Arc<Site>) -> Result<(), Fault>) -> Result<(), Fault> {
    let site = Site::new().map_err(|error| format!("no room for a machine: {error}"))?;
    disk::set_root(&site.disk());
    // Later than any deadline that was set by the real clock.
    scheduler::start(Duration::from_secs(1 << 32));
    work(&Arc::new(site))
}
