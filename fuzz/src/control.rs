use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use twinboot::control::{Answer, Call, Command, Status, bind, serve};
use twinboot::update::UpdateRequest;

use crate::scratch::Scratch;

/// Longer lines are no commands.
const LINE_BYTES_MAX: usize = 64 * 1024;

thread_local! {
    static DAEMON: Daemon = Daemon::start();
}

/// The local command line's socket: what a client sends until it closes its side.
pub fn control(data: &[u8]) {
    DAEMON.with(|daemon| daemon.hears(data));
}

struct Daemon {
    runtime: Runtime,
    scratch: Scratch,
    /// Dropped, it would end the server.
    _status: watch::Sender<Status>,
}

impl Daemon {
    fn start() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let scratch = Scratch::new();
        let (calls, called) = mpsc::channel(1);
        let (status, statuses) = watch::channel(Status::default());
        runtime.block_on(async {
            let listener = bind(&scratch.path("socket"), "nobody-has-this-group").expect("a socket");
            tokio::spawn(serve(listener, calls, statuses));
            tokio::spawn(answer(called));
        });
        Self { runtime, scratch, _status: status }
    }

    fn hears(&self, data: &[u8]) {
        let answers = self.runtime.block_on(async {
            let stream = UnixStream::connect(self.scratch.path("socket")).await.expect("it listens");
            let (mut read, mut write) = stream.into_split();
            let mut answers = Vec::new();
            let ask = async {
                // It hangs up where it has heard enough.
                let _ = write.write_all(data).await;
                let _ = write.shutdown().await;
            };
            let ((), heard) = tokio::join!(ask, read.read_to_end(&mut answers));
            heard.is_ok().then_some(answers)
        });
        let Some(answers) = answers else { return };
        let lines = answers.split_inclusive(|byte| *byte == b'\n');
        let answers: Vec<Answer> =
            lines.map(|line| serde_json::from_slice(line).expect("an answer is one line of JSON")).collect();
        if let Some(expected) = expected(data) {
            assert_eq!(answers.len(), expected, "each command has its answer: {answers:?}");
        }
    }
}

/// How many answers there must be, where that does not hang on what comes first: the end, or a status.
fn expected(data: &[u8]) -> Option<usize> {
    let mut lines = data.split_inclusive(|byte| *byte == b'\n').peekable();
    lines.clone().all(|line| line.len() < LINE_BYTES_MAX).then_some(())?;
    let watches = |line| matches!(serde_json::from_slice(line), Ok(Command::Watch));
    (!lines.any(watches)).then(|| data.split_inclusive(|byte| *byte == b'\n').count())
}

/// The agent's side.
async fn answer(mut calls: mpsc::Receiver<Call>) {
    while let Some(Call { command, reply }) = calls.recv().await {
        assert!(!matches!(command, Command::Status | Command::Watch), "the server answers these itself");
        let written = serde_json::to_vec(&command).expect("any command can be written");
        serde_json::from_slice::<Command>(&written).expect("what was written is read");
        let message = match &command {
            Command::Install { payload, .. } => match UpdateRequest::from_value(payload) {
                Ok(request) => request.uri,
                Err(refusal) => refusal.message,
            },
            _ => String::new(),
        };
        // The client may be gone.
        let _ = reply.send(Answer::Ok { message, update_id: None });
    }
}
