//! Messages in both directions, and what else devices may and may not send.

use hub_emulator::hub::Event;
use reqwest::Method;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::SubscribeReasonCode::{Failure, Success};
use rumqttc::mqttbytes::v4::{ConnectReturnCode, LastWill, Packet, PubAck, Publish};
use serde_json::json;

use crate::client::{ID, LIMIT, Service, hub_with_device, key_of, token};
use crate::raw::{Device, connect, connect_with_key};

const EVENTS: &str = "devices/dev-1/messages/events/";
const DEVICE_BOUND: &str = "devices/dev-1/messages/devicebound/#";

fn property<'a>(event: &'a Event, name: &str) -> Option<&'a str> {
    event.properties.get(name).map(String::as_str)
}

#[tokio::test]
async fn a_device_gets_its_filters_at_qos_1_at_most_and_no_others() {
    let (hub, key) = hub_with_device().await;
    let mut device = Device::connected(&hub, ID, &key).await;
    let filters = ["$iothub/twin/res/#", "$iothub/methods/POST/#", DEVICE_BOUND, "#"];
    let once = Success(QoS::AtLeastOnce);
    assert_eq!(device.subscribe(&filters, QoS::ExactlyOnce).await, [once, once, once, Failure]);
    assert_eq!(device.subscribe(&filters[..1], QoS::AtMostOnce).await, [Success(QoS::AtMostOnce)]);
}

#[tokio::test]
async fn a_message_to_the_cloud_is_kept_with_its_properties() {
    let (hub, key) = hub_with_device().await;
    let mut device = Device::connected(&hub, ID, &key).await;
    let bag = "%24.mid=mid%201&%24.ct=application%2Fjson&b%20k=v%2F%C3%A9";
    device.publish_acked(&format!("{EVENTS}{bag}"), "{}").await;
    let mut retained = Publish::new(EVENTS, QoS::AtMostOnce, "kept?");
    retained.retain = true;
    device.send(Packet::Publish(retained)).await;
    let second = hub.wait_event(ID, LIMIT, |event| &event.body[..] == b"kept?").await.unwrap();
    assert_eq!(property(&second, "mqtt-retain"), Some("true"));
    let first = &hub.events(ID)[0];
    assert_eq!(&first.body[..], b"{}");
    let names = ["$.mid", "$.ct", "b k", "mqtt-retain"];
    let expected = [Some("mid 1"), Some("application/json"), Some("v/é"), None];
    assert_eq!(names.map(|name| property(first, name)), expected);
    assert!(hub.events("dev-2").is_empty());
}

#[tokio::test]
async fn the_largest_message_is_taken_and_a_larger_one_ends_the_connection() {
    let (hub, key) = hub_with_device().await;
    let mut device = Device::connected(&hub, ID, &key).await;
    let topic = format!("{EVENTS}a=1");
    device.publish_acked(&topic, vec![0; 256 * 1024 - 3]).await;
    device.publish(&topic, QoS::AtLeastOnce, vec![0; 256 * 1024 - 2]).await;
    assert_eq!(device.next().await, None);
    assert_eq!(hub.events(ID).len(), 1);
}

#[tokio::test]
async fn a_will_is_sent_for_a_device_that_goes_without_a_word() {
    let (hub, key) = hub_with_device().await;
    let with_will = |topic: &str| {
        let mut connect = connect_with_key(ID, &key);
        connect.last_will = Some(LastWill::new(topic, "gone", QoS::AtLeastOnce, false));
        connect
    };
    // A will elsewhere is not to be had.
    assert_eq!(Device::on_port(&hub).await.connect(with_will("some/where")).await, None);

    let mut device = Device::on_port(&hub).await;
    device.connect(with_will(&format!("{EVENTS}n=1"))).await.unwrap();
    device.send(Packet::Disconnect).await;
    assert_eq!(device.next().await, None);

    let mut device = Device::on_port(&hub).await;
    device.connect(with_will(&format!("{EVENTS}n=2"))).await.unwrap();
    drop(device);
    let will = hub.wait_event(ID, LIMIT, |_| true).await.unwrap();
    assert_eq!((&will.body[..], property(&will, "n")), (&b"gone"[..], Some("2")));
    assert_eq!(property(&will, "iothub-MessageType"), Some("Will"));
}

