//! What the hub refused, in the operator's words.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::Value;
use twinboot::hub::auth::AuthError;
use twinboot::tls::TlsError;

/// The hub refuses tokens of machines whose clock is further off than this.
const CLOCK_TOLERANCE_SECS: u64 = 5 * 60;

/// Longer answers are cut: they are for a person.
const MESSAGE_CHARS_MAX: usize = 500;

/// Why a request to the hub brought nothing.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("cannot set up TLS")]
    Tls(#[from] TlsError),
    #[error("cannot set up the HTTPS client")]
    Client(#[source] reqwest::Error),
    #[error("cannot make a token")]
    Token(#[from] AuthError),
    #[error("cannot reach the hub {host}")]
    Unreachable { host: String, source: reqwest::Error },
    #[error("the hub {host} has a certificate that is not trusted here")]
    Untrusted { host: String, source: reqwest::Error },
    #[error("the hub {host} did not answer within {}", humantime::format_duration(*limit))]
    Late { host: String, limit: Duration },
    #[error("the answer of the hub {host} is not understood: {why}")]
    Garbled { host: String, why: String },
    #[error("not authorised: the hub does not take the policy `{policy}` and its key for {what}")]
    NotAuthorised { policy: String, what: String },
    #[error("the clock of this machine is {} {}", humantime::format_duration(*by), if *slow { "slow" } else { "fast" })]
    ClockWrong { by: Duration, slow: bool },
    #[error("there is no {what} on this hub")]
    NotFound { what: String },
    #[error("{what} is offline")]
    Offline { what: String },
    #[error("{what} did not answer in time; it may have carried the call out all the same")]
    NoAnswer { what: String },
    #[error("the hub throttles these calls, still after {retries} retries")]
    Throttled { retries: u32 },
    #[error("the hub runs as many jobs as its tier allows")]
    TooManyJobs,
    #[error("the hub's message quota of today is used up")]
    QuotaUsedUp,
    #[error("the hub does not take the target condition: {why}")]
    Condition { why: String },
    #[error("{what} is there already")]
    Exists { what: String },
    #[error("{what} was changed by somebody else in the meantime")]
    Changed { what: String },
    #[error("the hub refuses {what}: {message} ({status} {symbol})")]
    Refused { what: String, status: u16, symbol: String, message: String },
}

/// A refusal as it came.
pub struct Refusal<'a> {
    pub status: StatusCode,
    /// The header `iothub-errorcode`.
    pub symbol: &'a str,
    pub body: &'a [u8],
    /// The hub's clock less ours.
    pub clock_ahead_secs: Option<i64>,
}

impl ServiceError {
    /// What this refusal of a request about `what` means; `retries` were made.
    pub fn of(refusal: &Refusal<'_>, what: &str, policy: &str, retries: u32) -> Self {
        let message = message_of(refusal.body);
        let symbol = if refusal.symbol.is_empty() { symbol_of(&message) } else { refusal.symbol };
        let what = what.to_owned();
        match (refusal.status.as_u16(), symbol) {
            (401, _) => Self::of_unauthorised(refusal.clock_ahead_secs, what, policy),
            (403, "IotHubQuotaExceeded") => Self::QuotaUsedUp,
            (403, "") => Self::NotAuthorised { policy: policy.to_owned(), what },
            (404, "DeviceNotOnline") => Self::Offline { what },
            (404, _) if message.contains("404103") => Self::Offline { what },
            (404, _) => Self::NotFound { what },
            (409, "DeviceAlreadyExists" | "ConfigurationAlreadyExists" | "JobAlreadyExists") => {
                Self::Exists { what }
            }
            (412, _) => Self::Changed { what },
            (429, "ThrottlingMaxActiveJobCountExceeded") => Self::TooManyJobs,
            (429, _) => Self::Throttled { retries },
            (status, symbol) => {
                let (symbol, message) = (symbol.to_owned(), readable(&message));
                Self::Refused { what, status, symbol, message }
            }
        }
    }

    fn of_unauthorised(clock_ahead_secs: Option<i64>, what: String, policy: &str) -> Self {
        match clock_ahead_secs {
            Some(ahead) if ahead.unsigned_abs() > CLOCK_TOLERANCE_SECS => {
                Self::ClockWrong { by: Duration::from_secs(ahead.unsigned_abs()), slow: ahead > 0 }
            }
            _ => Self::NotAuthorised { policy: policy.to_owned(), what },
        }
    }

    /// Whether it may be gone the next time, by itself.
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Late { .. }
                | Self::NoAnswer { .. }
                | Self::Throttled { .. }
                | Self::Changed { .. }
                | Self::Refused { status: 408 | 500..=599, .. }
        )
    }

    /// Whether what was asked for may have been done all the same.
    pub fn leaves_doubt(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => !source.is_connect(),
            Self::Late { .. }
            | Self::Garbled { .. }
            | Self::NoAnswer { .. }
            | Self::Refused { status: 500..=599, .. } => true,
            _ => false,
        }
    }

    /// What the operator can do about it; may be empty.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } | Self::Late { .. } => "look at the network, and at HostName",
            Self::Untrusted { .. } => {
                "name the authority's own certificate with --ca-file; if it says that one has expired, look at this \
                 machine's clock"
            }
            Self::NotAuthorised { .. } => {
                "take the connection string of a policy with ServiceConnect, such as `service`, and for rollouts \
                 RegistryWrite, such as `iothubowner`"
            }
            Self::ClockWrong { .. } => "set it: the hub takes no token of a machine with another time",
            Self::Offline { .. } => {
                "`twinbootctl status` tells when it was last heard of; a rollout reaches devices that are off"
            }
            Self::NoAnswer { .. } => "`twinbootctl status` tells what it does now",
            Self::Throttled { .. } => "ask less often, or add units to the hub",
            Self::TooManyJobs => "wait for the one that runs, or cancel it: `twinbootctl job list`",
            Self::QuotaUsedUp => "it is filled again at midnight UTC; add units to the hub",
            Self::Changed { .. } => "look at it, and decide again",
            Self::Condition { .. } => {
                "it knows deviceId, tags and properties.reported, and less than a query does"
            }
            Self::Tls(_)
            | Self::Client(_)
            | Self::Token(_)
            | Self::Garbled { .. }
            | Self::NotFound { .. }
            | Self::Exists { .. }
            | Self::Refused { .. } => "",
        }
    }
}

