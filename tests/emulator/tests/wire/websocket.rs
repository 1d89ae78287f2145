//! MQTT over WebSocket on the HTTPS port.

use futures_util::{SinkExt, StreamExt};
use hub_emulator::hub::Hub;
use rumqttc::mqttbytes::v4::ConnectReturnCode;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::client::{ID, hub, hub_with_device};
use crate::raw::{self, Device, connect, connect_with_key};

type Opened = Result<(WebSocketStream<TlsStream<TcpStream>>, Response), Error>;

async fn open(hub: &Hub, query: &str, protocol: &str, certificate: Option<(&str, &str)>) -> Opened {
    let url = format!("wss://localhost:{}/$iothub/websocket{query}", hub.https_port());
    let mut request = url.into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("Sec-WebSocket-Protocol", protocol.parse().unwrap());
    headers.insert("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits".parse().unwrap());
    client_async(request, raw::open(hub, hub.https_port(), certificate).await).await
}

/// Puts bytes into binary frames of at most three bytes, and takes those of received frames out of them.
fn in_small_frames(mut socket: WebSocketStream<TlsStream<TcpStream>>) -> tokio::io::DuplexStream {
    let (near, mut far) = tokio::io::duplex(1024);
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut small = [0; 3];
        loop {
            tokio::select! {
                count = far.read(&mut small) => match count {
                    Ok(count @ 1..) => {
                        socket.send(Message::Binary(small[..count].to_vec().into())).await.unwrap();
                    }
                    _ => return,
                },
                message = socket.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => far.write_all(&bytes).await.unwrap(),
                    _ => return,
                },
            }
        }
    });
    near
}

#[tokio::test]
async fn a_device_gets_in_over_websocket_however_its_packets_are_cut() {
    let (hub, key) = hub_with_device().await;
    for query in ["", "?iothub-no-client-cert=true"] {
        let (socket, answer) = open(&hub, query, "mqtt", None).await.unwrap();
        assert_eq!(answer.headers()["Sec-WebSocket-Protocol"], "mqtt");
        assert_eq!(answer.headers().get("Sec-WebSocket-Extensions"), None);
        let mut device = Device::over(in_small_frames(socket));
        let accepted = device.connect(connect_with_key(ID, &key)).await.unwrap();
        assert_eq!(accepted.code, ConnectReturnCode::Success);
        device.publish_acked("$iothub/twin/GET/?$rid=1", "").await;
        assert_eq!(device.message().await.topic, "$iothub/twin/res/200/?$rid=1");
        hub.drop_connections();
        assert_eq!(device.next().await, None);
    }
}

#[tokio::test]
async fn a_certificate_counts_on_the_https_port_too() {
    let hub = hub().await;
    let (certificate, key) = hub.add_x509_device(ID).unwrap();
    let (socket, _) = open(&hub, "", "mqtt", Some((&certificate, &key))).await.unwrap();
    let accepted = Device::over(in_small_frames(socket)).connect(connect(ID, "")).await.unwrap();
    assert_eq!(accepted.code, ConnectReturnCode::Success);
}

#[tokio::test]
async fn what_is_not_mqtt_is_not_upgraded_and_a_text_frame_ends_it() {
    let (hub, _) = hub_with_device().await;
    let Err(Error::Http(refused)) = open(&hub, "", "AMQPWSB10", None).await else { panic!("not refused") };
    assert_eq!(refused.status(), 400);

    let (mut socket, _) = open(&hub, "", "mqtt", None).await.unwrap();
    socket.send(Message::text("hello")).await.unwrap();
    assert!(!matches!(socket.next().await, Some(Ok(Message::Binary(_)))));
}
