//! The Unix socket of the local command line: its protocol, its server, and its client.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::oneshot;

use crate::update::{Failure, UpdateId};

/// What the local command line asks of the daemon; one JSON object on one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "camelCase", deny_unknown_fields)]
pub enum Command {
    /// The present [`Status`].
    Status,
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
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub command: Command,
    /// Dropping it closes the connection without an answer.
    pub reply: oneshot::Sender<Answer>,
}

/// The daemon's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "camelCase")]
pub enum Answer {
    /// To [`Command::Status`].
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
