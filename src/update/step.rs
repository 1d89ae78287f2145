//! The whole update policy: one total function.

mod hooks;

use std::cmp::Ordering;

use super::hook::{Gate, Hook, HookRun, Verdict};
use super::record::{Denied, Finished, Outcome, Record, State, Update};
use super::{Boot, Code, Failure, Image, KeyList, Moment, Slot, UpdateId, UpdateRequest, version};
use hooks::{ask, finish_with_hooks, hooks_ran, with_afterword};

/// What the policy may know besides the record and the event.
#[derive(Clone, Debug)]
pub struct Context {
    /// This boot.
    pub boot: Boot,
    /// The time.
    pub now: Moment,
    /// What the configuration allows.
    pub policy: Policy,
    /// What the boot loader's variables say.
    pub environment: Environment,
    /// Whether the hub session is up.
    pub online: bool,
    /// The version of the running system by its own word; an update's word counts more.
    pub running_version: Option<String>,
    /// The version that was committed last, by the boot loader's variables.
    pub min_version: Option<String>,
    /// How many boots of the last trial systemd ended, since nobody had committed it in time.
    pub trial_timeouts: usize,
    /// What the desired property asks for now.
    pub desired: Option<UpdateRequest>,
}

impl Context {
    fn running_version<'a>(&'a self, record: &'a Record) -> Option<&'a str> {
        record.versions.get(self.boot.slot).or(self.running_version.as_deref())
    }
}

/// What the configuration allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// An image needs a check value or a signature.
    pub check_required: bool,
    /// An image needs a signature, and a check value is none.
    pub signature_required: bool,
    /// The image that runs brings keys to verify a signature with.
    pub has_keys: bool,
    /// A version that is not newer is taken.
    pub allow_downgrade: bool,
    /// How long hooks may put an update off at one point, in seconds.
    pub defer_limit_secs: u64,
}

/// What the boot loader's variables say about the running slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Environment {
    /// It is the committed one.
    Committed,
    /// It is on trial, or another is armed.
    Uncommitted,
    /// They cannot be read, or contradict the running system; one sentence.
    Unusable(String),
}

/// Who asks for an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A direct method.
    Method,
    /// A desired property: stands until it changes, and is read at every connect.
    Desired,
    /// The device's own command line.
    Local,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Always the first event of a process.
    Started,
    /// The wall clock has become right.
    ClockSet,
    /// Somebody wants this update.
    Requested(UpdateRequest, Origin),
    /// Somebody wants an update stopped: this one, or whichever runs.
    CancelRequested(Option<UpdateId>),
    /// An operator at the device says that the trial is good.
    CommitRequested,
    /// An operator at the device wants the old system back.
    RollBackRequested,
    /// The install has got further than any attempt before.
    Progressed(UpdateId),
    /// The whole image was fetched.
    Downloaded(UpdateId),
    /// The install is over.
    Installed(UpdateId, Result<Image, Failure>),
    /// The transaction that arms the target is over.
    Activated(UpdateId, Result<(), Failure>),
    /// The health checks are over.
    HealthChecked(UpdateId, Result<(), Failure>),
    /// The transaction that commits is over.
    Committed(UpdateId, Result<(), Failure>),
    /// The transaction that rolls back is over.
    RolledBack(UpdateId, Result<(), Failure>),
    /// The hooks of a point have run.
    HooksRan(UpdateId, Hook, Verdict),
}

/// What a request is answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Response {
    /// The update was taken up; the record says so on disk.
    Started(UpdateId),
    /// The same request again, while it runs: not an error, the caller retried.
    AlreadyRunning(UpdateId),
    /// The same request again, after it succeeded.
    AlreadyCompleted(UpdateId),
    /// The update was stopped.
    Cancelled(UpdateId),
    /// The trial is being committed.
    Committing(UpdateId),
    /// What runs is being committed, though no update is known to have brought it.
    Settling,
    /// The trial, or the last update, is being given up.
    RollingBack(UpdateId),
    /// Not taken.
    Refused(Failure, Option<UpdateId>),
}

/// What the shell does next, in this order, once the record is durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Answer whoever asked.
    Respond(Response),
    /// Level-triggered: make the twin show the present state.
    Report,
    /// Mark the target unbootable, stream, sync, read back, compare.
    Install(Update),
    /// Stop the install, or the hooks that are asked; a late answer does not matter.
    Abort,
    /// One environment transaction: target first, trial counter armed.
    Activate(Update),
    /// Ask for the reboot, and go on asking.
    Reboot,
    /// Check the health of the trial, within a time that began at this uptime.
    CheckHealth {
        /// Which.
        update: Update,
        /// Seconds after the start of this boot.
        since_uptime_secs: u64,
    },
    /// One environment transaction: the target first, no trial.
    Commit(Update),
    /// One environment transaction: the running slot first, no trial.
    Settle,
    /// One environment transaction: `to` first, no trial, the other unbootable.
    RollBack {
        /// The update that is given up.
        id: UpdateId,
        /// The slot that was known good.
        to: Slot,
        /// The last try failed: pause before this one.
        again: bool,
    },
    /// Run the hooks of a point, in the environment that they are promised.
    RunHooks(Box<HookRun>),
    /// A boot of the committed slot: refill its attempts where the scheme spends them on every boot.
    ConfirmBoot,
    /// Keep the version that was committed last in the boot loader's variables too: who loses the state is not to
    /// be led back to an older one.
    KeepVersion(String),
}

/// The answer of [`step`].
#[must_use = "make the record durable, then run the effects"]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The next record.
    pub record: Record,
    /// What to do.
    pub effects: Vec<Effect>,
}

/// Interrupted attempts without headway, to install as to ask hooks: a daemon that dies of an image must stop
/// trying it, and a gateway that is switched off every evening must get through, where the image can be resumed.
pub const INSTALL_ATTEMPTS_MAX: u8 = 10;

/// Tries of a roll back that cannot be written in the slot that it goes to, a minute apart.
pub const ROLL_BACK_TRIES_MAX: u8 = 10;

/// Boots that a roll back asks for, if the boot loader keeps coming up elsewhere.
pub const ROLL_BACK_REBOOTS_MAX: u8 = 5;

/// How often the hooks after an update are run at most: what takes the device down each time gets no more.
pub const AFTERWORD_RUNS_MAX: u8 = 3;

/// Images remembered as rolled back: more than a fleet releases between two visits.
const DENIED_MAX: usize = 16;

/// The whole update policy. Total: every pair of state and event has an answer.
pub fn step(context: &Context, mut record: Record, event: Event) -> Step {
    record.times.resolve(context.now);
    match event {
        Event::Started => with_afterword(context, started(context, record)),
        Event::ClockSet => Step { record, effects: vec![Effect::Report] },
        Event::Requested(request, origin) => requested(context, record, request, origin),
        Event::CancelRequested(id) => cancel_requested(context, record, id),
        Event::CommitRequested => commit_requested(context, record),
        Event::RollBackRequested => roll_back_requested(context, record),
        Event::Progressed(id) => progressed(record, &id),
        Event::Downloaded(id) => downloaded(context, record, &id),
        Event::Installed(id, result) => installed(context, record, &id, result),
        Event::Activated(id, result) => activated(context, record, &id, result),
        Event::HealthChecked(id, result) => health_checked(record, &id, result),
        Event::Committed(id, result) => committed(context, record, &id, result),
        Event::RolledBack(id, result) => rolled_back(context, record, &id, result),
        Event::HooksRan(id, hook, verdict) => hooks_ran(context, record, &id, hook, verdict),
    }
}

