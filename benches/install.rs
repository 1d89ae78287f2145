//! Install of a 512 MiB image from a loopback server to a loop device, against the shell pipeline that it
//! replaces and against what this machine could do at best. Prints one table per kind of image.
//!
//! `cargo bench --bench install [-- ROUNDS]`, as root; needs curl, coreutils, zstd, and 2 GiB in /dev/shm.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "what goes wrong here ends the measurement"
)]

mod daemon;
mod side_by_side;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::sendfile::sendfile;
use nix::time::{ClockId, clock_gettime};
use sha2::{Digest, Sha256};
use twinboot::install::decode::{Decoder, Format};
use twinboot::install::slot::{Block, BlockDevice, SlotDevice};

const IMAGE_BYTES: usize = 512 << 20;
const BLOCK_BYTES: usize = 1 << 20;

/// A measurement during which others used more than this many cores is repeated, so many times.
const FOREIGN_CORES: f64 = 0.1;
const ATTEMPTS: usize = 10;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["serve", directory] => serve(Path::new(directory)),
        ["install", uri, check_value, target] => install_once(uri, check_value, target),
        [] => compare(7),
        [rounds] => compare(rounds.parse().unwrap()),
        other => panic!("unknown arguments {other:?}"),
    }
}

// ------------------------------------------------------------------------------------- the other processes

/// One connection at a time, one request each; the body goes out by sendfile(2).
fn serve(directory: &Path) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    for stream in listener.incoming() {
        let mut stream = BufReader::new(stream.unwrap());
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let name = line.split(' ').nth(1).unwrap().trim_start_matches('/').to_owned();
        while line.trim() != "" {
            line.clear();
            stream.read_line(&mut line).unwrap();
        }
        let file = File::open(directory.join(name)).unwrap();
        let length = file.metadata().unwrap().len();
        let mut out = stream.into_inner();
        write!(
            out,
            "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\netag: \"1\"\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        // Not `io::copy`, which sends pieces of 8 KiB.
        while sendfile(&out, &file, None, IMAGE_BYTES).is_ok_and(|sent| sent > 0) {}
    }
}

/// Prints the peak of resident memory in KiB.
fn install_once(uri: &str, check_value: &str, target: &str) {
    let checkpoint = format!("/dev/shm/twinboot-bench-{}.json", std::process::id());
    let (progress, peak_kib) = daemon::install_once(uri, check_value, target, None, &checkpoint);
    assert!(progress.written_bytes == IMAGE_BYTES as u64, "every block was written");
    println!("{peak_kib}");
}

// ------------------------------------------------------------------------------------------ the comparison

/// Wall and CPU time of something, the server's and the kernel threads' share included.
#[derive(Clone, Copy, Default)]
struct Cost {
    wall: Duration,
    cpu: Duration,
}

struct Site {
    directory: PathBuf,
    device: String,
    server: Child,
    address: String,
}

