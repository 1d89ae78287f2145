//! `/devices/query`: the query language, page by page.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use super::{Answer, Call};
use crate::hub::device::Seen;
use crate::hub::failure::Failure;
use crate::hub::query::{Query, Rows, Source};
use crate::hub::state::State;

/// Rows of a page where the client does not say.
const PAGE_ROWS: usize = 100;
/// Rows of a page, at most.
const PAGE_LIMIT_ROWS: usize = 1000;

#[derive(Deserialize)]
struct Body {
    query: String,
}

pub(super) fn run(call: &Call) -> Result<Answer, Failure> {
    let query = Query::parse(&call.json::<Body>()?.query)?;
    let page = Page::of(call)?;
    let rows = call.hub.read(|state| rows(state, &query, &page));
    let kind = match query.source {
        Source::Jobs => "DeviceJob",
        _ if query.is_whole() => "Twin",
        _ => "Raw",
    };
    Ok(page.answer(rows, kind))
}

fn rows(state: &State, query: &Query, page: &Page) -> Vec<Value> {
    match query.source {
        Source::Devices => twins(query, state.seen(), page),
        Source::Modules => twins(query, state.seen_modules(), page),
        Source::Jobs => match query.run(state.job_documents(), page.skip, page.wanted()) {
            Rows::Documents(rows) | Rows::Objects(rows) => rows,
        },
    }
}

fn twins<'a>(query: &Query, seen: impl Iterator<Item = Seen<'a>>, page: &Page) -> Vec<Value> {
    match query.run(seen, page.skip, page.wanted()) {
        Rows::Documents(twins) => twins.iter().map(Seen::twin).collect(),
        Rows::Objects(objects) => objects,
    }
}

/// Which rows of an answer a client asks for.
pub(super) struct Page {
    pub skip: usize,
    size: usize,
}

impl Page {
    /// Reads the headers; a continuation is the number of rows that were answered before.
    pub fn of(call: &Call) -> Result<Self, Failure> {
        let bad = || Failure::bad_argument("BadRequest");
        let size = match call.header("x-ms-max-item-count") {
            Some(size) => size.parse().ok().filter(|size| *size > 0).ok_or_else(bad)?,
            None => PAGE_ROWS,
        };
        let continuation = call.header("x-ms-continuation").filter(|token| !token.is_empty());
        let decode = |token| String::from_utf8(STANDARD.decode(token).ok()?).ok()?.parse().ok();
        let skip = continuation.map(|token| decode(token).ok_or_else(bad)).transpose()?;
        Ok(Self { skip: skip.unwrap_or_default(), size: size.min(PAGE_LIMIT_ROWS) })
    }

    /// One row more than the page has, to see whether there is a next page.
    pub fn wanted(&self) -> usize {
        self.size.saturating_add(1)
    }

    /// The page, made of the rows from its first on. Clients ask on for as long as there is a continuation.
    pub fn answer(&self, mut rows: Vec<Value>, kind: &'static str) -> Answer {
        let is_last = rows.len() <= self.size;
        rows.truncate(self.size);
        let answer = Answer::ok(rows.into()).with("x-ms-item-type", kind);
        if is_last {
            return answer;
        }
        let next = self.skip.saturating_add(self.size);
        answer.with("x-ms-continuation", STANDARD.encode(next.to_string()))
    }
}
