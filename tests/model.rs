//! Exhaustive search of daemon, state file, slots, environment and boot loader, with a crash or a power
//! cut allowed between any two instructions of the shell, writes that fail, and writes that land although
//! the call failed. Hooks may put off or refuse, and the guard of a trial, which is systemd's alone, may
//! strike whenever it can.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may fail where it stands")]

use std::collections::{HashMap, HashSet, VecDeque};

use twinboot::update::step::{AFTERWORD_RUNS_MAX, INSTALL_ATTEMPTS_MAX, ROLL_BACK_REBOOTS_MAX};
use twinboot::update::{
    Boot, BootId, Code, Context, Effect, Environment, Event, Failure, Gate, Hook, HookRun, Image, Moment,
    Origin, Outcome, Policy, Record, Sha256Digest, Slot, State, UpdateId, UpdateRequest, Verdict, step,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Content {
    Old,
    Partial,
    New,
}

/// What the image does when it runs; chosen once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Nature {
    boots: bool,
    healthy: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    // Durable.
    disk: Record,
    content: [Content; 2],
    first: Slot,
    bootable: [bool; 2],
    trial: bool,
    tries_left: u8,
    mark: Mark,
    // Ghosts: has the boot loader spent a try since the last activation? Was that trial judged to be good, by
    // its health or by an operator? Was it committed, and has nobody asked for a roll back since? Which hooks let
    // the update go on last? What may still happen?
    tried: bool,
    judged: bool,
    committed: bool,
    agreed: Option<Hook>,
    requests_left: u8,
    operator_acts_left: u8,
    faults_left: u8,
    // Volatile.
    slot: Slot,
    todo: Vec<Effect>,
    nature: Nature,
}

/// By it, systemd ends a trial that nobody commits, with or without the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Mark {
    armed_by: Slot,
    reboots: u8,
}

const TRIES: u8 = 2;

/// The second deferral is one too many.
const DEFER_LIMIT_SECS: u64 = 1;

const NOW: BootId = BootId(1);
const BEFORE: BootId = BootId(0);

fn ix(slot: Slot) -> usize {
    slot as usize
}

fn request(name: &str) -> UpdateRequest {
    UpdateRequest {
        id: name.parse().unwrap(),
        uri: format!("https://host.example/{name}.img"),
        check_value: Some(digest()),
        version: None,
        size_bytes: None,
        force: false,
    }
}

fn digest() -> Sha256Digest {
    Sha256Digest([7; 32])
}

fn image() -> Image {
    Image { source_digest: digest(), size_bytes: 1, version: None, keys: None }
}

fn failure(code: Code) -> Result<(), Failure> {
    Err(Failure::new(code, "m"))
}

impl World {
    fn new(nature: Nature) -> Self {
        let mut world = Self {
            disk: Record::default(),
            content: [Content::Old, Content::Old],
            first: Slot::A,
            bootable: [true, true],
            trial: false,
            tries_left: 0,
            mark: Mark { armed_by: Slot::A, reboots: 0 },
            tried: false,
            judged: false,
            committed: false,
            agreed: None,
            requests_left: 2,
            operator_acts_left: 1,
            faults_left: 2,
            slot: Slot::A,
            todo: vec![],
            nature,
        };
        world.feed(Event::Started);
        world
    }

    fn context(&self) -> Context {
        Context {
            boot: Boot { id: NOW, slot: self.slot },
            now: Moment { boot: NOW, uptime_secs: 0, unix_secs: None },
            policy: Policy {
                check_required: true,
                signature_required: false,
                has_keys: false,
                allow_downgrade: false,
                defer_limit_secs: DEFER_LIMIT_SECS,
            },
            environment: if self.trial { Environment::Uncommitted } else { Environment::Committed },
            online: true,
            running_version: None,
            min_version: None,
            trial_timeouts: 0,
            desired: None,
        }
    }

    /// The shell: step, make durable, queue the effects.
    fn feed(&mut self, event: Event) {
        let step = step(&self.context(), self.disk.clone(), event);
        self.disk = step.record; // Atomic: a crash is before or after.
        if let State::Asking { attempt, .. } | State::Installing { attempt, .. } = &mut self.disk.state
            && (2..INSTALL_ATTEMPTS_MAX).contains(attempt)
        {
            *attempt = INSTALL_ATTEMPTS_MAX - 1; // Those in between are all alike.
        }
        self.todo.extend(step.effects);
    }

