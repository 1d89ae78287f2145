//! All the hub knows, behind one lock, and a bell that rings at each change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::Notify;

use super::certificates::Authorities;
use super::clock;
use super::configuration::Configuration;
use super::device::{Device, Seen};
use super::dps::Provisioning;
use super::events::Events;
use super::failure::Failure;
use super::identity::{Identity, Registration, is_module, module_key};
use super::job::{Job, JobStatus};
use super::policy::Policies;
use super::query::{Query, Source};
use super::throttle::Operation;
use super::traffic::Traffic;
use super::twin::Write;
use super::upload::Uploads;
use super::{random, topic};

/// A message to a device, with its properties.
const C2D_LIMIT_BYTES: usize = 64 * 1024;

/// Jobs of a hub of the smallest paid tier, S1.
const ACTIVE_JOBS_LIMIT: usize = 1;

/// Faults to inject.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// How many more connects to refuse, and with which CONNACK code.
    pub refuse: (usize, u8),
    /// Nobody gets through.
    pub away: bool,
    /// Twin requests are neither carried out nor answered.
    pub mute_twin: bool,
    /// The status to refuse the next reported patch with.
    pub fail_next_patch: Option<u16>,
    /// Devices that do not get through.
    pub keep_out: BTreeSet<String>,
    /// How many more calls of services to refuse as too many: of one kind, or (none) of any.
    pub throttle: BTreeMap<Option<Operation>, usize>,
    /// The method and path of calls of services that are carried out and not answered well.
    pub lost_answers: BTreeSet<(String, String)>,
}

/// What the hub knows. What a hub has forgotten after a restart is skipped.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct State {
    pub devices: BTreeMap<String, Device>,
    pub configurations: BTreeMap<String, Configuration>,
    /// Rings when configurations are to be evaluated.
    #[serde(skip)]
    pub rollout_due: Arc<Notify>,
    pub jobs: BTreeMap<String, Job>,
    /// Rings when there is a new job.
    #[serde(skip)]
    pub job_due: Arc<Notify>,
    /// Jobs that may wait or run at once.
    #[serde(skip)]
    pub active_jobs_limit: usize,
    /// Whether an etag without quotes is not seen where the real hub does not see it.
    #[serde(skip)]
    pub strict_etags: bool,
    #[serde(skip)]
    pub events: Events,
    #[serde(skip)]
    pub uploads: Uploads,
    /// Whose signature on a certificate counts.
    pub authorities: Authorities,
    pub dps: Provisioning,
    #[serde(skip)]
    pub faults: Faults,
    pub policies: Policies,
    /// The names clients may call this hub by.
    #[serde(skip)]
    pub host_names: Vec<String>,
    #[serde(skip)]
    pub traffic: Traffic,
    serial: u64,
}

impl Default for State {
    /// An empty hub, with new keys.
    fn default() -> Self {
        Self {
            devices: BTreeMap::new(),
            configurations: BTreeMap::new(),
            rollout_due: Arc::default(),
            jobs: BTreeMap::new(),
            job_due: Arc::default(),
            active_jobs_limit: ACTIVE_JOBS_LIMIT,
            strict_etags: false,
            events: Events::default(),
            uploads: Uploads::default(),
            authorities: Authorities::default(),
            dps: Provisioning::new(),
            faults: Faults::default(),
            policies: Policies::new(),
            host_names: Vec::new(),
            traffic: Traffic::default(),
            serial: 0,
        }
    }
}

impl State {
    /// After a restart: what was going on has ended.
    pub fn resume(&mut self) {
        let running = self.jobs.values_mut().filter(|job| job.status == JobStatus::Running);
        running.for_each(|job| job.end(JobStatus::Failed, Some("The hub was restarted.".to_owned())));
    }

    /// A number that was not given out before.
    pub fn next_serial(&mut self) -> u64 {
        self.serial = self.serial.wrapping_add(1);
        self.serial
    }

    /// Whether `host` is a name of this hub.
    pub fn is_called(&self, host: &str) -> bool {
        self.host_names.iter().any(|name| name.eq_ignore_ascii_case(host))
    }

    /// The device, or 404.
    pub fn device(&mut self, id: &str) -> Result<&mut Device, Failure> {
        self.devices.get_mut(id).ok_or_else(|| Failure::device_not_found(id))
    }

