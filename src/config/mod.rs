//! The configuration: as written in TOML files, merged, and valid.
//!
//! `config.toml`, then the drop-ins `config.d/*.toml` beside it in name order; a later value wins over an
//! earlier one, key by key. Every fault of every file comes out of one reading.

mod fault;
mod files;
mod keys;
mod secret_file;
mod section;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::boot::scheme::Scheme;
use crate::install::verify::ImageCheck;
use crate::redact::Secret;
use crate::scripts::Surroundings;
use crate::tls::Identity;
use crate::update::Slot;

pub use fault::{Fault, Faults, Place};
pub use section::Effective;

/// Where the configuration is unless the command line says otherwise.
pub const DEFAULT_PATH: &str = "/etc/twinboot/config.toml";

/// Where the daemon listens unless the configuration says otherwise.
pub const DEFAULT_CONTROL_SOCKET: &str = "/run/twinboot/control.sock";

/// A valid configuration, and how it came about.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the daemon runs by.
    pub config: Config,
    /// Every key with the value in force and its origin. Holds no secret: those are in files of their own.
    pub effective: Vec<Effective>,
    /// What is valid, and yet not as twinboot-network.service will see it.
    pub notes: Vec<Fault>,
}

impl Config {
    /// Reads `main` and its drop-ins. `credentials` is systemd's `$CREDENTIALS_DIRECTORY`: its
    /// `connection-string` is taken where the files name no identity.
    ///
    /// # Errors
    /// All faults of all files, those of the secret files named in them included.
    pub fn load(main: &Path, credentials: Option<&Path>) -> Result<Loaded, Faults> {
        keys::read(main, credentials, None)
    }

    /// The same for the agent beside a networked part that listens at `network`: `[hub]` is not looked at, and
    /// neither are its secrets.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_beside(main: &Path, network: PathBuf) -> Result<Loaded, Faults> {
        keys::read(main, None, Some(network))
    }
}

/// The files with secrets that the configuration at `main` names, whether the rest of it is valid or not.
#[must_use]
pub fn secret_files(main: &Path) -> Vec<PathBuf> {
    keys::secret_files(main)
}

/// A configuration in which every value is present and makes sense.
#[derive(Clone, Debug)]
pub struct Config {
    /// How the hub is reached; `None`: a device without a cloud, updated by its own command line.
    pub hub: Option<Hub>,
    /// `state.directory`: survives updates, so on neither slot.
    pub state_directory: PathBuf,
    /// The block devices (or regular files) of each slot.
    pub slots: Slots,
    /// The boot loader's side.
    pub boot: Boot,
    /// What an image must satisfy.
    pub install: Install,
    /// What a trial boot must pass.
    pub health: Health,
    /// What has a say in an update.
    pub hooks: Hooks,
    /// Where this machine differs from a usual Linux system.
    pub system: System,
    /// Where the networked part listens, which alone knows the hub then; `None`: one process does everything.
    pub network: Option<PathBuf>,
    /// Where hooks and health checks run; the command line says it, which is the unit's as its sandbox is.
    pub scripts: Surroundings,
    /// `metrics.file`: kept up to date for node_exporter, if there is one.
    pub metrics_file: Option<PathBuf>,
}

/// `[[slot]]`, by name.
#[derive(Clone, Debug)]
pub struct Slots {
    /// Device of slot `a`.
    pub a: PathBuf,
    /// Device of slot `b`.
    pub b: PathBuf,
    /// What else belongs to each slot, by class.
    pub others: BTreeMap<String, Pair>,
}

/// The devices of one class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Of slot `a`.
    pub a: PathBuf,
    /// Of slot `b`.
    pub b: PathBuf,
}

impl Pair {
    /// The device of `slot`.
    #[must_use]
    pub fn device(&self, slot: Slot) -> &PathBuf {
        match slot {
            Slot::A => &self.a,
            Slot::B => &self.b,
        }
    }
}

impl Slots {
    /// All devices.
    pub fn devices(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.a, &self.b].into_iter().chain(self.others.values().flat_map(|pair| [&pair.a, &pair.b]))
    }

    /// The device of `slot`.
    #[must_use]
    pub fn device(&self, slot: Slot) -> &PathBuf {
        match slot {
            Slot::A => &self.a,
            Slot::B => &self.b,
        }
    }
}

