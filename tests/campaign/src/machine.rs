//! One machine and its one update: booted again after every reset and every power cut, until the twin says how it
//! ended.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use fastrand::Rng;
use hub_emulator::hub::MethodResponse;
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::attach::{Attached, TICK};
use crate::disk::{Disk, Entry, Medium, Note};
use crate::kept::Kept;
use crate::site::Site;
use crate::story::Story;
use crate::uboot::{Environment, Slot};

/// A machine that is reset more often does not come up again.
const RESETS_MAX: usize = 30;

/// An update of these sizes takes a second or two; a machine with other work takes longer.
const UPDATE_LIMIT: Duration = Duration::from_secs(120);

const CALL_LIMIT: Duration = Duration::from_secs(3);

/// systemd's own is longer; the daemon needs a fraction of it.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// What a machine did that it must not do, or that cannot be examined.
pub type Fault = String;

/// How a time with power ended.
pub enum End {
    Cut,
    /// The twin says how the update ended.
    Over,
}

pub struct Machine<'site> {
    site: &'site Site,
    pub story: Story,
    pub device: String,
    directory: PathBuf,
    image_name: String,
    accepted: bool,
    restarted: bool,
    pub resets: usize,
    pub fallbacks: usize,
    /// How often a download went on where a checkpoint had it.
    pub resumed: usize,
    /// What was reported last.
    pub twin: Value,
}

