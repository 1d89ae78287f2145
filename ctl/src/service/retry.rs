//! How long to wait before a request is made again, and when not to.

use std::time::Duration;

use reqwest::StatusCode;

/// A pace of retries: the pause is anything from nothing to a bound that doubles each time, so that many
/// clients do not come back at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    first: Duration,
    longest: Duration,
    /// Retries, after which the failure is told.
    pub retries: u32,
}

/// The hub asks for 10 s in words and never in a header; with six retries it is asked for up to four minutes,
/// which is when Microsoft's clients give up.
pub const THROTTLED: Pace =
    Pace { first: Duration::from_secs(10), longest: Duration::from_secs(60), retries: 6 };

/// A connection that broke, or a hub in trouble: back at once, or not for a while.
pub const TROUBLED: Pace =
    Pace { first: Duration::from_secs(1), longest: Duration::from_secs(10), retries: 3 };

impl Pace {
    /// The pause before retry `number`, counted from 0; `chance` is in 0.0..1.0.
    pub fn pause(self, number: u32, chance: f64) -> Duration {
        let bound = self.first.saturating_mul(2_u32.saturating_pow(number)).min(self.longest);
        bound.mul_f64(chance.clamp(0.0, 1.0))
    }

    /// The pace for a refusal; none where asking again does not help, or could do a thing twice.
    pub fn after(status: StatusCode, symbol: &str, repeatable: bool) -> Option<Self> {
        match status {
            // That one job runs, and will for a while.
            StatusCode::TOO_MANY_REQUESTS if symbol == "ThrottlingMaxActiveJobCountExceeded" => None,
            // Refused is not done: safe for every request.
            StatusCode::TOO_MANY_REQUESTS => Some(THROTTLED),
            StatusCode::SERVICE_UNAVAILABLE if repeatable => Some(THROTTLED),
            StatusCode::REQUEST_TIMEOUT
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::GATEWAY_TIMEOUT
                if repeatable =>
            {
                Some(TROUBLED)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_grows_to_its_bound() {
        let bounds: Vec<u64> = (0..6).map(|number| THROTTLED.pause(number, 1.0).as_secs()).collect();
        assert_eq!(bounds, [10, 20, 40, 60, 60, 60]);
        assert_eq!(THROTTLED.pause(3, 0.5), Duration::from_secs(30));
        assert_eq!(THROTTLED.pause(u32::MAX, 0.0), Duration::ZERO);
    }

    #[test]
    fn only_what_was_not_done_or_may_be_done_twice_is_asked_again() {
        let after = |status, repeatable| Pace::after(StatusCode::from_u16(status).unwrap(), "", repeatable);
        assert_eq!(after(429, false), Some(THROTTLED));
        assert_eq!((after(503, true), after(503, false)), (Some(THROTTLED), None));
        assert_eq!((after(504, true), after(504, false)), (Some(TROUBLED), None));
        for status in [400, 401, 403, 404, 405, 409, 412, 413] {
            assert_eq!(after(status, true), None, "{status}");
        }
        let busy = Pace::after(StatusCode::TOO_MANY_REQUESTS, "ThrottlingMaxActiveJobCountExceeded", true);
        assert_eq!(busy, None);
    }
}
