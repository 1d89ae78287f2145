//! Parts of one file at an address: several on their way at once, handed over in order.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::fetch::{FetchError, Reach, Source, Wanted};
use super::patience::Patience;
use super::validator::Validator;
use super::{InstallError, Limits, Progress};
use crate::redact::display_url;

/// Requests on their way. While the first one's bytes are written, the next ones' cross the network.
const IN_FLIGHT: usize = 4;

/// What one request asks for at most. All that are under way, 512 KiB, are what a power cut costs, and what comes in the
/// time of a way there and back: at 100 ms, 5 MiB each second.
const REQUEST_BYTES: usize = 128 << 10;

/// Bytes that are fetched although nobody wants them, to make one request of two: about what a request costs.
const GAP_BYTES: u64 = 1024;

/// Where the bytes of the file beside begin, as if the one file went on with them: behind any bundle's end.
pub const BESIDE_OFFSET: u64 = 1 << 60;

/// Pieces that wait at the end of each request, of up to some 400 KiB.
const PIECES: usize = 1;

/// One version of a file.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Where it is.
    pub uri: String,
    /// Announced size in bytes.
    pub expected_bytes: Option<u64>,
    /// What its server said about it.
    pub validator: Option<Validator>,
    /// How its server is reached.
    pub reach: Reach,
    /// Limits in time.
    pub limits: Limits,
    /// Told what is fetched.
    pub progress: watch::Sender<Progress>,
    /// A file that belongs to it, from [`BESIDE_OFFSET`] on.
    pub beside: Option<Arc<Remote>>,
}

impl Remote {
    /// Asks for a part. A server that gives no parts gives everything from the start on.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn open(&self, part: Range<u64>) -> Result<Source, FetchError> {
        let (file, part) = match (&self.beside, part.start.checked_sub(BESIDE_OFFSET)) {
            (Some(beside), Some(start)) => (beside.as_ref(), start..part.end - BESIDE_OFFSET),
            _ => (self, part),
        };
        let (end, validator) = (Some(part.end), file.validator.clone());
        let wanted = Wanted { offset: part.start, end, validator, ..Wanted::default() };
        let progress = file.progress.clone();
        Source::open(&file.uri, file.expected_bytes, wanted, &file.reach, file.limits, progress).await
    }

    /// The next bytes of `source`, which are counted.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn next(&self, source: &mut Source) -> Result<Option<Bytes>, FetchError> {
        let bytes = source.next().await?;
        let len = bytes.as_ref().map_or(0, Bytes::len) as u64;
        self.progress.send_modify(|p| p.fetched_bytes += len);
        Ok(bytes)
    }

    /// All of a small part.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn read(&self, part: Range<u64>) -> Result<Vec<u8>, FetchError> {
        let mut source = self.open(part.clone()).await?;
        let mut all = Vec::with_capacity(usize::try_from(part.end - part.start).unwrap_or_default());
        while let Some(bytes) = self.next(&mut source).await? {
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }
}

/// What is to be asked for, to get all of `wanted` in this order: neighbours together, and no request too large.
#[must_use]
pub fn requests(wanted: impl IntoIterator<Item = Range<u64>>) -> VecDeque<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for part in wanted {
        match runs.last_mut() {
            Some(last) if (last.end..=last.end + GAP_BYTES).contains(&part.start) => last.end = part.end,
            _ => runs.push(part),
        }
    }
    let cut = |Range { start, end }: Range<u64>| {
        let starts = (start..end).step_by(REQUEST_BYTES);
        starts.map(move |start| start..end.min(start + REQUEST_BYTES as u64))
    };
    runs.into_iter().flat_map(cut).collect()
}

/// Parts that come one after the other.
#[derive(Debug)]
pub struct Parts {
    remote: Remote,
    /// Not asked for yet.
    requests: VecDeque<Range<u64>>,
    under_way: VecDeque<Part>,
    /// With all of them together: each is over soon, and waits for its own bytes alone.
    patience: Patience,
    /// Aborted with this value.
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Part {
    left: Range<u64>,
    pieces: mpsc::Receiver<Result<Bytes, FetchError>>,
}

impl Parts {
    /// Nothing is asked for before [`Parts::next`].
    #[must_use]
    pub fn new(remote: Remote, requests: VecDeque<Range<u64>>) -> Self {
        let patience = Patience::new(remote.limits);
        Self { remote, requests, under_way: VecDeque::new(), patience, tasks: JoinSet::new() }
    }