/// A process begins.
fn started(context: &Context, mut record: Record) -> Step {
    if record.min_version.is_none() {
        record.min_version.clone_from(&context.min_version);
    }
    // A script that counts all boots, as RAUC's does, takes one off before the slot is known to be well: also while the
    // next update is no further than its install.
    let is_unarmed =
        matches!(record.state, State::Idle { .. } | State::Asking { .. } | State::Installing { .. });
    let mut step = resumed(context, record);
    if is_unarmed {
        step.effects.push(Effect::ConfirmBoot);
    }
    step
}

/// Which boot is this, and what was it about?
fn resumed(context: &Context, record: Record) -> Step {
    let boot = context.boot;
    match record.state.clone() {
        State::Idle { .. } => started_at_rest(context, record),

        State::Asking { update, .. } | State::Installing { update, .. } if boot.slot == update.target => {
            let message = format!("slot {} runs, which was not to be booted yet", update.target);
            give_up(context, record, update, Failure::new(Code::SlotUnusable, message))
        }
        State::Asking { update, attempt, .. } | State::Installing { update, attempt }
            if attempt >= INSTALL_ATTEMPTS_MAX =>
        {
            let message = format!("interrupted {attempt} times without headway");
            give_up(context, record, update, Failure::new(Code::AttemptsExhausted, message))
        }
        State::Asking { update, gate, attempt, deferral } => {
            ask(record, update, gate, attempt.saturating_add(1), deferral)
        }
        State::Installing { update, attempt } => {
            let effects = [Effect::Report, Effect::Install(update.clone())];
            to_state(record, State::Installing { update, attempt: attempt.saturating_add(1) }, effects)
        }

        // Activated, and power was lost before that was recorded.
        State::Installed { update, image } if boot.slot == update.target => {
            begin_trial(record, update, image, context.now)
        }
        State::Installed { update, .. } => unchanged(record, [Effect::Report, Effect::Activate(update)]),

        State::Rebooting { armed_in, .. } if armed_in == boot.id => {
            unchanged(record, [Effect::Report, Effect::Reboot])
        }
        State::Trial { update, judged: true, .. } if boot.slot == update.target => {
            unchanged(record, [Effect::Report, Effect::Commit(update)])
        }
        State::Trial { update, image, since, .. } if boot.slot == update.target && since.boot == boot.id => {
            begin_trial(record, update, image, since)
        }
        State::Rebooting { update, image, .. } | State::Trial { update, image, .. } => {
            if boot.slot == update.target {
                begin_trial(record, update, image, context.now)
            } else {
                fell_back(context, record, update, image)
            }
        }

        State::RollingBack { update, to, .. } => {
            let roll_back = Effect::RollBack { id: update.request.id, to, again: false };
            unchanged(record, [Effect::Report, roll_back])
        }
    }
}

fn started_at_rest(context: &Context, mut record: Record) -> Step {
    // Such a script can leave a committed slot too. Since the commit, others may have come and been refused.
    if record.fallback == Some(context.boot.slot)
        && let Some(update) = record.committed.as_deref().cloned()
    {
        let message = format!("slot {} was committed; the boot loader has left it since", update.target);
        let outcome = Outcome::RolledBack(Failure::new(Code::BootFailed, message));
        record.state = State::Idle { last: Some(Box::new(Finished { update, outcome })) };
        record.fallback = None;
        record.times.finished = Some(context.now);
    }
    let keep_version = record.min_version.clone().map(Effect::KeepVersion);
    let effects = [Effect::Report].into_iter().chain(keep_version);
    unchanged(record, effects.collect::<Vec<_>>())
}

/// The boot loader fell back in a trial. Make that permanent before saying so.
fn fell_back(context: &Context, record: Record, update: Update, image: Image) -> Step {
    let what = match context.trial_timeouts {
        0 => "did not come up".to_owned(),
        times => format!("was not committed in time in {times} of its boots"),
    };
    let message = format!("slot {} {what}; the boot loader fell back", update.target);
    let failure = Failure::new(Code::BootFailed, message);
    begin_roll_back(record, update, Some(image), context.boot.slot, failure)
}

fn requested(context: &Context, mut record: Record, request: UpdateRequest, origin: Origin) -> Step {
    if origin == Origin::Desired && record.has_dealt_with(&request) {
        return unchanged(record, []);
    }
    if !record.state.is_at_rest() {
        return requested_while_busy(record, request, origin);
    }
    let is_it = |update: &Update| update.request.id == request.id && update.target == context.boot.slot;
    if record.committed.as_deref().is_some_and(is_it) && !request.force {
        let response = Response::AlreadyCompleted(request.id.clone());
        return note_desired(record, &request, origin, Effect::Respond(response));
    }
    let running_version = context.running_version(&record);
    if origin == Origin::Desired
        && request.version.is_some()
        && request.version.as_deref() == running_version
        && context.environment != Environment::Uncommitted
    {
        // Flashed at the factory, updated or committed by hand: what is desired is what runs. That it was refused
        // while the slot was not committed is over.
        let is_over = |last: &Finished| {
            last.update.request.id == request.id
                && matches!(&last.outcome, Outcome::Failed(failure) if is_of_the_device(failure.code))
        };
        if matches!(&record.state, State::Idle { last: Some(last) } if is_over(last)) {
            record.state = State::default();
        }
        return note_desired(record, &request, origin, Effect::Report);
    }
    match (refusal(context, &record, &request), origin) {
        (None, _) => accept(context, record, request, origin),
        (Some(failure), Origin::Method | Origin::Local) => {
            unchanged(record, [Effect::Respond(Response::Refused(failure, None))])
        }
        // Nobody waits for an answer to a desired property: the twin must tell.
        (Some(failure), Origin::Desired) => refuse_desired(context, record, request, failure),
    }
}

fn refuse_desired(context: &Context, mut record: Record, request: UpdateRequest, failure: Failure) -> Step {
    if is_of_the_device(failure.code) {
        let refused = Some((request.digest(), failure.code));
        if record.refused == refused {
            return unchanged(record, []);
        }
        record.refused = refused;
    } else {
        record.deal_with(&request);
    }
    let update = Update { request, target: context.boot.slot.other(), online_before: context.online };
    record.times.begin(context.now);
    rest(context, record, update, Outcome::Failed(failure))
}

/// Whether a refusal is for what the device is like now, and not for what was asked for: once that is mended, what is
/// desired is still to be done.
fn is_of_the_device(code: Code) -> bool {
    matches!(code, Code::Uncommitted | Code::EnvironmentUnusable | Code::Unverifiable)
}

/// A desired request that meets a running update is fed again when that is over.
fn requested_while_busy(record: Record, request: UpdateRequest, origin: Origin) -> Step {
    let running = record.state.update_id().cloned();
    if running.as_ref() == Some(&request.id) {
        let effect = Effect::Respond(Response::AlreadyRunning(request.id.clone()));
        // What fails with an address that is no longer the desired one is tried with that.
        let is_the_same = record.state.update().is_some_and(|update| update.request == request);
        return if is_the_same {
            note_desired(record, &request, origin, effect)
        } else {
            unchanged(record, [effect])
        };
    }
    let name = running.as_ref().map_or("", UpdateId::as_str);
    let failure = Failure::new(Code::Busy, format!("update `{name}` is running: wait for it, or cancel it"));
    unchanged(record, [Effect::Respond(Response::Refused(failure, running))])
}

