//! An install as the daemon does it, in a process of its own.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use twinboot::install::verify::{ImageCheck, Trust};
use twinboot::install::{Device, ImageSpec, Job, Limits, Progress, install};

/// Gives what the progress said last, and the peak of resident memory in KiB. An install that was cut off goes on by
/// the same checkpoint.
pub fn install_once(
    uri: &str,
    check_value: &str,
    target: &str,
    running: Option<&str>,
    checkpoint: &str,
) -> (Progress, String) {
    let job = Job {
        spec: ImageSpec {
            uri: uri.to_owned(),
            check_value: Some(check_value.parse().unwrap()),
            size_bytes: None,
        },
        target: target.into(),
        running: running.map(PathBuf::from),
        others: Vec::new(),
        proc: "/proc".into(),
        device: Device::default(),
        check: ImageCheck::Required,
        version: None,
        network: None,
        trust: Trust { directory: "/nonexistent".into(), list: None },
        ca_file: None,
        checkpoint: checkpoint.into(),
        limits: Limits::new(Duration::from_secs(10)),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let progress = watch::Sender::new(Progress::default());
    let (_keep, cancel) = watch::channel(false);
    runtime.block_on(install(&job, &progress, cancel)).unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    (*progress.borrow(), peak.trim().trim_end_matches(" kB").to_owned())
}
