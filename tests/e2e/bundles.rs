//! Bundles: by the cloud in two processes, and from a file with images of two classes.

use std::fs;

use hub_emulator::board::{Slot, Traits, board_image};
use hub_emulator::images::{Faults, StatusFault};
use serde_json::{Value, json};

use crate::cloud::{World, sha256};
use crate::make::{Made, made, made_of};
use crate::rig::{Choice, IMAGE_BYTES, Rig};
use crate::split::split;

const BUNDLE: &str = "2.0.twb";

#[tokio::test]
async fn a_bundle_is_fetched_in_parts_by_the_networked_part() {
    let (world, _meeting, _network) = split(Traits::default()).await;
    let bundle = made(&board_image("2.0", Traits::default(), IMAGE_BYTES, 7), |manifest| {
        manifest.compatible = vec!["acme-1".to_owned()];
    });
    world.images.put(BUNDLE, bundle.bytes.clone());
    let payload = json!({
        "fwPackageUri": world.images.url(BUNDLE),
        "fwPackageCheckValue": sha256(&bundle.manifest),
    });
    let (status, answer) = world.call("firmwareUpdate", payload.clone()).await;
    assert_eq!(status, 200, "{answer}");
    let reported = world.wait_status("failed").await;
    assert_eq!(reported["firmware"]["error"]["code"], "BoardIncompatible");
    assert!(world.images.bytes_sent(BUNDLE) <= 4096, "the head is enough to know");

    let drop_in = world.rig.board.dir().join("config.d/60-board.toml");
    fs::write(drop_in, "[install]\ncompatible = \"acme-1\"\n").unwrap();
    let mut world = world;
    world.rig.board.cut().await;
    world.rig.board.power_on().await.unwrap();
    world.rig.wait(|status| status["hubConnected"] == true).await;
    let (status, answer) = world.call("firmwareUpdate", payload.clone()).await;
    assert_eq!(status, 200, "{answer}");
    let reported = world.wait_status("completed").await;
    assert_eq!(reported["firmware"]["currentFwVersion"], "2.0", "it says so itself");
    assert_eq!(world.rig.board.booted(), Some(Slot::B));
    let sent = world.images.bytes_sent(BUNDLE);
    assert!(sent <= bundle.bytes.len() as u64 + 3 * 4096, "{sent} of {}", bundle.bytes.len());
    let history = world.hub.history(crate::cloud::DEVICE);
    let told = history.iter().any(|patch| patch["firmware"]["progress"]["fetchedBytes"].is_u64());
    assert!(told, "{history:#?}");
    let (_, answer) = world.call("firmwareUpdate", payload).await;
    assert_eq!(answer["Response"], "Firmware update already completed");
}

/// Shows Azure/iot-hub-device-update#435, #460, #629, #646.
#[tokio::test]
async fn two_classes_are_switched_together() {
    let boot = tempfile::tempdir().unwrap();
    let path = |name: &str| boot.path().join(name);
    for name in ["a", "b"] {
        fs::write(path(name), vec![0xee; 1 << 20]).unwrap();
    }
    let images = |slot: &str| {
        format!("[[slot]]\nname = \"{slot}\"\nimages = {{ boot = \"{}\" }}\n", path(slot).display())
    };
    let extra_config = &[images("a"), images("b")].concat();
    let rig = Rig::running(Choice { extra_config, ..Choice::default() }).await;
    let kernel: Vec<u8> = (0..900_000_u32).flat_map(u32::to_le_bytes).take(1 << 20).collect();
    let root = board_image("2.0", Traits::default(), IMAGE_BYTES, 7);
    let bundle = made_of(&[("rootfs", &root), ("boot", &kernel)], |_| Vec::new(), |_| {});
    let file = path("release.twb");
    fs::write(&file, &bundle.bytes).unwrap();

    let refused = rig.twinboot(&["install", file.to_str().unwrap(), "--signed"]).await;
    assert_eq!(refused.status.code(), Some(1), "nobody signed it");
    let started = rig.twinboot(&["install", file.to_str().unwrap(), "--no-wait"]).await;
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
    let report = rig.outcome().await;
    assert_eq!(report["firmwareStatus"], "completed", "{report:#}");
    assert_eq!(report["firmware"]["currentFwVersion"], "2.0");
    assert_eq!(rig.board.booted(), Some(Slot::B));
    assert!(fs::read(path("b")).unwrap() == kernel);
    assert!(fs::read(path("a")).unwrap().iter().all(|byte| *byte == 0xee), "what runs is untouched");
    let again = rig.twinboot(&["install", file.to_str().unwrap(), "--update-id", "again"]).await;
    assert_eq!(again.status.code(), Some(1), "the file itself tells its version, which runs");
}

