//! The device's session with Azure IoT Hub.

pub mod auth;

use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::sync::oneshot;

/// What the hub tells the agent.
#[derive(Debug)]
pub enum HubEvent {
    /// Connected, subscribed, and the twin is known.
    Connected,
    /// The session ended; another attempt follows by itself.
    Disconnected {
        /// One line for a person.
        reason: String,
    },
    /// A direct method was called.
    Method(MethodCall),
    /// The whole `desired` section, after every connect and every change.
    Desired(Map<String, Value>),
}

/// A direct method call that waits for its answer.
#[derive(Debug)]
pub struct MethodCall {
    /// Method name, percent-decoded.
    pub name: String,
    /// JSON text, or empty.
    pub payload: Bytes,
    /// Dropping it leaves the call unanswered.
    pub reply: oneshot::Sender<MethodReply>,
}

/// The answer to a direct method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodReply {
    /// HTTP-like status that the caller sees.
    pub status: u16,
    /// JSON.
    pub payload: Value,
}

/// The reported properties this device wants its twin to have: one JSON object, `None` until known.
pub type Reported = Option<Map<String, Value>>;
