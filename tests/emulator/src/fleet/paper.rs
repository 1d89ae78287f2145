//! A storm on paper: the daemon's own pauses and its talk about the twin, in virtual time, against a hub that lets
//! no more through than its quotas say.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use clap::ValueEnum;
use tokio::time::Instant;
use twinboot::hub::Pace;
use twinboot::hub::backoff::{Backoff, Cause};
use twinboot::hub::twin::Twin;

use super::storm::Storm;

/// More devices are reckoned as so many, on a hub that is as much smaller: the curve is the same.
const SAMPLE: u32 = 20_000;

/// From a request to its answer, over a mobile network.
const ROUND_TRIP: Duration = Duration::from_millis(100);

const TWIN: &[u8] = br#"{"desired":{"$version":1},"reported":{"$version":1}}"#;

/// A tier of IoT Hub.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Tier {
    S1,
    S2,
    S3,
}

/// What a hub takes in one second, by Microsoft's "IoT Hub quotas and throttling".
#[derive(Debug, Clone, Copy)]
pub(super) struct Quotas {
    pub connects: u32,
    pub twin_reads: u32,
}

impl Tier {
    pub fn quotas(self, units: u32) -> Quotas {
        match self {
            Self::S1 => Quotas { connects: (12 * units).max(100), twin_reads: 100 },
            Self::S2 => Quotas { connects: 120 * units, twin_reads: (10 * units).max(100) },
            Self::S3 => Quotas { connects: 6000 * units, twin_reads: 500 * units },
        }
    }
}

/// So many requests per second, and a second's worth at once.
struct Throttle {
    per_sec: f64,
    left: f64,
    at: Duration,
}

impl Throttle {
    fn new(per_sec: f64) -> Self {
        Self { per_sec, left: per_sec, at: Duration::ZERO }
    }

    fn lets_through(&mut self, now: Duration) -> bool {
        let refill = now.saturating_sub(self.at).as_secs_f64() * self.per_sec;
        (self.left, self.at) = ((self.left + refill).min(self.per_sec.max(1.0)), now);
        let through = self.left >= 1.0;
        self.left -= f64::from(u8::from(through));
        through
    }
}

/// A device, and its session once it has one.
struct Device {
    backoff: Backoff,
    twin: Option<Twin>,
}

/// How `devices` come back to such a hub, which they all lost at once after a long time.
pub(super) fn reckon(devices: u32, quotas: Quotas, seed: u64) -> Storm {
    let sample = devices.clamp(1, SAMPLE);
    let share = f64::from(sample) / f64::from(devices.max(1));
    let mut connects = Throttle::new(f64::from(quotas.connects) * share);
    let mut reads = Throttle::new(f64::from(quotas.twin_reads) * share);
    let (pace, epoch) = (Pace::default(), Instant::now());
    let mut random = fastrand::Rng::with_seed(seed);
    let mut fleet = Vec::new();
    let mut due = BinaryHeap::new();
    for _ in 0..sample {
        let mut backoff = Backoff::new(pace, random.fork());
        due.push(Reverse((backoff.pause(Cause::Lost, pace.stable_after), fleet.len())));
        fleet.push(Device { backoff, twin: None });
    }
    let mut storm = Storm { devices: sample, ..Storm::default() };
    while let Some(Reverse((now, index))) = due.pop() {
        let Some(device) = fleet.get_mut(index) else { break };
        let next = match &mut device.twin {
            None => {
                let through = connects.lets_through(now);
                storm.connects.count(now, 1, u64::from(through));
                if through {
                    device.twin = Some(Twin::new(pace, random.fork()));
                    Some(now + ROUND_TRIP)
                } else {
                    Some(now + device.backoff.pause(Cause::Lost, Duration::ZERO))
                }
            }
            Some(twin) => {
                let through = reads.lets_through(now);
                storm.twin_reads.count(now, 1, u64::from(through));
                read(twin, epoch + now, through).map(|at| at.duration_since(epoch))
            }
        };
        due.extend(next.map(|next| Reverse((next, index))));
    }
    storm.scaled(devices)
}

/// Asks for the twin. Gives the moment to ask again, if it was throttled.
fn read(twin: &mut Twin, now: Instant, through: bool) -> Option<Instant> {
    let request = twin.next_request(now)?;
    let (_, rid) = request.topic.rsplit_once('=')?;
    let (status, payload) = if through { (200, TWIN) } else { (429, &b""[..]) };
    // A twin that is understood cannot fail.
    let _ = twin.answer(rid, status, payload, now);
    twin.wake_at()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_come_back_not_much_later_than_a_perfect_queue_would_let_them() {
        for (tier, units) in [(Tier::S1, 200), (Tier::S2, 200), (Tier::S3, 1), (Tier::S3, 10)] {
            let quotas = tier.quotas(units);
            let storm = reckon(1_000_000, quotas, 1);
            let perfect = |per_sec| 1_000_000 / usize::try_from(per_sec).unwrap();
            let connected = storm.connects.secs_until(99);
            assert!(
                connected < 15 + 5 * perfect(quotas.connects) / 2,
                "{tier:?}: connected after {connected} s"
            );
            let read = storm.twin_reads.secs_until(99);
            assert!(read < 15 + 9 * perfect(quotas.twin_reads) / 5, "{tier:?}: read after {read} s");
            assert!(storm.per_device(&storm.connects) < 7.0 && storm.per_device(&storm.twin_reads) < 30.0);
        }
    }
}
