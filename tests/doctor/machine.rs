//! The machine under the board.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use twinboot::config::Config;
use twinboot::doctor::{self, Level, Patient};

use crate::board::{Board, Disk, PARTITIONS, put};

/// What the doctor sees of a machine whose sysfs, and service manager, are in the test's hands.
async fn machine(board: &Board, systemctl: &str) -> BTreeMap<&'static str, (Level, String)> {
    let config = Config::load(&board.config_file(), None).unwrap().config;
    let systemctl = ["sh", "-c", systemctl].map(str::to_owned).to_vec();
    let patient = Patient {
        sysfs: board.path("sys"),
        systemctl,
        ..Patient::usual(config, Err("no daemon".into()), true)
    };
    let report = doctor::examine(patient).await;
    report.0.into_iter().map(|finding| (finding.check, (finding.level, finding.evidence))).collect()
}

#[tokio::test]
async fn a_machine_without_watchdog_timer_and_clock() {
    let mut board = Board::new();
    put(&board.path("proc/sys/kernel/panic"), "0\n");
    board.configure("[\"echo\", \"yes\"]", "[\"echo\", \"no\"]");
    board.configure("[\"true\"]", "[\"no-such-program\"]");
    let found = machine(&board, "printf '%s\\n' LoadState=loaded WantedBy=").await;
    for (check, level, evidence) in [
        ("machine.daemon", Level::Warning, "no daemon"),
        ("machine.clock", Level::Warning, "echo no"),
        ("machine.reboot", Level::Fault, "no-such-program"),
        ("machine.panic", Level::Warning, "stays where it is"),
        ("machine.watchdog", Level::Warning, "no watchdog"),
        ("machine.trial-timer", Level::Warning, "nothing starts"),
    ] {
        assert!(found[check].0 == level && found[check].1.contains(evidence), "{check}: {found:#?}");
    }
    put(&board.path("sys/class/watchdog/watchdog0/identity"), "Broadcom BCM2835\n");
    put(&board.path("sys/class/watchdog/watchdog0/state"), "inactive\n");
    let found = machine(&board, "true").await;
    assert!(found["machine.watchdog"].1.contains("nobody feeds it"), "{found:#?}");
    assert!(found["machine.trial-timer"].1.contains("does not know"), "{found:#?}");
}

#[tokio::test]
async fn a_machine_with_everything() {
    let board = Board::new();
    for (name, text) in [("identity", "iTCO_wdt"), ("state", "active"), ("timeout", "60")] {
        put(&board.path(&format!("sys/class/watchdog/watchdog0/{name}")), format!("{text}\n"));
    }
    let mut found = machine(&board, &systemd(&board, "15min")).await;
    assert!(found.remove("machine.daemon").unwrap().0 == Level::Warning);
    let wrong: Vec<_> = found.iter().filter(|(_, (level, _))| *level != Level::Ok).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// From a shell, where the doctor runs, everything is writable.
#[tokio::test]
async fn a_service_that_may_not_write_the_state_or_the_environment() {
    let board = Board::new();
    let [state, first, second] =
        ["state", "env-1", "env-2"].map(|name| board.path(name).display().to_string());
    for (protected, writable, level) in [
        ("strict", String::new(), Level::Warning),
        ("strict", format!("-/run/lock +{state}-other"), Level::Warning),
        ("strict", format!("-/run/lock -{state}"), Level::Warning),
        ("strict", format!("-{first} -{second}"), Level::Warning),
        ("strict", format!("-/run/lock -{first} -{second} -{state}"), Level::Ok),
        ("strict", board.dir.path().display().to_string(), Level::Ok),
        ("no", String::new(), Level::Ok),
    ] {
        let answer = format!("printf '%s\\n' ProtectSystem={protected} 'ReadWritePaths={writable}'");
        let found = machine(&board, &answer).await;
        assert_eq!(found["machine.sandbox"].0, level, "{protected} {writable}: {found:#?}");
    }
}

/// One whose trial timer fits this board.
fn systemd(board: &Board, time: &str) -> String {
    let state = Config::load(&board.config_file(), None).unwrap().config.state_directory;
    format!(
        "case $0 in
            show) printf '%s\\n' LoadState=loaded WantedBy=timers.target
                echo 'TimersMonotonic={{ OnBootUSec=1h 25min ; next_elapse=0 }}'
                echo 'TimersMonotonic={{ OnBootUSec={time} ; next_elapse=0 }}' ;;
            cat) echo 'ConditionPathExistsGlob={}/trial/reboot-*' ;;
        esac",
        state.display()
    )
}

