//! Logs of whole runs, kept in files: a crash state is found again by its number and the log that it is of.

use std::fs;
use std::io;
use std::path::Path;

use crate::disk::{Entry, Medium, Note, Write};
use crate::story::Story;

/// One run without a cut.
pub struct Recording {
    pub story: Story,
    pub log: Vec<Entry>,
}

const WRITE: u8 = 0;
const FLUSH: u8 = 1;
const ACCEPTED: u8 = 2;
const FELL_BACK: u8 = 3;
const ENDED: u8 = 4;

impl Recording {
    /// Writes and flushes.
    pub fn events(&self) -> usize {
        self.log.iter().filter(|entry| !matches!(entry, Entry::Note(_))).count()
    }

    pub fn save(&self, directory: &Path) -> io::Result<()> {
        let mut bytes = Vec::new();
        for entry in &self.log {
            let (kind, medium, offset, data): (u8, Medium, usize, &[u8]) = match entry {
                Entry::Write(write) => (WRITE, write.medium, write.offset, &write.data),
                Entry::Flush(medium) => (FLUSH, *medium, 0, &[]),
                Entry::Note(Note::Accepted) => (ACCEPTED, Medium::Data, 0, &[]),
                Entry::Note(Note::FellBack) => (FELL_BACK, Medium::Data, 0, &[]),
                Entry::Note(Note::Ended(status)) => (ENDED, Medium::Data, 0, status.as_bytes()),
            };
            bytes.extend([kind, medium as u8]);
            bytes.extend((offset as u64).to_le_bytes());
            bytes.extend((data.len() as u64).to_le_bytes());
            bytes.extend(data);
        }
        fs::create_dir_all(directory)?;
        fs::write(directory.join(self.story.name()), bytes)
    }

    pub fn load(directory: &Path, story: Story) -> io::Result<Self> {
        let bytes = fs::read(directory.join(story.name()))?;
        let (mut rest, mut log) = (bytes.as_slice(), Vec::new());
        while let [kind, medium, after @ ..] = rest {
            let medium = Medium::ALL[usize::from(*medium)];
            let (offset, after) = number(after);
            let (len, after) = number(after);
            let (data, after) = after.split_at(len);
            log.push(match *kind {
                WRITE => Entry::Write(Write { medium, offset, data: data.into() }),
                FLUSH => Entry::Flush(medium),
                ACCEPTED => Entry::Note(Note::Accepted),
                FELL_BACK => Entry::Note(Note::FellBack),
                _ => Entry::Note(Note::Ended(String::from_utf8_lossy(data).into_owned())),
            });
            rest = after;
        }
        Ok(Self { story, log })
    }
}

fn number(bytes: &[u8]) -> (usize, &[u8]) {
    let (number, rest) = bytes.split_first_chunk::<8>().unwrap();
    (u64::from_le_bytes(*number) as usize, rest)
}
