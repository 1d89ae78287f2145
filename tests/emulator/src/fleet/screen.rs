//! What the person who rehearses sees: on a terminal a table that is drawn anew, else a line now and then.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use hub_emulator::hub::Traffic;
use tokio::time::Instant;

use super::census::{Census, STATUSES};

/// On a terminal.
const REDRAW_INTERVAL: Duration = Duration::from_secs(1);

/// A log of a rehearsal stays readable.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

const BAR_WIDTH: usize = 40;

const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

/// The screen, and what it showed last.
pub(super) struct Screen {
    redraws: bool,
    colours: bool,
    began: Instant,
    lines_drawn: usize,
    shown: Option<(Instant, Traffic)>,
}

impl Screen {
    pub fn new() -> Self {
        let redraws = io::stdout().is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { redraws, colours: redraws && !no_colour, began: Instant::now(), lines_drawn: 0, shown: None }
    }

    /// A line that stays.
    pub fn say(&mut self, line: &str) -> io::Result<()> {
        self.lines_drawn = 0;
        writeln!(io::stdout().lock(), "{line}")
    }

    /// Shows the fleet, unless it was shown just now. `traffic` is what its own hub has counted.
    pub fn show(&mut self, census: &Census, traffic: Option<Traffic>) -> io::Result<()> {
        let interval = if self.redraws { REDRAW_INTERVAL } else { LINE_INTERVAL };
        let now = Instant::now();
        if self.shown.is_some_and(|(since, _)| now.duration_since(since) < interval) {
            return Ok(());
        }
        let rates = self.rates(now, traffic);
        self.shown = Some((now, traffic.unwrap_or_default()));
        let elapsed_secs = self.began.elapsed().as_secs();
        let mut out = io::stdout().lock();
        if !self.redraws {
            return writeln!(out, "{}", line(elapsed_secs, census, &rates));
        }
        let table = table(elapsed_secs, census, &rates, self.colours);
        // Up to where the last table began, and away with it.
        let up =
            if self.lines_drawn > 0 { format!("\x1b[{}A\x1b[J", self.lines_drawn) } else { String::new() };
        self.lines_drawn = table.lines().count();
        write!(out, "{up}{table}")?;
        out.flush()
    }

    /// Requests per second since the last look.
    fn rates(&self, now: Instant, traffic: Option<Traffic>) -> String {
        let (Some(traffic), Some((since, before))) = (traffic, self.shown) else { return String::new() };
        let millis = u64::try_from(now.duration_since(since).as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = |now: u64, before: u64| now.saturating_sub(before).saturating_mul(1000) / millis;
        format!(
            "{} CONNECTs/s, {} twin GETs/s, {} twin PATCHes/s",
            rate(traffic.connects, before.connects),
            rate(traffic.twin_reads, before.twin_reads),
            rate(traffic.twin_updates, before.twin_updates),
        )
    }
}

fn line(elapsed_secs: u64, census: &Census, rates: &str) -> String {
    let statuses = STATUSES.iter().filter(|status| census.with_status(status) > 0);
    let statuses: Vec<_> =
        statuses.map(|status| format!("{status} {}", census.with_status(status))).collect();
    let parts = [statuses.join(", "), versions(census), rates.to_owned()];
    let connected = format!("{elapsed_secs:4} s  {} of {} connected", census.connected, census.devices);
    let parts = parts.into_iter().filter(|part| !part.is_empty());
    parts.fold(connected, |line, part| format!("{line}; {part}"))
}

fn table(elapsed_secs: u64, census: &Census, rates: &str, colours: bool) -> String {
    let mut table = String::new();
    let mut row = |name: &str, colour: &str, count: usize| {
        let bar = bar(count, census.devices, BAR_WIDTH);
        let (colour, plain) = if colours { (colour, PLAIN) } else { ("", "") };
        // Writing to a text cannot fail.
        let _ = writeln!(table, "{name:>12} {count:7}  {colour}{bar}{plain}");
    };
    row("connected", PLAIN, census.connected);
    for status in STATUSES {
        let colour = match status {
            "current" => GREEN,
            "rolledback" | "error" => RED,
            _ => YELLOW,
        };
        row(status, colour, census.with_status(status));
    }
    let _ = writeln!(table, "{:>12}          {}", "versions", versions(census));
    let _ = writeln!(table, "{:>12}          {rates}", format!("{elapsed_secs} s"));
    table
}

fn versions(census: &Census) -> String {
    let versions = census.versions.iter();
    let versions: Vec<_> = versions.map(|(version, count)| format!("version {version} {count}")).collect();
    versions.join(", ")
}

/// `part` of `whole`, in at most `width` characters; what is there is seen, however little it is.
pub(super) fn bar(part: usize, whole: usize, width: usize) -> String {
    "#".repeat(part.saturating_mul(width).div_ceil(whole.max(1)))
}
