//! How long a source is waited for. What the device itself takes, to write what came, is not counted.

use std::time::Duration;

use super::Limits;
use super::fetch::{FetchError, Setback, boot_time};

/// What gives less, on average over the whole limit, is given up like what gives nothing. A link that can carry a
/// firmware at all gives more: this is 22 MB a day.
const LEAST_BYTES_PER_SEC: u64 = 256;

/// Counts in periods: one is over once enough has come.
#[derive(Debug)]
pub struct Patience {
    limits: Limits,
    /// In this period, before the present wait.
    waited: Duration,
    /// When the present wait began, on the boot-time clock.
    since: Duration,
    /// That came in this period.
    bytes: u64,
}

impl Patience {
    /// Begins to wait.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, waited: Duration::ZERO, since: boot_time(), bytes: 0 }
    }

    /// Waits again.
    pub fn resume(&mut self) {
        self.since = boot_time();
    }

    /// What came in this period.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What to say of a source that gave hardly anything, and of the last try, if one failed.
    #[must_use]
    pub fn trickle(&self, url: String, source: Option<Box<Setback>>) -> FetchError {
        FetchError::Trickle { url, bytes: self.bytes, limit: self.limits.retry, source }
    }

    /// How long was waited in this period.
    fn waited(&self) -> Duration {
        self.waited + boot_time().saturating_sub(self.since)
    }

    /// How long may still be waited.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.limits.retry.saturating_sub(self.waited())
    }

    /// How long the networked part may still be waited for, which is as patient itself: it says what went wrong
    /// before this ends.
    #[must_use]
    pub fn left_for_networked_part(&self) -> Duration {
        (self.limits.retry + 2 * self.limits.stall).saturating_sub(self.waited())
    }

    /// Ends the wait with what came. `false`: that is too little for so long.
    #[must_use]
    pub fn suffices(&mut self, bytes: usize) -> bool {
        self.waited = self.waited();
        self.since = boot_time();
        self.bytes += bytes as u64;
        if self.bytes >= self.limits.retry.as_secs().saturating_mul(LEAST_BYTES_PER_SEC) {
            (self.waited, self.bytes) = (Duration::ZERO, 0);
        }
        self.waited < self.limits.retry
    }
}
