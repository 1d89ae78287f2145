//! U-Boot itself, built as a program of this machine: what it decides on an environment, and what it writes.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::machine::Fault;
use crate::uboot::{COPY_BYTES, Environment, SIZE_BYTES};

/// Where tests/lab/config/u-boot has the environment in the MMC.
const OFFSET: usize = 0x10_0000;

const MMC_BYTES: usize = 4 << 20;

/// A run takes a fraction of a second.
const LIMIT: Duration = Duration::from_secs(30);

/// The sandbox build takes scripts in this form alone.
const SCRIPT_SOURCE: &str = r#"/dts-v1/;
/ {
    description = "twinboot";
    images { script { data = /incbin/("boot.cmd"); type = "script"; compression = "none"; }; };
};
"#;

pub struct Sandbox {
    directory: PathBuf,
    program: PathBuf,
}

impl Sandbox {
    /// With the result of `tests/lab/build-u-boot sandbox`; `scratch` becomes U-Boot's working directory.
    pub fn new(build: &Path, scratch: &Path) -> io::Result<Self> {
        let directory = scratch.join("u-boot");
        fs::create_dir_all(&directory)?;
        fs::copy(build.join("u-boot.dtb"), directory.join("u-boot.dtb"))?;
        fs::write(directory.join("boot.cmd"), include_str!("../../../config/u-boot/boot.cmd"))?;
        fs::write(directory.join("boot.its"), SCRIPT_SOURCE)?;
        let mut make = Command::new("mkimage");
        make.args(["-f", "boot.its", "boot.fit"]).current_dir(&directory).stdout(Stdio::null());
        if !make.status()?.success() {
            return Err(io::Error::other("mkimage makes no boot script"));
        }
        Ok(Self { directory, program: build.join("u-boot").canonicalize()? })
    }

    /// Whether U-Boot chooses the slot that the model chooses, and leaves the environment that the model leaves.
    pub fn agrees(&self, environment: &[u8]) -> io::Result<Result<(), Fault>> {
        let mmc = self.directory.join("mmc.img");
        let mut image = vec![0; MMC_BYTES];
        image[OFFSET..OFFSET + SIZE_BYTES].copy_from_slice(environment);
        fs::write(&mmc, &image)?;
        let said = self.run()?;
        let mut after = vec![0; SIZE_BYTES];
        File::open(&mmc)?.read_exact_at(&mut after, OFFSET as u64)?;

        let mut expected = environment.to_vec();
        let start = Environment::load(environment).start();
        for (offset, copy) in start.saves {
            expected[offset..offset + COPY_BYTES].copy_from_slice(&copy);
        }
        let (expected, after) = (Environment::load(&expected), Environment::load(&after));
        let decision = |environment: &Environment| {
            let names = ["boot_slot", "upgrade_available", "bootcount", "bootlimit"];
            (environment.current, names.map(|name| environment.text(name).to_owned()))
        };
        let slot = said.strip_prefix("twinboot: slot ").and_then(|rest| rest.get(..1));
        if slot == Some(start.slot.letter()) && decision(&expected) == decision(&after) {
            return Ok(Ok(()));
        }
        let (expected, after) = (decision(&expected), decision(&after));
        Ok(Err(format!("U-Boot says `{said}` and leaves {after:?}; the model leaves {expected:?}")))
    }

    /// The boot script's word on its choice.
    fn run(&self) -> io::Result<String> {
        let mut child = Command::new(&self.program)
            .args(["-d", "u-boot.dtb"])
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let started = Instant::now();
        let mut said = String::new();
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).split(b'\n') {
                said = String::from_utf8_lossy(&line?).trim().to_owned();
                if said.starts_with("twinboot: slot ") || started.elapsed() > LIMIT {
                    break;
                }
            }
        }
        // There is no kernel here: it would start again.
        child.kill()?;
        child.wait()?;
        Ok(said)
    }
}
