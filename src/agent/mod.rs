//! The only loop: hub events, local commands, and completions become events; each is decided by
//! [`step`], made durable, and only then acted upon.

mod answer;
mod exporter;
mod linux;
mod machine;
mod summary;
mod uplink;

use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{error, info, warn};

use crate::boot::booted::BootedError;
use crate::causes::one_line;
use crate::config::Config;
use crate::control::{self, Status};
use crate::hub::{self, HubEvent, MethodCall, MethodReply};
use crate::install::Past;
use crate::install::verify::ImageCheck;
use crate::store::StoreError;
use crate::system::{self, message_id};
use crate::update::report::{Facts, Phase, Progress, reported};
use crate::update::{
    Boot, Code, Context, Effect, Environment, Event, Failure, Gate, Moment, Origin, Outcome, Policy, Record,
    Response, Slot, State, Update, UpdateId, UpdateRequest, step,
};
use answer::{Asker, MethodRequest};
use exporter::Exporter;
use uplink::Uplink;

pub use linux::Linux;
pub use machine::{Found, Known, Machine};

/// Why the agent cannot go on. It ends then, and systemd starts it again: acting on a decision that was not
/// saved is the one thing that it must not do. At rest it refuses instead.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The state cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state directory is lost with the slot that it is on.
    #[error("the state directory {} is on slot {slot}: put it on a partition of its own", path.display())]
    StateOnSlot {
        /// The directory.
        path: PathBuf,
        /// The slot.
        slot: Slot,
    },
    /// Which slot runs is not known.
    #[error("cannot tell which slot runs")]
    Booted(#[from] BootedError),
    /// The local command line cannot be served.
    #[error("cannot serve the control socket")]
    Control(#[from] control::BindError),
    /// A thread of start-up ended.
    #[error("start-up was interrupted")]
    Interrupted,
}

/// Completions that may wait for the loop; each running effect has one.
const COMPLETIONS_MAX: usize = 16;

/// Events that may wait for the loop before the hub's side answers by itself.
const HUB_EVENTS_MAX: usize = 32;

/// Headway that makes an interrupted attempt count as one of its own.
const HEADWAY_BYTES: u64 = 4 << 20;

/// A twin is told of progress at each 5 % or 10 s, whichever is later.
const REPORT_PERCENT: u64 = 5;
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Where nobody knows of how much, so often.
const REPORT_INTERVAL_UNKNOWN: Duration = Duration::from_secs(60);

/// People at the device see progress each second.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// Until the wall clock is right; after that nobody asks. Where nothing ever sets it, the question must not
/// wake the device more often than the hub's keep-alive does.
const CLOCK_INTERVAL: Duration = Duration::from_secs(30);
const CLOCK_INTERVAL_LATER: Duration = Duration::from_secs(240);
const CLOCK_SOON: Duration = Duration::from_secs(600);

/// So often a desired update is looked at that was refused for what the device is like: that may have been mended.
const DESIRED_INTERVAL: Duration = Duration::from_secs(300);

/// So often the state is tried to be saved that must be before anything goes on.
const BEGIN_INTERVAL: Duration = Duration::from_secs(60);

/// For people.
const NO_HUB: &str = "no hub is configured";

/// What systemd grants for an orderly end is longer.
const CLOSING_LIMIT: Duration = Duration::from_secs(5);

/// Runs the daemon until `stop` is there, or something makes it impossible.
///
/// # Errors
/// When the agent cannot begin, or can no longer keep its state.
pub async fn run(config: Config, stop: impl Future<Output = ()>) -> Result<(), AgentError> {
    let (machine, found) = Linux::look_around(config.clone()).await?;
    let (call_sender, calls) = mpsc::channel(HUB_EVENTS_MAX);
    let status = watch::channel(Status::default()).0;
    let socket = config.system.control_socket.clone();
    let bound = tokio::task::spawn_blocking(move || control::bind(&socket, control::GROUP)).await;
    let listener = bound.map_err(|_| AgentError::Interrupted)??;
    tokio::spawn(control::serve(listener, call_sender, status.subscribe()));
    run_on(machine, Start { config, found, calls, status }, stop).await
}

/// What [`run_on`] begins with.
#[derive(Debug)]
pub struct Start {
    /// Its policy, and the hub to connect to.
    pub config: Config,
    /// As the machine is now.
    pub found: Found,
    /// Local commands; there may be nobody to send any.
    pub calls: mpsc::Receiver<control::Call>,
    /// Shows what the agent does.
    pub status: watch::Sender<Status>,
}

/// The agent on any machine, until `stop` is there.
///
/// # Errors
/// When the agent can no longer keep its state.
pub async fn run_on<M: Machine>(
    machine: M,
    start: Start,
    stop: impl Future<Output = ()>,
) -> Result<(), AgentError> {
    let Start { config, found, calls, status } = start;
    let (hub_sender, hub_events) = mpsc::channel(HUB_EVENTS_MAX);
    let (done_sender, done) = mpsc::channel(COMPLETIONS_MAX);
    let mut agent = Agent::new(machine, config, found, done_sender, status);
    agent.read_environment().await;
    agent.apply(Event::Started, None).await?;
    let reported = agent.reported.subscribe();
    let hub = Uplink::of(&agent.config).map(|uplink| tokio::spawn(uplink.run(hub_sender, reported)));
    system::notify_status(true, &agent.status.borrow().summary.clone());
    let ended = agent.serve(Inputs { hub_events, calls, done }, stop).await;
    agent.close(hub).await;
    ended
}

struct Inputs {
    hub_events: mpsc::Receiver<HubEvent>,
    calls: mpsc::Receiver<control::Call>,
    done: mpsc::Receiver<Completion>,
}

/// An effect came to its end. Those of jobs that were aborted are late, and dropped.
struct Completion {
    job: Option<u64>,
    /// What came of it, for the policy; of some it is seen in the environment alone.
    event: Option<Event>,
}

struct Agent<M> {
    config: Config,
    machine: M,
    boot: Boot,
    record: Record,
    environment: Environment,
    image_version: Option<String>,
    min_version: Option<String>,
    trial_timeouts: usize,
    started: Moment,
    clock_is_right: bool,
    done: mpsc::Sender<Completion>,
    installing: Option<Installing>,
    asking: Option<JoinHandle<()>>,
    jobs: u64,
    /// Of the newest install: what one before it still tells is not heard.
    progress: watch::Receiver<Progress>,
    shown: Shown,
    rebooting: Option<JoinHandle<()>>,
    uploading: Option<JoinHandle<()>>,
    examining: Option<JoinHandle<()>>,
    desired: Option<UpdateRequest>,
    desired_fault: Option<Failure>,
    /// Whether the policy has heard of this start, and that is saved: until then nothing goes on.
    begun: bool,
    /// Why what was to begin could not be saved.
    unsaved: Option<Failure>,
    connected: watch::Sender<bool>,
    hub_detail: String,
    reported: watch::Sender<hub::Reported>,
    status: watch::Sender<Status>,
    exporter: Option<Exporter>,
}

/// The running install.
struct Installing {
    id: UpdateId,
    cancel: watch::Sender<bool>,
    task: JoinHandle<()>,
    progressed: bool,
    downloaded: bool,
}

/// What of the progress was shown last, and where.
#[derive(Debug, Default)]
struct Shown {
    phase: Option<Phase>,
    /// When, of how many percent, and in which phase.
    reported: Option<(Instant, u64, Phase)>,
    status: Option<(Instant, u64)>,
    bytes_per_sec: Option<u64>,
    /// When a change is reported that came too soon after a report.
    report_due: Option<Instant>,
}

impl<M: Machine> Agent<M> {
    fn new(
        machine: M,
        config: Config,
        found: Found,
        done: mpsc::Sender<Completion>,
        status: watch::Sender<Status>,
    ) -> Self {
        let Found { boot, record, image_version, min_version, trial_timeouts, clock_is_right } = found;
        let hub_detail = Uplink::of(&config).map_or_else(|| NO_HUB.to_owned(), |uplink| uplink.awaited());
        let exporter = config.metrics_file.clone().map(Exporter::start);
        Self {
            config,
            machine,
            boot,
            record,
            environment: Environment::Unusable("not read yet".to_owned()),
            image_version,
            min_version,
            trial_timeouts,
            started: system::now(boot.id, clock_is_right),
            clock_is_right,
            done,
            installing: None,
            asking: None,
            jobs: 0,
            progress: watch::channel(Progress::default()).1,
            shown: Shown::default(),
            rebooting: None,
            uploading: None,
            examining: None,
            desired: None,
            desired_fault: None,
            begun: false,
            unsaved: None,
            connected: watch::channel(false).0,
            hub_detail,
            reported: watch::channel(None).0,
            status,
            exporter,
        }
    }

    async fn serve(&mut self, inputs: Inputs, stop: impl Future<Output = ()>) -> Result<(), AgentError> {
        let Inputs { mut hub_events, mut calls, mut done } = inputs;
        let mut stop = std::pin::pin!(stop);
        let mut watchdog = system::watchdog_interval().map(tokio::time::interval);
        let mut clock = std::pin::pin!(right_clock(self.config.system.clock_check_command.clone()));
        let mut look_again = tokio::time::interval(DESIRED_INTERVAL);
        look_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first try was before.
        let mut begin = interval_at(Instant::now() + BEGIN_INTERVAL, BEGIN_INTERVAL);
        begin.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let report_due = self.shown.report_due;
            tokio::select! {
                // What runs as a service ends with this one: nothing is to be made of how, once it is told to stop. What
                // is seldom comes before what is frequent.
                biased;
                () = &mut stop => return Ok(()),
                Some(_) = system::tick(&mut watchdog) => self.on_watchdog(),
                _ = begin.tick(), if !self.begun => self.begin().await?,
                _ = look_again.tick(), if self.open_desired().is_some() || self.is_unusable() => {
                    self.look_again().await?;
                }
                () = &mut clock, if !self.clock_is_right => self.on_right_clock().await?,
                () = tokio::time::sleep_until(report_due.unwrap_or_else(Instant::now)), if report_due.is_some() => {
                    self.report_when_due();
                }
                Some(completion) = done.recv() => self.on_completion(completion).await?,
                Some(event) = hub_events.recv() => self.on_hub(event).await?,
                Some(call) = calls.recv() => self.on_call(call).await?,
                Ok(()) = self.progress.changed() => self.on_progress().await?,
            }
        }
    }

    /// What was left under way goes on, or the twin tells why it cannot.
    async fn begin(&mut self) -> Result<(), AgentError> {
        self.read_environment().await;
        self.apply(Event::Started, None).await?;
        if self.begun {
            self.report();
            if self.clock_is_right {
                // It may have been set while nobody could take note of it.
                self.apply(Event::ClockSet, None).await?;
            }
        }
        self.follow_desired().await
    }

    /// What others may have mended meanwhile.
    async fn look_again(&mut self) -> Result<(), AgentError> {
        if self.is_unusable() {
            self.read_environment().await;
            self.report();
        }
        self.follow_desired().await
    }

    /// Of no use for an update, while there is none.
    fn is_unusable(&self) -> bool {
        matches!(self.environment, Environment::Unusable(_)) && self.record.state.is_at_rest()
    }

    /// The last report goes out, and an install leaves its checkpoint.
    async fn close(self, hub: Option<JoinHandle<()>>) {
        let Self { installing, reported, .. } = self;
        drop(reported);
        let orderly = async {
            if let Some(Installing { cancel, task, .. }) = installing {
                cancel.send_replace(true);
                let _ = task.await;
            }
            if let Some(hub) = hub {
                let _ = hub.await;
            }
        };
        if system::within(CLOSING_LIMIT, orderly).await.is_none() {
            warn!("stopped before the hub session was closed");
        }
    }

    // ---- what comes in

    async fn on_completion(&mut self, completion: Completion) -> Result<(), AgentError> {
        if completion.job.is_some_and(|job| job != self.jobs) {
            return Ok(());
        }
        if matches!(completion.event, Some(Event::Installed(..))) {
            self.installing = None;
        }
        self.read_environment().await;
        match completion.event {
            Some(event) => self.apply(event, None).await,
            // What was refused for the environment may be taken now.
            None => {
                self.report();
                self.follow_desired().await
            }
        }
    }

    async fn on_hub(&mut self, event: HubEvent) -> Result<(), AgentError> {
        match event {
            HubEvent::Connected => {
                let name = self.config.hub.as_ref().map(|hub| hub.host_name.as_str());
                self.hub_detail = format!("connected to {}", name.unwrap_or("the hub"));
                self.connected.send_replace(true);
                self.report();
                Ok(())
            }
            HubEvent::Disconnected { reason } => {
                self.hub_detail = reason;
                self.connected.send_replace(false);
                self.report();
                Ok(())
            }
            HubEvent::Method(call) => self.on_method(call).await,
            HubEvent::Desired(desired) => self.on_desired(desired.get("firmware")).await,
        }
    }

    async fn on_method(&mut self, call: MethodCall) -> Result<(), AgentError> {
        info!("the hub calls {}", call.name.escape_default());
        match answer::method_request(&call.name, &call.payload) {
            Ok(MethodRequest::Event(event)) => self.apply(event, Some(Asker::Method(call.reply))).await,
            Ok(MethodRequest::Status) => {
                let reply = answer::status_reply(Value::Object(reported(&self.facts())));
                drop(call.reply.send(reply));
                Ok(())
            }
            Ok(MethodRequest::Reboot) => {
                self.read_environment().await;
                let refusal = self.reboot_refusal();
                drop(call.reply.send(answer::reboot_reply(refusal.as_ref())));
                if refusal.is_none() {
                    self.reboot();
                }
                Ok(())
            }
            Ok(MethodRequest::Diagnostics) => {
                let name = self.upload_diagnostics();
                drop(call.reply.send(answer::upload_reply(name.as_deref().map_err(|why| *why))));
                Ok(())
            }
            Ok(MethodRequest::Doctor) => {
                self.examine(call.reply);
                Ok(())
            }
            Err(refusal) => {
                drop(call.reply.send(refusal));
                Ok(())
            }
        }
    }

    /// One at a time.
    fn examine(&mut self, reply: oneshot::Sender<MethodReply>) {
        if self.examining.as_ref().is_some_and(|task| !task.is_finished()) {
            return drop(reply.send(answer::doctor_is_busy()));
        }
        let (machine, status) = (self.machine.clone(), self.status.borrow().clone());
        self.examining = Some(tokio::spawn(async move {
            let report = machine.doctor(status).await;
            drop(reply.send(answer::status_reply(report)));
        }));
    }

    /// Begins it, and gives the name that the file will have; or why not. One at a time.
    fn upload_diagnostics(&mut self) -> Result<String, &'static str> {
        if self.uploading.as_ref().is_some_and(|task| !task.is_finished()) {
            return Err("the upload before it still runs: wait for it");
        }
        let uplink = Uplink::of(&self.config).ok_or(NO_HUB)?;
        let time = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(system::unix_now()));
        let name = format!("diagnostics/{time}.tar.gz").replace(':', "-");
        let status = format!("{:#}\n", json!(*self.status.borrow()));
        let (machine, blob) = (self.machine.clone(), name.clone());
        self.uploading = Some(tokio::spawn(async move {
            let uploaded = match machine.diagnostics(status).await {
                Ok(bytes) => uplink.upload(&blob, bytes).await,
                Err(why) => Err(why),
            };
            match uploaded {
                Ok(()) => info!("diagnostics are uploaded as {blob}"),
                Err(why) => error!("cannot upload {blob}: {why}"),
            }
        }));
        Ok(name)
    }

    /// A reboot in a trial spends an attempt, and one in an install wastes it.
    fn reboot_refusal(&self) -> Option<Failure> {
        // What could not even begin after a start is not wasted.
        let is_under_way = match self.record.state {
            State::Asking { .. } | State::Installing { .. } | State::Installed { .. } => self.begun,
            _ => !self.record.state.is_at_rest(),
        };
        if is_under_way {
            let message = "an update is under way: wait for it, or cancel it";
            return Some(Failure::new(Code::Busy, message));
        }
        (self.environment == Environment::Uncommitted).then(|| step::uncommitted(self.boot.slot))
    }

    async fn on_desired(&mut self, firmware: Option<&Value>) -> Result<(), AgentError> {
        let firmware = firmware.filter(|firmware| !firmware.is_null());
        let (desired, fault) = match firmware.map(UpdateRequest::from_value) {
            None => (None, None),
            Some(Ok(request)) => (Some(request), None),
            Some(Err(invalid)) => {
                let message = format!("desired property `firmware` is not understood: {invalid}");
                warn!("{message}");
                (None, Some(Failure::new(Code::InvalidPayload, message)))
            }
        };
        (self.desired, self.desired_fault) = (desired, fault);
        self.unsaved.take_if(|_| self.begun);
        self.report();
        self.follow_desired().await
    }

    /// What is desired stands until it changes: it is looked at again whenever nothing is under way.
    async fn follow_desired(&mut self) -> Result<(), AgentError> {
        let Some(request) = self.open_desired().cloned().filter(|_| self.begun) else { return Ok(()) };
        let was_unsaved = self.unsaved.take().is_some();
        Box::pin(self.apply(Event::Requested(request, Origin::Desired), None)).await?;
        if was_unsaved {
            self.report();
        }
        Ok(())
    }

    fn open_desired(&self) -> Option<&UpdateRequest> {
        self.desired.as_ref().filter(|request| !self.record.has_dealt_with(request))
    }

    async fn on_call(&mut self, call: control::Call) -> Result<(), AgentError> {
        if call.reply.is_closed() {
            // Who asked has been told that it failed.
            return Ok(());
        }
        match answer::local_request(call.command) {
            Ok(event) => self.apply(event, Some(Asker::Local(call.reply))).await,
            Err(refusal) => {
                drop(call.reply.send(refusal));
                Ok(())
            }
        }
    }

    async fn on_right_clock(&mut self) -> Result<(), AgentError> {
        self.clock_is_right = true;
        self.started = self.started.resolved_by(self.now());
        self.apply(Event::ClockSet, None).await
    }

    /// Once a reboot was asked for often enough in vain, only the watchdog can help.
    fn on_watchdog(&self) {
        if !self.rebooting.as_ref().is_some_and(JoinHandle::is_finished) {
            system::feed_watchdog();
        }
    }

    async fn on_progress(&mut self) -> Result<(), AgentError> {
        let progress = *self.progress.borrow();
        let Some(installing) = &mut self.installing else { return Ok(()) };
        let mut events = Vec::new();
        if !installing.progressed && progress.fresh_bytes >= HEADWAY_BYTES {
            installing.progressed = true;
            events.push(Event::Progressed(installing.id.clone()));
        }
        if !installing.downloaded && progress.phase == Phase::Verifying {
            installing.downloaded = true;
            events.push(Event::Downloaded(installing.id.clone()));
        }
        for event in events {
            self.apply(event, None).await?;
        }
        self.show_progress(progress);
        Ok(())
    }

    fn show_progress(&mut self, progress: Progress) {
        let now = Instant::now();
        if let Some((since, bytes)) = self.shown.status {
            let elapsed = now.duration_since(since);
            if elapsed < STATUS_INTERVAL && self.shown.phase == Some(progress.phase) {
                return;
            }
            let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
            let gained = progress.bytes.saturating_sub(bytes);
            self.shown.bytes_per_sec = gained.checked_mul(1000).map(|scaled| scaled / millis);
        }
        self.shown.status = Some((now, progress.bytes));
        self.shown.phase = Some(progress.phase);
        self.report_when_due();
    }

    /// A server that comes and goes changes the phase many times a minute, the end of a download once. What came and
    /// went since the last report is no news.
    fn report_when_due(&mut self) {
        let progress = *self.progress.borrow();
        let Some((since, percent, phase)) = self.shown.reported else {
            return self.report_progress(&progress);
        };
        let age = since.elapsed();
        let is_news = progress.phase != phase;
        let is_early = age < REPORT_INTERVAL && !(is_news && progress.phase == Phase::Verifying);
        let is_due = match progress.percent() {
            // It also falls, where a download begins anew.
            Some(now) => now.abs_diff(percent) >= REPORT_PERCENT,
            None => age >= REPORT_INTERVAL_UNKNOWN,
        };
        self.shown.report_due = (is_news && is_early).then_some(since + REPORT_INTERVAL);
        if (is_news || is_due) && !is_early { self.report_progress(&progress) } else { self.show_status() }
    }

    fn report_progress(&mut self, progress: &Progress) {
        self.shown.reported = Some((Instant::now(), progress.percent().unwrap_or_default(), progress.phase));
        self.report();
    }

    // ---- decide, save, act

    /// The only writer of `self.record`.
    async fn apply(&mut self, event: Event, mut asker: Option<Asker>) -> Result<(), AgentError> {
        let begins = matches!(event, Event::Started);
        if !begins && let (false, Some(unsaved)) = (self.begun, &self.unsaved) {
            if let Some(asker) = asker {
                asker.answer(&Response::Refused(unsaved.clone(), None));
            }
            return Ok(());
        }
        // At rest these hang on it, and others than us may have changed it.
        let asks = matches!(event, Event::Requested(..) | Event::CommitRequested | Event::RollBackRequested);
        if asks && self.record.state.is_at_rest() {
            self.read_environment().await;
        }
        let context = self.context().await;
        let next = step(&context, self.record.clone(), event);
        let mut came_to_rest = false;
        if next.record != self.record {
            match self.machine.save(next.record.clone()).await {
                // Nothing is under way: whoever asked can be told, and the device stays there to be mended.
                Err(error @ StoreError::Save { is_unchanged: true, .. })
                    if begins || asks && self.record.state.is_at_rest() =>
                {
                    self.refuse_unsaved(&error, asker);
                    return Ok(());
                }
                saved => saved?,
            }
            self.unsaved = None;
            let before = std::mem::replace(&mut self.record, next.record);
            if before.state != self.record.state {
                let installs = |state: &State| matches!(state, State::Installing { .. });
                if installs(&self.record.state) && !installs(&before.state) {
                    // Nothing of it has come; what one before it told is not this one's.
                    (self.progress, self.shown) = (watch::channel(Progress::default()).1, Shown::default());
                }
                self.tell_milestone(&before.state);
                came_to_rest = self.record.state.is_at_rest();
            }
        }
        if begins {
            (self.begun, self.unsaved) = (true, None);
        }
        // Whoever asks and then looks at the status must find the answer's truth there.
        self.show_status();
        for effect in next.effects {
            self.run_effect(effect, &mut asker);
        }
        if came_to_rest { self.follow_desired().await } else { Ok(()) }
    }

    /// What is desired, or was under way, and asked for by nobody, the twin answers.
    fn refuse_unsaved(&mut self, error: &StoreError, asker: Option<Asker>) {
        let message = format!("{}: make room there, or let it be written", one_line(error));
        let failure = Failure::new(Code::StateUnsaved, message);
        if self.unsaved.as_ref() != Some(&failure) {
            error!("{}", failure.message);
        }
        match asker {
            Some(asker) => asker.answer(&Response::Refused(failure, None)),
            None => self.unsaved = Some(failure),
        }
        self.report();
    }

    async fn context(&self) -> Context {
        Context {
            boot: self.boot,
            now: self.now(),
            policy: Policy {
                check_required: self.config.install.check != ImageCheck::Optional,
                signature_required: self.config.install.check == ImageCheck::Signature,
                has_keys: has_keys(self.config.install.keys.clone()).await,
                allow_downgrade: self.config.install.allow_downgrade,
                defer_limit_secs: self.config.hooks.defer_limit.as_secs(),
            },
            environment: self.environment.clone(),
            online: *self.connected.borrow(),
            running_version: self.image_version.clone(),
            min_version: self.min_version.clone(),
            trial_timeouts: self.trial_timeouts,
            desired: self.desired.clone(),
        }
    }

    fn now(&self) -> Moment {
        system::now(self.boot.id, self.clock_is_right)
    }

    fn run_effect(&mut self, effect: Effect, asker: &mut Option<Asker>) {
        match effect {
            Effect::Respond(response) => {
                if let Some(asker) = asker.take() {
                    asker.answer(&response);
                }
            }
            Effect::Report => self.report(),
            Effect::Install(update) => self.install(update),
            Effect::Abort => {
                self.jobs += 1;
                if let Some(installing) = &self.installing {
                    installing.cancel.send_replace(true);
                }
                if let Some(asking) = self.asking.take() {
                    asking.abort();
                }
            }
            Effect::Reboot => self.reboot(),
            Effect::RunHooks(run) if run.hook.decides() => {
                self.jobs += 1;
                self.asking = Some(self.perform(Effect::RunHooks(run), Some(self.jobs)));
            }
            effect => drop(self.perform(effect, None)),
        }
    }

    /// Lets the machine do it, and feeds what came of it.
    fn perform(&self, effect: Effect, job: Option<u64>) -> JoinHandle<()> {
        let (machine, done) = (self.machine.clone(), self.done.clone());
        let connected = self.connected.subscribe();
        let settles = matches!(effect, Effect::ConfirmBoot | Effect::Settle);
        tokio::spawn(async move {
            let event = machine.perform(effect, connected).await;
            if event.is_some() || settles {
                // A receiver that is gone means that the daemon ends.
                let _ = done.send(Completion { job, event }).await;
            }
        })
    }

    fn install(&mut self, update: Update) {
        self.jobs += 1;
        let (job, done) = (self.jobs, self.done.clone());
        let (cancel, cancelled) = watch::channel(false);
        let earlier = self.installing.take();
        let id = update.request.id.clone();
        let (machine, known) = (self.machine.clone(), self.known(&update));
        let progress;
        (progress, self.progress) = watch::channel(Progress::default());
        let task = tokio::spawn(async move {
            // Two writers on one slot would be one too many.
            if let Some(earlier) = earlier {
                earlier.cancel.send_replace(true);
                let _ = earlier.task.await;
            }
            let result = machine.install(&update, known, &progress, cancelled.clone()).await;
            if !*cancelled.borrow() {
                let event = Some(Event::Installed(update.request.id, result));
                let _ = done.send(Completion { job: Some(job), event }).await;
            }
        });
        self.installing = Some(Installing { id, cancel, task, progressed: false, downloaded: false });
    }

    /// An operator at the device may insist on what was rolled back.
    fn known(&self, update: &Update) -> Known {
        let denied = if update.request.force { Vec::new() } else { self.record.denied.clone() };
        let running_version = self.facts().running_version().map(str::to_owned);
        let past = Past { running_version, min_version: self.record.min_version.clone(), denied };
        Known { past, keys: self.record.keys.clone() }
    }

    /// Until it happens. A machine that gives up is left to the watchdog.
    fn reboot(&mut self) {
        if self.rebooting.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        self.rebooting = Some(self.perform(Effect::Reboot, None));
    }

    // ---- what goes out

    async fn read_environment(&mut self) {
        let environment = self.machine.environment().await;
        if environment != self.environment {
            // Between a roll back and its reboot the environment is right to name the other slot.
            let leaves = matches!(self.record.state, State::RollingBack { .. });
            if let (Environment::Unusable(why), false) = (&environment, leaves) {
                warn!("no update is taken: {why}");
            }
            self.environment = environment;
        }
    }

    fn facts(&self) -> Facts<'_> {
        let installing = matches!(self.record.state, State::Installing { .. });
        Facts {
            boot: self.boot,
            record: &self.record,
            progress: installing.then_some(*self.progress.borrow()),
            environment: &self.environment,
            running_version: self.image_version.as_deref(),
            started: self.started,
            desired_fault: self.desired_fault.as_ref(),
            unsaved: self.unsaved.as_ref(),
        }
    }

    /// Level-triggered: the twin and the people at the device get the present state.
    fn report(&mut self) {
        let reported = reported(&self.facts());
        self.reported.send_if_modified(|shown| {
            let changed = shown.as_ref() != Some(&reported);
            *shown = Some(reported);
            changed
        });
        self.show_status();
    }

    fn show_status(&mut self) {
        self.show_metrics();
        let facts = self.facts();
        let summary = summary::summary(&facts, self.shown.bytes_per_sec);
        let slots = &self.config.slots;
        let status = Status {
            summary,
            reported: reported(&facts),
            hub_connected: *self.connected.borrow(),
            hub_detail: self.hub_detail.clone(),
            bytes_per_sec: self.shown.bytes_per_sec.filter(|_| facts.progress.is_some()),
            slot_devices: [Slot::A, Slot::B]
                .map(|slot| (slot.to_string(), json!(slots.device(slot))))
                .into_iter()
                .collect(),
        };
        self.status.send_if_modified(|shown| {
            if shown.summary != status.summary {
                system::notify_status(false, &status.summary);
            }
            let changed = *shown != status;
            *shown = status;
            changed
        });
    }

    fn show_metrics(&mut self) {
        let Some(mut exporter) = self.exporter.take() else { return };
        let progress = *self.progress.borrow();
        let transfer = Some(progress).filter(|progress| *progress != Progress::default());
        exporter.show(&self.facts(), *self.connected.borrow(), transfer);
        self.exporter = Some(exporter);
    }

    /// The few lines that an operator searches for.
    fn tell_milestone(&self, before: &State) {
        let Some(update) = self.record.state.subject() else { return };
        let (id, slot) = (update.request.id.as_str(), update.target);
        let tell = |message_id: &str, text: &str| {
            info!(MESSAGE_ID = message_id, UPDATE_ID = id, SLOT = %slot, "update {id}: {text}");
        };
        match &self.record.state {
            State::Asking { deferral: Some(deferral), .. } => {
                if !matches!(before, State::Asking { deferral: Some(before), .. } if before.reason == deferral.reason)
                {
                    info!(UPDATE_ID = id, "update {id} waits: {}", deferral.reason);
                }
            }
            State::Asking { gate: Gate::BeforeInstall, attempt: 1, .. } => {
                tell(message_id::ACCEPTED, "accepted");
            }
            State::Asking { gate: Gate::AfterInstall { .. }, attempt: 1, .. } => {
                tell(message_id::INSTALLED, &format!("in slot {slot}, and read back"));
            }
            State::Installing { attempt: 1, .. } | State::Asking { .. } | State::Installed { .. } => {}
            State::Installing { attempt, .. } => tell(message_id::ACCEPTED, &format!("attempt {attempt}")),
            State::Rebooting { .. } => tell(message_id::ACTIVATED, &format!("slot {slot} boots next")),
            State::Trial { .. } => tell(message_id::TRIAL, &format!("slot {slot} runs on trial")),
            State::RollingBack { .. } if matches!(before, State::RollingBack { .. }) => {}
            State::RollingBack { failure, .. } => {
                warn!(UPDATE_ID = id, "update {id}: giving up slot {slot}: {failure}");
            }
            State::Idle { last } => match last.as_deref().map(|last| &last.outcome) {
                None => {}
                Some(Outcome::Succeeded) => {
                    tell(message_id::COMMITTED, &format!("completed; slot {slot} is committed"));
                }
                Some(Outcome::Failed(failure)) => {
                    error!(MESSAGE_ID = message_id::FAILED, UPDATE_ID = id, "update {id} failed: {failure}");
                }
                Some(Outcome::RolledBack(failure)) => {
                    error!(MESSAGE_ID = message_id::ROLLED_BACK, UPDATE_ID = id, SLOT = %self.boot.slot,
                        "update {id} rolled back to slot {}: {failure}", self.boot.slot);
                }
            },
        }
    }
}

/// Ends when the wall clock is right.
async fn right_clock(check_command: Vec<String>) {
    let began = Instant::now();
    while !system::clock_is_right(&check_command).await {
        let soon = began.elapsed() < CLOCK_SOON;
        tokio::time::sleep(if soon { CLOCK_INTERVAL } else { CLOCK_INTERVAL_LATER }).await;
    }
}

/// Keys may be added at any time, so each request looks.
async fn has_keys(directory: PathBuf) -> bool {
    let look = move || {
        std::fs::read_dir(directory).is_ok_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|entry| entry.path().extension().is_some_and(|e| e == "pub")))
        })
    };
    tokio::task::spawn_blocking(look).await.unwrap_or_default()
}
