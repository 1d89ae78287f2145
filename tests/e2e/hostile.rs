//! A networked part in the hands of an attacker: whatever it says, nothing unverified is ever activated.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use hub_emulator::board::{Slot, Traits, board_image};
use serde_json::{Value, json};

use crate::cloud::sha256;
use crate::rig::{Choice, IMAGE_BYTES, Rig};
use crate::split::Meeting;

/// A frame, laid out by hand: two lengths, JSON, bytes.
fn frame(head: &Value, body: &[u8]) -> Vec<u8> {
    let head = head.to_string();
    let lengths = [head.len(), body.len()].map(|length| u32::try_from(length).unwrap().to_le_bytes());
    [lengths.concat().as_slice(), head.as_bytes(), body].concat()
}

/// What an image server's answer of `total_bytes` becomes, with these bytes.
fn answer(total_bytes: usize, bytes: &[u8]) -> Vec<u8> {
    let validator = json!({"etag": "\"1\"", "lastModified": null, "totalBytes": total_bytes});
    let opened = json!({"opened": {"validator": validator, "part": false}});
    let chunks =
        bytes.chunks(100_000).map(|bytes| frame(&json!({"chunk": {"joinedUnproven": false}}), bytes));
    [frame(&opened, &[]), chunks.collect::<Vec<_>>().concat(), frame(&json!("end"), &[])].concat()
}

/// Reads one frame of the agent.
fn said(stream: &mut UnixStream) -> Option<(Value, Vec<u8>)> {
    let mut lengths = [[0; 4]; 2];
    stream.read_exact(lengths.as_flattened_mut()).ok()?;
    let mut part = |length: [u8; 4]| {
        let mut part = vec![0; usize::try_from(u32::from_le_bytes(length)).unwrap()];
        stream.read_exact(&mut part).ok().map(|()| part)
    };
    let (head, body) = (part(lengths[0])?, part(lengths[1])?);
    Some((serde_json::from_slice(&head).unwrap(), body))
}

/// Listens in place of the networked part: gives `fetched` to every download whose address ends in `name`, nothing
/// to any other, and says `session` to every session. Then it waits for the agent to hang up.
fn listen(socket: &Path, name: &'static str, fetched: Vec<u8>, session: Vec<u8>) {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, fetched, session) = (stream.unwrap(), fetched.clone(), session.clone());
            thread::spawn(move || {
                let (opening, _) = said(&mut stream)?;
                let uri = opening["fetch"]["uri"].as_str();
                let words = match uri {
                    None => session,
                    Some(uri) if uri.ends_with(name) => fetched,
                    Some(_) => answer(7, b"forged\n"),
                };
                // The agent may hang up before the end.
                let _ = stream.write_all(&words);
                // A connection that breaks off there is another story than one that stays silent.
                while said(&mut stream).is_some() {}
                Some(())
            });
        }
    });
}

/// A board whose networked part is the attacker.
async fn board(name: &'static str, fetched: Vec<u8>, session: Vec<u8>, config: &str) -> (Rig, Meeting) {
    let meeting = Meeting::new();
    listen(&meeting.socket(), name, fetched, session);
    let agent = meeting.agent();
    let mut rig = Rig::new(Choice { daemon: &agent, extra_config: config, ..Choice::default() });
    rig.board.power_on().await.unwrap();
    rig.wait(|_| true).await;
    (rig, meeting)
}

fn forged() -> Vec<u8> {
    board_image("6.6.6", Traits::default(), IMAGE_BYTES, 66)
}

