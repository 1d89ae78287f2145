//! The boot loader's environment: where it is, whether its copies are good, and what is defined in it.

use std::path::Path;

use super::slots::Extent;
use super::{Finding, Repair, Seen};
use crate::boot::env::Environment;
use crate::boot::fw_env::{BootEnvError, CopyFound, Inspection};
use crate::boot::scheme::{BOOT_SLOT, Scheme, SchemeError};
use crate::boot::{Variables, booted};
use crate::causes::one_line;
use crate::config::Boot;

/// The version of `config/u-boot/boot.cmd` that belongs to this program.
const SCRIPT_VERSION: u32 = 1;

/// The argument by which that script tells its version.
const SCRIPT_ARGUMENT: &str = "twinboot.script";

/// A decision adds some 100 bytes to an environment that never had its variables.
const ROOM_LEAST_BYTES: usize = 256;

const AS_U_BOOT: &str = "fw_env.config must say what U-Boot was built with: CONFIG_ENV_OFFSET, CONFIG_ENV_OFFSET_REDUND, \
                         CONFIG_ENV_SIZE";

const TWINBOOT_ALTBOOTCMD: &str =
    "write the one of /usr/share/doc/twinboot/examples/u-boot/twinboot.env before the first update";

/// Mender's script knows nothing of `boot_slot`, which twinboot's would change.
const MENDER_ALTBOOTCMD: &str = "`fw_setenv altbootcmd 'run mender_altbootcmd; run bootcmd'` before the first update: so \
                                 meta-mender's U-Boot has it";

const SAVE_IN_U_BOOT: &str = "`saveenv` at U-Boot's prompt makes a good copy, but of its built-in defaults: see that they \
                              boot this board first";

pub(super) fn check(seen: &Seen<'_>) -> Vec<Finding> {
    let inspection = match &seen.environment {
        Err(error) => return vec![unusable(error)],
        Ok(inspection) => inspection,
    };
    let mut findings = vec![
        location(seen, inspection),
        Finding::ok("environment.locks", format!("{} taken and released", seen.config.boot.lock_files.len())),
        writable(inspection),
        size(inspection),
        copies(seen, inspection),
    ];
    if let (Some(current), Some(variables)) = (inspection.current(), inspection.variables()) {
        findings.push(room(current, inspection.capacity_bytes));
        findings.extend(defined(seen, &variables));
        findings.extend(trial(seen, &variables));
    }
    findings.extend(script(seen));
    findings
}

/// The checks that come after it have nothing to look at.
fn unusable(error: &BootEnvError) -> Finding {
    let evidence = one_line(error);
    match error {
        BootEnvError::OpenLock { .. } | BootEnvError::TakeLock { .. } | BootEnvError::LockHeld { .. } => {
            Finding::fault("environment.locks", evidence, "see `boot.lock_files`, and who holds them")
        }
        _ => Finding::fault("environment.location", evidence, AS_U_BOOT),
    }
}

fn location(seen: &Seen<'_>, inspection: &Inspection) -> Finding {
    const CHECK: &str = "environment.location";
    let config = seen.config.boot.environment.display();
    let places: Vec<String> = inspection.copies.iter().map(place).collect();
    let evidence = format!("{config}: {}", places.join(" and "));
    // U-Boot counts from the start of the disk, `fw_env.config` from that of the partition. This is not about flash, or
    // about files.
    let copies = inspection.copies.iter().filter_map(|copy| Extent::of_copy(seen.sysfs, copy));
    let starts: Vec<u64> = copies.map(|extent| extent.start_bytes).collect();
    match by_device_tree(&seen.config.system.proc) {
        Some(offset) if !starts.is_empty() && !starts.contains(&offset) => Finding::fault(
            CHECK,
            format!("{evidence}; but the device tree has `u-boot,mmc-env-offset` at {offset:#x}"),
            AS_U_BOOT,
        ),
        _ => Finding::ok(CHECK, evidence),
    }
}

fn place(copy: &CopyFound) -> String {
    format!("{} at {:#x}", copy.path.display(), copy.offset_bytes)
}

