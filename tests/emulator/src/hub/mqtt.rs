//! The device side: one task per MQTT connection.
//!
//! The packets are put together and taken apart by the codec that `rumqttc` exports. The daemon's MQTT library
//! has the same codec, so a fault in it could cancel out here; but it has been in use against brokers of many
//! makers, and what this emulator is to catch (topics, sessions, tokens, twins) lies above it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rumqttc::mqttbytes::v4::{Codec, ConnAck, Connect, ConnectReturnCode, Packet, Publish};
use rumqttc::mqttbytes::{Error as MqttError, QoS};
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;

use super::admission::{self, Admission};
use super::clock;
use super::device::Link;
use super::session::Session;
use super::state::{Shared, State};

/// A message is at most 256 KiB; its topic comes on top.
const PACKET_LIMIT_BYTES: usize = 257 * 1024;
/// The hub gives a client this long for TLS and CONNECT; the same for taking a packet it is sent.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest silence the hub allows, whatever keep-alive was asked for.
const SILENCE_LIMIT: Duration = Duration::from_secs(1767);
/// Messages that may wait for a device that reads slowly.
const OUTGOING_LIMIT: usize = 64;

type Wire = Framed<TlsStream<TcpStream>, Codec>;

/// Serves one connection until either side closes it.
pub(super) async fn converse(socket: TcpStream, tls: Arc<ServerConfig>, hub: Arc<Shared>) {
    let Ok(Some((mut wire, connect))) = timeout(PATIENCE, handshake(socket, tls)).await else {
        tracing::info!("mqtt: no TLS handshake and CONNECT from a client");
        return;
    };
    let device = connect.client_id.clone();
    match admit(&hub, &connect, &wire) {
        Ok(visit) => {
            tracing::info!(%device, clean_session = connect.clean_session, "mqtt: connected");
            visit.serve(&mut wire, &hub).await;
            tracing::info!(%device, "mqtt: connection closed");
        }
        Err(Some(code)) => {
            tracing::info!(%device, ?code, "mqtt: connect refused");
            send(&mut wire, Packet::ConnAck(ConnAck::new(code, false))).await;
        }
        Err(None) => tracing::info!(%device, "mqtt: nobody home"),
    }
}

/// TLS, then the first packet, which must be CONNECT.
async fn handshake(socket: TcpStream, tls: Arc<ServerConfig>) -> Option<(Wire, Connect)> {
    // Small packets both ways: waiting to fill a segment would only slow tests down.
    let _ = socket.set_nodelay(true);
    let stream = TlsAcceptor::from(tls).accept(socket).await.ok()?;
    let codec = Codec { max_incoming_size: PACKET_LIMIT_BYTES, max_outgoing_size: PACKET_LIMIT_BYTES };
    let mut wire = Framed::new(stream, codec);
    match wire.next().await? {
        Ok(Packet::Connect(connect)) => Some((wire, connect)),
        Err(MqttError::InvalidProtocolLevel(_)) => {
            let refused = ConnectReturnCode::RefusedProtocolVersion;
            send(&mut wire, Packet::ConnAck(ConnAck::new(refused, false))).await;
            None
        }
        _ => None,
    }
}

/// Sends a packet. Whether the client still took it; a client that reads nothing is as good as gone.
async fn send(wire: &mut Wire, packet: Packet) -> bool {
    matches!(timeout(PATIENCE, wire.send(packet)).await, Ok(Ok(())))
}

/// An accepted connection.
struct Visit {
    session: Session,
    session_present: bool,
    clean_session: bool,
    outgoing: mpsc::Receiver<Publish>,
    closing: CancellationToken,
    silence_limit: Duration,
    /// How long the token is still good for.
    token_left: Option<Duration>,
}

