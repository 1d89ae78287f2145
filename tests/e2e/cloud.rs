//! Updates started by the cloud: the daemon, the emulated hub, and an image server.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use hub_emulator::board::{Scheme, Slot, Traits, board_image};
use hub_emulator::hub::{Hub, HubOptions};
use hub_emulator::images::{DropFault, Faults, ImageServer};
use serde_json::{Value, json};

use crate::clocks::Clocks;
use crate::rig::{Choice, DAEMON, IMAGE_BYTES, LIMIT, Rig};

pub const DEVICE: &str = "gateway-1";
pub const IMAGE: &str = "2.0.img";

/// A device that is online, and its world.
pub struct World {
    pub hub: Hub,
    pub images: ImageServer,
    pub rig: Rig,
    image: Vec<u8>,
}

impl World {
    pub async fn new(traits: Traits, extra_config: &str) -> Self {
        let mut world = Self::switched_off(traits, extra_config, Path::new(DAEMON)).await;
        world.power_on().await;
        world
    }

    pub async fn power_on(&mut self) {
        self.rig.board.power_on().await.unwrap();
        self.wait_status("standBy").await;
    }

    pub async fn switched_off(traits: Traits, extra_config: &str, daemon: &Path) -> Self {
        let hub = Hub::start(HubOptions::default()).await.unwrap();
        let images = ImageServer::start(Some(hub.authority().server_config())).await.unwrap();
        let image = board_image("2.0", traits, IMAGE_BYTES, 7);
        images.put(IMAGE, image.clone());
        let extra_config = format!("{extra_config}\n[hub]\nhttps_port = {}\n", hub.https_port());
        let choice = Choice {
            scheme: Scheme::Bootcount,
            hub: Some((hub.add_device(DEVICE), hub.mqtt_port())),
            ca_pem: Some(hub.ca_pem().to_owned()),
            extra_config: &extra_config,
            daemon,
        };
        Self { hub, images, rig: Rig::new(choice), image }
    }

    pub fn payload(&self) -> Value {
        json!({
            "fwPackageUri": self.images.url(IMAGE),
            "fwPackageCheckValue": sha256(&self.image),
            "fwVersion": "2.0",
            "fwSize": self.image.len(),
        })
    }

    pub async fn call(&self, method: &str, payload: Value) -> (i64, Value) {
        let response = self.hub.call_method(DEVICE, method, payload, LIMIT).await.unwrap();
        (response.status, response.payload)
    }

    pub async fn start(&self) {
        let (status, answer) = self.call("firmwareUpdate", self.payload()).await;
        assert_eq!((status, &answer["Response"]), (200, &json!("Firmware update started")));
    }

    pub async fn wait(&self, condition: impl Fn(&Value) -> bool) -> Value {
        let waited = self.hub.wait_reported(DEVICE, LIMIT, condition).await;
        waited.unwrap_or_else(|last| panic!("{last}\n{}", self.rig.board.log()))
    }

