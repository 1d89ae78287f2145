//! The seam: functions of the C library, defined here once more. The linker takes these, so that everything in this
//! program, twinboot and its libraries included, gets its time, its turns and its files from the simulation, and
//! nothing in `src` knows of it.
//!
//! What is not told to the simulation goes to the kernel as it is: the files are real, on a tmpfs, which is the page
//! cache of the simulated machine. What of them would survive a power cut, [`disk`] knows.

#![expect(unsafe_code, reason = "the C library's functions have its signatures")]

use std::ffi::{CStr, OsStr, c_char, c_int, c_long, c_uint, c_void};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use libc::{
    clockid_t, epoll_event, mode_t, off_t, off64_t, pthread_attr_t, pthread_t, size_t, ssize_t, timespec,
};

use crate::disk;
use crate::scheduler::{self, Cause};

// ---- what the simulation asks of the kernel

type Syscall = unsafe extern "C" fn(c_long, ...) -> c_long;
type Start = extern "C" fn(*mut c_void) -> *mut c_void;
type Create = unsafe extern "C" fn(*mut pthread_t, *const pthread_attr_t, Start, *mut c_void) -> c_int;
type Join = unsafe extern "C" fn(pthread_t, *mut *mut c_void) -> c_int;

/// The C library's own function of that name.
fn next(name: &CStr) -> *mut c_void {
    // SAFETY: a look-up.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    assert!(!found.is_null(), "the C library has no {name:?}");
    found
}

fn real_syscall() -> Syscall {
    static REAL: OnceLock<Syscall> = OnceLock::new();
    // SAFETY: that is its type.
    *REAL.get_or_init(|| unsafe { std::mem::transmute::<*mut c_void, Syscall>(next(c"syscall")) })
}

/// A system call.
macro_rules! real {
    ($number:ident $(, $argument:expr)*) => {
        // SAFETY: the arguments are those of the function that this one stands for.
        unsafe { real_syscall()(libc::$number $(, $argument)*) }
    };
}

