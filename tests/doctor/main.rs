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
