//! The machine that the daemon runs on.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Mutex, watch};
use tracing::{error, info, warn};

use super::AgentError;
use super::machine::{Found, Known, Machine};
use crate::boot::booted::{self, Evidence};
use crate::boot::scheme::Scheme;
use crate::boot::{BootControl, BootError};
use crate::causes::one_line;
use crate::config::{self, Config, HubCheck};
use crate::control::Status;
use crate::diagnostics::{self, Sources};
use crate::doctor::{self, Patient};
use crate::health;
use crate::hooks;
use crate::install::verify::Trust;
use crate::install::{self, Device, ImageSpec, Job, Other};
use crate::store::{StateStore, StoreError};
use crate::system::{self, message_id};
use crate::trial::{Mark, MarkError};
use crate::update::{
    Boot, Code, Effect, Environment, Event, Failure, HookRun, Record, Slot, Update, Verdict,
};

/// A reboot takes seconds to begin; one that has not begun by then is asked for again.
const REBOOT_AGAIN: Duration = Duration::from_secs(60);

/// Then the watchdog is no longer fed, and bites.
const REBOOTS_ASKED_MAX: usize = 5;

/// Neither an update nor a system that was found good is given up for a lock that somebody holds: three tries take less
/// than a minute of the trial, those for the lock included.
const TRIES_MAX: usize = 3;

/// Between them.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// A committed slot that is not well yet may become so while its network and its programs come up.
const CONFIRM_AGAIN: Duration = Duration::from_secs(60);

/// An environment that could not be written on the good slot is left alone for a while.
const ROLL_BACK_AGAIN: Duration = Duration::from_secs(60);

/// Slots, boot environment, state directory and service manager, where the configuration says that they are.
#[derive(Clone, Debug)]
pub struct Linux {
    config: Config,
    booted: Evidence,
    store: StateStore,
    mark: Mark,
    /// Held over both steps of a decision, which change the mark and the environment.
    deciding: Arc<Mutex<()>>,
    /// Held by the hooks that run.
    hooks: Arc<Mutex<()>>,
}

impl Linux {
    /// Looks which slot runs, and what was saved.
    ///
    /// # Errors
    /// When the agent could not work here.
    pub(super) async fn look_around(config: Config) -> Result<(Self, Found), AgentError> {
        let clock_check_command = config.system.clock_check_command.clone();
        let look = tokio::task::spawn_blocking(move || Self::look(config)).await;
        let (machine, found) = look.map_err(|_| AgentError::Interrupted)??;
        info!("{}; boot {}", machine.booted, found.boot.id);
        let clock_is_right = system::clock_is_right(&clock_check_command).await;
        Ok((machine, Found { clock_is_right, ..found }))
    }

    fn look(config: Config) -> Result<(Self, Found), AgentError> {
        let proc = &config.system.proc;
        let booted = booted::booted_slot(proc, &config.slots)?;
        let boot = Boot { id: booted::boot_id(proc)?, slot: booted.slot };
        let store = StateStore::open(&config.state_directory)?;
        if let Some(slot) = booted::home(proc, &config.state_directory, &config.slots)?.slot {
            return Err(AgentError::StateOnSlot { path: config.state_directory.clone(), slot });
        }
        let loaded = store.load()?;
        if loaded.damage.is_some()
            && let Some(fault) = &loaded.record.fault
        {
            error!(MESSAGE_ID = message_id::STATE_DAMAGED, "{}", fault.message);
        }
        let image_version = system::image_version(&config.system.os_release);
        let mark = Mark::new(&config.state_directory);
        let trial_timeouts = mark.reboots();
        let record = loaded.record;
        // What cannot be read now says so at the first look at the environment.
        let min_version =
            BootControl::open(&config.boot).ok().and_then(|mut boot| boot.min_version().ok()).flatten();
        let clock_is_right = false;
        let found = Found { boot, record, image_version, min_version, trial_timeouts, clock_is_right };
        let (deciding, hooks) = (Arc::default(), Arc::default());
        Ok((Self { config, booted, store, mark, deciding, hooks }, found))
    }

