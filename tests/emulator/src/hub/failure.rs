//! What the hub answers when it refuses: status, `iothub-errorcode`, and the envelopes clients look into.

use serde_json::{Value, json};

use super::clock;
use super::query::QueryError;
use super::twin::TwinError;

/// A refusal.
#[derive(Debug)]
pub(super) struct Failure {
    /// HTTP status.
    pub status: u16,
    /// The name in the `iothub-errorcode` header, by which clients tell failures apart.
    pub symbol: &'static str,
    pub message: String,
    envelope: Envelope,
}

/// The hub has three ways of putting a failure into a body.
#[derive(Debug)]
enum Envelope {
    /// Symbol and message in one text.
    Text,
    /// The number of the failure beside its message.
    Numbered(u32),
    /// A failure inside the device's gateway (direct methods): number and details, as JSON in a string.
    Gateway(u32, Value),
}

impl Failure {
    pub fn new(status: u16, symbol: &'static str, message: impl Into<String>) -> Self {
        Self { status, symbol, message: message.into(), envelope: Envelope::Text }
    }

    pub fn in_gateway(status: u16, symbol: &'static str, code: u32, message: &str, info: Value) -> Self {
        Self { envelope: Envelope::Gateway(code, info), ..Self::new(status, symbol, message) }
    }

    pub fn numbered(status: u16, symbol: &'static str, code: u32, message: impl Into<String>) -> Self {
        Self { envelope: Envelope::Numbered(code), ..Self::new(status, symbol, message) }
    }

    pub fn device_not_found(device: &str) -> Self {
        Self::new(404, "DeviceNotFound", format!("A device with ID '{device}' is not registered."))
    }

    pub fn device_already_exists(device: &str) -> Self {
        let message = format!("A device with ID '{device}' is already registered.");
        Self::new(409, "DeviceAlreadyExists", message)
    }

    /// The etag a client sent is not the `current` one.
    pub fn stale(current: &str) -> Self {
        Self::new(412, "PreconditionFailed", format!("The current etag is {current}."))
    }

    pub fn bad_argument(message: impl Into<String>) -> Self {
        Self::new(400, "ArgumentInvalid", message)
    }

    /// The body of the HTTP answer.
    pub fn body(&self) -> Value {
        match &self.envelope {
            Envelope::Text => json!({
                "Message": format!("ErrorCode:{};{}", self.symbol, self.message),
                "ExceptionMessage": format!("Tracking ID:{}", tracking_id()),
            }),
            Envelope::Numbered(code) => numbered(*code, &self.message, &Value::Null),
            Envelope::Gateway(code, info) => {
                let inner = numbered(*code, &self.message, info);
                json!({ "Message": inner.to_string(), "ExceptionMessage": "" })
            }
        }
    }
}

impl From<TwinError> for Failure {
    fn from(error: TwinError) -> Self {
        Self::bad_argument(error.to_string())
    }
}

/// The hub does not say what is wrong with a query; the emulator's log does.
impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Self {
        tracing::info!(%error, "query refused");
        Self::bad_argument("BadRequest")
    }
}

/// The envelope with a numeric code, which also answers a refused twin request on MQTT.
pub(super) fn numbered(code: u32, message: &str, info: &Value) -> Value {
    json!({
        "errorCode": code,
        "trackingId": tracking_id(),
        "message": message,
        "info": info,
        "timestampUtc": clock::now_text(),
    })
}

/// An id to find a request in the hub's logs by.
pub(super) fn tracking_id() -> String {
    let id = super::random::hex(16);
    format!("{id}-G2:-TimeStamp:{}", clock::now_text())
}