/// `[hub]`.
#[derive(Clone, Debug)]
pub struct Hub {
    /// The IoT hub's own name: in the user name and the token, whatever is dialled.
    pub host_name: String,
    /// `GatewayHostName`: dialled instead of the hub, and named by its certificate.
    pub gateway_host_name: Option<String>,
    /// Device identity.
    pub device_id: String,
    /// How the device proves that identity.
    pub credentials: Credentials,
    /// PEM file of the roots to trust in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// MQTT over TLS; 8883 unless set.
    pub port: u16,
    /// File upload; 443 unless set.
    pub https_port: u16,
    /// MQTT keep-alive.
    pub keep_alive: Duration,
}

impl Hub {
    /// The host that is dialled: the gateway where there is one.
    #[must_use]
    pub fn dialled(&self) -> &str {
        self.gateway_host_name.as_deref().unwrap_or(&self.host_name)
    }
}

/// Device authentication at the hub.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// Base64 of the device's symmetric key.
    SharedAccessKey(Secret),
    /// PEM files of a client certificate chain and its key.
    Certificate {
        /// Leaf first.
        certificate_file: PathBuf,
        /// PKCS#8, PKCS#1 or SEC1.
        key_file: PathBuf,
    },
}

impl Credentials {
    /// What is shown in the TLS handshake, if it is that.
    #[must_use]
    pub fn identity(&self) -> Option<Identity<'_>> {
        match self {
            Self::SharedAccessKey(_) => None,
            Self::Certificate { certificate_file, key_file } => Some(Identity { certificate_file, key_file }),
        }
    }
}

/// `[boot]`.
#[derive(Clone, Debug)]
pub struct Boot {
    /// Which variables the boot script reads.
    pub scheme: Scheme,
    /// `fw_env.config`.
    pub environment: PathBuf,
    /// Boots that a trial may take before the boot loader falls back.
    pub attempts: u8,
    /// Lock files of the two families of environment tools; both are taken.
    pub lock_files: Vec<PathBuf>,
}

/// `[install]`.
#[derive(Clone, Debug)]
pub struct Install {
    /// What an image must come with.
    pub check: ImageCheck,
    /// Directory of minisign public keys (`*.pub`).
    pub keys: PathBuf,
    /// The name by which bundles know this kind of board.
    pub compatible: Option<String>,
    /// PEM file of the roots to trust for downloads in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// How long an unreachable server is asked again.
    pub retry_limit: Duration,
    /// Whether a version that is not newer is taken.
    pub allow_downgrade: bool,
}

/// `[health]`.
#[derive(Clone, Debug)]
pub struct Health {
    /// All checks together, on the boot-time clock.
    pub deadline: Duration,
    /// Whether the hub must be reached.
    pub hub: HubCheck,
    /// systemd units that must be active.
    pub units: Vec<String>,
    /// Directory of executables that must succeed.
    pub scripts: PathBuf,
}

/// `health.hub`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HubCheck {
    /// A trial without the hub is rolled back.
    Always,
    /// Only if this device was online before the update's reboot: a cloud outage must not undo a fleet.
    IfOnlineBefore,
    /// The hub does not matter.
    Never,
}

/// `[hooks]`.
#[derive(Clone, Debug)]
pub struct Hooks {
    /// Has a directory of executables for each point.
    pub directory: PathBuf,
    /// For each executable.
    pub limit: Duration,
    /// After a deferral, until they are asked again.
    pub defer_interval: Duration,
    /// For all deferrals at one point.
    pub defer_limit: Duration,
}

/// `[system]`.
#[derive(Clone, Debug)]
pub struct System {
    /// Asks for the reboot; a program and its arguments, no shell.
    pub reboot_command: Vec<String>,
    /// Prints `yes` (or `NTPSynchronized=yes`) once the wall clock is right.
    pub clock_check_command: Vec<String>,
    /// Where procfs is mounted.
    pub proc: PathBuf,
    /// The control socket of the local command line.
    pub control_socket: PathBuf,
    /// The release file that names the running version (`IMAGE_VERSION`).
    pub os_release: PathBuf,
}

#[cfg(test)]
mod tests;
