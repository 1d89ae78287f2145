//! The systemd units, as systemd itself judges them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// In tenths: the least exposed tenth of services is below it.
const EXPOSURE_MAX: &str = "15";

fn unit(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)
}

fn exposure_is_small(unit: &Path) -> (bool, String) {
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", "--threshold", EXPOSURE_MAX])
        .arg(unit)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn both_services_are_locked_down() {
    for name in ["twinboot.service", "twinboot-network.service"] {
        let (small, text) = exposure_is_small(&unit(name));
        assert!(small && text.contains("Overall exposure level"), "{name}:\n{text}");
    }
}

/// The judgement above can fail.
#[test]
fn a_service_with_a_network_and_no_filter_is_not() {
    let text = std::fs::read_to_string(unit("twinboot.service")).unwrap();
    let open: String = text
        .lines()
        .filter(|line| !line.starts_with("PrivateNetwork=") && !line.starts_with("SystemCallFilter="))
        .map(|line| format!("{line}\n"))
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("twinboot.service");
    twinboot::store::write_durably(&path, open.as_bytes()).unwrap();
    let (small, text) = exposure_is_small(&path);
    assert!(!small, "{text}");
}

/// Whether systemd would go on to what the unit starts: its conditions are played, where `directory` is the root.
fn conditions_hold(name: &str, directory: &Path) -> bool {
    scripts_succeed(name, "ExecCondition", directory)
}

/// Plays the shell scripts of this key, where `directory` is the root and its programs go before all others.
fn scripts_succeed(name: &str, key: &str, directory: &Path) -> bool {
    let text = std::fs::read_to_string(unit(name)).unwrap();
    let root = directory.to_str().unwrap();
    let begin = format!("{key}=/bin/sh -c '");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(&begin)).peekable();
    assert!(lines.peek().is_some(), "{name}: {key}");
    lines.all(|line| {
        let script = line.strip_suffix('\'').unwrap().replace("$$", "$");
        let script = script.replace(" /proc/", &format!(" {root}/")).replace("/var/lib/twinboot", root);
        let path = format!("{root}:/usr/bin:/bin");
        Command::new("/bin/sh").args(["-c", &script]).env("PATH", path).status().unwrap().success()
    })
}

fn put(path: &Path, text: &str, mode: u32) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    twinboot::store::write_durably(path, text.as_bytes()).unwrap();
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// In emergency mode there is no sysinit.target, and to start it would end that mode.
#[test]
fn what_ends_a_trial_waits_for_no_file_system() {
    for name in ["twinboot-trial.timer", "twinboot-trial.service", "twinboot-trial-no-daemon.service"] {
        let text = std::fs::read_to_string(unit(name)).unwrap();
        assert!(text.lines().any(|line| line == "DefaultDependencies=no"), "{name}");
        let needs_state = text.lines().any(|line| line.starts_with("RequiresMountsFor="));
        assert_eq!(needs_state, name == "twinboot-trial.service", "{name}");
    }
    let guard = std::fs::read_to_string(unit("twinboot-trial.service")).unwrap();
    assert!(guard.lines().any(|line| line == "Wants=twinboot-trial-no-daemon.service"));
}

#[test]
fn without_its_state_a_trial_is_ended_only_if_the_daemon_was_never_up() {
    let (name, directory) = ("twinboot-trial-no-daemon.service", tempfile::tempdir().unwrap());
    let text = std::fs::read_to_string(unit(name)).unwrap();
    assert!(text.lines().any(|line| line == "ConditionKernelCommandLine=twinboot.trial=1"));
    let script = std::fs::read_to_string(unit("../config/u-boot/boot.cmd")).unwrap();
    assert!(script.contains(" twinboot.trial=${upgrade_available} "));
    for (up_since, is_ended) in [("0", true), ("18446744", false), ("", false)] {
        let body = format!("#!/bin/sh\n[ \"$4\" = twinboot.service ] && echo {up_since}\n");
        put(&directory.path().join("systemctl"), &body, 0o755);
        assert_eq!(conditions_hold(name, directory.path()), is_ended, "{up_since:?}");
    }
}

