//! Whether the hub is reached with this device's credentials.

use super::{Finding, Patient};
use crate::hub::probe::{Step, probe};
use crate::system;

pub(super) async fn check(patient: &Patient) -> Vec<Finding> {
    const SESSION: &str = "hub.session";
    if let Ok(status) = &patient.daemon {
        let detail = &status.hub_detail;
        return vec![if status.hub_connected {
            Finding::ok(SESSION, format!("the daemon is connected: {detail}"))
        } else if patient.config.hub.is_none() && patient.config.network.is_none() {
            Finding::ok(SESSION, "no [hub]: this device is updated by its own command line alone")
        } else {
            let advice = "`journalctl -u twinboot -u twinboot-network`; stop both, and the doctor tries it step by step";
            Finding::fault(SESSION, format!("the daemon is not connected: {detail}"), advice)
        }];
    }
    let Some(hub) = &patient.config.hub else {
        return vec![Finding::ok(SESSION, "no [hub]: this device is updated by its own command line alone")];
    };
    if !patient.is_alone {
        let advice = "a second session would end the daemon's: see `machine.daemon`";
        return vec![Finding::warning(SESSION, "not tried: a daemon may be running", advice)];
    }
    let host = hub.gateway_host_name.as_ref().unwrap_or(&hub.host_name);
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
