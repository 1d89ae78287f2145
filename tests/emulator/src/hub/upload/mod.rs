//! Files that devices upload: what the hub has announced, and what has arrived in its storage.

pub(super) mod blob;
pub(super) mod files;

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::failure::Failure;
use super::{clock, random};

/// Uploads of one device at once, as in the hub.
const ACTIVE_LIMIT: usize = 10;
/// How long a device may write to the storage: the hub's default.
const LIFE_SECS: i64 = 3600;
/// Uploads kept, of all devices.
const KEPT_LIMIT: usize = 1000;
/// The memory for their bytes.
const KEPT_LIMIT_BYTES: usize = 256 << 20;
/// The container in the storage; no other path of the hub begins so.
const CONTAINER: &str = "device-uploads";

/// What a device said at the end of an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UploadNotification {
    /// Whether the file is there.
    pub is_success: bool,
    /// The storage's last answer.
    #[serde(default)]
    pub status_code: i64,
    /// The same in words.
    #[serde(default)]
    pub status_description: String,
}

/// A file that a device has uploaded or is about to.
#[derive(Debug, Clone)]
pub struct Upload {
    /// The device.
    pub device_id: String,
    /// The name that the device gave it.
    pub name: String,
    /// What is in the storage; nothing before it is complete.
    pub bytes: Option<Bytes>,
    /// What the device said of it, once it has.
    pub notification: Option<UploadNotification>,
    correlation_id: String,
    /// The signature of its access to the storage.
    signature: String,
    /// The end of that access, in seconds since 1970.
    expiry: i64,
    /// Blocks that are not part of the file yet, by their ids.
    blocks: BTreeMap<String, Bytes>,
}

impl Upload {
    /// Where it is in the storage.
    pub(super) fn path(&self) -> String {
        format!("/{CONTAINER}/{}/{}", self.device_id, self.name)
    }

    fn is_active(&self) -> bool {
        self.notification.is_none() && clock::until(self.expiry).is_some()
    }

    fn size_bytes(&self) -> usize {
        self.blocks.values().chain(&self.bytes).map(Bytes::len).sum()
    }
}

/// All uploads that are remembered, oldest first.
#[derive(Debug, Default)]
pub(super) struct Uploads(VecDeque<Upload>);

impl Uploads {
    /// The uploads of one device, oldest first.
    pub fn of(&self, device: &str) -> Vec<Upload> {
        self.0.iter().filter(|upload| upload.device_id == device).cloned().collect()
    }

    fn start(&mut self, device: &str, name: &str) -> Result<&Upload, Failure> {
        let active = self.0.iter().filter(|upload| upload.device_id == device && upload.is_active());
        if active.count() >= ACTIVE_LIMIT {
            let symbol = "DeviceMaximumActiveFileUploadLimitExceeded";
            let message = format!("A device has at most {ACTIVE_LIMIT} uploads at once.");
            return Err(Failure::numbered(403, symbol, 403_006, message));
        }
        if self.0.len() >= KEPT_LIMIT {
            self.0.pop_front();
        }
        self.0.push_back(Upload {
            device_id: device.to_owned(),
            name: name.to_owned(),
            bytes: None,
            notification: None,
            correlation_id: random::hex(16),
            signature: random::hex(32),
            expiry: (clock::now_millis() / 1000).saturating_add(LIFE_SECS),
            blocks: BTreeMap::new(),
        });
        self.0.back().ok_or_else(|| Failure::bad_argument("there is no room"))
    }

    fn finish(&mut self, device: &str, id: &str, notification: UploadNotification) -> Result<(), Failure> {
        let mut uploads = self.0.iter_mut();
        let upload = uploads.find(|upload| upload.device_id == device && upload.correlation_id == id);
        let upload = upload.filter(|upload| upload.notification.is_none());
        let unknown = || Failure::bad_argument(format!("There is no active upload '{id}'."));
        upload.ok_or_else(unknown)?.notification = Some(notification);
        Ok(())
    }

    /// The newest complete file of this name.
    fn newest(&self, device: &str, name: &str) -> Option<&Bytes> {
        let mut uploads = self.0.iter().rev();
        uploads.find(|one| one.device_id == device && one.name == name && one.bytes.is_some())?.bytes.as_ref()
    }

    /// The upload that this signature gives access to, as long as it does.
    fn signed_by(&mut self, device: &str, name: &str, signature: &str) -> Option<&mut Upload> {
        let mut uploads = self.0.iter_mut();
        uploads.find(|upload| {
            upload.device_id == device
                && upload.name == name
                && upload.signature == signature
                && upload.is_active()
        })
    }

    /// Forgets old files until the others find room.
    fn make_room(&mut self) {
        let mut size_bytes: usize = self.0.iter().map(Upload::size_bytes).sum();
        while size_bytes > KEPT_LIMIT_BYTES {
            let Some(oldest) = self.0.pop_front() else { return };
            size_bytes = size_bytes.saturating_sub(oldest.size_bytes());
        }
    }
}
