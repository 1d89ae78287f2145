//! The U-Boot environment as bytes: pure.
//!
//! One copy on the medium is a header, then the variables:
//!
//! | | header | then |
//! |---|---|---|
//! | single | CRC-32 (4 bytes) | data |
//! | redundant | CRC-32 (4 bytes), flags (1 byte) | data |
//!
//! The data is `name=value` entries, each ended by NUL, ended by an empty entry, padded to its full length. The
//! CRC covers all of the data, padding included, but neither itself nor the flags; it is in the CPU's byte order.

use std::fmt;

use super::{EnvPatch, Variables};

/// Byte order of the stored CRC: that of the CPU that runs U-Boot, which is the one that runs this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteOrder {
    /// x86, and nearly every ARM and RISC-V board.
    Little,
    /// `mkenvimage -b`.
    Big,
}

impl ByteOrder {
    /// The byte order of this machine.
    pub const NATIVE: Self = if cfg!(target_endian = "big") { Self::Big } else { Self::Little };

    fn crc_from(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }

    fn crc_bytes(self, crc: u32) -> [u8; 4] {
        match self {
            Self::Little => crc.to_le_bytes(),
            Self::Big => crc.to_be_bytes(),
        }
    }
}

/// What the flags byte of a redundant copy means; the medium decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlagScheme {
    /// A serial number of 8 bits that wraps: files, block devices.
    Incremental,
    /// 1 active, 0 obsolete, 0xFF just erased: NOR flash, where a bit can be cleared without an erase.
    Boolean,
}

/// The flags of the active copy in the boolean scheme.
const ACTIVE: u8 = 1;
/// The flags of the superseded copy in the boolean scheme.
pub const OBSOLETE: u8 = 0;
/// Where the flags byte is in a redundant copy.
pub const FLAGS_OFFSET_BYTES: usize = 4;

impl FlagScheme {
    /// The flags with which a copy supersedes one that has the flags `current`.
    #[must_use]
    pub fn successor(self, current: u8) -> u8 {
        match self {
            Self::Incremental => current.wrapping_add(1),
            Self::Boolean => ACTIVE,
        }
    }

    /// Whether a good second copy goes before a good first one; where the flags are equal it does not.
    ///
    /// The boolean rule, for values that U-Boot or its tools write, is "the higher": 0xFF wins over 1 over 0.
    fn second_wins(self, first: u8, second: u8) -> bool {
        match (self, first, second) {
            (Self::Incremental, 0xFF, 0) => true,
            (Self::Incremental, 0, 0xFF) => false,
            _ => second > first,
        }
    }
}

/// One of the two copies of a redundant environment, in the order of `fw_env.config`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyIndex {
    /// The first line.
    First,
    /// The second line.
    Second,
}

impl CopyIndex {
    /// The one that is not this one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// This one's part of a pair.
    #[must_use]
    pub fn of<T>(self, [first, second]: &[T; 2]) -> &T {
        match self {
            Self::First => first,
            Self::Second => second,
        }
    }
}

/// Which of two copies the boot loader takes, by their flags; `None` is a copy with a bad CRC.
#[must_use]
pub fn select(scheme: FlagScheme, flags: [Option<u8>; 2]) -> Option<CopyIndex> {
    match flags {
        [None, None] => None,
        [Some(_), None] => Some(CopyIndex::First),
        [None, Some(_)] => Some(CopyIndex::Second),
        [Some(first), Some(second)] if scheme.second_wins(first, second) => Some(CopyIndex::Second),
        [Some(_), Some(_)] => Some(CopyIndex::First),
    }
}

/// The shape of each copy of one environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `CONFIG_ENV_SIZE`: the size of one copy, header included.
    pub size_bytes: usize,
    /// Whether copies have a flags byte, which they have exactly where there are two.
    pub redundant: bool,
    /// Of the CRC.
    pub byte_order: ByteOrder,
}

/// A copy whose CRC is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoodCopy<'bytes> {
    /// 0 for a single environment.
    pub flags: u8,
    /// The variables and the padding.
    pub data: &'bytes [u8],
}

impl Layout {
    /// Size of what precedes the data.
    #[must_use]
    pub fn header_bytes(&self) -> usize {
        if self.redundant { FLAGS_OFFSET_BYTES + 1 } else { FLAGS_OFFSET_BYTES }
    }

    /// Size of the data: what the variables have room in.
    #[must_use]
    pub fn data_bytes(&self) -> usize {
        self.size_bytes.saturating_sub(self.header_bytes())
    }

    /// The copy in `bytes`, if it is one of this layout and its CRC is right.
    #[must_use]
    pub fn decode<'bytes>(&self, bytes: &'bytes [u8]) -> Option<GoodCopy<'bytes>> {
        if bytes.len() != self.size_bytes {
            return None;
        }
        let (crc, rest) = bytes.split_first_chunk::<FLAGS_OFFSET_BYTES>()?;
        let (flags, data) = if self.redundant { rest.split_first()? } else { (&0, rest) };
        let good = crc32fast::hash(data) == self.byte_order.crc_from(*crc);
        good.then_some(GoodCopy { flags: *flags, data })
    }

    /// The bytes of one copy. `flags` has no place in a single environment.
    ///
    /// # Errors
    /// When the environment does not fit.
    pub fn encode(&self, environment: &Environment, flags: u8) -> Result<Vec<u8>, DoesNotFit> {
        environment.check_fits(self.data_bytes())?;
        let mut data = Vec::with_capacity(self.data_bytes());
        for entry in &environment.entries {
            data.extend_from_slice(entry);
            data.push(0);
        }
        data.resize(self.data_bytes(), 0);

        let mut copy = Vec::with_capacity(self.size_bytes);
        copy.extend_from_slice(&self.byte_order.crc_bytes(crc32fast::hash(&data)));
        if self.redundant {
            copy.push(flags);
        }
        copy.append(&mut data);
        Ok(copy)
    }
}