/// A bundle whose first MiB is in the slot, while the rest comes slowly: by each of four requests.
async fn half_way(world: &World, uri: String) -> (Made, Value) {
    let bundle = made(&board_image("2.0", Traits::default(), IMAGE_BYTES, 7), |_| {});
    world.images.put(BUNDLE, bundle.bytes.clone());
    world.images.set_faults(BUNDLE, Faults { bytes_per_sec: Some(50_000), ..Faults::default() });
    let payload = json!({
        "fwPackageUri": uri, "fwPackageCheckValue": sha256(&bundle.manifest), "updateId": "winter",
    });
    let (status, answer) = world.call("firmwareUpdate", payload.clone()).await;
    assert_eq!(status, 200, "{answer}");
    let written = |status: &Value| status["reported"]["firmware"]["progress"]["writtenBytes"].as_u64();
    world.rig.wait(|status| written(status) >= Some(1 << 20)).await;
    (bundle, payload)
}

/// All but the first MiB; of the chunk at its end, the slot has only a part.
fn rest_bytes(bundle: &Made) -> u64 {
    bundle.bytes.len() as u64 - (1 << 20) + (64 << 10)
}

#[tokio::test]
async fn an_expired_link_is_told_and_the_same_update_goes_on_by_a_new_one() {
    let world = World::new(Traits::default(), "").await;
    let (bundle, mut payload) = half_way(&world, format!("{}?sig=1", world.images.url(BUNDLE))).await;
    let expired = StatusFault { code: 403, retry_after_secs: None, requests: 1000 };
    world.images.set_faults(BUNDLE, Faults { status: Some(expired), ..Faults::default() });
    let reported = world.wait_status("failed").await;
    assert_eq!(reported["firmware"]["error"]["code"], "ImageForbidden");
    assert_eq!(reported["firmware"]["updateId"], "winter");

    const AGAIN: &str = "again.twb";
    world.images.put(AGAIN, bundle.bytes.clone());
    payload["fwPackageUri"] = json!(format!("{}?sig=2", world.images.url(AGAIN)));
    let (status, answer) = world.call("firmwareUpdate", payload).await;
    assert_eq!((status, &answer["updateId"]), (200, &json!("winter")), "{answer}");
    let reported = world.wait_status("completed").await;
    assert_eq!(reported["firmware"]["updateId"], "winter");
    let sent = world.images.bytes_sent(AGAIN);
    assert!(sent <= rest_bytes(&bundle), "what is in the slot is kept: {sent}");
}

/// Shows MEN-2293.
#[tokio::test]
async fn after_a_power_cut_what_is_in_the_slot_is_not_fetched_again() {
    let mut world = World::new(Traits::default(), "").await;
    let (bundle, _) = half_way(&world, world.images.url(BUNDLE)).await;
    world.rig.board.cut().await;
    let before = world.images.bytes_sent(BUNDLE);
    world.images.set_faults(BUNDLE, Faults::default());
    world.rig.board.power_on().await.unwrap();
    world.wait_status("completed").await;
    assert_eq!(world.rig.board.booted(), Some(Slot::B));
    let sent = world.images.bytes_sent(BUNDLE) - before;
    assert!(sent <= rest_bytes(&bundle), "{sent}");
}
