//! The messages for one device (cloud-to-device) that it has not acknowledged yet.

use std::collections::VecDeque;

use bytes::Bytes;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::Publish;

/// What the hub keeps for a device at most.
const MESSAGE_LIMIT: usize = 50;
/// A message that was sent this often without being acknowledged is given up: the hub's default.
const DELIVERY_LIMIT: u32 = 10;

#[derive(Debug)]
struct Message {
    topic: String,
    body: Bytes,
    deliveries: u32,
    /// The packet id it has on the present connection; none while it waits to be sent.
    packet: Option<u16>,
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    messages: VecDeque<Message>,
    last_packet: u16,
}

impl Inbox {
    /// Adds a message. False if there is no room.
    pub fn push(&mut self, topic: String, body: Bytes) -> bool {
        let room = self.messages.len() < MESSAGE_LIMIT;
        if room {
            self.messages.push_back(Message { topic, body, deliveries: 0, packet: None });
        }
        room
    }

    /// The next message to send. With QoS 0 the hub is through with it; with QoS 1 it waits to be acknowledged.
    pub fn next(&mut self, qos: QoS) -> Option<Publish> {
        let index = self.messages.iter().position(|message| message.packet.is_none())?;
        if qos == QoS::AtMostOnce {
            let message = self.messages.remove(index)?;
            return Some(Publish::from_bytes(message.topic, qos, message.body));
        }
        self.last_packet = self.last_packet.checked_add(1).unwrap_or(1);
        let message = self.messages.get_mut(index)?;
        message.packet = Some(self.last_packet);
        let mut publish = Publish::from_bytes(&message.topic, qos, message.body.clone());
        publish.pkid = self.last_packet;
        publish.dup = message.deliveries > 0;
        message.deliveries = message.deliveries.saturating_add(1);
        Some(publish)
    }

    /// The device has taken the message with this packet id.
    pub fn acknowledge(&mut self, packet: u16) {
        self.messages.retain(|message| message.packet != Some(packet));
    }

    /// A new connection: what was not acknowledged on the old one is to be sent again.
    pub fn restart(&mut self) {
        self.messages.retain(|message| message.deliveries < DELIVERY_LIMIT);
        self.messages.iter_mut().for_each(|message| message.packet = None);
    }

    /// Messages not acknowledged yet.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Forgets all messages. Returns how many there were.
    pub fn purge(&mut self) -> usize {
        std::mem::take(&mut self.messages).len()
    }
}