/// Where U-Boot's own device tree, if Linux was booted with that, puts the first copy. Negative ones, which count
/// from the end, are not understood here.
fn by_device_tree(proc: &Path) -> Option<u64> {
    let bytes = std::fs::read(proc.join("device-tree/config/u-boot,mmc-env-offset")).ok()?;
    u64::try_from(i32::from_be_bytes(bytes.try_into().ok()?)).ok()
}

/// One copy alone can be replaced only as a file, and both must not be write-protected.
fn writable(inspection: &Inspection) -> Finding {
    const CHECK: &str = "environment.writable";
    match inspection.copies.iter().find_map(|copy| copy.writable.as_ref().err()) {
        Some(error) => Finding::fault(CHECK, one_line(error), "no update can be activated before that"),
        None if inspection.copies.len() == 1 => {
            Finding::ok(CHECK, "one copy, in a file that can be replaced at once")
        }
        None => Finding::ok(CHECK, "two copies, neither write-protected"),
    }
}

/// Against U-Boot's: the checksum is right only with the size with which it was written.
fn size(inspection: &Inspection) -> Finding {
    const CHECK: &str = "environment.size";
    let configured = inspection.copies.first().map(|copy| copy.size_bytes).unwrap_or_default();
    let other = inspection.copies.iter().find_map(|copy| copy.other_layout);
    match (inspection.taken, other) {
        (_, Some(other)) => Finding::fault(
            CHECK,
            format!(
                "configured are {} of {configured:#x} bytes; but with {:#x} bytes and {} flags byte there is a good \
                 checksum",
                if inspection.copies.len() == 1 { "one copy" } else { "two copies" },
                other.size_bytes,
                if other.redundant { "a" } else { "no" },
            ),
            format!(
                "write {} with size {:#x} into fw_env.config",
                if other.redundant { "two lines" } else { "one line" },
                other.size_bytes
            ),
        ),
        (Some(_), None) => Finding::ok(CHECK, format!("{configured:#x} bytes give a good checksum")),
        (None, None) => Finding::fault(
            CHECK,
            format!("no size gives a good checksum, {configured:#x} neither"),
            AS_U_BOOT,
        ),
    }
}

fn copies(seen: &Seen<'_>, inspection: &Inspection) -> Finding {
    const CHECK: &str = "environment.copies";
    let Some(taken) = inspection.taken else {
        return Finding::fault(
            CHECK,
            "no copy has a good checksum: U-Boot runs on its built-in defaults",
            SAVE_IN_U_BOOT,
        );
    };
    let [first, second] = inspection.copies.as_slice() else {
        return Finding::ok(CHECK, "the only copy is good");
    };
    let (current, other) = if taken == 0 { (first, second) } else { (second, first) };
    let (number, other_number) = (taken + 1, 2 - taken);
    let Some(older) = &other.content else {
        let evidence = format!(
            "copy {other_number} ({}) has a bad checksum, or cannot be read; copy {number} is taken",
            place(other)
        );
        let finding =
            Finding::warning(CHECK, evidence, "`twinboot doctor --fix` writes the good one over it");
        // Another size or number of copies than U-Boot's is no damage.
        return if other.other_layout.is_none() {
            finding.repaired_by(Repair::EnvironmentCopy)
        } else {
            finding
        };
    };
    let slot = |content: Option<&Environment>| {
        seen.config.boot.scheme.view(&content?.variables()).ok().map(|view| (view.primary, view.trial))
    };
    match (slot(current.content.as_ref()), slot(Some(older))) {
        (Some((primary, false)), stale) if stale.is_none_or(|(old, _)| old != primary) => {
            let would =
                stale.map_or("names no slot".to_owned(), |(old, _)| format!("names slot {old} first"));
            let evidence = format!("copy {number} is taken; copy {other_number} is older and {would}");
            let advice = "U-Boot takes it if the newer one is lost; `twinboot doctor --fix` writes the newer one over it";
            Finding::warning(CHECK, evidence, advice).repaired_by(Repair::EnvironmentCopy)
        }
        _ => Finding::ok(CHECK, format!("both are good; copy {number} is taken")),
    }
}

