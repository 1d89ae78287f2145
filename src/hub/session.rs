//! One session: from the TCP connection to its loss.
//!
//! Two futures in one task. `drive` polls the MQTT event loop and waits for nothing else; it is never
//! cancelled while the session lasts, since a poll that is dropped halfway can lose a packet. `hold`
//! decides what to say, and never waits for `drive`.

use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, MqttOptions, NetworkOptions, Outgoing,
    Packet, Publish, QoS, StateError, SubscribeFilter, SubscribeReasonCode, TlsConfiguration,
    TlsError as MqttTlsError, Transport, mqttbytes,
};
use rustls::ClientConfig;
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::outbox::Outbox;
use super::twin::Twin;
use super::{HubEvent, MethodCall, MethodReply, Pace, Reported, auth, topic};
use crate::causes::one_line;
use crate::config::{self, Credentials};
use crate::system::EARLIEST_UNIX_SECS;
use crate::tls;

/// The largest message that an IoT hub carries anywhere; a method's payload has at most half of it,
/// a twin's two sections a quarter, plus what JSON escapes add.
const PACKET_MAX_BYTES: usize = 256 * 1024;

/// The hub closes the connection on a larger answer.
const REPLY_MAX_BYTES: usize = 128 * 1024;

/// Calls that may wait for the agent at once; it takes one at a time and answers in milliseconds.
const CALLS_MAX: usize = 16;

/// Packets between `drive` and `hold`, which takes them as fast as they come.
const INCOMING_MAX: usize = 16;

/// Packets from `hold` to `drive`: an answer to every call twice over, and what the twin needs.
const OUTGOING_MAX: usize = 2 * CALLS_MAX + 8;

/// Above 1177 s the hub's own limit of 1767 s strikes first.
pub const KEEP_ALIVE_MAX: Duration = Duration::from_secs(1177);

/// A token says when it ends.
const CLOCK_NOT_SET: &str = "the clock is not set";

/// Why a session ended, with one line for a person.
#[derive(Debug)]
pub enum End {
    /// This device cannot try yet, and did not ask the hub.
    NotReady(String),
    /// No connection, or it broke.
    Lost(String),
    /// The hub does not want us.
    Refused(String),
    /// Our own doing: the token is about to expire.
    Renewal,
    /// Our own doing: no more reports will come.
    Closed,
}

impl End {
    /// One line for a person.
    pub fn reason(self) -> String {
        match self {
            Self::NotReady(reason) | Self::Lost(reason) | Self::Refused(reason) => reason,
            Self::Renewal => "the token is renewed".to_owned(),
            Self::Closed => "it was closed from here".to_owned(),
        }
    }
}

/// A session that is over.
#[derive(Debug)]
pub struct Ended {
    /// Why.
    pub why: End,
    /// How long after CONNACK; `None` if there was none.
    pub length: Option<Duration>,
}

/// The way from CONNECT to the working session.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Until CONNACK; the event loop has its own limit.
    Connecting,
    /// Until SUBACK.
    Subscribing { answer_by: Instant },
    /// Methods and twin.
    Live,
}

type Call = BoxFuture<'static, (String, Option<MethodReply>)>;

/// One session.
pub struct Session<'a> {
    pace: Pace,
    config: &'a config::Hub,
    outbox: &'a mut Outbox,
    reported: &'a mut watch::Receiver<Reported>,
    phase: Phase,
    connected_at: Option<Instant>,
    renew_after: Duration,
    renew_at: Option<Instant>,
    /// Set once no more reports will come: the end, whatever is still open.
    close_by: Option<Instant>,
    twin: Twin,
    calls: FuturesUnordered<Call>,
}

impl<'a> Session<'a> {
    /// A session that is yet to begin. A token lets it last for `renew_after`.
    pub fn new(
        pace: Pace,
        config: &'a config::Hub,
        renew_after: Duration,
        outbox: &'a mut Outbox,
        reported: &'a mut watch::Receiver<Reported>,
    ) -> Self {
        Self {
            pace,
            config,
            outbox,
            reported,
            phase: Phase::Connecting,
            connected_at: None,
            renew_after,
            renew_at: None,
            close_by: None,
            twin: Twin::new(pace, fastrand::Rng::new()),
            calls: FuturesUnordered::new(),
        }
    }

    /// Connects, and stays until something ends it. Calls that wait for the agent end with it: on
    /// another connection their ids mean nothing.
    pub async fn run(mut self, unix_now: fn() -> u64) -> Ended {
        let why = self.connect_and_hold(unix_now).await;
        Ended { why, length: self.connected_at.map(|since| since.elapsed()) }
    }

