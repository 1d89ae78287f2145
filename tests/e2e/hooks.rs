//! Programs of a device's people, before and after the steps of an update.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use hub_emulator::board::{Slot, Traits};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cloud::World;
use crate::rig::{LIMIT, script};

/// `hooks.d`, and what hooks write.
struct Hooks(TempDir);

impl Hooks {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// `$D` in `body` is this directory.
    fn add(&self, hook: &str, name: &str, body: &str) {
        let directory = self.0.path().join("hooks.d").join(hook);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
        script(&directory.join(name), &format!("D={}\n{body}", self.0.path().display()));
    }

    fn config(&self) -> String {
        self.config_with_limit("60s")
    }

    fn config_with_limit(&self, limit: &str) -> String {
        let directory = self.0.path().join("hooks.d");
        format!("[hooks]\ndirectory = {directory:?}\nlimit = {limit:?}\ndefer_interval = \"1s\"\n")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        read(&self.path(name))
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn sentence(reported: &Value) -> &str {
    reported["firmware"]["fwUpdateSubstatus"].as_str().unwrap_or_default()
}

const WAITING: &str = "Waiting: before-reboot hook 10-line: the line runs";

/// Shows Azure/iot-hub-device-update#435, #460, #629, #646; rauc/rauc#808, #1672, rauc-hawkbit-updater#73,
/// #155; advancedtelematic/meta-updater#486.
#[tokio::test]
async fn a_reboot_waits_for_the_hook_that_puts_it_off_and_survives_a_power_cut_meanwhile() {
    let hooks = Hooks::new();
    let body = "echo >>$D/asked\n[ -e $D/idle ] || { echo 'the line runs'; exit 75; }";
    hooks.add("before-reboot", "10-line", body);
    let mut world = World::new(Traits::default(), &hooks.config()).await;
    world.start().await;
    let reported = world.wait(|reported| sentence(reported) == WAITING).await;
    assert_eq!(reported["firmwareStatus"], "applying");
    assert_eq!(reported["firmware"]["slots"]["b"]["state"], "installed");
    world.rig.wait(|_| hooks.read("asked").lines().count() >= 2).await;
    assert_eq!(world.rig.variable("upgrade_available"), "0", "the boot loader knows of nothing yet");

    world.rig.board.cut().await;
    let asked = hooks.read("asked").lines().count();
    world.rig.board.power_on().await.unwrap();
    assert_eq!(world.rig.board.booted(), Some(Slot::A));
    world.rig.wait(|_| hooks.read("asked").lines().count() > asked).await;
    world.wait(|reported| sentence(reported) == WAITING).await;
    std::fs::write(hooks.path("idle"), "").unwrap();
    let reported = world.wait_status("completed").await;
    assert_eq!(reported["firmware"]["slots"]["booted"], "b");
    assert_eq!(world.images.requests("2.0.img"), 1, "nothing is fetched again");
}

#[tokio::test]
async fn an_update_that_is_put_off_can_be_cancelled_and_asked_for_again() {
    let hooks = Hooks::new();
    let body = "echo >>$D/asked\n[ -e $D/idle ] || { echo 'the line runs'; exit 75; }";
    hooks.add("before-reboot", "10-line", body);
    let world = World::new(Traits::default(), &hooks.config()).await;
    world.start().await;
    world.wait(|reported| sentence(reported) == WAITING).await;
    let (status, answer) = world.call("cancelFirmwareUpdate", json!({})).await;
    assert_eq!((status, &answer["Response"]), (200, &json!("Firmware update cancelled")));
    let reported = world.wait_status("failed").await;
    assert_eq!(reported["firmware"]["error"]["code"], "Cancelled");
    assert_eq!(reported["firmware"]["slots"]["b"]["state"], "unknown");
    assert_eq!(world.rig.board.boots().len(), 1);
    std::fs::write(hooks.path("idle"), "").unwrap();
    world.start().await;
    world.wait_status("completed").await;
}

#[tokio::test]
async fn a_hook_that_puts_off_for_ever_refuses_in_the_end() {
    let hooks = Hooks::new();
    hooks.add("after-install", "10-line", "echo 'never now'; exit 75");
    let world = World::new(Traits::default(), &(hooks.config() + "defer_limit = \"2s\"\n")).await;
    world.start().await;
    let reported = world.wait_status("failed").await;
    assert_eq!(reported["firmware"]["error"]["code"], "HookRefused");
    let message = reported["firmware"]["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("after-install hook 10-line: never now; deferred for "), "{message}");
}

#[tokio::test]
async fn a_hook_that_refuses_leaves_everything_as_it_was_and_says_why_in_the_twin() {
    let hooks = Hooks::new();
    hooks.add("before-install", "10-agrees", "true");
    hooks.add("before-install", "20-battery", "[ -e $D/full ] || { echo 'battery at 12 %' >&2; exit 1; }");
    hooks.add("before-install", "30-later", "echo >$D/later");
    let world = World::new(Traits::default(), &hooks.config()).await;
    let slot = std::fs::read(world.rig.board.slot_path(Slot::B)).unwrap();
    world.start().await;
    let reported = world.wait_status("failed").await;
    assert_eq!(
        reported["firmware"]["error"],
        json!({
            "code": "HookRefused",
            "message": "before-install hook 20-battery ended with exit status: 1: battery at 12 %",
        })
    );
    assert_eq!(world.images.requests("2.0.img"), 0);
    assert_eq!(std::fs::read(world.rig.board.slot_path(Slot::B)).unwrap(), slot);
    assert!(!hooks.path("later").exists(), "the first that refuses decides");

    // A program that others may change is not run, whatever it would say.
    std::fs::write(hooks.path("full"), "").unwrap();
    let open = hooks.path("hooks.d/before-install/30-later");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    world.start().await;
    let told = |reported: &Value| {
        let message = reported["firmware"]["error"]["message"].as_str();
        message
            .is_some_and(|message| message.contains("30-later has mode 777, so that others could change it"))
    };
    world.wait(told).await;
    assert!(!hooks.path("later").exists());
}

#[tokio::test]
async fn a_hook_that_hangs_is_killed_with_its_children_and_refuses() {
    let hooks = Hooks::new();
    hooks.add("before-install", "10-hangs", "sleep 1000 & echo $! >$D/pid; wait");
    let world = World::new(Traits::default(), &hooks.config_with_limit("2s")).await;
    world.start().await;
    let reported = world.wait_status("failed").await;
    let message = "before-install hook: 10-hangs did not end within 2 s";
    assert_eq!(reported["firmware"]["error"], json!({"code": "HookRefused", "message": message}));
    let stat = PathBuf::from(format!("/proc/{}/stat", hooks.read("pid").trim()));
    let dead = async {
        while stat.exists() && !read(&stat).contains(") Z") {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LIMIT, dead).await.unwrap();
}

#[tokio::test]
async fn hooks_hear_of_the_commit_once_and_change_nothing_by_what_they_say() {
    let hooks = Hooks::new();
    hooks.add("after-commit", "10-note", "env | grep ^TWINBOOT_ | sort >>$D/heard; exit 1");
    hooks.add("after-commit", "20-too", "echo >>$D/too; exit 75");
    hooks.add("after-rollback", "10-note", "echo >>$D/rolled-back");
    let mut world = World::new(Traits::default(), &hooks.config()).await;
    world.start().await;
    let reported = world.wait_status("completed").await;
    let update_id = reported["firmware"]["updateId"].as_str().unwrap();
    world.rig.wait(|_| hooks.path("too").exists()).await;
    let heard = hooks.read("heard");
    let uri = world.images.url("2.0.img");
    let expected = [
        "TWINBOOT_BOOTED_SLOT=b",
        "TWINBOOT_FROM_VERSION=1.0",
        "TWINBOOT_HOOK=after-commit",
        "TWINBOOT_REASON=",
        "TWINBOOT_SLOT=b",
        &format!("TWINBOOT_UPDATE_ID={update_id}"),
        &format!("TWINBOOT_URI={uri}"),
        "TWINBOOT_VERSION=2.0",
    ];
    assert_eq!(heard.lines().collect::<Vec<_>>(), expected);

    // Heard is heard: not again with the next start.
    world.rig.wait(|_| !read(&world.rig.board.dir().join("state/state")).contains("afterword")).await;
    world.rig.board.kill_daemon().await.unwrap();
    world.wait_status("completed").await;
    assert_eq!(hooks.read("heard"), heard);
    assert!(!hooks.path("rolled-back").exists());
}

#[tokio::test]
async fn hooks_hear_why_a_trial_was_rolled_back() {
    let hooks = Hooks::new();
    hooks.add("after-rollback", "10-note", "echo \"$TWINBOOT_BOOTED_SLOT $TWINBOOT_REASON\" >$D/heard");
    let world = World::new(Traits::SICK, &hooks.config()).await;
    world.start().await;
    world.wait_status("rolledBack").await;
    world.rig.wait(|_| !hooks.read("heard").is_empty()).await;
    let heard = hooks.read("heard");
    assert!(heard.starts_with("a HealthCheckFailed: health check 10-app ended with"), "{heard}");
}