    /// The next bytes, and where they are in the file; `None` at the end.
    ///
    /// # Errors
    /// [`FetchError`]; [`InstallError::Beside`] if it is the file beside that fails.
    pub async fn next(&mut self) -> Result<Option<(u64, Bytes)>, InstallError> {
        self.patience.resume();
        loop {
            while self.tasks.try_join_next().is_some() {}
            while self.under_way.len() < IN_FLIGHT
                && let Some(request) = self.requests.pop_front()
            {
                let (sender, pieces) = mpsc::channel(PIECES);
                self.tasks.spawn(fetch(self.remote.clone(), request.clone(), sender));
                self.under_way.push_back(Part { left: request, pieces });
            }
            let Some(part) = self.under_way.front_mut() else { return Ok(None) };
            let offset = part.left.start;
            match part.pieces.recv().await {
                Some(bytes) => {
                    let bytes = bytes.map_err(|error| failed(offset, error))?;
                    part.left.start += bytes.len() as u64;
                    return match self.patience.suffices(bytes.len()) {
                        true => Ok(Some((offset, bytes))),
                        false => Err(self.patience.trickle(display_url(&self.remote.uri), None).into()),
                    };
                }
                None if part.left.is_empty() => drop(self.under_way.pop_front()),
                None => {
                    let url = display_url(&self.remote.uri);
                    let ended = FetchError::Size { url, announced: part.left.end, actual: offset };
                    return Err(failed(offset, ended));
                }
            }
        }
    }
}

/// Of the bytes at an offset: the file beside can be done without.
fn failed(offset: u64, error: FetchError) -> InstallError {
    if offset < BESIDE_OFFSET { error.into() } else { InstallError::Beside(error) }
}

async fn fetch(remote: Remote, part: Range<u64>, pieces: mpsc::Sender<Result<Bytes, FetchError>>) {
    let mut source = match remote.open(part).await {
        Ok(source) => source,
        Err(error) => return drop(pieces.send(Err(error)).await),
    };
    while let Some(piece) = remote.next(&mut source).await.transpose() {
        let failed = piece.is_err();
        if pieces.send(piece).await.is_err() || failed {
            return;
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::TcpListener;

    use super::super::fetch::Clients;
    use super::*;

    /// A file whose server answers requests of ten bytes each, after so long.
    pub(in crate::install) async fn tens(delay: Duration) -> Remote {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}/b.twb", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (read, mut write) = stream.into_split();
                    let mut lines = BufReader::new(read).lines();
                    while let Ok(Some(line)) = lines.next_line().await {
                        let Some(range) =
                            line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned)
                        else {
                            continue;
                        };
                        tokio::time::sleep(delay).await;
                        let head =
                            format!("HTTP/1.1 206 \r\netag: \"1\"\r\ncontent-range: bytes {range}/1000000");
                        let answer = format!("{head}\r\ncontent-length: 10\r\n\r\n0123456789");
                        write.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        Remote {
            uri,
            expected_bytes: None,
            validator: None,
            reach: Reach::Direct(Arc::new(Clients::new(None).unwrap())),
            limits: Limits::new(Duration::from_secs(1)),
            progress: watch::Sender::new(Progress::default()),
            beside: None,
        }
    }

    /// What comes of requests of ten bytes each, if each is answered after so long; four are under way.
    async fn fetch_tens(delay: Duration, requests: u64) -> Result<u64, InstallError> {
        let wanted = (0..requests).map(|number| number * 5000..number * 5000 + 10).collect();
        let (mut parts, mut bytes) = (Parts::new(tens(delay).await, wanted), 0);
        while let Some((_, piece)) = parts.next().await? {
            bytes += piece.len() as u64;
        }
        Ok(bytes)
    }

    #[tokio::test]
    async fn requests_that_are_each_over_soon_are_not_waited_for_for_ever() {
        assert_eq!(fetch_tens(Duration::ZERO, 100).await.unwrap(), 1000);
        // 133 bytes a second, of 256.
        match fetch_tens(Duration::from_millis(300), 100).await {
            Err(InstallError::Fetch(FetchError::Trickle { bytes, .. })) => {
                assert!((10..256).contains(&bytes), "{bytes}")
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn neighbours_are_asked_for_together_and_nothing_large_at_once() {
        let most = REQUEST_BYTES as u64;
        let wanted = [0..10, 10..20, 20 + GAP_BYTES..most, 3 * most..4 * most, 4 * most..5 * most + 1];
        let expected = [0..most, 3 * most..4 * most, 4 * most..5 * most, 5 * most..5 * most + 1];
        assert_eq!(requests(wanted), expected);
    }
}
