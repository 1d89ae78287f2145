//! The media as files, for loop devices on top of them. The page cache above is the kernel's own.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, WriteFlags,
};

use nix::mount::{MntFlags, umount2};

use crate::disk::{Disk, Medium, Verdict};

/// Nothing changes its name or size.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);

/// Requests that a cut left without an answer.
type Held = Arc<Mutex<Vec<Waiting>>>;

enum Waiting {
    Write(ReplyWrite),
    Flush(ReplyEmpty),
}

/// A disk in the file system. Dropped, it is gone.
pub struct Mounted {
    directory: PathBuf,
    held: Held,
    disk: Arc<Disk>,
    _session: BackgroundSession,
}

impl Mounted {
    pub fn new(disk: &Arc<Disk>, directory: &Path) -> io::Result<Self> {
        let held = Held::default();
        let server = Server { disk: disk.clone(), held: held.clone() };
        let session = fuser::spawn_mount(server, directory, &Config::default())?;
        Ok(Self { directory: directory.to_owned(), held, disk: disk.clone(), _session: session })
    }

    pub fn file(&self, medium: Medium) -> PathBuf {
        self.directory.join(medium.name())
    }

    /// After a cut, everything that waits for the disk, and everything that comes, fails.
    pub fn bury(&self) {
        self.disk.bury();
        for waiting in self.held.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            match waiting {
                Waiting::Write(reply) => reply.error(Errno::EIO),
                Waiting::Flush(reply) => reply.error(Errno::EIO),
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.bury();
        // A loop device may be held a little longer by whoever looks at it just now: without a name, the files go
        // when it goes.
        let _ = umount2(&self.directory, MntFlags::MNT_DETACH);
    }
}

struct Server {
    disk: Arc<Disk>,
    held: Held,
}

impl Server {
    fn hold(&self, waiting: Waiting) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).push(waiting);
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let medium = medium(inode);
        let (kind, size) = match medium {
            _ if inode == INodeNo::ROOT => (FileType::Directory, 0),
            Some(medium) => (FileType::RegularFile, self.disk.size_bytes(medium) as u64),
            None => return None,
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: 0o700,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

/// The root has number 1.
fn medium(inode: INodeNo) -> Option<Medium> {
    let index = usize::try_from(u64::from(inode)).ok()?.checked_sub(2)?;
    Medium::ALL.get(index).copied()
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = Medium::ALL.into_iter().find(|medium| medium.name() == name);
        match found.and_then(|medium| self.attributes(INodeNo(medium as u64 + 2))) {
            Some(attributes) => reply.entry(&FOR_EVER, &attributes, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&FOR_EVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // The loop device's cache is the only one.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(medium) = medium(inode) else { return reply.error(Errno::EISDIR) };
        match self.disk.read(medium, offset as usize, size as usize) {
            (Verdict::Refuse, _) => reply.error(Errno::EIO),
            (_, data) => reply.data(&data),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(medium) = medium(inode) else { return reply.error(Errno::EISDIR) };
        match self.disk.write(medium, offset as usize, data) {
            Verdict::Done => reply.written(data.len() as u32),
            Verdict::Hold => self.hold(Waiting::Write(reply)),
            Verdict::Refuse => reply.error(Errno::EIO),
        }
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let Some(medium) = medium(inode) else { return reply.error(Errno::EISDIR) };
        match self.disk.flush(medium) {
            Verdict::Done => reply.ok(),
            Verdict::Hold => self.hold(Waiting::Flush(reply)),
            Verdict::Refuse => reply.error(Errno::EIO),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}
