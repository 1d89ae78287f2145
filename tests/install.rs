//! Installs into real files and loop devices, from a real HTTP server that misbehaves as told.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "what goes wrong here fails the test"
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::sync::watch;
use twinboot::config::Config;
use twinboot::install::slot::{BlockDevice, SlotDevice};
use twinboot::install::verify::{ImageCheck, Trust};
use twinboot::install::{Device, ImageSpec, Job, Limits, Outcome, Phase, Progress, install, install_to};
use twinboot::network::serve::Network;
use twinboot::update::{Code, Sha256Digest};

// ---------------------------------------------------------------------------------------------- the server

#[derive(Clone, Debug)]
struct Request {
    path: String,
    headers: BTreeMap<String, String>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Where `Range: bytes=START-` begins.
    fn start(&self) -> usize {
        let range = self.header("range").unwrap_or("bytes=0-");
        range.trim_start_matches("bytes=").split('-').next().unwrap().parse().unwrap()
    }
}

/// What is sent; then the connection is closed, or left open and silent.
#[derive(Clone, Debug)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Before each 64 KiB.
    pause: Duration,
    hang: bool,
}

impl Reply {
    fn status(status: u16) -> Self {
        let headers = vec![("content-length", "0".into())];
        Self { status, headers, body: Vec::new(), pause: Duration::ZERO, hang: false }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The file from `start`, as 200 or 206.
    fn file(data: &[u8], start: usize, etag: &str) -> Self {
        let body = data[start..].to_vec();
        let mut headers = vec![("content-length", body.len().to_string()), ("etag", etag.to_owned())];
        if start > 0 {
            headers.push(("content-range", format!("bytes {start}-{}/{}", data.len() - 1, data.len())));
        }
        Self { headers, body, ..Self::status(if start > 0 { 206 } else { 200 }) }
    }

    /// Announces all of the body, and sends only so much.
    fn cut(mut self, len: usize) -> Self {
        self.body.truncate(len);
        self
    }

    fn hang(mut self) -> Self {
        self.hang = true;
        self
    }
}

/// As a good file server does it: ranges, and `If-Range`.
fn serve_file(data: &[u8], etag: &str, request: &Request) -> Reply {
    let is_current = request.header("if-range").is_none_or(|condition| condition == etag);
    Reply::file(data, if is_current { request.start() } else { 0 }, etag)
}

type Handler = dyn Fn(usize, &Request) -> Reply + Send + Sync;

struct Server {
    address: SocketAddr,
    secure: bool,
    requests: Arc<Mutex<Vec<Request>>>,
    body_bytes: Arc<AtomicU64>,
}

impl Server {
    /// `handler` gets the number of the request, from 0.
    fn start(handler: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(None, Arc::new(handler))
    }

    fn listen(tls: Option<Arc<rustls::ServerConfig>>, handler: Arc<Handler>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            secure: tls.is_some(),
            requests: Arc::default(),
            body_bytes: Arc::default(),
        };
        let (requests, body_bytes) = (server.requests.clone(), server.body_bytes.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (handler, requests, body_bytes) = (handler.clone(), requests.clone(), body_bytes.clone());
                let (stream, tls) = (stream.unwrap(), tls.clone());
                std::thread::spawn(move || match tls {
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(config).unwrap();
                        let stream = rustls::StreamOwned::new(connection, stream);
                        answer(stream, handler.as_ref(), &requests, &body_bytes)
                    }
                    None => answer(stream, handler.as_ref(), &requests, &body_bytes),
                });
            }
        });
        server
    }

    fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", if self.secure { "https" } else { "http" }, self.address)
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    fn body_bytes(&self) -> u64 {
        self.body_bytes.load(Ordering::SeqCst)
    }
}

/// One request per connection. The client may go away at any time.
fn answer(
    stream: impl Read + Write,
    handler: &Handler,
    requests: &Mutex<Vec<Request>>,
    body_bytes: &AtomicU64,
) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let request = Request { path, headers };
    let number = {
        let mut requests = requests.lock().unwrap();
        requests.push(request.clone());
        requests.len() - 1
    };
    let reply = handler(number, &request);
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let out = stream.get_mut();
    out.write_all(head.as_bytes())?;
    out.write_all(b"\r\n")?;
    for piece in reply.body.chunks(64 * 1024) {
        std::thread::sleep(reply.pause);
        out.write_all(piece)?;
        body_bytes.fetch_add(piece.len() as u64, Ordering::SeqCst);
    }
    out.flush()?;
    if reply.hang {
        // Until the client gives up.
        let _ = stream.read_line(&mut line);
    }
    Ok(())
}

// ------------------------------------------------------------------------------------------------ the bench

const MIB: usize = 1 << 20;

/// For what would wait for ever.
const LIMIT: Duration = Duration::from_secs(60);

/// Half noise, half not; not a whole number of blocks.
fn image(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    for page in bytes.chunks_mut(8192) {
        let noise = page.len() / 2;
        random.fill(&mut page[..noise]);
    }
    bytes
}

fn digest(bytes: &[u8]) -> Sha256Digest {
    Sha256Digest(Sha256::digest(bytes).into())
}

/// A directory with a slot file that holds an old system.
struct Bench {
    directory: TempDir,
}

impl Bench {
    fn new(slot_bytes: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("keys")).unwrap();
        fs::write(directory.path().join("slot"), vec![0xee; slot_bytes]).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn job(&self, uri: impl Into<String>, source: &[u8]) -> Job {
        Job {
            spec: ImageSpec { uri: uri.into(), check_value: Some(digest(source)), size_bytes: None },
            target: self.path("slot"),
            running: None,
            others: Vec::new(),
            proc: "/proc".into(),
            device: Device::default(),
            check: ImageCheck::Required,
            version: None,
            network: None,
            trust: Trust { directory: self.path("keys"), list: None },
            ca_file: None,
            checkpoint: self.path("checkpoint.json"),
            limits: Limits {
                retry: Duration::from_secs(20),
                // Longer than a busy machine keeps a server from answering.
                stall: Duration::from_secs(5),
                first_pause: Duration::from_millis(1),
                longest_pause: Duration::from_millis(10),
                checkpoint: Duration::ZERO,
            },
        }
    }

    /// Where a networked part listens as long as the test runs.
    fn network_part(&self) -> PathBuf {
        let socket = self.path("network");
        let listener = UnixListener::bind(&socket).unwrap();
        fs::write(
            self.path("config.toml"),
            "boot.scheme = \"bootcount\"\n\
             slot = [{ name = \"a\", device = \"/dev/a\" }, { name = \"b\", device = \"/dev/b\" }]\n",
        )
        .unwrap();
        let loaded = Config::load_beside(&self.path("config.toml"), socket.clone()).unwrap();
        tokio::spawn(Network::new(loaded.config, None).serve(listener, std::future::pending()));
        socket
    }

    fn slot(&self) -> Vec<u8> {
        fs::read(self.path("slot")).unwrap()
    }

    fn assert_holds(&self, image: &[u8]) {
        let slot = self.slot();
        assert!(slot[..image.len()] == *image, "the slot holds the image");
        assert!(slot[image.len()..].iter().all(|byte| *byte == 0xee), "what follows the image is untouched");
    }

    fn assert_untouched(&self) {
        assert!(self.slot().iter().all(|byte| *byte == 0xee), "nothing was written");
    }
}

/// Runs to the end, with what the progress said last.
async fn run(job: &Job) -> (Outcome, Progress) {
    let progress = watch::Sender::new(Progress::default());
    let (_keep, cancel) = watch::channel(false);
    let outcome = install(job, &progress, cancel).await;
    let last = *progress.borrow();
    (outcome, last)
}

/// The same on a device of the test's own.
async fn run_on(device: Arc<dyn SlotDevice>, job: &Job) -> Outcome {
    let progress = watch::Sender::new(Progress::default());
    let (_keep, cancel) = watch::channel(false);
    install_to(device, job, &progress, cancel).await
}

async fn code_of(job: &Job) -> Code {
    run(job).await.0.unwrap_err().code
}

/// Runs until a level of the progress is reached, then cancels; the stages have ended when this returns.
async fn run_until(job: &Job, mut reached: impl FnMut(&Progress) -> bool) -> Outcome {
    let progress = watch::Sender::new(Progress::default());
    let mut seen = progress.subscribe();
    let (cancel, cancelled) = watch::channel(false);
    let watcher = async {
        seen.wait_for(|now| reached(now)).await.unwrap();
        cancel.send_replace(true);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        outcome = install(job, &progress, cancelled) => outcome,
        () = watcher => panic!("the watcher never ends"),
    }
}

fn packed(program: &[&str], data: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program[0])
        .args(&program[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(data).unwrap());
        let mut output = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
        assert!(child.wait().unwrap().success());
        output
    })
}

