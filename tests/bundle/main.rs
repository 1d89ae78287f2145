//! Bundles into real files, from a real HTTP server that misbehaves as told.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "what goes wrong here fails the test"
)]

mod keys;
mod make;
mod refused;
mod safe;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use hub_emulator::images::{DropFault, Faults, FlipFault, ImageServer, StatusFault};
use make::{digest, made, made_beside, made_of, made_patched};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use twinboot::bundle::Manifest;
use twinboot::install::slot::{BlockDevice, SlotDevice};
use twinboot::install::verify::{ImageCheck, Trust};
use twinboot::install::{
    Device, ImageSpec, Job, Limits, Other, Outcome, Phase, Progress, install, install_to,
};
use twinboot::update::record::Denied;
use twinboot::update::{Code, Failure, Sha256Digest};

const MIB: usize = 1 << 20;
const NAME: &str = "b.twb";

/// For what would wait for ever.
const LIMIT: Duration = Duration::from_secs(60);

/// Noise and what compresses well; zeros and a stretch that repeats.
fn image(seed: u64, len: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes: Vec<u8> = (0..len).map(|i| i.to_le_bytes()[1]).collect();
    for page in bytes.chunks_mut(6000) {
        let noise = page.len() / 2;
        random.fill(&mut page[..noise]);
    }
    bytes[len / 2..len / 2 + 700_000].fill(0);
    bytes.copy_within(10_000..310_000, len - 500_000);
    bytes
}

/// An image as the next release might be: most is the same, but elsewhere.
fn changed(old: &[u8]) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(9);
    let mut new = old.to_vec();
    let inserted: Vec<u8> = (0..5000).map(|_| random.u8(..)).collect();
    new.splice(100_000..100_000, inserted);
    new[2 * MIB..2 * MIB + 50_000].fill_with(|| random.u8(..));
    new.truncate(old.len());
    new
}

/// A server, and a directory with a slot file that holds an old system.
struct Bench {
    directory: TempDir,
    server: ImageServer,
}

