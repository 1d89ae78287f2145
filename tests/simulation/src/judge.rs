//! What must hold, at every start and in the end.

use std::fs;

use serde_json::{Map, Value, json};
use twinboot::update::step::INSTALL_ATTEMPTS_MAX;
use twinboot::update::{Outcome, Record, State};

use crate::cloud::Cloud;
use crate::disk;
use crate::kept::Kept;
use crate::life::{Fault, Tally};
use crate::site::Site;
use crate::story::{Act, Before, Story};
use crate::uboot::{COPY_BYTES, Environment, Scheme, Slot};

/// More than a trial has boots.
const RESETS: usize = 6;

/// Of an image that was rolled back here before this story.
const DENIED: &str = "4242424242424242424242424242424242424242424242424242424242424242";

/// The state file that another version of the daemon left.
pub fn state_before(before: Before) -> Option<Vec<u8>> {
    let schema = match before {
        Before::New | Before::EnvironmentDamaged => return None,
        Before::NewerState => 2,
        Before::OlderState => 1,
    };
    let denied = json!([{ "sourceDigest": DENIED, "failure": { "code": "BootFailed", "message": "m" } }]);
    let mut content = json!({ "state": { "state": "idle", "last": null }, "denied": denied });
    if before == Before::NewerState {
        content["state"] = json!({ "state": "somethingNew" });
    }
    let content = content.to_string();
    let checksum = crc32fast::hash(content.as_bytes());
    Some(format!("twinboot-state {schema} {checksum:08x} {}\n{content}\n", content.len()).into_bytes())
}

/// At a start, before anything runs.
///
/// # Errors
/// What must not be.
pub fn judge(site: &Site, story: &Story, is_accepted: bool) -> Result<(), Fault> {
    boots_verified(site, story)?;
    let Some(kept) = read_kept(site)? else { return Ok(()) };
    let environment = environment(site);
    match contradiction(site, story, &kept, is_accepted) {
        Some(fault) => Err(format!("in state {}, {fault}; the environment has {environment}", kept.phase())),
        None => Ok(()),
    }
}

fn environment(site: &Site) -> Environment {
    disk::change(|disk| Environment::load(disk.safe(&site.environment())))
}

fn boots_verified(site: &Site, story: &Story) -> Result<(), Fault> {
    let is_verified = [Slot::A, Slot::B].map(|slot| {
        let system = site.system(slot);
        system.is_some_and(|system| story.check.is_right() || system.version != story.image().version)
    });
    boots(site, is_verified, "holds no verified image")
}

/// One of these slots boots, at this start and at all that follow where no daemon runs.
fn boots(site: &Site, may_boot: [bool; 2], else_it: &str) -> Result<(), Fault> {
    disk::change(|disk| {
        let mut medium = disk.safe(&site.environment()).to_vec();
        for reset in 1..=RESETS {
            let environment = Environment::load(&medium);
            if environment.current.is_none() {
                return Err("both copies of the environment are bad".to_owned());
            }
            let start = environment.start();
            if !may_boot[start.slot as usize] {
                let slot = start.slot.letter();
                return Err(format!("slot {slot} boots at reset {reset}, and {else_it}"));
            }
            for (offset, copy) in start.saves {
                medium[offset..offset + COPY_BYTES].copy_from_slice(&copy);
            }
        }
        Ok(())
    })
}

/// `None`: a state of another schema, which is not read yet.
fn read_kept(site: &Site) -> Result<Option<Kept>, Fault> {
    match Kept::read(&site.state()) {
        Err(why) if why.contains("schema 2") => Ok(None),
        kept => kept.map(Some),
    }
}

/// The daemon has nothing to do.
pub fn is_idle(site: &Site) -> bool {
    matches!(read_kept(site), Ok(Some(kept)) if matches!(kept.state(), State::Idle { .. }))
}

/// Whether the twin's status is how the last update ended, and none goes on.
pub fn is_told(site: &Site, status: &str) -> bool {
    matches!(read_kept(site), Ok(Some(kept)) if kept.status() == Some(status))
}

/// What runs is on trial: the environment says so, or, where that is RAUC's, the state.
pub fn is_trial(site: &Site) -> bool {
    let is_known =
        || matches!(read_kept(site), Ok(Some(kept)) if matches!(kept.state(), State::Trial { .. }));
    environment(site).is_trial() || is_known()
}

/// Tells the cloud what this daemon need not fetch.
pub fn note_kept(site: &Site, cloud: &mut Cloud) -> Result<(), Fault> {
    if let Some(kept) = read_kept(site)? {
        cloud.proven_bytes = kept.proven_bytes();
        cloud.is_installed = !matches!(kept.state(), State::Idle { .. }) && kept.is_installed();
    }
    cloud.missing_bytes = None;
    if cloud.story.is_large_bundle() {
        let target =
            fs::read(site.slot(cloud.story.target())).map_err(|error| format!("no target: {error}"))?;
        cloud.missing_bytes = cloud.story.missing_bytes(&target);
    }
    Ok(())
}

/// Whether the target holds the whole image for certain. Comparing takes time: for where it is needed.
fn holds_image(site: &Site, story: &Story) -> bool {
    site.system(story.target()).is_some_and(|system| system.name == story.image().name)
}

