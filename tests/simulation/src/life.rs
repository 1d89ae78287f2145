//! One run: a machine from its factory to the end of its story, through every failure of its power.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use twinboot::agent;

use crate::cloud::{self, Cloud, Shared, lock};
use crate::disk::{self, Loss, NEWS};
use crate::judge;
use crate::scheduler;
use crate::seam;
use crate::site::Site;
use crate::story::{Act, Before, Liar, Nature, Story};
use crate::uboot::{self, Environment, Scheme, Slot};

/// What is wrong, for a person.
pub type Fault = String;

/// A failure of the power, or of the daemon alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Durable operations since the one before.
    pub after: u64,
    pub loss: Loss,
}

/// What makes a run; the same plan is the same run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub story: &'static Story,
    pub failures: Vec<Failure>,
    pub seed: u64,
    /// Whether the network is bad, and threads run in any order.
    pub is_stormy: bool,
}

/// What a run was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Durable operations after the last failure.
    pub operations: u64,
    pub boots: u32,
    pub failures: usize,
    /// The boot loader gave a trial up.
    pub fell_back: bool,
}

/// More than any story needs, failures apart.
const BOOTS_MAX: u32 = 12;

/// From reset to the start of the daemon.
const BOOT: Duration = Duration::from_secs(20);

/// systemd starts a daemon that ended again.
const RESTART: Duration = Duration::from_secs(5);

/// A kernel that does not come up is reset by its watchdog.
const WATCHDOG: Duration = Duration::from_secs(60);

/// `twinboot-trial.timer`
const GUARD: Duration = Duration::from_secs(15 * 60);

/// A trial that nobody commits is over ten minutes after it began, by the daemon.
const TRIAL_LIMIT: Duration = Duration::from_secs(11 * 60);

/// No boot of any story takes as long, the longest waits of all included.
const BOOT_LIMIT: Duration = Duration::from_secs(3 * 3600);

/// What still happens once the twin told the end.
const AFTERWARDS: Duration = Duration::from_secs(120);

/// What was on its way when a daemon was stopped in an orderly way is fetched again: a batch, and a block.
const RESTART_COSTS_BYTES: u64 = 5 << 19;

/// More than any kernel here.
const KERNEL_SLOT_BYTES: usize = 32 << 10;

/// How a daemon ended.
enum End {
    /// Power failed, or it was killed.
    Failed,
    Reboot,
    Restart,
    Over,
}

pub struct Life {
    site: Arc<Site>,
    plan: Plan,
    failures: VecDeque<Failure>,
    cloud: Shared,
    dice: Rng,
    tally: Tally,
}

/// Lives a plan.
///
/// # Errors
/// What must not be.
pub fn live(site: &Arc<Site>, plan: &Plan) -> Result<Tally, Fault> {
    seam::seed(plan.seed);
    seam::WALL_SECS.store(0, Ordering::Relaxed);
    scheduler::shuffle(plan.is_stormy.then_some(plan.seed));
    let mut life = Life {
        site: site.clone(),
        failures: plan.failures.iter().copied().collect(),
        cloud: Arc::new(Mutex::new(Cloud::new(plan.story, plan.is_stormy.then_some(plan.seed)))),
        dice: Rng::with_seed(plan.seed),
        tally: Tally::default(),
        plan: plan.clone(),
    };
    life.leave_factory().map_err(|error| format!("the machine cannot be made: {error}"))?;
    let lived = life.run();
    let fault = lock(&life.cloud).fault.take();
    lived.and(fault.map_or(Ok(()), Err))?;
    life.judge_traffic()?;
    let operations = disk::change(|disk| disk.operations());
    Ok(Tally { operations, ..life.tally })
}