impl Site {
    fn new() -> Self {
        let directory = PathBuf::from(format!("/dev/shm/twinboot-bench-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        write_image(&directory.join("raw"));
        shell(&format!("zstd -q -9 {0}/raw -o {0}/zstd", directory.display()));
        fs::write(directory.join("slot"), vec![0xa5; IMAGE_BYTES + (8 << 20)]).unwrap();
        let device = shell(&format!("losetup -f --show {}/slot", directory.display()));
        let mut server = Command::new(std::env::current_exe().unwrap())
            .args(["serve", directory.to_str().unwrap()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(server.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Self { directory, device, server, address: address.trim().to_owned() }
    }

    fn url(&self, kind: &str) -> String {
        format!("http://{}/{kind}", self.address)
    }

    /// No block of the image is in the slot, and all of the slot's memory is there.
    fn spoil(&self) {
        let device = BlockDevice::open(Path::new(&self.device), None, Path::new("/proc")).unwrap();
        let mut block = Block::new();
        block.bytes_mut().fill(0xa5);
        for index in 0..IMAGE_BYTES / BLOCK_BYTES {
            device.write_all_at(block.bytes(), (index * BLOCK_BYTES) as u64).unwrap();
        }
        device.sync().unwrap();
    }

    /// Measures again what was disturbed by other work on this machine, within limits.
    fn measure(&self, mut prepare: impl FnMut(), mut work: impl FnMut()) -> Cost {
        let mut quietest = (f64::MAX, Cost::default());
        for _ in 0..ATTEMPTS {
            prepare();
            wait_for_quiet();
            let (busy, begin) = (busy_cpu(), now());
            let cost = self.measure_once(&mut work);
            let elapsed = (now() - begin).as_secs_f64();
            let foreign = (busy_cpu() - busy).saturating_sub(cost.cpu).as_secs_f64() / elapsed;
            if foreign < quietest.0 {
                quietest = (foreign, cost);
            }
            if foreign < FOREIGN_CORES {
                break;
            }
        }
        quietest.1
    }

    fn measure_once(&self, work: &mut impl FnMut()) -> Cost {
        let (cpu, kernel, server) = (own_cpu() + children_cpu(), kernel_cpu(), process_cpu(self.server.id()));
        let begin = now();
        work();
        let wall = now() - begin;
        let kernel_after = kernel_cpu();
        let by_kernel: u64 = kernel_after
            .iter()
            .map(|(pid, time)| time.saturating_sub(kernel.get(pid).copied().unwrap_or(0)))
            .sum();
        let by_server = process_cpu(self.server.id()) - server;
        let cpu = own_cpu() + children_cpu() - cpu + Duration::from_nanos(by_kernel + by_server);
        Cost { wall, cpu }
    }

    fn pipeline(&self, kind: &str, full_blocks: bool) -> Cost {
        let decompress = if kind == "zstd" { "zstd -dcq |" } else { "" };
        let iflag = if full_blocks { "iflag=fullblock" } else { "" };
        let script = format!(
            "set -e -o pipefail; curl -s {url} | tee >(sha256sum > {dir}/sum) | {decompress} \
             dd of={device} bs=1M {iflag} oflag=direct conv=fsync status=none; \
             cmp -n {IMAGE_BYTES} {dir}/raw {device}",
            url = self.url(kind),
            dir = self.directory.display(),
            device = self.device,
        );
        let spoil = || self.spoil();
        self.measure(spoil, || {
            assert!(Command::new("bash").args(["-c", &script]).status().unwrap().success());
        })
    }

    /// Also gives the peak memory in KiB.
    fn ours(&self, kind: &str, check_value: &str) -> (Cost, u64) {
        let mut peak_kib = 0;
        let spoil = || self.spoil();
        let cost = self.measure(spoil, || {
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["install", &self.url(kind), check_value, &self.device])
                .stderr(Stdio::inherit())
                .output()
                .unwrap();
            assert!(output.status.success());
            let text = String::from_utf8(output.stdout).unwrap();
            peak_kib = text.trim().parse().unwrap();
        });
        (cost, peak_kib)
    }

    /// The bound supposes that no part ever waits for another, or slows another down; this shows what is left of it.
    fn side_by_side(&self, kind: &str, check_value: &str) -> Cost {
        let spoil = || self.spoil();
        self.measure(spoil, || {
            let device = BlockDevice::open(Path::new(&self.device), None, Path::new("/proc")).unwrap();
            let digest = side_by_side::install(&self.address, kind, &device);
            assert_eq!(twinboot::update::Sha256Digest(digest).to_string(), check_value);
        })
    }

    /// In memory, block by block: one block written again and again would never leave the processor's cache.
    fn image(&self) -> Vec<(u64, Block)> {
        let mut file = File::open(self.directory.join("raw")).unwrap();
        let offsets = (0..IMAGE_BYTES).step_by(BLOCK_BYTES);
        let filled = |offset| {
            let mut block = Block::new();
            file.read_exact(block.bytes_mut()).unwrap();
            (offset as u64, block)
        };
        offsets.map(filled).collect()
    }

    /// Every part of the work on its own, by the cheapest means there are.
    fn parts(&self, kind: &str) -> Vec<(&'static str, Cost)> {
        let nothing = || {};
        let network = self.measure(nothing, || {
            let mut stream = TcpStream::connect(&self.address).unwrap();
            write!(stream, "GET /{kind} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            let mut buffer = vec![0; 256 * 1024];
            while stream.read(&mut buffer).unwrap() > 0 {}
        });
        let source = fs::read(self.directory.join(kind)).unwrap();
        let sha256 = self.measure(nothing, || hash(&source));
        let mut parts = vec![("network read", network), ("SHA-256 of the source", sha256)];
        if kind == "zstd" {
            parts.push(("decompress", self.measure(nothing, || decompress(&source))));
        }
        self.spoil();
        let device = BlockDevice::open(Path::new(&self.device), None, Path::new("/proc")).unwrap();
        let mut image = self.image();
        let write = self.measure(nothing, || {
            image.iter().for_each(|(offset, block)| device.write_all_at(block.bytes(), *offset).unwrap());
            device.sync().unwrap();
        });
        let (_, block) = &mut image[0];
        let read = self.measure(nothing, || {
            let offsets = (0..IMAGE_BYTES).step_by(BLOCK_BYTES);
            offsets.for_each(|offset| device.read_exact_at(block.bytes_mut(), offset as u64).unwrap());
        });
        parts.extend([("write + sync", write), ("read back", read)]);
        parts
    }

    /// The largest part of the work, by all cores at once: the bound does not know how much slower they are then.
    fn crowd(&self, kind: &str) -> Cost {
        let source = fs::read(self.directory.join(kind)).unwrap();
        let (_, work) = largest_part(kind);
        let cores = std::thread::available_parallelism().unwrap().get();
        let crowd =
            || std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(|| work(&source)))));
        self.measure(|| {}, crowd)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        let _ = Command::new("losetup").args(["-d", &self.device]).status();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// As the table calls it, and how it is done.
fn largest_part(kind: &str) -> (&'static str, fn(&[u8])) {
    if kind == "zstd" { ("decompress", decompress) } else { ("SHA-256 of the source", hash) }
}

fn hash(source: &[u8]) {
    std::hint::black_box(Sha256::digest(source));
}

fn decompress(source: &[u8]) {
    let mut decoder = Decoder::new(Format::Zstd, 0).unwrap();
    let mut output = vec![0; BLOCK_BYTES];
    for mut chunk in source.chunks(256 * 1024) {
        loop {
            let step = decoder.step(chunk, &mut output).unwrap();
            chunk = &chunk[step.consumed..];
            if chunk.is_empty() && step.produced < output.len() {
                break;
            }
        }
    }
}

fn compare(rounds: usize) {
    let site = Site::new();
    for kind in ["raw", "zstd"] {
        let source = fs::read(site.directory.join(kind)).unwrap();
        let check_value = twinboot::update::Sha256Digest(Sha256::digest(&source).into()).to_string();
        println!("\n{kind}: {} MiB at the source, {} MiB in the slot", source.len() >> 20, IMAGE_BYTES >> 20);
        drop(source);
        let mut costs: BTreeMap<&str, Vec<Cost>> = BTreeMap::new();
        let (mut bounds, mut peak_kib) = (Vec::new(), 0);
        let cores = std::thread::available_parallelism().unwrap().get() as f64;
        for _ in 0..rounds {
            costs.entry("a  shell pipeline").or_default().push(site.pipeline(kind, false));
            costs.entry("a' with iflag=fullblock").or_default().push(site.pipeline(kind, true));
            let (ours, peak) = site.ours(kind, &check_value);
            costs.entry("   twinboot").or_default().push(ours);
            peak_kib = peak_kib.max(peak);
            costs.entry("   the parts in threads").or_default().push(site.side_by_side(kind, &check_value));
            let parts = site.parts(kind);
            let slowest = parts.iter().map(|(_, cost)| cost.wall).max().unwrap();
            bounds.push(slowest.max(parts.iter().map(|(_, cost)| cost.cpu).sum::<Duration>().div_f64(cores)));
            costs.entry("largest part, on all cores").or_default().push(site.crowd(kind));
            for (name, cost) in parts {
                costs.entry(name).or_default().push(cost);
            }
        }
        println!("{:<26} {:>8} {:>8}", "median of the rounds", "wall s", "CPU s");
        for (name, costs) in &costs {
            let wall = median(costs.iter().map(|cost| cost.wall).collect());
            let cpu = median(costs.iter().map(|cost| cost.cpu).collect());
            println!("{name:<26} {:>8.3} {:>8.3}", wall.as_secs_f64(), cpu.as_secs_f64());
        }
        let wall = |name: &str| median(costs[name].iter().map(|cost| cost.wall).collect()).as_secs_f64();
        let ours = wall("   twinboot");
        let bound = median(bounds).as_secs_f64();
        println!("{:<26} {bound:>8.3}", "b  lower bound");
        println!("twinboot / shell pipeline  {:>8.2}   (target 0.50)", ours / wall("a  shell pipeline"));
        println!("twinboot / lower bound     {:>8.2}   (target 1.25)", ours / bound);
        println!("the parts in threads / it  {:>8.2}", wall("   the parts in threads") / bound);
        let (largest, _) = largest_part(kind);
        let crowding = wall("largest part, on all cores") / wall(largest);
        println!("each core, when all work   {crowding:>8.2}   times as long");
        println!("peak memory                {:>8.1} MiB (target 24)", peak_kib as f64 / 1024.0);
    }
}

/// Noise, text and nothing, in pieces, as a root filesystem has them. The same on each run.
fn write_image(path: &Path) {
    let mut random = fastrand::Rng::with_seed(2);
    let words: Vec<Vec<u8>> =
        (0..3000).map(|_| (0..random.usize(2..11)).map(|_| random.u8(b'a'..=b'z')).collect()).collect();
    let mut file = io::BufWriter::new(File::create(path).unwrap());
    let mut piece = vec![0; 64 * 1024];
    for _ in 0..IMAGE_BYTES / piece.len() {
        match random.u8(..100) {
            0..35 => random.fill(&mut piece),
            35..85 => {
                let mut text = Vec::with_capacity(piece.len() + 16);
                while text.len() < piece.len() {
                    text.extend_from_slice(&words[random.usize(..words.len())]);
                    text.push(b' ');
                }
                text.truncate(piece.len());
                piece.copy_from_slice(&text);
            }
            _ => piece.fill(0),
        }
        file.write_all(&piece).unwrap();
    }
    file.flush().unwrap();
}

// ------------------------------------------------------------------------------------------------- measuring

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Until the machine had nothing to do for a moment, or half a minute.
fn wait_for_quiet() {
    for _ in 0..100 {
        let busy = busy_cpu();
        std::thread::sleep(Duration::from_millis(300));
        if busy_cpu() - busy <= Duration::from_millis(20) {
            return;
        }
    }
}

/// CPU time of everything on this machine (proc_stat(5), in ticks of 10 ms).
fn busy_cpu() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let fields: Vec<u64> =
        text.lines().next().unwrap().split_whitespace().skip(1).map(|field| field.parse().unwrap()).collect();
    // user, nice, system, and after idle and iowait: irq, softirq
    Duration::from_millis((fields[0] + fields[1] + fields[2] + fields[5] + fields[6]) * 10)
}

fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap().into()
}

fn own_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap().into()
}

/// CPU time of processes that were waited for (proc_pid_stat(5), in ticks of 10 ms).
fn children_cpu() -> Duration {
    let text = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[13].parse::<u64>().unwrap() + fields[14].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// CPU time of a process with one thread, in nanoseconds.
fn process_cpu(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    text.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// CPU time of each kernel thread: loop devices work in those.
fn kernel_cpu() -> BTreeMap<u32, u64> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let is_kernel = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.is_empty());
    pids.filter(is_kernel).map(|pid| (pid, process_cpu(pid))).collect()
}

fn shell(script: &str) -> String {
    let output = Command::new("bash").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
