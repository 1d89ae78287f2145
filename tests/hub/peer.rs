//! The other end of the wire, scripted packet by packet: a test says what the hub does next, also
//! what no decent hub does.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rcgen::{CertificateParams, KeyPair};
use rumqttc::mqttbytes::Error as MqttError;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    ConnAck, Connect, ConnectReturnCode, Packet, Publish, SubAck, Subscribe, SubscribeReasonCode,
};
use rumqttc::tokio_rustls::TlsAcceptor;
use rumqttc::tokio_rustls::server::TlsStream;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Nothing on loopback takes longer.
pub const LIMIT: Duration = Duration::from_secs(20);

const PACKET_MAX_BYTES: usize = 1024 * 1024;

/// A certificate and its key, as PEM files.
pub struct Credentials {
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
    pub certificate: CertificateDer<'static>,
}

/// A listening hub.
pub struct Peer {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    /// Certificates of the hub and of two devices live here.
    _directory: TempDir,
    pub address: SocketAddr,
    pub ca_file: PathBuf,
    pub devices: [Credentials; 2],
}

impl Peer {
    pub async fn listen(versions: &[&'static SupportedProtocolVersion]) -> Self {
        Self::listen_with(versions, |_| {}).await
    }

    /// With a certificate that is as told.
    pub async fn listen_with(
        versions: &[&'static SupportedProtocolVersion],
        edit: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let directory = TempDir::new().unwrap();
        let (ca_file, certificate, key) = make(directory.path(), "hub", "localhost", edit);
        let devices = ["first", "second"].map(|name| {
            let (certificate_file, certificate, _) = make(directory.path(), name, "dev-1", |_| {});
            Credentials {
                certificate_file,
                key_file: directory.path().join(format!("{name}.key")),
                certificate,
            }
        });

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut known = RootCertStore::empty();
        for device in &devices {
            known.add(device.certificate.clone()).unwrap();
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(known), provider.clone())
            .allow_unauthenticated()
            .build()
            .unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        Self {
            listener,
            acceptor: TlsAcceptor::from(Arc::new(config)),
            _directory: directory,
            address,
            ca_file,
            devices,
        }
    }

    /// The next connection, up to its CONNECT.
    pub async fn accept(&self) -> Connection {
        within(async {
            let (tcp, _) = self.listener.accept().await.unwrap();
            let mut connection =
                Connection { tls: self.acceptor.accept(tcp).await.unwrap(), read: BytesMut::new() };
            assert!(connection.fill().await, "the client left without CONNECT");
            connection
        })
        .await
    }

    /// The next connection, if its TLS handshake succeeds.
    pub async fn accept_tls(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let (tcp, _) = within(self.listener.accept()).await.unwrap();
        within(self.acceptor.accept(tcp)).await
    }

    /// The next session: accepted, subscribed, the twin read.
    pub async fn session(&self, twin: &Value) -> Connection {
        let mut connection = self.accept().await;
        connection.welcome(twin).await;
        connection
    }
}

/// A client's connection.
pub struct Connection {
    tls: TlsStream<TcpStream>,
    read: BytesMut,
}

impl Connection {
    /// The CONNECT packet, and its flags byte as sent.
    pub async fn connect(&mut self) -> (Connect, u8) {
        let name = self.read.windows(4).position(|bytes| bytes == b"MQTT").unwrap();
        let flags = self.read[name + 5];
        match self.receive().await {
            Packet::Connect(connect) => (connect, flags),
            other => panic!("{other:?} instead of CONNECT"),
        }
    }

    /// CONNECT to GET, which waits for its answer.
    pub async fn asked_for_twin(&mut self) -> (Connect, Subscribe, Publish) {
        let (connect, _) = self.connect().await;
        self.answer_connect(ConnectReturnCode::Success).await;
        let subscribe = self.answer_subscribe().await;
        let get = self.publish().await;
        assert!(get.topic.starts_with("$iothub/twin/GET/?$rid="), "{}", get.topic);
        (connect, subscribe, get)
    }

    /// CONNECT to the answer to GET: what every session begins with.
    pub async fn welcome(&mut self, twin: &Value) -> (Connect, Subscribe) {
        let (connect, subscribe, get) = self.asked_for_twin().await;
        self.send(&twin_answer(200, &get), twin.to_string()).await;
        (connect, subscribe)
    }

    pub async fn answer_connect(&mut self, code: ConnectReturnCode) {
        self.send_packet(&Packet::ConnAck(ConnAck::new(code, false))).await;
    }

    pub async fn answer_subscribe(&mut self) -> Subscribe {
        match self.receive().await {
            Packet::Subscribe(subscribe) => {
                let granted =
                    subscribe.filters.iter().map(|_| SubscribeReasonCode::Success(QoS::AtMostOnce)).collect();
                self.send_packet(&Packet::SubAck(SubAck::new(subscribe.pkid, granted))).await;
                subscribe
            }
            other => panic!("{other:?} instead of SUBSCRIBE"),
        }
    }

    /// Publishes as the hub does: QoS 0.
    pub async fn send(&mut self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.send_packet(&Packet::Publish(Publish::new(topic, QoS::AtMostOnce, payload))).await;
    }

    async fn send_packet(&mut self, packet: &Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, PACKET_MAX_BYTES).unwrap();
        self.send_bytes(&bytes).await;
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        within(self.tls.write_all(bytes)).await.unwrap();
        within(self.tls.flush()).await.unwrap();
    }

    /// The next PUBLISH; pings are answered.
    pub async fn publish(&mut self) -> Publish {
        match self.said().await {
            Packet::Publish(publish) => publish,
            other => panic!("{other:?} instead of PUBLISH"),
        }
    }

    /// The next packet that is no ping; pings are answered.
    pub async fn said(&mut self) -> Packet {
        loop {
            match self.receive().await {
                Packet::PingReq => self.pong().await,
                packet => return packet,
            }
        }
    }

    pub async fn pong(&mut self) {
        self.send_packet(&Packet::PingResp).await;
    }

    /// The next packet.
    pub async fn receive(&mut self) -> Packet {
        within(async {
            loop {
                match Packet::read(&mut self.read, PACKET_MAX_BYTES) {
                    Ok(packet) => return packet,
                    Err(MqttError::InsufficientBytes(_)) => assert!(self.fill().await, "the client left"),
                    Err(error) => panic!("the client sent {error}"),
                }
            }
        })
        .await
    }

    /// Waits until the client has left without another packet.
    pub async fn closed(mut self) {
        assert!(!within(self.fill()).await, "the client still talks: {:?}", self.read);
    }

    /// Reads more; `false`: the client has left.
    async fn fill(&mut self) -> bool {
        self.tls.read_buf(&mut self.read).await.is_ok_and(|count| count > 0)
    }

    pub fn client_certificate(&self) -> Option<CertificateDer<'static>> {
        Some(self.tls.get_ref().1.peer_certificates()?.first()?.clone().into_owned())
    }

