//! What is wrong in a configuration, said so that it can be put right without a manual.

use std::fmt::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

/// Where something was written. The order is that of reading.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Position of the file: 0 is the main file, then the drop-ins.
    pub(super) order: usize,
    /// Line, from 1; `None`: the file as a whole.
    pub line: Option<usize>,
    /// The file.
    pub file: Arc<Path>,
}

impl Place {
    /// The file as a whole.
    pub(super) fn whole(order: usize, file: &Path) -> Self {
        Self { order, line: None, file: file.into() }
    }

    /// One line of the same file.
    pub(super) fn at_line(&self, line: usize) -> Self {
        Self { line: Some(line), ..self.clone() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        self.line.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

/// One fault: `FILE:LINE: KEY: what is wrong; what to write instead`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Where to look.
    pub place: Place,
    /// The key with its section, as in `boot.attempts`; empty where it is not about a key.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What to write, or to do, instead.
    pub hint: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{}: ", self.place);
        if !self.key.is_empty() {
            text += &format!("{}: ", self.key);
        }
        text += &self.problem;
        if !self.hint.is_empty() {
            text += &format!("; {}", self.hint);
        }
        // Names are as somebody wrote them: they must not end the line, nor steer a terminal.
        text.chars().try_for_each(|c| match c.is_control() {
            true => write!(f, "{}", c.escape_default()),
            false => f.write_char(c),
        })
    }
}

/// Every fault of every file, in reading order; one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