fn accept(context: &Context, mut record: Record, request: UpdateRequest, origin: Origin) -> Step {
    let target = context.boot.slot.other();
    if origin == Origin::Desired {
        record.deal_with(&request);
    }
    // Later this slot is the other one, and can no longer say it by itself.
    let running_version = context.running_version(&record).map(str::to_owned);
    record.versions.set(context.boot.slot, running_version);
    record.times.begin(context.now);
    let response = Response::Started(request.id.clone());
    // A call comes as soon as the session takes it, which may be before it counts as up. What is desired stands, and
    // may begin without a hub.
    let online_before = context.online || origin == Origin::Method;
    let update = Update { request, target, online_before };
    let mut step = ask(record, update, Gate::BeforeInstall, 1, None);
    step.effects.insert(0, Effect::Respond(response));
    step
}

/// Why nothing is taken in a slot that nobody has committed.
#[must_use]
pub fn uncommitted(running: Slot) -> Failure {
    let message = format!("slot {running} is not committed: `twinboot commit` at the device keeps it");
    Failure::new(Code::Uncommitted, message)
}

/// Why this device does not take this request now, if it does not.
fn refusal(context: &Context, record: &Record, request: &UpdateRequest) -> Option<Failure> {
    let Context { boot, policy, environment, .. } = context;
    match environment {
        Environment::Committed => {}
        Environment::Uncommitted => return Some(uncommitted(boot.slot)),
        Environment::Unusable(why) => return Some(Failure::new(Code::EnvironmentUnusable, why.clone())),
    }
    if let Some(unverifiable) = unverifiable(policy, record, request) {
        return Some(unverifiable);
    }
    if request.force {
        return None;
    }
    if let Some(failure) = request.check_value.and_then(|digest| Denied::refusal(&record.denied, digest)) {
        return Some(failure);
    }
    let wanted = request.version.as_deref().filter(|_| !policy.allow_downgrade)?;
    let running = context.running_version(record);
    if let Some(running) = running.filter(|running| version::compare(wanted, running) != Ordering::Greater) {
        let message = format!("version {wanted} is not newer than {running}, which runs");
        return Some(Failure::new(Code::VersionNotNewer, message));
    }
    let min_version = record.min_version.as_deref();
    min_version.filter(|least| version::compare(wanted, least) == Ordering::Less).map(|least| {
        let message = format!("version {wanted} is older than {least}, which was committed on this device");
        Failure::new(Code::VersionBelowMinimum, message)
    })
}

/// Why there is nothing to verify the image by, if there is nothing.
fn unverifiable(policy: &Policy, record: &Record, request: &UpdateRequest) -> Option<Failure> {
    let has_keys = policy.has_keys || record.keys.is_some();
    if policy.signature_required && !has_keys {
        let message = "only signed images are taken, and this device knows no key: see `install.keys`";
        return Some(Failure::new(Code::Unverifiable, message));
    }
    let plain_http = request.uri.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http:"));
    let unchecked = request.check_value.is_none() && !has_keys;
    (unchecked && (policy.check_required || plain_http)).then(|| {
        let message = "nothing to verify the image by: give `fwPackageCheckValue`, or sign it";
        Failure::new(Code::Unverifiable, message)
    })
}

fn cancel_requested(context: &Context, mut record: Record, id: Option<UpdateId>) -> Step {
    match record.state.clone() {
        State::Asking { update, .. } | State::Installing { update, .. }
            if id.is_none() || id.as_ref() == Some(&update.request.id) =>
        {
            // Also where it was signed anew meanwhile.
            if let Some(desired) = context.desired.as_ref().filter(|desired| desired.id == update.request.id)
            {
                record.deal_with(desired);
            }
            let response = Response::Cancelled(update.request.id.clone());
            let failure = Failure::new(Code::Cancelled, "cancelled by an operator");
            let mut step = give_up(context, record, update, failure);
            step.effects.splice(0..0, [Effect::Abort, Effect::Respond(response)]);
            step
        }
        state @ (State::Idle { .. }
        | State::Asking { .. }
        | State::Installing { .. }
        | State::Installed { .. }
        | State::Rebooting { .. }
        | State::Trial { .. }
        | State::RollingBack { .. }) => {
            let message = match state.update_id() {
                None => "no update is running".to_owned(),
                Some(running) if id.is_some() && id.as_ref() != Some(running) => {
                    format!("the running update is `{running}`")
                }
                Some(running) => {
                    format!("update `{running}` is past its download: `twinboot rollback` can end its trial")
                }
            };
            let failure = Failure::new(Code::NothingToCancel, message);
            unchanged(record, [Effect::Respond(Response::Refused(failure, state.update_id().cloned()))])
        }
    }
}

fn commit_requested(context: &Context, record: Record) -> Step {
    if let State::Trial { update, image, since, .. } = record.state.clone() {
        let effects = [
            Effect::Respond(Response::Committing(update.request.id.clone())),
            Effect::Commit(update.clone()),
        ];
        return to_state(record, State::Trial { update, image, since, judged: true }, effects);
    }
    if record.state.is_at_rest() && context.environment == Environment::Uncommitted {
        return unchanged(record, [Effect::Respond(Response::Settling), Effect::Settle]);
    }
    let failure = Failure::new(Code::NothingToCommit, "no trial is running");
    let running = record.state.update_id().cloned();
    unchanged(record, [Effect::Respond(Response::Refused(failure, running))])
}

fn roll_back_requested(context: &Context, record: Record) -> Step {
    let failure = Failure::new(Code::OperatorRollBack, "rolled back by an operator at the device");
    let (update, image, to) = match record.state.clone() {
        State::Trial { update, image, .. } => {
            let to = update.target.other();
            (update, Some(image), to)
        }
        State::Idle { last: Some(last) }
            if record.fallback == Some(context.boot.slot.other())
                && context.environment == Environment::Committed =>
        {
            // Since the commit, others may have come and been refused.
            let update = record.committed.as_deref().cloned().unwrap_or(last.update);
            (update, None, context.boot.slot.other())
        }
        state @ (State::Idle { .. }
        | State::Asking { .. }
        | State::Installing { .. }
        | State::Installed { .. }
        | State::Rebooting { .. }
        | State::RollingBack { .. }) => {
            let message = match state.update_id() {
                Some(running) => {
                    format!(
                        "update `{running}` is not on trial: wait for it, or cancel it while it downloads"
                    )
                }
                None => match &context.environment {
                    Environment::Committed => {
                        format!("slot {} holds no system to go back to", context.boot.slot.other())
                    }
                    Environment::Uncommitted => format!("slot {} is not committed", context.boot.slot),
                    Environment::Unusable(why) => why.clone(),
                },
            };
            let failure = Failure::new(Code::NothingToRollBack, message);
            let response = Response::Refused(failure, state.update_id().cloned());
            return unchanged(record, [Effect::Respond(response)]);
        }
    };
    let response = Response::RollingBack(update.request.id.clone());
    let mut step = begin_roll_back(record, update, image, to, failure);
    step.effects.insert(0, Effect::Respond(response));
    step
}