    pub async fn wait_status(&self, status: &str) -> Value {
        self.wait(|reported| reported["firmwareStatus"] == status).await
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The statuses that the twin went through, each once.
fn statuses(history: &[Value]) -> Vec<String> {
    let mut statuses: Vec<String> = Vec::new();
    for status in history.iter().filter_map(|patch| patch["firmware"]["fwUpdateStatus"].as_str()) {
        if statuses.last().is_none_or(|last| last != status) {
            statuses.push(status.to_owned());
        }
    }
    statuses
}

/// Shows rauc/rauc-hawkbit-updater#161, #172; Azure/iot-hub-device-update#421.
#[tokio::test]
async fn a_method_call_ends_in_completed() {
    let world = World::new(Traits::default(), "").await;
    world.start().await;
    let reported = world.wait_status("completed").await;
    assert_eq!(reported["firmware"]["currentFwVersion"], "2.0");
    assert_eq!(reported["firmware"]["slots"]["booted"], "b");
    for time in ["logTime", "downloadComplete", "startedApplyingImage", "lastFirmwareUpdate"] {
        assert!(reported[time].as_str().is_some_and(|time| time.ends_with('Z')), "{time}: {reported:#}");
    }
    assert!(reported["firmware"].get("pendingFwVersion").is_none(), "what no longer holds is removed");
    assert!(reported["firmware"].get("progress").is_none());
    assert_eq!(world.rig.board.booted(), Some(Slot::B));

    let seen = statuses(&world.hub.history(DEVICE));
    let expected = ["current", "downloading", "verifying", "applying", "rebooting", "applying", "current"];
    let mut order = expected.iter();
    assert!(seen.iter().all(|status| order.any(|next| next == status)), "{seen:?}");
    // A patch a phase, the two of each connect, and throttled progress.
    let patches = world.hub.history(DEVICE).len();
    assert!(patches <= 14, "{patches} patches: {:#?}", world.hub.history(DEVICE));

    let (status, answer) = world.call("firmwareUpdate", world.payload()).await;
    assert_eq!((status, &answer["Response"]), (200, &json!("Firmware update already completed")));
    assert_eq!(world.images.bytes_sent(IMAGE), u64::try_from(IMAGE_BYTES).unwrap(), "fetched once");
}

/// Shows F17; eclipse-hawkbit/hawkbit#3185; coreos/fedora-coreos-tracker#247.
#[tokio::test]
async fn a_sick_image_ends_in_rolled_back_and_is_refused_afterwards() {
    let world = World::new(Traits::SICK, "").await;
    world.start().await;
    let reported = world.wait_status("rolledBack").await;
    assert_eq!(reported["firmware"]["fwUpdateStatus"], "rolledback");
    assert_eq!(reported["firmware"]["error"]["code"], "HealthCheckFailed");
    assert_eq!(world.rig.board.booted(), Some(Slot::A));
    let (status, answer) = world.call("firmwareUpdate", world.payload()).await;
    assert_eq!((status, &answer["error"]["code"]), (412, &json!("RolledBackBefore")));
}

/// Shows Azure/iot-hub-device-update#609, #625; Azure/iot-hub-device-update#435, #460, #629, #646.
#[tokio::test]
async fn a_desired_property_starts_the_update_once() {
    let world = World::new(Traits::default(), "").await;
    let mut firmware = world.payload();
    let uri = firmware["fwPackageUri"].take();
    let fields = firmware.as_object_mut().unwrap();
    fields.remove("fwPackageUri");
    fields.insert("fwPackageURI".to_owned(), uri);
    world.hub.patch_desired(DEVICE, json!({ "firmware": firmware })).unwrap();
    world.wait_status("completed").await;
    let boots = world.rig.board.boots().len();
    // It is read again at each connect, and stands as done.
    let connects = world.hub.connects(DEVICE);
    world.hub.drop_connections();
    world.hub.patch_desired(DEVICE, json!({ "other": 1 })).unwrap();
    let waited = tokio::time::timeout(LIMIT, async {
        while world.hub.connects(DEVICE) == connects {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap();
    let (_, answer) = world.call_when_connected("firmwareUpdateStatus", Value::Null).await;
    assert_eq!(answer["firmwareStatus"], "completed");
    assert_eq!(world.rig.board.boots().len(), boots);
    assert_eq!(world.images.requests(IMAGE), 1);
}

/// It stands until it changes, whoever was away when it came.
/// Shows Azure/iot-hub-device-update#71.
#[tokio::test]
async fn a_desired_property_that_came_while_the_device_was_off_is_taken_up() {
    let mut world = World::switched_off(Traits::default(), "", Path::new(DAEMON)).await;
    let mut firmware = world.payload();
    let uri = firmware["fwPackageUri"].take();
    firmware["fwPackageURI"] = uri;
    world.hub.patch_desired(DEVICE, json!({ "firmware": firmware })).unwrap();
    world.rig.board.power_on().await.unwrap();
    world.wait_status("completed").await;
    assert_eq!(world.rig.board.booted(), Some(Slot::B));
}

/// Nobody says when what was in its way is gone: it is looked at again.
#[tokio::test]
async fn a_desired_property_that_the_device_could_not_follow_is_taken_up_once_it_can() {
    let clocks = Clocks::new();
    let mut world = World::switched_off(Traits::default(), "", &clocks.daemon()).await;
    world.power_on().await;
    world.rig.board.set_environment(&[("boot_slot", "b")]).unwrap();
    let firmware = world.payload();
    world.hub.patch_desired(DEVICE, json!({ "firmware": firmware })).unwrap();
    let reported = world.wait_status("failed").await;
    assert_eq!(reported["firmware"]["error"]["code"], "EnvironmentUnusable");
    world.rig.board.set_environment(&[("boot_slot", "a")]).unwrap();
    let taken_up = || world.hub.reported(DEVICE)["firmwareStatus"] != "failed";
    clocks.pass_until(&world.rig, Duration::from_secs(60), taken_up).await;
    world.wait_status("completed").await;
    assert_eq!(world.hub.connects(DEVICE), 2, "one for each boot");
}

/// A `timedatectl` that hangs holds nobody up.
#[tokio::test]
async fn a_clock_that_does_not_answer_is_waited_for_by_nobody() {
    let extra_config = "[system]\nclock_check_command = [\"sleep\", \"1000\"]\n";
    let mut world = World::switched_off(Traits::default(), extra_config, Path::new(DAEMON)).await;
    world.rig.board.power_on().await.unwrap();
    world.wait(|reported| reported["firmwareStatus"] == "standBy").await;
    let soon = Duration::from_secs(8);
    let answer = world.hub.call_method(DEVICE, "cancelFirmwareUpdate", json!({}), soon).await.unwrap();
    assert_eq!(answer.status, 409);
}

impl World {
    /// Again and again: what a session took with it when it ended is not answered.
    pub async fn call_when_connected(&self, method: &str, payload: Value) -> (i64, Value) {
        const LOST: Duration = Duration::from_secs(10);
        let ready = async {
            loop {
                match self.hub.call_method(DEVICE, method, payload.clone(), LOST).await {
                    Ok(response) => return (response.status, response.payload),
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        tokio::time::timeout(LIMIT, ready).await.unwrap()
    }
}

#[tokio::test]
async fn a_desired_property_that_is_not_understood_is_told() {
    let world = World::new(Traits::default(), "").await;
    world.hub.patch_desired(DEVICE, json!({"firmware": {"fwVersion": "2.0"}})).unwrap();
    let reported = world.wait(|reported| reported["firmware"]["fwUpdateStatus"] == "error").await;
    assert_eq!(reported["firmware"]["error"]["code"], "InvalidPayload");
    world.hub.patch_desired(DEVICE, json!({"firmware": null})).unwrap();
    world.wait(|reported| reported["firmware"]["fwUpdateStatus"] == "current").await;
}

/// Shows zephyrproject-rtos/zephyr#37272, #71691, #71750, #89265.
#[tokio::test]
async fn what_is_refused_says_why() {
    let world = World::new(Traits::default(), "").await;
    let uri = world.images.url(IMAGE);
    for (payload, status, code) in [
        (json!({}), 400, "InvalidPayload"),
        (json!({"fwPackageUri": uri}), 412, "Unverifiable"),
        (json!({"fwPackageUri": uri, "typo": 1}), 400, "InvalidPayload"),
        (
            json!({"fwPackageUri": uri, "fwPackageCheckValue": "00".repeat(32), "fwVersion": "0.9"}),
            412,
            "VersionNotNewer",
        ),
    ] {
        let (answered, answer) = world.call("firmwareUpdate", payload.clone()).await;
        assert_eq!((answered, &answer["error"]["code"]), (status, &json!(code)), "{payload}");
    }
    let (status, answer) = world.call("formatDisk", json!({})).await;
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("UnknownMethod")));
    let (status, answer) = world.call("cancelFirmwareUpdate", json!({})).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("NothingToCancel")));

    // A reboot of what nobody has committed would spend an attempt.
    world.rig.board.set_environment(&[("upgrade_available", "1")]).unwrap();
    let (status, answer) = world.call("rebootDevice", json!({})).await;
    assert_eq!((status, &answer["error"]["code"]), (412, &json!("Uncommitted")));
}

/// Shows F26.
#[tokio::test]
async fn a_running_update_is_not_disturbed_and_can_be_cancelled() {
    let world = World::new(Traits::default(), "").await;
    world.images.set_faults(IMAGE, Faults { bytes_per_sec: Some(200_000), ..Faults::default() });
    world.start().await;
    world.wait_status("downloading").await;
    let (status, answer) = world.call("firmwareUpdate", world.payload()).await;
    assert_eq!((status, &answer["Response"]), (200, &json!("Firmware update already in progress")));
    let mut other = world.payload();
    other["updateId"] = json!("other");
    let (status, answer) = world.call("firmwareUpdate", other).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("Busy")));
    let (status, _) = world.call("rebootDevice", json!({})).await;
    assert_eq!(status, 409);
    let (status, answer) = world.call("cancelFirmwareUpdate", json!({})).await;
    assert_eq!((status, &answer["Response"]), (200, &json!("Firmware update cancelled")));
    let reported = world.wait_status("failed").await;
    assert_eq!(reported["firmware"]["error"]["code"], "Cancelled");
    assert_eq!(world.rig.variable("upgrade_available"), "0");

    // Cancelled is not refused: the operator may ask again, by the same name.
    world.images.set_faults(IMAGE, Faults::default());
    world.start().await;
    world.wait_status("completed").await;
}

/// Shows systemd/systemd#34584, #37609, #41288, #41502, #41880, #42186, #42187.
#[tokio::test]
async fn a_download_survives_a_power_cut_and_a_dropped_connection() {
    let mut world = World::new(Traits::default(), "").await;
    let third = u64::try_from(IMAGE_BYTES / 3).unwrap();
    let drop = Some(DropFault { after_bytes: third, requests: 1 });
    // What follows the drop stands still before its end, until the power is gone.
    let stall_after_bytes = Some(third + third / 2);
    world.images.set_faults(IMAGE, Faults { drop, stall_after_bytes, ..Faults::default() });
    world.start().await;
    world.rig.wait(|_| world.images.requests(IMAGE) >= 2).await;
    world.rig.board.cut().await;
    world.images.set_faults(IMAGE, Faults::default());
    world.rig.board.power_on().await.unwrap();
    world.wait_status("completed").await;
    assert!(world.images.requests(IMAGE) >= 3);
    assert_eq!(world.rig.board.booted(), Some(Slot::B));
}

/// Shows F15; F16; mendersoftware/mender#823, #827; seapath/meta-seapath#287, #288.
#[tokio::test]
async fn the_hub_may_be_away_for_the_whole_update() {
    let world = World::new(Traits::default(), "[health]\nhub = \"never\"\n").await;
    world.images.set_faults(IMAGE, Faults { bytes_per_sec: Some(2_000_000), ..Faults::default() });
    world.start().await;
    world.hub.set_away(true);
    world.rig.wait(|status| status["reported"]["firmwareStatus"] == "completed").await;
    assert_eq!(world.rig.board.booted(), Some(Slot::B));
    world.hub.set_away(false);
    let reported = world.wait_status("completed").await;
    assert_eq!(reported["firmware"]["currentFwVersion"], "2.0");
}

/// Shows F15; Azure/iot-hub-device-update#150.
#[tokio::test]
async fn a_trial_that_does_not_come_online_again_is_rolled_back() {
    let world = World::new(Traits::default(), "[health]\ndeadline = \"3s\"\n").await;
    world.images.set_faults(IMAGE, Faults { bytes_per_sec: Some(2_000_000), ..Faults::default() });
    world.start().await;
    world.hub.set_away(true);
    world.rig.wait(|status| status["reported"]["firmwareStatus"] == "rolledBack").await;
    world.hub.set_away(false);
    let reported = world.wait_status("rolledBack").await;
    let message = reported["firmware"]["error"]["message"].as_str().unwrap();
    assert!(message.contains("connection to the hub"), "{message}");
}

/// Shows ID-Robots/clawbox#894.
#[tokio::test]
async fn no_time_is_reported_while_the_clock_is_not_right() {
    let world = World::new(Traits::default(), "[system]\nclock_check_command = [\"echo\", \"no\"]\n").await;
    world.start().await;
    let reported = world.wait_status("completed").await;
    for time in ["logTime", "downloadComplete", "startedApplyingImage", "lastFirmwareUpdate"] {
        assert!(reported.get(time).is_none(), "{time}: {reported:#}");
    }
}

/// The power is cut as soon as the twin shows a status; whatever that status was, the update ends well.
/// Shows rauc/rauc#1114, #1158.
#[tokio::test]
async fn the_power_may_go_at_each_status() {
    for status in ["downloading", "verifying", "applying", "rebooting"] {
        let mut world = World::new(Traits::default(), "").await;
        world.images.set_faults(IMAGE, Faults { bytes_per_sec: Some(4_000_000), ..Faults::default() });
        world.start().await;
        // A status may be over before it is seen here: then the next one is cut into.
        world
            .wait(|reported| {
                let seen = &reported["firmware"]["fwUpdateStatus"];
                seen == status
                    || (status != "downloading"
                        && (seen == "rebooting" || reported["firmwareStatus"] == "completed"))
            })
            .await;
        world.rig.board.cut().await;
        world.rig.board.power_on().await.unwrap();
        let reported = world.wait_status("completed").await;
        assert_eq!(reported["firmware"]["slots"]["booted"], "b", "cut at {status}");
        assert_eq!(world.rig.board.booted(), Some(Slot::B), "cut at {status}");
    }
}

#[tokio::test]
async fn the_daemon_may_be_killed_at_each_status() {
    for status in ["downloading", "applying"] {
        let mut world = World::new(Traits::default(), "").await;
        world.images.set_faults(IMAGE, Faults { bytes_per_sec: Some(4_000_000), ..Faults::default() });
        world.start().await;
        world
            .wait(|reported| {
                reported["firmwareStatus"] == status || reported["firmwareStatus"] == "completed"
            })
            .await;
        world.rig.board.kill_daemon().await.unwrap();
        let reported = world.wait_status("completed").await;
        assert_eq!(reported["firmware"]["slots"]["booted"], "b", "killed at {status}");
    }
}

#[tokio::test]
async fn a_device_with_a_certificate_is_updated_too() {
    let hub = Hub::start(HubOptions::default()).await.unwrap();
    let (certificate, key) = hub.add_x509_device(DEVICE).unwrap();
    let files = tempfile::tempdir().unwrap();
    let (certificate_file, key_file) = (files.path().join("device.pem"), files.path().join("device.key"));
    std::fs::write(&certificate_file, certificate).unwrap();
    std::fs::write(&key_file, key).unwrap();
    restrict(&key_file);
    let extra_config = format!(
        "[hub]\nhost_name = \"localhost\"\ndevice_id = \"{DEVICE}\"\nport = {}\nca_file = {:?}\n\
         certificate_file = {certificate_file:?}\nkey_file = {key_file:?}\n",
        hub.mqtt_port(),
        files.path().join("ca.pem"),
    );
    std::fs::write(files.path().join("ca.pem"), hub.ca_pem()).unwrap();
    let mut rig = Rig::new(Choice { extra_config: &extra_config, ..Choice::default() });
    rig.board.power_on().await.unwrap();
    hub.wait_reported(DEVICE, LIMIT, |reported| reported["firmwareStatus"] == "standBy").await.unwrap();
    rig.install("2.0", Traits::default()).await;
    hub.wait_reported(DEVICE, LIMIT, |reported| reported["firmwareStatus"] == "completed").await.unwrap();
}

fn restrict(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn diagnostics_are_uploaded() {
    let world = World::new(Traits::SICK, "").await;
    world.start().await;
    world.wait_status("rolledBack").await;
    let (status, answer) = world.call("uploadDiagnostics", Value::Null).await;
    assert_eq!(status, 202, "{answer}");
    world.rig.wait(|_| world.hub.uploads(DEVICE).iter().any(|upload| upload.notification.is_some())).await;
    let upload = world.hub.uploads(DEVICE).remove(0);
    assert_eq!(answer["blobName"], upload.name.as_str());
    assert!(upload.notification.is_some_and(|told| told.is_success && told.status_code == 201));

    let bytes = upload.bytes.unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&bytes[..]));
    let texts: BTreeMap<String, String> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            (entry.path().unwrap().display().to_string(), text)
        })
        .collect();
    let text = |name: &str| texts[&format!("twinboot-diagnostics/{name}")].as_str();
    assert!(text("status.json").contains("HealthCheckFailed"));
    assert!(text("state/state").starts_with("twinboot-state "));
    assert!(text("environment.txt").contains("boot_slot=a"), "{}", text("environment.txt"));
    assert!(text("slots.txt").contains("slot b: "));
    let key = std::fs::read_to_string(world.rig.board.dir().join("connection-string")).unwrap();
    let key = key.split("SharedAccessKey=").nth(1).unwrap();
    assert!(texts.values().all(|text| !text.contains(key)));
}

