//! The Device Provisioning Service in front of the hub: it lets devices register themselves.

mod attestation;
mod control;
mod enrollment;
mod mqtt;
mod registration;
pub(super) mod rest;

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub(super) use self::attestation::Proof;
pub use self::control::Dps;
pub(super) use self::enrollment::Enrollment;
pub(super) use self::mqtt::visitor;
use self::registration::Registration;
use super::failure::numbered;
use super::random;

/// What the service names itself to devices.
const ID_SCOPE: &str = "0ne00000001";
/// The policy of its own API.
pub(super) const OWNER: &str = "provisioningserviceowner";
/// The pause that it asks devices for between polls.
const RETRY_AFTER_SECS: u64 = 3;

/// A refusal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// As in HTTP.
    pub status: u16,
    code: u32,
    pub message: String,
}

impl Refusal {
    fn new(status: u16, code: u32, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, 400_004, message)
    }

    pub fn unauthorized() -> Self {
        Self::new(401, 401_002, "Unauthorized")
    }

    pub fn not_found(what: &str) -> Self {
        Self::new(404, 404_201, format!("{what} not found."))
    }

    pub fn body(&self) -> Value {
        numbered(self.code, &self.message, &json!({}))
    }
}

/// All the service knows.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Provisioning {
    pub id_scope: String,
    /// The key of [`OWNER`], in base64.
    pub owner_key: String,
    /// By registration id.
    pub enrollments: BTreeMap<String, Enrollment>,
    /// By name.
    pub groups: BTreeMap<String, Enrollment>,
    /// The devices that have registered, by registration id in lower case.
    pub registrations: BTreeMap<String, Registration>,
    #[serde(skip)]
    pub manner: Manner,
}

/// How the service behaves. Tests change it.
#[derive(Debug)]
pub(super) struct Manner {
    pub retry_after_secs: u64,
    /// Polls that are answered "assigning" before the assignment is told.
    pub busy_polls: u32,
    /// The hub that devices are sent to; none for the first of its names.
    pub assigned_hub: Option<String>,
    /// Statuses to refuse the next requests with.
    pub failures: VecDeque<u16>,
}

impl Default for Manner {
    fn default() -> Self {
        let retry_after_secs = RETRY_AFTER_SECS;
        Self { retry_after_secs, busy_polls: 0, assigned_hub: None, failures: VecDeque::new() }
    }
}

impl Provisioning {
    /// A service that knows nobody.
    pub fn new() -> Self {
        Self {
            id_scope: ID_SCOPE.to_owned(),
            owner_key: random::key(),
            enrollments: BTreeMap::new(),
            groups: BTreeMap::new(),
            registrations: BTreeMap::new(),
            manner: Manner::default(),
        }
    }
}
