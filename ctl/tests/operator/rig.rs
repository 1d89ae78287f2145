//! A hub, and an operator at a workstation.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use hub_emulator::hub::{Hub, HubOptions};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::Notify;
use tokio::time::timeout;

/// Generous: two loaded cores may take a while, and a test that passes does not wait.
pub const LIMIT: Duration = Duration::from_secs(60);

pub const TOOL: &str = env!("CARGO_BIN_EXE_twinbootctl");

pub struct Rig {
    pub hub: Hub,
    pub dir: TempDir,
}

/// A way to the hub that can be cut: what is under way on it ends.
pub struct Way {
    pub connection_string: String,
    cut: Arc<Notify>,
}

impl Way {
    pub async fn to(hub: &Hub) -> Self {
        let listener = TcpListener::bind(("localhost", 0)).await.unwrap();
        let (port, far_port) = (listener.local_addr().unwrap().port(), hub.https_port());
        let connection_string =
            hub.service_connection_string().replace(&far_port.to_string(), &port.to_string());
        let cut = Arc::new(Notify::new());
        let of_all = cut.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let cut = of_all.clone();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(("localhost", far_port)).await.unwrap();
                    tokio::select! { _ = copy_bidirectional(&mut near, &mut far) => {}, () = cut.notified() => {} }
                });
            }
        });
        Self { connection_string, cut }
    }

    pub fn cut(&self) {
        self.cut.notify_waiters();
    }
}

/// What a run of the tool came to.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Rig {
    pub async fn new() -> Self {
        let hub = Hub::start(HubOptions::default()).await.unwrap();
        let rig = Self { hub, dir: tempfile::tempdir().unwrap() };
        std::fs::write(rig.ca_file(), rig.hub.ca_pem()).unwrap();
        rig
    }

    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// The tool with the hub's credentials in its environment, and nothing else of ours.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(TOOL);
        command
            .args(arguments)
            .env_clear()
            .env("HOME", self.dir.path())
            .env("IOTHUB_CONNECTION_STRING", self.hub.service_connection_string())
            .env("TWINBOOTCTL_CA_FILE", self.ca_file())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    pub async fn run(&self, arguments: &[&str]) -> Run {
        run(self.command(arguments)).await
    }

    /// Runs it, and reads its output as JSON lines.
    pub async fn events(&self, arguments: &[&str]) -> (i32, Vec<Value>) {
        let run = self.run(arguments).await;
        let events = run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (run.code, events)
    }
}

/// A tool that runs, line by line.
pub struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    pub fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Waits for the next line, which is to be this one.
    pub async fn says(&mut self, expected: &str) {
        let line = timeout(LIMIT, self.lines.next_line()).await.unwrap().unwrap();
        assert_eq!(line.as_deref(), Some(expected));
    }

    /// Waits for the next line, whatever it is.
    pub async fn says_something(&mut self) {
        assert!(timeout(LIMIT, self.lines.next_line()).await.unwrap().unwrap().is_some());
    }

    /// Waits for its end, whatever it says until then.
    pub async fn ends(mut self) -> i32 {
        let end = async {
            while self.lines.next_line().await.unwrap().is_some() {}
            self.child.wait().await.unwrap()
        };
        timeout(LIMIT, end).await.unwrap().code().unwrap()
    }

    /// Waits for its end, which is to come without a word.
    pub async fn exits(mut self) -> i32 {
        assert_eq!(timeout(LIMIT, self.lines.next_line()).await.unwrap().unwrap(), None);
        timeout(LIMIT, self.child.wait()).await.unwrap().unwrap().code().unwrap()
    }
}

pub async fn run(mut command: Command) -> Run {
    let output: Output = timeout(LIMIT, command.output()).await.unwrap().unwrap();
    Run {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}
