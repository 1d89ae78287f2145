//! Files for what is only read from files.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A directory of one target.
pub struct Scratch(TempDir);

impl Scratch {
    /// An empty one, below `$TMPDIR`.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("there is room for a directory"))
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file in it, and makes the directories to it.
    pub fn write(&self, name: &str, content: &[u8]) {
        let path = self.path(name);
        let parent = path.parent().expect("it is in a directory");
        std::fs::create_dir_all(parent).expect("there is room for a directory");
        #[expect(clippy::disallowed_methods, reason = "gone after the run")]
        std::fs::write(path, content).expect("there is room for a file");
    }
}
