//! `/devices`, `/twins`, `/statistics`, and which policy may use them.

use reqwest::{Method, StatusCode};
use rumqttc::mqttbytes::v4::ConnectReturnCode;
use serde_json::{Value, json};

use crate::client::*;

const NONE: Value = Value::Null;

fn keys(device: &Value) -> (String, String) {
    let key = |name: &str| device["authentication"]["symmetricKey"][name].as_str().unwrap().to_owned();
    (key("primaryKey"), key("secondaryKey"))
}

#[tokio::test]
async fn put_creates_without_an_etag_and_replaces_with_one() {
    let hub = hub().await;
    let service = Service::new(&hub);
    let path = "devices/gw%24_1@(x),y=1";
    let body = |more: Value| {
        let mut body = json!({"deviceId": "gw$_1@(x),y=1"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let put = async |etag: &str, more: Value| service.send(Method::PUT, path, etag, &body(more)).await;
    let (status, symbol, _) = put("*", json!({})).await;
    assert_eq!((status, symbol.as_str()), (StatusCode::NOT_FOUND, "DeviceNotFound"));
    let (status, etag, created) = put("", json!({"statusReason": "new"})).await;
    assert_eq!((status, created["statusReason"].as_str()), (StatusCode::OK, Some("new")));
    assert_eq!(etag, format!("\"{}\"", created["etag"].as_str().unwrap()));
    let (status, symbol, _) = put("", json!({"etag": created["etag"]})).await;
    assert_eq!((status, symbol.as_str()), (StatusCode::CONFLICT, "DeviceAlreadyExists"));

    // A replacement keeps the generation, and nothing else that it does not name: the keys are new ones.
    let (status, _, replaced) = put(&etag, json!({"status": "disabled"})).await;
    assert_eq!((status, &replaced["status"]), (StatusCode::OK, &json!("disabled")));
    assert_eq!(replaced["generationId"], created["generationId"]);
    assert_eq!(replaced["statusReason"], NONE);
    assert_ne!(replaced["statusUpdatedTime"], created["statusUpdatedTime"]);
    assert_ne!(keys(&replaced), keys(&created));
    let (status, symbol, _) = put(&etag, json!({})).await;
    assert_eq!((status, symbol.as_str()), (StatusCode::PRECONDITION_FAILED, "PreconditionFailed"));
    // Empty keys are no keys; an etag may come without quotes.
    let empty = json!({"authentication": {"symmetricKey": {"primaryKey": "", "secondaryKey": ""}}});
    let (_, _, minted) = put(replaced["etag"].as_str().unwrap(), empty).await;
    assert!(keys(&minted).0.len() == 44 && keys(&minted).0 != keys(&replaced).0);
    let given = json!({"authentication": {"symmetricKey": {"primaryKey": keys(&created).0, "secondaryKey": keys(&created).1}}});
    assert_eq!(keys(&put("*", given).await.2), keys(&created));

    for (path, body) in [
        ("devices/a%20b", json!({"deviceId": "a b"})),
        ("devices/a%2Fb", json!({"deviceId": "a/b"})),
        ("devices/a%23b", json!({"deviceId": "a#b"})),
        ("devices/a", json!({"deviceId": "b"})),
        ("devices/a", json!({})),
        ("devices/a", json!({"deviceId": "a", "status": "broken"})),
        ("devices/a", json!({"deviceId": "a", "authentication": {"symmetricKey": {"primaryKey": "?"}}})),
    ] {
        let (status, symbol, _) = service.send(Method::PUT, path, "", &body).await;
        assert_eq!((status, symbol.as_str()), (StatusCode::BAD_REQUEST, "ArgumentInvalid"), "{path}: {body}");
    }
}

#[tokio::test]
async fn devices_are_listed_and_counted() {
    let hub = hub().await;
    let service = Service::new(&hub);
    for n in 0..5 {
        hub.add_device(&format!("dev-{n}"));
    }
    let body = json!({"deviceId": "dev-0", "status": "disabled"});
    service.send(Method::PUT, "devices/dev-0", "*", &body).await;
    let module = json!({"deviceId": "dev-1", "moduleId": "m"});
    service.send(Method::PUT, "devices/dev-1/modules/m", "", &module).await;
    let _device = Device::connected(&hub, &key_of(&hub.add_device(ID))).await;
    for (path, length) in [("devices", 5), ("devices/", 5), ("devices?top=2", 2), ("devices?top=0", 5)] {
        let (status, _, devices) = service.get(path).await;
        assert_eq!((status, devices.as_array().unwrap().len()), (StatusCode::OK, length), "{path}");
        assert_eq!(devices[1]["connectionState"], "Connected");
    }
    assert_eq!(service.get("devices?top=x").await.0, StatusCode::BAD_REQUEST);
    let counts = json!({"totalDeviceCount": 5, "enabledDeviceCount": 4, "disabledDeviceCount": 1});
    assert_eq!(service.get("statistics/devices").await.2, counts);
    assert_eq!(service.get("statistics/service").await.2, json!({"connectedDeviceCount": 1}));
}

#[tokio::test]
async fn many_devices_are_written_at_once_and_each_failure_is_named() {
    let hub = hub().await;
    let service = Service::new(&hub);
    let bulk = async |items: Value| service.send(Method::POST, "devices", "", &items).await;
    let create = json!([
        {"id": "b1", "importMode": "create", "authentication": {"type": "sas"}, "status": "enabled"},
        {"id": "b2", "importMode": "create", "tags": {"site": "x"}, "properties": {"desired": {"a": 1}}},
        {"id": "b3"},
        {"id": "b1", "moduleId": "m", "importMode": "create"},
    ]);
    let (status, _, answer) = bulk(create).await;
    assert_eq!(
        (status, answer),
        (StatusCode::OK, json!({"isSuccessful": true, "errors": [], "warnings": []}))
    );
    assert_eq!(hub.twin("b2")["tags"], json!({"site": "x"}));
    assert_eq!(hub.twin("b2")["properties"]["desired"]["a"], 1);

    let etag = hub.twin("b1")["deviceEtag"].clone();
    let (status, _, answer) = bulk(json!([
        {"id": "b1", "importMode": "updateIfMatchETag", "eTag": etag, "status": "disabled"},
        {"id": "b1", "importMode": "deleteIfMatchETag", "eTag": etag},
        {"id": "b2", "importMode": "create"},
        {"id": "b2", "importMode": "updateTwinIfMatchETag", "twinETag": "AAAAAAAAAAE=", "tags": {"site": "y"}},
        {"id": "b2", "importMode": "updateTwin", "tags": {"ring": 1}},
        {"id": "b3", "importMode": "delete"},
        {"id": "b4", "importMode": "update"},
        {"id": "b 5", "importMode": "create"},
        {"id": "b6", "importMode": "sideways"},
    ]))
    .await;
    assert_eq!((status, &answer["isSuccessful"]), (StatusCode::BAD_REQUEST, &json!(false)));
    let errors = answer["errors"].as_array().unwrap().iter().map(|error| {
        assert!(error["errorStatus"].is_string());
        (error["deviceId"].as_str().unwrap(), error["errorCode"].as_str().unwrap())
    });
    let expected = [
        ("b1", "PreconditionFailed"),
        ("b2", "DeviceAlreadyExists"),
        ("b2", "PreconditionFailed"),
        ("b4", "DeviceNotFound"),
        ("b 5", "ArgumentInvalid"),
        ("b6", "ArgumentInvalid"),
    ];
    assert_eq!(errors.collect::<Vec<_>>(), expected);
    assert_eq!(hub.twin("b1")["status"], "disabled");
    assert_eq!(hub.twin("b2")["tags"], json!({"site": "x", "ring": 1}));
    assert_eq!(hub.twin("b3"), NONE);
    let many: Vec<Value> = (0..101).map(|n| json!({"id": format!("c{n}")})).collect();
    assert_eq!(bulk(many.into()).await.1, "TooManyDevices");
    assert_eq!(hub.twin("c0"), NONE);
}

#[tokio::test]
async fn a_device_has_modules_with_twins_of_their_own() {
    let (hub, _) = hub_with_device().await;
    let service = Service::new(&hub);
    let path = "devices/dev-1/modules/probe";
    let body = json!({"deviceId": ID, "moduleId": "probe", "managedBy": "us"});
    let put = async |etag: &str| service.send(Method::PUT, path, etag, &body).await;
    let (status, etag, module) = put("").await;
    assert_eq!((status, module["moduleId"].as_str()), (StatusCode::OK, Some("probe")));
    assert_eq!((&module["deviceId"], &module["managedBy"]), (&json!(ID), &json!("us")));
    let (status, symbol, answer) = put("").await;
    assert_eq!((status, symbol.as_str()), (StatusCode::CONFLICT, "ModuleAlreadyExistsOnDevice"));
    assert_eq!(answer["errorCode"], 409_301);
    let (status, _, replaced) = put(&etag).await;
    assert_eq!(status, StatusCode::OK);
    assert_ne!(keys(&replaced), keys(&module));
    assert_eq!(service.get("devices/dev-1/modules").await.2, json!([replaced]));

    let patch = json!({"tags": {"kind": "sensor"}, "properties": {"desired": {"a": 1}}});
    let (status, _, twin) = service.send(Method::PATCH, "twins/dev-1/modules/probe", "*", &patch).await;
    assert_eq!((status, &twin["moduleId"], &twin["tags"]), (StatusCode::OK, &json!("probe"), &patch["tags"]));
    assert_eq!(hub.twin(ID)["tags"], json!({}));
    let found =
        service.query("SELECT deviceId, moduleId FROM devices.modules WHERE tags.kind = 'sensor'").await;
    assert_eq!(found, json!([{"deviceId": ID, "moduleId": "probe"}]));
    assert_eq!(service.query("SELECT deviceId FROM devices").await, json!([{"deviceId": ID}]));
    let call = json!({"methodName": "m", "payload": null});
    assert_eq!(service.call("dev-1/modules/probe", call).await.1, "DeviceNotOnline");

    // What is not there is not found in as many ways as the real hub has.
    assert_eq!(service.get("twins/dev-1/modules/other").await.1, "DeviceNotFound");
    assert_eq!(service.get("devices/dev-1/modules/other").await.1, "ModuleNotFound");
    assert_eq!(service.get("devices/nobody/modules/other").await.1, "IotHubUnauthorizedAccess");
    let delete = async |path: &str, etag: &str| service.send(Method::DELETE, path, etag, &NONE).await;
    assert_eq!(delete(path, "").await.0, StatusCode::PRECONDITION_FAILED);
    assert_eq!(delete(path, "*").await.0, StatusCode::NO_CONTENT);
    put("").await;
    assert_eq!(delete("devices/dev-1", "*").await.0, StatusCode::NO_CONTENT);
    assert_eq!(service.query("SELECT * FROM devices.modules").await, json!([]));
}

#[tokio::test]
async fn a_replaced_twin_loses_what_is_not_named_and_the_device_hears_all_of_it() {
    let (hub, key) = hub_with_device().await;
    let service = Service::new(&hub);
    let mut device = Device::connected(&hub, &key).await;
    device.subscribe(DESIRED).await;
    let patch = json!({"tags": {"a": 1, "b": 2}, "properties": {"desired": {"x": 1, "y": {"z": 2}}}});
    let (_, _, read) = service.send(Method::PATCH, "twins/dev-1", "", &patch).await;
    assert_eq!(device.message().await.topic, "$iothub/twin/PATCH/properties/desired/?$version=2");

    // A twin as it was read, with one property less, is a twin to write; the rest of it is not looked at.
    let mut written = read.clone();
    written["properties"]["desired"]["y"].as_object_mut().unwrap().remove("z");
    written["tags"] = json!({"b": 3});
    written["status"] = json!("disabled");
    let (status, etag, twin) =
        service.send(Method::PUT, "twins/dev-1", read["etag"].as_str().unwrap(), &written).await;
    assert_eq!((status, etag.as_str()), (StatusCode::OK, "\"AAAAAAAAAAM=\""));
    assert_eq!((&twin["tags"], &twin["status"]), (&json!({"b": 3}), &json!("enabled")));
    let push = device.message().await;
    assert_eq!(push.topic, "$iothub/twin/PATCH/properties/desired/?$version=3");
    let pushed: Value = serde_json::from_slice(&push.payload).unwrap();
    assert_eq!(pushed, json!({"x": 1, "y": {}, "$version": 3}));
    let (_, _, twin) = service.send(Method::PUT, "twins/dev-1", "*", &json!({})).await;
    assert_eq!((&twin["tags"], &twin["properties"]["desired"]["x"]), (&json!({}), &NONE));
    let stale = service.send(Method::PUT, "twins/dev-1", "\"AAAAAAAAAAM=\"", &json!({})).await;
    assert_eq!((stale.0, stale.1.as_str()), (StatusCode::PRECONDITION_FAILED, "PreconditionFailed"));
    let big = json!({"tags": {"t": "x".repeat(4096), "u": "x".repeat(4096)}});
    assert_eq!(service.send(Method::PATCH, "twins/dev-1", "", &big).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_policy_allows_what_it_is_for_and_no_more() {
    let (hub, _) = hub_with_device().await;
    assert_eq!(hub.policy_connection_string("root"), None);
    let device = json!({"deviceId": ID});
    let query = json!({"query": "SELECT * FROM devices"});
    for (policy, allowed) in [
        ("iothubowner", [true, true, true, true, true]),
        ("service", [false, false, true, true, false]),
        ("registryRead", [true, false, false, false, true]),
        ("registryReadWrite", [true, true, false, false, true]),
        ("device", [false; 5]),
    ] {
        let service = Service::with_policy(&hub, policy);
        let answers = [
            service.get("devices/dev-1").await,
            service.send(Method::PUT, "devices/dev-1", "*", &device).await,
            service.get("twins/dev-1").await,
            service.send(Method::POST, "devices/query", "", &query).await,
            service.get("statistics/devices").await,
        ];
        for ((status, symbol, _), allowed) in answers.into_iter().zip(allowed) {
            let refused = (StatusCode::UNAUTHORIZED, "IotHubUnauthorizedAccess");
            assert_eq!((status, symbol.as_str()) == refused, !allowed, "{policy}: {status}");
        }
    }
    // Whoever has the key of a policy with that permission can be any device.
    let login = |policy: &str| {
        let key = key_of(&hub.policy_connection_string(policy).unwrap());
        let token = token("localhost/devices/dev-1", &key, 3600, &format!("&skn={policy}"));
        Device::new(&hub, &token, tls(&hub, None), |_| {})
    };
    assert_eq!(refusal(login("service")).await, ConnectReturnCode::NotAuthorized);
    login("device").connect().await.unwrap();
}

#[tokio::test]
async fn a_device_stays_connected_until_its_credentials_no_longer_hold() {
    let (hub, key) = hub_with_device().await;
    let service = Service::new(&hub);
    let mut device = Device::connected(&hub, &key).await;
    let (_, _, mut identity) = service.get("devices/dev-1").await;
    identity["statusReason"] = json!("looked at");
    assert_eq!(service.send(Method::PUT, "devices/dev-1", "*", &identity).await.0, StatusCode::OK);
    assert!(hub.connected(ID));
    identity["status"] = json!("disabled");
    service.send(Method::PUT, "devices/dev-1", "*", &identity).await;
    device.closed().await;
    assert_eq!(refusal(Device::with_key(&hub, &key)).await, ConnectReturnCode::NotAuthorized);

    identity["status"] = json!("enabled");
    service.send(Method::PUT, "devices/dev-1", "*", &identity).await;
    let mut device = Device::connected(&hub, &key).await;
    service.send(Method::DELETE, "devices/dev-1", "*", &NONE).await;
    device.closed().await;
    assert_eq!(refusal(Device::with_key(&hub, &key)).await, ConnectReturnCode::NotAuthorized);
}
