//! The device side: one task per MQTT connection.
//!
//! The packets are put together and taken apart by the codec that `rumqttc` exports. The daemon's MQTT library
//! has the same codec, so a fault in it could cancel out here; but it has been in use against brokers of many
//! makers, and what this emulator is to catch (topics, sessions, tokens, twins) lies above it.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rumqttc::mqttbytes::Error as MqttError;
use rumqttc::mqttbytes::v4::{Codec, ConnAck, Connect, ConnectReturnCode, Packet, Publish};
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;

use super::admission::{self, Admission};
use super::clock;
use super::device::Link;
use super::dps;
use super::listener::{Stream, shown_certificates};
use super::session::Session;
use super::state::{Shared, State};
use super::topic;

/// A message is at most 256 KiB; its topic comes on top.
pub(super) const PACKET_LIMIT_BYTES: usize = 257 * 1024;
/// Most packets are smaller, and there may be thousands of connections; it grows for one that is not.
const BUFFER_BYTES: usize = 1024;
/// The hub gives a client this long for CONNECT; the same for taking a packet it is sent.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest silence the hub allows, whatever keep-alive was asked for.
const SILENCE_LIMIT: Duration = Duration::from_secs(1767);
/// Messages that may wait for a device that reads slowly.
const OUTGOING_LIMIT: usize = 64;

pub(super) type Wire<S> = Framed<S, Codec>;

/// Serves a device on its port.
pub(super) async fn converse_on_port(stream: Stream, hub: Arc<Shared>) {
    let certificates = shown_certificates(&stream);
    converse(stream, certificates, hub).await;
}

/// Serves one connection, whatever carries it, until either side closes it. `certificates` is what the client
/// showed in the TLS handshake.
pub(super) async fn converse<S>(stream: S, certificates: Vec<CertificateDer<'static>>, hub: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let codec = Codec { max_incoming_size: PACKET_LIMIT_BYTES, max_outgoing_size: PACKET_LIMIT_BYTES };
    let mut wire = Framed::with_capacity(stream, codec, BUFFER_BYTES);
    let Ok(Some(connect)) = timeout(PATIENCE, first_packet(&mut wire)).await else {
        tracing::info!("mqtt: no CONNECT from a client");
        return;
    };
    if let Some((mut visitor, code)) = hub.read(|state| dps::visitor(state, &connect, &certificates)) {
        match code {
            ConnectReturnCode::Success => visitor.serve(&mut wire, connect.keep_alive, &hub).await,
            code => refuse(&mut wire, &connect, code).await,
        }
        return;
    }
    let device = connect.client_id.clone();
    match admit(&hub, &connect, &certificates) {
        Ok(visit) => {
            tracing::info!(%device, clean_session = connect.clean_session, "mqtt: connected");
            visit.serve(&mut wire, &hub).await;
            tracing::info!(%device, "mqtt: connection closed");
        }
        Err(Some(code)) => refuse(&mut wire, &connect, code).await,
        Err(None) => tracing::info!(%device, "mqtt: nobody home"),
    }
}

/// The first packet must be CONNECT.
async fn first_packet<S: AsyncRead + AsyncWrite + Unpin>(wire: &mut Wire<S>) -> Option<Connect> {
    match wire.next().await? {
        Ok(Packet::Connect(connect)) => Some(connect),
        Err(MqttError::InvalidProtocolLevel(_)) => {
            let refused = ConnectReturnCode::RefusedProtocolVersion;
            send(wire, Packet::ConnAck(ConnAck::new(refused, false))).await;
            None
        }
        _ => None,
    }
}

async fn refuse<S>(wire: &mut Wire<S>, connect: &Connect, code: ConnectReturnCode)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    tracing::info!(client = %connect.client_id, ?code, "mqtt: connect refused");
    send(wire, Packet::ConnAck(ConnAck::new(code, false))).await;
}

/// How long a client that asked for this keep-alive may be silent.
pub(super) fn silence_limit(keep_alive_secs: u16) -> Duration {
    match u64::from(keep_alive_secs) {
        0 => SILENCE_LIMIT,
        secs => Duration::from_millis(secs.saturating_mul(1500)).min(SILENCE_LIMIT),
    }
}

/// Sends a packet. Whether the client still took it; a client that reads nothing is as good as gone.
pub(super) async fn send<S: AsyncRead + AsyncWrite + Unpin>(wire: &mut Wire<S>, packet: Packet) -> bool {
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
fn admit(
    hub: &Shared,
    connect: &Connect,
    certificates: &[CertificateDer<'_>],
) -> Result<Visit, Option<ConnectReturnCode>> {
    hub.change(|state| {
        state.traffic.connects += 1;
        if state.faults.away || state.faults.keep_out.contains(&connect.client_id) {
            return Err(None);
        }
        if let (times @ 1.., code) = state.faults.refuse {
            state.faults.refuse = (times.saturating_sub(1), code);
            return Err(Some(refusal(code)));
        }
        let will = connect.last_will.as_ref();
        if will.is_some_and(|will| !topic::may_be_will(&connect.client_id, &will.topic)) {
            return Err(None);
        }
        let admission = admission::judge(state, connect, certificates).map_err(Some)?;
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
    Some(Visit {
        session_present: !device.filters.is_empty(),
        session: Session { device: admission.device, serial, will: connect.last_will.clone() },
        clean_session: connect.clean_session,
        outgoing,
        closing,
        silence_limit: silence_limit(connect.keep_alive),
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
    async fn serve(mut self, wire: &mut Wire<impl AsyncRead + AsyncWrite + Unpin>, hub: &Shared) {
        let accepted = ConnAck::new(ConnectReturnCode::Success, self.session_present);
        if send(wire, Packet::ConnAck(accepted)).await {
            self.converse(wire, hub).await;
        }
        hub.change(|state| self.session.end(state, self.clean_session));
    }

    async fn converse(&mut self, wire: &mut Wire<impl AsyncRead + AsyncWrite + Unpin>, hub: &Shared) {
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
