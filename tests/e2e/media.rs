//! Media that fail, lie, fill up or never answer, below the built daemon.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hub_emulator::board::{Slot, Traits};
use serde_json::{Value, json};

use crate::clocks::Clocks;
use crate::cloud::{DEVICE, World};
use crate::rig::{Choice, DAEMON, Rig, SLOT_BYTES, is_root, script};
use crate::weather::PATIENT;

/// Whether it went well.
fn command(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).status().unwrap().success()
}

/// A file system of its own; gone when dropped, frozen or not.
struct Mount(PathBuf);

impl Mount {
    /// `None` where this user may not.
    fn new(arguments: &[&str], at: &Path) -> Option<Self> {
        if !is_root() {
            eprintln!("not run: a mount needs root");
            return None;
        }
        assert!(command("mount", &[arguments, &[at.to_str().unwrap()]].concat()));
        Some(Self(at.to_owned()))
    }

    fn remount(&self, option: &str) {
        assert!(command("mount", &["-o", &format!("remount,{option}"), self.0.to_str().unwrap()]));
    }

    /// Writes to it do not return any more; and then they do.
    fn freeze(&self, frozen: bool) {
        let flag = if frozen { "-f" } else { "-u" };
        assert!(command("fsfreeze", &[flag, self.0.to_str().unwrap()]));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let quiet = |program: &str, flag| Command::new(program).arg(flag).arg(&self.0).output();
        let _ = quiet("fsfreeze", "-u");
        let _ = quiet("umount", "-l");
    }
}

/// A file system for the state that is soon full.
fn small_state(rig: &Rig) -> Option<Mount> {
    let options = ["-t", "tmpfs", "-o", "size=128k,mode=700", "tmpfs"];
    Mount::new(&options, &rig.board.dir().join("state"))
}

fn fill(filler: &Path) {
    let _ = fs::File::create(filler).unwrap().write_all(&vec![1; 256 << 10]);
}

/// What cannot be saved is not begun, and nothing loops.
/// Shows coreos/zincati#1314.
#[tokio::test]
async fn a_state_directory_that_is_full_or_read_only_takes_no_update() {
    let mut rig = Rig::new(Choice::default());
    let Some(mount) = small_state(&rig) else { return };
    let state = rig.board.dir().join("state");
    rig.board.power_on().await.unwrap();
    let is_ready = |status: &Value| status["reported"]["firmwareStatus"] == "standBy";
    rig.wait(is_ready).await;
    let (filler, before) = (state.join("filler"), rig.board.environment().unwrap());
    let slot = fs::read(rig.board.slot_path(Slot::B)).unwrap();
    let image = rig.image("2.0", Traits::default());
    let install = ["install", image.to_str().unwrap(), "--version", "2.0", "--no-wait"];
    let failures = |rig: &Rig| rig.board.log().matches("cannot save the state").count();
    for (round, read_only) in [(1, false), (2, true)] {
        if read_only {
            mount.remount("ro");
        } else {
            fill(&filler);
        }
        let refused = rig.twinboot(&install).await;
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && told.contains("make room there"),
            "read-only: {read_only}: {told}"
        );
        assert!(failures(&rig) == round && is_ready(&rig.peek().await.unwrap()));
        assert_eq!(rig.board.environment().unwrap(), before);
        assert!(fs::read(rig.board.slot_path(Slot::B)).unwrap() == slot, "nothing was written");
        if read_only {
            // Started again, it says so before an update needs it.
            rig.board.kill_daemon().await.unwrap();
            rig.wait(|_| rig.board.log().contains("check-config --unit")).await;
            mount.remount("rw");
        } else {
            fs::remove_file(&filler).unwrap();
        }
    }
    rig.install("2.0", Traits::default()).await;
    assert_eq!(rig.outcome().await["firmwareStatus"], "completed");
    // One start of the factory's system, one after it was killed, and one of the new system.
    let starts = rig.board.log().matches(" starts with ").count();
    assert_eq!((failures(&rig), starts, rig.board.boots().len()), (2, 3, 2), "{}", rig.board.log());
    // Before its file system is.
    rig.board.cut().await;
}

