//! The service side: who may ask, which resource answers, and what an answer looks like.

mod device;
mod events;
mod faults;
mod message;
mod method;
mod query;
mod twin;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::clock;
use super::failure::{Failure, tracking_id};
use super::sas::Token;
use super::state::{Shared, State};

/// A client's time for sending a request.
const PATIENCE: Duration = Duration::from_secs(30);
/// Larger than any request the hub accepts: a method's payload may have 128 KiB.
const BODY_LIMIT_BYTES: usize = 256 * 1024;

/// Which resource answers which request.
async fn route(call: &Call<'_>, segments: &[&str]) -> Result<Answer, Failure> {
    match (&call.head.method, segments) {
        (&Method::POST, ["devices", "query"]) => query::run(call),
        (&Method::GET, ["devices", id]) => device::get(call, id),
        (&Method::PUT, ["devices", id]) => device::put(call, id),
        (&Method::DELETE, ["devices", id]) => device::delete(call, id),
        (&Method::DELETE, ["devices", id, "commands"]) => message::purge(call, id),
        (&Method::POST, ["devices", id, "messages", "devicebound"]) => message::send(call, id),
        (&Method::GET, ["twins", id]) => twin::get(call, id),
        (&Method::PATCH, ["twins", id]) => twin::patch(call, id),
        (&Method::POST, ["twins", id, "methods"]) => method::call(call, id).await,
        (&Method::GET, ["emulator", "events", id]) => Ok(events::list(call, id)),
        (&Method::POST, ["emulator", "faults"]) => faults::post(call).await,
        (method, _) => {
            let message = format!("The emulator has no {method} /{}.", segments.join("/"));
            Err(Failure::new(404, "GenericNotFound", message))
        }
    }
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
        self.header("if-match").map(|etag| etag.trim_matches('"'))
    }

    /// Whether `If-Match` allows to change what has the etag `current` now.
    fn check_etag(&self, current: &str) -> Result<(), Failure> {
        if self.if_match().is_none_or(|asked| asked == "*" || asked == current) {
            return Ok(());
        }
        Err(Failure::new(412, "PreconditionFailed", format!("The current etag is {current}.")))
    }
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
        let json = hyper::header::HeaderValue::from_static("application/json; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, json);
        *response.body_mut() = Full::from(body.to_string());
    }
    response
}

async fn handle(request: Request<Incoming>, hub: &Shared) -> Result<Answer, Failure> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().trim_matches('/');
    let segments: Vec<String> =
        path.split('/').map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned()).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    hub.read(|state| authorize(state, &head.headers, &segments.join("/")))?;
    if !head.uri.query().unwrap_or_default().split('&').any(|pair| pair.starts_with("api-version=")) {
        return Err(Failure::new(400, "InvalidProtocolVersion", "The query has no api-version."));
    }
    if segments.first() != Some(&"emulator") {
        hub.change(throttle)?;
    }
    let body = read(body).await?;
    route(&Call { hub, head, body }, &segments).await
}

/// Refuses a call, if a test asked for that.
fn throttle(state: &mut State) -> Result<(), Failure> {
    let Some(left) = state.faults.throttle.checked_sub(1) else { return Ok(()) };
    state.faults.throttle = left;
    let message = "The request has been throttled. Wait 10 seconds and try again.";
    Err(Failure::new(429, "ThrottlingException", message))
}

async fn read(body: Incoming) -> Result<Bytes, Failure> {
    match timeout(PATIENCE, Limited::new(body, BODY_LIMIT_BYTES).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        _ => Err(Failure::new(413, "MessageTooLarge", "The body is too large, or did not arrive.")),
    }
}

fn authorize(state: &State, headers: &HeaderMap, path: &str) -> Result<(), Failure> {
    if state.faults.away {
        return Err(Failure::new(503, "ServiceUnavailable", "The hub is away."));
    }
    let refuse = |why: &str| Err(Failure::new(401, "IotHubUnauthorizedAccess", why));
    let Some(header) = headers.get(AUTHORIZATION) else { return refuse("Authorization header missing") };
    let Some(token) = header.to_str().ok().and_then(Token::parse) else {
        return refuse("The authorization header is not a shared access signature.");
    };
    if token.policy.as_deref() != Some("iothubowner") || !token.is_signed_with(&state.owner_key) {
        return refuse("The token is not signed with the key of the policy iothubowner.");
    }
    if !token.is_for(&state.host_names) || !token.covers(path) {
        return refuse("The token is for another resource.");
    }
    if clock::until(token.expiry).is_none() {
        return refuse("The token has expired.");
    }
    Ok(())
}