impl Bench {
    async fn new(slot_bytes: usize, bundle: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("keys")).unwrap();
        fs::write(directory.path().join("slot"), vec![0xee; slot_bytes]).unwrap();
        let server = ImageServer::start(None).await.unwrap();
        server.put(NAME, bundle.to_vec());
        Self { directory, server }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn job(&self, manifest: &[u8]) -> Job {
        Job {
            spec: ImageSpec {
                uri: self.server.url(NAME),
                check_value: Some(digest(manifest)),
                size_bytes: None,
            },
            target: self.path("slot"),
            running: Some(self.path("running")).filter(|path| path.exists()),
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
                stall: Duration::from_millis(1000),
                first_pause: Duration::from_millis(1),
                longest_pause: Duration::from_millis(10),
                checkpoint: Duration::ZERO,
            },
        }
    }

    fn sent(&self) -> u64 {
        self.server.bytes_sent(NAME)
    }

    fn assert_holds(&self, image: &[u8]) {
        let slot = fs::read(self.path("slot")).unwrap();
        assert!(slot[..image.len()] == *image, "the slot holds the image");
        assert!(slot[image.len()..].iter().all(|byte| *byte == 0xee), "what follows the image is untouched");
    }

    /// Whether each block is as it was or as it should be.
    fn assert_nothing_else(&self, image: &[u8]) {
        let slot = fs::read(self.path("slot")).unwrap();
        for (block, wanted) in slot.chunks(MIB).zip(image.chunks(MIB)) {
            let block = &block[..wanted.len()];
            assert!(block == wanted || block.iter().all(|byte| *byte == 0xee), "a byte that nobody signed");
        }
    }

    fn assert_untouched(&self) {
        assert!(fs::read(self.path("slot")).unwrap().iter().all(|byte| *byte == 0xee), "nothing was written");
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

async fn code_of(job: &Job) -> Code {
    run(job).await.0.unwrap_err().code
}

/// Runs until a level of the progress is reached, then lets `act` do something.
async fn run_and(
    job: &Job,
    reached: impl Fn(&Progress) -> bool,
    act: impl FnOnce(&watch::Sender<bool>),
) -> Outcome {
    let progress = watch::Sender::new(Progress::default());
    let mut seen = progress.subscribe();
    let (cancel, cancelled) = watch::channel(false);
    let watcher = async {
        seen.wait_for(|now| reached(now)).await.unwrap();
        act(&cancel);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        outcome = install(job, &progress, cancelled) => outcome,
        () = watcher => panic!("the watcher never ends"),
    }
}

// ---------------------------------------------------------------------------------------------- what is fetched

#[tokio::test]
async fn an_empty_slot_gets_everything_once_and_the_same_again_costs_nothing() {
    let image = image(1, 5 * MIB + 1234);
    let made = made(&image, |_| {});
    let bench = Bench::new(7 * MIB + 512, &made.bytes).await;
    let job = bench.job(&made.manifest);
    let (outcome, progress) = run(&job).await;
    let installed = outcome.unwrap();
    assert_eq!((installed.size_bytes, installed.version.as_deref()), (image.len() as u64, Some("2.0")));
    assert_eq!(installed.source_digest, digest(&made.manifest));
    bench.assert_holds(&image);
    let slack = 4096;
    assert!(bench.sent() <= made.bytes.len() as u64 + slack, "each byte once");
    assert!(progress.fetched_bytes <= made.bytes.len() as u64 + slack, "{progress:?}");
    assert_eq!(progress.written_bytes, image.len() as u64);
    assert_eq!((progress.bytes, progress.total_bytes), (image.len() as u64, Some(image.len() as u64)));
    // Two for what comes before the pieces, and for these no more than their bytes want.
    let most = 3 + (made.bytes.len() / (128 << 10)) as u64;
    assert!(bench.server.requests(NAME) <= most, "{:?}", bench.server.ranges(NAME));

    let before = bench.sent();
    let (outcome, progress) = run(&job).await;
    outcome.unwrap();
    bench.assert_holds(&image);
    assert!(bench.sent() - before <= (made.pieces_offset as u64).max(4096), "manifest and index alone");
    assert_eq!((progress.written_bytes, progress.kept_bytes), (0, image.len() as u64));
    assert_eq!(progress.saved_bytes, (made.bytes.len() - made.pieces_offset) as u64);
    assert_eq!(progress.fresh_bytes, 0, "what is passed again is no headway");
}

#[tokio::test]
async fn what_the_running_slot_holds_is_copied_and_what_the_target_holds_is_kept() {
    let old = image(2, 5 * MIB);
    let new = changed(&old);
    let made = made(&new, |_| {});
    let bench = Bench::new(6 * MIB, &made.bytes).await;
    fs::write(bench.path("running"), &old).unwrap();
    let mut target = vec![0xee; 6 * MIB];
    target[3 * MIB + 17..5 * MIB].copy_from_slice(&new[3 * MIB + 17..]);
    fs::write(bench.path("slot"), target).unwrap();
    let (outcome, progress) = run(&bench.job(&made.manifest)).await;
    outcome.unwrap();
    bench.assert_holds(&new);
    let fetched = bench.sent() - made.pieces_offset as u64;
    assert!(fetched < 200_000, "5 KB and 50 KB are new, and their chunks: {fetched}");
    assert!(progress.copied_bytes > 2 * MIB as u64, "{progress:?}");
    assert_eq!((progress.kept_bytes, progress.written_bytes), (MIB as u64, 4 * MIB as u64), "{progress:?}");

    // A slot that lies: what was copied is fetched instead.
    fs::write(bench.path("slot"), vec![0xee; 6 * MIB]).unwrap();
    let mut lies = old.clone();
    let seen = std::cell::Cell::new(false);
    let running = bench.path("running");
    lies[3 * MIB..4 * MIB].fill(1);
    let job = bench.job(&made.manifest);
    let outcome = run_and(
        &job,
        |p| p.written_bytes > 0 && !seen.replace(true),
        |_| fs::write(&running, &lies).unwrap(),
    );
    outcome.await.unwrap();
    bench.assert_holds(&new);
}

#[tokio::test]
async fn a_patch_of_what_runs_is_used_and_only_then() {
    let old = image(14, 4 * MIB);
    let mut new = changed(&old);
    for at in (0..4 * MIB).step_by(400_000) {
        new[at + 1000] ^= 0xff;
    }
    let made = made_patched(&old, &new);
    let bench = Bench::new(5 * MIB, &made.bytes).await;
    let job = || bench.job(&made.manifest);
    let without = async |running: Vec<u8>| {
        fs::write(bench.path("running"), running).unwrap();
        fs::write(bench.path("slot"), vec![0xee; 5 * MIB]).unwrap();
        let before = bench.sent();
        run(&job()).await.0.unwrap();
        bench.assert_holds(&new);
        bench.sent() - before
    };
    let all = without(vec![1; 4 * MIB]).await;
    let patched = without(old.clone()).await;
    let chunks_alone = {
        // Half of its samples are gone: it is another image, though much of it is the same.
        let mut other = old.clone();
        (0..4).for_each(|i| other[i * 300_000] ^= 1);
        without(other).await
    };
    assert!(patched < chunks_alone && chunks_alone < all, "{patched} {chunks_alone} {all}");
    // The same again wants no patch, not even its table.
    fs::write(bench.path("running"), &old).unwrap();
    let before = bench.server.requests(NAME);
    run(&job()).await.0.unwrap();
    assert_eq!(bench.server.requests(NAME) - before, 2, "manifest and index alone");
    // A base that was mounted, and is not quite what it was: what a frame makes of it shows, and is fetched.
    let mut mounted = old.clone();
    mounted[300_000..300_100].fill(7);
    for at in (0..4 * MIB).step_by(400_000) {
        mounted[at + 5000] ^= 0xff;
    }
    without(mounted).await;
    // Resumed: what is there is kept, also in the middle of a frame.
    let mut target = vec![0xee; 5 * MIB];
    target[..MIB + 100].copy_from_slice(&new[..MIB + 100]);
    fs::write(bench.path("running"), &old).unwrap();
    fs::write(bench.path("slot"), target).unwrap();
    run(&job()).await.0.unwrap();
    bench.assert_holds(&new);
    // Without ranges the chunks must do.
    bench.server.set_faults(NAME, Faults { ignore_range: true, ..Faults::default() });
    without(old.clone()).await;
}

#[tokio::test]
async fn patches_in_a_file_beside_the_bundle_are_found_by_its_name() {
    let old = image(15, 4 * MIB);
    let mut new = old.clone();
    for at in (0..4 * MIB).step_by(300_000) {
        new[at + 1000] ^= 0xff;
    }
    const BESIDE: &str = "patches-from-1.twb";
    let (made, beside) = made_beside((&old, &new), BESIDE, None, |_| Vec::new());
    let bench = Bench::new(5 * MIB, &made.bytes).await;
    fs::write(bench.path("running"), &old).unwrap();
    let mut job = bench.job(&made.manifest);
    let fetch = async |job: &Job, beside: Option<&[u8]>| {
        beside.into_iter().for_each(|bytes| bench.server.put(BESIDE, bytes.to_vec()));
        fs::write(bench.path("slot"), vec![0xee; 5 * MIB]).unwrap();
        let before = bench.sent();
        run(job).await.0.unwrap();
        bench.assert_holds(&new);
        bench.sent() - before
    };
    // Nobody made them yet: one question, and chunks.
    let chunks = fetch(&job, None).await;
    assert_eq!(bench.server.requests(BESIDE), 1);
    let patched = fetch(&job, Some(&beside)).await;
    let of_beside = bench.server.bytes_sent(BESIDE);
    assert!(patched + of_beside < chunks * 2 / 3, "{patched} and {of_beside} of {chunks}");
    // What is there already is no reason to ask.
    let asked = bench.server.requests(BESIDE);
    run(&job).await.0.unwrap();
    assert_eq!(bench.server.requests(BESIDE), asked);

    // Whatever is wrong with it, the chunks do.
    let mut damaged = beside.clone();
    let at = damaged.len() / 2;
    damaged[at..].fill(0);
    fetch(&job, Some(&damaged)).await;
    for hostile in
        [&beside[..beside.len() / 2], &beside[..100], &beside[..10], b"not a bundle at all", &made.bytes]
    {
        fetch(&job, Some(hostile)).await;
    }
    assert_eq!(fetch(&job, Some(&[&beside[..], &[0]].concat())).await, chunks, "a byte is left over");
    let (_, foreign) = made_beside((&old, &new), BESIDE, Some(Sha256Digest([1; 32])), |_| Vec::new());
    assert_eq!(fetch(&job, Some(&foreign)).await, chunks);
    bench.server.set_faults(BESIDE, Faults { ignore_range: true, ..Faults::default() });
    assert_eq!(fetch(&job, Some(&beside)).await, chunks);
    bench.server.set_faults(BESIDE, Faults::default());

    // From a stick, and by a link that grants access.
    job.spec.uri = format!("{}?sig=1", job.spec.uri);
    assert_eq!(fetch(&job, Some(&beside)).await, patched);
    fs::write(bench.path(NAME), &made.bytes).unwrap();
    fs::write(bench.path(BESIDE), &beside).unwrap();
    job.spec.uri = format!("file://{}", bench.path(NAME).display());
    fs::write(bench.path("slot"), vec![0xee; 5 * MIB]).unwrap();
    let (outcome, progress) = run(&job).await;
    outcome.unwrap();
    bench.assert_holds(&new);
    assert!(progress.fetched_bytes < chunks * 2 / 3, "{progress:?}");
}

#[tokio::test]
async fn a_cancelled_install_has_let_go_of_a_slot_that_was_being_looked_at() {
    let image = image(42, 3 * MIB);
    let made = made_patched(&image, &changed(&image));
    let bench = Bench::new(3 * MIB, &made.bytes).await;
    fs::write(bench.path("running"), &image).unwrap();
    let job = bench.job(&made.manifest);
    let (open_gate, gate) = mpsc::channel::<()>();
    let (gate, looking) = (Mutex::new(gate), watch::Sender::new(false));
    let looked_at = looking.clone();
    let device = Told::open(&job, move |operation, number| {
        if (operation, number) == (Operation::Read, 0) {
            looked_at.send_replace(true);
            assert!(gate.lock().unwrap().recv().is_err());
        }
        Ok(())
    });
    let progress = watch::Sender::new(Progress::default());
    let (cancel, cancelled) = watch::channel(false);
    let installing = install_to(device.clone(), &job, &progress, cancelled);
    tokio::pin!(installing);
    let mut seen = looking.subscribe();
    tokio::select! {
        outcome = &mut installing => panic!("{outcome:?}"),
        looking = seen.wait_for(|looking| *looking) => drop(looking.unwrap()),
    }
    cancel.send_replace(true);
    let early = tokio::time::timeout(Duration::from_millis(100), &mut installing).await;
    assert!(early.is_err(), "the slot is still held: {early:?}");
    drop(open_gate);
    assert_eq!(installing.await.unwrap_err().code, Code::Cancelled);
    assert_eq!(Arc::strong_count(&device), 1);
}

#[tokio::test]
async fn patches_beside_the_bundle_that_go_away_while_they_are_fetched_are_done_without() {
    const BESIDE: &str = "patches.twb";
    let mut random = fastrand::Rng::with_seed(38);
    let old = image(38, 8 * MIB);
    let mut new = old.clone();
    new.chunks_mut(16_000).for_each(|part| random.fill(&mut part[..4000]));
    let (made, beside) = made_beside((&old, &new), BESIDE, None, |_| Vec::new());
    // One that pauses is waited for: of four requests that are under way one has to ask a third time.
    for (code, requests, again) in
        [(404, u32::MAX, true), (403, u32::MAX, true), (503, u32::MAX, true), (503, 5, false)]
    {
        let bench = Arc::new(Bench::new(8 * MIB, &made.bytes).await);
        fs::write(bench.path("running"), &old).unwrap();
        bench.server.put(BESIDE, beside.clone());
        let mut job = bench.job(&made.manifest);
        (job.limits.retry, job.limits.stall) = (Duration::from_secs(3600), Duration::from_millis(500));
        let there = bench.clone();
        let device = Told::open(&job, move |operation, number| {
            if (operation, number) == (Operation::Write, 0) {
                let gone = Some(StatusFault { code, retry_after_secs: Some(1), requests });
                there.server.set_faults(BESIDE, Faults { status: gone, ..Faults::default() });
            }
            Ok(())
        });
        let progress = watch::Sender::new(Progress::default());
        let (_keep, cancel) = watch::channel(false);
        let outcome = tokio::time::timeout(LIMIT, install_to(device, &job, &progress, cancel)).await.unwrap();
        outcome.unwrap();
        bench.assert_holds(&new);
        let ranges = bench.server.ranges(BESIDE);
        let first = |range: &&Option<String>| range.as_deref().is_some_and(|r| r.starts_with("bytes=0-"));
        let begun = ranges.iter().filter(first).count() > 1;
        assert_eq!(begun, again, "it was needed when it went away: {code} {requests}");
    }
}

#[tokio::test]
async fn a_resume_at_half_way_fetches_the_other_half() {
    let image = image(3, 12 * MIB);
    let made = made(&image, |_| {});
    let bench = Bench::new(12 * MIB, &made.bytes).await;
    bench.server.set_faults(NAME, Faults { bytes_per_sec: Some(20_000_000), ..Faults::default() });
    let job = bench.job(&made.manifest);
    let outcome =
        run_and(&job, |p| p.written_bytes >= 6 * MIB as u64, |cancel| assert!(!cancel.send_replace(true)));
    assert_eq!(outcome.await.unwrap_err().code, Code::Cancelled);
    bench.assert_nothing_else(&image);
    let before = bench.sent();
    let (outcome, progress) = run(&job).await;
    outcome.unwrap();
    bench.assert_holds(&image);
    let again = bench.sent() - before;
    assert!(again <= made.bytes.len() as u64 * 51 / 100, "{again} of {}", made.bytes.len());
    assert!(progress.kept_bytes >= 6 * MIB as u64, "{progress:?}");
    assert_eq!(progress.fresh_bytes, progress.written_bytes);
}

// ------------------------------------------------------------------------------------------------ the server

/// Shows fintermobilityas/surge#133.
#[tokio::test]
async fn a_server_without_ranges_is_read_through_once() {
    let old = image(4, 6 * MIB);
    let new = changed(&old);
    let made = made(&new, |_| {});
    let bench = Bench::new(6 * MIB, &made.bytes).await;
    fs::write(bench.path("running"), &old).unwrap();
    bench.server.set_faults(NAME, Faults { ignore_range: true, ..Faults::default() });
    let (outcome, progress) = run(&bench.job(&made.manifest)).await;
    outcome.unwrap();
    bench.assert_holds(&new);
    assert_eq!(bench.server.requests(NAME), 1);
    assert!(bench.sent() <= made.bytes.len() as u64 && progress.copied_bytes > 0, "{progress:?}");
    assert_eq!(progress.saved_bytes, 0, "everything came");
}

/// What runs is written to although it should not be: it gives less than was found in it.
#[tokio::test]
async fn a_server_without_ranges_is_asked_again_where_a_slot_lies_and_nothing_was_to_be_fetched() {
    let image = image(17, 16 * MIB);
    let made = made(&image, |_| {});
    let bench = Bench::new(16 * MIB, &made.bytes).await;
    let running = bench.path("running");
    fs::write(&running, &image).unwrap();
    bench.server.set_faults(NAME, Faults { ignore_range: true, ..Faults::default() });
    let mut lies = image.clone();
    lies[15 * MIB..15 * MIB + 1000].fill(1);
    let (job, seen) = (bench.job(&made.manifest), std::cell::Cell::new(false));
    let outcome = run_and(
        &job,
        |p| p.written_bytes > 0 && !seen.replace(true),
        |_| fs::write(&running, &lies).unwrap(),
    );
    tokio::time::timeout(LIMIT, outcome).await.unwrap().unwrap();
    bench.assert_holds(&image);
    assert!(bench.server.requests(NAME) > 1, "the slot was not believed");
}

#[tokio::test]
async fn a_file_that_ends_early_and_does_not_say_where_ends_the_install() {
    let image = image(18, 3 * MIB);
    let made = made(&image, |_| {});
    let bench = Bench::new(4 * MIB, &made.bytes).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut job = bench.job(&made.manifest);
    job.spec.uri = format!("http://{}/{NAME}", listener.local_addr().unwrap());
    let serve = async {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut request).await.unwrap() > 0);
            }
            stream.write_all(b"HTTP/1.1 200 x\r\nconnection: close\r\n\r\n").await.unwrap();
            stream.write_all(&made.bytes[..made.bytes.len() - 100]).await.unwrap();
        }
    };
    let code = tokio::select! {
        code = tokio::time::timeout(LIMIT, code_of(&job)) => code.unwrap(),
        () = serve => panic!("it serves for ever"),
    };
    assert_eq!(code, Code::SizeMismatch);
    bench.assert_nothing_else(&image);
}

