//! A device and a service that have nothing of the emulator's in them but the MQTT codec.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hub_emulator::hub::{Hub, HubOptions};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, StatusCode};
use ring::hmac;
use rumqttc::mqttbytes::v4::{ConnAck, ConnectReturnCode};
use rumqttc::{
    AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, Packet, Publish, QoS, SubscribeReasonCode,
    TlsConfiguration, Transport,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use time::OffsetDateTime;
use tokio::time::timeout;

/// Far more than anything here takes.
pub const LIMIT: Duration = Duration::from_secs(20);
pub const ID: &str = "dev-1";
pub const METHODS: &str = "$iothub/methods/POST/#";
pub const TWIN_ANSWERS: &str = "$iothub/twin/res/#";
pub const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/#";

pub async fn hub() -> Hub {
    Hub::start(HubOptions::default()).await.unwrap()
}

/// A hub with one device, and that device's key.
pub async fn hub_with_device() -> (Hub, String) {
    let hub = hub().await;
    let connection_string = hub.add_device(ID);
    (hub, key_of(&connection_string))
}

pub fn key_of(connection_string: &str) -> String {
    connection_string.split_once("SharedAccessKey=").unwrap().1.to_owned()
}

/// A token for `resource`, good for `life_secs`.
pub fn token(resource: &str, key: &str, life_secs: i64, policy: &str) -> String {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let (resource, expiry) = (encode(resource), OffsetDateTime::now_utc().unix_timestamp() + life_secs);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(key).unwrap());
    let signature = STANDARD.encode(hmac::sign(&key, format!("{resource}\n{expiry}").as_bytes()));
    format!("SharedAccessSignature sr={resource}&sig={}&se={expiry}{policy}", encode(&signature))
}

pub fn device_token(id: &str, key: &str) -> String {
    token(&format!("localhost/devices/{id}"), key, 3600, "")
}

/// TLS settings that trust this hub, with a client certificate or without.
pub fn tls(hub: &Hub, certificate: Option<(&str, &str)>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(hub.ca_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let Some((certificate, key)) = certificate else { return builder.with_no_client_auth() };
    let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).map(Result::unwrap).collect();
    builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
}

/// A device, by an MQTT client that has nothing of the emulator's in it but the codec.
pub struct Device {
    pub client: AsyncClient,
    events: EventLoop,
}

impl Device {
    pub fn new(hub: &Hub, password: &str, tls: ClientConfig, change: impl FnOnce(&mut MqttOptions)) -> Self {
        Self::named(ID, hub, password, tls, change)
    }

    pub fn named(
        id: &str,
        hub: &Hub,
        password: &str,
        tls: ClientConfig,
        change: impl FnOnce(&mut MqttOptions),
    ) -> Self {
        let mut options = MqttOptions::new(id, "localhost", hub.mqtt_port());
        options.set_credentials(format!("localhost/{id}/?api-version=2021-04-12"), password);
        options.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(tls))));
        options.set_clean_session(false);
        change(&mut options);
        let (client, events) = AsyncClient::new(options, 10);
        Self { client, events }
    }

    pub fn with_key(hub: &Hub, key: &str) -> Self {
        Self::new(hub, &device_token(ID, key), tls(hub, None), |_| {})
    }

    pub async fn connected(hub: &Hub, key: &str) -> Self {
        let mut device = Self::with_key(hub, key);
        device.connect().await.unwrap();
        device
    }

    pub async fn connect(&mut self) -> Result<ConnAck, ConnectionError> {
        match self.next().await? {
            Packet::ConnAck(accepted) => Ok(accepted),
            other => panic!("expected a CONNACK, got {other:?}"),
        }
    }

    /// The next packet from the hub.
    pub async fn next(&mut self) -> Result<Packet, ConnectionError> {
        loop {
            match timeout(LIMIT, self.events.poll()).await.expect_in_time("the hub sends something")? {
                Event::Incoming(packet) => return Ok(packet),
                Event::Outgoing(_) => {}
            }
        }
    }

    /// The next message from the hub; what else comes is passed over.
    pub async fn message(&mut self) -> Publish {
        loop {
            if let Packet::Publish(publish) = self.next().await.unwrap() {
                return publish;
            }
        }
    }

    pub async fn subscribe(&mut self, filter: &str) -> SubscribeReasonCode {
        self.client.subscribe(filter, QoS::AtLeastOnce).await.unwrap();
        loop {
            if let Packet::SubAck(granted) = self.next().await.unwrap() {
                return *granted.return_codes.first().unwrap();
            }
        }
    }

    pub async fn publish(&mut self, topic: &str, body: impl Into<Vec<u8>>) {
        self.client.publish(topic, QoS::AtLeastOnce, false, body).await.unwrap();
    }

    /// Sends a twin request. Returns the topic and the body of the answer.
    pub async fn ask_twin(&mut self, topic: &str, body: impl Into<Vec<u8>>) -> (String, Value) {
        self.publish(topic, body).await;
        let answer = self.message().await;
        (answer.topic.clone(), serde_json::from_slice(&answer.payload).unwrap_or_default())
    }

    /// Polls until the hub closes the connection.
    pub async fn closed(&mut self) {
        while self.next().await.is_ok() {}
    }
}

