//! The machine: its daemon, clock, watchdog and storage, and what ends a trial without the daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::stat::{major, minor};

use super::{Finding, Patient};
use crate::boot;
use crate::causes::one_line;
use crate::config::Credentials;
use crate::control::Status;
use crate::system::{self, Clock, CommandError};
use crate::update::Slot;

/// systemd answers in milliseconds.
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// It ends a trial also where the daemon does not start.
const TRIAL_TIMER: &str = "twinboot-trial.timer";

/// `StateDirectory=` of twinboot.service.
const STATE_DIRECTORY: &str = "/var/lib/twinboot";

/// What it starts.
const TRIAL_SERVICE: &str = "twinboot-trial.service";

/// What is seen in files.
pub(super) fn check(patient: &Patient) -> Vec<Finding> {
    vec![
        daemon(patient),
        reboot_command(&patient.config.system.reboot_command),
        panic(&patient.config.system.proc),
        watchdog(&patient.sysfs),
        wear(patient),
    ]
}

/// What programs answer.
pub(super) async fn ask(patient: &Patient) -> Vec<Finding> {
    let check_command = &patient.config.system.clock_check_command;
    let hub = patient.config.hub.as_ref();
    let needs_clock = hub.is_some_and(|hub| matches!(hub.credentials, Credentials::SharedAccessKey(_)));
    let clock = clock(system::clock(check_command).await, check_command, needs_clock);
    vec![clock, sandbox(patient).await, trial_timer(patient).await]
}

fn daemon(patient: &Patient) -> Finding {
    const CHECK: &str = "machine.daemon";
    match &patient.daemon {
        Ok(Status { summary, .. }) => Finding::ok(CHECK, format!("runs: {summary}")),
        Err(why) => Finding::warning(CHECK, why, "`systemctl enable --now twinboot`"),
    }
}

/// A token ends at a date, so a device with a key needs one; certificates are taken without it.
fn clock(clock: Clock, check_command: &[String], needs_clock: bool) -> Finding {
    const CHECK: &str = "machine.clock";
    const UNSET: &str = "it shows a time before this program was written";
    match clock {
        Clock::Right => Finding::ok(CHECK, "set, and synchronized"),
        Clock::Unsynchronized => Finding::warning(
            CHECK,
            format!("`{}` does not say yes", check_command.join(" ")),
            "no time is reported before it does; see `timedatectl`, or `system.clock_check_command`",
        ),
        Clock::Unset if needs_clock => {
            Finding::fault(CHECK, UNSET, "set it, or run a time client: before that the hub is not asked")
        }
        Clock::Unset => {
            Finding::warning(CHECK, UNSET, "set it, or run a time client: before that no time is reported")
        }
    }
}

fn reboot_command(command: &[String]) -> Finding {
    const CHECK: &str = "machine.reboot";
    let program = command.first().map(String::as_str).unwrap_or_default();
    let is_there = |directory: &str| Path::new(directory).join(program).exists();
    // As systemd sets PATH for its services.
    let directories = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    if directories.into_iter().any(is_there) {
        Finding::ok(CHECK, format!("by `{}`", command.join(" ")))
    } else {
        Finding::fault(CHECK, format!("there is no program `{program}`"), "see `system.reboot_command`")
    }
}

fn panic(proc: &Path) -> Finding {
    const CHECK: &str = "machine.panic";
    let seconds = fs::read_to_string(proc.join("sys/kernel/panic")).unwrap_or_default();
    match seconds.trim() {
        "0" | "" => Finding::warning(
            CHECK,
            "a kernel that panics stays where it is",
            "the boot script passes `panic=5`, so that the boot loader can count, and fall back",
        ),
        seconds => Finding::ok(CHECK, format!("a kernel that panics reboots after {seconds} s")),
    }
}

/// What resets a board whose kernel or systemd hangs.
fn watchdog(sysfs: &Path) -> Finding {
    const CHECK: &str = "machine.watchdog";
    let entries = fs::read_dir(sysfs.join("class/watchdog")).into_iter().flatten().flatten();
    let mut found = None;
    for device in entries.map(|entry| entry.path()) {
        let attribute = |name| fs::read_to_string(device.join(name)).unwrap_or_default().trim().to_owned();
        let name =
            format!("{} ({})", device.file_name().unwrap_or_default().display(), attribute("identity"));
        match attribute("state").as_str() {
            "active" => {
                return Finding::ok(CHECK, format!("{name} is fed, limit {} s", attribute("timeout")));
            }
            "" => {
                found = Some(Finding::ok(
                    CHECK,
                    format!("{name} is there; this kernel does not tell whether it is fed"),
                ))
            }
            _ => found = found.or(Some(Finding::warning(
                CHECK,
                format!("{name} is there, and nobody feeds it"),
                "RuntimeWatchdogSec= for systemd: /usr/share/doc/twinboot/examples/twinboot-watchdog.conf",
            ))),
        }
    }
    found.unwrap_or_else(|| {
        let advice = "a system that hangs in a trial stays there; load the driver of the board's watchdog";
        Finding::warning(CHECK, "there is no watchdog", advice)
    })
}

