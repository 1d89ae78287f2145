//! What a slot holds, as far as a machine that boots it would notice.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// First line of an image that is no file system but a description of one.
const TEXT_MAGIC: &str = "twinboot-board-image";

/// The description is a few lines.
const TEXT_LIMIT_BYTES: u64 = 4096;

/// Offset of ext4's magic number `0xEF53`.
const EXT4_MAGIC_OFFSET: u64 = 0x438;

/// What the kernel starts, first found.
const INITS: [&str; 3] = ["/sbin/init", "/lib/systemd/systemd", "/init"];

/// `/etc/os-release` often is a link, which `debugfs` does not follow.
const OS_RELEASES: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];

const HEALTH_DIRECTORY: &str = "/etc/twinboot/health.d";

/// How a system behaves that is booted from an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// `boot=ok`; else the kernel panics.
    pub boots: bool,
    /// `health=pass`; else a health script fails.
    pub healthy: bool,
    /// `daemon=present`; else the image has no twinboot.
    pub has_daemon: bool,
}

impl Default for Traits {
    fn default() -> Self {
        Self { boots: true, healthy: true, has_daemon: true }
    }
}

impl Traits {
    /// Boots, and then fails its health check.
    pub const SICK: Self = Self { boots: true, healthy: false, has_daemon: true };
    /// Does not come up.
    pub const PANICS: Self = Self { boots: false, healthy: true, has_daemon: true };
    /// Comes up, without twinboot.
    pub const WITHOUT_DAEMON: Self = Self { boots: true, healthy: true, has_daemon: false };

    fn read(lines: &str) -> Self {
        let says =
            |key: &str, value: &str| lines.lines().any(|line| line.split_once('=') == Some((key, value)));
        Self {
            boots: !says("boot", "panic") && !says("boot", "hang"),
            healthy: !says("health", "fail"),
            has_daemon: !says("daemon", "missing"),
        }
    }
}

/// An image of `size_bytes` (at least its first lines) that a board boots; what follows the lines is noise made
/// from `seed`, which no compression shrinks. A part that was not written, or is torn, does not boot.
#[must_use]
pub fn board_image(version: &str, traits: Traits, size_bytes: usize, seed: u64) -> Vec<u8> {
    let word = |condition, yes, no| if condition { yes } else { no };
    let lines = |noise_bytes: usize, crc: u32| {
        format!(
            "{TEXT_MAGIC}\nversion={version}\nboot={}\nhealth={}\ndaemon={}\nnoise={noise_bytes:010}\ncrc={crc:08x}\n\n",
            word(traits.boots, "ok", "panic"),
            word(traits.healthy, "pass", "fail"),
            word(traits.has_daemon, "present", "missing"),
        )
    };
    let header_bytes = lines(0, 0).len();
    let mut image = vec![0; size_bytes.max(header_bytes)];
    let (header, noise) = image.split_at_mut(header_bytes);
    fastrand::Rng::with_seed(seed).fill(noise);
    header.copy_from_slice(lines(noise.len(), crc32fast::hash(noise)).as_bytes());
    image
}

/// What was found in a slot that boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct System {
    pub(super) has_daemon: bool,
}

/// Boots what `slot` holds: writes its `/etc/os-release` and fills `health`, an empty directory. `Err` says why the
/// machine would reset.
pub(super) fn boot(slot: &Path, os_release: &Path, health: &Path) -> Result<System, String> {
    let unreadable = |error: io::Error| format!("cannot read {}: {error}", slot.display());
    let file = File::open(slot).map_err(unreadable)?;
    if let Some(lines) = text_lines(&file).map_err(unreadable)? {
        return boot_text(&file, &lines, os_release, health);
    }
    let mut magic = [0; 2];
    let read = file.read_exact_at(&mut magic, EXT4_MAGIC_OFFSET);
    if read.is_ok() && magic == [0x53, 0xef] {
        return boot_ext4(slot, os_release, health);
    }
    Err("no bootable content".to_owned())
}

/// The lines before the blank one.
fn text_lines(file: &File) -> io::Result<Option<String>> {
    let mut start = Vec::new();
    file.take(TEXT_LIMIT_BYTES).read_to_end(&mut start)?;
    let end = start.windows(2).position(|pair| pair == b"\n\n");
    let lines = end.and_then(|end| start.get(..=end)).and_then(|lines| std::str::from_utf8(lines).ok());
    Ok(lines.filter(|lines| lines.lines().next() == Some(TEXT_MAGIC)).map(str::to_owned))
}

