//! A machine that is on: it boots, runs the daemon, reboots when told, until the power is cut.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::Mode;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::daemon::Daemon;
use super::layout::Layout;
use super::{BoardError, BootRecord, Power, Scheme, Seen, boot_loader, slot_content};

/// A machine that was reset so often, one after the other, stays down.
const MAX_TRIES: u32 = 20;

/// A daemon that ran for less did not start well.
const QUICK_EXIT: Duration = Duration::from_secs(2);

/// So many quick exits are restarted at once, the next ones after [`RESTART_PAUSE`].
const QUICK_EXITS_AT_ONCE: u32 = 3;
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// What the machine is made of.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub(super) layout: Layout,
    pub(super) scheme: Scheme,
    pub(super) program: PathBuf,
}

/// Whether the system that booted has twinboot, and how it asks for a reboot.
struct Boot {
    record: BootRecord,
    has_daemon: bool,
    reboot_pipe: pipe::Receiver,
}

/// Runs the machine until `cut` is sent, or dropped, or it boots no more.
pub(super) async fn run(machine: Machine, seen: watch::Sender<Seen>, mut cut: oneshot::Receiver<()>) {
    loop {
        // A boot is over in an instant: it is not cut in the middle, where its files would be half made.
        let boot = match machine.boot().await {
            Ok(boot) => boot,
            Err(error) => return machine.end(&seen, Power::Failed(error)),
        };
        machine.console(&format!("booted slot {} as {}", boot.record.slot.letter(), boot.record.boot_id));
        seen.send_modify(|seen| {
            seen.power = Power::On(boot.record.slot);
            seen.boots.push(boot.record.clone());
        });
        let mut daemon = None;
        let end = tokio::select! {
            biased;
            _ = &mut cut => Some(Power::Off),
            ended = machine.serve(boot, &seen, &mut daemon) => match ended {
                Ok(()) => None,
                Err(error) => Some(Power::Failed(error)),
            },
        };
        if let Some(mut daemon) = daemon
            && let Err(error) = daemon.kill().await
        {
            machine.console(&format!("kill: {error}"));
        }
        seen.send_modify(|seen| seen.daemon_pid = None);
        match end {
            Some(power) => return machine.end(&seen, power),
            None => seen.send_modify(|seen| seen.power = Power::Booting),
        }
    }
}

impl Machine {
    fn end(&self, seen: &watch::Sender<Seen>, power: Power) {
        self.console(&format!("off: {power:?}"));
        seen.send_modify(|seen| seen.power = power);
    }

    /// From reset to a running system.
    async fn boot(&self) -> Result<Boot, BoardError> {
        let machine = self.clone();
        let blocking = tokio::task::spawn_blocking(move || machine.boot_blocking());
        let (record, has_daemon) =
            blocking.await.map_err(|error| self.fault(&self.layout.dir, error.into()))??;
        let path = self.layout.reboot_pipe();
        // Read-write: the end of one writer is then not the end of the pipe.
        let reboot_pipe = nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600))
            .map_err(io::Error::from)
            .and_then(|()| pipe::OpenOptions::new().read_write(true).open_receiver(&path))
            .map_err(|error| self.fault(&path, error))?;
        Ok(Boot { record, has_daemon, reboot_pipe })
    }

    fn boot_blocking(&self) -> Result<(BootRecord, bool), BoardError> {
        let layout = &self.layout;
        layout.clear_memory().map_err(|error| self.fault(&layout.run(), error))?;
        let environment = layout.environment();
        let mut last = String::new();
        for attempt in 1..=MAX_TRIES {
            let chosen = boot_loader::choose(self.scheme, &environment);
            let Some(slot) = chosen.map_err(|error| self.fault(&layout.dir.join("uboot.env"), error))? else {
                "no slot has attempts left".clone_into(&mut last);
                self.console(&last);
                continue;
            };
            let content = slot_content::boot(&layout.slot(slot), &layout.os_release(), &layout.health());
            match content {
                Ok(system) => {
                    let boot_id = random_uuid();
                    let written = layout.write_proc(self.scheme, slot, &boot_id);
                    written.map_err(|error| self.fault(&layout.proc(), error))?;
                    return Ok((BootRecord { slot, boot_id, attempt }, system.has_daemon));
                }
                Err(reason) => {
                    last = format!("slot {}: {reason}", slot.letter());
                    self.console(&last);
                }
            }
        }
        Err(BoardError::Bricked { tries: MAX_TRIES, last })
    }

    /// Keeps the daemon running until a reboot is asked for, and then stops it.
    async fn serve(
        &self,
        mut boot: Boot,
        seen: &watch::Sender<Seen>,
        running: &mut Option<Daemon>,
    ) -> Result<(), BoardError> {
        let mut quick_exits = 0;
        while boot.has_daemon {
            let started = Instant::now();
            let daemon = running.insert(self.start_daemon()?);
            seen.send_modify(|seen| seen.daemon_pid = Some(daemon.pid));
            let ended = tokio::select! {
                // A daemon that asks for a reboot may end itself right away.
                biased;
                asked = reboot_asked(&mut boot.reboot_pipe) => {
                    asked.map_err(|error| self.fault(&self.layout.reboot_pipe(), error))?;
                    self.console("reboot");
                    daemon.stop().await.map_err(|error| self.fault(&self.program, error))?;
                    *running = None;
                    return Ok(());
                }
                ended = daemon.ended() => ended.map_err(|error| self.fault(&self.program, error))?,
            };
            *running = None;
            self.console(&format!("daemon ended: {ended}"));
            quick_exits = if started.elapsed() < QUICK_EXIT { quick_exits + 1 } else { 0 };
            if quick_exits > QUICK_EXITS_AT_ONCE {
                tokio::time::sleep(RESTART_PAUSE).await;
            }
        }
        reboot_asked(&mut boot.reboot_pipe)
            .await
            .map_err(|error| self.fault(&self.layout.reboot_pipe(), error))
    }

    fn start_daemon(&self) -> Result<Daemon, BoardError> {
        Daemon::start(&self.program, &self.layout.config(), &self.layout.log())
            .map_err(|error| self.fault(&self.program, error))
    }

    fn fault(&self, path: &Path, source: io::Error) -> BoardError {
        BoardError::Machine { path: path.to_owned(), source: Arc::new(source) }
    }

    /// What a serial console would show; a line that cannot be written is not worth a failed boot.
    fn console(&self, line: &str) {
        let path = self.layout.dir.join("console.log");
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
        let _ = written;
    }
}

/// The script writes a line.
async fn reboot_asked(pipe: &mut pipe::Receiver) -> io::Result<()> {
    pipe.read_u8().await.map(drop)
}

/// As the kernel makes a boot id.
fn random_uuid() -> String {
    let mut bytes: [u8; 16] = std::array::from_fn(|_| fastrand::u8(..));
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts =
        [0..8, 8..12, 12..16, 16..20, 20..32].map(|range| hex.get(range).unwrap_or_default().to_owned());
    parts.join("-")
}
