//! Whom the device trusts: with images, and to run programs as root.

use std::fs;
use std::path::Path;

use super::{Finding, Seen};
use crate::boot::fw_env::UbootEnv;
use crate::causes::one_line;
use crate::install::verify::{ImageCheck, listed, read_keys};
use crate::ownership::{self, OwnershipError};
use crate::scripts;
use crate::update::{Hook, KeyList};

pub(super) fn check(seen: &Seen<'_>) -> Vec<Finding> {
    let directory = &seen.config.install.keys;
    let keys = match seen.record().and_then(|record| record.keys.as_ref()) {
        Some(list) => of_list(list, directory),
        None => of_image(seen),
    };
    vec![keys, key_files(directory), environment_files(seen), programs(seen)]
}

const KEYS: &str = "trust.keys";

/// What an update said counts alone: a key that only the image brings is revoked.
fn of_list(list: &KeyList, directory: &Path) -> Finding {
    let (trusted, image) = match (listed(list), read_keys(directory)) {
        (Ok(trusted), Ok(image)) => (trusted, image),
        (Err(error), _) | (_, Err(error)) => {
            return Finding::warning(
                KEYS,
                one_line(&error),
                "bring a new list by an update, or mend the file",
            );
        }
    };
    let revoked = image.iter().filter(|(_, key)| !trusted.contains(key));
    let revoked: Vec<_> = revoked.map(|(path, _)| path.display().to_string()).collect();
    if revoked.is_empty() {
        return Finding::ok(KEYS, list.to_string());
    }
    // Where the state is lost, the image's keys count again.
    Finding::warning(
        KEYS,
        format!("{list}; revoked by it: {}", revoked.join(", ")),
        "leave them out of the next image",
    )
}

fn of_image(seen: &Seen<'_>) -> Finding {
    let install = &seen.config.install;
    let directory = install.keys.display();
    match (read_keys(&install.keys), install.check) {
        (Err(error), _) => {
            Finding::fault(KEYS, one_line(&error), "no update is taken before it is a key, or gone")
        }
        (Ok(keys), ImageCheck::Signature) if keys.is_empty() => Finding::fault(
            KEYS,
            format!("only signed images are taken, and {directory} holds no key"),
            "put the public key of `minisign -G` there, as NAME.pub",
        ),
        (Ok(keys), ImageCheck::Optional) if keys.is_empty() => Finding::warning(
            KEYS,
            "any image is taken: `install.check = \"optional\"`, and there is no key",
            "set it to \"required\", or to \"signature\"",
        ),
        (Ok(keys), ImageCheck::Required) if keys.is_empty() => {
            Finding::ok(KEYS, "no key: an image needs the check value of its request")
        }
        (Ok(keys), _) => {
            let names = keys.iter().filter_map(|(path, _)| path.file_name());
            let names: Vec<_> = names.map(|name| name.to_string_lossy()).collect();
            Finding::ok(KEYS, format!("{} in {directory}: {}", keys.len(), names.join(", ")))
        }
    }
}

/// Whoever can write there decides what this device runs.
fn key_files(directory: &Path) -> Finding {
    const CHECK: &str = "trust.key-files";
    let files = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    match std::iter::once(directory.to_owned())
        .chain(files)
        .find_map(|path| changeable(ownership::check(&path)))
    {
        None => Finding::ok(CHECK, "only root changes the keys"),
        Some(error) => Finding::fault(CHECK, one_line(&error), "until then a forged image may pass"),
    }
}

/// Whoever can write there decides what this device boots.
fn environment_files(seen: &Seen<'_>) -> Finding {
    const CHECK: &str = "trust.environment";
    let file = &seen.config.boot.environment;
    let copies = UbootEnv::new(file, &[]).map(|environment| environment.paths());
    let copies = copies.unwrap_or_default();
    let copies = copies.iter().map(|copy| ownership::device(copy).map(drop));
    match std::iter::once(ownership::check(file)).chain(copies).find_map(changeable) {
        None => Finding::ok(CHECK, "only root changes the boot environment"),
        Some(error) => Finding::fault(CHECK, one_line(&error), "until then others choose what boots"),
    }
}

/// What is missing is another check's.
fn changeable(looked: Result<(), OwnershipError>) -> Option<OwnershipError> {
    looked.err().filter(|error| !matches!(error, OwnershipError::Look { .. }))
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
