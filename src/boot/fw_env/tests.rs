use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use tempfile::TempDir;

use super::*;

const SIZE: usize = 0x1000;

/// A directory with the environment's files and its `fw_env.config`.
struct Board {
    dir: TempDir,
}

impl Board {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        fs::File::create(self.path(name)).unwrap().write_all(bytes).unwrap();
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// `lines` are `NAME OFFSET SIZE`.
    fn env(&self, lines: &[&str]) -> UbootEnv {
        let dir = self.dir.path().display();
        let text: String = lines.iter().map(|line| format!("{dir}/{line}\n")).collect();
        self.put("fw_env.config", text.as_bytes());
        UbootEnv::new(&self.path("fw_env.config"), &[self.path("lock")]).unwrap()
    }

    /// Two files; `None` is a copy with a bad checksum.
    fn redundant(copies: [Option<(&str, u8)>; 2]) -> (Self, UbootEnv) {
        let board = Self { dir: tempfile::tempdir().unwrap() };
        for (name, copy) in ["one", "two"].into_iter().zip(copies) {
            board.put(name, &copy.map_or(vec![0xFF; SIZE], |(text, flags)| image(true, text, flags)));
        }
        let env = board.env(&["one 0 1000", "two 0 1000"]);
        (board, env)
    }

    fn single(text: &str) -> (Self, UbootEnv) {
        let board = Self { dir: tempfile::tempdir().unwrap() };
        board.put("only", &image(false, text, 0));
        let env = board.env(&["only 0 1000"]);
        (board, env)
    }
}

fn image(redundant: bool, text: &str, flags: u8) -> Vec<u8> {
    let layout = Layout { size_bytes: SIZE, redundant, byte_order: ByteOrder::NATIVE };
    layout.encode(&Environment::parse(text.replace('|', "\0").as_bytes()), flags).unwrap()
}

fn set(name: &str, value: &str) -> EnvPatch {
    EnvPatch([(name.to_owned(), Some(value.to_owned()))].into())
}

const CHANGED: Written = Written::Changed { repaired: false };

#[test]
fn a_write_goes_to_the_copy_that_is_not_taken_and_to_no_other() {
    let (board, mut env) = Board::redundant([Some(("slot=a|x=1", 7)), Some(("slot=b", 6))]);
    let untouched = board.bytes("one");
    assert_eq!(env.write(&set("slot", "c")).unwrap(), CHANGED);
    assert_eq!(board.bytes("one"), untouched);
    assert_eq!(board.bytes("two"), image(true, "slot=c|x=1", 8));
    assert_eq!(env.read().unwrap()["slot"], "c");

    assert_eq!(env.write(&set("slot", "d")).unwrap(), CHANGED);
    assert_eq!(board.bytes("one"), image(true, "slot=d|x=1", 9));
}

#[test]
fn the_serial_number_wraps() {
    let (board, mut env) = Board::redundant([Some(("slot=a", 0xFF)), Some(("slot=b", 0xFE))]);
    assert_eq!(env.write(&set("slot", "c")).unwrap(), CHANGED);
    assert_eq!(board.bytes("two"), image(true, "slot=c", 0));
    assert_eq!(env.read().unwrap()["slot"], "c");
}

#[test]
fn a_patch_that_changes_nothing_writes_nothing() {
    let (board, mut env) = Board::redundant([Some(("slot=a", 1)), Some(("slot=a", 2))]);
    let before = [board.bytes("one"), board.bytes("two")];
    assert_eq!(env.write(&set("slot", "a")).unwrap(), Written::Unchanged { damaged: false });
    assert_eq!(env.write(&EnvPatch::default()).unwrap(), Written::Unchanged { damaged: false });
    assert_eq!([board.bytes("one"), board.bytes("two")], before);
}

