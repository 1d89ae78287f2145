//! The other end of the wire: the networked part of the machine with a hub and an image server behind it, an operator
//! who keeps asking until he is answered, and a person at the device.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use twinboot::install::validator::Validator;
use twinboot::network::wire::{
    self, FetchRequest, Fetched, FromHub, Opening, Reader, ToHub, WireError, Writer,
};

use crate::disk::{self, NEWS};
use crate::judge;
use crate::scheduler;
use crate::seam;
use crate::site::Site;
use crate::story::{Act, Check, Images, Story};
use crate::uboot::Environment;

/// What the image server sends in one second.
pub const CHUNK_BYTES: usize = 64 << 10;

/// Of a bundle: who hangs up has no more of it than that.
const BUNDLE_CHUNK_BYTES: usize = 4 << 10;

/// An operator who has no answer by then asks again; who waits for something looks as often.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// As far as the wall clock may be put: a hundred years.
const CLOCK_RANGE: Duration = Duration::from_secs(100 * 365 * 86_400);

const UPDATE_ID: &str = "simulated";

/// Nothing of it is lost with the machine's power.
#[derive(Debug)]
pub struct Cloud {
    pub story: &'static Story,
    /// Without it, the network is as good as it can be.
    weather: Option<Rng>,
    /// The twin.
    pub reported: Option<Map<String, Value>>,
    /// The update was answered with 200, or the twin told of it.
    pub is_accepted: bool,
    /// What people do in this story was done.
    is_acted: bool,
    /// Sessions that were refused, one after the other.
    refusals: u8,
    /// The daemon is to be restarted.
    pub wants_restart: bool,
    /// When the running system finds the hub.
    pub online_at: Duration,
    /// Bytes of the image before this one were proven to be in the slot when this daemon began.
    pub proven_bytes: u64,
    /// The image was known to be in the slot when this daemon began.
    pub is_installed: bool,
    /// As much of a bundle's patches and chunks may this daemon still fetch, if that is known.
    pub missing_bytes: Option<u64>,
    /// Where they begin.
    chunks_offset: u64,
    /// Bytes of the image that were sent, in all.
    pub sent_bytes: u64,
    /// Offset of the end of what was sent last.
    pub sent_to: u64,
    /// What must not be.
    pub fault: Option<String>,
}

pub type Shared = Arc<Mutex<Cloud>>;

