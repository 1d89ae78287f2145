//! Reads the keys of one section, records what is wrong with them, and what is left over.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::fault::{Fault, Place};
use crate::bundle::is_class;
use crate::install::ROOT_CLASS;
use crate::redact::redacted;

use super::files::{SECTIONS, Section, Setting, Value, section_names};

/// A value in force, as `twinboot check-config` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// `hub`, or `slot "a"`.
    pub section: String,
    /// The key in it.
    pub key: &'static str,
    /// The value, as TOML.
    pub value: String,
    /// Where it was written; `None`: the default.
    pub place: Option<Place>,
}

/// The fault that a file which could not be read whole may have caused.
pub(super) const MISSING: &str = "is missing";

/// What all sections together have come to.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub faults: Vec<Fault>,
    pub effective: Vec<Effective>,
    /// What is valid, and somebody should know of.
    pub notes: Vec<Fault>,
    /// Keys that exist, with their section.
    known: Vec<(String, &'static str)>,
    /// Keys that were written, but that nobody asked for.
    unread: Vec<(String, String, Place)>,
}

/// Why a value is not taken, and what would be.
pub(super) struct Wrong {
    pub problem: String,
    pub hint: String,
}

/// A section while it is read. Every key is asked for once, then [`SectionReader::finish`].
pub(super) struct SectionReader<'a> {
    name: String,
    section: Section,
    read: BTreeSet<&'static str>,
    /// Where a missing key is reported.
    home: Place,
    findings: &'a mut Findings,
}

impl<'a> SectionReader<'a> {
    pub(super) fn new(
        name: String,
        section: Option<Section>,
        main: &Path,
        findings: &'a mut Findings,
    ) -> Self {
        let section = section.unwrap_or_default();
        let home = section.place.clone().unwrap_or_else(|| Place::whole(0, main));
        Self { name, section, read: BTreeSet::new(), home, findings }
    }

    /// The value in force, if there is one. Every value that was written is checked, the overridden too.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        kind: impl Fn(&Value) -> Result<T, Wrong>,
    ) -> Option<T> {
        self.asked_for(key);
        let mut in_force = None;
        for Setting { place, value } in self.section.settings.get(key).cloned()? {
            match kind(&value) {
                Ok(read) => in_force = Some((read, value.to_toml(), place)),
                Err(Wrong { problem, hint }) => {
                    in_force = None;
                    self.fault_at(place, key, problem, hint);
                }
            }
        }
        let (read, value, place) = in_force?;
        self.show(key, value, Some(place));
        Some(read)
    }

    /// The same with a default, in TOML.
    pub(super) fn or<T>(
        &mut self,
        key: &'static str,
        default: &str,
        kind: impl Fn(&Value) -> Result<T, Wrong>,
    ) -> Option<T> {
        if self.has(key) {
            return self.optional(key, kind);
        }
        self.asked_for(key);
        let value = Value::from_toml(default);
        match kind(&value) {
            Ok(read) => {
                self.show(key, value.to_toml(), None);
                Some(read)
            }
            Err(Wrong { problem, hint }) => {
                self.fault(key, problem, hint);
                None
            }
        }
    }

    /// The same without a default.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        kind: impl Fn(&Value) -> Result<T, Wrong>,
    ) -> Option<T> {
        self.expect(key, &format!("write {example}"));
        self.optional(key, kind)
    }

    /// The file in force, if there is one and it passes. A file that another one overrides need not exist.
    pub(super) fn file(
        &mut self,
        key: &'static str,
        check: impl Fn(&Path) -> Result<(), Wrong>,
    ) -> Option<PathBuf> {
        let file = self.optional(key, path)?;
        match check(&file) {
            Ok(()) => Some(file),
            Err(Wrong { problem, hint }) => {
                self.fault_at(self.place(key), key, problem, hint);
                None
            }
        }
    }

    /// Records the absence of a key.
    pub(super) fn expect(&mut self, key: &str, hint: &str) {
        if !self.has(key) {
            self.fault(key, MISSING, hint);
        }
    }

    /// Whether the key was written, well or not.
    pub(super) fn has(&self, key: &str) -> bool {
        self.section.settings.contains_key(key)
    }

    /// Where the value in force of a key stands; the section's header without one.
    pub(super) fn place(&self, key: &str) -> Place {
        self.section.place(key).unwrap_or_else(|| self.home.clone())
    }

    /// A key that is there, and must not be.
    pub(super) fn refuse(&mut self, key: &'static str, problem: &str, hint: &str) {
        self.read.insert(key);
        for setting in self.section.settings.get(key).cloned().unwrap_or_default() {
            self.fault_at(setting.place, key, problem, hint);
        }
    }

    /// Something is wrong with the section as a whole.
    pub(super) fn fault(&mut self, key: &str, problem: impl Into<String>, hint: impl Into<String>) {
        self.fault_at(self.home.clone(), key, problem, hint);
    }

    /// Something is wrong with one value.
    pub(super) fn fault_at(
        &mut self,
        place: Place,
        key: &str,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) {
        let key = format!("{}.{key}", self.name);
        self.findings.faults.push(Fault { place, key, problem: problem.into(), hint: hint.into() });
    }

    /// Something about the value in force should be known, although it is valid.
    pub(super) fn note(&mut self, key: &str, wrong: Wrong) {
        let (place, key) = (self.place(key), format!("{}.{key}", self.name));
        self.findings.note(place, key, wrong);
    }

    /// Whatever was not asked for is no key of this section.
    pub(super) fn finish(self) {
        let Self { name, section, read, findings, .. } = self;
        for (key, settings) in section.settings {
            for setting in settings.into_iter().filter(|_| !read.contains(key.as_str())) {
                findings.unread.push((name.clone(), key.clone(), setting.place));
            }
        }
    }

    fn asked_for(&mut self, key: &'static str) {
        self.read.insert(key);
        self.findings.known.push((self.name.clone(), key));
    }

    fn show(&mut self, key: &'static str, value: String, place: Option<Place>) {
        self.findings.effective.push(Effective { section: self.name.clone(), key, value, place });
    }
}

