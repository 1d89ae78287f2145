//! `hub-emulator serve`: the hub for as long as somebody wants it.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use clap::Args;
use hub_emulator::hub::{CertificateError, Hub, HubError, HubOptions, StoreError};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::level_filters::LevelFilter;

/// Devices whose connection strings are printed; more go into a file.
const PRINTED_DEVICES: usize = 3;
const DEFAULT_DEVICE: &str = "dev-1";
const POLICIES: [&str; 4] = ["service", "device", "registryRead", "registryReadWrite"];

pub(super) const HELP: &str = r#"Give a device the connection string that is printed for it, the port of --mqtt-port and the authority's certificate
of --ca-file as the one to trust. Without --state the keys and the authority are new at each start. MQTT over
WebSocket is on the port of the service API, as on the real hub. It also prints how to call a method of a device and
read its twin with curl.

Examples:
  hub-emulator serve                          one device, dev-1, and nothing kept
  hub-emulator serve --state hub --devices 50 device-0001 to device-0050; the same again at the next start
  hub-emulator serve --https-port 443 --also-https-port 8443
                                              ports for kits that know only 443, and for tools that take any
  hub-emulator serve --bind 192.168.1.5 --host-name hub.lab
                                              for boards in the same network
  hub-emulator serve --x509-ca fleet-ca.pem --enrollment-group fleet
                                              devices that come with certificates, or register themselves

Devices that show a certificate of --x509-ca are registered with "authentication": {"type": "certificateAuthority"}.
Certificates must be of X.509 version 3, which `openssl x509 -req` makes only with an -extfile.
Devices that register themselves (DPS) need the id scope and a key: of --enrollment, or of --enrollment-group, from
which each device's is derived: base64(HMAC-SHA256(base64-decoded group key, registration id)). Enrollments with
certificates or an initial twin are put by the provisioning service's own API, on the same port.

With a token of iothubowner, GET /emulator/events/dev-1 gives what the device has sent to the cloud, GET
/emulator/uploads/dev-1 the files that it has uploaded, and POST /devices/dev-1/messages/devicebound sends it a
message. The real hub has AMQP for these, which the emulator has not.

Faults are injected by POST /emulator/faults with a token of iothubowner, as JSON with any of these keys:
  {"dropConnections": true}                    drops every device's connection, without a word
  {"refuseConnects": {"times": 2, "code": 3}}  refuses the next connects with this CONNACK code
  {"keepOut": ["dev-1"]}                       drops these devices, until a list without them follows
  {"muteTwin": true}                           carries out no twin request, pushes no desired properties
  {"failNextPatch": 429}                       refuses the next patch of reported properties; 0 takes it back
  {"throttle": 3}                              refuses the next calls of services with 429; with
                                               "throttleOperation" those of one kind: registryRead, registryWrite,
                                               twinRead, twinWrite, query, directMethod, configurationRead,
                                               configurationWrite, jobRead, jobWrite or message
  {"failNextRegistration": 503}                refuses the next request to the provisioning service with this status
  {"busyPolls": 2, "retryAfterSecs": 1}        lets registrations take so many polls, and asks to wait in between
  {"awaySecs": 5}                              drops everybody, lets nobody in, answers when that is over;
                                               hanging up ends it"#;

