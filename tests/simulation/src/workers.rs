//! Processes that share the runs, since each has one clock and one set of files; what they find is told here.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::life::Fault;

/// A worker that runs so long without a word is in a loop.
const SILENCE_LIMIT: Duration = Duration::from_secs(120);

/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);

/// The first faults are enough to look at.
const FAULTS_SHOWN: usize = 20;

/// What one run's threads gave back is the next one's: the C library need not ask the kernel for it again.
const KEPT_MEMORY: [(&str, &str); 3] = [
    ("MALLOC_MMAP_THRESHOLD_", "33554432"),
    ("MALLOC_TRIM_THRESHOLD_", "1000000000"),
    ("MALLOC_TOP_PAD_", "16000000"),
];

#[derive(Default)]
struct Sum {
    runs: BTreeMap<String, u64>,
    points: u64,
    faults: Vec<String>,
}

/// Runs a campaign with this process's own arguments, in so many processes.
///
/// # Errors
/// When there was a fault, as one line.
pub fn run(workers: usize) -> Result<(), Fault> {
    let (sender, lines) = channel();
    let started: io::Result<Vec<Child>> =
        (0..workers).map(|worker| start(worker, workers, sender.clone())).collect();
    let mut children = started.map_err(|error| format!("cannot start: {error}"))?;
    drop(sender);
    let began = Instant::now();
    let mut sum = Sum::default();
    let mut phases = vec!["singles".to_owned(); workers];
    let mut told = Instant::now();
    loop {
        match lines.recv_timeout(SILENCE_LIMIT) {
            Ok((worker, line)) => sum.take(&mut phases[worker], &line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                children.iter_mut().for_each(|child| drop(child.kill()));
                return Err("a run does not end".to_owned());
            }
        }
        if told.elapsed() > PROGRESS {
            told = Instant::now();
            eprintln!("{} s: {}", began.elapsed().as_secs(), sum.text());
        }
    }
    // Each is waited for, whatever the others say.
    let ended: Vec<_> = children.iter_mut().map(std::process::Child::wait).collect();
    let all_well = ended.iter().all(|ended| ended.as_ref().is_ok_and(std::process::ExitStatus::success));
    println!("{} in {} s", sum.text(), began.elapsed().as_secs());
    match (sum.faults.len(), all_well) {
        (0, true) => Ok(()),
        (0, false) => Err("a worker died".to_owned()),
        (count, _) => {
            Err(format!("{count} faults: show one by tests/simulation/run with what stands before its colon"))
        }
    }
}

fn start(worker: usize, workers: usize, lines: Sender<(usize, String)>) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.envs(KEPT_MEMORY);
    command.args(std::env::args_os().skip(1));
    command.args(["--worker", &worker.to_string(), "--workers", &workers.to_string()]);
    let quiet = if io::stderr().is_terminal() { Stdio::inherit() } else { Stdio::null() };
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(quiet).spawn()?;
    let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = lines.send((worker, line));
        }
    });
    Ok(child)
}

/// Since only one thread of a worker runs at a time, a hand-over on one processor is the fastest.
///
/// # Errors
/// What the system says.
pub fn take_processor(worker: usize) -> nix::Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let allowed: Vec<usize> =
        (0..CpuSet::count()).filter(|processor| allowed.is_set(*processor) == Ok(true)).collect();
    let mut mine = CpuSet::new();
    mine.set(allowed[worker % allowed.len()])?;
    sched_setaffinity(this, &mine)
}

impl Sum {
    fn take(&mut self, phase: &mut String, line: &str) {
        match line.split_once(' ') {
            Some(("phase", name)) => name.clone_into(phase),
            Some(("runs", count)) => {
                *self.runs.entry(phase.clone()).or_default() += count.parse().unwrap_or(0)
            }
            Some(("points", text)) => {
                self.points += text.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or(0);
            }
            Some(("fault", text)) => {
                if self.faults.len() < FAULTS_SHOWN {
                    println!("fault: {text}");
                }
                self.faults.push(text.to_owned());
            }
            _ => println!("{line}"),
        }
    }

    fn text(&self) -> String {
        let runs: Vec<_> = self
            .runs
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(phase, count)| format!("{count} {phase}"))
            .collect();
        format!(
            "{} runs ({}) of {} points, {} faults",
            self.runs.values().sum::<u64>(),
            runs.join(", "),
            self.points,
            self.faults.len()
        )
    }
}
