//! Runs the executables of a directory, one after the other: health checks and hooks.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};

use crate::ownership::{self, OwnershipError};
use crate::redact::redacted;
use crate::system;

/// Why a script has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The directory cannot be read.
    #[error("cannot read the scripts in {}", path.display())]
    List {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What root runs must be root's to change.
    #[error("{} is not run", name(path))]
    Untrusted {
        /// The directory or the script.
        path: PathBuf,
        /// Who could change it.
        source: OwnershipError,
    },
    /// It did not start.
    #[error("cannot run {}", path.display())]
    Start {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It was killed, and all that it had started.
    #[error("{} did not end within {} s", name(path), limit.as_secs())]
    Late {
        /// Which.
        path: PathBuf,
        /// What it was given.
        limit: Duration,
    },
}

/// How a script ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: ExitStatus,
    /// The last line that it wrote to standard output or error.
    pub said: Option<String>,
}

/// Enough for a last line; a script that never stops talking takes no more memory.
const TAIL_BYTES: usize = 4096;

/// Longer, and a last line is no sentence.
const SAID_CHARACTERS_MAX: usize = 200;

/// Whoever still holds the output of a script that ended is none of its own process group.
const OUTPUT_LIMIT: Duration = Duration::from_secs(1);

/// The executables of a directory, by name. None, if there is no such directory.
///
/// # Errors
/// When it cannot be read, or others than root may put something there.
pub async fn list(directory: &Path) -> Result<Vec<PathBuf>, ScriptError> {
    let directory = directory.to_owned();
    let failed = |source| ScriptError::List { path: directory.clone(), source };
    let listed = tokio::task::spawn_blocking({
        let directory = directory.clone();
        move || executables(&directory)
    });
    listed.await.map_err(|_| failed(io::ErrorKind::Interrupted.into()))?
}

/// As [`list`]; blocks.
///
/// # Errors
/// As [`list`].
pub fn executables(directory: &Path) -> Result<Vec<PathBuf>, ScriptError> {
    let failed = |source| ScriptError::List { path: directory.to_owned(), source };
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    check_trusted(directory)?;
    let mut scripts = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let metadata = std::fs::metadata(&path).map_err(failed)?;
        if metadata.is_file() && metadata.mode() & 0o111 != 0 {
            check_trusted(&path)?;
            scripts.push(path);
        }
    }
    scripts.sort();
    Ok(scripts)
}

fn check_trusted(path: &Path) -> Result<(), ScriptError> {
    ownership::check(path).map_err(|source| ScriptError::Untrusted { path: path.to_owned(), source })
}