/// More variables than the environment has room for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the variables need {needed_bytes} bytes, the environment has {capacity_bytes}")]
pub struct DoesNotFit {
    /// All entries and their ends.
    pub needed_bytes: usize,
    /// [`Layout::data_bytes`].
    pub capacity_bytes: usize,
}

/// Why a patch cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// U-Boot would read it as something else: it ends a name at `=`, and skips leading blanks and `#` lines.
    #[error(
        "{0:?} cannot be the name of a variable: it is empty, contains `=` or NUL, or begins with a blank or `#`"
    )]
    BadName(String),
    /// NUL ends a value.
    #[error("the new value of `{0}` contains NUL")]
    NulInValue(String),
    /// The result would be too long.
    #[error(transparent)]
    DoesNotFit(#[from] DoesNotFit),
}

/// The entries of an environment, byte for byte and in their order, so that what nobody here understands (other
/// encodings, names without a value, duplicates) survives a rewrite.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `name=value`, never empty, never with a NUL.
    entries: Vec<Vec<u8>>,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries().map(String::from_utf8_lossy)).finish()
    }
}

impl Environment {
    /// The entries in `data`, up to the empty one or to the end; U-Boot too takes the end of the data for an end.
    #[must_use]
    pub fn parse(data: &[u8]) -> Self {
        let entries = data.split(|byte| *byte == 0).take_while(|entry| !entry.is_empty());
        Self { entries: entries.map(<[u8]>::to_vec).collect() }
    }

    /// The entries as they are on the medium.
    pub fn entries(&self) -> impl Iterator<Item = &[u8]> {
        self.entries.iter().map(Vec::as_slice)
    }

    /// The exact bytes of a variable's value.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.pairs().filter(|(found, _)| *found == name.as_bytes()).map(|(_, value)| value).last()
    }

    /// The variables as text: of duplicates the last, as U-Boot has it. Bytes that are not UTF-8 show as U+FFFD in
    /// values; a name that is not UTF-8 is left out. [`Self::get`] has the exact bytes.
    #[must_use]
    pub fn variables(&self) -> Variables {
        self.pairs()
            .filter_map(|(name, value)| {
                let name = std::str::from_utf8(name).ok()?;
                Some((name.to_owned(), String::from_utf8_lossy(value).into_owned()))
            })
            .collect()
    }

    /// This environment after `patch`, which goes in whole or not at all. A variable that exists keeps its place, a
    /// new one comes last. An empty value deletes: U-Boot has no empty variables.
    ///
    /// # Errors
    /// When a name or a value cannot be stored, or the result has no room in `capacity_bytes`.
    pub fn patched(&self, patch: &EnvPatch, capacity_bytes: usize) -> Result<Self, PatchError> {
        let mut patched = self.clone();
        for (name, value) in &patch.0 {
            check_name(name)?;
            match value.as_deref() {
                None | Some("") => patched.delete(name),
                Some(value) if value.contains('\0') => return Err(PatchError::NulInValue(name.clone())),
                Some(value) => patched.set(name, value),
            }
        }
        patched.check_fits(capacity_bytes)?;
        Ok(patched)
    }

    fn check_fits(&self, capacity_bytes: usize) -> Result<(), DoesNotFit> {
        let needed_bytes = self.entries.iter().map(|entry| entry.len() + 1).sum::<usize>() + 1;
        if needed_bytes > capacity_bytes {
            return Err(DoesNotFit { needed_bytes, capacity_bytes });
        }
        Ok(())
    }

    fn pairs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries().filter_map(split_entry)
    }

    fn delete(&mut self, name: &str) {
        self.entries.retain(|entry| split_entry(entry).is_none_or(|(found, _)| found != name.as_bytes()));
    }

    /// One entry remains: the tools disagree on which of several counts.
    fn set(&mut self, name: &str, value: &str) {
        let mut new = Some(format!("{name}={value}").into_bytes());
        self.entries.retain_mut(|entry| match split_entry(entry) {
            Some((found, _)) if found == name.as_bytes() => new.take().map(|new| *entry = new).is_some(),
            _ => true,
        });
        self.entries.extend(new);
    }
}

fn split_entry(entry: &[u8]) -> Option<(&[u8], &[u8])> {
    let equals = entry.iter().position(|byte| *byte == b'=')?;
    let (name, value) = entry.split_at_checked(equals)?;
    Some((name, value.get(1..)?))
}

fn check_name(name: &str) -> Result<(), PatchError> {
    let bad = name.is_empty() || name.contains(['=', '\0']) || name.starts_with([' ', '\t', '#']);
    if bad { Err(PatchError::BadName(name.to_owned())) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
