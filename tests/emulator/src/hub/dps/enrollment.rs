//! Enrollments: whom the provisioning service knows, one by one or by group, as its service API writes them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Refusal;
use crate::hub::certificates::thumbprints;
use crate::hub::random;

/// An individual enrollment, or an enrollment group.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::hub) struct Enrollment {
    pub attestation: Attestation,
    /// The device's name in the hub; without it, the registration id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// Tags and desired properties of a device that the hub did not have.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub initial_twin: Value,
    #[serde(default)]
    pub provisioning_status: ProvisioningStatus,
    #[serde(default)]
    pub reprovision_policy: ReprovisionPolicy,
    #[serde(default)]
    pub etag: String,
    /// What the emulator has no use for, but shows again.
    #[serde(flatten)]
    other: Map<String, Value>,
}

/// Whether devices may register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::hub) enum ProvisioningStatus {
    #[default]
    Enabled,
    Disabled,
}

/// What happens to a device that registers again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::hub) struct ReprovisionPolicy {
    /// It is assigned anew; without this it gets the answer it got before.
    pub update_hub_assignment: bool,
    /// It keeps its twin; without this it starts with the initial one.
    pub migrate_device_data: bool,
}

impl Default for ReprovisionPolicy {
    fn default() -> Self {
        Self { update_hub_assignment: true, migrate_device_data: true }
    }
}

/// How a device proves who it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(in crate::hub) enum Attestation {
    /// By keys: the device's own, or the group's, from which the device's is derived.
    SymmetricKey {
        #[serde(default)]
        symmetric_key: Keys,
    },
    /// By a certificate.
    X509 { x509: Certificates },
}

/// Two keys in base64.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::hub) struct Keys {
    pub primary_key: String,
    pub secondary_key: String,
}

/// Whose certificates these are.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::hub) enum Certificates {
    /// The device's own.
    ClientCertificates(Pair),
    /// Of the authorities that sign the devices'.
    SigningCertificates(Pair),
}

/// One or two certificates.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::hub) struct Pair {
    primary: Certificate,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secondary: Option<Certificate>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Certificate {
    /// PEM, or DER in base64.
    certificate: String,
    /// What the service tells of it.
    #[serde(default)]
    info: Value,
}

impl Pair {
    fn each(&self) -> impl Iterator<Item = &Certificate> {
        std::iter::once(&self.primary).chain(&self.secondary)
    }

    /// The certificates.
    pub fn ders(&self) -> Vec<CertificateDer<'static>> {
        self.each().filter_map(Certificate::der).collect()
    }
}

impl Certificate {
    fn der(&self) -> Option<CertificateDer<'static>> {
        let text = self.certificate.trim();
        if text.starts_with("-----BEGIN") {
            return CertificateDer::from_pem_slice(text.as_bytes()).ok();
        }
        STANDARD.decode(text).ok().filter(|der| !der.is_empty()).map(CertificateDer::from)
    }
}

impl Enrollment {
    /// Reads what a service wants to have; keys that it leaves open are made.
    pub fn from_body(mut body: Value, is_group: bool) -> Result<Self, Refusal> {
        drop_nulls(&mut body);
        let read = serde_json::from_value(body);
        let mut enrollment: Self = read.map_err(|error| Refusal::bad_request(error.to_string()))?;
        match (&mut enrollment.attestation, is_group) {
            (Attestation::SymmetricKey { symmetric_key }, _) => symmetric_key.complete()?,
            (Attestation::X509 { x509: Certificates::ClientCertificates(pair) }, false)
            | (Attestation::X509 { x509: Certificates::SigningCertificates(pair) }, true) => {
                pair.complete()?
            }
            (_, false) => return Err(Refusal::bad_request("An enrollment needs clientCertificates.")),
            (_, true) => return Err(Refusal::bad_request("An enrollment group needs signingCertificates.")),
        }
        enrollment.etag = format!("\"{}\"", random::hex(16));
        Ok(enrollment)
    }

    /// The first of its keys; none if it has certificates.
    pub fn primary_key(&self) -> Option<String> {
        match &self.attestation {
            Attestation::SymmetricKey { symmetric_key } => Some(symmetric_key.primary_key.clone()),
            Attestation::X509 { .. } => None,
        }
    }

    /// As the service API shows it.
    pub fn for_service(&self, id_name: &str, id: &str) -> Value {
        let mut shown = json!(self);
        if let Value::Object(members) = &mut shown {
            members.insert(id_name.into(), id.into());
        }
        shown
    }
}

/// The service's tools send null for what they do not set.
fn drop_nulls(value: &mut Value) {
    if let Value::Object(members) = value {
        members.retain(|_, value| !value.is_null());
        members.values_mut().for_each(drop_nulls);
    }
}

impl Keys {
    fn complete(&mut self) -> Result<(), Refusal> {
        for key in [&mut self.primary_key, &mut self.secondary_key] {
            if key.is_empty() {
                *key = random::key();
            }
            let length = STANDARD.decode(&key).map(|bytes| bytes.len());
            if !length.is_ok_and(|length| (16..=64).contains(&length)) {
                return Err(Refusal::bad_request("A key is base64 of 16 to 64 bytes."));
            }
        }
        Ok(())
    }
}

impl Pair {
    fn complete(&mut self) -> Result<(), Refusal> {
        for certificate in std::iter::once(&mut self.primary).chain(&mut self.secondary) {
            let unread = || Refusal::bad_request("A certificate is neither PEM nor DER in base64.");
            let [sha1, sha256] = thumbprints(&certificate.der().ok_or_else(unread)?);
            certificate.info = json!({ "sha1Thumbprint": sha1, "sha256Thumbprint": sha256 });
        }
        Ok(())
    }
}
