//! The hub's state in a directory: read at the start, written again when it has changed.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use ring::digest;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::state::{Shared, State};
use crate::ca::{Authority, AuthorityError};

const FILE: &str = "state.json";
/// Changes when files of before can no longer be read.
const FORMAT: u32 = 1;
/// Changes within this time are written together.
const INTERVAL: Duration = Duration::from_secs(1);
/// With very many devices a snapshot takes its time; the hub has the rest for itself.
const PAUSE_PER_SNAPSHOT: u32 = 10;

/// Why the state could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory cannot be used.
    #[error("use {} as the state directory: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// Another hub has its state there.
    #[error("the state directory {} is in use by another hub", .0.display())]
    InUse(PathBuf),
    /// The file cannot be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The file is not a state, or not a whole one.
    #[error("{} is damaged ({source}); move it away to start with an empty hub", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Another version of the emulator wrote the file.
    #[error("{} has format {found}, this emulator reads {FORMAT}; move it away to start anew", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The file cannot be written.
    #[error("write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The certificate authority could not be made, or not be made out of what is in the file.
    #[error("set up the certificate authority: {0}")]
    Authority(#[from] AuthorityError),
}

/// What is in the file.
#[derive(Serialize)]
struct Saved<'a> {
    format: u32,
    /// The authority's certificate and its private key, in PEM.
    authority: (&'a str, &'a str),
    hub: &'a State,
}

#[derive(Deserialize)]
struct Header {
    format: u32,
}

#[derive(Deserialize)]
struct Loaded {
    authority: (String, String),
    hub: State,
}

/// The directory. It is this hub's own as long as this lives.
pub(super) struct Store {
    directory: PathBuf,
    _lock: Flock<File>,
    /// The digest of what is in the file: a state that has not changed is not written again.
    written: Mutex<Option<Vec<u8>>>,
}

impl Store {
    /// Opens the directory, and makes it if it is not there.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let refuse = |source| StoreError::Directory { path: directory.to_owned(), source };
        fs::create_dir_all(directory).map_err(refuse)?;
        let lock = File::create(directory.join("lock")).map_err(refuse)?;
        let in_use = |_| StoreError::InUse(directory.to_owned());
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(in_use)?;
        Ok(Self { directory: directory.to_owned(), _lock: lock, written: Mutex::new(None) })
    }

    fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    /// What was saved, with an authority for a server of these names. Nothing in a new directory.
    pub fn load(&self, server_names: &[String]) -> Result<Option<(State, Authority)>, StoreError> {
        let path = self.path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Read { path, source }),
        };
        let damaged = |source| StoreError::Damaged { path: path.clone(), source };
        let Header { format } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if format != FORMAT {
            return Err(StoreError::Format { path, found: format });
        }
        let Loaded { authority, mut hub } = serde_json::from_slice(&bytes).map_err(damaged)?;
        hub.resume();
        Ok(Some((hub, Authority::restore(&authority.0, &authority.1, server_names)?)))
    }

    /// Writes the state as it is now, if it is not what is in the file. Takes its time: not for async threads.
    pub fn save(&self, hub: &Shared, authority: &Authority) -> Result<(), StoreError> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let refuse = |source| StoreError::Write { path: self.path(), source };
        let authority = (authority.pem(), authority.key_pem());
        let snapshot = |state: &State| serde_json::to_vec(&Saved { format: FORMAT, authority, hub: state });
        let bytes = hub.read(snapshot).map_err(|error| refuse(error.into()))?;
        let digest = digest::digest(&digest::SHA256, &bytes).as_ref().to_vec();
        if written.as_ref() != Some(&digest) {
            self.write(&bytes).map_err(refuse)?;
            *written = Some(digest);
        }
        Ok(())
    }

    /// Either the old file or the new one is there, whatever happens. It holds keys: nobody else may read it.
    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.directory)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(self.path())?;
        File::open(&self.directory)?.sync_all()
    }
}

/// Saves the state for ever, some time after each change.
pub(super) async fn keep(store: Arc<Store>, hub: Arc<Shared>, authority: Arc<Authority>) {
    loop {
        hub.changed().await;
        sleep(INTERVAL).await;
        let begun = Instant::now();
        let (store, hub, authority) = (Arc::clone(&store), Arc::clone(&hub), Arc::clone(&authority));
        let saved = tokio::task::spawn_blocking(move || store.save(&hub, &authority)).await;
        if let Ok(Err(error)) = saved {
            tracing::error!(%error, "the state is not saved");
        }
        sleep(begun.elapsed().saturating_mul(PAUSE_PER_SNAPSHOT)).await;
    }
}
