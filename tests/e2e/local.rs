//! Updates started at the device, without a cloud.

use std::time::Duration;

use hub_emulator::board::{Scheme, Slot, Traits, board_image};
use hub_emulator::images::{Faults, ImageServer};

use crate::clocks::Clocks;
use crate::cloud::{IMAGE, sha256};
use crate::rig::{Choice, IMAGE_BYTES, LIMIT, Rig, script};
use crate::weather::bytes;

async fn a_good_image_is_committed(scheme: Scheme) {
    let rig = Rig::running(Choice { scheme, ..Choice::default() }).await;
    rig.install("2.0", Traits::default()).await;
    let report = rig.outcome().await;
    assert_eq!(report["firmwareStatus"], "completed", "{report:#}");
    assert!(report["lastFirmwareUpdate"].as_str().is_some_and(|time| time.ends_with('Z')));
    let firmware = &report["firmware"];
    assert_eq!(firmware["currentFwVersion"], "2.0");
    assert_eq!(firmware["slots"]["booted"], "b");
    assert_eq!(firmware["slots"]["b"]["state"], "committed");
    assert_eq!(firmware["slots"]["a"]["state"], "fallback");
    assert_eq!(firmware["slots"]["a"]["version"], "1.0");
    assert_eq!(rig.board.booted(), Some(Slot::B));

    // The way back is the same way.
    rig.install("3.0", Traits::default()).await;
    rig.wait(|status| status["reported"]["firmware"]["currentFwVersion"] == "3.0").await;
    assert_eq!(rig.outcome().await["firmwareStatus"], "completed");
    assert_eq!(rig.board.booted(), Some(Slot::A));
}

/// Shows Azure/iot-hub-device-update#421; home-assistant: proxy, offline, and balena t/375720.
#[tokio::test]
async fn a_good_image_is_committed_under_bootcount() {
    a_good_image_is_committed(Scheme::Bootcount).await;
}

/// Shows p2pool-starter-stack/pithead#793, #856.
#[tokio::test]
async fn a_good_image_is_committed_under_rauc() {
    a_good_image_is_committed(Scheme::Rauc).await;
}

#[tokio::test]
async fn a_good_image_is_committed_under_mender() {
    a_good_image_is_committed(Scheme::Mender).await;
}

async fn an_image_is_rolled_back(scheme: Scheme, traits: Traits, code: &str) {
    let rig = Rig::running(Choice { scheme, ..Choice::default() }).await;
    rig.install("2.0", traits).await;
    let report = rig.outcome().await;
    assert_eq!(report["firmwareStatus"], "rolledBack", "{report:#}");
    let firmware = &report["firmware"];
    assert_eq!(firmware["fwUpdateStatus"], "rolledback");
    assert_eq!(firmware["error"]["code"], code);
    assert_eq!(firmware["currentFwVersion"], "1.0");
    assert_eq!(firmware["slots"]["booted"], "a");
    assert_eq!(rig.board.booted(), Some(Slot::A));

    // The same image is not tried a second time, by whatever name.
    let image = rig.image("2.0", traits);
    let again = rig.twinboot(&["install", image.to_str().unwrap(), "--version", "2.0.1"]).await;
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("rolled back on this device"));
}

/// Shows advancedtelematic/aktualizr#1422.
#[tokio::test]
async fn a_sick_image_is_rolled_back_under_bootcount() {
    an_image_is_rolled_back(Scheme::Bootcount, Traits::SICK, "HealthCheckFailed").await;
}

/// Shows F17.
#[tokio::test]
async fn a_sick_image_is_rolled_back_under_rauc() {
    an_image_is_rolled_back(Scheme::Rauc, Traits::SICK, "HealthCheckFailed").await;
}

/// Shows foundriesio/aktualizr-lite#76, #155, #202, #381.
#[tokio::test]
async fn a_sick_image_is_rolled_back_under_mender() {
    an_image_is_rolled_back(Scheme::Mender, Traits::SICK, "HealthCheckFailed").await;
}

#[tokio::test]
async fn an_image_that_panics_is_rolled_back_under_bootcount() {
    an_image_is_rolled_back(Scheme::Bootcount, Traits::PANICS, "BootFailed").await;
}

#[tokio::test]
async fn an_image_that_panics_is_rolled_back_under_rauc() {
    an_image_is_rolled_back(Scheme::Rauc, Traits::PANICS, "BootFailed").await;
}

#[tokio::test]
async fn an_image_that_panics_is_rolled_back_under_mender() {
    an_image_is_rolled_back(Scheme::Mender, Traits::PANICS, "BootFailed").await;
}

