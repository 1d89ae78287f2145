//! Puts tokens together to a query, by recursive descent.

mod expression;

use super::lexer::{self, Token};
use super::{Column, Condition, Content, LENGTH_LIMIT_CHARS, Path, Query, QueryError, Select, Source};

/// These are taken for themselves however they are spelled; all other names are case-sensitive.
const FIELDS: [&str; 28] = [
    "authenticationType",
    "capabilities",
    "cloudToDeviceMessageCount",
    "configurations",
    "connectionState",
    "createdDateTimeUtc",
    "deviceEtag",
    "deviceId",
    "deviceScope",
    "endTimeUtc",
    "error",
    "etag",
    "jobId",
    "jobType",
    "lastActivityTime",
    "lastUpdatedDateTimeUtc",
    "modelId",
    "moduleId",
    "outcome",
    "parentScopes",
    "properties",
    "startTimeUtc",
    "status",
    "statusReason",
    "statusUpdateTime",
    "tags",
    "version",
    "x509Thumbprint",
];

const RESERVED: [&str; 11] =
    ["select", "from", "where", "group", "by", "and", "or", "not", "in", "nin", "as"];

pub(super) fn query(text: &str) -> Result<Query, QueryError> {
    let mut parser = Parser::new(text)?;
    let query = parser.query()?;
    parser.end()?;
    Ok(query)
}

/// A condition on devices.
pub(super) fn condition(text: &str) -> Result<Condition, QueryError> {
    let mut parser = Parser::new(text)?;
    let condition = parser.any()?;
    parser.end()?;
    Ok(Condition(condition))
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
    calculations: usize,
}

impl Parser {
    fn new(text: &str) -> Result<Self, QueryError> {
        let length = text.chars().count();
        if length > LENGTH_LIMIT_CHARS {
            return Err(QueryError::TooLong(length));
        }
        let tokens = lexer::tokens(text)?;
        Ok(Self { tokens, next: 0, depth: 0, calculations: 0 })
    }

    fn peek(&self) -> &Token {
        self.tokens.get(self.next).map_or(&Token::End, |(_, token)| token)
    }

    fn advance(&mut self) {
        self.next = self.next.saturating_add(1);
    }

    fn expected<T>(&self, expected: &'static str) -> Result<T, QueryError> {
        let at = self.tokens.get(self.next).map_or(0, |(at, _)| *at);
        Err(QueryError::Expected { at, expected })
    }

