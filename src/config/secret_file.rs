//! Files that hold secrets: short, and not for everyone.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::section::{Wrong, wrong};
use crate::ownership;

/// A connection string has some 200 bytes, a PEM chain some 10 KiB.
const SECRET_LIMIT_BYTES: u64 = 64 * 1024;

/// Reads a secret text, without the line end that editors leave.
pub(super) fn read(path: &Path) -> Result<String, Wrong> {
    let mut text = String::new();
    let read = open(path)?.take(SECRET_LIMIT_BYTES).read_to_string(&mut text);
    read.map_err(|error| unreadable(path, &error))?;
    Ok(text.trim().to_owned())
}

/// Looks whether a secret file could be read, and by others too.
pub(super) fn check(path: &Path) -> Result<(), Wrong> {
    open(path).map(drop)
}

/// Looks whether a public file could be read, and is root's to change.
pub(super) fn check_public(path: &Path) -> Result<(), Wrong> {
    ownership::open(path).map(drop).map_err(|error| unreadable(path, &error))
}

fn open(path: &Path) -> Result<File, Wrong> {
    let file = ownership::open(path).map_err(|error| unreadable(path, &error))?;
    let metadata = file.metadata().map_err(|error| unreadable(path, &error))?;
    if metadata.mode() & 0o007 != 0 {
        let hint = format!("take that away: `chmod o= {}`", path.display());
        return Err(wrong(format!("every user of this machine has access to {}", path.display()), hint));
    }
    Ok(file)
}

fn unreadable(path: &Path, error: &io::Error) -> Wrong {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "create it, or name the file that is there",
        io::ErrorKind::PermissionDenied => "run as root",
        _ => "",
    };
    wrong(format!("cannot read {}: {error}", path.display()), hint)
}