#[tokio::test]
async fn no_answer_to_a_download_gets_past_the_check() {
    let image = board_image("2.0", Traits::default(), IMAGE_BYTES, 7);
    let (check_value, size) = (sha256(&image), image.len().to_string());
    let mut cut = image.clone();
    cut.truncate(IMAGE_BYTES / 2);
    let longer = [image.as_slice(), b"more"].concat();
    let failed =
        |code: &str| frame(&json!({"failed": {"code": code, "message": "two\nlines\u{1b}[2J"}}), &[]);
    let huge = [0xff; 8].to_vec();
    let out_of_turn = frame(&json!({"chunk": {"joinedUnproven": false}}), &image[..1000]);
    let head_too_long = [600_000_u32.to_le_bytes(), 0_u32.to_le_bytes()].concat();
    for (what, fetched, code) in [
        ("another image", answer(IMAGE_BYTES, &forged()), "DigestMismatch"),
        ("half of it", answer(IMAGE_BYTES, &cut), "SizeMismatch"),
        ("more of it", answer(IMAGE_BYTES, &longer), "SizeMismatch"),
        ("another size", answer(longer.len(), &longer), "SizeMismatch"),
        ("huge lengths", huge, "ServerUnreachable"),
        ("a long head", head_too_long, "ServerUnreachable"),
        ("no JSON", [[3, 0, 0, 0, 0, 0, 0, 0].as_slice(), b"}{}"].concat(), "ServerUnreachable"),
        ("an unknown message", frame(&json!({"write": {"offset": 0}}), &[]), "ServerUnreachable"),
        ("bytes before the answer", out_of_turn, "ServerUnreachable"),
        ("another part's failure", failed("HealthCheckFailed"), "ServerRefused"),
        ("an end", failed("ImageNotFound"), "ImageNotFound"),
    ] {
        let config = "[install]\nretry_limit = \"1s\"\n";
        let (rig, _meeting) = board("/2.0.img", fetched, Vec::new(), config).await;
        let before = rig.board.environment().unwrap();
        let uri = "http://images.example/2.0.img";
        let install = ["install", uri, "--check-value", &check_value, "--size", &size, "--no-wait"];
        assert!(rig.twinboot(&install).await.status.success(), "{what}");
        let report = rig.outcome().await;
        let error = &report["firmware"]["error"];
        assert_eq!((&report["firmwareStatus"], &error["code"]), (&json!("failed"), &json!(code)), "{what}");
        assert!(!error["message"].as_str().unwrap().contains(char::is_control), "{what}: {error}");
        assert_eq!(rig.board.environment().unwrap(), before, "{what}");
    }
}

/// The attacker calls the method himself, with the digest of his own image.
fn forged_call() -> Vec<u8> {
    let image = forged();
    let call = json!({
        "fwPackageUri": "https://attacker.example/forged.img",
        "fwPackageCheckValue": sha256(&image),
        "fwVersion": "6.6.6",
        "updateId": "forged",
    });
    [
        frame(&json!("connected"), &[]),
        frame(&json!({"method": {"call": 1, "name": "firmwareUpdate"}}), call.to_string().as_bytes()),
    ]
    .concat()
}

#[tokio::test]
async fn a_forged_request_is_stopped_by_the_demand_for_a_signature() {
    let keys = tempfile::tempdir().unwrap();
    let public = "untrusted comment: a key\nRWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n";
    std::fs::write(keys.path().join("release.pub"), public).unwrap();
    let config =
        format!("[install]\ncheck = \"signature\"\nkeys = {:?}\nretry_limit = \"1s\"\n", keys.path());
    let fetched = answer(IMAGE_BYTES, &forged());
    let (rig, _meeting) = board("/forged.img", fetched, forged_call(), &config).await;
    let report = rig.outcome().await;
    assert_eq!(report["firmware"]["error"]["code"], "SignatureInvalid", "{report:#}");
    assert_eq!(rig.variable("boot_slot"), "a");
    assert_eq!((rig.board.boots().len(), rig.board.booted()), (1, Some(Slot::A)));
}

/// Why [`a_forged_request_is_stopped_by_the_demand_for_a_signature`]: it is the demand that stops it.
#[tokio::test]
async fn a_check_value_alone_trusts_whoever_sends_the_request() {
    let fetched = answer(IMAGE_BYTES, &forged());
    let (rig, _meeting) = board("/forged.img", fetched, forged_call(), "[health]\nhub = \"never\"\n").await;
    assert_eq!(rig.outcome().await["firmwareStatus"], "completed");
    assert_eq!(rig.board.booted(), Some(Slot::B));
}

#[tokio::test]
async fn a_session_that_makes_no_sense_leaves_the_device_as_it_was() {
    let call = frame(&json!({"method": {"call": 1, "name": "firmwareUpdateStatus"}}), b"");
    let flood = std::iter::repeat_n(call, 500).collect::<Vec<_>>().concat();
    let unknown = frame(&json!({"activate": "b"}), &[]);
    let long = frame(&json!({"disconnected": {"reason": "x".repeat(400_000)}}), &[]);
    let desired = frame(&json!({"desired": {"firmware": {"fwVersion": []}}}), &[]);
    for session in [vec![0xff; 64], unknown, long, desired, flood] {
        let (rig, _meeting) = board("none", Vec::new(), session, "").await;
        // It still does what a person at the device wants.
        rig.install("2.0", Traits::default()).await;
        let completed = |status: &Value| status["reported"]["firmwareStatus"] == "completed";
        let status = rig.wait(completed).await;
        assert!(status["hubDetail"].as_str().unwrap().len() < 1000, "{status}");
    }
}
