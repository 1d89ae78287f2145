//! The bytes at an address, as the networked part hands them over. It is no more trusted than the network: what it
//! gives is counted, compared and verified like bytes from a server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use super::fetch::{FetchError, Interruption, Setback, Wanted};
use super::validator::Validator;
use super::{Limits, Phase, Progress};
use crate::network::wire::{self, FetchRequest, Fetched, Opening, Reader, WireError};
use crate::update::Code;

/// After so long without a word it is the networked part that is waited for, and nobody else.
const SILENT: Duration = Duration::from_secs(60);

/// One download through the networked part.
#[derive(Debug)]
pub(super) struct Relayed {
    socket: PathBuf,
    uri: String,
    connection: Option<Connection>,
    joined_unproven: bool,
}

#[derive(Debug)]
struct Connection {
    reader: Reader,
    /// Closing it would tell the networked part to stop.
    _writer: wire::Writer,
}

impl Relayed {
    pub(super) fn new(socket: &Path, uri: &str) -> Self {
        Self { socket: socket.to_owned(), uri: uri.to_owned(), connection: None, joined_unproven: false }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.connection.is_none()
    }

    pub(super) fn hang_up(&mut self) {
        self.connection = None;
    }

    /// As far as the networked part says.
    pub(super) fn joined_unproven(&self) -> bool {
        self.joined_unproven
    }

    pub(super) fn request(
        &self,
        expected_bytes: Option<u64>,
        Wanted { offset, end, validator, any_version }: Wanted,
        limits: Limits,
    ) -> FetchRequest {
        FetchRequest { uri: self.uri.clone(), expected_bytes, offset, end, validator, any_version, limits }
    }

    /// Asks, and waits for what the server says about the file, and whether it gives a part alone.
    pub(super) async fn open(
        &mut self,
        request: &FetchRequest,
        patience: Duration,
        progress: &watch::Sender<Progress>,
    ) -> Result<(Validator, bool), Interruption> {
        let asked = async {
            let stream = UnixStream::connect(&self.socket).await?;
            let (reader, mut writer) = wire::split(stream);
            writer.send(&Opening::Fetch(request.clone()), &[]).await?;
            Ok(Connection { reader, _writer: writer })
        };
        self.connection = Some(asked.await.map_err(away)?);
        match self.answer(patience, progress).await? {
            (Fetched::Opened { validator, part }, _) => Ok((validator, part)),
            _ => Err(away(WireError::OutOfTurn)),
        }
    }

    /// The next bytes; `None` at the end.
    pub(super) async fn chunk(
        &mut self,
        patience: Duration,
        progress: &watch::Sender<Progress>,
    ) -> Result<Option<Bytes>, Interruption> {
        match self.answer(patience, progress).await? {
            (Fetched::Chunk { joined_unproven }, bytes) if !bytes.is_empty() => {
                self.joined_unproven |= joined_unproven;
                Ok(Some(bytes))
            }
            (Fetched::End, _) => Ok(None),
            _ => Err(away(WireError::OutOfTurn)),
        }
    }

    /// The next answer that is more than a sign of life.
    async fn answer(
        &mut self,
        patience: Duration,
        progress: &watch::Sender<Progress>,
    ) -> Result<(Fetched, Bytes), Interruption> {
        let Some(connection) = &mut self.connection else { return Err(away(WireError::Closed)) };
        let answered = async {
            loop {
                match connection.reader.next().await? {
                    (Fetched::Waiting, _) => drop(progress.send_if_modified(waits)),
                    answer => return Ok(answer),
                }
            }
        };
        tokio::pin!(answered);
        let answered = async {
            match timeout(SILENT, &mut answered).await {
                Ok(answer) => answer,
                Err(_) => {
                    progress.send_if_modified(waits);
                    answered.await
                }
            }
        };
        match timeout(patience, answered).await.unwrap_or(Err(WireError::Silent)).map_err(away)? {
            (Fetched::Failed { code, message }, _) => Err(Interruption::Stop(failure(code, &message))),
            answer => Ok(answer),
        }
    }
}

/// Whether that is news.
fn waits(progress: &mut Progress) -> bool {
    std::mem::replace(&mut progress.phase, Phase::Waiting) != Phase::Waiting
}

fn away(source: WireError) -> Interruption {
    Interruption::Again(Setback::NetworkPart { source })
}

/// A download can only fail as downloads do, whatever the networked part says, and in one line.
fn failure(code: Code, message: &str) -> FetchError {
    let message = wire::in_one_line(message);
    match code {
        Code::ImageNotFound
        | Code::ImageForbidden
        | Code::ServerUnreachable
        | Code::ServerRefused
        | Code::ImageChanged
        | Code::SizeMismatch => FetchError::Relayed { code, message },
        _ => FetchError::Relayed { code: Code::ServerRefused, message },
    }
}
