//! `twinboot doctor` on boards with one thing wrong, each made of real files and devices.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// Of one copy of the environment.
const ENV_BYTES: usize = 0x1000;

const SLOT_BYTES: u64 = 1 << 20;

const VARIABLES: &str = "bootcmd=run distro_bootcmd\n";

/// What a board is made of, until a test breaks it.
struct Board {
    dir: TempDir,
    /// In `[boot]`, `[[slot]]` and so on.
    config: String,
}

/// What a check found: level, evidence, advice.
type Checks = BTreeMap<String, (String, String, String)>;

fn put(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    File::create(path).unwrap().write_all(bytes.as_ref()).unwrap();
}

fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Board {
    /// One at the factory: slot a runs, both copies of the environment are good, nothing was updated yet.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for slot in ["slot_a", "slot_b"] {
            File::create(at(slot)).unwrap().set_len(SLOT_BYTES).unwrap();
        }
        put(&at("proc/self/mountinfo"), "22 1 254:1 / / rw - ext4 /dev/vda1 rw\n");
        put(&at("proc/cmdline"), "console=ttyS0 panic=5 twinboot.slot=a twinboot.script=1\n");
        put(&at("proc/swaps"), "Filename\tType\tSize\tUsed\tPriority\n");
        put(&at("proc/sys/kernel/random/boot_id"), "01234567-89ab-cdef-0123-456789abcdef\n");
        put(&at("proc/sys/kernel/panic"), "5\n");
        fs::create_dir(at("state")).unwrap();
        fs::set_permissions(at("state"), Permissions::from_mode(0o700)).unwrap();
        let config = "\
[state]
directory = \"DIR/state\"
[[slot]]
name = \"a\"
device = \"DIR/slot_a\"
[[slot]]
name = \"b\"
device = \"DIR/slot_b\"
[boot]
scheme = \"bootcount\"
environment = \"DIR/fw_env.config\"
lock_files = [\"DIR/lock\"]
[install]
keys = \"DIR/keys\"
[health]
scripts = \"DIR/health.d\"
[hooks]
directory = \"DIR/hooks.d\"
[system]
proc = \"DIR/proc\"
control_socket = \"DIR/control.sock\"
reboot_command = [\"true\"]
clock_check_command = [\"echo\", \"yes\"]
";
        let board = Self { config: config.to_owned(), dir };
        board.variables("");
        let copy = |number: u8| board.path(&format!("env-{number}")).display().to_string();
        put(
            &board.path("fw_env.config"),
            format!("{} 0 {ENV_BYTES:#x}\n{} 0 {ENV_BYTES:#x}\n", copy(1), copy(2)),
        );
        board
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Both copies, as at the factory but for what is `changed`.
    fn variables(&self, changed: &str) {
        for number in [1, 2] {
            self.copy(number, changed, ENV_BYTES, true);
        }
    }

    /// One copy, as `mkenvimage` makes it. The last of two lines for a name is in force.
    fn copy(&self, number: u8, changed: &str, size: usize, redundant: bool) {
        let shipped = include_str!("../config/u-boot/twinboot.env");
        let mut variables = BTreeMap::new();
        for line in [VARIABLES, shipped, changed].concat().lines() {
            if let Some((name, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) {
                variables.insert(name.to_owned(), value.to_owned());
            }
        }
        variables.retain(|_, value| !value.is_empty());
        let text: String = variables.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        put(&self.path("env.txt"), text);
        let mut command = Command::new("mkenvimage");
        command.args(redundant.then_some("-r")).args(["-s", &size.to_string(), "-o"]);
        succeed(command.arg(self.path(&format!("env-{number}"))).arg(self.path("env.txt")));
    }

    fn configure(&mut self, from: &str, to: &str) {
        assert!(self.config.contains(from), "{from}");
        self.config = self.config.replace(from, to);
    }

    fn config_file(&self) -> PathBuf {
        let path = self.path("config.toml");
        put(&path, self.config.replace("DIR", self.dir.path().to_str().unwrap()));
        path
    }

    fn doctor(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinboot"));
        command.arg("doctor").args(arguments).arg("--config").arg(self.config_file()).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.doctor(&[&["--json"], arguments].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        let json: Value = serde_json::from_str(&text).unwrap();
        let code = match json["level"].as_str().unwrap() {
            "ok" => 0,
            "warning" => 6,
            _ => 7,
        };
        assert_eq!(output.status.code(), Some(code), "{json:#}");
        json
    }

    fn checks(&self) -> Checks {
        checks(&self.json(&[]))
    }

    /// That the check finds this level, evidence and advice; what it found is returned.
    #[track_caller]
    fn finds(&self, check: &str, level: &str, evidence: &str) -> String {
        let checks = self.checks();
        let found = checks.get(check).unwrap_or_else(|| panic!("no {check} in {checks:#?}"));
        assert!(found.0 == level && found.1.contains(evidence), "{check}: {found:#?}");
        assert_eq!(found.2.is_empty(), level == "ok", "advice: {found:#?}");
        found.2.clone()
    }

    /// That `--fix` repairs what the check finds, and says so.
    #[track_caller]
    fn is_fixed(&self, check: &str) {
        let json = self.json(&["--fix"]);
        let repairs = json["repairs"].as_array().unwrap();
        let done = repairs.iter().find(|repair| repair["check"] == check).unwrap_or(&Value::Null);
        assert_eq!(done["done"], true, "{json:#}");
        assert_eq!(checks(&json)[check].0, "ok", "{json:#}");
    }

    #[track_caller]
    fn is_not_fixed(&self, check: &str) {
        let json = self.json(&["--fix"]);
        assert!(
            json["repairs"].as_array().unwrap().iter().all(|repair| repair["check"] != check),
            "{json:#}"
        );
    }

    fn bytes(&self, number: u8) -> Vec<u8> {
        fs::read(self.path(&format!("env-{number}"))).unwrap()
    }

    fn damage(&self, number: u8) {
        let file = OpenOptions::new().write(true).open(self.path(&format!("env-{number}"))).unwrap();
        file.write_all_at(&[0xA5; 64], 100).unwrap();
    }
}

fn checks(json: &Value) -> Checks {
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let findings = json["checks"].as_array().unwrap().iter();
    findings
        .map(|finding| {
            let found = (text(finding, "level"), text(finding, "evidence"), text(finding, "advice"));
            (text(finding, "check"), found)
        })
        .collect()
}

#[test]
fn a_board_at_the_factory_is_well() {
    let checks = Board::new().checks();
    // What this machine has of watchdogs and units is not the board's.
    let wrong: Vec<_> =
        checks.iter().filter(|(name, (level, ..))| !name.starts_with("machine.") && level != "ok").collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    for family in ["configuration", "environment", "slots", "state"] {
        assert!(checks.keys().any(|check| check.starts_with(family)), "{checks:#?}");
    }
}

#[test]
fn an_environment_that_is_not_where_it_is_said_to_be() {
    let board = Board::new();
    fs::remove_file(board.path("env-2")).unwrap();
    board.finds("environment.location", "fault", "env-2");
    put(&board.path("fw_env.config"), "");
    board.finds("environment.location", "fault", "no line says where");
    let board = Board::new();
    put(&board.path("proc/device-tree/config/u-boot,mmc-env-offset"), 0x10_0000_i32.to_be_bytes());
    board.finds("environment.location", "fault", "at 0x100000");
    put(&board.path("proc/device-tree/config/u-boot,mmc-env-offset"), [0; 4]);
    board.finds("environment.location", "ok", "env-1");
}

#[test]
fn a_lock_that_cannot_be_taken() {
    let mut board = Board::new();
    board.configure("DIR/lock", "DIR/nowhere/lock");
    board.finds("environment.locks", "fault", "nowhere");
}

#[test]
fn one_copy_that_cannot_be_replaced_at_once() {
    let board = Board::new();
    board.copy(1, "", ENV_BYTES, false);
    let line = |offset| format!("{} {offset} {ENV_BYTES:#x}\n", board.path("env-1").display());
    put(&board.path("fw_env.config"), line(0));
    board.finds("environment.writable", "ok", "one copy");
    let longer = [board.bytes(1), vec![0; 512]].concat();
    put(&board.path("env-1"), longer);
    board.finds("environment.writable", "fault", "a power cut would lose it");
}

#[test]
fn another_size_than_u_boots() {
    let board = Board::new();
    for number in [1, 2] {
        board.copy(number, "", 2 * ENV_BYTES, true);
    }
    let advice = board.finds("environment.size", "fault", "with 0x2000 bytes and a flags byte");
    assert!(advice.contains("two lines with size 0x2000"), "{advice}");
    for number in [1, 2] {
        board.copy(number, "", ENV_BYTES, false);
    }
    let advice = board.finds("environment.size", "fault", "and no flags byte");
    assert!(advice.contains("one line"), "{advice}");
    board.is_not_fixed("environment.copies");
}

#[test]
fn a_damaged_copy_is_repaired_and_two_are_left_alone() {
    for (damaged, good) in [(1, 2), (2, 1)] {
        let board = Board::new();
        board.damage(damaged);
        let advice = board.finds("environment.copies", "warning", "bad checksum");
        assert!(advice.contains("--fix"), "{advice}");
        let before = board.bytes(good);
        board.is_fixed("environment.copies");
        assert!(board.bytes(good) == before);
        // Without checksum, serial number and padding.
        let variables =
            |number| board.bytes(number)[5..].split(|byte| *byte >= 0x80).next().unwrap().to_vec();
        assert!(board.bytes(damaged)[5..].starts_with(&variables(good)));
    }
    let board = Board::new();
    board.damage(1);
    board.damage(2);
    board.finds("environment.copies", "fault", "built-in defaults");
    board.finds("environment.size", "fault", "no size");
    let before = [board.bytes(1), board.bytes(2)];
    board.is_not_fixed("environment.copies");
    assert!([board.bytes(1), board.bytes(2)] == before);
}

#[test]
fn a_stale_copy_that_would_boot_the_other_slot() {
    let board = Board::new();
    let set = |assignments: &[&str]| {
        let mut command = Command::new("fw_setenv");
        succeed(command.arg("-c").arg(board.path("fw_env.config")).args(assignments));
    };
    set(&["boot_slot", "b"]);
    set(&["boot_slot", "a"]);
    board.finds("environment.copies", "warning", "names slot b first");
    board.is_fixed("environment.copies");
    board.finds("environment.copies", "ok", "both are good");
}

#[test]
fn an_environment_without_room() {
    let board = Board::new();
    board.variables(&format!("filler={}\n", "x".repeat(3600)));
    board.finds("environment.room", "warning", "of 4091 bytes");
}

#[test]
fn variables_that_a_boot_needs() {
    let mut board = Board::new();
    board.variables("bootcmd=\naltbootcmd=\nboot_slot=c\n");
    board.finds("environment.bootcmd", "warning", "bootcmd");
    board.finds("environment.fallback", "fault", "waits at its prompt");
    board.finds("environment.scheme", "fault", "boot_slot=c");
    board.configure("\"bootcount\"", "\"rauc\"");
    board.variables("BOOT_ORDER=C\n");
    board.finds("environment.scheme", "fault", "BOOT_ORDER=C");
    board.variables("altbootcmd=\nBOOT_ORDER=A B\nBOOT_A_LEFT=2\n");
    board.finds("environment.scheme", "ok", "slot a is first, 2 boots left");
    board.finds("environment.fallback", "ok", "counts down");
}

#[test]
fn variables_of_a_trial_that_nobody_conducts() {
    let board = Board::new();
    board.variables("upgrade_available=1\nbootcount=2\n");
    board.finds("environment.trial", "warning", "slot a is on trial");
    board.is_fixed("environment.trial");
    let printed = succeed(Command::new("fw_printenv").arg("-c").arg(board.path("fw_env.config")));
    for line in ["boot_slot=a", "upgrade_available=0", "bootcount=0"] {
        assert!(printed.lines().any(|printed| printed == line), "{printed}");
    }
    board.variables("bootcount=2\n");
    board.finds("environment.trial", "warning", "bootcount=2");
    board.is_fixed("environment.trial");
    // Somebody is about to boot it by hand.
    board.variables("boot_slot=b\nupgrade_available=1\n");
    board.finds("environment.trial", "warning", "slot b is on trial");
    board.is_not_fixed("environment.trial");
}

#[test]
fn a_boot_script_of_another_version() {
    let board = Board::new();
    put(&board.path("proc/cmdline"), "twinboot.slot=a\n");
    board.finds("environment.script", "warning", "no `twinboot.script=`");
    put(&board.path("proc/cmdline"), "twinboot.slot=a twinboot.script=9\n");
    board.finds("environment.script", "warning", "version 9, 1 is known");
    put(&board.path("proc/cmdline"), "twinboot.slot=a twinboot.script=0\n");
    board.finds("environment.script", "warning", "version 0, 1 is current");
}
