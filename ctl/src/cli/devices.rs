//! `twinbootctl devices`: what runs where.

use clap::Args;
use serde_json::Value;

use super::screen::{Tone, print_line, print_text, table};
use super::{CliError, Ctl, Exit, notice};
use crate::report::{Amount, Ending, Report};
use crate::service::PAGE_ROWS_MAX;

const EXAMPLES: &str = "\
Examples:
  twinbootctl devices
  twinbootctl devices --query \"WHERE tags.site = 'lyon'\"
  twinbootctl devices --query \"properties.reported.firmware.currentFwVersion != '2.0'\"
  twinbootctl devices --json --limit 1000000 | jq -r 'select(.connectionState == \"Connected\") | .deviceId'";

/// List devices: version, status, slot, last report, error
///
/// Queries lag behind the devices, by seconds most of the time; `status` and
/// `watch` do not.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, after_long_help = EXAMPLES, verbatim_doc_comment)]
pub(super) struct Devices {
    /// Only those for which this is true, in IoT Hub's query language
    #[arg(long, value_name = "WHERE ...")]
    query: Option<String>,
    /// Stop after so many devices
    #[arg(long, value_name = "N", default_value_t = PAGE_ROWS_MAX,
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    limit: usize,
}

impl Devices {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        let query = select("*", self.query.as_deref().unwrap_or_default());
        let mut listed = 0;
        let mut from = None;
        let mut rows = Vec::new();
        loop {
            let page = ctl.service.page::<Value>(&query, self.limit - listed, from).await?;
            for twin in page.rows.iter().take(self.limit - listed) {
                listed += 1;
                if ctl.json {
                    print_line(&twin.to_string())?;
                } else {
                    rows.push(row(Report::of(twin)));
                }
            }
            from = page.next;
            if from.is_none() || listed >= self.limit {
                break;
            }
        }
        if !ctl.json {
            print_text(&table(
                ["DEVICE", "VERSION", "STATUS", "SLOT", "ONLINE", "LAST REPORT", "ERROR"],
                rows,
            ))?;
        }
        if from.is_some() {
            notice(&format!("there are more than these {listed}: give a larger --limit"));
        }
        Ok(Exit::Done)
    }
}

/// `SELECT what FROM devices`, with a condition that may be empty, `*`, or begin with `WHERE`.
pub(super) fn select(what: &str, condition: &str) -> String {
    let condition = condition.trim();
    let bare = match condition.get(..5) {
        Some(word) if word.eq_ignore_ascii_case("where") => condition.get(5..).unwrap_or_default().trim(),
        _ => condition,
    };
    match bare {
        "" | "*" => format!("SELECT {what} FROM devices"),
        bare => format!("SELECT {what} FROM devices WHERE {bare}"),
    }
}

fn row(report: Report<'_>) -> ([String; 7], Tone) {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let percent = report.amount().and_then(Amount::percent).map(|percent| format!(" {percent} %"));
    let status = report.reported("firmwareStatus");
    let status = status.map(|status| format!("{status}{}", percent.unwrap_or_default()));
    let tone = match (report.ending(), report.firmware_status()) {
        (Some(Ending::Completed), _) => Tone::Good,
        (Some(Ending::Failed | Ending::RolledBack), _) => Tone::Bad,
        (None, Some("downloading" | "applying")) => Tone::Notable,
        (None, _) => Tone::Plain,
    };
    let cells = [
        report.device(),
        or_dash(report.reported("firmware/currentFwVersion")),
        or_dash(status),
        or_dash(report.reported("firmware/slots/booted")),
        if report.is_connected() { "yes" } else { "no" }.to_owned(),
        or_dash(report.reported_at()),
        report.error().unwrap_or_default(),
    ];
    (cells, tone)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_device_cannot_steer_the_terminal() {
        let escape = "\u{1b}[2J";
        let firmware = json!({"currentFwVersion": escape, "slots": {"booted": escape},
            "error": {"code": escape, "message": escape}});
        let reported = json!({"firmwareStatus": escape, "firmware": firmware});
        let twin = json!({"deviceId": escape, "properties": {"reported": reported}});
        let (cells, _) = row(Report::of(&twin));
        assert!(!cells.concat().contains('\u{1b}'), "{cells:?}");
    }

    #[test]
    fn a_condition_may_be_given_with_or_without_its_word() {
        let expected = "SELECT * FROM devices WHERE tags.site = 'x'";
        assert_eq!(select("*", "WHERE tags.site = 'x'"), expected);
        assert_eq!(select("*", " where tags.site = 'x' "), expected);
        assert_eq!(select("*", "tags.site = 'x'"), expected);
        assert_eq!(select("COUNT() AS n", "*"), "SELECT COUNT() AS n FROM devices");
        assert_eq!(select("*", ""), "SELECT * FROM devices");
    }
}
