//! `twinbootctl rollout pause`, `resume` and `delete`: a write each.

use clap::Args;

use super::super::screen::print_line;
use super::super::{CliError, Ctl, Exit};
use super::picture::read;
use crate::rollout::Rollout;

/// Hold back the devices that have not begun
///
/// The target condition is set to one that no device meets; the rings stay
/// in the labels. Devices that have begun go on.
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
/// Devices that have begun go on, and all keep what they have.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Delete {
    /// Of the rollout
    name: String,
}

impl Pause {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        set_paused(ctl, &self.name, true).await?;
        done(ctl, &self.name, "paused", "the hub targets no device any more; those that have begun go on")
    }
}

impl Resume {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        let rollout = set_paused(ctl, &self.name, false).await?;
        done(
            ctl,
            &self.name,
            "resumed",
            &format!("{} of {} rings are open", rollout.open, rollout.rings.len()),
        )
    }
}

impl Delete {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        // Another tool's configuration is not ours to delete.
        read(ctl, &self.name).await?;
        ctl.service.delete_configuration(&self.name).await?;
        done(ctl, &self.name, "deleted", "devices keep what they have")
    }
}

async fn set_paused(ctl: &Ctl, name: &str, paused: bool) -> Result<Rollout, CliError> {
    let (configuration, rollout) = read(ctl, name).await?;
    let rollout = Rollout { paused, ..rollout };
    ctl.service.update_configuration(name, rollout.write_to(configuration)).await?;
    Ok(rollout)
}

fn done(ctl: &Ctl, name: &str, event: &str, sentence: &str) -> Result<Exit, CliError> {
    if ctl.json {
        print_line(&serde_json::json!({"event": event, "rollout": name}).to_string())?;
    } else {
        print_line(&format!("rollout {name} {event}: {sentence}"))?;
    }
    Ok(Exit::Done)
}
