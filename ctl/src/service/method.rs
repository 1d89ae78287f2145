//! Direct methods.

use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::twin::what;
use super::{Request, Service, ServiceError};

/// The hub takes 5 to 300 s.
pub const ANSWER_SECS: std::ops::RangeInclusive<u64> = 5..=300;

/// The hub queues a call before it carries it out.
const QUEUE_LIMIT: Duration = Duration::from_secs(60);

/// How long the hub waits for a device.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For it to come online.
    pub connect_secs: u64,
    /// For its answer, from the call on.
    pub answer_secs: u64,
}

impl Patience {
    /// The hub's own.
    pub const DEFAULT: Self = Self { connect_secs: 0, answer_secs: 30 };
}

/// What a device answered.
#[derive(Debug, Deserialize)]
pub struct MethodAnswer {
    /// The device's word: 200 is done, 4xx is a refusal.
    pub status: i64,
    #[serde(default)]
    pub payload: Value,
}

impl Service {
    /// Calls a method, once: it may have run although no answer came.
    pub async fn call(
        &self,
        device: &str,
        method: &str,
        payload: Value,
        patience: Patience,
    ) -> Result<MethodAnswer, ServiceError> {
        let what = what(device);
        let path = ["twins", device, "methods"];
        let request = Request::write(Method::POST, &path, &what).body(json!({
            "methodName": method,
            "payload": payload,
            "responseTimeoutInSeconds": patience.answer_secs,
            "connectTimeoutInSeconds": patience.connect_secs,
        }));
        let limit = Duration::from_secs(patience.answer_secs) + QUEUE_LIMIT;
        let answer = self.json(Request { limit, ..request }).await;
        answer.map_err(|error| match error {
            // Here it is the device that the hub has waited for.
            ServiceError::Refused { status: 504, what, .. } => ServiceError::NoAnswer { what },
            error => error,
        })
    }
}
