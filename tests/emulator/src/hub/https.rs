//! The HTTPS port: one task per connection, which carries the REST API or, after an upgrade, MQTT.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};

use super::listener::{Stream, shown_certificates};
use super::state::Shared;
use super::{mqtt, rest, websocket};

/// A client's time for sending the head of a request.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves one connection.
pub(super) async fn converse(stream: Stream, hub: Arc<Shared>) {
    let certificates = shown_certificates(&stream);
    let Some(upgrade) = serve_requests(stream, &hub).await else { return };
    match upgrade.await {
        Ok(upgraded) => mqtt::converse(websocket::stream(upgraded).await, certificates, hub).await,
        Err(error) => tracing::info!(%error, "websocket: not opened"),
    }
}

/// Answers requests until the connection ends, or until it is to be used for something else than HTTP.
async fn serve_requests(stream: Stream, hub: &Shared) -> Option<OnUpgrade> {
    let upgrade = Mutex::new(None);
    let service = service_fn(async |mut request| {
        if request.uri().path() != websocket::PATH {
            return Ok::<_, Infallible>(rest::respond(request, hub).await);
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
