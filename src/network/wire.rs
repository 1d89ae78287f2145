//! What the agent and the networked part say to each other, in frames of bounded size.
//!
//! A frame is two lengths (u32, little-endian), then that many bytes of JSON, then that many bytes as they are. The
//! first frame of a connection is an [`Opening`]; what may follow depends on it.

use std::io;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::install::Limits;
use crate::install::validator::Validator;
use crate::update::Code;

/// The hub carries no message above 256 KiB; JSON in JSON may need twice as much.
pub const HEAD_MAX_BYTES: usize = 512 * 1024;

/// Twice the largest chunk that the HTTP client gives, and a method's payload four times over.
pub const BODY_MAX_BYTES: usize = 512 * 1024;

/// Two lengths.
const PREFIX_BYTES: usize = 8;

/// The other side takes what it gets at the pace of its slowest medium; a sync of a worn eMMC takes many seconds.
const WRITE_LIMIT: Duration = Duration::from_secs(300);

/// Why there is no (further) frame.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The other side ended, or hung up.
    #[error("the connection was closed")]
    Closed,
    /// Reading or writing failed.
    #[error("the connection failed")]
    Connection(#[from] io::Error),
    /// Nothing was taken, or nothing came.
    #[error("the other side does not answer")]
    Silent,
    /// More than any message has.
    #[error("a frame of {head_bytes} and {body_bytes} bytes is larger than any message")]
    TooLarge {
        /// Of the JSON.
        head_bytes: usize,
        /// Of what follows it.
        body_bytes: usize,
    },
    /// Not one of the messages that may stand here.
    #[error("a frame is no message")]
    NotAMessage(#[source] serde_json::Error),
    /// A message at the wrong time.
    #[error("a message came out of turn")]
    OutOfTurn,
}

/// The agent's first frame: what this connection is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Opening {
    /// The session with the hub.
    Hub,
    /// The bytes at an address.
    Fetch(FetchRequest),
    /// A file for the hub's storage: its content follows in the bodies of [`ToStorage`] frames.
    Upload {
        /// What the file will be called there.
        name: String,
    },
}

/// What the agent sends of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum ToStorage {
    /// The next bytes: the frame's body.
    Chunk,
    /// That was all.
    End,
}

/// How an upload ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Uploaded {
    /// The storage has it.
    Done,
    /// For a person.
    Failed(String),
}

/// One download.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FetchRequest {
    /// `https://` or `http://`.
    pub uri: String,
    /// Announced size in bytes.
    pub expected_bytes: Option<u64>,
    /// Bytes that are not wanted again.
    pub offset: u64,
    /// Where to stop before the end of the file.
    pub end: Option<u64>,
    /// The version that they belong to.
    pub validator: Option<Validator>,
    /// Whether others of its size are the same file. Sent only where it is needed: an upgrade may leave a networked part at
    /// work that does not know it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub any_version: bool,
    /// The networked part is as patient as the agent.
    pub limits: Limits,
}

/// The networked part's answers to a [`FetchRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Fetched {
    /// First: what the server says about the file.
    #[serde(rename_all = "camelCase")]
    Opened {
        /// Of the whole file.
        validator: Validator,
        /// It gives the part that was asked for, and not everything.
        part: bool,
    },
    /// The server is away, and asked again.
    Waiting,
    /// The next bytes: the frame's body.
    #[serde(rename_all = "camelCase")]
    Chunk {
        /// Bytes of two answers were joined, and nothing proves that they belong together.
        joined_unproven: bool,
    },
    /// Last: the answer ended as its framing said.
    End,
    /// Last: why there are no more.
    Failed {
        /// For the twin.
        code: Code,
        /// For a person.
        message: String,
    },
}

/// What the agent tells the hub's session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum ToHub {
    /// The reported properties that the twin is to have.
    Reported(Map<String, Value>),
    /// The answer to a direct method.
    Reply {
        /// Of [`FromHub::Method`].
        call: u64,
        /// HTTP-like.
        status: u16,
        /// JSON.
        payload: Value,
    },
}

/// What the hub's session tells the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum FromHub {
    /// As [`HubEvent::Connected`](crate::hub::HubEvent::Connected).
    Connected,
    /// The session ended, or could not begin.
    Disconnected {
        /// One line for a person.
        reason: String,
    },
    /// A direct method; its payload is the frame's body.
    Method {
        /// To answer it by.
        call: u64,
        /// Percent-decoded.
        name: String,
    },
    /// The whole desired section.
    Desired(Map<String, Value>),
}

