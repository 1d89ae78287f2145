//! What devices subscribe to and send.

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::SubscribeReasonCode::{Failure, Success};

use crate::client::{Device, hub_with_device};

const ID: &str = "dev-1";

#[tokio::test]
async fn a_device_gets_its_filters_at_qos_1_at_most_and_no_others() {
    let (hub, key) = hub_with_device(ID).await;
    let mut device = Device::connected(&hub, ID, &key).await;
    let filters =
        ["$iothub/twin/res/#", "$iothub/methods/POST/#", "devices/dev-1/messages/devicebound/#", "#"];
    let once = Success(QoS::AtLeastOnce);
    assert_eq!(device.subscribe(&filters, QoS::ExactlyOnce).await, [once, once, once, Failure]);
    assert_eq!(device.subscribe(&filters[..1], QoS::AtMostOnce).await, [Success(QoS::AtMostOnce)]);
}