fn progressed(mut record: Record, id: &UpdateId) -> Step {
    if let State::Installing { update, attempt } = &mut record.state
        && update.request.id == *id
    {
        *attempt = 1;
    }
    unchanged(record, [])
}

fn downloaded(context: &Context, mut record: Record, id: &UpdateId) -> Step {
    if matches!(&record.state, State::Installing { update, .. } if update.request.id == *id) {
        record.times.downloaded.get_or_insert(context.now);
    }
    unchanged(record, [Effect::Report])
}

// A completion that does not belong to the present state, or carries another id, is the late answer of
// something given up: it changes nothing.

/// The state, if it is about this update.
fn awaiting(record: &Record, id: &UpdateId) -> Option<State> {
    (record.state.update_id() == Some(id)).then(|| record.state.clone())
}

fn installed(context: &Context, mut record: Record, id: &UpdateId, result: Result<Image, Failure>) -> Step {
    let Some(State::Installing { mut update, .. }) = awaiting(&record, id) else {
        return unchanged(record, []);
    };
    let image = match result {
        Ok(image) => image,
        Err(failure) => return give_up(context, record, update, failure),
    };
    // A plain image that is known by its signature alone shows its digest only now.
    let denied = Denied::refusal(&record.denied, image.source_digest);
    if let Some(failure) = denied.filter(|_| !update.request.force) {
        return give_up(context, record, update, failure);
    }
    if update.request.version.is_none() {
        update.request.version.clone_from(&image.version);
    }
    // One that began right after a start may have been quicker than the session.
    update.online_before |= context.online;
    record.versions.set(update.target, update.request.version.clone());
    record.times.downloaded.get_or_insert(context.now);
    record.times.applying = Some(context.now);
    ask(record, update, Gate::AfterInstall { image }, 1, None)
}

/// Ends an update that the boot loader was told nothing of.
fn give_up(context: &Context, mut record: Record, update: Update, failure: Failure) -> Step {
    // What is there may be whole, but nobody is to boot it. Before the install it is what was there before.
    if !matches!(record.state, State::Asking { gate: Gate::BeforeInstall, .. }) {
        record.versions.set(update.target, None);
    }
    finish(context, record, update, Outcome::Failed(failure))
}

fn activated(context: &Context, record: Record, id: &UpdateId, result: Result<(), Failure>) -> Step {
    let Some(State::Installed { update, image }) = awaiting(&record, id) else {
        return unchanged(record, []);
    };
    match result {
        Ok(()) => {
            let state = State::Rebooting { update, image, armed_in: context.boot.id };
            to_state(record, state, [Effect::Report, Effect::Reboot])
        }
        // The transaction may or may not have landed: undo it for certain.
        Err(failure) => begin_roll_back(record, update, None, context.boot.slot, failure),
    }
}

fn health_checked(record: Record, id: &UpdateId, result: Result<(), Failure>) -> Step {
    let Some(State::Trial { update, image, since, judged: false }) = awaiting(&record, id) else {
        return unchanged(record, []);
    };
    match result {
        Ok(()) => {
            let commit = Effect::Commit(update.clone());
            to_state(record, State::Trial { update, image, since, judged: true }, [commit])
        }
        Err(failure) => {
            let to = update.target.other();
            begin_roll_back(record, update, Some(image), to, failure)
        }
    }
}

fn committed(context: &Context, mut record: Record, id: &UpdateId, result: Result<(), Failure>) -> Step {
    let Some(State::Trial { update, image, .. }) = awaiting(&record, id) else {
        return unchanged(record, []);
    };
    match result {
        Ok(()) => {
            record.fallback = Some(update.target.other());
            record.committed = Some(Box::new(update.clone().without_secrets()));
            record.times.succeeded = Some(context.now);
            // An older one was let through on purpose.
            let version = update.request.version.clone();
            record.min_version = version.clone().or(record.min_version);
            record.keys = newer(record.keys, image.keys);
            let mut step = finish_with_hooks(context, record, update, Outcome::Succeeded, Hook::AfterCommit);
            step.effects.extend(version.map(Effect::KeepVersion));
            step
        }
        Err(failure) => {
            let to = update.target.other();
            begin_roll_back(record, update, Some(image), to, failure)
        }
    }
}

/// An old list never comes back.
fn newer(ours: Option<KeyList>, brought: Option<KeyList>) -> Option<KeyList> {
    let least = ours.as_ref().map_or(0, |list| list.serial);
    brought.filter(|list| list.serial > least).or(ours)
}

fn rolled_back(context: &Context, record: Record, id: &UpdateId, result: Result<(), Failure>) -> Step {
    let boot = context.boot;
    let Some(State::RollingBack { update, image, to, failure, asked_in, reboots, tries }) =
        awaiting(&record, id)
    else {
        return unchanged(record, []);
    };
    match result {
        Ok(()) if boot.slot == to => finish_roll_back(context, record, update, image, failure),
        // It cannot be written. Only what would boot the other slot is never left so.
        Err(unwritten)
            if boot.slot == to
                && tries >= ROLL_BACK_TRIES_MAX
                && context.environment != Environment::Uncommitted =>
        {
            let failure = Failure::new(Code::EnvironmentUnusable, format!("{unwritten}; after: {failure}"));
            finish(context, record, update, Outcome::Failed(failure))
        }
        // On the good slot, a reboot mends nothing: stay, and try again.
        Err(_) if boot.slot == to => {
            let roll_back = Effect::RollBack { id: update.request.id.clone(), to, again: true };
            let tries = tries.saturating_add(1).min(ROLL_BACK_TRIES_MAX);
            let state = State::RollingBack { update, image, to, failure, asked_in, reboots, tries };
            to_state(record, state, [Effect::Report, roll_back])
        }
        result if asked_in != Some(boot.id) && reboots >= ROLL_BACK_REBOOTS_MAX => {
            let why = match result {
                Ok(()) => format!("the boot loader does not go back to slot {to}"),
                Err(unwritten) => unwritten.to_string(),
            };
            let failure = Failure::new(Code::EnvironmentUnusable, format!("{why}; after: {failure}"));
            finish(context, record, update, Outcome::Failed(failure))
        }
        // What could not be written, the boot loader's own counter can still do, in a trial.
        Ok(()) | Err(_) => {
            let reboots = if asked_in == Some(boot.id) { reboots } else { reboots.saturating_add(1) };
            let asked_in = Some(boot.id);
            let state = State::RollingBack { update, image, to, failure, asked_in, reboots, tries };
            to_state(record, state, [Effect::Report, Effect::Reboot])
        }
    }
}

fn begin_trial(record: Record, update: Update, image: Image, since: Moment) -> Step {
    let check = Effect::CheckHealth { update: update.clone(), since_uptime_secs: since.uptime_secs };
    to_state(record, State::Trial { update, image, since, judged: false }, [Effect::Report, check])
}

fn begin_roll_back(record: Record, update: Update, image: Option<Image>, to: Slot, failure: Failure) -> Step {
    let roll_back = Effect::RollBack { id: update.request.id.clone(), to, again: false };
    let state = State::RollingBack { update, image, to, failure, asked_in: None, reboots: 0, tries: 0 };
    to_state(record, state, [Effect::Report, roll_back])
}

