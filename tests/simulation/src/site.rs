//! The directory that stands for one machine, and its configuration.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use twinboot::boot::scheme;
use twinboot::config::{self, Config};
use twinboot::install::verify::ImageCheck;
use twinboot::scripts::Surroundings;

use crate::disk;
use crate::story::{Image, Images, Story};
use crate::uboot::{COPIES, COPY_BYTES, Scheme, Slot};

/// Boots that a trial may take.
pub const ATTEMPTS: u8 = 3;

/// Everything lies in it; gone when dropped.
#[derive(Debug)]
pub struct Site {
    base: PathBuf,
}

impl Drop for Site {
    fn drop(&mut self) {
        // What is left is in memory, and ends with the machine.
        let _ = fs::remove_dir_all(&self.base);
    }
}

impl Site {
    /// On a tmpfs, if there is one.
    pub fn new() -> io::Result<Self> {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let site = Self { base: parent.join(format!("twinboot-simulation-{}", std::process::id())) };
        for name in ["proc/sys/kernel/random", "proc/self", "run", "etc/keys"] {
            fs::create_dir_all(site.base.join(name))?;
        }
        fs::write(site.proc().join("self/mountinfo"), "")?;
        fs::write(site.proc().join("swaps"), "")?;
        fs::write(site.base.join("etc/keys/simulation.pub"), include_bytes!("../data/simulation.pub"))?;
        let environment = site.environment();
        let lines =
            COPIES.map(|offset| format!("{} {offset:#x} {COPY_BYTES:#x}\n", environment.display())).concat();
        fs::write(site.base.join("etc/fw_env.config"), lines)?;
        Ok(site)
    }

    /// What a power cut may befall.
    pub fn disk(&self) -> PathBuf {
        self.base.join("disk")
    }

    pub fn slot(&self, slot: Slot) -> PathBuf {
        self.disk().join(format!("slot-{}", slot.letter()))
    }

    /// Where a slot has one of its own for that.
    pub fn kernel(&self, slot: Slot) -> PathBuf {
        self.disk().join(format!("kernel-{}", slot.letter()))
    }

    /// The system that a slot holds whole, for certain.
    pub fn system(&self, slot: Slot) -> Option<&'static Image> {
        let (root, kernel) = (self.slot(slot), self.kernel(slot));
        disk::change(|disk| Images::all().in_slot(disk.safe(&root), disk.safe(&kernel)))
    }

    /// Both copies lie on one raw medium.
    pub fn environment(&self) -> PathBuf {
        self.disk().join("environment")
    }

    pub fn state(&self) -> PathBuf {
        self.disk().join("data/twinboot")
    }

    pub fn network_socket(&self) -> PathBuf {
        self.base.join("run/network.sock")
    }

    pub fn control_socket(&self) -> PathBuf {
        self.base.join("run/control.sock")
    }

    pub fn command_line(&self) -> PathBuf {
        self.proc().join("cmdline")
    }

    fn proc(&self) -> PathBuf {
        self.base.join("proc")
    }

    /// What the kernel and the root filesystem say of this boot.
    pub fn boot(&self, scheme: Scheme, slot: Slot, boot_id: u128, version: &str) -> io::Result<()> {
        let boot_id = format!("{boot_id:032x}");
        let groups = [&boot_id[..8], &boot_id[8..12], &boot_id[12..16], &boot_id[16..20], &boot_id[20..]];
        let name = if scheme == Scheme::Rauc { "rauc.slot" } else { "twinboot.slot" };
        fs::write(self.command_line(), format!("rootwait ro {name}={}\n", slot.letter().to_uppercase()))?;
        fs::write(self.proc().join("sys/kernel/random/boot_id"), groups.join("-"))?;
        fs::write(self.base.join("etc/os-release"), format!("IMAGE_VERSION={version}\n"))
    }

    pub fn config(&self, story: &Story) -> Config {
        let kernels = config::Pair { a: self.kernel(Slot::A), b: self.kernel(Slot::B) };
        let others = story.has_kernel().then(|| ("boot".to_owned(), kernels)).into_iter().collect();
        Config {
            hub: None,
            network: Some(self.network_socket()),
            state_directory: self.state(),
            slots: config::Slots { a: self.slot(Slot::A), b: self.slot(Slot::B), others },
            boot: config::Boot {
                scheme: match story.scheme {
                    Scheme::Bootcount => scheme::Scheme::Bootcount,
                    Scheme::Mender => scheme::Scheme::Mender { part_a: 2, part_b: 3 },
                    Scheme::Rauc => scheme::Scheme::Rauc,
                },
                environment: self.base.join("etc/fw_env.config"),
                attempts: ATTEMPTS,
                lock_files: ["run/lock-1", "run/lock-2"].map(|name| self.base.join(name)).into(),
            },
            install: config::Install {
                compatible: None,
                check: ImageCheck::Required,
                keys: self.base.join("etc/keys"),
                ca_file: None,
                retry_limit: Duration::from_secs(24 * 3600),
                allow_downgrade: false,
            },
            health: config::Health {
                deadline: Duration::from_secs(600),
                hub: config::HubCheck::IfOnlineBefore,
                units: Vec::new(),
                scripts: self.base.join("etc/health.d"),
            },
            hooks: config::Hooks {
                directory: self.base.join("etc/hooks.d"),
                limit: Duration::from_secs(60),
                defer_interval: Duration::from_secs(60),
                defer_limit: Duration::from_secs(3600),
            },
            system: config::System {
                // The one program that is ever started: `seam` takes it for what it means.
                reboot_command: vec!["reboot".to_owned()],
                clock_check_command: Vec::new(),
                proc: self.proc(),
                control_socket: self.control_socket(),
                os_release: self.base.join("etc/os-release"),
            },
            scripts: Surroundings::Ours,
            metrics_file: None,
        }
    }
}
