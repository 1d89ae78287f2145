//! A progress bar for a person, lines for everything else.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::view::Amount;

/// Bar, numbers and time left fit into the 80 columns of a serial console.
const BAR_COLUMNS: u64 = 20;

/// A person cannot read faster, and a serial console not draw faster.
const REDRAW_INTERVAL: Duration = Duration::from_millis(200);

/// Without a terminal a line at each tenth tells enough.
const LINE_STEP_PERCENT: u64 = 10;

/// Follows one job on a stream, most likely stderr.
pub(super) struct Progress<W> {
    stream: W,
    is_terminal: bool,
    last_text: String,
    last_step: Option<u64>,
    /// The bar that came too soon after the one before.
    pending_line: Option<String>,
    drawn_at: Option<Duration>,
}

impl<W: Write + IsTerminal> Progress<W> {
    pub(super) fn new(stream: W) -> Self {
        let is_terminal = stream.is_terminal();
        Self::with(stream, is_terminal)
    }
}

impl<W: Write> Progress<W> {
    fn with(stream: W, is_terminal: bool) -> Self {
        let last_text = String::new();
        Self { stream, is_terminal, last_text, last_step: None, pending_line: None, drawn_at: None }
    }

    /// Shows how far it is: `text` says what is done, `amount` and the rate how long it will take.
    pub(super) fn show(&mut self, text: &str, amount: Option<Amount>, bytes_per_sec: Option<u64>) {
        if self.is_terminal {
            let line = amount.map_or_else(|| text.to_owned(), |amount| bar(amount, bytes_per_sec));
            self.redraw(line, text);
        } else {
            self.print_step(text, amount);
        }
    }

    /// A line above the bar: what it is about.
    pub(super) fn title(&mut self, text: &str) {
        let _ = writeln!(self.stream, "{text}");
    }

    /// Leaves the last line standing.
    pub(super) fn finish(&mut self) {
        if let Some(line) = self.pending_line.take() {
            self.draw(&line);
        }
        if self.drawn_at.take().is_some() {
            let _ = writeln!(self.stream);
        }
        self.last_text.clear();
    }

    fn redraw(&mut self, line: String, text: &str) {
        let now = uptime();
        let too_soon = self.drawn_at.is_some_and(|at| now.saturating_sub(at) < REDRAW_INTERVAL);
        if too_soon && job(text) == job(&self.last_text) {
            self.pending_line = Some(line);
            return;
        }
        self.draw(&line);
        self.pending_line = None;
        self.drawn_at = Some(now);
        text.clone_into(&mut self.last_text);
    }

    /// Progress is a courtesy: nobody is helped by an error about it. Without line wrap, since one that went over to a
    /// second line would stand there for good.
    fn draw(&mut self, line: &str) {
        let _ = write!(self.stream, "\r\x1b[K\x1b[?7l{line}\x1b[?7h");
        let _ = self.stream.flush();
    }

    /// A line where the job or the tenth has changed.
    fn print_step(&mut self, text: &str, amount: Option<Amount>) {
        let step = amount.and_then(percent).map(|percent| percent / LINE_STEP_PERCENT);
        if job(text) != job(&self.last_text) || (step.is_some() && step != self.last_step) {
            let _ = writeln!(self.stream, "{text}");
            text.clone_into(&mut self.last_text);
            self.last_step = step;
        }
    }
}

/// What is done, without how far: `downloading 1.4.2` of `downloading 1.4.2: 42 %, 3.1 MB/s`.
fn job(text: &str) -> &str {
    text.split_once(':').map_or(text, |(job, _)| job)
}

/// `[########------------]  42 %  215.0 of 512.0 MiB  3.1 MiB/s  1m 36s left`
pub(super) fn bar(amount: Amount, bytes_per_sec: Option<u64>) -> String {
    let rate = bytes_per_sec.filter(|rate| *rate > 0);
    let mut line = match (amount.total_bytes, percent(amount)) {
        (Some(total), Some(percent)) => {
            let full = percent * BAR_COLUMNS / 100;
            let columns: String =
                (0..BAR_COLUMNS).map(|column| if column < full { '#' } else { '-' }).collect();
            format!("[{columns}] {percent:3} %  {} of {} MiB", mebibytes(amount.bytes), mebibytes(total))
        }
        _ => format!("{} MiB", mebibytes(amount.bytes)),
    };
    if let Some(rate) = rate {
        line.push_str(&format!("  {} MiB/s", mebibytes(rate)));
        let left = amount.total_bytes.map(|total| total.saturating_sub(amount.bytes) / rate);
        if let Some(left) = left.filter(|left| *left > 0) {
            line.push_str(&format!("  {} left", humantime::format_duration(Duration::from_secs(left))));
        }
    }
    line
}

/// Never 100 before the last byte.
pub(super) fn percent(amount: Amount) -> Option<u64> {
    let total = amount.total_bytes.filter(|total| *total > 0)?;
    u64::try_from(u128::from(amount.bytes.min(total)) * 100 / u128::from(total)).ok()
}

pub(super) fn mebibytes(bytes: u64) -> String {
    let tenths = bytes / (1024 * 1024 / 10);
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// Time since this device was switched on; does not step with the wall clock.
pub(super) fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn amount(bytes: u64, total_bytes: u64) -> Amount {
        Amount { bytes, total_bytes: Some(total_bytes) }
    }

    #[test]
    fn a_bar_shows_share_amount_rate_and_time_left() {
        let half = bar(amount(256 * MIB, 512 * MIB), Some(4 * MIB));
        assert_eq!(half, "[##########----------]  50 %  256.0 of 512.0 MiB  4.0 MiB/s  1m 4s left");
        let done = bar(amount(512 * MIB, 512 * MIB), None);
        assert_eq!(done, "[####################] 100 %  512.0 of 512.0 MiB");
        let unknown = Amount { bytes: 3 * MIB, total_bytes: None };
        assert_eq!(bar(unknown, Some(0)), "3.0 MiB");
    }

    #[test]
    fn odd_amounts_do_not_break_the_bar() {
        assert_eq!(percent(amount(0, 0)), None);
        assert_eq!(percent(amount(2, 1)), Some(100));
        assert_eq!(percent(amount(u64::MAX - 1, u64::MAX)), Some(99));
    }

    #[test]
    fn on_a_terminal_the_last_bar_stays() {
        let mut progress = Progress::with(Vec::new(), true);
        for bytes in 0..=100 {
            progress.show("hashing", Some(amount(bytes * MIB, 100 * MIB)), None);
        }
        progress.finish();
        let drawn = String::from_utf8(progress.stream).unwrap();
        assert!(
            drawn.ends_with("\r\x1b[K\x1b[?7l[####################] 100 %  100.0 of 100.0 MiB\x1b[?7h\n"),
            "{drawn:?}"
        );
    }

    #[test]
    fn without_a_terminal_there_is_a_line_per_job_and_tenth() {
        let mut progress = Progress::with(Vec::new(), false);
        for bytes in 0..=40 {
            progress.show(&format!("downloading: {bytes} %"), Some(amount(bytes, 100)), None);
        }
        progress.show("verifying", None, None);
        progress.show("verifying", None, None);
        progress.finish();
        let lines = String::from_utf8(progress.stream).unwrap();
        let expected = "downloading: 0 %\ndownloading: 10 %\ndownloading: 20 %\ndownloading: 30 %\n\
                        downloading: 40 %\nverifying\n";
        assert_eq!(lines, expected);
    }
}
