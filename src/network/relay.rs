//! The agent's side of the session with the hub: what [`hub::run`](crate::hub::run) is where one process does
//! everything.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::wire::{
    self, BODY_MAX_BYTES, FromHub, Opening, Reader, ToHub, ToStorage, Uploaded, WireError, Writer,
};
use crate::causes::one_line;
use crate::hub::{HubEvent, MethodCall, MethodReply, Reported};

/// Calls that may wait for the agent at once; the hub's session lets fewer wait.
const CALLS_MAX: usize = 32;

/// A networked part that was restarted is back within seconds; one that is missing is not worth waking for.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Longer than all waits of an upload together.
const UPLOAD_LIMIT: Duration = Duration::from_secs(900);

/// Keeps the networked part's session up until the sender of `reported` is dropped: then what is still to be
/// reported and answered goes out, and it returns when the networked part has hung up. Safe to abort.
pub async fn run(socket: PathBuf, events: mpsc::Sender<HubEvent>, mut reported: watch::Receiver<Reported>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let mut answered = false;
        let ended = session(&socket, &events, &mut reported, &mut answered).await;
        if reported.has_changed().is_err() {
            return;
        }
        let why = ended.unwrap_or(WireError::Closed);
        let reason = format!("the networked part is away: {}", one_line(&why));
        warn!("{reason}; next attempt in {} s", pause.as_secs());
        if events.send(HubEvent::Disconnected { reason }).await.is_err() {
            return;
        }
        if answered {
            pause = FIRST_PAUSE;
        }
        let closed = async { while reported.changed().await.is_ok() {} };
        if timeout(pause, closed).await.is_ok() {
            return;
        }
        pause = pause.saturating_mul(2).min(LONGEST_PAUSE);
    }
}

/// Puts a file into the hub's storage: what [`hub::upload`](crate::hub::upload::upload) is where one process does
/// everything.
///
/// # Errors
/// Why it did not arrive, for a person.
pub async fn upload(socket: &Path, name: &str, bytes: &[u8]) -> Result<(), String> {
    let answered = async {
        let (mut reader, mut writer) = wire::split(UnixStream::connect(socket).await?);
        writer.send(&Opening::Upload { name: name.to_owned() }, &[]).await?;
        for part in bytes.chunks(BODY_MAX_BYTES) {
            writer.send(&ToStorage::Chunk, part).await?;
        }
        writer.send(&ToStorage::End, &[]).await?;
        let answer = timeout(UPLOAD_LIMIT, reader.next()).await.map_err(|_| WireError::Silent)?;
        answer.map(|(uploaded, _)| uploaded)
    };
    match answered.await {
        Ok(Uploaded::Done) => Ok(()),
        Ok(Uploaded::Failed(why)) => Err(wire::in_one_line(&why)),
        Err(error) => Err(format!("the networked part is away: {error}")),
    }
}

/// A call that waits for the agent.
type Waiting = (u64, oneshot::Receiver<MethodReply>);

/// One connection. `None`: nothing more is to be said, and all was.
async fn session(
    socket: &Path,
    events: &mpsc::Sender<HubEvent>,
    reported: &mut watch::Receiver<Reported>,
    answered: &mut bool,
) -> Option<WireError> {
    let stream = match UnixStream::connect(socket).await {
        Ok(stream) => stream,
        Err(error) => return Some(error.into()),
    };
    let (reader, mut writer) = wire::split(stream);
    if let Err(error) = writer.send(&Opening::Hub, &[]).await {
        return Some(error);
    }
    let (calls, waiting) = mpsc::channel(CALLS_MAX);
    let both =
        async { tokio::try_join!(hear(reader, events, calls, answered), say(writer, reported, waiting)) };
    both.await.err()
}

/// What comes, until the end. That is always an error; whether it matters, [`run`] knows.
async fn hear(
    mut reader: Reader,
    events: &mpsc::Sender<HubEvent>,
    calls: mpsc::Sender<Waiting>,
    answered: &mut bool,
) -> Result<(), WireError> {
    loop {
        let (message, body) = reader.next::<FromHub>().await?;
        *answered = true;
        let event = match message {
            FromHub::Connected => HubEvent::Connected,
            FromHub::Disconnected { reason } => HubEvent::Disconnected { reason: wire::in_one_line(&reason) },
            FromHub::Desired(desired) => HubEvent::Desired(desired),
            FromHub::Method { call, name } => {
                let (reply, answer) = oneshot::channel();
                // More than the hub's session lets wait: nobody honest is left without an answer.
                if calls.try_send((call, answer)).is_err() {
                    debug!("a method call is not taken: {CALLS_MAX} wait already");
                    continue;
                }
                HubEvent::Method(MethodCall { name, payload: body, reply })
            }
        };
        if events.send(event).await.is_err() {
            // The agent ends; what it still reports goes out meanwhile.
            debug!("an event came too late");
        }
    }
}

/// What goes: each new report, and each answer.
async fn say(
    mut writer: Writer,
    reported: &mut watch::Receiver<Reported>,
    mut calls: mpsc::Receiver<Waiting>,
) -> Result<(), WireError> {
    let answer = |(call, answer): Waiting| async move { Some((call, answer.await.ok()?)) };
    let mut answers = FuturesUnordered::new();
    reported.mark_changed();
    loop {
        tokio::select! {
            changed = reported.changed() => {
                if changed.is_err() {
                    break;
                }
                let properties = reported.borrow_and_update().clone();
                if let Some(properties) = properties {
                    writer.send(&ToHub::Reported(properties), &[]).await?;
                }
            }
            Some(waiting) = calls.recv(), if answers.len() < CALLS_MAX => answers.push(answer(waiting)),
            Some(answered) = answers.next() => reply(&mut writer, answered).await?,
        }
    }
    // The agent is gone: each answer is given by now, or never.
    while let Some(answered) = answers.next().await {
        reply(&mut writer, answered).await?;
    }
    writer.finish().await;
    Ok(())
}

async fn reply(writer: &mut Writer, answered: Option<(u64, MethodReply)>) -> Result<(), WireError> {
    match answered {
        Some((call, MethodReply { status, payload })) => {
            writer.send(&ToHub::Reply { call, status, payload }, &[]).await
        }
        None => Ok(()),
    }
}
