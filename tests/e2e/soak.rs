//! Many updates: nothing grows, neither in one process nor on the device.
//!
//! The long form is `cargo test --release --test e2e soak -- --ignored --nocapture`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use hub_emulator::board::{Slot, Traits, board_image};
use hub_emulator::images::Faults;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::clocks::Clocks;
use crate::cloud::{DEVICE, IMAGE, World, sha256};
use crate::rig::{DAEMON, script};

/// A short one leaves the time to what happens around it.
const SMALL_BYTES: usize = 64 << 10;

/// Far more than a daemon has in memory.
const LARGE_BYTES: usize = 64 << 20;

/// What the allocator keeps of an install's buffers of 1 MiB, after two hundred updates as after a thousand.
const ALLOWED_KIB: u64 = 8192;

/// What a process holds.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    resident_kib: u64,
    descriptors: usize,
}

impl Held {
    pub fn by(world: &World) -> Self {
        let descriptors = format!("/proc/{}/fd", world.rig.board.daemon_pid().unwrap());
        Self { resident_kib: memory(world, "VmRSS"), descriptors: fs::read_dir(descriptors).unwrap().count() }
    }

    /// The least of several moments: a buffer that was not given back yet is no leak.
    pub fn least(several: &[Self]) -> Self {
        Self {
            resident_kib: several.iter().map(|held| held.resident_kib).min().unwrap(),
            descriptors: several.iter().map(|held| held.descriptors).min().unwrap(),
        }
    }
}

/// Of `VmRSS` or `VmHWM`, in KiB.
fn memory(world: &World, what: &str) -> u64 {
    let status = format!("/proc/{}/status", world.rig.board.daemon_pid().unwrap());
    let status = fs::read_to_string(status).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
    line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}

impl World {
    /// Loses its session, and has the next one without the pause before it. Time that passes may end that one too.
    async fn connects_again(&self, clocks: &Clocks) {
        const SOON: Duration = Duration::from_secs(2);
        self.hub.drop_connections();
        loop {
            let connected = || self.hub.connected(DEVICE);
            clocks.pass_until(&self.rig, Duration::from_secs(60), connected).await;
            if self.hub.wait_connected(DEVICE, SOON, true).await.is_ok() {
                return;
            }
        }
    }

    /// Asks for it, and waits until it failed with this code.
    async fn fails(&self, id: &str, check_value: &str, code: &str, meanwhile: impl AsyncFnOnce()) {
        let call = json!({
            "fwPackageUri": self.images.url(IMAGE),
            "fwPackageCheckValue": check_value,
            "fwVersion": "2.0",
            "updateId": id,
        });
        let (status, answer) = self.call("firmwareUpdate", call).await;
        assert_eq!(status, 200, "{answer}");
        meanwhile().await;
        let failed = |reported: &Value| {
            reported["firmware"]["updateId"] == id && reported["firmwareStatus"] == "failed"
        };
        assert_eq!(self.wait(failed).await["firmware"]["error"]["code"], code, "{id}");
    }
}

/// A hook that refuses what was installed: the directory, and the configuration.
fn refusing() -> (TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let hooks = directory.path().join("after-install");
    fs::create_dir(&hooks).unwrap();
    script(&hooks.join("10-never"), "exit 1");
    let config = format!("[hooks]\ndirectory = {:?}\n", directory.path());
    (directory, config)
}

/// A quarter of the updates each: installed and then refused by a hook, of another digest, cancelled in mid-download,
/// and of another digest after a new session.
async fn updates_in_one_process(updates: usize) {
    let (clocks, (_hooks, config)) = (Clocks::new(), refusing());
    let mut world = World::switched_off(Traits::default(), &config, &clocks.daemon()).await;
    let image = board_image("2.0", Traits::default(), SMALL_BYTES, 7);
    let (right, wrong) = (sha256(&image), "00".repeat(32));
    world.images.put(IMAGE, image);
    world.power_on().await;
    let process = world.rig.board.daemon_pid();
    let mut held = Vec::new();
    for round in 0..updates / 4 {
        world.images.set_faults(IMAGE, Faults::default());
        world.fails(&format!("refused-{round}"), &right, "HookRefused", async || {}).await;
        world.fails(&format!("wrong-{round}"), &wrong, "DigestMismatch", async || {}).await;
        let stalls = Faults { stall_after_bytes: Some(1000), ..Faults::default() };
        world.images.set_faults(IMAGE, stalls);
        let cancel = async || {
            world.wait_status("downloading").await;
            assert_eq!(world.call("cancelFirmwareUpdate", Value::Null).await.0, 200);
        };
        world.fails(&format!("cancelled-{round}"), &right, "Cancelled", cancel).await;
        world.images.set_faults(IMAGE, Faults::default());
        world.connects_again(&clocks).await;
        world.fails(&format!("again-{round}"), &wrong, "DigestMismatch", async || {}).await;
        held.push(Held::by(&world));
    }
    assert_eq!((world.rig.board.daemon_pid(), world.rig.board.boots().len()), (process, 1));
    flat("one process", updates, &held);
}