impl Findings {
    /// Something should be known although it is valid; `key` may be empty.
    pub(super) fn note(&mut self, place: Place, key: String, Wrong { problem, hint }: Wrong) {
        self.notes.push(Fault { place, key, problem, hint });
    }

    /// A section that nobody asked for.
    pub(super) fn unknown_section(&mut self, name: &str, place: Place) {
        let hint = match nearest(name, SECTIONS.iter().chain(&["slot"]).copied()) {
            Some("slot") => "did you mean `[[slot]]`?".to_owned(),
            Some(near) => format!("did you mean `[{near}]`?"),
            None => format!("there are {}", section_names()),
        };
        self.faults.push(Fault { place, key: name.to_owned(), problem: "unknown section".to_owned(), hint });
    }

    /// All faults in reading order. To be called once every section is finished: only then is it known
    /// that a key is at home in another section.
    pub(super) fn into_faults(mut self) -> (Vec<Fault>, Vec<Effective>, Vec<Fault>) {
        for (section, key, place) in std::mem::take(&mut self.unread) {
            let hint = self.unknown_key_hint(&section, &key);
            let key = format!("{section}.{key}");
            self.faults.push(Fault { place, key, problem: "unknown key".to_owned(), hint });
        }
        self.faults.sort();
        self.faults.dedup();
        (self.faults, self.effective, self.notes)
    }

    fn unknown_key_hint(&self, section: &str, key: &str) -> String {
        let own: Vec<&str> = self.known.iter().filter(|(of, _)| of == section).map(|(_, key)| *key).collect();
        let elsewhere = self.known.iter().find(|(_, known)| *known == key);
        match (nearest(key, own.iter().copied()), elsewhere) {
            (Some(near), _) => format!("did you mean `{near}`?"),
            (None, Some((of, _))) if of.starts_with("slot") => format!("`{key}` belongs in `[[slot]]`"),
            (None, Some((of, _))) => format!("`{key}` belongs in `[{of}]`"),
            (None, None) => format!("the keys here are {}", own.join(", ")),
        }
    }
}

