//! `docs/field-failures.md`: no class and no thread is left out, and what is said to show one is there.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::path::PathBuf;

const TABLES: &str = include_str!("../docs/field-failures.md");

fn tree(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The cells of each row after the rule below a heading.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let (_, section) = TABLES.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let (_, table) = section.split_once("---|\n").unwrap();
    table
        .lines()
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect()
}

/// Whether a test, a story of the lab, or a command of this name is in the tree.
fn is_there(name: &str) -> bool {
    let Some((path, function)) = name.split_once("::") else { return tree(name).is_file() };
    let text = std::fs::read_to_string(tree(path)).unwrap_or_default();
    if path.ends_with(".py") {
        return text.contains(&format!("@story\ndef {function}("))
            || text.contains(&format!("\")\ndef {function}("));
    }
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_it = |line: &str| line.trim_start_matches("async ").starts_with(&format!("fn {function}("));
    lines.windows(2).any(|pair| pair[0].ends_with("test]") && is_it(pair[1]))
}

fn assert_shown(row: &[&str]) {
    let (id, shown) = (row[0], row[row.len() - 1]);
    let names: Vec<&str> = shown.split('`').skip(1).step_by(2).collect();
    assert!(!names.is_empty() || shown.starts_with("not shown: "), "{id} is shown by nothing");
    for name in names {
        assert!(is_there(name), "{id} is said to be shown by {name}, which is not there");
    }
}

#[test]
fn each_class_is_shown_by_a_test_that_is_there() {
    let classes = rows("Classes");
    assert!(classes.iter().map(|row| row[0]).eq((1..=26).map(|number| format!("F{number}"))));
    for row in &classes {
        assert_eq!(row.len(), 4, "{row:?}");
        assert_shown(row);
    }
}

#[test]
fn each_thread_is_shown_by_a_test_that_is_there() {
    let threads = rows("Threads");
    assert!(threads.iter().map(|row| row[0]).eq((1..=52).map(|number: i32| number.to_string())));
    for row in &threads {
        assert_eq!(row.len(), 5, "{row:?}");
        assert_shown(row);
    }
}

/// The judgement above can fail.
#[test]
fn what_is_not_in_the_tree_is_not_there() {
    assert!(is_there("tests/lab/stories.py::hub_away") && is_there("tests/campaign/run"));
    assert!(is_there("src/health.rs::no_directory_means_no_scripts"));
    for name in ["src/health.rs::check", "src/health.rs::no_directory", "tests/none.rs::a", "tests/none"] {
        assert!(!is_there(name), "{name}");
    }
}