fn finish_roll_back(
    context: &Context,
    mut record: Record,
    update: Update,
    image: Option<Image>,
    failure: Failure,
) -> Step {
    record.fallback = None;
    if failure.code == Code::ActivateFailed {
        return finish(context, record, update, Outcome::Failed(failure));
    }
    if let Some(image) = image {
        record.denied.retain(|denied| denied.source_digest != image.source_digest);
        record.denied.push(Denied { source_digest: image.source_digest, failure: failure.clone() });
        let surplus = record.denied.len().saturating_sub(DENIED_MAX);
        record.denied.drain(..surplus);
    }
    finish_with_hooks(context, record, update, Outcome::RolledBack(failure), Hook::AfterRollback)
}

fn finish(context: &Context, mut record: Record, update: Update, outcome: Outcome) -> Step {
    // What was under way, and is not known, is over.
    record.fault = None;
    rest(context, record, update, outcome)
}

/// The end of an update, which may have been refused before it began.
fn rest(context: &Context, mut record: Record, update: Update, outcome: Outcome) -> Step {
    let update = update.without_secrets();
    record.times.finished = Some(context.now);
    to_state(record, State::Idle { last: Some(Box::new(Finished { update, outcome })) }, [Effect::Report])
}

fn to_state(mut record: Record, state: State, effects: impl Into<Vec<Effect>>) -> Step {
    record.state = state;
    Step { record, effects: effects.into() }
}

fn unchanged(record: Record, effects: impl Into<Vec<Effect>>) -> Step {
    Step { record, effects: effects.into() }
}

fn note_desired(mut record: Record, request: &UpdateRequest, origin: Origin, effect: Effect) -> Step {
    if origin == Origin::Desired {
        record.deal_with(request);
    }
    unchanged(record, [effect])
}

#[cfg(test)]
mod tests {
    use super::super::record::{Times, Versions};
    use super::super::{BootId, Sha256Digest};
    use super::*;

    fn context() -> Context {
        Context {
            boot: Boot { id: BootId(1), slot: Slot::A },
            now: Moment { boot: BootId(1), uptime_secs: 9, unix_secs: None },
            policy: Policy {
                check_required: true,
                signature_required: false,
                has_keys: false,
                allow_downgrade: false,
                defer_limit_secs: 3600,
            },
            environment: Environment::Committed,
            online: true,
            running_version: Some("1.0".into()),
            min_version: None,
            trial_timeouts: 0,
            desired: None,
        }
    }

    fn request(id: &str, version: Option<&str>) -> UpdateRequest {
        UpdateRequest {
            id: id.parse().unwrap(),
            uri: "https://host.example/a.img".into(),
            check_value: Some(Sha256Digest([7; 32])),
            version: version.map(str::to_owned),
            size_bytes: None,
            force: false,
        }
    }

    fn ask(context: &Context, record: &Record, request: UpdateRequest, origin: Origin) -> Step {
        step(context, record.clone(), Event::Requested(request, origin))
    }

    fn refused(step: &Step) -> Option<Code> {
        step.effects.iter().find_map(|effect| match effect {
            Effect::Respond(Response::Refused(failure, _)) => Some(failure.code),
            _ => None,
        })
    }

    fn started(step: &Step) -> bool {
        step.effects.iter().any(|effect| matches!(effect, Effect::RunHooks(_)))
    }

    /// Shows advancedtelematic/meta-updater#486.
    #[test]
    fn an_accepted_request_is_answered_reported_and_installed_in_that_order() {
        let step = ask(&context(), &Record::default(), request("one", Some("2.0")), Origin::Method);
        assert!(matches!(
            step.effects.as_slice(),
            [Effect::Respond(Response::Started(_)), Effect::Report, Effect::RunHooks(run)]
                if run.hook == Hook::BeforeInstall && run.update.target == Slot::B && run.update.online_before
        ));
        let agreed = Event::HooksRan("one".parse().unwrap(), Hook::BeforeInstall, Verdict::GoOn);
        let step = super::step(&context(), step.record, agreed);
        assert!(matches!(step.effects.as_slice(), [Effect::Report, Effect::Install(_)]));
        assert_eq!(step.record.versions.get(Slot::A), Some("1.0"), "the fallback keeps its name");
    }

    /// Shows F5; foundriesio/aktualizr-lite#76, #155, #202, #381.
    #[test]
    fn each_rule_refuses_by_its_code() {
        let none = Record::default();
        let with = |change: fn(&mut Context)| {
            let mut context = context();
            change(&mut context);
            context
        };
        let uncommitted = with(|context| context.environment = Environment::Uncommitted);
        let unusable = with(|context| context.environment = Environment::Unusable("why".into()));
        let plain = UpdateRequest { check_value: None, ..request("one", None) };
        let denied = Record {
            denied: vec![Denied {
                source_digest: Sha256Digest([7; 32]),
                failure: Failure::new(Code::BootFailed, "m"),
            }],
            ..Record::default()
        };
        let rows = [
            (ask(&uncommitted, &none, request("one", None), Origin::Method), Code::Uncommitted),
            (ask(&unusable, &none, request("one", None), Origin::Local), Code::EnvironmentUnusable),
            (ask(&context(), &none, plain, Origin::Method), Code::Unverifiable),
            (ask(&context(), &none, request("one", Some("1.0")), Origin::Method), Code::VersionNotNewer),
            (ask(&context(), &none, request("one", Some("0.9")), Origin::Method), Code::VersionNotNewer),
            (ask(&context(), &denied, request("one", Some("2.0")), Origin::Method), Code::RolledBackBefore),
        ];
        for (step, code) in rows {
            assert_eq!(refused(&step), Some(code));
            assert!(!started(&step));
        }
    }

    #[test]
    fn an_operator_at_the_device_may_insist() {
        let insist = |record: &Record| {
            let request = UpdateRequest { force: true, ..request("one", Some("0.9")) };
            started(&ask(&context(), record, request, Origin::Local))
        };
        let failure = Failure::new(Code::BootFailed, "m");
        let denied = vec![Denied { source_digest: Sha256Digest([7; 32]), failure }];
        assert!(insist(&Record { denied, ..Record::default() }));
    }

    #[test]
    fn an_image_without_check_value_over_plain_http_is_refused_whatever_the_configuration() {
        let mut context = context();
        context.policy.check_required = false;
        let request =
            |uri: &str| UpdateRequest { check_value: None, uri: uri.into(), ..request("one", None) };
        let plain = ask(&context, &Record::default(), request("http://host.example/a"), Origin::Method);
        assert_eq!(refused(&plain), Some(Code::Unverifiable));
        let secure = ask(&context, &Record::default(), request("https://host.example/a"), Origin::Method);
        assert!(started(&secure));
    }

    #[test]
    fn where_only_signatures_count_a_request_without_a_key_to_judge_it_by_is_refused_at_once() {
        let mut context = context();
        context.policy.signature_required = true;
        let asked = |context: &Context, record: &Record| {
            ask(context, record, request("one", Some("2.0")), Origin::Method)
        };
        assert_eq!(refused(&asked(&context, &Record::default())), Some(Code::Unverifiable));
        let list = KeyList { serial: 1, trusted: [("a".to_owned(), "RWQ".to_owned())].into() };
        assert!(started(&asked(&context, &Record { keys: Some(list), ..Record::default() })));
        context.policy.has_keys = true;
        assert!(started(&asked(&context, &Record::default())));
    }

    fn keys(serial: u64) -> KeyList {
        KeyList { serial, trusted: [(format!("of {serial}"), "RWQ".to_owned())].into() }
    }