    /// Makes one decision in the environment, on a thread of its own. The error is one line for a person.
    async fn on_environment<T: Send + 'static>(
        &self,
        decision: impl FnOnce(&mut BootControl) -> Result<T, BootError> + Send + 'static,
    ) -> Result<T, String> {
        let config = self.config.boot.clone();
        let blocking = move || {
            let mut boot = BootControl::open(&config).map_err(|error| one_line(&error))?;
            decision(&mut boot).map_err(|error| one_line(&error))
        };
        tokio::task::spawn_blocking(blocking).await.unwrap_or_else(|_| Err("interrupted".to_owned()))
    }

    /// One environment transaction.
    async fn decide<T: Send + 'static>(
        &self,
        code: Code,
        decision: impl FnOnce(&mut BootControl) -> Result<T, BootError> + Send + 'static,
    ) -> Result<(), Failure> {
        self.on_environment(decision).await.map(drop).map_err(|reason| failed(code, reason))
    }

    /// Changes the mark by which systemd ends a trial, on a thread of its own.
    async fn mark(
        &self,
        code: Code,
        change: impl FnOnce(&Mark) -> Result<(), MarkError> + Send + 'static,
    ) -> Result<(), Failure> {
        let mark = self.mark.clone();
        let blocking = move || change(&mark).map_err(|error| one_line(&error));
        let changed = tokio::task::spawn_blocking(blocking).await;
        changed.unwrap_or_else(|_| Err("interrupted".to_owned())).map_err(|reason| failed(code, reason))
    }

    /// The slots' names must still lead to where they led at the start: a medium that was plugged in since, and has
    /// partitions of the same names, takes links away.
    async fn look_at_slots(&self) -> Result<(), Failure> {
        let (proc, slots) = (self.config.system.proc.clone(), self.config.slots.clone());
        let look = move || booted::booted_slot(&proc, &slots).map_err(|error| one_line(&error));
        let looked =
            tokio::task::spawn_blocking(look).await.unwrap_or_else(|_| Err("interrupted".to_owned()));
        let why = match looked {
            Ok(now) if now == self.booted => return Ok(()),
            Ok(now) => format!("when the daemon started {}; now {now}", self.booted),
            Err(reason) => reason,
        };
        Err(failed(Code::SlotUnusable, format!("the slots' devices are others now: {why}")))
    }

    /// No boot of the trial is without the mark: it is there before.
    async fn activate(&self, target: Slot) -> Result<(), Failure> {
        let (command_line, boots) = (self.config.system.proc.join("cmdline"), self.config.boot.attempts);
        self.mark(Code::ActivateFailed, move |mark| mark.arm(&command_line, boots)).await?;
        self.decide(Code::ActivateFailed, move |boot| boot.activate(target)).await
    }

    /// No boot of the committed slot has the mark: it is gone before.
    async fn commit(&self, target: Slot) -> Result<(), Failure> {
        self.mark(Code::CommitFailed, Mark::disarm).await?;
        self.decide(Code::CommitFailed, move |boot| boot.commit(target)).await
    }

    /// The steps of one decision, and again if they fail.
    async fn in_tries<F: Future<Output = Result<(), Failure>>>(
        &self,
        steps: impl Fn() -> F,
    ) -> Result<(), Failure> {
        // Also between two tries: who goes back meanwhile does so afterwards.
        let _alone = self.deciding.lock().await;
        for _ in 1..TRIES_MAX {
            match steps().await {
                Ok(()) => return Ok(()),
                Err(why) => warn!("tried again: {why}"),
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
        steps().await
    }

    /// Until the boot loader goes back by itself, the mark sees to it that it is asked.
    async fn roll_back(&self, to: Slot, again: bool) -> Result<(), Failure> {
        if again {
            tokio::time::sleep(ROLL_BACK_AGAIN).await;
        }
        let _alone = self.deciding.lock().await;
        self.decide(Code::EnvironmentUnusable, move |boot| boot.roll_back(to)).await?;
        self.mark(Code::EnvironmentUnusable, Mark::disarm).await
    }

    /// The power may have been cut between the steps of a commit, so that a trial is without the mark. A failure
    /// is in the log: the daemon, which runs, judges the trial without it.
    async fn mend_mark(&self) {
        let _alone = self.deciding.lock().await;
        if self.environment().await == Environment::Uncommitted {
            let boots = self.config.boot.attempts;
            let _ = self.mark(Code::EnvironmentUnusable, move |mark| mark.arm_again(boots)).await;
        }
    }

    /// At rest, a committed slot has none.
    async fn clear_mark(&self) {
        let _alone = self.deciding.lock().await;
        if self.environment().await == Environment::Committed {
            let _ = self.mark(Code::EnvironmentUnusable, Mark::disarm).await;
        }
    }

    /// A failure is in the log: the state has it, and the next start tries again.
    async fn keep_version(&self, version: String) {
        let _alone = self.deciding.lock().await;
        if let Err(reason) = self.on_environment(move |boot| boot.keep_version(&version)).await {
            warn!("the least version is in the state file alone: {reason}");
        }
    }

    /// Those of one point at a time: hooks of the last update may still hear how it ended.
    async fn run_hooks(&self, run: &HookRun) -> Verdict {
        if run.again {
            tokio::time::sleep(self.config.hooks.defer_interval).await;
        }
        let _alone = self.hooks.lock().await;
        hooks::run(&self.config.hooks, self.config.scripts, run, self.booted.slot).await
    }

    /// Whether systemd would end this boot as one of a trial: RAUC's variables do not tell that, and the state may be
    /// lost.
    async fn is_marked_trial(&self) -> bool {
        let command_line = self.config.system.proc.join("cmdline");
        self.is_marked(move |mark| mark.is_of_this_boot(&command_line)).await
    }

    /// Whether a trial is armed, here or in the other slot.
    async fn is_armed_by_rauc(&self) -> bool {
        self.is_marked(|mark| mark.is_armed().unwrap_or(false)).await
    }

    /// What the mark says where the variables are RAUC's, which do not say it.
    async fn is_marked(&self, look: impl FnOnce(&Mark) -> bool + Send + 'static) -> bool {
        let mark = self.mark.clone();
        self.config.boot.scheme == Scheme::Rauc
            && tokio::task::spawn_blocking(move || look(&mark)).await.unwrap_or_default()
    }

    /// RAUC's boot script spends an attempt on each boot, the committed slot's too: a healthy one gets them
    /// back. An unhealthy one is left to the boot loader, and so is a trial.
    async fn confirm_boot(&self, connected: watch::Receiver<bool>) {
        if self.config.boot.scheme != Scheme::Rauc || self.is_marked_trial().await {
            return;
        }
        let slot = self.booted.slot;
        // A cloud that is away must not take a committed slot's attempts.
        let health = config::Health { hub: HubCheck::Never, ..self.config.health.clone() };
        let mut told = String::new();
        loop {
            let since = system::uptime();
            let health = health::check(&health, self.config.scripts, since, false, connected.clone());
            let confirmed = match health.await {
                Ok(()) => self.on_environment(move |boot| boot.confirm(slot)).await,
                Err(unhealthy) => Err(unhealthy.to_string()),
            };
            match confirmed {
                Ok(_) => return info!("slot {slot} is healthy, and has all its boot attempts again"),
                Err(reason) if reason == told => {}
                Err(reason) => {
                    warn!("slot {slot} keeps a boot attempt less until it is well: {reason}");
                    told = reason;
                }
            }
            tokio::time::sleep(CONFIRM_AGAIN).await;
        }
    }

    /// Asks, and asks again; what does not help in the end is the watchdog's business.
    async fn reboot(&self) {
        for _ in 0..REBOOTS_ASKED_MAX {
            info!("asking for the reboot");
            if let Err(failed) = system::reboot(&self.config.system.reboot_command).await {
                error!("cannot ask for the reboot: {failed}");
            }
            tokio::time::sleep(REBOOT_AGAIN).await;
        }
        error!("the machine does not reboot; leaving it to the watchdog");
    }

    fn job(&self, update: &Update, known: Known) -> Job {
        let (request, config) = (&update.request, &self.config.install);
        Job {
            spec: ImageSpec {
                uri: request.uri.clone(),
                check_value: request.check_value,
                size_bytes: request.size_bytes,
            },
            version: request.version.clone(),
            target: self.config.slots.device(update.target).clone(),
            running: Some(self.config.slots.device(self.booted.slot).clone()),
            others: self
                .config
                .slots
                .others
                .iter()
                .map(|(class, pair)| Other {
                    class: class.clone(),
                    target: pair.device(update.target).clone(),
                    running: pair.device(self.booted.slot).clone(),
                })
                .collect(),
            proc: self.config.system.proc.clone(),
            device: Device {
                compatible: config.compatible.clone(),
                past: known.past,
                allow_downgrade: config.allow_downgrade || request.force,
            },
            check: config.check,
            trust: Trust { directory: config.keys.clone(), list: known.keys },
            ca_file: config.ca_file.clone(),
            network: self.config.network.clone(),
            checkpoint: self.store.checkpoint(),
            limits: install::Limits::new(config.retry_limit),
        }
    }
}

impl Machine for Linux {
    async fn save(&self, record: Record) -> Result<(), StoreError> {
        let store = self.store.clone();
        let saved = tokio::task::spawn_blocking(move || store.save(&record)).await;
        saved.map_err(|_| StoreError::Interrupted)?
    }

    async fn environment(&self) -> Environment {
        match self.on_environment(BootControl::view).await {
            Err(reason) => Environment::Unusable(reason),
            Ok(view) => match booted::agreement(&view, &self.booted) {
                // By RAUC's variables, an armed slot is just another first one.
                Err(_) if self.is_armed_by_rauc().await => Environment::Uncommitted,
                Err(disagreement) => Environment::Unusable(disagreement.to_string()),
                Ok(()) if view.trial || self.is_marked_trial().await => Environment::Uncommitted,
                Ok(()) => Environment::Committed,
            },
        }
    }

    async fn install(
        &self,
        update: &Update,
        known: Known,
        progress: &watch::Sender<install::Progress>,
        cancelled: watch::Receiver<bool>,
    ) -> install::Outcome {
        self.look_at_slots().await?;
        let target = update.target;
        // A slot that is half written is not booted.
        let disable = || self.decide(Code::EnvironmentUnusable, move |boot| boot.disable(target));
        self.in_tries(disable).await?;
        install::install(&self.job(update, known), progress, cancelled).await
    }

    async fn perform(&self, effect: Effect, connected: watch::Receiver<bool>) -> Option<Event> {
        match effect {
            Effect::Activate(Update { request, target, .. }) => {
                Some(Event::Activated(request.id, self.in_tries(|| self.activate(target)).await))
            }
            Effect::Commit(Update { request, target, .. }) => {
                Some(Event::Committed(request.id, self.in_tries(|| self.commit(target)).await))
            }
            Effect::Settle => {
                // A failure is in the log, and the environment stays as it is told.
                let _ = self.in_tries(|| self.commit(self.booted.slot)).await;
                None
            }
            Effect::RollBack { id, to, again } => {
                Some(Event::RolledBack(id, self.roll_back(to, again).await))
            }
            Effect::CheckHealth { update, since_uptime_secs } => {
                self.mend_mark().await;
                let since = Duration::from_secs(since_uptime_secs);
                let Config { health, scripts, .. } = &self.config;
                let result = health::check(health, *scripts, since, update.online_before, connected).await;
                Some(Event::HealthChecked(update.request.id, result.map_err(Failure::from)))
            }
            Effect::RunHooks(run) => {
                let verdict = self.run_hooks(&run).await;
                Some(Event::HooksRan(run.update.request.id, run.hook, verdict))
            }
            Effect::ConfirmBoot => {
                self.clear_mark().await;
                self.confirm_boot(connected).await;
                None
            }
            Effect::KeepVersion(version) => {
                self.keep_version(version).await;
                None
            }
            Effect::Reboot => {
                self.reboot().await;
                None
            }
            Effect::Respond(_) | Effect::Report | Effect::Install(_) | Effect::Abort => None,
        }
    }

    async fn diagnostics(&self, status: String) -> Result<Vec<u8>, String> {
        let sources = Sources::usual(Ok(self.config.clone()), status);
        diagnostics::bundle(sources).await.map_err(|error| error.to_string())
    }

    async fn doctor(&self, status: Status) -> Value {
        doctor::examine(Patient::usual(self.config.clone(), Ok(status), false)).await.as_json()
    }
}

/// For the journal, and for the twin.
fn failed(code: Code, reason: String) -> Failure {
    error!("{reason}");
    Failure::new(code, reason)
}