fn shell(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

// -------------------------------------------------------------------------------------------- good servers

/// mender's 8ba599b6, and SWUpdate's limit: where 32 bits end, nothing does.
/// Shows F25.
#[tokio::test]
async fn an_image_beyond_four_gibibytes_reaches_the_slot() {
    const ZEROS_BYTES: usize = 128 * MIB;
    const START: u64 = 4 << 30;
    let (zeros, end) = (packed(&["zstd", "-q", "-c"], &vec![0; ZEROS_BYTES]), image(27, 2 * MIB + 5));
    let frames = zeros.repeat(32);
    let source = [frames.as_slice(), &packed(&["zstd", "-q", "-c"], &end)].concat();
    let bench = Bench::new(0);
    // Zeros that take no room are kept where they are.
    let slot = File::options().read(true).write(true).open(bench.path("slot")).unwrap();
    slot.set_len(START + 4 * MIB as u64).unwrap();
    let body = source.clone();
    let server = Server::start(move |_, request| serve_file(&body, "\"1\"", request));
    let (outcome, progress) = run(&bench.job(server.url("/image"), &source)).await;
    assert_eq!(outcome.unwrap().size_bytes, START + end.len() as u64);
    assert_eq!((progress.kept_bytes, progress.written_bytes), (START, end.len() as u64));
    let mut there = vec![0; end.len()];
    slot.read_exact_at(&mut there, START).unwrap();
    assert!(there == end, "the last bytes of the image are in their place");
}

/// Shows rauc/rauc#459, #639, #833.
#[tokio::test]
async fn raw_and_compressed_images_reach_the_slot() {
    let image = image(1, 5 * MIB + 1234);
    let (left, right) = image.split_at(2 * MIB + 77);
    for compressor in [["cat"].as_slice(), &["zstd", "-q", "-c"], &["gzip", "-1", "-c"], &["xz", "-1", "-c"]]
    {
        for source in
            [packed(compressor, &image), [packed(compressor, left), packed(compressor, right)].concat()]
        {
            let bench = Bench::new(7 * MIB + 512);
            let body = source.clone();
            let server = Server::start(move |_, request| serve_file(&body, "\"1\"", request));
            let mut job = bench.job(server.url("/image"), &source);
            job.spec.size_bytes = Some(source.len() as u64);
            let (outcome, progress) = run(&job).await;
            let installed = outcome.unwrap();
            assert_eq!(installed.source_digest, digest(&source));
            assert_eq!(installed.size_bytes, image.len() as u64);
            assert_eq!(progress.bytes, source.len() as u64);
            assert_eq!(progress.written_bytes, image.len() as u64);
            bench.assert_holds(&image);
            assert_eq!(server.requests()[0].header("accept-encoding"), Some("identity"));
            assert!(!bench.path("checkpoint.json").exists(), "the checkpoint is gone after success");
        }
    }
}

#[tokio::test]
async fn a_file_address_is_installed_and_a_second_time_writes_nothing() {
    let image = image(2, 3 * MIB + 5);
    let bench = Bench::new(4 * MIB);
    fs::write(bench.path("image"), &image).unwrap();
    let job = bench.job(format!("file://{}", bench.path("image").display()), &image);
    let (outcome, progress) = run(&job).await;
    assert_eq!(outcome.unwrap().size_bytes, image.len() as u64);
    assert_eq!(progress.written_bytes, image.len() as u64);
    bench.assert_holds(&image);
    let (outcome, progress) = run(&job).await;
    assert!(outcome.is_ok());
    assert_eq!(progress.written_bytes, 0);
    // One changed byte in the slot costs one block.
    File::options().write(true).open(bench.path("slot")).unwrap().write_all_at(&[1], MIB as u64 + 9).unwrap();
    let (outcome, progress) = run(&job).await;
    assert!(outcome.is_ok());
    assert_eq!(progress.written_bytes, MIB as u64);
    bench.assert_holds(&image);
    let job = bench.job(format!("file://{}", bench.path("no such image").display()), &image);
    assert_eq!(code_of(&job).await, Code::ImageNotFound);
    shell("mkfifo", &[bench.path("pipe").to_str().unwrap()]);
    let job = bench.job(format!("file://{}", bench.path("pipe").display()), &image);
    assert_eq!(code_of(&job).await, Code::ServerRefused, "nobody is waited for");
}

/// Shows rauc/rauc#768, nerves-hub/nerves_hub#80, nerves_hub_link#18; home-assistant: proxy, offline, and
/// balena t/375720.
#[tokio::test]
async fn a_dropped_connection_is_resumed_where_it_broke() {
    let image = image(3, 3 * MIB);
    let bench = Bench::new(4 * MIB);
    let body = image.clone();
    let server = Server::start(move |number, request| {
        let reply = serve_file(&body, "\"1\"", request);
        if number < 3 { reply.cut(700_000) } else { reply }
    });
    let job = bench.job(server.url("/image"), &image);
    run(&job).await.0.unwrap();
    bench.assert_holds(&image);
    let requests = server.requests();
    assert_eq!(requests.len(), 4);
    assert_eq!(requests[1].header("range"), Some("bytes=700000-"));
    assert_eq!(requests[1].header("if-range"), Some("\"1\""));
    assert_eq!(server.body_bytes(), image.len() as u64, "no byte was sent twice");
}

/// Shows fintermobilityas/surge#133.
#[tokio::test]
async fn a_server_without_ranges_sends_everything_again_and_a_wrong_range_is_not_taken() {
    let image = image(4, 3 * MIB);
    let bodies: [fn(&[u8], &Request) -> Reply; 2] = [
        |body, _| Reply::file(body, 0, "\"1\""),
        |body, request| match request.start() {
            0 => Reply::file(body, 0, "\"1\""),
            start => Reply::file(body, start - 1000, "\"1\""),
        },
    ];
    for body_of in bodies {
        let bench = Bench::new(4 * MIB);
        let body = image.clone();
        let server = Server::start(move |number, request| {
            let reply = body_of(&body, request);
            if number == 0 { reply.cut(1_500_000) } else { reply }
        });
        let (outcome, progress) = run(&bench.job(server.url("/image"), &image)).await;
        outcome.unwrap();
        bench.assert_holds(&image);
        let all = (image.len() + MIB) as u64;
        assert!(progress.fetched_bytes > all, "what comes again shows that it lives: {progress:?}");
    }
}

#[tokio::test]
async fn a_server_that_sends_everything_again_too_slowly_is_given_up() {
    let image = image(29, 4 * MIB);
    let bench = Bench::new(4 * MIB);
    let body = image.clone();
    let server = Server::start(move |number, _| match number {
        0 => Reply::file(&body, 0, "\"1\"").cut(3 * MIB),
        _ => Reply { pause: Duration::from_millis(50), ..Reply::file(&body, 0, "\"1\"") },
    });
    let mut job = bench.job(server.url("/image"), &image);
    job.limits.retry = Duration::from_secs(1);
    let failure = run(&job).await.0.unwrap_err();
    assert_eq!(failure.code, Code::ServerUnreachable);
    assert!(failure.message.contains("everything again"), "{}", failure.message);
}

/// RFC 9110, 15.3.7: a cache may have only a part of what it is asked for.
#[tokio::test]
async fn a_server_that_gives_less_of_a_range_is_asked_on() {
    let image = image(28, 3 * MIB);
    let bench = Bench::new(4 * MIB);
    let body = image.clone();
    let server = Server::start(move |number, request| {
        let start = request.start();
        if number == 0 {
            return serve_file(&body, "\"1\"", request).cut(MIB);
        }
        let end = (start + 700_000).min(body.len());
        Reply {
            status: 206,
            headers: vec![
                ("content-length", (end - start).to_string()),
                ("etag", "\"1\"".to_owned()),
                ("content-range", format!("bytes {start}-{}/{}", end - 1, body.len())),
            ],
            body: body[start..end].to_vec(),
            ..Reply::status(206)
        }
    });
    run(&bench.job(server.url("/image"), &image)).await.0.unwrap();
    bench.assert_holds(&image);
    let starts: Vec<_> = server.requests().iter().map(Request::start).collect();
    assert_eq!(starts, [0, MIB, MIB + 700_000, MIB + 1_400_000]);
    assert_eq!(server.body_bytes(), image.len() as u64, "no byte was sent twice");
}

#[tokio::test]
async fn without_an_entity_tag_the_size_and_the_check_value_protect_a_resume() {
    let image = image(5, 3 * MIB);
    let other = crate::image(6, 3 * MIB);
    let bench = Bench::new(4 * MIB);
    let (body, wrong) = (image.clone(), other);
    // Half an old file, then, at the resume, a new one of the same size.
    let server = Server::start(move |number, request| {
        let data = if number == 0 { &wrong } else { &body };
        let mut reply = Reply::file(data, request.start(), "W/\"1\"");
        if number == 0 {
            reply = reply.cut(MIB);
        }
        reply
    });
    let (outcome, _) = run(&bench.job(server.url("/image"), &image)).await;
    outcome.unwrap();
    bench.assert_holds(&image);
    assert_eq!(server.requests()[2].header("range"), None, "started over");
}

/// HTTP/1.0 (RFC 9112, 6.3): a connection that breaks looks like the end.
#[tokio::test]
async fn an_answer_without_a_length_that_is_cut_off_is_not_taken_for_the_end() {
    let image = image(43, 2 * MIB);
    for (ranges, asked) in [(true, [0, MIB, MIB + MIB / 2]), (false, [0, MIB, MIB])] {
        let bench = Bench::new(4 * MIB);
        let body = image.clone();
        let server = Server::start(move |number, request| {
            let mut reply = Reply::file(&body, if ranges { request.start() } else { 0 }, "\"1\"");
            reply.headers.retain(|(name, _)| *name != "content-length");
            match number {
                0 => reply.cut(MIB),
                1 => reply.cut(MIB / 2),
                _ => reply,
            }
        });
        let mut job = bench.job(server.url("/image"), &image);
        job.spec.size_bytes = Some(image.len() as u64);
        run(&job).await.0.unwrap();
        bench.assert_holds(&image);
        assert_eq!(server.requests().iter().map(Request::start).collect::<Vec<_>>(), asked);
    }
}

// --------------------------------------------------------------------------------------------- bad servers

#[tokio::test]
async fn a_file_that_changes_is_fetched_anew_and_given_up_if_it_never_rests() {
    let image = image(7, 3 * MIB);
    let old = crate::image(8, 3 * MIB);
    let bench = Bench::new(4 * MIB);
    let body = image.clone();
    let server = Server::start(move |number, request| match number {
        0 => serve_file(&old, "\"old\"", request).cut(MIB),
        _ => serve_file(&body, "\"new\"", request),
    });
    run(&bench.job(server.url("/image"), &image)).await.0.unwrap();
    bench.assert_holds(&image);

    let server = Server::start(move |number, request| {
        let body = crate::image(9, 3 * MIB + number);
        serve_file(&body, &format!("\"{number}\""), request).cut(MIB)
    });
    assert_eq!(code_of(&bench.job(server.url("/image"), &image)).await, Code::ImageChanged);
    assert!(server.requests().len() < 12, "{}", server.requests().len());
}

/// Several hosts behind one name, each with its own entity tag for one file, and a link that breaks.
#[tokio::test]
async fn replicas_that_do_not_agree_on_the_version_give_one_image_in_the_end() {
    let image = image(45, 3 * MIB);
    for by_network_part in [false, true] {
        let bench = Bench::new(4 * MIB);
        let body = image.clone();
        let server = Server::start(move |number, request| {
            serve_file(&body, &format!("\"{number}\""), request).cut(MIB)
        });
        let mut job = bench.job(server.url("/image"), &image);
        job.network = by_network_part.then(|| bench.network_part());
        run(&job).await.0.unwrap();
        bench.assert_holds(&image);
        let starts: Vec<_> = server.requests().iter().map(Request::start).collect();
        assert_eq!(starts, [0, MIB, 0, MIB, 0, MIB, 0, MIB, 2 * MIB], "three times anew, and then on");
    }

    let bench = Bench::new(4 * MIB);
    let server = Server::start(move |number, request| {
        serve_file(&crate::image(number as u64, 3 * MIB), &format!("\"{number}\""), request).cut(MIB)
    });
    assert_eq!(code_of(&bench.job(server.url("/image"), &image)).await, Code::DigestMismatch);
    assert!(server.requests().len() < 16, "{}", server.requests().len());
}

/// Shows rauc/rauc-hawkbit-updater#158.
#[tokio::test]
async fn final_answers_end_it_at_once() {
    let image = image(9, 2 * MIB);
    for (status, code) in [
        (404, Code::ImageNotFound),
        (410, Code::ImageNotFound),
        (401, Code::ImageForbidden),
        (403, Code::ImageForbidden),
        (400, Code::ServerRefused),
        (204, Code::ServerRefused),
    ] {
        let bench = Bench::new(4 * MIB);
        let server = Server::start(move |_, _| Reply::status(status));
        let failure = run(&bench.job(server.url("/image?sig=secret"), &image)).await.0.unwrap_err();
        assert_eq!(failure.code, code, "{status}");
        assert!(failure.message.contains("/image?[secret]"), "{}", failure.message);
        assert!(!failure.message.contains("sig="), "{}", failure.message);
        assert_eq!(server.requests().len(), 1, "{status}");
        bench.assert_untouched();
    }
    let bench = Bench::new(4 * MIB);
    let body = image.clone();
    let server = Server::start(move |number, request| match number {
        0 => serve_file(&body, "\"1\"", request).cut(MIB),
        _ => Reply::status(404),
    });
    assert_eq!(code_of(&bench.job(server.url("/image"), &image)).await, Code::ImageNotFound);
    assert_eq!(server.requests().len(), 2);
}

/// Shows Azure/iot-hub-device-update#150.
#[tokio::test]
async fn busy_and_silent_servers_are_asked_again() {
    let image = image(10, 2 * MIB);
    let bench = Bench::new(4 * MIB);
    let body = image.clone();
    let server = Server::start(move |number, request| match number {
        0 => Reply::status(503).with("retry-after", "0"),
        1 => Reply::status(429),
        2 => Reply::status(500).with("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"),
        3 => serve_file(&body, "\"1\"", request).cut(MIB).hang(),
        4 => Reply::file(&[], 0, "\"1\"").with("x", "y").cut(0).hang().with("content-length", "9"),
        _ => serve_file(&body, "\"1\"", request),
    });
    // The fifth answer is silly on purpose: two lengths that contradict each other.
    let mut job = bench.job(server.url("/image"), &image);
    job.limits.stall = Duration::from_secs(2);
    run(&job).await.0.unwrap();
    bench.assert_holds(&image);
    assert_eq!(server.requests().len(), 6);
}

/// Shows F18; hub.mender.io t/8299.
#[tokio::test]
async fn a_server_that_stays_away_is_given_up_at_the_limit() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let bench = Bench::new(4 * MIB);
    let mut job = bench.job(format!("http://{address}/image?sig=secret"), b"");
    job.limits.retry = Duration::from_millis(200);
    let failure = run(&job).await.0.unwrap_err();
    assert_eq!(failure.code, Code::ServerUnreachable);
    assert!(!failure.message.contains("sig="), "{}", failure.message);
    assert!(failure.message.contains("refused"), "the last cause is told: {}", failure.message);
    bench.assert_untouched();
}

