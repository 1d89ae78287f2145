//! The daemon in two processes: the agent without a network, and the networked part without any rights.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use hub_emulator::board::{Slot, Traits};
use hub_emulator::hub::{Hub, HubOptions};
use hub_emulator::images::Faults;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::cloud::{DEVICE, IMAGE, World};
use crate::rig::{Choice, DAEMON, IMAGE_BYTES, LIMIT, Rig, is_root};

/// `nobody`: what the networked part runs as where a test may choose.
const NOBODY: u32 = 65534;

/// Where both parts meet, and all that the networked part gets to see.
pub struct Meeting {
    dir: TempDir,
}

impl Meeting {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let meeting = Self { dir };
        fs::create_dir(meeting.path("network")).unwrap();
        fs::create_dir(meeting.path("credentials")).unwrap();
        // Not every user can reach what is built.
        fs::hard_link(DAEMON, meeting.path("twinboot"))
            .or_else(|_| fs::copy(DAEMON, meeting.path("twinboot")).map(drop))
            .unwrap();
        let script =
            format!("#!/bin/sh\nexec '{DAEMON}' \"$@\" --network '{}'\n", meeting.socket().display());
        fs::write(meeting.agent(), script).unwrap();
        fs::set_permissions(meeting.agent(), Permissions::from_mode(0o755)).unwrap();
        meeting
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("network/socket")
    }

    /// A daemon that leaves the network to the other part.
    pub fn agent(&self) -> PathBuf {
        self.path("agent")
    }

    /// The networked part, with the device's secret handed over as systemd does.
    fn network(&self, board: &Path) -> Child {
        self.hand_over("connection-string", &fs::read_to_string(board.join("connection-string")).unwrap());
        self.command(board).spawn().unwrap()
    }

    fn hand_over(&self, name: &str, secret: &str) {
        let file = self.path("credentials").join(name);
        fs::write(&file, secret).unwrap();
        fs::set_permissions(file, Permissions::from_mode(0o600)).unwrap();
    }

    /// The networked part, as somebody else if possible.
    fn command(&self, board: &Path) -> Command {
        let mut command = Command::new(self.path("twinboot"));
        if is_root() {
            for open in [self.dir.path(), board.parent().unwrap()] {
                fs::set_permissions(open, Permissions::from_mode(0o755)).unwrap();
            }
            let secrets = fs::read_dir(self.path("credentials")).unwrap().map(|entry| entry.unwrap().path());
            for owned in secrets.chain([self.path("network"), self.path("credentials")]) {
                chown(owned, Some(NOBODY), Some(NOBODY)).unwrap();
            }
            command.uid(NOBODY).gid(NOBODY);
        }
        command
            .args(["network", "--config"])
            .arg(board.join("config.toml"))
            .arg("--socket")
            .arg(self.socket())
            .env("CREDENTIALS_DIRECTORY", self.path("credentials"))
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }
}

/// Both parts, and the device's world.
pub async fn split(traits: Traits) -> (World, Meeting, Child) {
    let meeting = Meeting::new();
    let mut world = World::switched_off(traits, "", &meeting.agent()).await;
    let network = meeting.network(world.rig.board.dir());
    world.power_on().await;
    (world, meeting, network)
}

#[tokio::test]
async fn both_parts_together_do_the_whole_job() {
    let (world, _meeting, _network) = split(Traits::default()).await;
    world.start().await;
    let reported = world.wait_status("completed").await;
    assert_eq!(reported["firmware"]["currentFwVersion"], "2.0");
    assert_eq!(world.rig.board.booted(), Some(Slot::B));
    assert_eq!(world.images.bytes_sent(IMAGE), u64::try_from(IMAGE_BYTES).unwrap(), "fetched once");
    let status = world.rig.wait(|status| status["hubConnected"] == true).await;
    assert_eq!(status["hubDetail"], "connected to the hub");

    let (accepted, answer) = world.call("uploadDiagnostics", Value::Null).await;
    assert_eq!(accepted, 202, "{answer}");
    world.rig.wait(|_| world.hub.uploads(DEVICE).iter().any(|upload| upload.notification.is_some())).await;
    let upload = world.hub.uploads(DEVICE).remove(0);
    assert_eq!(answer["blobName"], upload.name.as_str());
    assert!(upload.bytes.is_some_and(|bytes| bytes.starts_with(&[0x1f, 0x8b])), "a gzip file");
}