/// A sentence, and an address in it; nobody reads more.
const SENTENCE_MAX_CHARS: usize = 500;

/// What the other side says, fit for a log and the twin.
#[must_use]
pub fn in_one_line(text: &str) -> String {
    text.chars().take(SENTENCE_MAX_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Both directions of a connection.
#[must_use]
pub fn split(stream: UnixStream) -> (Reader, Writer) {
    let (read, write) = stream.into_split();
    (Reader { half: read, buffer: BytesMut::new() }, Writer { half: write })
}

/// The frames that come.
#[derive(Debug)]
pub struct Reader {
    half: OwnedReadHalf,
    buffer: BytesMut,
}

impl Reader {
    /// The next frame. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`WireError`]; after one the connection is of no more use.
    pub async fn next<M: DeserializeOwned>(&mut self) -> Result<(M, Bytes), WireError> {
        loop {
            let lengths = self.lengths()?;
            let whole = lengths.map_or(PREFIX_BYTES, |(head, body)| PREFIX_BYTES + head + body);
            if let Some((head_bytes, body_bytes)) = lengths
                && self.buffer.len() >= whole
            {
                self.buffer.advance(PREFIX_BYTES);
                let head = self.buffer.split_to(head_bytes);
                let message = serde_json::from_slice(&head).map_err(WireError::NotAMessage)?;
                let body = self.buffer.split_to(body_bytes);
                // The memory of both lives as long as the body: a large head is not to be kept with a small one.
                let body =
                    if body_bytes < head_bytes { Bytes::copy_from_slice(&body) } else { body.freeze() };
                return Ok((message, body));
            }
            self.buffer.reserve(whole.saturating_sub(self.buffer.len()));
            if self.half.read_buf(&mut self.buffer).await? == 0 {
                return Err(WireError::Closed);
            }
        }
    }

    /// Of the frame that the buffer begins with, once they are there; judged before anything is reserved for it.
    fn lengths(&self) -> Result<Option<(usize, usize)>, WireError> {
        let Some(mut prefix) = self.buffer.get(..PREFIX_BYTES) else { return Ok(None) };
        let mut length = || usize::try_from(prefix.get_u32_le()).unwrap_or(usize::MAX);
        let (head_bytes, body_bytes) = (length(), length());
        if head_bytes > HEAD_MAX_BYTES || body_bytes > BODY_MAX_BYTES {
            return Err(WireError::TooLarge { head_bytes, body_bytes });
        }
        Ok(Some((head_bytes, body_bytes)))
    }

    /// Returns once the other side hung up; it is to say nothing more before.
    pub async fn closed(&mut self) {
        // Whatever comes instead of the end is out of turn, and ends it as well.
        let _ = self.half.read_buf(&mut self.buffer).await;
    }
}

/// The frames that go.
#[derive(Debug)]
pub struct Writer {
    half: OwnedWriteHalf,
}

impl Writer {
    /// Sends a frame.
    ///
    /// # Errors
    /// [`WireError`]; after one the connection is of no more use.
    pub async fn send<M: Serialize>(&mut self, message: &M, body: &[u8]) -> Result<(), WireError> {
        let head = serde_json::to_vec(message).map_err(WireError::NotAMessage)?;
        let too_large = WireError::TooLarge { head_bytes: head.len(), body_bytes: body.len() };
        if head.len() > HEAD_MAX_BYTES || body.len() > BODY_MAX_BYTES {
            return Err(too_large);
        }
        let (Ok(head_bytes), Ok(body_bytes)) = (u32::try_from(head.len()), u32::try_from(body.len())) else {
            return Err(too_large);
        };
        let mut first = Vec::with_capacity(PREFIX_BYTES + head.len());
        first.extend_from_slice(&head_bytes.to_le_bytes());
        first.extend_from_slice(&body_bytes.to_le_bytes());
        first.extend_from_slice(&head);
        let both = async {
            self.half.write_all(&first).await?;
            self.half.write_all(body).await
        };
        timeout(WRITE_LIMIT, both).await.map_err(|_| WireError::Silent)?.map_err(WireError::from)
    }

    /// Tells the other side that nothing more will come.
    pub async fn finish(&mut self) {
        // It is gone where this fails.
        let _ = self.half.shutdown().await;
    }
}
