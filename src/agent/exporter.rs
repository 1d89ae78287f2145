//! Keeps the metrics file up to date: on every change, and in a download now and then.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use crate::update::metrics::metrics;
use crate::update::report::{Facts, Progress};

/// No collector looks more often, and flash wears.
const DOWNLOAD_INTERVAL: Duration = Duration::from_secs(15);

/// Hands the text to the task that writes it.
#[derive(Debug)]
pub struct Exporter {
    sender: watch::Sender<String>,
    /// Without the bytes, which change all the time.
    shown: String,
    last: Instant,
}

impl Exporter {
    /// Writes to `file` from now on, until it is dropped.
    pub fn start(file: PathBuf) -> Self {
        let (sender, texts) = watch::channel(String::new());
        tokio::spawn(keep(file, texts));
        Self { sender, shown: String::new(), last: Instant::now() }
    }

    /// Takes a look at the facts.
    pub fn show(&mut self, facts: &Facts<'_>, hub_connected: bool, transfer: Option<Progress>) {
        let without_bytes = metrics(facts, hub_connected, None);
        if without_bytes == self.shown
            && (facts.progress.is_none() || self.last.elapsed() < DOWNLOAD_INTERVAL)
        {
            return;
        }
        self.shown = without_bytes;
        self.last = Instant::now();
        self.sender.send_replace(metrics(facts, hub_connected, transfer));
    }
}

async fn keep(file: PathBuf, mut texts: watch::Receiver<String>) {
    let mut failed = false;
    while texts.changed().await.is_ok() {
        let (path, text) = (file.clone(), texts.borrow_and_update().clone());
        let written = tokio::task::spawn_blocking(move || replace(&path, &text)).await;
        let error = written.unwrap_or_else(|interrupted| Err(interrupted.into())).err();
        // Once is enough: a directory that is missing does not come by itself.
        if let Some(error) = error.as_ref().filter(|_| !failed) {
            warn!("cannot write the metrics to {}: {error}", file.display());
        }
        failed = error.is_some();
    }
}

/// The collector sees the old text or the new. Not synced: after a power cut it is made anew. Blocks.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("prom.new");
    // The directory may be another user's, who could put a link there: never follow one.
    let _ = fs::remove_file(&temporary);
    let mut file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
    // The service's mask keeps others from reading, and the collector is one.
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(text.as_bytes())?;
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_may_read_the_file_and_a_link_in_its_way_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        replace(&at("precious"), "kept").unwrap();
        std::os::unix::fs::symlink(at("precious"), at("twinboot.prom.new")).unwrap();
        replace(&at("twinboot.prom"), "text").unwrap();
        assert_eq!(fs::read_to_string(at("precious")).unwrap(), "kept");
        assert_eq!(fs::read_to_string(at("twinboot.prom")).unwrap(), "text");
        assert_eq!(fs::metadata(at("twinboot.prom")).unwrap().permissions().mode() & 0o777, 0o644);
        assert!(!at("twinboot.prom.new").exists());
    }
}
