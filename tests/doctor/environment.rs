//! The boot loader's environment.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::board::{Board, Disk, ENV_BYTES, PARTITIONS, beside, put, succeed};

/// Shows sbabic/libubootenv#15, #16, #23.
#[test]
fn an_environment_that_is_not_where_it_is_said_to_be() {
    let board = Board::new();
    fs::remove_file(board.path("env-2")).unwrap();
    board.finds("environment.location", "fault", "env-2");
    put(&board.path("fw_env.config"), "");
    board.finds("environment.location", "fault", "no line says where");
}

#[test]
fn an_environment_that_u_boots_device_tree_puts_elsewhere() {
    let board = Board::new();
    let device_tree = |offset: i32| {
        put(&board.path("proc/device-tree/config/u-boot,mmc-env-offset"), offset.to_be_bytes());
    };
    device_tree(0x10_0000);
    board.finds("environment.location", "ok", "env-1");
    let Some(disk) = Disk::new(board.dir.path(), &PARTITIONS) else { return };
    disk.holds_environment(&board, [0x10_0000, 0x14_0000]);
    board.finds("environment.location", "ok", "at 0x100000");
    device_tree(0x18_0000);
    board.finds("environment.location", "fault", "at 0x180000");
    // In a partition that begins there.
    disk.holds_environment_in(&board, &disk.partition(4), [0, 0x4_0000]);
    board.finds("environment.location", "fault", "at 0x180000");
    device_tree(0xA800 * 512);
    board.finds("environment.location", "ok", "p4 at 0x0");
}

/// Shows openwrt/openwrt#4434.
#[test]
fn files_on_a_mount_that_is_read_only() {
    let board = Board::new();
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not run: mounting needs root");
        return;
    }
    let finds_a_fault = || {
        let found = beside(&board, "mount --bind -o ro $dir/env-1 $dir/env-1");
        let (level, evidence, _) = &found["environment.writable"];
        assert!(level == "fault" && evidence.ends_with("env-1 is read-only"), "{found:#?}");
    };
    finds_a_fault();
    board.copy(1, "", ENV_BYTES, false);
    put(&board.path("fw_env.config"), format!("{} 0 {ENV_BYTES:#x}\n", board.path("env-1").display()));
    finds_a_fault();
    board.finds("environment.writable", "ok", "one copy");
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

/// Shows sbabic/libubootenv#15, #16, #23; home-assistant/operating-system#2031, #2521, #2850, #3995, #4419,
/// #4540.
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

/// Shows F8; nerves-project/nerves_runtime#375; hub.mender.io t/2167.
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

/// Shows F14; rauc/rauc#1157; fedora-iot/greenboot#107, #135, greenboot-rs#106, tiiuae/ghaf#2155.
#[test]
fn variables_that_a_boot_needs() {
    let mut board = Board::new();
    board.variables("bootcmd=\naltbootcmd=\nboot_slot=c\n");
    board.finds("environment.bootcmd", "warning", "bootcmd");
    board.finds("environment.fallback", "fault", "waits at its prompt");
    board.finds("environment.scheme", "fault", "boot_slot=c");
    board.variables("altbootcmd=setenv boot_syslinux_conf rollback.conf; run distro_bootcmd\n");
    board.finds("environment.fallback", "warning", "does not name `boot_slot`");
    board.variables("do_partition_done=1\ndo_flash_os_done=0\n");
    board.finds("environment.partitioning", "fault", "`do_flash_os_done` is not 1");
    board.configure("\"bootcount\"", "\"rauc\"");
    board.variables("BOOT_ORDER=C\n");
    board.finds("environment.scheme", "fault", "BOOT_ORDER=C");
    board.variables("altbootcmd=\nBOOT_ORDER=A B\nBOOT_A_LEFT=2\n");
    board.finds("environment.scheme", "ok", "slot a is first, 2 boots left");
    board.finds("environment.fallback", "ok", "counts down");
}

