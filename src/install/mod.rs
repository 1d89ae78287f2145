//! From an address to a verified slot.
//!
//! ```text
//! fetch --chunks--> verify --chunks--> unpack --blocks--> write --synced--> read back
//! async             thread             thread             thread            thread
//! Range, retries    SHA-256            decode             write, sync       compare
//! ```
//!
//! Every arrow is a bounded channel and every buffer is used again, so memory does not grow with the image.

mod bundled;
pub mod checkpoint;
pub mod decode;
pub mod fetch;
mod parts;
mod patience;
mod read_back;
mod relayed;
pub mod resume;
pub mod slot;
pub mod unpack;
pub mod validator;
pub mod verify;
pub mod write;

use std::path::PathBuf;
use std::sync::{Arc, mpsc as blocking};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use self::bundled::Refusal;
pub use self::bundled::{Device, Other, Past, ROOT_CLASS};
use self::checkpoint::Key;
use self::decode::DecodeError;
use self::fetch::{Clients, FetchError, Reach, Source, Wanted};
use self::resume::Start;
use self::slot::{Block, BlockDevice, SlotDevice, SlotError};
use self::verify::{Check, ImageCheck, Rule, SIGNATURE_LIMIT_BYTES, Trust, VerifyError};
use self::write::WriteError;
use crate::bundle::BundleError;
use crate::causes::one_line;
use crate::redact::display_url;
pub use crate::update::report::{Phase, Progress};
use crate::update::{Code, Failure, Image, Sha256Digest};

/// What is to be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    /// `https://`, `http://` or `file://`.
    pub uri: String,
    /// SHA-256 of the bytes at `uri`.
    pub check_value: Option<Sha256Digest>,
    /// Size in bytes of what is at `uri`.
    pub size_bytes: Option<u64>,
}

/// An install ends with the image in the slot, read back, or with the reason.
pub type Outcome = Result<Image, Failure>;

/// How often a file may change under our hands before it is given up.
const CHANGES: u32 = 3;

/// The network's chunks are handed on together from this size, a block's worth: waking three threads for each
/// packet costs more than looking at its bytes.
const BATCH_BYTES: usize = slot::BLOCK_BYTES;

/// Nor are more than so many handed on together, which is as many as a block has of 16 KiB: a server chooses how small
/// they are, and the smallest holds a buffer of some KiB.
const BATCH_PIECES: usize = 64;

/// Batches that wait for a stage: with the one that it works on, enough to keep both sides busy.
const BATCHES: usize = 1;

/// Blocks between decoder and writer: one is filled, one written, and one waits. More were not faster.
const BLOCKS: usize = 3;

/// Longer than the largest slots take to be looked through, which shows no progress.
const STUCK: Duration = Duration::from_secs(3600);

/// Limits in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Limits {
    /// How long a source that gives nothing, or hardly anything, is asked again; counts on the boot-time clock.
    pub retry: Duration,
    /// How long a connection may be silent before it is taken for dead.
    pub stall: Duration,
    /// Upper end of the first pause before a retry; each further one doubles it.
    pub first_pause: Duration,
    /// Upper end of any pause.
    pub longest_pause: Duration,
    /// Least time between two checkpoints: each costs a sync and a file.
    pub checkpoint: Duration,
}

impl Limits {
    /// The usual limits, with this one for unreachable servers.
    #[must_use]
    pub fn new(retry: Duration) -> Self {
        Self {
            retry,
            // Longer than a mobile network's hand-over, shorter than a NAT forgets us.
            stall: Duration::from_secs(45),
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(120),
            checkpoint: Duration::from_secs(5),
        }
    }
}

/// Everything that one install needs to know.
#[derive(Clone, Debug)]
pub struct Job {
    /// What.
    pub spec: ImageSpec,
    /// The version that it is said to bring.
    pub version: Option<String>,
    /// Where to: a block device, or a regular file of fixed length.
    pub target: PathBuf,
    /// The device of the slot that this system runs from; never written.
    pub running: Option<PathBuf>,
    /// What is installed with it, from a bundle.
    pub others: Vec<Other>,
    /// Where procfs is mounted.
    pub proc: PathBuf,
    /// Which bundles it takes.
    pub device: Device,
    /// What the image must come with.
    pub check: ImageCheck,
    /// Who may sign it.
    pub trust: Trust,
    /// PEM file of the roots to trust in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// Where the networked part listens; `None`: servers are asked from here.
    pub network: Option<PathBuf>,
    /// File to remember an interrupted install in.
    pub checkpoint: PathBuf,
    /// Limits in time.
    pub limits: Limits,
}