/// Whether the service may write the state, and an environment in files: from a shell all of that is writable.
async fn sandbox(patient: &Patient) -> Finding {
    const CHECK: &str = "machine.sandbox";
    const QUESTION: [&str; 3] = ["show", "--property=ProtectSystem,ReadWritePaths", "twinboot.service"];
    // Where there is no systemd there is no sandbox.
    let answer = ask_systemd(&patient.systemctl, QUESTION).await.unwrap_or_default();
    let property = |name| property(&answer, name);
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let listed =
        property("ReadWritePaths=").split_whitespace().map(|path| path.trim_start_matches(['-', '+']));
    let writable: Vec<PathBuf> =
        [STATE_DIRECTORY].into_iter().chain(listed).map(|path| real(Path::new(path))).collect();
    let is_closed = |path: &PathBuf| {
        let path = real(path);
        !writable.iter().any(|open| path.starts_with(open))
    };
    // What is a device has a check of its own.
    let files = boot::written_files(&patient.config.boot);
    let closed = [patient.config.state_directory.clone()].into_iter().chain(files).find(is_closed);
    match closed.filter(|_| property("ProtectSystem=") == "strict") {
        Some(path) => Finding::warning(
            CHECK,
            format!("twinboot.service may not write {}", path.display()),
            "no update can succeed: `twinboot check-config --unit` prints the drop-in that lets it",
        ),
        None => Finding::ok(CHECK, "nothing keeps the daemon from its state, nor from the environment"),
    }
}

async fn trial_timer(patient: &Patient) -> Finding {
    const CHECK: &str = "machine.trial-timer";
    let question = ["show", "--property=LoadState", "--property=WantedBy", TRIAL_TIMER];
    let evidence = match ask_systemd(&patient.systemctl, question).await {
        Ok(answer) if property(&answer, "LoadState=") != "loaded" => {
            format!("systemd does not know {TRIAL_TIMER}, or is told to ignore it")
        }
        Ok(answer) if property(&answer, "WantedBy=").is_empty() => format!("nothing starts {TRIAL_TIMER}"),
        Ok(_) => return trial_end(CHECK, patient).await,
        Err(error) => one_line(&error),
    };
    Finding::warning(
        CHECK,
        evidence,
        "`systemctl unmask twinboot-trial.timer`, and `systemctl add-wants timers.target twinboot-trial.timer`",
    )
}

/// Whether what the timer starts comes late enough, and looks where this daemon leaves its mark.
async fn trial_end(check: &'static str, patient: &Patient) -> Finding {
    let (systemctl, config) = (&patient.systemctl, &patient.config);
    let timers = ask_systemd(systemctl, ["show", "--property=TimersMonotonic", TRIAL_TIMER]).await;
    let deadline = config.health.deadline;
    if let Some(time) = timers.ok().and_then(|timers| on_boot(&timers)).filter(|time| *time <= deadline) {
        let (time, deadline) = (humantime::format_duration(time), humantime::format_duration(deadline));
        return Finding::warning(
            check,
            format!("it ends a trial {time} after the boot, and `health.deadline` is {deadline}"),
            "give it longer: `systemctl edit twinboot-trial.timer`, with `OnBootSec=` empty first, and then anew",
        );
    }
    let mark = config.state_directory.join("trial/reboot-*").display().to_string();
    let looks_here = |globs: &[&str]| !globs.is_empty() && globs.iter().all(|glob| *glob == mark);
    let unit = ask_systemd(systemctl, ["cat", TRIAL_SERVICE]).await;
    if unit.is_ok_and(|unit| !looks_here(&globs_in_force(&unit))) {
        return Finding::warning(
            check,
            format!("{TRIAL_SERVICE} does not look into {} alone", config.state_directory.display()),
            "`systemctl edit twinboot-trial.service`: each of its paths is of `state.directory`, with \
             `ConditionPathExistsGlob=`, `ExecCondition=` and `ExecStart=` empty first, and then anew",
        );
    }
    Finding::ok(check, "started in each boot: it ends a trial whose daemon does not start")
}

