//! Azure IoT Hub on this machine, as far as a device and its operator need it: MQTT over TLS for devices, REST
//! over HTTPS for services, and faults on request. Everything is in memory and on the loopback interface.

mod admission;
mod clock;
mod device;
mod failure;
mod identity;
mod mqtt;
mod random;
mod rest;
mod sas;
mod session;
mod state;
mod topic;
mod traffic;
mod twin;

use std::io;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

pub use self::device::MethodResponse;
use self::identity::Authentication;
pub use self::state::MethodError;
use self::state::{Call, Shared, State};
pub use self::traffic::Traffic;
use crate::ca::{Authority, AuthorityError};

/// Connections served at once: each of a fleet's devices has one.
const CONNECTION_LIMIT: usize = 1 << 16;
/// The pause after an accept that failed: long enough not to spin, short enough not to be noticed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How to start a hub. The default suits tests.
#[derive(Debug, Clone, Default)]
pub struct HubOptions {
    /// The port for devices; 0 takes any free one.
    pub mqtt_port: u16,
    /// The port for services; 0 takes any free one.
    pub https_port: u16,
    /// Names of the hub besides `localhost` and `127.0.0.1`, for devices that reach it through a gateway.
    pub host_names: Vec<String>,
}

/// Why the hub refused what a test asked of it.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No such device, or a twin patch beyond the limits.
    #[error("{0}")]
    Refused(String),
    /// A certificate could not be made.
    #[error("make a client certificate")]
    Certificate(#[from] AuthorityError),
}

/// A running hub; clones are the same hub. It stops when the last of them is dropped.
#[derive(Clone)]
pub struct Hub {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    authority: Authority,
    mqtt_port: u16,
    https_port: u16,
    /// Ends with its connections when dropped. The lock only makes it shareable.
    _listeners: Mutex<JoinSet<()>>,
}

impl Hub {
    /// Opens both ports on the loopback interface, with a new certificate authority, and no devices yet.
    pub async fn start(options: HubOptions) -> io::Result<Self> {
        let authority = Authority::new().map_err(io::Error::other)?;
        let mut host_names = vec!["localhost".to_owned(), Ipv4Addr::LOCALHOST.to_string()];
        host_names.extend(options.host_names);
        let shared = Arc::new(Shared::new(host_names));
        let (mqtt, https) = (listen(options.mqtt_port).await?, listen(options.https_port).await?);
        let (mqtt_port, https_port) = (mqtt.local_addr()?.port(), https.local_addr()?.port());

        let mut listeners = JoinSet::new();
        let tls = Arc::new(authority.server_config_asking_clients());
        listeners.spawn(accept(mqtt, Arc::clone(&shared), move |socket, shared| {
            mqtt::converse(socket, Arc::clone(&tls), shared)
        }));
        let tls = Arc::new(authority.server_config());
        listeners.spawn(accept(https, Arc::clone(&shared), move |socket, shared| {
            rest::converse(socket, Arc::clone(&tls), shared)
        }));
        let inner = Inner { shared, authority, mqtt_port, https_port, _listeners: Mutex::new(listeners) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The port devices connect to.
    pub fn mqtt_port(&self) -> u16 {
        self.inner.mqtt_port
    }

    /// The port of the service API.
    pub fn https_port(&self) -> u16 {
        self.inner.https_port
    }

    /// The authority that signed the hub's certificate.
    pub fn authority(&self) -> &Authority {
        &self.inner.authority
    }

    /// That authority's certificate, in PEM.
    pub fn ca_pem(&self) -> &str {
        self.inner.authority.pem()
    }

    /// Registers a device with new keys, or gives a registered one new keys. Returns its connection string.
    pub fn add_device(&self, id: &str) -> String {
        let key = random::key();
        let authentication = Authentication::Sas { primary: key.clone(), secondary: random::key() };
        self.change(|state| state.register(id, authentication, true));
        format!("HostName=localhost;DeviceId={id};SharedAccessKey={key}")
    }

    /// Registers a device with a new certificate. Returns certificate and private key, in PEM.
    pub fn add_x509_device(&self, id: &str) -> Result<(String, String), HubError> {
        let (certificate, key) = self.authority().client_certificate(id)?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes());
        let der = der.map_err(|error| HubError::Refused(error.to_string()))?;
        let [_, sha256] = admission::thumbprints(&der);
        let authentication = Authentication::SelfSigned { primary: Some(sha256), secondary: None };
        self.change(|state| state.register(id, authentication, true));
        Ok((certificate, key))
    }

    /// The connection string of the policy `iothubowner`.
    pub fn service_connection_string(&self) -> String {
        let key = self.inner.shared.read(|state| state.owner_key.clone());
        format!(
            "HostName=localhost:{};SharedAccessKeyName=iothubowner;SharedAccessKey={key}",
            self.https_port()
        )
    }
}

/// What a service would ask.
impl Hub {
    /// A token of the policy `iothubowner`, for a day: the `Authorization` of a call by hand.
    pub fn service_token(&self) -> Option<String> {
        const LIFE_SECS: i64 = 24 * 3600;
        let key = self.inner.shared.read(|state| state.owner_key.clone());
        let expiry = time::OffsetDateTime::now_utc().unix_timestamp() + LIFE_SECS;
        sas::policy_token("localhost", "iothubowner", &key, expiry)
    }

    /// The reported properties, without metadata and version; null for an unknown device.
    pub fn reported(&self, id: &str) -> Value {
        self.inner.shared.read(|state| reported(state, id))
    }

