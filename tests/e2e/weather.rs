//! Networks, clocks and processes as they are in the field: the update goes on, or ends with a word that fits.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hub_emulator::board::{Slot, Traits, board_image};
use hub_emulator::hub::{Hub, HubOptions};
use hub_emulator::images::{DropFault, Faults, ImageServer};
use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::clocks::Clocks;
use crate::cloud::{DEVICE, IMAGE, World, sha256};
use crate::rig::{Choice, DAEMON, IMAGE_BYTES, LIMIT, Rig, is_root, script};
use crate::split::Meeting;

pub fn slowly() -> Faults {
    Faults { bytes_per_sec: Some(1_000_000), ..Faults::default() }
}

/// As far as a wall clock jumps, in seconds.
pub const YEARS: i64 = 10 * 365 * 86_400;

const IMAGE_SIZE: u64 = IMAGE_BYTES as u64;

/// Hours that pass are no reason to give a server up.
pub const PATIENT: &str = "[install]\nretry_limit = \"24h\"\n";

/// How much of the image has come.
pub fn bytes(status: &Value) -> u64 {
    status["reported"]["firmware"]["progress"]["bytes"].as_u64().unwrap_or_default()
}

/// A drop-in for the next start of the daemon.
pub fn configure(rig: &Rig, name: &str, text: &str) {
    fs::write(rig.board.dir().join("config.d").join(name), text).unwrap();
}

impl World {
    pub async fn half_way(&self) {
        self.images.set_faults(IMAGE, slowly());
        self.start().await;
        self.rig.wait(|status| bytes(status) > 300_000).await;
    }

    pub async fn completes(&self) {
        let reported = self.wait_status("completed").await;
        assert_eq!(reported["firmware"]["slots"]["booted"], "b");
        assert_eq!(self.rig.board.booted(), Some(Slot::B));
    }
}

// -------------------------------------------------------------------------------------------------------- time

/// A new token is no new update.
/// Shows Azure/iot-hub-device-update#609, #625.
#[tokio::test]
async fn a_token_is_renewed_in_the_midst_of_a_download() {
    let clocks = Clocks::new();
    let mut world = World::switched_off(Traits::default(), PATIENT, &clocks.daemon()).await;
    world.power_on().await;
    world.half_way().await;
    let sessions = world.hub.connects(DEVICE);
    // Of an hour.
    clocks.pass(Duration::from_secs(55 * 60));
    let again = || world.hub.connects(DEVICE) > sessions;
    clocks.pass_until(&world.rig, Duration::from_secs(1), again).await;
    world.completes().await;
    let log = world.rig.board.log();
    assert!(log.contains("the token is renewed"), "{log}");
    assert_eq!(log.matches(": accepted").count(), 1, "{log}");
    let sent = world.images.bytes_sent(IMAGE);
    assert!(sent < IMAGE_SIZE + IMAGE_SIZE / 8, "fetched on, not again: {sent}");
}

/// Shows F19.
#[tokio::test]
async fn a_wall_clock_that_jumps_ends_neither_download_nor_trial() {
    let (clocks, directory) = (Clocks::new(), tempfile::tempdir().unwrap());
    let checks = directory.path().join("health.d");
    fs::create_dir(&checks).unwrap();
    let go = directory.path().join("go");
    script(&checks.join("10-go"), &format!("until [ -e {} ]; do sleep 0.05; done", go.display()));
    let config = format!("[health]\nscripts = {checks:?}\n");
    let mut world = World::switched_off(Traits::default(), &config, &clocks.daemon()).await;
    world.power_on().await;
    world.half_way().await;
    clocks.set_wall_clock(YEARS);
    world.rig.wait(|status| bytes(status) > 600_000).await;
    clocks.set_wall_clock(-YEARS - 3600);
    world.rig.wait(|status| status["reported"]["firmware"]["slots"]["b"]["state"] == "trial").await;
    clocks.set_wall_clock(YEARS);
    // It is judged by other clocks: after this question it is still on trial.
    let status = world.rig.peek().await.unwrap();
    assert_eq!(status["reported"]["firmware"]["slots"]["b"]["state"], "trial");
    fs::write(go, "").unwrap();
    world.completes().await;
    assert_eq!(world.images.requests(IMAGE), 1, "nobody gave the server up");
}

// ------------------------------------------------------------------------------------------------- dead and odd links

/// A way through this machine that can go dead without a word: what is open stays open, and carries nothing more.
pub struct Relay {
    pub address: SocketAddr,
    deaths: watch::Sender<()>,
}

