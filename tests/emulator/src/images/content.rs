//! Content, and parts of it as a stream that nothing copies whole.

use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream};
use hyper::body::Frame;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

/// Enough that the calls cost nothing beside the bytes.
const PIECE_BYTES: u64 = 256 * 1024;

/// A slow answer is sent in so many pieces per second.
const PIECES_PER_SEC: u64 = 20;

/// Before a connection is dropped, what was sent gets the time to arrive.
const DRAIN: Duration = Duration::from_millis(100);

/// What is under a name.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Memory { bytes: Bytes, etag: String },
    File(PathBuf),
}

/// Content as one request finds it.
#[derive(Debug)]
pub(super) struct Found {
    source: Source,
    /// Without the quotes.
    pub(super) etag: String,
    pub(super) length: u64,
}

#[derive(Debug)]
enum Source {
    Memory(Bytes),
    File(File),
}

impl Content {
    pub(super) fn memory(bytes: Bytes) -> Self {
        let etag = format!("{:08x}-{:x}", crc32fast::hash(&bytes), bytes.len());
        Self::Memory { bytes, etag }
    }

    pub(super) async fn find(&self) -> io::Result<Found> {
        match self {
            Self::Memory { bytes, etag } => Ok(Found {
                length: u64::try_from(bytes.len()).map_err(io::Error::other)?,
                source: Source::Memory(bytes.clone()),
                etag: etag.clone(),
            }),
            Self::File(path) => {
                let file = File::open(path).await?;
                let metadata = file.metadata().await?;
                // As other servers make it: time of the last change, and size.
                let etag = format!("{:x}-{:x}-{:x}", metadata.mtime(), metadata.mtime_nsec(), metadata.len());
                Ok(Found { length: metadata.len(), source: Source::File(file), etag })
            }
        }
    }
}

/// How an answer's body goes out.
#[derive(Clone, Debug)]
pub(super) struct Delivery {
    pub(super) start: u64,
    pub(super) length: u64,
    /// Where the content ends and zeros begin.
    pub(super) content_end: u64,
    pub(super) drop_after_bytes: Option<u64>,
    pub(super) stall_after_bytes: Option<u64>,
    pub(super) bytes_per_sec: Option<u64>,
    pub(super) flip_at: Option<u64>,
    pub(super) sent: Arc<AtomicU64>,
}

struct Body {
    source: Source,
    delivery: Delivery,
    done: u64,
}

impl Found {
    /// The bytes as the faults let them through.
    pub(super) async fn deliver(
        mut self,
        delivery: Delivery,
    ) -> io::Result<impl Stream<Item = io::Result<Frame<Bytes>>>> {
        if let Source::File(file) = &mut self.source {
            file.seek(SeekFrom::Start(delivery.start)).await?;
        }
        let body = Body { source: self.source, delivery, done: 0 };
        Ok(stream::try_unfold(body, |mut body| async move {
            let piece = body.next().await?;
            Ok(piece.map(|piece| (Frame::data(piece), body)))
        }))
    }
}

impl Body {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let most = self.delivery.bytes_per_sec.map_or(PIECE_BYTES, |rate| (rate / PIECES_PER_SEC).max(1));
        let mut length = (self.delivery.length - self.done).min(most.min(PIECE_BYTES));
        if length == 0 {
            return Ok(None);
        }
        if let Some(limit) = self.delivery.drop_after_bytes {
            length = length.min(limit.saturating_sub(self.done));
            if length == 0 {
                tokio::time::sleep(DRAIN).await;
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "dropped on purpose"));
            }
        }
        if let Some(limit) = self.delivery.stall_after_bytes {
            length = length.min(limit.saturating_sub(self.done));
            if length == 0 {
                std::future::pending::<()>().await;
            }
        }
        if let Some(rate) = self.delivery.bytes_per_sec {
            tokio::time::sleep(Duration::from_micros(length.saturating_mul(1_000_000) / rate.max(1))).await;
        }
        let mut piece = self.read(length).await?;
        self.flip(&mut piece);
        let read = u64::try_from(piece.len()).map_err(io::Error::other)?;
        self.done += read;
        self.delivery.sent.fetch_add(read, Ordering::Relaxed);
        Ok(Some(piece))
    }

    fn flip(&self, piece: &mut Bytes) {
        let offset = self.delivery.start + self.done;
        let at = self.delivery.flip_at.and_then(|at| usize::try_from(at.checked_sub(offset)?).ok());
        let Some(at) = at.filter(|at| *at < piece.len()) else { return };
        let mut bytes = BytesMut::from(&piece[..]);
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1;
        }
        *piece = bytes.freeze();
    }

    /// At least one byte, at most `length`.
    async fn read(&mut self, length: u64) -> io::Result<Bytes> {
        let offset = self.delivery.start + self.done;
        let of_content = self.delivery.content_end.saturating_sub(offset).min(length);
        if of_content == 0 {
            return Ok(Bytes::from(vec![0; usize::try_from(length).map_err(io::Error::other)?]));
        }
        let length = usize::try_from(of_content).map_err(io::Error::other)?;
        match &mut self.source {
            Source::Memory(bytes) => {
                let start = usize::try_from(offset).map_err(io::Error::other)?;
                Ok(bytes.slice(start..start + length))
            }
            Source::File(file) => {
                let mut piece = BytesMut::with_capacity(length);
                let read = (&mut *file).take(of_content).read_buf(&mut piece).await?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(piece.freeze())
            }
        }
    }
}
