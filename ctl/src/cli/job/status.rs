//! `twinbootctl job status`.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use twinboot::cli::paint::harmless;

use super::super::screen::{Live, Tone, print_line, table};
use super::super::{CliError, Ctl, Exit, keep_looking};
use super::{count, text};
use crate::rollout::quoted;
use crate::service::PAGE_ROWS_MAX;

/// A job takes minutes; its two questions are within the hub's twenty queries a minute.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Enough to go and look.
const EXAMPLES_MAX: usize = 3;

/// Show how far a job is, and what devices answered
#[derive(Debug, Args)]
pub(super) struct Status {
    /// Of the job
    name: String,
    /// Until it is over; a job that failed or was cancelled gives exit code 1
    #[arg(long, short)]
    pub(super) watch: bool,
}

impl Status {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        let mut live = Live::new();
        let name = quoted(&self.name);
        let query = format!("SELECT * FROM devices.jobs WHERE devices.jobs.jobId = {name}");
        keep_looking(POLL_INTERVAL, async || {
            let job = ctl.service.job(&self.name).await?;
            let page = ctl.service.page::<Value>(&query, PAGE_ROWS_MAX, None).await?;
            let partial = page.next.is_some();
            if ctl.json {
                let event = json!({"job": job, "devices": page.rows, "devicesPartial": partial});
                print_line(&event.to_string())?;
            } else {
                live.show(format!("{}{}", summary(&job), answers(&page.rows, partial)))?;
            }
            Ok(if self.watch { end(&job) } else { Some(Exit::Done) })
        })
        .await
    }
}

/// How a job ended: it is complete when the devices have answered, whatever that was.
fn end(job: &Value) -> Option<Exit> {
    match text(job, "status").as_str() {
        "completed" => Some(Exit::Done),
        "failed" | "cancelled" => Some(Exit::Failed),
        _ => None,
    }
}

fn summary(job: &Value) -> String {
    let reason = job.get("failureReason").and_then(Value::as_str).filter(|reason| !reason.is_empty());
    let reason = reason.map(|reason| format!(": {}", harmless(reason))).unwrap_or_default();
    let [devices, answered, failed, running, pending] =
        ["deviceCount", "succeededCount", "failedCount", "runningCount", "pendingCount"]
            .map(|key| count(job, key));
    format!(
        "{}: {}{reason}; {devices} devices, {answered} answered, {failed} failed, {running} running, {pending} pending\n",
        text(job, "jobId"),
        text(job, "status"),
    )
}

/// What the devices said, counted.
fn answers(devices: &[Value], is_partial: bool) -> String {
    let mut by_answer: BTreeMap<[String; 2], Vec<String>> = BTreeMap::new();
    for device in devices {
        by_answer.entry([text(device, "status"), answer(device)]).or_default().push(text(device, "deviceId"));
    }
    if by_answer.is_empty() {
        return String::new();
    }
    let rows = by_answer.into_iter().map(|([status, answer], names)| {
        let tone = if status == "failed" { Tone::Bad } else { Tone::Plain };
        let examples = names.iter().take(EXAMPLES_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
        ([names.len().to_string(), status, answer, examples], tone)
    });
    let partial = if is_partial { format!("of the first {PAGE_ROWS_MAX} devices\n") } else { String::new() };
    format!("\n{}{partial}", table(["COUNT", "STATUS", "ANSWER", "FOR EXAMPLE"], rows))
}

/// `200 Firmware update started`, `412 VersionNotNewer`, or the hub's own error.
fn answer(device: &Value) -> String {
    let text = |pointer: &str| device.pointer(pointer).and_then(Value::as_str);
    let said = match device.pointer("/outcome/deviceMethodResponse/status").and_then(Value::as_i64) {
        Some(status) => {
            let payload = "/outcome/deviceMethodResponse/payload";
            let word =
                text(&format!("{payload}/Response")).or_else(|| text(&format!("{payload}/error/code")));
            format!("{status} {}", word.unwrap_or_default())
        }
        None => [text("/error/code"), text("/error/description")]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(": "),
    };
    harmless(&said)
}