fn fail(errno: c_int) -> c_int {
    // SAFETY: it is each thread's own.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// Until [`open`]ed; closes it again.
pub fn sleep_at(gate: &AtomicU32) {
    while gate.swap(0, Ordering::Acquire) == 0 {
        real!(
            SYS_futex,
            gate.as_ptr(),
            libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
            0,
            ptr::null::<timespec>()
        );
    }
}

pub fn open(gate: &AtomicU32) {
    gate.store(1, Ordering::Release);
    real!(SYS_futex, gate.as_ptr(), libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG, 1);
}

// ---- turns

fn duration(time: &timespec) -> Duration {
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Variadic in C; integers are passed in the same places.
#[unsafe(no_mangle)]
pub extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    if number == libc::SYS_futex && scheduler::is_on() {
        let operation = c_int::try_from(b).unwrap_or(-1) & libc::FUTEX_CMD_MASK;
        let address = usize::try_from(a).unwrap_or(0);
        match operation {
            libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => {
                // SAFETY: the caller waits for it to change, and nobody else runs meanwhile.
                let value = unsafe { &*ptr::with_exposed_provenance::<AtomicU32>(address) };
                let expected = (c & 0xffff_ffff) as u32;
                // SAFETY: the caller's, or null.
                let limit =
                    unsafe { ptr::with_exposed_provenance::<timespec>(d as usize).as_ref() }.map(duration);
                return c_long::from(futex_wait(value, expected, limit, operation == libc::FUTEX_WAIT));
            }
            libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET => {
                let woken =
                    scheduler::wake(Cause::Address(address), usize::try_from(c).unwrap_or(usize::MAX));
                return c_long::try_from(woken).unwrap_or(c_long::MAX);
            }
            _ => {}
        }
    }
    // SAFETY: as the caller said.
    unsafe { real_syscall()(number, a, b, c, d, e, f) }
}

fn futex_wait(value: &AtomicU32, expected: u32, limit: Option<Duration>, is_relative: bool) -> c_int {
    if value.load(Ordering::Acquire) != expected {
        return fail(libc::EAGAIN);
    }
    let until = limit.map(|limit| if is_relative { scheduler::now() + limit } else { limit });
    if scheduler::wait(Cause::Address(value.as_ptr().expose_provenance()), until) {
        0
    } else {
        fail(libc::ETIMEDOUT)
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn sched_yield() -> c_int {
    if scheduler::is_on() {
        scheduler::give_way();
    }
    0
}

struct Made {
    thread: scheduler::Thread,
    routine: Start,
    argument: *mut c_void,
}

/// Its destructor is the last thing that a thread runs.
fn last_words() -> libc::pthread_key_t {
    static KEY: OnceLock<libc::pthread_key_t> = OnceLock::new();
    *KEY.get_or_init(|| {
        let mut key = 0;
        // SAFETY: `key` is there to be written.
        let result = unsafe { libc::pthread_key_create(&raw mut key, Some(end)) };
        assert_eq!(result, 0, "no thread key is left");
        key
    })
}

/// `value` is the thread's number, plus one: a null is not told.
extern "C" fn end(value: *mut c_void) {
    scheduler::end(value.addr() - 1);
}

extern "C" fn begin(argument: *mut c_void) -> *mut c_void {
    // SAFETY: `pthread_create` below made it, for this thread alone.
    let made = unsafe { Box::from_raw(argument.cast::<Made>()) };
    scheduler::begin(made.thread);
    // SAFETY: a key that is there, and a value that nobody looks behind.
    unsafe { libc::pthread_setspecific(last_words(), ptr::without_provenance(made.thread + 1)) };
    (made.routine)(made.argument)
}

/// # Safety
/// As the C library says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_create(
    name: *mut pthread_t,
    attributes: *const pthread_attr_t,
    routine: Start,
    argument: *mut c_void,
) -> c_int {
    static REAL: OnceLock<Create> = OnceLock::new();
    // SAFETY: that is its type.
    let real =
        *REAL.get_or_init(|| unsafe { std::mem::transmute::<*mut c_void, Create>(next(c"pthread_create")) });
    if !scheduler::is_on() {
        // SAFETY: as the caller said.
        return unsafe { real(name, attributes, routine, argument) };
    }
    last_words();
    let thread = scheduler::make();
    let made = Box::into_raw(Box::new(Made { thread, routine, argument }));
    // SAFETY: as the caller said, with a routine of our own.
    let result = unsafe { real(name, attributes, begin, made.cast()) };
    if result == 0 {
        // SAFETY: it was written now.
        scheduler::name(thread, unsafe { *name });
    } else {
        scheduler::unmake(thread);
        // SAFETY: no thread has it.
        drop(unsafe { Box::from_raw(made) });
    }
    result
}

/// # Safety
/// As the C library says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_join(name: pthread_t, value: *mut *mut c_void) -> c_int {
    static REAL: OnceLock<Join> = OnceLock::new();
    // SAFETY: that is its type.
    let real =
        *REAL.get_or_init(|| unsafe { std::mem::transmute::<*mut c_void, Join>(next(c"pthread_join")) });
    if scheduler::is_on() {
        scheduler::join(name);
    }
    // SAFETY: as the caller said.
    unsafe { real(name, value) }
}

/// # Safety
/// As the C library says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn epoll_wait(
    epoll: c_int,
    events: *mut epoll_event,
    max: c_int,
    timeout_ms: c_int,
) -> c_int {
    let look = |timeout_ms: c_int| {
        let found =
            real!(SYS_epoll_pwait, epoll, events, max, timeout_ms, ptr::null::<c_void>(), size_of::<u64>());
        c_int::try_from(found).unwrap_or(-1)
    };
    if !scheduler::is_on() {
        return look(timeout_ms);
    }
    let limit = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
    let until = limit.map(|limit| scheduler::now() + limit);
    scheduler::poll(until, || Some(look(0)).filter(|found| *found != 0)).unwrap_or(0)
}

// ---- time and chance

/// What the wall clock is ahead of 1970 when the simulated clock is at zero, in seconds.
pub static WALL_SECS: AtomicU64 = AtomicU64::new(0);

/// When the machine was switched on last, on the simulated clock, in milliseconds.
pub static BOOTED_MILLIS: AtomicU64 = AtomicU64::new(0);

/// # Safety
/// As the C library says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    if !scheduler::is_on() {
        let result = real!(SYS_clock_gettime, clock, time);
        return c_int::try_from(result).unwrap_or(-1);
    }
    let now = match clock {
        libc::CLOCK_REALTIME => scheduler::now() + Duration::from_secs(WALL_SECS.load(Ordering::Relaxed)),
        libc::CLOCK_BOOTTIME => {
            scheduler::now().saturating_sub(Duration::from_millis(BOOTED_MILLIS.load(Ordering::Relaxed)))
        }
        _ => scheduler::now(),
    };
    let seconds = libc::time_t::try_from(now.as_secs()).unwrap_or(libc::time_t::MAX);
    // SAFETY: the caller wants it written.
    unsafe { *time = timespec { tv_sec: seconds, tv_nsec: c_long::from(now.subsec_nanos()) } };
    0
}