    async fn connect_and_hold(&mut self, unix_now: fn() -> u64) -> End {
        let options = match options(self.config, self.pace, unix_now()).await {
            Ok(options) => options,
            Err(end) => return end,
        };
        if matches!(self.config.credentials, Credentials::SharedAccessKey(_)) {
            self.renew_at = Some(Instant::now() + self.renew_after);
        }
        // A fresh event loop for each session: an old one would replay what it had not sent.
        let (client, mut event_loop) = AsyncClient::new(options, OUTGOING_MAX);
        event_loop.set_network_options(network_options(self.pace));
        let (incoming_in, incoming) = mpsc::channel(INCOMING_MAX);
        let mut driven = pin!(drive(event_loop, incoming_in));

        let end = tokio::select! {
            error = &mut driven => return self.broken(error.as_ref()),
            end = self.hold(&client, incoming) => end,
        };
        let by_us = matches!(end, End::Renewal | End::Closed);
        if by_us && self.connected_at.is_some() && client.try_disconnect().is_ok() {
            // The answers before it go out on the same way; a stalled link is not waited for.
            let close_by = self.close_by.unwrap_or_else(|| Instant::now() + self.pace.closing_limit);
            let _ = tokio::time::timeout_at(close_by, driven).await;
        }
        end
    }

    /// What a failure of the event loop means.
    fn broken(&self, error: Option<&ConnectionError>) -> End {
        let Some(error) = error else { return End::Lost("disconnected".to_owned()) };
        if let ConnectionError::ConnectionRefused(code) = error {
            return refused(*code);
        }
        let host = self.config.dialled();
        End::Lost(match self.connected_at {
            Some(_) => describe(error),
            None => format!("cannot connect to {host}:{}: {}", self.config.port, describe(error)),
        })
    }

    async fn hold(&mut self, client: &AsyncClient, mut incoming: mpsc::Receiver<Packet>) -> End {
        self.twin.want(&self.reported.borrow_and_update());
        loop {
            if let Err(end) = self.advance(client) {
                return end;
            }
            let wake_at = self.wake_at();
            tokio::select! {
                Some(packet) = incoming.recv() => {
                    if let Err(end) = self.take(client, packet) {
                        return end;
                    }
                }
                Some((rid, reply)) = self.calls.next(), if !self.calls.is_empty() => answer(client, &rid, reply),
                changed = self.reported.changed(), if self.close_by.is_none() => match changed {
                    Ok(()) => self.twin.want(&self.reported.borrow_and_update()),
                    Err(_) => self.close_by = Some(Instant::now() + self.pace.closing_limit),
                },
                () = self.outbox.deliver() => {}
                () = sleep_until(wake_at) => {}
            }
        }
    }

    /// Does what is due by now.
    fn advance(&mut self, client: &AsyncClient) -> Result<(), End> {
        let now = Instant::now();
        if let Phase::Subscribing { answer_by } = self.phase
            && answer_by <= now
        {
            return Err(End::Lost("the hub does not answer the subscription".to_owned()));
        }
        let live = matches!(self.phase, Phase::Live);
        if live {
            self.twin.expire(now).map_err(|silent| End::Lost(silent.to_string()))?;
        }
        if self.renewal_due().is_some_and(|due| due <= now) {
            return Err(End::Renewal);
        }
        if live && let Some(request) = self.twin.next_request(now) {
            publish(client, request.topic, request.payload);
        }
        if let Some(close_by) = self.close_by {
            let settled = !live || (self.calls.is_empty() && self.twin.settled());
            if settled || close_by <= now {
                return Err(End::Closed);
            }
        }
        Ok(())
    }

    /// When to renew the token. Not while somebody waits for an answer, which a new connection cannot
    /// give: a call takes five minutes at most, and the token has longer.
    fn renewal_due(&self) -> Option<Instant> {
        let open = !self.calls.is_empty() || self.twin.awaits_answer();
        self.renew_at.filter(|_| !open && matches!(self.phase, Phase::Live))
    }

