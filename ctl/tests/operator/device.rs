//! A device that is online by the daemon's own hub session, and does what a test says.

use std::sync::Arc;
use std::time::Duration;

use hub_emulator::hub::Hub;
use serde_json::{Map, Value, json};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use twinboot::config;
use twinboot::hub::auth::{ConnectionString, Proof};
use twinboot::hub::{HubEvent, MethodReply, Reported};

use crate::rig::{LIMIT, Rig};

/// Dropped, it is offline.
pub struct Device {
    id: String,
    hub: Hub,
    reported: watch::Sender<Reported>,
    called: Arc<Notify>,
    task: JoinHandle<()>,
}

/// What a device answers a method: status and payload; never, if the status is 0.
pub type Script = fn(&str, &Value) -> (u16, Value);

impl Device {
    /// Registers it and waits until it is online with this report.
    pub async fn online(rig: &Rig, id: &str, report: Value, script: Script) -> Self {
        let text: ConnectionString = rig.hub.add_device(id).parse().unwrap();
        let Proof::SharedAccessKey(key) = text.proof else { panic!("a device with a key") };
        let config = config::Hub {
            host_name: text.host_name,
            gateway_host_name: None,
            device_id: id.to_owned(),
            credentials: config::Credentials::SharedAccessKey(key),
            ca_file: Some(rig.ca_file()),
            port: rig.hub.mqtt_port(),
            https_port: 443,
            keep_alive: LIMIT,
        };
        let (events, inbox) = mpsc::channel(16);
        let (reported, wanted) = watch::channel(Some(fields(&report)));
        let session = twinboot::hub::run(config, twinboot::system::unix_now, events, wanted);
        let called = Arc::new(Notify::new());
        let live = live(inbox, script, called.clone());
        let task = tokio::spawn(async move {
            tokio::select! { () = session => {}, () = live => {} }
        });
        let device = Self { id: id.to_owned(), hub: rig.hub.clone(), reported, called, task };
        rig.hub.wait_connected(id, LIMIT, true).await.unwrap();
        device.shown(&report).await;
        device
    }

    /// Reports this, and waits until the hub knows.
    pub async fn report(&self, report: Value) {
        self.reported.send_replace(Some(fields(&report)));
        self.shown(&report).await;
    }

    /// Waits for a call of a method.
    pub async fn called(&self) {
        tokio::time::timeout(LIMIT, self.called.notified()).await.unwrap();
    }

    /// Waits until the hub wants this update of it.
    pub async fn desires(&self, update_id: &str) {
        let wanted = async {
            while self.hub.twin(&self.id)["properties"]["desired"]["firmware"]["updateId"] != update_id {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(LIMIT, wanted).await.unwrap();
    }

    async fn shown(&self, report: &Value) {
        let (status, sentence) = (&report["firmwareStatus"], &report["firmware"]["fwUpdateSubstatus"]);
        let wanted = |twin: &Value| {
            twin["firmwareStatus"] == *status && twin["firmware"]["fwUpdateSubstatus"] == *sentence
        };
        self.hub.wait_reported(&self.id, LIMIT, wanted).await.unwrap();
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn live(mut inbox: mpsc::Receiver<HubEvent>, script: Script, called: Arc<Notify>) {
    let mut unanswered = Vec::new();
    while let Some(event) = inbox.recv().await {
        let HubEvent::Method(call) = event else { continue };
        let (status, payload) =
            script(&call.name, &serde_json::from_slice(&call.payload).unwrap_or_default());
        called.notify_one();
        if status == 0 {
            unanswered.push(call.reply);
        } else {
            let _ = call.reply.send(MethodReply { status, payload });
        }
    }
}

fn fields(report: &Value) -> Map<String, Value> {
    report.as_object().unwrap().clone()
}

/// A report as the daemon makes it.
pub fn report(status: &str, update_status: &str, sentence: &str, id: &str, more: &Value) -> Value {
    let mut report = json!({"firmwareStatus": status, "firmware": {
        "fwUpdateStatus": update_status, "fwUpdateSubstatus": sentence, "updateId": id,
        "currentFwVersion": "1.0", "error": null, "progress": null,
        "slots": {"booted": "a", "a": {"version": "1.0", "state": "committed"}, "b": {"state": "unknown"}}}});
    for (key, value) in more.as_object().into_iter().flatten() {
        report["firmware"][key] = value.clone();
    }
    report
}

/// Nothing was ever updated.
pub fn standing_by() -> Value {
    report("standBy", "current", "Standing by", "", &json!({"updateId": null}))
}

/// Takes every update, under the id that it is given.
pub fn takes_all(method: &str, payload: &Value) -> (u16, Value) {
    match method {
        "firmwareUpdate" => {
            (200, json!({"Response": "Firmware update started", "updateId": payload["updateId"]}))
        }
        "cancelFirmwareUpdate" => {
            (200, json!({"Response": "Firmware update cancelled", "updateId": payload["updateId"]}))
        }
        "rebootDevice" => (200, json!({"Response": "Rebooting"})),
        _ => (404, json!({"error": {"code": "UnknownMethod", "message": "no such method"}})),
    }
}
