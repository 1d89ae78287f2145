//! Devices that register themselves with the provisioning service.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hub_emulator::hub::Hub;
use reqwest::Method;
use ring::hmac;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::ConnectReturnCode::{BadClientId, NotAuthorized, Success};
use rumqttc::mqttbytes::v4::{Connect, Login, Packet, SubscribeReasonCode, UnsubAck, Unsubscribe};
use serde_json::{Value, json};

use crate::chains;
use crate::client::{Service, hub, key_of, token};
use crate::raw::{self, Device, connect, connect_with_key};

const ID: &str = "reg-1";
const VERSION: &str = "api-version=2021-06-01";
const ANSWERS: &str = "$dps/registrations/res/#";

fn derived(group_key: &str, id: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(group_key).unwrap());
    STANDARD.encode(hmac::sign(&key, id.as_bytes()))
}

fn token_for(hub: &Hub, id: &str, key: &str) -> String {
    token(&format!("{}/registrations/{id}", hub.dps().id_scope()), key, 3600, "&skn=registration")
}

fn connect_to(scope: &str, id: &str, password: &str) -> Connect {
    let mut connect = Connect::new(id);
    let user = format!("{scope}/registrations/{id}/api-version=2019-03-31&ClientVersion=x");
    connect.login = Some(Login::new(user, password.to_owned()));
    connect
}

/// A device in conversation with the provisioning service.
struct Newcomer {
    device: Device,
    id: String,
    requests: u32,
}

impl Newcomer {
    async fn new(hub: &Hub, id: &str, password: &str, certificate: Option<(&str, &str)>) -> Self {
        let mut device = Device::over(raw::open(hub, hub.mqtt_port(), certificate).await);
        let accepted = device.connect(connect_to(&hub.dps().id_scope(), id, password)).await.unwrap();
        assert_eq!(accepted.code, Success);
        let granted = device.subscribe(&[ANSWERS, "#"], QoS::AtLeastOnce).await;
        let once = SubscribeReasonCode::Success(QoS::AtLeastOnce);
        assert_eq!(granted, [once, SubscribeReasonCode::Failure]);
        Self { device, id: id.to_owned(), requests: 0 }
    }

    async fn with_key(hub: &Hub, id: &str, key: &str) -> Self {
        Self::new(hub, id, &token_for(hub, id, key), None).await
    }

    /// What follows `$rid=…` in the answer's topic, its status, and its body.
    async fn ask(&mut self, path: &str, more: &str, body: Value) -> (u16, String, Value) {
        self.requests += 1;
        let (rid, body) = (self.requests, body.to_string());
        self.device.publish_acked(&format!("$dps/registrations/{path}/?$rid={rid}{more}"), body).await;
        let answer = self.device.message().await;
        let (status, rest) =
            answer.topic.strip_prefix("$dps/registrations/res/").unwrap().split_once("/?").unwrap();
        let rest = rest.strip_prefix(&format!("$rid={rid}")).unwrap().to_owned();
        (status.parse().unwrap(), rest, serde_json::from_slice(&answer.payload).unwrap())
    }

    async fn register(&mut self) -> (u16, String, Value) {
        let body = json!({"registrationId": self.id, "payload": null});
        self.ask("PUT/iotdps-register", "", body).await
    }

    async fn poll(&mut self, operation: &str) -> (u16, String, Value) {
        let operation = format!("&operationId={operation}");
        self.ask("GET/iotdps-get-operationstatus", &operation, json!(" ")).await
    }

    /// Registers and polls once. Returns the registration's state.
    async fn outcome(mut self) -> Value {
        let (status, _, body) = self.register().await;
        assert_eq!(status, 202, "{body}");
        let (status, _, body) = self.poll(body["operationId"].as_str().unwrap()).await;
        assert_eq!(status, 200, "{body}");
        assert_eq!(body["status"], body["registrationState"]["status"]);
        body["registrationState"].clone()
    }
}