#[tokio::test]
async fn a_slow_server_has_all_the_time_it_needs_and_one_that_drips_is_given_up() {
    let image = image(10, 16 * 1024);
    for (answer_bytes, code) in [(1024, None), (1, Some(Code::ServerUnreachable))] {
        let bench = Bench::new(MIB);
        let body = image.clone();
        let server =
            Server::start(move |_, request| serve_file(&body, "\"1\"", request).cut(answer_bytes).hang());
        let mut job = bench.job(server.url("/image"), &image);
        (job.limits.retry, job.limits.stall) = (Duration::from_secs(1), Duration::from_millis(100));
        let outcome = run(&job).await.0;
        assert_eq!(outcome.as_ref().err().map(|failure| failure.code), code, "{outcome:?}");
        if let Err(failure) = outcome {
            let words = ["bytes came in 1s", "the server was silent for 100ms"];
            assert!(words.iter().all(|words| failure.message.contains(words)), "{}", failure.message);
        }
    }
}

/// Shows zephyrproject-rtos/zephyr#37272, #71691, #71750, #89265.
#[tokio::test]
async fn another_size_than_announced_is_found_as_early_as_can_be() {
    let image = image(11, 2 * MIB);
    let bench = Bench::new(4 * MIB);
    let body = image.clone();
    let server = Server::start(move |_, request| serve_file(&body, "\"1\"", request));
    for wrong in [image.len() as u64 - 1, image.len() as u64 + 1] {
        let mut job = bench.job(server.url("/image"), &image);
        job.spec.size_bytes = Some(wrong);
        assert_eq!(code_of(&job).await, Code::SizeMismatch);
        bench.assert_untouched();
    }
    // No length told by the server: the bytes are counted.
    for (sent, code) in [(2 * MIB - 9, Code::SizeMismatch), (2 * MIB, Code::SizeMismatch)] {
        let body = image[..sent].to_vec();
        let server =
            Server::start(move |_, _| Reply { headers: Vec::new(), ..Reply::file(&body, 0, "\"1\"") });
        let mut job = bench.job(server.url("/image"), &image);
        job.spec.size_bytes = Some(2 * MIB as u64 - 1);
        assert_eq!(code_of(&job).await, code);
    }
}

