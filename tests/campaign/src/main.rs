//! The power-cut campaign: README.md beside this tells what it does and what it found.
#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and all sizes are those of this test"
)]

mod attach;
#[path = "../../emulator/src/board/boot_script.rs"]
mod boot_script;
mod disk;
mod fuse;
mod guest;
mod judge;
mod kept;
mod live;
mod machine;
mod recording;
mod replay;
mod sandbox;
mod site;
mod story;
mod uboot;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Instant;

use clap::Parser;

use crate::recording::Recording;
use crate::replay::{Plan, Tally};
use crate::sandbox::Sandbox;
use crate::site::Site;
use crate::story::Story;

/// So many faults tell enough, where none is expected.
const SHOWN: usize = 5;

/// Cuts the power of machines that are being updated, and judges what is left
#[derive(Parser)]
enum Campaign {
    /// The built daemon on this machine's kernel
    Daemon(Options),
    /// The disk of a guest, for tests/lab
    Guest(guest::Options),
}

#[derive(clap::Args)]
struct Options {
    /// The twinboot binary
    #[arg(long, value_name = "PATH")]
    daemon: PathBuf,
    /// Where the recorded runs are kept, for `--state`
    #[arg(long, value_name = "DIR")]
    recorded: PathBuf,
    /// Result of `tests/lab/build-u-boot sandbox`, to judge a sample
    #[arg(long, value_name = "DIR")]
    sandbox: Option<PathBuf>,
    /// Power cuts of a running daemon
    #[arg(long, value_name = "N", default_value_t = 300)]
    cuts: usize,
    /// Crash states of recorded runs
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    states: usize,
    /// Makes another campaign
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Mount the file system of every N-th crash state
    #[arg(long, value_name = "N", default_value_t = 40)]
    mount_every: usize,
    /// Show every N-th crash state to U-Boot
    #[arg(long, value_name = "N", default_value_t = 200)]
    uboot_every: usize,
    /// Live this life alone
    #[arg(long, value_name = "N")]
    life: Option<usize>,
    /// Judge this crash state alone
    #[arg(long, value_name = "N")]
    state: Option<usize>,
    /// The daemon is one without syncs of this kind: succeed if that is found out
    #[arg(long, value_name = "KIND")]
    without: Option<String>,
}

impl Options {
    fn shown(&self) -> usize {
        if self.without.is_some() { 1 } else { SHOWN }
    }
}

fn main() -> ExitCode {
    let ended = match Campaign::parse() {
        Campaign::Daemon(options) => run(&options),
        Campaign::Guest(options) => guest::serve(&options).map(|()| true).map_err(|error| error.to_string()),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("campaign: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether it ended as it should.
fn run(options: &Options) -> Result<bool, String> {
    let started = Instant::now();
    let text = |error: std::io::Error| error.to_string();
    let site = Site::open(&options.daemon).map_err(text)?;
    let recordings = recordings(options, &site)?;
    let plan = Plan {
        states: options.states,
        seed: options.seed,
        mount_every: options.mount_every,
        uboot_every: options.uboot_every,
        only: options.state,
    };
    let scratch = site.directory.path();
    let sandbox =
        options.sandbox.as_ref().map(|build| Sandbox::new(build, scratch)).transpose().map_err(text)?;
    let tally = if options.life.is_none() {
        replay::judge(&site, &recordings, &plan, sandbox.as_ref()).map_err(text)?
    } else {
        Tally::default()
    };
    for (number, fault) in tally.faults.iter().take(options.shown()) {
        println!("fault in state {number}: {fault}");
    }
    let lived = live_all(options, &site, &recordings)?;
    let faults = tally.faults.len() + lived.faults;
    println!(
        "{} cuts in {} lives ({} downloads went on), {} crash states ({} mounted, {} by U-Boot itself), seed {}: \
         {faults} faults, {} s",
        lived.cuts,
        lived.lives,
        lived.resumed,
        tally.states,
        tally.mounted,
        tally.by_uboot,
        options.seed,
        started.elapsed().as_secs(),
    );
    Ok(match &options.without {
        None => faults == 0,
        Some(kind) => {
            let (states, lives) = (tally.faults.len(), lived.faults);
            println!("without the syncs of the {kind}: {states} bad states, {lives} bad lives");
            faults > 0
        }
    })
}

/// One run of each story; of a state that is judged again, the very run that it is of.
fn recordings(options: &Options, site: &Site) -> Result<Vec<Recording>, String> {
    let text = |error: std::io::Error| format!("{}: {error}", options.recorded.display());
    let mut recordings = Vec::new();
    for story in Story::ALL {
        recordings.push(if options.state.is_some() {
            Recording::load(&options.recorded, story).map_err(text)?
        } else {
            let recording = Recording { story, log: machine::record(site, story)? };
            recording.save(&options.recorded).map_err(text)?;
            recording
        });
    }
    Ok(recordings)
}

/// What came of all lives.
#[derive(Default)]
struct Lived {
    lives: usize,
    cuts: usize,
    resumed: usize,
    faults: usize,
}

/// Until there were cuts enough.
fn live_all(options: &Options, site: &Site, recordings: &[Recording]) -> Result<Lived, String> {
    let events =
        |story| recordings.iter().find(|recording| recording.story == story).map_or(1, Recording::events);
    let mut all = Lived::default();
    let mut numbers = options.life.map_or(0..usize::MAX, |only| only..only + 1);
    while (all.cuts < options.cuts || options.life.is_some()) && options.state.is_none() {
        let Some(number) = numbers.next() else { break };
        if options.without.is_some() && all.faults > 0 {
            // It was found.
            break;
        }
        let life = live::live(site, number, options.seed, events)?;
        if site.is_interrupted.load(Ordering::Relaxed) {
            return Err("interrupted".to_owned());
        }
        all.lives += 1;
        all.cuts += life.cuts;
        all.resumed += life.resumed;
        if let Some(fault) = life.fault {
            all.faults += 1;
            if all.faults <= options.shown() {
                println!(
                    "fault in life {number} ({}, cut at {:?}): {fault}",
                    life.story.name(),
                    life.moments
                );
            }
        }
    }
    Ok(all)
}