#[tokio::test]
async fn a_device_registers_with_its_key_and_then_is_the_hubs() {
    let hub = hub().await;
    let twin = json!({"tags": {"site": "north"}, "properties": {"desired": {"n": 1}}});
    let attestation = json!({"type": "symmetricKey", "symmetricKey": {"primaryKey": ""}, "tpm": null});
    let enrollment = json!({"attestation": attestation, "deviceId": "dev-7", "initialTwin": twin});
    let enrollment = hub.dps().enroll(ID, enrollment).unwrap();
    let key = enrollment["attestation"]["symmetricKey"]["secondaryKey"].as_str().unwrap();
    hub.dps().set_pace(1, 2);

    let mut newcomer = Newcomer::with_key(&hub, ID, key).await;
    let (status, rest, body) = newcomer.register().await;
    assert_eq!((status, rest.as_str(), &body["status"]), (202, "&retry-after=2", &json!("assigning")));
    let operation = body["operationId"].as_str().unwrap().to_owned();
    assert_eq!(newcomer.poll(&operation).await, (202, "&retry-after=2".into(), body));
    let (status, rest, body) = newcomer.poll(&operation).await;
    assert_eq!((status, rest.as_str(), &body["status"]), (200, "", &json!("assigned")));
    let state = &body["registrationState"];
    let told = ["registrationId", "assignedHub", "deviceId", "status", "substatus"].map(|name| &state[name]);
    assert_eq!(json!(told), json!([ID, "localhost", "dev-7", "assigned", "initialAssignment"]));
    assert_eq!(&hub.dps().registration("REG-1")["etag"], &state["etag"]);

    Device::connected(&hub, "dev-7", key).await;
    let twin = hub.twin("dev-7");
    assert_eq!((&twin["tags"]["site"], &twin["properties"]["desired"]["n"]), (&json!("north"), &json!(1)));
    assert_eq!(newcomer.poll("5.other").await.0, 404);
}

#[tokio::test]
async fn a_group_s_devices_register_with_derived_keys() {
    let hub = hub().await;
    let group_key = hub.dps().enroll_group_with_key("fleet").unwrap();
    let key = derived(&group_key, ID);
    let state = Newcomer::with_key(&hub, ID, &key).await.outcome().await;
    assert_eq!(state["deviceId"], ID);
    Device::connected(&hub, ID, &key).await;
    // A key is good for one device.
    let mut other = Newcomer::with_key(&hub, "reg-2", &key).await;
    assert_eq!(other.register().await.0, 401);
}

#[tokio::test]
async fn devices_register_with_certificates_of_their_own_or_of_a_group() {
    let hub = hub().await;
    let root = chains::root("root");
    let (own, own_key) = chains::leaf(&chains::root("any"), ID);
    let enrollment = json!({"attestation": {"type": "x509",
        "x509": {"clientCertificates": {"primary": {"certificate": own}}}}});
    let shown = hub.dps().enroll(ID, enrollment).unwrap();
    let info = &shown["attestation"]["x509"]["clientCertificates"]["primary"]["info"];
    assert_eq!(info["sha1Thumbprint"].as_str().unwrap().len(), 40);
    let group = json!({"attestation": {"type": "x509",
        "x509": {"signingCertificates": {"primary": {"certificate": root.pem()}}}}});
    hub.dps().enroll_group("fleet", group.clone()).unwrap();
    assert!(hub.dps().enroll(ID, group).is_err());

    let (of_group, of_group_key) = chains::leaf(&root, "reg-2");
    for (id, chain, key) in [(ID, &own, &own_key), ("reg-2", &of_group, &of_group_key)] {
        let state = Newcomer::new(&hub, id, "", Some((chain, key))).await.outcome().await;
        assert_eq!(state["status"], "assigned", "{state}");
        let stream = raw::open(&hub, hub.mqtt_port(), Some((chain, key))).await;
        let accepted = Device::over(stream).connect(connect(id, "")).await.unwrap();
        assert_eq!(accepted.code, Success);
    }
    // A certificate is good for the name on it.
    let mut other = Newcomer::new(&hub, "reg-3", "", Some((&of_group, &of_group_key))).await;
    assert_eq!(other.register().await.0, 401);
}

