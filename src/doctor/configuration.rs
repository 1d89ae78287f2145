//! The configuration, and the secret files that it names.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{Finding, Repair};
use crate::config::{self, Config, Fault};

/// Where `[hub]` or its secrets are at fault, the rest is still looked at: without a hub.
pub(super) fn check(main: &Path, credentials: Option<&Path>) -> (Vec<Finding>, Option<Config>) {
    const CHECK: &str = "configuration.valid";
    let mut findings: Vec<Finding> =
        config::secret_files(main).iter().filter_map(|path| secret(path)).collect();
    findings.extend(unread(&main.with_file_name("config.d")));
    let told = |fault: &Fault| {
        let key = if fault.key.is_empty() { String::new() } else { format!("{}: ", fault.key) };
        format!("{}: {key}{}", fault.place, fault.problem)
    };
    match Config::load(main, credentials) {
        Ok(loaded) => {
            findings.insert(0, Finding::ok(CHECK, format!("{} is valid", main.display())));
            let noted = |note| Finding::warning("configuration.network", told(note), &note.hint);
            findings.extend(loaded.notes.iter().map(noted));
            (findings, Some(loaded.config))
        }
        Err(faults) => {
            findings.extend(faults.0.iter().map(|fault| Finding::fault(CHECK, told(fault), &fault.hint)));
            // What its hub is, is then as little known as beside a networked part.
            let rest = Config::load_beside(main, PathBuf::new()).ok();
            (findings, rest.map(|loaded| loaded.config))
        }
    }
}

/// A missing one is a fault of the configuration.
fn secret(path: &Path) -> Option<Finding> {
    const CHECK: &str = "configuration.secrets";
    let mode = fs::metadata(path).ok()?.mode() & 0o7777;
    let evidence = format!("{} is of mode {mode:o}", path.display());
    Some(if mode & 0o007 == 0 {
        Finding::ok(CHECK, evidence)
    } else {
        let advice = "whoever can read it is this device; `twinboot doctor --fix` takes it away from others";
        Finding::fault(CHECK, evidence, advice).repaired_by(Repair::SecretMode(path.to_owned()))
    })
}

/// Files that look like drop-ins to whoever wrote them.
fn unread(directory: &Path) -> Vec<Finding> {
    let paths = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let others = paths.filter(|path| path.extension().is_none_or(|extension| extension != "toml"));
    let advice = "only names that end in `.toml` are read: rename it, or take it away";
    others
        .map(|path| {
            Finding::warning("configuration.drop-ins", format!("{} is not read", path.display()), advice)
        })
        .collect()
}
