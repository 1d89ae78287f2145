//! The way to the hub.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use hub_emulator::hub::{Hub, HubOptions};
use twinboot::control::{self, Status};

use crate::board::{Board, put};

fn with_hub(connection_string: &str, hub: &Hub) -> Board {
    let mut board = Board::new();
    put(&board.path("secret"), connection_string);
    fs::set_permissions(board.path("secret"), Permissions::from_mode(0o600)).unwrap();
    put(&board.path("ca.pem"), hub.ca_pem());
    let port = hub.mqtt_port();
    board.config.push_str(&format!(
        "[hub]\nconnection_string_file = \"DIR/secret\"\nca_file = \"DIR/ca.pem\"\nport = {port}\n"
    ));
    board
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_is_reached_or_the_step_that_fails_is_named() {
    let hub = Hub::start(HubOptions::default()).await.unwrap();
    let string = hub.add_device("gateway-1");
    let board = with_hub(&string, &hub);
    board.finds("hub.session", "ok", "took device gateway-1");

    let other = string.replace("SharedAccessKey=", "SharedAccessKey=AAAA");
    with_hub(&other, &hub).finds("hub.login", "fault", "check its key or certificate");
    let unknown = string.replace("HostName=localhost", "HostName=no-such-hub.invalid");
    with_hub(&unknown, &hub).finds("hub.lookup", "fault", "no-such-hub.invalid");

    let mut closed = with_hub(&string, &hub);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    closed.configure(&format!("port = {}", hub.mqtt_port()), &format!("port = {port}"));
    closed.finds("hub.connect", "fault", "refused");

    let stranger = Hub::start(HubOptions::default()).await.unwrap();
    put(&board.path("ca.pem"), stranger.ca_pem());
    board.finds("hub.tls", "fault", "certificate");
    put(&board.path("ca.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    board.finds("hub.credentials", "fault", "ca.pem");
}

/// A second session would throw the daemon out.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_daemon_is_asked_and_its_hub_left_alone() {
    let hub = Hub::start(HubOptions::default()).await.unwrap();
    let board = with_hub(&hub.add_device("gateway-1"), &hub);
    let listener = control::bind(&board.path("control.sock"), "no-such-group").unwrap();
    let (calls, _unheard) = tokio::sync::mpsc::channel(1);
    let status = |connected| Status {
        summary: "standing by".to_owned(),
        hub_connected: connected,
        hub_detail: "the cable is out".to_owned(),
        ..Status::default()
    };
    let (sender, statuses) = tokio::sync::watch::channel(status(false));
    let server = tokio::spawn(control::serve(listener, calls, statuses));
    board.finds("hub.session", "fault", "the cable is out");
    sender.send_replace(status(true));
    board.finds("hub.session", "ok", "the daemon is connected");
    board.finds("machine.daemon", "ok", "standing by");
    assert!(hub.history("gateway-1").is_empty());
    // What the daemon decides about is left to it.
    board.variables("upgrade_available=1\n");
    let advice = board.finds("environment.trial", "warning", "on trial");
    assert!(advice.contains("twinboot commit"), "{advice}");
    board.is_not_fixed("environment.trial");
    server.abort();
}
