//! The networked part: answers the agent, one connection each.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at, timeout};
use tracing::{debug, info, warn};

use super::wire::{
    self, BODY_MAX_BYTES, FetchRequest, Fetched, FromHub, Opening, Reader, ToHub, ToStorage, Uploaded,
    WireError, Writer,
};
use crate::causes::one_line;
use crate::config;
use crate::hub::{self, HubEvent, MethodReply, Reported};
use crate::install::fetch::{Clients, FetchError, Reach, Source, Wanted};
use crate::install::{Phase, Progress};
use crate::system;
use crate::tls::TlsError;

/// The agent has one session, and one download of up to a handful of parts at once; while it restarts, the old and
/// the new.
const CONNECTIONS_MAX: usize = 16;

/// The agent says what a connection is for as soon as it is there.
const OPENING_LIMIT: Duration = Duration::from_secs(10);

/// `accept` fails where descriptors or memory are short: that does not pass in a microsecond.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Longer than the pause between two requests for parts of one bundle.
const CLIENTS_KEPT: Duration = Duration::from_secs(60);

/// Twice the largest bundle of diagnostics.
const UPLOAD_MAX_BYTES: usize = 8 << 20;

/// Events that may wait to be written.
const EVENTS_MAX: usize = 32;

/// What the networked part needs to know.
#[derive(Debug)]
pub struct Network {
    /// The hub, if there is one.
    pub hub: Option<config::Hub>,
    /// Whom the image servers are trusted by; `None`: the system's roots.
    pub image_ca_file: Option<PathBuf>,
    /// What the downloads of one update share, and when the last one began: a bundle's come one after the other, and
    /// the next update reads the roots anew.
    clients: Mutex<Option<(Arc<Clients>, Instant)>>,
    /// Where systemd put copies of the secrets when this process started: they stay as they are while it runs.
    copies: Option<PathBuf>,
    /// The hub takes a second session of a device as the end of the first.
    turn: tokio::sync::Mutex<()>,
}

impl Network {
    /// For a configuration; `copies` is systemd's `$CREDENTIALS_DIRECTORY`.
    #[must_use]
    pub fn new(config: config::Config, copies: Option<PathBuf>) -> Self {
        Self::of(config.hub, config.install.ca_file, copies)
    }

    fn of(hub: Option<config::Hub>, image_ca_file: Option<PathBuf>, copies: Option<PathBuf>) -> Self {
        let turn = tokio::sync::Mutex::new(());
        Self { hub, image_ca_file, clients: Mutex::default(), copies, turn }
    }

    fn clients(&self) -> Result<Arc<Clients>, FetchError> {
        let mut shared = self.shared_clients();
        let clients = match shared.take() {
            Some((clients, _)) => clients,
            None => Arc::new(Clients::new(self.image_ca_file.clone())?),
        };
        *shared = Some((clients.clone(), Instant::now()));
        Ok(clients)
    }