pub fn lock(cloud: &Shared) -> MutexGuard<'_, Cloud> {
    cloud.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cloud {
    pub fn new(story: &'static Story, weather: Option<u64>) -> Self {
        Self {
            story,
            weather: weather.map(Rng::with_seed),
            reported: None,
            is_accepted: false,
            is_acted: false,
            refusals: 0,
            wants_restart: false,
            online_at: Duration::ZERO,
            proven_bytes: 0,
            is_installed: false,
            missing_bytes: None,
            chunks_offset: story.chunks_offset(),
            sent_bytes: 0,
            sent_to: 0,
            fault: None,
        }
    }

    pub fn status(&self) -> &str {
        self.reported.as_ref().and_then(|reported| reported["firmwareStatus"].as_str()).unwrap_or_default()
    }

    /// The story is over, as far as the twin tells.
    pub fn is_over(&self) -> bool {
        let ends: &[&str] = if self.story.act == Act::RollBack {
            &["failed", "rolledBack"]
        } else {
            &["completed", "failed", "rolledBack"]
        };
        ends.contains(&self.status()) && self.is_told()
    }

    /// The twin tells of this update.
    fn is_told(&self) -> bool {
        self.reported.as_ref().is_some_and(|reported| reported["firmware"]["updateId"] == UPDATE_ID)
    }

    /// Whether weather of this chance strikes now.
    fn strikes(&mut self, percent: u8) -> bool {
        self.weather.as_mut().is_some_and(|dice| dice.u8(..100) < percent)
    }

    /// Up to so long.
    fn delay(&mut self, longest: Duration) -> Duration {
        self.weather.as_mut().map_or(Duration::ZERO, |dice| longest.mul_f64(dice.f64()))
    }

    /// The wall clock jumps, back or forward: nothing is to hang on it.
    fn turn_clock(&mut self) {
        if self.strikes(5) {
            let time = self.delay(CLOCK_RANGE);
            seam::WALL_SECS.store(time.as_secs(), Ordering::Relaxed);
        }
    }

    fn desired(&self) -> Map<String, Value> {
        let mut desired = Map::new();
        if self.story.is_desired {
            desired.insert("firmware".to_owned(), request(self.story));
        }
        desired
    }

    /// What the operator calls now.
    fn call(&self) -> Option<(&'static str, Value)> {
        if !self.story.is_desired && !self.is_accepted {
            return Some(("firmwareUpdate", request(self.story)));
        }
        let cancels = self.story.act == Act::Cancel && self.is_stuck() && !self.is_over();
        cancels.then(|| ("cancelFirmwareUpdate", json!({ "updateId": UPDATE_ID })))
    }

    /// The image server sends no more, until the download was cancelled.
    fn is_stuck(&self) -> bool {
        self.story.act == Act::Cancel && self.sent_to >= 3 * CHUNK_BYTES as u64
    }

    fn on_reply(&mut self, status: u16, payload: &Value) {
        match (status, payload["Response"].as_str()) {
            (200, Some(text)) if text.contains("started") || text.contains("already") => {
                self.is_accepted = true
            }
            (200, Some(text)) if text.contains("cancelled") => {}
            (409, _) => {}
            // The answer before was lost, and the update is over.
            (412, _) if payload["error"]["code"] == "RolledBackBefore" => self.is_accepted = true,
            _ => self.blame(format!("a method was answered {status} {payload}")),
        }
    }

    fn on_reported(&mut self, reported: Map<String, Value>, site: &Site) {
        self.turn_clock();
        self.reported = Some(reported);
        self.is_accepted |= self.is_told();
        let settled_in = match self.status() {
            "completed" => Some(self.story.target()),
            "failed" | "rolledBack" => Some(self.story.origin),
            _ => None,
        };
        let environment = disk::change(|disk| Environment::load(disk.safe(&site.environment())));
        if settled_in.is_some_and(|slot| environment.is_trial() || environment.slot() != slot) {
            self.blame(format!("the twin says {}, the environment has {environment}", self.status()));
        }
        if self.is_over() {
            NEWS.notify_one();
        }
    }

    fn on_fetch(&mut self, request: &FetchRequest, site: &Site) {
        let FetchRequest { offset, .. } = request;
        // The twin may still tell of the same update's end that an operator began again.
        if judge::is_idle(site) {
            self.blame("an image is fetched for nobody".to_owned());
        }
        if self.is_installed {
            self.blame("what was installed is fetched again".to_owned());
        }
        if *offset < self.proven_bytes {
            let proven = self.proven_bytes;
            self.blame(format!("bytes from {offset} on are fetched again, though {proven} are proven"));
        }
        // The next request of this daemon may begin anew: its own bytes it need not prove.
        self.proven_bytes = 0;
    }

    fn on_sent(&mut self, range: Range<u64>) {
        self.sent_bytes += range.end - range.start;
        self.sent_to = range.end;
        let chunks_bytes = range.end.saturating_sub(range.start.max(self.chunks_offset));
        // In bad weather, what was sent may never arrive.
        if let Some(missing) = self.missing_bytes.as_mut().filter(|_| self.weather.is_none()) {
            match missing.checked_sub(chunks_bytes) {
                Some(left) => *missing = left,
                None => self.blame("more of a bundle is fetched than is missing".to_owned()),
            }
        }
    }

    pub fn blame(&mut self, fault: String) {
        self.fault.get_or_insert(fault);
        NEWS.notify_one();
    }
}

