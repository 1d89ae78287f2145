//! The hub as a device and as a service meet it, over real sockets.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod client;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use client::*;
use hub_emulator::hub::{MethodError, MethodResponse};
use reqwest::{Method, StatusCode};
use rumqttc::mqttbytes::v4::ConnectReturnCode;
use rumqttc::{MqttOptions, Packet, QoS, SubscribeReasonCode};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};

#[tokio::test]
async fn a_device_with_its_key_gets_in_and_others_do_not() {
    let (hub, key) = hub_with_device().await;
    let mut device = Device::with_key(&hub, &key);
    assert!(!device.connect().await.unwrap().session_present);
    assert!(hub.connected(ID));
    assert_eq!(hub.connects(ID), 1);

    let with =
        |password: &str, change: fn(&mut MqttOptions)| Device::new(&hub, password, tls(&hub, None), change);
    let good = device_token(ID, &key);
    let other_key = STANDARD.encode([7; 32]);
    let expired = token(&format!("localhost/devices/{ID}"), &key, -1, "");
    let other_id: fn(&mut MqttOptions) = |options| {
        options.set_client_id("dev-2".into());
    };
    let unknown: fn(&mut MqttOptions) = |options| {
        options.set_client_id("dev-2".into());
        options.set_credentials(
            "localhost/dev-2/?api-version=2021-04-12",
            options.credentials().unwrap().password,
        );
    };
    use ConnectReturnCode::{BadClientId, BadUserNamePassword, NotAuthorized};
    for (device, code) in [
        (with(&device_token(ID, &other_key), |_| {}), NotAuthorized),
        (with(&expired, |_| {}), NotAuthorized),
        (with(&device_token("dev-11", &key), |_| {}), NotAuthorized),
        (with("", |_| {}), NotAuthorized),
        (with("password", |_| {}), BadUserNamePassword),
        (with(&good, other_id), BadClientId),
        (with(&good, unknown), NotAuthorized),
    ] {
        assert_eq!(refusal(device).await, code);
    }
    assert_eq!(hub.connects(ID), 1);
}

#[tokio::test]
async fn a_certificate_lets_in_the_device_it_was_made_for() {
    let hub = hub().await;
    let (certificate, key) = hub.add_x509_device(ID).unwrap();
    let mut device = Device::new(&hub, "", tls(&hub, Some((&certificate, &key))), |_| {});
    device.connect().await.unwrap();
    assert_eq!(hub.twin(ID)["authenticationType"], "selfSigned");

    let (other, other_key) = hub.authority().client_certificate(ID).unwrap();
    let impostor = Device::new(&hub, "", tls(&hub, Some((&other, &other_key))), |_| {});
    assert_eq!(refusal(impostor).await, ConnectReturnCode::NotAuthorized);
}

#[tokio::test]
async fn tls_1_2_alone_is_enough() {
    let (hub, key) = hub_with_device().await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(hub.ca_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls =
        ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS12]);
    let tls = tls.unwrap().with_root_certificates(roots).with_no_client_auth();
    let mut device = Device::new(&hub, &device_token(ID, &key), tls, |_| {});
    device.connect().await.unwrap();
}

/// Lets a device answer one method with `status` and `payload`; returns the request as it saw it.
async fn answer_one(device: &mut Device, status: i64, payload: &str) -> (String, Value) {
    let request = device.message().await;
    let (name, id) = request.topic.split_once("/?$rid=").unwrap();
    device.publish(&format!("$iothub/methods/res/{status}/?$rid={id}"), payload).await;
    // The client writes only while it is polled.
    assert!(matches!(device.next().await, Ok(Packet::PubAck(_))));
    (name.to_owned(), serde_json::from_slice(&request.payload).unwrap())
}

