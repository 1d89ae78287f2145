//! A board: a directory that stands for one machine, its boot loader, and its power switch.

mod boot_loader;
mod boot_script;
mod daemon;
mod layout;
mod power;
mod processes;
mod slot_content;
pub mod uboot_env;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

pub use boot_script::{Scheme, Slot};
pub use layout::FACTORY_VERSION;
pub use slot_content::{Traits, board_image};

use layout::Layout;
use power::Machine;
use uboot_env::Variables;

/// Checking a large file system takes a while on a loaded machine.
const POWER_ON_LIMIT: Duration = Duration::from_secs(60);

/// SIGKILL and a new process take an instant; the pause after several quick exits takes a second.
const RESTART_LIMIT: Duration = Duration::from_secs(20);

impl Slot {
    /// Both, in order.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    fn rauc_name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
        }
    }
}

impl Scheme {
    /// As in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bootcount => "bootcount",
            Self::Rauc => "rauc",
            Self::Mender => "mender",
        }
    }
}

/// What a board is made of.
#[derive(Clone, Debug)]
pub struct BoardOptions {
    /// The directory that becomes the board; made where it is missing.
    pub dir: PathBuf,
    /// The `twinboot` binary.
    pub daemon: PathBuf,
    /// What its boot script does.
    pub scheme: Scheme,
    /// Size of each slot.
    pub slot_size_bytes: u64,
    /// Without it, the daemon is configured without a hub.
    pub hub_connection_string: Option<String>,
    /// Where the hub's MQTT listens.
    pub hub_port: u16,
    /// Certificates that the daemon trusts, for the hub and for images; without them, the system's.
    pub ca_pem: Option<String>,
    /// Text of a drop-in file, which wins over the board's configuration.
    pub extra_config: String,
}

/// One boot that came up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootRecord {
    /// The slot that runs.
    pub slot: Slot,
    /// As the kernel tells it.
    pub boot_id: String,
    /// How often the boot loader had to choose until something came up; 1 is the first choice.
    pub attempt: u32,
}

/// Why a board does not do what it should.
#[derive(Clone, Debug, thiserror::Error)]
pub enum BoardError {
    /// The boot loader finds nothing that boots.
    #[error("the board is bricked: nothing booted in {tries} tries; the last, {last}")]
    Bricked {
        /// Resets one after the other.
        tries: u32,
        /// What came of the last one.
        last: String,
    },
    /// A part of the board itself, or its daemon, cannot be used.
    #[error("the board cannot use {}", path.display())]
    Machine {
        /// The part.
        path: PathBuf,
        /// Why.
        source: Arc<io::Error>,
    },
    /// A wait came to its limit.
    #[error("the board did not reach `{awaited}` within {limit:?}: {boots} boots, {power}")]
    TimedOut {
        /// What was waited for.
        awaited: String,
        /// For how long.
        limit: Duration,
        /// Boots so far.
        boots: usize,
        /// On or off.
        power: String,
    },
}

/// What the power switch shows.
#[derive(Clone, Debug, Default)]
enum Power {
    #[default]
    Off,
    Booting,
    On(Slot),
    Failed(BoardError),
}

/// What the machine tells of itself.
#[derive(Clone, Debug, Default)]
struct Seen {
    power: Power,
    boots: Vec<BootRecord>,
    daemon_pid: Option<u32>,
}

