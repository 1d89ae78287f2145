//! The bytes at an address, all or a part of them, in order, whatever the server does in between.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use nix::fcntl::OFlag;
use nix::time::{ClockId, clock_gettime};
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_RANGE, HeaderMap, HeaderValue, IF_RANGE, LOCATION, RANGE, RETRY_AFTER,
    TRANSFER_ENCODING,
};
use reqwest::{Client, Response, StatusCode, redirect};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use url::Url;

use super::patience::Patience;
use super::relayed::Relayed;
use super::validator::Validator;
use super::{Limits, Phase, Progress};
use crate::causes::one_line;
use crate::network::wire::WireError;
use crate::redact::display_url;
use crate::tls::{self, Roots, TlsError};
use crate::update::Code;

/// More hops than any file host needs.
const REDIRECTS: usize = 8;

/// A `Retry-After` beyond this is a server that does not know; it is asked again earlier.
const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(600);

/// What one read of a file takes; the network's chunks are of the same order.
const FILE_CHUNK_BYTES: usize = 256 * 1024;

/// Why there are no (more) bytes.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not an address, or of a kind that is not fetched.
    #[error("cannot fetch {url}: give an https, http or file address")]
    Address {
        /// Without secrets.
        url: String,
    },
    /// The client cannot be set up.
    #[error("cannot set up downloads")]
    Client {
        /// The library's words.
        source: reqwest::Error,
    },
    /// The roots to trust cannot be read.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The runtime is shutting down.
    #[error("the download was stopped")]
    Stopped,
    /// A local file.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// 404, 410.
    #[error("{url}: the server has no such file ({status})")]
    NotFound {
        /// Without secrets.
        url: String,
        /// The answer.
        status: StatusCode,
    },
    /// 401, 403.
    #[error("{url}: the server does not give it to this device ({status}): the link may have expired")]
    Forbidden {
        /// Without secrets.
        url: String,
        /// The answer.
        status: StatusCode,
    },
    /// Any other final answer.
    #[error("{url}: the server answered {status}")]
    Refused {
        /// Without secrets.
        url: String,
        /// The answer.
        status: StatusCode,
    },
    /// A redirect that is not followed.
    #[error("{url}: cannot follow the redirect: {why}")]
    Redirect {
        /// Without secrets.
        url: String,
        /// Too many, or to plain HTTP.
        why: &'static str,
    },
    /// Nothing came for as long as is waited.
    #[error("{url}: no byte for {}", humantime::format_duration(*limit))]
    Unreachable {
        /// Without secrets.
        url: String,
        /// The retry limit.
        limit: Duration,
        /// The last try.
        source: Box<Setback>,
    },
    /// Hardly anything came.
    #[error("{url}: only {bytes} bytes came in {}", humantime::format_duration(*limit))]
    Trickle {
        /// Without secrets.
        url: String,
        /// So many.
        bytes: u64,
        /// The retry limit.
        limit: Duration,
        /// The last try, if one failed.
        source: Option<Box<Setback>>,
    },
    /// Another file is at the address now.
    #[error("{url}: the file changed while it was fetched")]
    Changed {
        /// Without secrets.
        url: String,
    },
    /// Perhaps another file is at the address now.
    #[error(
        "{url}: the connection broke, and nothing proves that the rest is of the same file: give fwPackageCheckValue, or \
         let the server send a strong ETag"
    )]
    Unproven {
        /// Without secrets.
        url: String,
    },
    /// More or fewer bytes than announced.
    #[error("{url}: {announced} bytes were announced, and there are {actual}")]
    Size {
        /// Without secrets.
        url: String,
        /// By the request or by the server.
        announced: u64,
        /// By the server, or counted.
        actual: u64,
    },
    /// The networked part's own words.
    #[error("{message}")]
    Relayed {
        /// One of those above.
        code: Code,
        /// For a person.
        message: String,
    },
}

