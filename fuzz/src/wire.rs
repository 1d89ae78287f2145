use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use twinboot::network::wire::{
    BODY_MAX_BYTES, Fetched, FromHub, Opening, ToHub, ToStorage, Uploaded, in_one_line, split,
};

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
}

/// What the networked part says, or the agent: frames until the connection ends.
pub fn wire(data: &[u8]) {
    let line = in_one_line(&String::from_utf8_lossy(data));
    assert!(!line.contains(char::is_control) && line.chars().count() <= 500);
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            frames::<Opening>(data).await;
            frames::<ToStorage>(data).await;
            frames::<Uploaded>(data).await;
            frames::<Fetched>(data).await;
            frames::<ToHub>(data).await;
            frames::<FromHub>(data).await;
        });
    });
}

async fn frames<M: Serialize + DeserializeOwned + Debug>(data: &[u8]) {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    let (mut reader, _writer) = split(ours);
    let send = async {
        // It hangs up after a frame that is none.
        let _ = theirs.write_all(data).await;
        let _ = theirs.shutdown().await;
    };
    let receive = async {
        let mut taken = 0;
        while let Ok((message, body)) = reader.next::<M>().await {
            assert!(body.len() <= BODY_MAX_BYTES);
            taken += 8 + body.len();
            assert!(taken <= data.len(), "nothing comes that was not sent");
            written_is_read(&message, &body).await;
        }
        drop(reader);
    };
    tokio::join!(send, receive);
}

async fn written_is_read<M: Serialize + DeserializeOwned + Debug>(message: &M, body: &[u8]) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let ((mut reader, _ours), (_theirs, mut writer)) = (split(ours), split(theirs));
    let (sent, read) = tokio::join!(writer.send(message, body), reader.next::<M>());
    sent.expect("what was taken can be sent");
    let (again, same_body) = read.expect("what was sent is taken");
    assert_eq!(same_body, body);
    let text = |message: &M| serde_json::to_string(message).expect("any message can be written");
    // Of a number with a fraction the parser does not keep the last bit.
    if !text(message).contains(['.', 'e', 'E']) {
        assert_eq!(text(&again), text(message));
    }
}