    /// The next moment at which [`Session::advance`] has something to do.
    fn wake_at(&self) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Connecting => None,
            Phase::Subscribing { answer_by } => Some(answer_by),
            Phase::Live => self.twin.wake_at(),
        };
        [phase, self.close_by, self.renewal_due()].into_iter().flatten().min()
    }

    fn take(&mut self, client: &AsyncClient, packet: Packet) -> Result<(), End> {
        match packet {
            Packet::ConnAck(_) => {
                self.connected_at = Some(Instant::now());
                self.phase = Phase::Subscribing { answer_by: Instant::now() + self.pace.answer_limit };
                subscribe(client)
            }
            Packet::SubAck(answer) if matches!(self.phase, Phase::Subscribing { .. }) => {
                if answer.return_codes.contains(&SubscribeReasonCode::Failure) {
                    return Err(End::Lost("the hub refuses the subscription".to_owned()));
                }
                self.phase = Phase::Live;
                // Network, clock and credentials are good, and methods come: whether the hub shows the twin, for which
                // it may be too busy, or over its quota for the day, is no matter of the firmware on trial.
                info!("connected to {} as {}", self.config.dialled(), self.config.device_id);
                self.outbox.push(HubEvent::Connected);
                Ok(())
            }
            Packet::Publish(message) => self.take_message(client, message),
            _ => Ok(()),
        }
    }

    fn take_message(&mut self, client: &AsyncClient, message: Publish) -> Result<(), End> {
        match topic::parse(&message.topic) {
            Some(topic::Incoming::Method { name, rid }) => self.take_call(client, name, rid, message.payload),
            Some(topic::Incoming::TwinAnswer { status, rid }) => {
                let news = self
                    .twin
                    .answer(rid, status, &message.payload, Instant::now())
                    .map_err(|error| End::Lost(error.to_string()))?;
                if let Some(desired) = news {
                    self.outbox.push(HubEvent::Desired(desired));
                }
            }
            Some(topic::Incoming::DesiredChange { version }) => self.twin.desired_changed(version),
            None => debug!(topic = message.topic, "a message that is not for us"),
        }
        Ok(())
    }

    fn take_call(&mut self, client: &AsyncClient, name: String, rid: &str, payload: Bytes) {
        if self.calls.len() >= CALLS_MAX {
            warn!(method = name, "refused: too many calls wait");
            return answer(
                client,
                rid,
                Some(unavailable(429, "TooManyCalls", "too many calls wait for an answer")),
            );
        }
        let (reply, replied) = oneshot::channel();
        let call = HubEvent::Method(MethodCall { name, payload, reply });
        if !self.outbox.offer(call) {
            warn!("a method call was refused: the agent is busy");
            return answer(
                client,
                rid,
                Some(unavailable(503, "Unavailable", "the agent is busy; call again")),
            );
        }
        let (rid, limit) = (rid.to_owned(), self.pace.call_limit);
        self.calls.push(Box::pin(async move {
            let reply = tokio::time::timeout(limit, replied).await;
            (rid, reply.ok().and_then(Result::ok))
        }));
    }
}

/// Polls the event loop until it breaks, or has sent DISCONNECT (`None`). It goes on reading only when
/// `hold` took what it read: memory stays bounded, and the hub feels it.
async fn drive(mut event_loop: EventLoop, incoming: mpsc::Sender<Packet>) -> Option<ConnectionError> {
    loop {
        match event_loop.poll().await {
            Ok(Event::Incoming(packet @ (Packet::ConnAck(_) | Packet::SubAck(_) | Packet::Publish(_)))) => {
                // Nobody listens once DISCONNECT is under way.
                let _ = incoming.send(packet).await;
            }
            Ok(Event::Outgoing(Outgoing::Disconnect)) => return None,
            Ok(_) => {}
            Err(error) => return Some(error),
        }
    }
}

async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Everything CONNECT needs, made anew each time: a fresh token, and files as they are now.
pub(super) async fn options(
    config: &config::Hub,
    pace: Pace,
    unix_now_secs: u64,
) -> Result<MqttOptions, End> {
    let password = match &config.credentials {
        Credentials::SharedAccessKey(_) if unix_now_secs < EARLIEST_UNIX_SECS => {
            return Err(End::NotReady(CLOCK_NOT_SET.to_owned()));
        }
        Credentials::SharedAccessKey(key) => {
            let token = auth::SasToken::new(
                &config.host_name,
                &config.device_id,
                key,
                unix_now_secs,
                pace.token_life,
            )
            .map_err(|error| End::NotReady(error.to_string()))?;
            token.expose().to_owned()
        }
        // rumqttc sends no password at all for an empty one, as X.509 wants it.
        Credentials::Certificate { .. } => String::new(),
    };
    let mut options = MqttOptions::new(&config.device_id, config.dialled(), config.port);
    options
        .set_transport(Transport::tls_with_config(TlsConfiguration::from(client_config(config).await?)))
        .set_credentials(auth::user_name(&config.host_name, &config.device_id), password)
        .set_keep_alive(config.keep_alive.clamp(Duration::from_secs(1), KEEP_ALIVE_MAX))
        // We subscribe and read the twin after each connect anyway, so a kept session could only
        // bring calls whose callers have gone.
        .set_clean_session(true)
        .set_max_packet_size(PACKET_MAX_BYTES, PACKET_MAX_BYTES);
    Ok(options)
}

