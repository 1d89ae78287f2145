//! The state directory.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::board::{Board, Disk, PARTITIONS, beside, put, succeed};

#[test]
fn a_state_directory_that_is_missing_is_made() {
    let board = Board::new();
    fs::remove_dir(board.path("state")).unwrap();
    board.finds("state.directory", "fault", "not there");
    board.is_fixed("state.directory");
    assert_eq!(fs::metadata(board.path("state")).unwrap().permissions().mode() & 0o777, 0o700);
    fs::set_permissions(board.path("state"), Permissions::from_mode(0o777)).unwrap();
    board.finds("state.directory", "fault", "mode 777");
    // Sticky: what is there stays, but others could put something beside it.
    fs::set_permissions(board.path("state"), Permissions::from_mode(0o1777)).unwrap();
    board.finds("state.directory", "warning", "mode 1777");
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

    // Where the state would be safe, its absence says that no trial is on; elsewhere it says nothing.
    board.variables("upgrade_available=1\n");
    disk.holds_environment(&board, [0x10_0000, 0x14_0000]);
    for (device, level) in [(&slot, "ok"), (&data, "warning")] {
        let found = on(&format!("mount {device} $dir/state"));
        assert_eq!(found["environment.trial"].0, level, "{device}: {found:#?}");
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
