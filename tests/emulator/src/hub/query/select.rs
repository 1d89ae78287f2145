//! Makes the rows of a query's answer: whole documents, columns of them, or one row for each group.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::evaluate::number;
use super::{Column, Content, Document, Path, Query, Select};

/// What a query found.
#[derive(Debug, PartialEq)]
pub(in crate::hub) enum Rows<D> {
    /// The documents themselves.
    Documents(Vec<D>),
    /// New objects.
    Objects(Vec<Value>),
}

impl<D> Rows<D> {
    pub fn len(&self) -> usize {
        match self {
            Self::Documents(rows) => rows.len(),
            Self::Objects(rows) => rows.len(),
        }
    }
}

impl Query {
    /// Runs the query, and leaves out the first `skip` rows and all beyond `limit` more.
    pub fn run<D: Document>(&self, documents: impl Iterator<Item = D>, skip: usize, limit: usize) -> Rows<D> {
        let limit = limit.min(self.top.unwrap_or(usize::MAX).saturating_sub(skip));
        let matching = documents.filter(|document| self.matches(document));
        match &self.select {
            Select::All => Rows::Documents(matching.skip(skip).take(limit).collect()),
            Select::Columns(columns) if self.is_aggregate() => {
                let groups = group(columns, &self.group_by, matching);
                Rows::Objects(groups.into_iter().skip(skip).take(limit).collect())
            }
            Select::Columns(columns) => {
                let rows = matching.skip(skip).take(limit).map(|document| project(columns, &document));
                Rows::Objects(rows.collect())
            }
        }
    }

    fn matches(&self, document: &dyn Document) -> bool {
        self.condition.as_ref().is_none_or(|condition| condition.holds(document))
    }
}

fn project(columns: &[Column], document: &dyn Document) -> Value {
    let cell = |column: &Column| match &column.content {
        Content::Attribute(path) => {
            document.find(path).map(|value| (column.name.clone(), value.into_owned()))
        }
        _ => None,
    };
    Value::Object(columns.iter().filter_map(cell).collect())
}

/// What becomes of one column of one group.
#[derive(Default)]
struct Cell {
    /// An attribute's value: the same in the whole group.
    value: Option<Value>,
    documents: i64,
    numbers: i64,
    sum: f64,
    minimum: Option<Value>,
    maximum: Option<Value>,
}

fn group<D: Document>(
    columns: &[Column],
    group_by: &[Path],
    documents: impl Iterator<Item = D>,
) -> Vec<Value> {
    let empty = || columns.iter().map(|_| Cell::default()).collect::<Vec<_>>();
    let mut groups = BTreeMap::new();
    if group_by.is_empty() {
        // The count of nothing is a row, too.
        groups.insert(Vec::new(), empty());
    }
    for document in documents {
        let key = group_by.iter().map(|path| document.find(path).map(|value| value.to_string())).collect();
        let cells = groups.entry(key).or_insert_with(empty);
        for (cell, column) in cells.iter_mut().zip(columns) {
            cell.add(&column.content, &document);
        }
    }
    let row = |cells: Vec<Cell>| {
        let named = cells.into_iter().zip(columns);
        let row = named.filter_map(|(cell, column)| Some((column.name.clone(), cell.show(&column.content)?)));
        Value::Object(row.collect::<Map<_, _>>())
    };
    groups.into_values().map(row).collect()
}

impl Cell {
    fn add(&mut self, content: &Content, document: &dyn Document) {
        self.documents = self.documents.saturating_add(1);
        let path = match content {
            Content::Count => return,
            Content::Attribute(path)
            | Content::Average(path)
            | Content::Sum(path)
            | Content::Minimum(path)
            | Content::Maximum(path) => path,
        };
        let Some(value) = document.find(path) else { return };
        if let Some(number) = value.as_f64() {
            self.numbers = self.numbers.saturating_add(1);
            self.sum += number;
        }
        keep(&mut self.minimum, &value, Ordering::Less);
        keep(&mut self.maximum, &value, Ordering::Greater);
        self.value = Some(value.into_owned());
    }

    fn show(self, content: &Content) -> Option<Value> {
        match content {
            Content::Attribute(_) => self.value,
            Content::Count => Some(self.documents.into()),
            Content::Sum(_) => number(self.sum),
            #[expect(clippy::cast_precision_loss, reason = "a count of documents in memory")]
            Content::Average(_) => number(self.sum / self.numbers as f64),
            Content::Minimum(_) => self.minimum,
            Content::Maximum(_) => self.maximum,
        }
    }
}

/// Puts `value` in the place of `best` if it is better: of the same kind, and less or greater.
fn keep(best: &mut Option<Value>, value: &Value, better: Ordering) {
    let order = |best: &Value| super::evaluate::order(value, best);
    if best.as_ref().is_none_or(|best| order(best) == Some(better)) {
        *best = Some(value.clone());
    }
}
