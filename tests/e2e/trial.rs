//! Trials that nobody commits: the daemon's own time limit, and systemd's, which needs no daemon.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use hub_emulator::board::{Scheme, Slot, Traits};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::clocks::Clocks;
use crate::rig::{Choice, DAEMON, LIMIT, Rig, script};

/// systemd's part: does what a unit file says, on the board.
struct Systemd {
    directory: TempDir,
    board: PathBuf,
}

const GUARD: &str = include_str!("../../systemd/twinboot-trial.service");
const DAEMON_UNIT: &str = include_str!("../../systemd/twinboot.service");

impl Systemd {
    fn of(rig: &Rig) -> Self {
        let (directory, board) = (tempfile::tempdir().unwrap(), rig.board.dir().to_owned());
        let body = format!(
            "echo \"$*\" >>{}\n[ \"$*\" != '--no-block reboot' ] || exec {}",
            directory.path().join("calls").display(),
            board.join("reboot.sh").display(),
        );
        script(&directory.path().join("systemctl"), &body);
        Self { directory, board }
    }

    /// The values of a key, with the board's paths.
    fn values<'a>(&'a self, unit: &'a str, key: &'a str) -> impl Iterator<Item = String> + 'a {
        let lines = unit.lines().filter_map(move |line| line.strip_prefix(key)?.strip_prefix('='));
        lines.map(|value| {
            value
                .replace("/var/lib/twinboot", self.board.join("state").to_str().unwrap())
                .replace("/proc/", self.board.join("proc/").to_str().unwrap())
                .replace("$$", "$")
        })
    }

    async fn succeeds(&self, line: &str, exit_status: &str) -> bool {
        let path = format!("{}:/usr/bin:/bin", self.directory.path().display());
        let mut command = Command::new("/bin/sh");
        command.args(["-c", line]).env("PATH", path).env("EXIT_STATUS", exit_status).stdin(Stdio::null());
        let ended = tokio::time::timeout(LIMIT, command.kill_on_drop(true).status()).await;
        ended.unwrap().unwrap().success()
    }

    /// `systemctl start twinboot-trial.service`. Whether it came to the reboot.
    async fn start_guard(&self) -> bool {
        let globs: Vec<String> = self.values(GUARD, "ConditionPathExistsGlob").collect();
        assert_eq!(globs.len(), 1, "a condition that this test does not play");
        let (directory, prefix) = globs[0].trim_end_matches('*').rsplit_once('/').unwrap();
        let names =
            std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.file_name());
        if !names.map(|name| name.into_string().unwrap()).any(|name| name.starts_with(prefix)) {
            return false;
        }
        for line in self.values(GUARD, "ExecCondition").chain(self.values(GUARD, "ExecStart")) {
            if !self.succeeds(&line, "").await {
                return false;
            }
        }
        true
    }

    /// The daemon's unit has stopped. Whether the guard is asked for.
    async fn daemon_stopped(&self, exit_status: &str) -> bool {
        let calls = self.directory.path().join("calls");
        std::fs::write(&calls, "").unwrap();
        for line in self.values(DAEMON_UNIT, "ExecStopPost") {
            self.succeeds(line.strip_prefix('-').unwrap(), exit_status).await;
        }
        std::fs::read_to_string(calls).unwrap() == "--no-block start twinboot-trial.service\n"
    }
}

/// Shows F23.
#[tokio::test]
async fn a_trial_whose_daemon_refuses_its_configuration_is_ended_by_systemd() {
    for scheme in [Scheme::Bootcount, Scheme::Rauc, Scheme::Mender] {
        a_refused_configuration_is_rolled_back(scheme).await;
    }
}