    /// Without those of an update before.
    fn shared_clients(&self) -> MutexGuard<'_, Option<(Arc<Clients>, Instant)>> {
        let mut shared = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        shared.take_if(|(_, begun)| begun.elapsed() >= CLIENTS_KEPT);
        shared
    }

    /// Between two updates nothing of them is kept.
    fn forget_clients(&self) {
        drop(self.shared_clients());
    }

    /// Answers whoever connects to `listener`, until `stop` is there.
    ///
    /// # Errors
    /// When no thread can be had; and when it has an old key, so that it is started again with the present one.
    pub async fn serve(self, listener: UnixListener, stop: impl Future<Output = ()>) -> io::Result<()> {
        let (sender, mut accepted) = mpsc::channel(1);
        std::thread::Builder::new().name("accept".to_owned()).spawn(move || accept(&listener, &sender))?;
        let network = Arc::new(self);
        let mut connections = JoinSet::new();
        // Not at once: a key that is wrong for good must not be a reason to start again all the time.
        let mut watchdog =
            system::watchdog_interval().map(|period| interval_at(Instant::now() + period, period));
        let mut stop = std::pin::pin!(stop);
        system::notify_status(true, "waiting for the agent");
        loop {
            tokio::select! {
                () = &mut stop => return Ok(()),
                Some(stream) = accepted.recv() => {
                    if connections.len() >= CONNECTIONS_MAX {
                        warn!("the agent has too many connections");
                    } else {
                        stream.set_nonblocking(true)?;
                        connections.spawn(network.clone().converse(UnixStream::from_std(stream)?));
                    }
                }
                Some(_) = connections.join_next() => {}
                Some(_) = system::tick(&mut watchdog) => {
                    network.forget_clients();
                    if network.has_old_key().await {
                        return Err(io::Error::other("the key is older than the certificate: it is to be handed over anew"));
                    }
                    system::feed_watchdog();
                }
            }
        }
    }

    /// Whether the key is a copy that does not belong to the certificate any more, which is read at each connect.
    async fn has_old_key(&self) -> bool {
        let (Some(hub), Some(copies)) = (self.hub.clone(), self.copies.clone()) else { return false };
        let look = move || {
            let copied = hub.credentials.identity().filter(|identity| identity.key_file.starts_with(copies));
            copied.is_some_and(|identity| matches!(identity.load(), Err(TlsError::UnusableIdentity { .. })))
        };
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    async fn converse(self: Arc<Self>, stream: UnixStream) {
        let (mut reader, writer) = wire::split(stream);
        let opening = timeout(OPENING_LIMIT, reader.next()).await.unwrap_or(Err(WireError::Silent));
        let ended = match opening {
            Ok((Opening::Hub, _)) => self.hold_session(reader, writer).await,
            Ok((Opening::Fetch(request), _)) => self.fetch(reader, writer, request).await,
            Ok((Opening::Upload { name }, _)) => self.upload(reader, writer, &name).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            debug!("a connection of the agent ended: {error}");
        }
    }

    /// The session with the hub, until the agent hangs up.
    async fn hold_session(&self, mut reader: Reader, mut writer: Writer) -> Result<(), WireError> {
        let _turn = self.turn.lock().await;
        let Some(hub) = self.hub.clone() else {
            let reason = "no hub is configured".to_owned();
            writer.send(&FromHub::Disconnected { reason }, &[]).await?;
            while reader.next::<ToHub>().await.is_ok() {}
            return Ok(());
        };
        info!("the agent is there");
        system::notify_status(false, "the agent is there");
        let (event_sender, events) = mpsc::channel(EVENTS_MAX);
        let (reported_sender, reported) = watch::channel(None);
        let calls = Calls::default();
        let session = hub::run(hub, system::unix_now, event_sender, reported);
        let mut told = std::pin::pin!(tell(writer, events, &calls));
        let both = async {
            tokio::select! {
                heard = hear(reader, reported_sender, &calls) => heard.and(told.await),
                // The agent would hear nothing more: it is to see the end, and connect again.
                told = &mut told => told,
            }
        };
        let (ended, ()) = tokio::join!(both, session);
        system::notify_status(false, "waiting for the agent");
        ended
    }

    /// One download, until its end or until the agent hangs up.
    async fn fetch(
        &self,
        mut reader: Reader,
        mut writer: Writer,
        request: FetchRequest,
    ) -> Result<(), WireError> {
        let handed_over = async {
            match self.hand_over(&mut writer, request).await {
                Err(Ended::Fetch(error)) => {
                    let (code, message) = (error.code(), one_line(&error));
                    writer.send(&Fetched::Failed { code, message }, &[]).await
                }
                Err(Ended::Wire(error)) => Err(error),
                Ok(()) => writer.send(&Fetched::End, &[]).await,
            }
        };
        tokio::select! {
            ended = handed_over => ended,
            () = reader.closed() => Err(WireError::Closed),
        }
    }

    /// One file for the hub's storage.
    async fn upload(&self, mut reader: Reader, mut writer: Writer, name: &str) -> Result<(), WireError> {
        let bytes = timeout(OPENING_LIMIT, content(&mut reader)).await.unwrap_or(Err(WireError::Silent))?;
        let uploaded = match &self.hub {
            None => Err("no hub is configured".to_owned()),
            Some(hub) => hub::upload::upload(hub, name, bytes, system::unix_now())
                .await
                .map_err(|error| one_line(&error)),
        };
        writer.send(&uploaded.map_or_else(Uploaded::Failed, |()| Uploaded::Done), &[]).await
    }

    async fn hand_over(&self, writer: &mut Writer, request: FetchRequest) -> Result<(), Ended> {
        let FetchRequest { uri, expected_bytes, offset, end, validator, any_version, limits } = request;
        let is_remote =
            |scheme: &&str| uri.get(..scheme.len()).is_some_and(|s| s.eq_ignore_ascii_case(scheme));
        if !["http://", "https://"].iter().any(is_remote) {
            let url = crate::redact::display_url(&uri);
            return Err(FetchError::Address { url }.into());
        }
        let progress = watch::Sender::new(Progress::default());
        let mut phases = progress.subscribe();
        let reach = Reach::Direct(self.clients()?);
        let wanted = Wanted { offset, end, validator, any_version };
        let opening = Source::open(&uri, expected_bytes, wanted, &reach, limits, progress);
        let mut source = telling(writer, &mut phases, opening).await?;
        let opened = Fetched::Opened { validator: source.validator(), part: source.is_part() };
        writer.send(&opened, &[]).await?;
        while let Some(bytes) = telling(writer, &mut phases, source.next()).await? {
            let chunk = Fetched::Chunk { joined_unproven: source.joined_unproven() };
            for part in bytes.chunks(BODY_MAX_BYTES) {
                writer.send(&chunk, part).await?;
            }
        }
        Ok(())
    }
}