/// The boot script tells each boot of a slot whether it is one of a trial.
#[test]
fn what_armed_a_trial_is_not_rebooted_though_its_own_boot_began_as_one() {
    let directory = tempfile::tempdir().unwrap();
    let is_ended = |armed_by: &str, runs: &str| {
        put(&directory.path().join("trial/armed-by"), armed_by, 0o644);
        put(&directory.path().join("cmdline"), runs, 0o644);
        conditions_hold("twinboot-trial.service", directory.path())
    };
    let a = |trial| format!("quiet twinboot.slot=a twinboot.trial={trial} twinboot.script=1\n");
    let b = |trial| format!("quiet twinboot.slot=b twinboot.trial={trial} twinboot.script=1\n");
    for armed_by in [a(0), a(1)] {
        assert!(is_ended(&armed_by, &b(1)));
        assert!(!is_ended(&armed_by, &a(0)), "the boot loader went back");
    }
    assert!(!is_ended(&a(1), &a(1)), "it does not reboot");
    assert!(is_ended("rauc.slot=A\n", "rauc.slot=B\n") && !is_ended("rauc.slot=A\n", "rauc.slot=A\n"));
}

/// A new system whose own fault is that it cannot write does not stay for that.
#[test]
fn a_reboot_that_cannot_be_counted_is_left_to_the_boot_loaders_count() {
    let directory = tempfile::tempdir().unwrap();
    for (moves, trial, is_rebooted) in
        [("/bin/mv \"$@\"", 0, true), ("exit 1", 0, false), ("exit 1", 1, true), ("exit 1", 10, false)]
    {
        put(&directory.path().join("trial/reboot-1"), "", 0o644);
        put(&directory.path().join("cmdline"), &format!("quiet twinboot.trial={trial} rootwait\n"), 0o644);
        put(&directory.path().join("mv"), &format!("#!/bin/sh\n{moves}\n"), 0o755);
        // Another file system hangs.
        put(&directory.path().join("sync"), "#!/bin/sh\n[ \"$*\" = '-f .' ]\n", 0o755);
        let succeeds = scripts_succeed("twinboot-trial.service", "ExecStart", directory.path());
        assert_eq!(succeeds, is_rebooted, "{moves} {trial}");
    }
}

/// Whoever plugs a stick in is nobody that this device knows.
#[test]
fn a_stick_is_not_looked_at_unless_that_is_wanted_and_never_trusted() {
    let unit = std::fs::read_to_string(unit("twinboot-usb@.service")).unwrap();
    let has = |line: &str| unit.lines().any(|l| l == line);
    assert!(has("ConditionPathExists=/etc/twinboot/updates-from-usb"));
    assert!(!unit.contains("[Install]"));
    assert!(
        unit.lines().filter(|line| line.contains("twinboot install")).all(|line| line.contains(" --signed "))
    );
    assert!(unit.contains("--options=ro,nosuid,nodev,noexec"));
}

/// A plain image's signature need not name a version, by which an older one would be refused.
#[test]
fn of_a_stick_only_a_bundle_is_taken() {
    let unit = std::fs::read_to_string(unit("twinboot-usb@.service")).unwrap();
    let line = unit.split("ExecStart=/bin/sh -c '").nth(1).unwrap().split('\'').next().unwrap();
    let stick = tempfile::tempdir().unwrap();
    // As systemd reads it, and with nobody to ask.
    let line = line.replace("\\\n", " ").replace("$$", "$").replace("exec twinboot", "echo");
    let line = line.replace("/run/media/twinboot-%i", stick.path().to_str().unwrap());
    let plug_in = || {
        let output = Command::new("/bin/sh").args(["-c", &line]).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(plug_in(), (true, String::new()), "nothing is on it");
    let file = stick.path().join("update.twb");
    twinboot::store::write_durably(&file, b"hsqs, and what else a file system begins with").unwrap();
    assert_eq!(plug_in(), (false, String::new()));
    twinboot::store::write_durably(&file, b"\x89TWB\r\n\x1a\n\x01").unwrap();
    let (taken, asked) = plug_in();
    assert!(taken && asked.starts_with("install --signed --update-id usb-"), "{asked}");
}

/// One of them knows the secrets, the other writes: never both.
#[test]
fn who_speaks_with_the_network_writes_nothing_and_who_writes_knows_no_secret() {
    let agent = std::fs::read_to_string(unit("twinboot.service")).unwrap();
    let network = std::fs::read_to_string(unit("twinboot-network.service")).unwrap();
    let has = |text: &str, line: &str| text.lines().any(|l| l == line);
    assert!(has(&agent, "PrivateNetwork=yes") && has(&agent, "RestrictAddressFamilies=AF_UNIX"));
    assert!(!agent.contains("Credential="));
    assert!(has(&network, "PartOf=twinboot.service"), "a restart brings in another hub and other secrets");
    assert!(has(&network, "PrivateDevices=yes") && has(&network, "ProtectSystem=strict"));
    for line in network.lines() {
        let writable =
            ["ReadWritePaths=", "StateDirectory=", "RuntimeDirectory=", "DeviceAllow=", "BindPaths="];
        assert!(!writable.iter().any(|key| line.starts_with(key)), "{line}");
    }
}