    fn restart_daemon(&self) -> Self {
        let mut world = self.clone();
        world.todo.clear();
        world.feed(Event::Started);
        world
    }

    fn power_cycle(&self) -> Self {
        let mut world = self.boot();
        world.feed(Event::Started);
        world
    }

    /// Resets the board and lets the boot loader choose, as the usual U-Boot script does.
    fn boot(&self) -> Self {
        let mut world = self.clone();
        world.todo.clear();
        match &mut world.disk.state {
            State::Rebooting { armed_in, .. } => *armed_in = BEFORE,
            State::Trial { since, .. } => since.boot = BEFORE,
            State::RollingBack { asked_in, .. } if asked_in.is_some() => *asked_in = Some(BEFORE),
            _ => {}
        }
        loop {
            let choice = if world.trial && world.tries_left > 0 {
                world.tries_left -= 1;
                world.tried = true;
                world.first
            } else if world.trial {
                world.first.other()
            } else {
                world.first
            };
            assert!(world.bootable[ix(choice)], "booted a slot marked unbootable: {world:?}");
            assert_ne!(world.content[ix(choice)], Content::Partial, "booted a partial image: {world:?}");
            if world.content[ix(choice)] == Content::Old || world.nature.boots {
                world.slot = choice;
                break;
            }
            assert!(world.trial, "committed to a slot that does not boot: {world:?}");
        }
        world
    }

    /// What runs is a trial.
    fn on_trial(&self) -> bool {
        self.trial && self.slot == self.first
    }

    /// `twinboot-trial.service`: whether it ends this boot.
    fn guard_strikes(&self) -> bool {
        self.mark.reboots > 0 && self.mark.armed_by != self.slot
    }

    fn struck(&self) -> Self {
        let mut world = self.clone();
        world.mark.reboots -= 1;
        world
    }

    /// From here on, no daemon starts any more on the trial: does the device still go back?
    fn goes_back_without_daemon(&self) -> bool {
        let mut world = self.clone();
        while world.on_trial() {
            if !world.guard_strikes() {
                return false;
            }
            world = world.struck().boot();
        }
        true
    }

    fn with(&self, event: Event) -> Self {
        let mut world = self.clone();
        world.feed(event);
        world
    }

    /// Everything that others may do at any moment.
    fn outside(&self) -> Vec<Self> {
        let mut out = vec![self.restart_daemon(), self.power_cycle()];
        if self.guard_strikes() {
            out.push(self.struck().power_cycle());
        }
        if self.requests_left > 0 {
            for name in ["one", "two"] {
                for origin in [Origin::Method, Origin::Desired] {
                    let mut world = self.with(Event::Requested(request(name), origin));
                    world.requests_left -= 1;
                    out.push(world);
                }
            }
        }
        if self.operator_acts_left > 0 {
            for event in [Event::CancelRequested(None), Event::CommitRequested, Event::RollBackRequested] {
                let mut world = self.with(event.clone());
                world.operator_acts_left -= 1;
                world.judged |= event == Event::CommitRequested;
                world.committed &= event != Event::RollBackRequested;
                out.push(world);
            }
            // A late answer of something that was given up long ago.
            let late: UpdateId = "one".parse().unwrap();
            if self.disk.state.update_id() != Some(&late) {
                for event in [
                    Event::Installed(late.clone(), Ok(image())),
                    Event::Activated(late.clone(), Ok(())),
                    Event::HealthChecked(late.clone(), Ok(())),
                    Event::Committed(late.clone(), Ok(())),
                    Event::RolledBack(late.clone(), Ok(())),
                    Event::HooksRan(late, Hook::BeforeReboot, Verdict::GoOn),
                ] {
                    let mut world = self.with(event);
                    world.operator_acts_left -= 1;
                    assert_eq!(world.disk, self.disk, "a late answer changed the record");
                    out.push(world);
                }
            }
        }
        out
    }

    fn write(&mut self, first: Slot, trial: bool) {
        (self.first, self.trial) = (first, trial);
        self.tries_left = if trial { TRIES } else { 0 };
    }

    fn arm(&mut self) {
        self.mark = Mark { armed_by: self.slot, reboots: TRIES };
    }

    fn arm_again(&mut self) {
        if self.trial && self.mark.reboots == 0 {
            self.mark.reboots = TRIES;
        }
    }