/// Lets the device in and makes this its connection, or says with which code to refuse it, or with none at all.
fn admit(hub: &Shared, connect: &Connect, wire: &Wire) -> Result<Visit, Option<ConnectReturnCode>> {
    let certificates = wire.get_ref().get_ref().1.peer_certificates();
    let certificate = certificates.and_then(|chain| chain.first()).map(|first| first.as_ref());
    hub.change(|state| {
        state.traffic.connects += 1;
        if state.faults.away {
            return Err(None);
        }
        if let (times @ 1.., code) = state.faults.refuse {
            state.faults.refuse = (times.saturating_sub(1), code);
            return Err(Some(refusal(code)));
        }
        let admission = admission::judge(state, connect, certificate).map_err(Some)?;
        attach(state, connect, admission).ok_or(Some(ConnectReturnCode::NotAuthorized))
    })
}

fn attach(state: &mut State, connect: &Connect, admission: Admission) -> Option<Visit> {
    let serial = state.next_serial();
    let device = state.devices.get_mut(&admission.device)?;
    if connect.clean_session {
        device.filters.clear();
    }
    let (sender, outgoing) = mpsc::channel(OUTGOING_LIMIT);
    let closing = CancellationToken::new();
    let link =
        Link { serial, outgoing: sender, closing: closing.clone(), calls: std::collections::BTreeMap::new() };
    device.attach(link, clock::now_text());
    let keep_alive = Duration::from_secs(u64::from(connect.keep_alive));
    let silence = keep_alive.saturating_mul(3).checked_div(2).filter(|silence| !silence.is_zero());
    Some(Visit {
        session_present: !device.filters.is_empty(),
        session: Session { device: admission.device, serial },
        clean_session: connect.clean_session,
        outgoing,
        closing,
        silence_limit: silence.unwrap_or(SILENCE_LIMIT).min(SILENCE_LIMIT),
        token_left: admission.expiry.map(|expiry| clock::until(expiry).unwrap_or_default()),
    })
}

fn refusal(code: u8) -> ConnectReturnCode {
    match code {
        1 => ConnectReturnCode::RefusedProtocolVersion,
        2 => ConnectReturnCode::BadClientId,
        3 => ConnectReturnCode::ServiceUnavailable,
        4 => ConnectReturnCode::BadUserNamePassword,
        _ => ConnectReturnCode::NotAuthorized,
    }
}

impl Visit {
    async fn serve(mut self, wire: &mut Wire, hub: &Shared) {
        let accepted = ConnAck::new(ConnectReturnCode::Success, self.session_present);
        if send(wire, Packet::ConnAck(accepted)).await {
            self.converse(wire, hub).await;
        }
        hub.change(|state| self.session.end(state, self.clean_session));
    }

    async fn converse(&mut self, wire: &mut Wire, hub: &Shared) {
        let expiry = self.token_left.map(|left| Instant::now() + left);
        let mut token_expired = pin!(async move {
            match expiry {
                Some(expiry) => sleep_until(expiry).await,
                None => std::future::pending().await,
            }
        });
        let mut silent_until = Instant::now() + self.silence_limit;
        loop {
            tokio::select! {
                packet = wire.next() => {
                    let Some(Ok(packet)) = packet else { return };
                    silent_until = Instant::now() + self.silence_limit;
                    let Some(answers) = hub.change(|state| self.session.handle(state, packet)) else { return };
                    for answer in answers {
                        if !send(wire, answer).await {
                            return;
                        }
                    }
                }
                Some(publish) = self.outgoing.recv() => {
                    tracing::info!(device = %self.session.device, topic = %publish.topic, "mqtt: sent");
                    debug_assert_eq!(publish.qos, QoS::AtMostOnce);
                    if !send(wire, Packet::Publish(publish)).await {
                        return;
                    }
                }
                () = self.closing.cancelled() => return,
                () = &mut token_expired => {
                    tracing::info!(device = %self.session.device, "mqtt: the token expired");
                    return;
                }
                () = sleep_until(silent_until) => {
                    tracing::info!(device = %self.session.device, "mqtt: nothing heard for too long");
                    return;
                }
            }
        }
    }
}
