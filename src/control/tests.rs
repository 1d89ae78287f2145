use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};

use super::*;
use crate::update::Code;

/// Nothing here takes longer, unless it hangs.
const LIMIT: Duration = Duration::from_secs(20);

/// A served socket, with both ends of what is behind it.
struct Served {
    directory: TempDir,
    calls: mpsc::Receiver<Call>,
    status: watch::Sender<Status>,
    server: JoinHandle<()>,
}

impl Served {
    fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let listener = bind(&directory.path().join("run/control.sock"), "no-such-group").unwrap();
        let (calls_in, calls) = mpsc::channel(1);
        let (status, status_out) = watch::channel(with_summary("standing by"));
        let server = tokio::spawn(serve(listener, calls_in, status_out));
        Self { directory, calls, status, server }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("run/control.sock")
    }

    /// What a client does, on a thread of its own.
    fn client<T: Send + 'static>(&self, work: impl FnOnce(&Path) -> T + Send + 'static) -> JoinHandle<T> {
        let path = self.path();
        spawn_blocking(move || work(&path))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn with_summary(summary: &str) -> Status {
    Status { summary: summary.to_owned(), ..Status::default() }
}

fn failure() -> Failure {
    Failure::new(Code::Busy, "another update is running")
}

async fn limited<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, work).await.expect("done within the limit")
}

#[tokio::test]
async fn a_status_is_answered_without_the_agent() {
    let served = Served::start();
    let answer = served.client(|path| Client::connect(path).unwrap().call(&Command::Status).unwrap());
    assert_eq!(limited(answer).await.unwrap(), Answer::Status(Box::new(with_summary("standing by"))));
}

#[tokio::test]
async fn commands_of_one_connection_reach_the_agent_and_get_its_answers() {
    let mut served = Served::start();
    let client = served.client(|path| {
        let mut client = Client::connect(path).unwrap();
        let cancel = Command::Cancel { update_id: Some("u-1".parse().unwrap()) };
        (client.call(&Command::Commit).unwrap(), client.call(&cancel).unwrap())
    });
    let call = limited(served.calls.recv()).await.unwrap();
    assert_eq!(call.command, Command::Commit);
    call.reply.send(Answer::Ok { message: "committed".to_owned(), update_id: None }).unwrap();
    let call = limited(served.calls.recv()).await.unwrap();
    assert_eq!(call.command, Command::Cancel { update_id: Some("u-1".parse().unwrap()) });
    call.reply.send(Answer::Refused(failure())).unwrap();
    let (first, second) = limited(client).await.unwrap();
    assert_eq!(first, Answer::Ok { message: "committed".to_owned(), update_id: None });
    assert_eq!(second, Answer::Refused(failure()));
}

#[tokio::test]
async fn a_dropped_call_closes_the_connection() {
    let mut served = Served::start();
    let client = served.client(|path| Client::connect(path).unwrap().call(&Command::RollBack));
    drop(limited(served.calls.recv()).await.unwrap());
    assert!(matches!(limited(client).await.unwrap(), Err(ClientError::Closed)));
}

#[tokio::test]
async fn a_watcher_sees_the_present_status_and_then_each_change_until_the_daemon_ends() {
    let served = Served::start();
    let (seen, mut summaries) = mpsc::channel(4);
    let client = served.client(move |path| {
        for status in Client::connect(path).unwrap().watch().unwrap() {
            seen.blocking_send(status.unwrap().summary).unwrap();
        }
    });
    assert_eq!(limited(summaries.recv()).await.unwrap(), "standing by");
    served.status.send_replace(with_summary("downloading"));
    assert_eq!(limited(summaries.recv()).await.unwrap(), "downloading");
    drop(served);
    limited(client).await.unwrap();
}

#[tokio::test]
async fn what_is_no_command_is_refused_and_the_connection_goes_on() {
    let served = Served::start();
    let client = served.client(|path| {
        let mut stream = BufReader::new(UnixStream::connect(path).unwrap());
        let mut lines = String::new();
        stream.get_mut().write_all(b"{\"command\":\"format\"}\n{\"command\":\"status\"}\n").unwrap();
        stream.read_line(&mut lines).unwrap();
        stream.read_line(&mut lines).unwrap();
        lines
    });
    let lines = limited(client).await.unwrap();
    let answers: Vec<Answer> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        matches!(&answers[0], Answer::Refused(Failure { code: Code::InvalidPayload, message })
            if message.contains("unknown variant `format`")),
        "{answers:?}"
    );
    assert!(matches!(&answers[1], Answer::Status(_)), "{answers:?}");
}

