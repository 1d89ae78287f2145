//! Whether the hub is reached with this device's credentials.

use super::{Finding, Patient};
use crate::hub::probe::{Step, probe};
use crate::system;

pub(super) async fn check(patient: &Patient) -> Vec<Finding> {
    const SESSION: &str = "hub.session";
    const NO_HUB: &str = "no [hub]: this device is updated by its own command line alone";
    let has_none = patient.config.hub.is_none() && patient.config.network.is_none();
    if let Ok(status) = &patient.daemon {
        let detail = &status.hub_detail;
        return vec![if status.hub_connected {
            Finding::ok(SESSION, format!("the daemon is connected: {detail}"))
        } else if has_none {
            Finding::ok(SESSION, NO_HUB)
        } else {
            let advice = "`journalctl -u twinboot -u twinboot-network`; stop both, and the doctor tries it step by step";
            Finding::fault(SESSION, format!("the daemon is not connected: {detail}"), advice)
        }];
    }
    let Some(hub) = &patient.config.hub else {
        // One that is at fault is told as such.
        return if has_none { vec![Finding::ok(SESSION, NO_HUB)] } else { Vec::new() };
    };
    if !patient.is_alone {
        let advice = "a second session would end the daemon's: see `machine.daemon`";
        return vec![Finding::warning(SESSION, "not tried: a daemon may be running", advice)];
    }
    let host = hub.dialled();
    let (failed, why) = match probe(hub, system::unix_now).await {
        Ok(address) => {
            let evidence = format!("{host} at {address} took device {}", hub.device_id);
            return vec![Finding::ok(SESSION, evidence)];
        }
        Err(failed) => failed,
    };
    let (check, advice) = match failed {
        Step::Credentials => {
            ("hub.credentials", "see [hub] of the configuration, its files, and `machine.clock`")
        }
        Step::Lookup => ("hub.lookup", "see /etc/resolv.conf, and whether there is a network"),
        Step::Connect => {
            ("hub.connect", "let this device out to the hub's port: 8883 is often closed by firewalls")
        }
        Step::Tls => {
            ("hub.tls", "a proxy that breaks TLS open? the clock? `hub.ca_file`, or ca-certificates too old?")
        }
        Step::Login => (
            "hub.login",
            "see the device in the hub: its key or certificate, whether it is enabled, and the clock",
        ),
    };
    vec![Finding::fault(check, format!("{host}:{}: {why}", hub.port), advice)]
}