/// The hub's own words: `Message` or `message` of the envelope, which may hold a second one as text.
fn message_of(body: &[u8]) -> String {
    let Ok(envelope) = serde_json::from_slice::<Value>(body) else {
        return String::from_utf8_lossy(body).into_owned();
    };
    let text = ["Message", "message"].iter().find_map(|key| envelope.get(key)?.as_str());
    text.unwrap_or_default().to_owned()
}

/// `ErrorCode:Symbol;...`
fn symbol_of(message: &str) -> &str {
    let symbol = message.strip_prefix("ErrorCode:").and_then(|rest| rest.split(';').next());
    symbol.unwrap_or_default()
}

fn readable(message: &str) -> String {
    let inner = serde_json::from_str::<Value>(message).ok();
    let inner = inner.as_ref().and_then(|envelope| envelope.get("message")?.as_str()).unwrap_or(message);
    let text = match inner.strip_prefix("ErrorCode:").and_then(|rest| rest.split_once(';')) {
        Some((_, text)) => text,
        None => inner,
    };
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    twinboot::cli::paint::harmless(&line).chars().take(MESSAGE_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, symbol: &str, body: &str, clock_ahead_secs: Option<i64>) -> ServiceError {
        let status = StatusCode::from_u16(status).unwrap();
        let refusal = Refusal { status, symbol, body: body.as_bytes(), clock_ahead_secs };
        ServiceError::of(&refusal, "device `d`", "service", 6)
    }

    #[test]
    fn each_refusal_has_its_sentence() {
        let table = [
            (401, "IotHubUnauthorizedAccess", "", Some(200), "not authorised"),
            (401, "IotHubUnauthorizedAccess", "", Some(4000), "is 1h 6m 40s slow"),
            (401, "IotHubUnauthorizedAccess", "", Some(-301), "is 5m 1s fast"),
            (403, "IotHubQuotaExceeded", "", None, "used up"),
            (404, "DeviceNotFound", "", None, "no device `d`"),
            (404, "DeviceNotOnline", "", None, "offline"),
            (404, "", r#"{"Message":"{\"errorCode\":404103,\"message\":\"not online\"}"}"#, None, "offline"),
            (409, "ConfigurationAlreadyExists", "", None, "there already"),
            (412, "PreconditionFailed", "", None, "somebody else"),
            (429, "ThrottlingException", "", None, "after 6 retries"),
            (429, "ThrottlingMaxActiveJobCountExceeded", "", None, "as many jobs"),
            (504, "GatewayTimeout", "", None, "the hub refuses device `d`"),
            (
                400,
                "ArgumentInvalid",
                r#"{"Message":"ErrorCode:ArgumentInvalid;BadRequest"}"#,
                None,
                ": BadRequest (400",
            ),
            (500, "", "<html>no\x1b[2J</html>", None, "<html>no\u{fffd}[2J</html> (500 "),
        ];
        for (status, symbol, body, clock, expected) in table {
            let text = error(status, symbol, body, clock).to_string();
            assert!(text.contains(expected), "{status} {symbol}: {text}");
        }
    }

    #[test]
    fn a_hub_in_trouble_passes_and_may_have_done_what_it_was_asked() {
        for (status, passes, doubt) in [
            (400, false, false),
            (401, false, false),
            (404, false, false),
            (408, true, false),
            (412, true, false),
            (429, true, false),
            (500, true, true),
            (502, true, true),
            (503, true, true),
            (504, true, true),
        ] {
            let error = error(status, "", "", None);
            assert_eq!((error.is_passing(), error.leaves_doubt()), (passes, doubt), "{status}");
        }
    }
}