/// The name most like `text`, if one is like it at all: a swapped, missing or wrong letter or two.
fn nearest<'k>(text: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    known
        .map(|name| (strsim::damerau_levenshtein(text, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 5)
        .min()
        .map(|(_, name)| name)
}

/// A text that is not empty.
pub(super) fn text(value: &Value) -> Result<String, Wrong> {
    match value {
        Value::Text(text) if text.trim().is_empty() => Err(wrong("is empty", "write a text in quotes")),
        Value::Text(text) => Ok(text.clone()),
        _ => Err(wrong_kind(value, "a text in quotes")),
    }
}

/// An absolute path: the daemon has no working directory to speak of.
pub(super) fn path(value: &Value) -> Result<PathBuf, Wrong> {
    let path = PathBuf::from(text(value)?);
    if path.is_absolute() {
        Ok(path)
    } else {
        // It may be the secret in place of its file.
        let shown = redacted(&value.to_toml());
        Err(wrong(format!("{shown} is no absolute path"), "begin it with `/`"))
    }
}

/// The devices of further images of a slot, by class.
pub(super) fn images(value: &Value) -> Result<BTreeMap<String, PathBuf>, Wrong> {
    let Value::Table(entries) = value else {
        return Err(wrong_kind(
            value,
            "`[slot.images]`, and below it a line for each, as in `boot = \"/dev/...\"`",
        ));
    };
    let image = |(class, device): (&String, &Value)| {
        if class == ROOT_CLASS || !is_class(class) {
            let hint = "a class has 1 to 32 of a-z, 0-9, `-` and `_`; that of `device` is \"rootfs\"";
            return Err(wrong(format!("cannot have a `{class}`"), hint));
        }
        Ok((class.clone(), path(device)?))
    };
    entries.iter().map(image).collect()
}

/// `true` or `false`.
pub(super) fn boolean(value: &Value) -> Result<bool, Wrong> {
    match value {
        Value::Boolean(boolean) => Ok(*boolean),
        _ => Err(wrong_kind(value, "true or false, without quotes")),
    }
}

/// A whole number in a range.
pub(super) fn number<T>(range: RangeInclusive<T>) -> impl Fn(&Value) -> Result<T, Wrong>
where
    T: TryFrom<i64> + PartialOrd + std::fmt::Display,
{
    move |value| {
        let limits = format!("a number from {} to {}", range.start(), range.end());
        let Value::Integer(written) = value else {
            return Err(wrong_kind(value, &limits));
        };
        match T::try_from(*written) {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(wrong(format!("{written} is out of range"), format!("write {limits}"))),
        }
    }
}

/// A length of time in a range.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&Value) -> Result<Duration, Wrong> {
    move |value| {
        const UNITS: &str = "a number and a unit, as in \"30s\", \"10m\" or \"24h\"";
        let Value::Text(written) = value else {
            return Err(wrong_kind(value, UNITS));
        };
        match humantime::parse_duration(written) {
            Ok(duration) if range.contains(&duration) => Ok(duration),
            Ok(_) => {
                let (least, most) = (*range.start(), *range.end());
                let limits = format!(
                    "write at least \"{}\" and at most \"{}\"",
                    humantime::format_duration(least),
                    humantime::format_duration(most)
                );
                Err(wrong(format!("{} is out of range", value.to_toml()), limits))
            }
            Err(_) => {
                Err(wrong(format!("{} is no length of time", value.to_toml()), format!("write {UNITS}")))
            }
        }
    }
}

/// One of these names.
pub(super) fn one_of<T: Copy>(names: &[(&str, T)]) -> impl Fn(&Value) -> Result<T, Wrong> {
    move |value| {
        let known = || names.iter().map(|(name, _)| *name);
        let mut allowed: Vec<String> = known().map(|name| format!("\"{name}\"")).collect();
        let last = allowed.pop().unwrap_or_default();
        let allowed = format!("{} or {last}", allowed.join(", "));
        let Value::Text(written) = value else {
            return Err(wrong_kind(value, &allowed));
        };
        let found = names.iter().find(|(name, _)| name == written).map(|(_, meaning)| *meaning);
        found.ok_or_else(|| {
            let near = nearest(written, known()).map(|near| format!("did you mean \"{near}\"?"));
            let problem = format!("{} is not known", value.to_toml());
            wrong(problem, near.unwrap_or_else(|| format!("write {allowed}")))
        })
    }
}

/// A list of such values.
pub(super) fn list<T>(kind: impl Fn(&Value) -> Result<T, Wrong>) -> impl Fn(&Value) -> Result<Vec<T>, Wrong> {
    move |value| match value {
        Value::List(values) => values.iter().map(&kind).collect(),
        _ => Err(wrong_kind(value, "a list in brackets, as in [\"one\", \"two\"]")),
    }
}

/// A program and its arguments.
pub(super) fn command(value: &Value) -> Result<Vec<String>, Wrong> {
    let words = list(text)(value)?;
    if words.is_empty() {
        Err(wrong(
            "names no program",
            "write the program and its arguments, as in [\"systemctl\", \"reboot\"]",
        ))
    } else {
        Ok(words)
    }
}

pub(super) fn wrong(problem: impl Into<String>, hint: impl Into<String>) -> Wrong {
    Wrong { problem: problem.into(), hint: hint.into() }
}

fn wrong_kind(value: &Value, wanted: &str) -> Wrong {
    wrong(format!("is {}", value.kind()), format!("write {wanted}"))
}
