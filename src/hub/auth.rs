//! How the device proves its identity: the connection string, the user name, the SAS token.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::Sha256;

use crate::redact::Secret;

/// What RFC 3986 leaves unescaped: all else is encoded, as Microsoft's clients do.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The newest generally available version of the service's interface.
const API_VERSION: &str = "2021-04-12";

/// The hub refuses longer device names.
const DEVICE_ID_MAX_CHARS: usize = 128;

/// A DNS name is never longer (RFC 1035).
const HOST_NAME_MAX_CHARS: usize = 253;

/// The hub holds keys of 16 to 64 bytes; the upper bound is left open.
const KEY_MIN_BYTES: usize = 16;

/// Why a connection string, or a key, was not taken. Never holds a part that could be a key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AuthError {
    /// A part between two semicolons is not `Name=value`.
    #[error("part {position} of the connection string is not `Name=value`")]
    NotAPair {
        /// Counted from 1.
        position: usize,
    },
    /// A part has a name that no device connection string has.
    #[error(
        "part {position} of the connection string is unknown: expected HostName, DeviceId, \
         SharedAccessKey, GatewayHostName or x509"
    )]
    UnknownPart {
        /// Counted from 1.
        position: usize,
    },
    /// A name that belongs to another kind of connection string.
    #[error("{name} in the connection string: {hint}")]
    WrongKind {
        /// The name that gave it away.
        name: &'static str,
        /// What to write instead.
        hint: &'static str,
    },
    /// A name occurs twice.
    #[error("{name} occurs twice in the connection string")]
    Repeated {
        /// Which one.
        name: &'static str,
    },
    /// A name is missing.
    #[error("the connection string has no {name}")]
    Missing {
        /// Which one.
        name: &'static str,
    },
    /// A host name that can be none.
    #[error("{name} in the connection string is not a host name (a port belongs in `hub.port`)")]
    InvalidHost {
        /// Which one.
        name: &'static str,
    },
    /// A device name that the hub would refuse.
    #[error("the device id must be 1 to 128 letters, digits or any of -:.+%_#*?!(),=@$'")]
    InvalidDeviceId,
    /// The key is not base64, or too short.
    #[error("the shared access key is not base64 of at least 16 bytes: copy it whole")]
    InvalidKey,
    /// `x509` is neither `true` nor `false`.
    #[error("x509 in the connection string must be `true` or `false`")]
    InvalidFlag,
    /// Both a key and `x509=true`.
    #[error("the connection string has both SharedAccessKey and x509=true: keep one")]
    TwoProofs,
}

/// A device connection string, taken apart and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionString {
    /// The IoT hub's own name.
    pub host_name: String,
    /// Device identity.
    pub device_id: String,
    /// Dialled instead of the hub.
    pub gateway_host_name: Option<String>,
    /// How the device proves its identity.
    pub proof: Proof,
}

/// What a connection string says about the proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// `SharedAccessKey`: base64.
    SharedAccessKey(Secret),
    /// `x509=true`: certificate and key are files named elsewhere.
    Certificate,
}

impl FromStr for ConnectionString {
    type Err = AuthError;

    fn from_str(text: &str) -> Result<Self, AuthError> {
        let parts = Parts::collect(text.trim())?;
        let host_name =
            valid_host("HostName", parts.host_name.ok_or(AuthError::Missing { name: "HostName" })?)?;
        let device_id = parts.device_id.ok_or(AuthError::Missing { name: "DeviceId" })?;
        check_device_id(device_id)?;
        let gateway_host_name =
            parts.gateway_host_name.map(|host| valid_host("GatewayHostName", host)).transpose()?;
        let proof = match (parts.key, is_true(parts.x509)?) {
            (Some(_), true) => return Err(AuthError::TwoProofs),
            (Some(key), false) => {
                decode_key(key)?;
                Proof::SharedAccessKey(Secret::new(key))
            }
            (None, true) => Proof::Certificate,
            (None, false) => return Err(AuthError::Missing { name: "SharedAccessKey (or x509=true)" }),
        };
        Ok(Self { host_name, device_id: device_id.to_owned(), gateway_host_name, proof })
    }
}

