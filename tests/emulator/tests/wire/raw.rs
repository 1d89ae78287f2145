//! A device, packet by packet: what a client library would not send can be sent.

use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use hub_emulator::hub::Hub;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    Codec, ConnAck, Connect, ConnectReturnCode, Login, Packet, PubAck, Publish, Subscribe, SubscribeFilter,
    SubscribeReasonCode,
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::codec::Framed;

use crate::client::{LIMIT, device_token, tls};

const PACKET_LIMIT_BYTES: usize = 1 << 20;

pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A TLS connection to a port of the hub.
pub async fn open(hub: &Hub, port: u16, certificate: Option<(&str, &str)>) -> TlsStream<TcpStream> {
    let connector = TlsConnector::from(Arc::new(tls(hub, certificate)));
    let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    connector.connect(ServerName::try_from("localhost").unwrap(), socket).await.unwrap()
}

/// CONNECT of device `id` (or `device/module`), for a session that persists.
pub fn connect(id: &str, password: &str) -> Connect {
    let mut connect = Connect::new(id);
    connect.clean_session = false;
    connect.login = Some(Login::new(format!("localhost/{id}/?api-version=2021-04-12"), password.to_owned()));
    connect
}

/// The same, with a token made from the device's key.
pub fn connect_with_key(id: &str, key: &str) -> Connect {
    connect(id, &device_token(id, key))
}

/// A connection that speaks MQTT.
pub struct Device {
    wire: Framed<Box<dyn Io>, Codec>,
}

impl Device {
    pub fn over(stream: impl Io + 'static) -> Self {
        let codec = Codec { max_incoming_size: PACKET_LIMIT_BYTES, max_outgoing_size: PACKET_LIMIT_BYTES };
        Self { wire: Framed::new(Box::new(stream), codec) }
    }

    /// Connected to the hub's MQTT port, but not let in yet.
    pub async fn on_port(hub: &Hub) -> Self {
        Self::over(open(hub, hub.mqtt_port(), None).await)
    }

    /// Let in.
    pub async fn connected(hub: &Hub, id: &str, key: &str) -> Self {
        let mut device = Self::on_port(hub).await;
        let answer = device.connect(connect_with_key(id, key)).await;
        assert_eq!(answer.map(|answer| answer.code), Some(ConnectReturnCode::Success));
        device
    }

    /// The hub's answer to CONNECT; nothing if it closed.
    pub async fn connect(&mut self, connect: Connect) -> Option<ConnAck> {
        self.send(Packet::Connect(connect)).await;
        match self.next().await? {
            Packet::ConnAck(answer) => Some(answer),
            other => panic!("expected a CONNACK, got {other:?}"),
        }
    }

    pub async fn send(&mut self, packet: Packet) {
        timeout(LIMIT, self.wire.send(packet)).await.unwrap().unwrap();
    }

    /// The next packet; nothing if the hub closed.
    pub async fn next(&mut self) -> Option<Packet> {
        let next = timeout(LIMIT, self.wire.next()).await;
        next.unwrap_or_else(|_| panic!("nothing from the hub within {LIMIT:?}"))?.ok()
    }

    pub async fn publish(&mut self, topic: &str, qos: QoS, body: impl Into<Vec<u8>>) {
        let mut publish = Publish::new(topic, qos, body);
        publish.pkid = 7;
        self.send(Packet::Publish(publish)).await;
    }

    /// Publishes, and waits for the acknowledgement, which comes before anything else.
    pub async fn publish_acked(&mut self, topic: &str, body: impl Into<Vec<u8>>) {
        self.publish(topic, QoS::AtLeastOnce, body).await;
        assert_eq!(self.next().await, Some(Packet::PubAck(PubAck::new(7))));
    }

    pub async fn subscribe(&mut self, filters: &[&str], qos: QoS) -> Vec<SubscribeReasonCode> {
        let filters = filters.iter().map(|filter| SubscribeFilter::new((*filter).to_owned(), qos));
        let mut subscribe = Subscribe::new_many(filters);
        subscribe.pkid = 3;
        self.send(Packet::Subscribe(subscribe)).await;
        match self.next().await {
            Some(Packet::SubAck(granted)) => granted.return_codes,
            other => panic!("expected a SUBACK, got {other:?}"),
        }
    }

    /// Subscribes at QoS 1. Returns the first message, which may come before the SUBACK.
    pub async fn subscribe_and_first(&mut self, filter: &str) -> Publish {
        let mut subscribe = Subscribe::new(filter, QoS::AtLeastOnce);
        subscribe.pkid = 3;
        self.send(Packet::Subscribe(subscribe)).await;
        match self.next().await {
            Some(Packet::Publish(publish)) => publish,
            _ => self.message().await,
        }
    }

    /// The next packet, which is a message.
    pub async fn message(&mut self) -> Publish {
        match self.next().await {
            Some(Packet::Publish(publish)) => publish,
            other => panic!("expected a PUBLISH, got {other:?}"),
        }
    }
}