#[test]
fn a_damaged_copy_is_reported_and_the_next_change_repairs_it() {
    let (board, mut env) = Board::redundant([None, Some(("slot=a", 2))]);
    assert_eq!(env.write(&set("slot", "a")).unwrap(), Written::Unchanged { damaged: true });
    assert_eq!(board.bytes("one"), vec![0xFF; SIZE]);
    assert_eq!(env.write(&set("slot", "b")).unwrap(), Written::Changed { repaired: true });
    assert_eq!(board.bytes("one"), image(true, "slot=b", 3));
    assert_eq!(env.write(&set("slot", "b")).unwrap(), Written::Unchanged { damaged: false });
}

#[test]
fn a_copy_that_cannot_be_read_is_written_again_and_the_other_one_counts() {
    for text in ["slot=b", "slot=a"] {
        let (board, env) = Board::redundant([Some(("slot=a", 2)), Some(("slot=b", 1))]);
        let storage = env.storage().unwrap();
        // What was found, and gives no bytes any more.
        fs::File::create(board.path("one")).unwrap();
        let old = storage.load().unwrap();
        assert_eq!((old.environment.get("slot"), old.other_is_bad), (Some(b"b".as_slice()), true));
        // Also where the other one is as it should be: the boot loader may have taken this one.
        let (name, value) = text.split_once('=').unwrap();
        assert_eq!(storage.write(&set(name, value)).unwrap(), Written::Changed { repaired: true });
        assert_eq!(board.bytes("one"), image(true, text, 2));
        assert_eq!(board.bytes("two"), image(true, "slot=b", 1));
        assert_eq!(storage.write(&set(name, value)).unwrap(), Written::Unchanged { damaged: false });
    }
    let (board, env) = Board::redundant([Some(("slot=a", 2)), Some(("slot=b", 1))]);
    let storage = env.storage().unwrap();
    for name in ["one", "two"] {
        fs::File::create(board.path(name)).unwrap();
    }
    assert!(matches!(storage.write(&set("slot", "a")), Err(BootEnvError::Read { .. })));
}

/// systemd makes such links from version 255 on.
#[test]
fn flash_by_its_name_is_written_through_its_block_device_too() {
    let (board, _) = Board::redundant([None, None]);
    board.put("mtd3", b"");
    symlink("mtd3", board.path("by-name-env")).unwrap();
    let env = board.env(&["by-name-env 0 1000", "mtd4 0 1000"]);
    let dir = fs::canonicalize(board.dir.path()).unwrap();
    let blocks: Vec<_> =
        env.paths().into_iter().filter(|path| path.to_string_lossy().contains("block")).collect();
    assert_eq!(blocks, [dir.join("mtdblock3"), board.path("mtdblock4")]);
}

/// Shows rauc/rauc#1140, #1136.
#[test]
fn with_no_good_copy_nothing_is_written() {
    let (board, mut env) = Board::redundant([None, None]);
    assert!(matches!(env.read(), Err(BootEnvError::NoGoodCopy { .. })));
    assert!(matches!(env.write(&set("slot", "a")), Err(BootEnvError::NoGoodCopy { .. })));
    assert_eq!([board.bytes("one"), board.bytes("two")], [vec![0xFF; SIZE], vec![0xFF; SIZE]]);
}

/// Shows F9.
#[test]
fn a_change_that_does_not_fit_is_refused_before_anything_is_written() {
    let (board, mut env) = Board::redundant([Some(("slot=a", 1)), Some(("slot=b", 2))]);
    let before = [board.bytes("one"), board.bytes("two")];
    let mut patch = set("slot", "c");
    patch.0.insert("big".to_owned(), Some("x".repeat(SIZE)));
    assert!(matches!(env.write(&patch), Err(BootEnvError::Patch { source: PatchError::DoesNotFit(_) })));
    assert_eq!([board.bytes("one"), board.bytes("two")], before);
}

