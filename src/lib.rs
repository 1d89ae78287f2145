//! Keeps a Linux device's firmware current, under Azure IoT Hub's direction.
//!
//! One update, room by room:
//!
//! | # | room | what happens |
//! |---|---|---|
//! | 1 | [`hub`] | a `firmwareUpdate` call or a desired property becomes a `HubEvent` |
//! | 2 | [`update::request`] | its payload becomes an `UpdateRequest`, or a 400 that names the field |
//! | 3 | [`update::step`] | pure: state and event give the next state and effects |
//! | 4 | [`store`] | the new state is on disk before anything acts on it |
//! | 5 | [`hub`] | the report reaches the twin, now or after the next connect |
//! | 6 | [`install`] | fetch, verify, decompress, write, sync, read back, compare |
//! | 7 | [`boot`] | one environment transaction arms the trial |
//! | 8 | [`system`] | reboot |
//! | 9 | [`health`] | the trial boot proves itself |
//! | 10 | [`boot`] | one transaction commits, or rolls back |
//!
//! People's own [`hooks`] are asked before 6 and before 7, and hear of 10. [`trial`] marks what 7 arms, so that
//! systemd alone can end it.
//! [`bundle`] is the file that 6 likes best: fetched in parts, each verified before it is written.
//! [`doctor`] looks whether all of it is wired right, with the agent or without it.
//! [`ownership`] tells whether others could change what is believed, run or overwritten.
//! [`network`] lets a process of its own do what needs the network, where the machine has two.
//!
//! [`agent`] is the loop that walks it. Arrows run one way:
//! `main -> cli -> agent -> {hub, install, boot, store, trial, health, hooks, diagnostics, doctor, system} ->
//! update`.

pub mod agent;
pub mod boot;
pub mod bundle;
mod causes;
pub mod cli;
pub mod config;
pub mod control;
pub mod diagnostics;
pub mod doctor;
pub mod health;
pub mod hooks;
pub mod hub;
pub mod install;
pub mod network;
pub mod ownership;
pub mod redact;
pub mod scripts;
pub mod store;
pub mod system;
pub mod tls;
pub mod trial;
pub mod update;