impl Relay {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, deaths) = (listener.local_addr().unwrap(), watch::Sender::new(()));
        let sender = deaths.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut deaths = sender.subscribe();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(target).await.unwrap();
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = deaths.changed() => {
                            far.shutdown().await.unwrap();
                            // Nothing ends it but its other side.
                            std::future::pending::<()>().await;
                        }
                    }
                });
            }
        });
        Self { address, deaths }
    }

    pub fn go_dead(&self) {
        self.deaths.send_replace(());
    }
}

/// mendersoftware's t/8299, and the half-open connections behind many a NAT.
/// Shows Azure/iot-hub-device-update#336, azure-iot-sdk-c#613, #902, #1074, azure-iot-sdk-java#304,
/// iotedge#5, #5856.
#[tokio::test]
async fn links_that_go_dead_without_a_word_are_left_and_made_anew() {
    let clocks = Clocks::new();
    let mut world = World::switched_off(Traits::default(), PATIENT, &clocks.daemon()).await;
    let to_hub = Relay::to(SocketAddr::from(([127, 0, 0, 1], world.hub.mqtt_port()))).await;
    let to_images = Relay::to(world.images.address()).await;
    // Shorter than a report is waited for: it is the silence that is noticed.
    let relayed = format!("[hub]\nport = {}\nkeep_alive = \"60s\"\n", to_hub.address.port());
    configure(&world.rig, "60-relay.toml", &relayed);
    world.power_on().await;
    world.images.set_faults(IMAGE, slowly());
    let mut payload = world.payload();
    payload["fwPackageUri"] = json!(format!("https://{}/{IMAGE}", to_images.address));
    assert_eq!(world.call("firmwareUpdate", payload).await.0, 200);
    world.rig.wait(|status| bytes(status) > 300_000).await;
    let (sessions, requests) = (world.hub.connects(DEVICE), world.images.requests(IMAGE));
    to_hub.go_dead();
    to_images.go_dead();
    let anew = || world.hub.connects(DEVICE) > sessions && world.images.requests(IMAGE) > requests;
    clocks.pass_until(&world.rig, Duration::from_secs(20), anew).await;
    world.completes().await;
    let log = world.rig.board.log();
    assert!(log.contains("the hub fell silent") && log.contains("the server was silent for"), "{log}");
}

