//! The provisioning service in the hands of a test.

use serde_json::{Value, json};

use super::{Enrollment, OWNER, Provisioning, Refusal};
use crate::hub::{Hub, HubError};

/// The provisioning service of a hub.
#[derive(Clone, Copy)]
pub struct Dps<'a> {
    hub: &'a Hub,
}

impl Hub {
    /// The provisioning service, on the ports of the hub.
    pub fn dps(&self) -> Dps<'_> {
        Dps { hub: self }
    }
}

impl Dps<'_> {
    /// What the service names itself to devices.
    pub fn id_scope(&self) -> String {
        self.read(|dps| dps.id_scope.clone())
    }

    /// The connection string of the policy `provisioningserviceowner`.
    pub fn service_connection_string(&self) -> String {
        let key = self.read(|dps| dps.owner_key.clone());
        format!("HostName={};SharedAccessKeyName={OWNER};SharedAccessKey={key}", self.hub.service_host())
    }

    /// Enrolls one device, or changes its enrollment. `enrollment` is what a service would PUT; keys that it leaves
    /// open are made. Returns the enrollment.
    pub fn enroll(&self, registration_id: &str, enrollment: Value) -> Result<Value, HubError> {
        let enrollment = Enrollment::from_body(enrollment, false).map_err(refused)?;
        let shown = enrollment.for_service("registrationId", registration_id);
        self.change(|dps| dps.enrollments.insert(registration_id.to_owned(), enrollment));
        Ok(shown)
    }

    /// The same for a group of devices.
    pub fn enroll_group(&self, name: &str, group: Value) -> Result<Value, HubError> {
        let group = Enrollment::from_body(group, true).map_err(refused)?;
        let shown = group.for_service("enrollmentGroupId", name);
        self.change(|dps| dps.groups.insert(name.to_owned(), group));
        Ok(shown)
    }

    /// Enrolls one device with a new key. Returns the key, in base64.
    pub fn enroll_with_key(&self, registration_id: &str) -> Result<String, HubError> {
        self.enroll(registration_id, json!({ "attestation": { "type": "symmetricKey" } }))?;
        self.enrollment_key(registration_id).ok_or_else(|| HubError::Refused("there is no key".into()))
    }

    /// Enrolls a group with a new key. Returns the key, in base64, from which devices' are derived.
    pub fn enroll_group_with_key(&self, name: &str) -> Result<String, HubError> {
        self.enroll_group(name, json!({ "attestation": { "type": "symmetricKey" } }))?;
        self.group_key(name).ok_or_else(|| HubError::Refused("there is no key".into()))
    }

    /// The key of an enrollment; none if there is no such enrollment, or if it has certificates.
    pub fn enrollment_key(&self, registration_id: &str) -> Option<String> {
        self.read(|dps| dps.enrollments.get(registration_id)?.primary_key())
    }

    /// The same for a group.
    pub fn group_key(&self, name: &str) -> Option<String> {
        self.read(|dps| dps.groups.get(name)?.primary_key())
    }

    /// `registrationState` of a device; null if it has not registered.
    pub fn registration(&self, registration_id: &str) -> Value {
        let key = registration_id.to_ascii_lowercase();
        self.read(|dps| dps.registrations.get(&key).map(|one| one.state(registration_id))).unwrap_or_default()
    }

    /// Answers this many polls of each registration from now on "assigning", with this pause in between.
    pub fn set_pace(&self, busy_polls: u32, retry_after_secs: u64) {
        self.change(|dps| {
            dps.manner.busy_polls = busy_polls;
            dps.manner.retry_after_secs = retry_after_secs;
        });
    }

    /// Sends devices to this hub (`host` or `host:port`) from now on.
    pub fn assign_to(&self, hub: &str) {
        self.change(|dps| dps.manner.assigned_hub = Some(hub.to_owned()));
    }

    /// Refuses the next request of a device with this status; several add up.
    pub fn fail_next(&self, status: u16) {
        self.change(|dps| dps.manner.failures.push_back(status));
    }

    fn read<T>(&self, look: impl FnOnce(&Provisioning) -> T) -> T {
        self.hub.inner.shared.read(|state| look(&state.dps))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Provisioning) -> T) -> T {
        self.hub.change(|state| change(&mut state.dps))
    }
}

fn refused(refusal: Refusal) -> HubError {
    HubError::Refused(refusal.message)
}
