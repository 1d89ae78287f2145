//! `twinboot doctor`: what is wired wrong, and what to do about it.

use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::paint::{Paint, harmless};
use super::run::{keep_memory_private, runtime};
use super::{CliError, Exit, credentials_directory};
use crate::config::DEFAULT_PATH;
use crate::doctor::{self, Finding, Level, Report};

const EXIT_CODES: &str = "\
Exit codes:
  0  everything is as it should be
  6  there are warnings
  7  there is a fault: an update, a fall back, or the hub does not work

What --fix may do:
  write the good copy of the boot environment over a bad or stale one; end a trial that nobody conducts, and keep
  what runs; make the state directory; take secret files away from other users";

/// Check every wire between daemon, boot loader, partitions and hub
///
/// For the factory, for the desk, and while the daemon runs: it writes nothing
/// but what --fix repairs. Where no daemon runs it connects to the hub itself,
/// and says which step fails. Run it as root.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES, after_long_help = EXIT_CODES, verbatim_doc_comment)]
pub(super) struct Doctor {
    /// Print JSON: one object, `checks` with a `level`, `evidence` and `advice` each
    #[arg(long)]
    json: bool,
    /// Repair what is safe to repair, then look again
    #[arg(long)]
    fix: bool,
    /// Configuration; drop-ins are read from config.d beside it
    #[arg(long, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
}

impl Doctor {
    pub(super) fn run(self) -> Result<Exit, CliError> {
        keep_memory_private()?;
        let runtime = runtime()?;
        let credentials = credentials_directory();
        let look = || runtime.block_on(doctor::visit(&self.config, credentials.as_deref()));
        let (mut report, config) = look();
        let mut repairs = Vec::new();
        if self.fix {
            for Finding { check, repair, .. } in &report.0 {
                if let Some(repair) = repair {
                    repairs.push((*check, repair.perform(config.as_ref())));
                }
            }
            if !repairs.is_empty() {
                report = look().0;
            }
        }
        let mut out = io::stdout().lock();
        let text = if self.json {
            let mut object = report.as_json();
            if let Some(object) = object.as_object_mut().filter(|_| self.fix) {
                object.insert("repairs".to_owned(), repairs.iter().map(repair_as_json).collect());
            }
            format!("{object:#}\n")
        } else {
            for_people(&report, &repairs, Paint::on(&out))
        };
        match out.write_all(text.as_bytes()) {
            // Whoever has read enough still wants the level.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            written => written?,
        }
        Ok(match report.level() {
            Level::Ok => Exit::Done,
            Level::Warning => Exit::Warnings,
            Level::Fault => Exit::Faults,
        })
    }
}

/// A check whose finding was to be repaired, and what came of it.
type Repaired = (&'static str, Result<String, String>);

fn repair_as_json((check, result): &Repaired) -> Value {
    let (Ok(message) | Err(message)) = result;
    json!({ "check": check, "done": result.is_ok(), "message": message })
}

/// By families, in the order of the looking.
fn for_people(report: &Report, repairs: &[Repaired], paint: Paint) -> String {
    let mut text = String::new();
    for (check, result) in repairs {
        let (Ok(message) | Err(message)) = result;
        let word = if result.is_ok() { paint.good("repaired") } else { paint.bad("not repaired") };
        text.push_str(&format!("{word} {check}: {}\n", harmless(message)));
    }
    let width = report.0.iter().map(|finding| name(finding).len()).max().unwrap_or_default();
    let mut family = "";
    for finding in &report.0 {
        if finding.family() != family {
            family = finding.family();
            text.push_str(&format!("{}\n", paint.bold(family)));
        }
        text.push_str(&lines(finding, width, paint));
    }
    let count = |level, one: &str, many: &str| {
        let count = report.count(level);
        format!("{count} {}", if count == 1 { one } else { many })
    };
    let counts = [
        count(Level::Fault, "fault", "faults"),
        count(Level::Warning, "warning", "warnings"),
        count(Level::Ok, "ok", "ok"),
    ];
    text.push_str(&format!("{}\n", painted(&counts.join(", "), report.level(), paint)));
    text
}

fn name(finding: &Finding) -> &'static str {
    finding.check.split_once('.').map_or(finding.check, |(_, name)| name)
}

/// `  warning  copies  copy 2 has a bad checksum`, and what to do below it.
fn lines(finding: &Finding, width: usize, paint: Paint) -> String {
    let level = painted(&format!("{:<7}", finding.level.name()), finding.level, paint);
    let name = name(finding);
    let mut text = format!("  {level}  {name:<width$}  {}\n", harmless(&finding.evidence));
    if !finding.advice.is_empty() {
        text.push_str(&format!("  {:7}  {:width$}  -> {}\n", "", "", harmless(&finding.advice)));
    }
    text
}

fn painted(text: &str, level: Level, paint: Paint) -> String {
    match level {
        Level::Ok => paint.good(text),
        Level::Warning => paint.notable(text),
        Level::Fault => paint.bad(text),
    }
}
