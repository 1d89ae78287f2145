//! The media as files, for loop devices on top of them, or a guest. The page cache above is the kernel's own.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
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

/// A file: media side by side, with one cache, as partitions of a disk have it.
#[derive(Debug)]
pub struct Device {
    pub name: String,
    /// What is around the media, which is not written to.
    pub around: Option<File>,
    /// Each with where it begins.
    pub media: Vec<(usize, Medium)>,
}

impl Device {
    /// One for each medium.
    pub fn for_each_medium() -> Vec<Self> {
        let device =
            |medium: Medium| Self { name: medium.name().to_owned(), around: None, media: vec![(0, medium)] };
        Medium::ALL.map(device).into()
    }

    fn size_bytes(&self, disk: &Disk) -> usize {
        let around = self.around.as_ref().and_then(|file| file.metadata().ok());
        let ends = self.media.iter().map(|(start, medium)| start + disk.size_bytes(*medium));
        ends.chain(around.map(|metadata| metadata.len() as usize)).max().unwrap_or_default()
    }

    /// `None`: the power went.
    fn read(&self, disk: &Disk, offset: usize, size: usize) -> io::Result<Option<Vec<u8>>> {
        let end = (offset + size).min(self.size_bytes(disk)).max(offset);
        let mut bytes = vec![0; end - offset];
        if let Some(around) = &self.around {
            around.read_exact_at(&mut bytes, offset as u64)?;
        }
        for (start, medium) in &self.media {
            let (first, last) = (offset.max(*start), end.min(start + disk.size_bytes(*medium)));
            if first < last {
                let (verdict, read) = disk.read(*medium, first - start, last - first);
                if verdict == Verdict::Refuse {
                    return Ok(None);
                }
                bytes[first - offset..last - offset].copy_from_slice(&read);
            }
        }
        Ok(Some(bytes))
    }

    /// Nothing is written around the media.
    fn write(&self, disk: &Disk, offset: usize, data: &[u8]) -> Verdict {
        let is_in = |(start, medium): &&(usize, Medium)| {
            (*start..start + disk.size_bytes(*medium)).contains(&offset)
                && offset + data.len() <= start + disk.size_bytes(*medium)
        };
        match self.media.iter().find(is_in) {
            Some((start, medium)) => disk.write(*medium, offset - start, data),
            None => Verdict::Refuse,
        }
    }

    fn flush(&self, disk: &Disk) -> Verdict {
        disk.flush(&self.media.iter().map(|(_, medium)| *medium).collect::<Vec<_>>())
    }
}

/// A disk in the file system. Dropped, it is gone.
pub struct Mounted {
    directory: PathBuf,
    held: Held,
    disk: Arc<Disk>,
    _session: BackgroundSession,
}

impl Mounted {
    pub fn new(disk: &Arc<Disk>, devices: Vec<Device>, directory: &Path) -> io::Result<Self> {
        let held = Held::default();
        let server = Server { disk: disk.clone(), devices, held: held.clone() };
        let session = fuser::spawn_mount(server, directory, &Config::default())?;
        Ok(Self { directory: directory.to_owned(), held, disk: disk.clone(), _session: session })
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
    devices: Vec<Device>,
    held: Held,
}

impl Server {
    fn hold(&self, waiting: Waiting) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).push(waiting);
    }

    /// The root has number 1.
    fn device(&self, inode: INodeNo) -> Option<&Device> {
        let index = usize::try_from(u64::from(inode)).ok()?.checked_sub(2)?;
        self.devices.get(index)
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, size) = match self.device(inode) {
            _ if inode == INodeNo::ROOT => (FileType::Directory, 0),
            Some(device) => (FileType::RegularFile, device.size_bytes(&self.disk) as u64),
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

impl Filesystem for Server {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.devices.iter().position(|device| device.name.as_str() == name);
        match found.and_then(|index| self.attributes(INodeNo(index as u64 + 2))) {
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
        // The cache of the loop device, or of the guest, is the only one.
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
        let Some(device) = self.device(inode) else { return reply.error(Errno::EISDIR) };
        match device.read(&self.disk, offset as usize, size as usize) {
            Ok(Some(data)) => reply.data(&data),
            Ok(None) | Err(_) => reply.error(Errno::EIO),
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
        let Some(device) = self.device(inode) else { return reply.error(Errno::EISDIR) };
        match device.write(&self.disk, offset as usize, data) {
            Verdict::Done => reply.written(data.len() as u32),
            Verdict::Hold => self.hold(Waiting::Write(reply)),
            Verdict::Refuse => reply.error(Errno::EIO),
        }
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let Some(device) = self.device(inode) else { return reply.error(Errno::EISDIR) };
        match device.flush(&self.disk) {
            Verdict::Done => reply.ok(),
            Verdict::Hold => self.hold(Waiting::Flush(reply)),
            Verdict::Refuse => reply.error(Errno::EIO),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}
