//! `hub-emulator serve` as somebody at a terminal meets it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

/// Far more than it takes.
const LIMIT: Duration = Duration::from_secs(30);

fn serve(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hub-emulator"));
    command.current_dir(directory).args([
        "serve",
        "--mqtt-port",
        "0",
        "--https-port",
        "0",
        "--state",
        "state",
    ]);
    command.args(["--devices", "5", "--enrollment-group", "fleet", "--host-name", "hub.lab"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    command
}

/// Serves until it is up, and ends it as a service manager would. Returns what it printed.
async fn once(directory: &Path) -> Vec<String> {
    let mut hub = serve(directory).spawn().unwrap();
    let mut lines = BufReader::new(hub.stdout.take().unwrap()).lines();
    let mut printed = Vec::new();
    while let Some(line) = timeout(LIMIT, lines.next_line()).await.unwrap().unwrap() {
        let up = line.contains("Ctrl-C");
        printed.push(line);
        if up {
            break;
        }
    }
    kill(Pid::from_raw(hub.id().unwrap().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert!(timeout(LIMIT, hub.wait()).await.unwrap().unwrap().success());
    printed
}

#[tokio::test]
async fn a_kept_hub_comes_back_with_its_keys_and_devices() {
    let directory = tempfile::tempdir().unwrap();
    let read = |name| std::fs::read_to_string(directory.path().join(name)).unwrap();
    let secrets = |printed: Vec<String>| {
        let tails = printed.iter().filter_map(|line| line.split_once("Key=").or(line.split_once("fleet: ")));
        tails.map(|(_, tail)| tail.to_owned()).collect::<Vec<_>>()
    };
    let first = secrets(once(directory.path()).await);
    let (devices, authority) = (read("state/devices.txt"), read("hub-emulator-ca.pem"));
    assert_eq!(devices.lines().count(), 5);
    assert!(
        devices.lines().last().unwrap().starts_with("HostName=hub.lab;DeviceId=device-0005;"),
        "{devices}"
    );
    // Five policies, three devices, the provisioning service's policy, the group.
    assert_eq!(first.len(), 10, "{first:?}");

    assert_eq!(secrets(once(directory.path()).await), first);
    assert_eq!((read("state/devices.txt"), read("hub-emulator-ca.pem")), (devices, authority));
}

#[tokio::test]
async fn what_is_wrong_is_said_in_a_line() {
    let directory = tempfile::tempdir().unwrap();
    let mut hub = serve(directory.path());
    let output = hub.args(["--x509-ca", "missing.pem"]).stderr(Stdio::piped()).output();
    let output = timeout(LIMIT, output).await.unwrap().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said, "hub-emulator: read missing.pem: No such file or directory (os error 2)\n");
}