/// A stick with partitions of the same names takes the slots' links over.
#[tokio::test]
async fn slots_that_lead_elsewhere_than_at_the_start_are_not_written() {
    let rig = Rig::running(Choice::default()).await;
    let (command_line, slot) = (rig.board.dir().join("proc/cmdline"), rig.board.slot_path(Slot::B));
    let (before, environment) = (fs::read(&slot).unwrap(), rig.board.environment().unwrap());
    // What the running system knows its slot by is not what it was.
    let text = fs::read_to_string(&command_line).unwrap();
    fs::write(&command_line, text.replace("twinboot.slot=", "rauc.slot=")).unwrap();
    rig.install("2.0", Traits::default()).await;
    let reported = rig.outcome().await;
    assert_eq!(reported["firmware"]["error"]["code"], "SlotUnusable", "{reported:#}");
    assert!(fs::read(&slot).unwrap() == before && rig.board.environment().unwrap() == environment);
}

/// Its directory cannot even be synced any more.
#[tokio::test]
async fn a_state_directory_that_an_error_has_made_read_only_keeps_no_daemon_from_starting() {
    let mut rig = Rig::new(Choice::default());
    let medium = rig.board.dir().join("state.ext4");
    fs::File::create(&medium).unwrap().set_len(16 << 20).unwrap();
    let medium = medium.to_str().unwrap();
    assert!(command("mkfs.ext4", &["-q", medium]));
    let options = ["-o", "loop,errors=remount-ro", medium];
    let Some(mount) = Mount::new(&options, &rig.board.dir().join("state")) else { return };
    rig.board.power_on().await.unwrap();
    let is_ready = |status: &Value| status["reported"]["firmwareStatus"] == "standBy";
    rig.wait(is_ready).await;
    mount.remount("abort");
    rig.board.kill_daemon().await.unwrap();
    rig.wait(|status| is_ready(status) && rig.board.log().matches(" starts with ").count() == 2).await;
    let image = rig.image("2.0", Traits::default());
    let refused = rig.twinboot(&["install", image.to_str().unwrap(), "--no-wait"]).await;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("let it be written"), "{refused:?}");
    rig.board.cut().await;
}

/// Whoever desires it reads why in the twin, and the device stays there.
#[tokio::test]
async fn what_is_desired_and_cannot_be_saved_is_told_and_taken_up_once_it_can_be() {
    let clocks = Clocks::new();
    let mut world = World::switched_off(Traits::default(), "", &clocks.daemon()).await;
    let Some(_mount) = small_state(&world.rig) else { return };
    world.power_on().await;
    let filler = world.rig.board.dir().join("state/filler");
    fill(&filler);
    let firmware = world.payload();
    world.hub.patch_desired(DEVICE, json!({ "firmware": firmware })).unwrap();
    let reported = world.wait(|reported| reported["firmware"]["error"]["code"] == "StateUnsaved").await;
    assert_eq!(reported["firmware"]["fwUpdateStatus"], "error");
    fs::remove_file(&filler).unwrap();
    let taken_up = || world.hub.reported(DEVICE)["firmwareStatus"] != "standBy";
    clocks.pass_until(&world.rig, Duration::from_secs(60), taken_up).await;
    world.wait_status("completed").await;
    assert_eq!(world.hub.connects(DEVICE), 2, "one for each boot");
    world.rig.board.cut().await;
}

