//! What lies between devices and the hub, over real sockets.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod client;
mod messages;
mod websocket;