/// Shows hub.mender.io t/2167.
#[tokio::test]
async fn the_doctor_can_be_called_from_the_cloud() {
    let world = World::new(Traits::default(), "").await;
    let examine = async |check: &str, level: &str| {
        let (status, report) = world.call("doctor", Value::Null).await;
        assert_eq!(status, 200, "{report:#}");
        let mut checks = report["checks"].as_array().unwrap().iter();
        let found = checks.find(|found| found["check"] == check).unwrap();
        assert_eq!(found["level"], level, "{report:#}");
    };
    for check in ["hub.session", "environment.copies", "slots.agreement", "state.place", "machine.daemon"] {
        examine(check, "ok").await;
    }
    for (copy, level) in [("uboot-redund.env", "warning"), ("uboot.env", "fault")] {
        let copy = world.rig.board.dir().join(copy);
        let mut bytes = std::fs::read(&copy).unwrap();
        bytes[100] ^= 1;
        std::fs::write(copy, bytes).unwrap();
        examine("environment.copies", level).await;
    }
    assert_eq!(world.hub.connects(DEVICE), 1, "it asked the daemon, and did not call the hub");
}

#[tokio::test]
async fn one_upload_runs_at_a_time() {
    let mut world = World::new(Traits::default(), "").await;
    world.rig.board.cut().await;
    world.hub.wait_connected(DEVICE, LIMIT, false).await.unwrap();
    // It takes connections, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let drop_in = world.rig.board.dir().join("config.d/60-silent.toml");
    std::fs::write(drop_in, format!("[hub]\nhttps_port = {port}\n")).unwrap();
    world.rig.board.power_on().await.unwrap();
    world.hub.wait_connected(DEVICE, LIMIT, true).await.unwrap();
    assert_eq!(world.call("uploadDiagnostics", Value::Null).await.0, 202);
    let (status, answer) = world.call("uploadDiagnostics", Value::Null).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("Busy")));
}
