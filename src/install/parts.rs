//! Parts of one file at an address: several on their way at once, handed over in order.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::fetch::{FetchError, Reach, Source, Wanted};
use super::validator::Validator;
use super::{Limits, Progress};
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
        let wanted = Wanted { offset: part.start, end: Some(part.end), validator: file.validator.clone() };
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
        Self { remote, requests, under_way: VecDeque::new(), tasks: JoinSet::new() }
    }

    /// The next bytes, and where they are in the file; `None` at the end.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn next(&mut self) -> Result<Option<(u64, Bytes)>, FetchError> {
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
            match part.pieces.recv().await {
                Some(bytes) => {
                    let (bytes, offset) = (bytes?, part.left.start);
                    part.left.start += bytes.len() as u64;
                    return Ok(Some((offset, bytes)));
                }
                None if part.left.is_empty() => drop(self.under_way.pop_front()),
                None => {
                    let url = display_url(&self.remote.uri);
                    return Err(FetchError::Size { url, announced: part.left.end, actual: part.left.start });
                }
            }
        }
    }
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
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_asked_for_together_and_nothing_large_at_once() {
        let most = REQUEST_BYTES as u64;
        let wanted = [0..10, 10..20, 20 + GAP_BYTES..most, 3 * most..4 * most, 4 * most..5 * most + 1];
        let expected = [0..most, 3 * most..4 * most, 4 * most..5 * most, 5 * most..5 * most + 1];
        assert_eq!(requests(wanted), expected);
    }
}