#[tokio::test]
async fn an_image_that_does_not_fit_is_refused() {
    let image = image(12, 4 * MIB + 1);
    let bench = Bench::new(4 * MIB);
    let body = image.clone();
    let server = Server::start(move |_, request| serve_file(&body, "\"1\"", request));
    let mut job = bench.job(server.url("/image"), &image);
    assert_eq!(code_of(&job).await, Code::ImageTooLarge, "by the server's word");
    let body = image.clone();
    let server = Server::start(move |_, _| Reply { headers: Vec::new(), ..Reply::file(&body, 0, "\"1\"") });
    job.spec = ImageSpec { size_bytes: Some(image.len() as u64), uri: server.url("/image"), ..job.spec };
    assert_eq!(code_of(&job).await, Code::ImageTooLarge, "by the request's word");
    bench.assert_untouched();
    // A bomb: nothing but the decoder can tell.
    let bomb = packed(&["zstd", "-q", "-c"], &vec![0; 64 * MIB]);
    let body = bomb.clone();
    let server = Server::start(move |_, request| serve_file(&body, "\"1\"", request));
    assert_eq!(code_of(&bench.job(server.url("/bomb"), &bomb)).await, Code::ImageTooLarge);
    assert_eq!(bench.slot().len(), 4 * MIB);
    // Exactly full is full enough.
    let exact = packed(&["zstd", "-q", "-c"], &image[..4 * MIB]);
    let body = exact.clone();
    let server = Server::start(move |_, request| serve_file(&body, "\"1\"", request));
    run(&bench.job(server.url("/exact"), &exact)).await.0.unwrap();
    bench.assert_holds(&image[..4 * MIB]);
}

#[tokio::test]
async fn redirects_are_followed_within_limits_and_never_from_https_to_http() {
    let image = image(13, MIB);
    let bench = Bench::new(2 * MIB);
    let body = image.clone();
    let plain = Server::start(move |_, request| match request.path.as_str() {
        "/image" => serve_file(&body, "\"1\"", request),
        "/once" => Reply::status(302).with("location", "/image"),
        _ => Reply::status(302).with("location", "/circle"),
    });
    run(&bench.job(plain.url("/once"), &image)).await.0.unwrap();
    assert_eq!(code_of(&bench.job(plain.url("/circle"), &image)).await, Code::ServerRefused);

    let (tls, ca_file) = tls_identity(&bench);
    let (body, elsewhere) = (image.clone(), plain.url("/image?sig=secret"));
    let secure = Server::listen(
        Some(tls),
        Arc::new(move |_: usize, request: &Request| match request.path.as_str() {
            "/image" => serve_file(&body, "\"1\"", request),
            _ => Reply::status(302).with("location", elsewhere.clone()),
        }),
    );
    let mut job = bench.job(secure.url("/image"), &image);
    job.ca_file = Some(ca_file);
    run(&job).await.0.unwrap();
    job.spec.uri = secure.url("/downgrade");
    let failure = run(&job).await.0.unwrap_err();
    assert_eq!(failure.code, Code::ServerRefused);
    assert!(failure.message.contains("https to http"), "{}", failure.message);
    assert!(!failure.message.contains("sig="), "{}", failure.message);
    // From http to https is fine.
    let upward = secure.url("/image");
    let plain = Server::start(move |_, _| Reply::status(307).with("location", upward.clone()));
    let mut upgrade = bench.job(plain.url("/image"), &image);
    upgrade.ca_file = job.ca_file.clone();
    run(&upgrade).await.0.unwrap();
    // With the system's roots the same server is nobody.
    job.ca_file = None;
    job.limits.retry = Duration::from_millis(100);
    assert_eq!(code_of(&job).await, Code::ServerUnreachable);
}

/// Whoever it leads to could lead to himself.
#[tokio::test]
async fn the_password_of_an_address_is_for_its_own_server_alone() {
    let image = image(46, 2 * MIB);
    let bench = Bench::new(4 * MIB);
    let body = image.clone();
    let mirror = Server::start(move |_, request| match request.path.as_str() {
        "/there" => Reply::status(302).with("location", "/image"),
        _ => serve_file(&body, "\"1\"", request),
    });
    let there = mirror.url("/there");
    let origin = Server::start(move |_, request| match request.path.as_str() {
        "/image" => Reply::status(302).with("location", "/elsewhere"),
        _ => Reply::status(302).with("location", there.clone()),
    });
    let uri = origin.url("/image").replace("http://", "http://user:password@");
    run(&bench.job(uri, &image)).await.0.unwrap();
    bench.assert_holds(&image);
    let told = |server: &Server| -> Vec<bool> {
        server.requests().iter().map(|request| request.header("authorization").is_some()).collect()
    };
    assert_eq!((told(&origin), told(&mirror)), (vec![true, true], vec![false, false]));
}

#[tokio::test]
async fn an_authority_that_becomes_trusted_while_a_download_waits_for_it_is() {
    let image = image(47, 2 * MIB);
    let bench = Bench::new(4 * MIB);
    let (tls, ca_file) = tls_identity(&bench);
    let body = image.clone();
    let server = Server::listen(Some(tls), Arc::new(move |_, request| serve_file(&body, "\"1\"", request)));
    let mut job = bench.job(server.url("/image"), &image);
    let other = Bench::new(0);
    let (_, roots) = tls_identity(&other);
    job.ca_file = Some(roots.clone());
    let progress = watch::Sender::new(Progress::default());
    let (_keep, cancel) = watch::channel(false);
    let mut seen = progress.subscribe();
    let renew = async {
        seen.wait_for(|now| now.phase == Phase::Waiting).await.unwrap();
        // For a while there are none.
        fs::write(&roots, "").unwrap();
        let tried = tokio::time::Instant::now();
        seen.wait_for(|_| tried.elapsed() > Duration::from_millis(200)).await.unwrap();
        fs::rename(&ca_file, &roots).unwrap();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        outcome = install(&job, &progress, cancel) => drop(outcome.unwrap()),
        () = renew => unreachable!(),
    }
    bench.assert_holds(&image);
}

fn tls_identity(bench: &Bench) -> (Arc<rustls::ServerConfig>, PathBuf) {
    use rustls::pki_types::pem::PemObject;
    let (key, certificate) = (bench.path("tls.key"), bench.path("tls.crt"));
    shell(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
            key.to_str().unwrap(),
            "-out",
            certificate.to_str().unwrap(),
        ],
    );
    let chain = vec![rustls::pki_types::CertificateDer::from_pem_file(&certificate).unwrap()];
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(&key).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    (Arc::new(config), certificate)
}

// --------------------------------------------------------------------------------------------- bad content

#[tokio::test]
async fn other_bytes_than_the_check_value_says_are_refused() {
    let image = image(14, 2 * MIB);
    let bench = Bench::new(4 * MIB);
    let body = image.clone();
    let server = Server::start(move |_, request| serve_file(&body, "\"1\"", request));
    let job = bench.job(server.url("/image"), b"another image");
    let failure = run(&job).await.0.unwrap_err();
    assert_eq!(failure.code, Code::DigestMismatch);
    assert!(failure.message.contains(&digest(&image).to_string()), "{}", failure.message);
    assert_eq!(server.requests().len(), 1, "bytes that came in one piece are not fetched again");
    assert!(!bench.path("checkpoint.json").exists());
}

#[tokio::test]
async fn damaged_and_oversized_compression_is_refused() {
    let image = image(15, 2 * MIB);
    let bench = Bench::new(4 * MIB);
    let mut damaged = packed(&["xz", "-1", "-c"], &image);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let hungry = packed(&["zstd", "-q", "-19", "--long=27", "-c"], &image);
    for (source, code) in [(damaged, Code::DecodeFailed), (hungry, Code::DecoderMemory)] {
        let body = source.clone();
        let server = Server::start(move |_, request| serve_file(&body, "\"1\"", request));
        assert_eq!(code_of(&bench.job(server.url("/image"), &source)).await, code);
    }
}

#[tokio::test]
async fn an_image_that_is_bad_is_told_although_its_server_has_fallen_silent() {
    let image = image(32, 6 * MIB);
    let whole = packed(&["zstd", "-q", "-c"], &image);
    let mut damaged = whole.clone();
    damaged[MIB / 4..MIB / 2].fill(0xff);
    // Both show within the first batch: what came of the last one is not looked at before more does.
    assert!(whole.len() > 5 * MIB / 4, "{}", whole.len());
    for (source, slot_bytes, code) in
        [(damaged, 8 * MIB, Code::DecodeFailed), (whole, MIB / 2, Code::ImageTooLarge)]
    {
        let bench = Bench::new(slot_bytes);
        let body = source.clone();
        let server = Server::start(move |_, request| {
            serve_file(&body, "\"1\"", request).cut(body.len() - 1000).hang()
        });
        let mut job = bench.job(server.url("/image"), &source);
        job.limits.stall = Duration::from_secs(3600);
        assert_eq!(tokio::time::timeout(LIMIT, code_of(&job)).await, Ok(code));
        assert!(!bench.path("checkpoint.json").exists(), "there is nothing to go on with");
    }
}