fn request(story: &Story) -> Value {
    let image = story.image();
    let extension = if image.bundle.is_some() { "twb" } else { "img" };
    let mut request = json!({
        "fwPackageUri": format!("https://images.example/{}.{extension}", image.name),
        "fwVersion": image.version,
        "fwSize": image.package().len(),
        "updateId": UPDATE_ID,
    });
    match story.check {
        Check::Digest => request["fwPackageCheckValue"] = json!(image.digest),
        Check::ForeignDigest => request["fwPackageCheckValue"] = json!(Images::all().factory.digest),
        Check::Signature | Check::ForeignSignature | Check::DamagedPatches | Check::DamagedChunks => {}
    }
    request
}

/// Answers the daemon until it is dropped.
pub async fn serve(listener: UnixListener, site: Arc<Site>, cloud: Shared) -> io::Result<()> {
    let mut connections = JoinSet::new();
    connections.spawn(attend(site.clone(), cloud.clone()));
    loop {
        let (stream, _) = listener.accept().await?;
        connections.spawn(converse(stream, site.clone(), cloud.clone()));
    }
}

async fn converse(stream: UnixStream, site: Arc<Site>, cloud: Shared) {
    let (mut reader, writer) = wire::split(stream);
    // Whoever hangs up has the answer that he wanted.
    let _ = match reader.next().await {
        Ok((Opening::Hub, _)) => hold_session(reader, writer, &site, &cloud).await,
        Ok((Opening::Fetch(request), _)) if request.uri.ends_with(".minisig") => {
            let signature = lock(&cloud).story.signature();
            send_signature(writer, signature).await
        }
        Ok((Opening::Fetch(request), _)) => send_image(writer, &request, &site, &cloud).await,
        Ok((Opening::Upload { .. }, _)) | Err(_) => Ok(()),
    };
}

async fn hold_session(
    mut reader: Reader,
    mut writer: Writer,
    site: &Site,
    cloud: &Shared,
) -> Result<(), WireError> {
    let (offline, is_refused, delay, life) = {
        let mut cloud = lock(cloud);
        // A trial has ten minutes to be told of.
        let is_refused = cloud.refusals < 2 && cloud.strikes(20);
        cloud.refusals = if is_refused { cloud.refusals + 1 } else { 0 };
        let life = if cloud.strikes(50) { cloud.delay(Duration::from_secs(300)) } else { Duration::MAX };
        (
            cloud.online_at.saturating_sub(scheduler::now()),
            is_refused,
            cloud.delay(Duration::from_secs(20)),
            life,
        )
    };
    if !offline.is_zero() || is_refused {
        let reason = "the hub is away".to_owned();
        writer.send(&FromHub::Disconnected { reason }, &[]).await?;
        // It hangs up in the end, or the networked part does.
        let _ = timeout(offline.max(Duration::from_secs(90)), async {
            while reader.next::<ToHub>().await.is_ok() {}
        })
        .await;
        return Ok(());
    }
    sleep(delay).await;
    let desired = lock(cloud).desired();
    writer.send(&FromHub::Connected, &[]).await?;
    writer.send(&FromHub::Desired(desired), &[]).await?;
    let session = async {
        let mut call = 0;
        loop {
            let wanted = lock(cloud).call();
            if let Some((name, payload)) = &wanted {
                call += 1;
                if *name == "firmwareUpdate" {
                    // After one that failed, this is another one, and fetches what it needs.
                    lock(cloud).is_installed = false;
                }
                let name = (*name).to_owned();
                writer.send(&FromHub::Method { call, name }, payload.to_string().as_bytes()).await?;
            }
            if lock(cloud).strikes(10) {
                let desired = lock(cloud).desired();
                writer.send(&FromHub::Desired(desired), &[]).await?;
            }
            let until_next = sleep(ASK_AGAIN);
            tokio::pin!(until_next);
            loop {
                tokio::select! {
                    frame = reader.next::<ToHub>() => match frame?.0 {
                        // Lost with the session.
                        _ if lock(cloud).strikes(5) => return Ok(()),
                        ToHub::Reported(reported) => lock(cloud).on_reported(reported, site),
                        ToHub::Reply { status, payload, .. } => lock(cloud).on_reply(status, &payload),
                    },
                    () = &mut until_next => break,
                }
                if lock(cloud)
                    .call()
                    .is_some_and(|next| wanted.as_ref().is_none_or(|wanted| wanted.0 != next.0))
                {
                    break;
                }
            }
        }
    };
    timeout(life, session).await.unwrap_or(Ok(()))
}

