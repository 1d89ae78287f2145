//! The service side: which resource answers which request, and what an answer looks like.

mod access;
mod bulk;
mod configuration;
mod device;
mod events;
mod faults;
mod job;
mod message;
mod method;
mod module;
mod query;
mod statistics;
mod twin;
mod uploads;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::failure::{Failure, tracking_id};
use super::https::check_api_version;
use super::identity::module_key;
use super::state::Shared;
use super::throttle::Operation;
use super::twin::Write;

/// A client's time for sending a request.
const PATIENCE: Duration = Duration::from_secs(30);
/// Larger than any request the hub accepts: a method's payload may have 128 KiB.
const BODY_LIMIT_BYTES: usize = 256 * 1024;

/// Which resource answers which request.
async fn route(call: &Call<'_>, segments: &[&str]) -> Result<Answer, Failure> {
    match (&call.head.method, segments) {
        (&Method::GET, ["devices"]) => device::list(call),
        (&Method::POST, ["devices"]) => bulk::write(call),
        (&Method::POST, ["devices", "query"]) => query::run(call),
        (&Method::GET, ["devices", id]) => device::get(call, id),
        (&Method::PUT, ["devices", id]) => device::put(call, id),
        (&Method::DELETE, ["devices", id]) => device::delete(call, id),
        (&Method::GET, ["devices", id, "modules"]) => module::list(call, id),
        (&Method::GET, ["devices", id, "modules", module]) => module::get(call, id, module),
        (&Method::PUT, ["devices", id, "modules", module]) => module::put(call, id, module),
        (&Method::DELETE, ["devices", id, "modules", module]) => module::delete(call, id, module),
        (&Method::DELETE, ["devices", id, "commands"]) => message::purge(call, id),
        (&Method::POST, ["devices", id, "messages", "devicebound"]) => message::send(call, id),
        (&Method::GET, ["emulator", "events", id]) => Ok(events::list(call, id)),
        (&Method::GET, ["emulator", "uploads", id]) => Ok(uploads::list(call, id)),
        (&Method::POST, ["emulator", "faults"]) => faults::post(call).await,
        (&Method::GET, ["configurations"]) => configuration::list(call),
        (&Method::POST, ["configurations", "testQueries"]) => configuration::test_queries(call),
        (&Method::GET, ["configurations", id]) => configuration::get(call, id),
        (&Method::PUT, ["configurations", id]) => configuration::put(call, id),
        (&Method::DELETE, ["configurations", id]) => configuration::delete(call, id),
        (&Method::GET, ["jobs", "v2", "query"]) => job::query(call),
        (&Method::GET, ["jobs", "v2", id]) => job::get(call, id),
        (&Method::PUT, ["jobs", "v2", id]) => job::put(call, id),
        (&Method::POST, ["jobs", "v2", id, "cancel"]) => job::cancel(call, id),
        (&Method::GET, ["statistics", "devices"]) => statistics::devices(call),
        (&Method::GET, ["statistics", "service"]) => statistics::service(call),
        (method, ["twins", id, "modules", module, rest @ ..]) => {
            twin_of(call, method, &module_key(id, module), rest).await
        }
        (method, ["twins", id, rest @ ..]) => twin_of(call, method, id, rest).await,
        _ => Err(nothing_there(call)),
    }
}

/// What devices and their modules have alike.
async fn twin_of(call: &Call<'_>, method: &Method, key: &str, rest: &[&str]) -> Result<Answer, Failure> {
    match (method, rest) {
        (&Method::GET, []) => twin::get(call, key),
        (&Method::PATCH, []) => twin::write(call, key, Write::Patch),
        (&Method::PUT, []) => twin::write(call, key, Write::Replace),
        (&Method::POST, ["methods"]) => method::call(call, key).await,
        _ => Err(nothing_there(call)),
    }
}

fn nothing_there(call: &Call) -> Failure {
    let message = format!("The emulator has no {} {}.", call.head.method, call.head.uri.path());
    Failure::new(404, "GenericNotFound", message)
}

/// A request that was let in, with its whole body.
struct Call<'a> {
    hub: &'a Shared,
    head: Parts,
    body: Bytes,
}

