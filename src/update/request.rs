//! What an operator asks for: types that cannot be wrong once they exist.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use url::Url;

/// The largest integer that a hub takes in a twin; it refuses the whole patch for a larger one.
pub const INTEGER_MAX: u64 = (1 << 52) - 1;

/// SHA-256, printed and read as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Sha256Digest(pub [u8; 32]);

/// A text that is no SHA-256.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a SHA-256: 64 hex digits")]
pub struct BadDigest;

impl FromStr for Sha256Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err(BadDigest);
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| BadDigest)?;
            // `from_str_radix` takes a sign.
            if digits.starts_with('+') {
                return Err(BadDigest);
            }
            *byte = u8::from_str_radix(digits, 16).map_err(|_| BadDigest)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Sha256Digest> for String {
    fn from(digest: Sha256Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Sha256Digest {
    type Error = BadDigest;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// Names one update, whoever asks for it and however often: 1 to 64 of `A-Za-z0-9._-`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct UpdateId(String);

/// A text that is no update id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an update id: 1 to 64 of A-Z, a-z, 0-9, `.`, `_` and `-`")]
pub struct BadUpdateId;

impl UpdateId {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UpdateId {
    type Err = BadUpdateId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if (1..=64).contains(&text.len()) && text.bytes().all(legal) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadUpdateId)
        }
    }
}

impl fmt::Display for UpdateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<UpdateId> for String {
    fn from(id: UpdateId) -> Self {
        id.0
    }
}

impl TryFrom<String> for UpdateId {
    type Error = BadUpdateId;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// One update, asked for by a method call, a desired property, or on the device itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpdateRequest {
    /// Idempotency key.
    pub id: UpdateId,
    /// `https://`, `http://` or `file://`.
    pub uri: String,
    /// SHA-256 of the bytes at `uri`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check_value: Option<Sha256Digest>,
    /// The version that it brings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Size in bytes of what is at `uri`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// Set by an operator at the device only: take it although it is older, or was rolled back before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

/// A payload that is not understood: the 400 of the direct method.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidPayload {
    /// The field that is wrong; none if it is the payload as a whole.
    pub field: Option<String>,
    /// What is wrong with it, and what to write instead.
    pub message: String,
}

/// IoT Hub's own limit on a method's payload.
pub const PAYLOAD_BYTES_MAX: usize = 128 * 1024;

/// Longer than any link that a storage account signs, and short enough for a twin's text.
const URI_BYTES_MAX: usize = 4096;

/// As in the twin, and for a person to read.
const VERSION_BYTES_MAX: usize = 128;

/// The keys of the payload.
const KEYS: [&str; 6] =
    ["fwPackageUri", "fwPackageURI", "fwPackageCheckValue", "fwVersion", "fwSize", "updateId"];

impl UpdateRequest {
    /// Of all of it, also of what the id leaves out: another address, or one that was signed anew, makes another.
    #[must_use]
    pub fn digest(&self) -> Sha256Digest {
        // Stays the same from version to version: fields that are added are left out where they say nothing.
        Sha256Digest(Sha256::digest(serde_json::to_vec(self).unwrap_or_default()).into())
    }

    /// Reads a method's payload.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn from_payload(payload: &[u8]) -> Result<Self, InvalidPayload> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(whole(format!("payload of {} bytes; at most {PAYLOAD_BYTES_MAX}", payload.len())));
        }
        let value = serde_json::from_slice(payload)
            .map_err(|error| whole(format!("payload is not JSON: {error}")))?;
        Self::from_value(&value)
    }

    /// Reads a payload, or the desired property `firmware`.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn from_value(value: &Value) -> Result<Self, InvalidPayload> {
        let fields = match value {
            Value::Object(fields) => fields,
            // The tutorials' first devices were called with the bare address.
            Value::String(uri) => return Self::new(uri, None, None, None, None),
            _ => return Err(whole("payload must be an object with `fwPackageUri`".to_owned())),
        };
        if let Some(unknown) = fields.keys().find(|key| !KEYS.contains(&key.as_str())) {
            let key: String = unknown.chars().take(64).flat_map(char::escape_debug).collect();
            return Err(wrong(&key, format!("`{key}` is not a key of this method: {}", KEYS.join(", "))));
        }
        let uri = match (text(fields, "fwPackageUri")?, text(fields, "fwPackageURI")?) {
            (Some(uri), None) | (None, Some(uri)) => uri,
            (None, None) => return Err(wrong("fwPackageUri", "`fwPackageUri` is missing".to_owned())),
            (Some(_), Some(_)) => {
                return Err(wrong(
                    "fwPackageURI",
                    "give `fwPackageUri` or `fwPackageURI`, not both".to_owned(),
                ));
            }
        };
        let size_bytes = match fields.get("fwSize") {
            None | Some(Value::Null) => None,
            Some(size) => {
                let size = size.as_u64().filter(|size| (1..=INTEGER_MAX).contains(size));
                let must = "`fwSize` must be a positive number of bytes, below 2^52";
                Some(size.ok_or_else(|| wrong("fwSize", must.to_owned()))?)
            }
        };
        let check_value = text(fields, "fwPackageCheckValue")?;
        Self::new(uri, check_value, text(fields, "fwVersion")?, size_bytes, text(fields, "updateId")?)
    }

    /// Forgets what of the address may be a credential: nothing is fetched from it any more.
    pub(super) fn forget_secrets(&mut self) {
        let Ok(mut url) = Url::parse(&self.uri) else { return };
        // An address that refuses a user name has none.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.set_query(None);
        url.set_fragment(None);
        self.uri = url.into();
    }

    fn new(
        uri: &str,
        check_value: Option<&str>,
        version: Option<&str>,
        size_bytes: Option<u64>,
        id: Option<&str>,
    ) -> Result<Self, InvalidPayload> {
        let url = checked_uri(uri)?;
        let check_value = check_value.map(check_value_of).transpose()?;
        if let Some(version) = version {
            let printable = !version.is_empty() && !version.chars().any(char::is_control);
            if !printable || version.len() > VERSION_BYTES_MAX {
                let message = format!("`fwVersion` must be 1 to {VERSION_BYTES_MAX} printable characters");
                return Err(wrong("fwVersion", message));
            }
        }
        let id = match id {
            Some(id) => {
                id.parse().map_err(|bad: BadUpdateId| wrong("updateId", format!("`updateId` is {bad}")))?
            }
            None => derived_id(&url, check_value, version, size_bytes),
        };
        let version = version.map(str::to_owned);
        Ok(Self { id, uri: url.into(), check_value, version, size_bytes, force: false })
    }
}