fn contradiction(site: &Site, story: &Story, kept: &Kept, is_accepted: bool) -> Option<&'static str> {
    let environment = environment(site);
    let (state, is_armed, first) = (kept.state(), environment.is_trial(), environment.slot());
    let image = story.image();
    let proven = usize::try_from(kept.image_bytes()).unwrap_or(usize::MAX);
    let target = site.slot(story.target());
    let holds_proven = disk::change(|disk| disk.safe(&target).get(..proven) == image.content.get(..proven));
    let is_committed = |slot| !is_armed && first == slot;
    let is_over = matches!(state, State::Idle { .. });
    if is_accepted && !kept.knows_update() {
        return Some("an update that was answered with 200 is not known");
    }
    if is_armed && matches!(state, State::Idle { .. } | State::Asking { .. } | State::Installing { .. }) {
        return Some("a trial is armed that the daemon does not know of");
    }
    if matches!(state, State::Asking { .. } | State::Installing { .. }) && first != story.origin {
        return Some("the target is the first to boot, and not installed");
    }
    if !is_over && kept.is_installed() && !holds_image(site, story) {
        return Some("the target does not hold the image");
    }
    if !holds_proven {
        return Some("the target does not hold what the checkpoint says");
    }
    if let State::Asking { attempt, .. } | State::Installing { attempt, .. } = state
        && attempt > INSTALL_ATTEMPTS_MAX
    {
        return Some("more was attempted than may be");
    }
    match kept.outcome() {
        Some(Outcome::Succeeded) if !is_committed(story.target()) => Some("the new slot is not committed"),
        Some(Outcome::RolledBack(_) | Outcome::Failed(_)) if !is_committed(story.origin) => {
            Some("the old slot is not in force")
        }
        _ => None,
    }
}

/// What a daemon, which ran in this slot, made of the environment, write by write.
///
/// # Errors
/// What must not be.
pub fn judge_decisions(site: &Site, story: &Story, running: Slot) -> Result<(), Fault> {
    let history: Vec<_> =
        disk::change(|disk| disk.history().iter().map(|medium| Environment::load(medium)).collect());
    for (before, after) in history.iter().zip(history.iter().skip(1)) {
        let told = || format!("from {before} to {after}, in slot {}", running.letter());
        // By RAUC's variables, to put the target first is to arm it.
        let is_armed = |environment: &Environment| match environment.scheme() {
            Scheme::Bootcount | Scheme::Mender => environment.is_trial(),
            Scheme::Rauc => running == story.origin && environment.slot() == story.target(),
        };
        if !is_armed(after) {
            continue;
        }
        if is_armed(before) {
            return Err(format!("a trial is armed over another: {}", told()));
        }
        if after.slot() == running {
            return Err(format!("what runs is armed: {}", told()));
        }
        if !story.check.is_right() || !holds_image(site, story) {
            return Err(format!("what is not verified is armed: {}", told()));
        }
    }
    Ok(())
}

/// After everything.
///
/// # Errors
/// What must not be.
pub fn judge_end(
    site: &Site,
    story: &Story,
    reported: Option<&Map<String, Value>>,
    tally: &Tally,
) -> Result<(), Fault> {
    let none = Map::new();
    let reported = reported.unwrap_or(&none);
    let firmware = &reported["firmware"];
    let environment = environment(site);
    let status = reported["firmwareStatus"].as_str().unwrap_or_default();
    let code = &firmware["error"]["code"];
    if !story.may_end(status, code, tally) {
        let wanted = story.code.map(|code| format!(", {code}")).unwrap_or_default();
        return Err(format!("the twin ends with {status} instead of {}{wanted}: {firmware}", story.ends));
    }
    let runs = if status == "completed" { story.target() } else { story.origin };
    if environment.is_trial() || environment.slot() != runs {
        return Err(format!("the twin says {status}, the environment has {environment}"));
    }
    if status != "completed" {
        boots(site, [Slot::A, Slot::B].map(|slot| slot == runs), "the update is over")?;
    }
    let version = site.system(runs).map(|image| image.version);
    if firmware["slots"]["booted"] != runs.letter() || firmware["currentFwVersion"] != json!(version) {
        return Err(format!("slot {} of {version:?} runs, and the twin says {firmware}", runs.letter()));
    }
    let Record { denied, keys, .. } = read_kept(site)?.and_then(|kept| kept.record).unwrap_or_default();
    let is_denied = |digest: &str| denied.iter().any(|denied| denied.source_digest.to_string() == digest);
    let serial = story.image().key_serial().filter(|_| status == "completed");
    if keys.as_ref().map(|list| list.serial) != serial {
        return Err(format!("the list of keys {serial:?} should be in force, and {keys:?} is"));
    }
    if state_before(story.before).is_some() && !is_denied(DENIED) {
        return Err("an image that was rolled back before is not known any more".to_owned());
    }
    if status == "rolledBack" && story.act != Act::RollBack && !is_denied(&story.image().digest) {
        return Err("the image that was rolled back is not known".to_owned());
    }
    if story.before == Before::NewerState
        && fs::read(site.state().join("state.damaged")).ok() != state_before(story.before)
    {
        return Err("the state of the newer version is not kept aside".to_owned());
    }
    let mark = fs::read_dir(site.state().join("trial")).into_iter().flatten().flatten();
    if mark.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("reboot-")) {
        return Err("systemd may still reboot what is committed".to_owned());
    }
    Ok(())
}
