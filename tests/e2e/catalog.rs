//! What `journalctl -x` explains: systemd's own compiler takes the catalog, and each milestone has an entry.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

const CATALOG: &str = "systemd/twinboot.catalog";

fn repository(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

fn ids<'a>(lines: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
    lines.filter(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).collect()
}

fn journalctl(root: &Path, argument: &str) -> String {
    let output = Command::new("journalctl").arg("--root").arg(root).arg(argument).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn each_milestone_is_explained() {
    let source = repository("src/system.rs");
    let milestones = ids(source.split('"'));
    let root = tempfile::tempdir().unwrap();
    for directory in ["usr/lib/systemd/catalog", "var/lib/systemd/catalog"] {
        std::fs::create_dir_all(root.path().join(directory)).unwrap();
    }
    std::fs::write(root.path().join("usr/lib/systemd/catalog/twinboot.catalog"), repository(CATALOG))
        .unwrap();
    journalctl(root.path(), "--update-catalog");
    let listed = journalctl(root.path(), "--list-catalog");
    assert_eq!(ids(listed.split_whitespace()), milestones, "{listed}");

    let dumped = journalctl(root.path(), "--dump-catalog");
    for header in ["Subject: ", "Defined-By: twinboot", "Support: ", "Documentation: "] {
        assert_eq!(
            dumped.lines().filter(|line| line.starts_with(header)).count(),
            milestones.len(),
            "{header}"
        );
    }
    // Those that a milestone's entry has; SLOT is not in all.
    let fields: BTreeSet<&str> = dumped.split('@').skip(1).step_by(2).collect();
    assert_eq!(fields, BTreeSet::from(["MESSAGE", "SLOT", "UPDATE_ID"]));
}
