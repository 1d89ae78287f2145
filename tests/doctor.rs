//! `twinboot doctor` on boards with one thing wrong, each made of real files and devices.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use hub_emulator::hub::{Hub, HubOptions};
use serde_json::Value;
use tempfile::TempDir;
use twinboot::config::Config;
use twinboot::control::{self, Status};
use twinboot::doctor::{self, Level, Patient};

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
    board.variables("do_partition_done=1\ndo_flash_os_done=0\n");
    board.finds("environment.partitioning", "fault", "`do_flash_os_done` is not 1");
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

/// A disk of 32 MiB with the partitions of a board; gone when dropped.
struct Disk {
    device: PathBuf,
    partitions: Vec<u32>,
}

/// Number, first sector, sectors.
const PARTITIONS: [(u32, u64, u64); 3] = [(2, 0x2800, 0x4000), (3, 0x6800, 0x4000), (4, 0xA800, 0x2000)];

impl Disk {
    /// `None` where this is not root.
    fn new(dir: &Path, partitions: &[(u32, u64, u64)]) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("not run: loop devices need root");
            return None;
        }
        let file = dir.join("disk");
        File::create(&file).unwrap().set_len(32 << 20).unwrap();
        let path = succeed(Command::new("losetup").args(["--find", "--show"]).arg(&file));
        let mut disk = Self { device: PathBuf::from(path.trim()), partitions: Vec::new() };
        for (number, start, sectors) in partitions {
            let numbers = [u64::from(*number), *start, *sectors].map(|number| number.to_string());
            succeed(Command::new("addpart").arg(&disk.device).args(numbers));
            disk.partitions.push(*number);
        }
        Some(disk)
    }

    fn partition(&self, number: u32) -> PathBuf {
        PathBuf::from(format!("{}p{number}", self.device.display()))
    }

    /// Slots a and b of the board, and its environment, on this disk.
    fn becomes_that_of(&self, board: &mut Board, [a, b]: [u32; 2]) {
        for (name, number) in [("DIR/slot_a", a), ("DIR/slot_b", b)] {
            board.configure(name, &self.partition(number).display().to_string());
        }
        self.holds_environment(board, [0x10_0000, 0x14_0000]);
    }

    fn holds_environment(&self, board: &Board, offsets: [u64; 2]) {
        let lines: String =
            offsets.map(|offset| format!("{} {offset:#x} {ENV_BYTES:#x}\n", self.device.display())).concat();
        put(&board.path("fw_env.config"), lines);
        for (number, offset) in [(1, offsets[0]), (2, offsets[1])] {
            let raw = OpenOptions::new().write(true).open(&self.device).unwrap();
            raw.write_all_at(&board.bytes(number), offset).unwrap();
            raw.sync_all().unwrap();
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for number in &self.partitions {
            let _ = Command::new("delpart").arg(&self.device).arg(number.to_string()).status();
        }
        for (program, argument) in [("blockdev", "--setrw"), ("losetup", "--detach")] {
            let _ = Command::new(program).arg(argument).arg(&self.device).status();
        }
    }
}

#[test]
fn slots_and_environment_on_one_disk() {
    let mut board = Board::new();
    let Some(disk) = Disk::new(board.dir.path(), &PARTITIONS) else { return };
    disk.becomes_that_of(&mut board, [2, 3]);
    for check in ["slots.a", "slots.b", "slots.distinct", "slots.size", "slots.free", "slots.environment"] {
        board.finds(check, "ok", "");
    }
    board.finds("environment.location", "ok", "at 0x100000");
    let again = Board::new().config;

    disk.holds_environment(&board, [0x10_0000, 0x2800 * 512]);
    board.finds("slots.environment", "fault", "lies in slot a");
    disk.holds_environment(&board, [0x10_0000, 0xA800 * 512]);
    board.finds("slots.environment", "warning", "lies in the partition");

    board.config.clone_from(&again);
    disk.becomes_that_of(&mut board, [2, 4]);
    board.finds("slots.size", "warning", "slot b has 4194304");
    succeed(Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(disk.partition(2)));
    board.finds("slots.size", "fault", "the file system that runs has 8388608 bytes");

    succeed(Command::new("blockdev").arg("--setro").arg(disk.partition(4)));
    board.finds("slots.b", "fault", "read-only");
    succeed(Command::new("blockdev").arg("--setro").arg(&disk.device));
    board.finds("environment.writable", "fault", "read-only");

    board.config.clone_from(&again);
    board.configure("DIR/slot_a", &disk.device.display().to_string());
    board.configure("DIR/slot_b", &disk.partition(3).display().to_string());
    board.finds("slots.distinct", "fault", "overlap");
}