    fn end(&self) -> Result<(), QueryError> {
        if *self.peek() == Token::End { Ok(()) } else { self.expected("the end of the query") }
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Word(found) if found.eq_ignore_ascii_case(word))
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        if found {
            self.advance();
        }
        found
    }

    fn take_symbol(&mut self, symbol: &str) -> bool {
        let found = matches!(self.peek(), Token::Symbol(found) if *found == symbol);
        if found {
            self.advance();
        }
        found
    }

    fn symbol(&mut self, symbol: &'static str) -> Result<(), QueryError> {
        if self.take_symbol(symbol) { Ok(()) } else { self.expected(symbol) }
    }

    fn query(&mut self) -> Result<Query, QueryError> {
        if !self.take_word("select") {
            return self.expected("SELECT");
        }
        let top = if self.take_word("top") { Some(self.count()?) } else { None };
        let select = self.select()?;
        if !self.take_word("from") {
            return self.expected("FROM");
        }
        let source = self.source()?;
        let condition = if self.take_word("where") { Some(Condition(self.any()?)) } else { None };
        let group_by = if self.take_word("group") { self.group_by()? } else { Vec::new() };
        let query = Query { source, top, select, condition, group_by };
        query.check()?;
        Ok(query)
    }

    fn count(&mut self) -> Result<usize, QueryError> {
        let count = match self.peek() {
            Token::Constant(count) => count.as_u64().and_then(|count| usize::try_from(count).ok()),
            _ => None,
        };
        let Some(count) = count else { return self.expected("a number of rows") };
        self.advance();
        Ok(count)
    }

    fn source(&mut self) -> Result<Source, QueryError> {
        const EXPECTED: &str = "devices, devices.modules or devices.jobs";
        if !self.take_word("devices") {
            return self.expected(EXPECTED);
        }
        if !self.take_symbol(".") {
            return Ok(Source::Devices);
        }
        if self.take_word("modules") {
            return Ok(Source::Modules);
        }
        if self.take_word("jobs") { Ok(Source::Jobs) } else { self.expected(EXPECTED) }
    }

    fn select(&mut self) -> Result<Select, QueryError> {
        if self.take_symbol("*") {
            return Ok(Select::All);
        }
        let mut columns = Vec::new();
        loop {
            let number = columns.len().saturating_add(1);
            columns.push(self.column(number)?);
            if !self.take_symbol(",") {
                return Ok(Select::Columns(columns));
            }
        }
    }

    /// A column without a name of its own is called by the last part of its attribute's, or by its number.
    fn column(&mut self, number: usize) -> Result<Column, QueryError> {
        let (content, name) = match self.aggregate()? {
            Some(aggregate) => (aggregate, format!("${number}")),
            None => {
                let path = self.attribute()?;
                let name = path.last().cloned().unwrap_or_default();
                (Content::Attribute(path), name)
            }
        };
        let name = if self.take_word("as") { self.name()? } else { name };
        Ok(Column { name, content })
    }

    fn aggregate(&mut self) -> Result<Option<Content>, QueryError> {
        if !self.is_call() {
            return Ok(None);
        }
        if self.take_word("count") {
            self.symbol("(")?;
            self.symbol(")")?;
            return Ok(Some(Content::Count));
        }
        let aggregate = if self.take_word("avg") {
            Content::Average
        } else if self.take_word("sum") {
            Content::Sum
        } else if self.take_word("min") {
            Content::Minimum
        } else if self.take_word("max") {
            Content::Maximum
        } else {
            return self.expected("COUNT, AVG, SUM, MIN or MAX");
        };
        Ok(Some(aggregate(self.attribute_in_parentheses()?)))
    }

    /// Whether a parenthesis follows on the next token.
    fn is_call(&self) -> bool {
        matches!(self.tokens.get(self.next.saturating_add(1)), Some((_, Token::Symbol("("))))
    }

    fn attribute_in_parentheses(&mut self) -> Result<Path, QueryError> {
        self.symbol("(")?;
        let path = self.attribute()?;
        self.symbol(")")?;
        Ok(path)
    }

    fn group_by(&mut self) -> Result<Vec<Path>, QueryError> {
        if !self.take_word("by") {
            return self.expected("BY");
        }
        let mut paths = vec![self.attribute()?];
        while self.take_symbol(",") {
            paths.push(self.attribute()?);
        }
        Ok(paths)
    }

    fn name(&mut self) -> Result<String, QueryError> {
        let (Token::Word(name) | Token::Bracketed(name)) = self.peek() else {
            return self.expected("a name");
        };
        let name = name.clone();
        self.advance();
        Ok(name)
    }

    fn attribute(&mut self) -> Result<Path, QueryError> {
        let reserved = |word: &str| RESERVED.iter().any(|known| known.eq_ignore_ascii_case(word));
        if !matches!(self.peek(), Token::Word(word) if !reserved(word)) {
            return self.expected("an attribute");
        }
        let mut path = vec![self.name()?];
        while self.take_symbol(".") {
            path.push(self.name()?);
        }
        Ok(of_document(path))
    }
}

/// `devices.jobs.JobId` as the rows have it: `jobId`.
fn of_document(mut path: Path) -> Path {
    let is = |at: usize, name: &str| path.get(at).is_some_and(|part| part.eq_ignore_ascii_case(name));
    let source = match (is(0, "devices"), is(1, "modules") || is(1, "jobs")) {
        (false, _) => 0,
        (true, false) => 1,
        (true, true) => 2,
    };
    if source < path.len() {
        path.drain(..source);
    }
    let field = |first: &str| FIELDS.into_iter().find(|field| field.eq_ignore_ascii_case(first));
    if let Some(first) = path.first_mut()
        && let Some(field) = field(first)
    {
        field.clone_into(first);
    }
    path
}

impl Query {
    /// What the grammar allows and the hub does not.
    fn check(&self) -> Result<(), QueryError> {
        let Select::Columns(columns) = &self.select else {
            if self.group_by.is_empty() {
                return Ok(());
            }
            return Err(QueryError::Unsupported("GROUP BY needs columns, not *"));
        };
        if self.source == Source::Jobs {
            return Err(QueryError::Unsupported("devices.jobs knows SELECT * only"));
        }
        let grouped = |column: &Column| match &column.content {
            Content::Attribute(path) => self.group_by.contains(path),
            _ => true,
        };
        if self.is_aggregate() && !columns.iter().all(grouped) {
            return Err(QueryError::Unsupported("a column beside an aggregate must be in GROUP BY"));
        }
        Ok(())
    }

    /// Whether a row stands for a group of documents.
    pub(super) fn is_aggregate(&self) -> bool {
        let aggregate = |column: &Column| !matches!(column.content, Content::Attribute(_));
        let columns = match &self.select {
            Select::All => return false,
            Select::Columns(columns) => columns,
        };
        !self.group_by.is_empty() || columns.iter().any(aggregate)
    }
}
