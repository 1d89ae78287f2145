//! Wall time. Tokens expire by it and twins are stamped with it, here as on the real hub.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// What the hub writes for a moment that never came.
pub(super) const NEVER: &str = "0001-01-01T00:00:00Z";

/// Now, as RFC 3339 in UTC.
pub(super) fn now_text() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_else(|_| NEVER.to_owned())
}

/// The time left until `unix_secs`; nothing if it has passed.
pub(super) fn until(unix_secs: i64) -> Option<Duration> {
    let left = unix_secs.saturating_sub(OffsetDateTime::now_utc().unix_timestamp());
    u64::try_from(left).ok().filter(|secs| *secs > 0).map(Duration::from_secs)
}
