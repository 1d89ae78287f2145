//! What lies between devices and the hub, over real sockets.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

#[path = "../client/mod.rs"]
mod client;

mod chains;
mod dps;
mod messages;
mod raw;
mod restarts;
mod uploads;
mod websocket;
