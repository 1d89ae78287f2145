//! The U-Boot environment against the real tools, in both directions.
//!
//! Debian packages libubootenv's `fw_printenv` and `fw_setenv`, and `mkenvimage`, but no longer U-Boot's own
//! `fw_printenv`: what that one writes is in `tests/data/env`. Where `tests/lab/build-u-boot sandbox` has built it, it
//! takes part in all tests.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use twinboot::boot::fw_env::{BootEnvError, UbootEnv};
use twinboot::boot::scheme::Scheme;
use twinboot::boot::{BootControl, BootEnv, EnvPatch, Variables, Written};
use twinboot::config;
use twinboot::update::Slot;

const SIZE: usize = 0x400;
const START: &str = include_str!("data/env/start.txt");

/// The lock of both families of tools, in the versions that Debian has.
const LOCK: &str = "/var/lock/fw_printenv.lock";

/// One implementation of `fw_printenv` and `fw_setenv`.
struct Tools {
    name: &'static str,
    print: PathBuf,
    set: PathBuf,
}

/// libubootenv's, which must be there, and U-Boot's own where it was built.
fn tools() -> Vec<Tools> {
    let mut tools = vec![Tools { name: "libubootenv", print: "fw_printenv".into(), set: "fw_setenv".into() }];
    let lab = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("lab");
    let places = fs::read_dir(lab).into_iter().flatten().flatten();
    match places.map(|entry| entry.path()).find(|place| place.join("fw_setenv").exists()) {
        Some(built) => {
            let (print, set) = (built.join("fw_printenv"), built.join("fw_setenv"));
            tools.push(Tools { name: "u-boot", print, set });
        }
        None => eprintln!("U-Boot's own fw_setenv is left out: `tests/lab/build-u-boot sandbox` makes it"),
    }
    tools
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| {
        let program = command.get_program().display();
        panic!("{program}: {error}; these tests need `apt-get install libubootenv-tool u-boot-tools`")
    })
}

