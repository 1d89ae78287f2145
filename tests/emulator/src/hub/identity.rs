//! The identity registry's entry for one device: who it is, and how it proves it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::clock::NEVER;
use super::failure::Failure;
use super::random;
use super::twin::with;

/// How a device proves who it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Authentication {
    /// Either of two base64 keys.
    Sas { primary: String, secondary: String },
    /// The SHA-1 or SHA-256 of either of two certificates, in hexadecimal.
    SelfSigned { primary: Option<String>, secondary: Option<String> },
    /// A certificate for the device's id, signed by an authority that the hub trusts.
    CertificateAuthority,
}

impl Authentication {
    /// Reads the body of `PUT /devices/{id}`. What names no keys gets new ones.
    pub fn from_body(body: &Value) -> Result<Self, Failure> {
        let text = |path: &str| body.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty());
        match text("/authentication/type").unwrap_or("sas") {
            "sas" => {
                let key = |name: &str| {
                    let given = text(&format!("/authentication/symmetricKey/{name}"));
                    given.map_or_else(|| Ok(random::key()), checked_key)
                };
                Ok(Self::Sas { primary: key("primaryKey")?, secondary: key("secondaryKey")? })
            }
            "selfSigned" => {
                let thumbprint = |name: &str| {
                    text(&format!("/authentication/x509Thumbprint/{name}"))
                        .map(checked_thumbprint)
                        .transpose()
                };
                let (primary, secondary) =
                    (thumbprint("primaryThumbprint")?, thumbprint("secondaryThumbprint")?);
                Ok(Self::SelfSigned { primary, secondary })
            }
            "certificateAuthority" => Ok(Self::CertificateAuthority),
            other => {
                Err(Failure::bad_argument(format!("The emulator has no authentication type '{other}'.")))
            }
        }
    }

    /// Whether a certificate with one of these thumbprints is the device's.
    pub fn accepts_any_of(&self, thumbprints: &[String]) -> bool {
        let Self::SelfSigned { primary, secondary } = self else { return false };
        let mut known = [primary, secondary].into_iter().flatten();
        known.any(|known| thumbprints.iter().any(|shown| shown.eq_ignore_ascii_case(known)))
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Sas { .. } => "sas",
            Self::SelfSigned { .. } => "selfSigned",
            Self::CertificateAuthority => "certificateAuthority",
        }
    }

    fn keys(&self) -> Value {
        match self {
            Self::Sas { primary, secondary } => json!({ "primaryKey": primary, "secondaryKey": secondary }),
            _ => json!({ "primaryKey": null, "secondaryKey": null }),
        }
    }

    fn thumbprints(&self) -> Value {
        let (primary, secondary) = match self {
            Self::SelfSigned { primary, secondary } => (primary, secondary),
            _ => (&None, &None),
        };
        json!({ "primaryThumbprint": primary, "secondaryThumbprint": secondary })
    }
}

fn checked_key(key: &str) -> Result<String, Failure> {
    let length = STANDARD.decode(key).map_err(|_| Failure::bad_argument("A key is not base64."))?.len();
    if !(16..=64).contains(&length) {
        return Err(Failure::bad_argument(format!("A key has {length} bytes; 16 to 64 are allowed.")));
    }
    Ok(key.to_owned())
}

fn checked_thumbprint(text: &str) -> Result<String, Failure> {
    if matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text.to_owned());
    }
    Err(Failure::new(400, "StringIsNotThumbprint", format!("'{text}' is not 40 or 64 hexadecimal digits.")))
}

/// Whether the hub would take `id` as a device's or a module's name.
pub(super) fn is_device_id(id: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-.%_*?!(),:=@$'".contains(c);
    (1..=128).contains(&id.len()) && id.chars().all(allowed)
}

/// The key of a module among the devices; no device's name has a slash.
pub(super) fn module_key(device: &str, module: &str) -> String {
    format!("{device}/{module}")
}

/// Whether the key is a module's.
pub(super) fn is_module(key: &str) -> bool {
    key.contains('/')
}

/// How the hub names a device or a module.
fn named(key: &str) -> Value {
    match key.split_once('/') {
        None => json!({ "deviceId": key }),
        Some((device, module)) => json!({ "deviceId": device, "moduleId": module }),
    }
}

