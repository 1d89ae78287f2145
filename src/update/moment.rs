//! Points in time on a machine whose wall clock may not be set yet.

use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::BootId;

/// A point in time: always known relative to its boot, and on the wall clock once that is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Moment {
    /// The boot in which it was.
    pub boot: BootId,
    /// Seconds since that boot began, suspend included.
    pub uptime_secs: u64,
    /// Seconds since 1970, if the wall clock was to be trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unix_secs: Option<u64>,
}

impl Moment {
    /// This moment with the wall time that `now` gives it, if both were in the same boot.
    #[must_use]
    pub fn resolved_by(self, now: Self) -> Self {
        let wall_time = || {
            let elapsed_secs = now.uptime_secs.checked_sub(self.uptime_secs)?;
            now.unix_secs?.checked_sub(elapsed_secs)
        };
        match self.unix_secs {
            None if self.boot == now.boot => Self { unix_secs: wall_time(), ..self },
            _ => self,
        }
    }

    /// RFC 3339 in UTC, or nothing while the wall time is not known: a wrong time is never told.
    #[must_use]
    pub fn rfc3339(self) -> Option<String> {
        // The year 9999: what the formatter can print.
        const LATEST_UNIX_SECS: u64 = 253_402_300_799;
        let unix_secs = self.unix_secs.filter(|secs| *secs <= LATEST_UNIX_SECS)?;
        Some(humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(unix_secs)).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(boot: u128, uptime_secs: u64, unix_secs: Option<u64>) -> Moment {
        Moment { boot: BootId(boot), uptime_secs, unix_secs }
    }

    #[test]
    fn a_moment_before_the_clock_was_set_gets_its_time_later() {
        let resolved = at(1, 10, None).resolved_by(at(1, 70, Some(1_000_060)));
        assert_eq!(resolved.unix_secs, Some(1_000_000));
    }

    #[test]
    fn a_moment_of_another_boot_stays_unknown() {
        assert_eq!(at(1, 10, None).resolved_by(at(2, 70, Some(1_000_060))).rfc3339(), None);
    }

    #[test]
    fn a_known_time_is_not_changed_by_a_clock_that_was_set() {
        assert_eq!(at(1, 10, Some(5)).resolved_by(at(1, 70, Some(1_000_060))).unix_secs, Some(5));
    }

    #[test]
    fn a_known_time_prints_in_utc() {
        assert_eq!(at(1, 0, Some(1_795_423_626)).rfc3339().as_deref(), Some("2026-11-23T08:47:06Z"));
        assert_eq!(at(1, 0, Some(u64::MAX)).rfc3339(), None);
    }
}
