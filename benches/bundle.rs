//! Installs of a bundle on loop devices, from a server with ranges: whole, with what the running slot holds, for nothing
//! new, and for the second half. Prints one table: wall and CPU time, peak memory, bytes fetched and written.
//!
//! `cargo bench --bench bundle -- BUNDLE.twb NEW OLD... [ROUNDS]`, as root: an update to image NEW of systems that run
//! the images OLD, and of one that holds nothing of it. Needs 2 GiB in /dev/shm for images of 512 MiB.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "what goes wrong here ends the measurement"
)]

mod daemon;

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use hub_emulator::images::ImageServer;
use nix::sys::resource::{UsageWho, getrusage};
use twinboot::bundle::{HEADER_BYTES, Header, Manifest};

const NAME: &str = "update.twb";
/// A bundle leaves none.
const CHECKPOINT: &str = "/nonexistent";
const MIB: f64 = (1 << 20) as f64;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["install", uri, check_value, target, running, checkpoint] => {
            install_once(uri, check_value, target, running, checkpoint);
        }
        [bundle, new, old @ .., rounds] if rounds.parse::<usize>().is_ok() => {
            compare(bundle, new, old, rounds.parse().unwrap());
        }
        [bundle, new, old @ ..] => compare(bundle, new, old, 5),
        // Among all benchmarks, this one has nothing to work on.
        _ => println!("usage: cargo bench --bench bundle -- BUNDLE.twb NEW OLD... [ROUNDS]"),
    }
}

/// Prints peak memory in KiB, bytes fetched, bytes written.
fn install_once(uri: &str, check_value: &str, target: &str, running: &str, checkpoint: &str) {
    let (progress, peak_kib) = daemon::install_once(uri, check_value, target, Some(running), checkpoint);
    println!("{peak_kib} {} {}", progress.fetched_bytes, progress.written_bytes);
}

/// A slot: a file in memory behind a loop device.
struct Slot {
    file: PathBuf,
    device: String,
}

impl Slot {
    fn new(name: &str, size_bytes: u64) -> Self {
        let file = PathBuf::from(format!("/dev/shm/twinboot-bench-{}-{name}", std::process::id()));
        File::create(&file).unwrap().set_len(size_bytes).unwrap();
        let output = Command::new("losetup").args(["-f", "--show"]).arg(&file).output().unwrap();
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        Self { file, device: String::from_utf8(output.stdout).unwrap().trim().to_owned() }
    }

    /// Holds the first bytes of an image, and noise behind them.
    fn fill(&self, image: Option<&Path>, len: u64) {
        let mut device = File::options().write(true).open(&self.device).unwrap();
        if let Some(image) = image {
            std::io::copy(&mut File::open(image).unwrap().take(len), &mut device).unwrap();
        } else {
            device.seek(SeekFrom::Start(len)).unwrap();
        }
        let mut noise = vec![0; 1 << 20];
        fastrand::Rng::with_seed(len).fill(&mut noise);
        while device.write(&noise).is_ok_and(|written| written > 0) {}
        device.sync_all().unwrap();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
        let _ = fs::remove_file(&self.file);
    }
}

/// What one install took.
struct Taken {
    wall: f64,
    cpu: f64,
    peak_kib: f64,
    fetched_bytes: f64,
    written_bytes: f64,
}

fn children_cpu() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
        .sum()
}

fn measure(uri: &str, check_value: &str, target: &Slot, running: &Slot) -> Taken {
    let (begin, cpu) = (Instant::now(), children_cpu());
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["install", uri, check_value, &target.device, &running.device, CHECKPOINT])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let wall = begin.elapsed().as_secs_f64();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let [peak_kib, fetched_bytes, written_bytes] =
        *text.split_whitespace().map(|word| word.parse().unwrap()).collect::<Vec<f64>>()
    else {
        panic!("{text}")
    };
    Taken { wall, cpu: children_cpu() - cpu, peak_kib, fetched_bytes, written_bytes }
}

fn compare(bundle: &str, new: &str, old: &[&str], rounds: usize) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bytes = fs::read(bundle).unwrap();
    let header = Header::parse(bytes[..HEADER_BYTES].try_into().unwrap()).unwrap();
    let manifest = &bytes[HEADER_BYTES..][..header.manifest_bytes as usize];
    let check_value = Manifest::digest(manifest).to_string();
    let server = runtime.block_on(ImageServer::start(None)).unwrap();
    println!("{bundle}: {:.1} MiB; medians of {rounds}", bytes.len() as f64 / MIB);
    server.put(NAME, bytes);
    let (uri, new) = (server.url(NAME), Path::new(new));
    let size_bytes = fs::metadata(new).unwrap().len();
    let (target, running) = (Slot::new("target", size_bytes), Slot::new("running", size_bytes));
    let mut cases: Vec<(String, Option<&Path>, u64)> = vec![("nothing known".to_owned(), None, 0)];
    for image in old {
        cases.push((format!("running {image}"), Some(Path::new(image)), 0));
    }
    cases.push(("half there already".to_owned(), None, size_bytes / 2));
    cases.push(("all there already".to_owned(), None, size_bytes));
    println!(
        "{:<40} {:>7} {:>7} {:>9} {:>12} {:>12}",
        "case", "wall s", "CPU s", "peak MiB", "fetched MiB", "written MiB"
    );
    for (name, image, there_bytes) in cases {
        running.fill(image, if image.is_some() { u64::MAX } else { 0 });
        let taken: Vec<Taken> = (0..rounds)
            .map(|_| {
                target.fill(Some(new), there_bytes);
                measure(&uri, &check_value, &target, &running)
            })
            .collect();
        assert!(fs::read(&target.file).unwrap() == fs::read(new).unwrap(), "the slot holds the image");
        let median = |of: fn(&Taken) -> f64| {
            let mut values: Vec<f64> = taken.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        println!(
            "{name:<40} {:>7.2} {:>7.2} {:>9.1} {:>12.1} {:>12.1}",
            median(|taken| taken.wall),
            median(|taken| taken.cpu),
            median(|taken| taken.peak_kib) / 1024.0,
            median(|taken| taken.fetched_bytes) / MIB,
            median(|taken| taken.written_bytes) / MIB,
        );
    }
}