/// What `failing | zstd` leaves: whole and verified, and yet what the slot held before is not the new version.
#[tokio::test]
async fn an_image_of_no_bytes_is_refused_however_it_is_packed() {
    let bench = Bench::new(4 * MIB);
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 1, 2].to_vec();
    let compressors = [["zstd", "-q", "-c"].as_slice(), &["gzip", "-c"], &["xz", "-c"]];
    let empty = compressors.map(|compressor| packed(compressor, &[]));
    for source in empty.into_iter().chain([skippable, Vec::new()]) {
        let body = source.clone();
        let server = Server::start(move |_, request| serve_file(&body, "\"1\"", request));
        let failure = run(&bench.job(server.url("/image"), &source)).await.0.unwrap_err();
        assert_eq!(failure.code, Code::DecodeFailed, "{source:02x?}");
        assert_eq!(failure.message, "the image is empty");
        bench.assert_untouched();
    }
}

#[tokio::test]
async fn a_signature_takes_the_place_of_a_check_value() {
    let image = image(16, 2 * MIB);
    let bench = Bench::new(4 * MIB);
    let file = bench.path("image");
    fs::write(&file, &image).unwrap();
    let path = |name: &str| bench.path(name).display().to_string();
    for name in ["good", "other"] {
        let (public, secret) = (path(&format!("{name}.pub")), path(&format!("{name}.key")));
        shell("minisign", &["-G", "-W", "-f", "-p", &public, "-s", &secret]);
    }
    let sign = |key: &str, signature: &str, extra: &[&str]| {
        let (secret, signature, message) = (path(key), path(signature), path("image"));
        shell("minisign", &[&["-S", "-W", "-s", &secret, "-x", &signature, "-m", &message], extra].concat());
        fs::read(signature).unwrap()
    };
    let good = sign("good.key", "good.minisig", &[]);
    let unknown = sign("other.key", "other.minisig", &[]);
    let legacy = sign("good.key", "legacy.minisig", &["-l"]);

    let serve = |signature: Option<Vec<u8>>, body: Vec<u8>| {
        Server::start(move |_, request| match request.path.as_str() {
            "/image?sig=1" => serve_file(&body, "\"1\"", request),
            "/image.minisig?sig=1" => match &signature {
                Some(text) => serve_file(text, "\"2\"", request),
                None => Reply::status(404),
            },
            path => panic!("asked for {path}"),
        })
    };
    let job_for = |server: &Server| {
        let mut job = bench.job(server.url("/image?sig=1"), &image);
        job.spec.check_value = None;
        job
    };

    let server = serve(Some(good.clone()), image.clone());
    let failure = run(&job_for(&server)).await.0.unwrap_err();
    assert_eq!(failure.code, Code::Unverifiable, "no key is installed");
    assert!(server.requests().is_empty(), "refused before anything is fetched");

    fs::copy(bench.path("good.pub"), bench.path("keys/release.pub")).unwrap();
    assert_eq!(run(&job_for(&server)).await.0.unwrap().source_digest, digest(&image));
    bench.assert_holds(&image);

    let mut tampered = image.clone();
    tampered[MIB] ^= 1;
    for (what, signature, body) in [
        ("missing", None, image.clone()),
        ("unknown key", Some(unknown), image.clone()),
        ("legacy", Some(legacy), image.clone()),
        ("no signature at all", Some(b"<html>".to_vec()), image.clone()),
        ("huge", Some(vec![b'x'; 5000]), image.clone()),
        ("other bytes", Some(good), tampered),
    ] {
        let server = serve(signature, body);
        let failure = run(&job_for(&server)).await.0.unwrap_err();
        assert_eq!(failure.code, Code::SignatureInvalid, "{what}: {}", failure.message);
    }
}

#[tokio::test]
async fn where_only_signatures_count_a_check_value_is_not_enough_and_must_still_be_right() {
    let image = image(17, MIB);
    let bench = Bench::new(2 * MIB);
    fs::write(bench.path("image"), &image).unwrap();
    let path = |name: &str| bench.path(name).display().to_string();
    let (public, secret) = (path("release.pub"), path("release.key"));
    shell("minisign", &["-G", "-W", "-p", &public, "-s", &secret]);
    let (signature, message) = (path("image.minisig"), path("image"));
    shell(
        "minisign",
        &["-S", "-W", "-s", &secret, "-x", &signature, "-m", &message, "-t", "version=2.0 lot 7"],
    );
    let (body, text) = (image.clone(), fs::read(&signature).unwrap());
    let server = Server::start(move |_, request| match request.path.as_str() {
        "/image" | "/unsigned" => serve_file(&body, "\"1\"", request),
        "/image.minisig" => serve_file(&text, "\"2\"", request),
        _ => Reply::status(404),
    });
    let job = |version: Option<&str>, named: &[u8]| Job {
        check: ImageCheck::Signature,
        version: version.map(str::to_owned),
        ..bench.job(server.url("/image"), named)
    };
    assert_eq!(code_of(&job(Some("2.0"), &image)).await, Code::Unverifiable, "no key is installed");
    fs::copy(public, bench.path("keys/release.pub")).unwrap();
    assert_eq!(code_of(&job(Some("2.0"), b"another")).await, Code::DigestMismatch);
    for other in [None, Some("3.0")] {
        assert_eq!(code_of(&job(other, &image)).await, Code::SignatureInvalid, "{other:?}");
    }
    run(&job(Some("2.0"), &image)).await.0.unwrap();
    bench.assert_holds(&image);

    let at = |path: &str| Job {
        spec: ImageSpec { uri: server.url(path), ..job(None, &image).spec },
        ..job(None, &image)
    };
    assert_eq!(code_of(&at("/unsigned")).await, Code::SignatureInvalid, "its check value is right");
    assert_eq!(code_of(&at("/none")).await, Code::ImageNotFound, "nor is there a signature");
}

// ------------------------------------------------------------------------------------------------- resuming

/// Serves `data` up to `limit` bytes and then is silent, until released.
fn holding_server(data: Vec<u8>, limit: usize) -> (Server, Arc<AtomicBool>) {
    let released = Arc::new(AtomicBool::new(false));
    let gate = released.clone();
    let server = Server::start(move |_, request| {
        let reply = serve_file(&data, "\"1\"", request);
        if gate.load(Ordering::SeqCst) {
            return reply;
        }
        let left = limit.saturating_sub(request.start());
        reply.cut(left).hang()
    });
    (server, released)
}

/// All `bytes` have come, and their blocks are in the slot, but for the last, of which a part may be on its way.
fn all_but_the_last_mib(bytes: usize) -> impl FnMut(&Progress) -> bool {
    let blocks = (bytes / MIB - 1) * MIB;
    move |now| now.bytes == bytes as u64 && now.written_bytes >= blocks as u64
}

#[tokio::test]
async fn a_cancelled_install_goes_on_where_it_was() {
    let image = image(17, 12 * MIB);
    let bench = Bench::new(12 * MIB);
    let (server, released) = holding_server(image.clone(), 8 * MIB);
    let mut job = bench.job(server.url("/image?sig=1"), &image);
    let outcome = run_until(&job, all_but_the_last_mib(8 * MIB)).await;
    assert_eq!(outcome.unwrap_err().code, Code::Cancelled);
    assert!(bench.path("checkpoint.json").exists());
    released.store(true, Ordering::SeqCst);
    let before = server.body_bytes();
    // A link that was signed anew leads to the same bytes.
    job.spec.uri = server.url("/image?sig=2");
    let (outcome, progress) = run(&job).await;
    outcome.unwrap();
    bench.assert_holds(&image);
    assert!(progress.saved_bytes >= 7 * MIB as u64, "{progress:?}");
    assert_eq!(server.body_bytes() - before, 12 * MIB as u64 - progress.saved_bytes);
    assert!(progress.written_bytes <= 12 * MIB as u64 - progress.saved_bytes, "{progress:?}");
    assert!(progress.fresh_bytes >= 4 * MIB as u64, "{progress:?}");
}

