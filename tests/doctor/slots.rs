//! The slots.

use std::fs;
use std::process::Command;

use crate::board::{Board, Disk, PARTITIONS, put, succeed};

/// Shows openwrt/openwrt#4434; home-assistant/operating-system#2031, #2521, #2850, #3995, #4419, #4540;
/// rauc/rauc#459, #639, #833.
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

/// Shows home-assistant/operating-system#2031, #2521, #2850, #3995, #4419, #4540.
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

/// Shows home-assistant/operating-system#2031, #2521, #2850, #3995, #4419, #4540.
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
