//! The hub's two ports: accepts connections, and speaks TLS with each before it is served.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::state::Shared;

/// Connections served at once on a port: ten thousand devices, and as many again that come back before the hub has
/// noticed that their old connections are dead.
const CONNECTION_LIMIT: usize = 20_000;
/// The pause after an accept that failed: long enough not to spin, short enough not to be noticed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A client's time for the TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(30);

/// A connection after its TLS handshake.
pub(super) type Stream = TlsStream<TcpStream>;

/// The certificates that the client showed, its own first; empty if it showed none.
pub(super) fn shown_certificates(stream: &Stream) -> Vec<CertificateDer<'static>> {
    stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec()
}

/// Opens a port; 0 takes a free one.
pub(super) async fn listen(address: IpAddr, port: u16) -> io::Result<TcpListener> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("listen on {address}, port {port}: {error}"));
    TcpListener::bind((address, port)).await.map_err(named)
}

/// Accepts connections for ever, and serves each in a task of its own.
pub(super) async fn accept<F, S>(listener: TcpListener, tls: Arc<ServerConfig>, shared: Arc<Shared>, serve: F)
where
    F: Fn(Stream, Arc<Shared>) -> S + Copy + Send + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) if !shared.read(|state| state.faults.away) => {
                    let (tls, shared) = (TlsAcceptor::from(Arc::clone(&tls)), Arc::clone(&shared));
                    connections.spawn(async move {
                        match handshake(tls, socket).await {
                            Ok(stream) => serve(stream, shared).await,
                            Err(error) => tracing::info!(%error, "no TLS handshake from a client"),
                        }
                    });
                }
                Ok(_) => {}
                // Out of file descriptors, most likely: some come back when a connection ends.
                Err(error) => {
                    tracing::warn!(%error, "accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
        while connections.len() >= CONNECTION_LIMIT {
            connections.join_next().await;
        }
    }
}

async fn handshake(tls: TlsAcceptor, socket: TcpStream) -> io::Result<Stream> {
    // Small packets both ways: waiting to fill a segment would only slow tests down.
    let _ = socket.set_nodelay(true);
    timeout(HANDSHAKE_LIMIT, tls.accept(socket)).await?
}
