//! `twinbootctl rollout pause`, `resume` and `delete`: a write each.

use clap::Args;
use serde_json::Value;

use super::super::screen::print_line;
use super::super::{CliError, Ctl, Exit, shown_by};
use super::others::tell_those_behind;
use super::picture::read;
use crate::rollout::Rollout;

/// Keep it from devices that the hub has not told of it
///
/// The hub tells all devices of an open ring within minutes, also those that
/// are off: these begin when they are back, unless an older rollout targets
/// them too. Only who comes to a ring later is kept from it, and no further
/// ring opens. The target condition is narrowed to the devices that have begun;
/// the rings stay in the labels.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Pause {
    /// Of the rollout
    name: String,
}

/// Go on after a pause
#[derive(Debug, Args)]
pub(super) struct Resume {
    /// Of the rollout
    name: String,
}

/// Delete a rollout
///
/// Devices that the hub has told of it go on, and all keep what they have. If
/// an older rollout is still there, the hub tells its devices of that again:
/// delete the older one first.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Delete {
    /// Of the rollout
    name: String,
}

impl Pause {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        let (configuration, rollout) = read(ctl, &self.name).await?;
        // Before all else: who pauses is in a hurry, and the hub may be busy.
        set_paused(ctl, configuration.clone(), rollout, true).await?;
        done(
            ctl,
            &self.name,
            "paused",
            "devices that the hub has told go on, those that are off when they are back, unless an older rollout \
             targets them too",
        )?;
        tell_those_behind(ctl, &configuration).await;
        Ok(Exit::Done)
    }
}

impl Resume {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        let (configuration, rollout) = read(ctl, &self.name).await?;
        let rollout = set_paused(ctl, configuration, rollout, false).await?;
        done(
            ctl,
            &self.name,
            "resumed",
            &format!("{} of {} rings are open", rollout.open, rollout.rings.len()),
        )?;
        Ok(Exit::Done)
    }
}

impl Delete {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        // Another tool's configuration is not ours to delete.
        let (configuration, _) = read(ctl, &self.name).await?;
        let deleted = ctl.service.delete_configuration(&self.name).await;
        shown_by(deleted, &format!("rollout status {}", self.name))?;
        done(ctl, &self.name, "deleted", "devices keep what they have")?;
        tell_those_behind(ctl, &configuration).await;
        Ok(Exit::Done)
    }
}

async fn set_paused(
    ctl: &Ctl,
    configuration: Value,
    rollout: Rollout,
    paused: bool,
) -> Result<Rollout, CliError> {
    let rollout = Rollout { paused, ..rollout };
    let written = ctl.service.update_configuration(&rollout.name, rollout.write_to(configuration)).await;
    shown_by(written, &format!("rollout status {}", rollout.name))?;
    Ok(rollout)
}

fn done(ctl: &Ctl, name: &str, event: &str, sentence: &str) -> Result<(), CliError> {
    if ctl.json {
        print_line(&serde_json::json!({"event": event, "rollout": name}).to_string())
    } else {
        print_line(&format!("rollout {name} {event}: {sentence}"))
    }
}
