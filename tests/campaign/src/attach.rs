//! A disk as the kernel sees it: a loop device for each medium, and the file system of `data`.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::disk::{Disk, Medium};
use crate::fuse::{Device, Mounted};

/// Shorter than anything waited for.
pub const TICK: Duration = Duration::from_millis(2);

/// Generous for a loaded machine; what takes longer hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// A disk with its devices. Dropped, they are gone, and what was only in their caches is lost.
pub struct Attached {
    disk: Arc<Disk>,
    mounted: Mounted,
    loops: Vec<PathBuf>,
    data: PathBuf,
}

impl Attached {
    /// Makes `directory/dev/` with a link for each medium, and mounts `data` at `directory/data`. `None`: the power
    /// went.
    pub fn new(disk: &Arc<Disk>, directory: &Path) -> io::Result<Option<Self>> {
        for name in ["media", "data", "dev"] {
            fs::create_dir_all(directory.join(name))?;
        }
        let mounted = Mounted::new(disk, Device::for_each_medium(), &directory.join("media"))?;
        let data = directory.join("data");
        let mut attached = Self { disk: disk.clone(), mounted, loops: Vec::new(), data };
        for medium in Medium::ALL {
            let mut command = Command::new("losetup");
            command.args(["--find", "--show"]).arg(directory.join("media").join(medium.name()));
            let device = attached.run(&mut command)?;
            if device.is_empty() {
                return Ok(None);
            }
            attached.loops.push(device.clone().into());
            let link = directory.join("dev").join(medium.name());
            let _ = fs::remove_file(&link);
            symlink(device, link)?;
        }
        let mut command = Command::new("mount");
        command.args(["-t", "ext4", "-o", "noatime"]);
        command.arg(&attached.loops[Medium::Data as usize]).arg(&attached.data);
        attached.run(&mut command)?;
        Ok((!disk.is_cut()).then_some(attached))
    }

    /// As a shutdown does: what is in the caches is written. Whether the power stayed.
    pub fn shut_down(self) -> io::Result<bool> {
        let mut flush = Command::new("blockdev");
        flush.arg("--flushbufs").args(&self.loops);
        self.run(Command::new("umount").arg(&self.data))?;
        self.run(&mut flush)?;
        Ok(!self.disk.is_cut())
    }

    /// The power went: whoever waits for the disk comes free.
    pub fn bury(&self) {
        self.mounted.bury();
    }

    /// What it said. It may fail where the power went.
    fn run(&self, command: &mut Command) -> io::Result<String> {
        let (stdin, stdout) = (Stdio::null(), Stdio::piped());
        let mut child = command.stdin(stdin).stdout(stdout).stderr(Stdio::null()).spawn()?;
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if started.elapsed() > LIMIT {
                return Err(io::Error::other(format!("{command:?} hangs")));
            }
            if self.disk.is_cut() {
                self.bury();
                break child.wait()?;
            }
            sleep(TICK);
        };
        if !status.success() && !self.disk.is_cut() {
            return Err(io::Error::other(format!("{command:?} ended with {status}")));
        }
        let said = child.wait_with_output()?.stdout;
        Ok(String::from_utf8_lossy(&said).trim().to_owned())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.bury();
        let quietly = |command: &mut Command| {
            // What is not there need not be undone.
            let _ = command.stdin(Stdio::null()).stderr(Stdio::null()).status();
        };
        quietly(Command::new("umount").arg("--lazy").arg(&self.data));
        quietly(Command::new("losetup").arg("--detach").args(&self.loops));
    }
}
