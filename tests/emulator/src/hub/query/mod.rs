//! The hub's query language over JSON documents: `SELECT … FROM devices WHERE … GROUP BY …`.
//!
//! Nothing here knows of devices: a [`Document`] is whatever finds values by a path.

mod evaluate;
mod lexer;
mod parser;
mod select;

use std::borrow::Cow;

use serde_json::Value;

pub(super) use self::select::Rows;

/// The hub reads no longer texts than this.
const LENGTH_LIMIT_CHARS: usize = 8192;

/// Why a query was not understood. The places count bytes from the start of the text.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The text is too long.
    #[error("the query has {0} characters; {LENGTH_LIMIT_CHARS} are allowed")]
    TooLong(usize),
    /// There is a character that begins nothing, or a string or number that does not end well.
    #[error("at {at}: not a word, a string, a number or an operator")]
    Unreadable {
        /// The place.
        at: usize,
    },
    /// Something else should stand here.
    #[error("at {at}: expected {expected}")]
    Expected {
        /// The place.
        at: usize,
        /// What should stand there.
        expected: &'static str,
    },
    /// Parentheses within parentheses, or a long calculation.
    #[error("the query is nested too deep")]
    Depth,
    /// The language has it, but not in this place.
    #[error("{0}")]
    Unsupported(&'static str),
}

/// Where values are found.
pub(super) trait Document {
    /// The value at `path`; nothing if it is undefined.
    fn find(&self, path: &[String]) -> Option<Cow<'_, Value>>;
}

impl Document for Value {
    fn find(&self, path: &[String]) -> Option<Cow<'_, Value>> {
        path.iter().try_fold(self, |value, name| value.get(name)).map(Cow::Borrowed)
    }
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Devices,
    Modules,
    Jobs,
}

/// A query, understood.
#[derive(Debug)]
pub(super) struct Query {
    pub source: Source,
    top: Option<usize>,
    select: Select,
    condition: Option<Condition>,
    group_by: Vec<Path>,
}

impl Query {
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        parser::query(text)
    }

    /// Whether whole documents are asked for, and not something made of them.
    pub fn is_whole(&self) -> bool {
        matches!(self.select, Select::All)
    }
}

/// What stands after WHERE.
#[derive(Debug)]
pub(super) struct Condition(Expression);

impl Condition {
    /// Reads a condition that stands alone. `*` is true of everything.
    pub fn parse(text: &str) -> Result<Self, QueryError> {
        match text.trim() {
            "*" => Ok(Self(Expression::Constant(true.into()))),
            _ => parser::condition(text),
        }
    }

    /// Whether it is true of the document. Undefined and everything that is no truth value count as false.
    pub fn holds(&self, document: &dyn Document) -> bool {
        evaluate::value(&self.0, document).as_deref() == Some(&Value::Bool(true))
    }

    /// The attributes it looks at.
    pub fn attributes(&self) -> Vec<&[String]> {
        let mut attributes = Vec::new();
        self.0.visit_attributes(&mut |path| attributes.push(path));
        attributes
    }
}

type Path = Vec<String>;

#[derive(Debug)]
enum Select {
    All,
    Columns(Vec<Column>),
}

#[derive(Debug)]
struct Column {
    name: String,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Attribute(Path),
    Count,
    Average(Path),
    Sum(Path),
    Minimum(Path),
    Maximum(Path),
}

#[derive(Debug)]
enum Expression {
    Constant(Value),
    Undefined,
    Attribute(Path),
    IsDefined(Path),
    /// Whether the first begins with the second.
    StartsWith(Box<[Expression; 2]>),
    EndsWith(Box<[Expression; 2]>),
    Not(Box<Expression>),
    /// True if all are. A list, so that long conditions are not deep ones.
    All(Vec<Expression>),
    Any(Vec<Expression>),
    Compare(Comparison, Box<[Expression; 2]>),
    /// Whether the value is one of the list's (true) or none of them (false).
    In(bool, Box<Expression>, Vec<Expression>),
    Calculate(Arithmetic, Box<[Expression; 2]>),
}

#[derive(Debug, Clone, Copy)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, Copy)]
enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

impl Expression {
    fn visit_attributes<'a>(&'a self, visit: &mut impl FnMut(&'a [String])) {
        match self {
            Self::Constant(_) | Self::Undefined => {}
            Self::Attribute(path) | Self::IsDefined(path) => visit(path),
            Self::Not(inner) => inner.visit_attributes(visit),
            Self::All(list) | Self::Any(list) => list.iter().for_each(|item| item.visit_attributes(visit)),
            Self::In(_, value, list) => {
                value.visit_attributes(visit);
                list.iter().for_each(|item| item.visit_attributes(visit));
            }
            Self::StartsWith(pair)
            | Self::EndsWith(pair)
            | Self::Compare(_, pair)
            | Self::Calculate(_, pair) => pair.iter().for_each(|side| side.visit_attributes(visit)),
        }
    }
}

#[cfg(test)]
mod tests;