/// Its name in a sentence.
#[must_use]
pub fn name(script: &Path) -> String {
    script.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Where scripts run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surroundings {
    /// In those of this process.
    Ours,
    /// In a transient service of systemd's: with the network and the file system that this process's own service
    /// is denied.
    Service,
}

impl Surroundings {
    /// What runs it, and the service that it runs in. Only the bus leads out of this process's service; a machine
    /// without one runs its scripts inside.
    fn command(
        self,
        script: &Path,
        environment: &[(&str, String)],
        limit: Duration,
    ) -> (Command, Option<String>) {
        let has_bus = Path::new(SYSTEM_BUS).exists();
        if self == Self::Service && !has_bus {
            tracing::warn!("no D-Bus: {} runs in the daemon's own sandbox", script.display());
        }
        if self == Self::Ours || !has_bus {
            let mut command = Command::new(script);
            command.envs(environment.iter().map(|(name, value)| (name, value)));
            return (command, None);
        }
        // One that this program's last process left may still be ending.
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let unit = format!("twinboot-script-{}-{number}.service", std::process::id());
        (service(&unit, script, environment, limit), Some(unit))
    }
}

/// Runs a script as this service, and ends as the script did.
fn service(unit: &str, script: &Path, environment: &[(&str, String)], limit: Duration) -> Command {
    let mut command = Command::new("systemd-run");
    // Started once it runs: a check may wait for the end of the boot, which waits for all that is being started.
    command.args(["--quiet", "--wait", "--pipe", "--collect", "--service-type=exec", "--unit", unit]);
    // To such a service, death by SIGTERM or SIGHUP is a success (systemd.service(5), `SuccessExitStatus=`).
    command.arg("--property=ExecStopPost=/usr/bin/test ${EXIT_CODE} != killed");
    // It ends with us, however we end, and with its limit; and has no say in that.
    command.args(["--property=BindsTo=twinboot.service", "--property=KillSignal=SIGKILL"]);
    command.arg(format!("--property=RuntimeMaxSec={}ms", limit.as_millis()));
    command.args(environment.iter().map(|(name, value)| format!("--setenv={name}={value}")));
    command.arg("--").arg(script);
    command
}

/// Services of scripts so far.
static STARTED: AtomicU32 = AtomicU32::new(1);

/// Of the D-Bus specification, "Well-known Message Bus Instances", under /run as Linux has it today.
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";

/// Runs one to its end. What it started and left behind ends with it, at its limit, or when this future is
/// dropped; whatever wants to live on asks the service manager (`systemd-run`).
///
/// # Errors
/// When it does not start, or not end in time on the boot-time clock.
pub async fn run(
    script: &Path,
    environment: &[(&str, String)],
    surroundings: Surroundings,
    limit: Duration,
) -> Result<Ended, ScriptError> {
    let failed = |source| ScriptError::Start { path: script.to_owned(), source };
    let (command, unit) = surroundings.command(script, environment, limit);
    let (child, output) = start(command).map_err(failed)?;
    let group = Group::of(&child, unit);
    let ended = system::within(limit, until_end(child, group, output)).await;
    ended.ok_or_else(|| ScriptError::Late { path: script.to_owned(), limit })?.map_err(failed)
}

/// In a process group of its own, with both outputs in one pipe.
fn start(mut command: Command) -> io::Result<(Child, Receiver)> {
    let (reader, writer) = io::pipe()?;
    let child = command
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    Ok((child, Receiver::from_owned_fd(reader.into())?))
}

async fn until_end(mut child: Child, mut group: Group, mut output: Receiver) -> io::Result<Ended> {
    let mut tail = Vec::new();
    let status = tokio::select! {
        status = child.wait() => status?,
        status = async {
            read_on(&mut output, &mut tail).await;
            // It closed its outputs, and goes on.
            std::future::pending::<io::Result<ExitStatus>>().await
        } => status?,
    };
    // Over, and all in it.
    group.unit = None;
    drop(group);
    let _ = tokio::time::timeout(OUTPUT_LIMIT, read_on(&mut output, &mut tail)).await;
    Ok(Ended { status, said: last_line(&tail) })
}

/// Reads until nobody can write any more, and keeps the end.
async fn read_on(output: &mut Receiver, tail: &mut Vec<u8>) {
    let mut chunk = [0; 1024];
    while let Ok(count @ 1..) = output.read(&mut chunk).await {
        tail.extend_from_slice(chunk.get(..count).unwrap_or_default());
        tail.drain(..tail.len().saturating_sub(TAIL_BYTES));
    }
}

/// As much of the last line as fits into a sentence, which goes into the journal and the twin.
fn last_line(text: &[u8]) -> Option<String> {
    let text = redacted(&String::from_utf8_lossy(text));
    let line = text.lines().rfind(|line| !line.trim().is_empty())?;
    Some(line.trim().chars().take(SAID_CHARACTERS_MAX).collect())
}

/// A script and all that it started. Killed when dropped.
struct Group {
    leader: Option<Pid>,
    unit: Option<String>,
}

impl Group {
    fn of(child: &Child, unit: Option<String>) -> Self {
        Self { leader: child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw), unit }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.leader {
            // Fails where nothing of it is left.
            let _ = killpg(leader, Signal::SIGKILL);
        }
        if let Some(unit) = self.unit.take() {
            // Waited for, so that nothing of it is left; one that cannot be asked for ends at its limit, or with us.
            let stop =
                move || std::process::Command::new("systemctl").args(["stop", "--quiet", &unit]).output();
            let _ = thread::Builder::new().spawn(stop);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    /// Written by another process: a file that this one has open, a child that another test starts meanwhile has open
    /// too, until it has become its program, and the system runs nothing that somebody may write.
    fn script(directory: &Path, name: &str, body: &str, mode: u32) -> PathBuf {
        let path = directory.join(name);
        let draft = tempfile::NamedTempFile::new().unwrap();
        crate::store::write_durably(draft.path(), format!("#!/bin/sh\n{body}\n").as_bytes()).unwrap();
        let install = std::process::Command::new("install")
            .args(["-m", &format!("{mode:o}")])
            .args([draft.path(), &path])
            .status();
        assert!(install.unwrap().success());
        path
    }

    async fn run_body(body: &str, limit: Duration) -> Result<Ended, ScriptError> {
        let directory = tempfile::tempdir().unwrap();
        let path = script(directory.path(), "10-a", body, 0o755);
        run(&path, &[("TWINBOOT_SLOT", "b".to_owned())], Surroundings::Ours, limit).await
    }

    #[tokio::test]
    async fn scripts_run_by_name_and_only_what_nobody_else_can_change() {
        let directory = tempfile::tempdir().unwrap();
        assert!(list(&directory.path().join("none")).await.unwrap().is_empty());
        let second = script(directory.path(), "20-b", "", 0o755);
        let first = script(directory.path(), "10-a", "", 0o500);
        script(directory.path(), "README", "", 0o644);
        assert_eq!(list(directory.path()).await.unwrap(), [first, second]);
        let open = script(directory.path(), "30-c", "", 0o777);
        let refused = list(directory.path()).await.unwrap_err();
        assert!(matches!(&refused, ScriptError::Untrusted { path, .. } if *path == open), "{refused}");
        assert!(crate::causes::one_line(&refused).contains("chmod go-w"), "{refused}");
    }

    #[tokio::test]
    async fn its_last_words_and_its_environment_are_heard() {
        let ended =
            run_body("echo out; echo \"slot $TWINBOOT_SLOT\" >&2; echo; exit 75", LIMIT).await.unwrap();
        assert_eq!((ended.status.code(), ended.said.as_deref()), (Some(75), Some("slot b")));
        let silent = run_body("exec >&- 2>&-; exit 3", LIMIT).await.unwrap();
        assert_eq!((silent.status.code(), silent.said), (Some(3), None));
    }

    #[tokio::test]
    async fn one_that_dies_of_a_signal_has_not_succeeded() {
        let ended = run_body("(sleep 0.01; kill $$) & sleep 1000", LIMIT).await.unwrap();
        assert_eq!(ended.status.code(), None);
    }

    /// What systemd makes of it is seen on a machine that has one: `story_signal` of tests/packages/life.
    #[test]
    fn as_a_service_one_that_dies_of_a_signal_has_not_succeeded_either() {
        let environment = [("TWINBOOT_SLOT", "b".to_owned())];
        let command = service("a.service", Path::new("/10-a"), &environment, Duration::from_millis(1500));
        let arguments: Vec<_> =
            command.as_std().get_args().filter_map(|argument| argument.to_str()).collect();
        for expected in [
            "--service-type=exec",
            "--property=ExecStopPost=/usr/bin/test ${EXIT_CODE} != killed",
            "--property=KillSignal=SIGKILL",
            "--property=RuntimeMaxSec=1500ms",
            "--setenv=TWINBOOT_SLOT=b",
        ] {
            assert!(arguments.contains(&expected), "{arguments:?}");
        }
        assert_eq!(arguments.last(), Some(&"/10-a"));
    }

    #[tokio::test]
    async fn one_that_never_stops_talking_is_read_to_its_end() {
        let ended = run_body("yes | head -c 3000000; echo end", LIMIT).await.unwrap();
        assert_eq!(ended.said.as_deref(), Some("end"));
    }

    #[tokio::test]
    async fn what_it_left_behind_ends_with_it() {
        // A child that holds the output must not hold the answer.
        let ended = run_body("sleep 1000 & echo $!", LIMIT).await.unwrap();
        assert_dead(&ended.said.unwrap()).await;
    }

    #[tokio::test]
    async fn one_that_hangs_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let note = directory.path().join("pid");
        let body = format!("sleep 1000 & echo $! >{}; wait", note.display());
        let late = run_body(&body, Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(late.to_string(), "10-a did not end within 1 s");
        assert_dead(std::fs::read_to_string(note).unwrap().trim()).await;
    }

    async fn assert_dead(pid: &str) {
        let gone = async {
            // State `Z`: dead, and its new parent has not looked yet.
            while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, gone).await.unwrap();
    }
}