fn succeed(command: &mut Command) -> String {
    let output = run(command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn variables(text: &str) -> Variables {
    text.lines()
        .map(|line| line.split_once('=').unwrap_or_else(|| panic!("no variable: {line}")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn patch(changes: &[(&str, Option<&str>)]) -> EnvPatch {
    EnvPatch(changes.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect())
}

impl Tools {
    fn print(&self, config: &Path) -> Variables {
        variables(&succeed(Command::new(&self.print).arg("-c").arg(config)))
    }

    fn set(&self, config: &Path, name: &str, value: &str) {
        succeed(Command::new(&self.set).arg("-c").arg(config).arg(name).arg(value));
    }

    /// Without a value: libubootenv would store an empty one.
    fn delete(&self, config: &Path, name: &str) {
        succeed(Command::new(&self.set).arg("-c").arg(config).arg(name));
    }
}

/// Files, or a device, that hold an environment, and the `fw_env.config` that says so.
struct Board {
    dir: TempDir,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copies {
    Single,
    Redundant,
}

impl Copies {
    const BOTH: [Self; 2] = [Self::Single, Self::Redundant];

    fn count(self) -> usize {
        if self == Self::Single { 1 } else { 2 }
    }
}

impl Board {
    fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// Copies as `mkenvimage` makes them.
    fn new(copies: Copies) -> Self {
        let board = Self::empty();
        for copy in 1..=copies.count() {
            mkenvimage(START, copies, &board.copy(copy));
        }
        board.configure(copies.count());
        board
    }

    /// Copies as they are in `tests/data/env`.
    fn golden(name: &str, copies: Copies) -> Self {
        let board = Self::empty();
        let kind = format!("{copies:?}").to_lowercase();
        for copy in 1..=copies.count() {
            let golden = format!("{}/tests/data/env/{name}-{kind}-{copy}.bin", env!("CARGO_MANIFEST_DIR"));
            fs::copy(&golden, board.copy(copy)).unwrap_or_else(|error| panic!("{golden}: {error}"));
        }
        board.configure(copies.count());
        board
    }

    fn copy(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("copy-{number}"))
    }

    fn bytes(&self, number: usize) -> Vec<u8> {
        fs::read(self.copy(number)).unwrap()
    }

    fn put(&self, number: usize, bytes: &[u8]) {
        File::create(self.copy(number)).unwrap().write_all(bytes).unwrap();
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("fw_env.config")
    }

    fn configure(&self, copies: usize) {
        let lines: String =
            (1..=copies).map(|copy| format!("{} 0x0 {SIZE:#x}\n", self.copy(copy).display())).collect();
        self.write_config(&lines);
    }

    fn write_config(&self, text: &str) {
        File::create(self.config()).unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn env(&self) -> UbootEnv {
        UbootEnv::new(&self.config(), &[PathBuf::from(LOCK), self.dir.path().join("other.lock")]).unwrap()
    }

    fn control(&self, scheme: Scheme) -> BootControl {
        let boot = config::Boot {
            scheme,
            environment: self.config(),
            attempts: 3,
            lock_files: vec![PathBuf::from(LOCK)],
        };
        BootControl::open(&boot).unwrap()
    }
}

fn mkenvimage(text: &str, copies: Copies, path: &Path) {
    let mut source = tempfile::NamedTempFile::new().unwrap();
    source.write_all(text.as_bytes()).unwrap();
    let mut command = Command::new("mkenvimage");
    if copies == Copies::Redundant {
        command.arg("-r");
    }
    succeed(command.args(["-s", &SIZE.to_string(), "-o"]).arg(path).arg(source.path()));
}

#[test]
fn what_mkenvimage_makes_is_read_as_the_tools_read_it() {
    for copies in Copies::BOTH {
        let board = Board::new(copies);
        assert_eq!(board.env().read().unwrap(), variables(START), "{copies:?}");
        for tools in tools() {
            assert_eq!(tools.print(&board.config()), variables(START), "{copies:?} {}", tools.name);
        }
    }
}

#[test]
fn what_the_tools_write_is_read_here() {
    for copies in Copies::BOTH {
        for tools in tools() {
            let board = Board::new(copies);
            tools.set(&board.config(), "boot_slot", "b");
            tools.set(&board.config(), "added", "one two");
            tools.delete(&board.config(), "obsolete");
            let read = board.env().read().unwrap();
            assert_eq!(read, tools.print(&board.config()), "{copies:?} {}", tools.name);
            assert_eq!((read["boot_slot"].as_str(), read["added"].as_str()), ("b", "one two"));
            assert!(!read.contains_key("obsolete"));
        }
    }
}

#[test]
fn what_is_written_here_is_read_by_the_tools() {
    for copies in Copies::BOTH {
        let board = Board::new(copies);
        let changes = [("boot_slot", Some("b")), ("added", Some("one two")), ("obsolete", None)];
        let written = board.env().write(&patch(&changes)).unwrap();
        assert_eq!(written, Written::Changed { repaired: false }, "{copies:?}");
        let expected = board.env().read().unwrap();
        assert_eq!((expected["boot_slot"].as_str(), expected["added"].as_str()), ("b", "one two"));
        for tools in tools() {
            assert_eq!(tools.print(&board.config()), expected, "{copies:?} {}", tools.name);
        }
    }
}

#[test]
fn the_golden_environments_of_both_families_are_read() {
    let mut expected = variables(START);
    expected.insert("boot_slot".into(), "b".into());
    expected.insert("upgrade_available".into(), "1".into());
    expected.insert("added".into(), "one two".into());
    expected.remove("obsolete");
    for copies in Copies::BOTH {
        for writer in ["u-boot", "libubootenv"] {
            let board = Board::golden(writer, copies);
            assert_eq!(board.env().read().unwrap(), expected, "{writer} {copies:?}");
        }
        let board = Board::golden("mkenvimage", copies);
        assert_eq!(board.env().read().unwrap(), variables(START), "mkenvimage {copies:?}");
    }
}

#[test]
fn new_variables_give_the_very_bytes_that_u_boots_own_tool_writes() {
    for copies in Copies::BOTH {
        let golden = Board::golden("u-boot-appended", copies);
        let board = Board::empty();
        for copy in 1..=copies.count() {
            mkenvimage(START, copies, &board.copy(copy));
        }
        board.configure(copies.count());
        board.env().write(&patch(&[("first", Some("1"))])).unwrap();
        board.env().write(&patch(&[("second", Some("2 3"))])).unwrap();
        for copy in 1..=copies.count() {
            assert_eq!(board.bytes(copy), golden.bytes(copy), "{copies:?} copy {copy}");
        }
    }
}

/// More than 256 writes, so that the serial number wraps whoever has the turn.
#[test]
fn the_tools_and_this_program_take_turns_and_each_sees_the_others_write() {
    let tools = tools();
    let board = Board::new(Copies::Redundant);
    for turn in 0..300 {
        let value = turn.to_string();
        let other = &tools[turn % tools.len()];
        if turn % 3 == 0 {
            other.set(&board.config(), "turn", &value);
            assert_eq!(board.env().read().unwrap()["turn"], value, "{}", other.name);
        } else {
            board.env().write(&patch(&[("turn", Some(&value))])).unwrap();
            assert_eq!(other.print(&board.config())["turn"], value, "{}", other.name);
        }
    }
}

#[test]
fn a_value_that_is_not_utf8_survives_a_write() {
    let board = Board::new(Copies::Redundant);
    let set = Command::new("fw_setenv")
        .arg("-c")
        .arg(board.config())
        .arg("label")
        .arg(OsStr::from_bytes(b"caf\xe9"))
        .status();
    assert!(set.unwrap().success());
    board.env().write(&patch(&[("boot_slot", Some("b"))])).unwrap();
    for tools in tools() {
        let output = run(Command::new(&tools.print).arg("-c").arg(board.config()).arg("label"));
        assert_eq!(output.stdout, b"label=caf\xe9\n", "{}", tools.name);
    }
}

/// The tools are the judges of what a power cut leaves; the codec's own tests take every byte.
#[test]
fn after_a_cut_within_a_write_the_tools_see_the_old_or_the_new_environment() {
    let board = Board::new(Copies::Redundant);
    board.env().write(&patch(&[("boot_slot", Some("b"))])).unwrap();
    let before = [board.bytes(1), board.bytes(2)];
    let old = board.env().read().unwrap();
    board.env().write(&patch(&[("boot_slot", Some("a")), ("upgrade_available", Some("1"))])).unwrap();
    let new = board.env().read().unwrap();
    let after = board.bytes(1);
    assert_eq!(board.bytes(2), before[1], "the copy that was taken");

    for cut in (0..8).chain((8..SIZE).step_by(61)).chain([SIZE - 1, SIZE]) {
        board.put(1, &[&after[..cut], &before[0][cut..]].concat());
        let read = board.env().read().unwrap();
        assert!(read == old || read == new, "cut after {cut} bytes");
        for tools in tools() {
            assert_eq!(tools.print(&board.config()), read, "{} after {cut} bytes", tools.name);
        }
    }
    assert_eq!(board.env().read().unwrap(), new);
}

/// Shows nerves-project/nerves_runtime#375.
#[test]
fn a_copy_damaged_by_a_cut_is_repaired_by_the_next_write() {
    let board = Board::new(Copies::Redundant);
    board.put(1, &[0xFF; SIZE]);
    let written = board.env().write(&patch(&[("boot_slot", Some("b"))])).unwrap();
    assert_eq!(written, Written::Changed { repaired: true });
    board.put(2, &[0xFF; SIZE]);
    for tools in tools() {
        assert_eq!(tools.print(&board.config())["boot_slot"], "b", "{}", tools.name);
    }
}

/// Shows F8; rauc/rauc#1140, #1136; sbabic/swupdate#5.
#[test]
fn where_no_copy_is_good_nothing_is_written() {
    let board = Board::new(Copies::Redundant);
    board.put(1, &[0xFF; SIZE]);
    board.put(2, &[0; SIZE]);
    let error = board.env().write(&patch(&[("boot_slot", Some("b"))])).unwrap_err();
    assert!(matches!(error, BootEnvError::NoGoodCopy { .. }), "{error}");
    assert_eq!((board.bytes(1), board.bytes(2)), (vec![0xFF; SIZE], vec![0; SIZE]));
    assert!(!run(Command::new("fw_printenv").arg("-c").arg(board.config())).status.success());
}

/// Each of them reads all, adds one and writes all: without a common lock some would be lost.
/// Shows F11.
#[test]
fn no_write_is_lost_among_programs_that_write_at_once() {
    let board = Board::new(Copies::Redundant);
    let tools = tools();
    let others: Vec<_> = (0..24)
        .map(|number| {
            let mut command = Command::new(&tools[number % tools.len()].set);
            command.arg("-c").arg(board.config()).args([format!("theirs_{number}"), "1".into()]);
            command.spawn().unwrap()
        })
        .collect();
    for number in 0..24 {
        board.env().write(&patch(&[(&format!("ours_{number}"), Some("1"))])).unwrap();
    }
    for mut other in others {
        assert!(other.wait().unwrap().success());
    }
    let read = board.env().read().unwrap();
    for number in 0..24 {
        assert!(read.contains_key(&format!("ours_{number}")), "{number}: {read:?}");
        assert!(read.contains_key(&format!("theirs_{number}")), "{number}: {read:?}");
    }
}

/// Shows F7.
#[test]
fn each_decision_of_each_scheme_reaches_the_medium_in_one_write() {
    let mender = Scheme::Mender { part_a: 2, part_b: 3 };
    for (scheme, name, [on_a, on_b]) in [
        (Scheme::Bootcount, "boot_slot", ["a", "b"]),
        (Scheme::Rauc, "BOOT_ORDER", ["A", "B A"]),
        (mender, "mender_boot_part", ["2", "3"]),
    ] {
        let board = Board::new(Copies::Redundant);
        let mut control = board.control(scheme);
        let printed = || tools()[0].print(&board.config()).remove(name);
        let serial = || [board.bytes(1)[4], board.bytes(2)[4]].into_iter().max();
        control.roll_back(Slot::A).unwrap();
        control.commit(Slot::A).unwrap();

        let before = serial().unwrap();
        control.activate(Slot::B).unwrap();
        assert_eq!(printed().as_deref(), Some(on_b), "{scheme:?}");
        assert_eq!(serial(), Some(before + 1), "{scheme:?}");
        assert_eq!(control.activate(Slot::B).unwrap(), Written::Unchanged { damaged: false });
        assert_eq!(control.view().unwrap().primary, Slot::B);

        control.roll_back(Slot::A).unwrap();
        assert_eq!(printed().as_deref(), Some(on_a), "{scheme:?}");
        assert_eq!(control.view().unwrap().primary, Slot::A);
        assert_eq!(serial(), Some(before + 2), "{scheme:?}");
        assert_eq!(control.confirm(Slot::A).unwrap(), Written::Unchanged { damaged: false });
    }
}

/// Shows rauc/rauc#643, #165, meta-rauc-community#33.
#[test]
fn a_slot_that_is_about_to_be_overwritten_is_not_booted_under_rauc() {
    let board = Board::new(Copies::Redundant);
    let mut control = board.control(Scheme::Rauc);
    assert_eq!(control.disable(Slot::B).unwrap(), Written::Changed { repaired: false });
    let view = control.view().unwrap();
    assert_eq!((view.primary, view.bootable(Slot::B)), (Slot::A, Some(false)));
    assert_eq!(tools()[0].print(&board.config())["BOOT_B_LEFT"], "0");

    // The boot script took one for this boot.
    tools()[0].set(&board.config(), "BOOT_A_LEFT", "2");
    assert_eq!(control.confirm(Slot::A).unwrap(), Written::Changed { repaired: false });
    assert_eq!(tools()[0].print(&board.config())["BOOT_A_LEFT"], "3");
}

/// A loop device over a file; detached, and writable again, when dropped.
struct LoopDevice {
    path: PathBuf,
}

impl LoopDevice {
    fn over(file: &Path) -> Self {
        let path = succeed(Command::new("losetup").args(["--find", "--show"]).arg(file));
        Self { path: PathBuf::from(path.trim()) }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // The read-only flag would outlive the loop device.
        for (program, argument) in [("blockdev", "--setrw"), ("losetup", "--detach")] {
            let _ = Command::new(program).arg(argument).arg(&self.path).status();
        }
    }
}

/// What U-Boot reads, which knows ext4 but not its journal.
#[test]
fn a_file_that_was_replaced_on_ext4_is_found_without_the_journal() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not run: mounting needs root");
        return;
    }
    let board = Board::empty();
    let (disk, mounted) = (board.dir.path().join("disk"), board.dir.path().join("mounted"));
    File::create(&disk).unwrap().set_len(16 << 20).unwrap();
    succeed(Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&disk));
    fs::create_dir(&mounted).unwrap();
    succeed(Command::new("mount").args(["-o", "loop"]).args([&disk, &mounted]));
    let _mount = Mounted(mounted.clone());
    mkenvimage(START, Copies::Single, &mounted.join("uboot.env"));
    succeed(Command::new("sync").arg("--file-system").arg(&mounted));
    board.write_config(&format!("{} 0 {SIZE:#x}\n", mounted.join("uboot.env").display()));

    // What a power cut in this moment leaves; debugfs too reads no journal.
    let cut = board.dir.path().join("cut");
    let dump = format!("dump /uboot.env {}", board.copy(1).display());
    let assert_found = |slot: &str| {
        fs::copy(&disk, &cut).unwrap();
        succeed(Command::new("debugfs").args(["-R", &dump]).arg(&cut));
        let found = Board { dir: tempfile::tempdir().unwrap() };
        fs::copy(board.copy(1), found.copy(1)).unwrap();
        found.configure(1);
        assert_eq!(found.env().read().unwrap()["boot_slot"], slot);
    };
    let to_slot = |slot| patch(&[("boot_slot", Some(slot))]);
    board.env().write(&to_slot("b")).unwrap();
    assert_found("b");

    // Another process wrote it, and was killed before it could sync the directory.
    mkenvimage(&START.replace("boot_slot=a", "boot_slot=c"), Copies::Single, &mounted.join("new"));
    fs::rename(mounted.join("new"), mounted.join("uboot.env")).unwrap();
    assert_found("b");
    assert_eq!(board.env().write(&to_slot("c")).unwrap(), Written::Unchanged { damaged: false });
    assert_found("c");
}

/// Unmounted when dropped.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Shows openwrt/openwrt#4434.
#[test]
fn a_block_device_is_written_through_its_cache_and_read_past_it() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not run: loop devices need root");
        return;
    }
    // Neither the length of the disk nor the offsets are multiples of the page size.
    let (length, offset) = (0x8_0600, 0x1_0200);
    let board = Board::empty();
    let disk = board.dir.path().join("disk");
    File::create(&disk).unwrap().set_len(length).unwrap();
    mkenvimage(START, Copies::Redundant, &board.copy(1));
    let device = LoopDevice::over(&disk);
    let raw = OpenOptions::new().write(true).open(&device.path).unwrap();
    raw.write_all_at(&board.bytes(1), offset).unwrap();
    raw.sync_all().unwrap();
    board.write_config(&format!(
        "{0} {offset:#x} {SIZE:#x}\n{0} -{SIZE:#x} {SIZE:#x}\n",
        device.path.display()
    ));

    let written = board.env().write(&patch(&[("boot_slot", Some("b"))])).unwrap();
    assert_eq!(written, Written::Changed { repaired: true });
    for tools in tools() {
        assert_eq!(tools.print(&board.config())["boot_slot"], "b", "{}", tools.name);
    }
    let mut at_end = vec![0; SIZE];
    let direct = nix::fcntl::OFlag::O_DIRECT.bits();
    OpenOptions::new().read(true).custom_flags(direct).open(&device.path).unwrap();
    File::open(&disk).unwrap().read_exact_at(&mut at_end, length - SIZE as u64).unwrap();
    assert_eq!(at_end[4], 2, "the serial number after mkenvimage's 1");
    assert_eq!(board.env().write(&EnvPatch::default()).unwrap(), Written::Unchanged { damaged: false });

    succeed(Command::new("blockdev").arg("--setro").arg(&device.path));
    let error = board.env().write(&patch(&[("boot_slot", Some("a"))])).unwrap_err();
    assert!(matches!(error, BootEnvError::ReadOnly { .. }), "{error}");
    assert_eq!(board.env().read().unwrap()["boot_slot"], "b");
    succeed(Command::new("blockdev").arg("--setrw").arg(&device.path));
    board.env().write(&patch(&[("boot_slot", Some("a"))])).unwrap();

    board.write_config(&format!("{} {offset:#x} {SIZE:#x}\n", device.path.display()));
    let error = board.env().write(&patch(&[("boot_slot", Some("c"))])).unwrap_err();
    assert!(matches!(error, BootEnvError::NoGoodCopy { .. }), "the copies are redundant ones: {error}");
    mkenvimage(START, Copies::Single, &board.copy(1));
    raw.write_all_at(&board.bytes(1), offset).unwrap();
    let error = board.env().write(&patch(&[("boot_slot", Some("c"))])).unwrap_err();
    assert!(matches!(error, BootEnvError::SingleCopy { .. }), "{error}");
    assert_eq!(board.env().read().unwrap()["boot_slot"], "a");
}