fn text<'a>(fields: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, InvalidPayload> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(wrong(key, format!("`{key}` must be a string"))),
    }
}

fn checked_uri(uri: &str) -> Result<Url, InvalidPayload> {
    let bad = |message: &str| wrong("fwPackageUri", format!("`fwPackageUri` {message}"));
    let short_enough = |uri: &str| match uri.len() {
        0..=URI_BYTES_MAX => Ok(()),
        length => Err(bad(&format!("is {length} bytes long; at most {URI_BYTES_MAX}"))),
    };
    short_enough(uri)?;
    let url = Url::parse(uri).map_err(|error| bad(&format!("is not an address: {error}")))?;
    // Percent-encoded, it may have grown.
    short_enough(url.as_str())?;
    match url.scheme() {
        "https" | "http" => Ok(url),
        "file" if url.to_file_path().is_ok() => Ok(url),
        "file" => Err(bad("must name a file of this device: file:///path")),
        _ => Err(bad("must begin with https://, http:// or file://")),
    }
}

fn check_value_of(text: &str) -> Result<Sha256Digest, InvalidPayload> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    digits.parse().map_err(|_| {
        let message = "`fwPackageCheckValue` must be the SHA-256 of the image: 64 hex digits";
        wrong("fwPackageCheckValue", message.to_owned())
    })
}

/// Without the query: a link that was signed again is still the same update.
fn derived_id(
    url: &Url,
    check_value: Option<Sha256Digest>,
    version: Option<&str>,
    size_bytes: Option<u64>,
) -> UpdateId {
    let address = url.as_str().split(['?', '#']).next().unwrap_or_default();
    let fields = (address, check_value.map(|digest| digest.to_string()), version, size_bytes);
    let digest = Sha256Digest(Sha256::digest(format!("{fields:?}")).into());
    UpdateId(digest.to_string().chars().take(32).collect())
}

fn whole(message: String) -> InvalidPayload {
    InvalidPayload { field: None, message }
}

