//! The board by itself: daemons of three lines of shell show what its boot loader and its power switch do.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hub_emulator::board::uboot_env::{ENV_SIZE_BYTES, UbootEnv, Variables};
use hub_emulator::board::{
    Board, BoardError, BoardOptions, FACTORY_VERSION, Scheme, Slot, Traits, board_image,
};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(30);
const SLOT_BYTES: u64 = 1024 * 1024;

/// Runs until it is stopped.
const IDLE: &str = "sleep 600 & wait";

/// Reboots each boot once, at once.
const REBOOTS: &str = "\"$dir/reboot.sh\"; sleep 600 & wait";

fn board(scheme: Scheme, daemon: &str) -> (TempDir, Board) {
    let dir = TempDir::new().unwrap();
    let program = dir.path().join("daemon.sh");
    // Called as `daemon run --config FILE`.
    let script = format!("#!/bin/sh\ndir=$(dirname \"$3\")\necho \"started: $*\" >&2\n{daemon}\n");
    let text = dir.path().join("daemon.txt");
    write(&text, script.as_bytes());
    // Another test may fork while this process has a file open; a program open for writing cannot be started.
    let installed = Command::new("install").args(["-m", "755"]).args([&text, &program]).status().unwrap();
    assert!(installed.success());
    let board = Board::create(&BoardOptions {
        dir: dir.path().join("board"),
        daemon: program,
        scheme,
        slot_size_bytes: SLOT_BYTES,
        hub_connection_string: Some(
            "HostName=localhost;DeviceId=d;SharedAccessKey=MDEyMzQ1Njc4OTAxMjM0NQ==".to_owned(),
        ),
        hub_port: 8883,
        ca_pem: None,
        extra_config: String::new(),
    });
    (dir, board.unwrap())
}

fn write(path: &Path, bytes: &[u8]) {
    std::io::Write::write_all(&mut File::create(path).unwrap(), bytes).unwrap();
}

fn flash(board: &Board, slot: Slot, version: &str, traits: Traits) {
    board.flash(slot, &mut board_image(version, traits, 100_000, 7).as_slice()).unwrap();
}

fn activate_b(board: &Board, scheme: Scheme) {
    let variables: &[(&str, &str)] = match scheme {
        Scheme::Bootcount => {
            &[("boot_slot", "b"), ("upgrade_available", "1"), ("bootcount", "0"), ("bootlimit", "3")]
        }
        Scheme::Rauc => &[("BOOT_ORDER", "B A"), ("BOOT_A_LEFT", "3"), ("BOOT_B_LEFT", "3")],
        Scheme::Mender => &[
            ("mender_boot_part", "3"),
            ("mender_boot_part_hex", "3"),
            ("upgrade_available", "1"),
            ("bootcount", "0"),
            ("bootlimit", "3"),
        ],
    };
    board.set_environment(variables).unwrap();
}

fn slots(board: &Board) -> Vec<Slot> {
    board.boots().into_iter().map(|boot| boot.slot).collect()
}

fn value(board: &Board, name: &str) -> String {
    board.environment().unwrap().get(name).cloned().unwrap_or_default()
}

