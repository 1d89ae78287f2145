//! An image server: static content over HTTP or HTTPS, with parts (`Range`), counted, and with faults on request.

mod content;
mod faults;
mod range;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderName, IF_RANGE, LOCATION, RANGE, RETRY_AFTER,
};
use hyper::http::response::Builder;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

pub use faults::{DropFault, Faults, FlipFault, StatusFault};

use content::{Content, Delivery, Found};
use faults::ThisTime;
use range::Part;

/// Short beside any limit of a client.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// A server on a free port of this machine. Dropped, it ends with all its connections.
#[derive(Debug)]
pub struct ImageServer {
    address: SocketAddr,
    scheme: &'static str,
    names: Arc<Mutex<HashMap<String, Entry>>>,
    task: JoinHandle<()>,
}

/// What is known of one name.
#[derive(Clone, Debug, Default)]
struct Entry {
    content: Option<Content>,
    faults: Faults,
    requests: u64,
    ranges: Vec<Option<String>>,
    sent: Arc<AtomicU64>,
}

impl ImageServer {
    /// Starts: HTTPS with `tls`, HTTP without.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(tls: Option<ServerConfig>) -> io::Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), tls).await
    }

    /// The same at another address of this machine.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start_at(bind: IpAddr, tls: Option<ServerConfig>) -> io::Result<Self> {
        let listener = TcpListener::bind((bind, 0)).await?;
        let address = listener.local_addr()?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let names = Arc::default();
        let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        let task = tokio::spawn(accept(listener, tls, Arc::clone(&names)));
        Ok(Self { address, scheme, names, task })
    }

    /// Where `name` is, or would be.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        format!("{}://{}/{name}", self.scheme, self.address)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves these bytes.
    pub fn put(&self, name: &str, bytes: impl Into<Bytes>) {
        let content = Content::memory(bytes.into());
        self.with(name, |entry| entry.content = Some(content));
    }

    /// Serves this file, as it is when it is asked for.
    pub fn put_file(&self, name: &str, path: impl Into<PathBuf>) {
        let content = Content::File(path.into());
        self.with(name, |entry| entry.content = Some(content));
    }

    /// What goes wrong with `name` from now on.
    pub fn set_faults(&self, name: &str, faults: Faults) {
        self.with(name, |entry| entry.faults = faults);
    }

    /// How often `name` was asked for, whatever the answer.
    #[must_use]
    pub fn requests(&self, name: &str) -> u64 {
        self.with(name, |entry| entry.requests)
    }

    /// The `Range` header of each request for `name`.
    #[must_use]
    pub fn ranges(&self, name: &str) -> Vec<Option<String>> {
        self.with(name, |entry| entry.ranges.clone())
    }

    /// Bytes of content that were handed to connections, over all requests for `name`.
    #[must_use]
    pub fn bytes_sent(&self, name: &str) -> u64 {
        self.with(name, |entry| entry.sent.load(Ordering::Relaxed))
    }

    fn with<T>(&self, name: &str, work: impl FnOnce(&mut Entry) -> T) -> T {
        work(lock(&self.names).entry(name.to_owned()).or_default())
    }
}

impl Drop for ImageServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(names: &Mutex<HashMap<String, Entry>>) -> MutexGuard<'_, HashMap<String, Entry>> {
    // Every change under the lock is a single assignment.
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

