//! The daemon's side of the socket.

use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Group;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, warn};

use super::{Answer, Call, Command, Status};
use crate::update::{Code, Failure};

/// The longest command is an install with a signed link of some 4 KiB.
const LINE_LIMIT_BYTES: u64 = 64 * 1024;

/// Enough for every person and script at one device; a watcher costs some 100 KiB.
const CONNECTION_LIMIT: usize = 16;

/// A client is a program on this machine: it has its command ready.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// A client that does not take its answer is stopped, or dead.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// An answer may wait for the state file and the boot environment on a slow medium.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// `accept` fails where descriptors or memory are short: that does not pass in a microsecond.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Why there is no socket to listen on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The directory is not there and could not be made.
    #[error("cannot create the directory of the control socket {}", path.display())]
    Directory {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process answers there.
    #[error("another daemon listens on {}; stop it first: `systemctl stop twinboot`", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something is in the way that is no socket.
    #[error("{} is there and is no socket; move it away", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// A stale socket could not be removed, or the new one not be bound.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The mode or the group could not be set.
    #[error("cannot set mode or group of {}", path.display())]
    Permissions {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Listens at `path`, for the owner and, if there is one of that name, for `group`. A socket that nobody
/// listens on any more is replaced. To be called within a runtime.
///
/// # Errors
/// When another process listens there, or the file system does not allow it.
pub fn bind(path: &Path, group: &str) -> Result<UnixListener, BindError> {
    let owned = || path.to_owned();
    if let Some(directory) = path.parent() {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(directory);
        made.map_err(|source| BindError::Directory { path: owned(), source })?;
    }
    remove_stale(path)?;
    let listener = UnixListener::bind(path).map_err(|source| BindError::Listen { path: owned(), source })?;
    let permissions = |source| BindError::Permissions { path: owned(), source };
    // Group before mode: for a moment it is closed to some who may, never open to some who may not.
    match Group::from_name(group) {
        // The service has the group already, and is not allowed to change any.
        Ok(Some(group)) if std::fs::metadata(path).is_ok_and(|socket| socket.gid() == group.gid.as_raw()) => {
        }
        Ok(Some(group)) => chown(path, None, Some(group.gid.as_raw())).map_err(permissions)?,
        Ok(None) => debug!("there is no group {group}: the control socket is for its owner alone"),
        Err(errno) => warn!("cannot look up the group {group}: {errno}"),
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(permissions)?;
    Ok(listener)
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let owned = || path.to_owned();
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(BindError::Listen { path: owned(), source }),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(BindError::NotASocket { path: owned() });
        }
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| BindError::Listen { path: owned(), source })
        }
        Err(source) => Err(BindError::Listen { path: owned(), source }),
        Ok(_) => Err(BindError::InUse { path: owned() }),
    }
}

/// Serves the socket until it is dropped. [`Command::Status`] and [`Command::Watch`] are answered from
/// `status`; everything else goes to `calls` and waits for its answer.
pub async fn serve(listener: UnixListener, calls: mpsc::Sender<Call>, status: watch::Receiver<Status>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) if connections.len() >= CONNECTION_LIMIT => turn_away(&stream),
            Ok((stream, _)) => {
                connections.spawn(converse(stream, calls.clone(), status.clone()));
            }
            Err(error) => {
                warn!("cannot accept a connection on the control socket: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn turn_away(stream: &UnixStream) {
    let message = format!("{CONNECTION_LIMIT} connections are open; end a `twinboot status --watch`");
    let line = line(&Answer::Refused(Failure::new(Code::Busy, message)));
    // A fresh socket has room for one line; one that has not belongs to nobody who reads.
    let _ = stream.try_write(&line);
}

/// One connection, from its first command to its end.
async fn converse(stream: UnixStream, calls: mpsc::Sender<Call>, status: watch::Receiver<Status>) {
    let (read, write) = stream.into_split();
    let mut connection = Connection { read: BufReader::new(read), write };
    if let Err(error) = connection.commands(&calls, status).await {
        debug!("control connection ended: {error}");
    }
}

struct Connection {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl Connection {
    async fn commands(
        &mut self,
        calls: &mpsc::Sender<Call>,
        mut status: watch::Receiver<Status>,
    ) -> io::Result<()> {
        while let Some(line) = self.next_line().await? {
            let answer = match serde_json::from_slice(&line) {
                Ok(Command::Watch) => return self.watch(status).await,
                Ok(Command::Status) => Answer::Status(Box::new(status.borrow_and_update().clone())),
                Ok(command) => match ask(calls, command).await {
                    Some(answer) => answer,
                    None => return Ok(()),
                },
                Err(error) => {
                    Answer::Refused(Failure::new(Code::InvalidPayload, format!("not a command: {error}")))
                }
            };
            self.send(&answer).await?;
        }
        Ok(())
    }

    /// `None` at the end of the connection.
    async fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        let mut limited = (&mut self.read).take(LINE_LIMIT_BYTES);
        timeout(READ_LIMIT, limited.read_until(b'\n', &mut line)).await??;
        if line.last() == Some(&b'\n') {
            Ok(Some(line))
        } else if line.is_empty() {
            Ok(None)
        } else {
            let message = format!("a command is one line of at most {LINE_LIMIT_BYTES} bytes");
            self.send(&Answer::Refused(Failure::new(Code::InvalidPayload, message))).await?;
            Ok(None)
        }
    }

    async fn watch(&mut self, mut status: watch::Receiver<Status>) -> io::Result<()> {
        status.mark_changed();
        loop {
            tokio::select! {
                changed = status.changed() => if changed.is_err() {
                    return Ok(());
                },
                // Whatever comes, above all the end: this client has seen enough.
                _ = self.read.fill_buf() => return Ok(()),
            }
            let answer = Answer::Status(Box::new(status.borrow_and_update().clone()));
            self.send(&answer).await?;
        }
    }

    async fn send(&mut self, answer: &Answer) -> io::Result<()> {
        timeout(WRITE_LIMIT, self.write.write_all(&line(answer))).await?
    }
}

/// `None` where the agent gives no answer.
async fn ask(calls: &mpsc::Sender<Call>, command: Command) -> Option<Answer> {
    let (reply, answer) = oneshot::channel();
    let asked = async {
        calls.send(Call { command, reply }).await.ok()?;
        answer.await.ok()
    };
    timeout(ANSWER_LIMIT, asked).await.ok().flatten()
}

fn line(answer: &Answer) -> Vec<u8> {
    // Strings, numbers and maps with string keys: there is nothing in it that JSON cannot say.
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    line
}