/// What was under way does not go on, is not lost, and the device can be asked all the same.
#[tokio::test]
async fn an_update_that_cannot_be_saved_waits_for_room_in_the_sight_of_the_hub() {
    let clocks = Clocks::new();
    let mut world = World::switched_off(Traits::default(), PATIENT, &clocks.daemon()).await;
    let Some(_mount) = small_state(&world.rig) else { return };
    world.power_on().await;
    world.half_way().await;
    let filler = world.rig.board.dir().join("state/filler");
    fill(&filler);
    world.rig.board.kill_daemon().await.unwrap();
    let reported = world.wait(|reported| reported["firmware"]["error"]["code"] == "StateUnsaved").await;
    assert_eq!(
        (&reported["firmwareStatus"], &reported["firmware"]["fwUpdateStatus"]),
        (&json!("downloading"), &json!("error"))
    );
    let (status, _) = world.call_when_connected("firmwareUpdateStatus", json!(null)).await;
    assert_eq!(status, 200);
    let (status, refusal) = world.call_when_connected("cancelFirmwareUpdate", json!(null)).await;
    assert!(status >= 400 && refusal.to_string().contains("StateUnsaved"), "{status} {refusal}");
    let starts = || world.rig.board.log().matches(" starts with ").count();
    assert_eq!(starts(), 2, "{}", world.rig.board.log());
    fs::remove_file(&filler).unwrap();
    let goes_on = || world.hub.reported(DEVICE)["firmware"]["error"].is_null();
    clocks.pass_until(&world.rig, Duration::from_secs(60), goes_on).await;
    world.completes().await;
    assert_eq!(starts(), 3, "the last one in the new system: {}", world.rig.board.log());
    world.rig.board.cut().await;
}

/// The daemon, with this done to its system calls on these files.
fn break_calls(daemon: &Path, inject: &str, files: &[PathBuf]) {
    let paths: String = files.iter().map(|file| format!(" -P {}", file.display())).collect();
    script(daemon, &format!("exec strace -f -qq -o /dev/null{paths} -e inject={inject} {DAEMON} \"$@\""));
}

/// Media that have seen better days.
/// Shows F10; rauc/rauc#459, #639, #833.
#[tokio::test]
async fn a_slot_that_fails_or_lies_ends_the_update_and_is_not_booted() {
    for (inject, code) in [
        ("pwrite64:error=EIO:when=2", "SlotFailed"),
        ("pwrite64:error=ENOSPC:when=2", "SlotFailed"),
        ("fsync:error=EIO", "SlotFailed"),
        ("pread64:error=EIO", "SlotFailed"),
        // It says that all is there; that a part is, which is taken for a short write.
        ("pwrite64:retval=1048576:when=2", "ReadBackMismatch"),
        ("pwrite64:retval=4096:when=1", "ReadBackMismatch"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let daemon = directory.path().join("daemon");
        let mut rig = Rig::new(Choice { daemon: &daemon, ..Choice::default() });
        break_calls(&daemon, inject, &[rig.board.slot_path(Slot::B)]);
        rig.board.power_on().await.unwrap();
        rig.wait(|status| status["reported"]["firmwareStatus"] == "standBy").await;
        let before = rig.board.environment().unwrap();
        rig.install("2.0", Traits::default()).await;
        let report = rig.outcome().await;
        assert_eq!(report["firmwareStatus"], "failed", "{inject}: {report:#}");
        assert_eq!(report["firmware"]["error"]["code"], code, "{inject}: {report:#}");
        assert_eq!(rig.board.environment().unwrap(), before, "{inject}");
        assert_eq!((rig.board.boots().len(), rig.board.booted()), (1, Some(Slot::A)), "{inject}");
    }
}

/// As U-Boot's and libubootenv's tools do not: a sync that fails is an environment that nobody can rely on.
/// Shows F10.
#[tokio::test]
async fn an_environment_that_cannot_be_synced_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = directory.path().join("daemon");
    let mut rig = Rig::new(Choice { daemon: &daemon, ..Choice::default() });
    let copies = ["uboot.env", "uboot-redund.env"].map(|name| rig.board.dir().join(name));
    break_calls(&daemon, "fsync,fdatasync:error=EIO", &copies);
    rig.board.power_on().await.unwrap();
    rig.wait(|status| status["reported"]["firmwareStatus"] == "standBy").await;
    let before = rig.board.environment().unwrap();
    rig.install("2.0", Traits::default()).await;
    let error = rig.outcome().await["firmware"]["error"].clone();
    assert_eq!(error["code"], "EnvironmentUnusable");
    assert!(error["message"].as_str().unwrap().contains("cannot sync"), "{error}");
    assert_eq!(rig.board.environment().unwrap(), before);
    assert_eq!((rig.board.boots().len(), rig.board.booted()), (1, Some(Slot::A)));
}