impl Life {
    fn leave_factory(&self) -> io::Result<()> {
        let (site, story) = (&self.site, self.plan.story);
        let with_system = |image: Option<&crate::story::Image>| {
            let mut content = image.map(|image| image.content.clone()).unwrap_or_default();
            content.resize(story.slot_bytes(), 0);
            content
        };
        let mut environment = uboot::factory(story.scheme, story.origin);
        environment.truncate(uboot::COPIES[1] + uboot::COPY_BYTES);
        if story.before == Before::EnvironmentDamaged {
            let copy = uboot::COPIES[usize::from(self.dice.clone().bool())];
            environment[copy + 100] ^= 1;
        }
        let mut files: Vec<(PathBuf, Vec<u8>)> = vec![
            (site.slot(story.origin), with_system(Some(story.factory()))),
            // As RAUC's variables say it: both may boot.
            (
                site.slot(story.target()),
                with_system(Some(story.factory()).filter(|_| story.scheme == Scheme::Rauc)),
            ),
            (site.environment(), environment),
            (site.disk().join("data/lost+found"), Vec::new()),
        ];
        if story.has_kernel() {
            let mut kernel = story.factory().kernel.clone();
            kernel.resize(KERNEL_SLOT_BYTES, 0);
            files.push((site.kernel(story.origin), kernel));
            files.push((site.kernel(story.target()), vec![0; KERNEL_SLOT_BYTES]));
        }
        if let Some(state) = judge::state_before(story.before) {
            files.push((site.state().join("state"), state));
        }
        disk::insert(&files)?;
        if let Some((liar, lie)) = story.liar {
            let path = if liar == Liar::Target { site.slot(story.target()) } else { site.environment() };
            disk::change(|disk| disk.lie(&path, lie));
        }
        self.plan_failure();
        Ok(())
    }

    fn plan_failure(&self) {
        let after = self.failures.front().map(|failure| failure.after);
        disk::change(|disk| disk.plan(after));
    }

    /// What is left of the disk when something failed; whether it was the power.
    fn fail(&mut self) -> Result<bool, Fault> {
        let failure = self.failures.pop_front();
        let loss = failure.map_or(Loss::All, |failure| failure.loss);
        self.tally.failures += 1;
        self.settle(loss)?;
        self.plan_failure();
        Ok(loss != Loss::Killed)
    }

    fn settle(&mut self, loss: Loss) -> Result<(), Fault> {
        let dice = &mut self.dice;
        disk::change(|disk| disk.settle(loss, dice))
            .map_err(|error| format!("the disk cannot be restored: {error}"))
    }

    fn run(&mut self) -> Result<(), Fault> {
        // Once the story is over, what the twin told must hold without power.
        let mut encores = self.plan.story.encores;
        loop {
            self.judge()?;
            match self.boot()? {
                End::Over if encores == 0 => return self.judge_end(),
                End::Over => {
                    encores -= 1;
                    self.judge_end()?;
                    self.settle(Loss::All)?;
                }
                End::Failed | End::Restart => {}
                // A reboot may as well be a reset.
                End::Reboot => self.settle(Loss::All)?,
            }
        }
    }

    fn judge(&self) -> Result<(), Fault> {
        judge::judge(&self.site, self.plan.story, lock(&self.cloud).is_accepted)
    }

    fn judge_end(&self) -> Result<(), Fault> {
        let cloud = lock(&self.cloud);
        judge::judge_end(&self.site, self.plan.story, cloud.reported.as_ref(), &self.tally)
    }

    /// Good bytes are not fetched again.
    fn judge_traffic(&self) -> Result<(), Fault> {
        let (sent, size) = (lock(&self.cloud).sent_bytes, self.plan.story.needed_bytes() as u64);
        let restart = if self.plan.story.act == Act::Restart { RESTART_COSTS_BYTES.min(size) } else { 0 };
        let most = size * (self.tally.failures as u64 + 1) + restart;
        if self.plan.is_stormy || sent <= most {
            Ok(())
        } else {
            Err(format!("{sent} bytes were sent of {size}"))
        }
    }

