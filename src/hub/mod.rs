//! The device's session with Azure IoT Hub.
//!
//! [`run`] keeps one MQTT session up for as long as the device runs: connect, subscribe, read the
//! twin, then answer methods and keep the reported section equal to the wanted one. It never waits
//! for the agent, and the agent never waits for it.

pub mod auth;
pub mod backoff;
pub mod outbox;
pub mod patch;
pub mod probe;
pub mod session;
pub mod topic;
pub mod twin;
pub mod upload;

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::config;
use backoff::{Backoff, Cause};
use outbox::Outbox;
use session::{End, Ended, Session};

/// What the hub tells the agent.
#[derive(Debug)]
pub enum HubEvent {
    /// Connected and subscribed: methods come from now on, and the twin is asked for.
    Connected,
    /// The session ended, or could not begin; another attempt follows by itself. While one attempt
    /// after the other fails for the same reason, that is said once.
    Disconnected {
        /// One line for a person.
        reason: String,
    },
    /// A direct method was called.
    Method(MethodCall),
    /// The whole `desired` section without the service's own `$` members, once after every connect and
    /// after every change.
    Desired(Map<String, Value>),
}

/// A direct method call that waits for its answer.
#[derive(Debug)]
pub struct MethodCall {
    /// Method name, percent-decoded.
    pub name: String,
    /// JSON text, or empty; not checked here.
    pub payload: Bytes,
    /// Dropping it leaves the call unanswered.
    pub reply: oneshot::Sender<MethodReply>,
}

/// The answer to a direct method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MethodReply {
    /// HTTP-like status that the caller sees.
    pub status: u16,
    /// JSON.
    pub payload: Value,
}

/// The reported properties this device wants its twin to have: one JSON object, `None` until known.
pub type Reported = Option<Map<String, Value>>;

/// Every wait of the session. The default is argued for at each field.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// First pause after a lost session is drawn below this. A lone device is back within seconds;
    /// a fleet of 1000 that the hub threw out together stays near the 100 connects/s of the smallest
    /// hub. A larger one needs devices / connects per second, which no device knows: whoever is not let
    /// in doubles its pause, and so they find it out. 99 % of a million are back at an S3 unit's 6000
    /// connects/s in twice the time that a perfect queue would take, with four attempts each
    /// (`hub-emulator fleet --storm --tier s3` reckons it with this code).
    pub first_pause: Duration,
    /// Doubled pauses end here: a million devices then make at most 6600 attempts/s, and nobody waits
    /// for minutes on end once the hub is back.
    pub longest_pause: Duration,
    /// No pause is shorter, whatever the draw.
    pub shortest_pause: Duration,
    /// The same after a refusal. Wrong credentials do not heal in seconds, but a hub that is short of
    /// capacity refuses alike, so the first attempts still fit a trial boot's deadline.
    pub first_refused_pause: Duration,
    /// A disabled device asks once an hour, and is back within one when it is enabled again.
    pub longest_refused_pause: Duration,
    /// During a pause the wall clock is looked at so often: once it is set, a token or a certificate that was
    /// refused for its date is good, and a trial may not have an hour to wait.
    pub clock_look: Duration,
    /// A session this long makes the next pause short again: longer than the longest pause of a
    /// second client with our id, so that the two never make each other's pauses short.
    pub stable_after: Duration,
    /// How long a SAS token is good for: Microsoft's own choice.
    pub token_life: Duration,
    /// Name lookup, TCP, TLS and CONNACK together; a hub under load takes its time to authenticate.
    pub connect_limit: Duration,
    /// An answer to a twin request or a SUBACK: what Microsoft's clients grant.
    pub answer_limit: Duration,
    /// After a 429 the twin is left alone for this long at least, and up to twice as long. The read after
    /// a connect is not held back before that: it comes as spread as the connects, and where a hub takes
    /// fewer reads than connects, these pauses are over when a perfect queue would be. To hold each read
    /// back for minutes would save the largest hubs half of their 429s, and let the median of ten thousand
    /// devices on the smallest wait six times as long.
    pub throttled_pause: Duration,
    /// The longest response timeout that a caller of a method can ask for; nobody listens after it.
    pub call_limit: Duration,
    /// At shutdown the last report and answers may take this long; stays well below the time that
    /// systemd grants.
    pub closing_limit: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_secs(10),
            longest_pause: Duration::from_secs(5 * 60),
            shortest_pause: Duration::from_secs(1),
            first_refused_pause: Duration::from_secs(60),
            longest_refused_pause: Duration::from_secs(3600),
            clock_look: Duration::from_secs(5),
            stable_after: Duration::from_secs(6 * 60),
            token_life: Duration::from_secs(3600),
            connect_limit: Duration::from_secs(30),
            answer_limit: Duration::from_secs(60),
            throttled_pause: Duration::from_secs(10),
            call_limit: Duration::from_secs(300),
            closing_limit: Duration::from_secs(3),
        }
    }
}