#[tokio::test]
async fn a_line_without_end_is_refused_at_the_limit() {
    let served = Served::start();
    let client = served.client(|path| {
        let mut stream = BufReader::new(UnixStream::connect(path).unwrap());
        stream.get_mut().write_all(&[b' '; 64 * 1024]).unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        line
    });
    let line = limited(client).await.unwrap();
    assert!(line.contains("a command is one line of at most 65536 bytes"), "{line}");
}

#[tokio::test]
async fn the_seventeenth_connection_is_turned_away_until_another_ends() {
    let served = Served::start();
    let client = served.client(|path| {
        let mut watchers: Vec<Watch> =
            (0..16).map(|_| Client::connect(path).unwrap().watch().unwrap()).collect();
        for watcher in &mut watchers {
            watcher.next().unwrap().unwrap();
        }
        let refused = Client::connect(path).unwrap().call(&Command::Status).unwrap();
        drop(watchers);
        // The server learns of the closed connections in its own time.
        let served_again = (0..1000).any(|_| {
            let answer = Client::connect(path).unwrap().call(&Command::Status);
            matches!(answer, Ok(Answer::Status(_)))
        });
        (refused, served_again)
    });
    let (refused, served_again) = limited(client).await.unwrap();
    assert!(matches!(refused, Answer::Refused(Failure { code: Code::Busy, .. })), "{refused:?}");
    assert!(served_again);
}

/// A program that another test starts has a copy of the closed socket from its fork to its exec.
async fn bound_when_free(path: &Path) -> UnixListener {
    loop {
        match bind(path, "no-such-group") {
            Err(BindError::InUse { .. }) => tokio::task::yield_now().await,
            bound => return bound.unwrap(),
        }
    }
}

#[tokio::test]
async fn the_socket_is_for_owner_and_group_and_replaces_a_stale_one() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("control.sock");
    drop(bind(&path, "no-such-group").unwrap());
    assert!(path.exists(), "a closed socket leaves its file");
    let _listener = limited(bound_when_free(&path)).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    assert!(matches!(bind(&path, "no-such-group"), Err(BindError::InUse { .. })));
}

#[tokio::test]
async fn a_file_that_is_no_socket_is_left_alone() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("control.sock");
    std::fs::File::create(&path).unwrap().write_all(b"precious").unwrap();
    assert!(matches!(bind(&path, "no-such-group"), Err(BindError::NotASocket { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[test]
fn the_lines_of_the_protocol_are_these() {
    let line = |command: &Command| serde_json::to_string(command).unwrap();
    assert_eq!(line(&Command::Status), r#"{"command":"status"}"#);
    assert_eq!(line(&Command::Watch), r#"{"command":"watch"}"#);
    assert_eq!(line(&Command::RollBack), r#"{"command":"rollBack"}"#);
    let cancel = Command::Cancel { update_id: None };
    assert_eq!(line(&cancel), r#"{"command":"cancel","updateId":null}"#);
    assert_eq!(serde_json::from_str::<Command>(r#"{"command":"cancel"}"#).unwrap(), cancel);
    let install = Command::Install { payload: Value::Null, force: true };
    assert_eq!(line(&install), r#"{"command":"install","payload":null,"force":true}"#);
    let refused = Answer::Refused(failure());
    let text = r#"{"answer":"refused","code":"Busy","message":"another update is running"}"#;
    assert_eq!(serde_json::to_string(&refused).unwrap(), text);
    assert_eq!(serde_json::from_str::<Answer>(text).unwrap(), refused);
}

#[test]
fn who_cannot_reach_the_daemon_is_told_what_to_do() {
    let directory = TempDir::new().unwrap();
    let error = Client::connect(&directory.path().join("none")).expect_err("nobody listens");
    assert!(matches!(error, ClientError::Connect { .. }), "{error:?}");
    assert_eq!(error.advice(), "is it running? `systemctl status twinboot`");
}