#[test]
fn slots_that_are_missing_or_one() {
    let board = Board::new();
    fs::remove_file(board.path("slot_b")).unwrap();
    board.finds("slots.b", "fault", "slot_b: No such file");
    std::os::unix::fs::symlink(board.path("slot_a"), board.path("slot_b")).unwrap();
    board.finds("slots.distinct", "fault", "are one device");
    board.finds("slots.booted", "fault", "same device");
    board.finds("slots.free", "warning", "not known");
}

#[test]
fn the_other_slot_in_use() {
    let mut board = Board::new();
    let Some(disk) = Disk::new(board.dir.path(), &PARTITIONS) else { return };
    disk.becomes_that_of(&mut board, [2, 3]);
    let number = fs::read_to_string(format!(
        "/sys/class/block/{}/dev",
        disk.partition(3).file_name().unwrap().display()
    ));
    let mount = format!("30 22 {} / /mnt/old rw - ext4 x rw\n", number.unwrap().trim());
    put(&board.path("proc/self/mountinfo"), mount);
    board.finds("slots.free", "fault", "mounted at /mnt/old");
}

#[test]
fn what_runs_and_what_the_environment_says() {
    let board = Board::new();
    board.variables("boot_slot=b\n");
    board.finds("slots.agreement", "fault", "two facts disagree");
    put(&board.path("proc/cmdline"), "quiet\n");
    board.finds("slots.booted", "fault", "runs from neither slot");
}

#[test]
fn a_state_directory_that_is_missing_is_made() {
    let board = Board::new();
    fs::remove_dir(board.path("state")).unwrap();
    board.finds("state.directory", "fault", "not there");
    board.is_fixed("state.directory");
    assert_eq!(fs::metadata(board.path("state")).unwrap().permissions().mode() & 0o777, 0o700);
    fs::set_permissions(board.path("state"), Permissions::from_mode(0o777)).unwrap();
    board.finds("state.directory", "warning", "mode 777");
}