/// The values of a connection string, each at most once.
#[derive(Default)]
struct Parts<'a> {
    host_name: Option<&'a str>,
    device_id: Option<&'a str>,
    gateway_host_name: Option<&'a str>,
    key: Option<&'a str>,
    x509: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn collect(text: &'a str) -> Result<Self, AuthError> {
        let mut parts = Self::default();
        for (index, part) in text.split(';').enumerate() {
            let position = index + 1;
            if part.trim().is_empty() {
                continue; // a trailing semicolon is common
            }
            // Keys end in `=`, so only the first one separates.
            let (name, value) = part.split_once('=').ok_or(AuthError::NotAPair { position })?;
            let (place, name) = parts.place(name.trim(), position)?;
            if place.replace(value.trim()).is_some() {
                return Err(AuthError::Repeated { name });
            }
        }
        Ok(parts)
    }

    fn place(
        &mut self,
        name: &str,
        position: usize,
    ) -> Result<(&mut Option<&'a str>, &'static str), AuthError> {
        // Microsoft's own readers differ on case; being lenient harms nobody.
        match name.to_ascii_lowercase().as_str() {
            "hostname" => Ok((&mut self.host_name, "HostName")),
            "deviceid" => Ok((&mut self.device_id, "DeviceId")),
            "gatewayhostname" => Ok((&mut self.gateway_host_name, "GatewayHostName")),
            "sharedaccesskey" => Ok((&mut self.key, "SharedAccessKey")),
            "x509" => Ok((&mut self.x509, "x509")),
            "sharedaccesskeyname" => Err(AuthError::WrongKind {
                name: "SharedAccessKeyName",
                hint: "this one is for services; take the device's own connection string",
            }),
            "sharedaccesssignature" => Err(AuthError::WrongKind {
                name: "SharedAccessSignature",
                hint: "a ready token expires; give SharedAccessKey instead",
            }),
            "moduleid" => Err(AuthError::WrongKind {
                name: "ModuleId",
                hint: "this one is for a module; take the device's connection string",
            }),
            _ => Err(AuthError::UnknownPart { position }),
        }
    }
}

fn is_true(flag: Option<&str>) -> Result<bool, AuthError> {
    match flag {
        None => Ok(false),
        Some(text) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(text) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(AuthError::InvalidFlag),
    }
}

fn valid_host(name: &'static str, host: &str) -> Result<String, AuthError> {
    if is_host_name(host) { Ok(host.to_owned()) } else { Err(AuthError::InvalidHost { name }) }
}

/// Whether it is a host alone, as it stands in a certificate.
#[must_use]
pub fn is_host_name(host: &str) -> bool {
    !host.is_empty()
        && host.len() <= HOST_NAME_MAX_CHARS
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
}

/// Whether the hub could know a device of this name.
///
/// # Errors
/// [`AuthError::InvalidDeviceId`].
pub fn check_device_id(device_id: &str) -> Result<(), AuthError> {
    let valid = !device_id.is_empty()
        && device_id.len() <= DEVICE_ID_MAX_CHARS
        && device_id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-:.+%_#*?!(),=@$'".contains(&byte));
    if valid { Ok(()) } else { Err(AuthError::InvalidDeviceId) }
}

fn decode_key(base64: &str) -> Result<Vec<u8>, AuthError> {
    let key = STANDARD.decode(base64).map_err(|_| AuthError::InvalidKey)?;
    if key.len() < KEY_MIN_BYTES { Err(AuthError::InvalidKey) } else { Ok(key) }
}

/// A token that lets a device, or a service, in until it expires.
pub struct SasToken {
    text: String,
}