async fn send_image(
    mut writer: Writer,
    request: &FetchRequest,
    site: &Site,
    cloud: &Shared,
) -> Result<(), WireError> {
    let (story, is_refused) = {
        let mut cloud = lock(cloud);
        cloud.on_fetch(request, site);
        (cloud.story, cloud.strikes(10))
    };
    if is_refused {
        return Ok(());
    }
    let package = story.sent_package();
    let chunk_bytes = if story.image().bundle.is_some() { BUNDLE_CHUNK_BYTES } else { CHUNK_BYTES };
    let size = package.len() as u64;
    let end = request.end.unwrap_or(size).min(size);
    let part = request.offset > 0 || request.end.is_some();
    writer.send(&Fetched::Opened { validator: validator(size), part }, &[]).await?;
    let mut offset = request.offset.min(end);
    while offset < end {
        let (delay, breaks, stalls) = {
            let mut cloud = lock(cloud);
            cloud.turn_clock();
            (cloud.delay(Duration::from_secs(10)), cloud.strikes(5), cloud.is_stuck())
        };
        if breaks {
            return Ok(());
        }
        if stalls {
            while !lock(cloud).is_over() {
                sleep(ASK_AGAIN).await;
            }
            return Ok(());
        }
        sleep(Duration::from_secs(1) + delay).await;
        let next = (offset + chunk_bytes as u64).min(end);
        let bytes = &package[offset as usize..next as usize];
        writer.send(&Fetched::Chunk { joined_unproven: false }, bytes).await?;
        let mut cloud = lock(cloud);
        cloud.on_sent(offset..next);
        if story.act == Act::Restart && !cloud.is_acted && next > size / 3 {
            (cloud.is_acted, cloud.wants_restart) = (true, true);
            NEWS.notify_one();
        }
        offset = next;
    }
    writer.send(&Fetched::End, &[]).await?;
    writer.finish().await;
    // It hangs up when it has read everything.
    sleep(ASK_AGAIN).await;
    Ok(())
}

async fn send_signature(mut writer: Writer, signature: &[u8]) -> Result<(), WireError> {
    writer.send(&Fetched::Opened { validator: validator(signature.len() as u64), part: false }, &[]).await?;
    writer.send(&Fetched::Chunk { joined_unproven: false }, signature).await?;
    writer.send(&Fetched::End, &[]).await
}

fn validator(size: u64) -> Validator {
    let text = json!({ "etag": "\"1\"", "lastModified": null, "totalBytes": size });
    serde_json::from_value(text).expect("it is one")
}

/// The person at the device.
async fn attend(site: Arc<Site>, cloud: Shared) {
    loop {
        sleep(ASK_AGAIN).await;
        let (act, status, is_acted, is_trial) = {
            let cloud = lock(&cloud);
            (cloud.story.act, cloud.status().to_owned(), cloud.is_acted, judge::is_trial(&site))
        };
        let command = match act {
            Act::Commit if is_trial => json!({ "command": "commit" }),
            Act::RollBack if status == "completed" => json!({ "command": "rollBack" }),
            _ => continue,
        };
        let answer = ask_daemon(&site, &command).await;
        if !is_acted && answer.is_ok_and(|answer| answer["answer"] == "ok") {
            lock(&cloud).is_acted = true;
        }
    }
}

async fn ask_daemon(site: &Site, command: &Value) -> io::Result<Value> {
    let (read, mut write) = UnixStream::connect(site.control_socket()).await?.into_split();
    write.write_all(format!("{command}\n").as_bytes()).await?;
    let mut line = String::new();
    BufReader::new(read).read_line(&mut line).await?;
    Ok(serde_json::from_str(&line)?)
}