/// Only a board of `bootcount` is told of twinboot.env, and not where that would name slot a for one bad value.
#[test]
fn what_is_advised_suits_the_scheme() {
    const MENDERS: &str = "`fw_setenv altbootcmd 'run mender_altbootcmd; run bootcmd'`";
    let mut board = Board::new();
    board.variables("boot_slot=\n");
    assert!(board.finds("environment.scheme", "fault", "no `boot_slot`").contains("`fw_setenv -s`"));
    for (bad, name) in [("boot_slot=c\n", "boot_slot"), ("boot_slot=b\nbootcount=many\n", "bootcount")] {
        board.variables(bad);
        let advice = board.finds("environment.scheme", "fault", name);
        assert!(
            advice.starts_with(&format!("`fw_setenv {name} VALUE`")) && !advice.contains(" -s"),
            "{advice}"
        );
    }
    board.variables("altbootcmd=\n");
    assert!(board.finds("environment.fallback", "fault", "not defined").contains("u-boot/twinboot.env"));

    board.configure("\"bootcount\"", "\"rauc\"");
    board.variables("BOOT_ORDER=A B\nBOOT_A_LEFT=x\n");
    let advice = board.finds("environment.scheme", "fault", "BOOT_A_LEFT=x");
    assert!(advice.contains("as this board's boot script has it"), "{advice}");

    board.configure("\"rauc\"", "\"mender\"");
    board.configure("DIR/slot_a\"", "DIR/slot_a\"\npartition = 2");
    board.configure("DIR/slot_b\"", "DIR/slot_b\"\npartition = 3");
    for (bad, evidence) in [
        ("mender_boot_part=\n", "no `mender_boot_part`"),
        ("mender_boot_part=4\n", "which is not 2 or 3"),
        ("mender_boot_part=2\nmender_boot_part_hex=3\n", "but `mender_boot_part_hex=3`"),
    ] {
        board.variables(bad);
        let advice = board.finds("environment.scheme", "fault", evidence);
        assert!(advice.contains("as this board's boot script has it"), "{advice}");
    }
    board.variables("mender_boot_part=2\naltbootcmd=\n");
    assert!(board.finds("environment.fallback", "fault", "waits at its prompt").starts_with(MENDERS));
    // twinboot's own.
    board.variables("mender_boot_part=2\n");
    let advice = board.finds("environment.fallback", "warning", "`mender_altbootcmd` or `mender_boot_part`");
    assert!(advice.starts_with(MENDERS), "{advice}");
    for of_mender in ["run mender_altbootcmd; run bootcmd", "setenv mender_boot_part 3; saveenv; run bootcmd"]
    {
        board.variables(&format!("mender_boot_part=2\naltbootcmd={of_mender}\n"));
        board.finds("environment.fallback", "ok", "is defined");
    }
}

#[test]
fn variables_of_a_trial_that_nobody_conducts() {
    let board = Board::new();
    board.variables("upgrade_available=1\nbootcount=2\n");
    put(&board.path("state/trial/reboot-1"), "");
    board.finds("environment.trial", "warning", "slot a is on trial");
    board.is_fixed("environment.trial");
    assert!(!board.path("state/trial/reboot-1").exists(), "systemd would reboot what is kept");
    let printed = succeed(Command::new("fw_printenv").arg("-c").arg(board.path("fw_env.config")));
    for line in ["boot_slot=a", "upgrade_available=0", "bootcount=0"] {
        assert!(printed.lines().any(|printed| printed == line), "{printed}");
    }
    board.variables("bootcount=2\n");
    board.finds("environment.trial", "warning", "bootcount=2");
    board.is_fixed("environment.trial");
    // Where the state is not mounted, nobody knows whether one is on.
    board.variables("upgrade_available=1\n");
    fs::rename(board.path("state"), board.path("elsewhere")).unwrap();
    board.is_not_fixed("environment.trial");
    fs::remove_dir(board.path("state")).unwrap();
    fs::rename(board.path("elsewhere"), board.path("state")).unwrap();
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

/// As the packaged service, by its filter of system calls and its group.
#[test]
fn the_only_copy_is_replaced_by_who_may_give_no_file_away() {
    let board = Board::new();
    board.copy(1, "bootcount=2\n", ENV_BYTES, false);
    let only = board.path("env-1");
    put(&board.path("fw_env.config"), format!("{} 0 {ENV_BYTES:#x}\n", only.display()));
    fs::set_permissions(&only, fs::Permissions::from_mode(0o664)).unwrap();
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=fchown:error=EPERM"]);
    let doctor = command.args([env!("CARGO_BIN_EXE_twinboot"), "doctor", "--fix", "--config"]);
    let told = doctor.arg(board.config_file()).output().unwrap();
    let variables = fs::read(&only).unwrap();
    let is_there = |text: &[u8]| variables.windows(text.len()).any(|found| found == text);
    assert!(is_there(b"\0bootcount=0\0"), "{}", String::from_utf8_lossy(&told.stdout));
    assert_eq!(fs::metadata(&only).unwrap().permissions().mode() & 0o777, 0o644, "its group is another");
}
