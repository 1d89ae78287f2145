//! What the operator sees: lines on stdout, a bar or a live table where there is a terminal.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use twinboot::cli::paint::Paint;

use super::CliError;
use crate::report::Amount;

/// Without a terminal a line at each tenth tells enough.
const LINE_STEP_PERCENT: u64 = 10;

const BAR: &str = "[{bar:24}] {percent:>3} %  {binary_bytes} of {binary_total_bytes}{msg}";
const COUNT: &str = "{spinner} {binary_bytes}{msg}";

/// Follows one download.
pub(super) struct Download {
    json: bool,
    is_terminal: bool,
    bar: Option<ProgressBar>,
    step: Option<u64>,
}

impl Download {
    pub fn new(json: bool) -> Self {
        Self { json, is_terminal: io::stderr().is_terminal(), bar: None, step: None }
    }

    /// A line above the bar.
    pub fn line(&mut self, text: &str) -> Result<(), CliError> {
        if self.json {
            return Ok(());
        }
        self.clear();
        print_line(text)
    }

    /// One JSON line, where these are wanted.
    pub fn event(&self, event: &Value) -> Result<(), CliError> {
        if self.json { print_line(&event.to_string()) } else { Ok(()) }
    }

    pub fn amount(&mut self, amount: Amount, bytes_per_sec: Option<u64>) -> Result<(), CliError> {
        if self.json {
            return Ok(());
        }
        if self.is_terminal {
            self.draw(amount, bytes_per_sec);
            return Ok(());
        }
        let step = amount.percent().map(|percent| percent / LINE_STEP_PERCENT);
        if step == self.step {
            return Ok(());
        }
        self.step = step;
        let percent = amount.percent().map(|percent| format!("{percent} %, ")).unwrap_or_default();
        let total = amount.total_bytes.map(|total| format!(" of {total}")).unwrap_or_default();
        print_line(&format!("  {percent}{}{total} bytes", amount.bytes))
    }

    fn draw(&mut self, amount: Amount, bytes_per_sec: Option<u64>) {
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.with_style(style(COUNT))
        });
        if let Some(total) = amount.total_bytes.filter(|total| bar.length() != Some(*total)) {
            bar.set_length(total);
            bar.set_style(style(BAR));
        }
        bar.set_message(pace(amount, bytes_per_sec));
        bar.set_position(amount.bytes);
        bar.tick();
    }

    /// Takes the bar away.
    pub fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        self.step = None;
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("##-")
}

/// `  1.2 MiB/s  18s left`
fn pace(amount: Amount, bytes_per_sec: Option<u64>) -> String {
    let Some(rate) = bytes_per_sec.filter(|rate| *rate > 0) else { return String::new() };
    let left = amount.total_bytes.map(|total| Duration::from_secs(total.saturating_sub(amount.bytes) / rate));
    let left = left.map(|left| format!("  {} left", humantime::format_duration(left))).unwrap_or_default();
    format!("  {}/s{left}", BinaryBytes(rate))
}

/// Something was written below what is drawn.
static IS_INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Before a line on stderr.
pub(super) fn interrupted() {
    if io::stderr().is_terminal() {
        IS_INTERRUPTED.store(true, Ordering::Relaxed);
    }
}

/// A text that is drawn again over itself on a terminal; elsewhere it is printed where it has changed.
pub(super) struct Live {
    is_terminal: bool,
    drawn: String,
}

impl Live {
    pub fn new() -> Self {
        Self { is_terminal: io::stdout().is_terminal(), drawn: String::new() }
    }

    pub fn show(&mut self, text: String) -> Result<(), CliError> {
        if !self.is_terminal && text == self.drawn {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        let lines = self.drawn.lines().count();
        if self.is_terminal {
            let is_interrupted = IS_INTERRUPTED.swap(false, Ordering::Relaxed);
            // Cut at the edge rather than wrapped: a line stays a line.
            write!(out, "{}\x1b[?7l{text}\x1b[?7h", to_begin(lines, is_interrupted))?;
        } else {
            write!(out, "{}{text}", if lines == 0 { "" } else { "\n" })?;
        }
        out.flush()?;
        self.drawn = text;
        Ok(())
    }
}

/// Up to where the last text began, and away with it. Behind a notice, of which only the terminal knows how many lines it
/// took, the next one begins anew.
fn to_begin(lines: usize, is_interrupted: bool) -> String {
    if lines == 0 || is_interrupted { String::new() } else { format!("\x1b[{lines}A\x1b[J") }
}

/// How a row of a table is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    Notable,
    Bad,
}

/// Columns, aligned, without lines: easy to read and to cut. Nothing is wrapped.
pub(super) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = ([String; N], Tone)>,
) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    let mut tones = Vec::new();
    for (row, tone) in rows {
        table.add_row(row);
        tones.push(tone);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let paint = Paint::on(&io::stdout());
    let mut lines = table.lines();
    let header = lines.next().map(|line| paint.bold(line.trim_end()));
    let rows = lines.zip(tones).map(|(line, tone)| match (line.trim_end(), tone) {
        (line, Tone::Plain) => line.to_owned(),
        (line, Tone::Good) => paint.good(line),
        (line, Tone::Notable) => paint.notable(line),
        (line, Tone::Bad) => paint.bad(line),
    });
    header.into_iter().chain(rows).map(|line| format!("{line}\n")).collect()
}

/// A time of the hub's, without its fractions of a second.
pub(super) fn seconds(time: &str) -> String {
    let time = humantime::parse_rfc3339(time).map(humantime::format_rfc3339_seconds);
    time.map_or_else(|_| "-".to_owned(), |time| time.to_string())
}

/// One line on stdout.
pub(super) fn print_line(text: &str) -> Result<(), CliError> {
    Ok(writeln!(io::stdout().lock(), "{}", escaped(text))?)
}

/// JSON may hold these as they are, and terminals obey some of them.
fn escaped(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{7f}'..='\u{9f}' => line.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => line.push(c),
        }
    }
    line
}

/// Many lines, ready.
pub(super) fn print_text(text: &str) -> Result<(), CliError> {
    Ok(io::stdout().lock().write_all(text.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_drawn_over_the_last_one_and_never_over_a_notice() {
        assert_eq!([to_begin(0, false), to_begin(7, true)], ["", ""]);
        assert_eq!(to_begin(7, false), "\x1b[7A\x1b[J");
    }

    #[test]
    fn json_stays_what_it_was_and_cannot_steer_the_terminal() {
        let value = Value::from("a\u{1b}\u{7f}\u{9b}2J\u{a0}é");
        let line = escaped(&value.to_string());
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), value);
    }
}
