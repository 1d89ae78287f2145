//! The service side: the part of the REST API that registers devices, reads and writes twins, and calls methods.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, ETAG, HeaderMap, IF_MATCH};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use rustls::ServerConfig;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::clock;
use super::failure::{Failure, tracking_id};
use super::identity::{Authentication, is_device_id};
use super::sas::Token;
use super::state::{Call, Shared, State};

/// A client's time for the TLS handshake and for sending a request.
const PATIENCE: Duration = Duration::from_secs(30);
/// Larger than any request the hub accepts: a method's payload may have 128 KiB.
const BODY_LIMIT_BYTES: usize = 256 * 1024;
const METHOD_PAYLOAD_LIMIT_BYTES: usize = 128 * 1024;

/// Serves one HTTPS connection.
pub(super) async fn converse(socket: TcpStream, tls: Arc<ServerConfig>, hub: Arc<Shared>) {
    let Ok(Ok(stream)) = timeout(PATIENCE, TlsAcceptor::from(tls).accept(socket)).await else {
        tracing::info!("https: no TLS handshake from a client");
        return;
    };
    let service = service_fn(|request| {
        let hub = Arc::clone(&hub);
        async move { Ok::<_, Infallible>(respond(request, &hub).await) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    let server = server.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "https: connection ended");
    }
}

/// What a request that succeeded is answered: a status, a body, and its etag.
struct Answer {
    status: StatusCode,
    body: Option<Value>,
    etag: Option<String>,
}

impl Answer {
    fn ok(body: Value) -> Self {
        Self { status: StatusCode::OK, body: Some(body), etag: None }
    }

    fn tagged(body: Value, etag: &str) -> Self {
        Self { etag: Some(format!("\"{etag}\"")), ..Self::ok(body) }
    }
}

async fn respond(request: Request<Incoming>, hub: &Shared) -> Response<Full<Bytes>> {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let result = handle(request, hub).await;
    let mut response = Response::new(Full::default());
    let headers = response.headers_mut();
    if let Ok(id) = tracking_id().parse() {
        headers.insert("x-ms-request-id", id);
    }
    let (status, body) = match result {
        Ok(answer) => {
            if let Some(Ok(etag)) = answer.etag.map(|etag| etag.parse()) {
                headers.insert(ETAG, etag);
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
    let path = head.uri.path().trim_matches('/').to_owned();
    let segments: Vec<String> =
        path.split('/').map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned()).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    hub.read(|state| authorize(state, &head.headers, &segments.join("/")))?;
    if !head.uri.query().unwrap_or_default().split('&').any(|pair| pair.starts_with("api-version=")) {
        return Err(Failure::new(400, "InvalidProtocolVersion", "The query has no api-version."));
    }
    let body = read_json(body).await?;
    let if_match = head.headers.get(IF_MATCH).and_then(|value| value.to_str().ok()).map(unquoted);
    match (&head.method, segments.as_slice()) {
        (&Method::POST, ["twins", id, "methods"]) => call_method(hub, id, body).await,
        (&Method::GET, ["twins", id]) => hub.change(|state| get_twin(state, id)),
        (&Method::PATCH, ["twins", id]) => hub.change(|state| patch_twin(state, id, &body, if_match)),
        (&Method::GET, ["devices", id]) => hub.change(|state| get_device(state, id)),
        (&Method::PUT, ["devices", id]) => hub.change(|state| put_device(state, id, &body, if_match)),
        (&Method::DELETE, ["devices", id]) => hub.change(|state| delete_device(state, id, if_match)),
        _ => {
            Err(Failure::new(404, "GenericNotFound", format!("The emulator has no {} /{path}.", head.method)))
        }
    }
}

/// An empty body is null.
async fn read_json(body: Incoming) -> Result<Value, Failure> {
    let read = timeout(PATIENCE, Limited::new(body, BODY_LIMIT_BYTES).collect()).await;
    let Ok(Ok(collected)) = read else {
        return Err(Failure::new(413, "MessageTooLarge", "The body is too large, or did not arrive."));
    };
    let bytes = collected.to_bytes();
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::bad_argument(format!("The body is not JSON: {error}")))
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

/// Clients send etags quoted or not; `*` stands for any.
fn unquoted(etag: &str) -> &str {
    etag.trim_matches('"')
}

fn check_etag(if_match: Option<&str>, current: &str) -> Result<(), Failure> {
    if if_match.is_none_or(|asked| asked == "*" || asked == current) {
        return Ok(());
    }
    Err(Failure::new(412, "PreconditionFailed", format!("The current etag is {current}.")))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MethodBody {
    method_name: String,
    #[serde(default)]
    payload: Value,
    #[serde(default = "default_response_timeout_secs", rename = "responseTimeoutInSeconds")]
    response_timeout_secs: u64,
    #[serde(default, rename = "connectTimeoutInSeconds")]
    connect_timeout_secs: u64,
}

/// The hub's own default.
fn default_response_timeout_secs() -> u64 {
    30
}

async fn call_method(hub: &Shared, id: &str, body: Value) -> Result<Answer, Failure> {
    let body: MethodBody =
        serde_json::from_value(body).map_err(|error| Failure::bad_argument(error.to_string()))?;
    let (response, connect) = (body.response_timeout_secs, body.connect_timeout_secs);
    if !(5..=300).contains(&response) || connect > 300 {
        return Err(Failure::bad_argument(
            "Response timeouts are 5 to 300 s, connection timeouts 0 to 300 s.",
        ));
    }
    if connect > response {
        let message = "Device connection timeout cannot be longer than an overall call timeout.";
        return Err(Failure::bad_argument(message));
    }
    let name = body.method_name;
    if name.trim().is_empty() || name.chars().count() > 100 {
        return Err(Failure::bad_argument("A method's name has 1 to 100 characters."));
    }
    if body.payload.to_string().len() > METHOD_PAYLOAD_LIMIT_BYTES {
        let message = format!("Payload should not be greater than {METHOD_PAYLOAD_LIMIT_BYTES} bytes.");
        return Err(Failure::bad_argument(message));
    }
    let (response_limit, connect_limit) = (Duration::from_secs(response), Duration::from_secs(connect));
    let response = hub.call(id, &Call { name, payload: body.payload, response_limit, connect_limit }).await?;
    Ok(Answer::ok(json!({ "status": response.status, "payload": response.payload })))
}

fn get_twin(state: &mut State, id: &str) -> Result<Answer, Failure> {
    let device = state.device(id)?;
    Ok(Answer::tagged(device.twin_for_service(id), &device.twin.etag()))
}

fn patch_twin(state: &mut State, id: &str, patch: &Value, if_match: Option<&str>) -> Result<Answer, Failure> {
    check_etag(if_match, &state.device(id)?.twin.etag())?;
    state.patch_twin(id, patch)?;
    get_twin(state, id)
}

fn get_device(state: &mut State, id: &str) -> Result<Answer, Failure> {
    let device = state.device(id)?;
    Ok(Answer::tagged(device.identity_for_service(id), &device.identity.etag()))
}

/// Without `If-Match` it creates and does nothing else; with it, it replaces and does nothing else.
fn put_device(state: &mut State, id: &str, body: &Value, if_match: Option<&str>) -> Result<Answer, Failure> {
    if !is_device_id(id) {
        return Err(Failure::bad_argument(format!("'{id}' is not a device ID.")));
    }
    if body.get("deviceId").and_then(Value::as_str) != Some(id) {
        return Err(Failure::bad_argument("deviceId in the body is not the one in the path."));
    }
    match if_match {
        Some(_) => check_etag(if_match, &state.device(id)?.identity.etag())?,
        None if state.devices.contains_key(id) => {
            let message = format!("A device with ID '{id}' is already registered.");
            return Err(Failure::new(409, "DeviceAlreadyExists", message));
        }
        None => {}
    }
    let enabled = body.get("status").and_then(Value::as_str) != Some("disabled");
    state.register(id, Authentication::from_body(body)?, enabled);
    get_device(state, id)
}

fn delete_device(state: &mut State, id: &str, if_match: Option<&str>) -> Result<Answer, Failure> {
    let etag = state.device(id)?.identity.etag();
    if if_match.is_none() {
        return Err(Failure::new(412, "PreconditionFailed", "Etag missing"));
    }
    check_etag(if_match, &etag)?;
    if let Some(mut device) = state.devices.remove(id) {
        device.detach();
    }
    Ok(Answer { status: StatusCode::NO_CONTENT, body: None, etag: None })
}
