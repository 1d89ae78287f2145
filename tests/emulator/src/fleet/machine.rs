//! One device's machine, in memory: two slots, a boot loader, and what is kept across boots.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use twinboot::agent::{Found, Known, Machine};
use twinboot::config;
use twinboot::health::{self, HealthError};
use twinboot::install::verify::VerifyError;
use twinboot::install::{self, Phase};
use twinboot::scripts::Surroundings;
use twinboot::store::StoreError;
use twinboot::update::{
    Boot, BootId, Code, Effect, Environment, Event, Failure, Image, Record, Sha256Digest, Slot, Update,
    UpdateId, Verdict,
};

/// What a request that tells no size is taken for.
const IMAGE_BYTES: u64 = 256 << 20;

/// Steps of a download: each is a report, if the last was long enough ago.
const DOWNLOAD_STEPS: u32 = 20;

/// Reading a slot back takes a tenth of a download over a usual link.
const READ_BACK_SHARE: u32 = 10;

/// What all devices of a fleet have in common.
#[derive(Debug, Clone)]
pub(super) struct Behaviour {
    /// The version that runs at first.
    pub version: String,
    /// A usual download; links differ, so that it takes between half of this and twice as long.
    pub download: Duration,
    /// A usual reboot; varies alike.
    pub reboot: Duration,
    /// Of a hundred updates, those that are fetched with other bytes than were meant.
    pub corrupt_percent: u8,
    /// Of a hundred updates, those that fail their trial.
    pub sick_percent: u8,
    /// The same seed is the same fleet.
    pub seed: u64,
}

/// What becomes of one update on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Good,
    Corrupt,
    BootsNot,
    Unhealthy,
}

/// What a slot holds.
#[derive(Debug, Clone)]
struct System {
    version: String,
    fate: Fate,
}

/// A machine; clones are the same one.
#[derive(Debug, Clone)]
pub(super) struct Simulated {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    device: String,
    behaviour: Arc<Behaviour>,
    reboot_asked: Notify,
    kept: Mutex<Kept>,
}

/// What survives a reboot.
#[derive(Debug)]
struct Kept {
    random: fastrand::Rng,
    record: Record,
    a: System,
    b: System,
    running: Slot,
    // The boot loader's variables.
    first: Slot,
    trial: bool,
}

impl Kept {
    fn slot(&mut self, slot: Slot) -> &mut System {
        match slot {
            Slot::A => &mut self.a,
            Slot::B => &mut self.b,
        }
    }
}