/// What a service says of a device to register.
#[derive(Debug)]
pub(super) struct Registration {
    pub authentication: Authentication,
    pub enabled: bool,
    pub status_reason: Option<String>,
    /// Of a module: who looks after it.
    pub managed_by: Option<String>,
}

impl Registration {
    /// Reads the body of `PUT /devices/{id}`. It replaces all there was: what it does not say is lost.
    pub fn from_body(body: &Value) -> Result<Self, Failure> {
        let text = |name: &str| body.get(name).and_then(Value::as_str);
        let enabled = match text("status").unwrap_or("enabled") {
            "enabled" => true,
            "disabled" => false,
            other => return Err(Failure::bad_argument(format!("'{other}' is not a status."))),
        };
        let authentication = Authentication::from_body(body)?;
        let [status_reason, managed_by] =
            ["statusReason", "managedBy"].map(|name| text(name).map(String::from));
        Ok(Self { authentication, enabled, status_reason, managed_by })
    }
}

impl From<Authentication> for Registration {
    fn from(authentication: Authentication) -> Self {
        Self { authentication, enabled: true, status_reason: None, managed_by: None }
    }
}

/// An entry of the registry.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Identity {
    pub authentication: Authentication,
    pub enabled: bool,
    status_reason: Option<String>,
    managed_by: Option<String>,
    status_updated: String,
    generation: u64,
    /// Counts the writes of this entry.
    version: u64,
}

impl Identity {
    /// A new entry. `serial` was never used before.
    pub fn new(registration: Registration, serial: u64) -> Self {
        let Registration { authentication, enabled, status_reason, managed_by } = registration;
        let (status_updated, generation, version) = (NEVER.to_owned(), serial, serial);
        Self { authentication, enabled, status_reason, managed_by, status_updated, generation, version }
    }

    /// Replaces the entry. Whether a device that got in before has to show its credentials again.
    pub fn replace(&mut self, registration: Registration, serial: u64, now: &str) -> bool {
        let before = std::mem::replace(self, Self::new(registration, serial));
        self.generation = before.generation;
        self.status_updated = if before.enabled == self.enabled { before.status_updated } else { now.into() };
        !self.enabled || self.authentication != before.authentication
    }

    /// The etag, unquoted.
    pub fn etag(&self) -> String {
        STANDARD.encode(self.version.to_string())
    }

    fn status(&self) -> &'static str {
        if self.enabled { "enabled" } else { "disabled" }
    }

    /// The answer of `/devices/{id}` and `/devices/{id}/modules/{id}`.
    pub fn for_service(&self, key: &str, connection: &str, last_activity: &str) -> Value {
        let identity = with(
            named(key),
            [
                ("generationId", json!(self.generation.to_string())),
                ("etag", json!(self.etag())),
                ("connectionState", json!(connection)),
                ("connectionStateUpdatedTime", json!(last_activity)),
                ("lastActivityTime", json!(last_activity)),
                ("cloudToDeviceMessageCount", json!(0)),
                (
                    "authentication",
                    json!({
                        "symmetricKey": self.authentication.keys(),
                        "x509Thumbprint": self.authentication.thumbprints(),
                        "type": self.authentication.kind(),
                    }),
                ),
            ],
        );
        if is_module(key) {
            return with(identity, [("managedBy", json!(self.managed_by))]);
        }
        with(
            identity,
            [
                ("status", json!(self.status())),
                ("statusReason", json!(self.status_reason)),
                ("statusUpdatedTime", json!(self.status_updated)),
                ("capabilities", json!({ "iotEdge": false })),
            ],
        )
    }

    /// What a twin shows of the identity.
    pub fn for_twin(&self, key: &str, connection: &str, last_activity: &str) -> Value {
        with(
            named(key),
            [
                ("deviceEtag", json!(self.etag())),
                ("status", json!(self.status())),
                ("statusReason", json!(self.status_reason)),
                ("statusUpdateTime", json!(self.status_updated)),
                ("connectionState", json!(connection)),
                ("lastActivityTime", json!(last_activity)),
                ("cloudToDeviceMessageCount", json!(0)),
                ("authenticationType", json!(self.authentication.kind())),
                ("x509Thumbprint", self.authentication.thumbprints()),
                ("modelId", json!("")),
                ("capabilities", json!({ "iotEdge": false })),
            ],
        )
    }
}
