//! What the operator sees: lines on stdout, a bar or a live table where there is a terminal.

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;
use twinboot::cli::paint::Paint;

use super::CliError;
use crate::report::Amount;

/// Without a terminal a line at each tenth tells enough.
const LINE_STEP_PERCENT: u64 = 10;

const BAR: &str =
    "[{bar:24}] {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left";
const COUNT: &str = "{spinner} {binary_bytes}  {binary_bytes_per_sec}";

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

    pub fn amount(&mut self, amount: Amount) -> Result<(), CliError> {
        if self.json {
            return Ok(());
        }
        if self.is_terminal {
            self.draw(amount);
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

    fn draw(&mut self, amount: Amount) {
        let bar = self.bar.get_or_insert_with(|| {
            let target = ProgressDrawTarget::stderr();
            let template = if amount.total_bytes.is_some() { BAR } else { COUNT };
            let style =
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::with_draw_target(amount.total_bytes, target);
            // What is there already was not fetched since: it is not to count for the rate.
            bar.with_style(style.progress_chars("##-")).with_position(amount.bytes)
        });
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
        let mut out = io::stdout().lock();
        if self.is_terminal {
            let lines = self.drawn.lines().count();
            if lines > 0 {
                // Up to where the last one began, and away with it.
                write!(out, "\x1b[{lines}A\x1b[J")?;
            }
        } else if text == self.drawn {
            return Ok(());
        } else if !self.drawn.is_empty() {
            writeln!(out)?;
        }
        out.write_all(text.as_bytes())?;
        out.flush()?;
        self.drawn = text;
        Ok(())
    }
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

/// One line on stdout.
pub(super) fn print_line(text: &str) -> Result<(), CliError> {
    Ok(writeln!(io::stdout().lock(), "{text}")?)
}

/// Many lines, ready.
pub(super) fn print_text(text: &str) -> Result<(), CliError> {
    Ok(io::stdout().lock().write_all(text.as_bytes())?)
}
