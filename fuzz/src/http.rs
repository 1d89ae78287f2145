use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use twinboot::install::fetch::{Clients, Reach, Source, Wanted, content_range, retry_after};
use twinboot::install::validator::Validator;
use twinboot::install::{Limits, Progress};

use crate::part::split;

/// What is fetched of one input.
const FETCHED_BYTES_MAX: u64 = 1 << 20;

/// Where downloads begin and end.
const RANGES: [(u64, Option<u64>); 3] = [(0, None), (0, Some(7)), (3, Some(9))];

/// The header of a redirect.
const REDIRECT: &[u8] = b"location";

/// Image servers: the input as headers, and as the answers of a server, one for each connection.
pub fn http(data: &[u8]) {
    headers(data);
    // A redirect could lead anywhere in the world.
    if data.windows(REDIRECT.len()).any(|window| window.eq_ignore_ascii_case(REDIRECT)) {
        return;
    }
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    for (offset, end) in RANGES {
        fetched(&runtime, data, offset, end);
    }
}

/// `NAME: VALUE` in each line; lines of other kinds, the status above all, are left out.
fn headers(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    let range = content_range(&headers);
    if let Some((part, total)) = &range {
        assert!(part.start < part.end, "a range has bytes");
        assert!(total.is_none_or(|total| part.end <= total), "a range is within the file");
    }
    let _ = retry_after(&headers);
    let validator = Validator::of(&headers, range.and_then(|(_, total)| total));
    assert!(validator.admits(&validator));
    if let Some(condition) = validator.condition() {
        assert!(HeaderValue::from_str(condition).is_ok() && !condition.starts_with("W/"), "{condition:?}");
    }
    let stored = serde_json::to_string(&validator).expect("any validator can be stored");
    assert_eq!(serde_json::from_str::<Validator>(&stored).expect("what was stored is read"), validator);
}

/// Whatever a server says, no byte comes beyond what was asked for or is there, and an end is the end.
fn fetched(runtime: &Runtime, answers: &[u8], offset: u64, end: Option<u64>) {
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let server = serve(listener, answers);
        let client = fetch(format!("http://{address}/image"), offset, end);
        tokio::select! {
            () = client => {}
            () = server => unreachable!("it serves until the client has enough"),
        }
    });
}

async fn serve(listener: TcpListener, mut answers: &[u8]) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        let (answer, rest) = split(answers);
        answers = rest.unwrap_or_default();
        answer_one(&mut stream, answer).await;
    }
}

async fn answer_one(stream: &mut TcpStream, answer: &[u8]) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_buf(&mut request).await {
            Ok(count) if count > 0 => {}
            _ => return,
        }
    }
    // It is gone where this fails.
    let _ = stream.write_all(answer).await;
    let _ = stream.shutdown().await;
}

async fn fetch(uri: String, offset: u64, end: Option<u64>) {
    let clients = Clients::new(Some(PathBuf::from("/nonexistent"))).expect("a client");
    let limits = Limits {
        // A try for each answer, and no waiting between them.
        retry: Duration::from_millis(3),
        stall: Duration::from_secs(5),
        first_pause: Duration::ZERO,
        longest_pause: Duration::ZERO,
        checkpoint: Duration::from_secs(5),
    };
    let (progress, _) = watch::channel(Progress::default());
    let wanted = Wanted { offset, end, ..Wanted::default() };
    let reach = Reach::Direct(Arc::new(clients));
    let Ok(mut source) = Source::open(&uri, None, wanted, &reach, limits, progress).await else { return };
    let mut next = offset;
    loop {
        match source.next().await {
            Err(_) => return,
            Ok(None) => break,
            Ok(Some(bytes)) => {
                assert!(!bytes.is_empty());
                next += bytes.len() as u64;
                assert_eq!(source.offset(), next);
            }
        }
        assert!(source.total_bytes().is_none_or(|total| next <= total), "no more than there is");
        if let (true, Some(end)) = (source.is_part(), end) {
            assert!(next <= end, "no more than was asked for");
        }
        if next > FETCHED_BYTES_MAX {
            return;
        }
    }
    match (source.is_part(), source.total_bytes()) {
        (true, Some(total)) => assert_eq!(next, end.unwrap_or(total).min(total)),
        (false, Some(total)) => assert_eq!(next, total, "all of it"),
        _ => {}
    }
}