    fn disarm(&mut self) {
        self.mark.reboots = 0;
    }

    fn health(&mut self) -> Result<(), Failure> {
        self.judged |= self.nature.healthy;
        if self.nature.healthy { Ok(()) } else { failure(Code::HealthCheckFailed) }
    }

    /// A transaction after these steps, the last of which completes it: cut after any, fail after any or
    /// although all landed, or succeed.
    fn transaction(&self, steps: &[Self], failed: &Event, done: Event, out: &mut Vec<Self>) {
        for landed in std::iter::once(self).chain(steps) {
            if self.faults_left > 0 {
                let mut world = landed.with(failed.clone());
                world.faults_left -= 1;
                world.committed = false; // As far as anybody can know.
                out.push(world);
            }
            out.push(landed.restart_daemon());
            out.push(landed.power_cycle());
        }
        out.extend(steps.last().map(|landed| landed.with(done)));
    }

    /// Every way the next effect can go, the crash cases included.
    fn next(&self) -> Vec<Self> {
        let mut out = self.outside();
        let Some((effect, rest)) = self.todo.split_first() else { return out };
        let mut world = self.clone();
        world.todo = rest.to_vec();
        match effect.clone() {
            Effect::Respond(_) | Effect::Report | Effect::Abort | Effect::KeepVersion(_) => out.push(world),
            Effect::Settle => unreachable!("a trial that no update is about: {self:?}"),
            Effect::RunHooks(run) => world.run_hooks(&run, &mut out),
            Effect::ConfirmBoot => {
                if !world.trial {
                    world.disarm();
                }
                out.push(world);
            }
            Effect::Install(update) => {
                let id = update.request.id;
                assert_ne!(update.target, world.slot, "wrote the running slot");
                assert!(!(world.trial && world.first == update.target), "wrote an armed slot");
                assert_eq!(world.agreed, Some(Hook::BeforeInstall), "wrote without asking");
                world.bootable[ix(update.target)] = false;
                world.content[ix(update.target)] = Content::Partial;
                out.push(world.restart_daemon()); // Cut in the middle of the stream.
                out.push(world.power_cycle());
                if world.todo.contains(&Effect::Abort) {
                    out.push(world); // The shell drops the answer of what it aborts.
                    return out;
                }
                let mut further = world.with(Event::Progressed(id.clone()));
                further.todo.insert(0, effect.clone()); // It goes on.
                out.push(further);
                let failed = failure(Code::DigestMismatch).map(|()| image());
                out.push(world.with(Event::Installed(id.clone(), failed)));
                world.content[ix(update.target)] = Content::New;
                out.push(world.restart_daemon()); // Cut after the write, before the event.
                out.push(world.power_cycle());
                out.push(world.with(Event::Installed(id, Ok(image()))));
            }
            Effect::Activate(update) => {
                let id = update.request.id;
                assert_eq!(world.content[ix(update.target)], Content::New, "activated an unverified slot");
                assert_ne!(update.target, world.slot, "armed the running slot");
                assert_eq!(world.agreed, Some(Hook::BeforeReboot), "armed without asking");
                let mut marked = world.clone();
                marked.arm();
                let mut landed = marked.clone();
                (landed.tried, landed.judged, landed.committed) = (false, false, false);
                landed.bootable[ix(update.target)] = true;
                landed.write(update.target, true);
                let failed = Event::Activated(id.clone(), failure(Code::ActivateFailed));
                world.transaction(&[marked, landed], &failed, Event::Activated(id, Ok(())), &mut out);
            }
            Effect::Reboot => out.push(world.power_cycle()),
            Effect::CheckHealth { update, .. } => {
                world.arm_again();
                out.push(world.restart_daemon());
                let result = world.health();
                out.push(world.with(Event::HealthChecked(update.request.id, result)));
            }
            Effect::Commit(update) => {
                assert_eq!(update.target, world.slot, "committed a slot that is not running");
                let id = update.request.id;
                let mut unmarked = world.clone();
                unmarked.disarm();
                let mut landed = unmarked.clone();
                landed.write(update.target, false);
                // Not where a roll back was decided on meanwhile, which follows.
                landed.committed = matches!(landed.disk.state, State::Trial { .. });
                let failed = Event::Committed(id.clone(), failure(Code::CommitFailed));
                world.transaction(&[unmarked, landed], &failed, Event::Committed(id, Ok(())), &mut out);
            }
            Effect::RollBack { id, to, .. } => {
                assert!(!world.committed, "rolled back what was committed: {self:?}");
                let mut landed = world.clone();
                landed.write(to, false);
                landed.bootable[ix(to.other())] = false;
                let mut unmarked = landed.clone();
                unmarked.disarm();
                let failed = Event::RolledBack(id.clone(), failure(Code::ActivateFailed));
                world.transaction(&[landed, unmarked], &failed, Event::RolledBack(id, Ok(())), &mut out);
            }
        }
        out
    }