fn room(current: &Environment, capacity_bytes: usize) -> Finding {
    const CHECK: &str = "environment.room";
    let used = current.entries().map(|entry| entry.len() + 1).sum::<usize>() + 1;
    let evidence = format!("the variables take {used} of {capacity_bytes} bytes");
    if used + ROOM_LEAST_BYTES > capacity_bytes {
        Finding::warning(CHECK, evidence, "remove some, or an update may not be activated for want of room")
    } else {
        Finding::ok(CHECK, evidence)
    }
}

/// What U-Boot does when it starts, and when a trial has used up its boots.
fn defined(seen: &Seen<'_>, variables: &Variables) -> Vec<Finding> {
    let value = |name: &str| variables.get(name).filter(|value| !value.is_empty());
    let bootcmd = match value("bootcmd") {
        Some(_) => Finding::ok("environment.bootcmd", "`bootcmd` is defined"),
        None => Finding::warning(
            "environment.bootcmd",
            "`bootcmd` is not in the stored environment",
            "stored variables replace U-Boot's defaults as a whole: without it most boards stop at the prompt",
        ),
    };
    let scheme = match seen.config.boot.scheme.view(variables) {
        Ok(view) => {
            let left = view.attempts_left.map(|left| format!(", {left} boots left")).unwrap_or_default();
            let trial = if view.trial { ", on trial" } else { "" };
            Finding::ok("environment.scheme", format!("slot {} is first{trial}{left}", view.primary))
        }
        Err(error) => Finding::fault(
            "environment.scheme",
            error.to_string(),
            scheme_advice(&seen.config.boot.scheme, &error),
        ),
    };
    let fallback = fallback(&seen.config.boot, value("altbootcmd"));
    let mut findings = vec![bootcmd, scheme, fallback];
    // The Intel Edison's variables: 0 in its built-in ones, and then in those of a board that lost its environment.
    let undone = ["do_partition_done", "do_flash_os_done"]
        .into_iter()
        .find(|name| value(name).is_some_and(|v| v != "1"));
    findings.extend(undone.map(|name| {
        let evidence = format!(
            "`{name}` is not 1: the next boot partitions the medium anew, or waits on USB for an image"
        );
        Finding::fault(
            "environment.partitioning",
            evidence,
            format!("`fw_setenv {name} 1` before the next boot"),
        )
    }));
    findings
}

/// twinboot.env as a whole names slot a, and has the variables of `bootcount` alone.
fn scheme_advice(scheme: &Scheme, error: &SchemeError) -> String {
    match (scheme, error) {
        (Scheme::Bootcount, SchemeError::BadValue { name, .. }) => {
            format!("`fw_setenv {name} VALUE`, and no other variable: for `{BOOT_SLOT}` the slot that is to boot")
        }
        (Scheme::Bootcount, _) => {
            "u-boot/twinboot.env among the examples has the variables of `bootcount`: `fw_setenv -s` writes them"
                .to_owned()
        }
        (Scheme::Rauc | Scheme::Mender { .. }, _) => {
            "set the named variable as this board's boot script has it, by `fw_setenv`".to_owned()
        }
    }
}

/// What U-Boot does once a trial has used up its boots.
fn fallback(boot: &Boot, altbootcmd: Option<&String>) -> Finding {
    const CHECK: &str = "environment.fallback";
    let attempts = boot.attempts;
    let (names, advice): (&[&str], _) = match boot.scheme {
        Scheme::Rauc => {
            let evidence = format!("the boot script counts down; {attempts} boots for each trial");
            return Finding::ok(CHECK, evidence);
        }
        Scheme::Bootcount => (&[BOOT_SLOT], TWINBOOT_ALTBOOTCMD),
        Scheme::Mender { .. } => (&["mender_altbootcmd", "mender_boot_part"], MENDER_ALTBOOTCMD),
    };
    match altbootcmd {
        None => Finding::fault(
            CHECK,
            "`altbootcmd` is not defined: after a failed trial U-Boot waits at its prompt for ever",
            advice,
        ),
        Some(command) if !names.iter().any(|name| command.contains(name)) => Finding::warning(
            CHECK,
            format!(
                "`altbootcmd` does not name `{}`: it may end no trial in the other slot",
                names.join("` or `")
            ),
            advice,
        ),
        Some(_) => Finding::ok(CHECK, format!("`altbootcmd` is defined; {attempts} boots for each trial")),
    }
}