/// Shows F23; zephyrproject-rtos/zephyr#37272, #71691, #71750, #89265.
#[tokio::test]
async fn an_image_without_the_daemon_is_left_to_the_boot_loader() {
    let mut rig = Rig::running(Choice::default()).await;
    rig.install("2.0", Traits::WITHOUT_DAEMON).await;
    for boots in 2..=4 {
        rig.board.wait_boots(boots, LIMIT).await.unwrap();
        assert_eq!(rig.board.booted(), Some(Slot::B));
        rig.board.cut().await;
        rig.board.power_on().await.unwrap();
    }
    let report = rig.outcome().await;
    assert_eq!(report["firmware"]["error"]["code"], "BootFailed", "{report:#}");
    assert_eq!(rig.board.booted(), Some(Slot::A));
}

#[tokio::test]
async fn under_rauc_a_target_is_not_bootable_from_its_first_byte_on() {
    let rig = Rig::running(Choice { scheme: Scheme::Rauc, ..Choice::default() }).await;
    assert_eq!((rig.variable("BOOT_ORDER").as_str(), rig.variable("BOOT_B_LEFT").as_str()), ("A B", "3"));
    let images = ImageServer::start(None).await.unwrap();
    let image = board_image("2.0", Traits::default(), IMAGE_BYTES, 7);
    let digest = sha256(&image);
    images.put(IMAGE, image);
    // Of more than a block there is always one on its way to the slot.
    images.set_faults(IMAGE, Faults { stall_after_bytes: Some(2 << 20), ..Faults::default() });
    let install = ["install", &images.url(IMAGE), "--check-value", &digest, "--version", "2.0", "--no-wait"];
    assert!(rig.twinboot(&install).await.status.success());
    rig.wait(|status| bytes(status) > 0).await;
    assert_eq!((rig.variable("BOOT_ORDER").as_str(), rig.variable("BOOT_B_LEFT").as_str()), ("A", "0"));
    let written = std::fs::read(rig.board.slot_path(Slot::B)).unwrap();
    assert!(written.iter().any(|byte| *byte != 0), "its first bytes are there");
}

/// A device whose boot loader left a slot that was committed must not refuse what would mend it.
#[tokio::test]
async fn a_committed_slot_that_used_up_its_boots_is_given_up_and_updates_go_on() {
    let mut rig = Rig::running(Choice { scheme: Scheme::Rauc, ..Choice::default() }).await;
    rig.install("2.0", Traits::default()).await;
    assert_eq!(rig.outcome().await["firmwareStatus"], "completed");
    rig.board.cut().await;
    rig.board.set_environment(&[("BOOT_B_LEFT", "0")]).unwrap();
    rig.board.power_on().await.unwrap();
    let report = rig.wait(|status| status["reported"]["firmwareStatus"] == "rolledBack").await;
    assert_eq!(report["reported"]["firmware"]["error"]["code"], "BootFailed", "{report:#}");
    rig.wait(|status| status["reported"]["firmware"]["slots"]["a"]["state"] == "committed").await;
    assert_eq!(rig.variable("BOOT_ORDER"), "A");
    rig.install("3.0", Traits::default()).await;
    rig.wait(|status| status["reported"]["firmware"]["currentFwVersion"] == "3.0").await;
}

/// At the daemon's start, network and programs may not be up yet.
#[tokio::test]
async fn a_committed_slot_that_becomes_well_has_its_boots_again() {
    let (clocks, directory) = (Clocks::new(), tempfile::tempdir().unwrap());
    let (checks, well) = (directory.path().join("health.d"), directory.path().join("well"));
    std::fs::create_dir(&checks).unwrap();
    script(&checks.join("10-well"), &format!("[ -e {} ] || {{ echo not yet; exit 1; }}", well.display()));
    let extra_config = &format!("[health]\nscripts = {checks:?}\n");
    let daemon = &clocks.daemon();
    let choice = Choice { scheme: Scheme::Rauc, daemon, extra_config, ..Choice::default() };
    let rig = Rig::running(choice).await;
    rig.wait(|_| rig.board.log().contains("keeps a boot attempt less until it is well")).await;
    assert_eq!(rig.variable("BOOT_A_LEFT"), "2");
    std::fs::write(well, "").unwrap();
    let is_well = || rig.variable("BOOT_A_LEFT") == "3";
    clocks.pass_until(&rig, Duration::from_secs(20), is_well).await;
}