/// What the hub is to be.
#[derive(Args)]
pub(super) struct Serve {
    /// Port for devices; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8883)]
    mqtt_port: u16,
    /// Port for the service API and for devices over WebSocket; 0 takes a free one
    #[arg(long, value_name = "N", default_value_t = 8443)]
    https_port: u16,
    /// One more port like --https-port; can be given more than once
    #[arg(long, value_name = "N")]
    also_https_port: Vec<u16>,
    /// The address to listen on. The default is reached from this machine only; with another one, whoever reaches it
    /// and has a key gets in
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    bind: IpAddr,
    /// A name of the hub besides localhost, by which it calls itself; can be given more than once
    #[arg(long = "host-name", value_name = "NAME")]
    host_names: Vec<String>,
    /// Keep the state in this directory: keys, devices with their twins, enrollments, configurations, jobs
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Where to write the certificate of the authority that clients must trust
    #[arg(long, value_name = "PATH", default_value = "hub-emulator-ca.pem")]
    ca_file: PathBuf,
    /// A device to register, if it is not yet; can be given more than once [default: dev-1]
    #[arg(long = "device", value_name = "ID")]
    named_devices: Vec<String>,
    /// Register the devices device-0001 to device-N
    #[arg(long = "devices", value_name = "N", default_value_t = 0, hide_default_value = true)]
    device_count: usize,
    /// Where to write the devices' connection strings if there are many [default: DIR/devices.txt, or
    /// hub-emulator-devices.txt]
    #[arg(long, value_name = "PATH")]
    devices_file: Option<PathBuf>,
    /// Certificates (PEM) of authorities that sign devices' certificates; can be given more than once
    #[arg(long, value_name = "FILE")]
    x509_ca: Vec<PathBuf>,
    /// A device that may register itself with a key; can be given more than once
    #[arg(long = "enrollment", value_name = "ID")]
    enrollments: Vec<String>,
    /// A group of devices that may register themselves with keys derived from one; can be given more than once
    #[arg(long = "enrollment-group", value_name = "NAME")]
    enrollment_groups: Vec<String>,
    /// How much to log: error, warn, info (a line per operation) or debug
    #[arg(long, value_name = "LEVEL", default_value_t = LevelFilter::INFO)]
    log: LevelFilter,
}

