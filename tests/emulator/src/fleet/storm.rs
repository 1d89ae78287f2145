//! A storm: the hub loses every device at once, and counts how they come back.

use std::fmt::Write as _;
use std::time::Duration;

use hub_emulator::hub::Hub;
use tokio::time::Instant;

use super::screen::bar;

/// Fine enough for the shape of seconds.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

/// Three times the longest pause.
const LIMIT: Duration = Duration::from_secs(900);

const ROWS_MAX: usize = 24;
const BAR_WIDTH: usize = 30;

/// Requests of one kind, in each second after the storm began.
#[derive(Debug, Default)]
pub(super) struct Curve {
    arrived: Vec<u64>,
    /// Those that the hub let through.
    served: Vec<u64>,
}

/// How a fleet came back.
#[derive(Debug, Default)]
pub(super) struct Storm {
    pub devices: u32,
    pub connects: Curve,
    pub twin_reads: Curve,
}

impl Curve {
    pub fn count(&mut self, since: Duration, arrived: u64, served: u64) {
        let second = usize::try_from(since.as_secs()).unwrap_or(usize::MAX);
        for (seconds, count) in [(&mut self.arrived, arrived), (&mut self.served, served)] {
            if seconds.len() <= second {
                seconds.resize(second + 1, 0);
            }
            if let Some(in_second) = seconds.get_mut(second) {
                *in_second += count;
            }
        }
    }

    /// When so many percent of all that were ever served had been.
    pub fn secs_until(&self, percent: u64) -> usize {
        let enough = self.served.iter().sum::<u64>() * percent / 100;
        let mut so_far = 0;
        let before = self.served.iter().take_while(|served| {
            so_far += **served;
            so_far < enough
        });
        before.count() + 1
    }
}

impl Storm {
    /// Cuts all connections of `devices` that are connected, lets nobody in for `away`, and counts until each
    /// has connected and read its twin again.
    pub async fn brew(hub: &Hub, devices: u32, away: Duration) -> Self {
        let before = hub.traffic();
        hub.set_away(true);
        tokio::time::sleep(away).await;
        hub.set_away(false);
        let mut storm = Self { devices, ..Self::default() };
        let (began, mut counted) = (Instant::now(), hub.traffic());
        let all = u64::from(devices);
        let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
        while began.elapsed() < LIMIT {
            ticks.tick().await;
            let (now, since) = (hub.traffic(), began.elapsed());
            let connects = now.connects - counted.connects;
            storm.connects.count(since, connects, connects);
            let twin_reads = now.twin_reads - counted.twin_reads;
            storm.twin_reads.count(since, twin_reads, twin_reads);
            counted = now;
            if now.connects >= before.connects + all && now.twin_reads >= before.twin_reads + all {
                break;
            }
        }
        storm
    }

    /// The same curves for a fleet of another size.
    pub fn scaled(mut self, devices: u32) -> Self {
        let (to, from) = (u64::from(devices), u64::from(self.devices).max(1));
        for curve in [&mut self.connects, &mut self.twin_reads] {
            curve.arrived.iter_mut().chain(&mut curve.served).for_each(|count| *count = *count * to / from);
        }
        Self { devices, ..self }
    }

    /// Requests that each device made.
    pub fn per_device(&self, curve: &Curve) -> f64 {
        self.share(curve.arrived.iter().sum())
    }

    /// The share of the fleet that came in the busiest second.
    pub fn peak(&self, curve: &Curve) -> f64 {
        self.share(curve.arrived.iter().max().copied().unwrap_or_default())
    }

    fn share(&self, count: u64) -> f64 {
        as_f64(count) / f64::from(self.devices.max(1))
    }

    /// The curves, as text.
    pub fn curves(&self) -> String {
        let seconds = self.connects.arrived.len().max(self.twin_reads.arrived.len());
        let width = seconds.div_ceil(ROWS_MAX).max(1);
        let sum = |curve: &Curve, row: usize| {
            let arrived: u64 = curve.arrived.iter().skip(row * width).take(width).sum();
            usize::try_from(arrived).unwrap_or(usize::MAX)
        };
        let rows: Vec<_> = (0..seconds.div_ceil(width))
            .map(|row| (row * width, sum(&self.connects, row), sum(&self.twin_reads, row)))
            .collect();
        let most = rows.iter().map(|(_, connects, reads)| *connects.max(reads)).max().unwrap_or_default();
        let mut text = format!("{:>13}  {:<39}{}\n", "seconds", "CONNECTs", "twin GETs");
        for (from, connects, reads) in rows {
            let (left, right) = (bar(connects, most, BAR_WIDTH), bar(reads, most, BAR_WIDTH));
            // Writing to a text cannot fail.
            let _ =
                writeln!(text, "{from:>5} - {:<5}{connects:>8} {left:<31}{reads:>8} {right}", from + width);
        }
        text + &self.summary()
    }

    fn summary(&self) -> String {
        let (connects, reads) = (&self.connects, &self.twin_reads);
        format!(
            "99 % were connected after {} s, and had read their twin after {} s, with {:.1} CONNECTs and {:.1} twin \
             GETs each.\nThe busiest second had CONNECTs of {:.1} % of the fleet, and twin GETs of {:.1} %.",
            connects.secs_until(99),
            reads.secs_until(99),
            self.per_device(connects),
            self.per_device(reads),
            100.0 * self.peak(connects),
            100.0 * self.peak(reads),
        )
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(super) fn as_f64(count: u64) -> f64 {
    count as f64
}
