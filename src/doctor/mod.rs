//! The doctor: whether every wire between the daemon, the boot loader, the partitions and the hub is where it belongs.
//!
//! It looks, and writes nothing; what it can repair, [`Repair`] does on request. It works beside a running daemon, and
//! in place of one that does not start.

mod configuration;
mod environment;
mod hub;
mod machine;
mod repair;
mod slots;
mod state;
mod trust;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::boot::booted::{self, BootedError, Evidence, Home};
use crate::boot::fw_env::{BootEnvError, Inspection, UbootEnv};
use crate::causes::one_line;
use crate::config::Config;
use crate::control::{Client, ClientError, Status};
use crate::store::{self, StoreError};
use crate::system;
use crate::update::Record;
use crate::update::record::RecordError;

pub use repair::Repair;

/// How good or bad a finding is; the order is that of badness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but a protection is missing, or somebody should look.
    Warning,
    /// An update, a fall back or the hub does not work.
    Fault,
}

impl Level {
    /// In JSON, and for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Fault => "fault",
        }
    }
}

/// What one check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// `family.check`: stable for ever.
    pub check: &'static str,
    /// Good or bad.
    pub level: Level,
    /// What was seen, in one line.
    pub evidence: String,
    /// What to do; empty where nothing is to be done.
    pub advice: String,
    /// What would repair it, where that is safe.
    pub repair: Option<Repair>,
}

impl Finding {
    fn ok(check: &'static str, evidence: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, evidence.into(), String::new())
    }

    fn warning(check: &'static str, evidence: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(check, Level::Warning, evidence.into(), advice.into())
    }

    fn fault(check: &'static str, evidence: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(check, Level::Fault, evidence.into(), advice.into())
    }

    fn new(check: &'static str, level: Level, evidence: String, advice: String) -> Self {
        Self { check, level, evidence, advice, repair: None }
    }

    fn repaired_by(self, repair: Repair) -> Self {
        Self { repair: Some(repair), ..self }
    }

    /// `family` of `family.check`.
    #[must_use]
    pub fn family(&self) -> &'static str {
        self.check.split_once('.').map_or(self.check, |(family, _)| family)
    }

    fn as_json(&self) -> Value {
        json!({
            "check": self.check,
            "level": self.level.name(),
            "evidence": self.evidence,
            "advice": self.advice,
            "repairable": self.repair.is_some(),
        })
    }
}

/// All findings of one look.
#[derive(Clone, Debug, Default)]
pub struct Report(pub Vec<Finding>);

impl Report {
    /// The worst of all findings.
    #[must_use]
    pub fn level(&self) -> Level {
        self.0.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok)
    }

    /// How many findings are of this level.
    #[must_use]
    pub fn count(&self, level: Level) -> usize {
        self.0.iter().filter(|finding| finding.level == level).count()
    }

    /// With keys that are stable for ever.
    #[must_use]
    pub fn as_json(&self) -> Value {
        json!({
            "level": self.level().name(),
            "ok": self.count(Level::Ok),
            "warnings": self.count(Level::Warning),
            "faults": self.count(Level::Fault),
            "checks": self.0.iter().map(Finding::as_json).collect::<Vec<_>>(),
        })
    }
}

/// What is looked at.
#[derive(Clone, Debug)]
pub struct Patient {
    /// In force.
    pub config: Config,
    /// What the running daemon says of itself; or why nobody does.
    pub daemon: Result<Status, String>,
    /// Whether it is certain that no daemon runs: only then the hub is called, whose session would end the daemon's.
    pub is_alone: bool,
    /// Where sysfs is mounted.
    pub sysfs: PathBuf,
    /// `systemctl`; arguments are added.
    pub systemctl: Vec<String>,
}