    /// The devices, in the order of their ids.
    pub fn seen(&self) -> impl Iterator<Item = Seen<'_>> {
        self.seen_all().filter(|seen| !is_module(seen.key))
    }

    /// The modules of all devices.
    pub fn seen_modules(&self) -> impl Iterator<Item = Seen<'_>> {
        self.seen_all().filter(|seen| is_module(seen.key))
    }

    fn seen_all(&self) -> impl Iterator<Item = Seen<'_>> {
        self.devices.iter().map(|(key, device)| Seen { key, device })
    }

    /// How many rows a query has.
    pub fn count(&self, query: &Query) -> usize {
        let everything = usize::MAX;
        match query.source {
            Source::Devices => query.run(self.seen(), 0, everything).len(),
            Source::Modules => query.run(self.seen_modules(), 0, everything).len(),
            Source::Jobs => query.run(self.job_documents(), 0, everything).len(),
        }
    }

    /// Registers a device, or replaces what is known of its identity.
    pub fn register(&mut self, key: &str, registration: Registration) {
        let (serial, now) = (self.next_serial(), clock::now_text());
        match self.devices.get_mut(key) {
            Some(device) => {
                if device.identity.replace(registration, serial, &now) {
                    device.detach();
                }
            }
            None => {
                self.devices.insert(key.to_owned(), Device::new(Identity::new(registration, serial), &now));
                self.rollout_due.notify_one();
            }
        }
    }

    /// Forgets a device and its modules, or a module. Their connections are closed.
    pub fn remove(&mut self, key: &str) {
        let prefix = module_key(key, "");
        let modules = self.devices.range(prefix.clone()..).map(|(key, _)| key.clone());
        let modules: Vec<String> = modules.take_while(|key| key.starts_with(&prefix)).collect();
        for key in modules.iter().map(String::as_str).chain([key]) {
            if let Some(mut device) = self.devices.remove(key) {
                device.detach();
            }
        }
        self.rollout_due.notify_one();
    }

    /// Changes tags and desired properties as a service asks, and tells the device.
    pub fn write_twin(&mut self, id: &str, write: Write, content: &Value) -> Result<(), Failure> {
        let mute = self.faults.mute_twin;
        let device = self.device(id)?;
        let push = device.twin.write(write, content, &clock::now_text())?;
        if let Some(push) = push.filter(|_| !mute) {
            device.push_desired(&push);
        }
        self.rollout_due.notify_one();
        Ok(())
    }

    /// Queues a message for a device, and sends it if the device is there to take it. Returns the message id.
    pub fn send_to_device(
        &mut self,
        id: &str,
        body: Bytes,
        properties: &[(&str, &str)],
    ) -> Result<String, Failure> {
        let message_id = random::hex(16);
        let device = self.device(id)?;
        let topic = topic::device_bound(id, &message_id, properties);
        if topic.len().saturating_add(body.len()) > C2D_LIMIT_BYTES {
            return Err(Failure::new(413, "MessageTooLarge", "A message to a device has at most 64 KiB."));
        }
        if !device.inbox.push(topic, body) {
            let message = "Total number of messages for the device exceeded the limit.";
            return Err(Failure::new(403, "DeviceMaximumQueueDepthExceeded", message));
        }
        device.deliver();
        Ok(message_id)
    }

    /// Changes reported properties. Returns their new version.
    pub fn patch_reported(&mut self, id: &str, patch: &Value) -> Result<i64, Failure> {
        if let Some(status) = self.faults.fail_next_patch.take() {
            return Err(Failure::new(status, "FaultInjection", "the test asked for this failure"));
        }
        let device = self.device(id)?;
        device.twin.reported.patch(patch, &clock::now_text())?;
        device.remember(patch.clone());
        let version = device.twin.reported.version;
        self.rollout_due.notify_one();
        Ok(version)
    }
}

/// The state, shared by all connections.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Wakes whoever waits now.
    changed: Notify,
    /// Wakes the one who keeps the state, who may be busy in the moment of the change.
    changed_since: Notify,
}

impl Shared {
    pub fn new(state: State) -> Self {
        Self { state: Mutex::new(state), changed: Notify::new(), changed_since: Notify::new() }
    }

    /// A panic cannot leave the state half changed in a way that matters to a test that failed anyway.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the state.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock())
    }

    /// Changes the state, and wakes whoever waits for a change.
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.changed.notify_waiters();
        self.changed_since.notify_one();
        result
    }

    /// Waits for a change since the last time that somebody waited here.
    pub async fn changed(&self) {
        self.changed_since.notified().await;
    }

    /// Waits until `find` finds something in the state. Nothing if it did not within `limit`.
    pub async fn wait<T>(&self, limit: Duration, find: impl Fn(&State) -> Option<T>) -> Option<T> {
        let search = async {
            loop {
                // Made before the look, so that a change in between is not missed.
                let changed = self.changed.notified();
                if let Some(found) = self.read(&find) {
                    return found;
                }
                changed.await;
            }
        };
        tokio::time::timeout(limit, search).await.ok()
    }
}