/// Shows Azure/iot-hub-device-update#811.
#[tokio::test]
async fn either_part_may_be_killed_in_the_middle() {
    let (mut world, meeting, mut network) = split(Traits::default()).await;
    world.images.set_faults(IMAGE, Faults { bytes_per_sec: Some(1_000_000), ..Faults::default() });
    world.start().await;
    let bytes = |status: &Value| status["reported"]["firmware"]["progress"]["bytes"].as_u64().unwrap_or(0);
    world.rig.wait(|status| bytes(status) > 800_000).await;
    network.kill().await.unwrap();
    world.rig.wait(|status| status["hubConnected"] == false).await;
    let network = meeting.network(world.rig.board.dir());
    world.rig.wait(|status| status["hubConnected"] == true).await;
    let further = bytes(&world.rig.wait(|status| bytes(status) > 1_500_000).await);
    let sent = world.images.bytes_sent(IMAGE);
    assert!(sent < further + 500_000, "resumed: {sent} bytes for {further}");
    // Too little for a checkpoint: it starts over.
    let sessions = world.hub.connects(DEVICE);
    world.rig.board.kill_daemon().await.unwrap();
    let reported = world.wait_status("completed").await;
    assert_eq!(reported["firmware"]["slots"]["booted"], "b");
    assert!(world.hub.connects(DEVICE) > sessions, "each agent has a session of its own");
    assert!(world.images.requests(IMAGE) >= 3);
    drop(network);
}

/// systemd copies the key when it starts the networked part; the certificate is read at each connect.
/// Shows Azure/iot-hub-device-update#90, #212, #219, #746, iot-identity-service#392, iotedge#6835.
#[tokio::test]
async fn a_renewed_certificate_and_its_key_are_taken() {
    let hub = Hub::start(HubOptions::default()).await.unwrap();
    let old = hub.authority().client_certificate(DEVICE).unwrap();
    let new = hub.add_x509_device(DEVICE).unwrap();
    let meeting = Meeting::new();
    let (certificate, agent) = (meeting.path("device.pem"), meeting.agent());
    fs::write(meeting.path("ca.pem"), hub.ca_pem()).unwrap();
    let config = format!(
        "[hub]\nhost_name = \"localhost\"\ndevice_id = \"{DEVICE}\"\nport = {}\nca_file = {:?}\n\
         certificate_file = {certificate:?}\nkey_file = \"/handed/over\"\n",
        hub.mqtt_port(),
        meeting.path("ca.pem"),
    );
    let mut rig = Rig::new(Choice { extra_config: &config, daemon: &agent, ..Choice::default() });
    let board = rig.board.dir().to_owned();
    let start = |(shown, key): &(String, String)| {
        fs::write(&certificate, shown).unwrap();
        meeting.hand_over("device-key", key);
        meeting.command(&board).env("WATCHDOG_USEC", "200000").spawn().unwrap()
    };
    let mut network = start(&old);
    rig.board.power_on().await.unwrap();
    rig.wait(|status| status["hubDetail"].as_str().is_some_and(|told| told.contains("CONNACK 5"))).await;
    fs::write(&certificate, &new.0).unwrap();
    let ended = tokio::time::timeout(LIMIT, network.wait()).await.unwrap().unwrap();
    assert!(!ended.success(), "the service manager starts it again");
    let _network = start(&new);
    rig.wait(|status| status["hubConnected"] == true).await;
}
