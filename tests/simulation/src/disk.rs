//! What survives a power cut. The simulated machine reads and writes real files, its page cache; here is what of them
//! the medium has for certain, and what was done since, of which a cut leaves a part.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_int;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use fastrand::Rng;
use tokio::sync::Notify;

use crate::seam;

/// Told when the power fails, and when the daemon asks for a reboot.
pub static NEWS: Notify = Notify::const_new();

static DISK: Mutex<Option<Disk>> = Mutex::new(None);
static ROOT: OnceLock<PathBuf> = OnceLock::new();

/// What a failure leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing is left of it.
    All,
    /// Everything is on the medium.
    Nothing,
    /// Any subset of its sectors of 512 bytes, and the first changes of each directory.
    Sectors,
    /// Any subset of its blocks of 4 KiB, and the first changes of each directory.
    Blocks,
    /// It is still in the page cache: the daemon alone was killed.
    Killed,
}

impl Loss {
    pub const ALL: [Self; 5] = [Self::All, Self::Nothing, Self::Sectors, Self::Blocks, Self::Killed];

    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Nothing => "nothing",
            Self::Sectors => "sectors",
            Self::Blocks => "blocks",
            Self::Killed => "killed",
        }
    }
}

/// A file, or a directory.
#[derive(Clone, Debug, Default)]
struct Node {
    is_directory: bool,
    /// What the medium has.
    safe: Vec<u8>,
    /// Since the last sync.
    changes: Vec<Change>,
    /// Bytes as the page cache has them.
    size: usize,
}

#[derive(Clone, Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Resize(usize),
}

/// What happened in a directory.
#[derive(Clone, Debug)]
enum Naming {
    Link(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
}

impl Naming {
    fn directory(&self) -> &Path {
        let (Self::Link(path, _) | Self::Rename(_, path) | Self::Unlink(path)) = self;
        path.parent().unwrap_or(Path::new("/"))
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Link(path, node) => drop(names.insert(path.clone(), *node)),
            Self::Unlink(path) => drop(names.remove(path)),
            Self::Rename(from, to) => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
        }
    }
}

/// A medium that does not keep what it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// One bit of this write to a file, counted from 1, is another.
    Flips(u32),
    /// So many writes to a file, the first ones, do not happen.
    Drops(u32),
    /// So many syncs of a file, the first ones, are said to have failed, though they did not.
    Refuses(u32),
}

/// A file is made in pieces of this size.
const MADE_BYTES: usize = 1 << 16;

/// A copy of each content that the watched file had for certain, oldest first.
pub type History = Vec<Vec<u8>>;

pub struct Disk {
    nodes: Vec<Node>,
    /// As a process sees them.
    names: BTreeMap<PathBuf, usize>,
    /// As the medium has them.
    safe_names: BTreeMap<PathBuf, usize>,
    namings: Vec<Naming>,
    open: HashMap<c_int, usize>,
    is_on: bool,
    /// Durable operations so far: each write, sync, rename, removal, new name, change of size.
    operations: u64,
    /// After so many, the power fails.
    fails_after: Option<u64>,
    lies: Option<(PathBuf, Lie)>,
    asked_liar: u32,
    watched: Option<(PathBuf, History)>,
}

/// Where the files of the simulated machine are.
pub fn set_root(root: &Path) {
    ROOT.get_or_init(|| root.to_owned());
}

pub fn has(path: &Path) -> bool {
    ROOT.get().is_some_and(|root| path.starts_with(root))
}

pub fn has_open(file: c_int) -> bool {
    let disk = DISK.lock().unwrap_or_else(PoisonError::into_inner);
    disk.as_ref().is_some_and(|disk| disk.open.contains_key(&file))
}

