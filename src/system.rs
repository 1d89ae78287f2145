//! The machine and its service manager: clocks, reboot, and what systemd is told.

use std::future::Future;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use sd_notify::NotifyState;
use tokio::io::AsyncReadExt as _;
use tokio::process::Command;

use crate::update::{BootId, Moment};

/// Why a command of the configuration did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The configuration names none.
    #[error("no command is configured")]
    Empty,
    /// It did not start.
    #[error("cannot run `{program}`")]
    Start {
        /// Its program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It did not end in time.
    #[error("`{program}` did not end within {} s", limit.as_secs())]
    Late {
        /// Its program.
        program: String,
        /// What it was given.
        limit: Duration,
    },
    /// It said no.
    #[error("`{program}` ended with {status}")]
    Failed {
        /// Its program.
        program: String,
        /// How.
        status: ExitStatus,
    },
}

/// 2026-11-01: no version of this program ran before.
pub const EARLIEST_UNIX_SECS: u64 = 1_793_491_200;

/// Seconds since 1970 by the wall clock, right or not.
#[must_use]
pub fn unix_now() -> u64 {
    clock_seconds(ClockId::CLOCK_REALTIME)
}

/// Time since the machine was switched on, suspend included: what limits are measured by.
#[must_use]
pub fn uptime() -> Duration {
    Duration::from_secs(clock_seconds(ClockId::CLOCK_BOOTTIME))
}

/// Both clocks are always there on Linux; zero is a time at which nothing is trusted or over.
fn clock_seconds(clock: ClockId) -> u64 {
    clock_gettime(clock).ok().and_then(|time| u64::try_from(time.tv_sec()).ok()).unwrap_or_default()
}

/// Now, with the wall time only where it is known to be right.
#[must_use]
pub fn now(boot: BootId, clock_is_right: bool) -> Moment {
    Moment { boot, uptime_secs: uptime().as_secs(), unix_secs: clock_is_right.then(unix_now) }
}

/// Waits for `future` until `limit` has passed on the boot-time clock. Tokio's own clock stands still in
/// suspend, so the limit is looked at again now and then.
pub async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    const LOOK_AGAIN: Duration = Duration::from_secs(60);
    let mut future = std::pin::pin!(future);
    let until = uptime().saturating_add(limit);
    let mut left = limit;
    loop {
        if let Ok(output) = tokio::time::timeout(left.min(LOOK_AGAIN), &mut future).await {
            return Some(output);
        }
        left = until.saturating_sub(uptime());
        if left.is_zero() {
            return None;
        }
    }
}

/// What is known of the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The check says so.
    Right,
    /// It may be right; the check does not say so.
    Unsynchronized,
    /// Before this program's own time: it is not, whoever says so.
    Unset,
}

/// Whether `check_command` says that the wall clock is right.
pub async fn clock(check_command: &[String]) -> Clock {
    const LIMIT: Duration = Duration::from_secs(15);
    if unix_now() < EARLIEST_UNIX_SECS {
        return Clock::Unset;
    }
    match output(check_command, LIMIT).await {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            match text.trim().trim_start_matches("NTPSynchronized=") {
                "yes" | "true" | "1" => Clock::Right,
                _ => Clock::Unsynchronized,
            }
        }
        Err(error) => {
            tracing::debug!("cannot tell whether the clock is right: {error}");
            Clock::Unsynchronized
        }
    }
}

/// Whether [`clock`] is right.
pub async fn clock_is_right(check_command: &[String]) -> bool {
    clock(check_command).await == Clock::Right
}

/// Asks for the reboot.
///
/// # Errors
/// When the command does not end well; the machine may reboot all the same.
pub async fn reboot(command: &[String]) -> Result<(), CommandError> {
    const LIMIT: Duration = Duration::from_secs(30);
    let output = output(command, LIMIT).await?;
    if output.status.success() {
        return Ok(());
    }
    let program = command.first().cloned().unwrap_or_default();
    Err(CommandError::Failed { program, status: output.status })
}

