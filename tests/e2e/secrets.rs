//! Known secrets, given to the built daemon in every way there is, and looked for wherever it writes or speaks.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use hub_emulator::board::{Traits, board_image};
use hub_emulator::hub::{Hub, HubOptions};
use hub_emulator::images::ImageServer;
use serde_json::{Value, json};

use crate::cloud::{DEVICE, IMAGE, World, sha256};
use crate::rig::{Choice, DAEMON, IMAGE_BYTES, LIMIT, Rig, script};

/// In a link's query, before its host, in a proxy's address, and in what a hook says.
const WORDS: [&str; 4] = ["s1gH1dden%2BqueRy", "passw0rdH1dden", "pr0xyH1dden", "b3arerH1dden"];

/// Everything that the daemon has said and kept, each with its place.
struct Found(Vec<(String, String)>);

impl Found {
    fn add(&mut self, place: impl Into<String>, text: impl Into<String>) {
        self.0.push((place.into(), text.into()));
    }

    /// What people see, and what is on disk. What others were told comes besides.
    async fn on(rig: &Rig) -> Self {
        let mut found = Self(Vec::new());
        found.add("log", rig.board.log());
        found.add("console", rig.board.console());
        found.add("environment", format!("{:?}", rig.board.environment().unwrap()));
        for arguments in [["status", "--json"].as_slice(), &["status"], &["slots"]] {
            let output = rig.twinboot(arguments).await;
            found.add(arguments.join(" "), lossy(&[output.stdout, output.stderr].concat()));
        }
        for command in ["doctor", "check-config"] {
            let output =
                Command::new(DAEMON).arg(command).arg("--config").arg(rig.board.config_path()).output();
            let output = output.unwrap();
            found.add(command, lossy(&[output.stdout, output.stderr].concat()));
        }
        let bundle = Command::new(DAEMON)
            .args(["diagnostics", "--output", "-", "--config"])
            .arg(rig.board.config_path())
            .output()
            .unwrap();
        assert!(bundle.status.success(), "{}", lossy(&bundle.stderr));
        found.add_archive(&bundle.stdout);
        for name in ["state", "run"] {
            found.add_files(&rig.board.dir().join(name));
        }
        found
    }

