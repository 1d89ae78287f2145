//! Faults on request, for tests that reach the hub over the wire only. The real hub has nothing like it.

use std::time::Duration;

use serde::Deserialize;

use super::{Answer, Call};
use crate::hub::device::Device;
use crate::hub::failure::Failure;
use crate::hub::state::{Shared, State};
use crate::hub::throttle::Operation;

/// Longer than any client's patience, short enough that a test that forgot it ends.
const AWAY_LIMIT_SECS: u64 = 300;

/// What to do; what is not named stays as it is. `serve --help` explains each.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wanted {
    #[serde(default)]
    drop_connections: bool,
    refuse_connects: Option<Refusal>,
    keep_out: Option<Vec<String>>,
    mute_twin: Option<bool>,
    fail_next_patch: Option<u16>,
    throttle: Option<usize>,
    throttle_operation: Option<Operation>,
    fail_next_registration: Option<u16>,
    busy_polls: Option<u32>,
    retry_after_secs: Option<u64>,
    #[serde(default)]
    away_secs: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Refusal {
    times: usize,
    /// Of CONNACK.
    #[serde(default)]
    code: u8,
}

/// Ends the hub's absence, also when the client hangs up before its time and with that drops the request.
struct Absence<'a>(&'a Shared);

impl Drop for Absence<'_> {
    fn drop(&mut self) {
        self.0.change(|state| state.faults.away = false);
    }
}

/// Answers once the faults are in force, or over in the case of `awaySecs`.
pub(super) async fn post(call: &Call<'_>) -> Result<Answer, Failure> {
    let wanted: Wanted = call.json()?;
    if wanted.away_secs > AWAY_LIMIT_SECS {
        return Err(Failure::bad_argument(format!("awaySecs is at most {AWAY_LIMIT_SECS}.")));
    }
    let away = Duration::from_secs(wanted.away_secs);
    call.hub.change(|state| inject(state, wanted));
    if !away.is_zero() {
        let _absence = Absence(call.hub);
        tokio::time::sleep(away).await;
    }
    Ok(Answer::no_content())
}

fn inject(state: &mut State, wanted: Wanted) {
    let faults = &mut state.faults;
    faults.away |= wanted.away_secs > 0;
    if let Some(Refusal { times, code }) = wanted.refuse_connects {
        faults.refuse = (times, code);
    }
    if let Some(devices) = wanted.keep_out {
        faults.keep_out = devices.into_iter().collect();
    }
    if let Some(mute) = wanted.mute_twin {
        faults.mute_twin = mute;
    }
    if let Some(status) = wanted.fail_next_patch {
        faults.fail_next_patch = Some(status).filter(|status| *status != 0);
    }
    if let Some(times) = wanted.throttle {
        faults.throttle.insert(wanted.throttle_operation, times);
    }
    let manner = &mut state.dps.manner;
    if let Some(status) = wanted.fail_next_registration {
        manner.failures.push_back(status);
    }
    if let Some(polls) = wanted.busy_polls {
        manner.busy_polls = polls;
    }
    if let Some(secs) = wanted.retry_after_secs {
        manner.retry_after_secs = secs;
    }
    let everybody = wanted.drop_connections || faults.away;
    let leaving = state.devices.iter_mut().filter(|(id, _)| everybody || faults.keep_out.contains(*id));
    leaving.map(|(_, device)| device).for_each(Device::detach);
}