#[tokio::test]
async fn a_bundle_by_any_other_name_is_one() {
    let image = image(5, 3 * MIB);
    let made = made(&image, |_| {});
    let bench = Bench::new(4 * MIB, &made.bytes).await;
    bench.server.put("release.img", made.bytes.clone());
    let mut job = bench.job(&made.manifest);
    job.spec.uri = bench.server.url("release.img");
    run(&job).await.0.unwrap();
    bench.assert_holds(&image);
    let file = bench.path("local.twb");
    fs::write(&file, &made.bytes).unwrap();
    fs::write(bench.path("slot"), vec![0xee; 4 * MIB]).unwrap();
    job.spec.uri = format!("file://{}", file.display());
    run(&job).await.0.unwrap();
    bench.assert_holds(&image);
    // And an image that is called one is not.
    bench.server.put("image.twb", image.clone());
    fs::write(bench.path("slot"), vec![0xee; 4 * MIB]).unwrap();
    job.spec.uri = bench.server.url("image.twb");
    job.spec.check_value = Some(digest(&image));
    run(&job).await.0.unwrap();
    bench.assert_holds(&image);
}

#[tokio::test]
async fn a_signed_bundle_by_any_other_name_is_one_whatever_is_said_of_a_signature_beside_it() {
    let image = image(39, 2 * MIB);
    let keys = Keys::new();
    let made = made_of(&[("rootfs", &image)], |manifest| keys.sign("ours", manifest), |_| {});
    let bench = Bench::new(3 * MIB, &made.bytes).await;
    fs::copy(keys.path("ours.pub"), bench.path("keys/ours.pub")).unwrap();
    let beside = |faults: Faults| bench.server.set_faults("release.img.minisig", faults);
    let forbidden = StatusFault { code: 403, retry_after_secs: None, requests: 1000 };
    let mut job = bench.job(&made.manifest);
    (job.check, job.spec.check_value) = (ImageCheck::Signature, None);
    job.spec.uri = bench.server.url("release.img");
    for answer in [Some(forbidden), None] {
        beside(Faults { status: answer, ..Faults::default() });
        bench.server.put("release.img.minisig", b"<html>Sign in</html>".to_vec());
        bench.server.put("release.img", made.bytes.clone());
        fs::write(bench.path("slot"), vec![0xee; 3 * MIB]).unwrap();
        run(&job).await.0.unwrap();
        bench.assert_holds(&image);
        // What is no bundle needs that signature.
        bench.server.put("release.img", image.clone());
        let code = if answer.is_some() { Code::ImageForbidden } else { Code::SignatureInvalid };
        assert_eq!(code_of(&job).await, code);
    }
    // Its server may pause.
    let status = |code, requests| {
        let status = Some(StatusFault { code, retry_after_secs: Some(1), requests });
        Faults { status, ..Faults::default() }
    };
    beside(status(404, 1000));
    bench.server.set_faults("release.img", status(503, 2));
    bench.server.put("release.img", made.bytes.clone());
    fs::write(bench.path("slot"), vec![0xee; 3 * MIB]).unwrap();
    run(&job).await.0.unwrap();
    bench.assert_holds(&image);
}

