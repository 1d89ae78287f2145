//! The HTTPS port: one task per connection, which carries the REST API or, after an upgrade, MQTT.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use serde_json::Value;

use super::failure::Failure;
use super::listener::{Stream, shown_certificates};
use super::state::{Shared, State};
use super::upload::{blob, files};
use super::{dps, mqtt, random, rest, websocket};

/// A client's time for sending the head of a request.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves one connection.
pub(super) async fn converse(stream: Stream, hub: Arc<Shared>) {
    let certificates = shown_certificates(&stream);
    let Some(upgrade) = serve_requests(stream, &certificates, &hub).await else { return };
    match upgrade.await {
        Ok(upgraded) => mqtt::converse(websocket::stream(upgraded).await, certificates, hub).await,
        Err(error) => tracing::info!(%error, "websocket: not opened"),
    }
}

/// Answers requests until the connection ends, or until it is to be used for something else than HTTP.
async fn serve_requests(
    stream: Stream,
    certificates: &[CertificateDer<'static>],
    hub: &Shared,
) -> Option<OnUpgrade> {
    let upgrade = Mutex::new(None);
    let service = service_fn(async |mut request| {
        if request.uri().path() != websocket::PATH {
            return Ok::<_, Infallible>(respond(request, certificates, hub).await);
        }
        let answer = websocket::answer(request.headers());
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            *upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some(hyper::upgrade::on(&mut request));
        }
        Ok(answer)
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    let server = server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).with_upgrades().await {
        tracing::debug!(%error, "https: connection ended");
    }
    upgrade.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// A request for one of the hub's neighbours, with its whole body.
pub(super) struct Call<'a> {
    pub head: &'a Parts,
    /// The path, decoded.
    pub segments: &'a [&'a str],
    pub body: &'a Bytes,
    /// What the client showed in the TLS handshake, its own certificate first.
    pub chain: &'a [CertificateDer<'static>],
}

impl Call<'_> {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }
}

/// What to answer it.
pub(super) struct Reply {
    status: u16,
    content_type: &'static str,
    body: Bytes,
    headers: Vec<(&'static str, String)>,
}

impl Reply {
    pub fn text(status: u16, content_type: &'static str, body: impl Into<Bytes>) -> Self {
        Self { status, content_type, body: body.into(), headers: Vec::new() }
    }

    pub fn json(status: u16, body: &Value) -> Self {
        Self::text(status, "application/json; charset=utf-8", body.to_string())
    }

    pub fn empty(status: u16) -> Self {
        Self::text(status, "", Bytes::new())
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl From<Reply> for Response<Full<Bytes>> {
    fn from(reply: Reply) -> Self {
        let mut response = Self::new(Full::from(reply.body));
        *response.status_mut() =
            StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let more = [("content-type", reply.content_type.to_owned()), ("x-ms-request-id", random::hex(16))];
        for (name, value) in reply.headers.into_iter().chain(more).filter(|(_, value)| !value.is_empty()) {
            if let Ok(value) = value.parse() {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}

/// Any version of the API will do, but hub and provisioning service want to be told one, as a date.
pub(super) fn check_api_version(uri: &Uri) -> Result<(), Failure> {
    let mut pairs = uri.query().unwrap_or_default().split('&');
    let version = pairs.find_map(|pair| pair.strip_prefix("api-version=")).unwrap_or_default();
    let date = version.strip_suffix("-preview").unwrap_or(version);
    let shape = date.replace(|c: char| c.is_ascii_digit(), "0");
    let wrong = || Failure::new(400, "InvalidProtocolVersion", "The query has no valid api-version.");
    (shape == "0000-00-00").then_some(()).ok_or_else(wrong)
}

/// Whom a path belongs to, besides the hub's REST API.
enum Neighbour<'a> {
    Dps,
    Files { device: &'a str, rest: &'a [&'a str] },
    Blob,
}

impl<'a> Neighbour<'a> {
    fn at(state: &State, segments: &'a [&'a str]) -> Option<Self> {
        match segments {
            ["devices", device, "files", rest @ ..] => Some(Self::Files { device, rest }),
            _ if blob::is_path(segments) => Some(Self::Blob),
            _ => dps::rest::is_path(state, segments).then_some(Self::Dps),
        }
    }

    fn respond(&self, state: &mut State, call: &Call) -> Reply {
        match self {
            Self::Dps => dps::rest::respond(state, call),
            Self::Files { device, rest } => files::respond(state, call, device, rest),
            Self::Blob => blob::respond(state, call),
        }
    }
}

/// Hands a request to whom its path belongs.
async fn respond(
    request: Request<Incoming>,
    chain: &[CertificateDer<'static>],
    hub: &Shared,
) -> Response<Full<Bytes>> {
    let segments = rest::segments(request.uri().path());
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let Some(neighbour) = hub.read(|state| Neighbour::at(state, &segments)) else {
        return rest::respond(request, hub).await;
    };
    let (head, body) = request.into_parts();
    let reply = match rest::read(body, blob::BODY_LIMIT_BYTES).await {
        Ok(body) => {
            let call = Call { head: &head, segments: &segments, body: &body, chain };
            hub.change(|state| neighbour.respond(state, &call))
        }
        Err(failure) => Reply::json(failure.status, &failure.body()),
    };
    tracing::info!(method = %head.method, path = head.uri.path(), status = reply.status, "https");
    reply.into()
}
