//! The redundant U-Boot environment in two files, as U-Boot's `env/common.c` and `tools/env/fw_env.c` have it:
//! CRC-32 (little endian, over the data) | serial number (1 byte) | `name=value\0...\0`, padded to the size.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Size of one copy. What many boards have, and small.
pub const ENV_SIZE_BYTES: usize = 0x2000;

const HEADER_BYTES: usize = 5;

pub use super::boot_script::Variables;

/// Both copies on their medium.
#[derive(Clone, Debug)]
pub struct UbootEnv {
    copies: [PathBuf; 2],
}

/// What the medium says.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The variables in force.
    pub variables: Variables,
    /// Index of the copy they came from, and its serial number; `None` where no copy was valid.
    pub current: Option<(usize, u8)>,
}

impl UbootEnv {
    /// The environment whose copies are these two files.
    #[must_use]
    pub fn new(first: PathBuf, second: PathBuf) -> Self {
        Self { copies: [first, second] }
    }

    /// Writes both copies anew, the first the newer.
    ///
    /// # Errors
    /// When the variables do not fit, or a file cannot be written.
    pub fn format(&self, variables: &Variables) -> io::Result<()> {
        let [first, second] = &self.copies;
        write_copy(second, &encode(variables, 0)?)?;
        write_copy(first, &encode(variables, 1)?)
    }

    /// Chooses the copy in force as U-Boot does; `default` is what it was compiled with.
    ///
    /// # Errors
    /// When a file is there but cannot be read.
    pub fn load(&self, default: &Variables) -> io::Result<Loaded> {
        let [first, second] = &self.copies;
        let first = read_copy(first)?.as_deref().and_then(decode);
        let second = read_copy(second)?.as_deref().and_then(decode);
        Ok(match (first, second) {
            (Some((_, first)), Some((variables, serial))) if newer(serial, first) => {
                Loaded { variables, current: Some((1, serial)) }
            }
            (Some((variables, serial)), _) => Loaded { variables, current: Some((0, serial)) },
            (None, Some((variables, serial))) => Loaded { variables, current: Some((1, serial)) },
            (None, None) => Loaded { variables: default.clone(), current: None },
        })
    }

    /// `saveenv`: the copy that is not in force becomes so.
    ///
    /// # Errors
    /// When the variables do not fit, or the file cannot be written.
    pub fn save(&self, loaded: &mut Loaded) -> io::Result<()> {
        let (target, serial) = match loaded.current {
            Some((0, serial)) => (1, serial.wrapping_add(1)),
            Some((_, serial)) => (0, serial.wrapping_add(1)),
            None => (0, 1),
        };
        let [first, second] = &self.copies;
        write_copy(if target == 0 { first } else { second }, &encode(&loaded.variables, serial)?)?;
        loaded.current = Some((target, serial));
        Ok(())
    }

    /// The lines of `fw_env.config` for the tools.
    #[must_use]
    pub fn tools_config(&self) -> String {
        let line = |path: &PathBuf| format!("{} 0x0 {ENV_SIZE_BYTES:#x}\n", path.display());
        self.copies.iter().map(line).collect()
    }
}

/// The serial number wraps: 0 follows 255.
fn newer(serial: u8, than: u8) -> bool {
    match (serial, than) {
        (0, 255) => true,
        (255, 0) => false,
        _ => serial > than,
    }
}

fn encode(variables: &Variables, serial: u8) -> io::Result<Vec<u8>> {
    let mut data = Vec::with_capacity(ENV_SIZE_BYTES);
    for (name, value) in variables {
        data.extend_from_slice(format!("{name}={value}\0").as_bytes());
    }
    data.push(0);
    let room = ENV_SIZE_BYTES - HEADER_BYTES;
    if data.len() > room {
        let text = format!("the variables take {} of {room} bytes", data.len());
        return Err(io::Error::new(io::ErrorKind::StorageFull, text));
    }
    data.resize(room, 0);
    let mut copy = crc32fast::hash(&data).to_le_bytes().to_vec();
    copy.push(serial);
    copy.append(&mut data);
    Ok(copy)
}

/// `None` unless the CRC is right.
fn decode(copy: &[u8]) -> Option<(Variables, u8)> {
    let copy = copy.get(..ENV_SIZE_BYTES)?;
    let (crc, rest) = copy.split_first_chunk::<4>()?;
    let (serial, data) = rest.split_first()?;
    if crc32fast::hash(data) != u32::from_le_bytes(*crc) {
        return None;
    }
    let entries = data.split(|byte| *byte == 0).take_while(|entry| !entry.is_empty());
    let text = entries.map(|entry| String::from_utf8_lossy(entry).into_owned());
    let variables = text.filter_map(|entry| {
        let (name, value) = entry.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    });
    Some((variables.collect(), *serial))
}

fn read_copy(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// In place, as on a raw partition.
fn write_copy(path: &Path, copy: &[u8]) -> io::Result<()> {
    let mut file = File::options().create(true).write(true).truncate(false).open(path)?;
    file.write_all(copy)
}