#[tokio::test]
async fn a_bundle_that_comes_in_one_piece_is_one_by_any_other_name_too() {
    let image = vec![7; 64 << 10];
    let made = made(&image, |_| {});
    let bench = Bench::new(MIB, &made.bytes).await;
    bench.server.put("release.img", made.bytes.clone());
    let mut job = bench.job(&made.manifest);
    job.spec.uri = bench.server.url("release.img");
    run(&job).await.0.unwrap();
    bench.assert_holds(&image);
}

#[tokio::test]
async fn a_damaged_chunk_is_fetched_once_more_and_no_oftener() {
    let image = image(6, 4 * MIB);
    let made = made(&image, |_| {});
    let bench = Bench::new(4 * MIB, &made.bytes).await;
    let flip = |requests| {
        let offset = made.pieces_offset as u64 + 1_500_000;
        Faults { flip: Some(FlipFault { offset, requests }), ..Faults::default() }
    };
    bench.server.set_faults(NAME, flip(2));
    assert_eq!(code_of(&bench.job(&made.manifest)).await, Code::DigestMismatch);
    bench.assert_nothing_else(&image);
    fs::write(bench.path("slot"), vec![0xee; 4 * MIB]).unwrap();
    bench.server.set_faults(NAME, flip(1));
    run(&bench.job(&made.manifest)).await.0.unwrap();
    bench.assert_holds(&image);
}