impl FetchError {
    /// The code for the twin.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::ImageNotFound,
            Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound => Code::ImageNotFound,
            Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Code::ImageForbidden
            }
            Self::Forbidden { .. } => Code::ImageForbidden,
            Self::Unreachable { .. } | Self::Trickle { .. } => Code::ServerUnreachable,
            Self::Changed { .. } | Self::Unproven { .. } => Code::ImageChanged,
            Self::Size { .. } => Code::SizeMismatch,
            Self::Relayed { code, .. } => *code,
            Self::Address { .. }
            | Self::Client { .. }
            | Self::Stopped
            | Self::Tls(_)
            | Self::File { .. }
            | Self::Refused { .. }
            | Self::Redirect { .. } => Code::ServerRefused,
        }
    }
}

/// Something that may be better next time.
#[derive(Debug, thiserror::Error)]
pub enum Setback {
    /// Connecting, sending or receiving failed.
    #[error("the connection failed")]
    Connection {
        /// The library's words.
        source: reqwest::Error,
    },
    /// It may be renewed, and this device's clock be set right.
    #[error("{why}")]
    Expired {
        /// For a person.
        why: String,
    },
    /// They may just be being renewed.
    #[error("the roots to trust cannot be read")]
    Roots {
        /// Why.
        source: TlsError,
    },
    /// 408, 429, 5xx.
    #[error("the server answered {status}")]
    Status {
        /// The answer.
        status: StatusCode,
        /// What it asks to wait.
        after: Option<Duration>,
    },
    /// Connected, and silent.
    #[error("the server was silent for {}", humantime::format_duration(*limit))]
    Stalled {
        /// The stall limit.
        limit: Duration,
    },
    /// No new byte came for as long as is waited.
    #[error("the server sends everything again, and slowly")]
    SentAgain,
    /// A range was answered by another one.
    #[error("the server sent another range than it was asked for")]
    WrongRange,
    /// Without a length, the end of an answer looks like one that was cut off.
    #[error("the connection was closed before the announced end")]
    Closed,
    /// There is no networked part, it ended, or it does not speak our language.
    #[error("the networked part of twinboot is away")]
    NetworkPart {
        /// Why.
        source: WireError,
    },
}

/// A step ends with a result, with a setback, or for good.
pub(super) enum Interruption {
    Again(Setback),
    Stop(FetchError),
}

impl From<FetchError> for Interruption {
    fn from(error: FetchError) -> Self {
        Self::Stop(error)
    }
}

/// Which bytes: by default all.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The first; those before it were taken already, or are not needed.
    pub offset: u64,
    /// Where to stop; `None`: at the end of the file. A server that does not give parts gives everything from the
    /// start on: that is taken as it is.
    pub end: Option<u64>,
    /// The version of the file.
    pub validator: Option<Validator>,
    /// Any version of one size is taken for the same file: replicas of a server need not call it the same.
    pub any_version: bool,
}

/// A source that gives each byte once.
#[derive(Debug)]
pub struct Source {
    way: Way,
    /// For messages: without secrets.
    shown: String,
    /// Of the next byte in the file.
    offset: u64,
    /// Where to stop before the end of the file.
    end: Option<u64>,
    /// What the request announced.
    expected: Option<u64>,
    validator: Option<Validator>,
    any_version: bool,
    /// Bytes of two answers were joined without an entity tag to prove that they belong together.
    joined_unproven: bool,
    limits: Limits,
    progress: watch::Sender<Progress>,
    /// Setbacks since the last byte.
    setbacks: u32,
    /// For messages.
    last_setback: Option<Setback>,
    patience: Patience,
}

#[derive(Debug)]
enum Way {
    File { path: PathBuf, file: tokio::fs::File },
    Http(Box<Http>),
    Relayed(Relayed),
}

impl Way {
    /// Whether a server must be asked before the next byte can come.
    fn is_closed(&self) -> bool {
        match self {
            Self::File { .. } => false,
            Self::Http(http) => http.body.is_none(),
            Self::Relayed(relayed) => relayed.is_closed(),
        }
    }
}

#[derive(Debug)]
struct Http {
    clients: Arc<Clients>,
    url: Url,
    body: Option<Response>,
    /// Bytes of the present answer that were taken before.
    skip: u64,
    /// Where it ends, if it is a part.
    part_end: Option<u64>,
    /// Whether its connection's end is all that ends it.
    unframed: bool,
    /// Whether it brought bytes that were not taken before.
    news: bool,
    /// Cleared by a server that answers ranges wrongly.
    ranges: bool,
}