/// Why an install failed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The source.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The file beside a bundle, which can be done without.
    #[error(transparent)]
    Beside(FetchError),
    /// The compressed data.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Not the image that was meant.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// What is in a bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Not for this device.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Other bytes than were signed, also when asked for once more.
    #[error("the chunk at byte {offset} of the bundle has the SHA-256 {actual}, and must have {expected}")]
    Chunk {
        /// In the file.
        offset: u64,
        /// By the index.
        expected: Sha256Digest,
        /// Of what came.
        actual: Sha256Digest,
    },
    /// The slot cannot be used.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The slot was used, and failed.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Larger than the slot.
    #[error("the image does not fit: it has {} bytes, the slot {capacity_bytes}", match size_bytes {
        Some(size) => size.to_string(),
        None => "more".to_owned(),
    })]
    TooLarge {
        /// Where known.
        size_bytes: Option<u64>,
        /// Of the slot.
        capacity_bytes: u64,
    },
    /// Found out by the first bytes.
    #[error("the image is a bundle")]
    IsBundle,
    /// A medium that never answers; nothing can end the call that waits for it.
    #[error("nothing has moved for {}: a slot's medium does not answer", humantime::format_duration(*limit))]
    Stuck {
        /// How long.
        limit: Duration,
    },
    /// As the operator wished, or because the daemon stops.
    #[error("cancelled")]
    Cancelled,
    /// A stage ended because its neighbour did; the neighbour says why.
    #[error("the installer stopped unexpectedly")]
    Interrupted,
}

impl InstallError {
    /// The code for the twin.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Fetch(error) | Self::Beside(error) => error.code(),
            Self::Decode(error) => error.code(),
            Self::Verify(error) => error.code(),
            Self::Bundle(BundleError::Digest { .. } | BundleError::Unpack { .. }) | Self::Chunk { .. } => {
                Code::DigestMismatch
            }
            Self::Bundle(BundleError::NotASignature { .. }) => Code::SignatureInvalid,
            Self::Bundle(_) => Code::BundleInvalid,
            Self::Refused(refusal) => refusal.code(),
            Self::Slot(error) => error.code(),
            Self::Write(error) => error.code(),
            Self::TooLarge { .. } => Code::ImageTooLarge,
            Self::Cancelled => Code::Cancelled,
            Self::Stuck { .. } | Self::Interrupted | Self::IsBundle => Code::SlotFailed,
        }
    }

    /// Whether there seems to be no signature beside the image, by a [`Run::check`] that failed. A bundle brings its
    /// signatures itself, and the link to it grants access to nothing else.
    fn is_about_signature_file(&self) -> bool {
        let none =
            matches!(self, Self::Verify(VerifyError::NoSignature { .. } | VerifyError::NotASignature { .. }));
        none || self.code() == Code::ImageForbidden
    }

    /// Whether the same bytes may still come: from the same request later, or through a link signed anew.
    fn keeps_checkpoint(&self) -> bool {
        matches!(self.code(), Code::Cancelled | Code::ServerUnreachable | Code::ImageForbidden)
    }

    /// Whether bytes of an earlier attempt, which may be unreadable now, or of two answers joined, may be to blame.
    fn is_about_content(&self) -> bool {
        matches!(self.code(), Code::DigestMismatch | Code::SignatureInvalid | Code::DecodeFailed)
            || matches!(self, Self::Write(WriteError::Read { .. }))
    }
}

impl From<InstallError> for Failure {
    fn from(error: InstallError) -> Self {
        Self::new(error.code(), one_line(&error))
    }
}

/// Installs an image into `job.target`, and reads it back. Ends early once `cancel` is true.
///
/// Nothing is written before the target was found to be free and the image to be verifiable. After a failure the
/// target holds a part of the image, or none. Dropping the future is like a power cut, except that the threads
/// finish the block they are at. A medium may never let them: that is told as a failure like any other, and their claim
/// keeps others from the slot.
pub async fn install(
    job: &Job,
    progress: &watch::Sender<Progress>,
    cancel: watch::Receiver<bool>,
) -> Outcome {
    tokio::select! {
        outcome = open_and_install(job, progress, cancel) => outcome,
        () = stuck(progress.subscribe(), STUCK, job.limits.retry) => {
            Err(InstallError::Stuck { limit: STUCK }.into())
        }
    }
}