fn prepared(program: &str, arguments: &[String]) -> Command {
    let mut command = Command::new(program);
    // What it has to say to systemd is not ours to say.
    command.args(arguments).env_remove("NOTIFY_SOCKET").stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs a program, without a shell.
///
/// # Errors
/// When it does not start, or not end in time; it is killed then.
pub async fn output(command: &[String], limit: Duration) -> Result<Output, CommandError> {
    let (program, arguments) = command.split_first().ok_or(CommandError::Empty)?;
    let run = prepared(program, arguments).output();
    let late = || CommandError::Late { program: program.clone(), limit };
    let start = |source| CommandError::Start { program: program.clone(), source };
    within(limit, run).await.ok_or_else(late)?.map_err(start)
}

/// Runs a program as [`output`] does, however it ends, and gives the first `limit_bytes` of what it prints.
///
/// # Errors
/// As those of [`output`].
pub async fn printed(
    command: &[String],
    limit: Duration,
    limit_bytes: usize,
) -> Result<Vec<u8>, CommandError> {
    let (program, arguments) = command.split_first().ok_or(CommandError::Empty)?;
    let late = || CommandError::Late { program: program.clone(), limit };
    let start = |source| CommandError::Start { program: program.clone(), source };
    let mut command = prepared(program, arguments);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(start)?;
    let read = async {
        let mut bytes = Vec::new();
        let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        stdout.take(u64::try_from(limit_bytes).unwrap_or(u64::MAX)).read_to_end(&mut bytes).await?;
        Ok(bytes)
    };
    within(limit, read).await.ok_or_else(late)?.map_err(start)
}

/// The version of the running system, as its builder wrote it into the release file.
#[must_use]
pub fn image_version(os_release: &Path) -> Option<String> {
    let text = std::fs::read_to_string(os_release).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("IMAGE_VERSION="))?;
    let value = value.trim().trim_matches(['"', '\'']);
    (!value.is_empty()).then(|| value.to_owned())
}

/// Tells systemd the present step in one line, and that the service is up where `ready`.
pub fn notify_status(ready: bool, summary: &str) {
    // A line of its own would be another message to systemd.
    let summary = summary.replace(char::is_control, " ");
    let status = NotifyState::Status(&summary);
    // Without a service manager nobody listens.
    let _ =
        if ready { sd_notify::notify(&[NotifyState::Ready, status]) } else { sd_notify::notify(&[status]) };
}

/// How often systemd wants to hear from the loop: twice as often as its limit.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().and_then(|limit| limit.checked_div(2))
}

/// The next time of an interval, if there is one.
pub async fn tick(interval: &mut Option<tokio::time::Interval>) -> Option<tokio::time::Instant> {
    match interval {
        Some(interval) => Some(interval.tick().await),
        None => None,
    }
}

/// Feeds the watchdog. Called by a process's main loop alone: a loop that hangs must not be fed for.
pub fn feed_watchdog() {
    let _ = sd_notify::notify(&[NotifyState::Watchdog]);
}

/// Ids for `journalctl MESSAGE_ID=...`: stable for ever.
pub mod message_id {
    /// An update was accepted.
    pub const ACCEPTED: &str = "5d2f1c7a93b24e0f8a6be7d1c40f92b1";
    /// The image is in the slot and was read back.
    pub const INSTALLED: &str = "8c0e64b7a1f44d43b7d0a35f6e2b9c02";
    /// The boot loader will try the slot.
    pub const ACTIVATED: &str = "a7b3d92e0c5846f19d1f4e8ab26c7d03";
    /// The new slot runs, and has to prove itself.
    pub const TRIAL: &str = "c19e5f0247da4b8eb3a86d90f5217e04";
    /// The new slot is committed.
    pub const COMMITTED: &str = "e4817ab6d3924c55a0c97b12f86d3e05";
    /// The new slot was given up.
    pub const ROLLED_BACK: &str = "f0a2c6d81b7e4394b5e1d83c9a467f06";
    /// The update failed before anything was activated.
    pub const FAILED: &str = "1b94e7f3a0c845d2968d5fc207b3ea07";
    /// The state file was damaged and moved aside.
    pub const STATE_DAMAGED: &str = "27c5d0f84e1b4a6fb9e3a71d5608fc08";
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(command: &[&str]) -> Vec<String> {
        command.iter().map(|word| (*word).to_owned()).collect()
    }

    #[tokio::test]
    async fn the_clock_is_right_if_the_command_says_so() {
        assert!(clock_is_right(&words(&["echo", "yes"])).await);
        assert!(clock_is_right(&words(&["echo", "NTPSynchronized=yes"])).await);
        assert!(!clock_is_right(&words(&["echo", "no"])).await);
        assert!(!clock_is_right(&words(&["/nonexistent"])).await);
        assert!(!clock_is_right(&[]).await);
    }

    #[tokio::test]
    async fn a_reboot_command_that_fails_says_how() {
        assert!(reboot(&words(&["true"])).await.is_ok());
        assert!(matches!(reboot(&words(&["false"])).await, Err(CommandError::Failed { .. })));
        assert!(matches!(reboot(&words(&["/nonexistent"])).await, Err(CommandError::Start { .. })));
    }

    #[tokio::test]
    async fn a_wait_has_an_end() {
        assert_eq!(within(Duration::ZERO, std::future::pending::<()>()).await, None);
        assert_eq!(within(Duration::from_secs(5), async { 3 }).await, Some(3));
    }

    #[test]
    fn the_version_is_read_from_the_release_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("os-release");
        crate::store::write_durably(&path, b"NAME=x\nIMAGE_VERSION=\"1.2\"\n").unwrap();
        assert_eq!(image_version(&path).as_deref(), Some("1.2"));
        crate::store::write_durably(&path, b"NAME=x\n").unwrap();
        assert_eq!(image_version(&path), None);
    }
}