/// Does something to the disk that is in the machine.
pub fn change<T>(work: impl FnOnce(&mut Disk) -> T) -> T {
    let mut guard = DISK.lock().unwrap_or_else(PoisonError::into_inner);
    let disk = guard.as_mut().expect("there is a disk");
    let was_on = disk.is_on;
    let result = work(disk);
    let fails = was_on && !disk.is_on;
    // To tell of it takes a write.
    drop(guard);
    if fails {
        NEWS.notify_one();
    }
    result
}

/// Puts a disk with these files into the machine.
pub fn insert(files: &[(PathBuf, Vec<u8>)]) -> io::Result<()> {
    let root = ROOT.get().expect("there is a root");
    let mut disk = Disk {
        nodes: Vec::new(),
        names: BTreeMap::new(),
        safe_names: BTreeMap::new(),
        namings: Vec::new(),
        open: HashMap::new(),
        is_on: false,
        operations: 0,
        fails_after: None,
        lies: None,
        asked_liar: 0,
        watched: None,
    };
    disk.add(root.clone(), Node { is_directory: true, ..Node::default() });
    for (path, content) in files {
        let parent = path.parent().unwrap_or(root);
        if !disk.names.contains_key(parent) {
            disk.add(parent.to_owned(), Node { is_directory: true, ..Node::default() });
        }
        disk.add(path.clone(), Node { safe: content.clone(), size: content.len(), ..Node::default() });
    }
    disk.safe_names = disk.names.clone();
    seam::aside(|| {
        match fs::remove_dir_all(root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir(root)?,
        }
        disk.names
            .iter()
            .filter(|(path, _)| *path != root)
            .try_for_each(|(path, node)| disk.nodes[*node].make(path))
    })?;
    *DISK.lock().unwrap_or_else(PoisonError::into_inner) = Some(disk);
    Ok(())
}

impl Node {
    fn make(&self, path: &Path) -> io::Result<()> {
        if self.is_directory {
            return fs::create_dir(path);
        }
        let file = fs::File::create(path)?;
        file.set_len(u64::try_from(self.safe.len()).unwrap_or(u64::MAX))?;
        // What is blank needs no memory.
        let is_blank = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
        for (number, bytes) in self.safe.chunks(MADE_BYTES).enumerate().filter(|(_, bytes)| !is_blank(bytes))
        {
            file.write_all_at(bytes, (number * MADE_BYTES) as u64)?;
        }
        Ok(())
    }

    /// The medium takes everything.
    fn sync(&mut self) {
        for change in std::mem::take(&mut self.changes) {
            match change {
                Change::Resize(size) => self.safe.resize(size, 0),
                Change::Write { offset, bytes } => put(&mut self.safe, offset, &bytes),
            }
        }
    }

    /// The medium takes a part, in atoms of so many bytes.
    fn tear(&mut self, atom_bytes: usize, dice: &mut Rng) {
        for change in std::mem::take(&mut self.changes) {
            match change {
                Change::Resize(size) => {
                    if dice.bool() {
                        self.safe.resize(size, 0);
                    }
                }
                Change::Write { offset, bytes } => {
                    let end = offset + bytes.len();
                    // A new size without the new bytes: what a journal of names and sizes alone leaves.
                    if end > self.safe.len() && dice.bool() {
                        self.safe.resize(end, 0);
                    }
                    let mut at = offset;
                    while at < end {
                        let next = (at / atom_bytes + 1) * atom_bytes;
                        let next = next.min(end);
                        if dice.bool() {
                            put(&mut self.safe, at, &bytes[at - offset..next - offset]);
                        }
                        at = next;
                    }
                }
            }
        }
    }
}

