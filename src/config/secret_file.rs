//! Files that hold secrets: short, and not for everyone.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::section::{Wrong, wrong};
use crate::ownership;

/// A connection string has some 200 bytes, a PEM chain some 10 KiB.
const SECRET_LIMIT_BYTES: u64 = 64 * 1024;

/// The systemd credential that stands for a file, where this process is handed any.
pub(super) type Credential = Option<&'static str>;

/// Reads a secret text, without the line end that editors leave.
pub(super) fn read(path: &Path, credential: Credential) -> Result<String, Wrong> {
    let mut text = String::new();
    let read = open(path, credential)?.take(SECRET_LIMIT_BYTES).read_to_string(&mut text);
    read.map_err(|error| unreadable(path, &error, credential))?;
    Ok(text.trim().to_owned())
}

/// Looks whether a secret file could be read, and by others too.
pub(super) fn check(path: &Path, credential: Credential) -> Result<(), Wrong> {
    open(path, credential).map(drop)
}

/// Looks whether a public file could be read, and is root's to change.
pub(super) fn check_public(path: &Path) -> Result<(), Wrong> {
    ownership::open(path).map(drop).map_err(|error| public_fault(path, &error))
}

fn public_fault(path: &Path, error: &io::Error) -> Wrong {
    let fault = unreadable(path, error, None);
    match error.kind() {
        io::ErrorKind::PermissionDenied => Wrong { hint: open_to_all(path), ..fault },
        _ => fault,
    }
}

/// Looks whether a public file, or a directory that is to be listed, and the way to it, is one for the networked part's
/// user too.
pub(super) fn check_open(path: &Path) -> Result<(), Wrong> {
    let Ok(end) = std::fs::canonicalize(path) else { return Ok(()) };
    let needed = |step: &Path, is_directory| match (is_directory, step == end) {
        (false, _) => 0o004,
        (true, false) => 0o001,
        (true, true) => 0o005,
    };
    let is_closed = |step: &&Path| {
        std::fs::metadata(step).is_ok_and(|m| {
            let needed = needed(step, m.is_dir());
            m.mode() & needed != needed
        })
    };
    let Some(closed) = end.ancestors().filter(is_closed).last() else { return Ok(()) };
    let problem = format!("twinboot-network.service, which is not root, cannot read {}", path.display());
    let hint = match (closed == end, end.is_dir()) {
        (true, true) => format!("let everyone list it: `chmod o+rx {}`", path.display()),
        (true, false) => open_to_all(path),
        (false, _) => format!("let everyone through: `chmod o+x {}`; or put it elsewhere", closed.display()),
    };
    Err(wrong(problem, hint))
}

fn open_to_all(path: &Path) -> String {
    format!("it is no secret: let everyone read it: `chmod o+r {}`", path.display())
}

/// How systemd is told to hand a secret over.
pub(super) fn hand_over(name: &str, path: &Path) -> String {
    format!(
        "`systemctl edit twinboot-network.service`, and there, below `[Service]`, `LoadCredential={name}:{}`",
        path.display()
    )
}

fn open(path: &Path, credential: Credential) -> Result<File, Wrong> {
    let file = ownership::open(path).map_err(|error| unreadable(path, &error, credential))?;
    let metadata = file.metadata().map_err(|error| unreadable(path, &error, credential))?;
    if metadata.mode() & 0o007 != 0 {
        let hint = format!("take that away: `chmod o= {}`", path.display());
        return Err(wrong(format!("every user of this machine has access to {}", path.display()), hint));
    }
    Ok(file)
}

fn unreadable(path: &Path, error: &io::Error, credential: Credential) -> Wrong {
    let hint = match (error.kind(), credential) {
        (io::ErrorKind::NotFound, _) => "create it, or name the file that is there".to_owned(),
        // The networked part is not root, and is not to be.
        (io::ErrorKind::PermissionDenied, Some(name)) => {
            format!("have systemd hand it over: {}", hand_over(name, path))
        }
        (io::ErrorKind::PermissionDenied, None) => "run as root".to_owned(),
        _ => String::new(),
    };
    wrong(format!("cannot read {}: {error}", path.display()), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_root_and_not_to_be_is_told_how_systemd_hands_a_secret_over() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let hint = |credential| unreadable(Path::new("/data/secret"), &denied, credential).hint;
        assert_eq!(hint(None), "run as root");
        let hint = hint(Some("connection-string"));
        assert!(hint.contains("systemctl edit twinboot-network.service"), "{hint}");
        assert!(hint.contains("`LoadCredential=connection-string:/data/secret`"), "{hint}");
    }

    #[test]
    fn who_cannot_read_what_is_no_secret_is_told_to_open_it() {
        let hint = check_public(Path::new("/no-such-file")).unwrap_err().hint;
        assert!(hint.starts_with("create it"), "{hint}");
        let denied = public_fault(Path::new("/data/ca.pem"), &io::ErrorKind::PermissionDenied.into());
        assert_eq!(denied.hint, "it is no secret: let everyone read it: `chmod o+r /data/ca.pem`");
    }
}