    /// From a reset to the next, or to the end of the story.
    fn boot(&mut self) -> Result<End, Fault> {
        self.tally.boots += 1;
        if self.tally.boots > BOOTS_MAX + u32::try_from(4 * self.plan.failures.len()).unwrap_or(u32::MAX) {
            return Err(format!("{} boots were not enough", self.tally.boots));
        }
        disk::change(|disk| disk.switch_on());
        scheduler::pass(BOOT);
        seam::BOOTED_MILLIS
            .store(u64::try_from(scheduler::now().as_millis()).unwrap_or(0), Ordering::Relaxed);
        let Some(slot) = self.run_boot_loader()? else { return Ok(End::Failed) };
        let image = self.site.system(slot);
        let image = image.ok_or_else(|| format!("slot {} boots, and holds no system", slot.letter()))?;
        let boot_id = self.dice.u128(..);
        let scheme = self.plan.story.scheme;
        self.site
            .boot(scheme, slot, boot_id, image.version)
            .map_err(|error| format!("cannot boot: {error}"))?;
        lock(&self.cloud).online_at = match image.nature {
            Nature::Offline => Duration::MAX,
            Nature::Late => scheduler::now() + TRIAL_LIMIT,
            Nature::Good | Nature::Panics | Nature::NoDaemon => scheduler::now(),
        };
        match image.nature {
            Nature::Panics => {
                scheduler::pass(WATCHDOG);
                Ok(End::Reboot)
            }
            Nature::NoDaemon => {
                scheduler::pass(GUARD);
                self.guard()
            }
            Nature::Good | Nature::Offline | Nature::Late => self.run_daemons(slot),
        }
    }

    /// `None`: power failed.
    fn run_boot_loader(&mut self) -> Result<Option<Slot>, Fault> {
        let path = self.site.environment();
        let start = disk::change(|disk| Environment::load(disk.safe(&path))).start();
        let saved = start.saves.iter().try_for_each(|(offset, copy)| {
            let medium = fs::OpenOptions::new().write(true).open(&path)?;
            medium.write_all_at(copy, *offset as u64)?;
            medium.sync_all()
        });
        if saved.is_err() || !disk::change(|disk| disk.is_on()) {
            self.fail_without_daemon()?;
            return Ok(None);
        }
        self.tally.fell_back |= start.fell_back;
        Ok(Some(start.slot))
    }

    /// Where no daemon runs, only the power can fail.
    fn fail_without_daemon(&mut self) -> Result<(), Fault> {
        if let Some(Failure { loss: loss @ Loss::Killed, .. }) = self.failures.front_mut() {
            *loss = Loss::All;
        }
        self.fail().map(drop)
    }