#[tokio::test]
async fn who_is_refused_is_told_why() {
    let hub = hub().await;
    let key = hub.dps().enroll_with_key(ID).unwrap();
    let password = token_for(&hub, ID, &key);
    let other_scope = connect_to("0ne00000002", ID, &password);
    let mut other_id = connect_to(&hub.dps().id_scope(), ID, &password);
    other_id.client_id = "reg-2".into();
    for (connect, code) in [(other_scope, NotAuthorized), (other_id, BadClientId)] {
        assert_eq!(Device::on_port(&hub).await.connect(connect).await.unwrap().code, code);
    }

    let mut stranger = Newcomer::with_key(&hub, ID, &STANDARD.encode([7; 32])).await;
    let (status, rest, body) = stranger.register().await;
    assert_eq!((status, rest.as_str(), &body["errorCode"]), (401, "", &json!(401_002)));

    let mut newcomer = Newcomer::with_key(&hub, ID, &key).await;
    hub.dps().fail_next(429);
    let (status, rest, _) = newcomer.register().await;
    assert_eq!((status, rest.as_str()), (429, "&retry-after=3"));
    let (status, _, body) = newcomer.ask("PUT/iotdps-register", "", json!({"registrationId": "reg-9"})).await;
    assert_eq!((status, &body["errorCode"]), (400, &json!(400_004)));
    assert_eq!(hub.dps().registration(ID), Value::Null);

    let disabled = json!({"attestation": {"type": "symmetricKey", "symmetricKey":
        {"primaryKey": key, "secondaryKey": key}}, "provisioningStatus": "disabled"});
    hub.dps().enroll(ID, disabled).unwrap();
    assert_eq!(newcomer.outcome().await["status"], "disabled");
    assert_eq!(hub.twin(ID), Value::Null);

    let mut newcomer = Newcomer::with_key(&hub, ID, &key).await;
    newcomer.device.publish("$dps/registrations/PUT/anything/?$rid=1", QoS::AtMostOnce, "").await;
    assert_eq!(newcomer.device.next().await, None);
}

