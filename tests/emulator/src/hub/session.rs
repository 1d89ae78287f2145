//! What each packet of a connected device does to the hub, and what is answered. No input or output here.

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    LastWill, Packet, PubAck, Publish, SubAck, Subscribe, SubscribeReasonCode, UnsubAck, Unsubscribe,
};
use serde_json::{Value, json};

use super::clock;
use super::device::MethodResponse;
use super::failure::{Failure, numbered};
use super::state::State;
use super::topic::{self, Request};

/// The hub takes no more topic filters than this from one device.
const FILTER_LIMIT: usize = 5;
/// A message's body and properties.
const MESSAGE_LIMIT_BYTES: usize = 256 * 1024;
const METHOD_RESPONSE_LIMIT_BYTES: usize = 128 * 1024;

/// The session of one connection.
#[derive(Debug)]
pub(super) struct Session {
    pub device: String,
    /// The connection it belongs to.
    pub serial: u64,
    /// The message to send for the device if it goes without a word.
    pub will: Option<LastWill>,
}

impl Session {
    /// Carries out a packet. Returns the answers, or nothing if the connection is to be closed.
    pub fn handle(&mut self, state: &mut State, packet: Packet) -> Option<Vec<Packet>> {
        let device = state.devices.get_mut(&self.device)?;
        // A connection that was taken over may still have packets to read.
        device.link.as_ref().filter(|link| link.serial == self.serial)?;
        device.last_activity = clock::now_text();
        match packet {
            Packet::Publish(publish) => self.publish(state, &publish),
            Packet::Subscribe(subscribe) => self.subscribe(state, &subscribe),
            Packet::Unsubscribe(unsubscribe) => self.unsubscribe(state, &unsubscribe),
            Packet::PingReq => Some(vec![Packet::PingResp]),
            Packet::PubAck(taken) => {
                device.inbox.acknowledge(taken.pkid);
                device.deliver();
                Some(Vec::new())
            }
            Packet::Disconnect => {
                self.will = None;
                None
            }
            _ => None,
        }
    }

    /// Forgets the connection, and a session that was not to outlive it.
    pub fn end(&self, state: &mut State, clean_session: bool) {
        if let Some(will) = &self.will
            && let Some(Request::Telemetry { bag }) = topic::parse(&self.device, &will.topic)
        {
            state.events.push(&self.device, bag, Some(("iothub-MessageType", "Will")), will.message.clone());
        }
        let Some(device) = state.devices.get_mut(&self.device) else { return };
        if device.link.as_ref().is_none_or(|link| link.serial == self.serial) {
            device.detach();
            if clean_session {
                device.filters.clear();
            }
        }
    }

    fn subscribe(&self, state: &mut State, subscribe: &Subscribe) -> Option<Vec<Packet>> {
        let device = state.devices.get_mut(&self.device)?;
        let mut codes = Vec::new();
        for filter in &subscribe.filters {
            let room = device.filters.len() < FILTER_LIMIT || device.filters.contains_key(&filter.path);
            let granted = room && topic::is_filter_of(&self.device, &filter.path);
            tracing::info!(device = %self.device, filter = %filter.path, granted, "mqtt: subscribe");
            if !granted {
                codes.push(SubscribeReasonCode::Failure);
                continue;
            }
            // QoS 2 is not to be had.
            let at_least_once = filter.qos != QoS::AtMostOnce;
            device.filters.insert(filter.path.clone(), at_least_once);
            let qos = if at_least_once { QoS::AtLeastOnce } else { QoS::AtMostOnce };
            codes.push(SubscribeReasonCode::Success(qos));
        }
        device.deliver();
        Some(vec![Packet::SubAck(SubAck::new(subscribe.pkid, codes))])
    }