/// # Safety
/// As the C library says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nanosleep(wanted: *const timespec, left: *mut timespec) -> c_int {
    if !scheduler::is_on() {
        return c_int::try_from(real!(SYS_nanosleep, wanted, left)).unwrap_or(-1);
    }
    // SAFETY: the caller's.
    let wanted = duration(unsafe { &*wanted });
    scheduler::wait(Cause::Nothing, Some(scheduler::now() + wanted));
    0
}

/// Where chance begins in this run.
static CHANCE: AtomicU64 = AtomicU64::new(0);

/// From here on, what is random follows from `seed`.
pub fn seed(seed: u64) {
    CHANCE.store(seed, Ordering::Relaxed);
}

/// # Safety
/// As the C library says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: size_t, flags: c_uint) -> ssize_t {
    if !scheduler::is_on() {
        return ssize_t::try_from(real!(SYS_getrandom, buffer, length, flags)).unwrap_or(-1);
    }
    let mut dice = fastrand::Rng::with_seed(CHANCE.fetch_add(1, Ordering::Relaxed));
    // SAFETY: the caller wants it filled.
    dice.fill(unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) });
    ssize_t::try_from(length).unwrap_or(ssize_t::MAX)
}

// ---- programs

/// Whether the daemon has asked for the reboot: the one program that it starts here.
pub static REBOOT_ASKED: AtomicBool = AtomicBool::new(false);

type Spawn = unsafe extern "C" fn(
    *mut libc::pid_t,
    *const c_char,
    *const c_void,
    *const c_void,
    *const *mut c_char,
    *const *mut c_char,
) -> c_int;

/// The simulated machine starts nothing.
///
/// # Safety
/// As the C library says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_spawnp(
    process: *mut libc::pid_t,
    program: *const c_char,
    actions: *const c_void,
    attributes: *const c_void,
    arguments: *const *mut c_char,
    environment: *const *mut c_char,
) -> c_int {
    static REAL: OnceLock<Spawn> = OnceLock::new();
    if scheduler::is_on() {
        REBOOT_ASKED.store(true, Ordering::Relaxed);
        disk::NEWS.notify_one();
        return libc::ENOENT;
    }
    // SAFETY: that is its type.
    let real =
        *REAL.get_or_init(|| unsafe { std::mem::transmute::<*mut c_void, Spawn>(next(c"posix_spawnp")) });
    // SAFETY: as the caller said.
    unsafe { real(process, program, actions, attributes, arguments, environment) }
}

// ---- groups

/// The simulated machine knows none.
///
/// # Safety
/// As the C library says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getgrnam_r(
    _name: *const c_char,
    _group: *mut libc::group,
    _buffer: *mut c_char,
    _length: size_t,
    result: *mut *mut libc::group,
) -> c_int {
    // SAFETY: the caller wants it written.
    unsafe { *result = ptr::null_mut() };
    0
}

// ---- files

/// While the simulation itself restores the machine's files.
static IS_ASIDE: AtomicBool = AtomicBool::new(false);

/// Does something to files that the simulated machine does not do.
pub fn aside<T>(work: impl FnOnce() -> T) -> T {
    let before = IS_ASIDE.swap(true, Ordering::Relaxed);
    let result = work();
    IS_ASIDE.store(before, Ordering::Relaxed);
    result
}

fn is_watched() -> bool {
    scheduler::is_on() && !IS_ASIDE.load(Ordering::Relaxed)
}

/// # Safety
/// `path` ends with a null.
unsafe fn text<'a>(path: *const c_char) -> &'a Path {
    // SAFETY: the caller's promise.
    Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()))
}

/// What the kernel answers, told to the disk where it is a success; `EIO` without power.
fn change(is_on_disk: bool, real: impl FnOnce() -> c_long, tell: impl FnOnce(&mut disk::Disk)) -> c_long {
    if !is_on_disk {
        return real();
    }
    disk::change(|disk| {
        if !disk.is_on() {
            return c_long::from(fail(libc::EIO));
        }
        let result = real();
        if result >= 0 {
            tell(disk);
        }
        result
    })
}

fn watched_path(path: &Path) -> bool {
    is_watched() && disk::has(path)
}

fn watched_file(file: c_int) -> bool {
    is_watched() && disk::has_open(file)
}