impl<'site> Machine<'site> {
    pub fn new(site: &'site Site, story: Story, device: &str) -> io::Result<Self> {
        let directory = site.directory.path().join(device);
        for name in ["proc/sys/kernel/random", "proc/self", "keys"] {
            fs::create_dir_all(directory.join(name))?;
        }
        let image_name = format!("{device}.img");
        site.server.put(&image_name, site.image(story).served.clone());
        if story == Story::Restarted {
            // Slow enough to be stopped in the middle.
            let bytes_per_sec = Some(16 << 20);
            let faults = hub_emulator::images::Faults { bytes_per_sec, ..Default::default() };
            site.server.set_faults(&image_name, faults);
        }
        let machine = Self {
            site,
            story,
            device: device.to_owned(),
            directory,
            image_name,
            accepted: false,
            restarted: false,
            resets: 0,
            fallbacks: 0,
            resumed: 0,
            twin: Value::Null,
        };
        machine.configure()?;
        Ok(machine)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn configure(&self) -> io::Result<()> {
        let at = |name: &str| format!("{:?}", self.path(name));
        let secret = self.site.hub.add_device(&self.device);
        let mut options = OpenOptions::new();
        let mut file = options.create(true).write(true).mode(0o600).open(self.path("connection-string"))?;
        file.write_all(secret.as_bytes())?;
        fs::write(self.path("ca.pem"), self.site.hub.ca_pem())?;
        fs::write(self.path("proc/self/mountinfo"), "")?;
        fs::write(self.path("proc/swaps"), "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")?;
        let copies = crate::uboot::COPIES.map(|offset| {
            format!(
                "{} {offset:#x} {:#x}\n",
                self.path("dev/environment").display(),
                crate::uboot::COPY_BYTES
            )
        });
        fs::write(self.path("fw_env.config"), copies.concat())?;
        let script = format!("#!/bin/sh\necho reboot 1<>'{}'\n", self.path("run/reboot").display());
        fs::write(self.path("reboot.sh"), script)?;
        fs::set_permissions(self.path("reboot.sh"), fs::Permissions::from_mode(0o755))?;
        let config = format!(
            "slot = [{{ name = \"a\", device = {} }}, {{ name = \"b\", device = {} }}]\n\
             [hub]\nconnection_string_file = {}\nca_file = {ca}\nport = {}\n\
             [state]\ndirectory = {}\n\
             [boot]\nscheme = \"bootcount\"\nenvironment = {}\nlock_files = [{}, {}]\n\
             [install]\nkeys = {}\nca_file = {ca}\n\
             [health]\ndeadline = \"5m\"\nscripts = {}\n\
             [hooks]\ndirectory = {}\n\
             [system]\nreboot_command = [{}]\nclock_check_command = [\"echo\", \"yes\"]\nproc = {}\n\
             control_socket = {}\nos_release = {}\n",
            at("dev/rootfs_a"),
            at("dev/rootfs_b"),
            at("connection-string"),
            self.site.hub.mqtt_port(),
            at("data/twinboot"),
            at("fw_env.config"),
            at("lock-1"),
            at("lock-2"),
            at("keys"),
            at("health.d"),
            at("hooks.d"),
            at("reboot.sh"),
            at("proc"),
            at("run/control.sock"),
            at("os-release"),
            ca = at("ca.pem"),
        );
        fs::write(self.path("config.toml"), config)
    }

    /// Runs until the power goes, or the update is over.
    pub fn power(&mut self, disk: &Arc<Disk>, rng: &mut Rng) -> Result<End, Fault> {
        let until = Instant::now() + UPDATE_LIMIT;
        for _ in self.resets..RESETS_MAX {
            self.resets += 1;
            let Some(slot) = self.boot_loader(disk)? else { return Ok(End::Cut) };
            if let Some(end) = self.run(slot, disk, until, rng)? {
                return Ok(end);
            }
        }
        Err(format!("no end after {RESETS_MAX} boots"))
    }

    /// Until the power goes, the update is over, or (`None`) the machine is reset.
    fn run(
        &mut self,
        slot: Slot,
        disk: &Arc<Disk>,
        until: Instant,
        rng: &mut Rng,
    ) -> Result<Option<End>, Fault> {
        let io = |error: io::Error| format!("cannot run the machine: {error}");
        let media = disk.now();
        let Some(image) = self.site.content(self.story, media.of(slot.medium())) else {
            return Err(format!("slot {} boots, and holds no whole image", slot.letter()));
        };
        if !image.traits.boots {
            return Ok(None);
        }
        let Some(attached) = Attached::new(disk, &self.directory).map_err(io)? else {
            return Ok(Some(End::Cut));
        };
        let fifo = self.system(slot, image.version, image.traits.healthy, rng).map_err(io)?;
        let kept = Kept::read(&self.path("data/twinboot"));
        let asked = self.site.server.ranges(&self.image_name).len();
        let mut daemon = Daemon::start(&self.site.daemon, &self.directory).map_err(io)?;
        let end = self.follow(disk, &mut daemon, fifo, until);
        if !matches!(end, Ok(Some(End::Cut) | None)) {
            disk.cut();
        }
        // What runs in memory alone may go on until the machine notices.
        let grace = Duration::from_millis(rng.u64(0..20));
        let stays_on = halt(disk, attached, &mut daemon, grace).map_err(io)?;
        self.check_fetched(&kept?, asked)?;
        Ok(end?.or((!stays_on).then_some(End::Cut)))
    }

    /// From reset to the choice of a slot. `None`: the power went.
    fn boot_loader(&mut self, disk: &Disk) -> Result<Option<Slot>, Fault> {
        let environment = Environment::load(disk.now().of(Medium::Environment));
        if environment.current.is_none() {
            return Err("both copies of the environment are bad".to_owned());
        }
        let start = environment.start();
        if start.fell_back {
            self.fallbacks += 1;
            disk.note(Note::FellBack);
        }
        for (offset, copy) in &start.saves {
            disk.write(Medium::Environment, *offset, copy);
            disk.flush(&[Medium::Environment]);
        }
        Ok((!disk.is_cut()).then_some(start.slot))
    }

    /// What a boot makes anew. Gives the pipe that the reboot command writes to.
    fn system(&self, slot: Slot, version: &str, healthy: bool, rng: &mut Rng) -> io::Result<fs::File> {
        for name in ["run", "health.d"] {
            match fs::remove_dir_all(self.path(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => fs::DirBuilder::new().mode(0o755).create(self.path(name))?,
            }
        }
        if !healthy {
            let script = self.path("health.d/10-sick");
            fs::write(&script, "#!/bin/sh\nexit 1\n")?;
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        }
        let fifo = self.path("run/reboot");
        nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o600))?;
        let boot_id = format!("{:08x}-0000-4000-8000-{:012x}", rng.u32(..), rng.u64(..) >> 16);
        fs::write(self.path("proc/cmdline"), format!("rootwait ro twinboot.slot={}\n", slot.letter()))?;
        fs::write(self.path("proc/sys/kernel/random/boot_id"), format!("{boot_id}\n"))?;
        fs::write(self.path("os-release"), format!("IMAGE_VERSION=\"{version}\"\n"))?;
        let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
        OpenOptions::new().read(true).write(true).custom_flags(flags).open(fifo)
    }

    /// Until the power goes, the update is over, or (`None`) a reboot is asked for.
    fn follow(
        &mut self,
        disk: &Disk,
        daemon: &mut Daemon,
        mut fifo: fs::File,
        until: Instant,
    ) -> Result<Option<End>, Fault> {
        let mut call: Option<JoinHandle<Option<MethodResponse>>> = None;
        loop {
            if disk.is_cut() {
                return Ok(Some(End::Cut));
            }
            if fifo.read(&mut [0; 64]).is_ok_and(|read| read > 0) {
                return Ok(None);
            }
            if daemon.is_gone().map_err(|error| error.to_string())? {
                *daemon =
                    Daemon::start(&self.site.daemon, &self.directory).map_err(|error| error.to_string())?;
            }
            if call.as_ref().is_some_and(JoinHandle::is_finished) {
                let answered = call.take().and_then(|call| self.site.runtime.block_on(call).ok().flatten());
                match answered {
                    Some(answer) if answer.status == 200 => {
                        self.accepted = true;
                        disk.note(Note::Accepted);
                    }
                    Some(answer) => return Err(format!("refused: {} {}", answer.status, answer.payload)),
                    None => {}
                }
            }
            if !self.accepted && call.is_none() && self.site.hub.connected(&self.device) {
                call = Some(self.call());
            }
            if self.restart_is_due() {
                self.restarted = true;
                daemon.signal(Signal::SIGTERM);
            }
            if let Some(status) = self.ended() {
                disk.note(Note::Ended(status));
                return Ok(Some(End::Over));
            }
            if self.site.is_interrupted.load(Ordering::Relaxed) {
                return Err("interrupted".to_owned());
            }
            if Instant::now() > until {
                return Err(format!("no end within {UPDATE_LIMIT:?}: the twin says {}", self.twin));
            }
            sleep(TICK);
        }
    }

