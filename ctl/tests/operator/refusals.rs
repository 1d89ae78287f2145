//! What goes wrong, in the operator's words, each with its exit code, and never with the key.

use serde_json::json;

use crate::device::{Device, standing_by, takes_all};
use crate::rig::{Rig, run};

const UPDATE: [&str; 4] = ["update", "gateway-1", "--uri", "https://images.example/2.0.img?sig=c2VjcmV0"];

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_unknown_offline_or_unwilling_is_told_apart() {
    let rig = Rig::new().await;
    let run = rig.run(&UPDATE).await;
    assert_eq!(run.code, 8, "{run:?}");
    assert_eq!(run.stderr, "twinbootctl: there is no device `gateway-1` on this hub\n");
    rig.hub.add_device("gateway-1");
    let run = rig.run(&UPDATE).await;
    assert_eq!(run.code, 9, "{run:?}");
    assert!(run.stderr.starts_with("twinbootctl: device `gateway-1` is offline; "), "{run:?}");
    let busy = |_: &str, _: &serde_json::Value| {
        (409, json!({"error": {"code": "Busy", "updateId": "u-1", "message": "update `u-1` is running"}}))
    };
    let _device = Device::online(&rig, "gateway-1", standing_by(), busy).await;
    let run = rig.run(&UPDATE).await;
    assert_eq!(run.code, 6, "{run:?}");
    assert_eq!(run.stderr, "twinbootctl: device `gateway-1` refuses: Busy: update `u-1` is running (409)\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_cannot_be_asked_is_said_to_be_so() {
    let rig = Rig::new().await;
    let with = |name: &str, value: &str| {
        let mut command = rig.command(&["twin", "gateway-1"]);
        command.env(name, value);
        command
    };
    let string = rig.hub.service_connection_string();
    let key = string.split_once("SharedAccessKey=").unwrap().1.to_owned();
    let other_key = "a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=";
    let file = rig.dir.path().join("string");
    std::fs::write(&file, &string).unwrap();
    let file = file.to_str().unwrap();

    let wrong_key = with("IOTHUB_CONNECTION_STRING", &string.replace(&key, other_key));
    let wrong_ca = with("TWINBOOTCTL_CA_FILE", "/etc/hostname");
    let nobody = with("IOTHUB_CONNECTION_STRING", &string.replace(&rig.hub.https_port().to_string(), "1"));
    let garbage = with("IOTHUB_CONNECTION_STRING", &format!("HostName=h;{key}"));
    let other_ca = hub_emulator::ca::Authority::new().unwrap();
    let ca_file = rig.dir.path().join("other.pem");
    std::fs::write(&ca_file, other_ca.pem()).unwrap();
    let other_ca = with("TWINBOOTCTL_CA_FILE", ca_file.to_str().unwrap());
    let none = with("IOTHUB_CONNECTION_STRING", "");
    let public = rig.command(&["twin", "gateway-1", "--connection-string-file", file]);
    let address = rig.command(&["update", "gateway-1", "--uri", "images.example/2.img"]);
    let table = [
        (wrong_key, 7, "not authorised"),
        (wrong_ca, 2, "no certificate in /etc/hostname"),
        (other_ca, 3, "has a certificate that is not trusted here"),
        (nobody, 3, "cannot reach the hub localhost:1"),
        (garbage, 2, "has no SharedAccessKeyName"),
        (none, 2, "set IOTHUB_CONNECTION_STRING"),
        (public, 2, "every user of this machine can read"),
        (address, 2, "fwPackageUri"),
    ];
    for (command, code, words) in table {
        let run = run(command).await;
        assert_eq!(run.code, code, "{run:?}");
        assert!(run.stderr.contains(words), "{run:?}");
        assert!(!run.stderr.contains(&key) && !run.stderr.contains(other_key), "{run:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_throttles_is_asked_again_later() {
    let rig = Rig::new().await;
    rig.hub.add_device("gateway-1");
    rig.hub.throttle(None, 1);
    let run = rig.run(&["twin", "gateway-1"]).await;
    assert_eq!(run.code, 0, "{run:?}");
    assert!(
        run.stderr.starts_with("twinbootctl: the hub throttles these calls; trying again in "),
        "{run:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_seen_enough_ends_a_list_and_nothing_else() {
    let rig = Rig::new().await;
    let _device = Device::online(&rig, "gateway-1", standing_by(), takes_all).await;
    let table = [
        (&["devices"][..], 0),
        (&["twin", "gateway-1"], 0),
        (&["job", "list"], 0),
        (&["cancel", "gateway-1"], 1),
        (&["watch", "gateway-1"], 1),
        (&UPDATE, 1),
    ];
    for (arguments, code) in table {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let status = rig.command(arguments).stdout(writer).status().await.unwrap();
        assert_eq!(status.code(), Some(code), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_settings_may_be_in_files() {
    use std::os::unix::fs::PermissionsExt as _;
    let rig = Rig::new().await;
    rig.hub.add_device("gateway-1");
    let secret = rig.dir.path().join("string");
    std::fs::write(&secret, rig.hub.service_connection_string()).unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    let config = rig.dir.path().join(".config/twinbootctl");
    std::fs::create_dir_all(&config).unwrap();
    let text = format!("connection_string_file = {secret:?}\nca_file = {:?}\n", rig.ca_file());
    std::fs::write(config.join("config.toml"), text).unwrap();
    let mut command = rig.command(&["twin", "gateway-1"]);
    command.env_remove("IOTHUB_CONNECTION_STRING").env_remove("TWINBOOTCTL_CA_FILE");
    let done = run(command).await;
    assert_eq!(done.code, 0, "{done:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn help_completions_and_manual_need_no_hub() {
    let rig = Rig::new().await;
    for (arguments, expected) in [
        (&["--help"][..], "Exit codes:"),
        (&["update", "--help"], "--check-file"),
        (&["completions", "bash"], "complete -F"),
        (&["completions", "fish"], "twinbootctl"),
        (&["man"], ".TH twinbootctl"),
    ] {
        let mut command = rig.command(arguments);
        command.env_remove("IOTHUB_CONNECTION_STRING");
        let run = run(command).await;
        assert_eq!(run.code, 0, "{run:?}");
        assert!(run.stdout.contains(expected), "{run:?}");
        assert!(!run.stdout.contains('\u{1b}'), "no colours without a terminal");
    }
}