/// In a mount namespace of its own, with the board's directory as `$1` and the doctor's command line after it.
fn beside(board: &Board, script: &str) -> Checks {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-euc", &format!("dir=$1; shift; {script}; exec \"$@\""), "sh"]);
    command.arg(board.dir.path()).arg(env!("CARGO_BIN_EXE_twinboot"));
    let output = command.args(["doctor", "--json", "--config"]).arg(board.config_file()).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    checks(&serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn a_state_directory_where_no_state_is_safe() {
    let mut board = Board::new();
    let Some(disk) = Disk::new(board.dir.path(), &PARTITIONS) else { return };
    disk.becomes_that_of(&mut board, [2, 3]);
    // The kernel's own view of this namespace, but for the command line.
    board.configure("proc = \"DIR/proc\"", "proc = \"/proc\"");
    let cmdline = "mount --bind $dir/proc/cmdline /proc/cmdline";
    let (slot, data) = (disk.partition(3).display().to_string(), disk.partition(4).display().to_string());
    for device in [&slot, &data] {
        succeed(Command::new("mke2fs").args(["-q", "-t", "ext4", device]));
    }
    let on = |mount: &str| beside(&board, &format!("{cmdline}; {mount}"));

    let found = on(&format!("mount {data} $dir/state"));
    assert_eq!(found["state.place"].0, "ok", "{found:#?}");
    assert!(found["state.place"].1.contains("ext4"), "{found:#?}");
    let found = on(&format!("mount {slot} $dir/state"));
    assert!(found["state.place"].1.contains("is on slot b"), "{found:#?}");
    assert_eq!((found["state.place"].0.as_str(), found["slots.free"].0.as_str()), ("fault", "fault"));
    let found = on("mount -t tmpfs tmpfs $dir/state");
    assert_eq!(found["state.place"].0, "fault", "{found:#?}");
    assert!(found["state.place"].1.contains("a reboot empties it"), "{found:#?}");

    // Below an overlay it is where the upper directory is.
    let overlay = "mkdir -p $dir/up/u $dir/up/w; \
                   mount -t overlay o -o lowerdir=$dir/proc,upperdir=$dir/up/u,workdir=$dir/up/w $dir/state";
    for (upper, level) in [
        (format!("mount {slot} $dir/up"), "fault"),
        ("mount -t tmpfs t $dir/up".into(), "fault"),
        (format!("mount {data} $dir/up"), "ok"),
    ] {
        let found = on(&format!("mkdir -p $dir/up; {upper}; {overlay}"));
        assert_eq!(found["state.place"].0, level, "{upper}: {found:#?}");
    }

    let found = on(&format!("mount -o ro {data} $dir/state"));
    assert!(found["state.room"].1.contains("read-only"), "{found:#?}");
    let found = on("mount -t tmpfs -o size=1M tmpfs $dir/state");
    assert!(found["state.room"].0 == "fault" && found["state.room"].1.contains("KiB"), "{found:#?}");
}

#[test]
fn a_state_file_that_is_not_believed_and_a_mark_that_is_left_over() {
    let board = Board::new();
    put(&board.path("state/trial/reboot-1"), "");
    board.finds("state.trial-mark", "warning", "left over");
    board.is_fixed("state.trial-mark");
    assert!(!board.path("state/trial/reboot-1").exists());
    put(&board.path("state/state"), "twinboot-state 1 0 2\n{}\n");
    board.finds("state.record", "warning", "not believed");
    put(&board.path("state/state.damaged"), "");
    board.finds("state.damaged", "warning", "moved aside");
    // Who does not know whether a trial is on repairs nothing.
    put(&board.path("state/trial/reboot-1"), "");
    board.variables("upgrade_available=1\n");
    board.is_not_fixed("state.trial-mark");
    board.is_not_fixed("environment.trial");
}

#[test]
fn keys_and_programs_that_others_can_change() {
    let mut board = Board::new();
    board.configure("[install]", "[install]\ncheck = \"signature\"");
    board.finds("trust.keys", "fault", "holds no key");
    board.configure("\"signature\"", "\"optional\"");
    board.finds("trust.keys", "warning", "any image is taken");
    put(&board.path("keys/release.pub"), "no key\n");
    board.finds("trust.keys", "fault", "release.pub");
    board.finds("trust.key-files", "ok", "");
    fs::set_permissions(board.path("keys/release.pub"), Permissions::from_mode(0o666)).unwrap();
    board.finds("trust.key-files", "fault", "release.pub");
    put(&board.path("hooks.d/before-reboot/10-line"), "#!/bin/sh\n");
    fs::set_permissions(board.path("hooks.d/before-reboot/10-line"), Permissions::from_mode(0o777)).unwrap();
    board.finds("trust.programs", "fault", "10-line");
}

#[test]
fn a_configuration_with_faults_and_a_secret_for_everyone() {
    let mut board = Board::new();
    board.config.push_str("[hub]\nconnection_string_file = \"DIR/secret\"\n");
    let secret = "HostName=localhost;DeviceId=gateway-1;SharedAccessKey=c2VjcmV0c2VjcmV0c2VjcmV0";
    put(&board.path("secret"), secret);
    fs::set_permissions(board.path("secret"), Permissions::from_mode(0o644)).unwrap();
    board.finds("configuration.secrets", "fault", "mode 644");
    board.finds("configuration.valid", "fault", "every user");
    // The rest is looked at all the same.
    board.finds("slots.distinct", "ok", "apart");
    board.is_fixed("configuration.secrets");
    assert_eq!(fs::metadata(board.path("secret")).unwrap().permissions().mode() & 0o777, 0o640);
    board.configure("scheme = \"bootcount\"", "scheme = \"grub\"");
    let advice = board.finds("configuration.valid", "fault", "boot.scheme");
    assert!(advice.contains("\"rauc\""), "{advice}");
}

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
    let found = machine(&board, "echo disabled").await;
    for (check, level, evidence) in [
        ("machine.daemon", Level::Warning, "no daemon"),
        ("machine.clock", Level::Warning, "echo no"),
        ("machine.reboot", Level::Fault, "no-such-program"),
        ("machine.panic", Level::Warning, "stays where it is"),
        ("machine.watchdog", Level::Warning, "no watchdog"),
        ("machine.trial-timer", Level::Warning, "is disabled"),
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
    let mut found = machine(&board, "echo enabled").await;
    assert!(found.remove("machine.daemon").unwrap().0 == Level::Warning);
    let wrong: Vec<_> = found.iter().filter(|(_, (level, _))| *level != Level::Ok).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
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

fn with_hub(connection_string: &str, hub: &Hub) -> Board {
    let mut board = Board::new();
    put(&board.path("secret"), connection_string);
    fs::set_permissions(board.path("secret"), Permissions::from_mode(0o600)).unwrap();
    put(&board.path("ca.pem"), hub.ca_pem());
    let port = hub.mqtt_port();
    board.config.push_str(&format!(
        "[hub]\nconnection_string_file = \"DIR/secret\"\nca_file = \"DIR/ca.pem\"\nport = {port}\n"
    ));
    board
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_is_reached_or_the_step_that_fails_is_named() {
    let hub = Hub::start(HubOptions::default()).await.unwrap();
    let string = hub.add_device("gateway-1");
    let board = with_hub(&string, &hub);
    board.finds("hub.session", "ok", "took device gateway-1");

    let other = string.replace("SharedAccessKey=", "SharedAccessKey=AAAA");
    with_hub(&other, &hub).finds("hub.login", "fault", "check its key or certificate");
    let unknown = string.replace("HostName=localhost", "HostName=no-such-hub.invalid");
    with_hub(&unknown, &hub).finds("hub.lookup", "fault", "no-such-hub.invalid");

    let mut closed = with_hub(&string, &hub);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    closed.configure(&format!("port = {}", hub.mqtt_port()), &format!("port = {port}"));
    closed.finds("hub.connect", "fault", "refused");

    let stranger = Hub::start(HubOptions::default()).await.unwrap();
    put(&board.path("ca.pem"), stranger.ca_pem());
    board.finds("hub.tls", "fault", "certificate");
    put(&board.path("ca.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    board.finds("hub.credentials", "fault", "ca.pem");
}

/// A second session would throw the daemon out.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_daemon_is_asked_and_its_hub_left_alone() {
    let hub = Hub::start(HubOptions::default()).await.unwrap();
    let board = with_hub(&hub.add_device("gateway-1"), &hub);
    let listener = control::bind(&board.path("control.sock"), "no-such-group").unwrap();
    let (calls, _unheard) = tokio::sync::mpsc::channel(1);
    let status = |connected| Status {
        summary: "standing by".to_owned(),
        hub_connected: connected,
        hub_detail: "the cable is out".to_owned(),
        ..Status::default()
    };
    let (sender, statuses) = tokio::sync::watch::channel(status(false));
    let server = tokio::spawn(control::serve(listener, calls, statuses));
    board.finds("hub.session", "fault", "the cable is out");
    sender.send_replace(status(true));
    board.finds("hub.session", "ok", "the daemon is connected");
    board.finds("machine.daemon", "ok", "standing by");
    assert!(hub.history("gateway-1").is_empty());
    // What the daemon decides about is left to it.
    board.variables("upgrade_available=1\n");
    let advice = board.finds("environment.trial", "warning", "on trial");
    assert!(advice.contains("twinboot commit"), "{advice}");
    board.is_not_fixed("environment.trial");
    server.abort();
}

#[test]
fn people_read_families_what_to_do_and_a_summary() {
    let board = Board::new();
    board.damage(1);
    let text = String::from_utf8(board.doctor(&[]).stdout).unwrap();
    assert!(text.contains("\nenvironment\n  ok       location "), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|line| line.starts_with("  warning  copies ")).unwrap();
    assert!(lines[at + 1].trim_start().starts_with("-> `twinboot doctor --fix`"), "{text}");
    assert!(lines.last().unwrap().starts_with("0 faults, "), "{text}");
    assert!(!text.contains('\x1b'), "{text}");
    let text = String::from_utf8(board.doctor(&["--fix"]).stdout).unwrap();
    assert!(text.starts_with("repaired environment.copies: wrote the good copy"), "{text}");
}