fn put(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

impl Disk {
    fn add(&mut self, path: PathBuf, node: Node) -> usize {
        self.nodes.push(node);
        self.names.insert(path, self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    pub fn is_on(&self) -> bool {
        self.is_on
    }

    pub fn operations(&self) -> u64 {
        self.operations
    }

    /// Power is there.
    pub fn switch_on(&mut self) {
        self.is_on = true;
    }

    /// The power fails after so many operations from here on.
    pub fn plan(&mut self, fails_after: Option<u64>) {
        self.operations = 0;
        self.fails_after = fails_after;
    }

    /// From here on, this file's medium does not do what it says.
    pub fn lie(&mut self, path: &Path, lie: Lie) {
        self.lies = Some((path.to_owned(), lie));
    }

    /// From here on, this file's history is kept.
    pub fn watch(&mut self, path: &Path) {
        let now = self.safe(path).to_vec();
        self.watched = Some((path.to_owned(), vec![now]));
    }

    /// What the watched file has been; begins with what it is.
    pub fn history(&self) -> &[Vec<u8>] {
        self.watched.as_ref().map_or(&[], |(_, history)| history)
    }

    /// What a file holds for certain.
    pub fn safe(&self, path: &Path) -> &[u8] {
        self.safe_names.get(path).map_or(&[], |node| self.nodes[*node].safe.as_slice())
    }

    pub fn exists(&self, path: &Path) -> bool {
        self.names.contains_key(path)
    }

    pub fn size(&self, path: &Path) -> usize {
        self.names.get(path).map_or(0, |node| self.nodes[*node].size)
    }

    fn count(&mut self) {
        self.operations += 1;
        if self.fails_after == Some(self.operations) {
            self.is_on = false;
        }
    }

    fn name(&mut self, naming: Naming) {
        naming.apply(&mut self.names);
        self.namings.push(naming);
        self.count();
    }

    // ---- what the machine does

    pub fn opened(&mut self, file: c_int, path: &Path, makes: bool, empties: bool) {
        if makes {
            self.nodes.push(Node::default());
            self.name(Naming::Link(path.to_owned(), self.nodes.len() - 1));
        }
        if let Some(node) = self.names.get(path) {
            self.open.insert(file, *node);
        }
        if empties {
            self.resized(file, 0);
        }
    }

    pub fn closed(&mut self, file: c_int) {
        self.open.remove(&file);
    }

    /// The bytes that really get there; `None`: none do.
    pub fn as_written<'a>(&mut self, file: c_int, bytes: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        let Some(lie) = self.lie_about(file) else { return Some(bytes.into()) };
        match lie {
            Lie::Flips(number) if self.asked() == number => {
                let mut bytes = bytes.to_vec();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                Some(bytes.into())
            }
            Lie::Drops(count) if self.asked() <= count => None,
            Lie::Flips(_) | Lie::Drops(_) | Lie::Refuses(_) => Some(bytes.into()),
        }
    }

    fn lie_about(&self, file: c_int) -> Option<Lie> {
        let (path, lie) = self.lies.as_ref()?;
        (self.open.get(&file) == self.names.get(path)).then_some(*lie)
    }

    /// Which time this is, counted from 1.
    fn asked(&mut self) -> u32 {
        self.asked_liar += 1;
        self.asked_liar
    }

    pub fn wrote(&mut self, file: c_int, offset: usize, bytes: &[u8]) {
        let Some(node) = self.open.get(&file) else { return };
        let node = &mut self.nodes[*node];
        node.size = node.size.max(offset + bytes.len());
        node.changes.push(Change::Write { offset, bytes: bytes.to_vec() });
        self.count();
    }

    pub fn resized(&mut self, file: c_int, size: usize) {
        let Some(node) = self.open.get(&file) else { return };
        let node = &mut self.nodes[*node];
        node.size = size;
        node.changes.push(Change::Resize(size));
        self.count();
    }

    /// Whether it is said to be done.
    pub fn synced(&mut self, file: c_int) -> bool {
        let Some(&node) = self.open.get(&file) else { return true };
        if self.nodes[node].is_directory {
            let path = self.names.iter().find(|(_, other)| **other == node).map(|(path, _)| path.clone());
            if let Some(path) = path {
                for naming in self.namings.extract_if(.., |naming| naming.directory() == path) {
                    naming.apply(&mut self.safe_names);
                }
            }
        } else {
            self.nodes[node].sync();
            self.remember(node);
        }
        self.count();
        !matches!(self.lie_about(file), Some(Lie::Refuses(count)) if self.asked() <= count)
    }

    fn remember(&mut self, node: usize) {
        let Some((path, history)) = &mut self.watched else { return };
        let safe = &self.nodes[node].safe;
        if self.names.get(path) == Some(&node) && history.last() != Some(safe) {
            history.push(safe.clone());
        }
    }

    pub fn renamed(&mut self, from: &Path, to: &Path) {
        self.name(Naming::Rename(from.to_owned(), to.to_owned()));
    }

    pub fn unlinked(&mut self, path: &Path) {
        self.name(Naming::Unlink(path.to_owned()));
    }

    pub fn made_directory(&mut self, path: &Path) {
        self.nodes.push(Node { is_directory: true, ..Node::default() });
        self.name(Naming::Link(path.to_owned(), self.nodes.len() - 1));
    }

    // ---- what befalls it

    /// The power is away: what the medium makes of what was not synced becomes the page cache of the next boot.
    pub fn settle(&mut self, loss: Loss, dice: &mut Rng) -> io::Result<()> {
        self.is_on = false;
        self.open.clear();
        if loss == Loss::Killed {
            return Ok(());
        }
        let before = std::mem::take(&mut self.names);
        self.settle_names(loss, dice);
        let touched: Vec<_> = self.nodes.iter().map(|node| !node.changes.is_empty()).collect();
        for node in self.nodes.iter_mut().filter(|node| !node.changes.is_empty()) {
            match loss {
                Loss::All => node.changes.clear(),
                Loss::Nothing | Loss::Killed => node.sync(),
                Loss::Sectors => node.tear(512, dice),
                Loss::Blocks => node.tear(4096, dice),
            }
            node.size = node.safe.len();
        }
        self.names = self.safe_names.clone();
        let names = &self.names;
        seam::aside(|| {
            // What is deeper goes first, and comes last.
            for (path, node) in before.iter().rev().filter(|(path, node)| names.get(*path) != Some(*node)) {
                if self.nodes[*node].is_directory { fs::remove_dir(path)? } else { fs::remove_file(path)? }
            }
            for (path, node) in names {
                if before.get(path) != Some(node) {
                    self.nodes[*node].make(path)?;
                } else if touched[*node] {
                    self.nodes[*node].restore(path)?;
                }
            }
            Ok(())
        })
    }

    fn settle_names(&mut self, loss: Loss, dice: &mut Rng) {
        let mut ended: Vec<PathBuf> = Vec::new();
        for naming in std::mem::take(&mut self.namings) {
            let directory = naming.directory();
            let is_kept = match loss {
                Loss::All => false,
                Loss::Nothing | Loss::Killed => true,
                Loss::Sectors | Loss::Blocks => !ended.iter().any(|other| other == directory) && dice.bool(),
            };
            if is_kept {
                naming.apply(&mut self.safe_names);
            } else {
                ended.push(directory.to_owned());
            }
        }
        // Nothing is in a directory that is not there.
        let orphans: Vec<_> = self.safe_names.keys().filter(|path| !self.is_rooted(path)).cloned().collect();
        for path in orphans {
            self.safe_names.remove(&path);
        }
    }

    fn is_rooted(&self, path: &Path) -> bool {
        let root = ROOT.get().expect("there is a root");
        path.ancestors()
            .take_while(|path| path.starts_with(root))
            .all(|path| self.safe_names.contains_key(path))
    }
}

impl Node {
    /// Makes the page cache what the medium has.
    fn restore(&self, path: &Path) -> io::Result<()> {
        let file = fs::OpenOptions::new().write(true).open(path)?;
        file.set_len(u64::try_from(self.safe.len()).unwrap_or(u64::MAX))?;
        file.write_all_at(&self.safe, 0)
    }
}