#[tokio::test]
async fn dropped_connections_are_made_again_and_other_faults_end_it() {
    let image = image(7, 4 * MIB);
    let made = made(&image, |_| {});
    let bench = Bench::new(4 * MIB, &made.bytes).await;
    let job = bench.job(&made.manifest);
    let drops = DropFault { after_bytes: 200_000, requests: 6 };
    let rows = [
        (Faults { drop: Some(drops), ..Faults::default() }, None),
        (Faults { wrong_content_range: true, ..Faults::default() }, None),
        // As replicas that count for themselves: each chunk is hashed all the same.
        (Faults { etag_changes_each_request: true, ..Faults::default() }, None),
        (
            Faults { truncate_to: Some(made.bytes.len() as u64 - 100), ..Faults::default() },
            Some(Code::BundleInvalid),
        ),
        (Faults { truncate_to: Some(100), ..Faults::default() }, Some(Code::BundleInvalid)),
        (Faults { extra_bytes: 1, ..Faults::default() }, Some(Code::BundleInvalid)),
    ];
    for (faults, code) in rows {
        fs::write(bench.path("slot"), vec![0xee; 4 * MIB]).unwrap();
        bench.server.set_faults(NAME, faults.clone());
        let outcome = run(&job).await.0;
        assert_eq!(outcome.as_ref().err().map(|failure| failure.code), code, "{faults:?} {outcome:?}");
        bench.assert_nothing_else(&image);
    }
}

