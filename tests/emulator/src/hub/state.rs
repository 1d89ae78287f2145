//! All the hub knows, behind one lock, and a bell that rings at each change.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Notify;

use super::clock;
use super::device::{Device, MethodResponse};
use super::failure::Failure;
use super::identity::{Authentication, Identity};
use super::random;
use super::traffic::Traffic;

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
}

/// What the hub knows.
#[derive(Debug)]
pub(super) struct State {
    pub devices: BTreeMap<String, Device>,
    pub faults: Faults,
    /// The key of the policy `iothubowner`, in base64.
    pub owner_key: String,
    /// The names clients may call this hub by.
    pub host_names: Vec<String>,
    pub traffic: Traffic,
    serial: u64,
}

impl State {
    /// A number that was not given out before.
    pub fn next_serial(&mut self) -> u64 {
        self.serial = self.serial.wrapping_add(1);
        self.serial
    }

    /// The device, or 404.
    pub fn device(&mut self, id: &str) -> Result<&mut Device, Failure> {
        self.devices.get_mut(id).ok_or_else(|| Failure::device_not_found(id))
    }

    /// Registers a device, or gives it new credentials; its connection is closed then.
    pub fn register(&mut self, id: &str, authentication: Authentication, enabled: bool) {
        let (generation, version) = (self.next_serial(), self.next_serial());
        let identity = Identity { authentication, enabled, generation, version };
        match self.devices.get_mut(id) {
            Some(device) => {
                device.identity = Identity { generation: device.identity.generation, ..identity };
                device.detach();
            }
            None => {
                self.devices.insert(id.to_owned(), Device::new(identity, &clock::now_text()));
            }
        }
    }

    /// Changes tags and desired properties, and tells the device.
    pub fn patch_twin(&mut self, id: &str, patch: &Value) -> Result<(), Failure> {
        let mute = self.faults.mute_twin;
        let device = self.device(id)?;
        let push = device.twin.patch_by_service(patch, &clock::now_text())?;
        if let Some(push) = push.filter(|_| !mute) {
            device.push_desired(&push);
        }
        Ok(())
    }

    /// Changes reported properties. Returns their new version.
    pub fn patch_reported(&mut self, id: &str, patch: &Value) -> Result<i64, Failure> {
        if let Some(status) = self.faults.fail_next_patch.take() {
            return Err(Failure::new(status, "FaultInjection", "the test asked for this failure"));
        }
        let device = self.device(id)?;
        device.twin.reported.patch(patch, &clock::now_text())?;
        device.history.push(patch.clone());
        Ok(device.twin.reported.version)
    }
}

/// The state, shared by all connections.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

impl Shared {
    pub fn new(host_names: Vec<String>) -> Self {
        let state = State {
            devices: BTreeMap::new(),
            faults: Faults::default(),
            owner_key: random::key(),
            host_names,
            traffic: Traffic::default(),
            serial: 0,
        };
        Self { state: Mutex::new(state), changed: Notify::new() }
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
        result
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

/// A direct method to call.
#[derive(Debug)]
pub(super) struct Call {
    pub name: String,
    pub payload: Value,
    /// How long the device may take to answer.
    pub response_limit: Duration,
    /// How long to wait for the device to connect.
    pub connect_limit: Duration,
}

/// Why a direct method was not answered.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MethodError {
    /// No such device.
    #[error("device {0} is not registered")]
    DeviceNotFound(String),
    /// The device is not connected, or takes no methods (404103).
    #[error("device is not online or has not subscribed to methods")]
    NotOnline,
    /// The device took the request and did not answer in time, or went away (504101).
    #[error("timed out waiting for the response from the device")]
    Timeout,
}

impl Shared {
    /// Calls a direct method and waits for the answer.
    pub async fn call(&self, id: &str, call: &Call) -> Result<MethodResponse, MethodError> {
        let unknown = || MethodError::DeviceNotFound(id.to_owned());
        let ready = |state: &State| match state.devices.get(id) {
            None => Some(Err(unknown())),
            Some(device) => device.takes_methods().then_some(Ok(())),
        };
        self.wait(call.connect_limit, ready).await.ok_or(MethodError::NotOnline)??;
        let (request, answered) = self.change(|state| {
            let request = format!("{:x}", state.next_serial());
            let device = state.devices.get_mut(id).ok_or_else(unknown)?;
            let answered = device.call(&call.name, request.clone(), &call.payload);
            Ok((request, answered.ok_or(MethodError::NotOnline)?))
        })?;
        match tokio::time::timeout(call.response_limit, answered).await {
            Ok(Ok(response)) => Ok(response),
            // The sender is dropped with the connection: an answer can no longer come.
            Ok(Err(_)) => Err(MethodError::Timeout),
            Err(_) => {
                self.change(|state| state.forget_call(id, &request));
                Err(MethodError::Timeout)
            }
        }
    }
}

impl State {
    fn forget_call(&mut self, id: &str, request: &str) {
        if let Some(link) = self.devices.get_mut(id).and_then(|device| device.link.as_mut()) {
            link.calls.remove(request);
        }
    }

    /// Hands a device's answer to the call that waits for it; an answer nobody waits for is ignored.
    pub fn answer_call(&mut self, id: &str, request: &str, response: MethodResponse) {
        let link = self.devices.get_mut(id).and_then(|device| device.link.as_mut());
        if let Some(call) = link.and_then(|link| link.calls.remove(request)) {
            // The caller may have given up in this moment.
            let _ = call.send(response);
        }
    }
}

impl From<MethodError> for Failure {
    fn from(error: MethodError) -> Self {
        match error {
            MethodError::DeviceNotFound(id) => Self::device_not_found(&id),
            MethodError::NotOnline => Self::in_gateway(
                404,
                "DeviceNotOnline",
                404_103,
                "The operation failed because the requested device isn't online or hasn't registered the direct \
                 method callback. To learn more, see https://aka.ms/iothub404103",
                json!({ "timeout": "00:00:00" }),
            ),
            MethodError::Timeout => {
                let message = "Timed out waiting for the response from device.";
                Self::in_gateway(504, "GatewayTimeout", 504_101, message, Value::Null)
            }
        }
    }
}
