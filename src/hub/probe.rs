//! One try to reach the hub, step by step, that says which one fails: for the doctor.
//!
//! It takes the place of a session of the same device: never to be done beside a running daemon.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use rumqttc::{EventLoop, Packet};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::Pace;
use super::session;
use crate::{config, tls};

/// For each address, and each read of the handshake: the hub answers in a second.
const STEP_LIMIT: Duration = Duration::from_secs(8);

/// What must go well, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Key, certificates and clock on this side.
    Credentials,
    /// Address of the hub's name.
    Lookup,
    /// TCP.
    Connect,
    /// Both sides' certificates, but for what the hub thinks of ours.
    Tls,
    /// CONNECT, and the hub's answer.
    Login,
}

/// Tries all steps; gives the address that was reached.
///
/// # Errors
/// The step that failed, and why, in one line.
pub async fn probe(config: &config::Hub, unix_now: fn() -> u64) -> Result<SocketAddr, (Step, String)> {
    let pace = Pace { connect_limit: STEP_LIMIT * 2, ..Pace::default() };
    let options =
        session::options(config, pace, unix_now()).await.map_err(|end| (Step::Credentials, end.reason()))?;
    let tls = session::client_config(config).await.map_err(|end| (Step::Credentials, end.reason()))?;
    let (host, port) = (config.dialled().to_owned(), config.port);
    let steps = tokio::task::spawn_blocking(move || reach(&host, port, tls)).await;
    let address = steps.map_err(|stopped| (Step::Lookup, stopped.to_string()))??;

    let mut event_loop = EventLoop::new(options, 1);
    event_loop.set_network_options(session::network_options(pace));
    let answer = tokio::time::timeout(pace.connect_limit, async {
        loop {
            match event_loop.poll().await {
                Ok(rumqttc::Event::Incoming(Packet::ConnAck(_))) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(session::why(&error)),
            }
        }
    });
    match answer.await {
        Ok(Ok(())) => Ok(address),
        Ok(Err(why)) => Err((Step::Login, why)),
        Err(_) => Err((Step::Login, "the hub does not answer CONNECT".to_owned())),
    }
}

/// A name lookup has limits of its own.
fn reach(host: &str, port: u16, tls: ClientConfig) -> Result<SocketAddr, (Step, String)> {
    let told = |error: io::Error| tls::expired(&error).unwrap_or_else(|| error.to_string());
    let at = |step| move |error| (step, told(error));
    let addresses: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(at(Step::Lookup))?.collect();
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect_timeout(&address, STEP_LIMIT) {
            Ok(stream) => return shake_hands(host, stream, tls).map(|()| address).map_err(at(Step::Tls)),
            Err(error) => last = io::Error::new(error.kind(), format!("{address}: {error}")),
        }
    }
    Err(at(Step::Connect)(last))
}

fn shake_hands(host: &str, mut stream: TcpStream, tls: ClientConfig) -> io::Result<()> {
    stream.set_read_timeout(Some(STEP_LIMIT))?;
    stream.set_write_timeout(Some(STEP_LIMIT))?;
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let mut connection = ClientConnection::new(Arc::new(tls), name).map_err(io::Error::other)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(())
}
