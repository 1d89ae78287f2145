//! The session with the hub, packet by packet, against a scripted peer over real TLS.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod peer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use peer::{Credentials, Peer, twin_answer, within};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{ConnectReturnCode, Packet};
use rustls::version::{TLS12, TLS13};
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use twinboot::config;
use twinboot::hub::{self, HubEvent, MethodCall, MethodReply, Pace, Reported};
use twinboot::redact::Secret;

const KEY: &str = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=";

fn unix_now() -> u64 {
    clock_gettime(ClockId::CLOCK_REALTIME).unwrap().tv_sec().try_into().unwrap()
}

/// Everything quick, but the limits that a slow machine could hit.
fn quick() -> Pace {
    Pace {
        first_pause: Duration::from_millis(2),
        longest_pause: Duration::from_millis(20),
        shortest_pause: Duration::from_millis(1),
        first_refused_pause: Duration::from_millis(2),
        longest_refused_pause: Duration::from_millis(20),
        throttled_pause: Duration::from_millis(5),
        ..Pace::default()
    }
}

/// The device: its session, and the agent's ends of the channels.
struct Device {
    events: mpsc::Receiver<HubEvent>,
    reported: watch::Sender<Reported>,
    session: JoinHandle<()>,
}

impl Device {
    fn start(pace: Pace, config: config::Hub, clock: fn() -> u64) -> Self {
        Self::start_with_room(8, pace, config, clock)
    }

    fn start_with_room(room: usize, pace: Pace, config: config::Hub, clock: fn() -> u64) -> Self {
        let (sender, events) = mpsc::channel(room);
        let (reported, wanted) = watch::channel(None);
        let session = tokio::spawn(hub::run_at(pace, config, clock, sender, wanted));
        Self { events, reported, session }
    }

    fn report(&self, value: Value) {
        self.reported.send_replace(Some(object(value)));
    }

    async fn event(&mut self) -> HubEvent {
        within(self.events.recv()).await.expect("the session goes on")
    }

    async fn connected(&mut self) -> Map<String, Value> {
        match (self.event().await, self.event().await) {
            (HubEvent::Connected, HubEvent::Desired(desired)) => desired,
            other => panic!("{other:?} instead of a connect"),
        }
    }

    async fn desired(&mut self) -> Map<String, Value> {
        match self.event().await {
            HubEvent::Desired(desired) => desired,
            other => panic!("{other:?} instead of desired properties"),
        }
    }

    async fn disconnected(&mut self) -> String {
        match self.event().await {
            HubEvent::Disconnected { reason } => reason,
            other => panic!("{other:?} instead of a disconnect"),
        }
    }