/// Ends once nothing has moved for `limit`, or at most twice as long; for a server that is waited for, which is given up
/// after `retry`, not before it was.
async fn stuck(progress: watch::Receiver<Progress>, limit: Duration, retry: Duration) {
    let (mut before, mut still) = (*progress.borrow(), Duration::ZERO);
    loop {
        tokio::time::sleep(limit).await;
        let now = *progress.borrow();
        still = if now == before { still.saturating_add(limit) } else { Duration::ZERO };
        if !still.is_zero() && (now.phase != Phase::Waiting || still > retry.saturating_add(limit)) {
            return;
        }
        before = now;
    }
}

async fn open_and_install(
    job: &Job,
    progress: &watch::Sender<Progress>,
    cancel: watch::Receiver<bool>,
) -> Outcome {
    let (target, running, proc) = (job.target.clone(), job.running.clone(), job.proc.clone());
    let open = move || BlockDevice::open(&target, running.as_deref(), &proc);
    let device: Arc<dyn SlotDevice> = match tokio::task::spawn_blocking(open).await {
        Ok(Ok(device)) => Arc::new(device),
        Ok(Err(error)) => return Err(InstallError::from(error).into()),
        Err(_) => return Err(InstallError::Interrupted.into()),
    };
    install_to(device, job, progress, cancel).await
}

/// As [`install`], to a device that is open already; `job.target` is not looked at.
pub async fn install_to(
    device: Arc<dyn SlotDevice>,
    job: &Job,
    progress: &watch::Sender<Progress>,
    cancel: watch::Receiver<bool>,
) -> Outcome {
    let run = Run { device, job, progress, cancel };
    let result = run.whole().await;
    if !result.as_ref().is_err_and(InstallError::keeps_checkpoint) {
        let path = job.checkpoint.clone();
        // One that stays behind does no harm.
        let _ = tokio::task::spawn_blocking(move || checkpoint::discard(&path)).await;
    }
    Ok(result?)
}

/// How an attempt at a plain image begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// Where the checkpoint says.
    Resumed,
    /// With the first byte.
    Anew,
    /// With the first byte, for the last time, from servers that do not agree which version it is: the check tells in the
    /// end.
    OfAnyVersion,
}

/// The threads of an attempt, and what feeds them.
struct Stages {
    chunks: mpsc::Sender<Feed>,
    verifying: JoinHandle<Result<(), InstallError>>,
    unpacking: JoinHandle<Result<(), InstallError>>,
    writing: JoinHandle<Result<Image, InstallError>>,
    /// Told once one of them has failed.
    failed: Arc<Notify>,
}

struct Run<'a> {
    device: Arc<dyn SlotDevice>,
    job: &'a Job,
    progress: &'a watch::Sender<Progress>,
    cancel: watch::Receiver<bool>,
}

