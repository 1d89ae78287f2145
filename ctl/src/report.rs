//! What a device's twin says about its firmware: the reported properties, read by name. A `String` is
//! safe to print; a `&str` is as the device sent it, to be compared.

use std::time::SystemTime;

use serde_json::Value;
use twinboot::cli::paint::harmless;

/// A twin as the service API and queries give it.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    twin: &'a Value,
}

/// Bytes of the image fetched, and how many there are where that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    pub bytes: u64,
    pub total_bytes: Option<u64>,
}

impl Amount {
    /// Never 100 before the last byte.
    pub fn percent(self) -> Option<u64> {
        let total = self.total_bytes.filter(|total| *total > 0)?;
        u64::try_from(u128::from(self.bytes.min(total)) * 100 / u128::from(total)).ok()
    }
}

/// How an update ended, by the tutorial's words and ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Completed,
    Failed,
    RolledBack,
}

impl<'a> Report<'a> {
    pub fn of(twin: &'a Value) -> Self {
        Self { twin }
    }

    pub fn device(self) -> String {
        self.printable("/deviceId").unwrap_or_default()
    }

    pub fn is_connected(self) -> bool {
        self.raw("/connectionState") == Some("Connected")
    }

    /// `standBy`, `downloading`, `applying`, `completed`, `failed`, `rolledBack`.
    pub fn firmware_status(self) -> Option<&'a str> {
        self.raw("/properties/reported/firmwareStatus")
    }

    pub fn ending(self) -> Option<Ending> {
        match self.firmware_status()? {
            "completed" => Some(Ending::Completed),
            "failed" => Some(Ending::Failed),
            "rolledBack" => Some(Ending::RolledBack),
            _ => None,
        }
    }

    /// A text of the reported properties, by its path; an empty one is none.
    pub fn reported(self, path: &str) -> Option<String> {
        self.printable(&format!("/properties/reported/{path}")).filter(|text| !text.is_empty())
    }

    pub fn update_id(self) -> Option<&'a str> {
        self.raw("/properties/reported/firmware/updateId")
    }

    /// `Code: message`
    pub fn error(self) -> Option<String> {
        let (code, message) =
            (self.reported("firmware/error/code")?, self.reported("firmware/error/message"));
        Some(format!("{code}: {}", message.unwrap_or_default()))
    }

    pub fn amount(self) -> Option<Amount> {
        let progress = self.twin.pointer("/properties/reported/firmware/progress")?;
        let number = |key| progress.get(key).and_then(Value::as_u64);
        Some(Amount { bytes: number("bytes")?, total_bytes: number("totalBytes") })
    }

    /// When the amount was reported, by the hub's clock.
    pub fn amount_at(self) -> Option<SystemTime> {
        self.updated_at("firmware/progress/bytes")
    }

    /// When the device last told something about its firmware, by the hub's clock.
    pub fn reported_at(self) -> Option<String> {
        let at = self.updated_at("firmware")?;
        Some(humantime::format_rfc3339_seconds(at).to_string())
    }

    fn updated_at(self, path: &str) -> Option<SystemTime> {
        let text = self.raw(&format!("/properties/reported/$metadata/{path}/$lastUpdated"))?;
        humantime::parse_rfc3339(text).ok()
    }

    fn raw(self, pointer: &str) -> Option<&'a str> {
        self.twin.pointer(pointer)?.as_str()
    }

    fn printable(self, pointer: &str) -> Option<String> {
        self.raw(pointer).map(harmless)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_is_read_by_name_and_nothing_of_it_is_needed() {
        let twin = json!({"deviceId": "d", "connectionState": "Connected", "properties": {"reported": {
            "firmwareStatus": "failed",
            "firmware": {"updateId": "u-1", "currentFwVersion": "1.0\u{1b}[2J", "pendingFwVersion": "",
                "error": {"code": "SizeMismatch", "message": "too long"},
                "progress": {"bytes": 10, "totalBytes": 30}},
            "$metadata": {"firmware": {"$lastUpdated": "2026-11-23T10:00:00.1234567Z"}},
        }}});
        let report = Report::of(&twin);
        assert!(report.is_connected());
        assert_eq!((report.ending(), report.update_id()), (Some(Ending::Failed), Some("u-1")));
        assert_eq!(report.reported("firmware/currentFwVersion").as_deref(), Some("1.0\u{fffd}[2J"));
        assert_eq!(report.reported("firmware/pendingFwVersion"), None);
        assert_eq!(report.error().as_deref(), Some("SizeMismatch: too long"));
        assert_eq!(report.amount().and_then(Amount::percent), Some(33));
        assert_eq!(report.reported_at().as_deref(), Some("2026-11-23T10:00:00Z"));

        let empty = json!({"deviceId": "d", "properties": {}});
        let report = Report::of(&empty);
        assert_eq!((report.ending(), report.error(), report.amount()), (None, None, None));
    }
}