async fn ask_systemd<const N: usize>(
    systemctl: &[String],
    question: [&str; N],
) -> Result<String, CommandError> {
    let command: Vec<String> = systemctl.iter().cloned().chain(question.map(str::to_owned)).collect();
    let output = system::output(&command, ASK_LIMIT).await?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// What `systemctl show` says behind `name`; nothing, where it does not say it.
fn property<'a>(answer: &'a str, name: &str) -> &'a str {
    answer.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default()
}

/// All of them must hold: a drop-in adds to those before, and an empty condition takes all away.
fn globs_in_force(unit: &str) -> Vec<&str> {
    let mut globs = Vec::new();
    for (key, value) in unit.lines().filter_map(|line| line.split_once('=')) {
        match (key.trim(), value.trim()) {
            (key, "") if key.starts_with("Condition") => globs.clear(),
            ("ConditionPathExistsGlob", glob) => globs.push(glob),
            _ => {}
        }
    }
    globs
}

/// The first of all times in `TimersMonotonic={ OnBootUSec=1h 25min ; next_elapse=0 }`, one a line.
fn on_boot(timers: &str) -> Option<Duration> {
    let times = timers.lines().filter_map(|line| line.split_once("OnBootUSec=")?.1.split_once(" ;"));
    times.filter_map(|(time, _)| humantime::parse_duration(time).ok()).min()
}

/// eMMC tells its age in tenths of what it was made for, and how many of its spare blocks are used (JEDEC JESD84-B51:
/// `DEVICE_LIFE_TIME_EST_TYP_A`, `_B`, `PRE_EOL_INFO`). Other media tell nothing in sysfs.
fn wear(patient: &Patient) -> Finding {
    const CHECK: &str = "machine.storage";
    let slots = [Slot::A, Slot::B].map(|slot| patient.config.slots.device(slot));
    let device = slots.into_iter().find_map(|slot| disk(&patient.sysfs, slot));
    let attribute = |name| {
        let text = fs::read_to_string(device.as_ref()?.join(name)).ok()?;
        let numbers = text
            .split_whitespace()
            .filter_map(|word| u8::from_str_radix(word.strip_prefix("0x").unwrap_or(word), 16).ok());
        numbers.max()
    };
    let (Some(tenths), Some(spare)) = (attribute("life_time"), attribute("pre_eol_info")) else {
        return Finding::ok(CHECK, "this medium does not tell its age");
    };
    worn(CHECK, tenths, spare)
}

fn worn(check: &'static str, tenths: u8, spare: u8) -> Finding {
    const ADVICE: &str = "replace the board, or the medium, before it fails in the midst of an update";
    let life = match tenths {
        0 => "this medium does not tell its age".to_owned(),
        1..=10 => format!("at most {} % of its life are used", u32::from(tenths) * 10),
        _ => "it is older than it was made for".to_owned(),
    };
    match (tenths, spare) {
        (_, 3) => Finding::fault(check, format!("{life}; 90 % of its spare blocks are used"), ADVICE),
        (11.., _) => Finding::fault(check, life, ADVICE),
        (_, 2) => Finding::warning(check, format!("{life}; 80 % of its spare blocks are used"), ADVICE),
        (9.., _) => Finding::warning(check, life, ADVICE),
        _ => Finding::ok(check, life),
    }
}

/// `device` of the disk that a partition is on.
fn disk(sysfs: &Path, slot: &Path) -> Option<std::path::PathBuf> {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let metadata = fs::metadata(slot).ok().filter(|metadata| metadata.file_type().is_block_device())?;
    let number = format!("dev/block/{}:{}", major(metadata.rdev()), minor(metadata.rdev()));
    let directory = fs::canonicalize(sysfs.join(number)).ok()?;
    let disk = if directory.join("partition").exists() { directory.parent()? } else { &directory };
    Some(disk.join("device"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn a_clock_that_was_never_set_is_a_fault_where_a_token_needs_it() {
        assert_eq!(clock(Clock::Unset, &[], true).level, Level::Fault);
        assert_eq!(clock(Clock::Unset, &[], false).level, Level::Warning);
    }

    #[test]
    fn a_medium_tells_its_age_and_its_spare_blocks_apart() {
        for (tenths, spare, level, evidence) in [
            (0, 0, Level::Ok, "this medium does not tell its age"),
            (1, 1, Level::Ok, "at most 10 % of its life are used"),
            (9, 1, Level::Warning, "at most 90 % of its life are used"),
            (0, 2, Level::Warning, "this medium does not tell its age; 80 % of its spare blocks are used"),
            (1, 3, Level::Fault, "at most 10 % of its life are used; 90 % of its spare blocks are used"),
            (11, 1, Level::Fault, "it is older than it was made for"),
        ] {
            let found = worn("machine.storage", tenths, spare);
            assert_eq!((found.level, found.evidence.as_str()), (level, evidence));
        }
    }
}