#[tokio::test]
async fn an_expired_link_is_told_and_a_new_one_goes_on() {
    let image = image(8, 16 * MIB);
    let made = made(&image, |_| {});
    let bench = Bench::new(16 * MIB, &made.bytes).await;
    bench.server.put("new.twb", made.bytes.clone());
    let drop = Some(DropFault { after_bytes: 1_500_000, requests: 1000 });
    bench.server.set_faults(NAME, Faults { drop, bytes_per_sec: Some(20_000_000), ..Faults::default() });
    let mut job = bench.job(&made.manifest);
    let expired = StatusFault { code: 403, retry_after_secs: None, requests: 1000 };
    let outcome = run_and(
        &job,
        |p| p.written_bytes > 0,
        |_| bench.server.set_faults(NAME, Faults { status: Some(expired), ..Faults::default() }),
    );
    assert_eq!(outcome.await.unwrap_err().code, Code::ImageForbidden);
    job.spec.uri = bench.server.url("new.twb?sig=2");
    let (outcome, progress) = run(&job).await;
    outcome.unwrap();
    bench.assert_holds(&image);
    assert!(progress.kept_bytes > 0 && progress.saved_bytes > 0, "{progress:?}");
}

/// A real file; told of each operation before it happens, with the number of those of its kind before.
struct Told<F> {
    inner: BlockDevice,
    tell: F,
    counts: [AtomicUsize; 3],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Read,
    Write,
    Sync,
}

impl<F: Fn(Operation, usize) -> io::Result<()> + Send + Sync> Told<F> {
    fn open(job: &Job, tell: F) -> Arc<Self> {
        let inner = BlockDevice::open(&job.target, None, Path::new("/proc")).unwrap();
        Arc::new(Self { inner, tell, counts: Default::default() })
    }

    fn told(&self, operation: Operation) -> io::Result<()> {
        (self.tell)(operation, self.counts[operation as usize].fetch_add(1, Ordering::SeqCst))
    }
}

impl<F: Fn(Operation, usize) -> io::Result<()> + Send + Sync> SlotDevice for Told<F> {
    fn capacity_bytes(&self) -> u64 {
        self.inner.capacity_bytes()
    }

    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.told(Operation::Write)?;
        self.inner.write_all_at(data, offset)
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.told(Operation::Read)?;
        self.inner.read_exact_at(buffer, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.told(Operation::Sync)?;
        self.inner.sync()
    }
}

#[tokio::test]
async fn a_slot_that_has_failed_is_told_although_the_server_has_fallen_silent() {
    let image = image(37, 16 * MIB);
    let made = made(&image, |_| {});
    let bench = Arc::new(Bench::new(16 * MIB, &made.bytes).await);
    let mut job = bench.job(&made.manifest);
    job.limits.stall = Duration::from_secs(3600);
    let there = bench.clone();
    let device = Told::open(&job, move |operation, number| {
        if (operation, number) != (Operation::Write, 1) {
            return Ok(());
        }
        there.server.set_faults(NAME, Faults { stall_after_bytes: Some(10), ..Faults::default() });
        Err(io::Error::from_raw_os_error(5))
    });
    let progress = watch::Sender::new(Progress::default());
    let (_keep, cancel) = watch::channel(false);
    let outcome = tokio::time::timeout(LIMIT, install_to(device, &job, &progress, cancel)).await.unwrap();
    assert_eq!(outcome.unwrap_err().code, Code::SlotFailed);
}

// ------------------------------------------------------------------------------------------------ what is refused

