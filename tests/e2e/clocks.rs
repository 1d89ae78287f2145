//! A daemon whose clocks a test puts on: hours pass at once.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;

use crate::rig::{DAEMON, LIMIT, Rig, interposer, script};

/// Where each is in the file.
const WALL: u64 = 0;
const SINCE_BOOT: u64 = 8;

pub struct Clocks {
    dir: TempDir,
    file: File,
}

impl Clocks {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        interposer("clocks", dir.path());
        let file = File::options().read(true).write(true).create_new(true).open(dir.path().join("put-on"));
        let clocks = Self { dir, file: file.unwrap() };
        clocks.file.write_all_at(&[0; 16], 0).unwrap();
        clocks
    }

    /// The daemon with these clocks, which logs every step.
    pub fn daemon(&self) -> PathBuf {
        let (dir, path) = (self.dir.path().display(), self.dir.path().join("daemon"));
        let clocks = format!("LD_PRELOAD={dir}/clocks.so CLOCKS={dir}/put-on");
        script(&path, &format!("exec env {clocks} {DAEMON} \"$@\" --verbose"));
        path
    }

    /// Time passes, by all clocks. The daemon sees it when it wakes.
    pub fn pass(&self, time: Duration) {
        let seconds = i64::try_from(time.as_secs()).unwrap();
        self.put_on(WALL, seconds);
        self.put_on(SINCE_BOOT, seconds);
    }

    /// Somebody sets the wall clock on, or back.
    pub fn set_wall_clock(&self, seconds: i64) {
        self.put_on(WALL, seconds);
    }

    fn put_on(&self, clock: u64, seconds: i64) {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, clock).unwrap();
        let now = i64::from_ne_bytes(bytes) + seconds;
        self.file.write_all_at(&now.to_ne_bytes(), clock).unwrap();
    }

    /// Lets `step` pass again and again, each time with a question that wakes the daemon, until it is so.
    pub async fn pass_until(&self, rig: &Rig, step: Duration, is_so: impl Fn() -> bool) {
        let passing = async {
            while !is_so() {
                self.pass(step);
                rig.peek().await;
            }
        };
        tokio::time::timeout(LIMIT, passing).await.unwrap_or_else(|_| panic!("{}", rig.board.log()));
    }
}