#[tokio::test]
async fn a_new_board_boots_slot_a_and_tells_the_daemon_so() {
    let (_dir, mut board) = board(Scheme::Bootcount, IDLE);
    board.power_on().await.unwrap();
    assert_eq!(board.booted(), Some(Slot::A));
    let read = |name: &str| fs::read_to_string(board.dir().join(name)).unwrap();
    assert!(read("proc/cmdline").contains(" twinboot.slot=a"));
    assert!(read("os-release").contains(&format!("IMAGE_VERSION={FACTORY_VERSION}\n")));
    assert_eq!(read("proc/sys/kernel/random/boot_id").trim(), board.boots()[0].boot_id);
    assert_eq!(read("proc/self/mountinfo"), "");
    let mode = fs::metadata(board.dir().join("connection-string")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let health = Command::new(board.dir().join("health.d/10-app")).status().unwrap();
    assert!(health.success());
}

#[tokio::test]
async fn a_boot_outside_a_trial_writes_no_environment() {
    for scheme in [Scheme::Bootcount, Scheme::Mender] {
        let (_dir, mut board) = board(scheme, IDLE);
        let files = ["uboot.env", "uboot-redund.env"].map(|name| board.dir().join(name));
        let before = files.each_ref().map(|path| fs::read(path).unwrap());
        board.power_on().await.unwrap();
        assert_eq!(files.each_ref().map(|path| fs::read(path).unwrap()), before);
    }
}

#[tokio::test]
async fn a_trial_that_nobody_commits_is_booted_three_times_and_then_the_old_slot() {
    for scheme in [Scheme::Bootcount, Scheme::Rauc, Scheme::Mender] {
        let (_dir, mut board) = board(scheme, REBOOTS);
        flash(&board, Slot::B, "2.0", Traits::default());
        activate_b(&board, scheme);
        board.power_on().await.unwrap();
        board.wait_boots(5, LIMIT).await.unwrap();
        board.cut().await;
        use Slot::{A, B};
        assert_eq!(slots(&board)[..5], [B, B, B, A, A], "{scheme:?}");
        assert!(board.boots().iter().all(|boot| boot.attempt == 1), "{scheme:?}");
        let mut ids: Vec<String> = board.boots().into_iter().map(|boot| boot.boot_id).collect();
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), board.boots().len());
    }
}

#[tokio::test]
async fn a_committed_slot_is_booted_for_good() {
    let (_dir, mut board) = board(Scheme::Bootcount, IDLE);
    flash(&board, Slot::B, "2.0", Traits::default());
    activate_b(&board, Scheme::Bootcount);
    board.power_on().await.unwrap();
    assert_eq!(value(&board, "bootcount"), "1");
    board.set_environment(&[("upgrade_available", "0"), ("bootcount", "0")]).unwrap();
    for _ in 0..4 {
        board.cut().await;
        board.power_on().await.unwrap();
    }
    assert_eq!(slots(&board), [Slot::B; 5]);
    assert_eq!(value(&board, "bootcount"), "0");
}

#[tokio::test]
async fn a_slot_that_panics_uses_up_its_trial_without_ever_running() {
    for scheme in [Scheme::Bootcount, Scheme::Rauc, Scheme::Mender] {
        let (_dir, mut board) = board(scheme, IDLE);
        flash(&board, Slot::B, "2.0", Traits::PANICS);
        activate_b(&board, scheme);
        board.power_on().await.unwrap();
        assert_eq!(slots(&board), [Slot::A], "{scheme:?}");
        assert_eq!(board.boots()[0].attempt, 4, "{scheme:?}");
        assert!(board.console().contains("slot b: kernel panic"));
    }
}

#[tokio::test]
async fn an_image_that_is_cut_short_or_torn_does_not_boot() {
    let whole = board_image("2.0", Traits::default(), 100_000, 7);
    let mut torn = whole.clone();
    torn[60_000] ^= 1;
    for image in [&whole[..99_999], &torn[..], &[]] {
        let (_dir, mut board) = board(Scheme::Bootcount, IDLE);
        board.flash(Slot::B, &mut &image[..]).unwrap();
        activate_b(&board, Scheme::Bootcount);
        board.power_on().await.unwrap();
        assert_eq!(slots(&board), [Slot::A]);
    }
}

#[tokio::test]
async fn a_board_with_nothing_to_boot_is_bricked() {
    for scheme in [Scheme::Bootcount, Scheme::Rauc] {
        let (_dir, mut board) = board(scheme, IDLE);
        flash(&board, Slot::A, "1.0", Traits::PANICS);
        let error = board.power_on().await.unwrap_err();
        assert!(matches!(error, BoardError::Bricked { tries: 20, .. }), "{error}");
        assert_eq!(board.booted(), None);
    }
}