impl SasToken {
    /// Makes a token for `device_id` at the hub `host_name` that expires `life` after
    /// `unix_now_secs`.
    ///
    /// # Errors
    /// [`AuthError::InvalidKey`] when `key` is not base64 of a key.
    pub fn new(
        host_name: &str,
        device_id: &str,
        key: &Secret,
        unix_now_secs: u64,
        life: Duration,
    ) -> Result<Self, AuthError> {
        Self::signed(&format!("{host_name}/devices/{device_id}"), key, unix_now_secs, life)
    }

    /// Makes a token by which a service does at the hub `host_name` what `policy` allows.
    ///
    /// # Errors
    /// [`AuthError::InvalidKey`] when `key` is not base64 of a key.
    pub fn for_service(
        host_name: &str,
        policy: &str,
        key: &Secret,
        unix_now_secs: u64,
        life: Duration,
    ) -> Result<Self, AuthError> {
        let mut token = Self::signed(host_name, key, unix_now_secs, life)?;
        token.text.push_str(&format!("&skn={}", utf8_percent_encode(policy, RESERVED)));
        Ok(token)
    }

    fn signed(resource: &str, key: &Secret, unix_now_secs: u64, life: Duration) -> Result<Self, AuthError> {
        let key = decode_key(key.expose())?;
        let resource = utf8_percent_encode(resource, RESERVED).to_string();
        let expiry_unix_secs = unix_now_secs.saturating_add(life.as_secs());
        let signature = signature(&key, &resource, expiry_unix_secs)?;
        let text = format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry_unix_secs}");
        Ok(Self { text })
    }

    /// The token itself: for the wire, never for a message.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for SasToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// The `sig` field: over the resource exactly as it stands in the token, and the expiry.
fn signature(key: &[u8], resource: &str, expiry_unix_secs: u64) -> Result<String, AuthError> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).map_err(|_| AuthError::InvalidKey)?;
    mac.update(format!("{resource}\n{expiry_unix_secs}").as_bytes());
    let base64 = STANDARD.encode(mac.finalize().into_bytes());
    Ok(utf8_percent_encode(&base64, RESERVED).to_string())
}