impl Source {
    /// Opens `uri` and waits for the first answer, so that what the server says about the file is known.
    ///
    /// `expected` is the announced size in bytes.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn open(
        uri: &str,
        expected: Option<u64>,
        wanted: Wanted,
        reach: &Reach,
        limits: Limits,
        progress: watch::Sender<Progress>,
    ) -> Result<Self, FetchError> {
        let shown = display_url(uri);
        let url = Url::parse(uri).map_err(|_| FetchError::Address { url: shown.clone() })?;
        let way = match (url.scheme(), reach) {
            ("file", _) => open_file(&url, &shown, wanted.offset).await?,
            ("http" | "https", Reach::Relayed(socket)) => Way::Relayed(Relayed::new(socket, uri)),
            ("http" | "https", Reach::Direct(clients)) => Way::Http(Box::new(Http {
                clients: clients.clone(),
                url,
                body: None,
                skip: 0,
                part_end: None,
                unframed: false,
                news: false,
                ranges: true,
            })),
            _ => return Err(FetchError::Address { url: shown }),
        };
        let joined_unproven =
            wanted.offset > 0 && !wanted.validator.as_ref().is_some_and(Validator::is_strong);
        let mut source = Self {
            way,
            shown,
            offset: wanted.offset,
            end: wanted.end,
            expected,
            validator: wanted.validator,
            any_version: wanted.any_version,
            joined_unproven,
            limits,
            progress,
            setbacks: 0,
            last_setback: None,
            patience: Patience::new(limits),
        };
        source.first_answer().await?;
        Ok(source)
    }

    /// What the server said about the file.
    #[must_use]
    pub fn validator(&self) -> Validator {
        self.validator.clone().unwrap_or_default()
    }

    /// Size of the whole in bytes, where the request or the server told.
    #[must_use]
    pub fn total_bytes(&self) -> Option<u64> {
        self.validator.as_ref().and_then(Validator::total_bytes).or(self.expected)
    }

    /// Of the next byte in the file.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether it stops before the end of the file; it does not where a part was asked for, and everything came.
    #[must_use]
    pub fn is_part(&self) -> bool {
        self.end.is_some()
    }

    /// Whether bytes of two answers were joined although nothing proves that they belong together.
    #[must_use]
    pub fn joined_unproven(&self) -> bool {
        self.joined_unproven
    }

    /// What to say where nobody else can prove it.
    pub(super) fn unproven(&self) -> FetchError {
        FetchError::Unproven { url: self.shown.clone() }
    }

    /// The next bytes; `None` at the end. Dropped connections, silence and passing errors are waited out.
    ///
    /// # Errors
    /// [`FetchError`]; after one the source is of no more use.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        self.patience.resume();
        loop {
            let step = if self.is_complete() { Ok(None) } else { self.step().await };
            match step {
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                Ok(None) if self.is_more_to_ask_for() => self.hang_up(),
                Ok(None) if self.may_be_cut_off() => self.pause(Setback::Closed).await?,
                Ok(None) => return self.end().map(|()| None),
                Err(Interruption::Stop(error)) => return Err(error),
                Err(Interruption::Again(setback)) => self.pause(setback).await?,
            }
        }
    }

    /// After a resume there may be nothing left to ask for. (What follows the end of a fresh answer is seen
    /// by reading on.)
    fn is_complete(&self) -> bool {
        self.way.is_closed() && self.offset > 0 && self.last() == Some(self.offset)
    }

    /// A server may give less of a range than it was asked for (RFC 9110, 15.3.7), though not nothing.
    fn is_more_to_ask_for(&self) -> bool {
        let came = matches!(&self.way, Way::Http(http) if http.part_end == Some(self.offset));
        came && self.last().is_some_and(|last| self.offset < last)
    }

    /// Whether an answer that does not say its length ended before the bytes do. Where two answers have ended, the file
    /// does.
    fn may_be_cut_off(&self) -> bool {
        let may_be = matches!(&self.way, Way::Http(http) if http.unframed && http.news);
        may_be && self.last().is_some_and(|last| self.offset < last)
    }

    /// Where the bytes end, as far as that is known.
    fn last(&self) -> Option<u64> {
        self.end.or_else(|| self.total_bytes())
    }

    async fn first_answer(&mut self) -> Result<(), FetchError> {
        while !self.is_complete() && self.way.is_closed() {
            match self.connect().await {
                Ok(()) => {}
                Err(Interruption::Stop(error)) => return Err(error),
                Err(Interruption::Again(setback)) => self.pause(setback).await?,
            }
        }
        if let Way::File { path, file } = &self.way {
            let metadata = file.metadata().await;
            let length = metadata.map_err(|source| FetchError::File { path: path.clone(), source })?.len();
            self.admit(Validator::of_size(length))?;
            self.settle_end(true);
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<Option<Bytes>, Interruption> {
        while self.way.is_closed() {
            self.connect().await?;
        }
        let mut bytes = self.take().await?;
        if let Some(end) = self.end {
            // More may come than was asked for.
            bytes.truncate(usize::try_from(end.saturating_sub(self.offset)).unwrap_or(usize::MAX));
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        if let Way::Relayed(relayed) = &self.way {
            self.joined_unproven |= relayed.joined_unproven();
        }
        // Bytes that are sent again are no progress: a server that always breaks off early must be given up one
        // day.
        if !self.patience.suffices(bytes.len()) {
            return Err(self.trickle().into());
        }
        self.setbacks = 0;
        self.offset += bytes.len() as u64;
        if let Some(announced) = self.total_bytes()
            && self.offset > announced
        {
            return Err(self.size_error(announced, self.offset).into());
        }
        self.progress
            .send_if_modified(|p| std::mem::replace(&mut p.phase, Phase::Downloading) != Phase::Downloading);
        Ok(Some(bytes))
    }

    /// The next bytes that were not taken before; none at the end.
    async fn take(&mut self) -> Result<Bytes, Interruption> {
        match &mut self.way {
            Way::File { path, file } => {
                let mut buffer = BytesMut::with_capacity(FILE_CHUNK_BYTES);
                let read = file.read_buf(&mut buffer).await;
                read.map_err(|source| FetchError::File { path: path.clone(), source })?;
                Ok(buffer.freeze())
            }
            Way::Http(http) => loop {
                match http.chunk(self.limits.stall).await? {
                    Some((_, bytes)) if !bytes.is_empty() => return Ok(bytes),
                    Some((again, _)) => self.progress.send_modify(|p| p.fetched_bytes += again),
                    None if http.skip > 0 && http.unframed => {
                        return Err(Interruption::Again(Setback::Closed));
                    }
                    None if http.skip > 0 => {
                        return Err(FetchError::Changed { url: self.shown.clone() }.into());
                    }
                    None => return Ok(Bytes::new()),
                }
                if self.patience.left().is_zero() {
                    return Err(Interruption::Again(Setback::SentAgain));
                }
            },
            Way::Relayed(relayed) => {
                let patience = self.patience.left_for_networked_part();
                Ok(relayed.chunk(patience, &self.progress).await?.unwrap_or_default())
            }
        }
    }

    /// The answer ended as its framing said.
    fn end(&self) -> Result<(), FetchError> {
        match self.last() {
            Some(announced) if announced != self.offset => Err(self.size_error(announced, self.offset)),
            _ => Ok(()),
        }
    }

    fn trickle(&mut self) -> FetchError {
        self.patience.trickle(self.shown.clone(), self.last_setback.take().map(Box::new))
    }

    fn size_error(&self, announced: u64, actual: u64) -> FetchError {
        FetchError::Size { url: self.shown.clone(), announced, actual }
    }

    /// Asks for what is missing, and judges the answer by its head. Without an answer to read, ask again.
    async fn connect(&mut self) -> Result<(), Interruption> {
        let wanted = self.wanted();
        if let Way::Relayed(relayed) = &mut self.way {
            let patience = self.patience.left_for_networked_part();
            let request = relayed.request(self.expected, wanted, self.limits);
            let (seen, part) = relayed.open(&request, patience, &self.progress).await?;
            self.admit(seen)?;
            self.settle_end(part);
            return Ok(());
        }
        let Way::Http(http) = &self.way else { return Ok(()) };
        let wants_range = (self.offset > 0 || self.end.is_some()) && http.ranges;
        let answer = self.ask(http, wants_range).await?;
        let Way::Http(http) = &mut self.way else { return Ok(()) };
        let unframed = answer.content_length().is_none() && !answer.headers().contains_key(TRANSFER_ENCODING);
        let (total, part_end) = match answer.status() {
            StatusCode::OK => (answer.content_length(), None),
            StatusCode::PARTIAL_CONTENT if wants_range => match content_range(answer.headers()) {
                Some((part, total)) if part.start == self.offset => (total, Some(part.end)),
                _ => {
                    http.ranges = false;
                    return Err(Interruption::Again(Setback::WrongRange));
                }
            },
            status => return Err(self.refused(status, answer.headers())),
        };
        self.admit(Validator::of(answer.headers(), total))?;
        self.settle_end(part_end.is_some());
        if let Way::Http(http) = &mut self.way {
            http.skip = if part_end.is_some() { 0 } else { self.offset };
            http.part_end = part_end;
            http.unframed = unframed;
            http.news = false;
            http.body = Some(answer);
        }
        Ok(())
    }

    /// The answer at the end of all redirects. They are followed here: the library hands the password of an address on to
    /// who leads to himself.
    async fn ask(&self, http: &Http, wants_range: bool) -> Result<Response, Interruption> {
        let headers = self.headers(wants_range);
        let mut url = http.url.clone();
        for _ in 0..=REDIRECTS {
            let client = match url.scheme() {
                "https" => http.clients.secure().await.map_err(|error| self.without_roots(error))?,
                _ => http.clients.plain.clone(),
            };
            let request = client.get(url.clone()).headers(headers.clone());
            let answer = match timeout(self.limits.stall, request.send()).await {
                Err(_) => return Err(Interruption::Again(Setback::Stalled { limit: self.limits.stall })),
                Ok(Err(error)) => return Err(self.failed(error)),
                Ok(Ok(answer)) => answer,
            };
            match leads_to(&answer, &url, &http.url) {
                Ok(None) => return Ok(answer),
                Ok(Some(next)) => url = next,
                Err(why) => return Err(FetchError::Redirect { url: self.shown.clone(), why }.into()),
            }
        }
        Err(FetchError::Redirect { url: self.shown.clone(), why: "there are too many" }.into())
    }

    /// At first, roots that cannot be read are a fault; those that could be are read again after each setback.
    fn without_roots(&self, error: FetchError) -> Interruption {
        match error {
            FetchError::Tls(source) if self.last_setback.is_some() => {
                Interruption::Again(Setback::Roots { source })
            }
            error => error.into(),
        }
    }

    fn headers(&self, wants_range: bool) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if wants_range {
            let last = self.end.map(|end| end.saturating_sub(1).to_string()).unwrap_or_default();
            let range = HeaderValue::try_from(format!("bytes={}-{last}", self.offset));
            headers.extend(range.map(|range| (RANGE, range)));
        }
        // Of a part the answer tells as well that it is of another version, and some servers give no parts on a condition.
        let condition = self.validator.as_ref().and_then(Validator::condition);
        if let Some(condition) = condition.filter(|_| wants_range && self.end.is_none()) {
            headers.extend(HeaderValue::try_from(condition).map(|condition| (IF_RANGE, condition)));
        }
        headers
    }

    /// Takes what an answer says about the file: it must be the file of before, and of the announced size.
    fn admit(&mut self, seen: Validator) -> Result<(), FetchError> {
        if let (Some(announced), Some(actual)) = (self.expected, seen.total_bytes())
            && announced != actual
        {
            return Err(self.size_error(announced, actual));
        }
        match &self.validator {
            // Also before the first byte: somebody may have been told already which version this is.
            Some(known) => {
                if !known.admits(&seen) {
                    return Err(FetchError::Changed { url: self.shown.clone() });
                }
                self.joined_unproven |= self.offset > 0 && !(known.is_strong() && seen.is_strong());
            }
            None if self.any_version => self.validator = Some(seen.of_any_version()),
            None => self.validator = Some(seen),
        }
        Ok(())
    }

    /// Knows where to stop once a server has answered, with a part or with everything.
    fn settle_end(&mut self, part: bool) {
        self.end = match (self.end, self.total_bytes()) {
            _ if !part && self.offset == 0 => None,
            (Some(end), Some(total)) => Some(end.min(total)),
            (end, _) => end,
        };
    }

    fn wanted(&self) -> Wanted {
        let (validator, any_version) = (self.validator.clone(), self.any_version);
        Wanted { offset: self.offset, end: self.end, validator, any_version }
    }

    fn failed(&self, error: reqwest::Error) -> Interruption {
        // The library's text would hold the address with its query.
        let source = error.without_url();
        if source.is_builder() {
            return FetchError::Address { url: self.shown.clone() }.into();
        }
        if let Some(why) = tls::expired(&source) {
            return Interruption::Again(Setback::Expired { why });
        }
        Interruption::Again(Setback::Connection { source })
    }

    fn refused(&self, status: StatusCode, headers: &HeaderMap) -> Interruption {
        let url = self.shown.clone();
        match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => FetchError::NotFound { url, status }.into(),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => FetchError::Forbidden { url, status }.into(),
            // What was there before has less bytes now.
            StatusCode::RANGE_NOT_SATISFIABLE if self.offset > 0 => FetchError::Changed { url }.into(),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Interruption::Again(Setback::Status { status, after: retry_after(headers) })
            }
            _ if status.is_server_error() => {
                Interruption::Again(Setback::Status { status, after: retry_after(headers) })
            }
            _ => FetchError::Refused { url, status }.into(),
        }
    }

    fn hang_up(&mut self) {
        match &mut self.way {
            Way::File { .. } => {}
            Way::Http(http) => http.body = None,
            Way::Relayed(relayed) => relayed.hang_up(),
        }
    }

    /// Waits before the next try: exponential with full jitter, so that a fleet does not come back as one.
    async fn pause(&mut self, setback: Setback) -> Result<(), FetchError> {
        self.hang_up();
        if let (Way::Http(http), Setback::Connection { .. } | Setback::Expired { .. }) = (&self.way, &setback)
        {
            http.clients.forget_roots();
        }
        let left = self.patience.left();
        if left.is_zero() {
            let (url, source) = (self.shown.clone(), Box::new(setback));
            return Err(match self.patience.bytes() {
                0 => FetchError::Unreachable { url, limit: self.limits.retry, source },
                _ => self.patience.trickle(url, Some(source)),
            });
        }
        let ceiling =
            self.limits.first_pause.saturating_mul(1 << self.setbacks.min(16)).min(self.limits.longest_pause);
        self.setbacks = self.setbacks.saturating_add(1);
        let jittered = ceiling.mul_f64(fastrand::f64());
        let asked = match &setback {
            Setback::Status { after, .. } => after.unwrap_or_default(),
            _ => Duration::ZERO,
        };
        let wait = jittered.max(asked.min(RETRY_AFTER_LIMIT)).min(left);
        tracing::info!(url = %self.shown, reason = %one_line(&setback), ?wait, "download interrupted");
        self.last_setback = Some(setback);
        self.progress.send_modify(|p| p.phase = Phase::Waiting);
        sleep(wait).await;
        Ok(())
    }
}

