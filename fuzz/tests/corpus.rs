//! Every input of the corpora, among them all that ever broke something.

use std::fs;
use std::path::{Path, PathBuf};

use fuzz::TARGETS;

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn what_must_hold_holds_for_every_input_of_the_corpora() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in TARGETS {
        let inputs = files(&corpora.join(name));
        assert!(!inputs.is_empty(), "{name} has a corpus");
        for input in inputs {
            // Shown where the target panics.
            println!("{}", input.display());
            let data = fs::read(&input).unwrap();
            target(&data);
            target(&data[..data.len() / 2]);
        }
    }
    assert_eq!(files(&corpora).len(), TARGETS.len(), "every corpus has its target");
}

#[test]
fn every_target_can_be_fuzzed() {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(fuzz.join("libfuzzer/Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is a binary");
        let binary = fs::read_to_string(fuzz.join(format!("libfuzzer/targets/{name}.rs"))).unwrap();
        assert!(binary.contains(&format!("fuzz::{name}(data)")), "{binary}");
    }
}