/// A file that the agent sends.
async fn content(reader: &mut Reader) -> Result<Vec<u8>, WireError> {
    let mut bytes = Vec::new();
    loop {
        match reader.next().await? {
            (ToStorage::Chunk, part) => bytes.extend_from_slice(&part),
            (ToStorage::End, _) => return Ok(bytes),
        }
        if bytes.len() > UPLOAD_MAX_BYTES {
            return Err(WireError::TooLarge { head_bytes: 0, body_bytes: bytes.len() });
        }
    }
}

/// Takes connections, on a thread of its own. The socket is the service manager's too, which may change whether it
/// blocks at any time (`ExecStartPost=` is enough): an asynchronous `accept` could hang.
fn accept(listener: &UnixListener, connections: &mpsc::Sender<std::os::unix::net::UnixStream>) {
    loop {
        let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let accepted =
            poll(&mut ready, PollTimeout::NONE).map_err(io::Error::from).and_then(|_| listener.accept());
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                continue;
            }
            Err(error) => {
                warn!("cannot accept a connection: {error}");
                std::thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        if connections.blocking_send(stream).is_err() {
            return;
        }
    }
}

/// Why a download ended.
enum Ended {
    Fetch(FetchError),
    Wire(WireError),
}

impl From<FetchError> for Ended {
    fn from(error: FetchError) -> Self {
        Self::Fetch(error)
    }
}

impl From<WireError> for Ended {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

/// What `work` gives; meanwhile the agent is told if the server is away.
async fn telling<T>(
    writer: &mut Writer,
    phases: &mut watch::Receiver<Progress>,
    work: impl Future<Output = Result<T, FetchError>>,
) -> Result<T, Ended> {
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            biased;
            result = &mut work => return Ok(result?),
            Ok(()) = phases.changed() => {
                if phases.borrow_and_update().phase == Phase::Waiting {
                    writer.send(&Fetched::Waiting, &[]).await?;
                }
            }
        }
    }
}

