//! The registration of a device: from its request to its entry in the hub's registry.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::attestation::{Attested, Proof};
use super::enrollment::{Enrollment, ProvisioningStatus, ReprovisionPolicy};
use super::{Provisioning, Refusal};
use crate::hub::clock;
use crate::hub::identity::{Authentication, is_device_id};
use crate::hub::random;
use crate::hub::state::State;
use crate::hub::twin::Write;

/// What became of a registration.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::hub) struct Registration {
    operation_id: String,
    /// Polls still to be answered "assigning".
    #[serde(skip)]
    busy_polls: u32,
    /// The enrollment group it came by.
    pub group: Option<String>,
    created: String,
    updated: String,
    etag: String,
    outcome: Outcome,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Outcome {
    Assigned { hub: String, device: String, substatus: String },
    Disabled,
    Failed(String),
}

/// The answer to a request.
#[derive(Debug)]
pub(in crate::hub) struct Answer {
    /// 202 while it goes on, 200 at its end.
    pub status: u16,
    pub body: Value,
    /// Seconds to wait before the next poll.
    pub retry_after_secs: Option<u64>,
    pub operation_id: String,
}

impl State {
    /// A device asks to be registered. The work is done at once; the answer still says that it has begun.
    pub fn provision(&mut self, proof: &Proof, body: &[u8]) -> Result<Answer, Refusal> {
        self.dps.injected_failure()?;
        check_request(proof.registration_id, body)?;
        let Attested { enrollment, group, authentication } = self.dps.attest(proof)?;
        let (enrollment, group) = (enrollment.clone(), group.map(String::from));
        let key = proof.registration_id.to_ascii_lowercase();
        let before = self.dps.registrations.remove(&key);
        let now = clock::now_text();
        let outcome = self.assign(proof.registration_id, &enrollment, authentication, before.as_ref());
        let operation_id = format!("5.{}.{}", random::hex(8), random::hex(16));
        let registration = Registration {
            operation_id,
            busy_polls: self.dps.manner.busy_polls,
            group,
            created: before.map_or_else(|| now.clone(), |before| before.created),
            updated: now,
            etag: random::hex(16),
            outcome,
        };
        let answer = self.dps.assigning(&registration);
        tracing::info!(id = proof.registration_id, outcome = ?registration.outcome, "dps: registered");
        self.dps.registrations.insert(key, registration);
        Ok(answer)
    }

    fn assign(
        &mut self,
        id: &str,
        enrollment: &Enrollment,
        authentication: Authentication,
        before: Option<&Registration>,
    ) -> Outcome {
        if enrollment.provisioning_status == ProvisioningStatus::Disabled {
            return Outcome::Disabled;
        }
        let ReprovisionPolicy { update_hub_assignment, migrate_device_data } = enrollment.reprovision_policy;
        let before = before.map(|before| &before.outcome);
        let mut substatus = "initialAssignment";
        if let Some(Outcome::Assigned { device, .. }) = before
            && self.devices.contains_key(device)
        {
            match (update_hub_assignment, migrate_device_data) {
                (false, _) => return before.cloned().unwrap_or(Outcome::Disabled),
                (true, true) => substatus = "deviceDataMigrated",
                (true, false) => {
                    substatus = "deviceDataReset";
                    self.remove(device);
                }
            }
        }
        let device = enrollment.device_id.as_deref().unwrap_or(id);
        if let Err(why) = self.enter(device, &enrollment.initial_twin, authentication) {
            return Outcome::Failed(why);
        }
        let hub = self.dps.manner.assigned_hub.as_ref().or(self.host_names.first());
        let hub = hub.cloned().unwrap_or_default();
        Outcome::Assigned { hub, device: device.to_owned(), substatus: substatus.to_owned() }
    }

