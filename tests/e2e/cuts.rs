//! Killed, or without power, at each durable write of one update.
//!
//! A library that the daemon is started with ends it at the n-th sync, rename, removal or write in place, of whatever
//! thread: each is cut once, without a hook in the daemon.

use std::path::{Path, PathBuf};

use hub_emulator::board::{Slot, Traits};
use serde_json::Value;

use crate::rig::{Choice, DAEMON, LIMIT, Rig, interposer, script};

/// A point in the life of a daemon.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// In this process of the board's life: 0 installs, 1 runs the trial.
    process: usize,
    /// At its n-th durable write.
    n: usize,
    /// Of these alone; of all, if it is empty.
    call: &'static str,
}

/// What must be cut in each process, or the cuts did not happen: the call, and the board's file.
const INSTALL: [&str; 12] = [
    "sync state",
    "sync state/state.new",
    "rename state/state.new",
    "write slot_b.img",
    "sync slot_b.img",
    "unlink state/checkpoint",
    "sync state/trial/armed-by.new",
    "rename state/trial/armed-by.new",
    "sync state/trial",
    "sync uboot.env",
    "write uboot-redund.env",
    "sync uboot-redund.env",
];
const TRIAL: [&str; 9] = [
    "sync state",
    "sync state/state.new",
    "rename state/state.new",
    "unlink state/trial/reboot-1",
    "unlink state/trial/reboot-2",
    "unlink state/trial/reboot-3",
    "sync state/trial",
    "write uboot-redund.env",
    "sync uboot-redund.env",
];

/// A daemon that dies at `cut`, once. `then` is what the script does after that.
fn mortal_daemon(library: &Path, rig_dir: &Path, cut: Cut, then: &str) -> (PathBuf, PathBuf) {
    let (daemon, died) = (rig_dir.join("daemon"), rig_dir.join("died"));
    let text = format!(
        "echo >>{starts}\n\
         if [ $(wc -l <{starts}) -ne {number} ]; then exec {DAEMON} \"$@\"; fi\n\
         LD_PRELOAD={library}/cuts.so CUT={died} CUT_AT={n} CUT_CALL='{call}' {DAEMON} \"$@\"\n\
         if [ -e {died} ]; then {then}; fi\n",
        starts = rig_dir.join("starts").display(),
        number = cut.process + 1,
        library = library.display(),
        died = died.display(),
        n = cut.n,
        call = cut.call,
    );
    script(&daemon, &text);
    (daemon, died)
}

/// One update with a cut: what was cut, if its moment came.
async fn update_with_cut(library: &Path, cut: Cut, power: bool, traits: Traits) -> Option<String> {
    let scripts = tempfile::tempdir().unwrap();
    let then = if power { "exec sleep 1000" } else { "true" };
    let (daemon, died) = mortal_daemon(library, scripts.path(), cut, then);
    let mut rig = Rig::new(Choice { daemon: &daemon, ..Choice::default() });
    rig.board.power_on().await.unwrap();
    let image = rig.image("2.0", traits);
    let start = ["install", image.to_str().unwrap(), "--version", "2.0", "--no-wait"];
    let is_ready = |status: &Value| status["reported"]["firmwareStatus"] == "standBy";
    let is_dead = || std::fs::metadata(&died).is_ok_and(|died| died.len() > 0);
    within_limit(async || is_dead() || rig.peek().await.is_some_and(|status| is_ready(&status))).await;
    if !is_dead() {
        rig.twinboot(&start).await;
    }
    // The last durable write notes that the hooks were told of the end.
    let state = rig.board.dir().join("state/state");
    let told = || !std::fs::read_to_string(&state).is_ok_and(|state| state.contains("afterword"));
    let all_is_over = async || rig.peek().await.is_some_and(|status| is_over(&status)) && told();
    within_limit(async || is_dead() || all_is_over().await).await;
    if power && is_dead() {
        rig.board.cut().await;
        rig.board.power_on().await.unwrap();
    }
    let at_rest = |status: &Value| is_over(status) || is_ready(status);
    if rig.wait(at_rest).await["reported"]["firmwareStatus"] == "standBy" {
        // Cut before the request was durable: nobody was told that it began, and the caller asks again.
        assert!(rig.twinboot(&start).await.status.success());
    }
    let report = rig.outcome().await;
    let (word, slot) = if traits == Traits::SICK { ("rolledBack", Slot::A) } else { ("completed", Slot::B) };
    assert_eq!(report["firmwareStatus"], word, "{cut:?}: {report:#}\n{}", rig.board.log());
    assert_eq!(rig.board.booted(), Some(slot), "{cut:?}");
    assert_eq!(report["firmware"]["slots"]["booted"], slot.letter());
    assert_eq!(rig.variable("upgrade_available"), "0", "{cut:?}");
    assert_eq!(rig.variable("boot_slot"), slot.letter(), "{cut:?}");
    let mark = std::fs::read_dir(rig.board.dir().join("state/trial")).unwrap();
    let names: Vec<_> = mark.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["armed-by"], "{cut:?}: the mark of the trial was left over");
    let cut = std::fs::read_to_string(died).ok()?;
    Some(cut.replace(&format!("{}/", rig.board.dir().display()), ""))
}

/// Until it is so.
async fn within_limit(is_so: impl AsyncFn() -> bool) {
    let wait = async {
        while !is_so().await {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait).await.unwrap();
}

fn is_over(status: &Value) -> bool {
    let word = &status["reported"]["firmwareStatus"];
    word == "completed" || word == "rolledBack" || word == "failed"
}

async fn cut_everywhere(power: bool, traits: Traits) {
    let library = tempfile::tempdir().unwrap();
    interposer("cuts", library.path());
    for (process, must) in [INSTALL.as_slice(), &TRIAL].into_iter().enumerate() {
        let mut cuts = Vec::new();
        let cut_at =
            async |n, call| update_with_cut(library.path(), Cut { process, n, call }, power, traits).await;
        while let Some(cut) = cut_at(cuts.len() + 1, "").await {
            cuts.push(cut);
        }
        eprintln!("{} cuts in process {process}: {cuts:?}", cuts.len());
        // Threads do not take turns in the same order each time: what slipped through is cut by its name.
        for call in must.iter().filter(|must| !cuts.iter().any(|cut| cut == *must)) {
            assert_eq!(cut_at(1, call).await.as_deref(), Some(*call), "never cut in process {process}");
        }
    }
}

/// Shows UpdateHub/updatehub#197, #353; advancedtelematic/meta-updater#486.
#[tokio::test]
async fn a_daemon_killed_at_any_durable_write_finishes_the_update() {
    cut_everywhere(false, Traits::default()).await;
}

/// Shows F13; rauc/rauc#1114, #1158; systemd/systemd#34584, #37609, #41288, #41502, #41880, #42186, #42187;
/// balena-os/balena-raspberrypi#254, meta-balena#1346, #1349, #2301, #3299.
#[tokio::test]
async fn a_power_cut_at_any_durable_write_ends_on_a_good_slot() {
    cut_everywhere(true, Traits::default()).await;
}

/// Shows mendersoftware/meta-mender-community#454, OE4T/tegra-demo-distro#368; mendersoftware/mender-mcu#91,
/// #115, #175.
#[tokio::test]
async fn a_power_cut_at_any_durable_write_does_not_save_a_sick_image() {
    cut_everywhere(true, Traits::SICK).await;
}
