//! Azure IoT Hub on this machine, as far as a device and its operator need it: MQTT over TLS or WebSocket for devices,
//! REST over HTTPS for services, the provisioning service and a storage for files beside it, and faults on request.
//! In memory and on the loopback interface only, unless told otherwise.

mod admission;
mod certificates;
mod clock;
mod configuration;
mod device;
mod dps;
mod events;
mod failure;
mod https;
mod identity;
mod inbox;
mod job;
mod listener;
mod method;
mod mqtt;
mod policy;
mod query;
mod random;
mod rest;
mod rollout;
mod sas;
mod scheduler;
mod session;
mod state;
mod store;
mod throttle;
mod topic;
mod traffic;
mod twin;
mod upload;
mod websocket;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use self::certificates::Authorities;
pub use self::certificates::CertificateError;
pub use self::device::MethodResponse;
pub use self::dps::Dps;
pub use self::events::Event;
use self::identity::{Authentication, module_key};
use self::listener::{accept, listen};
use self::method::Call;
pub use self::method::MethodError;
use self::state::{Shared, State};
use self::store::Store;
pub use self::store::StoreError;
pub use self::throttle::Operation;
pub use self::traffic::Traffic;
use self::twin::Write;
pub use self::twin::merge;
pub use self::upload::{Upload, UploadNotification};
use crate::ca::{Authority, AuthorityError};

/// How often the real hub evaluates configurations.
const EVALUATION_INTERVAL: Duration = Duration::from_secs(300);
/// What a service connection string without a port means.
const HTTPS_PORT: u16 = 443;

/// How to start a hub. The default suits tests.
#[derive(Debug, Clone, Default)]
pub struct HubOptions {
    /// The port for devices; 0 takes any free one.
    pub mqtt_port: u16,
    /// The port for services; 0 takes any free one.
    pub https_port: u16,
    /// More ports like [`HubOptions::https_port`]: some kits know only 443, some tools take any other.
    pub more_https_ports: Vec<u16>,
    /// Names of the hub besides `localhost` and its address, also in its certificate. By the first it calls itself.
    pub host_names: Vec<String>,
    /// The address to listen on; the loopback interface's if not given.
    pub bind: Option<IpAddr>,
    /// Where to keep the state across restarts: keys, devices with their twins, enrollments, configurations and jobs.
    /// In memory only if not given.
    pub state_directory: Option<PathBuf>,
    /// How often configurations are evaluated besides when something changed; 5 minutes if not given, as on the real
    /// hub.
    pub evaluation_interval: Option<Duration>,
    /// Jobs that may wait or run at once; 1 if not given, as on a hub of the tier S1. S2 has 5, S3 has 10.
    pub active_jobs_limit: Option<usize>,
    /// Takes an etag without quotes in `If-Match` of `/configurations` for none, as the real hub does. Microsoft's
    /// Python kit sends it so.
    pub strict_etags: bool,
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
    authority: Arc<Authority>,
    store: Option<Arc<Store>>,
    mqtt_port: u16,
    https_port: u16,
    /// Ports and engines: end when dropped. The lock only makes them shareable.
    tasks: Mutex<JoinSet<()>>,
}