impl Run<'_> {
    async fn whole(&self) -> Result<Image, InstallError> {
        let reach = match &self.job.network {
            Some(socket) => Reach::Relayed(socket.clone()),
            None => Reach::Direct(Arc::new(Clients::new(self.job.ca_file.clone())?)),
        };
        if is_named_as_bundle(&self.job.spec.uri)
            && let Some(image) = self.whole_bundle(&reach).await?
        {
            return Ok(image);
        }
        let check = match self.or_cancelled(self.check(&reach)).await {
            Err(error) if error.is_about_signature_file() => {
                let is_bundle = self.or_cancelled(self.is_bundle(&reach)).await?;
                let image = if is_bundle { self.whole_bundle(&reach).await? } else { None };
                return image.ok_or(error);
            }
            check => Arc::new(check?),
        };
        let (mut begin, mut changes, mut second_chance) = (Begin::Resumed, 0, true);
        loop {
            let mut suspect = false;
            match self.attempt(&reach, &check, begin, &mut suspect).await {
                Err(InstallError::IsBundle) => {
                    return self.whole_bundle(&reach).await?.ok_or(InstallError::IsBundle);
                }
                Err(error) if error.code() == Code::ImageChanged && changes < CHANGES => changes += 1,
                Err(error) if suspect && second_chance && error.is_about_content() => {
                    tracing::warn!(reason = %one_line(&error), "resumed install failed: starting over");
                    second_chance = false;
                }
                result => return result,
            }
            begin = if changes < CHANGES { Begin::Anew } else { Begin::OfAnyVersion };
        }
    }

    /// As often as another file comes to its address meanwhile, or to the one beside it; in the end without that, and
    /// from servers that do not agree which version it is: each chunk is hashed. `None`: it is no bundle.
    async fn whole_bundle(&self, reach: &Reach) -> Result<Option<Image>, InstallError> {
        for _ in 0..CHANGES {
            match self.bundle(reach, false).await {
                Err(InstallError::Beside(error)) => {
                    tracing::warn!(reason = %one_line(&error), "the file beside the bundle is of no use any more");
                }
                Err(error) if error.code() == Code::ImageChanged => {}
                result => return result,
            }
        }
        self.bundle(reach, true).await
    }

    /// Reads the keys where it needs them.
    async fn rule(&self) -> Result<Rule, InstallError> {
        let (check_value, trust, check) = (self.job.spec.check_value, self.job.trust.clone(), self.job.check);
        let decide = move || Rule::decide(check_value, &trust, check);
        Ok(tokio::task::spawn_blocking(decide).await.map_err(|_| InstallError::Interrupted)??)
    }

    /// What the image must satisfy, with the signature fetched where one is needed.
    async fn check(&self, reach: &Reach) -> Result<Check, InstallError> {
        let job = self.job;
        let keys = match self.rule().await? {
            Rule::Digest(digest) => return Ok(Check::Digest(digest)),
            Rule::Unchecked => return Ok(Check::Unchecked),
            Rule::SignedBy(keys) => keys,
        };
        let uri = signature_uri(&job.spec.uri);
        let shown = display_url(&uri);
        let progress = self.progress.clone();
        let opened = Source::open(&uri, None, Wanted::default(), reach, job.limits, progress).await;
        let mut source = match opened {
            Err(error) if error.code() == Code::ImageNotFound => {
                let needed = job.check == ImageCheck::Signature;
                return Err(VerifyError::NoSignature { url: shown, needed }.into());
            }
            opened => opened?,
        };
        let mut text = Vec::new();
        while let Some(bytes) = source.next().await? {
            text.extend_from_slice(&bytes);
            if text.len() > SIGNATURE_LIMIT_BYTES {
                return Err(VerifyError::NotASignature { url: shown }.into());
            }
        }
        let check = Check::by_signature(&text, keys, job.spec.check_value, (&shown, &job.trust))?;
        check.admits_version(job.version.as_deref())?;
        Ok(check)
    }

    /// One pass over the source. `suspect` tells whether it was joined from parts that nothing but the
    /// check proves to belong together.
    async fn attempt(
        &self,
        reach: &Reach,
        check: &Arc<Check>,
        begin: Begin,
        suspect: &mut bool,
    ) -> Result<Image, InstallError> {
        let start = match begin {
            Begin::Resumed => self.resume_point(check).await?,
            Begin::Anew | Begin::OfAnyVersion => Start::default(),
        };
        *suspect = start.source_offset > 0;
        self.progress.send_replace(Progress {
            bytes: start.source_offset,
            saved_bytes: start.source_offset,
            kept_bytes: start.image_offset,
            total_bytes: self.job.spec.size_bytes,
            ..Progress::default()
        });
        let (validator, any_version) = (start.validator.clone(), begin == Begin::OfAnyVersion);
        let wanted = Wanted { offset: start.source_offset, end: None, validator, any_version };
        let (uri, size) = (&self.job.spec.uri, self.job.spec.size_bytes);
        let open = Source::open(uri, size, wanted, reach, self.job.limits, self.progress.clone());
        let mut source = self.or_cancelled(async { Ok(open.await?) }).await?;
        let stages = self.spawn_stages(start, &source, check);
        let is_checked = !matches!(check.as_ref(), Check::Unchecked);
        let pumping = pump(&mut source, is_checked, stages.chunks, self.progress);
        let fetched = self.feed(pumping, &stages.failed).await;
        *suspect |= source.joined_unproven();
        // The stage nearest to the medium knows best; one that was cut off by its neighbour knows nothing.
        let written = joined(stages.writing).await;
        let unpacked = joined(stages.unpacking).await;
        let verified = joined(stages.verifying).await;
        if matches!(unpacked, Err(InstallError::IsBundle)) {
            // The check is for another reader; of a short bundle it has seen everything by now, and complains.
            return Err(InstallError::IsBundle);
        }
        let first = [verified.err(), unpacked.err(), fetched.err()];
        match written {
            Err(InstallError::Interrupted) => {
                let told = first.into_iter().flatten().find(|e| !matches!(e, InstallError::Interrupted));
                Err(told.unwrap_or(InstallError::Interrupted))
            }
            written => written,
        }
    }

    /// Where the checkpoint says, if the slot's content proves it.
    async fn resume_point(&self, check: &Arc<Check>) -> Result<Start, InstallError> {
        let (device, check, cancel) = (self.device.clone(), check.clone(), self.cancel.clone());
        let (path, key) = (self.job.checkpoint.clone(), Key::of(&self.job.spec));
        let prove = move || Start::from_checkpoint(&path, &key, device.as_ref(), &check, &cancel);
        tokio::task::spawn_blocking(prove).await.map_err(|_| InstallError::Interrupted)?
    }

    fn spawn_stages(&self, start: Start, source: &Source, check: &Arc<Check>) -> Stages {
        let (chunk_sender, mut chunks) = mpsc::channel(BATCHES);
        let (seen_sender, seen) = blocking::sync_channel(BATCHES);
        let (filled_sender, filled) = blocking::sync_channel(BLOCKS);
        let (empty_sender, empty) = blocking::sync_channel(BLOCKS);
        for _ in 0..BLOCKS {
            // Cannot fail: there is room, and the receiver is at hand.
            let _ = empty_sender.try_send(Block::new());
        }
        let resumed = (start.source_sha256.clone(), start.image_offset);
        let (checked, device, cancel) = (check.clone(), self.device.clone(), self.cancel.clone());
        let verifying = tokio::task::spawn_blocking(move || {
            verify::run(&checked, resumed, (device.as_ref(), &cancel), &mut chunks, &seen_sender)
        });
        let failed = Arc::new(Notify::new());
        let writer = write::Writer {
            device: self.device.clone(),
            checkpoint: Some(write::Checkpoints {
                path: self.job.checkpoint.clone(),
                key: Key::of(&self.job.spec),
                validator: source.validator(),
                every: self.job.limits.checkpoint,
            }),
            progress: self.progress.clone(),
            cancel: self.cancel.clone(),
            is_last: true,
            failed: failed.clone(),
        };
        let so_far = start.so_far();
        let writing = tokio::task::spawn_blocking(move || writer.run(so_far, &filled, &empty_sender));
        let room = unpack::Room {
            capacity_bytes: self.device.capacity_bytes(),
            source_bytes: source.total_bytes(),
            // A signature must see all of the source again, and the slot holds only what was made of it.
            may_mark_packed: !matches!(check.as_ref(), Check::Signature(_)),
        };
        let unpacking =
            tokio::task::spawn_blocking(move || unpack::run(start, room, &seen, &empty, &filled_sender));
        Stages { chunks: chunk_sender, verifying, unpacking, writing, failed }
    }

    /// Feeds the stages, as long as they want it: whichever fails ends the writer, and it says so by `failed`.
    async fn feed(
        &self,
        feeding: impl Future<Output = Result<(), InstallError>>,
        failed: &Notify,
    ) -> Result<(), InstallError> {
        // Once, and not in each future around it.
        let feeding = Box::pin(feeding);
        let wanted = async {
            tokio::select! {
                biased;
                fed = feeding => fed,
                () = failed.notified() => Err(InstallError::Interrupted),
            }
        };
        let fed = self.or_cancelled(wanted).await;
        // From now on only the slots are waited for.
        self.progress.send_if_modified(stop_waiting);
        fed
    }

    /// `work`, unless cancelled before it is done.
    async fn or_cancelled<T>(
        &self,
        work: impl Future<Output = Result<T, InstallError>>,
    ) -> Result<T, InstallError> {
        let mut cancel = self.cancel.clone();
        let cancelled = async move {
            if cancel.wait_for(|cancelled| *cancelled).await.is_err() {
                // Nobody is left who could cancel.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            () = cancelled => Err(InstallError::Cancelled),
            result = work => result,
        }
    }
}