    /// Each answer that hooks may give.
    fn run_hooks(&self, run: &HookRun, out: &mut Vec<Self>) {
        let HookRun { hook, update, .. } = run;
        self.check_hooks(*hook, update.target);
        if hook.decides() && self.todo.contains(&Effect::Abort) {
            out.push(self.clone()); // As with an install.
            return;
        }
        let ran =
            |world: &Self, verdict| world.with(Event::HooksRan(update.request.id.clone(), *hook, verdict));
        out.push(ran(&self.agreeing(*hook), Verdict::GoOn));
        if hook.decides() && self.faults_left > 0 {
            for verdict in [Verdict::Later("m".to_owned()), Verdict::Refuse("m".to_owned())] {
                let mut world = ran(self, verdict);
                world.faults_left -= 1;
                out.push(world);
            }
        }
    }

    fn agreeing(&self, hook: Hook) -> Self {
        let agreed = if hook.decides() { Some(hook) } else { self.agreed };
        Self { agreed, ..self.clone() }
    }

    fn check_hooks(&self, hook: Hook, target: Slot) {
        match hook {
            Hook::AfterCommit => assert_eq!(self.slot, target, "told the wrong system"),
            Hook::AfterRollback => assert_eq!(self.slot, target.other(), "told the wrong system"),
            Hook::BeforeInstall | Hook::AfterInstall | Hook::BeforeReboot => {
                let untouched = !self.trial && self.first == self.slot && self.mark.reboots == 0;
                assert!(untouched, "the boot loader was told before the hooks were asked: {self:?}");
            }
        }
        if matches!(hook, Hook::AfterInstall | Hook::BeforeReboot) {
            assert_eq!(self.content[ix(target)], Content::New);
        }
    }

    fn quiet(&self) -> bool {
        matches!(self.disk.state, State::Idle { .. }) && self.todo.is_empty() && self.disk.afterword.is_none()
    }

    fn check(&self) {
        assert!(!self.guard_strikes() || self.on_trial() || self.slot != self.first, "{self:?}");
        assert!(self.judged || self.goes_back_without_daemon(), "a dead daemon keeps its slot: {self:?}");
        assert!(!self.quiet() || self.mark.reboots == 0, "the mark was left over: {self:?}");
        let runs = self.disk.afterword.as_ref().map_or(0, |after| after.runs);
        assert!(runs <= AFTERWORD_RUNS_MAX, "runs after an update have no bound");
        match &self.disk.state {
            State::Asking { attempt, gate, deferral, .. } => {
                assert!(*attempt <= INSTALL_ATTEMPTS_MAX, "attempts have no bound");
                assert!(deferral.as_ref().is_none_or(|deferral| deferral.spent_secs < DEFER_LIMIT_SECS));
                let whole = self.content[ix(self.slot.other())] == Content::New;
                assert!(whole || *gate == Gate::BeforeInstall, "a partial image got through: {self:?}");
            }
            State::Installing { attempt, .. } => {
                assert!(*attempt <= INSTALL_ATTEMPTS_MAX, "attempts have no bound");
            }
            State::RollingBack { reboots, .. } => {
                assert!(*reboots <= ROLL_BACK_REBOOTS_MAX, "reboots have no bound");
            }
            State::Idle { last: Some(last) } => self.check_outcome(&last.outcome),
            State::Idle { last: None }
            | State::Installed { .. }
            | State::Rebooting { .. }
            | State::Trial { .. } => {}
        }
    }