/// The most that a daemon had, in KiB, when an image of so many bytes was fetched, written, synced and read back.
async fn peak(image_bytes: usize) -> u64 {
    let (_hooks, config) = refusing();
    let mut world = World::switched_off(Traits::default(), &config, Path::new(DAEMON)).await;
    let image = board_image("2.0", Traits::default(), image_bytes, 7);
    let slot = fs::File::options().write(true).open(world.rig.board.slot_path(Slot::B)).unwrap();
    slot.set_len(LARGE_BYTES as u64).unwrap();
    let digest = sha256(&image);
    world.images.put(IMAGE, image);
    world.power_on().await;
    world.fails("refused", &digest, "HookRefused", async || {}).await;
    memory(&world, "VmHWM")
}

/// Compares the second tenth, where everything was in use once, with the last one.
pub fn flat(what: &str, updates: usize, held: &[Held]) {
    let tenth = held.len().div_ceil(10);
    let (begin, end) = (Held::least(&held[tenth..2 * tenth]), Held::least(&held[held.len() - tenth..]));
    eprintln!("{what}: {updates} updates, {begin:?} then {end:?}");
    assert!(end.descriptors <= begin.descriptors, "{begin:?} {end:?}");
    // After a few it matters more what the allocator keeps just now.
    let allowed_kib = if updates < 1000 { 2 * ALLOWED_KIB } else { ALLOWED_KIB };
    assert!(end.resident_kib <= begin.resident_kib + allowed_kib, "{begin:?} {end:?}");
}

/// A small image has a part of a block under way, a large one all that the stages of an install hold at a time: some
/// blocks of 1 MiB each, which are less than half of it.
#[tokio::test]
async fn memory_does_not_grow_with_the_image() {
    let (small, large) = (peak(SMALL_BYTES).await, peak(LARGE_BYTES).await);
    eprintln!("{small} KiB, then {large} KiB");
    assert!(large < small + (LARGE_BYTES as u64 >> 11), "{small} KiB, then {large} KiB");
}

#[tokio::test]
async fn two_hundred_updates_in_one_process_leave_nothing_behind() {
    updates_in_one_process(200).await;
}

#[tokio::test]
#[ignore = "minutes"]
async fn a_thousand_updates_in_one_process_leave_nothing_behind() {
    updates_in_one_process(1000).await;
}

/// A thousand updates that succeed, with as many reboots.
#[tokio::test]
#[ignore = "a quarter of an hour"]
async fn a_thousand_updates_leave_a_device_as_it_was() {
    const UPDATES: usize = 1000;
    let world = World::new(Traits::default(), "").await;
    let (mut held, mut files) = (Vec::new(), Vec::new());
    for number in 0..UPDATES {
        let version = format!("2.{number}");
        let image = board_image(&version, Traits::default(), SMALL_BYTES, 7);
        let call = json!({
            "fwPackageUri": world.images.url(IMAGE),
            "fwPackageCheckValue": sha256(&image),
            "fwVersion": version,
        });
        world.images.put(IMAGE, image);
        let (status, answer) = world.call_when_connected("firmwareUpdate", call).await;
        assert_eq!(status, 200, "{answer}");
        let completed = |reported: &Value| {
            let current = &reported["firmware"]["currentFwVersion"];
            reported["firmwareStatus"] == "completed" && *current == version
        };
        world.wait(completed).await;
        held.push(Held::by(&world));
        let state = fs::read_dir(world.rig.board.dir().join("state")).unwrap();
        files.push(state.map(|entry| entry.unwrap().metadata().unwrap().len()).collect::<Vec<_>>());
    }
    assert_eq!(world.rig.board.boots().len(), UPDATES + 1);
    flat("as many processes", UPDATES, &held);
    let (begin, end) = (&files[UPDATES / 10], &files[UPDATES - 1]);
    eprintln!("state directory: {begin:?} then {end:?} bytes");
    assert_eq!(begin.len(), end.len());
    assert!(end.iter().sum::<u64>() < begin.iter().sum::<u64>() + 1024, "{begin:?} {end:?}");
}