impl Patient {
    /// One of a usual Linux system.
    #[must_use]
    pub fn usual(config: Config, daemon: Result<Status, String>, is_alone: bool) -> Self {
        let (sysfs, systemctl) = (PathBuf::from("/sys"), vec!["systemctl".to_owned()]);
        Self { config, daemon, is_alone, sysfs, systemctl }
    }
}

/// Reads the configuration, and looks at everything. `credentials` is systemd's `$CREDENTIALS_DIRECTORY`. The
/// configuration comes out too, as far as there is one.
pub async fn visit(main: &Path, credentials: Option<&Path>) -> (Report, Option<Config>) {
    let (mut findings, config) = configuration::check(main, credentials);
    if let Some(config) = &config {
        let daemon = ask_daemon(config).await;
        let is_alone = daemon.as_ref().is_err_and(ClientError::nobody_is_there);
        let daemon = daemon.map_err(|error| one_line(&error));
        findings.extend(examine(Patient::usual(config.clone(), daemon, is_alone)).await.0);
    }
    (Report(findings), config)
}

/// What the daemon says of itself. Who has just started it asks at once: it gets the time to reach the hub.
async fn ask_daemon(config: &Config) -> Result<Status, ClientError> {
    /// A handshake over a slow mobile network.
    const CONNECT_LIMIT: Duration = Duration::from_secs(10);
    const ASK_AGAIN: Duration = Duration::from_millis(500);
    let began = system::uptime();
    loop {
        let status = Client::status(&config.system.control_socket);
        let is_offline = config.hub.is_some() && status.as_ref().is_ok_and(|status| !status.hub_connected);
        if !is_offline || system::uptime().saturating_sub(began) >= CONNECT_LIMIT {
            return status;
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Looks at everything but the configuration.
pub async fn examine(patient: Patient) -> Report {
    let patient = Arc::new(patient);
    let looked = tokio::task::spawn_blocking({
        let patient = Arc::clone(&patient);
        move || look(&patient)
    });
    let mut findings = looked.await.unwrap_or_default();
    findings.extend(machine::ask(&patient).await);
    findings.extend(hub::check(&patient).await);
    Report(findings)
}

fn look(patient: &Patient) -> Vec<Finding> {
    let seen = Seen::look(patient);
    [
        environment::check(&seen),
        slots::check(&seen),
        state::check(&seen),
        trust::check(&seen),
        machine::check(patient),
    ]
    .concat()
}

/// What several checks look at, read once.
struct Seen<'a> {
    config: &'a Config,
    sysfs: &'a Path,
    is_alone: bool,
    environment: Result<Inspection, BootEnvError>,
    booted: Result<Evidence, BootedError>,
    record: Result<Option<Result<Record, RecordError>>, StoreError>,
    /// What the state directory is on.
    home: Result<Home, BootedError>,
}

impl<'a> Seen<'a> {
    fn look(patient: &'a Patient) -> Self {
        let config = &patient.config;
        let environment = UbootEnv::new(&config.boot.environment, &config.boot.lock_files);
        Self {
            config,
            sysfs: &patient.sysfs,
            is_alone: patient.is_alone,
            environment: environment.and_then(|environment| environment.inspect()),
            booted: booted::booted_slot(&config.system.proc, &config.slots),
            record: store::peek(&config.state_directory),
            home: booted::home(&config.system.proc, &config.state_directory, &config.slots),
        }
    }

    /// The state, where there is one that is believed.
    fn record(&self) -> Option<&Record> {
        self.record.as_ref().ok()?.as_ref()?.as_ref().ok()
    }

    /// Whether the state file says that no update is under way, or is missing as at the factory: but not because its
    /// partition is not mounted.
    fn is_at_rest(&self) -> bool {
        if !self.home.as_ref().is_ok_and(|home| home.slot.is_none() && !home.is_volatile()) {
            return false;
        }
        match &self.record {
            Ok(None) => true,
            Ok(Some(Ok(record))) => record.state.is_at_rest(),
            Ok(Some(Err(_))) | Err(_) => false,
        }
    }
}
