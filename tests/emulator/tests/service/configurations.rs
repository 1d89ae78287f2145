//! `/configurations`: what is taken, and who gets it.

use std::time::Duration;

use hub_emulator::hub::{Hub, HubOptions};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::*;

const NONE: Value = Value::Null;

/// The configuration of Microsoft's tutorial.
fn firmware() -> Value {
    let applied = |status: &str| {
        format!(
            "SELECT deviceId FROM devices WHERE configurations.[[firmware285]].status='Applied' \
             AND properties.reported.firmware.fwUpdateStatus='{status}'"
        )
    };
    json!({
        "id": "firmware285",
        "labels": {"app": "firmware"},
        "content": {"deviceContent": {"properties.desired.firmware": {
            "fwVersion": "2.8.5", "fwPackageURI": "https://secureuri/package.bin"}}},
        "targetCondition": "tags.devicetype = 'chiller'",
        "priority": 20,
        "metrics": {"queries": {"current": applied("current"), "applying": applied("applying")}},
    })
}

/// `value` with other members.
fn but(mut value: Value, members: Value) -> Value {
    value.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    value
}

async fn put(service: &Service, etag: &str, body: &Value) -> (StatusCode, String, Value) {
    let path = format!("configurations/{}", body["id"].as_str().unwrap().replace('%', "%25"));
    service.send(Method::PUT, &path, etag, body).await
}

