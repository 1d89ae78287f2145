//! `twinbootctl job create`.

use std::time::{Duration, SystemTime};

use clap::Args;

use super::super::package::Package;
use super::super::screen::print_line;
use super::super::{CliError, Ctl, Exit, created};
use crate::service::JobOrder;

/// Schedule the call
#[derive(Debug, Args)]
pub(super) struct Create {
    /// Lower case letters, digits and `-`
    #[arg(value_parser = name)]
    name: String,
    /// The devices, in IoT Hub's query language; '*' for all
    #[arg(long, value_name = "CONDITION")]
    target: String,
    /// When, such as 2026-11-24T02:00:00Z; at most a week from now (default: now)
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339)]
    at: Option<SystemTime>,
    /// Give up on devices that were not reached in this time
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    within: Duration,
    #[command(flatten)]
    package: Package,
}

impl Create {
    pub(super) async fn run(self, ctl: &Ctl) -> Result<Exit, CliError> {
        let wanted = self.package.wanted("fwPackageUri").await?;
        let start_time = self.at.map(|at| humantime::format_rfc3339_seconds(at).to_string());
        let order = JobOrder {
            id: &self.name,
            method: "firmwareUpdate",
            payload: &wanted.payload,
            condition: &self.target,
            start_time: start_time.as_deref(),
            duration_max: self.within,
            answer_secs: 30,
        };
        let find = async || {
            let job = ctl.service.job(order.id).await?;
            Ok(order.is(&job).then_some(job))
        };
        let ordered = ctl.service.create_job(&order).await;
        let job = created(ordered, find, &format!("job status {}", self.name)).await?;
        if ctl.json {
            print_line(&job.to_string())?;
        } else {
            let when = start_time.map_or("now".to_owned(), |at| format!("at {at}"));
            print_line(&format!("job {}: {}, {when}", self.name, wanted.name))?;
            let query = format!("properties.reported.firmware.updateId = '{}'", wanted.id);
            print_line(&format!("the devices: twinbootctl devices --query \"{query}\""))?;
        }
        Ok(Exit::Done)
    }
}

fn name(text: &str) -> Result<String, String> {
    const CHARS_MAX: usize = 64;
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=CHARS_MAX).contains(&text.len()) && text.chars().all(legal) {
        Ok(text.to_owned())
    } else {
        Err(format!("1 to {CHARS_MAX} of a-z, 0-9 and -"))
    }
}
