//! `twinboot doctor` on boards with one thing wrong, each made of real files and devices.
#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod board;
mod environment;
mod hub;
mod machine;
mod mounts;
mod slots;
mod state;
mod trust;

use std::io;
use std::process::Command;

use board::Board;

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

/// `twinboot doctor | head -1` in a script.
#[test]
fn who_has_read_enough_still_gets_the_level() {
    let board = Board::new();
    board.damage(1);
    board.damage(2);
    for arguments in [&[][..], &["--json"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_twinboot"));
        command.arg("doctor").args(arguments).arg("--config").arg(board.config_file());
        let status = command.stdout(io::pipe().unwrap().1).status().unwrap();
        assert_eq!(status.code(), Some(7), "{status}");
    }
}
