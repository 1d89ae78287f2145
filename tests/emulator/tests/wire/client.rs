//! A device, packet by packet: what a client library would not send can be sent.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{SinkExt, StreamExt};
use hub_emulator::hub::Hub;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ring::hmac;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    Codec, ConnAck, Connect, ConnectReturnCode, Login, Packet, PubAck, Publish, Subscribe, SubscribeFilter,
    SubscribeReasonCode,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use time::OffsetDateTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::codec::Framed;

/// Far more than anything here takes.
pub const LIMIT: Duration = Duration::from_secs(20);
const PACKET_LIMIT_BYTES: usize = 1 << 20;

pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A hub with one device, and that device's key.
pub async fn hub_with_device(id: &str) -> (Hub, String) {
    let hub = Hub::start(hub_emulator::hub::HubOptions::default()).await.unwrap();
    let key = key_of(&hub.add_device(id));
    (hub, key)
}

pub fn key_of(connection_string: &str) -> String {
    connection_string.split_once("SharedAccessKey=").unwrap().1.to_owned()
}

/// A token for `resource`, good for an hour; `more` goes to its end.
pub fn token(resource: &str, key: &str, more: &str) -> String {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let (resource, expiry) = (encode(resource), OffsetDateTime::now_utc().unix_timestamp() + 3600);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(key).unwrap());
    let signature = STANDARD.encode(hmac::sign(&key, format!("{resource}\n{expiry}").as_bytes()));
    format!("SharedAccessSignature sr={resource}&sig={}&se={expiry}{more}", encode(&signature))
}

/// TLS settings that trust this hub, with a client certificate chain and its key (PEM) or without.
pub fn tls_config(hub: &Hub, certificate: Option<(&str, &str)>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(hub.ca_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let Some((chain, key)) = certificate else { return builder.with_no_client_auth() };
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
    builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
}

/// A TLS connection to a port of the hub.
pub async fn tls(hub: &Hub, port: u16, certificate: Option<(&str, &str)>) -> TlsStream<TcpStream> {
    let connector = TlsConnector::from(Arc::new(tls_config(hub, certificate)));
    let socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    connector.connect(ServerName::try_from("localhost").unwrap(), socket).await.unwrap()
}

/// An HTTPS client that trusts this hub.
pub fn http(hub: &Hub) -> reqwest::Client {
    reqwest::Client::builder().tls_backend_preconfigured(tls_config(hub, None)).build().unwrap()
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
    connect(id, &token(&format!("localhost/devices/{id}"), key, ""))
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
        Self::over(tls(hub, hub.mqtt_port(), None).await)
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
