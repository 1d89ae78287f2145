//! A board of real files, of which a test breaks one.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// Of one copy of the environment.
pub const ENV_BYTES: usize = 0x1000;

pub const SLOT_BYTES: u64 = 1 << 20;

pub const VARIABLES: &str = "bootcmd=run distro_bootcmd\n";

/// What a board is made of, until a test breaks it.
pub struct Board {
    pub dir: TempDir,
    /// In `[boot]`, `[[slot]]` and so on.
    pub config: String,
}

/// What a check found: level, evidence, advice.
pub type Checks = BTreeMap<String, (String, String, String)>;

pub fn put(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    File::create(path).unwrap().write_all(bytes.as_ref()).unwrap();
}

pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

impl Board {
    /// One at the factory: slot a runs, both copies of the environment are good, nothing was updated yet.
    pub fn new() -> Self {
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

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Both copies, as at the factory but for what is `changed`.
    pub fn variables(&self, changed: &str) {
        for number in [1, 2] {
            self.copy(number, changed, ENV_BYTES, true);
        }
    }

    /// One copy, as `mkenvimage` makes it. The last of two lines for a name is in force.
    pub fn copy(&self, number: u8, changed: &str, size: usize, redundant: bool) {
        let shipped = include_str!("../../config/u-boot/twinboot.env");
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

    pub fn configure(&mut self, from: &str, to: &str) {
        assert!(self.config.contains(from), "{from}");
        self.config = self.config.replace(from, to);
    }

    pub fn config_file(&self) -> PathBuf {
        let path = self.path("config.toml");
        put(&path, self.config.replace("DIR", self.dir.path().to_str().unwrap()));
        path
    }

    pub fn doctor(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinboot"));
        command.arg("doctor").args(arguments).arg("--config").arg(self.config_file()).output().unwrap()
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
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

    pub fn checks(&self) -> Checks {
        checks(&self.json(&[]))
    }

    /// That the check finds this level, evidence and advice; what it found is returned.
    #[track_caller]
    pub fn finds(&self, check: &str, level: &str, evidence: &str) -> String {
        let checks = self.checks();
        let found = checks.get(check).unwrap_or_else(|| panic!("no {check} in {checks:#?}"));
        assert!(found.0 == level && found.1.contains(evidence), "{check}: {found:#?}");
        assert_eq!(found.2.is_empty(), level == "ok", "advice: {found:#?}");
        found.2.clone()
    }

    /// That `--fix` repairs what the check finds, and says so.
    #[track_caller]
    pub fn is_fixed(&self, check: &str) {
        let json = self.json(&["--fix"]);
        let repairs = json["repairs"].as_array().unwrap();
        let done = repairs.iter().find(|repair| repair["check"] == check).unwrap_or(&Value::Null);
        assert_eq!(done["done"], true, "{json:#}");
        assert_eq!(checks(&json)[check].0, "ok", "{json:#}");
    }

    #[track_caller]
    pub fn is_not_fixed(&self, check: &str) {
        let json = self.json(&["--fix"]);
        assert!(
            json["repairs"].as_array().unwrap().iter().all(|repair| repair["check"] != check),
            "{json:#}"
        );
    }

    pub fn bytes(&self, number: u8) -> Vec<u8> {
        fs::read(self.path(&format!("env-{number}"))).unwrap()
    }

    pub fn damage(&self, number: u8) {
        let file = OpenOptions::new().write(true).open(self.path(&format!("env-{number}"))).unwrap();
        file.write_all_at(&[0xA5; 64], 100).unwrap();
    }
}

pub fn checks(json: &Value) -> Checks {
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let findings = json["checks"].as_array().unwrap().iter();
    findings
        .map(|finding| {
            let found = (text(finding, "level"), text(finding, "evidence"), text(finding, "advice"));
            (text(finding, "check"), found)
        })
        .collect()
}

/// What the doctor finds in a mount namespace of its own, after `script` with the board's directory as `$dir`.
pub fn beside(board: &Board, script: &str) -> Checks {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-euc", &format!("dir=$1; shift; {script}; exec \"$@\""), "sh"]);
    command.arg(board.dir.path()).arg(env!("CARGO_BIN_EXE_twinboot"));
    let output = command.args(["doctor", "--json", "--config"]).arg(board.config_file()).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    checks(&serde_json::from_slice(&output.stdout).unwrap())
}

/// A disk of 32 MiB with the partitions of a board; gone when dropped.
pub struct Disk {
    pub device: PathBuf,
    partitions: Vec<u32>,
}

/// Number, first sector, sectors.
pub const PARTITIONS: [(u32, u64, u64); 3] = [(2, 0x2800, 0x4000), (3, 0x6800, 0x4000), (4, 0xA800, 0x2000)];

impl Disk {
    /// `None` where this is not root.
    pub fn new(dir: &Path, partitions: &[(u32, u64, u64)]) -> Option<Self> {
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

    pub fn partition(&self, number: u32) -> PathBuf {
        PathBuf::from(format!("{}p{number}", self.device.display()))
    }

    /// Slots a and b of the board, and its environment, on this disk.
    pub fn becomes_that_of(&self, board: &mut Board, [a, b]: [u32; 2]) {
        for (name, number) in [("DIR/slot_a", a), ("DIR/slot_b", b)] {
            board.configure(name, &self.partition(number).display().to_string());
        }
        self.holds_environment(board, [0x10_0000, 0x14_0000]);
    }

    pub fn holds_environment(&self, board: &Board, offsets: [u64; 2]) {
        self.holds_environment_in(board, &self.device, offsets);
    }

    /// In the whole disk, or in a partition.
    pub fn holds_environment_in(&self, board: &Board, device: &Path, offsets: [u64; 2]) {
        let lines: String =
            offsets.map(|offset| format!("{} {offset:#x} {ENV_BYTES:#x}\n", device.display())).concat();
        put(&board.path("fw_env.config"), lines);
        for (number, offset) in [(1, offsets[0]), (2, offsets[1])] {
            let raw = OpenOptions::new().write(true).open(device).unwrap();
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
