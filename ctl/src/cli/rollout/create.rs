//! `twinbootctl rollout create`.

use clap::Args;

use super::super::package::Package;
use super::super::screen::print_line;
use super::super::{CliError, Ctl, Exit, created, notice};
use super::others::tell_others;
use super::picture::{ask_count, tallies};
use crate::rollout::gate::Gate;
use crate::rollout::{Rollout, hangs_on_the_update};

/// The hub's limit.
const NAME_CHARS_MAX: usize = 128;

/// Create a rollout, and open it or its first ring
#[derive(Debug, Args)]
pub(super) struct Create {
    /// Its name from now on: a-z, 0-9, - and _
    #[arg(value_parser = name)]
    name: String,
    /// The devices, in IoT Hub's query language: of deviceId, tags and properties.reported, but for what the update
    /// itself changes there
    #[arg(long, value_name = "CONDITION", required_unless_present = "rings", conflicts_with = "rings")]
    target: Option<String>,
    /// The devices of one ring; give it once for each, the first one first. The last may be '*'
    #[arg(long, value_name = "CONDITION")]
    rings: Vec<String>,
    /// Stop when more than this share of any open ring has failed or was rolled back
    #[arg(long, value_name = "PERCENT", default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=100))]
    gate_failed_percent: u64,
    /// Open the next ring when this share of the last one is done
    #[arg(long, value_name = "PERCENT", default_value_t = 95, value_parser = clap::value_parser!(u64).range(1..=100))]
    gate_done_percent: u64,
    #[command(flatten)]
    package: Package,
}

impl Create {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        let wanted = self.package.wanted("fwPackageURI").await?;
        let Some(version) = wanted.version else {
            let why = "a rollout needs --version: by it devices are known that have it already";
            return Err(CliError::Usage(why.to_owned()));
        };
        let rings = self.target.map_or(self.rings, |target| vec![target]);
        if rings.iter().rev().skip(1).any(|ring| ring == "*") {
            return Err(CliError::Usage(
                "only the last ring may be '*': nobody is left for those behind".to_owned(),
            ));
        }
        if let Some(ring) = rings.iter().find(|ring| hangs_on_the_update(ring)) {
            let why = format!("devices leave this ring, or come to it, by the update itself: {ring}");
            return Err(CliError::Usage(why));
        }
        let rollout = Rollout {
            name: self.name,
            version,
            update_id: wanted.id,
            rings,
            open: 1,
            gate: Gate { failed_percent: self.gate_failed_percent, done_percent: self.gate_done_percent },
            paused: false,
        };
        let counts = look_first(ctl, &rollout).await?;
        let configuration = rollout.configuration(&wanted.payload);
        tell_others(ctl, &configuration).await?;
        let find = async || {
            let there = ctl.service.configuration(&rollout.name).await?;
            // It may be open wider already, if somebody else goes on with it.
            let is_ours =
                |there: Rollout| there.update_id == rollout.update_id && there.rings == rollout.rings;
            Ok(Rollout::of(&there).is_ok_and(is_ours).then_some(()))
        };
        let written = ctl.service.create_configuration(&rollout.name, configuration).await;
        created(written, find, &format!("rollout status {}", rollout.name)).await?;
        if ctl.json {
            let event = serde_json::json!({"event": "created", "rollout": rollout.name, "updateId": rollout.update_id});
            print_line(&event.to_string())?;
        } else {
            let (name, package) = (&rollout.name, wanted.name);
            print_line(&format!("rollout {name}: {package}; ring 1 of {} is open", rollout.rings.len()))?;
            print_line(&format!("devices: {}", counts.join(", ")))?;
        }
        Ok(Exit::Done)
    }
}

/// Before it acts: a condition that the hub does not understand is refused, and so is an update id that devices know as
/// another version; told is a condition that nobody meets, and devices that failed this very update. Gives the number of
/// devices of each ring.
async fn look_first(ctl: &Ctl, rollout: &Rollout) -> Result<Vec<String>, CliError> {
    if let Some(conditions) = rollout.ring_conditions() {
        ctl.service.test_condition(&conditions).await?;
    }
    if let others @ 1.. = ask_count(ctl, &rollout.other_version_query()).await? {
        return Err(CliError::Usage(format!(
            "{others} devices have completed update `{}` with another version than {}, and would install nothing: give \
             another --update-id",
            rollout.update_id, rollout.version
        )));
    }
    let all = Rollout { open: rollout.rings.len(), ..rollout.clone() };
    let mut counts = Vec::new();
    for ((ring, condition), tally) in (1..).zip(&rollout.rings).zip(tallies(ctl, &all).await?) {
        if tally.devices == 0 {
            notice(&format!("no device meets the condition of ring {ring} now: {condition}"));
        }
        if let failed @ 1.. = tally.failed() {
            notice(&format!(
                "{failed} devices of ring {ring} failed this very update, and do not try it again by themselves: \
                 give another --update-id"
            ));
        }
        counts.push(format!("ring {ring} has {}", tally.devices));
    }
    Ok(counts)
}

fn name(text: &str) -> Result<String, String> {
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
    if (1..=NAME_CHARS_MAX).contains(&text.len()) && text.chars().all(legal) {
        Ok(text.to_owned())
    } else {
        Err(format!("1 to {NAME_CHARS_MAX} of a-z, 0-9, - and _"))
    }
}
