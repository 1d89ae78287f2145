//! A hub that is started again with its state directory.

use std::path::Path;

use hub_emulator::hub::{Hub, HubOptions};
use reqwest::Method;
use rumqttc::mqttbytes::QoS;
use serde_json::{Value, json};
use tokio::time::{interval, timeout};

use crate::client::{DESIRED, ID, LIMIT, METHODS, Service, key_of};
use crate::raw::{Device, connect_with_key};

async fn start(directory: &Path) -> std::io::Result<Hub> {
    Hub::start(HubOptions { state_directory: Some(directory.to_owned()), ..HubOptions::default() }).await
}

async fn get(hub: &Hub, path: &str) -> Value {
    let service = Service::new(hub);
    service.answer(service.request(Method::GET, path)).await.2
}

#[tokio::test]
async fn what_a_hub_knew_it_knows_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let hub = start(&state).await.unwrap();
    let key = key_of(&hub.add_device(ID));
    let (certificate, certificate_key) = hub.authority().client_certificate("dev-2").unwrap();
    hub.add_ca_device("dev-2");
    hub.add_ca(hub.ca_pem()).unwrap();
    let group_key = hub.dps().enroll_group_with_key("fleet").unwrap();
    let mut device = Device::connected(&hub, ID, &key).await;
    device.subscribe(&[METHODS, DESIRED], QoS::AtLeastOnce).await;
    device.publish_acked("$iothub/twin/PATCH/properties/reported/?$rid=1", r#"{"a":1}"#).await;
    hub.patch_desired(ID, json!({"b": 2})).unwrap();
    let service = Service::new(&hub);
    let configuration = json!({"id": "c1", "priority": 1, "targetCondition": "", "content": {"deviceContent":
        {"properties.desired.x": {"y": 1}}}});
    let put = service.request(Method::PUT, "configurations/c1").json(&configuration);
    assert_eq!(service.answer(put).await.0, 200);
    let before = (hub.ca_pem().to_owned(), get(&hub, "twins/dev-1").await, get(&hub, "devices/dev-1").await);
    let owner = key_of(&hub.service_connection_string());
    hub.close().await.unwrap();
    // A push of desired properties may still be under way.
    while device.next().await.is_some() {}
    drop((hub, device));

    let hub = start(&state).await.unwrap();
    assert_eq!((hub.ca_pem(), key_of(&hub.service_connection_string())), (before.0.as_str(), owner));
    let twin = get(&hub, "twins/dev-1").await;
    assert_eq!((&twin["properties"], &twin["etag"]), (&before.1["properties"], &before.1["etag"]));
    let identity = get(&hub, "devices/dev-1").await;
    for name in ["generationId", "etag", "authentication"] {
        assert_eq!(identity[name], before.2[name]);
    }
    assert_eq!(get(&hub, "configurations/c1").await["priority"], 1);
    // Kits do not subscribe anew when they find their session.
    let mut device = Device::on_port(&hub).await;
    assert!(device.connect(connect_with_key(ID, &key)).await.unwrap().session_present);
    hub.wait_connected(ID, LIMIT, true).await.unwrap();
    let stream = crate::raw::open(&hub, hub.mqtt_port(), Some((&certificate, &certificate_key))).await;
    let accepted = Device::over(stream).connect(crate::raw::connect("dev-2", "")).await.unwrap();
    assert_eq!(accepted.code, rumqttc::mqttbytes::v4::ConnectReturnCode::Success);
    assert!(hub.dps().enroll_group_with_key("other").unwrap() != group_key);
    // What is new is not taken for what was there before.
    hub.add_device("dev-3");
    assert_ne!(get(&hub, "devices/dev-3").await["generationId"], identity["generationId"]);
}

#[tokio::test]
async fn the_state_is_written_as_it_changes_and_is_for_one_hub_alone() {
    let directory = tempfile::tempdir().unwrap();
    let hub = start(directory.path()).await.unwrap();
    hub.add_device("dev-7");
    let file = directory.path().join("state.json");
    let mut tick = interval(std::time::Duration::from_millis(20));
    let written = async {
        while !std::fs::read_to_string(&file).is_ok_and(|text| text.contains("dev-7")) {
            tick.tick().await;
        }
    };
    timeout(LIMIT, written).await.unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o077, 0, "it holds keys");
    let error = start(directory.path()).await.err().unwrap().to_string();
    assert!(error.contains("in use"), "{error}");
}

#[tokio::test]
async fn a_damaged_state_is_named_and_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let hub = start(directory.path()).await.unwrap();
    hub.add_device(ID);
    hub.close().await.unwrap();
    drop(hub);
    let file = directory.path().join("state.json");
    let whole = std::fs::read(&file).unwrap();
    let other_format = br#"{"format":99}"#;
    for (bytes, told) in [(&whole[..whole.len() / 2], "is damaged"), (&other_format[..], "has format 99")] {
        std::fs::File::create(&file)
            .and_then(|mut file| std::io::Write::write_all(&mut file, bytes))
            .unwrap();
        let error = start(directory.path()).await.err().unwrap().to_string();
        assert!(error.contains(told) && error.contains("state.json"), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), bytes);
    }
}
