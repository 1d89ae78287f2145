//! A board with the built daemon, and what a person at the device does with it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use hub_emulator::board::{Board, BoardOptions, Scheme, Traits, board_image};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

/// Generous: two loaded cores may take a while, and a test that passes does not wait.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Large enough for several blocks, small enough to be written in no time.
pub const SLOT_BYTES: u64 = 4 << 20;
pub const IMAGE_BYTES: usize = 3 << 20;

pub const DAEMON: &str = env!("CARGO_BIN_EXE_twinboot");

pub struct Rig {
    pub dir: TempDir,
    pub board: Board,
}

/// What a test chooses.
pub struct Choice<'a> {
    pub scheme: Scheme,
    pub daemon: &'a Path,
    pub hub: Option<(String, u16)>,
    pub ca_pem: Option<String>,
    pub extra_config: &'a str,
}

impl Default for Choice<'_> {
    fn default() -> Self {
        Self {
            scheme: Scheme::Bootcount,
            daemon: Path::new(DAEMON),
            hub: None,
            ca_pem: None,
            extra_config: "",
        }
    }
}

/// Only root mounts, and becomes somebody else.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// An executable that a shell runs.
pub fn script(path: &Path, body: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Compiles `NAME.c`, which stands between a program and the C library, to `NAME.so`.
pub fn interposer(name: &str, directory: &Path) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/e2e/{name}.c"));
    let mut cc = std::process::Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(directory.join(format!("{name}.so")));
    assert!(cc.arg(source).status().unwrap().success());
}

impl Rig {
    /// A board that is not switched on yet.
    pub fn new(choice: Choice<'_>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (connection_string, hub_port) = choice.hub.unzip();
        let board = Board::create(&BoardOptions {
            dir: dir.path().join("board"),
            daemon: choice.daemon.to_owned(),
            scheme: choice.scheme,
            slot_size_bytes: SLOT_BYTES,
            hub_connection_string: connection_string,
            hub_port: hub_port.unwrap_or_default(),
            ca_pem: choice.ca_pem,
            extra_config: choice.extra_config.to_owned(),
        });
        Self { dir, board: board.unwrap() }
    }

    /// A board that runs its factory system from slot a.
    pub async fn running(choice: Choice<'_>) -> Self {
        let mut rig = Self::new(choice);
        rig.board.power_on().await.unwrap();
        rig.wait(|status| status["reported"]["firmwareStatus"] == "standBy").await;
        rig
    }

    /// Writes an image file for `twinboot install`.
    pub fn image(&self, version: &str, traits: Traits) -> PathBuf {
        let path = self.dir.path().join(format!("{version}.img"));
        std::fs::write(&path, board_image(version, traits, IMAGE_BYTES, 7)).unwrap();
        path
    }

    /// Runs a subcommand against the board's daemon.
    pub async fn twinboot(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(DAEMON);
        command.args(arguments).arg("--socket").arg(self.board.control_socket());
        command.stdin(Stdio::null()).kill_on_drop(true);
        tokio::time::timeout(LIMIT, command.output()).await.unwrap().unwrap()
    }

    /// Starts an install and does not follow it.
    pub async fn install(&self, version: &str, traits: Traits) {
        let image = self.image(version, traits);
        let image = image.to_str().unwrap();
        let output = self.twinboot(&["install", image, "--version", version, "--no-wait"]).await;
        assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stderr), self.board.log());
    }

    /// The daemon's status, if it answers.
    pub async fn peek(&self) -> Option<Value> {
        serde_json::from_slice(&self.twinboot(&["status", "--json"]).await.stdout).ok()
    }

    /// The daemon's status, once there is one that satisfies `condition`.
    pub async fn wait(&self, condition: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let satisfied = async {
            loop {
                if let Some(status) = self.peek().await {
                    last = status;
                    if condition(&last) {
                        return;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let in_time = tokio::time::timeout(LIMIT, satisfied).await.is_ok();
        assert!(in_time, "last status {last:#}\n{}\n{}", self.board.log(), self.board.console());
        last
    }

    /// Waits for the end of the update, and gives the report.
    pub async fn outcome(&self) -> Value {
        let ended = |status: &Value| {
            let word = &status["reported"]["firmwareStatus"];
            word == "completed" || word == "failed" || word == "rolledBack"
        };
        self.wait(ended).await["reported"].clone()
    }

    /// To the daemon.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.board.daemon_pid().unwrap()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    pub fn variable(&self, name: &str) -> String {
        self.board.environment().unwrap().get(name).cloned().unwrap_or_default()
    }
}
