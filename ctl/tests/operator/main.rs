//! The built tool against the emulated hub, with devices that answer.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test's files need not survive a power cut")]

mod daemon;
mod device;
mod fleet;
mod job;
mod one;
mod refusals;
mod rig;