type Names = Arc<Mutex<HashMap<String, Entry>>>;

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, names: Names) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else {
                    // No file descriptor is left: until a connection ends, asking again is in vain.
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                };
                let _ = stream.set_nodelay(true);
                let (tls, names) = (tls.clone(), Arc::clone(&names));
                connections.spawn(async move {
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, names).await;
                            }
                        }
                        None => serve(stream, names).await,
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, names: Names) {
    let service = service_fn(|request| answer(request, Arc::clone(&names)));
    // A connection that ends in an error is the client's to notice, and most were meant to.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// What of a request decides its answer.
struct Asked {
    head: bool,
    range: Option<String>,
    if_range: Option<String>,
}

async fn answer(request: Request<Incoming>, names: Names) -> Result<Answer, hyper::http::Error> {
    let header = |name: HeaderName| {
        request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    let asked =
        Asked { head: request.method() == Method::HEAD, range: header(RANGE), if_range: header(IF_RANGE) };
    let name = request.uri().path().trim_start_matches('/');
    let (this_time, content, number, sent) = {
        let mut names = lock(&names);
        let entry = names.entry(name.to_owned()).or_default();
        entry.requests += 1;
        entry.ranges.push(asked.range.clone());
        (entry.faults.take(), entry.content.clone(), entry.requests, Arc::clone(&entry.sent))
    };
    if !asked.head && request.method() != Method::GET {
        return empty(status(StatusCode::METHOD_NOT_ALLOWED));
    }
    if let Some(fault) = this_time.status {
        let code = StatusCode::from_u16(fault.code)?;
        let builder = status(code);
        return empty(match fault.retry_after_secs {
            Some(secs) => builder.header(RETRY_AFTER, secs),
            None => builder,
        });
    }
    if let Some(url) = &this_time.faults.redirect_to {
        return empty(status(StatusCode::FOUND).header(LOCATION, url));
    }
    let Some(content) = content else { return empty(status(StatusCode::NOT_FOUND)) };
    match content.find().await {
        Ok(mut found) => {
            if this_time.faults.etag_changes_each_request {
                found.etag = format!("{}-{number}", found.etag);
            }
            let flip =
                |part: Range<u64>| lock(&names).get_mut(name).and_then(|entry| entry.faults.flip(part));
            content_answer(&asked, found, &this_time, sent, flip).await
        }
        Err(_) => empty(status(StatusCode::INTERNAL_SERVER_ERROR)),
    }
}

async fn content_answer(
    asked: &Asked,
    found: Found,
    this_time: &ThisTime,
    sent: Arc<AtomicU64>,
    flip: impl FnOnce(Range<u64>) -> Option<u64>,
) -> Result<Answer, hyper::http::Error> {
    let faults = &this_time.faults;
    let content_end = faults.truncate_to.map_or(found.length, |end| end.min(found.length));
    let length = content_end.saturating_add(faults.extra_bytes);
    let etag = format!("\"{}\"", found.etag);
    let same = asked.if_range.as_ref().is_none_or(|wanted| *wanted == etag);
    let range = asked.range.as_deref().filter(|_| same && !faults.ignore_range);
    let part = range::part(range, length);
    let (builder, start, length) = match part {
        Part::Whole => (status(StatusCode::OK), 0, length),
        Part::Unsatisfiable => {
            let range = format!("bytes */{length}");
            return empty(status(StatusCode::RANGE_NOT_SATISFIABLE).header(CONTENT_RANGE, range));
        }
        Part::Bytes { first, last } => {
            let wrong = u64::from(faults.wrong_content_range);
            let range =
                format!("bytes {}-{}/{length}", first.saturating_add(wrong), last.saturating_add(wrong));
            (status(StatusCode::PARTIAL_CONTENT).header(CONTENT_RANGE, range), first, last - first + 1)
        }
    };
    let builder = builder.header(ACCEPT_RANGES, "bytes").header(ETAG, etag).header(CONTENT_LENGTH, length);
    if asked.head {
        return builder.body(no_body());
    }
    let delivery = Delivery {
        start,
        length,
        content_end,
        drop_after_bytes: this_time.drop_after_bytes,
        stall_after_bytes: faults.stall_after_bytes,
        bytes_per_sec: faults.bytes_per_sec,
        flip_at: flip(start..start + length),
        sent,
    };
    match found.deliver(delivery).await {
        Ok(stream) => builder.body(StreamBody::new(stream).boxed_unsync()),
        Err(_) => empty(status(StatusCode::INTERNAL_SERVER_ERROR)),
    }
}

fn status(code: StatusCode) -> Builder {
    Response::builder().status(code)
}

fn empty(builder: Builder) -> Result<Answer, hyper::http::Error> {
    builder.body(no_body())
}

fn no_body() -> UnsyncBoxBody<Bytes, io::Error> {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}