/// Else an image that ends the daemon at the same place each time would be tried for ever.
#[tokio::test]
async fn what_earlier_attempts_had_is_headway_only_once_a_checkpoint_is_behind_it() {
    let image = image(44, 16 * MIB);
    let bench = Bench::new(16 * MIB);
    let limit = Arc::new(AtomicUsize::new(8 * MIB));
    let (body, held) = (image.clone(), limit.clone());
    let server = Server::start(move |_, request| {
        let left = held.load(Ordering::SeqCst) - request.start();
        serve_file(&body, "\"1\"", request).cut(left).hang()
    });
    let mut job = bench.job(server.url("/image"), &image);
    let outcome = run_until(&job, all_but_the_last_mib(8 * MIB)).await;
    assert_eq!(outcome.unwrap_err().code, Code::Cancelled);
    let earlier = fs::read(bench.path("checkpoint.json")).unwrap();
    limit.store(16 * MIB, Ordering::SeqCst);
    run(&job).await.0.unwrap();

    limit.store(15 * MIB, Ordering::SeqCst);
    let seldom = Duration::from_secs(3600);
    for (resumed, checkpoint, is_headway) in
        [(true, seldom, false), (true, Duration::ZERO, true), (false, Duration::ZERO, false)]
    {
        fs::write(bench.path("checkpoint.json"), if resumed { &earlier[..] } else { b"" }).unwrap();
        job.limits.checkpoint = checkpoint;
        let outcome = run_until(&job, |now| {
            let there = now.bytes == 15 * MIB as u64 && now.kept_bytes >= 14 * MIB as u64;
            assert!(!there || now.written_bytes == 0, "{now:?}");
            assert!(!there || (now.fresh_bytes >= 4 * MIB as u64) == is_headway, "{now:?}");
            there
        });
        assert_eq!(outcome.await.unwrap_err().code, Code::Cancelled);
    }
}

/// What a power cut leaves: the slot and the checkpoint as they are at one instant in the middle.
async fn power_cut(bench: &Bench, job: &Job, at_bytes: u64) -> Bench {
    let progress = watch::Sender::new(Progress::default());
    let mut seen = progress.subscribe();
    let (_keep, cancel) = watch::channel(false);
    let cut = async {
        // The checkpoint follows the last whole block; the server is silent by then.
        seen.wait_for(|now| now.bytes == at_bytes).await.unwrap();
        while !bench.path("checkpoint.json").exists() {
            seen.changed().await.unwrap();
        }
        let after = Bench::new(0);
        for name in ["checkpoint.json", "slot"] {
            fs::copy(bench.path(name), after.path(name)).unwrap();
        }
        after
    };
    tokio::select! {
        outcome = install(job, &progress, cancel) => panic!("ended too early: {outcome:?}"),
        after = cut => after,
    }
}

/// Shows MEN-2293.
#[tokio::test]
async fn after_a_power_cut_only_the_rest_is_fetched_if_the_slot_proves_the_checkpoint() {
    let image = image(18, 12 * MIB);
    let frames: Vec<u8> =
        image.chunks(MIB + 4321).flat_map(|part| packed(&["zstd", "-q", "-c"], part)).collect();
    for source in [image.clone(), frames] {
        let bench = Bench::new(12 * MIB + 999);
        let hold = source.len() * 3 / 4;
        let (server, released) = holding_server(source.clone(), hold);
        let mut job = bench.job(server.url("/image"), &source);
        job.limits.stall = Duration::from_millis(50);
        let cut = power_cut(&bench, &job, hold as u64).await;
        released.store(true, Ordering::SeqCst);

        let corrupt = Bench::new(0);
        for name in ["checkpoint.json", "slot"] {
            fs::copy(cut.path(name), corrupt.path(name)).unwrap();
        }
        let slot = File::options().write(true).open(corrupt.path("slot")).unwrap();
        slot.write_all_at(b"bit rot", 3 * MIB as u64).unwrap();

        let (outcome, progress) = run(&cut.job(server.url("/image"), &source)).await;
        assert_eq!(outcome.unwrap().source_digest, digest(&source));
        cut.assert_holds(&image);
        assert!(progress.saved_bytes > source.len() as u64 / 4, "{progress:?}");
        let ranges: Vec<_> = server.requests().iter().map(Request::start).collect();
        assert_eq!(*ranges.last().unwrap() as u64, progress.saved_bytes, "{ranges:?}");

        let (outcome, progress) = run(&corrupt.job(server.url("/image"), &source)).await;
        outcome.unwrap();
        corrupt.assert_holds(&image);
        assert_eq!(progress.saved_bytes, 0, "a slot that holds something else is not resumed");
        assert_eq!(server.requests().last().unwrap().start(), 0);
    }
}

#[tokio::test]
async fn a_checkpoint_that_lies_about_the_source_costs_one_more_fetch_and_no_more() {
    let image = image(19, 12 * MIB);
    let source: Vec<u8> = image.chunks(MIB).flat_map(|part| packed(&["zstd", "-q", "-c"], part)).collect();
    let bench = Bench::new(12 * MIB);
    let (server, released) = holding_server(source.clone(), source.len() * 3 / 4);
    let job = bench.job(server.url("/image"), &source);
    let outcome = run_until(&job, |now| now.bytes == source.len() as u64 * 3 / 4).await;
    assert_eq!(outcome.unwrap_err().code, Code::Cancelled);
    released.store(true, Ordering::SeqCst);
    let path = bench.path("checkpoint.json");
    let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let state = text["sourceState"].as_str().unwrap().to_owned();
    let other = if state.starts_with('A') { "B" } else { "A" };
    text["sourceState"] = format!("{other}{}", &state[1..]).into();
    fs::write(&path, text.to_string()).unwrap();
    let before = server.requests().len();
    let (outcome, progress) = run(&job).await;
    outcome.unwrap();
    bench.assert_holds(&image);
    assert_eq!(progress.saved_bytes, 0);
    assert_eq!(server.requests().len() - before, 2, "one resumed, one from the start");
    // The first of the two found the lie before it had written its last block.
    assert!(progress.written_bytes <= MIB as u64, "what was right is not written again: {progress:?}");
}

/// Serves an image with its signature; of the image only so much, until it is released.
fn serve_signed_up_to(cut: usize, bench: &Bench, image: &[u8]) -> (Server, Arc<AtomicBool>) {
    fs::write(bench.path("image"), image).unwrap();
    let path = |name: &str| bench.path(name).display().to_string();
    shell("minisign", &["-G", "-W", "-p", &path("keys/a.pub"), "-s", &path("a.key")]);
    shell("minisign", &["-S", "-W", "-s", &path("a.key"), "-x", &path("sig"), "-m", &path("image")]);
    let (body, signature) = (image.to_vec(), fs::read(bench.path("sig")).unwrap());
    let released = Arc::new(AtomicBool::new(false));
    let gate = released.clone();
    let server = Server::start(move |_, request| {
        if request.path == "/image.minisig" {
            return serve_file(&signature, "\"2\"", request);
        }
        let reply = serve_file(&body, "\"1\"", request);
        if gate.load(Ordering::SeqCst) { reply } else { reply.cut(cut).hang() }
    });
    (server, released)
}

#[tokio::test]
async fn a_signed_raw_image_is_resumed_too() {
    let image = image(20, 12 * MIB);
    let bench = Bench::new(12 * MIB);
    let (server, released) = serve_signed_up_to(9 * MIB + 5, &bench, &image);
    let mut job = bench.job(server.url("/image"), &image);
    job.spec.check_value = None;
    let outcome = run_until(&job, all_but_the_last_mib(9 * MIB + 5)).await;
    assert_eq!(outcome.unwrap_err().code, Code::Cancelled);
    released.store(true, Ordering::SeqCst);
    let (outcome, progress) = run(&job).await;
    outcome.unwrap();
    bench.assert_holds(&image);
    assert!(progress.saved_bytes >= 8 * MIB as u64, "{progress:?}");
}

#[tokio::test]
async fn an_unchecked_install_goes_on_only_where_the_server_proves_that_it_is_the_same_file() {
    let image = image(30, 12 * MIB);
    for (etag, saves) in [("\"1\"", true), ("W/\"1\"", false)] {
        let bench = Bench::new(12 * MIB);
        let (body, released) = (image.clone(), Arc::new(AtomicBool::new(false)));
        let gate = released.clone();
        let server = Server::start(move |_, request| {
            let reply = serve_file(&body, etag, request);
            if gate.load(Ordering::SeqCst) { reply } else { reply.cut(8 * MIB).hang() }
        });
        let mut job = bench.job(server.url("/image"), &image);
        (job.check, job.spec.check_value) = (ImageCheck::Optional, None);
        let outcome = run_until(&job, all_but_the_last_mib(8 * MIB)).await;
        assert_eq!(outcome.unwrap_err().code, Code::Cancelled);
        released.store(true, Ordering::SeqCst);
        let (outcome, progress) = run(&job).await;
        outcome.unwrap();
        bench.assert_holds(&image);
        assert_eq!(progress.saved_bytes > 0, saves, "{etag} {progress:?}");
    }
}