#[tokio::test]
async fn answers_come_only_to_who_has_subscribed() {
    let hub = hub().await;
    let key = hub.dps().enroll_with_key(ID).unwrap();
    let mut device = Device::on_port(&hub).await;
    let connect = connect_to(&hub.dps().id_scope(), ID, &token_for(&hub, ID, &key));
    assert_eq!(device.connect(connect).await.unwrap().code, Success);
    let (topic, body) = ("$dps/registrations/PUT/iotdps-register/?$rid=1", r#"{"registrationId":"reg-1"}"#);
    // An answer would come before the acknowledgement of what follows.
    device.publish_acked(topic, body).await;
    device.subscribe(&[ANSWERS], QoS::AtLeastOnce).await;
    device.publish_acked(topic, body).await;
    assert!(device.message().await.topic.starts_with("$dps/registrations/res/202/"));
    device.send(Packet::Unsubscribe(Unsubscribe { pkid: 9, topics: vec![ANSWERS.to_owned()] })).await;
    assert_eq!(device.next().await, Some(Packet::UnsubAck(UnsubAck::new(9))));
    device.publish_acked(topic, body).await;
    device.send(Packet::PingReq).await;
    assert_eq!(device.next().await, Some(Packet::PingResp));
}

#[tokio::test]
async fn a_device_that_registers_again_keeps_starts_anew_or_is_left_alone() {
    let hub = hub().await;
    let key = STANDARD.encode([7; 32]);
    let enroll = |update: bool, migrate: bool| {
        let enrollment = json!({
            "attestation": {"type": "symmetricKey", "symmetricKey": {"primaryKey": key, "secondaryKey": key}},
            "initialTwin": {"tags": {"n": 1}},
            "reprovisionPolicy": {"updateHubAssignment": update, "migrateDeviceData": migrate},
        });
        hub.dps().enroll(ID, enrollment).unwrap();
    };
    let site = || hub.twin(ID)["properties"]["desired"]["site"].clone();
    enroll(true, true);
    let register = || async { Newcomer::with_key(&hub, ID, &key).await.outcome().await["substatus"].clone() };
    assert_eq!(register().await, "initialAssignment");
    hub.patch_desired(ID, json!({"site": "north"})).unwrap();

    assert_eq!(register().await, "deviceDataMigrated");
    assert_eq!(site(), "north");
    hub.dps().assign_to("elsewhere");
    enroll(false, false);
    assert_eq!(register().await, "deviceDataMigrated", "the answer it got before");
    assert_eq!(hub.dps().registration(ID)["assignedHub"], "localhost");
    enroll(true, false);
    assert_eq!(register().await, "deviceDataReset");
    assert_eq!((site(), &hub.twin(ID)["tags"]["n"]), (Value::Null, &json!(1)));
    assert_eq!(hub.dps().registration(ID)["assignedHub"], "elsewhere");
}

#[tokio::test]
async fn a_service_enrolls_and_a_device_registers_over_https() {
    let hub = hub().await;
    let mut service = Service::new(&hub);
    let (status, _, answer) = service.answer(service.request(Method::GET, "enrollments/reg-1")).await;
    assert_eq!((status.as_u16(), &answer["errorCode"]), (401, &json!(401_002)), "a policy of the hub");
    let owner = key_of(&hub.dps().service_connection_string());
    service.token = token("localhost", &owner, 3600, "&skn=provisioningserviceowner");
    let ask = |method, path: &'static str| service.request(method, path);
    let body = json!({"registrationId": ID, "attestation": {"type": "symmetricKey"}, "iotHubs": ["a"]});
    let put = || ask(Method::PUT, "enrollments/reg-1").json(&body);
    let (status, _, made) = service.answer(put()).await;
    assert_eq!(
        (status.as_u16(), &made["registrationId"], &made["iotHubs"]),
        (200, &json!(ID), &json!(["a"]))
    );
    assert_eq!(service.answer(put()).await.0, 409);
    assert_eq!(service.answer(put().header("If-Match", "\"old\"")).await.0, 412);
    let etag = made["etag"].as_str().unwrap();
    let (status, _, made) = service.answer(put().header("If-Match", etag)).await;
    assert_eq!(status, 200);
    let (_, _, list) = service.answer(ask(Method::POST, "enrollments/query").json(&json!({}))).await;
    assert_eq!(list, json!([made]));
    let (_, _, keys) = service.answer(ask(Method::POST, "enrollments/reg-1/attestationmechanism")).await;
    assert_eq!(keys, made["attestation"]);

    let key = keys["symmetricKey"]["primaryKey"].as_str().unwrap();
    let device = |method, path: &str| {
        let url = format!("{}/0ne00000001/registrations/{path}?{VERSION}", service.base);
        let request = service.http.request(method, url);
        request.header("Authorization", token_for(&hub, ID, key))
    };
    let register = device(Method::PUT, "reg-1/register").json(&json!({"registrationId": ID}));
    let answer = register.send().await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.headers()["Retry-After"].to_str().unwrap()), (202, "3"));
    let location = answer.headers()["Location"].to_str().unwrap().to_owned();
    let poll = |query: &str| {
        let request = service.http.get(format!("{location}{query}"));
        service.answer(request.header("Authorization", token_for(&hub, ID, key)))
    };
    assert_eq!(poll("").await.0, 400);
    let (status, _, done) = poll(&format!("?{VERSION}")).await;
    assert_eq!((status.as_u16(), &done["registrationState"]["deviceId"]), (200, &json!(ID)));
    let (_, _, looked_up) = service.answer(device(Method::POST, "reg-1")).await;
    assert_eq!(looked_up, done["registrationState"]);
    let (_, _, looked_up) = service.answer(ask(Method::GET, "registrations/reg-1")).await;
    assert_eq!(looked_up["assignedHub"], "localhost");
    let unsigned = format!("{}/0ne00000001/registrations/reg-1/register?{VERSION}", service.base);
    let unsigned = service.http.put(unsigned);
    assert_eq!(service.answer(unsigned.json(&json!({"registrationId": ID}))).await.0, 401);

    assert_eq!(service.answer(ask(Method::DELETE, "enrollments/reg-1")).await.0, 204);
    assert_eq!(service.answer(ask(Method::GET, "registrations/reg-1")).await.0, 404);
    let connect = connect_with_key(ID, key);
    assert_eq!(Device::on_port(&hub).await.connect(connect).await.unwrap().code, Success, "still the hub's");
}