    /// The end of a trial of this version with these keys.
    fn after_trial(record: Record, version: &str, list: Option<KeyList>, good: bool) -> Step {
        let context = Context { boot: Boot { slot: Slot::B, ..context().boot }, ..context() };
        let update = Update { request: request("one", Some(version)), target: Slot::B, online_before: true };
        let image = Image { source_digest: Sha256Digest([7; 32]), size_bytes: 1, version: None, keys: list };
        let record =
            Record { state: State::Trial { update, image, since: context.now, judged: false }, ..record };
        let id: UpdateId = "one".parse().unwrap();
        if good {
            step(&context, record, Event::Committed(id, Ok(())))
        } else {
            step(&context, record, Event::HealthChecked(id, Err(Failure::new(Code::HealthCheckFailed, "m"))))
        }
    }

    #[test]
    fn what_an_operator_committed_stays_committed_after_a_restart_and_an_unhealthy_answer() {
        let context = Context { boot: Boot { slot: Slot::B, ..context().boot }, ..context() };
        let update = Update { request: request("one", Some("2.0")), target: Slot::B, online_before: true };
        let image = Image { source_digest: Sha256Digest([7; 32]), size_bytes: 1, version: None, keys: None };
        let trial = begin_trial(Record::default(), update.clone(), image, context.now).record;
        let asked = step(&context, trial, Event::CommitRequested).record;
        let unhealthy = Err(Failure::new(Code::HealthCheckFailed, "m"));
        let judged =
            step(&context, asked.clone(), Event::HealthChecked(update.request.id.clone(), unhealthy));
        assert_eq!((judged.record, judged.effects), (asked.clone(), Vec::new()));
        let later = Context { boot: Boot { id: BootId(99), slot: Slot::B }, ..context };
        let restarted = step(&later, asked.clone(), Event::Started);
        assert_eq!(
            (restarted.record, restarted.effects),
            (asked, vec![Effect::Report, Effect::Commit(update)])
        );
    }

    #[test]
    fn a_key_list_counts_once_its_update_is_committed_and_an_old_one_never_comes_back() {
        let ours = Record { keys: Some(keys(3)), ..Record::default() };
        let serial = |step: &Step| step.record.keys.as_ref().map(|list| list.serial);
        assert_eq!(serial(&after_trial(Record::default(), "2.0", Some(keys(1)), true)), Some(1));
        assert_eq!(serial(&after_trial(ours.clone(), "2.0", Some(keys(4)), true)), Some(4));
        assert_eq!(serial(&after_trial(ours.clone(), "2.0", Some(keys(2)), true)), Some(3));
        assert_eq!(serial(&after_trial(ours.clone(), "2.0", None, true)), Some(3));
        assert_eq!(serial(&after_trial(ours, "2.0", Some(keys(4)), false)), Some(3), "rolled back");
    }

    #[test]
    fn what_was_committed_bars_the_way_to_older_versions_whatever_runs() {
        let committed = after_trial(Record::default(), "2.0", None, true);
        assert_eq!(committed.record.min_version.as_deref(), Some("2.0"));
        let kept = |step: &Step| step.effects.contains(&Effect::KeepVersion("2.0".into()));
        assert!(kept(&committed));
        // By hand, back to 1.0.
        let record = Record { versions: Versions::default(), denied: Vec::new(), ..committed.record };
        let asked = |record: &Record, version| {
            refused(&ask(&context(), record, request("two", Some(version)), Origin::Method))
        };
        assert_eq!(asked(&record, "1.5"), Some(Code::VersionBelowMinimum));
        assert_eq!(asked(&record, "2.0"), None);
        let mut lenient = context();
        lenient.policy.allow_downgrade = true;
        assert!(started(&ask(&lenient, &record, request("two", Some("1.5")), Origin::Method)));
        // What was let through on purpose is the new least version.
        let lower = after_trial(record.clone(), "1.5", None, true).record;
        assert_eq!(lower.min_version.as_deref(), Some("1.5"));

        // The state is lost: the boot loader's variables have it. The variables are lost: the state has it.
        let bare = Context { min_version: Some("2.0".into()), running_version: None, ..context() };
        let begun = step(&bare, Record::default(), Event::Started);
        assert!(kept(&begun));
        assert_eq!(asked(&begun.record, "1.5"), Some(Code::VersionBelowMinimum));
        assert!(kept(&step(&context(), record, Event::Started)));
        assert!(!kept(&step(&context(), Record::default(), Event::Started)));
    }

    #[test]
    fn an_update_that_is_over_keeps_no_credential_of_its_address() {
        let mut asked = request("one", Some("2.0"));
        asked.uri = "https://user:passw0rd@host.example/a.img?sig=h1dden#h1dden".into();
        let taken = ask(&context(), &Record::default(), asked, Origin::Method).record;
        assert!(format!("{taken:?}").contains("h1dden"), "it is fetched again after a power cut");
        let over = step(&context(), taken, Event::CancelRequested(None)).record;
        let text = format!("{over:?}");
        assert!(text.contains("https://host.example/a.img") && !text.contains("h1dden"), "{text}");
        assert!(!text.contains("passw0rd"), "{text}");
    }

    /// Shows F17.
    #[test]
    fn a_desired_request_is_taken_up_once_and_not_while_another_runs() {
        let running = ask(&context(), &Record::default(), request("one", Some("2.0")), Origin::Method).record;
        let waiting = ask(&context(), &running, request("two", Some("3.0")), Origin::Desired);
        assert_eq!(waiting.record.desired, None, "it is fed again once the device is at rest");

        let taken = ask(&context(), &Record::default(), request("two", Some("3.0")), Origin::Desired);
        assert!(started(&taken));
        let failure = Err(Failure::new(Code::DigestMismatch, "m"));
        let id: UpdateId = "two".parse().unwrap();
        let agreed = Event::HooksRan(id.clone(), Hook::BeforeInstall, Verdict::GoOn);
        let installing = step(&context(), taken.record, agreed).record;
        let over = step(&context(), installing, Event::Installed(id, failure)).record;
        let again = ask(&context(), &over, request("two", Some("3.0")), Origin::Desired);
        assert_eq!((again.record, again.effects.as_slice()), (over, [].as_slice()));
    }

    #[test]
    fn a_desired_version_that_runs_already_is_done() {
        let step = ask(&context(), &Record::default(), request("one", Some("1.0")), Origin::Desired);
        assert!(!started(&step));
        assert_eq!(step.record.state, State::default());
        assert_eq!(step.record.desired, Some("one".parse().unwrap()));
    }

    #[test]
    fn a_desired_version_that_runs_on_trial_alone_is_done_once_it_is_committed() {
        let wanted = || request("one", Some("1.0"));
        let uncommitted = Context { environment: Environment::Uncommitted, ..context() };
        let on_trial = ask(&uncommitted, &Record::default(), wanted(), Origin::Desired).record;
        assert!(!on_trial.has_dealt_with(&wanted()) && on_trial.state != State::default());
        let fell_back = Context { running_version: Some("0.9".into()), ..context() };
        assert!(started(&ask(&fell_back, &on_trial, wanted(), Origin::Desired)));
        let kept = ask(&context(), &on_trial, wanted(), Origin::Desired).record;
        assert!(kept.has_dealt_with(&wanted()));
        assert_eq!(kept.state, State::default(), "it is not refused any more");
    }