/// Shows F10.
#[tokio::test]
async fn a_state_that_cannot_be_synced_is_not_saved() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = directory.path().join("daemon");
    let mut rig = Rig::new(Choice { daemon: &daemon, ..Choice::default() });
    break_calls(&daemon, "fsync:error=EIO", &[rig.board.dir().join("state/state.new")]);
    rig.board.power_on().await.unwrap();
    rig.wait(|status| status["reported"]["firmwareStatus"] == "standBy").await;
    let image = rig.image("2.0", Traits::default());
    let install = ["install", image.to_str().unwrap(), "--version", "2.0", "--no-wait"];
    assert!(!rig.twinboot(&install).await.status.success());
    rig.wait(|_| rig.board.log().contains("cannot save")).await;
    assert!(fs::read(rig.board.slot_path(Slot::B)).unwrap().iter().all(|byte| *byte == 0));
}

/// The stick is pulled out, and the update ends with a word.
/// Shows rauc/rauc#1452.
#[tokio::test]
async fn an_image_file_that_goes_away_fails_the_update() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = directory.path().join("daemon");
    let mut rig = Rig::new(Choice { daemon: &daemon, ..Choice::default() });
    break_calls(&daemon, "read:error=EIO:when=2+", &[rig.image("2.0", Traits::default())]);
    rig.board.power_on().await.unwrap();
    rig.wait(|status| status["reported"]["firmwareStatus"] == "standBy").await;
    rig.install("2.0", Traits::default()).await;
    let error = rig.outcome().await["firmware"]["error"].clone();
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("2.0.img") && message.contains("Input/output error"), "{error}");
    assert_eq!((rig.board.boots().len(), rig.board.booted()), (1, Some(Slot::A)));
}

/// A write that never returns holds neither the hub nor the people up, and the update ends.
/// Shows F18; F26.
#[tokio::test]
async fn a_slot_that_never_answers_ends_the_update_and_nothing_else() {
    let (clocks, directory) = (Clocks::new(), tempfile::tempdir().unwrap());
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    fs::File::create(path("disk")).unwrap().set_len(16 << 20).unwrap();
    assert!(command("mkfs.ext4", &["-q", &path("disk")]));
    fs::create_dir(path("mount")).unwrap();
    let Some(mount) = Mount::new(&["-o", "loop", &path("disk")], Path::new(&path("mount"))) else { return };
    let mut world = World::switched_off(Traits::default(), PATIENT, &clocks.daemon()).await;
    let slot = world.rig.board.slot_path(Slot::B);
    fs::remove_file(&slot).unwrap();
    fs::File::create(path("mount/slot")).unwrap().set_len(SLOT_BYTES).unwrap();
    std::os::unix::fs::symlink(path("mount/slot"), &slot).unwrap();
    world.power_on().await;

    mount.freeze(true);
    world.start().await;
    world.wait_status("downloading").await;
    assert_eq!(world.call("firmwareUpdateStatus", Value::Null).await.0, 200);
    let failed = || world.hub.reported(crate::cloud::DEVICE)["firmwareStatus"] == "failed";
    clocks.pass_until(&world.rig, Duration::from_secs(1800), failed).await;
    let error = world.wait_status("failed").await["firmware"]["error"].clone();
    assert_eq!(error["code"], "SlotFailed");
    assert!(error["message"].as_str().unwrap().contains("does not answer"), "{error}");
    // The session that slept for hours may just end.
    let (status, answer) = world.call_when_connected("cancelFirmwareUpdate", json!({})).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("NothingToCancel")));

    mount.freeze(false);
    world.start().await;
    world.wait_status("completed").await;
    assert_eq!(world.rig.board.booted(), Some(Slot::B));
    world.rig.board.cut().await;
}