#[tokio::test]
async fn rauc_gives_the_attempts_back_when_all_are_used_up() {
    let (_dir, mut board) = board(Scheme::Rauc, IDLE);
    board.set_environment(&[("BOOT_ORDER", "A"), ("BOOT_A_LEFT", "0"), ("BOOT_B_LEFT", "0")]).unwrap();
    board.power_on().await.unwrap();
    assert_eq!((value(&board, "BOOT_A_LEFT").as_str(), value(&board, "BOOT_B_LEFT").as_str()), ("2", "3"));
    assert_eq!(board.boots()[0].attempt, 2);
    let command_line = fs::read_to_string(board.dir().join("proc/cmdline")).unwrap();
    assert!(command_line.contains(" rauc.slot=A"));
}

#[tokio::test]
async fn a_killed_daemon_runs_again_in_the_same_boot() {
    let (_dir, mut board) = board(Scheme::Bootcount, IDLE);
    board.power_on().await.unwrap();
    for _ in 0..2 {
        let before = board.daemon_pid();
        board.kill_daemon().await.unwrap();
        assert_ne!(board.daemon_pid(), before);
    }
    assert_eq!(board.boots().len(), 1);
}

#[tokio::test]
async fn a_cut_kills_the_daemon_and_all_it_started_and_the_board_stays_off() {
    let (_dir, mut board) =
        board(Scheme::Bootcount, "setsid sleep 600 & echo $! > \"$dir/child\"; echo > \"$dir/fifo\"; wait");
    let fifo = board.dir().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    board.power_on().await.unwrap();
    // Opens once the daemon got there.
    tokio::fs::read(&fifo).await.unwrap();
    let daemon = board.daemon_pid().unwrap();
    let child = fs::read_to_string(board.dir().join("child")).unwrap();
    board.cut().await;
    assert!(!runs(&daemon.to_string()), "the daemon survived");
    assert!(!runs(child.trim()), "its child survived");
    assert_eq!((board.booted(), board.daemon_pid()), (None, None));
    board.wait_off(LIMIT).await.unwrap();
}

/// Whether it is there and no zombie.
fn runs(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        !matches!(state, Some('Z' | 'X'))
    })
}

#[tokio::test]
async fn a_daemon_that_ends_by_itself_is_started_again() {
    let (_dir, board) = {
        let (dir, mut board) = board(
            Scheme::Bootcount,
            "echo x >> \"$dir/runs\"; [ $(wc -l < \"$dir/runs\") -lt 3 ] && exit 1; \"$dir/reboot.sh\"; sleep 600 & wait",
        );
        board.power_on().await.unwrap();
        (dir, board)
    };
    board.wait_boots(2, LIMIT).await.unwrap();
    assert!(board.log().matches("started: run --config ").count() >= 3, "{}", board.log());
}

#[tokio::test]
async fn an_image_without_the_daemon_boots_and_nobody_commits_it() {
    let (_dir, mut board) = board(Scheme::Bootcount, IDLE);
    flash(&board, Slot::B, "2.0", Traits::WITHOUT_DAEMON);
    activate_b(&board, Scheme::Bootcount);
    for _ in 0..4 {
        board.power_on().await.unwrap();
        board.cut().await;
    }
    assert_eq!(slots(&board), [Slot::B, Slot::B, Slot::B, Slot::A]);
}

#[tokio::test]
async fn a_sick_image_has_a_health_script_that_says_why() {
    let (_dir, mut board) = board(Scheme::Bootcount, IDLE);
    flash(&board, Slot::A, "2.0", Traits::SICK);
    board.power_on().await.unwrap();
    let output = Command::new(board.dir().join("health.d/10-app")).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("does not answer"));
}