async fn a_refused_configuration_is_rolled_back(scheme: Scheme) {
    let scripts = tempfile::tempdir().unwrap();
    let (daemon, config) = (scripts.path().join("daemon"), scripts.path().join("config.toml"));
    let statuses = scripts.path().join("statuses");
    std::fs::write(&config, "[hub\n").unwrap();
    std::fs::write(&statuses, "").unwrap();
    let body = format!(
        "grep -qi slot=b \"$(dirname \"$3\")/proc/cmdline\" || exec {DAEMON} \"$@\"\n\
         {DAEMON} run --config {}\n\
         echo $? >>{}\nexit 2",
        config.display(),
        statuses.display(),
    );
    script(&daemon, &body);
    let rig = Rig::running(Choice { scheme, daemon: &daemon, ..Choice::default() }).await;
    let systemd = Systemd::of(&rig);
    assert!(!systemd.start_guard().await, "there is no trial");
    rig.install("2.0", Traits::default()).await;
    for boots in 2..=4 {
        rig.board.wait_boots(boots, LIMIT).await.unwrap();
        assert_eq!(rig.board.booted(), Some(Slot::B));
        let refused = async {
            while std::fs::read_to_string(&statuses).unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, refused).await.unwrap();
        assert!(systemd.start_guard().await, "boot {boots}");
    }
    let report = rig.outcome().await;
    assert_eq!(report["firmware"]["error"]["code"], "BootFailed", "{report:#}");
    let message = "slot b was not committed in time in 3 of its boots; the boot loader fell back";
    assert_eq!(report["firmware"]["error"]["message"], message);
    assert_eq!(rig.board.booted(), Some(Slot::A));
    assert!(!systemd.start_guard().await, "the old system is not rebooted");
    assert_eq!(rig.board.boots().len(), 5);

    // Its exit status is what the daemon's unit takes for a reason not to wait for the timer.
    let statuses = std::fs::read_to_string(&statuses).unwrap();
    assert!(systemd.daemon_stopped(statuses.lines().next().unwrap()).await);
    assert!(!systemd.daemon_stopped("1").await);
}

#[tokio::test]
async fn a_mark_that_is_left_over_reboots_the_old_system_never_and_another_not_for_ever() {
    let mut rig = Rig::running(Choice::default()).await;
    let systemd = Systemd::of(&rig);
    rig.install("2.0", Traits::default()).await;
    assert_eq!(rig.outcome().await["firmwareStatus"], "completed");
    assert!(!systemd.start_guard().await, "a committed system is not rebooted");

    // As if the commit had not taken it away, and as if no daemon were there to do it now.
    rig.board.cut().await;
    let trial = rig.board.dir().join("state/trial");
    for number in 1..=3 {
        std::fs::write(trial.join(format!("reboot-{number}")), "").unwrap();
    }
    for _ in 1..=3 {
        assert!(systemd.start_guard().await);
    }
    assert!(!systemd.start_guard().await);

    std::fs::write(trial.join("reboot-1"), "").unwrap();
    std::fs::copy(rig.board.dir().join("proc/cmdline"), trial.join("armed-by")).unwrap();
    assert!(!systemd.start_guard().await, "what armed it is not rebooted");
    rig.board.power_on().await.unwrap();
    rig.wait(|_| !trial.join("reboot-1").exists()).await;
}

#[tokio::test]
async fn a_daemon_that_dies_again_and_again_does_not_lengthen_its_trial() {
    for scheme in [Scheme::Bootcount, Scheme::Rauc] {
        a_dying_daemon_is_rolled_back(scheme).await;
    }
}

async fn a_dying_daemon_is_rolled_back(scheme: Scheme) {
    let checks = tempfile::tempdir().unwrap();
    // For as long as the daemon lives that waits for it.
    script(&checks.path().join("10-hangs"), "exec tail --pid=$PPID -f /dev/null");
    // Of the board's minute on trial, a third passes with each life of the daemon.
    let (clocks, extra_config) = (Clocks::new(), format!("[health]\nscripts = {:?}\n", checks.path()));
    let choice =
        Choice { scheme, daemon: &clocks.daemon(), extra_config: &extra_config, ..Choice::default() };
    let mut rig = Rig::running(choice).await;
    rig.install("2.0", Traits::default()).await;
    let is_over = |status: &Value| status["reported"]["firmwareStatus"] == "rolledBack";
    let on_trial = |status: &Value| status["reported"]["firmware"]["slots"]["b"]["state"] == "trial";
    let killed_until_over = async {
        let mut kills = 0;
        while !is_over(&rig.wait(|status| is_over(status) || on_trial(status)).await) {
            let marked = rig.board.dir().join("state/trial/reboot-3").exists();
            assert!(kills > 0 || marked, "systemd could not end it");
            clocks.pass(Duration::from_secs(20));
            rig.board.kill_daemon().await.unwrap();
            kills += 1;
        }
        kills
    };
    let kills = tokio::time::timeout(LIMIT, killed_until_over).await.unwrap();
    assert!(kills > 1, "{kills} kills");
    assert_eq!(rig.outcome().await["firmware"]["error"]["code"], json!("HealthCheckFailed"));
    assert_eq!(rig.board.booted(), Some(Slot::A));
}