impl Simulated {
    /// A device as it left the factory.
    pub fn new(device: &str, behaviour: Arc<Behaviour>) -> Self {
        let system = System { version: behaviour.version.clone(), fate: Fate::Good };
        let kept = Kept {
            random: fastrand::Rng::with_seed(draw(behaviour.seed, device, "")),
            record: Record::default(),
            a: system.clone(),
            b: system,
            running: Slot::A,
            first: Slot::A,
            trial: false,
        };
        let inner = Inner {
            device: device.to_owned(),
            behaviour,
            reboot_asked: Notify::new(),
            kept: Mutex::new(kept),
        };
        Self { inner: Arc::new(inner) }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Between half of `usual` and twice as long.
    fn about(&self, usual: Duration) -> Duration {
        usual.mul_f64(0.5 + 1.5 * self.kept().random.f64())
    }

    /// Reset, boot loader, and start of the daemon, which finds this.
    pub async fn boot(&self) -> Found {
        let duration = self.about(self.inner.behaviour.reboot);
        tokio::time::sleep(duration).await;
        let mut kept = self.kept();
        let first = kept.first;
        let falls_back = kept.trial && kept.slot(first).fate == Fate::BootsNot;
        kept.running = if falls_back { first.other() } else { first };
        let running = kept.running;
        Found {
            boot: Boot { id: BootId(kept.random.u128(..)), slot: running },
            record: kept.record.clone(),
            image_version: Some(kept.slot(running).version.clone()),
            min_version: None,
            trial_timeouts: 0,
            clock_is_right: true,
        }
    }

    /// Until the daemon has asked for a reboot.
    pub async fn reboot_asked(&self) {
        self.inner.reboot_asked.notified().await;
    }

    fn fate(&self, id: &UpdateId) -> Fate {
        let behaviour = &self.inner.behaviour;
        let mut random = fastrand::Rng::with_seed(draw(behaviour.seed, &self.inner.device, id.as_str()));
        let sick_below = behaviour.corrupt_percent.saturating_add(behaviour.sick_percent);
        match random.u8(..100) {
            number if number < behaviour.corrupt_percent => Fate::Corrupt,
            number if number >= sick_below => Fate::Good,
            _ if random.bool() => Fate::BootsNot,
            _ => Fate::Unhealthy,
        }
    }

    async fn download(
        &self,
        update: &Update,
        progress: &watch::Sender<install::Progress>,
    ) -> install::Outcome {
        let total_bytes = update.request.size_bytes.unwrap_or(IMAGE_BYTES);
        let expected = update.request.check_value.unwrap_or(Sha256Digest([0; 32]));
        let duration = self.about(self.inner.behaviour.download);
        let mut shown = install::Progress { total_bytes: Some(total_bytes), ..install::Progress::default() };
        for step in 1..=DOWNLOAD_STEPS {
            progress.send_replace(shown);
            tokio::time::sleep(duration / DOWNLOAD_STEPS).await;
            shown.bytes = total_bytes * u64::from(step) / u64::from(DOWNLOAD_STEPS);
        }
        let fate = self.fate(&update.request.id);
        if fate == Fate::Corrupt {
            let actual = Sha256Digest(std::array::from_fn(|_| self.kept().random.u8(..)));
            let wrong = VerifyError::Digest { expected, actual };
            return Err(Failure::new(wrong.code(), wrong.to_string()));
        }
        progress.send_replace(install::Progress { phase: Phase::Verifying, ..shown });
        tokio::time::sleep(duration / READ_BACK_SHARE).await;
        let version = update.request.version.clone().unwrap_or_default();
        *self.kept().slot(update.target) = System { version, fate };
        Ok(Image { source_digest: expected, size_bytes: total_bytes, version: None, keys: None })
    }

    /// The hub reached again, as the daemon itself checks it, and then the application.
    async fn check_health(
        &self,
        update: &Update,
        since: Duration,
        connected: watch::Receiver<bool>,
    ) -> Result<(), Failure> {
        health::check(&checks(), Surroundings::Ours, since, update.online_before, connected)
            .await
            .map_err(Failure::from)?;
        if self.kept().slot(update.target).fate == Fate::Unhealthy {
            return Err(HealthError::UnitFailed { unit: "gateway.service".to_owned() }.into());
        }
        Ok(())
    }
}

impl Machine for Simulated {
    async fn save(&self, record: Record) -> Result<(), StoreError> {
        self.kept().record = record;
        Ok(())
    }

    async fn environment(&self) -> Environment {
        if self.kept().trial { Environment::Uncommitted } else { Environment::Committed }
    }

    async fn install(
        &self,
        update: &Update,
        _known: Known,
        progress: &watch::Sender<install::Progress>,
        mut cancelled: watch::Receiver<bool>,
    ) -> install::Outcome {
        tokio::select! {
            outcome = self.download(update, progress) => outcome,
            _ = cancelled.wait_for(|cancelled| *cancelled) => Err(Failure::new(Code::Cancelled, "cancelled")),
        }
    }

    async fn perform(&self, effect: Effect, connected: watch::Receiver<bool>) -> Option<Event> {
        let write = |first, trial| {
            let mut kept = self.kept();
            (kept.first, kept.trial) = (first, trial);
        };
        match effect {
            Effect::Activate(update) => {
                write(update.target, true);
                Some(Event::Activated(update.request.id, Ok(())))
            }
            Effect::Commit(update) => {
                write(update.target, false);
                Some(Event::Committed(update.request.id, Ok(())))
            }
            Effect::RollBack { id, to, .. } => {
                write(to, false);
                Some(Event::RolledBack(id, Ok(())))
            }
            Effect::CheckHealth { update, since_uptime_secs } => {
                let since = Duration::from_secs(since_uptime_secs);
                let result = self.check_health(&update, since, connected).await;
                Some(Event::HealthChecked(update.request.id, result))
            }
            Effect::Settle => {
                let running = self.kept().running;
                write(running, false);
                None
            }
            Effect::Reboot => {
                self.inner.reboot_asked.notify_one();
                None
            }
            Effect::RunHooks(run) => Some(Event::HooksRan(run.update.request.id, run.hook, Verdict::GoOn)),
            Effect::ConfirmBoot
            | Effect::KeepVersion(_)
            | Effect::Respond(_)
            | Effect::Report
            | Effect::Install(_)
            | Effect::Abort => None,
        }
    }
}

/// The daemon's own checks, as far as they make sense here.
pub(super) fn checks() -> config::Health {
    config::Health {
        deadline: Duration::from_secs(600),
        hub: config::HubCheck::IfOnlineBefore,
        units: Vec::new(),
        scripts: PathBuf::new(),
    }
}

/// A number that depends on all of these and on nothing else.
fn draw(seed: u64, device: &str, update: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, device, update).hash(&mut hasher);
    hasher.finish()
}
