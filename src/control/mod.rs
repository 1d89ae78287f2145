//! The Unix socket of the local command line: its protocol, its server, and its client.
//!
//! A client writes a [`Command`] as one line of JSON, the daemon answers with an [`Answer`] on one line; then
//! the next command may follow. After [`Command::Watch`] the daemon keeps writing, until the client closes.

mod client;
mod server;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::oneshot;

use crate::update::{Failure, UpdateId};

pub use client::{Client, ClientError, Watch};
pub use server::{BindError, bind, serve};

/// The group whose members may use the socket; `systemd/twinboot.sysusers` makes it.
pub const GROUP: &str = "twinboot";

/// What the local command line asks of the daemon; one JSON object on one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "camelCase", deny_unknown_fields)]
pub enum Command {
    /// The present [`Status`].
    Status,
    /// The present [`Status`], and again at each change, until the client closes the connection.
    Watch,
    /// The same as a `firmwareUpdate` call; `payload` has the method's keys.
    #[serde(rename_all = "camelCase")]
    Install {
        /// As in the direct method.
        payload: Value,
        /// Take it although it is older, or was rolled back before.
        force: bool,
    },
    /// Cancel the running update, if it is this one, or whichever runs.
    #[serde(rename_all = "camelCase")]
    Cancel {
        /// The update that is meant.
        update_id: Option<UpdateId>,
    },
    /// Commit the running trial now, whatever the health checks would say.
    Commit,
    /// Give the running trial, or the committed update, up.
    RollBack,
}

/// A command that waits for its answer.
///
/// What the command changed is on the status channel before the answer is sent: a client that watches the
/// status after the answer must not take the outcome of an earlier update for that of its own.
#[derive(Debug)]
pub struct Call {
    /// What is asked; never [`Command::Status`] or [`Command::Watch`], which the server answers itself.
    pub command: Command,
    /// Dropping it closes the connection without an answer.
    pub reply: oneshot::Sender<Answer>,
}

/// The daemon's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "camelCase")]
pub enum Answer {
    /// To [`Command::Status`] and [`Command::Watch`].
    Status(Box<Status>),
    /// Done, or begun; one sentence.
    #[serde(rename_all = "camelCase")]
    Ok {
        /// For a person.
        message: String,
        /// The update that it is about.
        update_id: Option<UpdateId>,
    },
    /// Not done.
    Refused(Failure),
}

/// What the daemon does at this moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// One sentence, the same as in `systemctl status`.
    pub summary: String,
    /// The reported properties as the twin has them, or will have.
    pub reported: Map<String, Value>,
    /// Whether the hub session is up.
    pub hub_connected: bool,
    /// Why it is not, or with which hub it is.
    pub hub_detail: String,
    /// Bytes of the source per second, while there is a download.
    pub bytes_per_sec: Option<u64>,
    /// Device of each slot, by name.
    pub slot_devices: Map<String, Value>,
}

#[cfg(test)]
mod tests;
