//! What must hold for any bytes that twinboot reads: one function for each kind of input, which panics where it does
//! not hold.
//!
//! The test in `tests/corpus.rs` calls them with every file of `corpus/`, and libFuzzer with whatever it can think of.

mod bundle;
mod configuration;
mod control;
mod environment;
mod fw_env_config;
mod http;
mod images;
mod method_payload;
mod part;
mod proc;
mod scratch;
mod signatures;
mod state_file;
mod topics;
mod twin;
mod wire;

pub use bundle::bundle;
pub use configuration::configuration;
pub use control::control;
pub use environment::environment;
pub use fw_env_config::fw_env_config;
pub use http::http;
pub use images::images;
pub use method_payload::method_payload;
pub use proc::proc;
pub use signatures::signatures;
pub use state_file::state_file;
pub use topics::topics;
pub use twin::twin;
pub use wire::wire;

/// Checks one input.
pub type Target = fn(&[u8]);

/// All targets, by the name of their corpus.
pub const TARGETS: [(&str, Target); 14] = [
    ("bundle", bundle),
    ("configuration", configuration),
    ("control", control),
    ("environment", environment),
    ("fw_env_config", fw_env_config),
    ("http", http),
    ("images", images),
    ("method_payload", method_payload),
    ("proc", proc),
    ("signatures", signatures),
    ("state_file", state_file),
    ("topics", topics),
    ("twin", twin),
    ("wire", wire),
];