pub trait InTime<T> {
    fn expect_in_time(self, what: &str) -> T;
}

impl<T, E> InTime<T> for Result<T, E> {
    fn expect_in_time(self, what: &str) -> T {
        self.unwrap_or_else(|_| panic!("within {LIMIT:?}: {what}"))
    }
}

/// What a refused device gets to hear.
pub async fn refusal(mut device: Device) -> ConnectReturnCode {
    match device.connect().await {
        Err(ConnectionError::ConnectionRefused(code)) => code,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// A service, over HTTPS.
pub struct Service {
    pub http: reqwest::Client,
    pub base: String,
    pub token: String,
}

impl Service {
    pub fn new(hub: &Hub) -> Self {
        Self::with_policy(hub, "iothubowner")
    }

    pub fn with_policy(hub: &Hub, policy: &str) -> Self {
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls(hub, None)).build().unwrap();
        let key = key_of(&hub.policy_connection_string(policy).unwrap());
        let base = format!("localhost:{}", hub.https_port());
        let token = token(&base, &key, 3600, &format!("&skn={policy}"));
        Self { http, base: format!("https://{base}"), token }
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let separator = if path.contains('?') { '&' } else { '?' };
        let url = format!("{}/{path}{separator}api-version=2021-04-12", self.base);
        self.http.request(method, url).header("Authorization", &self.token)
    }

    pub async fn answer(&self, request: reqwest::RequestBuilder) -> (StatusCode, String, Value) {
        let answer = request.send().await.unwrap();
        let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let label = header("iothub-errorcode").or_else(|| header("etag")).unwrap_or_default();
        let status = answer.status();
        (status, label, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default())
    }

    /// Sends a request; a body of null is none. Returns the status, `iothub-errorcode` or the etag, and the body.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        etag: &str,
        body: &Value,
    ) -> (StatusCode, String, Value) {
        let mut request = self.request(method, path);
        if !etag.is_empty() {
            request = request.header("If-Match", etag);
        }
        if !body.is_null() {
            request = request.json(body);
        }
        self.answer(request).await
    }

    pub async fn get(&self, path: &str) -> (StatusCode, String, Value) {
        self.send(Method::GET, path, "", &Value::Null).await
    }

    /// The rows of a query, in one page.
    pub async fn query(&self, query: &str) -> Value {
        let body = serde_json::json!({ "query": query });
        let (status, _, rows) = self.send(Method::POST, "devices/query", "", &body).await;
        assert_eq!(status, StatusCode::OK, "{query}: {rows}");
        rows
    }

    pub async fn call(&self, id: &str, body: Value) -> (StatusCode, String, Value) {
        self.answer(self.request(Method::POST, &format!("twins/{id}/methods")).json(&body)).await
    }
}

/// Asks again and again until `wanted` likes the answer. Returns that answer.
pub async fn eventually<T: std::fmt::Debug>(
    mut ask: impl AsyncFnMut() -> T,
    wanted: impl Fn(&T) -> bool,
) -> T {
    const PAUSE: Duration = Duration::from_millis(10);
    let mut last = ask().await;
    let found = timeout(LIMIT, async {
        while !wanted(&last) {
            tokio::time::sleep(PAUSE).await;
            last = ask().await;
        }
    });
    if found.await.is_err() {
        panic!("not within {LIMIT:?}; the last answer is {last:?}");
    }
    last
}
