//! Whom the device trusts: with images, and to run programs as root.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::{Finding, Seen};
use crate::install::one_line;
use crate::install::verify::{ImageCheck, read_keys};
use crate::scripts;
use crate::update::Hook;

pub(super) fn check(seen: &Seen<'_>) -> Vec<Finding> {
    vec![keys(seen), changeable(&seen.config.install.keys), programs(seen)]
}

fn keys(seen: &Seen<'_>) -> Finding {
    const CHECK: &str = "trust.keys";
    let install = &seen.config.install;
    let directory = install.keys.display();
    match (read_keys(&install.keys), install.check) {
        (Err(error), _) => {
            Finding::fault(CHECK, one_line(&error), "no update is taken before it is a key, or gone")
        }
        (Ok(keys), ImageCheck::Signature) if keys.is_empty() => Finding::fault(
            CHECK,
            format!("only signed images are taken, and {directory} holds no key"),
            "put the public key of `minisign -G` there, as NAME.pub",
        ),
        (Ok(keys), ImageCheck::Optional) if keys.is_empty() => Finding::warning(
            CHECK,
            "any image is taken: `install.check = \"optional\"`, and there is no key",
            "set it to \"required\", or to \"signature\"",
        ),
        (Ok(keys), ImageCheck::Required) if keys.is_empty() => {
            Finding::ok(CHECK, "no key: an image needs the check value of its request")
        }
        (Ok(keys), _) => Finding::ok(CHECK, format!("{} in {directory}", keys.len())),
    }
}

/// Whoever can write there decides what this device runs.
fn changeable(directory: &Path) -> Finding {
    const CHECK: &str = "trust.key-files";
    let files = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let open = std::iter::once(directory.to_owned())
        .chain(files)
        .find(|path| fs::metadata(path).is_ok_and(|metadata| metadata.mode() & 0o022 != 0));
    match open {
        None => Finding::ok(CHECK, "only root changes the keys"),
        Some(path) => {
            let advice = format!("`chmod go-w {}`", path.display());
            Finding::fault(CHECK, format!("others than root can change {}", path.display()), advice)
        }
    }
}

/// Health scripts and hooks: one that is refused fails an update, or rolls it back.
fn programs(seen: &Seen<'_>) -> Finding {
    const CHECK: &str = "trust.programs";
    let hooks = Hook::ALL.map(|hook| seen.config.hooks.directory.join(hook.to_string()));
    let mut count = 0;
    for directory in std::iter::once(&seen.config.health.scripts).chain(&hooks) {
        match scripts::executables(directory) {
            Ok(programs) => count += programs.len(),
            Err(error) => return Finding::fault(CHECK, one_line(&error), "updates fail before that"),
        }
    }
    Finding::ok(CHECK, format!("{count} health checks and hooks, which root alone changes"))
}
