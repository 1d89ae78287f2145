//! The image server by itself, asked by a client that shares nothing with it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use hub_emulator::ca::Authority;
use hub_emulator::images::{DropFault, Faults, ImageServer, StatusFault};
use reqwest::{Client, Method, Response, StatusCode};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

const LIMIT: Duration = Duration::from_secs(30);
const NAME: &str = "root.img";

/// Trusts `authority` alone.
fn client(authority: &Authority) -> Client {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let tls = tls.unwrap().with_root_certificates(roots).with_no_client_auth();
    let redirect = reqwest::redirect::Policy::none();
    Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(redirect)
        .no_proxy()
        .timeout(LIMIT)
        .build()
        .unwrap()
}

/// A server with `length` bytes of content under [`NAME`].
async fn server(length: usize) -> (ImageServer, Client, Vec<u8>) {
    let authority = Authority::new().unwrap();
    let server = ImageServer::start(Some(authority.server_config())).await.unwrap();
    let content: Vec<u8> = (0..length).map(|index| u8::try_from(index % 251).unwrap()).collect();
    server.put(NAME, content.clone());
    (server, client(&authority), content)
}

async fn get(client: &Client, server: &ImageServer, headers: &[(&str, &str)]) -> Response {
    let request = headers
        .iter()
        .fold(client.get(server.url(NAME)), |request, (name, value)| request.header(*name, *value));
    request.send().await.unwrap()
}

fn header<'response>(response: &'response Response, name: &str) -> &'response str {
    response.headers().get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

/// What came until the connection ended, and whether that was the end of the answer.
async fn received(mut response: Response) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => return (bytes, true),
            Err(_) => return (bytes, false),
        }
    }
}

#[tokio::test]
async fn content_comes_whole_or_in_part_and_is_counted() {
    let (server, client, content) = server(1_000_000).await;
    let whole = get(&client, &server, &[]).await;
    assert_eq!(whole.status(), StatusCode::OK);
    let etag = header(&whole, "etag").to_owned();
    assert_eq!(whole.bytes().await.unwrap(), content);

    let part = get(&client, &server, &[("range", "bytes=999000-"), ("if-range", &etag)]).await;
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(header(&part, "content-range"), "bytes 999000-999999/1000000");
    assert_eq!(part.bytes().await.unwrap(), content[999_000..]);

    let changed = get(&client, &server, &[("range", "bytes=5-9"), ("if-range", "\"other\"")]).await;
    assert_eq!((changed.status(), changed.content_length()), (StatusCode::OK, Some(1_000_000)));
    assert_eq!(changed.bytes().await.unwrap(), content);

    let past = get(&client, &server, &[("range", "bytes=1000000-")]).await;
    assert_eq!(past.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(header(&past, "content-range"), "bytes */1000000");

    assert_eq!(server.requests(NAME), 4);
    assert_eq!(server.bytes_sent(NAME), 2_001_000);
    assert_eq!(server.ranges(NAME)[1].as_deref(), Some("bytes=999000-"));
}

#[tokio::test]
async fn head_tells_the_size_and_sends_nothing() {
    let (server, client, _) = server(5000).await;
    let response = client.request(Method::HEAD, server.url(NAME)).send().await.unwrap();
    assert_eq!(header(&response, "content-length"), "5000");
    assert_eq!(header(&response, "accept-ranges"), "bytes");
    assert_eq!((server.requests(NAME), server.bytes_sent(NAME)), (1, 0));
}

#[tokio::test]
async fn a_name_that_is_not_there_is_404_and_counted() {
    let (server, client, _) = server(1).await;
    let response = client.get(server.url("other?sig=secret")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(server.requests("other"), 1);
}

#[tokio::test]
async fn a_file_is_served_in_pieces_without_tls_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    tokio::fs::write(&path, &content).await.unwrap();
    let server = ImageServer::start(None).await.unwrap();
    server.put_file(NAME, &path);
    let client = client(&Authority::new().unwrap());
    assert!(server.url(NAME).starts_with("http://"));
    let whole = get(&client, &server, &[]).await.bytes().await.unwrap();
    assert!(whole == content, "{} of {} bytes", whole.len(), content.len());
    let part = get(&client, &server, &[("range", "bytes=-1000001")]).await.bytes().await.unwrap();
    assert!(part == content[content.len() - 1_000_001..]);
}

#[tokio::test]
async fn a_dropped_connection_delivers_what_it_said_and_only_so_often() {
    let (server, client, content) = server(2_000_000).await;
    let drop = Some(DropFault { after_bytes: 700_000, requests: 2 });
    server.set_faults(NAME, Faults { drop, ..Faults::default() });
    for _ in 0..2 {
        let (bytes, complete) = received(get(&client, &server, &[]).await).await;
        assert!(!complete);
        assert!(bytes == content[..700_000], "{} bytes", bytes.len());
    }
    let (bytes, complete) = received(get(&client, &server, &[("range", "bytes=700000-")]).await).await;
    assert!(complete && bytes == content[700_000..]);
    assert_eq!(server.bytes_sent(NAME), 2 * 700_000 + 1_300_000);
}

#[tokio::test]
async fn a_stalled_answer_sends_its_bytes_and_then_nothing() {
    let (server, client, content) = server(500_000).await;
    server.set_faults(NAME, Faults { stall_after_bytes: Some(300_000), ..Faults::default() });
    let mut response = get(&client, &server, &[]).await;
    let mut bytes = Vec::new();
    while bytes.len() < 300_000 {
        bytes.extend_from_slice(&response.chunk().await.unwrap().unwrap());
    }
    assert!(bytes == content[..300_000]);
    let more = tokio::time::timeout(Duration::from_millis(200), response.chunk()).await;
    assert!(more.is_err(), "the stall ended");
}

#[tokio::test]
async fn ranges_are_ignored_or_wrong_and_etags_change_when_told_so() {
    let (server, client, content) = server(1000).await;
    server.set_faults(NAME, Faults { ignore_range: true, ..Faults::default() });
    let response = get(&client, &server, &[("range", "bytes=10-19")]).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.bytes().await.unwrap(), content);

    server.set_faults(NAME, Faults { wrong_content_range: true, ..Faults::default() });
    let response = get(&client, &server, &[("range", "bytes=10-19")]).await;
    assert_eq!(header(&response, "content-range"), "bytes 11-20/1000");

    server.set_faults(NAME, Faults { etag_changes_each_request: true, ..Faults::default() });
    let first = header(&get(&client, &server, &[]).await, "etag").to_owned();
    let second = get(&client, &server, &[("range", "bytes=10-19"), ("if-range", &first)]).await;
    assert_eq!(second.status(), StatusCode::OK);
    assert_ne!(header(&second, "etag"), first);
}