impl Http {
    /// The next bytes of the present answer: how many were taken before, and the others.
    async fn chunk(&mut self, stall: Duration) -> Result<Option<(u64, Bytes)>, Interruption> {
        let Some(body) = &mut self.body else { return Ok(None) };
        let mut bytes = match timeout(stall, body.chunk()).await {
            Err(_) => return Err(Interruption::Again(Setback::Stalled { limit: stall })),
            Ok(Err(error)) => {
                return Err(Interruption::Again(Setback::Connection { source: error.without_url() }));
            }
            Ok(Ok(None)) => return Ok(None),
            Ok(Ok(Some(bytes))) => bytes,
        };
        let known = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.skip -= known as u64;
        self.news |= known < bytes.len();
        Ok(Some((known as u64, bytes.split_off(known))))
    }
}

async fn open_file(url: &Url, shown: &str, offset: u64) -> Result<Way, FetchError> {
    let path = url.to_file_path().map_err(|()| FetchError::Address { url: shown.to_owned() })?;
    let failed = |source| FetchError::File { path: path.clone(), source };
    // A pipe in its place must not keep us waiting.
    let mut options = tokio::fs::OpenOptions::new();
    options.read(true).custom_flags(OFlag::O_NONBLOCK.bits());
    let mut file = options.open(&path).await.map_err(failed)?;
    if !file.metadata().await.map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("not a regular file")));
    }
    file.seek(io::SeekFrom::Start(offset)).await.map_err(failed)?;
    file.set_max_buf_size(FILE_CHUNK_BYTES);
    Ok(Way::File { path, file })
}

