//! Cuts of a running daemon: each life is one update with one to three power cuts, and one more at its end.

use fastrand::Rng;
use twinboot::update::Outcome;

use crate::disk::{Disk, Media, Medium, Step};
use crate::machine::{End, Fault, Machine};
use crate::replay::read_data;
use crate::site::Site;
use crate::story::Story;
use crate::uboot::Environment;

/// What came of one life.
pub struct Life {
    pub story: Story,
    /// In the middle of the update; the one at its end is not counted.
    pub cuts: usize,
    /// Each as the number of the write or flush that it came at, counted from when the power came.
    pub moments: Vec<usize>,
    /// Downloads that went on after a cut.
    pub resumed: usize,
    pub fault: Option<Fault>,
}

/// Lives life number `number`. `events` says how many writes and flushes a whole run of a story has.
pub fn live(site: &Site, number: usize, seed: u64, events: impl Fn(Story) -> usize) -> Result<Life, Fault> {
    let mut rng = Rng::with_seed(seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
    let story = Story::ALL[number % Story::ALL.len()];
    let planned = [1, 1, 2, 3][rng.usize(0..4)];
    let mut machine = Machine::new(site, story, &format!("life-{number}"))
        .map_err(|error| format!("cannot make life {number}: {error}"))?;
    let mut life = Life { story, cuts: 0, moments: Vec::new(), resumed: 0, fault: None };
    let mut media = site.factory(story);
    loop {
        // After the first cut, less is left to do.
        let within = if life.cuts == 0 { events(story) } else { events(story) * 2 / 3 };
        let until = if life.cuts < planned { vec![Step::change(rng.usize(1..=within))] } else { Vec::new() };
        let disk = Disk::new(media, until, false);
        let end = machine.power(&disk, &mut rng);
        (media, _) = disk.after_cut(&mut rng);
        match end {
            Ok(End::Cut) => {
                life.cuts += 1;
                life.moments.push(disk.progress().all_changes);
            }
            Ok(End::Over) => {
                life.fault = conclude(site, &machine, &media).err();
                break;
            }
            Err(fault) => {
                life.fault = Some(fault);
                break;
            }
        }
    }
    life.fault = life.fault.map(|fault| format!("{fault}\nthe daemon's last words:\n{}", machine.log_tail()));
    life.resumed = machine.resumed;
    machine.remove().map_err(|error| format!("cannot remove life {number}: {error}"))?;
    Ok(life)
}

/// What the twin says is true, and stays true without power.
fn conclude(site: &Site, machine: &Machine<'_>, media: &Media) -> Result<(), Fault> {
    let (twin, story) = (&machine.twin, machine.story);
    let environment = Environment::load(media.of(Medium::Environment));
    let (slot, gave_up) = (environment.slot(), machine.fallbacks > 0);
    let status = if gave_up { "rolledBack" } else { story.ends() };
    let wrong = |what: &str| Err(format!("{what}: {twin}; the environment has {environment}"));
    if twin["firmwareStatus"] != status {
        return wrong(&format!("not {status} ({} boots, given up: {gave_up})", machine.resets));
    }
    if environment.current.is_none() || environment.is_trial() {
        return wrong("no slot is committed");
    }
    if twin["firmware"]["slots"]["booted"] != slot.letter() {
        return wrong(&format!("slot {} boots", slot.letter()));
    }
    let content = site.content(story, media.of(slot.medium()));
    if content.is_none_or(|image| twin["firmware"]["currentFwVersion"] != image.version) {
        return wrong("another content boots");
    }
    let reason = twin["firmware"]["error"]["code"].as_str();
    let is_true = match reason {
        None => status == "completed",
        Some("BootFailed") => gave_up,
        Some("HealthCheckFailed") => story == Story::Sick,
        Some(_) => false,
    };
    if !is_true {
        return wrong("the reason is not true");
    }
    let kept =
        read_data(site.directory.path(), media.of(Medium::Data)).map_err(|error| error.to_string())??;
    match kept.outcome() {
        Some(Outcome::Succeeded) if status == "completed" => Ok(()),
        Some(Outcome::RolledBack(_)) if status == "rolledBack" => Ok(()),
        other => wrong(&format!("the state file says {other:?}")),
    }
}