    async fn method(&mut self) -> MethodCall {
        match self.event().await {
            HubEvent::Method(call) => call,
            other => panic!("{other:?} instead of a call"),
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.session.abort();
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => panic!("not an object: {other}"),
    }
}

fn config(peer: &Peer) -> config::Hub {
    config::Hub {
        host_name: "localhost".to_owned(),
        gateway_host_name: None,
        device_id: "dev-1".to_owned(),
        credentials: config::Credentials::SharedAccessKey(Secret::new(KEY)),
        ca_file: Some(peer.ca_file.clone()),
        port: peer.address.port(),
        https_port: 443,
        keep_alive: Duration::from_secs(230),
    }
}

fn empty_twin() -> Value {
    json!({"desired": {"$version": 1}, "reported": {"$version": 1}})
}

async fn peer() -> Peer {
    Peer::listen(&[&TLS12, &TLS13]).await
}

#[tokio::test]
async fn a_session_begins_with_a_token_three_subscriptions_and_the_twin() {
    let peer = peer().await;
    let mut device = Device::start(quick(), config(&peer), unix_now);
    let mut connection = peer.accept().await;
    let (connect, flags) = connection.connect().await;
    assert_eq!((connect.client_id.as_str(), connect.keep_alive), ("dev-1", 230));
    assert_eq!(flags, 0b1100_0010, "user name, password, clean session, no will");
    let login = connect.login.unwrap();
    assert!(
        login.username.starts_with("localhost/dev-1/?api-version=2021-04-12&DeviceClientType=twinboot%2F")
    );
    let (rest, expiry) = login.password.rsplit_once("&se=").unwrap();
    assert!(rest.starts_with("SharedAccessSignature sr=localhost%2Fdevices%2Fdev-1&sig="), "{rest}");
    let life = expiry.parse::<u64>().unwrap() - unix_now();
    assert!((3590..=3600).contains(&life), "{life}");

    connection.answer_connect(ConnectReturnCode::Success).await;
    let filters = connection.answer_subscribe().await.filters;
    let filters: Vec<_> = filters.iter().map(|filter| (filter.path.as_str(), filter.qos)).collect();
    assert_eq!(
        filters,
        [
            ("$iothub/methods/POST/#", QoS::AtMostOnce),
            ("$iothub/twin/res/#", QoS::AtMostOnce),
            ("$iothub/twin/PATCH/properties/desired/#", QoS::AtMostOnce)
        ]
    );
    let get = connection.publish().await;
    assert_eq!(get.topic, "$iothub/twin/GET/?$rid=1");
    let twin =
        json!({"desired": {"firmware": {"fwVersion": "2"}, "$version": 3}, "reported": {"$version": 1}});
    connection.send(&twin_answer(200, &get), twin.to_string()).await;
    assert_eq!(device.connected().await, object(json!({"firmware": {"fwVersion": "2"}})));
}

#[tokio::test]
async fn both_tls_versions_are_spoken() {
    for (only, expected) in
        [(&TLS12, rustls::ProtocolVersion::TLSv1_2), (&TLS13, rustls::ProtocolVersion::TLSv1_3)]
    {
        let peer = Peer::listen(&[only]).await;
        let mut device = Device::start(quick(), config(&peer), unix_now);
        let connection = peer.session(&empty_twin()).await;
        assert_eq!(connection.tls_version(), Some(expected));
        device.connected().await;
    }
}

/// A device's certificate and key, which are renewed.
struct IdentityFiles {
    _directory: tempfile::TempDir,
    certificate: PathBuf,
    key: PathBuf,
}

impl IdentityFiles {
    fn new() -> Self {
        let directory = tempfile::TempDir::new().unwrap();
        let [certificate, key] = ["cert.pem", "key.pem"].map(|name| directory.path().join(name));
        Self { _directory: directory, certificate, key }
    }

    fn put(&self, credentials: &Credentials) {
        std::fs::copy(&credentials.certificate_file, &self.certificate).unwrap();
        std::fs::copy(&credentials.key_file, &self.key).unwrap();
    }

