//! The HTTPS port: one task per connection, which carries the REST API or, after an upgrade, MQTT.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;

use super::listener::{Stream, shown_certificates};
use super::state::Shared;
use super::{dps, mqtt, rest, websocket};

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
        if answer.status() == hyper::StatusCode::SWITCHING_PROTOCOLS {
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

/// Hands a request to whom its path belongs.
async fn respond(
    request: Request<Incoming>,
    chain: &[CertificateDer<'static>],
    hub: &Shared,
) -> Response<Full<Bytes>> {
    let segments = rest::segments(request.uri().path());
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    if !hub.read(|state| dps::rest::is_path(state, &segments)) {
        return rest::respond(request, hub).await;
    }
    let (head, body) = request.into_parts();
    let reply = match rest::read(body).await {
        Ok(body) => {
            let call = dps::rest::Call { head: &head, segments: &segments, body: &body, chain };
            hub.change(|state| dps::rest::respond(state, &call))
        }
        Err(failure) => dps::Refusal::bad_request(failure.message).into(),
    };
    tracing::info!(method = %head.method, path = head.uri.path(), status = reply.status, "https: dps");
    reply.into()
}
