//! The service API, resource by resource, as an operator's tools meet it.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "../client/mod.rs"]
mod client;

mod configurations;
mod jobs;
mod query;
mod registry;
mod throttling;