/// Keeps the session with the hub up until the sender of `reported` is dropped: then what is still to
/// be reported and answered goes out, DISCONNECT follows, and it returns, all within
/// [`Pace::closing_limit`] or little more. It never ends otherwise, and is safe to abort.
///
/// `unix_now` gives wall time in seconds: a token's expiry is a date.
pub async fn run(
    config: config::Hub,
    unix_now: fn() -> u64,
    events: mpsc::Sender<HubEvent>,
    reported: watch::Receiver<Reported>,
) {
    run_at(Pace::default(), config, unix_now, events, reported).await;
}

/// [`run`] at another pace.
pub async fn run_at(
    pace: Pace,
    config: config::Hub,
    unix_now: fn() -> u64,
    events: mpsc::Sender<HubEvent>,
    mut reported: watch::Receiver<Reported>,
) {
    let mut outbox = Outbox::new(events);
    let mut backoff = Backoff::new(pace, fastrand::Rng::new());
    let mut told: Option<String> = None;
    loop {
        let renew_after = backoff.renewal(pace.token_life);
        // A clock that is set while the hub is asked has made the token a wrong one, too.
        let asked = (unix_now(), Instant::now());
        let session = Session::new(pace, &config, renew_after, &mut outbox, &mut reported);
        let Ended { why, length } = Box::pin(session.run(unix_now)).await;
        let lasted = length.unwrap_or_default();

        let pause = match why {
            End::Closed => return,
            End::Renewal => {
                backoff.ended_after(lasted);
                Duration::ZERO
            }
            End::NotReady(_) => pace.first_pause,
            End::Lost(_) => backoff.pause(Cause::Lost, lasted),
            End::Refused(_) => backoff.pause(Cause::Refused, lasted),
        };
        let reason = why.reason();
        if length.is_some() || told.as_ref() != Some(&reason) {
            tell(&mut outbox, &reason, pause);
            told = Some(reason);
        }
        debug!(?pause, "the next attempt");
        let since = if length.is_some() { (unix_now(), Instant::now()) } else { asked };
        let over = async {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = clock_set(unix_now, since, pace.clock_look) => debug!("the clock was set: trying again at once"),
            }
        };
        if !wait(over, &mut outbox, &mut reported).await {
            return;
        }
    }
}

fn tell(outbox: &mut Outbox, reason: &str, pause: Duration) {
    if pause.is_zero() {
        debug!("disconnected from the hub: {reason}");
    } else {
        warn!("disconnected from the hub: {reason}; next attempt in {} s", pause.as_secs());
    }
    outbox.push(HubEvent::Disconnected { reason: reason.to_owned() });
}

/// Ends once the wall clock is set to another time than it would have come to by itself.
async fn clock_set(unix_now: fn() -> u64, (at_first, since): (u64, Instant), look: Duration) {
    /// Less does not matter to a token that is good for an hour.
    const JUMP_SECS: u64 = 60;
    loop {
        let expected = at_first.saturating_add(since.elapsed().as_secs());
        if unix_now().abs_diff(expected) > JUMP_SECS {
            return;
        }
        tokio::time::sleep(look).await;
    }
}

/// Waits until `over` and hands events over meanwhile. `false`: no more reports will come.
async fn wait(
    over: impl Future<Output = ()>,
    outbox: &mut Outbox,
    reported: &mut watch::Receiver<Reported>,
) -> bool {
    let mut over = pin!(over);
    loop {
        tokio::select! {
            changed = reported.changed() => {
                if changed.is_err() {
                    return false;
                }
            }
            () = outbox.deliver() => {}
            () = &mut over => return true,
        }
    }
}
