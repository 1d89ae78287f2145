//! The real daemon on an emulated board, updated by the tool.

use std::path::Path;

use hub_emulator::board::{Board, BoardOptions, Scheme, Slot, Traits, board_image};
use hub_emulator::images::ImageServer;

use crate::rig::{LIMIT, Rig, TOOL};

const DEVICE: &str = "gateway-1";
const SLOT_BYTES: u64 = 4 << 20;
const IMAGE_BYTES: usize = 3 << 20;

/// A board that is online, and its world.
async fn board(rig: &Rig) -> Board {
    // Examples are built next to the binaries: see Cargo.toml.
    let daemon = Path::new(TOOL).with_file_name("examples").join("twinboot");
    assert!(
        daemon.exists(),
        "cargo builds {} with `cargo test -p twinbootctl`, not with --test",
        daemon.display()
    );
    let mut board = Board::create(&BoardOptions {
        dir: rig.dir.path().join("board"),
        daemon,
        scheme: Scheme::Bootcount,
        slot_size_bytes: SLOT_BYTES,
        hub_connection_string: Some(rig.hub.add_device(DEVICE)),
        hub_port: rig.hub.mqtt_port(),
        ca_pem: Some(rig.hub.ca_pem().to_owned()),
        extra_config: String::new(),
    })
    .unwrap();
    board.power_on().await.unwrap();
    let standing_by = |reported: &serde_json::Value| reported["firmwareStatus"] == "standBy";
    rig.hub.wait_reported(DEVICE, LIMIT, standing_by).await.unwrap();
    board
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_device_is_updated_and_a_sick_image_is_told_to_be_rolled_back() {
    let rig = Rig::new().await;
    let board = board(&rig).await;
    let images = ImageServer::start(Some(rig.hub.authority().server_config())).await.unwrap();
    let update = async |version: &str, traits: Traits| {
        let name = format!("{version}.img");
        let copy = rig.dir.path().join(&name);
        std::fs::write(&copy, board_image(version, traits, IMAGE_BYTES, 7)).unwrap();
        images.put_file(&name, &copy);
        let uri = images.url(&name);
        rig.run(&[
            "update",
            DEVICE,
            "--uri",
            &uri,
            "--check-file",
            copy.to_str().unwrap(),
            "--version",
            version,
        ])
        .await
    };
    let run = update("2.0", Traits::default()).await;
    assert_eq!(run.code, 0, "{run:?}\n{}", board.log());
    assert!(run.stdout.starts_with("gateway-1: Firmware update started\n"), "{run:?}");
    let applied = "Download complete, applying firmware...\n";
    assert!(run.stdout.contains(applied), "{run:?}");
    assert!(run.stdout.ends_with("Firmware applied; version 2.0 runs from slot b\n"), "{run:?}");
    assert_eq!(board.booted(), Some(Slot::B));

    let run = update("3.0", Traits::SICK).await;
    assert_eq!(run.code, 5, "{run:?}\n{}", board.log());
    assert!(run.stdout.contains("Firmware rolled back: HealthCheckFailed"), "{run:?}");
    let run = update("3.0", Traits::SICK).await;
    assert_eq!(run.code, 6, "{run:?}");
    assert!(run.stderr.contains("RolledBackBefore"), "{run:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollout_reaches_a_real_device_and_leaves_one_alone_that_has_the_version() {
    let rig = Rig::new().await;
    let board = board(&rig).await;
    let images = ImageServer::start(Some(rig.hub.authority().server_config())).await.unwrap();
    let copy = rig.dir.path().join("2.0.img");
    std::fs::write(&copy, board_image("2.0", Traits::default(), IMAGE_BYTES, 7)).unwrap();
    for (rollout, name) in [("fw-2", "2.0.img"), ("fw-2b", "again.img")] {
        images.put_file(name, &copy);
        let (uri, copy) = (images.url(name), copy.to_str().unwrap());
        let create = ["rollout", "create", rollout, "--target", "deviceId = 'gateway-1'", "--uri", &uri];
        let create: Vec<_> = create.into_iter().chain(["--check-file", copy, "--version", "2.0"]).collect();
        let run = rig.run(&create).await;
        assert_eq!(run.code, 0, "{run:?}");
        let run = rig.run(&["rollout", "run", rollout, "--interval", "200ms"]).await;
        assert_eq!(run.code, 0, "{run:?}\n{}", board.log());
        assert!(run.stdout.ends_with("complete\n"), "{run:?}");
    }
    assert_eq!(board.booted(), Some(Slot::B));
    assert_eq!(images.bytes_sent("again.img"), 0, "what is desired runs already");
}