#[tokio::test]
async fn a_trial_that_the_state_knows_nothing_of_is_kept_by_hand() {
    let mut rig = Rig::running(Choice::default()).await;
    rig.board.cut().await;
    rig.board.set_environment(&[("upgrade_available", "1"), ("bootlimit", "3")]).unwrap();
    rig.board.power_on().await.unwrap();
    rig.wait(|status| status["reported"]["firmware"]["slots"]["a"]["state"] == "uncommitted").await;
    let image = rig.image("2.0", Traits::default());
    let refused = rig.twinboot(&["install", image.to_str().unwrap(), "--version", "2.0"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("`twinboot commit`"), "{refused:?}");
    assert!(rig.twinboot(&["commit"]).await.status.success());
    rig.wait(|status| status["reported"]["firmware"]["slots"]["a"]["state"] == "committed").await;
    assert_eq!(rig.variable("upgrade_available"), "0");
    rig.install("2.0", Traits::default()).await;
    assert_eq!(rig.outcome().await["firmwareStatus"], "completed");
}

/// RAUC's variables do not tell a trial from a committed slot; the mark does.
#[tokio::test]
async fn a_trial_whose_state_is_lost_is_not_confirmed_under_rauc() {
    let mut rig = Rig::running(Choice { scheme: Scheme::Rauc, ..Choice::default() }).await;
    rig.install("2.0", Traits::WITHOUT_DAEMON).await;
    rig.board.wait_boots(2, LIMIT).await.unwrap();
    rig.board.cut().await;
    std::fs::remove_file(rig.board.dir().join("state/state")).unwrap();
    rig.board.flash(Slot::B, &mut std::fs::File::open(rig.image("2.0", Traits::default())).unwrap()).unwrap();
    rig.board.power_on().await.unwrap();
    let is_left_alone =
        |status: &serde_json::Value| status["reported"]["firmware"]["slots"]["b"]["state"] == "uncommitted";
    rig.wait(is_left_alone).await;
    assert!(rig.board.dir().join("state/trial/reboot-1").exists(), "systemd ends it, if nobody commits");
    assert_eq!(rig.variable("BOOT_B_LEFT"), "1");
    assert!(rig.twinboot(&["commit"]).await.status.success());
    rig.wait(|status| status["reported"]["firmware"]["slots"]["b"]["state"] == "committed").await;
    assert_eq!(rig.variable("BOOT_B_LEFT"), "3");
}

#[tokio::test]
async fn a_wrong_check_value_leaves_the_environment_alone() {
    let rig = Rig::running(Choice::default()).await;
    let before = rig.board.environment().unwrap();
    let image = rig.image("2.0", Traits::default());
    let wrong = "00".repeat(32);
    let output = rig.twinboot(&["install", image.to_str().unwrap(), "--check-value", &wrong]).await;
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    let report = rig.outcome().await;
    assert_eq!(report["firmware"]["error"]["code"], "DigestMismatch");
    assert_eq!(rig.board.environment().unwrap(), before);
    assert_eq!(rig.board.boots().len(), 1);
}

/// Shows foundriesio/aktualizr-lite#76, #155, #202, #381.
#[tokio::test]
async fn an_operator_at_the_device_can_go_back() {
    let rig = Rig::running(Choice::default()).await;
    rig.install("2.0", Traits::default()).await;
    assert_eq!(rig.outcome().await["firmwareStatus"], "completed");
    assert!(rig.twinboot(&["rollback"]).await.status.success());
    rig.wait(|status| status["reported"]["firmwareStatus"] == "rolledBack").await;
    assert_eq!(rig.board.booted(), Some(Slot::A));
    let again = rig.twinboot(&["rollback"]).await;
    assert_eq!(again.status.code(), Some(1), "there is nothing left to go back to");
}

/// Shows rauc/rauc#1907, dividat/playos#293.
#[tokio::test]
async fn a_damaged_state_file_is_set_aside_and_told() {
    let mut rig = Rig::running(Choice::default()).await;
    rig.board.cut().await;
    let state = rig.board.dir().join("state/state");
    std::fs::write(&state, b"twinboot-state 1 00000000 5\nhello\n").unwrap();
    rig.board.power_on().await.unwrap();
    let status = rig.wait(|status| !status["reported"]["firmware"]["error"].is_null()).await;
    assert_eq!(status["reported"]["firmware"]["error"]["code"], "StateDamaged");
    assert!(state.with_extension("damaged").exists());
    // The hub may have been away until now.
    rig.board.cut().await;
    rig.board.power_on().await.unwrap();
    let again = rig.wait(|status| !status["reported"]["firmware"]["error"].is_null()).await;
    assert_eq!(again["reported"]["firmware"]["error"], status["reported"]["firmware"]["error"]);
    // The device is none the worse for it.
    rig.install("2.0", Traits::default()).await;
    assert_eq!(rig.outcome().await["firmwareStatus"], "completed");
}

/// Shows F8.
#[tokio::test]
async fn an_environment_without_a_good_copy_is_not_written() {
    let mut rig = Rig::running(Choice::default()).await;
    rig.board.cut().await;
    for name in ["uboot.env", "uboot-redund.env"] {
        let path = rig.board.dir().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[100] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let damaged = std::fs::read(rig.board.dir().join("uboot.env")).unwrap();
    rig.board.power_on().await.unwrap();
    rig.wait(|status| status["reported"]["firmware"]["fwUpdateStatus"] == "error").await;
    let image = rig.image("2.0", Traits::default());
    let refused = rig.twinboot(&["install", image.to_str().unwrap()]).await;
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(std::fs::read(rig.board.dir().join("uboot.env")).unwrap(), damaged);
    assert_eq!(rig.board.booted(), Some(Slot::A));
}
