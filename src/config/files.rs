//! From files to what is written in them: every value of every file with its place, nothing judged yet.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Fault, Place};
use crate::ownership;

/// A configuration has some 40 keys; a file larger than this is not one.
const FILE_LIMIT_BYTES: u64 = 1024 * 1024;

/// The sections there are, without the slots.
pub(super) const SECTIONS: [&str; 8] =
    ["hub", "state", "boot", "install", "health", "hooks", "system", "metrics"];

/// Where a commented example of every key is installed.
pub(super) const EXAMPLE: &str = "/usr/share/doc/twinboot/examples/config.toml";

/// A value as written once.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub place: Place,
    pub value: Value,
}

/// The kinds of value that some key takes; the others keep only their name.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Boolean(bool),
    List(Vec<Value>),
    Table(BTreeMap<String, Value>),
    Other(&'static str),
}

/// One section: per key every value that was written for it; the last one is in force.
#[derive(Clone, Debug, Default)]
pub(super) struct Section {
    /// The header that was read last.
    pub place: Option<Place>,
    pub settings: BTreeMap<String, Vec<Setting>>,
}

/// All files together.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub sections: BTreeMap<String, Section>,
    /// `[[slot]]`, by name.
    pub slots: BTreeMap<String, Section>,
    /// What could not be read or understood as TOML.
    pub faults: Vec<Fault>,
    /// What could be read.
    pub files: Vec<Place>,
}

/// Reads the main file, then the `*.toml` of `config.d` beside it in name order.
pub(super) fn read(main: &Path) -> Written {
    let mut written = Written::default();
    let drop_ins = drop_ins(&main.with_file_name("config.d"), &mut written.faults);
    for (order, path) in std::iter::once(main.to_owned()).chain(drop_ins).enumerate() {
        let whole = Place::whole(order, &path);
        match read_limited(&path) {
            Ok(text) => {
                written.add(&whole, &text);
                written.files.push(whole);
            }
            Err(error) => written.faults.push(unreadable(whole, &error)),
        }
    }
    written
}

/// A directory that is not there has no drop-ins.
fn drop_ins(directory: &Path, faults: &mut Vec<Fault>) -> Vec<PathBuf> {
    let listed: io::Result<Vec<PathBuf>> = std::fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect());
    match listed {
        Ok(mut paths) => {
            paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
            paths.sort();
            paths
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            faults.push(unreadable(Place::whole(0, directory), &error));
            Vec::new()
        }
    }
}

fn read_limited(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    ownership::open(path)?.take(FILE_LIMIT_BYTES + 1).read_to_string(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|length| length <= FILE_LIMIT_BYTES) {
        Ok(text)
    } else {
        Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"))
    }
}

fn unreadable(place: Place, error: &io::Error) -> Fault {
    let (problem, hint) = match error.kind() {
        io::ErrorKind::NotFound => ("no such file".to_owned(), format!("an example is {EXAMPLE}")),
        io::ErrorKind::InvalidData => ("is not text".to_owned(), "save it as UTF-8".to_owned()),
        // The networked part is not root; and no secret is in it.
        io::ErrorKind::PermissionDenied => (
            "permission denied".to_owned(),
            format!("run as root, or let everyone read it: `chmod o+rX {}`", place.file.display()),
        ),
        io::ErrorKind::Other => ("is not taken".to_owned(), error.to_string()),
        _ => (format!("cannot be read: {error}"), String::new()),
    };
    Fault { place, key: String::new(), problem, hint }
}

impl Written {
    /// Adds what one file says.
    fn add(&mut self, whole: &Place, text: &str) {
        // The parser goes on after a syntax error; what it makes of the very line is not worth a second fault.
        let (document, errors) = DeTable::parse_recoverable(text);
        let lines = Lines { whole, text };
        let mut found = Vec::new();
        for (key, value) in document.into_inner() {
            let place = lines.place(key.span().start);
            self.add_section(&lines, &place, key.get_ref(), value.into_inner(), &mut found);
        }
        let errors: Vec<Fault> = errors.iter().map(|error| syntax_fault(&lines, error)).collect();
        found.retain(|fault| !errors.iter().any(|error| error.place == fault.place));
        self.faults.extend(errors);
        self.faults.extend(found);
    }

    fn add_section(
        &mut self,
        lines: &Lines<'_>,
        place: &Place,
        name: &str,
        value: DeValue<'_>,
        faults: &mut Vec<Fault>,
    ) {
        let fault = |problem: String, hint: String| Fault {
            place: place.clone(),
            key: name.to_owned(),
            problem,
            hint,
        };
        match value {
            DeValue::Array(entries) if name == "slot" => {
                let mut here = Vec::new();
                for entry in entries {
                    self.add_slot(lines, place, entry, &mut here, faults);
                }
            }
            _ if name == "slot" => {
                faults.push(fault("is one table".to_owned(), "write `[[slot]]`, once per slot".to_owned()));
            }
            DeValue::Table(table) => {
                // An unknown section is kept: all of them are reported, where the nearest name is known.
                let section = self.sections.entry(name.to_owned()).or_default();
                section.add(lines, place, table);
            }
            DeValue::Array(_) if SECTIONS.contains(&name) => {
                faults.push(fault("is a list of tables".to_owned(), format!("write `[{name}]`, once")));
            }
            _ => {
                let hint = format!("move it below its section, one of {}", section_names());
                faults.push(fault("stands outside of any section".to_owned(), hint));
            }
        }
    }

