//! `twinboot slots`: the two slots, and which of them runs.

use std::io::{self, Write as _};

use clap::Args;
use serde_json::json;

use super::view::{SlotView, View};
use super::{CliError, Exit, Socket, status};
use crate::update::Slot;

/// Show the two slots, and which of them runs
#[derive(Debug, Args)]
pub(super) struct Slots {
    /// Print JSON: an array of two objects
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

impl Slots {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let status = status::fetch(&self.socket)?;
        let view = View::of(&status);
        let slots = [Slot::A, Slot::B].map(|slot| view.slot(slot));
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{:#}", slots.iter().map(as_json).collect::<serde_json::Value>())?;
        } else {
            let header = ["", "SLOT", "STATE", "VERSION", "DEVICE"].map(str::to_owned);
            let rows: Vec<[String; 5]> = std::iter::once(header).chain(slots.into_iter().map(row)).collect();
            out.write_all(columns(&rows).as_bytes())?;
        }
        Ok(Exit::Done)
    }
}

fn as_json(slot: &SlotView) -> serde_json::Value {
    json!({
        "slot": slot.slot,
        "running": slot.is_running,
        "version": slot.version,
        "state": slot.state,
        "device": slot.device,
    })
}

fn row(slot: SlotView) -> [String; 5] {
    let mark = if slot.is_running { "*" } else { "" }.to_owned();
    let known = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [mark, slot.slot.to_string(), known(slot.state), known(slot.version), known(slot.device)]
}

/// Each column as wide as its widest cell.
fn columns(rows: &[[String; 5]]) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let lines = rows.iter().map(|row| {
        let cells = row.iter().enumerate().map(|(column, cell)| format!("{cell:<0$}", width(column)));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    });
    lines.collect()
}
