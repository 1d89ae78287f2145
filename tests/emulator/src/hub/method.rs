//! Direct methods: what may be called, and the way to the device and back.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::device::MethodResponse;
use super::failure::Failure;
use super::state::{Shared, State};

const PAYLOAD_LIMIT_BYTES: usize = 128 * 1024;

/// A direct method to call.
#[derive(Debug)]
pub(super) struct Call {
    pub name: String,
    pub payload: Value,
    /// How long the device may take to answer.
    pub response_limit: Duration,
    /// How long to wait for the device to connect.
    pub connect_limit: Duration,
}

/// Why a direct method was not answered.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MethodError {
    /// No such device.
    #[error("device {0} is not registered")]
    DeviceNotFound(String),
    /// The device is not connected, or takes no methods (404103).
    #[error("device is not online or has not subscribed to methods")]
    NotOnline,
    /// The device took the request and did not answer in time, or went away (504101).
    #[error("timed out waiting for the response from the device")]
    Timeout,
}

/// What a service sends. Old kits have other names for the timeout.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    method_name: String,
    #[serde(default)]
    payload: Value,
    #[serde(
        default = "default_response_timeout_secs",
        rename = "responseTimeoutInSeconds",
        alias = "timeoutInSeconds",
        alias = "timeout"
    )]
    response_timeout_secs: u64,
    #[serde(default, rename = "connectTimeoutInSeconds")]
    connect_timeout_secs: u64,
}

/// The hub's own default.
fn default_response_timeout_secs() -> u64 {
    30
}

impl Call {
    /// Reads a call as a service describes it.
    pub fn from_body(body: &Value) -> Result<Self, Failure> {
        let body = Body::deserialize(body).map_err(|error| Failure::bad_argument(error.to_string()))?;
        let (response, connect) = (body.response_timeout_secs, body.connect_timeout_secs);
        if !(5..=300).contains(&response) || connect > 300 {
            return Err(Failure::bad_argument(
                "Response timeouts are 5 to 300 s, connection timeouts 0 to 300 s.",
            ));
        }
        if connect > response {
            let message = "Device connection timeout cannot be longer than an overall call timeout.";
            return Err(Failure::bad_argument(message));
        }
        let name = body.method_name;
        if name.trim().is_empty() || name.chars().count() > 100 {
            return Err(Failure::bad_argument("A method's name has 1 to 100 characters."));
        }
        if body.payload.to_string().len() > PAYLOAD_LIMIT_BYTES {
            let message = format!("Payload should not be greater than {PAYLOAD_LIMIT_BYTES} bytes.");
            return Err(Failure::bad_argument(message));
        }
        let (response_limit, connect_limit) = (Duration::from_secs(response), Duration::from_secs(connect));
        Ok(Self { name, payload: body.payload, response_limit, connect_limit })
    }
}

impl Shared {
    /// Calls a direct method and waits for the answer.
    pub async fn call(&self, id: &str, call: &Call) -> Result<MethodResponse, MethodError> {
        let unknown = || MethodError::DeviceNotFound(id.to_owned());
        let ready = |state: &State| match state.devices.get(id) {
            None => Some(Err(unknown())),
            Some(device) => device.takes_methods().then_some(Ok(())),
        };
        self.wait(call.connect_limit, ready).await.ok_or(MethodError::NotOnline)??;
        let (request, answered) = self.change(|state| {
            let request = format!("{:x}", state.next_serial());
            let device = state.devices.get_mut(id).ok_or_else(unknown)?;
            let answered = device.call(&call.name, request.clone(), &call.payload);
            Ok((request, answered.ok_or(MethodError::NotOnline)?))
        })?;
        match tokio::time::timeout(call.response_limit, answered).await {
            Ok(Ok(response)) => Ok(response),
            // The sender is dropped with the connection: an answer can no longer come.
            Ok(Err(_)) => Err(MethodError::Timeout),
            Err(_) => {
                self.change(|state| state.forget_call(id, &request));
                Err(MethodError::Timeout)
            }
        }
    }
}

impl State {
    fn forget_call(&mut self, id: &str, request: &str) {
        if let Some(link) = self.devices.get_mut(id).and_then(|device| device.link.as_mut()) {
            link.calls.remove(request);
        }
    }

    /// Hands a device's answer to the call that waits for it; an answer nobody waits for is ignored.
    pub fn answer_call(&mut self, id: &str, request: &str, response: MethodResponse) {
        let link = self.devices.get_mut(id).and_then(|device| device.link.as_mut());
        if let Some(call) = link.and_then(|link| link.calls.remove(request)) {
            // The caller may have given up in this moment.
            let _ = call.send(response);
        }
    }
}

impl From<MethodError> for Failure {
    fn from(error: MethodError) -> Self {
        match error {
            MethodError::DeviceNotFound(id) => Self::device_not_found(&id),
            MethodError::NotOnline => Self::in_gateway(
                404,
                "DeviceNotOnline",
                404_103,
                "The operation failed because the requested device isn't online or hasn't registered the direct \
                 method callback. To learn more, see https://aka.ms/iothub404103",
                json!({ "timeout": "00:00:00" }),
            ),
            MethodError::Timeout => {
                let message = "Timed out waiting for the response from device.";
                Self::in_gateway(504, "GatewayTimeout", 504_101, message, Value::Null)
            }
        }
    }
}