pub(super) async fn client_config(config: &config::Hub) -> Result<ClientConfig, End> {
    let ca_file = config.ca_file.clone();
    let credentials = config.credentials.clone();
    let load = move || tls::client_config(tls::Roots::from(ca_file.as_deref()), credentials.identity());
    match tokio::task::spawn_blocking(load).await {
        Ok(Ok(client_config)) => Ok(client_config),
        Ok(Err(error)) => Err(End::NotReady(one_line(&error))),
        Err(stopped) => Err(End::NotReady(stopped.to_string())),
    }
}

pub(super) fn network_options(pace: Pace) -> NetworkOptions {
    let mut network = NetworkOptions::new();
    network.set_connection_timeout(pace.connect_limit.as_secs().max(1));
    // Messages are small and a caller waits for them.
    network.set_tcp_nodelay(true);
    network
}

/// QoS 0 throughout: the hub sends at 0 whatever is granted, twin requests have answers of their own,
/// and a method's answer is worthless on another connection. That spares a PUBACK per message.
fn subscribe(client: &AsyncClient) -> Result<(), End> {
    let filters = [topic::METHODS, topic::TWIN_ANSWERS, topic::DESIRED_CHANGES]
        .map(|filter| SubscribeFilter::new(filter.to_owned(), QoS::AtMostOnce));
    client.try_subscribe_many(filters).map_err(|_| End::Lost("cannot subscribe".to_owned()))
}

/// Never waits: a full queue mostly belongs to a link that is stalled, and soon lost.
fn publish(client: &AsyncClient, topic: String, payload: Vec<u8>) {
    if client.try_publish(topic, QoS::AtMostOnce, false, payload).is_err() {
        warn!("a message to the hub was dropped: the queue to it is full");
    }
}

fn answer(client: &AsyncClient, rid: &str, reply: Option<MethodReply>) {
    let Some(reply) = reply else {
        debug!(rid, "a method call stays unanswered");
        return;
    };
    let payload = reply.payload.to_string().into_bytes();
    if payload.len() > REPLY_MAX_BYTES {
        warn!(bytes = payload.len(), "an answer is too long for the hub");
        let short = unavailable(500, "AnswerTooLong", "the answer is longer than the hub takes");
        return publish(
            client,
            topic::method_answer(short.status, rid),
            short.payload.to_string().into_bytes(),
        );
    }
    publish(client, topic::method_answer(reply.status, rid), payload);
}

fn unavailable(status: u16, code: &str, message: &str) -> MethodReply {
    MethodReply { status, payload: json!({"error": {"code": code, "message": message}}) }
}

fn refused(code: ConnectReturnCode) -> End {
    let reason = match code {
        ConnectReturnCode::ServiceUnavailable => {
            return End::Lost("the hub is unavailable for now (CONNACK 3)".to_owned());
        }
        ConnectReturnCode::RefusedProtocolVersion => "the hub does not speak MQTT 3.1.1 (CONNACK 1)",
        ConnectReturnCode::BadClientId => "the hub refuses the device id (CONNACK 2)",
        ConnectReturnCode::BadUserNamePassword => "the hub does not understand the credentials (CONNACK 4)",
        ConnectReturnCode::NotAuthorized => {
            "the hub refuses this device (CONNACK 5): check its key or certificate, that it is enabled, and the clock"
        }
        ConnectReturnCode::Success => "the hub accepted and refused",
    };
    End::Refused(reason.to_owned())
}

/// Why there was no session, in one line.
pub(super) fn why(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ConnectionRefused(code) => refused(*code).reason(),
        error => describe(error),
    }
}

fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::NetworkTimeout => "no answer in time".to_owned(),
        ConnectionError::FlushTimeout => "the link is stalled".to_owned(),
        ConnectionError::MqttState(StateError::ConnectionAborted) => {
            "the hub closed the connection".to_owned()
        }
        ConnectionError::MqttState(StateError::AwaitPingResp) => "the hub fell silent".to_owned(),
        ConnectionError::MqttState(
            StateError::Io(error) | StateError::Deserialization(mqttbytes::Error::Io(error)),
        )
        | ConnectionError::Io(error)
        | ConnectionError::Tls(MqttTlsError::Io(error)) => describe_io(error),
        other => other.to_string(),
    }
}

fn describe_io(error: &io::Error) -> String {
    match error.kind() {
        // rustls: the peer left without a word, as the hub does when a second client takes our place.
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "the hub closed the connection".to_owned()
        }
        _ => tls::expired(error).unwrap_or_else(|| error.to_string()),
    }
}
