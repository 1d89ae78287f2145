//! Rollouts: ring after ring, through a gate.

use serde_json::{Value, json};

use crate::device::{Device, report, standing_by, takes_all};
use crate::rig::{Rig, Running};

const RING_1: &str = "deviceId IN ['a1', 'a2']";
const RING_2: &str = "deviceId = 'b1'";
const PACKAGE: [&str; 6] =
    ["--uri", "https://images.example/2.0.img", "--version", "2.0", "--update-id", "u-2"];

fn create<'a>(more: &[&'a str]) -> Vec<&'a str> {
    ["rollout", "create", "fw-2"].iter().chain(&PACKAGE).chain(more).copied().collect()
}

fn completed() -> Value {
    report("completed", "current", "Firmware applied", "u-2", &json!({"currentFwVersion": "2.0"}))
}

fn failed(code: &str, message: &str) -> Value {
    report("failed", "error", message, "u-2", &json!({"error": {"code": code, "message": message}}))
}

async fn three(rig: &Rig) -> [Device; 3] {
    // An older update of theirs has failed and another was completed: neither counts for this one.
    let older = report(
        "failed",
        "error",
        "old",
        "u-0",
        &json!({"error": {"code": "SizeMismatch", "message": "old"}}),
    );
    let old = report("completed", "current", "Firmware applied", "u-0", &json!({}));
    [
        Device::online(rig, "a1", older, takes_all).await,
        Device::online(rig, "a2", old, takes_all).await,
        Device::online(rig, "b1", standing_by(), takes_all).await,
    ]
}