    fn restart_is_due(&self) -> bool {
        let enough = self.site.image(self.story).served.len() as u64 / 2;
        self.story == Story::Restarted
            && !self.restarted
            && self.site.server.bytes_sent(&self.image_name) > enough
    }

    fn call(&self) -> JoinHandle<Option<MethodResponse>> {
        let (hub, device, image) = (self.site.hub.clone(), self.device.clone(), self.site.image(self.story));
        let payload = json!({
            "fwPackageUri": self.site.server.url(&self.image_name),
            "fwPackageCheckValue": image.sha256,
            "fwVersion": image.version,
            "fwSize": image.served.len(),
            "updateId": device,
        });
        self.site
            .runtime
            .spawn(async move { hub.call_method(&device, "firmwareUpdate", payload, CALL_LIMIT).await.ok() })
    }

    /// What the twin says of the update's end.
    fn ended(&mut self) -> Option<String> {
        self.twin = self.site.hub.reported(&self.device);
        let status = self.twin["firmwareStatus"].as_str()?;
        let is_ours = self.twin["firmware"]["updateId"] == *self.device;
        (is_ours && ["completed", "rolledBack", "failed"].contains(&status)).then(|| status.to_owned())
    }

    /// What had been proven written is not fetched again without need.
    fn check_fetched(&mut self, kept: &Kept, asked_before: usize) -> Result<(), Fault> {
        let ranges = self.site.server.ranges(&self.image_name);
        let Some(first) = ranges.get(asked_before) else { return Ok(()) };
        if kept.is_installed() {
            return Err(format!("the image was fetched again in state {}", kept.phase()));
        }
        match kept.proven_bytes() {
            0 => Ok(()),
            proven if first.as_deref() == Some(&format!("bytes={proven}-")) => {
                self.resumed += 1;
                Ok(())
            }
            proven => Err(format!("{proven} bytes were proven, and {first:?} was asked for")),
        }
    }

    /// The last words of the daemon.
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.path("daemon.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    /// Takes what is on the disk.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_dir_all(&self.directory)
    }
}

/// Stops what runs, as a shutdown does, or as a power cut does after `grace`. Whether the power stayed.
fn halt(disk: &Disk, attached: Attached, daemon: &mut Daemon, grace: Duration) -> io::Result<bool> {
    if disk.is_cut() {
        sleep(grace);
    } else {
        daemon.signal(Signal::SIGTERM);
    }
    let until = Instant::now() + STOP_LIMIT;
    while !daemon.is_gone()? {
        if disk.is_cut() {
            daemon.signal(Signal::SIGKILL);
            attached.bury();
        }
        if Instant::now() > until {
            return Err(io::Error::other("the daemon does not stop"));
        }
        sleep(TICK);
    }
    Ok(!disk.is_cut() && attached.shut_down()?)
}

/// The daemon's process and those that it started.
struct Daemon(Child);

impl Daemon {
    fn start(program: &Path, directory: &Path) -> io::Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(directory.join("daemon.log"))?;
        let child = Command::new(program)
            .arg("run")
            .arg("--config")
            .arg(directory.join("config.toml"))
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        Ok(Self(child))
    }

    fn signal(&self, signal: Signal) {
        // Fails where it is gone already.
        let _ = killpg(Pid::from_raw(self.0.id() as i32), signal);
    }

    fn is_gone(&mut self) -> io::Result<bool> {
        Ok(self.0.try_wait()?.is_some())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// The log of a whole life without a cut.
pub fn record(site: &Site, story: Story) -> Result<Vec<Entry>, Fault> {
    let device = format!("whole-{}", story.name());
    let mut machine = Machine::new(site, story, &device).map_err(|error| error.to_string())?;
    let disk = Disk::new(site.factory(story), Vec::new(), true);
    match machine.power(&disk, &mut Rng::with_seed(1)) {
        Ok(End::Over) if machine.twin["firmwareStatus"] == story.ends() => Ok(disk.take_log()),
        Ok(_) => Err(format!("{device} ended otherwise: {}", machine.twin)),
        Err(fault) => Err(format!("{device}: {fault}\n{}", machine.log_tail())),
    }
}