    fn unsubscribe(&self, state: &mut State, unsubscribe: &Unsubscribe) -> Option<Vec<Packet>> {
        let device = state.devices.get_mut(&self.device)?;
        for filter in &unsubscribe.topics {
            device.filters.remove(filter);
        }
        Some(vec![Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid))])
    }

    fn publish(&self, state: &mut State, publish: &Publish) -> Option<Vec<Packet>> {
        tracing::info!(device = %self.device, topic = %publish.topic, bytes = publish.payload.len(), "mqtt: received");
        let mut answers = match publish.qos {
            QoS::AtMostOnce => Vec::new(),
            QoS::AtLeastOnce => vec![Packet::PubAck(PubAck::new(publish.pkid))],
            QoS::ExactlyOnce => return None,
        };
        let request = topic::parse(&self.device, &publish.topic)?;
        match &request {
            Request::GetTwin { .. } => state.traffic.twin_reads += 1,
            Request::PatchReported { .. } => state.traffic.twin_updates += 1,
            _ => {}
        }
        let twin_answer = match request {
            Request::Telemetry { bag } => {
                let size_bytes = bag.len().saturating_add(publish.payload.len());
                if size_bytes > MESSAGE_LIMIT_BYTES {
                    return None;
                }
                let retain = publish.retain.then_some(("mqtt-retain", "true"));
                state.events.push(&self.device, bag, retain, publish.payload.clone());
                None
            }
            Request::GetTwin { .. } | Request::PatchReported { .. } if state.faults.mute_twin => None,
            Request::GetTwin { request } => {
                let twin = state.devices.get(&self.device)?.twin.for_device();
                Some(answer(200, request, None, twin.to_string()))
            }
            Request::PatchReported { request, version } => {
                Some(match self.patch(state, version, &publish.payload) {
                    Ok(version) => answer(204, request, Some(version), String::new()),
                    Err(failure) => refuse(request, &failure),
                })
            }
            Request::MethodResponse { status, request } => {
                if publish.payload.len() > METHOD_RESPONSE_LIMIT_BYTES {
                    return None;
                }
                let payload = json_or_null(&publish.payload)?;
                state.answer_call(&self.device, request, MethodResponse { status, payload });
                None
            }
        };
        if let Some(answer) = &twin_answer {
            tracing::info!(device = %self.device, topic = %answer.topic, "mqtt: answered");
        }
        answers.extend(twin_answer.map(Packet::Publish));
        Some(answers)
    }

    fn patch(&self, state: &mut State, version: Option<i64>, payload: &[u8]) -> Result<i64, Failure> {
        let current = state.device(&self.device)?.twin.reported.version;
        if version.is_some_and(|version| version != current) {
            let message = format!("The reported properties have version {current}.");
            return Err(Failure::new(412, "PreconditionFailed", message));
        }
        let patch = serde_json::from_slice(payload);
        let patch: Value = patch.map_err(|error| Failure::bad_argument(format!("not JSON: {error}")))?;
        state.patch_reported(&self.device, &patch)
    }
}

/// A method's answer is JSON or empty; anything else is a violation of the protocol.
fn json_or_null(payload: &[u8]) -> Option<Value> {
    if payload.is_empty() { Some(Value::Null) } else { serde_json::from_slice(payload).ok() }
}

/// An answer on `$iothub/twin/res/`. Sent to any device that asked, subscribed or not: Microsoft's Python kit
/// relies on that after a reconnect.
fn answer(status: u16, request: &str, version: Option<i64>, body: String) -> Publish {
    let version = version.map(|version| format!("&$version={version}")).unwrap_or_default();
    let topic = format!("$iothub/twin/res/{status}/?$rid={request}{version}");
    Publish::new(topic, QoS::AtMostOnce, body)
}

fn refuse(request: &str, failure: &Failure) -> Publish {
    // The number of a failure is its HTTP status and three digits more: 400004, 412001, 429001.
    let code = u32::from(failure.status).saturating_mul(1000).saturating_add(match failure.symbol {
        "ArgumentInvalid" => 4,
        _ => 1,
    });
    let body = numbered(code, &failure.message, &json!(null));
    answer(failure.status, request, None, body.to_string())
}