fn desired_id(rig: &Rig, device: &str) -> Value {
    rig.hub.twin(device)["properties"]["desired"]["firmware"]["updateId"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn rings_open_one_after_the_other_as_long_as_the_gate_allows() {
    let rig = Rig::new().await;
    let [a1, a2, b1] = three(&rig).await;
    let run = rig.run(&create(&["--rings", RING_1, "--rings", RING_2])).await;
    assert_eq!(run.code, 0, "{run:?}");
    assert!(run.stdout.contains("devices: ring 1 has 2, ring 2 has 1"), "{run:?}");
    assert_eq!(rig.run(&create(&["--target", "*"])).await.code, 8, "there already");
    assert_eq!(rig.run(&create(&["--rings", "*", "--rings", RING_2])).await.code, 2);
    let queries_alone = rig.run(&create(&["--rings", RING_1, "--rings", "status = 'enabled'"])).await;
    assert_eq!((queries_alone.code, queries_alone.stderr.contains("target condition")), (2, true));
    let rings = ["--rings", RING_1, "--rings", "status = 'enabled'", "--rings", "*"];
    let before_all_others = rig.run(&create(&rings)).await;
    assert_eq!((before_all_others.code, before_all_others.stderr.contains("target condition")), (2, true));
    for of_the_update in [
        "properties.reported.firmware.currentFwVersion = '1.0'",
        "NOT IS_DEFINED(properties.reported.lastFirmwareUpdate)",
    ] {
        assert_eq!(rig.run(&create(&["--target", of_the_update])).await.code, 2);
    }
    a1.desires("u-2").await;
    a2.desires("u-2").await;
    assert_eq!(desired_id(&rig, "b1"), Value::Null);

    let advance = ["rollout", "advance", "fw-2"];
    let run = rig.run(&advance).await;
    assert_eq!(
        (run.code, run.stdout.as_str()),
        (20, "waits: ring 1: 0 % done, 95 % are wanted\n"),
        "{run:?}"
    );
    a1.report(completed()).await;
    assert_eq!(rig.run(&advance).await.code, 20);
    a2.report(completed()).await;
    let run = rig.run(&advance).await;
    assert_eq!((run.code, run.stdout.as_str()), (0, "ring 2 of 2 opened\n"), "{run:?}");
    b1.desires("u-2").await;
    assert_eq!(rig.run(&advance).await.code, 20);
    // Sick devices take longer to say so than healthy ones: a ring that was passed still counts.
    a2.report(failed("HealthCheckFailed", "10-app")).await;
    let run = rig.run(&advance).await;
    let stopped = "stopped by the gate: ring 1: 50 % failed or rolled back, 2 % are allowed\n";
    assert_eq!((run.code, run.stdout.as_str()), (21, stopped), "{run:?}");
    a2.report(completed()).await;

    b1.report(failed("ImageNotFound", "404 from images.example")).await;
    let run = rig.run(&advance).await;
    let stopped = "stopped by the gate: ring 2: 100 % failed or rolled back, 2 % are allowed\n";
    assert_eq!((run.code, run.stdout.as_str()), (21, stopped), "{run:?}");
    let run = rig.run(&["rollout", "status", "fw-2"]).await;
    let row = |first: &str| {
        let line = run.stdout.lines().find(|line| line.starts_with(first));
        line.unwrap_or_else(|| panic!("{first}: {run:?}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row("1 "), format!("1 2 0 0 0 2 0 0 {RING_1}"));
    assert_eq!(row("2 "), format!("2 1 0 0 0 0 1 0 {RING_2}"));
    assert!(run.stdout.contains("ImageNotFound"), "{run:?}");
    assert!(run.stdout.contains("404 from images.example") && run.stdout.ends_with(stopped), "{run:?}");

    // Mended by hand: the gate looks at what is, not at what was.
    b1.report(completed()).await;
    let (code, events) = rig.events(&["rollout", "advance", "fw-2", "--json"]).await;
    assert_eq!((code, &events[0]["verdict"]), (22, &json!("complete")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_to_the_end_and_can_be_taken_over() {
    let rig = Rig::new().await;
    let [a1, a2, b1] = three(&rig).await;
    assert_eq!(rig.run(&create(&["--rings", RING_1, "--rings", RING_2])).await.code, 0);
    a1.desires("u-2").await;
    a1.report(completed()).await;
    a2.report(completed()).await;
    let arguments = ["rollout", "run", "fw-2", "--interval", "200ms", "--json"];
    let first = tokio::spawn(crate::rig::run(rig.command(&arguments)));
    b1.desires("u-2").await;
    // The first operator goes home; the second one knows nothing but the name.
    first.abort();
    b1.report(completed()).await;
    let (code, events) = rig.events(&arguments).await;
    let last = events.last().unwrap();
    assert_eq!((code, &last["verdict"], &last["ringsOpen"]), (0, &json!("complete"), &json!(2)), "{last}");

    b1.report(failed("DigestMismatch", "another image")).await;
    let (code, events) = rig.events(&arguments).await;
    let last = events.last().unwrap();
    let failure = json!([{"devices": 1, "status": "failed", "code": "DigestMismatch", "message": "another image",
        "examples": ["b1"]}]);
    assert_eq!((code, &last["failures"]), (21, &failure), "{last}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_drives_no_other_rollout_of_the_same_name() {
    let rig = Rig::new().await;
    let [a1, a2, b1] = three(&rig).await;
    let rings = ["--rings", RING_1, "--rings", RING_2];
    assert_eq!(rig.run(&create(&rings)).await.code, 0);
    // Long enough to make it anew between two looks.
    let mut run = Running::start(rig.command(&["rollout", "run", "fw-2", "--interval", "3s", "--json"]));
    run.says_something().await;
    assert_eq!(rig.run(&["rollout", "delete", "fw-2"]).await.code, 0);
    let package = ["--uri", "https://images.example/3.0.img", "--version", "3.0", "--update-id", "u-3"];
    let anew: Vec<&str> =
        ["rollout", "create", "fw-2"].iter().chain(&package).chain(&rings).copied().collect();
    assert_eq!(rig.run(&anew).await.code, 0);
    for device in [&a1, &a2] {
        device.desires("u-3").await;
        device
            .report(report(
                "completed",
                "current",
                "Firmware applied",
                "u-3",
                &json!({"currentFwVersion": "3.0"}),
            ))
            .await;
    }
    assert_eq!(run.ends().await, 8);
    let (_, events) = rig.events(&["rollout", "status", "fw-2", "--json"]).await;
    assert_eq!((&events[0]["updateId"], &events[0]["ringsOpen"]), (&json!("u-3"), &json!(1)));
    assert_eq!(desired_id(&rig, "b1"), Value::Null);
    drop(b1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_has_the_version_is_done_however_its_last_update_ended() {
    let rig = Rig::new().await;
    let [_a1, _a2, b1] = three(&rig).await;
    assert_eq!(rig.run(&create(&["--target", RING_2])).await.code, 0);
    let has_it =
        |status, id| report(status, "error", status, "", &json!({"currentFwVersion": "2.0", "updateId": id}));
    for (status, id, code) in [
        ("rolledBack", json!("u-9"), 22),
        ("failed", json!("u-9"), 22),
        ("standBy", Value::Null, 22),
        ("downloading", json!("u-9"), 20),
        ("failed", json!("u-2"), 21),
    ] {
        b1.report(has_it(status, id.clone())).await;
        let run = rig.run(&["rollout", "advance", "fw-2"]).await;
        assert_eq!(run.code, code, "{status} {id}: {run:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_id_of_another_version_completes_no_rollout() {
    let rig = Rig::new().await;
    let [_a1, _a2, b1] = three(&rig).await;
    let with_version = |version: &str| {
        report("completed", "current", version, "u-2", &json!({ "currentFwVersion": version }))
    };
    b1.report(with_version("1.9")).await;
    let run = rig.run(&create(&["--rings", RING_1, "--rings", RING_2])).await;
    let why = "1 devices have completed update `u-2` with another version than 2.0";
    assert!(run.code == 2 && run.stderr.contains(why), "{run:?}");
    assert_eq!(rig.run(&["rollout", "status", "fw-2"]).await.code, 8);

    b1.report(standing_by()).await;
    assert_eq!(rig.run(&create(&["--target", RING_2])).await.code, 0);
    for (version, code) in [("1.9", 20), ("2.0", 22)] {
        b1.report(with_version(version)).await;
        let run = rig.run(&["rollout", "advance", "fw-2"]).await;
        assert_eq!(run.code, code, "{version}: {run:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_operators_open_one_ring() {
    let rig = Rig::new().await;
    let [a1, _a2, _b1] = three(&rig).await;
    let rings = ["--rings", "deviceId = 'a1'", "--rings", "deviceId = 'a2'", "--rings", "*"];
    assert_eq!(rig.run(&create(&rings)).await.code, 0);
    a1.report(completed()).await;
    let advance = ["rollout", "advance", "fw-2"];
    let (one, other) = tokio::join!(rig.run(&advance), rig.run(&advance));
    let opened = [&one, &other].iter().filter(|run| run.code == 0).count();
    assert_eq!(opened, 1, "{one:?} {other:?}");
    let (_, events) = rig.events(&["rollout", "status", "fw-2", "--json"]).await;
    assert_eq!(events[0]["ringsOpen"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_is_paused_resumed_listed_and_deleted() {
    let rig = Rig::new().await;
    let [a1, _a2, b1] = three(&rig).await;
    assert_eq!(rig.run(&create(&["--target", RING_1])).await.code, 0);
    a1.desires("u-2").await;
    for (action, state) in [("pause", "paused"), ("resume", "active")] {
        let run = rig.run(&["rollout", action, "fw-2"]).await;
        assert_eq!(run.code, 0, "{run:?}");
        let run = rig.run(&["rollout", "list"]).await;
        let row: Vec<_> = run.stdout.lines().nth(1).unwrap().split_whitespace().take(6).collect();
        assert_eq!(row, ["fw-2", "2.0", "1", "of", "1", state], "{run:?}");
    }
    assert_eq!(rig.run(&["rollout", "pause", "fw-2"]).await.code, 0);
    let run = rig.run(&["rollout", "advance", "fw-2"]).await;
    assert_eq!((run.code, run.stdout.as_str()), (20, "waits: paused\n"));
    assert_eq!(rig.run(&["rollout", "delete", "fw-2"]).await.code, 0);
    assert_eq!(rig.run(&["rollout", "status", "fw-2"]).await.code, 8);
    assert_eq!(desired_id(&rig, "b1"), Value::Null);
    drop(b1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_leaves_nothing_of_the_one_before_it_in_a_twin() {
    let rig = Rig::new().await;
    let [a1, _a2, _b1] = three(&rig).await;
    let by_hand = json!({"fwPackageUri": "https://images.example/0.img"});
    rig.hub.patch_desired("a1", json!({ "firmware": by_hand })).unwrap();
    let check_value = "ab".repeat(32);
    let older = ["rollout", "create", "fw-1", "--uri", "https://images.example/1.img", "--version", "1.5"];
    let more = ["--update-id", "u-1", "--check-value", &check_value, "--size", "7", "--target", RING_1];
    let older: Vec<&str> = older.iter().chain(&more).copied().collect();
    assert_eq!(rig.run(&older).await.code, 0);
    a1.desires("u-1").await;
    assert_eq!(rig.hub.twin("a1")["properties"]["desired"]["firmware"]["fwSize"], 7);
    let run = rig.run(&create(&["--target", RING_1])).await;
    assert!(run.code == 0 && run.stderr.contains("rollout `fw-1` sets the firmware too"), "{run:?}");
    a1.desires("u-2").await;
    let desired = rig.hub.twin("a1")["properties"]["desired"]["firmware"].clone();
    let keys: Vec<&String> = desired.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["fwPackageURI", "fwVersion", "updateId"]);
    let run = rig.run(&["rollout", "delete", "fw-1"]).await;
    assert_eq!((run.code, run.stderr.as_str()), (0, ""), "the newer one stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_gives_those_that_have_begun_no_older_rollout_again() {
    let rig = Rig::new().await;
    let [a1, a2, _b1] = three(&rig).await;
    let older = ["rollout", "create", "fw-1", "--uri", "https://images.example/1.img", "--version", "1.5"];
    let older: Vec<&str> = older.iter().chain(&["--update-id", "u-1", "--target", RING_1]).copied().collect();
    assert_eq!(rig.run(&older).await.code, 0);
    a1.desires("u-1").await;
    assert_eq!(rig.run(&create(&["--target", RING_1])).await.code, 0);
    a1.desires("u-2").await;
    a2.desires("u-2").await;
    a1.report(completed()).await;
    let run = rig.run(&["rollout", "pause", "fw-2"]).await;
    assert!(run.code == 0 && run.stderr.contains("what `fw-1` says"), "{run:?}");
    a2.desires("u-1").await;
    assert_eq!(desired_id(&rig, "a1"), "u-2");
    let run = rig.run(&["rollout", "delete", "fw-2"]).await;
    assert!(run.code == 0 && run.stderr.contains("rollout `fw-1` sets the firmware too"), "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_whose_answer_was_lost_is_looked_for() {
    let rig = Rig::new().await;
    let [a1, _a2, _b1] = three(&rig).await;
    rig.hub.lose_answers("PUT", "/configurations/fw-2");
    let run = rig.run(&create(&["--target", RING_1])).await;
    assert!(run.code == 0 && run.stderr.contains("looking whether it was created"), "{run:?}");
    assert!(run.stdout.contains("ring 1 of 1 is open"), "{run:?}");
    a1.desires("u-2").await;
    for action in ["pause", "resume"] {
        let run = rig.run(&["rollout", action, "fw-2"]).await;
        let why = "it may have been done all the same: `twinbootctl rollout status fw-2` tells";
        assert!(run.code == 1 && run.stderr.contains(why), "{run:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_lists_nothing_keeps_no_rollout_from_a_pause() {
    let rig = Rig::new().await;
    let [a1, _a2, _b1] = three(&rig).await;
    assert_eq!(rig.run(&create(&["--target", RING_1])).await.code, 0);
    a1.desires("u-2").await;
    rig.hub.lose_answers("GET", "/configurations");
    for (action, code) in [("pause", 20), ("delete", 8)] {
        let run = rig.run(&["rollout", action, "fw-2"]).await;
        assert!(run.code == 0 && run.stderr.contains("cannot tell whether other rollouts"), "{run:?}");
        assert_eq!(rig.run(&["rollout", "advance", "fw-2"]).await.code, code, "{action}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_devices_failed_already_is_told_when_it_is_rolled_out_again() {
    let rig = Rig::new().await;
    let [a1, _a2, _b1] = three(&rig).await;
    a1.report(failed("ImageNotFound", "404 from images.example")).await;
    let run = rig.run(&create(&["--rings", RING_1, "--rings", RING_2])).await;
    assert!(run.code == 0 && run.stderr.contains("1 devices of ring 1 failed this very update"), "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_is_asked_for_by_the_check_value_and_version_of_its_manifest() {
    let rig = Rig::new().await;
    let [a1, _a2, _b1] = three(&rig).await;
    let path = |name: &str| rig.dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("root.img"), b"root file system".repeat(1000)).unwrap();
    let (image, bundle) = (format!("rootfs={}", path("root.img")), path("2.0.twb"));
    let make = ["bundle", "create", "--version", "2.0", "--image", &image, "-o", &bundle];
    assert_eq!(rig.run(&make).await.code, 0);
    let (_, said) = rig.events(&["bundle", "inspect", &bundle, "--json"]).await;
    let create =
        ["rollout", "create", "fw-2", "--uri", "https://images.example/2.0.twb", "--update-id", "u-2"];
    let create: Vec<&str> =
        create.iter().chain(&["--check-file", &bundle, "--target", RING_1]).copied().collect();
    let run = rig.run(&create.iter().chain(&["--version", "2.1"]).copied().collect::<Vec<_>>()).await;
    assert!(run.code == 2 && run.stderr.contains("brings version 2.0"), "{run:?}");
    assert_eq!(rig.run(&create).await.code, 0);
    a1.desires("u-2").await;
    let desired = rig.hub.twin("a1")["properties"]["desired"]["firmware"].clone();
    assert_eq!(desired["fwPackageCheckValue"], said[0]["check_value"]);
    assert_eq!((&desired["fwVersion"], &desired["fwSize"]), (&json!("2.0"), &json!(file_bytes(&bundle))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_is_not_whole_is_not_rolled_out() {
    let rig = Rig::new().await;
    let path = |name: &str| rig.dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("old.img"), b"old file system!".repeat(1000)).unwrap();
    std::fs::write(path("root.img"), b"root file system".repeat(1000)).unwrap();
    let (image, base) = (format!("rootfs={}", path("root.img")), format!("rootfs={}", path("old.img")));
    let (bundle, patches) = (path("2.0.twb"), path("patches.twb"));
    let make = ["bundle", "create", "--version", "2.0", "--image", &image, "--base", &base, "-o", &bundle];
    let make: Vec<&str> = make.into_iter().chain(["--patches-to", &patches]).collect();
    let run = rig.run(&make).await;
    assert_eq!(run.code, 0, "{run:?}");
    let bytes = std::fs::read(&bundle).unwrap();
    let cut = |name: &str, length: usize| {
        std::fs::write(path(name), &bytes[..length]).unwrap();
        path(name)
    };
    let at_the_end = cut("end.twb", bytes.len() - 1);
    for (copy, why) in [
        (at_the_end.as_str(), "and its manifest makes"),
        (&cut("manifest.twb", 100), "it ends after 100 bytes"),
        (&cut("header.twb", 10), "it ends after 10 bytes"),
        (&patches, "is a file of patches"),
    ] {
        for command in [&["rollout", "create", "fw-2", "--target", RING_1][..], &["update", "a1"]] {
            let more = ["--uri", "https://images.example/2.0.twb", "--check-file", copy];
            let run = rig.run(&[command, &more].concat()).await;
            assert!(run.code == 1 && run.stderr.contains(why), "{copy}: {run:?}");
            assert_eq!(run.stderr.lines().count(), 1, "{run:?}");
        }
    }
    assert_eq!(rig.run(&["rollout", "status", "fw-2"]).await.code, 8);
}

fn file_bytes(path: &str) -> u64 {
    std::fs::metadata(path).unwrap().len()
}
