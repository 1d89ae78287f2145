//! `twinbootctl rollout list`.

use clap::Args;
use serde_json::Value;
use twinboot::cli::paint::harmless;

use super::super::screen::{Tone, print_line, print_text, seconds, table};
use super::super::{CliError, Ctl, Exit, notice};
use super::picture::system_metric;
use crate::rollout::Rollout;

/// List the rollouts of this hub
#[derive(Debug, Args)]
pub(super) struct List {}

impl List {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        let configurations = ctl.service.configurations().await?;
        let ours: Vec<_> =
            configurations.iter().filter_map(|one| Some((one, Rollout::of(one).ok()?))).collect();
        let others = configurations.len() - ours.len();
        if ctl.json {
            ours.iter().try_for_each(|(configuration, _)| print_line(&configuration.to_string()))?;
        } else {
            let rows = ours.iter().map(|(configuration, rollout)| row(configuration, rollout));
            print_text(&table(
                ["NAME", "VERSION", "RINGS OPEN", "STATE", "TARGETED", "APPLIED", "CREATED"],
                rows,
            ))?;
        }
        if others > 0 {
            notice(&format!("{others} configurations of this hub are no rollouts of this tool"));
        }
        Ok(Exit::Done)
    }
}

fn row(configuration: &Value, rollout: &Rollout) -> ([String; 7], Tone) {
    let created = configuration.get("createdTimeUtc").and_then(Value::as_str).unwrap_or_default();
    let cells = [
        harmless(&rollout.name),
        harmless(&rollout.version),
        format!("{} of {}", rollout.open, rollout.rings.len()),
        if rollout.paused { "paused" } else { "active" }.to_owned(),
        system_metric(configuration, "targetedCount"),
        system_metric(configuration, "appliedCount"),
        seconds(created),
    ];
    (cells, if rollout.paused { Tone::Notable } else { Tone::Plain })
}
