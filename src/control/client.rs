//! The command line's side of the socket: blocking, since it has nothing else to do.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::{Answer, Command, Status};
use crate::update::Failure;

/// A daemon that lives accepts and takes a line at once.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// A little longer than the daemon gives itself for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(65);

/// A status holds the reported properties, which the hub limits to 32 KiB.
const LINE_LIMIT_BYTES: u64 = 1024 * 1024;

/// Why the daemon did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody can be reached at the socket.
    #[error("cannot reach the daemon at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("lost the connection to the daemon")]
    Lost {
        /// Why.
        source: io::Error,
    },
    /// The daemon closed the connection, as it does when it stops.
    #[error("the daemon closed the connection")]
    Closed,
    /// The daemon lives, but does not answer.
    #[error("the daemon gave no answer in {} s", ANSWER_LIMIT.as_secs())]
    TimedOut,
    /// Not what this client understands.
    #[error("the daemon's answer is not understood")]
    NotUnderstood {
        /// Why.
        source: serde_json::Error,
    },
    /// An answer to another question.
    #[error("the daemon's answer does not fit the question")]
    Unexpected,
    /// The daemon does not serve this connection.
    #[error("the daemon turned this program away: {}", .0.message)]
    Refused(Failure),
}

impl ClientError {
    /// Whether it is certain that no daemon runs: one that hangs, or does not talk with us, is one.
    #[must_use]
    pub fn nobody_is_there(&self) -> bool {
        let gone = |kind| matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
        matches!(self, Self::Connect { source, .. } if gone(source.kind()))
    }

    /// What a person can do about it.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run as root, or join the group twinboot"
            }
            Self::Connect { .. } => "is it running? `systemctl status twinboot`",
            Self::Lost { .. } | Self::Closed | Self::TimedOut => "see `journalctl -u twinboot`",
            Self::NotUnderstood { .. } | Self::Unexpected => "is it of the same version as this program?",
            Self::Refused(_) => "",
        }
    }
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`ClientError::Connect`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream =
            connect_limited(path).map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// The present status of the daemon at `path`.
    ///
    /// # Errors
    /// When nobody is there, or there is no answer in time, or none that is understood.
    pub fn status(path: &Path) -> Result<Status, ClientError> {
        match Self::connect(path)?.call(&Command::Status)? {
            Answer::Status(status) => Ok(*status),
            Answer::Refused(failure) => Err(ClientError::Refused(failure)),
            Answer::Ok { .. } => Err(ClientError::Unexpected),
        }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// When there is no answer in time, or none that is understood.
    pub fn call(&mut self, command: &Command) -> Result<Answer, ClientError> {
        self.send(command)?;
        self.receive()?.ok_or(ClientError::Closed)
    }

    /// Asks for the status, now and at each change.
    ///
    /// # Errors
    /// When the command cannot be sent.
    pub fn watch(mut self) -> Result<Watch, ClientError> {
        self.send(&Command::Watch)?;
        Ok(Watch { client: self, first: true })
    }

    fn send(&mut self, command: &Command) -> Result<(), ClientError> {
        let mut line = serde_json::to_vec(command).map_err(|source| ClientError::NotUnderstood { source })?;
        line.push(b'\n');
        match self.stream.get_mut().write_all(&line).map_err(lost) {
            // Closed before the question: why, may wait to be read.
            Err(ClientError::Closed) => Ok(()),
            sent => sent,
        }
    }

    /// `None` at the end of the connection.
    fn receive(&mut self) -> Result<Option<Answer>, ClientError> {
        let mut line = Vec::new();
        (&mut self.stream).take(LINE_LIMIT_BYTES).read_until(b'\n', &mut line).map_err(lost)?;
        if line.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(&line).map(Some).map_err(|source| ClientError::NotUnderstood { source })
    }
}

fn lost(source: io::Error) -> ClientError {
    match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::TimedOut,
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Closed,
        _ => ClientError::Lost { source },
    }
}

/// A connection whose `connect` cannot hang, as it would where a stopped daemon's backlog is full.
fn connect_limited(path: &Path) -> io::Result<UnixStream> {
    let descriptor = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let limit = TimeVal::seconds(i64::try_from(SEND_LIMIT.as_secs()).unwrap_or(i64::MAX));
    setsockopt(&descriptor, sockopt::SendTimeout, &limit)?;
    connect(descriptor.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(descriptor);
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    Ok(stream)
}

/// The daemon's status, now and at each change. Ends when the daemon closes the connection.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    first: bool,
}

impl Iterator for Watch {
    type Item = Result<Status, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let answer = self.client.receive();
        if std::mem::take(&mut self.first) {
            // From now on silence means that nothing changes.
            if let Err(source) = self.client.stream.get_ref().set_read_timeout(None) {
                return Some(Err(ClientError::Lost { source }));
            }
        }
        match answer {
            Ok(Some(Answer::Status(status))) => Some(Ok(*status)),
            Ok(Some(Answer::Refused(failure))) => Some(Err(ClientError::Refused(failure))),
            Ok(Some(Answer::Ok { .. })) => Some(Err(ClientError::Unexpected)),
            Ok(None) | Err(ClientError::Closed) => None,
            Err(error) => Some(Err(error)),
        }
    }
}