#[tokio::test]
async fn a_real_file_system_boots_and_a_damaged_one_does_not() {
    let (dir, mut board) = board(Scheme::Bootcount, IDLE);
    let root = dir.path().join("root");
    for name in ["sbin", "usr/lib", "etc/twinboot/health.d"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    write(&root.join("sbin/init"), b"#!/bin/sh\n");
    write(&root.join("usr/lib/os-release"), b"ID=debian\nIMAGE_VERSION=3.1\n");
    std::os::unix::fs::symlink("../usr/lib/os-release", root.join("etc/os-release")).unwrap();
    write(&root.join("etc/twinboot/health.d/20-web"), b"#!/bin/sh\nexit 3\n");
    let image = dir.path().join("root.ext4");
    let mut make = Command::new("/usr/sbin/mke2fs");
    let made = make.args(["-q", "-t", "ext4", "-d"]).arg(&root).arg(&image).arg("1M").output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    board.flash(Slot::B, &mut File::open(&image).unwrap()).unwrap();
    activate_b(&board, Scheme::Bootcount);
    board.power_on().await.unwrap();
    assert_eq!(slots(&board), [Slot::B], "{}", board.console());
    let read = |name: &str| fs::read_to_string(board.dir().join(name)).unwrap();
    assert_eq!(read("os-release"), "ID=debian\nIMAGE_VERSION=3.1\n");
    assert!(read("health.d/20-web").contains("exit 3"));
    board.cut().await;

    let half = fs::read(&image).unwrap();
    board.flash(Slot::B, &mut &vec![0; 1024 * 1024][..]).unwrap();
    board.flash(Slot::B, &mut &half[..16 * 1024]).unwrap();
    activate_b(&board, Scheme::Bootcount);
    board.power_on().await.unwrap();
    assert_eq!(slots(&board), [Slot::B, Slot::A]);
    assert!(board.console().contains("e2fsck finds errors"), "{}", board.console());
}

#[test]
fn fw_printenv_reads_what_the_board_wrote_and_the_board_what_fw_setenv_wrote() {
    let (_dir, board) = board(Scheme::Bootcount, IDLE);
    let tool = |name: &str, arguments: &[&str]| {
        let mut command = Command::new(name);
        command.arg("-c").arg(board.dir().join("fw_env.config")).args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    for round in 0..300 {
        // Past the wrap of the serial number.
        board.set_environment(&[("round", &round.to_string())]).unwrap();
    }
    let printed: Variables = tool("fw_printenv", &[])
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    assert_eq!(printed, board.environment().unwrap());
    assert_eq!(value(&board, "round"), "299");
    for value_set in ["7", "8", "9"] {
        tool("fw_setenv", &["round", value_set]);
        assert_eq!(value(&board, "round"), value_set);
    }
}

#[test]
fn a_copy_is_byte_for_byte_what_mkenvimage_makes() {
    let dir = TempDir::new().unwrap();
    let paths = ["one", "two", "text", "made"].map(|name| dir.path().join(name));
    let [one, two, text, made] = &paths;
    let variables = Variables::from([("a".to_owned(), "b=c".to_owned()), ("x".to_owned(), "1 2".to_owned())]);
    UbootEnv::new(one.clone(), two.clone()).format(&variables).unwrap();
    write(text, b"a=b=c\nx=1 2\n");
    let mut command = Command::new("mkenvimage");
    let status =
        command.args(["-r", "-p", "0", "-s", &ENV_SIZE_BYTES.to_string(), "-o"]).arg(made).arg(text).status();
    assert!(status.unwrap().success());
    let (ours, theirs) = (fs::read(one).unwrap(), fs::read(made).unwrap());
    // mkenvimage always gives the serial number 1, as the first of ours has.
    assert_eq!(ours, theirs);
}

#[test]
fn a_damaged_copy_is_passed_over_and_without_any_the_default_is_in_force() {
    let (_dir, board) = board(Scheme::Bootcount, IDLE);
    board.set_environment(&[("boot_slot", "b")]).unwrap();
    // The save went to the second copy, the first still says a.
    let [first, second] = ["uboot.env", "uboot-redund.env"].map(|name| board.dir().join(name));
    let damage = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[100] ^= 1;
        write(path, &bytes);
    };
    assert_eq!(value(&board, "boot_slot"), "b");
    damage(&second);
    assert_eq!(value(&board, "boot_slot"), "a");
    board.set_environment(&[("boot_slot", "b")]).unwrap();
    damage(&first);
    assert_eq!(value(&board, "boot_slot"), "b");
    damage(&second);
    assert_eq!(value(&board, "boot_slot"), "a");
}
