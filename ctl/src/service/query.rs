//! Queries over the twins and jobs of a hub, page by page, no faster than the hub allows.

use std::sync::Mutex;
use std::time::Duration;

use reqwest::Method;
use reqwest::header::HeaderName;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::Instant;

use super::{Request, Service, ServiceError};

/// The most that the hub gives at once.
pub const PAGE_ROWS_MAX: usize = 1000;

/// S1 and S2 allow 20 queries a minute, to all users of the hub together: we take a short command's worth at once, and
/// then one each five seconds. These are 20 in the first minute, and 12 in those after it.
const BURST: u32 = 8;
const REFILL_INTERVAL: Duration = Duration::from_secs(5);

pub(super) const CONTINUATION: HeaderName = HeaderName::from_static("x-ms-continuation");
const MAX_ITEM_COUNT: HeaderName = HeaderName::from_static("x-ms-max-item-count");

/// A bucket of queries that fills up again slowly.
pub struct Quota {
    /// When the bucket will be full again.
    full_at: Mutex<Option<Instant>>,
}

impl Quota {
    pub fn new() -> Self {
        Self { full_at: Mutex::new(None) }
    }

    /// Waits until one more query is allowed, and takes it.
    async fn take(&self) {
        let pause = {
            let mut full_at = self.full_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let (next, pause) = take(*full_at, Instant::now());
            *full_at = Some(next);
            pause
        };
        tokio::time::sleep(pause).await;
    }
}

/// When the bucket is full again if one is taken `now`, and how long to wait for that one.
fn take(full_at: Option<Instant>, now: Instant) -> (Instant, Duration) {
    let full_at = full_at.unwrap_or(now).max(now) + REFILL_INTERVAL;
    let missing = full_at.duration_since(now);
    (full_at, missing.saturating_sub(REFILL_INTERVAL.saturating_mul(BURST)))
}

/// Some rows, and where the next ones are.
pub struct Page<T> {
    pub rows: Vec<T>,
    pub next: Option<String>,
}

impl Service {
    /// One page; `from` is the `next` of the page before.
    pub async fn page<T: DeserializeOwned>(
        &self,
        query: &str,
        rows_max: usize,
        from: Option<String>,
    ) -> Result<Page<T>, ServiceError> {
        self.quota.take().await;
        let path = ["devices", "query"];
        let mut request = Request::write(Method::POST, &path, "the query")
            .body(json!({ "query": query }))
            .header(MAX_ITEM_COUNT, rows_max.min(PAGE_ROWS_MAX).to_string());
        request.repeatable = true;
        if let Some(from) = from {
            request = request.header(CONTINUATION, from);
        }
        let reply = self.send(request).await?;
        Ok(Page { rows: self.parse(&reply)?, next: reply.next() })
    }

    /// All rows of a query that has few.
    pub async fn rows<T: DeserializeOwned>(&self, query: &str) -> Result<Vec<T>, ServiceError> {
        let mut rows = Vec::new();
        let mut from = None;
        loop {
            let page = self.page(query, PAGE_ROWS_MAX, from).await?;
            rows.extend(page.rows);
            match page.next {
                Some(next) if rows.len() < ROWS_MAX => from = Some(next),
                _ => return Ok(rows),
            }
        }
    }
}

/// A bound for what is kept in memory; aggregates have some ten rows.
const ROWS_MAX: usize = 10 * PAGE_ROWS_MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_then_queries_come_at_the_hubs_pace() {
        let now = Instant::now();
        let mut full_at = None;
        let mut pauses = Vec::new();
        for _ in 0..BURST + 2 {
            let (next, pause) = take(full_at, now);
            full_at = Some(next);
            pauses.push(pause);
        }
        assert!(pauses.iter().take(BURST as usize).all(Duration::is_zero), "{pauses:?}");
        assert_eq!(pauses.last(), Some(&(REFILL_INTERVAL * 2)));
        let later = now + REFILL_INTERVAL * (BURST + 2);
        assert_eq!(take(full_at, later), (later + REFILL_INTERVAL, Duration::ZERO), "it has filled up");
    }
}