#[tokio::test]
async fn an_unchecked_install_is_never_joined_of_what_may_be_two_files() {
    let (image, other) = (image(35, 3 * MIB), crate::image(36, 3 * MIB));
    let bench = Bench::new(4 * MIB);
    let (body, wrong) = (image.clone(), other);
    let server = Server::start(move |number, request| match number {
        0 => Reply::file(&wrong, 0, "W/\"1\"").cut(2 * MIB),
        _ => serve_file(&body, "W/\"1\"", request),
    });
    let unchecked = |server: &Server| {
        let mut job = bench.job(server.url("/image"), &image);
        (job.check, job.spec.check_value) = (ImageCheck::Optional, None);
        job
    };
    run(&unchecked(&server)).await.0.unwrap();
    bench.assert_holds(&image);
    let starts: Vec<_> = server.requests().iter().map(Request::start).collect();
    assert_eq!(starts, [0, 2 * MIB, 0]);

    // An answer of which only the head came has said which version it is.
    let (body, wrong) = (image.clone(), crate::image(48, 3 * MIB));
    let server = Server::start(move |number, request| match number {
        0 => Reply::file(&body, 0, "\"1\"").cut(0),
        1 => serve_file(&wrong, "\"2\"", request),
        _ => serve_file(&body, "\"1\"", request),
    });
    run(&unchecked(&server)).await.0.unwrap();
    bench.assert_holds(&image);

    // A server that breaks off each time is told as what it is.
    let body = image.clone();
    let server = Server::start(move |_, request| serve_file(&body, "W/\"1\"", request).cut(2 * MIB - 9));
    let failure = run(&unchecked(&server)).await.0.unwrap_err();
    assert_eq!(failure.code, Code::ImageChanged);
    assert!(failure.message.contains("nothing proves"), "{}", failure.message);
    assert!(server.requests().len() < 12, "{}", server.requests().len());
}

// ------------------------------------------------------------------------------------------------ bad slots

/// A real file of which a block cannot be read, from a certain time on until it is written.
struct Worn {
    inner: BlockDevice,
    reads_left: AtomicU64,
    is_written: AtomicBool,
}

const WORN: u64 = 3 * MIB as u64;