impl Call<'_> {
    /// The body; an empty one is null.
    fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        let body = if self.body.is_empty() { b"null" } else { self.body.as_ref() };
        serde_json::from_slice(body)
            .map_err(|error| Failure::bad_argument(format!("The body is not understood: {error}")))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }

    /// The etag of `If-Match`, unquoted: clients send it both ways, and `*` for any.
    fn if_match(&self) -> Option<&str> {
        self.header("if-match").map(unquoted)
    }

    /// Whether `If-Match` allows to change what has the etag `current` now.
    fn check_etag(&self, current: &str) -> Result<(), Failure> {
        let allows = self.if_match().is_none_or(|asked| asked == "*" || asked == current);
        if allows { Ok(()) } else { Err(Failure::stale(current)) }
    }

    /// The same where `If-Match` is required.
    fn check_etag_given(&self, current: &str) -> Result<(), Failure> {
        if self.if_match().is_none() {
            return Err(Failure::new(412, "PreconditionFailed", "Etag missing"));
        }
        self.check_etag(current)
    }

    /// The value of a parameter in the query of the URL.
    fn parameter(&self, name: &str) -> Option<&str> {
        let mut pairs = self.head.uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// How many items a list is to have. What lies beyond the `limit`, or is nothing, stands for the limit.
    fn top(&self, limit: usize) -> Result<usize, Failure> {
        let Some(top) = self.parameter("top") else { return Ok(limit) };
        let top: usize = top.parse().map_err(|_| Failure::bad_argument("top is not a number."))?;
        Ok(if (1..=limit).contains(&top) { top } else { limit })
    }
}

fn unquoted(etag: &str) -> &str {
    etag.trim_matches('"')
}

/// What a request that succeeded is answered.
struct Answer {
    status: StatusCode,
    body: Option<Value>,
    headers: Vec<(&'static str, String)>,
}

impl Answer {
    fn ok(body: Value) -> Self {
        Self { status: StatusCode::OK, body: Some(body), headers: Vec::new() }
    }

    fn tagged(body: Value, etag: &str) -> Self {
        Self::ok(body).with("etag", format!("\"{etag}\""))
    }

    fn no_content() -> Self {
        Self { status: StatusCode::NO_CONTENT, body: None, headers: Vec::new() }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Carries out a request.
pub(super) async fn respond(request: Request<Incoming>, hub: &Shared) -> Response<Full<Bytes>> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let result = handle(request, hub).await;
    let mut response = Response::new(Full::default());
    let headers = response.headers_mut();
    if let Ok(id) = tracking_id().parse() {
        headers.insert("x-ms-request-id", id);
    }
    let (status, body) = match result {
        Ok(answer) => {
            for (name, value) in answer.headers {
                if let Ok(value) = value.parse() {
                    headers.insert(name, value);
                }
            }
            (answer.status, answer.body)
        }
        Err(failure) => {
            if failure.status == 429 {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            if let Ok(symbol) = failure.symbol.parse() {
                headers.insert("iothub-errorcode", symbol);
            }
            let status = StatusCode::from_u16(failure.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (status, Some(failure.body()))
        }
    };
    tracing::info!(%method, path, status = status.as_u16(), "https");
    *response.status_mut() = status;
    if let Some(body) = body {
        let json = HeaderValue::from_static("application/json; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, json);
        *response.body_mut() = Full::from(body.to_string());
    }
    response
}

async fn handle(request: Request<Incoming>, hub: &Shared) -> Result<Answer, Failure> {
    let (head, body) = request.into_parts();
    let segments = segments(head.uri.path());
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    hub.read(|state| access::authorize(state, &head.method, &head.headers, &segments))?;
    if segments.iter().any(|segment| segment.contains('/')) {
        return Err(Failure::bad_argument("No name has a slash."));
    }
    let call = Call { hub, head, body: read(body, BODY_LIMIT_BYTES).await? };
    check_api_version(&call.head.uri)?;
    if let Some(operation) = Operation::of(&call.head.method, &segments) {
        hub.change(|state| state.throttle(operation))?;
    }
    let answer = route(&call, &segments).await?;
    let which = (call.head.method.to_string(), call.head.uri.path().to_owned());
    if hub.read(|state| state.faults.lost_answers.contains(&which)) {
        return Err(Failure::new(500, "ServerError", "The answer was lost."));
    }
    Ok(answer)
}

/// The parts of a path, decoded.
pub(super) fn segments(path: &str) -> Vec<String> {
    let parts = path.trim_matches('/').split('/');
    parts.map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned()).collect()
}

/// The whole body, if it is not too large.
pub(super) async fn read(body: Incoming, limit_bytes: usize) -> Result<Bytes, Failure> {
    match timeout(PATIENCE, Limited::new(body, limit_bytes).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        _ => Err(Failure::new(413, "MessageTooLarge", "The body is too large, or did not arrive.")),
    }
}
