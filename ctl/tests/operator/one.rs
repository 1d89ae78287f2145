//! One device: an update from the call to its end, and the other calls.

use serde_json::{Value, json};

use crate::device::{Device, report, standing_by, takes_all};
use crate::rig::{Rig, Running, Way};

const DEVICE: &str = "gateway-1";

fn arguments<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let update = [
        "update",
        DEVICE,
        "--uri",
        "https://images.example/2.0.img",
        "--version",
        "2.0",
        "--update-id",
        "u-2",
    ];
    update.iter().chain(more).copied().collect()
}

fn downloading(bytes: u64) -> Value {
    let progress = json!({"bytes": bytes, "totalBytes": 1000, "percent": bytes / 10});
    report("downloading", "downloading", "Downloading to slot b", "u-2", &json!({ "progress": progress }))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_is_followed_in_the_tutorials_words_to_its_end() {
    let rig = Rig::new().await;
    let older = report(
        "failed",
        "error",
        "too long",
        "u-1",
        &json!({"error": {"code": "SizeMismatch", "message": "m"}}),
    );
    let device = Device::online(&rig, DEVICE, older, takes_all).await;
    let mut tool = Running::start(rig.command(&arguments(&["--check-value", &"ab".repeat(32)])));
    tool.says("gateway-1: Firmware update started").await;
    tool.says("Waiting on device...").await;
    device.report(downloading(250)).await;
    for line in ["Downloading firmware...", "  Downloading to slot b", "  25 %, 250 of 1000 bytes"] {
        tool.says(line).await;
    }
    let applying = |sentence| report("applying", "applying", sentence, "u-2", &json!({}));
    device.report(applying("Activating slot b")).await;
    tool.says("Download complete, applying firmware...").await;
    tool.says("  Activating slot b").await;
    device.report(applying("Checking the health of slot b")).await;
    tool.says("  Checking the health of slot b").await;
    let version = json!({"currentFwVersion": "2.0", "slots": {"booted": "b"}});
    device.report(report("completed", "current", "Firmware applied", "u-2", &version)).await;
    tool.says("Firmware applied; version 2.0 runs from slot b").await;
    assert_eq!(tool.exits().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_reads_events_and_the_exit_code() {
    let rig = Rig::new().await;
    let device = Device::online(&rig, DEVICE, standing_by(), takes_all).await;
    for (status, outcome, code) in [("failed", "failed", 4), ("rolledBack", "rolledBack", 5)] {
        // The same update fails a second time: what is in the twin from the first is not its end.
        let mut tool = Running::start(rig.command(&arguments(&["--json"])));
        tool.says(&event(
            "answer",
            json!({"status": 200,
            "payload": {"Response": "Firmware update started", "updateId": "u-2"}}),
        ))
        .await;
        tool.says(&event(
            "status",
            json!({"status": "Waiting on device...", "detail": null, "progress": null}),
        ))
        .await;
        device.report(downloading(500)).await;
        let progress = json!({"bytes": 500, "totalBytes": 1000, "percent": 50, "bytesPerSec": null});
        let detail = "Downloading to slot b";
        let news = json!({"status": "Downloading firmware...", "detail": detail, "progress": progress});
        tool.says(&event("status", news)).await;
        let error = json!({"error": {"code": "BootFailed", "message": "slot b did not come up"}});
        device.report(report(status, "error", "slot b did not come up", "u-2", &error)).await;
        let word = if code == 4 { "Firmware update failed" } else { "Firmware rolled back" };
        let news = json!({"status": word, "detail": "slot b did not come up", "progress": null});
        tool.says(&event("status", news)).await;
        let end = json!({"outcome": outcome, "reason": "BootFailed: slot b did not come up"});
        tool.says(&event("end", end)).await;
        assert_eq!(tool.exits().await, code);
    }
}

fn event(name: &str, more: Value) -> String {
    let mut event = json!({"event": name, "device": DEVICE});
    event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    event.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_is_done_already_ends_at_once_whatever_the_twin_tells() {
    let rig = Rig::new().await;
    let done = report("completed", "current", "Firmware applied", "u-2", &json!({"currentFwVersion": "2.0"}));
    let completed = |_: &str, _: &Value| {
        (200, json!({"Response": "Firmware update already completed", "updateId": "u-2"}))
    };
    let later = json!({"error": {"code": "VersionNotNewer", "message": "m"}});
    let mut later = report("failed", "error", "not newer than 2.0", "u-9", &later);
    later["firmware"]["currentFwVersion"] = json!("2.0");
    let device = Device::online(&rig, DEVICE, later, completed).await;
    let run = rig.run(&arguments(&[])).await;
    assert!(run.code == 0 && run.stdout.contains("\nFirmware applied; "), "a later one was refused: {run:?}");
    device.report(done).await;
    let run = rig.run(&arguments(&[])).await;
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.stdout.ends_with("Firmware applied; version 2.0 runs from slot a\n"), "{run:?}");
    let other = report("completed", "current", "another", "u-2", &json!({"currentFwVersion": "1.9"}));
    device.report(other).await;
    for more in [&[][..], &["--no-wait"]] {
        let run = rig.run(&arguments(more)).await;
        let why =
            "it has completed update `u-2` already, and runs version 1.9, not 2.0: give another --update-id";
        assert!(run.code == 6 && run.stderr.contains(why) && !run.stdout.contains("applied"), "{run:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_hangs_is_left_at_the_timeout() {
    let rig = Rig::new().await;
    let _device = Device::online(&rig, DEVICE, downloading(10), takes_all).await;
    let run = rig.run(&arguments(&["--timeout", "1s"])).await;
    assert_eq!(run.code, 11, "{run:?}");
    assert!(run.stderr.contains("twinbootctl watch gateway-1"), "{run:?}");
    let run = rig.run(&arguments(&["--no-wait"])).await;
    assert_eq!((run.code, run.stdout.lines().count()), (0, 1), "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_somebody_else_began_is_followed_to_its_own_end() {
    let rig = Rig::new().await;
    let running = |_: &str, _: &Value| {
        (200, json!({"Response": "Firmware update already in progress", "updateId": "u-2"}))
    };
    let failed = report("failed", "error", "the first time", "u-2", &json!({}));
    let device = Device::online(&rig, DEVICE, failed, running).await;
    let mut tool = Running::start(rig.command(&arguments(&[])));
    tool.says("gateway-1: Firmware update already in progress").await;
    tool.says("Waiting on device...").await;
    device.report(report("completed", "current", "Firmware applied", "u-2", &json!({}))).await;
    tool.says("Download complete, applying firmware...").await;
    tool.says("Firmware applied; version 1.0 runs from slot a").await;
    assert_eq!(tool.exits().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_was_cut_off_may_have_begun() {
    let rig = Rig::new().await;
    let way = Way::to(&rig.hub).await;
    let device = Device::online(&rig, DEVICE, standing_by(), |_, _| (0, Value::Null)).await;
    let start = async |more: &[&str]| {
        let mut command = rig.command(&arguments(more));
        command.env("IOTHUB_CONNECTION_STRING", &way.connection_string);
        let mut tool = Running::start(command);
        device.called().await;
        way.cut();
        tool.says("Waiting on device...").await;
        tool
    };
    assert_eq!(start(&["--timeout", "1s"]).await.exits().await, 3, "nobody knows whether it runs");
    let mut tool = start(&[]).await;
    device.report(report("rolledBack", "rolledback", "m", "u-2", &json!({}))).await;
    tool.says("Firmware rolled back: m; version 1.0 runs from slot a").await;
    assert_eq!(tool.exits().await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_answer_was_lost_may_have_been_carried_out() {
    let rig = Rig::new().await;
    let _device = Device::online(&rig, DEVICE, standing_by(), takes_all).await;
    rig.hub.lose_answers("POST", "/twins/gateway-1/methods");
    for command in [&["reboot", DEVICE][..], &["cancel", DEVICE], &arguments(&["--no-wait"])] {
        let run = rig.run(command).await;
        let why = "it may have been done all the same: `twinbootctl status gateway-1` tells\n";
        assert!(run.code == 1 && run.stderr.ends_with(why), "{run:?}");
        assert_eq!(run.stderr.lines().count(), 1, "{run:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_is_looked_at_cancelled_and_rebooted() {
    let rig = Rig::new().await;
    let _device = Device::online(&rig, DEVICE, downloading(420), takes_all).await;
    rig.hub.add_device("gateway-2");
    let run = rig.run(&["status", DEVICE, "gateway-2"]).await;
    for expected in
        ["online, last report 2", "slot a, version 1.0, committed", "u-2, downloading", "offline", "nothing"]
    {
        assert!(run.stdout.contains(expected), "{expected}: {run:?}");
    }
    let run = rig.run(&["twin", DEVICE]).await;
    assert_eq!(serde_json::from_str::<Value>(&run.stdout).unwrap()["deviceId"], DEVICE);
    let run = rig.run(&["cancel", DEVICE, "--update-id", "u-2"]).await;
    assert_eq!((run.code, run.stdout.as_str()), (0, "gateway-1: Firmware update cancelled\n"));
    let run = rig.run(&["reboot", DEVICE]).await;
    assert_eq!((run.code, run.stdout.as_str()), (0, "gateway-1: Rebooting\n"));

    let run = rig.run(&["devices"]).await;
    let words = |line: usize| run.stdout.lines().nth(line).unwrap().split_whitespace().collect::<Vec<_>>();
    assert_eq!(words(0), ["DEVICE", "VERSION", "STATUS", "SLOT", "ONLINE", "LAST", "REPORT", "ERROR"]);
    assert_eq!(words(1)[..6], [DEVICE, "1.0", "downloading", "42", "%", "a"], "{run:?}");
    assert_eq!(words(2), ["gateway-2", "-", "-", "-", "no", "-"], "{run:?}");
    let run = rig
        .run(&["devices", "--query", "WHERE properties.reported.firmware.updateId = 'u-2'", "--json"])
        .await;
    assert_eq!(run.stdout.lines().count(), 1, "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_is_listed_page_by_page() {
    let rig = Rig::new().await;
    for n in 0..1500 {
        rig.hub.add_device(&format!("d-{n}"));
    }
    let (code, devices) = rig.events(&["devices", "--json", "--limit", "5000"]).await;
    let names: std::collections::BTreeSet<String> =
        devices.iter().map(|twin| twin["deviceId"].to_string()).collect();
    assert_eq!((code, names.len()), (0, 1500));
    let run = rig.run(&["devices", "--limit", "1100"]).await;
    assert_eq!(run.stdout.lines().count(), 1101);
    assert!(run.stderr.contains("there are more than these 1100"), "{}", run.stderr);
    assert_eq!(rig.run(&["devices", "--limit", "0"]).await.code, 2);
}