    #[test]
    fn a_desired_request_that_is_refused_tells_the_twin_and_of_a_lost_state_still() {
        let request = UpdateRequest { check_value: None, ..request("one", None) };
        let fault = Some(Failure::new(Code::StateDamaged, "m"));
        let lost = Record { fault: fault.clone(), ..Record::default() };
        let step = ask(&context(), &lost, request, Origin::Desired);
        assert_eq!(step.record.fault, fault);
        let State::Idle { last: Some(last) } = step.record.state else { panic!("not at rest") };
        assert!(matches!(last.outcome, Outcome::Failed(failure) if failure.code == Code::Unverifiable));
    }

    /// Slot b runs, after this update of it was committed.
    fn committed() -> (Context, Record) {
        let context = Context { boot: Boot { slot: Slot::B, ..context().boot }, ..context() };
        (context, after_trial(Record::default(), "2.0", None, true).record)
    }

    #[test]
    fn a_committed_slot_that_the_boot_loader_has_left_is_not_called_completed() {
        let (on_b, record) = committed();
        let stays = step(&on_b, record.clone(), Event::Started).record;
        assert!(
            matches!(stays.state, State::Idle { last: Some(last) } if last.outcome == Outcome::Succeeded)
        );
        let left = step(&context(), record, Event::Started);
        assert!(left.effects.contains(&Effect::ConfirmBoot) && left.effects.contains(&Effect::Report));
        let State::Idle { last: Some(last) } = left.record.state else { panic!("not at rest") };
        assert!(matches!(last.outcome, Outcome::RolledBack(failure) if failure.code == Code::BootFailed));
        assert_eq!(left.record.denied, [], "it was good once");
    }

    #[test]
    fn a_roll_back_from_rest_is_one_of_the_update_that_was_committed() {
        let (on_b, record) = committed();
        let older = ask(&on_b, &record, request("two", Some("1.5")), Origin::Desired).record;
        let State::Idle { last: Some(last) } = &older.state else { panic!("not at rest") };
        assert_eq!(last.update.request.id.as_str(), "two", "it was refused");
        let State::RollingBack { update, to, .. } = step(&on_b, older, Event::RollBackRequested).record.state
        else {
            panic!("not rolling back")
        };
        assert_eq!((update.request.id.as_str(), update.target, to), ("one", Slot::B, Slot::A));
    }

    #[test]
    fn a_roll_back_that_cannot_be_written_reboots_no_more_often_than_any_other() {
        let (on_b, record) = committed();
        let mut next = step(&on_b, record, Event::RollBackRequested);
        let mut reboots = 0;
        for boot in 2.. {
            let failed = Err(Failure::new(Code::EnvironmentUnusable, "m"));
            let on_b = Context { boot: Boot { id: BootId(boot), slot: Slot::B }, ..on_b.clone() };
            next = step(&on_b, next.record, Event::RolledBack("one".parse().unwrap(), failed));
            if !next.effects.contains(&Effect::Reboot) {
                break;
            }
            reboots += 1;
        }
        assert_eq!(reboots, ROLL_BACK_REBOOTS_MAX);
        let State::Idle { last: Some(last) } = next.record.state else { panic!("not at rest") };
        assert!(
            matches!(last.outcome, Outcome::Failed(failure) if failure.code == Code::EnvironmentUnusable)
        );
    }

    #[test]
    fn what_runs_uncommitted_at_rest_may_be_kept_by_hand() {
        let (on_b, record) = committed();
        let nothing = step(&on_b, record.clone(), Event::CommitRequested);
        assert_eq!(refused(&nothing), Some(Code::NothingToCommit));
        let lost = Context { environment: Environment::Uncommitted, ..on_b };
        let kept = step(&lost, record.clone(), Event::CommitRequested);
        assert_eq!(kept.effects, [Effect::Respond(Response::Settling), Effect::Settle]);
        assert_eq!(kept.record, record);
    }

    #[test]
    fn a_refused_desired_request_tells_no_time_of_the_update_before_it() {
        let (on_b, record) = committed();
        let record = Record { times: Times { downloaded: Some(on_b.now), ..record.times }, ..record };
        let times = ask(&on_b, &record, request("two", Some("1.5")), Origin::Desired).record.times;
        assert_eq!((times.accepted, times.finished), (Some(on_b.now), Some(on_b.now)));
        assert_eq!((times.downloaded, times.applying), (None, None));
        assert_eq!(times.succeeded, record.times.succeeded);
    }

    #[test]
    fn a_trial_that_was_found_good_is_not_judged_again_and_no_other_is_committed() {
        let on_b = Boot { id: BootId(2), slot: Slot::B };
        let update = Update { request: request("one", Some("2.0")), target: Slot::B, online_before: true };
        let image = Image { source_digest: Sha256Digest([7; 32]), size_bytes: 1, version: None, keys: None };
        let trial = begin_trial(Record::default(), update.clone(), image, context().now).record;
        let context = Context { boot: on_b, ..context() };
        let id = update.request.id.clone();
        let judged = step(&context, trial.clone(), Event::HealthChecked(id, Ok(())));
        assert_eq!(judged.effects, [Effect::Commit(update.clone())]);
        let again = step(&context, judged.record.clone(), Event::Started);
        assert_eq!(
            (again.record, again.effects),
            (judged.record, vec![Effect::Report, Effect::Commit(update)])
        );
        // RAUC's variables alone make a trial look like what is committed.
        let checks = |effect: &Effect| matches!(effect, Effect::CheckHealth { .. });
        assert!(step(&context, trial, Event::Started).effects.iter().any(checks));
    }

    #[test]
    fn what_is_desired_is_done_once_the_device_can() {
        let wanted = || request("one", Some("2.0"));
        let uncommitted = Context { environment: Environment::Uncommitted, ..context() };
        let refused = ask(&uncommitted, &Record::default(), wanted(), Origin::Desired).record;
        assert!(matches!(&refused.state, State::Idle { last: Some(last) }
            if matches!(&last.outcome, Outcome::Failed(failure) if failure.code == Code::Uncommitted)));
        let again = ask(&uncommitted, &refused, wanted(), Origin::Desired);
        assert_eq!((&again.record, again.effects.as_slice()), (&refused, [].as_slice()), "it is told");
        assert!(started(&ask(&context(), &refused, wanted(), Origin::Desired)));
        // The end of another update stays told.
        let other = ask(&context(), &refused, request("three", Some("3.0")), Origin::Method).record;
        let other = step(&context(), other, Event::CancelRequested(None)).record;
        let again = ask(&uncommitted, &other, wanted(), Origin::Desired);
        assert_eq!((&again.record, again.effects.as_slice()), (&other, [].as_slice()));
        let changed = ask(&uncommitted, &other, request("one", Some("2.1")), Origin::Desired).record;
        assert_ne!(changed.state, other.state, "it is another wish");
        // What is wrong with the request stays wrong.
        let older = ask(&context(), &refused, request("two", Some("0.5")), Origin::Desired).record;
        assert!(older.has_dealt_with(&request("two", Some("0.5"))));
    }

    /// The same update, at an address that was signed so.
    fn signed(signature: &str) -> UpdateRequest {
        let uri = format!("https://host.example/a.img?sig={signature}");
        UpdateRequest { uri, ..request("one", Some("2.0")) }
    }