/// What the network side hands on.
#[derive(Debug)]
pub enum Feed {
    /// The next bytes of the source.
    Chunks(Vec<Bytes>),
    /// All bytes were handed on. A channel that closes without it was cut off.
    End,
}

/// Where nothing `is_checked` at the end, parts of two files would be taken for one.
async fn pump(
    source: &mut Source,
    is_checked: bool,
    chunks: mpsc::Sender<Feed>,
    progress: &watch::Sender<Progress>,
) -> Result<(), InstallError> {
    let (mut batch, mut batch_bytes) = (Vec::new(), 0);
    while let Some(bytes) = source.next().await? {
        if source.joined_unproven() && !is_checked {
            return Err(source.unproven().into());
        }
        let (offset, total) = (source.offset(), source.total_bytes());
        progress.send_modify(|p| {
            *p = Progress {
                bytes: offset,
                total_bytes: total,
                fetched_bytes: p.fetched_bytes + bytes.len() as u64,
                ..*p
            };
        });
        batch_bytes += bytes.len();
        batch.push(bytes);
        if batch_bytes >= BATCH_BYTES || batch.len() >= BATCH_PIECES {
            batch_bytes = 0;
            let full = Feed::Chunks(std::mem::take(&mut batch));
            chunks.send(full).await.map_err(|_| InstallError::Interrupted)?;
        }
    }
    chunks.send(Feed::Chunks(batch)).await.map_err(|_| InstallError::Interrupted)?;
    chunks.send(Feed::End).await.map_err(|_| InstallError::Interrupted)
}