    fn add_archive(&mut self, bytes: &[u8]) {
        let mut text = String::new();
        let mut packed = Command::new("gzip");
        let mut child = packed
            .arg("-dc")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let (mut stdin, bytes) = (child.stdin.take().unwrap(), bytes.to_vec());
        let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &bytes).unwrap());
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        writer.join().unwrap();
        child.wait().unwrap();
        assert!(text.contains("twinboot-diagnostics/state/state"), "there is something to search");
        self.add("diagnostics", text);
    }

    fn add_files(&mut self, directory: &Path) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                self.add_files(&path);
            } else if path.is_file() {
                self.add(path.display().to_string(), lossy(&fs::read(&path).unwrap()));
            }
        }
    }

    fn assert_without(&self, secrets: &[String]) {
        assert!(self.0.len() > 8);
        for (place, text) in &self.0 {
            for secret in secrets {
                let at = text.find(secret.as_str());
                let around = at.map(|at| text.get(at.saturating_sub(200)..at).unwrap_or_default());
                assert!(at.is_none(), "{place} has {secret} after {}", around.unwrap_or_default());
            }
        }
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn words() -> Vec<String> {
    WORDS.map(str::to_owned).to_vec()
}

/// An address with a secret wherever one may stand.
fn secret_url(images: &ImageServer, name: &str) -> String {
    let [query, password, ..] = WORDS;
    let url = images.url(name).replacen("://", &format!("://user:{password}@"), 1);
    format!("{url}?sv=1&sig={query}")
}

/// Shows hub.mender.io t/8299.
#[tokio::test]
async fn no_secret_of_a_device_with_a_key_is_anywhere_after_an_update_a_failure_and_the_diagnostics() {
    let [_, _, proxy, bearer] = WORDS;
    let directory = tempfile::tempdir().unwrap();
    let hook = directory.path().join("before-install/10-token");
    fs::create_dir(hook.parent().unwrap()).unwrap();
    // The first update is let through, and what is said of the second one is told.
    let body = format!(
        "printf '%s\\n' \"$TWINBOOT_URI\" >>{0}/seen\necho 'Authorization: Bearer {bearer}'\n[ \"$TWINBOOT_VERSION\" != 4.0 ]",
        directory.path().display()
    );
    script(&hook, &body);
    let daemon = directory.path().join("daemon");
    // Nobody listens there: what must go through the proxy fails, with words about it.
    let wrapper = format!(
        "export HTTPS_PROXY=http://user:{proxy}@127.0.0.1:9 NO_PROXY=localhost,127.0.0.1\nexec {DAEMON} \"$@\" --verbose"
    );
    script(&daemon, &wrapper);
    let config = format!("[hooks]\ndirectory = {:?}\n[install]\nretry_limit = \"1s\"\n", directory.path());
    let mut world = World::switched_off(Traits::default(), &config, &daemon).await;
    world.power_on().await;
    let plain = ImageServer::start(None).await.unwrap();
    let image = board_image("2.0", Traits::default(), IMAGE_BYTES, 7);
    plain.put(IMAGE, image.clone());
    let call = |uri: String, version: &str| json!({"fwPackageUri": uri, "fwPackageCheckValue": sha256(&image), "fwVersion": version, "updateId": version});
    let status = |wanted: &'static str, id: &'static str| {
        move |reported: &Value| reported["firmwareStatus"] == wanted && reported["firmware"]["updateId"] == id
    };
    assert_eq!(world.call("firmwareUpdate", call(secret_url(&plain, IMAGE), "2.0")).await.0, 200);
    world.wait(status("completed", "2.0")).await;
    let [query, password, ..] = WORDS;
    let proxied = format!("https://user:{password}@images.example/{IMAGE}?sv=1&sig={query}");
    assert_eq!(world.call("firmwareUpdate", call(proxied, "3.0")).await.0, 200);
    let failed = world.wait(status("failed", "3.0")).await;
    assert_eq!(failed["firmware"]["error"]["code"], "ServerUnreachable", "{failed:#}");
    assert_eq!(world.call("firmwareUpdate", call(secret_url(&plain, IMAGE), "4.0")).await.0, 200);
    let failed = world.wait(status("failed", "4.0")).await;
    assert_eq!(failed["firmware"]["error"]["code"], "HookRefused", "{failed:#}");
    let (_, shown) = world.call("firmwareUpdateStatus", Value::Null).await;
    let (_, doctor) = world.call("doctor", Value::Null).await;
    assert_eq!(world.call("uploadDiagnostics", Value::Null).await.0, 202);
    world.rig.wait(|_| world.hub.uploads(DEVICE).iter().any(|upload| upload.notification.is_some())).await;

    let mut found = Found::on(&world.rig).await;
    for (place, value) in [("twin", world.hub.twin(DEVICE)), ("status call", shown), ("doctor call", doctor)]
    {
        found.add(place, value.to_string());
    }
    found.add("history", Value::from(world.hub.history(DEVICE)).to_string());
    found.add_archive(&world.hub.uploads(DEVICE).remove(0).bytes.unwrap());
    found.add("hooks", fs::read_to_string(directory.path().join("seen")).unwrap());
    let string = fs::read_to_string(world.rig.board.dir().join("connection-string")).unwrap();
    let key = string.trim().split("SharedAccessKey=").nth(1).unwrap().to_owned();
    assert!(key.len() > 30);
    found.assert_without(&[words(), vec![key]].concat());
}

#[tokio::test]
async fn no_line_of_a_devices_private_key_is_anywhere() {
    let hub = Hub::start(HubOptions::default()).await.unwrap();
    let (certificate, key) = hub.add_x509_device(DEVICE).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode: u32| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        path
    };
    let config = format!(
        "[hub]\nhost_name = \"localhost\"\ndevice_id = \"{DEVICE}\"\ncertificate_file = {:?}\nkey_file = {:?}\n\
         ca_file = {:?}\nport = {}\nhttps_port = {}\n",
        file("device.pem", &certificate, 0o644),
        file("device.key", &key, 0o600),
        file("ca.pem", hub.ca_pem(), 0o644),
        hub.mqtt_port(),
        hub.https_port(),
    );
    let rig = Rig::running(Choice { extra_config: &config, ..Choice::default() }).await;
    rig.wait(|status| status["hubConnected"] == true).await;
    rig.install("2.0", Traits::default()).await;
    let completed = |reported: &Value| reported["firmwareStatus"] == "completed";
    hub.wait_reported(DEVICE, LIMIT, completed).await.unwrap();
    let mut found = Found::on(&rig).await;
    found.add("twin", hub.twin(DEVICE).to_string());
    let lines = key.lines().filter(|line| !line.starts_with("---")).map(str::to_owned);
    let lines: Vec<String> = lines.collect();
    assert!(!lines.is_empty());
    found.assert_without(&lines);
}
