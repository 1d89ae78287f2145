//! Which runs there are: failures one by one, by pairs, and at random.

use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use fastrand::Rng;

use crate::disk::Loss;
use crate::life::{self, Failure, Fault, Plan, Tally};
use crate::site::Site;
use crate::story::{STORIES, Story};
use crate::uboot::Scheme;

/// What has its turn, whatever chance says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InTurn {
    Nothing,
    /// Each failure alone.
    Singles,
    /// Also each pair of them.
    Pairs,
}

pub struct Campaign<'a> {
    pub in_turn: InTurn,
    /// Whether the first fault is enough.
    pub until_fault: bool,
    /// Random runs.
    pub runs: u64,
    /// This one alone.
    pub story: Option<&'a str>,
}

/// The plan that is asked for, if one is.
///
/// # Errors
/// What of it is not understood.
pub fn one(seed: Option<u64>, story: Option<&str>, fail: &[String]) -> Result<Option<Plan>, Fault> {
    if let Some(seed) = seed {
        return Ok(Some(random(seed)));
    }
    let Some(name) = story else { return Ok(None) };
    let story = Story::named(name).ok_or_else(|| {
        format!(
            "no story {name}: there are {}",
            STORIES.iter().map(|story| story.name).collect::<Vec<_>>().join(", ")
        )
    })?;
    if fail.is_empty() {
        return Ok(None);
    }
    let failures: Option<Vec<_>> = fail.iter().map(|text| failure(text)).collect();
    let failures = failures.ok_or("a failure is AFTER:LOSS, for example 17:all")?;
    Ok(Some(Plan { story, failures, seed: 1, is_stormy: false }))
}

fn failure(text: &str) -> Option<Failure> {
    let (after, loss) = text.split_once(':')?;
    let loss = Loss::ALL.into_iter().find(|other| other.name() == loss)?;
    Some(Failure { after: after.parse().ok()?, loss })
}

/// What shows it again.
pub fn name(plan: &Plan) -> String {
    if plan.is_stormy {
        return format!("--seed {}", plan.seed);
    }
    let failures =
        plan.failures.iter().map(|failure| format!(" --fail {}:{}", failure.after, failure.loss.name()));
    format!("--story {}{}", plan.story.name, failures.collect::<String>())
}

/// A run with an image beyond this, or with a large bundle, takes as long as two to six others.
const LARGE_BYTES: usize = 4 << 20;

/// Of those, one in so many is lived at random.
const LARGE_ONE_IN: u8 = 8;

/// Any story, any failures, any weather.
fn random(seed: u64) -> Plan {
    let mut dice = Rng::with_seed(seed);
    let is_large = |story: &Story| story.is_large_bundle() || story.image().content.len() > LARGE_BYTES;
    let story = loop {
        let story = &STORIES[dice.usize(..STORIES.len())];
        if !is_large(story) || dice.u8(..LARGE_ONE_IN) == 0 {
            break story;
        }
    };
    // Now and then, one after the other, each a little after the start was counted.
    let (count, after) = match dice.u8(..100) {
        // RAUC's script gives up what was not confirmed for three boots, and were it committed.
        _ if story.scheme == Scheme::Rauc => (dice.usize(1..3), 1..80),
        ..3 => (dice.usize(12..20), 6..12),
        _ => (dice.usize(1..5), 1..80),
    };
    let failures =
        (0..count).map(|_| Failure { after: dice.u64(after.clone()), loss: Loss::ALL[dice.usize(..5)] });
    Plan { story, failures: failures.collect(), seed, is_stormy: true }
}

/// What is run now, for whoever finds the process dead.
pub static NOW: Mutex<String> = Mutex::new(String::new());

/// One of several workers.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    pub worker: usize,
    pub workers: usize,
}

impl Share {
    fn has(self, number: u64) -> bool {
        number % self.workers as u64 == self.worker as u64
    }
}

struct Worker<'a> {
    site: &'a Arc<Site>,
    until_fault: bool,
    share: Share,
    runs: u64,
    faults: u64,
}

impl Worker<'_> {
    /// What was run until now was of another phase.
    fn enter(&mut self, phase: &str) {
        tell("runs", &(self.runs % 64).to_string());
        self.runs = 0;
        tell("phase", phase);
    }

    /// Failures at every durable operation of a story, and, with `pairs`, at every pair of them.
    fn fail_in_turn(&mut self, story: &'static Story, pairs: bool) -> Result<(), Fault> {
        let plan = |failures| Plan { story, failures, seed: 1, is_stormy: false };
        // What is without failures is each worker's, to know how far it goes.
        let Some(Tally { operations, .. }) = self.live(&plan(Vec::new()))? else { return Ok(()) };
        let share = self.share;
        if share.worker == 0 {
            tell("points", &format!("{} {operations}", story.name));
        }
        self.enter("singles");
        for after in (1..=operations).filter(|after| share.has(*after)) {
            for loss in Loss::ALL {
                self.live(&plan(vec![Failure { after, loss }]))?;
            }
        }
        if !pairs {
            return Ok(());
        }
        self.enter("pairs");
        for first in (1..=operations).filter(|first| share.has(*first)) {
            for second in 1.. {
                let loss = |number: u64| Loss::ALL[(number % 5) as usize];
                let failures = vec![
                    Failure { after: first, loss: loss(first / 2 + second) },
                    Failure { after: second, loss: loss(first + 2 * second) },
                ];
                // Beyond the end.
                if self.live(&plan(failures))?.is_some_and(|tally| tally.failures < 2) {
                    break;
                }
                if second > 4 * operations {
                    return Err("a story has no end".to_owned());
                }
            }
        }
        Ok(())
    }

    /// `Ok(None)`: a fault, which is told.
    fn live(&mut self, plan: &Plan) -> Result<Option<Tally>, Fault> {
        *NOW.lock().unwrap_or_else(PoisonError::into_inner) = name(plan);
        self.runs += 1;
        if self.runs.is_multiple_of(64) {
            tell("runs", "64");
        }
        match life::live(self.site, plan) {
            Ok(tally) => Ok(Some(tally)),
            Err(fault) => {
                self.faults += 1;
                tell("fault", &format!("{}: {fault}", name(plan)));
                if self.until_fault { Err("that is enough".to_owned()) } else { Ok(None) }
            }
        }
    }
}

/// A line for the process that waits for it.
fn tell(word: &str, text: &str) {
    println!("{word} {}", text.replace('\n', " "));
    let _ = std::io::stdout().flush();
}

/// The share of one of several workers.
///
/// # Errors
/// When there was a fault.
pub fn work(site: &Arc<Site>, campaign: &Campaign<'_>, share: Share) -> Result<(), Fault> {
    let mut all = Worker { site, until_fault: campaign.until_fault, share, runs: 0, faults: 0 };
    let is_asked = |story: &Story| campaign.story.is_none_or(|name| name == story.name);
    if campaign.in_turn != InTurn::Nothing {
        for story in STORIES.iter().filter(|story| is_asked(story)) {
            all.fail_in_turn(story, campaign.in_turn == InTurn::Pairs)?;
        }
    }
    all.enter("random");
    for plan in (0..campaign.runs).filter(|seed| share.has(*seed)).map(random) {
        if is_asked(plan.story) {
            all.live(&plan)?;
        }
    }
    tell("runs", &(all.runs % 64).to_string());
    if all.faults == 0 { Ok(()) } else { Err(format!("{} faults", all.faults)) }
}