/// Why there is no hub.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServeError {
    #[error("start the hub: {0}")]
    Start(#[source] io::Error),
    #[error("write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("trust {}: {source}", path.display())]
    Authority { path: PathBuf, source: CertificateError },
    #[error("enroll: {0}")]
    Enroll(#[from] HubError),
    #[error("wait for Ctrl-C: {0}")]
    Signal(#[source] io::Error),
    #[error(transparent)]
    Save(#[from] StoreError),
}

/// Serves until Ctrl-C or SIGTERM.
pub(super) async fn run(options: &Serve) -> Result<(), ServeError> {
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .with_max_level(options.log)
        .init();
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signal)?;
    allow_files();
    let hub = Hub::start(options.hub()).await.map_err(ServeError::Start)?;
    options.trust(&hub)?;
    let written = tokio::fs::write(&options.ca_file, hub.ca_pem()).await;
    written.map_err(|source| ServeError::Write { path: options.ca_file.clone(), source })?;
    let devices = options.register(&hub);
    print!("{}{}", options.where_it_is(&hub), options.policies(&hub));
    print!("{}", options.devices(&devices)?);
    print!("{}", options.provisioning(&hub)?);
    print!("{}", options.curl_lines(&hub, &devices));
    println!("Ctrl-C ends it.");
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(ServeError::Signal)?,
        _ = terminate.recv() => {}
    }
    Ok(hub.close().await?)
}

/// A device takes one open file; a shell's usual limit would let a thousand in.
fn allow_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

impl Serve {
    fn hub(&self) -> HubOptions {
        HubOptions {
            mqtt_port: self.mqtt_port,
            https_port: self.https_port,
            more_https_ports: self.also_https_port.clone(),
            bind: Some(self.bind),
            host_names: self.host_names.clone(),
            state_directory: self.state.clone(),
            ..HubOptions::default()
        }
    }

    fn trust(&self, hub: &Hub) -> Result<(), ServeError> {
        for path in &self.x509_ca {
            let read = |source| ServeError::Read { path: path.clone(), source };
            let pem = std::fs::read_to_string(path).map_err(read)?;
            hub.add_ca(&pem).map_err(|source| ServeError::Authority { path: path.clone(), source })?;
        }
        Ok(())
    }

    /// Registers the devices that are not yet. Returns the connection strings of all that were asked for, by id.
    fn register(&self, hub: &Hub) -> Vec<(String, String)> {
        let mut ids = self.named_devices.clone();
        ids.extend((1..=self.device_count).map(|n| format!("device-{n:04}")));
        if ids.is_empty() {
            ids.push(DEFAULT_DEVICE.to_owned());
        }
        let known = |id: String| {
            let text = hub.connection_string(&id).unwrap_or_else(|| hub.add_device(&id));
            (id, text)
        };
        ids.into_iter().map(known).collect()
    }

    fn where_it_is(&self, hub: &Hub) -> String {
        let host = hub.host_name();
        let mut text = format!("devices:   mqtts://{host}:{}\n", hub.mqtt_port());
        for port in [hub.https_port()].iter().chain(&self.also_https_port) {
            let _ = writeln!(text, "service:   https://{host}:{port}");
        }
        let _ = writeln!(text, "authority: {}", self.ca_file.display());
        if let Some(directory) = &self.state {
            let _ = writeln!(text, "state:     {}", directory.display());
        }
        let reach = if self.bind.is_loopback() {
            "Only this machine reaches it."
        } else {
            "OTHER MACHINES REACH IT."
        };
        text + reach + "\n"
    }

    fn policies(&self, hub: &Hub) -> String {
        let mut text = format!("service connection string:\n  {}\n", hub.service_connection_string());
        text += "of its other policies:\n";
        for name in POLICIES {
            let _ = writeln!(text, "  {name:17} {}", hub.policy_connection_string(name).unwrap_or_default());
        }
        text
    }

    fn devices(&self, devices: &[(String, String)]) -> Result<String, ServeError> {
        let mut text = String::new();
        for (id, connection_string) in devices.iter().take(PRINTED_DEVICES) {
            let _ = writeln!(text, "connection string of device {id}:\n  {connection_string}");
        }
        if devices.len() > PRINTED_DEVICES {
            let path = self.devices_path();
            let lines: String = devices.iter().map(|(_, text)| format!("{text}\n")).collect();
            write_privately(&path, &lines)?;
            let _ = writeln!(text, "all {} devices: {}", devices.len(), path.display());
        }
        Ok(text)
    }

    fn devices_path(&self) -> PathBuf {
        let in_state = self.state.as_ref().map(|directory| directory.join("devices.txt"));
        self.devices_file.clone().or(in_state).unwrap_or_else(|| "hub-emulator-devices.txt".into())
    }

    fn provisioning(&self, hub: &Hub) -> Result<String, ServeError> {
        let dps = hub.dps();
        let mut text = format!("provisioning service (DPS): id scope {}\n", dps.id_scope());
        let _ = writeln!(text, "  {:17} {}", "its policy", dps.service_connection_string());
        for id in &self.enrollments {
            let key = dps.enrollment_key(id).map_or_else(|| dps.enroll_with_key(id), Ok)?;
            let _ = writeln!(text, "  key of enrollment {id}: {key}");
        }
        for name in &self.enrollment_groups {
            let key = dps.group_key(name).map_or_else(|| dps.enroll_group_with_key(name), Ok)?;
            let _ = writeln!(text, "  key of enrollment group {name}: {key}");
        }
        Ok(text)
    }

    fn curl_lines(&self, hub: &Hub, devices: &[(String, String)]) -> String {
        let (ca_file, port) = (self.ca_file.display(), hub.https_port());
        let token = hub.service_token().unwrap_or_default();
        let device = devices.first().map_or(DEFAULT_DEVICE, |(id, _)| id);
        let curl = format!("  curl --cacert {ca_file} -H 'Authorization: {token}'");
        let url = format!("https://{}:{port}/twins/{device}", hub.host_name());
        let body = r#"{"methodName":"firmwareUpdateStatus","payload":null}"#;
        format!(
            "call a method, and read the twin (the token is good for a day):\n\
             {curl} -d '{body}' '{url}/methods?api-version=2021-04-12'\n{curl} '{url}?api-version=2021-04-12'\n"
        )
    }
}

/// Writes a file that only this user can read, whole or not at all.
fn write_privately(path: &Path, text: &str) -> Result<(), ServeError> {
    let write = || {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let mut file = tempfile::NamedTempFile::new_in(directory.unwrap_or(Path::new(".")))?;
        file.write_all(text.as_bytes())?;
        file.persist(path)?;
        Ok(())
    };
    write().map_err(|source| ServeError::Write { path: path.to_owned(), source })
}
