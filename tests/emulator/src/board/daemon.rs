//! The daemon's process, with systemd's part: its own process group, restarted when it ends, killed as one.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::processes;

/// `TimeoutStopSec`: a daemon that takes longer to stop is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The kernel tells only parents of an end, and these are not our children.
const DEATH_POLL: Duration = Duration::from_millis(1);

/// A process that takes longer to die hangs in the kernel.
const DEATH_LIMIT: Duration = Duration::from_secs(10);

/// One run of the daemon. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Daemon {
    child: Child,
    /// Its process, and its process group.
    pub(super) pid: u32,
    group: Pid,
}

impl Daemon {
    /// `daemon run --config CONFIG`, with what it says appended to `log`.
    pub(super) fn start(program: &Path, config: &Path, log: &Path) -> io::Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        // Nothing of who tests it: no proxy, no credentials, no notification socket.
        let child = Command::new(program)
            .args(["run".as_ref(), "--config".as_ref(), config.as_os_str()])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().ok_or_else(|| io::Error::other("the process has no id"))?;
        let group = Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?);
        Ok(Self { child, pid, group })
    }

    /// Until it ends by itself; what it had started ends with it.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await;
        self.signal(Signal::SIGKILL);
        status
    }

    /// As a shutdown does: asked first, and killed at the limit.
    pub(super) async fn stop(&mut self) -> io::Result<()> {
        let family = processes::family(self.group.as_raw());
        self.signal(Signal::SIGTERM);
        // At the limit as at its end, what is left is killed.
        let _ = tokio::time::timeout(STOP_LIMIT, self.child.wait()).await;
        self.finish(family).await
    }

    /// As a power cut does.
    pub(super) async fn kill(&mut self) -> io::Result<()> {
        // Stopped first: what forks while it is being counted would be missed.
        self.signal(Signal::SIGSTOP);
        let family = processes::family(self.group.as_raw());
        self.finish(family).await
    }

    /// When it returns, nothing runs that the daemon had started.
    async fn finish(&mut self, family: BTreeSet<i32>) -> io::Result<()> {
        for pid in &family {
            // Already gone where this fails.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        self.ended().await?;
        let gone = async {
            while processes::any_runs(&family) {
                tokio::time::sleep(DEATH_POLL).await;
            }
        };
        tokio::time::timeout(DEATH_LIMIT, gone)
            .await
            .map_err(|_| io::Error::other(format!("some of the processes {family:?} outlive SIGKILL")))
    }

    fn signal(&self, signal: Signal) {
        // Fails where no process of the group is left, which is as good.
        let _ = killpg(self.group, signal);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Once it was waited for, another group may have its number.
        if self.child.id().is_some() {
            self.signal(Signal::SIGKILL);
        }
    }
}
