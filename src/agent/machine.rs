//! The seam between the agent and the machine: effects go down, and what came of them comes back.

use serde_json::Value;
use tokio::sync::watch;

use crate::control::Status;
use crate::install;
use crate::store::StoreError;
use crate::update::{Boot, Effect, Environment, Event, KeyList, Record, Update};

/// What the agent works on. The daemon's is [`Linux`](super::Linux); the rehearsal of a fleet has thousands
/// in memory.
pub trait Machine: Clone + Send + Sync + 'static {
    /// Returns once `record` would survive a power cut.
    ///
    /// # Errors
    /// When that is not certain; the agent ends then.
    fn save(&self, record: Record) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// What the boot loader's variables say about the running slot.
    fn environment(&self) -> impl Future<Output = Environment> + Send;

    /// Marks the target unbootable, and puts the image there, if it is one for a device of which this is `known`.
    /// Once `cancelled`, its outcome does not matter.
    fn install(
        &self,
        update: &Update,
        known: Known,
        progress: &watch::Sender<install::Progress>,
        cancelled: watch::Receiver<bool>,
    ) -> impl Future<Output = install::Outcome> + Send;

    /// Carries out an effect below an install: one on the boot loader's variables, a check, a reboot. Gives
    /// what came of it, where the policy waits for that. `connected` tells whether the hub session is up.
    fn perform(
        &self,
        effect: Effect,
        connected: watch::Receiver<bool>,
    ) -> impl Future<Output = Option<Event>> + Send;

    /// A bundle for somebody who asks what happened here; `status` is what the agent says of itself. The error
    /// is one line for a person.
    fn diagnostics(&self, status: String) -> impl Future<Output = Result<Vec<u8>, String>> + Send {
        drop(status);
        async { Err("this machine has nothing to tell".to_owned()) }
    }

    /// What the doctor finds, as JSON; `status` is what the agent says of itself.
    fn doctor(&self, status: Status) -> impl Future<Output = Value> + Send {
        drop(status);
        async { Value::Null }
    }
}

/// What the record says of the device, by which an image is judged.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// What it has been through.
    pub past: install::Past,
    /// Whose signatures count, once an update has said so.
    pub keys: Option<KeyList>,
}

/// What a start finds on the machine.
#[derive(Debug)]
pub struct Found {
    /// This boot.
    pub boot: Boot,
    /// What was saved last.
    pub record: Record,
    /// The version of the running system, where known.
    pub image_version: Option<String>,
    /// The version that was committed last, by the boot loader's variables.
    pub min_version: Option<String>,
    /// How many boots of the last trial systemd ended, since nobody had committed it in time.
    pub trial_timeouts: usize,
    /// Whether the wall clock is right already.
    pub clock_is_right: bool,
}
