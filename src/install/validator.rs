//! What tells one version of a file at a server from the next.

use reqwest::header::{ETAG, HeaderMap, LAST_MODIFIED};
use serde::{Deserialize, Serialize};

/// As its server describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Validator {
    /// Strong entity tag; a weak one does not promise the same bytes (RFC 9110, 8.8.3).
    etag: Option<String>,
    /// `Last-Modified`, as sent.
    last_modified: Option<String>,
    /// Size of the whole in bytes.
    total_bytes: Option<u64>,
}

impl Validator {
    /// What the headers of an answer tell; `total_bytes` is the size of the whole.
    #[must_use]
    pub fn of(headers: &HeaderMap, total_bytes: Option<u64>) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let etag = text(ETAG).filter(|tag| tag.starts_with('"'));
        Self { etag, last_modified: text(LAST_MODIFIED), total_bytes }
    }

    /// Whether `other` is the same version, as far as both servers' answers tell.
    #[must_use]
    pub fn admits(&self, other: &Self) -> bool {
        let same_size = self.total_bytes.is_none()
            || other.total_bytes.is_none()
            || self.total_bytes == other.total_bytes;
        let same_version = match (&self.etag, &other.etag) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => match (&self.last_modified, &other.last_modified) {
                (Some(ours), Some(theirs)) => ours == theirs,
                _ => true,
            },
        };
        same_size && same_version
    }

    /// Whether it proves anything but a size.
    pub(super) fn is_strong(&self) -> bool {
        self.etag.is_some()
    }

    /// The size alone.
    pub(super) fn of_any_version(&self) -> Self {
        self.total_bytes.map(Self::of_size).unwrap_or_default()
    }

    /// Of a file of which only the size is known.
    pub(super) fn of_size(total_bytes: u64) -> Self {
        Self { total_bytes: Some(total_bytes), ..Self::default() }
    }

    /// Size of the whole in bytes, where known.
    #[must_use]
    pub fn total_bytes(&self) -> Option<u64> {
        self.total_bytes
    }

    /// What `If-Range` takes: the entity tag, or else the time of the last change.
    #[must_use]
    pub fn condition(&self) -> Option<&str> {
        self.etag.as_deref().or(self.last_modified.as_deref())
    }
}