    /// Enters the device into the hub's registry; what is there keeps its twin.
    fn enter(&mut self, device: &str, twin: &Value, authentication: Authentication) -> Result<(), String> {
        if !is_device_id(device) {
            return Err(format!("'{device}' is not a device ID."));
        }
        let new = !self.devices.contains_key(device);
        self.register(device, authentication.into());
        if new && twin.is_object() {
            self.write_twin(device, Write::Patch, twin).map_err(|failure| {
                self.remove(device);
                failure.message
            })?;
        }
        Ok(())
    }
}

impl Provisioning {
    /// A device asks how its registration goes.
    pub fn poll(&mut self, registration_id: &str, operation_id: &str) -> Result<Answer, Refusal> {
        self.injected_failure()?;
        let registration = self.registrations.get_mut(&registration_id.to_ascii_lowercase());
        let registration = registration.filter(|registration| registration.operation_id == operation_id);
        let registration = registration.ok_or_else(|| Refusal::not_found("Operation"))?;
        if let Some(left) = registration.busy_polls.checked_sub(1) {
            registration.busy_polls = left;
            let registration = registration.clone();
            return Ok(self.assigning(&registration));
        }
        let body = json!({
            "operationId": operation_id,
            "status": registration.status(),
            "registrationState": registration.state(registration_id),
        });
        Ok(Answer { status: 200, body, retry_after_secs: None, operation_id: operation_id.to_owned() })
    }

    fn assigning(&self, registration: &Registration) -> Answer {
        let operation_id = registration.operation_id.clone();
        Answer {
            status: 202,
            body: json!({ "operationId": operation_id, "status": "assigning" }),
            retry_after_secs: Some(self.manner.retry_after_secs),
            operation_id,
        }
    }

    fn injected_failure(&mut self) -> Result<(), Refusal> {
        let failure = self.manner.failures.pop_front();
        failure.map_or(Ok(()), |status| {
            let code = u32::from(status).saturating_mul(1000).saturating_add(1);
            Err(Refusal::new(status, code, "the test asked for this failure"))
        })
    }
}

impl Registration {
    fn status(&self) -> &'static str {
        match self.outcome {
            Outcome::Assigned { .. } => "assigned",
            Outcome::Disabled => "disabled",
            Outcome::Failed(_) => "failed",
        }
    }

    /// `registrationState`, also the answer of `/registrations/{id}`.
    pub fn state(&self, registration_id: &str) -> Value {
        let mut state = json!({
            "registrationId": registration_id,
            "createdDateTimeUtc": self.created,
            "status": self.status(),
            "lastUpdatedDateTimeUtc": self.updated,
            "etag": self.etag,
        });
        let more = match &self.outcome {
            Outcome::Assigned { hub, device, substatus } => {
                json!({ "assignedHub": hub, "deviceId": device, "substatus": substatus })
            }
            Outcome::Disabled => {
                json!({ "errorCode": 403_000, "errorMessage": "The enrollment is disabled." })
            }
            Outcome::Failed(why) => json!({ "errorCode": 400_207, "errorMessage": why }),
        };
        if let (Value::Object(state), Value::Object(more)) = (&mut state, more) {
            state.extend(more);
        }
        state
    }
}

/// 1 to 128 letters, digits and `-._:`, the last a letter, a digit or `-`.
fn is_registration_id(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    (1..=128).contains(&id.len()) && id.chars().all(allowed) && !id.ends_with(['.', '_', ':'])
}

fn check_request(registration_id: &str, body: &[u8]) -> Result<(), Refusal> {
    if !is_registration_id(registration_id) {
        return Err(Refusal::bad_request("The registration ID has a character that is not allowed."));
    }
    let body: Value =
        serde_json::from_slice(body).map_err(|error| Refusal::bad_request(format!("not JSON: {error}")))?;
    let named = body.get("registrationId").and_then(Value::as_str);
    if named.is_none_or(|named| !named.eq_ignore_ascii_case(registration_id)) {
        return Err(Refusal::bad_request("registrationId in the body is not the one that connected."));
    }
    Ok(())
}