/// Variables of a trial that nobody is conducting: the boot loader would count, and fall back, for nothing.
fn trial(seen: &Seen<'_>, variables: &Variables) -> Option<Finding> {
    const CHECK: &str = "environment.trial";
    let view = seen.config.boot.scheme.view(variables).ok()?;
    let is_rauc = seen.config.boot.scheme == Scheme::Rauc;
    if !view.trial {
        let count =
            variables.get("bootcount").filter(|count| !is_rauc && !matches!(count.as_str(), "" | "0"));
        return Some(match (count, &seen.booted) {
            (Some(count), Ok(booted)) if seen.is_at_rest() && booted.slot == view.primary => {
                let evidence = format!("no trial is on, but `bootcount={count}` is left over");
                settle(seen, Finding::warning(CHECK, evidence, ""), "`fw_setenv bootcount 0`")
            }
            _ => Finding::ok(CHECK, "no trial is on"),
        });
    }
    if !seen.is_at_rest() {
        return Some(Finding::ok(CHECK, "a trial is on"));
    }
    let evidence = if is_rauc {
        "what `BOOT_ORDER` names first has no boots left".to_owned()
    } else {
        format!("slot {} is on trial, but the state file knows of no update", view.primary)
    };
    Some(match &seen.booted {
        Ok(booted) if booted.slot == view.primary || is_rauc => {
            settle(seen, Finding::warning(CHECK, evidence, ""), "`twinboot commit` keeps what runs")
        }
        _ => Finding::warning(
            CHECK,
            evidence,
            "reboot into it, or take it back: `fw_setenv upgrade_available 0` and the slot that runs",
        ),
    })
}

/// Beside a daemon it is done `by_hand`; without one it is repaired here.
fn settle(seen: &Seen<'_>, finding: Finding, by_hand: &str) -> Finding {
    if !seen.is_alone {
        return Finding { advice: by_hand.to_owned(), ..finding };
    }
    let advice = "`twinboot doctor --fix` keeps what runs".to_owned();
    Finding { advice, ..finding }.repaired_by(Repair::TrialVariables)
}

/// RAUC's and Mender's scripts tell no version.
fn script(seen: &Seen<'_>) -> Option<Finding> {
    const CHECK: &str = "environment.script";
    const ADVICE: &str =
        "compile /usr/share/doc/twinboot/examples/u-boot/boot.cmd, and put it where the board has boot.scr";
    if seen.config.boot.scheme != Scheme::Bootcount {
        return None;
    }
    let version = booted::argument(&seen.config.system.proc, SCRIPT_ARGUMENT).ok()?;
    Some(match version.as_deref().map(str::parse::<u32>) {
        Some(Ok(SCRIPT_VERSION)) => Finding::ok(CHECK, format!("boot script of version {SCRIPT_VERSION}")),
        Some(Ok(older)) if older < SCRIPT_VERSION => Finding::warning(
            CHECK,
            format!("boot script of version {older}, {SCRIPT_VERSION} is current"),
            ADVICE,
        ),
        Some(Ok(newer)) => {
            let advice = "this program may be too old for it";
            Finding::warning(
                CHECK,
                format!("boot script of version {newer}, {SCRIPT_VERSION} is known"),
                advice,
            )
        }
        Some(Err(_)) | None => {
            Finding::warning(CHECK, format!("the kernel command line has no `{SCRIPT_ARGUMENT}=`"), ADVICE)
        }
    })
}