fn boot_text(file: &File, lines: &str, os_release: &Path, health: &Path) -> Result<System, String> {
    let value = |key: &str| {
        let mut pairs = lines.lines().filter_map(|line| line.split_once('='));
        pairs.find(|(name, _)| *name == key).map(|(_, value)| value)
    };
    if let (Some(bytes), Some(crc)) = (value("noise"), value("crc")) {
        check_noise(file, lines.len() + 1, bytes, crc)?;
    }
    let traits = Traits::read(lines);
    if !traits.boots {
        return Err("kernel panic".to_owned());
    }
    let version = value("version").unwrap_or_default();
    let text = format!("NAME=\"Test board\"\nID=board\nVERSION_ID={version}\nIMAGE_VERSION={version}\n");
    write(os_release, text.as_bytes())?;
    add_script(health, &traits)?;
    Ok(System { has_daemon: traits.has_daemon })
}

/// A file system with a hole in it might panic anywhere; here it always does.
fn check_noise(file: &File, start: usize, bytes: &str, crc: &str) -> Result<(), String> {
    let start = u64::try_from(start).map_err(|error| error.to_string())?;
    let mut left: u64 = bytes.parse().map_err(|error| format!("noise={bytes}: {error}"))?;
    let mut offset = start;
    let mut hasher = crc32fast::Hasher::new();
    let mut piece = vec![0; 256 * 1024];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        let part = piece.get_mut(..most).unwrap_or_default();
        let read = file.read_at(part, offset).map_err(|error| error.to_string())?;
        if read == 0 {
            return Err("kernel panic: the image is cut short".to_owned());
        }
        hasher.update(part.get(..read).unwrap_or_default());
        let read = u64::try_from(read).map_err(|error| error.to_string())?;
        offset += read;
        left -= read;
    }
    if format!("{:08x}", hasher.finalize()) == crc {
        Ok(())
    } else {
        Err("kernel panic: the image is torn".to_owned())
    }
}

fn boot_ext4(slot: &Path, os_release: &Path, health: &Path) -> Result<System, String> {
    let checked = run(Command::new("e2fsck").arg("-fn").arg(slot))?;
    if !checked.status.success() {
        return Err("cannot mount root: e2fsck finds errors".to_owned());
    }
    let mut has_init = false;
    for init in INITS {
        has_init |= !debugfs(slot, &format!("stat {init}"))?.is_empty();
    }
    if !has_init {
        return Err("kernel panic: no working init found".to_owned());
    }
    let lines = String::from_utf8_lossy(&debugfs(slot, "cat /etc/twinboot-board")?).into_owned();
    let traits = Traits::read(&lines);
    if !traits.boots {
        return Err("kernel panic".to_owned());
    }
    let mut release = Vec::new();
    for path in OS_RELEASES {
        if !release.contains(&b'=') {
            release = debugfs(slot, &format!("cat {path}"))?;
        }
    }
    write(os_release, &release)?;
    extract_health(slot, health)?;
    if !traits.healthy {
        add_script(health, &traits)?;
    }
    Ok(System { has_daemon: traits.has_daemon })
}

/// `rdump` makes the directory, and refuses to where there is one.
fn extract_health(slot: &Path, health: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot write {}: {error}", health.display());
    let parent = health.parent().unwrap_or(Path::new("."));
    fs::remove_dir(health).map_err(failed)?;
    debugfs(slot, &format!("rdump {HEALTH_DIRECTORY} \"{}\"", parent.display()))?;
    // An image without the directory left none.
    DirBuilder::new().recursive(true).mode(0o755).create(health).map_err(failed)
}

/// A script that says the health the image was made with.
fn add_script(health: &Path, traits: &Traits) -> Result<(), String> {
    let body = if traits.healthy {
        "exit 0\n"
    } else {
        "echo 'the application does not answer on its port' >&2\nexit 1\n"
    };
    let path = health.join("10-app");
    write(&path, format!("#!/bin/sh\n{body}").as_bytes())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(|error| error.to_string())
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let written = File::create(path).and_then(|mut file| file.write_all(bytes));
    written.map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// Standard output of one request; empty where there is no such file.
fn debugfs(image: &Path, request: &str) -> Result<Vec<u8>, String> {
    let output = run(Command::new("debugfs").arg("-R").arg(request).arg(image))?;
    Ok(output.stdout)
}

fn run(command: &mut Command) -> Result<Output, String> {
    let path = OsStr::new("/usr/sbin:/usr/bin:/sbin:/bin");
    let output = command.env("PATH", path).env("LC_ALL", "C").stdin(Stdio::null()).output();
    output.map_err(|error| {
        format!("cannot run {} (package e2fsprogs): {error}", command.get_program().display())
    })
}