/// A machine. Dropped, it loses its power.
#[derive(Debug)]
pub struct Board {
    machine: Machine,
    seen: watch::Sender<Seen>,
    switch: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Board {
    /// Makes a machine as it leaves the factory, switched off: slot a holds version [`FACTORY_VERSION`], slot b zeros.
    ///
    /// # Errors
    /// When the directory cannot be filled.
    pub fn create(options: &BoardOptions) -> io::Result<Self> {
        fs::create_dir_all(&options.dir)?;
        let layout = Layout { dir: options.dir.canonicalize()? };
        layout.create(options)?;
        let machine = Machine { layout, scheme: options.scheme, program: options.daemon.clone() };
        Ok(Self { machine, seen: watch::Sender::default(), switch: None })
    }

    /// Switches on, and waits until something booted. A machine that is on stays on.
    ///
    /// # Errors
    /// When nothing boots.
    pub async fn power_on(&mut self) -> Result<(), BoardError> {
        if self.switch.as_ref().is_none_or(|(_, task)| task.is_finished()) {
            self.seen.send_modify(|seen| seen.power = Power::Booting);
            let (cut, cut_receiver) = oneshot::channel();
            let task = tokio::spawn(power::run(self.machine.clone(), self.seen.clone(), cut_receiver));
            self.switch = Some((cut, task));
        }
        self.wait_on(POWER_ON_LIMIT).await
    }

    /// Kills everything that runs at once, as a power cut does, and stays off.
    pub async fn cut(&mut self) {
        if let Some((cut, task)) = self.switch.take() {
            // Already off where nobody listens.
            let _ = cut.send(());
            let _ = task.await;
        }
        self.seen.send_modify(|seen| seen.power = Power::Off);
    }

    /// Kills the daemon with SIGKILL, and waits until it runs again, as `Restart=always` has it.
    ///
    /// # Errors
    /// When it does not run, or does not run again.
    pub async fn kill_daemon(&mut self) -> Result<(), BoardError> {
        let started = |seen: &Seen| seen.daemon_pid.is_some();
        let killed = self.wait("the daemon runs", RESTART_LIMIT, started).await?.daemon_pid;
        if let Some(pid) = killed.and_then(|pid| i32::try_from(pid).ok()) {
            // Fails where it ended by itself just now, which comes to the same.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let again = |seen: &Seen| seen.daemon_pid.is_some() && seen.daemon_pid != killed;
        self.wait("the daemon runs again", RESTART_LIMIT, again).await.map(drop)
    }

    /// Until the machine came up `count` times since it was made.
    ///
    /// # Errors
    /// When it does not within `limit`, or boots no more.
    pub async fn wait_boots(&self, count: usize, limit: Duration) -> Result<(), BoardError> {
        self.wait(&format!("{count} boots"), limit, |seen| seen.boots.len() >= count).await.map(drop)
    }

    /// Until a system runs.
    ///
    /// # Errors
    /// As [`Self::wait_boots`].
    pub async fn wait_on(&self, limit: Duration) -> Result<(), BoardError> {
        self.wait("on", limit, |seen| matches!(seen.power, Power::On(_))).await.map(drop)
    }

    /// Until the machine is off, or boots no more.
    ///
    /// # Errors
    /// When it runs on until `limit`.
    pub async fn wait_off(&self, limit: Duration) -> Result<(), BoardError> {
        match self.wait("off", limit, |seen| matches!(seen.power, Power::Off)).await {
            Err(error @ BoardError::TimedOut { .. }) => Err(error),
            _ => Ok(()),
        }
    }

    async fn wait(
        &self,
        awaited: &str,
        limit: Duration,
        mut reached: impl FnMut(&Seen) -> bool,
    ) -> Result<Seen, BoardError> {
        let mut receiver = self.seen.subscribe();
        let over = |seen: &Seen| reached(seen) || matches!(seen.power, Power::Failed(_));
        let waited = tokio::time::timeout(limit, receiver.wait_for(over)).await;
        // This board holds the sender: a wait ends by its condition or by its limit.
        if let Ok(Ok(seen)) = waited {
            let seen = seen.clone();
            return if let Power::Failed(error) = seen.power { Err(error) } else { Ok(seen) };
        }
        let seen = self.seen.borrow();
        let (awaited, power) = (awaited.to_owned(), format!("{:?}", seen.power));
        Err(BoardError::TimedOut { awaited, limit, boots: seen.boots.len(), power })
    }

    /// Every boot that came up since the machine was made.
    #[must_use]
    pub fn boots(&self) -> Vec<BootRecord> {
        self.seen.borrow().boots.clone()
    }

    /// The slot that runs; `None` while off.
    #[must_use]
    pub fn booted(&self) -> Option<Slot> {
        match self.seen.borrow().power {
            Power::On(slot) => Some(slot),
            _ => None,
        }
    }

    /// The daemon's process; `None` while none runs.
    #[must_use]
    pub fn daemon_pid(&self) -> Option<u32> {
        self.seen.borrow().daemon_pid
    }

    /// The board's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.machine.layout.dir
    }

    /// The daemon's configuration file.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.machine.layout.config()
    }

    /// Where the daemon listens for `twinboot status`.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.machine.layout.control_socket()
    }

    /// The file that stands for the slot's partition.
    #[must_use]
    pub fn slot_path(&self, slot: Slot) -> PathBuf {
        self.machine.layout.slot(slot)
    }

    /// Writes an image to the start of a slot, as the factory does.
    ///
    /// # Errors
    /// When it does not fit, or cannot be written.
    pub fn flash(&self, slot: Slot, image: &mut impl io::Read) -> io::Result<()> {
        let mut file = File::options().write(true).open(self.slot_path(slot))?;
        let size_bytes = file.metadata()?.len();
        let written = io::copy(image, &mut file)?;
        file.set_len(size_bytes)?;
        if written > size_bytes {
            let text = format!("the image has {written} bytes, the slot {size_bytes}");
            return Err(io::Error::new(io::ErrorKind::StorageFull, text));
        }
        Ok(())
    }

    /// The boot environment as the boot loader sees it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn environment(&self) -> io::Result<Variables> {
        let default = boot_loader::default_variables(self.machine.scheme);
        Ok(self.machine.layout.environment().load(&default)?.variables)
    }

    /// Sets variables as `fw_setenv` does, in one write.
    ///
    /// # Errors
    /// When they do not fit, or cannot be written.
    pub fn set_environment(&self, variables: &[(&str, &str)]) -> io::Result<()> {
        let environment = self.machine.layout.environment();
        let mut loaded = environment.load(&boot_loader::default_variables(self.machine.scheme))?;
        for (name, value) in variables {
            loaded.variables.insert((*name).to_owned(), (*value).to_owned());
        }
        environment.save(&mut loaded)
    }

    /// What all runs of the daemon wrote to standard output and error.
    #[must_use]
    pub fn log(&self) -> String {
        read_lossy(&self.machine.layout.log())
    }

    /// What the boot loader and the supervisor said.
    #[must_use]
    pub fn console(&self) -> String {
        read_lossy(&self.dir().join("console.log"))
    }
}

fn read_lossy(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
