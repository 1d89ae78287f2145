//! The built daemon on a board: two slots, a real U-Boot environment, a boot loader, and power to cut.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![expect(clippy::disallowed_methods, reason = "a test's files need not survive a power cut")]

mod bundles;
mod catalog;
mod clocks;
mod cloud;
mod cuts;
mod day;
mod edges;
mod hooks;
mod hostile;
mod local;
#[expect(dead_code, reason = "the tests of the installer use the rest")]
#[path = "../bundle/make.rs"]
mod make;
mod media;
mod metrics;
mod rig;
#[path = "../bundle/safe.rs"]
mod safe;
mod secrets;
mod service;
mod soak;
mod split;
mod trial;
mod trust;
mod uploads;
mod weather;
