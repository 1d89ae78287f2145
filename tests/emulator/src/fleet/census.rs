//! How many devices are where.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use tokio::sync::watch;
use twinboot::control::Status;

/// The twin's words for what a device does, in the order of an update; those of a device at rest last.
pub(super) const STATUSES: [&str; 7] =
    ["downloading", "verifying", "applying", "rebooting", "current", "rolledback", "error"];

/// The words of a device that is in the middle of an update.
const BUSY: [&str; 4] = ["downloading", "verifying", "applying", "rebooting"];

/// A count of the whole fleet at one moment.
#[derive(Debug, Default)]
pub(super) struct Census {
    pub devices: usize,
    pub connected: usize,
    /// By `fwUpdateStatus`.
    pub statuses: BTreeMap<String, usize>,
    /// By `currentFwVersion`.
    pub versions: BTreeMap<String, usize>,
    /// By code, with the sentence of one of them.
    pub failures: BTreeMap<String, (usize, String)>,
    /// Devices that were ever told to update.
    pub told: usize,
}

impl Census {
    pub fn take(fleet: &[watch::Receiver<Status>]) -> Self {
        let mut census = Self { devices: fleet.len(), ..Self::default() };
        for device in fleet {
            let status = device.borrow();
            census.connected += usize::from(status.hub_connected);
            if let Some(Value::Object(firmware)) = status.reported.get("firmware") {
                census.count(firmware);
            }
        }
        census
    }

    fn count(&mut self, firmware: &Map<String, Value>) {
        let text = |name: &str| firmware.get(name).and_then(Value::as_str).map(str::to_owned);
        *self.statuses.entry(text("fwUpdateStatus").unwrap_or_default()).or_default() += 1;
        *self.versions.entry(text("currentFwVersion").unwrap_or_default()).or_default() += 1;
        self.told += usize::from(text("updateId").is_some());
        let failure = |name: &str| firmware.get("error")?.get(name)?.as_str();
        if let (Some(code), Some(message)) = (failure("code"), failure("message")) {
            let (count, _) = self.failures.entry(code.to_owned()).or_insert_with(|| (0, message.to_owned()));
            *count += 1;
        }
    }

    pub fn with_status(&self, status: &str) -> usize {
        self.statuses.get(status).copied().unwrap_or_default()
    }

    pub fn all_connected(&self) -> bool {
        self.connected == self.devices
    }

    /// Whether there was an update, and it is over everywhere.
    pub fn is_idle_again(&self) -> bool {
        self.told > 0 && self.all_connected() && BUSY.iter().all(|status| self.with_status(status) == 0)
    }
}
