//! The machine: its daemon, clock, watchdog and storage, and what ends a trial without the daemon.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::stat::{major, minor};

use super::{Finding, Patient};
use crate::control::Status;
use crate::install::one_line;
use crate::system::{self, Clock};
use crate::update::Slot;

/// systemd answers in milliseconds.
const ASK_LIMIT: Duration = Duration::from_secs(10);

/// It ends a trial also where the daemon does not start.
const TRIAL_TIMER: &str = "twinboot-trial.timer";

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
    vec![clock(&patient.config.system.clock_check_command).await, trial_timer(&patient.systemctl).await]
}

fn daemon(patient: &Patient) -> Finding {
    const CHECK: &str = "machine.daemon";
    match &patient.daemon {
        Ok(Status { summary, .. }) => Finding::ok(CHECK, format!("runs: {summary}")),
        Err(why) => Finding::warning(CHECK, why, "`systemctl enable --now twinboot`"),
    }
}

/// TLS takes no certificate, and the hub no token, by a wrong one.
async fn clock(check_command: &[String]) -> Finding {
    const CHECK: &str = "machine.clock";
    match system::clock(check_command).await {
        Clock::Right => Finding::ok(CHECK, "set, and synchronized"),
        Clock::Unsynchronized => Finding::warning(
            CHECK,
            format!("`{}` does not say yes", check_command.join(" ")),
            "no time is reported before it does; see `timedatectl`, or `system.clock_check_command`",
        ),
        Clock::Unset => Finding::fault(
            CHECK,
            "it shows a time before this program was written",
            "set it, or run a time client: certificates and tokens are refused by it",
        ),
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

async fn trial_timer(systemctl: &[String]) -> Finding {
    const CHECK: &str = "machine.trial-timer";
    let question = ["is-enabled", TRIAL_TIMER].map(str::to_owned);
    let command: Vec<String> = systemctl.iter().cloned().chain(question).collect();
    let answer = system::output(&command, ASK_LIMIT).await;
    let answer = answer.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let evidence = match answer.as_deref() {
        Ok("enabled" | "enabled-runtime" | "static") => {
            return Finding::ok(CHECK, "enabled: it ends a trial whose daemon does not start");
        }
        Ok("") => format!("systemd does not know {TRIAL_TIMER}"),
        Ok(answer) => format!("{TRIAL_TIMER} is {answer}"),
        Err(error) => one_line(error),
    };
    Finding::warning(
        CHECK,
        evidence,
        "`systemctl enable --now twinboot-trial.timer`, which the service does with it",
    )
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
    let evidence = format!("{} % of its life are used", u32::from(tenths) * 10);
    const ADVICE: &str = "replace the board, or the medium, before it fails in the midst of an update";
    match (tenths, spare) {
        (_, 3..) | (0x0B.., _) => {
            Finding::fault(CHECK, format!("{evidence}; its spare blocks are used up"), ADVICE)
        }
        (_, 2) | (9.., _) => Finding::warning(CHECK, evidence, ADVICE),
        _ => Finding::ok(CHECK, evidence),
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