    #[test]
    fn a_desired_address_that_was_signed_anew_is_tried_again() {
        let taken = ask(&context(), &Record::default(), signed("old"), Origin::Desired).record;
        let meanwhile = ask(&context(), &taken, signed("new"), Origin::Desired);
        assert_eq!(meanwhile.effects, [Effect::Respond(Response::AlreadyRunning("one".parse().unwrap()))]);
        let agreed = Event::HooksRan("one".parse().unwrap(), Hook::BeforeInstall, Verdict::GoOn);
        let installing = step(&context(), meanwhile.record, agreed).record;
        let expired = Err(Failure::new(Code::ImageForbidden, "m"));
        let over = step(&context(), installing, Event::Installed("one".parse().unwrap(), expired)).record;
        assert!(!started(&ask(&context(), &over, signed("old"), Origin::Desired)));
        assert!(started(&ask(&context(), &over, signed("new"), Origin::Desired)));
    }

    #[test]
    fn a_cancel_is_one_of_the_address_that_was_signed_anew_too() {
        let taken = ask(&context(), &Record::default(), signed("old"), Origin::Desired).record;
        let context = Context { desired: Some(signed("new")), ..context() };
        let over = step(&context, taken, Event::CancelRequested(None)).record;
        assert!(over.has_dealt_with(&signed("new")));
        assert!(started(&ask(&context, &over, signed("newer"), Origin::Desired)), "it is another wish");
    }

    #[test]
    fn what_was_committed_stays_so_whatever_was_refused_since() {
        let (on_b, record) = committed();
        let refused = ask(&on_b, &record, request("two", Some("1.5")), Origin::Desired).record;
        let again = ask(&on_b, &refused, request("one", Some("2.0")), Origin::Method);
        assert_eq!(again.effects, [Effect::Respond(Response::AlreadyCompleted("one".parse().unwrap()))]);
        // And that the boot loader has left it is told all the same, once.
        let left = step(&context(), refused, Event::Started).record;
        let State::Idle { last: Some(last) } = &left.state else { panic!("not at rest") };
        assert_eq!(last.update.request.id.as_str(), "one");
        assert!(matches!(&last.outcome, Outcome::RolledBack(failure) if failure.code == Code::BootFailed));
        let state = left.state.clone();
        assert_eq!(step(&context(), left, Event::Started).record.state, state);
    }

    #[test]
    fn a_roll_back_that_cannot_be_written_ends_unless_the_other_slot_would_boot() {
        let update = Update { request: request("one", Some("2.0")), target: Slot::B, online_before: true };
        let failure = Failure::new(Code::ActivateFailed, "m");
        let begun = begin_roll_back(Record::default(), update, None, Slot::A, failure).record;
        let tries = |environment: Environment| {
            let context = Context { environment, ..context() };
            let mut record = begun.clone();
            let unwritten = || Err(Failure::new(Code::EnvironmentUnusable, "read-only"));
            let end = (0..300).find(|_| {
                let event = Event::RolledBack("one".parse().unwrap(), unwritten());
                let next = step(&context, record.clone(), event);
                record = next.record;
                !next.effects.iter().any(|effect| matches!(effect, Effect::RollBack { again: true, .. }))
            });
            (end, record.state)
        };
        let (end, state) = tries(Environment::Unusable("why".into()));
        assert_eq!(end, Some(ROLL_BACK_TRIES_MAX.into()));
        let State::Idle { last: Some(last) } = state else { panic!("not at rest") };
        assert!(
            matches!(last.outcome, Outcome::Failed(failure) if failure.code == Code::EnvironmentUnusable)
        );
        assert_eq!(tries(Environment::Uncommitted).0, None);
    }

    #[test]
    fn the_hub_counts_as_there_before_an_update_whenever_it_was_seen_before_the_reboot() {
        let online = |record: &Record| record.state.update().unwrap().online_before;
        let away = Context { online: false, ..context() };
        let taken = |origin| ask(&away, &Record::default(), request("one", Some("2.0")), origin).record;
        assert!(online(&taken(Origin::Method)), "it has just asked");
        assert!(!online(&taken(Origin::Desired)), "it was asked for long before");
        let local = taken(Origin::Local);
        assert!(!online(&local));
        let agreed = Event::HooksRan("one".parse().unwrap(), Hook::BeforeInstall, Verdict::GoOn);
        let installing = step(&away, local, agreed).record;
        let image = Image { source_digest: Sha256Digest([7; 32]), size_bytes: 1, version: None, keys: None };
        let installed = |context: &Context| {
            let event = Event::Installed("one".parse().unwrap(), Ok(image.clone()));
            step(context, installing.clone(), event).record
        };
        assert!(online(&installed(&context())) && !online(&installed(&away)));
    }

    #[test]
    fn boots_while_an_update_waits_are_confirmed_like_those_at_rest() {
        let asking = ask(&context(), &Record::default(), request("one", Some("2.0")), Origin::Method).record;
        let agreed = Event::HooksRan("one".parse().unwrap(), Hook::BeforeInstall, Verdict::GoOn);
        let installing = step(&context(), asking.clone(), agreed).record;
        for record in [asking, installing] {
            for slot in [Slot::A, Slot::B] {
                let context = Context { boot: Boot { id: BootId(2), slot }, ..context() };
                assert!(
                    step(&context, record.clone(), Event::Started).effects.contains(&Effect::ConfirmBoot)
                );
            }
        }
    }

    /// Shows F19.
    #[test]
    fn a_trials_time_counts_from_its_boot_however_often_the_daemon_starts() {
        let at = |boot, uptime_secs| {
            let (slot, id) = (Slot::B, BootId(boot));
            let now = Moment { boot: id, uptime_secs, unix_secs: None };
            Context { boot: Boot { id, slot }, now, environment: Environment::Uncommitted, ..context() }
        };
        let update = Update { request: request("one", None), target: Slot::B, online_before: true };
        let image = Image { source_digest: Sha256Digest([7; 32]), size_bytes: 1, version: None, keys: None };
        let armed = State::Rebooting { update, image, armed_in: BootId(1) };
        let mut record = Record { state: armed, ..Record::default() };
        for (context, expected) in [(at(2, 9), 9), (at(2, 500), 9), (at(3, 12), 12), (at(3, 13), 12)] {
            let step = step(&context, record, Event::Started);
            let since = step.effects.iter().find_map(|effect| match effect {
                Effect::CheckHealth { since_uptime_secs, .. } => Some(*since_uptime_secs),
                _ => None,
            });
            assert_eq!(since, Some(expected));
            record = step.record;
        }
        let fell_back = Context { trial_timeouts: 3, ..context() };
        let State::RollingBack { failure, .. } = step(&fell_back, record, Event::Started).record.state else {
            panic!("not rolling back")
        };
        let message = "slot b was not committed in time in 3 of its boots; the boot loader fell back";
        assert_eq!(failure.message, message);
    }

    #[test]
    fn only_the_newest_denied_images_are_remembered() {
        let mut record = Record::default();
        for number in 0..40 {
            let source_digest = Sha256Digest([number; 32]);
            let image = Image { source_digest, size_bytes: 1, version: None, keys: None };
            let request = request("one", None);
            let update = Update { request, target: Slot::B, online_before: false };
            let failure = Failure::new(Code::BootFailed, "m");
            record = finish_roll_back(&context(), record, update, Some(image), failure).record;
        }
        assert_eq!(record.denied.len(), DENIED_MAX);
        assert_eq!(record.denied.last().unwrap().source_digest, Sha256Digest([39; 32]));
    }
}
