//! A storm: the hub loses every device at once, and counts how they come back.

use std::fmt::Write as _;
use std::time::Duration;

use hub_emulator::hub::{Hub, Traffic};
use tokio::time::Instant;

use super::screen::bar;

/// Fine enough for the shape of seconds.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

/// The longest pause and the longest hold are five minutes each.
const LIMIT: Duration = Duration::from_secs(900);

const ROWS_MAX: usize = 24;
const BAR_WIDTH: usize = 30;

/// What arrived in each second after the storm began.
#[derive(Debug, Default)]
pub(super) struct Storm {
    pub devices: usize,
    pub connects: Vec<u64>,
    pub twin_reads: Vec<u64>,
}

impl Storm {
    /// Cuts all connections of `devices` that are connected, lets nobody in for `away`, and counts until each
    /// has connected and read its twin again.
    pub async fn brew(hub: &Hub, devices: usize, away: Duration) -> Self {
        let before = hub.traffic();
        hub.set_away(true);
        tokio::time::sleep(away).await;
        hub.set_away(false);
        let mut storm = Self { devices, ..Self::default() };
        let mut counted = hub.traffic();
        let began = Instant::now();
        let all = u64::try_from(devices).unwrap_or(u64::MAX);
        let mut ticks = tokio::time::interval(SAMPLE_INTERVAL);
        while began.elapsed() < LIMIT {
            ticks.tick().await;
            let now = hub.traffic();
            storm.add(began.elapsed(), counted, now);
            counted = now;
            if now.connects >= before.connects + all && now.twin_reads >= before.twin_reads + all {
                break;
            }
        }
        storm
    }

    fn add(&mut self, since: Duration, before: Traffic, now: Traffic) {
        let second = usize::try_from(since.as_secs()).unwrap_or(usize::MAX);
        let arrivals = [
            (&mut self.connects, now.connects - before.connects),
            (&mut self.twin_reads, now.twin_reads - before.twin_reads),
        ];
        for (seconds, arrived) in arrivals {
            seconds.resize(second + 1, 0);
            if let Some(last) = seconds.last_mut() {
                *last += arrived;
            }
        }
    }

    /// The largest share of the fleet, in percent, that arrived in one second.
    pub fn peak_percent(&self, seconds: &[u64]) -> f64 {
        let peak = seconds.iter().max().copied().unwrap_or_default();
        100.0 * as_f64(peak) / as_f64(self.devices.try_into().unwrap_or(u64::MAX))
    }

    /// The curves, as text.
    pub fn curves(&self) -> String {
        let width_secs = self.connects.len().div_ceil(ROWS_MAX).max(1);
        let sums = |seconds: &[u64]| -> Vec<usize> {
            let sums = seconds.chunks(width_secs).map(|chunk| chunk.iter().sum::<u64>());
            sums.map(|sum| usize::try_from(sum).unwrap_or(usize::MAX)).collect()
        };
        let (connects, twin_reads) = (sums(&self.connects), sums(&self.twin_reads));
        let most = connects.iter().chain(&twin_reads).max().copied().unwrap_or(1);
        let mut text = format!("{:>10}  {:<38}{}\n", "seconds", "CONNECTs", "twin GETs");
        for (row, (connects, twin_reads)) in connects.iter().zip(&twin_reads).enumerate() {
            let from = row * width_secs;
            let (left, right) = (bar(*connects, most, BAR_WIDTH), bar(*twin_reads, most, BAR_WIDTH));
            // Writing to a text cannot fail.
            let _ = writeln!(
                text,
                "{from:>4} - {:<4} {connects:>6} {left:<31}{twin_reads:>6} {right}",
                from + width_secs
            );
        }
        let _ = write!(
            text,
            "In the busiest second came {:.1} % of the fleet's CONNECTs and {:.1} % of its twin GETs.",
            self.peak_percent(&self.connects),
            self.peak_percent(&self.twin_reads),
        );
        text
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share for a person to read")]
fn as_f64(count: u64) -> f64 {
    count as f64
}