/// Gives whether that is news.
fn stop_waiting(progress: &mut Progress) -> bool {
    let waited = progress.phase == Phase::Waiting;
    if waited {
        progress.phase = Phase::Downloading;
    }
    waited
}

async fn joined<T>(stage: JoinHandle<Result<T, InstallError>>) -> Result<T, InstallError> {
    stage.await.unwrap_or(Err(InstallError::Interrupted))
}

/// Then it is asked for in parts from the first byte on. Whether it is one, its first bytes tell.
fn is_named_as_bundle(uri: &str) -> bool {
    uri.split(['?', '#']).next().is_some_and(|path| path.ends_with(".twb"))
}

/// `.minisig` goes behind the path, before the query that may grant access.
fn signature_uri(uri: &str) -> String {
    let end = uri.find(['?', '#']).unwrap_or(uri.len());
    let (path, query) = uri.split_at(end);
    format!("{path}.minisig{query}")
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn however_small_the_pieces_of_a_server_are_few_are_handed_on_together() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/image", listener.local_addr().unwrap());
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                stream.read_buf(&mut request).await.unwrap();
            }
            let body = "1\r\nx\r\n".repeat(1000);
            let answer = format!("HTTP/1.1 200 x\r\ntransfer-encoding: chunked\r\n\r\n{body}0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        };
        let (chunks, mut fed) = mpsc::channel(BATCHES);
        let feed = async {
            let reach = Reach::Direct(Arc::new(Clients::new(None).unwrap()));
            let (limits, progress) =
                (Limits::new(Duration::from_secs(20)), watch::Sender::new(Progress::default()));
            let open = Source::open(&uri, None, Wanted::default(), &reach, limits, progress.clone());
            pump(&mut open.await.unwrap(), true, chunks, &progress).await.unwrap();
        };
        let taken = async {
            let mut pieces = 0;
            while let Some(Feed::Chunks(batch)) = fed.recv().await {
                assert!(batch.len() <= BATCH_PIECES, "{}", batch.len());
                pieces += batch.len();
            }
            pieces
        };
        let ((), (), pieces) = tokio::join!(serve, feed, taken);
        assert_eq!(pieces, 1000);
    }

    #[tokio::test]
    async fn who_waits_for_a_server_is_stuck_once_that_was_to_be_given_up() {
        let (limit, retry) = (Duration::from_millis(10), Duration::from_millis(40));
        for (phase, least) in [(Phase::Downloading, limit), (Phase::Waiting, retry)] {
            let progress = watch::Sender::new(Progress { phase, ..Progress::default() });
            let began = tokio::time::Instant::now();
            tokio::time::timeout(STUCK, stuck(progress.subscribe(), limit, retry)).await.unwrap();
            assert!(began.elapsed() > least, "{phase:?}");
        }
    }

    #[test]
    fn a_signature_lies_beside_its_image() {
        assert_eq!(signature_uri("https://h/a.img"), "https://h/a.img.minisig");
        assert_eq!(signature_uri("https://h/a.img?sig=1/2"), "https://h/a.img.minisig?sig=1/2");
    }

    #[test]
    fn an_error_is_one_line_with_its_causes() {
        let source = std::io::Error::other("bad\ncable");
        let error = InstallError::from(FetchError::File { path: "/x".into(), source });
        assert_eq!(one_line(&error), "cannot read /x: bad cable");
    }
}
