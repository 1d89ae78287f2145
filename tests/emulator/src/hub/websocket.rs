//! MQTT over WebSocket (RFC 6455): the upgrade of an HTTPS request, and the frames as one stream of bytes.

use std::io;

use bytes::Bytes;
use futures_util::future::ready;
use futures_util::{SinkExt, StreamExt};
use http_body_util::Full;
use hyper::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use hyper::header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION};
use hyper::upgrade::Upgraded;
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, join};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

use super::mqtt::PACKET_LIMIT_BYTES;

/// Where the hub speaks something else than HTTP. A query may follow: `?iothub-no-client-cert=true`.
pub(super) const PATH: &str = "/$iothub/websocket";

/// The answer to a request for [`PATH`]: 101 if it asks for MQTT over WebSocket. Extensions are declined by not
/// naming them.
pub(super) fn answer(headers: &HeaderMap) -> Response<Full<Bytes>> {
    let mut response = Response::default();
    let (status, fields) = match accept_key(headers) {
        Ok(key) => {
            let fields = [
                (CONNECTION, HeaderValue::from_static("Upgrade")),
                (UPGRADE, HeaderValue::from_static("websocket")),
                (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("mqtt")),
                (SEC_WEBSOCKET_ACCEPT, key),
            ];
            (StatusCode::SWITCHING_PROTOCOLS, Vec::from(fields))
        }
        Err(why) => {
            tracing::info!(why, "websocket: refused");
            *response.body_mut() = Full::from(why);
            (StatusCode::BAD_REQUEST, Vec::new())
        }
    };
    *response.status_mut() = status;
    response.headers_mut().extend(fields.into_iter().map(|(name, value)| (Some(name), value)));
    response
}

fn accept_key(headers: &HeaderMap) -> Result<HeaderValue, &'static str> {
    let listed = |name, wanted: &str| {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(wanted))
    };
    if !listed(UPGRADE, "websocket") || !listed(CONNECTION, "upgrade") {
        return Err("This path is for WebSocket.");
    }
    if !listed(SEC_WEBSOCKET_VERSION, "13") {
        return Err("WebSocket version 13 is the one there is.");
    }
    if !listed(SEC_WEBSOCKET_PROTOCOL, "mqtt") {
        return Err("The emulator speaks the sub-protocol mqtt.");
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or("There is no Sec-WebSocket-Key.")?;
    derive_accept_key(key.as_bytes()).try_into().map_err(|_| "The Sec-WebSocket-Key is unusable.")
}

/// What the binary frames carry, as a stream. How packets lie in frames means nothing, as RFC and MQTT have it.
pub(super) async fn stream(upgraded: Upgraded) -> impl AsyncRead + AsyncWrite + Unpin + Send {
    let config = WebSocketConfig::default()
        .max_message_size(Some(PACKET_LIMIT_BYTES))
        .max_frame_size(Some(PACKET_LIMIT_BYTES))
        .read_buffer_size(READ_BUFFER_BYTES);
    let frames = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await;
    let (sink, frames) = frames.split();
    let received = frames.filter_map(|frame| {
        ready(match frame {
            Ok(Message::Binary(bytes)) => Some(Ok(bytes)),
            Ok(Message::Text(_)) => Some(Err(io::Error::other("a text frame"))),
            Ok(_) => None,
            Err(error) => Some(Err(io::Error::other(error))),
        })
    });
    let sink =
        sink.with(|bytes| ready(Ok::<_, Error>(Message::Binary(bytes)))).sink_map_err(io::Error::other);
    join(StreamReader::new(received), SinkWriter::new(CopyToBytes::new(sink)))
}

/// Most packets are smaller; the library's own size would be too much for thousands of devices.
const READ_BUFFER_BYTES: usize = 4096;
