//! Killed, or without power, at each durable write of one update.
//!
//! `strace` ends the daemon at its n-th sync: a cut at a known point, without a hook in the daemon.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use hub_emulator::board::{Slot, Traits};

use crate::rig::{Choice, DAEMON, LIMIT, Rig};

/// More than one update has; the test notices when the last is passed.
const SYNCS_MAX: usize = 60;

/// A daemon that dies at its sync number `n`, once. `then` is what the script does after that.
fn mortal_daemon(rig_dir: &std::path::Path, n: usize, then: &str) -> (PathBuf, PathBuf) {
    let (script, died) = (rig_dir.join("daemon"), rig_dir.join("died"));
    let text = format!(
        "#!/bin/sh\n\
         if [ -e {armed} ]; then rm {armed}; else exec {DAEMON} \"$@\"; fi\n\
         strace -f -qq -o /dev/null -e trace=fsync,fdatasync \
         -e inject=fsync,fdatasync:signal=SIGKILL:when={n} {DAEMON} \"$@\"\n\
         if [ $? -eq 137 ]; then touch {died}; {then}; fi\n",
        armed = rig_dir.join("armed").display(),
        died = died.display(),
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    (script, died)
}

/// One update with a cut at sync number `n`. Whether there was such a sync.
async fn update_with_cut(n: usize, power: bool, traits: Traits) -> bool {
    let scripts = tempfile::tempdir().unwrap();
    let (daemon, died) = mortal_daemon(scripts.path(), n, if power { "exec sleep 1000" } else { "true" });
    std::fs::write(scripts.path().join("armed"), b"").unwrap();
    let mut rig = Rig::running(Choice { daemon: &daemon, ..Choice::default() }).await;
    let image = rig.image("2.0", traits);
    let start = ["install", image.to_str().unwrap(), "--version", "2.0", "--no-wait"];
    rig.twinboot(&start).await;
    if power {
        // The cut, or the end of an update that was over before.
        let end = async {
            loop {
                if died.exists() || rig.board.booted() == Some(Slot::B) {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, end).await.unwrap();
        if died.exists() {
            rig.board.cut().await;
            rig.board.power_on().await.unwrap();
        }
    }
    rig.wait(|status| status["reported"]["firmware"].is_object()).await;
    let status = rig.wait(|status| {
        let word = &status["reported"]["firmwareStatus"];
        word == "standBy" || word == "completed" || word == "rolledBack" || word == "failed"
    });
    if status.await["reported"]["firmwareStatus"] == "standBy" {
        // Cut before the request was durable: nobody was told that it began, and the caller asks again.
        assert!(rig.twinboot(&start).await.status.success());
    }
    let report = rig.outcome().await;
    let (word, slot) = if traits == Traits::SICK { ("rolledBack", Slot::A) } else { ("completed", Slot::B) };
    assert_eq!(report["firmwareStatus"], word, "cut at sync {n}: {report:#}\n{}", rig.board.log());
    assert_eq!(rig.board.booted(), Some(slot), "cut at sync {n}");
    assert_eq!(report["firmware"]["slots"]["booted"], slot.letter());
    assert_eq!(rig.variable("upgrade_available"), "0", "cut at sync {n}");
    assert_eq!(rig.variable("boot_slot"), slot.letter(), "cut at sync {n}");
    died.exists()
}

async fn cut_at_every_sync(power: bool, traits: Traits) {
    let mut passed = 0;
    for n in 1..SYNCS_MAX {
        if !update_with_cut(n, power, traits).await {
            break;
        }
        passed = n;
    }
    // State and slot and environment are synced several times before the reboot: fewer would mean that the
    // cuts did not happen.
    assert!(passed >= 5, "only {passed} syncs were cut");
    eprintln!("{passed} cuts");
}

#[tokio::test]
async fn a_daemon_killed_at_any_sync_finishes_the_update() {
    cut_at_every_sync(false, Traits::default()).await;
}

#[tokio::test]
async fn a_power_cut_at_any_sync_ends_on_a_good_slot() {
    cut_at_every_sync(true, Traits::default()).await;
}

#[tokio::test]
async fn a_power_cut_at_any_sync_does_not_save_a_sick_image() {
    cut_at_every_sync(true, Traits::SICK).await;
}