    fn add_slot(
        &mut self,
        lines: &Lines<'_>,
        array: &Place,
        entry: Spanned<DeValue<'_>>,
        here: &mut Vec<String>,
        faults: &mut Vec<Fault>,
    ) {
        let start = entry.span().start;
        let place = if start == 0 { array.clone() } else { lines.place(start) };
        let mut fault = |problem: String, hint: &str| {
            faults.push(Fault {
                place: place.clone(),
                key: "slot".to_owned(),
                problem,
                hint: hint.to_owned(),
            });
        };
        let DeValue::Table(table) = entry.into_inner() else {
            return fault("is no table".to_owned(), "write `[[slot]]`, once per slot");
        };
        let name = table.iter().find(|(key, _)| key.get_ref() == "name").map(|(_, value)| value.get_ref());
        let Some(name) = name.and_then(DeValue::as_str).map(str::to_owned) else {
            return fault("has no name".to_owned(), "write `name = \"a\"` or `name = \"b\"`");
        };
        if here.contains(&name) {
            return fault(format!("slot \"{name}\" is there twice in this file"), "remove one");
        }
        self.slots.entry(name.clone()).or_default().add(lines, &place, table);
        here.push(name);
    }
}

/// `[hub]`, `[state]`, ..., for a message.
pub(super) fn section_names() -> String {
    let names: Vec<String> = SECTIONS.iter().map(|name| format!("[{name}]")).collect();
    format!("{}, [[slot]]", names.join(", "))
}

impl Section {
    /// Where the value in force of a key stands.
    pub(super) fn place(&self, key: &str) -> Option<Place> {
        Some(self.settings.get(key)?.last()?.place.clone())
    }

    fn add(&mut self, lines: &Lines<'_>, place: &Place, table: DeTable<'_>) {
        self.place = Some(place.clone());
        for (key, value) in table {
            let setting =
                Setting { place: lines.place(key.span().start), value: Value::from(value.into_inner()) };
            self.settings.entry(key.into_inner().into_owned()).or_default().push(setting);
        }
    }
}

impl Value {
    /// From TOML as it would be written in a file: for defaults.
    pub(super) fn from_toml(text: &str) -> Self {
        DeValue::parse(text).map_or(Self::Other("invalid TOML"), |value| Self::from(value.into_inner()))
    }

    /// What it is, for a message.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(_) => "a number",
            Self::Boolean(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(kind) => kind,
        }
    }

    /// As it would be written in a file.
    pub(super) fn to_toml(&self) -> String {
        match self {
            // A JSON string is a TOML basic string, in which DEL has to be escaped.
            Self::Text(text) => serde_json::Value::from(text.as_str()).to_string().replace('\x7f', "\\u007f"),
            Self::Integer(number) => number.to_string(),
            Self::Boolean(boolean) => boolean.to_string(),
            Self::List(values) => {
                let values: Vec<String> = values.iter().map(Self::to_toml).collect();
                format!("[{}]", values.join(", "))
            }
            Self::Table(entries) => {
                let entries: Vec<String> =
                    entries.iter().map(|(key, value)| format!("{key} = {}", value.to_toml())).collect();
                format!("{{ {} }}", entries.join(", "))
            }
            Self::Other(kind) => (*kind).to_owned(),
        }
    }
}

impl From<DeValue<'_>> for Value {
    fn from(value: DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.into_owned()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(Self::Other("a number out of all ranges"), Self::Integer),
            DeValue::Float(_) => Self::Other("a number with a fraction"),
            DeValue::Boolean(boolean) => Self::Boolean(boolean),
            DeValue::Datetime(_) => Self::Other("a date"),
            DeValue::Array(values) => {
                Self::List(values.into_iter().map(|value| Self::from(value.into_inner())).collect())
            }
            DeValue::Table(entries) => {
                let entry = |(key, value): (Spanned<Cow<'_, str>>, Spanned<DeValue<'_>>)| {
                    (key.into_inner().into_owned(), Self::from(value.into_inner()))
                };
                Self::Table(entries.into_iter().map(entry).collect())
            }
        }
    }
}

/// Tells the line of a byte.
struct Lines<'a> {
    whole: &'a Place,
    text: &'a str,
}

impl Lines<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = self.text.as_bytes().iter().take(offset);
        self.whole.at_line(1 + before.filter(|byte| **byte == b'\n').count())
    }
}

fn syntax_fault(lines: &Lines<'_>, error: &toml::de::Error) -> Fault {
    Fault {
        place: error.span().map_or_else(|| lines.whole.clone(), |span| lines.place(span.start)),
        key: String::new(),
        problem: format!("is not TOML: {}", error.message()),
        hint: String::new(),
    }
}
