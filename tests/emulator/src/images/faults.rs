//! What a server does wrong, per name.

use std::ops::Range;

/// Faults of one name; the default is none. All that are set hold at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Closes the connection in the middle of an answer.
    pub drop: Option<DropFault>,
    /// Sends so many bytes of each answer, and then nothing more.
    pub stall_after_bytes: Option<u64>,
    /// Answers 200 with everything to a request for a part.
    pub ignore_range: bool,
    /// Each answer has another ETag, as if the content changed all the time.
    pub etag_changes_each_request: bool,
    /// A byte arrives as another one.
    pub flip: Option<FlipFault>,
    /// The `Content-Range` names other bytes than were asked for; the bytes are the right ones.
    pub wrong_content_range: bool,
    /// Answers with a status alone.
    pub status: Option<StatusFault>,
    /// The content ends here, as if it had no more.
    pub truncate_to: Option<u64>,
    /// So many zeros follow the content, as if they belonged to it.
    pub extra_bytes: u64,
    /// Sends no faster.
    pub bytes_per_sec: Option<u64>,
    /// Answers 302 to this URL.
    pub redirect_to: Option<String>,
}

/// Of an answer, so many bytes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropFault {
    /// Bytes of the body until the connection closes.
    pub after_bytes: u64,
    /// How many of the next requests are answered so.
    pub requests: u32,
}

/// Answers that hold this byte of the content hold another in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlipFault {
    /// Of the byte in the content.
    pub offset: u64,
    /// How many of the next requests for a part that holds it are answered so.
    pub requests: u32,
}

/// An answer that is no content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusFault {
    /// Such as 503.
    pub code: u16,
    /// The `Retry-After` header.
    pub retry_after_secs: Option<u64>,
    /// How many of the next requests are answered so.
    pub requests: u32,
}

/// The faults of one request.
#[derive(Clone, Debug, Default)]
pub(super) struct ThisTime {
    pub(super) faults: Faults,
    pub(super) drop_after_bytes: Option<u64>,
    pub(super) status: Option<StatusFault>,
}

impl Faults {
    /// The byte that is wrong in this part, one more time.
    pub(super) fn flip(&mut self, part: Range<u64>) -> Option<u64> {
        let flip = self.flip.as_mut().filter(|flip| flip.requests > 0 && part.contains(&flip.offset))?;
        flip.requests -= 1;
        Some(flip.offset)
    }

    /// What holds for one more request; those that hold for some requests have one less left.
    pub(super) fn take(&mut self) -> ThisTime {
        let faults = self.clone();
        if let Some(status) = self.status.as_mut().filter(|status| status.requests > 0) {
            status.requests -= 1;
            return ThisTime { status: Some(*status), drop_after_bytes: None, faults };
        }
        let dropped = self.drop.as_mut().filter(|dropped| dropped.requests > 0);
        let drop_after_bytes = dropped.map(|dropped| {
            dropped.requests -= 1;
            dropped.after_bytes
        });
        ThisTime { faults, drop_after_bytes, status: None }
    }
}
