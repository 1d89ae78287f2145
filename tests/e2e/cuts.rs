//! Killed, or without power, at each durable write of one update.
//!
//! `strace` ends the daemon at the n-th sync, rename or slot write of any of its threads: cuts at known
//! points, without a hook in the daemon.

use std::path::PathBuf;

use hub_emulator::board::{Slot, Traits};
use serde_json::Value;

use crate::rig::{self, Choice, DAEMON, LIMIT, Rig};

/// What makes bytes durable, or takes their place.
const CALLS: [&str; 5] = ["fsync", "fdatasync", "rename", "pwrite64", "unlink"];

/// A point in the life of a daemon.
#[derive(Clone, Copy, Debug)]
struct Cut {
    /// In this process of the board's life: 0 installs, 1 runs the trial.
    process: usize,
    /// At this system call,
    call: &'static str,
    /// when a thread makes it for the n-th time.
    n: usize,
}

/// A daemon that dies at `cut`, once. `then` is what the script does after that.
fn mortal_daemon(rig_dir: &std::path::Path, cut: Cut, then: &str) -> (PathBuf, PathBuf) {
    let Cut { process, call, n } = cut;
    let (script, died) = (rig_dir.join("daemon"), rig_dir.join("died"));
    let text = format!(
        "echo >>{starts}\n\
         if [ $(wc -l <{starts}) -ne {number} ]; then exec {DAEMON} \"$@\"; fi\n\
         strace -f -qq -o /dev/null -e trace={call} \
         -e inject={call}:signal=SIGKILL:when={n} {DAEMON} \"$@\"\n\
         if [ $? -eq 137 ]; then touch {died}; {then}; fi\n",
        starts = rig_dir.join("starts").display(),
        number = process + 1,
        died = died.display(),
    );
    rig::script(&script, &text);
    (script, died)
}

/// One update with a cut. Whether its moment came.
async fn update_with_cut(cut: Cut, power: bool, traits: Traits) -> bool {
    let scripts = tempfile::tempdir().unwrap();
    let (daemon, died) = mortal_daemon(scripts.path(), cut, if power { "exec sleep 1000" } else { "true" });
    let mut rig = Rig::new(Choice { daemon: &daemon, ..Choice::default() });
    rig.board.power_on().await.unwrap();
    let image = rig.image("2.0", traits);
    let start = ["install", image.to_str().unwrap(), "--version", "2.0", "--no-wait"];
    let is_ready = |status: &Value| status["reported"]["firmwareStatus"] == "standBy";
    within_limit(async || died.exists() || rig.peek().await.is_some_and(|status| is_ready(&status))).await;
    if !died.exists() {
        rig.twinboot(&start).await;
    }
    if power {
        // The last durable write notes that the hooks were told of the end.
        let state = rig.board.dir().join("state/state");
        let told = || !std::fs::read_to_string(&state).is_ok_and(|state| state.contains("afterword"));
        let is_over = async || rig.peek().await.is_some_and(|status| is_over(&status)) && told();
        within_limit(async || died.exists() || is_over().await).await;
        if died.exists() {
            rig.board.cut().await;
            rig.board.power_on().await.unwrap();
        }
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
    died.exists()
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
    for process in [0, 1] {
        let mut cuts = 0;
        for call in CALLS {
            let mut n = 1;
            while update_with_cut(Cut { process, call, n }, power, traits).await {
                n += 1;
            }
            cuts += n - 1;
        }
        eprintln!("{cuts} cuts in process {process}");
        // State, slot and environment, each at least once: with fewer, the cuts did not happen.
        assert!(cuts >= 4, "only {cuts} cuts in process {process}");
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