    fn check_outcome(&self, outcome: &Outcome) {
        assert!(!self.trial, "said {outcome:?} with a trial still armed: {self:?}");
        assert_eq!(self.first, self.slot, "said {outcome:?}, but the next boot changes slots: {self:?}");
        match outcome {
            Outcome::Succeeded => {
                assert_eq!(self.content[ix(self.slot)], Content::New);
                assert_eq!(self.disk.fallback, Some(self.slot.other()));
            }
            Outcome::Failed(_) => {}
            Outcome::RolledBack(failure) => {
                if failure.code == Code::BootFailed {
                    assert!(self.tried, "blamed the boot of a slot that was never tried: {self:?}");
                }
            }
        }
    }
}

/// From `world`, with no more faults, does the device come to rest?
fn settles(mut world: World) -> bool {
    for _ in 0..64 {
        if world.quiet() {
            return true;
        }
        if world.todo.is_empty() {
            return false;
        }
        let effect = world.todo.remove(0);
        match effect {
            Effect::Respond(_) | Effect::Report | Effect::Abort | Effect::KeepVersion(_) | Effect::Settle => {
            }
            Effect::RunHooks(run) => {
                world = world.agreeing(run.hook);
                world.feed(Event::HooksRan(run.update.request.id, run.hook, Verdict::GoOn));
            }
            Effect::ConfirmBoot => world.disarm(),
            Effect::Install(update) => {
                world.bootable[ix(update.target)] = false;
                world.content[ix(update.target)] = Content::New;
                world.feed(Event::Installed(update.request.id, Ok(image())));
            }
            Effect::Activate(update) => {
                world.arm();
                world.bootable[ix(update.target)] = true;
                world.write(update.target, true);
                world.feed(Event::Activated(update.request.id, Ok(())));
            }
            Effect::Reboot => world = world.power_cycle(),
            Effect::CheckHealth { update, .. } => {
                world.arm_again();
                let result = world.health();
                world.feed(Event::HealthChecked(update.request.id, result));
            }
            Effect::Commit(update) => {
                world.disarm();
                world.write(update.target, false);
                world.feed(Event::Committed(update.request.id, Ok(())));
            }
            Effect::RollBack { id, to, .. } => {
                world.write(to, false);
                world.bootable[ix(to.other())] = false;
                world.disarm();
                world.feed(Event::RolledBack(id, Ok(())));
            }
        }
    }
    false
}

/// Shows F1; F16; F18; rauc/rauc-hawkbit-updater#161, #172; zephyrproject-rtos/zephyr#37272, #71691, #71750,
/// #89265; systemd/systemd#34584, #37609, #41288, #41502, #41880, #42186, #42187; rauc/rauc#1140, #1136;
/// mendersoftware/meta-mender-community#454, OE4T/tegra-demo-distro#368; mendersoftware/mender-mcu#91, #115,
/// #175; coreos/zincati#1314.
#[test]
fn no_crash_breaks_an_invariant_and_every_state_settles() {
    let mut seen = HashSet::new();
    let mut queue = VecDeque::new();
    for boots in [true, false] {
        for healthy in [true, false] {
            queue.push_back(World::new(Nature { boots, healthy }));
        }
    }
    let mut outcomes: HashMap<String, usize> = HashMap::new();
    while let Some(world) = queue.pop_front() {
        if seen.contains(&world) {
            continue;
        }
        world.check();
        assert!(settles(world.clone()), "stuck: {world:?}");
        if let State::Idle { last: Some(last) } = &world.disk.state {
            let name = match &last.outcome {
                Outcome::Succeeded => "succeeded".to_owned(),
                Outcome::Failed(failure) => format!("failed {}", failure.code),
                Outcome::RolledBack(failure) => format!("rolled back {}", failure.code),
            };
            *outcomes.entry(name).or_default() += 1;
        }
        queue.extend(world.next().into_iter().filter(|next| !seen.contains(next)));
        seen.insert(world);
        assert!(seen.len() < 5_000_000, "the state space is not finite");
    }
    eprintln!("{} worlds, outcomes {outcomes:#?}", seen.len());
    for outcome in [
        "succeeded",
        "failed AttemptsExhausted",
        "failed Cancelled",
        "failed HookRefused",
        "failed RolledBackBefore",
        "failed ActivateFailed",
        "rolled back BootFailed",
        "rolled back HealthCheckFailed",
        "rolled back CommitFailed",
        "rolled back OperatorRollBack",
    ] {
        assert!(outcomes.contains_key(outcome), "the search never saw: {outcome}");
    }
}