    /// The twin as a service sees it; null for an unknown device.
    pub fn twin(&self, id: &str) -> Value {
        let look = |state: &State| state.devices.get(id).map(|device| device.twin_for_service(id));
        self.inner.shared.read(look).unwrap_or_default()
    }

    /// Each accepted patch of the reported properties, oldest first.
    pub fn history(&self, id: &str) -> Vec<Value> {
        let look = |state: &State| state.devices.get(id).map(|device| device.history.clone());
        self.inner.shared.read(look).unwrap_or_default()
    }

    /// Connections accepted from the device so far.
    pub fn connects(&self, id: &str) -> usize {
        self.inner.shared.read(|state| state.devices.get(id).map_or(0, |device| device.connects))
    }

    /// Whether the device is connected.
    pub fn connected(&self, id: &str) -> bool {
        self.inner.shared.read(|state| connected(state, id))
    }

    /// Patches the desired properties. Returns their new version.
    pub fn patch_desired(&self, id: &str, patch: Value) -> Result<i64, HubError> {
        let patch = json!({ "properties": { "desired": patch } });
        self.change(|state| {
            state.patch_twin(id, &patch)?;
            Ok(state.device(id)?.twin.desired.version)
        })
        .map_err(|failure: failure::Failure| HubError::Refused(failure.message))
    }

    /// Changes the tags, which nobody but services sees.
    pub fn patch_tags(&self, id: &str, patch: Value) -> Result<(), HubError> {
        let patched = self.change(|state| state.patch_twin(id, &json!({ "tags": patch })));
        patched.map_err(|failure| HubError::Refused(failure.message))
    }

    /// What all devices have asked so far.
    pub fn traffic(&self) -> Traffic {
        self.inner.shared.read(|state| state.traffic)
    }

    /// Calls a direct method, once, of a device that is connected now. Waits for the answer up to `limit`.
    pub async fn call_method(
        &self,
        id: &str,
        name: &str,
        payload: Value,
        limit: Duration,
    ) -> Result<MethodResponse, MethodError> {
        let call =
            Call { name: name.to_owned(), payload, response_limit: limit, connect_limit: Duration::ZERO };
        self.inner.shared.call(id, &call).await
    }

    /// Waits until the reported properties, as [`Hub::reported`] shows them, are as `wanted`.
    ///
    /// # Errors
    /// A text with the last value, if that did not come about within `limit`.
    pub async fn wait_reported(
        &self,
        id: &str,
        limit: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, String> {
        let look = |state: &State| Some(reported(state, id)).filter(|value| wanted(value));
        let found = self.inner.shared.wait(limit, look).await;
        found.ok_or_else(|| format!("not reported within {limit:?}; the last value is {}", self.reported(id)))
    }

    /// Waits until the device is connected and subscribed to direct methods, or (`false`) is not connected.
    ///
    /// # Errors
    /// A text, if that did not come about within `limit`.
    pub async fn wait_connected(&self, id: &str, limit: Duration, wanted: bool) -> Result<(), String> {
        let ready = |state: &State| state.devices.get(id).is_some_and(device::Device::takes_methods);
        let look = |state: &State| (if wanted { ready(state) } else { !connected(state, id) }).then_some(());
        let found = self.inner.shared.wait(limit, look).await;
        found.ok_or_else(|| {
            format!("{id} connected: {}, which is not what was waited {limit:?} for", self.connected(id))
        })
    }
}

/// Faults.
impl Hub {
    /// Refuses the next `times` connects, of any device, with this CONNACK code (1 to 5).
    pub fn refuse_connects(&self, times: usize, code: u8) {
        self.change(|state| state.faults.refuse = (times, code));
    }

    /// Drops each device's connection, without a word.
    pub fn drop_connections(&self) {
        self.change(|state| state.devices.values_mut().for_each(device::Device::detach));
    }

    /// Away: drops all connections, and every new one at once. The ports stay open.
    pub fn set_away(&self, away: bool) {
        self.change(|state| state.faults.away = away);
        if away {
            self.drop_connections();
        }
    }

    /// Mute: twin requests are neither carried out nor answered, and desired properties are not pushed.
    pub fn mute_twin(&self, mute: bool) {
        self.change(|state| state.faults.mute_twin = mute);
    }

    /// Refuses the next patch of reported properties with this status.
    pub fn fail_next_patch(&self, status: u16) {
        self.change(|state| state.faults.fail_next_patch = Some(status));
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        self.inner.shared.change(change)
    }
}

fn reported(state: &State, id: &str) -> Value {
    state.devices.get(id).map(|device| device.twin.reported.properties.clone()).unwrap_or_default()
}

fn connected(state: &State, id: &str) -> bool {
    state.devices.get(id).is_some_and(|device| device.link.is_some())
}

async fn listen(port: u16) -> io::Result<TcpListener> {
    let address = (Ipv4Addr::LOCALHOST, port);
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("listen on {}:{port}: {error}", address.0));
    TcpListener::bind(address).await.map_err(named)
}

/// Accepts connections for ever, and serves each in a task of its own.
async fn accept<F, S>(listener: TcpListener, shared: Arc<Shared>, serve: F)
where
    F: Fn(TcpStream, Arc<Shared>) -> S,
    S: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) if !shared.read(|state| state.faults.away) => {
                    connections.spawn(serve(socket, Arc::clone(&shared)));
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