/// How servers are reached.
#[derive(Clone, Debug)]
pub enum Reach {
    /// By this process.
    Direct(Arc<Clients>),
    /// By the networked part, which listens here.
    Relayed(PathBuf),
}

/// HTTP clients; the one that trusts somebody is made when the first address asks for it, since reading the
/// system's roots takes longer than everything else before the first byte.
#[derive(Debug)]
pub struct Clients {
    plain: Client,
    secure: Mutex<Option<Client>>,
    ca_file: Option<PathBuf>,
}

impl Clients {
    /// `ca_file` is trusted in place of the system's roots.
    ///
    /// # Errors
    /// When the library cannot be set up.
    pub fn new(ca_file: Option<PathBuf>) -> Result<Self, FetchError> {
        let nobody = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Versions)?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        Ok(Self { plain: client(nobody)?, secure: Mutex::default(), ca_file })
    }

    async fn secure(&self) -> Result<Client, FetchError> {
        if let Some(client) = self.known().clone() {
            return Ok(client);
        }
        let ca_file = self.ca_file.clone();
        let read = move || tls::client_config(Roots::from(ca_file.as_deref()), None);
        let config = tokio::task::spawn_blocking(read).await.map_err(|_| FetchError::Stopped)??;
        let client = client(config)?;
        *self.known() = Some(client.clone());
        Ok(client)
    }

    /// A server that could not be reached may be one of an authority that is only now among the roots.
    fn forget_roots(&self) {
        *self.known() = None;
    }

    fn known(&self) -> MutexGuard<'_, Option<Client>> {
        self.secure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn client(tls: ClientConfig) -> Result<Client, FetchError> {
    Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .connect_timeout(Duration::from_secs(30))
        .tcp_keepalive(Duration::from_secs(30))
        .redirect(redirect::Policy::none())
        .user_agent(concat!("twinboot/", env!("CARGO_PKG_VERSION")))
        .referer(false)
        .build()
        .map_err(|source| FetchError::Client { source })
}

