//! `twinboot status`: what the device does, and how the last update ended.

use std::io::{self, IsTerminal as _, Write};

use clap::Args;

use super::paint::{Paint, harmless};
use super::progress::bar;
use super::view::{SlotView, Stage, View};
use super::{CliError, Exit, Socket};
use crate::control::{Answer, Client, ClientError, Command, Status};
use crate::update::Slot;

/// Show what the device does, and how the last update ended
///
/// With --watch the view stays, and follows every change until Ctrl-C. With
/// --json it is the daemon's own answer, one object: `reported` holds the
/// reported properties of the device twin.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct StatusCommand {
    /// Print JSON; with --watch one line at each change
    #[arg(long)]
    json: bool,
    /// Follow every change
    #[arg(long, short)]
    watch: bool,
    #[command(flatten)]
    socket: Socket,
}

impl StatusCommand {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        let mut out = io::stdout().lock();
        if self.watch {
            return self.follow(&mut out);
        }
        let status = fetch(&self.socket)?;
        if self.json {
            serde_json::to_writer_pretty(&mut out, &status).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            out.write_all(table(&status, Paint::on(&out)).as_bytes())?;
        }
        Ok(Exit::Done)
    }

    /// Until the daemon ends, or the person does.
    fn follow(&self, out: &mut io::StdoutLock<'_>) -> Result<Exit, CliError> {
        let paint = Paint::on(out);
        let redraw = out.is_terminal() && !self.json;
        let mut drawn_lines = 0;
        for status in Client::connect(self.socket.path())?.watch()? {
            let status = status?;
            if self.json {
                serde_json::to_writer(&mut *out, &status).map_err(io::Error::from)?;
                writeln!(out)?;
            } else {
                let table = table(&status, paint);
                match (redraw, drawn_lines) {
                    (true, _) => out.write_all(drawn_over(drawn_lines, &table).as_bytes())?,
                    (false, 0) => out.write_all(table.as_bytes())?,
                    (false, _) => write!(out, "\n{table}")?,
                }
                drawn_lines = table.lines().count();
            }
            out.flush()?;
        }
        Err(ClientError::Closed.into())
    }
}

/// Up to where the last table began, away with it, and the new one: without line wrap meanwhile, so that each of its
/// lines is one of the terminal's.
fn drawn_over(drawn_lines: usize, table: &str) -> String {
    let away = if drawn_lines > 0 { format!("\x1b[{drawn_lines}A\x1b[J") } else { String::new() };
    format!("{away}\x1b[?7l{table}\x1b[?7h")
}

/// The present status.
pub(super) fn fetch(socket: &Socket) -> Result<Status, CliError> {
    match Client::connect(socket.path())?.call(&Command::Status)? {
        Answer::Status(status) => Ok(*status),
        Answer::Refused(failure) => Err(CliError::Refused { what: "show the status", failure }),
        Answer::Ok { .. } => Err(ClientError::Unexpected.into()),
    }
}

/// Label and value per line.
fn table(status: &Status, paint: Paint) -> String {
    let view = View::of(status);
    let mut rows = Vec::new();
    if let Some(running) = view.running_slot() {
        let version = view.text("currentFwVersion");
        rows.push(("running", paint.bold(&slot_line(view.slot(running), version))));
        rows.push(("other", slot_line(view.slot(running.other()), None)));
    } else {
        rows.extend([Slot::A, Slot::B].map(|slot| ("slot", slot_line(view.slot(slot), None))));
    }
    rows.push(("state", state(&view, paint)));
    if let Some(amount) = view.amount().filter(|_| view.stage() == Stage::Running) {
        rows.push(("progress", bar(amount, status.bytes_per_sec)));
        rows.extend(view.traffic().map(|traffic| ("bytes", traffic)));
    }
    rows.push(("hub", hub(status, paint)));
    if let Some(update) = update(&view) {
        rows.push(("update", update));
    }
    if let Some(error) = view.error() {
        rows.push(("error", paint.bad(&error)));
    }
    rows.iter().map(|(label, value)| format!("{} {value}\n", paint.faint(&format!("{label:>9}")))).collect()
}

/// `a, version 1.4.1, committed, /dev/disk/by-partlabel/rootfs_a`
fn slot_line(slot: SlotView, version: Option<String>) -> String {
    let version = version.or(slot.version).filter(|version| !version.is_empty());
    let version =
        version.map_or_else(|| "no known version".to_owned(), |version| format!("version {version}"));
    let parts = [Some(format!("slot {}", slot.slot)), Some(version), slot.state, slot.device];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn state(view: &View<'_>, paint: Paint) -> String {
    let sentence = view.summary();
    match view.stage() {
        Stage::Failed | Stage::RolledBack => paint.bad(&sentence),
        Stage::Running | Stage::Rebooting => paint.notable(&sentence),
        Stage::Completed => paint.good(&sentence),
        Stage::StandBy => sentence,
    }
}

fn hub(status: &Status, paint: Paint) -> String {
    let word = if status.hub_connected { paint.good("connected") } else { paint.notable("not connected") };
    if status.hub_detail.is_empty() { word } else { format!("{word}: {}", harmless(&status.hub_detail)) }
}

/// The update that runs, or the last one: `u-42 to version 1.4.2, completed, ended 2026-11-23T10:12:00Z`
fn update(view: &View<'_>) -> Option<String> {
    let id = view.text("updateId")?;
    let result = match view.stage() {
        Stage::StandBy => None,
        Stage::Running | Stage::Rebooting => Some("running"),
        Stage::Completed => Some("completed"),
        Stage::Failed => Some("failed"),
        Stage::RolledBack => Some("rolled back"),
    };
    let name = match view.text("pendingFwVersion") {
        Some(version) => format!("{id} to version {version}"),
        None => id,
    };
    let time = match (view.text("lastFwUpdateStartTime"), view.text("lastFwUpdateEndTime")) {
        (_, Some(ended)) => Some(format!("ended {ended}")),
        (Some(started), None) => Some(format!("begun {started}")),
        (None, None) => None,
    };
    let parts = [Some(name), result.map(str::to_owned), time];
    Some(parts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_takes_the_place_of_the_last_one_however_narrow_the_terminal_is() {
        assert_eq!(drawn_over(0, "state a\n"), "\x1b[?7lstate a\n\x1b[?7h");
        assert_eq!(drawn_over(2, "state b\n"), "\x1b[2A\x1b[J\x1b[?7lstate b\n\x1b[?7h");
    }
}