/// Shows rauc/rauc#266, #1400, #1977, rugix/rugix#121.
#[tokio::test]
async fn a_bundle_for_another_device_is_refused_before_the_first_byte() {
    let image = image(9, 2 * MIB);
    type Edit = fn(&mut Manifest);
    let rows: [(Edit, Code); 6] = [
        (|m| m.compatible = vec!["acme-1".into(), "acme-3".into()], Code::BoardIncompatible),
        (|m| m.min_agent_version = Some("9999.0".into()), Code::AgentTooOld),
        (|m| m.min_previous_version = Some("1.5".into()), Code::PreviousTooOld),
        (|m| m.version = "1.4".into(), Code::VersionMismatch),
        (|m| m.images[0].class = "boot".into(), Code::SlotClassMismatch),
        (|m| m.images[0].size_bytes = 3 * MIB as u64 + 1, Code::ImageTooLarge),
    ];
    for (edit, code) in rows {
        let made = made(&image, edit);
        let bench = Bench::new(3 * MIB, &made.bytes).await;
        let mut job = bench.job(&made.manifest);
        job.version = Some("2.0".into());
        job.device.compatible = Some("acme-2".into());
        job.device.past.running_version = Some("1.4".into());
        assert_eq!(code_of(&job).await, code);
        bench.assert_untouched();
        assert!(bench.sent() <= 4096);
    }
    let made = made(&image, |m| m.compatible = vec!["acme-2".into()]);
    let bench = Bench::new(3 * MIB, &made.bytes).await;
    let mut job = bench.job(&made.manifest);
    job.device.compatible = Some("acme-2".into());
    job.device.past.running_version = Some("2.0".into());
    assert_eq!(code_of(&job).await, Code::VersionNotNewer);
    job.device.allow_downgrade = true;
    let failure = Failure::new(Code::HealthCheckFailed, "unit app.service has failed");
    job.device.past.denied = vec![Denied { source_digest: digest(&made.manifest), failure }];
    assert_eq!(code_of(&job).await, Code::RolledBackBefore);
    bench.assert_untouched();
    job.device.past.denied.clear();
    run(&job).await.0.unwrap();
    bench.assert_holds(&image);
}

/// Shows rauc/rauc#459, #639, #833.
#[tokio::test]
async fn images_of_several_classes_are_installed_together_or_not_at_all() {
    let mut random = fastrand::Rng::with_seed(13);
    let (root, boot) = (image(12, 3 * MIB), (0..2 * MIB).map(|_| random.u8(..)).collect::<Vec<_>>());
    let both = made_of(&[("boot", &boot), ("rootfs", &root)], |_| Vec::new(), |_| {});
    let bench = Bench::new(3 * MIB, &both.bytes).await;
    fs::write(bench.path("boot_a"), &boot[..MIB]).unwrap();
    fs::write(bench.path("boot_b"), vec![0xee; 2 * MIB]).unwrap();
    let mut job = bench.job(&both.manifest);
    assert_eq!(code_of(&job).await, Code::SlotClassMismatch, "no such slot");
    let other = |class: &str| Other {
        class: class.to_owned(),
        target: bench.path("boot_b"),
        running: bench.path("boot_a"),
    };
    job.others = vec![other("boot"), other("kernel")];
    assert_eq!(code_of(&job).await, Code::SlotClassMismatch, "no such image");
    job.others = vec![other("boot")];
    job.others[0].running = bench.path("boot_b");
    assert_eq!(code_of(&job).await, Code::SlotUnusable, "what runs is not written");
    bench.assert_untouched();
    job.others = vec![other("boot")];
    // The file need not fit one slot: what is in it must fit all.
    assert!(both.bytes.len() > 3 * MIB);
    job.spec.size_bytes = Some(both.bytes.len() as u64);
    let (outcome, progress) = run(&job).await;
    assert_eq!(outcome.unwrap().size_bytes, 5 * MIB as u64);
    bench.assert_holds(&root);
    assert!(fs::read(bench.path("boot_b")).unwrap() == boot);
    assert!(progress.copied_bytes > 500_000, "{progress:?}");
    let before = bench.sent();
    assert_eq!(run(&job).await.1.kept_bytes, 5 * MIB as u64);
    assert!(bench.sent() - before <= (both.pieces_offset as u64).max(4096));
}

#[tokio::test]
async fn only_the_last_of_several_images_ends_the_download() {
    let (root, boot) = (image(40, 2 * MIB), image(41, 2 * MIB));
    let both = made_of(&[("rootfs", &root), ("boot", &boot)], |_| Vec::new(), |_| {});
    let bench = Bench::new(2 * MIB, &both.bytes).await;
    fs::write(bench.path("boot_a"), &boot[..MIB]).unwrap();
    fs::write(bench.path("boot_b"), vec![0xee; 2 * MIB]).unwrap();
    let mut job = bench.job(&both.manifest);
    let (target, running) = (bench.path("boot_b"), bench.path("boot_a"));
    job.others = vec![Other { class: "boot".into(), target, running }];
    let progress = watch::Sender::new(Progress::default());
    let seen = progress.clone();
    // The first image is complete with its sync.
    let device = Told::open(&job, move |operation, _| {
        assert!(operation != Operation::Sync || seen.borrow().phase == Phase::Downloading);
        Ok(())
    });
    let (_keep, cancel) = watch::channel(false);
    install_to(device, &job, &progress, cancel).await.unwrap();
    assert_eq!(progress.borrow().phase, Phase::Verifying);
}

/// Two keys of the standard tool: `ours` and `theirs`.
struct Keys(TempDir);