    /// `twinboot-trial.service`
    fn guard(&mut self) -> Result<End, Fault> {
        let directory = self.site.state().join("trial");
        let armed_by = fs::read(directory.join("armed-by")).unwrap_or_default();
        let command_line = fs::read(self.site.command_line()).unwrap_or_default();
        let names = fs::read_dir(&directory).into_iter().flatten().flatten();
        let mut allowed: Vec<_> = names
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with("reboot-"))
            .collect();
        allowed.sort();
        let Some(first) = allowed.first().filter(|_| armed_by != command_line) else {
            return Err("a trial whose daemon does not start is ended by nobody".to_owned());
        };
        let counted = fs::rename(directory.join(first), directory.join(format!("done-{first}")))
            .and_then(|()| fs::File::open(&directory)?.sync_all());
        if counted.is_err() || !disk::change(|disk| disk.is_on()) {
            self.fail_without_daemon()?;
            return Ok(End::Failed);
        }
        Ok(End::Reboot)
    }

    fn run_daemons(&mut self, slot: Slot) -> Result<End, Fault> {
        let began = scheduler::now();
        loop {
            if scheduler::now() - began > BOOT_LIMIT {
                return Err("a boot takes too long".to_owned());
            }
            match self.run_daemon(slot, began)? {
                End::Failed => {
                    if self.fail()? {
                        return Ok(End::Failed);
                    }
                    disk::change(|disk| disk.switch_on());
                    self.judge()?;
                }
                End::Restart => {}
                end => return Ok(end),
            }
            scheduler::pass(RESTART);
        }
    }

    fn run_daemon(&mut self, slot: Slot, booted_at: Duration) -> Result<End, Fault> {
        judge::note_kept(&self.site, &mut lock(&self.cloud))?;
        disk::change(|disk| disk.watch(&self.site.environment()));
        seam::REBOOT_ASKED.store(false, Ordering::Relaxed);
        let (site, cloud) = (self.site.clone(), self.cloud.clone());
        let is_on_trial = slot == self.plan.story.target() && judge::is_trial(&site);
        let trial_ends = is_on_trial.then_some(booted_at + TRIAL_LIMIT);
        // A thread of its own, so that nothing that a thread keeps is left of the run before.
        let daemon = std::thread::spawn(move || daemon(&site, &cloud, trial_ends));
        let end =
            daemon.join().map_err(|panic| format!("the daemon panics: {}", words(panic.as_ref())))??;
        judge::judge_decisions(&self.site, self.plan.story, slot)?;
        Ok(end)
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or(panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}

fn daemon(site: &Arc<Site>, cloud: &Shared, trial_ends: Option<Duration>) -> Result<End, Fault> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("no runtime: {error}"))?;
    for socket in [site.network_socket(), site.control_socket()] {
        let _ = fs::remove_file(socket);
    }
    let end = runtime.block_on(async {
        let listener =
            UnixListener::bind(site.network_socket()).map_err(|error| format!("no network: {error}"))?;
        let (stop, stopped) = oneshot::channel::<()>();
        let story = lock(cloud).story;
        let agent = agent::run(site.config(story), async { drop(stopped.await) });
        let mut agent = Box::pin(agent);
        let end = tokio::select! {
            ended = &mut agent => return ended_early(ended),
            served = cloud::serve(listener, site.clone(), cloud.clone()) => {
                return Err(format!("the network ended: {served:?}"));
            }
            end = news(site, cloud) => end?,
            () = sleep(BOOT_LIMIT) => return Err("nothing happens any more".to_owned()),
            () = late_trial(site, trial_ends) => return Err("a trial goes on for longer than it may".to_owned()),
        };
        if matches!(end, End::Restart | End::Over) {
            // In an orderly way; the network stays away meanwhile.
            drop(stop);
            if let Err(error) = agent.await
                && disk::change(|disk| disk.is_on())
            {
                return Err(format!("the daemon ends with {error}"));
            }
        }
        Ok(end)
    });
    // Its tasks, and then its threads, end; power may fail meanwhile.
    drop(runtime);
    let is_on = disk::change(|disk| disk.is_on());
    if is_on { end } else { end.map(|_| End::Failed) }
}

/// Ends where what runs is still on trial then, however often the daemon started.
async fn late_trial(site: &Site, ends: Option<Duration>) {
    if let Some(ends) = ends {
        sleep(ends.saturating_sub(scheduler::now())).await;
        if judge::is_trial(site) {
            return;
        }
    }
    std::future::pending().await
}

fn ended_early(ended: Result<(), agent::AgentError>) -> Result<End, Fault> {
    match ended {
        _ if !disk::change(|disk| disk.is_on()) => Ok(End::Failed),
        Ok(()) => Err("the daemon ends by itself".to_owned()),
        Err(error) => Err(format!("the daemon ends: {error}: {:?}", std::error::Error::source(&error))),
    }
}

/// Waits for what ends this daemon.
async fn news(site: &Site, cloud: &Shared) -> Result<End, Fault> {
    loop {
        NEWS.notified().await;
        if !disk::change(|disk| disk.is_on()) {
            return Ok(End::Failed);
        }
        if seam::REBOOT_ASKED.load(Ordering::Relaxed) {
            return Ok(End::Reboot);
        }
        let (fault, wants_restart, is_over) = {
            let mut cloud = lock(cloud);
            (cloud.fault.take(), std::mem::take(&mut cloud.wants_restart), cloud.is_over())
        };
        if let Some(fault) = fault {
            return Err(fault);
        }
        if wants_restart {
            return Ok(End::Restart);
        }
        if is_over {
            // An operator, who had no answer, may have begun it again: what comes of that goes before, and the twin
            // may not tell of it yet.
            let is_quiet = timeout(AFTERWARDS, NEWS.notified()).await.is_err();
            let cloud = lock(cloud);
            if is_quiet && cloud.is_over() && judge::is_told(site, cloud.status()) {
                return Ok(End::Over);
            }
            NEWS.notify_one();
        }
    }
}