#[tokio::test]
async fn a_message_to_a_device_is_sent_until_it_is_acknowledged() {
    let (hub, key) = hub_with_device().await;
    for n in 0..50 {
        hub.send_c2d(ID, format!("{n}"), &[("custom key", "1/2")]).unwrap();
    }
    assert!(hub.send_c2d(ID, "too many", &[]).unwrap_err().to_string().contains("exceeded"));
    assert!(hub.send_c2d("nobody", "", &[]).is_err());

    let mut device = Device::connected(&hub, ID, &key).await;
    assert_eq!(device.subscribe_and_first(DEVICE_BOUND).await.pkid, 1);
    let second = device.message().await;
    assert!(second.topic.starts_with("devices/dev-1/messages/devicebound/%24.to=%2Fdevices%2Fdev-1%2F"));
    assert!(second.topic.ends_with("&custom%20key=1%2F2"), "{}", second.topic);
    assert_eq!((&second.payload[..], second.qos, second.dup), (&b"1"[..], QoS::AtLeastOnce, false));
    device.send(Packet::PubAck(PubAck::new(second.pkid))).await;
    // The acknowledgement is through when what follows it is.
    device.publish(EVENTS, QoS::AtLeastOnce, "").await;
    while device.next().await != Some(Packet::PubAck(PubAck::new(7))) {}
    assert_eq!(hub.twin(ID)["cloudToDeviceMessageCount"], 49);
    drop(device);

    // The subscription is still there, and so is what was not acknowledged.
    let mut device = Device::connected(&hub, ID, &key).await;
    let (first, third) = (device.message().await, device.message().await);
    assert_eq!((&first.payload[..], first.dup, &third.payload[..]), (&b"0"[..], true, &b"2"[..]));
}

#[tokio::test]
async fn at_qos_0_a_message_to_a_device_is_through_when_it_is_sent() {
    let (hub, key) = hub_with_device().await;
    let mut device = Device::connected(&hub, ID, &key).await;
    device.subscribe(&[DEVICE_BOUND], QoS::AtMostOnce).await;
    hub.send_c2d(ID, "a", &[]).unwrap();
    assert_eq!(device.message().await.qos, QoS::AtMostOnce);
    assert_eq!(hub.twin(ID)["cloudToDeviceMessageCount"], 0);
}

#[tokio::test]
async fn a_service_sends_to_a_device_and_thinks_better_of_it() {
    let (hub, key) = hub_with_device().await;
    let service = Service::new(&hub);
    let ask = |method, path: &str| service.request(method, &format!("devices/{path}"));
    for body in ["a", "b"] {
        let send = ask(Method::POST, "dev-1/messages/devicebound").header("iothub-app-n", "1").body(body);
        assert_eq!(send.send().await.unwrap().status(), 200);
    }
    let (_, _, answer) = service.answer(ask(Method::DELETE, "dev-1/commands")).await;
    assert_eq!(answer, json!({"deviceId": ID, "moduleId": null, "totalMessagesPurged": 2}));

    ask(Method::POST, "dev-1/messages/devicebound").header("iothub-app-n", "1").send().await.unwrap();
    let mut device = Device::connected(&hub, ID, &key).await;
    let message = device.subscribe_and_first(DEVICE_BOUND).await;
    assert!(message.topic.ends_with("&n=1") && message.payload.is_empty(), "{}", message.topic);
}

#[tokio::test]
async fn a_module_has_a_session_of_its_own() {
    let (hub, _) = hub_with_device().await;
    let key = key_of(&hub.add_module(ID, "mod-1"));
    let mut module = Device::on_port(&hub).await;
    let password = token(&format!("localhost/devices/{ID}/modules/mod-1"), &key, 3600, "");
    let accepted = module.connect(connect("dev-1/mod-1", &password)).await.unwrap();
    assert_eq!(accepted.code, ConnectReturnCode::Success);
    let filters = ["$iothub/methods/POST/#", "devices/dev-1/modules/mod-1/inputs/#", DEVICE_BOUND];
    let granted = module.subscribe(&filters, QoS::AtMostOnce).await;
    let once = Success(QoS::AtMostOnce);
    assert_eq!(granted, [once, once, Failure]);
    module.publish_acked("devices/dev-1/modules/mod-1/messages/events/", "1").await;
    assert_eq!((hub.events("dev-1/mod-1").len(), hub.events(ID).len()), (1, 0));

    let service = Service::new(&hub);
    let call = service.call("dev-1/modules/mod-1", json!({"methodName": "m", "payload": 1}));
    let answer = async {
        let request = module.message().await.topic;
        let id = request.strip_prefix("$iothub/methods/POST/m/?$rid=").unwrap().to_owned();
        module.publish_acked(&format!("$iothub/methods/res/200/?$rid={id}"), "2").await;
    };
    assert_eq!(tokio::join!(call, answer).0.2, json!({"status": 200, "payload": 2}));
}