impl Keys {
    fn new() -> Self {
        let keys = Self(tempfile::tempdir().unwrap());
        for key in ["ours", "theirs"] {
            let (public, secret) = (keys.path(&format!("{key}.pub")), keys.path(&format!("{key}.key")));
            minisign(&["-G", "-W", "-p", &public, "-s", &secret]);
        }
        keys
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn sign(&self, key: &str, manifest: &[u8]) -> Vec<u8> {
        fs::write(self.path("manifest"), manifest).unwrap();
        let secret = self.path(&format!("{key}.key"));
        minisign(&["-S", "-W", "-s", &secret, "-x", &self.path("sig"), "-m", &self.path("manifest")]);
        fs::read(self.path("sig")).unwrap()
    }
}

fn minisign(arguments: &[&str]) {
    assert!(Command::new("minisign").args(arguments).output().unwrap().status.success());
}

#[tokio::test]
async fn where_a_bundle_must_be_signed_so_must_what_lies_beside_it() {
    const BESIDE: &str = "patches.twb";
    let old = image(16, 4 * MIB);
    let mut new = old.clone();
    (0..4 * MIB).step_by(300_000).for_each(|at| new[at + 1000] ^= 0xff);
    let keys = Keys::new();
    let beside_by = |key: &'static str| {
        let is_bundle = |manifest: &[u8]| manifest.windows(15).any(|text| text == b"twinboot bundle");
        let sign = |manifest: &[u8]| keys.sign(if is_bundle(manifest) { "ours" } else { key }, manifest);
        made_beside((&old, &new), BESIDE, None, sign)
    };
    let fetch = async |key: &'static str| {
        let (made, beside) = beside_by(key);
        let bench = Bench::new(5 * MIB, &made.bytes).await;
        fs::copy(keys.path("ours.pub"), bench.path("keys/ours.pub")).unwrap();
        fs::write(bench.path("running"), &old).unwrap();
        bench.server.put(BESIDE, beside);
        let mut job = bench.job(&made.manifest);
        (job.check, job.spec.check_value) = (ImageCheck::Signature, None);
        let (outcome, progress) = run(&job).await;
        outcome.unwrap();
        bench.assert_holds(&new);
        progress.fetched_bytes
    };
    let (by_ours, by_theirs) = (fetch("ours").await, fetch("theirs").await);
    assert!(by_ours < by_theirs * 2 / 3, "{by_ours} {by_theirs}");
}

#[tokio::test]
async fn only_a_signature_or_a_check_value_makes_a_bundle_trusted() {
    let image = image(10, 2 * MIB);
    let keys = Keys::new();
    let sign = |key: &str, manifest: &[u8]| keys.sign(key, manifest);
    let both = |manifest: &[u8]| [sign("theirs", manifest), sign("ours", manifest)].concat();
    let signed = made_of(&[("rootfs", &image)], both, |_| {});
    let foreign = made_of(&[("rootfs", &image)], |manifest| sign("theirs", manifest), |_| {});
    let bare = made(&image, |_| {});
    let forged = made_of(&[("rootfs", &image)], |_| sign("ours", b"another"), |_| {});
    for (made, check, check_value, code) in [
        (&signed, ImageCheck::Signature, None, None),
        (&signed, ImageCheck::Required, None, None),
        (&signed, ImageCheck::Signature, Some(Sha256Digest([1; 32])), Some(Code::DigestMismatch)),
        (&signed, ImageCheck::Required, Some(Sha256Digest([1; 32])), Some(Code::DigestMismatch)),
        (&foreign, ImageCheck::Required, None, Some(Code::SignatureInvalid)),
        (&forged, ImageCheck::Required, None, Some(Code::SignatureInvalid)),
        (&bare, ImageCheck::Optional, None, Some(Code::SignatureInvalid)),
        (&bare, ImageCheck::Signature, Some(digest(&bare.manifest)), Some(Code::SignatureInvalid)),
        (&bare, ImageCheck::Required, Some(digest(&bare.manifest)), None),
    ] {
        let bench = Bench::new(3 * MIB, &made.bytes).await;
        fs::copy(keys.path("ours.pub"), bench.path("keys/ours.pub")).unwrap();
        let mut job = bench.job(&made.manifest);
        job.check = check;
        job.spec.check_value = check_value;
        let outcome = run(&job).await.0;
        assert_eq!(outcome.as_ref().err().map(|failure| failure.code), code, "{outcome:?}");
        if code.is_some() {
            bench.assert_untouched();
        } else {
            bench.assert_holds(&image);
        }
    }
}

/// Shows F3.
#[tokio::test]
async fn a_bundle_with_wrong_bytes_anywhere_writes_nothing_that_is_not_in_its_index() {
    let image = image(11, 2 * MIB);
    let made = made(&image, |_| {});
    let bench = Bench::new(3 * MIB, &made.bytes).await;
    let mut job = bench.job(&made.manifest);
    let mut random = fastrand::Rng::with_seed(5);
    for trusted in [false, true] {
        // Who takes anything has only the parser to protect him.
        if trusted {
            job.spec.check_value = Some(digest(&made.manifest));
        } else {
            job.spec.check_value = None;
            job.check = ImageCheck::Optional;
        }
        for round in 0..60 {
            let mut hostile = made.bytes.clone();
            let area = if round % 2 == 0 { made.pieces_offset } else { hostile.len() };
            for _ in 0..random.usize(1..4) {
                let at = random.usize(0..area);
                hostile[at] = random.u8(..);
            }
            if round % 5 == 0 {
                hostile.truncate(random.usize(0..hostile.len()));
            }
            bench.server.put(NAME, hostile);
            // A first byte that is another makes it a raw image, which an unchecked install takes.
            let outcome = run(&job).await.0;
            if outcome.is_err() || trusted {
                bench.assert_nothing_else(&image);
            }
            fs::write(bench.path("slot"), vec![0xee; 3 * MIB]).unwrap();
        }
    }
}
