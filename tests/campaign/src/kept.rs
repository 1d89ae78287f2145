//! What a machine's state directory says, read by the daemon's own code.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::Value;
use twinboot::update::Record;
use twinboot::update::hook::Gate;
use twinboot::update::record::{Outcome, State};

/// State and checkpoint.
pub struct Kept {
    /// `None`: there is no state file yet.
    pub record: Option<Record>,
    checkpoint: Option<Value>,
}

impl Kept {
    /// # Errors
    /// When a state file is there, and damaged.
    pub fn read(directory: &Path) -> Result<Self, String> {
        let record = match fs::read(directory.join("state")) {
            Ok(bytes) => Some(Record::decode(&bytes).map_err(|error| format!("state file: {error}"))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(format!("state file: {error}")),
        };
        let checkpoint = fs::read(directory.join("checkpoint")).ok();
        let checkpoint = checkpoint.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(Self { record, checkpoint })
    }

    pub fn state(&self) -> State {
        self.record.as_ref().map(|record| record.state.clone()).unwrap_or_default()
    }

    /// The target holds the image, as far as this machine knows.
    pub fn is_installed(&self) -> bool {
        match self.state() {
            State::Idle { last } => last.is_some(),
            State::Asking { gate, .. } => gate != Gate::BeforeInstall,
            State::Installing { .. } => false,
            State::Installed { .. }
            | State::Rebooting { .. }
            | State::Trial { .. }
            | State::RollingBack { .. } => true,
        }
    }

    /// An update is known, or how it ended.
    pub fn knows_update(&self) -> bool {
        !matches!(self.state(), State::Idle { last: None })
    }

    /// The update that is under way, or was the last.
    pub fn update_id(&self) -> Option<String> {
        let state = self.state();
        let id = match &state {
            State::Idle { last } => last.as_ref().map(|last| &last.update.request.id),
            _ => state.update_id(),
        };
        id.map(ToString::to_string)
    }

    /// How it ended.
    pub fn outcome(&self) -> Option<Outcome> {
        match self.state() {
            State::Idle { last } => last.map(|last| last.outcome),
            _ => None,
        }
    }

    /// The same, as the twin has it.
    pub fn status(&self) -> Option<&'static str> {
        self.outcome().map(|outcome| match outcome {
            Outcome::Succeeded => "completed",
            Outcome::Failed(_) => "failed",
            Outcome::RolledBack(_) => "rolledBack",
        })
    }

    /// Bytes of the source that an interrupted install has proven.
    pub fn proven_bytes(&self) -> u64 {
        self.claim("sourceOffset")
    }

    /// Bytes of the image that are in the slot for certain.
    pub fn image_bytes(&self) -> u64 {
        self.claim("imageOffset")
    }

    fn claim(&self, key: &str) -> u64 {
        let is_installing = matches!(self.state(), State::Installing { .. });
        self.checkpoint
            .as_ref()
            .filter(|_| is_installing)
            .and_then(|claim| claim[key].as_u64())
            .unwrap_or_default()
    }

    /// The state's name.
    pub fn phase(&self) -> &'static str {
        match self.state() {
            State::Idle { .. } => "idle",
            State::Asking { .. } => "asking",
            State::Installing { .. } => "installing",
            State::Installed { .. } => "installed",
            State::Rebooting { .. } => "rebooting",
            State::Trial { .. } => "trial",
            State::RollingBack { .. } => "rolling back",
        }
    }
}