#[tokio::test]
async fn a_status_comes_so_often_with_its_retry_after_and_then_the_content() {
    let (server, client, _) = server(10).await;
    let status = Some(StatusFault { code: 503, retry_after_secs: Some(2), requests: 2 });
    server.set_faults(NAME, Faults { status, ..Faults::default() });
    for _ in 0..2 {
        let response = get(&client, &server, &[]).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(header(&response, "retry-after"), "2");
    }
    assert_eq!(get(&client, &server, &[]).await.status(), StatusCode::OK);
    let redirect_to = Some("https://elsewhere.example/x".to_owned());
    server.set_faults(NAME, Faults { redirect_to, ..Faults::default() });
    let response = get(&client, &server, &[]).await;
    assert_eq!(
        (response.status(), header(&response, "location")),
        (StatusCode::FOUND, "https://elsewhere.example/x")
    );
}

#[tokio::test]
async fn content_is_shorter_longer_or_slower_when_told_so() {
    let (server, client, content) = server(1000).await;
    server.set_faults(NAME, Faults { truncate_to: Some(400), ..Faults::default() });
    assert_eq!(get(&client, &server, &[]).await.bytes().await.unwrap(), content[..400]);

    server.set_faults(NAME, Faults { extra_bytes: 24, ..Faults::default() });
    let longer = get(&client, &server, &[("range", "bytes=990-")]).await.bytes().await.unwrap();
    assert_eq!(longer[..10], content[990..]);
    assert_eq!(longer[10..], [0; 24]);

    server.set_faults(NAME, Faults { bytes_per_sec: Some(5000), ..Faults::default() });
    let started = tokio::time::Instant::now();
    assert_eq!(get(&client, &server, &[]).await.bytes().await.unwrap(), content);
    assert!(started.elapsed() >= Duration::from_millis(200));
}