async fn tag(service: &Service, id: &str, tags: Value) {
    let (status, ..) = service.send(Method::PATCH, &format!("twins/{id}"), "", &json!({"tags": tags})).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn a_configuration_is_made_read_changed_and_deleted() {
    let hub = hub().await;
    let service = Service::new(&hub);
    let (status, etag, made) = put(&service, "", &firmware()).await;
    assert_eq!((status, etag.as_str()), (StatusCode::OK, "\"MQ==\""));
    assert_eq!(made["content"], firmware()["content"]);
    assert_eq!((&made["schemaVersion"], &made["priority"]), (&json!("1.0"), &json!(20)));
    let (status, symbol, _) = put(&service, "", &firmware()).await;
    assert_eq!((status, symbol.as_str()), (StatusCode::CONFLICT, "ConfigurationAlreadyExists"));

    // Everything can be changed but the content, of which a change is ignored without a word.
    let change = but(
        firmware(),
        json!({"priority": 30, "targetCondition": "*", "labels": null, "metrics": null,
        "content": {"deviceContent": {"properties.desired.other": 1}}}),
    );
    let (status, etag, changed) = put(&service, &etag, &change).await;
    assert_eq!((status, etag.as_str()), (StatusCode::OK, "\"Mg==\""));
    assert_eq!(changed["content"], firmware()["content"]);
    assert_eq!((&changed["priority"], &changed["targetCondition"]), (&json!(30), &json!("*")));
    assert_eq!((&changed["labels"], &changed["metrics"]["queries"]), (&json!({}), &json!({})));
    assert_eq!(changed["createdTimeUtc"], made["createdTimeUtc"]);
    assert_ne!(changed["lastUpdatedTimeUtc"], made["lastUpdatedTimeUtc"]);
    assert_eq!(put(&service, "\"MQ==\"", &change).await.1, "PreconditionFailed");
    // Microsoft's Python kit sends the etag bare.
    assert_eq!(put(&service, "Mg==", &change).await.0, StatusCode::OK);
    let gone = but(firmware(), json!({"id": "other"}));
    assert_eq!(put(&service, "*", &gone).await.1, "ConfigurationNotFound");

    put(&service, "", &gone).await;
    let list = |top: &str| format!("configurations{top}");
    let ids = |list: &Value| list.as_array().unwrap().iter().map(|one| one["id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&service.get(&list("")).await.2), ["firmware285", "other"]);
    assert_eq!(ids(&service.get(&list("?top=1")).await.2), ["firmware285"]);
    for (id, etag) in [("other", ""), ("firmware285", "*")] {
        let path = format!("configurations/{id}");
        assert_eq!(service.send(Method::DELETE, &path, etag, &NONE).await.0, StatusCode::NO_CONTENT);
        assert_eq!(service.get(&path).await.1, "ConfigurationNotFound");
    }
}

#[tokio::test]
async fn a_strict_hub_does_not_see_an_etag_without_quotes() {
    let options = HubOptions { strict_etags: true, ..HubOptions::default() };
    let hub = Hub::start(options).await.unwrap();
    let service = Service::new(&hub);
    put(&service, "", &firmware()).await;
    let (status, symbol, _) = put(&service, "MQ==", &firmware()).await;
    assert_eq!((status, symbol.as_str()), (StatusCode::CONFLICT, "ConfigurationAlreadyExists"));
    assert_eq!(put(&service, "\"MQ==\"", &firmware()).await.0, StatusCode::OK);
    assert_eq!(put(&service, "*", &firmware()).await.0, StatusCode::OK);
}

#[tokio::test]
async fn what_is_no_configuration_is_refused() {
    let hub = hub().await;
    let service = Service::new(&hub);
    let content = |content: Value| json!({ "content": content });
    let device = |path: &str, value: Value| content(json!({"deviceContent": {path: value}}));
    let condition = |condition: &str| json!({ "targetCondition": condition });
    for (change, symbol) in [
        (json!({"id": "Firmware"}), "ArgumentInvalid"),
        (json!({"id": "a b"}), "ArgumentInvalid"),
        (json!({"id": "a".repeat(129)}), "ArgumentInvalid"),
        (content(NONE), "InvalidConfigurationContent"),
        (content(json!({})), "InvalidConfigurationContent"),
        (device("tags.x", json!(1)), "InvalidConfigurationContent"),
        (device("properties.desired.", json!(1)), "InvalidConfigurationContent"),
        (device("properties.desiredx", json!(1)), "InvalidConfigurationContent"),
        (device("properties.desired.a..b", json!(1)), "InvalidConfigurationContent"),
        (device("properties.desired", json!(1)), "InvalidConfigurationContent"),
        (device("properties.desired.a", json!("x".repeat(4097))), "InvalidConfigurationContent"),
        (
            content(
                json!({"deviceContent": {"properties.desired.a": 1}, "moduleContent": {"properties.desired.a": 1}}),
            ),
            "InvalidConfigurationContent",
        ),
        (condition("tags.a ="), "InvalidConfigurationTargetCondition"),
        (condition("properties.desired.a = 1"), "InvalidConfigurationTargetCondition"),
        (condition("connectionState = 'Connected'"), "InvalidConfigurationTargetCondition"),
        (json!({"priority": "high"}), "ArgumentInvalid"),
        (json!({"metrics": {"queries": {"a": "SELECT"}}}), "ArgumentInvalid"),
    ] {
        let (status, found, _) = put(&service, "", &but(firmware(), change.clone())).await;
        assert_eq!((status, found.as_str()), (StatusCode::BAD_REQUEST, symbol), "{change}");
    }
    let (_, symbol, _) = service.send(Method::PUT, "configurations/other", "", &firmware()).await;
    assert_eq!(symbol, "ArgumentInvalid");

    let test = async |body: Value| {
        let (status, _, answer) = service.send(Method::POST, "configurations/testQueries", "", &body).await;
        assert_eq!(status, StatusCode::OK);
        answer
    };
    let good =
        json!({"targetCondition": "tags.a = 1", "customMetricQueries": {"m": "SELECT * FROM devices"}});
    assert_eq!(test(good).await, json!({"targetConditionError": null, "customMetricQueryErrors": {}}));
    let bad = test(json!({"targetCondition": "*", "customMetricQueries": {"m": "SELECT *", "n": "x"}})).await;
    assert!(bad["targetConditionError"].is_string(), "{bad}");
    assert_eq!(bad["customMetricQueryErrors"].as_object().unwrap().len(), 2);
}

#[tokio::test]
async fn a_targeted_device_is_told_and_its_reports_are_counted() {
    let (hub, key) = hub_with_device().await;
    let service = Service::new(&hub);
    let mut device = Device::connected(&hub, &key).await;
    device.subscribe(DESIRED).await;
    put(&service, "", &firmware()).await;
    // The condition is met only after the configuration is there.
    tag(&service, ID, json!({"devicetype": "chiller"})).await;
    let push = device.message().await;
    assert_eq!(push.topic, "$iothub/twin/PATCH/properties/desired/?$version=2");
    let pushed: Value = serde_json::from_slice(&push.payload).unwrap();
    assert_eq!(pushed["firmware"]["fwVersion"], "2.8.5");
    let report = r#"{"firmware":{"fwUpdateStatus":"applying"}}"#;
    device.ask_twin("$iothub/twin/PATCH/properties/reported/?$rid=1", report).await;

    let read = async || service.get("configurations/firmware285").await.2;
    let shown = eventually(read, |shown| shown["metrics"]["results"]["applying"] == 1).await;
    assert_eq!(shown["metrics"]["results"], json!({"current": 0, "applying": 1}));
    assert_eq!(shown["systemMetrics"]["results"], json!({"targetedCount": 1, "appliedCount": 1}));
    assert_eq!(hub.twin(ID)["configurations"], json!({"firmware285": {"status": "Applied"}}));
    for query in shown["systemMetrics"]["queries"].as_object().unwrap().values() {
        assert_eq!(service.query(query.as_str().unwrap()).await, json!([{"deviceId": ID}]), "{query}");
    }
    // Once is enough, whatever is evaluated later.
    tag(&service, ID, json!({"site": "north"})).await;
    tag(&service, "dev-1", json!({"devicetype": "heater"})).await;
    eventually(read, |shown| shown["systemMetrics"]["results"]["targetedCount"] == 0).await;
    let twin = hub.twin(ID);
    assert_eq!((&twin["properties"]["desired"]["$version"], &twin["configurations"]), (&json!(2), &NONE));
    assert_eq!(twin["properties"]["desired"]["firmware"]["fwVersion"], "2.8.5", "what was applied stays");
}

#[tokio::test]
async fn the_highest_priority_wins_and_then_the_newest() {
    let (hub, _) = hub_with_device().await;
    let service = Service::new(&hub);
    let configuration = |id: &str, priority: i64, value: &str| {
        json!({"id": id, "targetCondition": "*", "priority": priority, "content": {"deviceContent": {
            "properties.desired": {"base": 1}, "properties.desired.ring.version": value}}})
    };
    let desired = async || hub.twin(ID)["properties"]["desired"]["ring"]["version"].clone();
    put(&service, "", &configuration("low", 1, "low")).await;
    eventually(desired, |version| version == "low").await;
    put(&service, "", &configuration("high", 5, "high")).await;
    eventually(desired, |version| version == "high").await;
    put(&service, "", &configuration("new", 5, "new")).await;
    eventually(desired, |version| version == "new").await;
    let statuses = |low: &str, high: &str, new: &str| json!({"low": {"status": low}, "high": {"status": high}, "new": {"status": new}});
    assert_eq!(hub.twin(ID)["configurations"], statuses("Targeted", "Targeted", "Applied"));
    put(&service, "*", &configuration("low", 6, "ignored")).await;
    eventually(desired, |version| version == "low").await;
    assert_eq!(hub.twin(ID)["configurations"], statuses("Applied", "Targeted", "Targeted"));
    service.send(Method::DELETE, "configurations/low", "", &NONE).await;
    eventually(desired, |version| version == "new").await;
    assert_eq!(hub.twin(ID)["properties"]["desired"]["base"], 1);
    // A new device is told without anybody touching the configuration.
    hub.add_device("dev-2");
    let desired = async || hub.twin("dev-2")["properties"]["desired"]["ring"]["version"].clone();
    eventually(desired, |version| version == "new").await;
}

#[tokio::test]
async fn evaluation_comes_back_without_a_change() {
    let options =
        HubOptions { evaluation_interval: Some(Duration::from_millis(50)), ..HubOptions::default() };
    let hub = Hub::start(options).await.unwrap();
    let service = Service::new(&hub);
    let key = key_of(&hub.add_device(ID));
    let online = "SELECT deviceId FROM devices WHERE connectionState = 'Connected'";
    put(&service, "", &but(firmware(), json!({"metrics": {"queries": {"online": online}}}))).await;
    let count =
        async || service.get("configurations/firmware285").await.2["metrics"]["results"]["online"].clone();
    eventually(count, |count| *count == 0).await;
    // A connection is no change that configurations look at, but a metric may.
    let _device = Device::connected(&hub, &key).await;
    eventually(count, |count| *count == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_devices_are_told_while_the_hub_serves_others() {
    const DEVICES: usize = 10_000;
    let (hub, key) = hub_with_device().await;
    let service = Service::new(&hub);
    let mut device = Device::connected(&hub, &key).await;
    for n in 1..DEVICES {
        hub.add_device(&format!("unit-{n}"));
    }
    put(&service, "", &but(firmware(), json!({"targetCondition": "*"}))).await;
    let applied = async || {
        // Each report asks for an evaluation; the device is answered all the same.
        device.ask_twin("$iothub/twin/PATCH/properties/reported/?$rid=1", r#"{"n":1}"#).await;
        service.get("configurations/firmware285").await.2["systemMetrics"]["results"]["appliedCount"].clone()
    };
    eventually(applied, |applied| *applied == DEVICES).await;
    assert_eq!(hub.twin("unit-9999")["properties"]["desired"]["firmware"]["fwVersion"], "2.8.5");
}