#[test]
fn a_missing_file_is_not_made_and_a_short_one_not_lengthened() {
    let (board, mut env) = Board::redundant([Some(("slot=a", 1)), Some(("slot=b", 2))]);
    fs::remove_file(board.path("one")).unwrap();
    assert!(matches!(env.write(&set("slot", "c")), Err(BootEnvError::Locate { .. })));
    assert!(!board.path("one").exists());
    board.put("one", b"short");
    assert!(matches!(env.write(&set("slot", "c")), Err(BootEnvError::OutOfRange { length_bytes: 5, .. })));
    assert_eq!(board.bytes("one"), b"short");
    assert_eq!(board.bytes("two"), image(true, "slot=b", 2));
}

#[test]
fn two_copies_in_one_file_are_found_from_its_start_and_its_end_and_the_rest_is_left_alone() {
    let board = Board { dir: tempfile::tempdir().unwrap() };
    let mut disk = vec![0xAA; 0x5000];
    disk[0x1000..0x2000].copy_from_slice(&image(true, "slot=a", 1));
    board.put("disk", &disk);
    let mut env = board.env(&["disk 0x1000 1000", "disk -0x1000 1000"]);
    assert_eq!(env.write(&set("slot", "b")).unwrap(), Written::Changed { repaired: true });
    disk[0x4000..].copy_from_slice(&image(true, "slot=b", 2));
    assert_eq!(board.bytes("disk"), disk);
}

#[test]
fn copies_that_one_cut_could_harm_together_are_refused() {
    let (board, _) = Board::redundant([Some(("slot=a", 1)), Some(("slot=b", 2))]);
    board.put("disk", &[0; 0x4000]);
    symlink(board.path("disk"), board.path("link")).unwrap();
    for lines in [
        ["one 0 1000", "one 0 1000"],
        ["disk 0 1000", "disk 0x0800 1000"],
        ["disk 0 1000", "link 0 1000"],
        ["disk 0 0x1010", "disk 0x1010 0x1010"],
    ] {
        let error = board.env(&lines).write(&set("slot", "c")).unwrap_err();
        assert!(matches!(error, BootEnvError::CopiesTooClose { .. }), "{lines:?}: {error}");
    }
}

/// Shows canonical/snapd#5145, #5148.
#[test]
fn a_single_copy_that_is_a_file_is_replaced_whole() {
    let (board, _) = Board::single("slot=a|x=1");
    fs::set_permissions(board.path("only"), fs::Permissions::from_mode(0o640)).unwrap();
    board.put("only.twinboot-new", b"left by a power cut");
    symlink("only", board.path("link")).unwrap();
    let old = fs::metadata(board.path("only")).unwrap().ino();

    let mut env = board.env(&["link 0 1000"]);
    assert_eq!(env.write(&set("slot", "b")).unwrap(), CHANGED);
    assert_eq!(board.bytes("only"), image(false, "slot=b|x=1", 0));
    let metadata = fs::metadata(board.path("only")).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o640);
    assert_ne!(metadata.ino(), old);
    assert!(board.path("link").is_symlink());
    assert!(!board.path("only.twinboot-new").exists());
}

#[test]
fn a_single_copy_that_is_part_of_something_is_refused() {
    let (board, _) = Board::single("slot=a");
    let mut disk = image(false, "slot=a", 0);
    disk.resize(0x2000, 0);
    board.put("disk", &disk);
    let mut env = board.env(&["disk 0 1000"]);
    assert_eq!(env.read().unwrap()["slot"], "a");
    assert!(matches!(env.write(&set("slot", "b")), Err(BootEnvError::SingleCopy { .. })));
    assert_eq!(board.bytes("disk"), disk);
}

/// Shows F11.
#[test]
fn while_another_program_holds_the_lock_nothing_is_read_or_written() {
    let (board, mut env) = Board::redundant([Some(("slot=a", 1)), Some(("slot=b", 2))]);
    env.lock_limit = Duration::ZERO;
    let held = lock::take(&[board.path("lock")], Duration::ZERO).unwrap();
    assert!(matches!(env.read(), Err(BootEnvError::LockHeld { .. })));
    assert!(matches!(env.write(&set("slot", "c")), Err(BootEnvError::LockHeld { .. })));
    drop(held);
    assert_eq!(env.write(&set("slot", "c")).unwrap(), CHANGED);
}

