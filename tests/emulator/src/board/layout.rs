//! The directory that stands for one machine.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::boot_loader;
use super::slot_content::{Traits, board_image};
use super::uboot_env::UbootEnv;
use super::{BoardOptions, Scheme, Slot};

/// Version of what is in slot a at first.
pub const FACTORY_VERSION: &str = "1.0";

/// Its size: small, since every test writes it.
const FACTORY_IMAGE_BYTES: usize = 64 * 1024;

/// Where everything is.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) dir: PathBuf,
}

impl Layout {
    pub(super) fn slot(&self, slot: Slot) -> PathBuf {
        self.dir.join(format!("slot_{}.img", slot.letter()))
    }

    pub(super) fn environment(&self) -> UbootEnv {
        UbootEnv::new(self.dir.join("uboot.env"), self.dir.join("uboot-redund.env"))
    }

    pub(super) fn proc(&self) -> PathBuf {
        self.dir.join("proc")
    }

    pub(super) fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub(super) fn control_socket(&self) -> PathBuf {
        self.run().join("twinboot.sock")
    }

    /// The reboot script writes into it.
    pub(super) fn reboot_pipe(&self) -> PathBuf {
        self.run().join("reboot")
    }

    pub(super) fn os_release(&self) -> PathBuf {
        self.dir.join("os-release")
    }

    pub(super) fn health(&self) -> PathBuf {
        self.dir.join("health.d")
    }

    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    fn connection_string(&self) -> PathBuf {
        self.dir.join("connection-string")
    }

    fn reboot_script(&self) -> PathBuf {
        self.dir.join("reboot.sh")
    }

    fn tools_config(&self) -> PathBuf {
        self.dir.join("fw_env.config")
    }

    /// Makes a machine as it leaves the factory.
    pub(super) fn create(&self, options: &BoardOptions) -> io::Result<()> {
        for name in ["", "proc/sys/kernel/random", "proc/self", "run", "health.d", "keys", "config.d"] {
            fs::create_dir_all(self.dir.join(name))?;
        }
        DirBuilder::new().recursive(true).mode(0o700).create(self.dir.join("state"))?;
        let image = board_image(FACTORY_VERSION, Traits::default(), FACTORY_IMAGE_BYTES, 1);
        write(&self.slot(Slot::A), &image)?;
        for slot in Slot::BOTH {
            // Zeros without taking room.
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(self.slot(slot))?;
            file.set_len(options.slot_size_bytes)?;
        }
        let environment = self.environment();
        environment.format(&boot_loader::default_variables(options.scheme))?;
        write(&self.tools_config(), environment.tools_config().as_bytes())?;
        write(&self.proc().join("self/mountinfo"), b"")?;
        write(&self.proc().join("swaps"), b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")?;
        if let Some(string) = &options.hub_connection_string {
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(self.connection_string())?;
            file.write_all(string.as_bytes())?;
        }
        if let Some(pem) = &options.ca_pem {
            write(&self.ca(), pem.as_bytes())?;
        }
        // Opened for both directions: it never waits for a reader.
        let script = format!("#!/bin/sh\necho reboot 1<>'{}'\n", self.reboot_pipe().display());
        write(&self.reboot_script(), script.as_bytes())?;
        fs::set_permissions(self.reboot_script(), fs::Permissions::from_mode(0o755))?;
        write(&self.dir.join("config.d/50-board.toml"), options.extra_config.as_bytes())?;
        write(&self.config(), self.config_text(options).as_bytes())?;
        write(&self.log(), b"")
    }

    fn config_text(&self, options: &BoardOptions) -> String {
        let path = |path: PathBuf| toml_text(&path);
        let ca_line =
            options.ca_pem.as_ref().map(|_| format!("ca_file = {}\n", path(self.ca()))).unwrap_or_default();
        let hub = options.hub_connection_string.as_ref().map(|_| {
            let string = path(self.connection_string());
            let port = options.hub_port;
            format!("[hub]\nconnection_string_file = {string}\n{ca_line}port = {port}\n\n")
        });
        let slots: String = Slot::BOTH.map(|slot| self.slot_text(slot, options.scheme)).concat();
        format!(
            "{hub}[state]\ndirectory = {state}\n\n{slots}\
             [boot]\nscheme = \"{scheme}\"\nenvironment = {environment}\nattempts = 3\nlock_files = [{lock_1}, {lock_2}]\n\n\
             [install]\ncheck = \"required\"\nretry_limit = \"10m\"\nkeys = {keys}\n{ca_line}\n\
             [health]\ndeadline = \"1m\"\nhub = \"if-online-before\"\nunits = []\nscripts = {health}\n\n\
             [system]\nreboot_command = [{reboot}]\nclock_check_command = [\"echo\", \"yes\"]\nproc = {proc}\n\
             control_socket = {socket}\nos_release = {os_release}\n",
            hub = hub.unwrap_or_default(),
            state = path(self.dir.join("state")),
            scheme = options.scheme.name(),
            environment = path(self.tools_config()),
            lock_1 = path(self.dir.join("lock-libubootenv")),
            lock_2 = path(self.dir.join("lock-u-boot")),
            keys = path(self.dir.join("keys")),
            health = path(self.health()),
            reboot = path(self.reboot_script()),
            proc = path(self.proc()),
            socket = path(self.control_socket()),
            os_release = path(self.os_release()),
        )
    }

    fn slot_text(&self, slot: Slot, scheme: Scheme) -> String {
        let partition = match (scheme, slot) {
            (Scheme::Mender, slot) => format!("partition = {}\n", slot.mender_part()),
            _ => String::new(),
        };
        let device = toml_text(&self.slot(slot));
        format!("[[slot]]\nname = \"{}\"\ndevice = {device}\n{partition}\n", slot.letter())
    }

    /// What a boot makes anew: nothing in memory outlives a power cut.
    pub(super) fn clear_memory(&self) -> io::Result<()> {
        for directory in [self.run(), self.health()] {
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                // The daemon runs no script from where others may write.
                _ => DirBuilder::new().mode(0o755).create(&directory)?,
            }
        }
        Ok(())
    }

    /// What the kernel says of this boot.
    pub(super) fn write_proc(&self, scheme: Scheme, slot: Slot, boot_id: &str) -> io::Result<()> {
        let argument = match scheme {
            Scheme::Rauc => format!("rauc.slot={}", slot.rauc_name()),
            Scheme::Bootcount | Scheme::Mender => format!("twinboot.slot={}", slot.letter()),
        };
        let command_line = format!("console=ttyS0,115200 rootwait ro {argument}\n");
        write(&self.proc().join("cmdline"), command_line.as_bytes())?;
        write(&self.proc().join("sys/kernel/random/boot_id"), format!("{boot_id}\n").as_bytes())
    }
}

pub(super) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    File::create(path)?.write_all(bytes)
}

/// A TOML basic string.
fn toml_text(path: &Path) -> String {
    let escaped = path.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{escaped}\"")
}
