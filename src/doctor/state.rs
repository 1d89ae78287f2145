//! The state directory: there, on neither slot, with room, and its contents believed.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use nix::sys::statvfs::{FsFlags, statvfs};

use super::{Finding, Repair, Seen};
use crate::causes::one_line;
use crate::ownership;
use crate::trial::Mark;
use crate::update::record::SIZE_BYTES_MAX;

pub(super) fn check(seen: &Seen<'_>) -> Vec<Finding> {
    let directory = directory(seen);
    if directory.level == super::Level::Fault {
        return vec![directory];
    }
    let mut findings = vec![directory, place(seen), room(seen), record(seen)];
    findings.extend(damaged(seen));
    findings.push(mark(seen));
    findings
}

fn directory(seen: &Seen<'_>) -> Finding {
    const CHECK: &str = "state.directory";
    let path = &seen.config.state_directory;
    match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let evidence = format!("{} is not there", path.display());
            Finding::fault(CHECK, evidence, "mount what it is on, then `twinboot doctor --fix` makes it")
                .repaired_by(Repair::StateDirectory)
        }
        Err(error) => Finding::fault(CHECK, format!("{}: {error}", path.display()), "run as root"),
        Ok(metadata) if !metadata.is_dir() => {
            Finding::fault(CHECK, format!("{} is no directory", path.display()), "remove it")
        }
        Ok(metadata) => {
            let evidence = format!("{} is there, mode {:o}", path.display(), metadata.mode() & 0o7777);
            let others = format!("others can write what the daemon believes: `chmod 700 {}`", path.display());
            match ownership::check(path) {
                Err(error) => {
                    Finding::fault(CHECK, one_line(&error), "before that the daemon does not start")
                }
                Ok(()) if metadata.mode() & 0o022 != 0 => Finding::warning(CHECK, evidence, others),
                Ok(()) => Finding::ok(CHECK, evidence),
            }
        }
    }
}

/// It must outlive every update.
fn place(seen: &Seen<'_>) -> Finding {
    const CHECK: &str = "state.place";
    let path = &seen.config.state_directory;
    let elsewhere = "mount a partition of its own there; or set `state.directory`, and let the service write it: \
                     `twinboot check-config --unit`";
    match &seen.home {
        Err(error) => Finding::fault(CHECK, one_line(error), elsewhere),
        Ok(home) => match (home.slot, &home.file_system) {
            (Some(slot), _) => {
                let evidence = format!("{} is on slot {slot}: the next update overwrites it", path.display());
                Finding::fault(CHECK, evidence, elsewhere)
            }
            (None, Some(kind)) if home.is_volatile() => {
                let evidence = format!("{} is on {kind}: a reboot empties it", path.display());
                Finding::fault(CHECK, evidence, elsewhere)
            }
            (None, Some(kind)) if kind == "overlay" => {
                let evidence =
                    format!("{} is on an overlay, and where that writes cannot be told", path.display());
                Finding::warning(CHECK, evidence, elsewhere)
            }
            (None, Some(kind)) => Finding::ok(CHECK, format!("on neither slot, on {kind}")),
            (None, None) => Finding::ok(CHECK, "on neither slot"),
        },
    }
}

fn room(seen: &Seen<'_>) -> Finding {
    const CHECK: &str = "state.room";
    let path = &seen.config.state_directory;
    match statvfs(path) {
        Err(errno) => Finding::fault(CHECK, format!("{}: {errno}", path.display()), "see `dmesg`"),
        Ok(room) if room.flags().contains(FsFlags::ST_RDONLY) => Finding::fault(
            CHECK,
            format!("{} is mounted read-only", path.display()),
            "mount it writable; if it was, the kernel found an error: `dmesg`; or the service may not write it: \
             `twinboot check-config --unit`",
        ),
        Ok(room) => {
            let free = room.blocks_available().saturating_mul(room.fragment_size());
            let evidence = format!("{} KiB are free", free >> 10);
            // The new state is written beside the old one.
            if usize::try_from(free).is_ok_and(|free| free < 2 * SIZE_BYTES_MAX) {
                Finding::fault(CHECK, evidence, "make room: no update begins whose state cannot be saved")
            } else {
                Finding::ok(CHECK, evidence)
            }
        }
    }
}

fn record(seen: &Seen<'_>) -> Finding {
    const CHECK: &str = "state.record";
    match &seen.record {
        Ok(None) => Finding::ok(CHECK, "no state yet, as at the factory"),
        Ok(Some(Ok(record))) => Finding::ok(
            CHECK,
            record.state.update_id().map_or_else(
                || "no update is under way".to_owned(),
                |id| format!("update {} is under way", id.as_str()),
            ),
        ),
        Ok(Some(Err(damage))) => {
            let advice = "the daemon moves it aside when it starts, and begins at rest";
            Finding::warning(CHECK, format!("the state file is not believed: {damage}"), advice)
        }
        Err(error) => Finding::fault(CHECK, one_line(error), "run as root; else see `dmesg`"),
    }
}

fn damaged(seen: &Seen<'_>) -> Option<Finding> {
    let path = seen.config.state_directory.join("state.damaged");
    path.exists().then(|| {
        let evidence = format!("{} was moved aside", path.display());
        Finding::warning("state.damaged", evidence, "find out why (the medium?), then remove it")
    })
}

/// With one, systemd reboots a system that is not the one which armed it.
fn mark(seen: &Seen<'_>) -> Finding {
    const CHECK: &str = "state.trial-mark";
    let view = seen.environment.as_ref().ok().and_then(|inspection| inspection.variables());
    let view = view.and_then(|variables| seen.config.boot.scheme.view(&variables).ok());
    let settled = view.is_some_and(|view| !view.trial) && seen.is_at_rest();
    match Mark::new(&seen.config.state_directory).is_armed() {
        Err(error) => Finding::fault(CHECK, one_line(&error), "see `dmesg`"),
        Ok(true) if settled => {
            let advice = "the running daemon removes it at rest; without one `twinboot doctor --fix` does";
            let finding = Finding::warning(CHECK, "left over: no trial is on", advice);
            if seen.is_alone { finding.repaired_by(Repair::TrialMark) } else { finding }
        }
        Ok(true) => Finding::ok(CHECK, "armed: systemd ends a trial that nobody commits"),
        Ok(false) => Finding::ok(CHECK, "none: no trial is on"),
    }
}