#[tokio::test]
async fn a_trial_timer_that_comes_too_early_or_looks_elsewhere() {
    let board = Board::new();
    let early = machine(&board, &systemd(&board, "10min")).await;
    let elsewhere = machine(&board, &systemd(&board, "15min").replace("/trial/", "-other/trial/")).await;
    for (found, evidence) in
        [(early, "10m after the boot, and `health.deadline` is 10m"), (elsewhere, "does not look into")]
    {
        let (level, told) = &found["machine.trial-timer"];
        assert!(*level == Level::Warning && told.contains(evidence), "{told}");
    }
}

/// Conditions add up, as systemd.unit(5) has it.
#[tokio::test]
async fn a_trial_service_that_also_looks_elsewhere_never_runs() {
    let board = Board::new();
    let shipped = "ConditionPathExistsGlob=/var/lib/twinboot/trial/reboot-*";
    let of_board = systemd(&board, "15min");
    for (before, level) in [
        (shipped.to_owned(), Level::Warning),
        (format!("ConditionPathExistsGlob=\n{shipped}"), Level::Warning),
        (format!("{shipped}\nConditionPathExistsGlob="), Level::Ok),
        (format!("{shipped}\n# systemctl edit\n[Unit]\nConditionPathExistsGlob = "), Level::Ok),
    ] {
        let with_both = of_board.replace("cat) ", &format!("cat) printf '%s\\n' '{before}'; "));
        let found = machine(&board, &with_both).await;
        let (found_level, _) = &found["machine.trial-timer"];
        assert_eq!(*found_level, level, "{before}: {found:#?}");
    }
    let none = machine(&board, &of_board.replace("ConditionPathExistsGlob=", "#")).await;
    assert_eq!(none["machine.trial-timer"].0, Level::Warning, "{none:#?}");
}

#[tokio::test]
async fn a_state_directory_with_a_slash_at_its_end() {
    let mut board = Board::new();
    let systemd = systemd(&board, "15min");
    board.configure("DIR/state", "DIR/state/");
    let found = machine(&board, &systemd).await;
    assert_eq!(found["machine.trial-timer"].0, Level::Ok, "{found:#?}");
}

#[tokio::test]
async fn storage_at_its_end() {
    let mut board = Board::new();
    let Some(disk) = Disk::new(board.dir.path(), &PARTITIONS) else { return };
    disk.becomes_that_of(&mut board, [2, 3]);
    let number =
        fs::read_to_string(format!("/sys/class/block/{}/dev", disk.device.file_name().unwrap().display()));
    let directory = board.path("sys/devices/mmcblk0");
    fs::create_dir_all(board.path("sys/dev/block")).unwrap();
    let link = |number: &str, to: &Path| {
        std::os::unix::fs::symlink(to, board.path(&format!("sys/dev/block/{number}"))).unwrap();
    };
    link(number.unwrap().trim(), &directory);
    let partition = fs::read_to_string(format!(
        "/sys/class/block/{}/dev",
        disk.partition(2).file_name().unwrap().display()
    ));
    put(&directory.join("mmcblk0p2/partition"), "2\n");
    link(partition.unwrap().trim(), &directory.join("mmcblk0p2"));
    for (life_time, spare, level) in [
        ("0x01 0x02", "0x01", Level::Ok),
        ("0x01 0x09", "0x01", Level::Warning),
        ("0x01 0x01", "0x02", Level::Warning),
        ("0x0b 0x01", "0x01", Level::Fault),
        ("0x01 0x01", "0x03", Level::Fault),
    ] {
        put(&directory.join("device/life_time"), format!("{life_time}\n"));
        put(&directory.join("device/pre_eol_info"), format!("{spare}\n"));
        let found = machine(&board, "echo enabled").await;
        assert_eq!(found["machine.storage"].0, level, "{life_time} {spare}: {found:#?}");
    }
}