/// Method calls that wait for the agent.
#[derive(Debug, Default)]
struct Calls {
    waiting: Mutex<HashMap<u64, oneshot::Sender<MethodReply>>>,
}

impl Calls {
    fn wait(&self, call: u64, reply: oneshot::Sender<MethodReply>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody waits for long: the hub's session gives a call up in time.
        waiting.retain(|_, reply| !reply.is_closed());
        waiting.insert(call, reply);
    }

    fn answer(&self, call: u64, reply: MethodReply) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(caller) = waiting.remove(&call) {
            // One that is gone has given up.
            drop(caller.send(reply));
        }
    }
}

/// From the agent to the hub. Dropping `reported` at the end closes the session with the hub.
async fn hear(mut reader: Reader, reported: watch::Sender<Reported>, calls: &Calls) -> Result<(), WireError> {
    loop {
        match reader.next().await {
            Ok((ToHub::Reported(properties), _)) => drop(reported.send_replace(Some(properties))),
            Ok((ToHub::Reply { call, status, payload }, _)) => {
                calls.answer(call, MethodReply { status, payload });
            }
            Err(WireError::Closed) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// From the hub to the agent.
async fn tell(
    mut writer: Writer,
    mut events: mpsc::Receiver<HubEvent>,
    calls: &Calls,
) -> Result<(), WireError> {
    let mut count = 0;
    while let Some(event) = events.recv().await {
        match event {
            HubEvent::Connected => writer.send(&FromHub::Connected, &[]).await?,
            HubEvent::Disconnected { reason } => writer.send(&FromHub::Disconnected { reason }, &[]).await?,
            HubEvent::Desired(desired) => writer.send(&FromHub::Desired(desired), &[]).await?,
            HubEvent::Method(method) => {
                count += 1;
                calls.wait(count, method.reply);
                writer.send(&FromHub::Method { call: count, name: method.name }, &method.payload).await?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redact::Secret;

    /// Roots are renewed while this process goes on.
    #[test]
    fn the_downloads_of_one_update_share_the_roots_and_the_next_one_reads_them_anew() {
        let network = Network::of(None, None, None);
        let first = network.clients().unwrap();
        network.forget_clients();
        assert!(Arc::ptr_eq(&first, &network.clients().unwrap()));
        let long_ago = Instant::now().checked_sub(CLIENTS_KEPT).expect("this machine is up for a minute");
        *network.clients.lock().unwrap() = Some((first.clone(), long_ago));
        assert!(!Arc::ptr_eq(&first, &network.clients().unwrap()));
        *network.clients.lock().unwrap() = Some((first, long_ago));
        network.forget_clients();
        assert!(network.clients.lock().unwrap().is_none());
    }

    #[tokio::test]
    async fn an_agent_that_hears_nothing_is_hung_up_on() {
        let hub = config::Hub {
            host_name: "localhost".to_owned(),
            gateway_host_name: None,
            device_id: "gateway-1".to_owned(),
            credentials: config::Credentials::SharedAccessKey(Secret::new("c2VjcmV0c2VjcmV0c2VjcmV0")),
            ca_file: None,
            // Nobody listens there: that is the first that is told.
            port: 1,
            https_port: 443,
            keep_alive: Duration::from_secs(230),
        };
        let network = Network::of(Some(hub), None, None);
        let (ours, agent) = UnixStream::pair().unwrap();
        let agent = agent.into_std().unwrap();
        agent.shutdown(std::net::Shutdown::Read).unwrap();
        let (reader, writer) = wire::split(ours);
        let ended = timeout(Duration::from_secs(20), network.hold_session(reader, writer)).await;
        assert!(matches!(ended, Ok(Err(WireError::Connection(_) | WireError::Closed))), "{ended:?}");
    }
}