impl Hub {
    /// Opens both ports, with the state of the directory or, without one, as a new hub.
    ///
    /// # Errors
    /// A port is taken, or the state is unusable; [`StoreError`] is inside then.
    pub async fn start(options: HubOptions) -> io::Result<Self> {
        let bind = options.bind.unwrap_or(Ipv4Addr::LOCALHOST.into());
        let mut names = options.host_names.clone();
        names.push(bind.to_string());
        let directory = options.state_directory.clone();
        let opened = tokio::task::spawn_blocking(move || open(directory.as_deref(), &names)).await?;
        let (mut state, authority, store) = opened.map_err(io::Error::other)?;
        state.host_names = host_names(options.host_names, bind);
        state.strict_etags = options.strict_etags;
        state.active_jobs_limit = options.active_jobs_limit.unwrap_or(state.active_jobs_limit);
        let (shared, authority) = (Arc::new(Shared::new(state)), Arc::new(authority));
        let (mqtt, https) = (listen(bind, options.mqtt_port).await?, listen(bind, options.https_port).await?);
        let (mqtt_port, https_port) = (mqtt.local_addr()?.port(), https.local_addr()?.port());

        let mut tasks = JoinSet::new();
        let tls = Arc::new(authority.server_config_asking_clients());
        tasks.spawn(accept(mqtt, Arc::clone(&tls), Arc::clone(&shared), mqtt::converse_on_port));
        for port in options.more_https_ports {
            let https = listen(bind, port).await?;
            tasks.spawn(accept(https, Arc::clone(&tls), Arc::clone(&shared), https::converse));
        }
        tasks.spawn(accept(https, tls, Arc::clone(&shared), https::converse));
        let interval = options.evaluation_interval.unwrap_or(EVALUATION_INTERVAL);
        tasks.spawn(rollout::run(Arc::clone(&shared), interval));
        tasks.spawn(scheduler::run(Arc::clone(&shared)));
        if let Some(store) = &store {
            tasks.spawn(store::keep(Arc::clone(store), Arc::clone(&shared), Arc::clone(&authority)));
        }
        let inner = Inner { shared, authority, store, mqtt_port, https_port, tasks: Mutex::new(tasks) };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Closes ports and connections, and writes what has changed in the last second to the state directory. A hub that
    /// is only dropped closes too.
    pub async fn close(&self) -> Result<(), StoreError> {
        let mut tasks = std::mem::take(&mut *self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
        let inner = Arc::clone(&self.inner);
        let save =
            move || inner.store.as_ref().map_or(Ok(()), |store| store.save(&inner.shared, &inner.authority));
        // It does not panic, and nothing cancels it.
        tokio::task::spawn_blocking(save).await.unwrap_or(Ok(()))
    }

    /// What the hub calls itself: the first of its names.
    pub fn host_name(&self) -> String {
        self.inner.shared.read(|state| state.host_names.first().cloned()).unwrap_or_default()
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
        self.change(|state| state.register(id, authentication.into()));
        self.of_device(id, &key)
    }

    fn of_device(&self, id: &str, key: &str) -> String {
        format!("HostName={};DeviceId={id};SharedAccessKey={key}", self.host_name())
    }

    /// The connection string of a device that is registered with keys.
    pub fn connection_string(&self, id: &str) -> Option<String> {
        let key = self.inner.shared.read(|state| match &state.devices.get(id)?.identity.authentication {
            Authentication::Sas { primary, .. } => Some(primary.clone()),
            _ => None,
        })?;
        Some(self.of_device(id, &key))
    }

    /// Registers a module of a device with new keys. Returns its connection string.
    pub fn add_module(&self, device: &str, module: &str) -> String {
        let key = random::key();
        let authentication = Authentication::Sas { primary: key.clone(), secondary: random::key() };
        self.change(|state| state.register(&module_key(device, module), authentication.into()));
        let host = self.host_name();
        format!("HostName={host};DeviceId={device};ModuleId={module};SharedAccessKey={key}")
    }

    /// Registers a device with a new certificate. Returns certificate and private key, in PEM.
    pub fn add_x509_device(&self, id: &str) -> Result<(String, String), HubError> {
        let (certificate, key) = self.authority().client_certificate(id)?;
        let der = CertificateDer::from_pem_slice(certificate.as_bytes());
        let der = der.map_err(|error| HubError::Refused(error.to_string()))?;
        let [_, sha256] = certificates::thumbprints(&der);
        let authentication = Authentication::SelfSigned { primary: Some(sha256), secondary: None };
        self.change(|state| state.register(id, authentication.into()));
        Ok((certificate, key))
    }

    /// Registers a device that shows a certificate for its id, signed by an authority of [`Hub::add_ca`].
    pub fn add_ca_device(&self, id: &str) {
        self.change(|state| state.register(id, Authentication::CertificateAuthority.into()));
    }

    /// Trusts one or more authorities (PEM) to sign certificates of devices.
    pub fn add_ca(&self, pem: &str) -> Result<(), CertificateError> {
        let authorities = Authorities::from_pem(pem)?;
        self.change(|state| state.authorities.extend(authorities));
        Ok(())
    }

    /// The connection string of the policy `iothubowner`.
    pub fn service_connection_string(&self) -> String {
        self.policy_connection_string(policy::OWNER).unwrap_or_default()
    }

    /// The connection string of a policy: `iothubowner`, `service`, `device`, `registryRead` or
    /// `registryReadWrite`; there are no others. Without the port that every client takes by itself: Microsoft's Node
    /// kit understands none.
    pub fn policy_connection_string(&self, name: &str) -> Option<String> {
        let (host, key) = (self.service_host(), self.policy_key(name)?);
        Some(format!("HostName={host};SharedAccessKeyName={name};SharedAccessKey={key}"))
    }

    /// The hub's name, with the port of the service API if it is not the usual one.
    fn service_host(&self) -> String {
        match self.https_port() {
            HTTPS_PORT => self.host_name(),
            port => format!("{}:{port}", self.host_name()),
        }
    }

    fn policy_key(&self, name: &str) -> Option<String> {
        self.inner.shared.read(|state| state.policies.named(name).map(|policy| policy.key.clone()))
    }
}

/// What a service would ask.
impl Hub {
    /// A token of the policy `iothubowner`, for a day: the `Authorization` of a call by hand.
    pub fn service_token(&self) -> Option<String> {
        const LIFE_SECS: i64 = 24 * 3600;
        let expiry = time::OffsetDateTime::now_utc().unix_timestamp() + LIFE_SECS;
        sas::policy_token(&self.host_name(), policy::OWNER, &self.policy_key(policy::OWNER)?, expiry)
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

    /// Each accepted patch of the reported properties, oldest first; of very many, the newest.
    pub fn history(&self, id: &str) -> Vec<Value> {
        let look = |state: &State| state.devices.get(id).map(|device| device.history.clone());
        self.inner.shared.read(look).unwrap_or_default().into()
    }

    /// The messages of the device to the cloud, oldest first; of very many, the newest.
    pub fn events(&self, id: &str) -> Vec<Event> {
        self.inner.shared.read(|state| state.events.of(id))
    }

    /// Waits until `wanted` is found among the messages of the device. Returns that message.
    ///
    /// # Errors
    /// A text, if it did not come within `limit`.
    pub async fn wait_event(
        &self,
        id: &str,
        limit: Duration,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Event, String> {
        let look = |state: &State| state.events.of(id).into_iter().find(|event| wanted(event));
        let found = self.inner.shared.wait(limit, look).await;
        found.ok_or_else(|| format!("no such message from {id} within {limit:?}"))
    }

    /// The files that the device has begun to upload, oldest first; of very many, the newest.
    pub fn uploads(&self, id: &str) -> Vec<Upload> {
        self.inner.shared.read(|state| state.uploads.of(id))
    }

    /// Sends a message to the device. It is kept until the device has acknowledged it. Returns its message id.
    pub fn send_c2d(
        &self,
        id: &str,
        body: impl Into<Bytes>,
        properties: &[(&str, &str)],
    ) -> Result<String, HubError> {
        let sent = self.change(|state| state.send_to_device(id, body.into(), properties));
        sent.map_err(|failure| HubError::Refused(failure.message))
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
            state.write_twin(id, Write::Patch, &patch)?;
            Ok(state.device(id)?.twin.desired.version)
        })
        .map_err(|failure: failure::Failure| HubError::Refused(failure.message))
    }

    /// Changes the tags, which nobody but services sees.
    pub fn patch_tags(&self, id: &str, patch: Value) -> Result<(), HubError> {
        let patched = self.change(|state| state.write_twin(id, Write::Patch, &json!({ "tags": patch })));
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

    /// Refuses the next `times` calls of services, of one kind or (`None`) of any, as too many (429).
    pub fn throttle(&self, operation: Option<Operation>, times: usize) {
        self.change(|state| state.faults.throttle.insert(operation, times));
    }

    /// Carries out the calls of services of this method and path, and answers them with 500.
    pub fn lose_answers(&self, method: &str, path: &str) {
        self.change(|state| state.faults.lost_answers.insert((method.to_owned(), path.to_owned())));
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

/// All names of the hub, the one by which it calls itself first.
fn host_names(given: Vec<String>, bind: IpAddr) -> Vec<String> {
    let mut own = vec!["localhost".to_owned(), bind.to_string()];
    if !bind.is_loopback() && !bind.is_unspecified() {
        own.reverse();
    }
    given.into_iter().chain(own).collect()
}

/// The hub as it was left, or a new one.
type Opened = (State, Authority, Option<Arc<Store>>);

fn open(directory: Option<&Path>, server_names: &[String]) -> Result<Opened, StoreError> {
    let store = directory.map(Store::open).transpose()?.map(Arc::new);
    let saved = store.as_ref().map(|store| store.load(server_names)).transpose()?.flatten();
    let (state, authority) = match saved {
        Some(saved) => saved,
        None => (State::default(), Authority::with_server_names(server_names)?),
    };
    Ok((state, authority, store))
}