/// Variadic in C.
///
/// # Safety
/// As the C library says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    let real = || real!(SYS_openat, libc::AT_FDCWD, path, flags, mode);
    // SAFETY: the caller's promise.
    let name = unsafe { text(path) };
    let result = if watched_path(name) {
        disk::change(|disk| {
            let makes = flags & libc::O_CREAT != 0 && !disk.exists(name);
            let empties = flags & libc::O_TRUNC != 0 && disk.size(name) > 0;
            if (makes || empties) && !disk.is_on() {
                return c_long::from(fail(libc::EIO));
            }
            let result = real();
            if let Ok(file) = c_int::try_from(result)
                && file >= 0
            {
                disk.opened(file, name, makes, empties);
            }
            result
        })
    } else {
        real()
    };
    c_int::try_from(result).unwrap_or(-1)
}

#[unsafe(no_mangle)]
pub extern "C" fn close(file: c_int) -> c_int {
    if watched_file(file) {
        disk::change(|disk| disk.closed(file));
    }
    c_int::try_from(real!(SYS_close, file)).unwrap_or(-1)
}

/// # Safety
/// As the C library says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(file: c_int, buffer: *const c_void, length: size_t) -> ssize_t {
    if !watched_file(file) {
        return ssize_t::try_from(real!(SYS_write, file, buffer, length)).unwrap_or(-1);
    }
    let offset = real!(SYS_lseek, file, off_t::from(0), libc::SEEK_CUR);
    // SAFETY: as the caller said.
    let written = unsafe { pwrite64(file, buffer, length, offset) };
    if written > 0 {
        real!(SYS_lseek, file, written, libc::SEEK_CUR);
    }
    written
}

/// # Safety
/// As the C library says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pwrite64(
    file: c_int,
    buffer: *const c_void,
    length: size_t,
    offset: off64_t,
) -> ssize_t {
    if !watched_file(file) || length == 0 {
        return ssize_t::try_from(real!(SYS_pwrite64, file, buffer, length, offset)).unwrap_or(-1);
    }
    // SAFETY: the caller's.
    let bytes = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), length) };
    let written = disk::change(|disk| {
        if !disk.is_on() {
            return c_long::from(fail(libc::EIO));
        }
        let Some(bytes) = disk.as_written(file, bytes) else {
            return c_long::try_from(length).unwrap_or(c_long::MAX);
        };
        let result = real!(SYS_pwrite64, file, bytes.as_ptr(), bytes.len(), offset);
        if let Ok(length) = usize::try_from(result) {
            disk.wrote(file, usize::try_from(offset).unwrap_or(0), &bytes[..length]);
        }
        result
    });
    ssize_t::try_from(written).unwrap_or(-1)
}

#[unsafe(no_mangle)]
pub extern "C" fn fsync(file: c_int) -> c_int {
    // The page cache of the simulated machine is memory: there is nothing to write out.
    if watched_file(file) && !disk::change(|disk| disk.is_on() && disk.synced(file)) {
        return fail(libc::EIO);
    }
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(file: c_int) -> c_int {
    fsync(file)
}

#[unsafe(no_mangle)]
pub extern "C" fn ftruncate64(file: c_int, length: off_t) -> c_int {
    let result = change(
        watched_file(file),
        || real!(SYS_ftruncate, file, length),
        |disk| disk.resized(file, usize::try_from(length).unwrap_or(0)),
    );
    c_int::try_from(result).unwrap_or(-1)
}

/// # Safety
/// As the C library says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rename(from: *const c_char, to: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    let (old, new) = unsafe { (text(from), text(to)) };
    let result = change(
        watched_path(new),
        || real!(SYS_renameat2, libc::AT_FDCWD, from, libc::AT_FDCWD, to, 0),
        |disk| disk.renamed(old, new),
    );
    c_int::try_from(result).unwrap_or(-1)
}

/// # Safety
/// As the C library says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn unlink(path: *const c_char) -> c_int {
    // SAFETY: the caller's promise.
    let name = unsafe { text(path) };
    let real = || real!(SYS_unlinkat, libc::AT_FDCWD, path, 0);
    c_int::try_from(change(watched_path(name), real, |disk| disk.unlinked(name))).unwrap_or(-1)
}

/// # Safety
/// As the C library says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdir(path: *const c_char, mode: mode_t) -> c_int {
    // SAFETY: the caller's promise.
    let name: PathBuf = unsafe { text(path) }.to_owned();
    let real = || real!(SYS_mkdirat, libc::AT_FDCWD, path, mode);
    c_int::try_from(change(watched_path(&name), real, |disk| disk.made_directory(&name))).unwrap_or(-1)
}
