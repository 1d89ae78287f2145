//! One device as the hub holds it: identity, twin, session, and the connection if there is one.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::Publish;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::clock::NEVER;
use super::configuration::Status;
use super::identity::{Identity, is_module};
use super::inbox::Inbox;
use super::query::Document;
use super::topic;
use super::twin::{Twin, with};

/// Reported patches kept of a device: more than any test looks at.
const HISTORY_LIMIT: usize = 1024;

/// A device's answer to a direct method.
#[derive(Debug, Clone, PartialEq)]
pub struct MethodResponse {
    /// The status the device chose.
    pub status: i64,
    /// The payload; null if the device sent none.
    pub payload: Value,
}

/// A live connection, seen from the rest of the hub.
#[derive(Debug)]
pub(super) struct Link {
    /// Tells this connection from the ones before and after it.
    pub serial: u64,
    /// What the connection is to send. Full means the device does not read: the message is lost, as QoS 0 may be.
    pub outgoing: mpsc::Sender<Publish>,
    /// Closes the socket, without a word.
    pub closing: CancellationToken,
    /// Method calls that wait for this device's answer, by request id.
    pub calls: BTreeMap<String, oneshot::Sender<MethodResponse>>,
}

/// A registered device, or one of its modules.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Device {
    pub identity: Identity,
    pub twin: Twin,
    /// Topic filters subscribed to, and whether at QoS 1; they outlive a connection that asked for a persistent
    /// session.
    pub filters: BTreeMap<String, bool>,
    #[serde(skip)]
    pub inbox: Inbox,
    /// The configurations that target it, by id.
    pub configurations: BTreeMap<String, Status>,
    #[serde(skip)]
    pub link: Option<Link>,
    /// Accepted connections so far.
    #[serde(skip)]
    pub connects: usize,
    #[serde(skip, default = "never")]
    pub last_activity: String,
    /// The newest accepted reported patches, oldest first.
    #[serde(skip)]
    pub history: VecDeque<Value>,
}

fn never() -> String {
    NEVER.to_owned()
}

impl Device {
    pub fn new(identity: Identity, now: &str) -> Self {
        Self {
            identity,
            twin: Twin::new(now),
            filters: BTreeMap::new(),
            inbox: Inbox::default(),
            configurations: BTreeMap::new(),
            link: None,
            connects: 0,
            last_activity: never(),
            history: VecDeque::new(),
        }
    }

    /// Puts a new connection in the place of an older one, which is closed.
    pub fn attach(&mut self, link: Link, now: String) {
        self.detach();
        self.link = Some(link);
        self.connects = self.connects.saturating_add(1);
        self.last_activity = now;
        self.inbox.restart();
        self.deliver();
    }

    /// Sends what waits in the inbox, as far as the device listens for it and keeps up.
    pub fn deliver(&mut self) {
        let Some(link) = &self.link else { return };
        let mut filters = self.filters.iter();
        let Some((_, acked)) = filters.find(|(filter, _)| filter.ends_with(topic::DEVICE_BOUND)) else {
            return;
        };
        let qos = if *acked { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        while let Ok(place) = link.outgoing.try_reserve() {
            let Some(publish) = self.inbox.next(qos) else { return };
            place.send(publish);
        }
    }

    /// Notes a patch of the reported properties.
    pub fn remember(&mut self, patch: Value) {
        if self.history.len() >= HISTORY_LIMIT {
            self.history.pop_front();
        }
        self.history.push_back(patch);
    }

    /// Closes the connection, if there is one.
    pub fn detach(&mut self) {
        if let Some(link) = self.link.take() {
            link.closing.cancel();
        }
    }

    /// Whether a method call would reach the device.
    pub fn takes_methods(&self) -> bool {
        self.link.is_some() && self.filters.contains_key(topic::METHODS)
    }

    /// Sends a method request. Nothing if the device is not there to take it.
    pub fn call(
        &mut self,
        name: &str,
        request: String,
        payload: &Value,
    ) -> Option<oneshot::Receiver<MethodResponse>> {
        let link = self.link.as_mut().filter(|_| self.filters.contains_key(topic::METHODS))?;
        let (answer, answered) = oneshot::channel();
        let topic = format!("$iothub/methods/POST/{name}/?$rid={request}");
        let sent = link.outgoing.try_send(Publish::new(topic, QoS::AtMostOnce, payload.to_string()));
        if sent.is_ok() {
            link.calls.insert(request, answer);
        }
        // A message that could not be sent is a call that is never answered.
        Some(answered)
    }

    /// Sends a change of the desired properties to a device that listens for it. It is not kept for one that does not.
    pub fn push_desired(&mut self, patch: &Value) {
        let Some(link) = self.link.as_mut().filter(|_| self.filters.contains_key(topic::DESIRED)) else {
            return;
        };
        let topic = format!("$iothub/twin/PATCH/properties/desired/?$version={}", self.twin.desired.version);
        if link.outgoing.try_send(Publish::new(topic, QoS::AtMostOnce, patch.to_string())).is_err() {
            tracing::warn!("desired properties not pushed: the device does not read");
        }
    }

    fn connection(&self) -> &'static str {
        if self.link.is_some() { "Connected" } else { "Disconnected" }
    }

    /// The answer of `GET /devices/{id}`.
    pub fn identity_for_service(&self, id: &str) -> Value {
        let identity = self.identity.for_service(id, self.connection(), &self.last_activity);
        with(identity, [self.message_count()])
    }

    /// The answer of `GET /twins/{id}`.
    pub fn twin_for_service(&self, id: &str) -> Value {
        with(self.head(id), self.twin.for_service())
    }

    /// The twin but for tags and properties.
    fn head(&self, id: &str) -> Value {
        let head = self.identity.for_twin(id, self.connection(), &self.last_activity);
        let version = ("version", self.twin.version.into());
        let head = with(head, [("etag", self.twin.etag().into()), version, self.message_count()]);
        if self.configurations.is_empty() {
            return head;
        }
        let status = |(id, status): (&String, &Status)| (id.clone(), json!({ "status": status }));
        with(head, [("configurations", self.configurations.iter().map(status).collect())])
    }

    fn message_count(&self) -> (&'static str, Value) {
        ("cloudToDeviceMessageCount", self.inbox.len().into())
    }
}

/// A device or a module as queries see it: its twin, of which only what is asked for is put together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub key: &'a str,
    pub device: &'a Device,
}

impl Seen<'_> {
    pub fn identity(&self) -> Value {
        self.device.identity_for_service(self.key)
    }

    pub fn twin(&self) -> Value {
        self.device.twin_for_service(self.key)
    }
}

impl Document for Seen<'_> {
    fn find(&self, path: &[String]) -> Option<Cow<'_, Value>> {
        let (first, rest) = path.split_first()?;
        let twin = &self.device.twin;
        match (first.as_str(), rest.split_first()) {
            ("deviceId", None) if !is_module(self.key) => Some(Cow::Owned(self.key.into())),
            ("configurations", Some((id, rest))) => {
                let status = json!({ "status": self.device.configurations.get(id)? });
                status.find(rest).map(|value| Cow::Owned(value.into_owned()))
            }
            ("tags", _) => twin.tags.properties.find(rest),
            ("properties", Some((section, rest))) if section == "desired" => twin.desired.find(rest),
            ("properties", Some((section, rest))) if section == "reported" => twin.reported.find(rest),
            ("properties", _) => self.twin().find(path).map(|value| Cow::Owned(value.into_owned())),
            _ => self.device.head(self.key).find(path).map(|value| Cow::Owned(value.into_owned())),
        }
    }
}
