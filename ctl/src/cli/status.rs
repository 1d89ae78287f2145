//! `twinbootctl status`: what devices do now, and how their last update ended.

use std::io;

use clap::Args;
use twinboot::cli::paint::Paint;

use super::screen::{print_line, print_text};
use super::{CliError, Ctl, Exit};
use crate::report::{Ending, Report};

/// Show what devices do, and how their last update ended
///
/// By their device twins, which are what the devices last reported.
#[derive(Debug, Args)]
pub(super) struct StatusCommand {
    /// Their names in the hub
    #[arg(required = true, value_name = "DEVICE")]
    devices: Vec<String>,
}

impl StatusCommand {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        let paint = Paint::on(&io::stdout());
        for device in &self.devices {
            let twin = ctl.service.twin(device).await?;
            if ctl.json {
                print_line(&twin.to_string())?;
            } else {
                print_text(&describe(Report::of(&twin), paint))?;
            }
        }
        Ok(Exit::Done)
    }
}

fn describe(report: Report<'_>, paint: Paint) -> String {
    let mut text = format!("{}\n", paint.bold(&report.device()));
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            text.push_str(&format!("  {name:<9} {value}\n"));
        }
    };
    let online = if report.is_connected() { paint.good("online") } else { paint.notable("offline") };
    let heard = report.reported_at().map(|at| format!(", last report {at}"));
    line("hub", Some(format!("{online}{}", heard.unwrap_or_default())));
    let booted = report.reported("firmware/slots/booted");
    let [runs, other] = if booted.as_deref() == Some("b") { ["b", "a"] } else { ["a", "b"] };
    line("runs", slot_line(report, runs));
    line("other", slot_line(report, other));
    line("update", update_line(report));
    let sentence = report.reported("firmware/fwUpdateSubstatus");
    line("state", sentence.map(|sentence| toned(report, paint, &sentence)));
    line("error", report.error().map(|error| paint.bad(&error)));
    if report.firmware_status().is_none() {
        line("state", Some("has reported nothing about its firmware yet".to_owned()));
    }
    text
}

/// `slot b, version 2.0, committed`
fn slot_line(report: Report<'_>, slot: &str) -> Option<String> {
    let of = |key: &str| report.reported(&format!("firmware/slots/{slot}/{key}"));
    let state = of("state")?;
    let version = of("version").map_or_else(|| "no known version".to_owned(), |v| format!("version {v}"));
    Some(format!("slot {slot}, {version}, {state}"))
}

/// `3f2a to version 2.0, completed, ended 2026-11-23T10:12:00Z`
fn update_line(report: Report<'_>) -> Option<String> {
    let id = report.reported("firmware/updateId")?;
    let to = report.reported("firmware/pendingFwVersion").map(|version| format!(" to version {version}"));
    let status = report.reported("firmwareStatus").unwrap_or_else(|| "unknown".to_owned());
    let ended = report.reported("firmware/lastFwUpdateEndTime").map(|at| format!(", ended {at}"));
    let begun = || report.reported("firmware/lastFwUpdateStartTime").map(|at| format!(", begun {at}"));
    Some(format!("{id}{}, {status}{}", to.unwrap_or_default(), ended.or_else(begun).unwrap_or_default()))
}

fn toned(report: Report<'_>, paint: Paint, text: &str) -> String {
    match (report.ending(), report.firmware_status()) {
        (Some(Ending::Completed), _) => paint.good(text),
        (Some(Ending::Failed | Ending::RolledBack), _) => paint.bad(text),
        (None, Some("downloading" | "applying")) => paint.notable(text),
        (None, _) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_device_cannot_steer_the_terminal() {
        let escape = "\u{1b}[2J";
        let slot = json!({"version": escape, "state": escape});
        let firmware = json!({"updateId": escape, "pendingFwVersion": escape, "fwUpdateSubstatus": escape,
            "lastFwUpdateEndTime": escape, "slots": {"booted": "a", "a": slot, "b": slot}});
        let reported = json!({"firmwareStatus": escape, "firmware": firmware});
        let twin = json!({"deviceId": escape, "properties": {"reported": reported}});
        // Files are no terminals: whatever is not plain came from the twin.
        let file = tempfile::tempfile().unwrap();
        let text = describe(Report::of(&twin), Paint::on(&file));
        assert!(text.contains("update    ") && !text.contains('\u{1b}'), "{text:?}");
    }
}