/// No slot is to blame for it.
#[tokio::test]
async fn a_networked_part_that_says_nothing_is_what_is_waited_for() {
    let (clocks, meeting) = (Clocks::new(), Meeting::new());
    // Its connections are taken by the kernel, and by nobody else.
    let _silent = std::os::unix::net::UnixListener::bind(meeting.socket()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let daemon = directory.path().join("daemon");
    let agent = clocks.daemon();
    let line = format!("exec {} \"$@\" --network {}", agent.display(), meeting.socket().display());
    script(&daemon, &line);
    let rig = Rig::running(Choice { daemon: &daemon, extra_config: PATIENT, ..Choice::default() }).await;
    let digest = "00".repeat(32);
    let install = ["install", "http://images.example/2.0.img", "--check-value", &digest, "--no-wait"];
    assert!(rig.twinboot(&install).await.status.success());
    let waits = |status: &Value| {
        clocks.pass(Duration::from_secs(61));
        status["reported"]["firmware"]["fwUpdateSubstatus"] == "Waiting for the server"
    };
    rig.wait(waits).await;
    assert!(!rig.board.log().contains("download interrupted"), "{}", rig.board.log());
}

/// A byte now and then: neither the hub nor an operator is kept waiting.
#[tokio::test]
async fn a_server_that_drips_holds_nothing_up_and_can_be_cancelled() {
    let world = World::new(Traits::default(), "").await;
    world.images.set_faults(IMAGE, Faults { bytes_per_sec: Some(20), ..Faults::default() });
    world.start().await;
    world.rig.wait(|status| bytes(status) > 3).await;
    assert_eq!(world.call("firmwareUpdateStatus", Value::Null).await.0, 200);
    assert_eq!(world.call("cancelFirmwareUpdate", json!({})).await.0, 200);
    let reported = world.wait_status("failed").await;
    assert_eq!(reported["firmware"]["error"]["code"], "Cancelled");
    world.images.set_faults(IMAGE, Faults::default());
    world.start().await;
    world.completes().await;
}

/// rauc/rauc-hawkbit-updater#158, and every hotel: 200, and a page that is no image.
#[tokio::test]
async fn the_page_of_a_captive_portal_is_no_image() {
    let world = World::new(Traits::default(), "").await;
    let plain = ImageServer::start(None).await.unwrap();
    let page = "<html><body>Welcome! Please sign in.</body></html>".repeat(50);
    let before = world.rig.board.environment().unwrap();
    let fails = async |id: &str, size: bool, code: &[&str]| {
        let mut payload = world.payload();
        payload["fwPackageUri"] = json!(plain.url(IMAGE));
        payload["updateId"] = json!(id);
        if !size {
            payload.as_object_mut().unwrap().remove("fwSize");
        }
        assert_eq!(world.call("firmwareUpdate", payload).await.0, 200);
        if id == "meanwhile" {
            world.rig.wait(|status| bytes(status) > 300_000).await;
            plain.put(IMAGE, page.clone());
        }
        let failed = |reported: &Value| {
            reported["firmware"]["updateId"] == id && reported["firmwareStatus"] == "failed"
        };
        let error = world.wait(failed).await["firmware"]["error"].clone();
        assert!(code.contains(&error["code"].as_str().unwrap()), "{id}: {error}");
        assert_eq!(world.rig.board.environment().unwrap(), before, "{id}");
    };
    plain.put(IMAGE, page.clone());
    fails("announced", true, &["SizeMismatch"]).await;
    fails("unannounced", false, &["DigestMismatch"]).await;
    // It takes its place at the first answer that is asked for again.
    let drop = Some(DropFault { after_bytes: 1_000_000, requests: 1 });
    plain.set_faults(IMAGE, Faults { drop, ..slowly() });
    plain.put(IMAGE, board_image("2.0", Traits::default(), IMAGE_BYTES, 7));
    fails("meanwhile", false, &["DigestMismatch", "ImageChanged"]).await;
    // Signed in.
    world.start().await;
    world.completes().await;
}

// ------------------------------------------------------------------------------------------------------- names, ways

/// A daemon that looks names up as a test says: `None` where a user may not do that.
struct Names {
    dir: TempDir,
}

impl Names {
    fn new() -> Option<Self> {
        if !is_root() {
            eprintln!("not run: a mount namespace needs root");
            return None;
        }
        let names = Self { dir: tempfile::tempdir().unwrap() };
        names.know("");
        // Nobody answers there.
        fs::write(names.dir.path().join("resolv.conf"), "nameserver 127.0.0.1\noptions attempts:1\n")
            .unwrap();
        fs::write(names.dir.path().join("nsswitch.conf"), "hosts: files dns\n").unwrap();
        Some(names)
    }

    /// Lines of `/etc/hosts`.
    fn know(&self, lines: &str) {
        fs::write(self.dir.path().join("hosts"), lines).unwrap();
    }

    fn daemon(&self) -> PathBuf {
        let (dir, path) = (self.dir.path().display(), self.dir.path().join("daemon"));
        let mounts = ["hosts", "resolv.conf", "nsswitch.conf"].map(|name| {
            format!("[ -e /etc/{name} ] || : >/etc/{name}; mount --bind {dir}/{name} /etc/{name}; ")
        });
        let line = format!("exec unshare --mount sh -ec '{}exec {DAEMON} \"$@\"' sh \"$@\"", mounts.concat());
        script(&path, &line);
        path
    }
}

const HUB: &str = "hub.field.test";
const IMAGES: &str = "images.field.test";

/// A device whose hub and image server have names, at this address.
async fn named(bind: IpAddr, daemon: &Path) -> (Hub, ImageServer, Rig) {
    let host_names = vec![HUB.to_owned(), IMAGES.to_owned()];
    let options = HubOptions { bind: Some(bind), host_names, ..HubOptions::default() };
    let hub = Hub::start(options).await.unwrap();
    let images = ImageServer::start_at(bind, Some(hub.authority().server_config())).await.unwrap();
    images.put(IMAGE, board_image("2.0", Traits::default(), IMAGE_BYTES, 7));
    let string = hub.add_device(DEVICE);
    assert!(string.contains(HUB), "{string}");
    let ca_pem = Some(hub.ca_pem().to_owned());
    let choice = Choice { hub: Some((string, hub.mqtt_port())), ca_pem, daemon, ..Choice::default() };
    let mut rig = Rig::new(choice);
    rig.board.power_on().await.unwrap();
    (hub, images, rig)
}

async fn install_by_name(rig: &Rig, images: &ImageServer) {
    let uri = format!("https://{IMAGES}:{}/{IMAGE}", images.address().port());
    let check = sha256(&board_image("2.0", Traits::default(), IMAGE_BYTES, 7));
    let started =
        rig.twinboot(&["install", &uri, "--check-value", &check, "--version", "2.0", "--no-wait"]).await;
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
}

async fn completed(hub: &Hub, rig: &Rig) {
    let completed = |reported: &Value| reported["firmwareStatus"] == "completed";
    let waited = hub.wait_reported(DEVICE, LIMIT, completed).await;
    waited.unwrap_or_else(|last| panic!("{last}\n{}", rig.board.log()));
    assert_eq!(rig.board.booted(), Some(Slot::B));
}

#[tokio::test]
async fn names_that_cannot_be_looked_up_are_looked_up_again() {
    let Some(names) = Names::new() else { return };
    let (hub, images, rig) = named("127.0.0.1".parse().unwrap(), &names.daemon()).await;
    rig.wait(|status| status["hubDetail"].as_str().is_some_and(|detail| detail.contains("lookup"))).await;
    install_by_name(&rig, &images).await;
    let waits = |status: &Value| {
        status["reported"]["firmware"]["fwUpdateSubstatus"]
            .as_str()
            .is_some_and(|text| text == "Waiting for the server")
    };
    rig.wait(waits).await;
    assert_eq!((hub.connects(DEVICE), images.requests(IMAGE)), (0, 0));
    names.know(&format!("127.0.0.1 {HUB} {IMAGES}\n"));
    completed(&hub, &rig).await;
}

#[tokio::test]
async fn a_network_without_ipv4_is_enough() {
    let Some(names) = Names::new() else { return };
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_err() {
        return eprintln!("not run: this machine has no IPv6");
    }
    names.know(&format!("::1 {HUB} {IMAGES}\n"));
    let (hub, images, rig) = named(Ipv6Addr::LOCALHOST.into(), &names.daemon()).await;
    rig.wait(|status| status["hubConnected"] == true).await;
    install_by_name(&rig, &images).await;
    completed(&hub, &rig).await;
}

/// Shows Azure/iot-hub-device-update#156, #185, #747, #207; home-assistant: proxy, offline, and
/// balena t/375720.
#[tokio::test]
async fn images_are_fetched_through_a_proxy() {
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = proxy.local_addr().unwrap();
    let asked = watch::Sender::new(Vec::new());
    let tell = asked.clone();
    tokio::spawn(async move {
        while let Ok((near, _)) = proxy.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut near = BufReader::new(near);
                let mut request = String::new();
                while !request.ends_with("\r\n\r\n") {
                    near.read_line(&mut request).await.unwrap();
                }
                let target = request.split(' ').nth(1).unwrap().to_owned();
                tell.send_modify(|asked| asked.push(request.lines().next().unwrap().to_owned()));
                let mut far = TcpStream::connect(target).await.unwrap();
                near.get_mut().write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let _ = copy_bidirectional(near.get_mut(), &mut far).await;
            });
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let daemon = directory.path().join("daemon");
    script(&daemon, &format!("HTTPS_PROXY=http://{address} exec {DAEMON} \"$@\""));
    let mut world = World::switched_off(Traits::default(), "", &daemon).await;
    world.power_on().await;
    world.start().await;
    world.completes().await;
    assert_eq!(*asked.borrow(), [format!("CONNECT {} HTTP/1.1", world.images.address())]);
}

// ---------------------------------------------------------------------------------------------------------- strangers

/// An authority, and servers that it made certificates for.
struct Certificates {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Certificates {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = parameters.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(parameters, key), pem }
    }

    fn server(&self, name: &str, until_year: i32) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::new([name.to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(until_year, 1, 1);
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap()
    }
}

#[tokio::test]
async fn a_server_with_the_certificate_of_another_name_time_or_authority_is_given_nothing() {
    let (ours, others) = (Certificates::new("ours"), Certificates::new("another"));
    for (what, config, words) in [
        ("another name", ours.server("elsewhere.test", 2999), "not valid for name"),
        ("another time", ours.server("127.0.0.1", 2026), "certificate ended at 2026-01-01"),
        ("another authority", others.server("127.0.0.1", 2999), "UnknownIssuer"),
    ] {
        let server = ImageServer::start(Some(config)).await.unwrap();
        server.put(IMAGE, board_image("2.0", Traits::default(), IMAGE_BYTES, 7));
        let string = format!("HostName=127.0.0.1;DeviceId={DEVICE};SharedAccessKey=c2VjcmV0c2VjcmV0c2VjcmV0");
        let choice = Choice {
            hub: Some((string, server.address().port())),
            ca_pem: Some(ours.pem.clone()),
            extra_config: "[install]\nretry_limit = \"1s\"\n",
            ..Choice::default()
        };
        let rig = Rig::running(choice).await;
        rig.wait(|status| status["hubDetail"].as_str().is_some_and(|detail| detail.contains(words))).await;
        let digest = "00".repeat(32);
        let install = ["install", &server.url(IMAGE), "--check-value", &digest, "--no-wait"];
        assert!(rig.twinboot(&install).await.status.success());
        let error = rig.outcome().await["firmware"]["error"].clone();
        assert_eq!(error["code"], "ServerUnreachable", "{what}");
        assert!(error["message"].as_str().unwrap().contains(words), "{what}: {error}");
        assert_eq!((server.requests(IMAGE), rig.board.boots().len()), (0, 1), "{what}");
    }
}

/// As an image of an SD card on two devices does it: each throws the other out.
#[tokio::test]
async fn a_second_device_with_the_same_name_holds_no_update_up() {
    let mut world = World::new(Traits::default(), "").await;
    let choice = Choice {
        hub: Some((world.hub.connection_string(DEVICE).unwrap(), world.hub.mqtt_port())),
        ca_pem: Some(world.hub.ca_pem().to_owned()),
        ..Choice::default()
    };
    let mut twin = Rig::new(choice);
    twin.board.power_on().await.unwrap();
    let thrown_out = |log: String| log.contains("the hub closed the connection");
    world.rig.wait(|_| thrown_out(world.rig.board.log())).await;
    // Whichever is there takes the call; what is asked at the device is done in any case.
    world.rig.install("2.0", Traits::default()).await;
    assert_eq!(world.rig.outcome().await["firmwareStatus"], "completed");
    assert_eq!((world.rig.board.booted(), twin.board.booted()), (Some(Slot::B), Some(Slot::A)));
    world.rig.board.cut().await;
    twin.board.cut().await;
    assert!(world.hub.connects(DEVICE) < 40, "{} sessions", world.hub.connects(DEVICE));
}

// ---------------------------------------------------------------------------------------------------------- processes

#[tokio::test]
async fn a_daemon_that_stood_still_goes_on() {
    let mut world = World::switched_off(Traits::default(), "", Path::new(DAEMON)).await;
    configure(&world.rig, "60-alive.toml", "[hub]\nkeep_alive = \"1s\"\n");
    world.power_on().await;
    world.half_way().await;
    world.rig.signal(Signal::SIGSTOP);
    world.hub.wait_connected(DEVICE, LIMIT, false).await.unwrap();
    world.rig.signal(Signal::SIGCONT);
    world.completes().await;
    assert!(!world.rig.board.log().contains("attempt 2"), "{}", world.rig.board.log());
}

/// Nobody reboots it but its operator, in the end.
#[tokio::test]
async fn a_machine_that_does_not_reboot_is_asked_again_and_again() {
    let clocks = Clocks::new();
    let mut world = World::switched_off(Traits::default(), "", &clocks.daemon()).await;
    configure(&world.rig, "60-reboot.toml", "[system]\nreboot_command = [\"true\"]\n");
    world.power_on().await;
    world.start().await;
    let asked = |rig: &Rig| rig.board.log().matches("asking for the reboot").count();
    let given_up = || world.rig.board.log().contains("leaving it to the watchdog");
    clocks.pass_until(&world.rig, Duration::from_secs(5), given_up).await;
    assert_eq!(asked(&world.rig), 5);
    // As its watchdog does, which is fed no more.
    world.rig.board.kill_daemon().await.unwrap();
    clocks.pass_until(&world.rig, Duration::from_secs(5), || asked(&world.rig) > 5).await;
    assert_eq!(world.rig.board.boots().len(), 1);
    let status = world.rig.peek().await.unwrap();
    assert_eq!(status["reported"]["firmware"]["fwUpdateStatus"], "rebooting");
    world.rig.board.cut().await;
    world.rig.board.power_on().await.unwrap();
    world.completes().await;
}

/// What the kernel's out-of-memory killer does, too.
#[tokio::test]
async fn a_daemon_that_is_killed_at_random_gets_through() {
    let mut world = World::new(Traits::default(), "").await;
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    eprintln!("seed {seed}");
    world.images.set_faults(IMAGE, slowly());
    world.start().await;
    for _ in 0..6 {
        let at = random.u64(0..IMAGE_SIZE);
        let over = |status: &Value| status["reported"]["firmwareStatus"] == "completed";
        let there = |status: &Value| bytes(status) >= at || world.rig.board.boots().len() > 1 || over(status);
        world.rig.wait(there).await;
        world.rig.board.kill_daemon().await.unwrap();
    }
    world.completes().await;
    assert_eq!(world.rig.variable("upgrade_available"), "0", "seed {seed}");
}
