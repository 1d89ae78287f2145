//! What a status says about the update: the reported properties, read by name.

use serde_json::{Map, Value};

use super::paint::harmless;
use super::progress::mebibytes;
use crate::control::Status;
use crate::update::Slot;

/// How far the update is, or how the last one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// No update is known, or one that this program does not understand.
    StandBy,
    /// Between the request and the result.
    Running,
    /// The new slot is armed, and the reboot asked for.
    Rebooting,
    /// Committed.
    Completed,
    /// Ended before the boot loader was touched.
    Failed,
    /// The old slot runs again.
    RolledBack,
}

/// A status, read. Texts are safe to print.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    status: &'a Status,
    firmware: Option<&'a Map<String, Value>>,
}

/// Bytes of the source taken, and how many there are where that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Amount {
    pub bytes: u64,
    pub total_bytes: Option<u64>,
}

/// One slot, as reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlotView {
    pub slot: Slot,
    pub is_running: bool,
    pub version: Option<String>,
    pub state: Option<String>,
    pub device: Option<String>,
}

impl<'a> View<'a> {
    pub(super) fn of(status: &'a Status) -> Self {
        Self { status, firmware: status.reported.get("firmware").and_then(Value::as_object) }
    }

    pub(super) fn summary(&self) -> String {
        harmless(&self.status.summary)
    }

    pub(super) fn stage(&self) -> Stage {
        let rebooting = self.plain("fwUpdateStatus") == Some("rebooting");
        match self.status.reported.get("firmwareStatus").and_then(Value::as_str) {
            Some("downloading" | "applying") if rebooting => Stage::Rebooting,
            Some("downloading" | "applying") => Stage::Running,
            Some("completed") => Stage::Completed,
            Some("failed") => Stage::Failed,
            Some("rolledBack") => Stage::RolledBack,
            _ => Stage::StandBy,
        }
    }

    /// Whether the daemon says that there is no update, and was none. One that is only starting says nothing yet.
    pub(super) fn knows_no_update(&self) -> bool {
        let status = self.status.reported.get("firmwareStatus").and_then(Value::as_str);
        status == Some("standBy") && self.plain("updateId").is_none()
    }

    /// A text of the `firmware` object.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        self.plain(key).map(harmless)
    }

    /// `CODE: message` of the last update.
    pub(super) fn error(&self) -> Option<String> {
        let error = self.firmware?.get("error")?.as_object()?;
        let text = |key| error.get(key).and_then(Value::as_str);
        Some(harmless(&format!("{}: {}", text("code")?, text("message").unwrap_or_default())))
    }

    pub(super) fn amount(&self) -> Option<Amount> {
        let progress = self.firmware?.get("progress")?.as_object()?;
        let number = |key| progress.get(key).and_then(Value::as_u64);
        Some(Amount { bytes: number("bytes")?, total_bytes: number("totalBytes") })
    }

    /// Where the bytes came from and went to.
    pub(super) fn traffic(&self) -> Option<String> {
        let progress = self.firmware?.get("progress")?.as_object()?;
        let part = |(key, word): (&str, &str)| {
            let bytes = progress.get(key)?.as_u64()?;
            (bytes > 0).then(|| format!("{} MiB {word}", mebibytes(bytes)))
        };
        let parts = [
            ("fetchedBytes", "fetched"),
            ("savedBytes", "saved"),
            ("copiedBytes", "copied"),
            ("keptBytes", "kept"),
            ("writtenBytes", "written"),
        ];
        let parts: Vec<_> = parts.into_iter().filter_map(part).collect();
        (!parts.is_empty()).then(|| parts.join(", "))
    }

    pub(super) fn running_slot(&self) -> Option<Slot> {
        let booted = self.firmware?.get("slots")?.get("booted")?.as_str()?;
        [Slot::A, Slot::B].into_iter().find(|slot| slot.to_string() == booted)
    }

    pub(super) fn slot(&self, slot: Slot) -> SlotView {
        let name = slot.to_string();
        let reported = self.firmware.and_then(|firmware| firmware.get("slots")?.get(&name));
        let text = |key| Some(harmless(reported?.get(key)?.as_str()?));
        let device = self.status.slot_devices.get(&name).and_then(Value::as_str).map(harmless);
        SlotView {
            slot,
            is_running: self.running_slot() == Some(slot),
            version: text("version"),
            state: text("state"),
            device,
        }
    }

    fn plain(&self, key: &str) -> Option<&'a str> {
        self.firmware?.get(key)?.as_str()
    }
}
