//! One thread runs at a time, and hands over only where it waits; the clock moves only while all wait. So a run's
//! order is decided by its seed, and an hour passes in no time.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;

use crate::plans::NOW;
use crate::seam;

/// Threads that live at once: those of one daemon, and the main thread.
const THREADS_MAX: usize = 64;

/// Threads are known by a number, which is used again once one has ended.
pub type Thread = usize;

/// What a thread may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A futex.
    Address(usize),
    /// The end of another thread, by the C library's name for it.
    End(u64),
    /// Time alone.
    Nothing,
}

struct Waiting {
    thread: Thread,
    cause: Cause,
    until: Option<Duration>,
}

struct State {
    now: Duration,
    lives: [bool; THREADS_MAX],
    /// By the C library.
    names: [u64; THREADS_MAX],
    /// Told a thread that is handed the word: not woken, but time is over.
    is_late: [bool; THREADS_MAX],
    ready: VecDeque<Thread>,
    /// In the order in which they came.
    waiting: Vec<Waiting>,
    /// Decides who is next; without it, who came first.
    dice: Option<Rng>,
}

static IS_ON: AtomicBool = AtomicBool::new(false);
static STATE: Mutex<State> = Mutex::new(State {
    now: Duration::ZERO,
    lives: [false; THREADS_MAX],
    names: [0; THREADS_MAX],
    is_late: [false; THREADS_MAX],
    ready: VecDeque::new(),
    waiting: Vec::new(),
    dice: None,
});

/// Each thread sleeps at its own, whatever it waits for.
static GATES: [AtomicU32; THREADS_MAX] = [const { AtomicU32::new(0) }; THREADS_MAX];

thread_local! {
    static ME: Cell<Thread> = const { Cell::new(0) };
}

/// Only the thread that has the word comes here, so that it is always free.
fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From here on the calling thread has the word, and all threads that are made take turns with it. `now` is
/// where the clock begins.
pub fn start(now: Duration) {
    let mut state = state();
    state.lives[0] = true;
    state.now = now;
    drop(state);
    IS_ON.store(true, Ordering::Release);
}

pub fn is_on() -> bool {
    IS_ON.load(Ordering::Acquire)
}

/// From here on a seed decides who is next among those that are ready, or, without one, who came first.
pub fn shuffle(seed: Option<u64>) {
    state().dice = seed.map(Rng::with_seed);
}

/// The simulated time; never goes back.
pub fn now() -> Duration {
    state().now
}

/// Lets time pass in which nothing runs.
pub fn pass(duration: Duration) {
    state().now += duration;
}

/// Waits for a wake, or until `until`; whether it was a wake.
pub fn wait(cause: Cause, until: Option<Duration>) -> bool {
    let me = ME.get();
    state().waiting.push(Waiting { thread: me, cause, until });
    hand_over(me);
    !std::mem::take(&mut state().is_late[me])
}

/// Wakes up to `count` threads, the longest waiting first; how many.
pub fn wake(cause: Cause, count: usize) -> usize {
    let mut state = state();
    let State { waiting, ready, .. } = &mut *state;
    let woken: Vec<_> = waiting.extract_if(.., |waiting| waiting.cause == cause).collect();
    let (now_ready, still_waiting) = woken.split_at(count.min(woken.len()));
    ready.extend(now_ready.iter().map(|waiting| waiting.thread));
    let count = now_ready.len();
    // There was no other between them: their order is as it was.
    waiting.extend(still_waiting.iter().map(|&Waiting { thread, cause, until }| Waiting {
        thread,
        cause,
        until,
    }));
    count
}

/// Lets the others run. `false`: all of them wait.
pub fn give_way() -> bool {
    let me = ME.get();
    let mut state = state();
    if state.ready.is_empty() {
        return false;
    }
    state.ready.push_back(me);
    drop(state);
    hand_over(me);
    true
}

/// Waits until `is_ready` gives something, with nothing to wake it but that it looks; `None` once it is `until`.
pub fn poll<T>(until: Option<Duration>, mut is_ready: impl FnMut() -> Option<T>) -> Option<T> {
    loop {
        if let Some(value) = is_ready() {
            return Some(value);
        }
        if give_way() {
            continue;
        }
        let mut state = state();
        let sooner = state.next_deadline().filter(|deadline| until.is_none_or(|until| *deadline < until));
        match (sooner, until) {
            (Some(deadline), _) => state.expire(deadline),
            (None, Some(until)) => {
                state.now = state.now.max(until);
                return None;
            }
            (None, None) => stuck(),
        }
    }
}

/// A number for a thread that is about to be made.
pub fn make() -> Thread {
    let mut state = state();
    let thread = state.lives.iter().position(|lives| !lives).unwrap_or_else(|| stuck());
    state.lives[thread] = true;
    state.ready.push_back(thread);
    thread
}

/// How the C library calls it.
pub fn name(thread: Thread, name: u64) {
    state().names[thread] = name;
}

/// Waits for the end of a thread.
pub fn join(name: u64) {
    let state = state();
    let lives = state.names.iter().zip(state.lives).any(|(other, lives)| lives && *other == name);
    drop(state);
    if lives {
        wait(Cause::End(name), None);
    }
}

/// The first thing that a new thread does: it waits for the word.
pub fn begin(thread: Thread) {
    ME.set(thread);
    seam::sleep_at(&GATES[thread]);
}

/// The last thing that a thread does.
pub fn end(thread: Thread) {
    let name = state().names[thread];
    wake(Cause::End(name), usize::MAX);
    let mut state = state();
    state.lives[thread] = false;
    let next = state.next();
    drop(state);
    seam::open(&GATES[next]);
}

/// What could not be made has neither begun nor ended.
pub fn unmake(thread: Thread) {
    let mut state = state();
    state.lives[thread] = false;
    state.ready.retain(|other| *other != thread);
}

fn hand_over(me: Thread) {
    let next = state().next();
    if next != me {
        seam::open(&GATES[next]);
        seam::sleep_at(&GATES[me]);
    }
}

impl State {
    /// Where all wait, time passes.
    fn next(&mut self) -> Thread {
        loop {
            if !self.ready.is_empty() {
                let index = self.dice.as_mut().map_or(0, |dice| dice.usize(..self.ready.len()));
                return self.ready.remove(index).unwrap_or_default();
            }
            let Some(deadline) = self.next_deadline() else { stuck() };
            self.expire(deadline);
        }
    }

    fn next_deadline(&self) -> Option<Duration> {
        self.waiting.iter().filter_map(|waiting| waiting.until).min()
    }

    fn expire(&mut self, deadline: Duration) {
        self.now = self.now.max(deadline);
        let Self { waiting, ready, is_late, .. } = self;
        for late in waiting.extract_if(.., |waiting| waiting.until == Some(deadline)) {
            is_late[late.thread] = true;
            ready.push_back(late.thread);
        }
    }
}

/// A deadlock is a fault of the program that is simulated, and nothing can go on after it.
fn stuck() -> ! {
    let run = NOW.lock().unwrap_or_else(PoisonError::into_inner);
    println!("fault {run}: all threads wait for each other");
    std::process::abort();
}