    fn config(&self, peer: &Peer) -> config::Hub {
        let (certificate_file, key_file) = (self.certificate.clone(), self.key.clone());
        let credentials = config::Credentials::Certificate { certificate_file, key_file };
        config::Hub { credentials, ..config(peer) }
    }
}

/// Shows Azure/iot-hub-device-update#90, #212, #219, #746, iot-identity-service#392, iotedge#6835.
#[tokio::test]
async fn a_client_certificate_needs_no_password_and_a_rotated_file_is_taken() {
    let peer = peer().await;
    let files = IdentityFiles::new();
    let config = files.config(&peer);
    let mut device = None;
    for credentials in &peer.devices {
        files.put(credentials);
        let device = device.get_or_insert_with(|| Device::start(quick(), config.clone(), unix_now));
        let mut connection = peer.accept().await;
        assert_eq!(connection.client_certificate().as_ref(), Some(&credentials.certificate));
        let (_, flags) = connection.connect().await;
        assert_eq!(flags, 0b1000_0010, "user name, no password");
        connection.answer_connect(ConnectReturnCode::Success).await;
        connection.answer_subscribe().await;
        let get = connection.publish().await;
        connection.send(&twin_answer(200, &get), empty_twin().to_string()).await;
        device.connected().await;
        // Held until both files are the new ones: the next connect follows the loss at once.
        if credentials.certificate == peer.devices[0].certificate {
            files.put(&peer.devices[1]);
        }
        drop(connection);
        device.disconnected().await;
    }
}

/// Whatever renews them writes one after the other, and may be cut off in between.
#[tokio::test]
async fn a_certificate_and_a_key_that_do_not_belong_together_are_read_again() {
    let peer = peer().await;
    let files = IdentityFiles::new();
    let [old, new] = [&peer.devices[0], &peer.devices[1]];
    files.put(old);
    let config = files.config(&peer);
    let mut device = Device::start(quick(), config, unix_now);
    let connection = peer.session(&empty_twin()).await;
    device.connected().await;
    std::fs::copy(&new.certificate_file, &files.certificate).unwrap();
    drop(connection);
    device.disconnected().await;
    let reason = device.disconnected().await;
    let both = format!("{} and its key {}", files.certificate.display(), files.key.display());
    assert!(reason.contains(&both) && reason.contains("not usable together"), "{reason}");
    // Its content was not on the medium yet when power was lost.
    drop(std::fs::File::create(&files.certificate).unwrap());
    let reason = device.disconnected().await;
    assert!(reason.contains(&format!("no certificate in {}", files.certificate.display())), "{reason}");

    files.put(new);
    let connection = peer.session(&empty_twin()).await;
    assert_eq!(connection.client_certificate().as_ref(), Some(&new.certificate));
    // What is not told again may have been told between the two.
    while matches!(device.event().await, HubEvent::Disconnected { .. }) {}
}

#[tokio::test]
async fn a_gateway_is_dialled_but_the_hub_is_named() {
    let peer = peer().await;
    let mut config = config(&peer);
    config.host_name = "the-hub.example".to_owned();
    config.gateway_host_name = Some("localhost".to_owned());
    let _device = Device::start(quick(), config, unix_now);
    let (connect, _) = peer.accept().await.connect().await;
    let login = connect.login.unwrap();
    assert!(login.username.starts_with("the-hub.example/dev-1/?"), "{}", login.username);
    assert!(login.password.contains("sr=the-hub.example%2Fdevices%2Fdev-1&"));
}

#[tokio::test]
async fn a_method_is_answered_under_its_id() {
    let peer = peer().await;
    let mut device = Device::start(quick(), config(&peer), unix_now);
    let mut connection = peer.session(&empty_twin()).await;
    device.connected().await;

    // Longer than a default MQTT client takes, and not JSON: the agent decides.
    let payload = vec![b'x'; 128 * 1024];
    connection.send("$iothub/methods/POST/firmware%20Update/?$rid=7f", payload.clone()).await;
    connection.send("$iothub/methods/POST/other/?$rid=80", "").await;
    let first = device.method().await;
    let second = device.method().await;
    assert_eq!((first.name.as_str(), first.payload.len()), ("firmware Update", payload.len()));
    assert_eq!((second.name.as_str(), second.payload.len()), ("other", 0));

    // Answers go out as they come; a dropped call has none.
    drop(first.reply);
    second.reply.send(MethodReply { status: 404, payload: json!({"no": true}) }).unwrap();
    let answer = connection.publish().await;
    assert_eq!((answer.topic.as_str(), answer.qos), ("$iothub/methods/res/404/?$rid=80", QoS::AtMostOnce));
    assert_eq!(answer.payload, r#"{"no":true}"#);

    connection.send("$iothub/methods/POST/long/?$rid=81", "null").await;
    let reply = MethodReply { status: 200, payload: Value::String("x".repeat(128 * 1024)) };
    device.method().await.reply.send(reply).unwrap();
    assert_eq!(connection.publish().await.topic, "$iothub/methods/res/500/?$rid=81");
}

#[tokio::test]
async fn a_busy_agent_holds_nothing_up() {
    let peer = peer().await;
    let mut device = Device::start_with_room(1, quick(), config(&peer), unix_now);
    let mut connection = peer.session(&empty_twin()).await;
    // The agent takes nothing: not even `Connected` and `Desired` both have room.
    connection.send("$iothub/methods/POST/m/?$rid=1", "{}").await;
    assert_eq!(connection.publish().await.topic, "$iothub/methods/res/503/?$rid=1");
    device.report(json!({"still": "alive"}));
    let patch = connection.publish().await;
    assert_eq!(patch.payload, r#"{"still":"alive"}"#);
    connection.send(&twin_answer(204, &patch), "").await;

    device.connected().await;
    connection.send("$iothub/methods/POST/m/?$rid=2", "{}").await;
    let call = device.method().await;
    call.reply.send(MethodReply { status: 200, payload: Value::Null }).unwrap();
    let answer = connection.publish().await;
    assert_eq!(
        (answer.topic.as_str(), &answer.payload[..]),
        ("$iothub/methods/res/200/?$rid=2", &b"null"[..])
    );
}

#[tokio::test]
async fn too_many_calls_are_refused_and_the_others_wait() {
    let peer = peer().await;
    let mut device = Device::start(quick(), config(&peer), unix_now);
    let mut connection = peer.session(&empty_twin()).await;
    device.connected().await;
    let mut calls = Vec::new();
    for rid in 0..16 {
        connection.send(&format!("$iothub/methods/POST/m/?$rid={rid}"), "{}").await;
        calls.push(device.method().await);
    }
    connection.send("$iothub/methods/POST/m/?$rid=16", "{}").await;
    assert_eq!(connection.publish().await.topic, "$iothub/methods/res/429/?$rid=16");
    for call in calls {
        call.reply.send(MethodReply { status: 200, payload: Value::Null }).unwrap();
    }
    for _ in 0..16 {
        assert!(connection.publish().await.topic.starts_with("$iothub/methods/res/200/?$rid="));
    }
}

/// Shows Azure/iot-hub-device-update#336, azure-iot-sdk-c#613, #902, #1074, azure-iot-sdk-java#304,
/// iotedge#5, #5856.
#[tokio::test]
async fn a_lost_session_is_taken_up_again_and_only_what_changed_is_reported() {
    let peer = peer().await;
    let mut device = Device::start(quick(), config(&peer), unix_now);
    device.report(json!({"status": "a", "old": 1}));
    let mut connection = peer.session(&empty_twin()).await;
    device.connected().await;
    let patch = connection.publish().await;
    assert_eq!(patch.topic, "$iothub/twin/PATCH/properties/reported/?$rid=2");
    assert_eq!(serde_json::from_slice::<Value>(&patch.payload).unwrap(), json!({"status": "a", "old": 1}));
    connection.send(&twin_answer(204, &patch), "").await;

    connection.send("$iothub/methods/POST/m/?$rid=1", "{}").await;
    let call = device.method().await;
    drop(connection);
    assert_eq!(device.disconnected().await, "the hub closed the connection");
    assert!(
        call.reply.send(MethodReply { status: 200, payload: Value::Null }).is_err(),
        "its caller is gone"
    );

    // The same value: nothing to say.
    let twin = json!({"desired": {"$version": 1}, "reported": {"status": "a", "old": 1, "$version": 2}});
    let mut connection = peer.session(&twin).await;
    device.connected().await;
    connection.send("$iothub/methods/POST/m/?$rid=1", "{}").await;
    device.method().await.reply.send(MethodReply { status: 200, payload: Value::Null }).unwrap();
    assert_eq!(connection.publish().await.topic, "$iothub/methods/res/200/?$rid=1", "no report before it");
    drop(connection);
    device.disconnected().await;

    // Changed while away.
    device.report(json!({"status": "b", "old": null}));
    let mut connection = peer.session(&twin).await;
    device.connected().await;
    let patch = connection.publish().await;
    assert_eq!(serde_json::from_slice::<Value>(&patch.payload).unwrap(), json!({"status": "b", "old": null}));
}

#[tokio::test]
async fn a_desired_change_brings_the_whole_section() {
    let peer = peer().await;
    let mut device = Device::start(quick(), config(&peer), unix_now);
    let mut connection = peer.session(&empty_twin()).await;
    device.connected().await;
    connection.send("$iothub/twin/PATCH/properties/desired/?$version=2", r#"{"b":2,"$version":2}"#).await;
    let get = connection.publish().await;
    let twin = json!({"desired": {"a": 1, "b": 2, "$version": 2}, "reported": {}});
    connection.send(&twin_answer(200, &get), twin.to_string()).await;
    assert_eq!(device.desired().await, object(json!({"a": 1, "b": 2})));
}

/// The whole of a trial's time may pass so, and the hub was reached all the same.
#[tokio::test]
async fn a_hub_that_lets_a_device_in_and_does_not_show_the_twin_is_reached() {
    let peer = peer().await;
    let mut device = Device::start(quick(), config(&peer), unix_now);
    // Gone without a word.
    let mut connection = peer.accept().await;
    connection.asked_for_twin().await;
    assert!(matches!(device.event().await, HubEvent::Connected));
    drop(connection);
    device.disconnected().await;
    // Too busy; over its quota for the day; ill.
    let mut connection = peer.accept().await;
    let (_, _, mut get) = connection.asked_for_twin().await;
    for status in [429, 403, 500] {
        connection.send(&twin_answer(status, &get), "").await;
        get = connection.publish().await;
    }
    assert!(matches!(device.event().await, HubEvent::Connected));
    connection.send(&twin_answer(200, &get), empty_twin().to_string()).await;
    assert!(device.desired().await.is_empty());
}

#[tokio::test]
async fn messages_that_make_no_sense_change_nothing() {
    let peer = peer().await;
    let mut device = Device::start(quick(), config(&peer), unix_now);
    let mut connection = peer.session(&empty_twin()).await;
    device.connected().await;
    for topic in [
        "x",
        "$iothub/methods/POST/",
        "$iothub/twin/res/204/?$rid=99",
        "$iothub/twin/PATCH/properties/desired/?",
    ] {
        connection.send(topic, "\u{0}{[").await;
    }
    connection.send("$iothub/methods/POST/m/?$rid=1", [0xff, 0xfe]).await;
    assert_eq!(&device.method().await.payload[..], &[0xff, 0xfe]);
}

#[tokio::test]
async fn bytes_that_are_no_mqtt_end_the_session_only() {
    let peer = peer().await;
    let mut device = Device::start(quick(), config(&peer), unix_now);
    let oversized = [0x30, 0xff, 0xff, 0xff, 0x7f];
    for bytes in [
        &[0x30, 0x01, 0x00][..],
        &[0xff; 16],
        &oversized,
        &[0x90, 0x02, 0x00, 0x01],
        &[0x40, 0x02, 0x00, 0x09],
    ] {
        let mut connection = peer.session(&empty_twin()).await;
        device.connected().await;
        connection.send_bytes(bytes).await;
        device.disconnected().await;
    }
    let _connection = peer.session(&empty_twin()).await;
    device.connected().await;
}

#[tokio::test]
async fn a_refused_device_says_so_once_and_asks_again() {
    let peer = peer().await;
    let mut device = Device::start(quick(), config(&peer), unix_now);
    for _ in 0..3 {
        let mut connection = peer.accept().await;
        connection.connect().await;
        connection.answer_connect(ConnectReturnCode::NotAuthorized).await;
        connection.closed().await;
    }
    let _connection = peer.session(&empty_twin()).await;
    let reason = device.disconnected().await;
    assert!(reason.contains("CONNACK 5"), "{reason}");
    device.connected().await;
}

#[tokio::test]
async fn a_refusal_is_not_waited_out_once_the_clock_is_set() {
    static SET: AtomicBool = AtomicBool::new(false);
    let clock = || if SET.load(Ordering::Relaxed) { unix_now() } else { unix_now() - 86_400 };
    let hour = Duration::from_secs(3600);
    let pace = Pace {
        first_refused_pause: hour,
        shortest_pause: hour / 2,
        clock_look: Duration::from_millis(5),
        ..quick()
    };
    for meanwhile in [false, true] {
        SET.store(false, Ordering::Relaxed);
        let peer = peer().await;
        let mut device = Device::start(pace, config(&peer), clock);
        let mut connection = peer.accept().await;
        connection.connect().await;
        SET.store(meanwhile, Ordering::Relaxed);
        connection.answer_connect(ConnectReturnCode::NotAuthorized).await;
        device.disconnected().await;
        SET.store(true, Ordering::Relaxed);
        let _connection = peer.session(&empty_twin()).await;
        device.connected().await;
    }
}

#[tokio::test]
async fn an_unknown_hub_is_not_trusted() {
    let (peer, other) = (peer().await, peer().await);
    let mut config = config(&peer);
    config.ca_file = Some(other.ca_file.clone());
    let mut device = Device::start(quick(), config, unix_now);
    assert!(peer.accept_tls().await.is_err());
    let reason = device.disconnected().await;
    assert!(reason.starts_with("cannot connect to localhost:") && reason.contains("certificate"), "{reason}");
}

#[tokio::test]
async fn a_device_with_a_certificate_needs_no_clock() {
    let peer = peer().await;
    let Credentials { certificate_file, key_file, .. } = &peer.devices[0];
    let (certificate_file, key_file) = (certificate_file.clone(), key_file.clone());
    let credentials = config::Credentials::Certificate { certificate_file, key_file };
    let config = config::Hub { credentials, ..config(&peer) };
    let mut device = Device::start(quick(), config, || 86_400);
    let _connection = peer.session(&empty_twin()).await;
    device.connected().await;
}

#[tokio::test]
async fn a_hub_whose_certificate_has_ended_is_waited_for_and_the_reason_is_told() {
    let peer = Peer::listen_with(&[&TLS12, &TLS13], |certificate| {
        certificate.not_after = rcgen::date_time_ymd(2026, 1, 1);
    })
    .await;
    let mut device = Device::start(quick(), config(&peer), unix_now);
    assert!(peer.accept_tls().await.is_err());
    let reason = device.disconnected().await;
    assert!(
        reason.contains("certificate ended at 2026-01-01T00:00:00Z, and for this device it is 20"),
        "{reason}"
    );
    // It is asked again: the clock may be set back, or the certificate renewed. The reason stays the same.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1100) {
        assert!(peer.accept_tls().await.is_err());
    }
    assert!(device.events.try_recv().is_err(), "told once");
}

#[tokio::test]
async fn nothing_is_tried_before_the_clock_is_set() {
    let peer = peer().await;
    let mut device = Device::start(quick(), config(&peer), || 86_400);
    assert_eq!(device.disconnected().await, "the clock is not set");
}

#[tokio::test]
async fn a_second_client_with_our_id_makes_the_pauses_grow() {
    let peer = peer().await;
    let pace =
        Pace { first_pause: Duration::from_millis(25), longest_pause: Duration::from_secs(10), ..quick() };
    let mut device = Device::start(pace, config(&peer), unix_now);
    let begun = Instant::now();
    for _ in 0..8 {
        let connection = peer.session(&empty_twin()).await;
        device.connected().await;
        drop(connection);
        device.disconnected().await;
    }
    // Pauses drawn below 25, 50, … 1600 ms; sessions of some milliseconds would else follow at once.
    let _connection = peer.accept().await;
    assert!(begun.elapsed() > Duration::from_millis(200), "{:?}", begun.elapsed());
}

/// Shows Azure/iot-hub-device-update#336, azure-iot-sdk-c#613, #902, #1074, azure-iot-sdk-java#304,
/// iotedge#5, #5856.
#[tokio::test]
async fn a_token_is_renewed_by_a_clean_reconnect_once_no_caller_waits() {
    let peer = peer().await;
    let pace = Pace { token_life: Duration::from_millis(500), ..quick() };
    let config = config::Hub { keep_alive: Duration::from_secs(1), ..config(&peer) };
    let mut device = Device::start(pace, config, unix_now);
    let mut connection = peer.accept().await;
    let (first, _) = connection.connect().await;
    connection.answer_connect(ConnectReturnCode::Success).await;
    // Before the session works: however slow this machine is, somebody waits when the token is due.
    connection.send("$iothub/methods/POST/m/?$rid=1", "{}").await;
    connection.answer_subscribe().await;
    let call = device.method().await;
    let get = connection.publish().await;
    connection.send(&twin_answer(200, &get), empty_twin().to_string()).await;
    device.connected().await;
    // A second after the connect, and the token's life is over.
    assert_eq!(connection.receive().await, Packet::PingReq);
    connection.pong().await;
    let begun = Instant::now();
    call.reply.send(MethodReply { status: 200, payload: Value::Null }).unwrap();
    assert_eq!(connection.publish().await.topic, "$iothub/methods/res/200/?$rid=1");
    assert_eq!(connection.said().await, Packet::Disconnect);
    connection.closed().await;
    assert_eq!(device.disconnected().await, "the token is renewed");

    let mut connection = peer.accept().await;
    let (second, _) = connection.connect().await;
    assert_ne!(first.login.unwrap().password, second.login.unwrap().password);
    connection.answer_connect(ConnectReturnCode::Success).await;
    connection.answer_subscribe().await;
    let mut said = connection.said().await;
    // On a slow machine the token may be due before the twin is asked for.
    if let Packet::Publish(get) = &said {
        connection.send(&twin_answer(200, get), empty_twin().to_string()).await;
        said = connection.said().await;
    }
    assert_eq!(said, Packet::Disconnect);
    assert!(begun.elapsed() > Duration::from_millis(400), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_hub_that_answers_nothing_is_left() {
    let peer = peer().await;
    let pace = Pace { answer_limit: Duration::from_millis(50), ..quick() };
    let mut device = Device::start(pace, config(&peer), unix_now);
    let mut connection = peer.accept().await;
    connection.connect().await;
    connection.answer_connect(ConnectReturnCode::Success).await;
    assert_eq!(device.disconnected().await, "the hub does not answer the subscription");

    let mut connection = peer.accept().await;
    connection.connect().await;
    connection.answer_connect(ConnectReturnCode::Success).await;
    connection.answer_subscribe().await;
    assert_eq!(connection.publish().await.topic, "$iothub/twin/GET/?$rid=1");
    assert_eq!(connection.publish().await.topic, "$iothub/twin/GET/?$rid=2");
    assert!(matches!(device.event().await, HubEvent::Connected), "it let the device in");
    assert_eq!(device.disconnected().await, "the hub does not answer twin requests");
}

#[tokio::test]
async fn an_idle_session_pings_and_nothing_else() {
    let peer = peer().await;
    let mut config = config(&peer);
    config.keep_alive = Duration::from_secs(1);
    let mut device = Device::start(quick(), config, unix_now);
    let mut connection = peer.session(&empty_twin()).await;
    device.connected().await;
    assert_eq!(connection.receive().await, Packet::PingReq);
    connection.pong().await;
    assert_eq!(connection.receive().await, Packet::PingReq);
    // Unanswered: the next ping would be the second.
    assert_eq!(device.disconnected().await, "the hub fell silent");
}

#[tokio::test]
async fn at_shutdown_the_last_report_goes_out_before_disconnect() {
    let peer = peer().await;
    let mut device = Device::start(quick(), config(&peer), unix_now);
    let mut connection = peer.session(&empty_twin()).await;
    device.connected().await;
    device.report(json!({"status": "rebooting"}));
    device.reported = watch::channel(None).0;
    let patch = connection.publish().await;
    assert_eq!(patch.payload, r#"{"status":"rebooting"}"#);
    connection.send(&twin_answer(204, &patch), "").await;
    assert_eq!(connection.receive().await, Packet::Disconnect);
    within(&mut device.session).await.unwrap();
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_silent_hub() {
    let peer = peer().await;
    let pace = Pace { closing_limit: Duration::from_millis(50), ..quick() };
    let mut device = Device::start(pace, config(&peer), unix_now);
    let mut connection = peer.session(&empty_twin()).await;
    device.connected().await;
    device.report(json!({"status": "rebooting"}));
    connection.publish().await;
    device.reported = watch::channel(None).0;
    within(&mut device.session).await.unwrap();
}
