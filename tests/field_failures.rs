//! `docs/field-failures.md`: no class and no thread is left out, and what is said to show one is there, and names it.

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

/// What a test, a story of the lab, or a command of this name says that it shows; `None`: it is not in the tree.
fn shows(name: &str) -> Option<Vec<String>> {
    let Some((path, function)) = name.split_once("::") else { return tree(name).is_file().then(Vec::new) };
    let text = std::fs::read_to_string(tree(path)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_it = |line: &str| {
        let line = line.trim_start_matches("async ");
        ["fn", "def"].iter().any(|word| line.starts_with(&format!("{word} {function}(")))
    };
    let at = lines.iter().position(|line| is_it(line))?;
    let above: Vec<&str> = lines[..at].iter().rev().copied().take_while(|line| !line.is_empty()).collect();
    let is_mark = |line: &&str| line.ends_with("test]") || line.starts_with("@story");
    let mark = above.iter().position(is_mark)?;
    let comment = above[mark + 1..]
        .iter()
        .rev()
        .filter_map(|line| line.strip_prefix("/// ").or_else(|| line.strip_prefix("# ")));
    let comment = comment.collect::<Vec<_>>().join(" ");
    let (_, shown) = comment.split_once("Shows ").unwrap_or_default();
    Some(shown.trim_end_matches('.').split("; ").map(str::to_owned).collect())
}

/// `what` is what the row is about, by its name.
fn assert_shown(row: &[&str], what: &str) {
    let names: Vec<&str> = row[row.len() - 1].split('`').skip(1).step_by(2).collect();
    assert!(!names.is_empty() || row[row.len() - 1].starts_with("not shown: "), "{what} is shown by nothing");
    for name in names {
        let shown = shows(name);
        assert!(shown.is_some(), "{what} is said to be shown by {name}, which is not there");
        let is_named = shown.is_some_and(|shown| shown.iter().any(|shown| shown == what));
        assert!(is_named || !name.contains("::"), "{name} is said to show {what}, and does not say so");
    }
}

#[test]
fn each_class_is_shown_by_a_test_that_is_there() {
    let classes = rows("Classes");
    assert!(classes.iter().map(|row| row[0]).eq((1..=26).map(|number| format!("F{number}"))));
    for row in &classes {
        assert_eq!(row.len(), 4, "{row:?}");
        assert_shown(row, row[0]);
    }
}

#[test]
fn each_thread_is_shown_by_a_test_that_is_there() {
    let threads = rows("Threads");
    assert!(threads.iter().map(|row| row[0]).eq((1..=52).map(|number: i32| number.to_string())));
    for row in &threads {
        assert_eq!(row.len(), 5, "{row:?}");
        assert_shown(row, row[1]);
    }
}

#[test]
fn the_readme_counts_the_stories_of_the_lab() {
    let count = include_str!("lab/stories.py").lines().filter(|line| line.starts_with("@story")).count();
    assert!(include_str!("../README.md").contains(&format!("tells it {count} stories:")), "{count}");
}

/// The judgement above can fail.
#[test]
fn what_is_not_in_the_tree_is_not_there() {
    assert!(shows("tests/lab/stories.py::hub_away").is_some() && shows("tests/campaign/run").is_some());
    assert!(shows("src/health.rs::no_directory_means_no_scripts").is_some());
    for name in ["src/health.rs::check", "src/health.rs::no_directory", "tests/none.rs::a", "tests/none"] {
        assert_eq!(shows(name), None, "{name}");
    }
}