impl SlotDevice for Worn {
    fn capacity_bytes(&self) -> u64 {
        self.inner.capacity_bytes()
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.is_written.fetch_or(offset == WORN, Ordering::SeqCst);
        self.inner.write_all_at(data, offset)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let less = |left: u64| left.checked_sub(1);
        if offset == WORN
            && !self.is_written.load(Ordering::SeqCst)
            && self.reads_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_err()
        {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.inner.read_exact_at(buffer, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
}

#[tokio::test]
async fn an_old_block_that_cannot_be_read_costs_a_new_start_and_no_more() {
    let image = image(31, 12 * MIB);
    // A signature looks at the slot a second time.
    for (signed, reads) in [(false, 0), (true, 0), (true, 1)] {
        let bench = Bench::new(12 * MIB);
        let (server, released) = serve_signed_up_to(8 * MIB, &bench, &image);
        let mut job = bench.job(server.url("/image"), &image);
        if signed {
            job.spec.check_value = None;
        }
        let outcome = run_until(&job, all_but_the_last_mib(8 * MIB)).await;
        assert_eq!(outcome.unwrap_err().code, Code::Cancelled);
        released.store(true, Ordering::SeqCst);
        let inner = BlockDevice::open(&job.target, None, Path::new("/proc")).unwrap();
        let worn =
            Arc::new(Worn { inner, reads_left: AtomicU64::new(reads), is_written: AtomicBool::new(false) });
        run_on(worn.clone(), &job).await.unwrap();
        bench.assert_holds(&image);
        assert!(worn.is_written.load(Ordering::SeqCst), "it was met");
        assert_eq!(server.requests().last().unwrap().start(), 0, "{signed} {reads}");
    }
}

/// A real file behind a layer that fails as told.
struct Faulty {
    inner: BlockDevice,
    fault: fn(&Faulty, Operation) -> io::Result<()>,
    writes: AtomicU64,
    synced: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Write,
    Read,
    Sync,
}

impl SlotDevice for Faulty {
    fn capacity_bytes(&self) -> u64 {
        self.inner.capacity_bytes()
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        if let Err(error) = (self.fault)(self, Operation::Write) {
            // As a short write does: some of it has landed.
            self.inner.write_all_at(&data[..data.len() / 2], offset)?;
            return Err(error);
        }
        self.inner.write_all_at(data, offset)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_exact_at(buffer, offset)?;
        if (self.fault)(self, Operation::Read).is_err() {
            // The medium lost a bit after it had said that all is well.
            buffer[buffer.len() / 2] ^= 0x10;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        (self.fault)(self, Operation::Sync)?;
        self.synced.store(true, Ordering::SeqCst);
        self.inner.sync()
    }
}

/// Shows ID-Robots/clawbox#894.
#[tokio::test]
async fn a_slot_that_fails_is_told_apart_from_one_that_lies() {
    let image = image(21, 6 * MIB + 10);
    let eio = |faulty: &Faulty, operation| match operation {
        Operation::Write if faulty.writes.load(Ordering::SeqCst) == 3 => Err(io::Error::from_raw_os_error(5)),
        _ => Ok(()),
    };
    let full = |faulty: &Faulty, operation| match operation {
        Operation::Write if faulty.writes.load(Ordering::SeqCst) == 7 => {
            Err(io::Error::from_raw_os_error(28))
        }
        _ => Ok(()),
    };
    let no_sync = |_: &Faulty, operation| match operation {
        Operation::Sync => Err(io::Error::from_raw_os_error(5)),
        _ => Ok(()),
    };
    let lying = |faulty: &Faulty, operation| match operation {
        Operation::Read if faulty.synced.load(Ordering::SeqCst) => Err(io::ErrorKind::Other.into()),
        _ => Ok(()),
    };
    type Fault = fn(&Faulty, Operation) -> io::Result<()>;
    let cases: [(Fault, Code, &str); 4] = [
        (eio, Code::SlotFailed, "Input/output error"),
        (full, Code::SlotFailed, "No space left"),
        (no_sync, Code::SlotFailed, "sync"),
        (lying, Code::ReadBackMismatch, "medium"),
    ];
    for (fault, code, words) in cases {
        let bench = Bench::new(8 * MIB);
        let body = image.clone();
        let server = Server::start(move |_, request| serve_file(&body, "\"1\"", request));
        let mut job = bench.job(server.url("/image"), &image);
        job.limits.checkpoint = Duration::from_secs(3600);
        let inner = BlockDevice::open(&job.target, None, Path::new("/proc")).unwrap();
        let faulty = Faulty { inner, fault, writes: AtomicU64::new(0), synced: AtomicBool::new(false) };
        let failure = run_on(Arc::new(faulty), &job).await.unwrap_err();
        assert_eq!(failure.code, code);
        assert!(failure.message.contains(words), "{}", failure.message);
        assert!(!failure.message.contains('\n'));
    }
}

#[tokio::test]
async fn a_slot_that_has_failed_is_told_although_the_server_has_fallen_silent() {
    let image = image(33, 40 * MIB);
    let eio = |faulty: &Faulty, operation| match operation {
        Operation::Write if faulty.writes.load(Ordering::SeqCst) == 3 => Err(io::Error::from_raw_os_error(5)),
        _ => Ok(()),
    };
    let lying = |faulty: &Faulty, operation| match operation {
        Operation::Read if faulty.synced.load(Ordering::SeqCst) => Err(io::ErrorKind::Other.into()),
        _ => Ok(()),
    };
    type Fault = fn(&Faulty, Operation) -> io::Result<()>;
    let cases: [(Fault, Code); 2] = [(eio, Code::SlotFailed), (lying, Code::ReadBackMismatch)];
    for (fault, code) in cases {
        let bench = Bench::new(40 * MIB);
        let body = image.clone();
        let server =
            Server::start(move |_, request| serve_file(&body, "\"1\"", request).cut(38 * MIB).hang());
        let mut job = bench.job(server.url("/image"), &image);
        (job.limits.stall, job.limits.checkpoint) = (Duration::from_secs(3600), Duration::from_secs(3600));
        let inner = BlockDevice::open(&job.target, None, Path::new("/proc")).unwrap();
        let faulty = Faulty { inner, fault, writes: AtomicU64::new(0), synced: AtomicBool::new(false) };
        let outcome = tokio::time::timeout(LIMIT, run_on(Arc::new(faulty), &job)).await.unwrap();
        assert_eq!(outcome.unwrap_err().code, code);
    }
}

/// A real file that takes nothing before the other end of the gate is gone.
struct Hung {
    inner: BlockDevice,
    gate: Mutex<mpsc::Receiver<()>>,
}

impl SlotDevice for Hung {
    fn capacity_bytes(&self) -> u64 {
        self.inner.capacity_bytes()
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        assert!(self.gate.lock().unwrap().recv().is_err());
        self.inner.write_all_at(data, offset)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.inner.read_exact_at(buffer, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
}

#[tokio::test]
async fn a_medium_that_hangs_is_not_taken_for_a_server_that_is_waited_for() {
    let image = image(34, 4 * MIB);
    let bench = Bench::new(4 * MIB);
    let body = image.clone();
    let server = Server::start(move |number, request| match number {
        0 => serve_file(&body, "\"1\"", request).cut(2 * MIB),
        _ => Reply::status(503).with("retry-after", "3600"),
    });
    let job = bench.job(server.url("/image"), &image);
    let inner = BlockDevice::open(&job.target, None, Path::new("/proc")).unwrap();
    let (open_gate, gate) = mpsc::channel();
    let device = Arc::new(Hung { inner, gate: Mutex::new(gate) });
    let progress = watch::Sender::new(Progress::default());
    let mut seen = progress.subscribe();
    let (cancel, cancelled) = watch::channel(false);
    let watcher = async {
        seen.wait_for(|now| now.phase == Phase::Waiting).await.unwrap();
        cancel.send_replace(true);
        let hangs = seen.wait_for(|now| now.phase == Phase::Downloading);
        tokio::time::timeout(LIMIT, hangs).await.expect("the server is waited for no more").unwrap();
        drop(open_gate);
    };
    let (outcome, ()) = tokio::join!(install_to(device, &job, &progress, cancelled), watcher);
    assert_eq!(outcome.unwrap_err().code, Code::Cancelled);
}

/// A real file that says it is larger than it is: once the first section was found good, it is written over.
struct WrapsAround {
    inner: BlockDevice,
    blocks_read: watch::Sender<usize>,
}

impl SlotDevice for WrapsAround {
    fn capacity_bytes(&self) -> u64 {
        self.inner.capacity_bytes()
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.inner.write_all_at(data, offset)?;
        if offset == 39 * MIB as u64 {
            let mut blocks_read = self.blocks_read.subscribe();
            let first_section = blocks_read.wait_for(|blocks| *blocks >= 32);
            let limited = tokio::time::timeout(Duration::from_secs(20), first_section);
            tokio::runtime::Handle::current().block_on(limited).unwrap().unwrap();
            self.inner.write_all_at(data, 0)?;
        }
        Ok(())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if buffer.len() == MIB {
            self.blocks_read.send_modify(|blocks| *blocks += 1);
        }
        self.inner.read_exact_at(buffer, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
}

#[tokio::test]
async fn a_medium_that_writes_over_what_was_found_good_is_caught_at_the_end() {
    let image = image(23, 40 * MIB);
    let bench = Bench::new(40 * MIB);
    let body = image.clone();
    let server = Server::start(move |_, request| serve_file(&body, "\"1\"", request));
    let job = bench.job(server.url("/image"), &image);
    let inner = BlockDevice::open(&job.target, None, Path::new("/proc")).unwrap();
    let device = WrapsAround { inner, blocks_read: watch::Sender::new(0) };
    let failure = run_on(Arc::new(device), &job).await.unwrap_err();
    assert_eq!(failure.code, Code::ReadBackMismatch);
    assert!(failure.message.contains("near byte 0:"), "{}", failure.message);
}

/// Shows F22.
#[tokio::test]
async fn what_is_no_free_slot_is_refused_before_anything_is_fetched() {
    let image = image(22, MIB);
    let bench = Bench::new(2 * MIB);
    let body = image.clone();
    let server = Server::start(move |_, request| serve_file(&body, "\"1\"", request));
    let good = bench.job(server.url("/image"), &image);
    std::os::unix::fs::symlink(bench.path("slot"), bench.path("alias")).unwrap();
    for (what, job) in [
        ("missing", Job { target: bench.path("missing"), ..good.clone() }),
        ("a directory", Job { target: bench.path("keys"), ..good.clone() }),
        ("a character device", Job { target: "/dev/null".into(), ..good.clone() }),
        ("the running slot", Job { running: Some(bench.path("slot")), ..good.clone() }),
        ("its alias", Job { target: bench.path("alias"), running: Some(bench.path("slot")), ..good.clone() }),
        ("running slot unknown", Job { running: Some(bench.path("missing")), ..good.clone() }),
    ] {
        assert_eq!(code_of(&job).await, Code::SlotUnusable, "{what}");
    }
    assert!(server.requests().is_empty());
    assert!(!bench.path("missing").exists(), "nothing is created");
    bench.assert_untouched();
}

/// A loop device over a file; detached when dropped.
struct Loop(String);

impl Loop {
    /// `None` where this user may not make one.
    fn attach(file: &Path) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
            return None;
        }
        let name = shell("losetup", &["-f", "--show", file.to_str().unwrap()]);
        // A read-only mark outlives the user who set it.
        shell("blockdev", &["--setrw", &name]);
        Some(Self(name))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// Shows F22; home-assistant/operating-system#2031, #2521, #2850, #3995, #4419, #4540;
/// UpdateHub/updatehub#197, #353.
#[tokio::test]
async fn a_block_device_is_written_and_one_in_use_is_refused() {
    let image = image(23, 5 * MIB + 700);
    // An odd number of sectors.
    let bench = Bench::new(16 * MIB + 512);
    let Some(device) = Loop::attach(&bench.path("slot")) else {
        eprintln!("skipped: loop devices need root");
        return;
    };
    let body = image.clone();
    let server = Server::start(move |_, request| serve_file(&body, "\"1\"", request));
    let job = Job { target: device.0.clone().into(), ..bench.job(server.url("/image"), &image) };
    let (outcome, progress) = run(&job).await;
    outcome.unwrap();
    assert_eq!(progress.written_bytes, image.len() as u64);
    bench.assert_holds(&image);
    assert_eq!(run(&job).await.1.written_bytes, 0);

    let fetched = server.requests().len();
    let claim = BlockDevice::open(&job.target, None, Path::new("/proc")).unwrap();
    let failure = run(&job).await.0.unwrap_err();
    assert_eq!(failure.code, Code::SlotUnusable);
    assert!(failure.message.contains("in use"), "{}", failure.message);
    drop(claim);

    shell("mkfs.ext4", &["-q", "-F", &device.0]);
    let mount_point = bench.path("mnt");
    fs::create_dir(&mount_point).unwrap();
    shell("mount", &[&device.0, mount_point.to_str().unwrap()]);
    let failure = run(&job).await.0.unwrap_err();
    shell("umount", &[mount_point.to_str().unwrap()]);
    assert_eq!(failure.code, Code::SlotUnusable);
    assert!(failure.message.contains("is mounted at"), "{}", failure.message);

    shell("mkswap", &[&device.0]);
    shell("swapon", &[&device.0]);
    let failure = run(&job).await.0.unwrap_err();
    shell("swapoff", &[&device.0]);
    assert_eq!(failure.code, Code::SlotUnusable);
    assert!(failure.message.contains("swap"), "{}", failure.message);

    let theirs = bench.path("theirs");
    fs::create_dir(&theirs).unwrap();
    std::os::unix::fs::symlink(&device.0, theirs.join("slot")).unwrap();
    std::os::unix::fs::chown(&theirs, Some(65_534), None).unwrap();
    let failure = run(&Job { target: theirs.join("slot"), ..job.clone() }).await.0.unwrap_err();
    assert_eq!(failure.code, Code::SlotUnusable);
    assert!(failure.message.contains("chown"), "{}", failure.message);
    assert_eq!(server.requests().len(), fetched, "refused before anything is fetched");
    run(&job).await.0.unwrap();
}

/// Shows rauc/rauc-hawkbit-updater#158.
#[tokio::test]
async fn an_install_can_be_cancelled_while_it_waits() {
    let bench = Bench::new(MIB);
    let path = |name: &str| bench.path(name).display().to_string();
    shell("minisign", &["-G", "-W", "-p", &path("keys/a.pub"), "-s", &path("a.key")]);
    // For the image, or for its signature.
    for check_value in [Some(digest(b"x")), None] {
        let server = Server::start(|_, _| Reply::status(503).with("retry-after", "3600"));
        let mut job = bench.job(server.url("/image"), b"x");
        job.spec.check_value = check_value;
        let requests = &server.requests;
        let outcome =
            run_until(&job, |now| now.phase == Phase::Waiting && !requests.lock().unwrap().is_empty());
        assert_eq!(outcome.await.unwrap_err().code, Code::Cancelled);
        bench.assert_untouched();
    }
}
