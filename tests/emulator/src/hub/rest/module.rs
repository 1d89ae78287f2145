//! `/devices/{id}/modules`: the identities of modules.

use serde_json::Value;

use super::{Answer, Call, device};
use crate::hub::failure::Failure;
use crate::hub::identity::{Registration, is_device_id, module_key};
use crate::hub::state::State;

/// Modules of one device.
const MODULE_LIMIT: usize = 50;

pub(super) fn list(call: &Call, device: &str) -> Result<Answer, Failure> {
    call.hub.read(|state| {
        check_device(state, device)?;
        let prefix = module_key(device, "");
        let modules = state.seen_modules().filter(|seen| seen.key.starts_with(&prefix));
        Ok(Answer::ok(modules.map(|seen| seen.identity()).collect()))
    })
}

pub(super) fn get(call: &Call, device: &str, module: &str) -> Result<Answer, Failure> {
    call.hub.read(|state| {
        check_module(state, device, module)?;
        device::show(state, &module_key(device, module))
    })
}

/// With and without `If-Match` as for devices.
pub(super) fn put(call: &Call, device: &str, module: &str) -> Result<Answer, Failure> {
    let body: Value = call.json()?;
    let names = |name: &str, value: &str| body.get(name).and_then(Value::as_str) == Some(value);
    if !is_device_id(module) || !names("moduleId", module) || !names("deviceId", device) {
        return Err(Failure::bad_argument("moduleId and deviceId must be those of the path."));
    }
    let registration = Registration::from_body(&body)?;
    let key = module_key(device, module);
    call.hub.change(|state| {
        check_device(state, device)?;
        if call.if_match().is_some() {
            check_module(state, device, module)?;
            call.check_etag(&state.device(&key)?.identity.etag())?;
        } else {
            check_room(state, device, module)?;
        }
        state.register(&key, registration);
        device::show(state, &key)
    })
}

pub(super) fn delete(call: &Call, device: &str, module: &str) -> Result<Answer, Failure> {
    let key = module_key(device, module);
    call.hub.change(|state| {
        check_module(state, device, module)?;
        call.check_etag_given(&state.device(&key)?.identity.etag())?;
        state.remove(&key);
        Ok(Answer::no_content())
    })
}

/// The hub says 401 here, where it says 404 elsewhere.
fn check_device(state: &State, device: &str) -> Result<(), Failure> {
    if state.devices.get(device).is_some_and(|device| device.identity.enabled) {
        return Ok(());
    }
    Err(Failure::new(401, "IotHubUnauthorizedAccess", format!("Device {device} is unknown or disabled.")))
}

fn check_module(state: &State, device: &str, module: &str) -> Result<(), Failure> {
    check_device(state, device)?;
    if state.devices.contains_key(&module_key(device, module)) {
        return Ok(());
    }
    let message = format!("Module {module} on Device {device} not registered.");
    Err(Failure::numbered(404, "ModuleNotFound", 404_010, message))
}

fn check_room(state: &State, device: &str, module: &str) -> Result<(), Failure> {
    if state.devices.contains_key(&module_key(device, module)) {
        let message = format!("Device {device} already contains Module {module}.");
        return Err(Failure::numbered(409, "ModuleAlreadyExistsOnDevice", 409_301, message));
    }
    let prefix = module_key(device, "");
    if state.seen_modules().filter(|seen| seen.key.starts_with(&prefix)).count() >= MODULE_LIMIT {
        let message = format!("A device has at most {MODULE_LIMIT} modules.");
        return Err(Failure::numbered(413, "TooManyModulesOnDevice", 413_003, message));
    }
    Ok(())
}
