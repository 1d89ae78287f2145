//! Keys, programs, and the configuration with its secrets.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use crate::board::{Board, beside, put};

#[test]
fn keys_and_programs_that_others_can_change() {
    let mut board = Board::new();
    board.configure("[install]", "[install]\ncheck = \"signature\"");
    board.finds("trust.keys", "fault", "holds no key");
    board.configure("\"signature\"", "\"optional\"");
    board.finds("trust.keys", "warning", "any image is taken");
    put(&board.path("keys/release.pub"), "no key\n");
    board.finds("trust.keys", "fault", "release.pub");
    board.finds("trust.key-files", "ok", "");
    fs::set_permissions(board.path("keys/release.pub"), Permissions::from_mode(0o666)).unwrap();
    board.finds("trust.key-files", "fault", "release.pub");
    put(&board.path("hooks.d/before-reboot/10-line"), "#!/bin/sh\n");
    fs::set_permissions(board.path("hooks.d/before-reboot/10-line"), Permissions::from_mode(0o777)).unwrap();
    board.finds("trust.programs", "fault", "10-line");
}

#[test]
fn a_configuration_with_faults_and_a_secret_for_everyone() {
    let mut board = Board::new();
    board.config.push_str("[hub]\nconnection_string_file = \"DIR/secret\"\n");
    let secret = "HostName=localhost;DeviceId=gateway-1;SharedAccessKey=c2VjcmV0c2VjcmV0c2VjcmV0";
    put(&board.path("secret"), secret);
    fs::set_permissions(board.path("secret"), Permissions::from_mode(0o644)).unwrap();
    board.finds("configuration.secrets", "fault", "mode 644");
    board.finds("configuration.valid", "fault", "every user");
    // The rest is looked at all the same; that there is no hub is not said.
    board.finds("slots.distinct", "ok", "apart");
    assert!(!board.checks().contains_key("hub.session"));
    board.is_fixed("configuration.secrets");
    assert_eq!(fs::metadata(board.path("secret")).unwrap().permissions().mode() & 0o777, 0o640);
    board.configure("scheme = \"bootcount\"", "scheme = \"grub\"");
    let advice = board.finds("configuration.valid", "fault", "boot.scheme");
    assert!(advice.contains("\"rauc\""), "{advice}");
}

const STRING: &str = "HostName=127.0.0.1;DeviceId=gateway-1;SharedAccessKey=c2VjcmV0c2VjcmV0c2VjcmV0";

/// A board with the secret where the service looks for it, once its `etc` is this machine's.
fn with_usual_secret(hub: &str) -> Option<Board> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not run: mounts need root");
        return None;
    }
    let mut board = Board::new();
    board.config.push_str(&format!("[hub]\nport = 1\n{hub}"));
    for secret in ["etc/twinboot/connection-string", "secret"] {
        put(&board.path(secret), STRING);
        fs::set_permissions(board.path(secret), Permissions::from_mode(0o600)).unwrap();
    }
    Some(board)
}

const ETC: &str = "mount --bind $dir/etc /etc";

#[test]
fn a_bare_hub_is_right_from_a_shell_too() {
    let Some(board) = with_usual_secret("") else { return };
    let checks = beside(&board, ETC);
    assert_eq!(checks["configuration.valid"].0, "ok", "{checks:#?}");
    let secrets = &checks["configuration.secrets"];
    assert!(secrets.0 == "ok" && secrets.1.starts_with("/etc/twinboot/connection-string "), "{secrets:?}");
    assert!(checks["hub.credentials"].1.starts_with("127.0.0.1:1: "), "{checks:#?}");
}

#[test]
fn a_secret_that_is_named_while_the_service_is_handed_another_one() {
    let Some(board) = with_usual_secret("connection_string_file = \"DIR/secret\"\n") else { return };
    let checks = beside(&board, ETC);
    let (level, evidence, advice) = &checks["configuration.network"];
    assert!(level == "warning" && evidence.contains("handed /etc/twinboot/connection-string"), "{checks:#?}");
    assert!(advice.contains("`LoadCredential=connection-string:/"), "{advice}");
    // One file by two names, as where the root filesystem is replaced.
    let one = format!("ln -sf $dir/secret $dir/etc/twinboot/connection-string; {ETC}");
    let checks = beside(&board, &one);
    assert!(!checks.contains_key("configuration.network"), "{checks:#?}");
}

/// Whoever may put a link there chooses which file `--fix` changes.
#[test]
fn a_secret_by_a_path_of_others_is_not_touched() {
    let mut board = Board::new();
    board.config.push_str("[hub]\nconnection_string_file = \"DIR/open/secret\"\n");
    put(&board.path("precious"), "for everyone to read");
    fs::create_dir(board.path("open")).unwrap();
    std::os::unix::fs::symlink(board.path("precious"), board.path("open/secret")).unwrap();
    for (path, mode) in [("precious", 0o644), ("open", 0o777)] {
        fs::set_permissions(board.path(path), Permissions::from_mode(mode)).unwrap();
    }
    let json = board.json(&["--fix"]);
    assert!(json["repairs"][0]["done"] == false, "{json:#}");
    assert_eq!(fs::metadata(board.path("precious")).unwrap().permissions().mode() & 0o777, 0o644);
}

/// A fragment by another name is not silently left out.
/// Shows coreos/zincati#498, #1160.
#[test]
fn a_drop_in_that_is_not_read() {
    let board = Board::new();
    put(&board.path("config.d/50-hub.toml"), "[hooks]\nlimit = \"1m\"\n");
    board.finds("configuration.valid", "ok", "");
    put(&board.path("config.d/50-hub.yaml"), "hub:\n");
    let advice = board.finds("configuration.drop-ins", "warning", "50-hub.yaml is not read");
    assert!(advice.contains("`.toml`"), "{advice}");
}