fn wrong(field: &str, message: String) -> InvalidPayload {
    InvalidPayload { field: Some(field.to_owned()), message }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn field_of(payload: Value) -> Option<String> {
        UpdateRequest::from_value(&payload).unwrap_err().field
    }

    #[test]
    fn the_tutorials_payloads_are_understood() {
        let object = json!({"fwPackageUri": "https://secureurl"});
        let bare = json!("https://secureurl");
        let (object, bare) = (UpdateRequest::from_value(&object), UpdateRequest::from_value(&bare));
        assert_eq!(object.unwrap(), bare.unwrap());
        let desired = json!({"fwVersion": "2.8.5", "fwPackageURI": "https://host.example/package.bin",
            "fwPackageCheckValue": "ab".repeat(32), "fwSize": 1024});
        let request = UpdateRequest::from_value(&desired).unwrap();
        assert_eq!(request.version.as_deref(), Some("2.8.5"));
        assert_eq!(request.check_value, Some(Sha256Digest([0xab; 32])));
        assert_eq!(request.size_bytes, Some(1024));
    }

    #[test]
    fn a_link_signed_again_is_the_same_update() {
        let id = |query: &str| {
            let uri = format!("https://host.example/a.img{query}");
            UpdateRequest::from_value(&json!({"fwPackageUri": uri, "fwVersion": "2"})).unwrap().id
        };
        assert_eq!(id("?sig=1&se=2"), id("?sig=3"));
        let other = json!({"fwPackageUri": "https://host.example/a.img", "fwVersion": "3"});
        assert_ne!(UpdateRequest::from_value(&other).unwrap().id, id(""));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let uri = "https://host.example/a.img";
        assert_eq!(field_of(json!({})).as_deref(), Some("fwPackageUri"));
        assert_eq!(field_of(json!({"fwPackageUri": 3})).as_deref(), Some("fwPackageUri"));
        assert_eq!(field_of(json!({"fwPackageUri": "test.com"})).as_deref(), Some("fwPackageUri"));
        assert_eq!(field_of(json!({"fwPackageUri": "ftp://host/a"})).as_deref(), Some("fwPackageUri"));
        assert_eq!(field_of(json!({"fwPackageUri": "file://host/a"})).as_deref(), Some("fwPackageUri"));
        // There are no Unicode tables on the device: such a name is written as the DNS has it.
        assert_eq!(
            field_of(json!({"fwPackageUri": "https://Bücher.example/a"})).as_deref(),
            Some("fwPackageUri")
        );
        assert!(
            UpdateRequest::from_value(&json!({"fwPackageUri": "https://xn--bcher-kva.example/a"})).is_ok()
        );
        assert_eq!(
            field_of(json!({"fwPackageUri": uri, "fwPackageURI": uri})).as_deref(),
            Some("fwPackageURI")
        );
        assert_eq!(field_of(json!({"fwPackageUri": uri, "fwSize": -1})).as_deref(), Some("fwSize"));
        assert_eq!(field_of(json!({"fwPackageUri": uri, "fwSize": 0})).as_deref(), Some("fwSize"));
        assert_eq!(field_of(json!({"fwPackageUri": uri, "fwSize": 1.5})).as_deref(), Some("fwSize"));
        assert_eq!(field_of(json!({"fwPackageUri": uri, "fwSize": 1_u64 << 52})).as_deref(), Some("fwSize"));
        assert_eq!(field_of(json!({"fwPackageUri": uri, "fwVersion": "a\nb"})).as_deref(), Some("fwVersion"));
        assert_eq!(field_of(json!({"fwPackageUri": uri, "updateId": "a b"})).as_deref(), Some("updateId"));
        assert_eq!(
            field_of(json!({"fwPackageUri": uri, "fwPackageCheckValue": "12"})).as_deref(),
            Some("fwPackageCheckValue")
        );
        assert_eq!(
            field_of(json!({"fwPackageUri": uri, "fwPackageUrl": uri})).as_deref(),
            Some("fwPackageUrl")
        );
        assert_eq!(field_of(json!([1])), None);
        assert!(UpdateRequest::from_payload(b"{").is_err());
        assert!(UpdateRequest::from_payload(b"").is_err());
        assert!(UpdateRequest::from_payload(&vec![b' '; PAYLOAD_BYTES_MAX + 1]).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(payload in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = UpdateRequest::from_payload(&payload);
        }

        #[test]
        fn any_digest_reads_back(bytes: [u8; 32]) {
            let digest = Sha256Digest(bytes);
            prop_assert_eq!(digest.to_string().parse::<Sha256Digest>().unwrap(), digest);
            prop_assert_eq!(digest.to_string().to_uppercase().parse::<Sha256Digest>().unwrap(), digest);
        }
    }

    #[test]
    fn a_digest_with_signs_in_it_is_none() {
        assert!("+1".repeat(32).parse::<Sha256Digest>().is_err());
    }
}