    pub fn tls_version(&self) -> Option<rustls::ProtocolVersion> {
        self.tls.get_ref().1.protocol_version()
    }
}

/// Where the answer to a twin request goes.
pub fn twin_answer(status: u16, request: &Publish) -> String {
    let (_, rid) = request.topic.split_once("$rid=").unwrap();
    format!("$iothub/twin/res/{status}/?$rid={rid}")
}

/// Fails rather than hangs.
pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(LIMIT, future).await.expect("in time")
}

fn make(
    directory: &Path,
    file: &str,
    name: &str,
    edit: impl FnOnce(&mut CertificateParams),
) -> (PathBuf, CertificateDer<'static>, KeyPair) {
    let mut parameters = CertificateParams::new([name.to_owned()]).unwrap();
    edit(&mut parameters);
    let signing_key = KeyPair::generate().unwrap();
    let cert = parameters.self_signed(&signing_key).unwrap();
    let certificate_file = directory.join(format!("{file}.pem"));
    let mut opened = std::fs::File::create(&certificate_file).unwrap();
    std::io::Write::write_all(&mut opened, cert.pem().as_bytes()).unwrap();
    let mut opened = std::fs::File::create(directory.join(format!("{file}.key"))).unwrap();
    std::io::Write::write_all(&mut opened, signing_key.serialize_pem().as_bytes()).unwrap();
    (certificate_file, cert.der().clone(), signing_key)
}
