//! What an operator asks for: types that cannot be wrong once they exist.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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
#[serde(rename_all = "camelCase", deny_unknown_fields)]
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