#[test]
fn on_flash_the_old_copy_is_marked_obsolete_after_the_new_one_is_good() {
    for (flags, taken) in [([1, 0], 0), ([0, 1], 1), ([1, 1], 0), ([0xFF, 0], 0), ([1, 0xFF], 1)] {
        let board = Board { dir: tempfile::tempdir().unwrap() };
        let mut disk = image(true, "slot=a", flags[0]);
        disk.extend(image(true, "slot=b", flags[1]));
        board.put("flash", &disk);
        let path = board.path("flash");
        let copies = [0, 0x1000].map(|offset| Region::flash_like(&path, offset, SIZE, 0x1000));
        let storage = Storage::redundant(copies).unwrap();

        let old = storage.load().unwrap();
        assert_eq!(old.environment.get("slot"), Some(["a", "b"][taken].as_bytes()), "{flags:?}");
        let new = image(true, "slot=c", storage.flag_scheme().successor(old.flags));
        storage.store(&new, old.taken).unwrap();

        let disk = board.bytes("flash");
        let copies = [&disk[..SIZE], &disk[SIZE..]];
        assert_eq!(copies[1 - taken], image(true, "slot=c", 1), "{flags:?}");
        assert_eq!(copies[taken], image(true, ["slot=a", "slot=b"][taken], 0), "{flags:?}");
    }
}

#[test]
fn a_copy_that_would_not_be_taken_is_an_error() {
    let (board, _) = Board::redundant([Some(("slot=a", 5)), Some(("slot=b", 4))]);
    let path = |name| config::parse(&format!("{} 0 1000", board.path(name).display())).unwrap();
    let region = |name| match path(name) {
        FwEnvConfig::Single(location) => Region::locate(&location, Path::new("/sys")).unwrap(),
        FwEnvConfig::Redundant(_) => panic!("one line"),
    };
    let storage = Storage::redundant([region("one"), region("two")]).unwrap();
    let stale = image(true, "slot=c", 3);
    assert!(matches!(storage.store(&stale, CopyIndex::First), Err(BootEnvError::NotTaken { .. })));
}

#[test]
fn a_special_file_is_refused_and_a_read_back_that_differs_is_an_error() {
    let location = Location {
        path: "/dev/null".into(),
        offset_bytes: 0,
        size_bytes: SIZE,
        sector_bytes: None,
        sectors: None,
    };
    let error = Region::locate(&location, Path::new("/sys")).unwrap_err();
    assert!(matches!(error, BootEnvError::Unsupported { .. }), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::File::create(&path).unwrap().set_len(SIZE as u64).unwrap();
    let region = Region::locate(&Location { path, ..location }, Path::new("/sys")).unwrap();
    let error = check_read_back(&region, &image(true, "slot=a", 1)).unwrap_err();
    assert!(matches!(error, BootEnvError::ReadBackDiffers { .. }));
}

/// Shows sbabic/libubootenv#15, #16, #23.
#[test]
fn a_config_that_is_missing_or_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fw_env.config");
    assert!(
        matches!(UbootEnv::new(&path, &[]), Err(BootEnvError::ReadConfig { path: named, .. }) if named == path)
    );
    fs::File::create(&path).unwrap().write_all(b"uboot:\n  size : 0x4000\n").unwrap();
    let error = UbootEnv::new(&path, &[]).unwrap_err();
    assert!(error.to_string().contains("fw_env.config"), "{error}");
    let source = std::error::Error::source(&error).unwrap().to_string();
    fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    assert!(matches!(UbootEnv::new(&path, &[]), Err(BootEnvError::ReadConfig { .. })));
    assert!(source.contains("line 1") && source.contains("YAML"), "{source}");
}