#[tokio::test]
async fn a_method_goes_to_the_device_and_its_answer_comes_back() {
    let (hub, key) = hub_with_device().await;
    let mut device = Device::connected(&hub, &key).await;
    device.subscribe(METHODS).await;
    let call = hub.call_method(ID, "firmwareUpdate", json!({"fwVersion": "2"}), LIMIT);
    let (answer, request) = tokio::join!(call, answer_one(&mut device, 200, r#"{"Response":"ok"}"#));
    assert_eq!(request, ("$iothub/methods/POST/firmwareUpdate".to_owned(), json!({"fwVersion": "2"})));
    assert_eq!(answer, Ok(MethodResponse { status: 200, payload: json!({"Response": "ok"}) }));

    let call = hub.call_method(ID, "other", Value::Null, LIMIT);
    let (answer, _) = tokio::join!(call, answer_one(&mut device, 404, ""));
    assert_eq!(answer, Ok(MethodResponse { status: 404, payload: Value::Null }));
}

#[tokio::test]
async fn a_method_fails_where_nobody_takes_or_answers_it() {
    let (hub, key) = hub_with_device().await;
    let call = |id: &'static str| hub.call_method(id, "m", json!({}), Duration::from_millis(50));
    assert_eq!(call("nobody").await, Err(MethodError::DeviceNotFound("nobody".into())));
    assert_eq!(call(ID).await, Err(MethodError::NotOnline));
    let mut device = Device::connected(&hub, &key).await;
    assert_eq!(call(ID).await, Err(MethodError::NotOnline));
    device.subscribe(METHODS).await;
    assert_eq!(call(ID).await, Err(MethodError::Timeout));
    // A late answer is taken and ignored, and a connection that ends ends the wait for its answers.
    let request = device.message().await.topic;
    let id = request.split_once("/?$rid=").unwrap().1;
    device.publish(&format!("$iothub/methods/res/200/?$rid={id}"), "{}").await;
    assert!(matches!(device.next().await, Ok(Packet::PubAck(_))));
    let call = hub.call_method(ID, "m", json!({}), LIMIT);
    let gone = async {
        device.message().await;
        hub.drop_connections();
    };
    assert_eq!(tokio::join!(call, gone).0, Err(MethodError::Timeout));
}

#[tokio::test]
async fn a_device_reads_and_writes_its_twin_and_hears_of_changes() {
    let (hub, key) = hub_with_device().await;
    let mut device = Device::connected(&hub, &key).await;
    for filter in [TWIN_ANSWERS, DESIRED] {
        assert_eq!(device.subscribe(filter).await, SubscribeReasonCode::Success(QoS::AtLeastOnce));
    }
    let (topic, twin) = device.ask_twin("$iothub/twin/GET/?$rid=1", " ").await;
    assert_eq!(topic, "$iothub/twin/res/200/?$rid=1");
    assert_eq!(twin, json!({"desired": {"$version": 1}, "reported": {"$version": 1}}));

    let patch = "$iothub/twin/PATCH/properties/reported/?$rid=";
    let (topic, _) = device.ask_twin(&format!("{patch}2"), r#"{"firmwareStatus":"standBy","a":1}"#).await;
    assert_eq!(topic, "$iothub/twin/res/204/?$rid=2&$version=2");
    let (topic, body) = device.ask_twin(&format!("{patch}3"), r#"{"bad.key":1}"#).await;
    assert_eq!(topic, "$iothub/twin/res/400/?$rid=3");
    assert_eq!(body["errorCode"], 400_004);
    let (topic, _) = device.ask_twin(&format!("{patch}4&$version=1"), "{}").await;
    assert_eq!(topic, "$iothub/twin/res/412/?$rid=4");
    let (topic, _) = device.ask_twin(&format!("{patch}5"), r#"{"a":null}"#).await;
    assert_eq!(topic, "$iothub/twin/res/204/?$rid=5&$version=3");
    assert_eq!(hub.reported(ID), json!({"firmwareStatus": "standBy"}));
    assert_eq!(hub.history(ID), [json!({"firmwareStatus": "standBy", "a": 1}), json!({"a": null})]);

    assert_eq!(hub.patch_desired(ID, json!({"firmware": {"fwVersion": "2"}})).unwrap(), 2);
    let push = device.message().await;
    assert_eq!(push.topic, "$iothub/twin/PATCH/properties/desired/?$version=2");
    assert_eq!(&push.payload[..], br#"{"$version":2,"firmware":{"fwVersion":"2"}}"#);
    assert!(hub.patch_desired(ID, json!({"x": "y".repeat(5000)})).is_err());
}

#[tokio::test]
async fn waiting_ends_with_the_change_or_with_the_last_value() {
    let (hub, key) = hub_with_device().await;
    let mut device = Device::connected(&hub, &key).await;
    let wait = hub.wait_reported(ID, LIMIT, |reported| reported["n"] == 1);
    let report = device.ask_twin("$iothub/twin/PATCH/properties/reported/?$rid=1", r#"{"n":1}"#);
    assert_eq!(tokio::join!(wait, report).0, Ok(json!({"n": 1})));
    let error =
        hub.wait_reported(ID, Duration::from_millis(10), |reported| reported["n"] == 2).await.unwrap_err();
    assert!(error.contains(r#"{"n":1}"#), "{error}");
}

#[tokio::test]
async fn a_second_connection_closes_the_first_and_finds_its_session() {
    let (hub, key) = hub_with_device().await;
    let mut first = Device::connected(&hub, &key).await;
    first.subscribe(METHODS).await;
    let mut second = Device::with_key(&hub, &key);
    assert!(second.connect().await.unwrap().session_present);
    first.closed().await;
    assert!(hub.connected(ID));
    assert_eq!(hub.connects(ID), 2);
    // Nothing was subscribed to anew.
    let call = hub.call_method(ID, "m", json!(1), LIMIT);
    assert_eq!(tokio::join!(call, answer_one(&mut second, 200, "2")).0.unwrap().payload, json!(2));

    let clean = |options: &mut MqttOptions| {
        options.set_clean_session(true);
    };
    let mut third = Device::new(&hub, &device_token(ID, &key), tls(&hub, None), clean);
    assert!(!third.connect().await.unwrap().session_present);
    assert_eq!(hub.call_method(ID, "m", json!(1), LIMIT).await, Err(MethodError::NotOnline));
}

#[tokio::test]
async fn only_what_is_documented_may_be_subscribed_and_published() {
    let (hub, key) = hub_with_device().await;
    let mut device = Device::connected(&hub, &key).await;
    assert_eq!(device.subscribe("#").await, SubscribeReasonCode::Failure);
    device.client.subscribe(METHODS, QoS::ExactlyOnce).await.unwrap();
    let granted = device.next().await.unwrap();
    assert!(matches!(granted, Packet::SubAck(granted) if granted.return_codes
        == [SubscribeReasonCode::Success(QoS::AtLeastOnce)]));
    device.publish(&format!("devices/{ID}/messages/events/"), "{}").await;
    assert!(matches!(device.next().await, Ok(Packet::PubAck(_))));
    device.publish("$iothub/twin/GET/", "").await;
    device.closed().await;

    let mut device = Device::connected(&hub, &key).await;
    let topic = format!("devices/{ID}/messages/events/");
    device.client.publish(topic, QoS::ExactlyOnce, false, "{}").await.unwrap();
    device.closed().await;
}

#[tokio::test]
async fn a_connection_ends_with_its_token() {
    let (hub, key) = hub_with_device().await;
    let short = token(&format!("localhost/devices/{ID}"), &key, 2, "");
    let mut device = Device::new(&hub, &short, tls(&hub, None), |_| {});
    device.connect().await.unwrap();
    device.closed().await;
    assert!(!hub.connected(ID));
}

#[tokio::test]
async fn a_device_that_falls_silent_is_dropped() {
    let (hub, key) = hub_with_device().await;
    // The client never pings: it is not polled again.
    let short = |options: &mut MqttOptions| {
        options.set_keep_alive(Duration::from_secs(1));
    };
    let mut device = Device::new(&hub, &device_token(ID, &key), tls(&hub, None), short);
    device.connect().await.unwrap();
    hub.wait_connected(ID, LIMIT, false).await.unwrap();
}

#[tokio::test]
async fn faults_come_when_asked_for_and_go() {
    let (hub, key) = hub_with_device().await;
    hub.refuse_connects(2, 3);
    for _ in 0..2 {
        assert_eq!(refusal(Device::with_key(&hub, &key)).await, ConnectReturnCode::ServiceUnavailable);
    }
    let mut device = Device::connected(&hub, &key).await;
    device.subscribe(METHODS).await;
    hub.wait_connected(ID, LIMIT, true).await.unwrap();

    let patch = |n: u8| format!("$iothub/twin/PATCH/properties/reported/?$rid={n}");
    hub.fail_next_patch(429);
    let (topic, body) = device.ask_twin(&patch(1), "{}").await;
    assert_eq!((topic.as_str(), &body["errorCode"]), ("$iothub/twin/res/429/?$rid=1", &json!(429_001)));
    hub.mute_twin(true);
    device.publish(&patch(2), r#"{"lost":true}"#).await;
    assert!(matches!(device.next().await, Ok(Packet::PubAck(_))));
    hub.mute_twin(false);
    let (topic, _) = device.ask_twin(&patch(3), r#"{"kept":true}"#).await;
    assert_eq!(topic, "$iothub/twin/res/204/?$rid=3&$version=2");
    assert_eq!(hub.reported(ID), json!({"kept": true}));

    hub.set_away(true);
    device.closed().await;
    assert!(Device::with_key(&hub, &key).connect().await.is_err());
    hub.set_away(false);
    Device::connected(&hub, &key).await;
    assert_eq!(hub.connects(ID), 2);
}

#[tokio::test]
async fn a_hub_sent_away_is_back_when_the_sender_hangs_up() {
    let (hub, key) = hub_with_device().await;
    let mut device = Device::connected(&hub, &key).await;
    let request = Service::new(&hub).request(Method::POST, "emulator/faults").json(&json!({"awaySecs": 300}));
    tokio::select! {
        answer = request.send() => panic!("so soon: {answer:?}"),
        () = device.closed() => {}
    }
    eventually(async || Device::with_key(&hub, &key).connect().await.is_ok(), |back| *back).await;
}

#[tokio::test]
async fn a_service_calls_methods_over_rest() {
    let (hub, key) = hub_with_device().await;
    let service = Service::new(&hub);
    let body = json!({"methodName": "m", "payload": {"a": 1}, "responseTimeoutInSeconds": 5});
    let (status, symbol, answer) = service.call(ID, body.clone()).await;
    assert_eq!((status, symbol.as_str()), (StatusCode::NOT_FOUND, "DeviceNotOnline"));
    let inner: Value = serde_json::from_str(answer["Message"].as_str().unwrap()).unwrap();
    assert_eq!(inner["errorCode"], 404_103);
    assert_eq!(answer["ExceptionMessage"], "");

    // A call that may wait for the device does.
    let mut device = Device::with_key(&hub, &key);
    let patient = json!({"methodName": "m", "payload": {"a": 1}, "connectTimeoutInSeconds": 20});
    let comes_late = async {
        device.connect().await.unwrap();
        device.subscribe(METHODS).await;
        answer_one(&mut device, 200, "[2]").await
    };
    let ((status, _, answer), request) = tokio::join!(service.call(ID, patient), comes_late);
    assert_eq!((status, answer), (StatusCode::OK, json!({"status": 200, "payload": [2]})));
    assert_eq!(request.1, json!({"a": 1}));

    let (status, symbol, answer) = service.call(ID, body).await;
    assert_eq!((status, symbol.as_str()), (StatusCode::GATEWAY_TIMEOUT, "GatewayTimeout"));
    assert!(answer["Message"].as_str().unwrap().contains("504101"));
    let (status, symbol, _) = service.call("nobody", json!({"methodName": "m"})).await;
    assert_eq!((status, symbol.as_str()), (StatusCode::NOT_FOUND, "DeviceNotFound"));
    let (status, symbol, _) =
        service.call(ID, json!({"methodName": "m", "responseTimeoutInSeconds": 1})).await;
    assert_eq!((status, symbol.as_str()), (StatusCode::BAD_REQUEST, "ArgumentInvalid"));
}

#[tokio::test]
async fn a_service_reads_and_patches_twins_over_rest() {
    let (hub, key) = hub_with_device().await;
    let service = Service::new(&hub);
    let mut device = Device::connected(&hub, &key).await;
    device
        .ask_twin("$iothub/twin/PATCH/properties/reported/?$rid=1", r#"{"firmwareStatus":"standBy"}"#)
        .await;
    let twin = format!("twins/{ID}");
    let text = service.request(Method::GET, &twin).send().await.unwrap().text().await.unwrap();
    assert!(text.contains(r#""firmwareStatus":"standBy""#), "{text}");

    let patch = json!({"tags": {"site": "north"}, "properties": {"desired": {"n": 1}}});
    let request = service.request(Method::PATCH, &twin).header("If-Match", "\"AAAAAAAAAAE=\"").json(&patch);
    let (status, etag, answer) = service.answer(request).await;
    assert_eq!((status, etag.as_str()), (StatusCode::OK, "\"AAAAAAAAAAI=\""));
    assert_eq!(answer["connectionState"], "Connected");
    assert_eq!(answer["tags"], json!({"site": "north"}));
    assert_eq!(answer["properties"]["desired"]["$version"], 2);
    assert!(answer["properties"]["desired"]["$metadata"]["n"]["$lastUpdated"].is_string());
    assert_eq!(answer["properties"]["reported"]["firmwareStatus"], "standBy");

    let stale = service.request(Method::PATCH, &twin).header("If-Match", "\"AAAAAAAAAAE=\"").json(&patch);
    let (status, symbol, _) = service.answer(stale).await;
    assert_eq!((status, symbol.as_str()), (StatusCode::PRECONDITION_FAILED, "PreconditionFailed"));
    let (status, symbol, _) = service.answer(service.request(Method::GET, "twins/nobody")).await;
    assert_eq!((status, symbol.as_str()), (StatusCode::NOT_FOUND, "DeviceNotFound"));
}

#[tokio::test]
async fn a_service_registers_devices_over_rest() {
    let hub = hub().await;
    let service = Service::new(&hub);
    let path = format!("devices/{ID}");
    let body = json!({"deviceId": ID, "status": "enabled", "authentication": {"type": "sas",
        "symmetricKey": {"primaryKey": "", "secondaryKey": ""}}});
    let put = || service.request(Method::PUT, &path).json(&body);
    let (status, _, answer) = service.answer(put()).await;
    assert_eq!((status, &answer["status"]), (StatusCode::OK, &json!("enabled")));
    let key = answer["authentication"]["symmetricKey"]["primaryKey"].as_str().unwrap().to_owned();
    let (status, symbol, _) = service.answer(put()).await;
    assert_eq!((status, symbol.as_str()), (StatusCode::CONFLICT, "DeviceAlreadyExists"));
    let mut device = Device::connected(&hub, &key).await;

    let (status, symbol, _) = service.answer(service.request(Method::DELETE, &path)).await;
    assert_eq!((status, symbol.as_str()), (StatusCode::PRECONDITION_FAILED, "PreconditionFailed"));
    let disable = json!({"deviceId": ID, "status": "disabled", "authentication": {"type": "sas",
        "symmetricKey": {"primaryKey": key, "secondaryKey": key}}});
    let request = service.request(Method::PUT, &path).header("If-Match", "*").json(&disable);
    assert_eq!(service.answer(request).await.0, StatusCode::OK);
    device.closed().await;
    assert_eq!(refusal(Device::with_key(&hub, &key)).await, ConnectReturnCode::NotAuthorized);
    let request = service.request(Method::DELETE, &path).header("If-Match", "*");
    assert_eq!(service.answer(request).await.0, StatusCode::NO_CONTENT);
    assert_eq!(service.answer(service.request(Method::GET, &path)).await.1, "DeviceNotFound");
}

#[tokio::test]
async fn a_service_is_told_why_it_was_refused() {
    let (hub, key) = hub_with_device().await;
    let service = Service::new(&hub);
    let (status, symbol, answer) = service.answer(service.request(Method::GET, "no/such/thing")).await;
    assert_eq!((status, symbol.as_str()), (StatusCode::NOT_FOUND, "GenericNotFound"));
    assert!(answer["Message"].as_str().unwrap().starts_with("ErrorCode:GenericNotFound;"), "{answer}");

    let url = format!("{}/twins/{ID}", service.base);
    for query in ["", "?api-version=", "?api-version=latest", "?api-version=2021-04-12x"] {
        let request = service.http.get(format!("{url}{query}")).header("Authorization", &service.token);
        assert_eq!(service.answer(request).await.1, "InvalidProtocolVersion", "{query}");
    }
    let preview = service.http.get(format!("{url}?api-version=2017-11-08-preview"));
    let preview = preview.header("Authorization", &service.token);
    assert_eq!(service.answer(preview).await.0, StatusCode::OK);
    let forged = token("localhost", &key, 3600, "&skn=iothubowner");
    let request = service.http.get(format!("{url}?api-version=2021-04-12"));
    let (status, symbol, _) = service.answer(request.header("Authorization", forged)).await;
    assert_eq!((status, symbol.as_str()), (StatusCode::UNAUTHORIZED, "IotHubUnauthorizedAccess"));
}
