//! The systemd units, as systemd itself judges them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

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

/// One of them knows the secrets, the other writes: never both.
#[test]
fn who_speaks_with_the_network_writes_nothing_and_who_writes_knows_no_secret() {
    let agent = std::fs::read_to_string(unit("twinboot.service")).unwrap();
    let network = std::fs::read_to_string(unit("twinboot-network.service")).unwrap();
    let has = |text: &str, line: &str| text.lines().any(|l| l == line);
    assert!(has(&agent, "PrivateNetwork=yes") && has(&agent, "RestrictAddressFamilies=AF_UNIX"));
    assert!(!agent.contains("Credential="));
    assert!(has(&network, "PrivateDevices=yes") && has(&network, "ProtectSystem=strict"));
    for line in network.lines() {
        let writable =
            ["ReadWritePaths=", "StateDirectory=", "RuntimeDirectory=", "DeviceAllow=", "BindPaths="];
        assert!(!writable.iter().any(|key| line.starts_with(key)), "{line}");
    }
}
