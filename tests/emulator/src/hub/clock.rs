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

/// Now, in milliseconds since 1970.
pub(super) fn now_millis() -> i64 {
    as_millis(OffsetDateTime::now_utc())
}

/// The milliseconds since 1970 of an RFC 3339 time; one without a zone is in UTC.
pub(super) fn millis(text: &str) -> Option<i64> {
    let parse = |text: &str| OffsetDateTime::parse(text, &Rfc3339);
    parse(text).or_else(|_| parse(&format!("{text}Z"))).ok().map(as_millis)
}

/// The same time as RFC 3339 in UTC.
pub(super) fn text(millis: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).ok();
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| NEVER.to_owned())
}

fn as_millis(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// The time left until `unix_secs`; nothing if it has passed.
pub(super) fn until(unix_secs: i64) -> Option<Duration> {
    let left = unix_secs.saturating_sub(OffsetDateTime::now_utc().unix_timestamp());
    u64::try_from(left).ok().filter(|secs| *secs > 0).map(Duration::from_secs)
}
