//! How long to wait before the next attempt to reach the hub.

use std::time::Duration;

use super::Pace;

/// Why the last attempt, or session, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No way to the hub, or the session was lost: most often over in seconds.
    Lost,
    /// The hub refused the connection. A person must mostly act, but overload looks the same.
    Refused,
}

/// Counts attempts that came to nothing, and draws the pause before the next one.
#[derive(Debug)]
pub struct Backoff {
    pace: Pace,
    /// Attempts in a row without a session that lasted, by their causes: the first refusal after an outage is no
    /// hundredth one.
    lost: u32,
    refused: u32,
    random: fastrand::Rng,
}

impl Backoff {
    /// Without failures yet.
    #[must_use]
    pub fn new(pace: Pace, random: fastrand::Rng) -> Self {
        Self { pace, lost: 0, refused: 0, random }
    }

    /// The pause after an attempt that gave a session of `session_length` (zero: none).
    ///
    /// Only a session that lasted makes the next pause short again. A second client with our id is
    /// thrown out by us and throws us out: every session is then short and the pauses grow, instead
    /// of the two connecting in turn as fast as they can.
    pub fn pause(&mut self, cause: Cause, session_length: Duration) -> Duration {
        self.ended_after(session_length);
        let pace = &self.pace;
        let (failures, first, longest) = match cause {
            Cause::Lost => (&mut self.lost, pace.first_pause, pace.longest_pause),
            Cause::Refused => (&mut self.refused, pace.first_refused_pause, pace.longest_refused_pause),
        };
        let doubled = 2_u32.saturating_pow(*failures);
        *failures = failures.saturating_add(1);
        let ceiling = first.saturating_mul(doubled).min(longest);
        // Full jitter: devices that lost the hub together come back spread over the whole pause. The shortest
        // one is where the draw begins: as a bound on its result, it would bring a tenth of a fleet back in
        // the same moment.
        let shortest = self.pace.shortest_pause;
        shortest + ceiling.saturating_sub(shortest).mul_f64(self.random.f64())
    }

    /// Takes note of a session that ended: one that lasted makes both kinds of pauses short again.
    pub fn ended_after(&mut self, session_length: Duration) {
        if session_length >= self.pace.stable_after {
            (self.lost, self.refused) = (0, 0);
        }
    }

    /// A moment between 80 and 85 % of `life`: the hub cuts at 100 %, and a fleet that connected
    /// together does not renew together.
    pub fn renewal(&mut self, life: Duration) -> Duration {
        life.mul_f64(0.80 + 0.05 * self.random.f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backoff(seed: u64) -> Backoff {
        Backoff::new(Pace::default(), fastrand::Rng::with_seed(seed))
    }

    /// The largest of many draws is near the ceiling that they are drawn below.
    fn ceiling(attempt: u32, cause: Cause) -> Duration {
        let draws = (0..300).map(|seed| {
            let mut backoff = backoff(seed);
            (0..=attempt).map(|_| backoff.pause(cause, Duration::ZERO)).last().unwrap()
        });
        draws.max().unwrap()
    }

    #[test]
    fn pauses_double_up_to_minutes() {
        for (attempt, expected_secs) in [(0, 10.0), (1, 20.0), (2, 40.0), (5, 300.0), (100, 300.0)] {
            let seen = ceiling(attempt, Cause::Lost).as_secs_f64();
            assert!(seen <= expected_secs && seen > expected_secs * 0.9, "{attempt}: {seen}");
        }
    }

    #[test]
    fn a_refusal_is_tried_again_more_slowly_but_for_ever() {
        for (attempt, expected_secs) in [(0, 60.0), (1, 120.0), (6, 3600.0), (1000, 3600.0)] {
            let seen = ceiling(attempt, Cause::Refused).as_secs_f64();
            assert!(seen <= expected_secs && seen > expected_secs * 0.9, "{attempt}: {seen}");
        }
    }

    #[test]
    fn devices_that_lost_the_hub_together_come_back_spread() {
        let mut pauses: Vec<Duration> =
            (0..1000).map(|seed| backoff(seed).pause(Cause::Lost, Duration::from_secs(86_400))).collect();
        pauses.sort();
        for (share, expected_secs) in [(250, 3.25), (500, 5.5), (750, 7.75)] {
            let seen = pauses[share].as_secs_f64();
            assert!((seen - expected_secs).abs() < 0.5, "{share}: {seen}");
        }
        assert!(pauses[0] >= Pace::default().shortest_pause);
        // Nowhere do many come together: 1000 in nine seconds are 11 in a tenth of one.
        for tenth in 10..100 {
            let together = pauses.iter().filter(|pause| pause.as_millis() / 100 == tenth).count();
            assert!(together < 30, "{together} in tenth {tenth}");
        }
    }

    #[test]
    fn only_a_session_that_lasted_makes_the_pauses_short_again() {
        let pace = Pace::default();
        for seed in 0..100 {
            let mut backoff = backoff(seed);
            for _ in 0..10 {
                backoff.pause(Cause::Lost, pace.stable_after - Duration::from_secs(1));
            }
            assert_eq!(backoff.lost, 10);
            assert!(backoff.pause(Cause::Lost, pace.stable_after) <= pace.first_pause);
            assert_eq!(backoff.lost, 1);
            backoff.ended_after(pace.stable_after);
            assert_eq!(backoff.lost, 0, "its end may be our own doing");
        }
    }

    #[test]
    fn the_first_refusal_after_an_outage_is_a_first_one_and_the_other_way_round() {
        let pace = Pace::default();
        for seed in 0..100 {
            for (long, then, first) in [
                (Cause::Lost, Cause::Refused, pace.first_refused_pause),
                (Cause::Refused, Cause::Lost, pace.first_pause),
            ] {
                let mut backoff = backoff(seed);
                for _ in 0..100 {
                    backoff.pause(long, Duration::ZERO);
                }
                assert!(backoff.pause(then, Duration::ZERO) <= first);
                backoff.ended_after(pace.stable_after);
                assert_eq!((backoff.lost, backoff.refused), (0, 0));
            }
        }
    }

    #[test]
    fn a_token_is_renewed_well_before_it_expires_and_not_by_all_at_once() {
        let life = Duration::from_secs(3600);
        let renewals: Vec<_> = (0..100).map(|seed| backoff(seed).renewal(life).as_secs()).collect();
        assert!(renewals.iter().all(|at| (2880..=3060).contains(at)), "{renewals:?}");
        assert!(renewals.iter().max().unwrap() - renewals.iter().min().unwrap() > 120);
    }
}
