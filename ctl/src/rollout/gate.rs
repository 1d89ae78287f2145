//! The gate between two rings: by the counts of those that are open.

use serde::Serialize;

/// When the next ring opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gate {
    /// More failed and rolled back than this share of a ring stops the rollout.
    pub failed_percent: u64,
    /// At least this share of a ring must be done.
    pub done_percent: u64,
}

/// How far the devices of one ring are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tally {
    pub devices: u64,
    pub downloading: u64,
    pub applying: u64,
    pub current: u64,
    pub error: u64,
    pub rolledback: u64,
}

/// What the gate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Open the next ring.
    Open,
    /// Not yet.
    Wait(String),
    /// Not without a person.
    Stop(String),
    /// All rings are open, and enough of the last one is done.
    Complete,
}

impl Gate {
    /// Whether the next ring may open after this one.
    pub fn decide(self, tally: &Tally) -> Verdict {
        let (devices, done_percent) = (tally.devices, self.done_percent);
        if devices == 0 {
            return Verdict::Wait("no device meets its condition".into());
        }
        if let Some(why) = self.too_many_failed(tally) {
            return Verdict::Stop(why);
        }
        let is_enough = |part: u64| u128::from(part) * 100 >= u128::from(done_percent) * u128::from(devices);
        if is_enough(tally.current.min(devices)) {
            return Verdict::Open;
        }
        let failed = tally.failed();
        if !is_enough(devices - failed) {
            let failed = percent(failed, devices);
            return Verdict::Stop(format!(
                "{failed} failed or rolled back, so {done_percent} % cannot be done any more"
            ));
        }
        Verdict::Wait(format!("{} done, {done_percent} % are wanted", percent(tally.current, devices)))
    }

    /// Why a ring stops the rollout, whichever it is.
    pub fn too_many_failed(self, tally: &Tally) -> Option<String> {
        let (failed, allowed) = (tally.failed(), self.failed_percent);
        let is_more = u128::from(failed) * 100 > u128::from(allowed) * u128::from(tally.devices);
        let share = percent(failed, tally.devices);
        is_more.then(|| format!("{share} failed or rolled back, {allowed} % are allowed"))
    }
}

/// `12.5 %`, cut rather than rounded: 94.99 is not 95.
fn percent(part: u64, whole: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(whole.max(1));
    match tenths % 10 {
        0 => format!("{} %", tenths / 10),
        tenth => format!("{}.{tenth} %", tenths / 10),
    }
}

impl Tally {
    /// From the number of devices of a ring, and the numbers by status.
    pub fn of(devices: u64, states: &[(String, u64)]) -> Self {
        let mut tally = Self { devices, ..Self::default() };
        for (status, count) in states {
            let place = match status.as_str() {
                "completed" | "standBy" => &mut tally.current,
                "downloading" => &mut tally.downloading,
                "applying" => &mut tally.applying,
                "failed" => &mut tally.error,
                "rolledBack" => &mut tally.rolledback,
                _ => continue,
            };
            *place = place.saturating_add(*count);
        }
        tally
    }

    /// Devices may leave a ring between two queries.
    pub fn failed(&self) -> u64 {
        self.error.saturating_add(self.rolledback).min(self.devices)
    }

    /// Off, or not yet told by the hub.
    pub fn waiting(&self) -> u64 {
        let begun = [self.downloading, self.applying, self.current, self.error, self.rolledback];
        begun.into_iter().fold(self.devices, u64::saturating_sub)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATE: Gate = Gate { failed_percent: 2, done_percent: 95 };

    fn tally(devices: u64, current: u64, error: u64, rolledback: u64) -> Tally {
        Tally { devices, current, error, rolledback, ..Tally::default() }
    }

    #[test]
    fn the_gate_opens_waits_and_stops_at_its_limits() {
        let table = [
            // devices, current, error, rolled back
            (tally(100, 95, 0, 0), "open"),
            (tally(100, 95, 2, 0), "open"),
            (tally(100, 94, 0, 0), "wait"),
            (tally(100, 94, 1, 1), "wait"),
            (tally(100, 97, 2, 1), "stop"),
            (tally(100, 0, 3, 0), "stop"),
            (tally(100, 0, 0, 3), "stop"),
            (tally(1000, 949, 20, 0), "wait"),
            (tally(1000, 950, 20, 0), "open"),
            (tally(1000, 979, 21, 0), "stop"),
            (tally(1, 0, 0, 0), "wait"),
            (tally(1, 1, 0, 0), "open"),
            (tally(1, 0, 1, 0), "stop"),
            // A typing error in a tag is no reason to go on to all others.
            (tally(0, 0, 0, 0), "wait"),
            // Counts of two moments may contradict each other.
            (tally(10, 12, 0, 0), "open"),
            (tally(0, 3, 3, 0), "wait"),
            (tally(u64::MAX, u64::MAX, 0, 0), "open"),
            (tally(u64::MAX, 0, u64::MAX, u64::MAX), "stop"),
        ];
        for (tally, expected) in table {
            let verdict = match GATE.decide(&tally) {
                Verdict::Open => "open",
                Verdict::Wait(_) => "wait",
                Verdict::Stop(_) => "stop",
                Verdict::Complete => "complete",
            };
            assert_eq!(verdict, expected, "{tally:?}");
        }
    }

    #[test]
    fn a_gate_that_can_never_open_stops() {
        let gate = Gate { failed_percent: 20, done_percent: 95 };
        assert!(matches!(gate.decide(&tally(100, 60, 5, 0)), Verdict::Wait(_)));
        let Verdict::Stop(why) = gate.decide(&tally(100, 60, 6, 0)) else { panic!("stop") };
        assert_eq!(why, "6 % failed or rolled back, so 95 % cannot be done any more");
        let none = Gate { failed_percent: 0, done_percent: 100 };
        assert_eq!(none.decide(&tally(3, 3, 0, 0)), Verdict::Open);
        assert!(matches!(none.decide(&tally(1000, 999, 1, 0)), Verdict::Stop(_)));
    }

    #[test]
    fn the_states_of_devices_are_summed_and_the_rest_waits() {
        let states = [("completed", 3), ("standBy", 1), ("downloading", 2), ("failed", 1), ("later", 7)];
        let tally = Tally::of(10, &states.map(|(status, count)| (status.to_owned(), count)));
        assert_eq!((tally.current, tally.downloading, tally.error, tally.waiting()), (4, 2, 1, 3));
    }

    #[test]
    fn a_share_is_never_rounded_up() {
        assert_eq!(
            [percent(1, 3), percent(949_999, 1_000_000), percent(2, 2)],
            ["33.3 %", "94.9 %", "100 %"]
        );
    }
}