/// The MQTT user name. It names the hub, whatever is dialled.
#[must_use]
pub fn user_name(host_name: &str, device_id: &str) -> String {
    let agent = concat!("twinboot/", env!("CARGO_PKG_VERSION"));
    let agent = utf8_percent_encode(agent, RESERVED);
    format!("{host_name}/{device_id}/?api-version={API_VERSION}&DeviceClientType={agent}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=";

    /// The signatures were made by Microsoft's clients.
    #[test]
    fn a_signature_is_what_microsofts_clients_make() {
        for (key_byte, resource, expiry_unix_secs, expected) in [
            (
                b'k',
                "0ne00000001/registrations/reg-2",
                1_795_423_626,
                "iqCoDOPU67bN3cKnN%2F6IqQpFllWffS3bYvvYXrpY2GY%3D",
            ),
            (
                b'k',
                "0ne00000001%2Fregistrations%2Freg-1",
                1_795_423_622,
                "FH1p69WDByEOdTzz5JLuFTlQCEP4iOcA2KjGgaopHZE%3D",
            ),
            (
                b'k',
                "localhost%3A18883%2Fdevices%2Fdev-2",
                1_795_423_419,
                "KdKCiR3%2BqO825vYCPIECCfgMU8BtBirTTLM6qUQR8Xw%3D",
            ),
            (b's', "localhost%3A8443", 1_795_423_079, "TRu7iR546JQpqR1mvLY%2FjQdCSVFn3qQZQS94qsQugi4%3D"),
        ] {
            assert_eq!(signature(&[key_byte; 32], resource, expiry_unix_secs).unwrap(), expected);
        }
    }

    #[test]
    fn a_token_names_the_device_and_its_expiry() {
        let token = SasToken::new(
            "localhost:18883",
            "dev-2",
            &Secret::new(KEY),
            1_795_423_419 - 3600,
            Duration::from_secs(3600),
        )
        .unwrap();
        assert_eq!(
            token.expose(),
            "SharedAccessSignature sr=localhost%3A18883%2Fdevices%2Fdev-2\
             &sig=KdKCiR3%2BqO825vYCPIECCfgMU8BtBirTTLM6qUQR8Xw%3D&se=1795423419"
        );
        assert_eq!(format!("{token:?}"), "[secret]");
    }

    #[test]
    fn the_user_name_carries_the_api_version_and_the_agent() {
        let expected = format!(
            "h.azure-devices.net/dev 1/?api-version=2021-04-12&DeviceClientType=twinboot%2F{}",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(user_name("h.azure-devices.net", "dev 1"), expected);
    }

    #[test]
    fn a_connection_string_is_taken_apart() {
        let text = format!("HostName=h.example;DeviceId=dev=1;SharedAccessKey={KEY};GatewayHostName=gw\n");
        let parsed: ConnectionString = text.parse().unwrap();
        assert_eq!(parsed.host_name, "h.example");
        assert_eq!(parsed.device_id, "dev=1");
        assert_eq!(parsed.gateway_host_name.as_deref(), Some("gw"));
        assert_eq!(parsed.proof, Proof::SharedAccessKey(Secret::new(KEY)));

        let parsed: ConnectionString = "HostName=h.example;DeviceId=d;x509=true;".parse().unwrap();
        assert_eq!((parsed.gateway_host_name, parsed.proof), (None, Proof::Certificate));
    }

    #[test]
    fn a_wrong_connection_string_is_refused_with_its_reason() {
        let table = [
            ("", AuthError::Missing { name: "HostName" }),
            ("HostName=h;SharedAccessKey=x", AuthError::Missing { name: "DeviceId" }),
            ("HostName=h;DeviceId=d", AuthError::Missing { name: "SharedAccessKey (or x509=true)" }),
            ("HostName=h;DeviceId=d;SharedAccessKey=c2hvcnQ=", AuthError::InvalidKey),
            ("HostName=h;DeviceId=d;SharedAccessKey=%%%", AuthError::InvalidKey),
            ("HostName=h;HostName=i", AuthError::Repeated { name: "HostName" }),
            ("HostName=h:8883;DeviceId=d;x509=true", AuthError::InvalidHost { name: "HostName" }),
            ("HostName=h;DeviceId=a/b;x509=true", AuthError::InvalidDeviceId),
            ("HostName=h;DeviceId=d;x509=yes", AuthError::InvalidFlag),
            ("HostName=h;c2VjcmV0", AuthError::NotAPair { position: 2 }),
            ("HostName=h;c2VjcmV0=", AuthError::UnknownPart { position: 2 }),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<ConnectionString>().unwrap_err(), expected, "{text}");
        }
        let both = format!("HostName=h;DeviceId=d;x509=true;SharedAccessKey={KEY}");
        assert_eq!(both.parse::<ConnectionString>().unwrap_err(), AuthError::TwoProofs);
        let service = format!("HostName=h;SharedAccessKeyName=iothubowner;SharedAccessKey={KEY}");
        let refusal = service.parse::<ConnectionString>().unwrap_err().to_string();
        assert!(refusal.contains("for services"), "{refusal}");
    }

    proptest! {
        #[test]
        fn no_error_and_no_debug_text_shows_the_key(
            parts in proptest::collection::vec("(HostName|DeviceId|SharedAccessKey|x509|)=?(h|true|a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=)", 0..6),
        ) {
            match parts.join(";").parse::<ConnectionString>() {
                Err(error) => prop_assert!(!error.to_string().contains("a2tra")),
                Ok(parsed) => {
                    let debug = format!("{:?}", parsed.proof);
                    prop_assert!(!debug.contains("a2tra"));
                }
            }
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "\\PC*") {
            let _ = text.parse::<ConnectionString>();
        }
    }
}