/// Where an answer to a request at `at` leads, if anywhere; `first` is the address that was asked for.
fn leads_to(answer: &Response, at: &Url, first: &Url) -> Result<Option<Url>, &'static str> {
    let is_redirect = matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let Some(location) = answer.headers().get(LOCATION).filter(|_| is_redirect) else { return Ok(None) };
    let location = std::str::from_utf8(location.as_bytes()).ok();
    let mut next = location.and_then(|location| at.join(location).ok()).ok_or("it is no address")?;
    match (at.scheme(), next.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => return Err("it leads from https to http"),
        _ => return Err("it leads to no http address"),
    }
    // The password of the address is for its own server alone.
    if next.origin() == first.origin() && next.username().is_empty() && next.password().is_none() {
        let _ = next.set_username(first.username());
        let _ = next.set_password(first.password());
    }
    Ok(Some(next))
}

/// `Content-Range: bytes START-LAST/TOTAL`, as the part and the total in bytes (RFC 9110, 14.4). A range that ends
/// before it begins, or beyond its file, is none.
#[must_use]
pub fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, Option<u64>)> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = value.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let (start, last): (u64, u64) = (start.trim().parse().ok()?, last.trim().parse().ok()?);
    let total: Option<u64> = total.trim().parse().ok();
    let within = start <= last && total.is_none_or(|total| last < total);
    within.then_some((start..last.checked_add(1)?, total))
}

/// `Retry-After` in seconds. A date is left alone: this device's clock may not be set.
#[must_use]
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Time since boot, suspend included.
pub(super) fn boot_time() -> Duration {
    // Cannot fail: every kernel since 2.6.39 has this clock.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}
