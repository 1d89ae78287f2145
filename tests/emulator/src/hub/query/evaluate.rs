//! What an expression is worth for a document. Nothing means undefined.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::{Number, Value};

use super::{Arithmetic, Comparison, Document, Expression};

type Worth<'a> = Option<Cow<'a, Value>>;

pub(super) fn value<'a>(expression: &'a Expression, document: &'a dyn Document) -> Worth<'a> {
    let truth = |truth: bool| Some(Cow::Owned(Value::Bool(truth)));
    match expression {
        Expression::Constant(constant) => Some(Cow::Borrowed(constant)),
        Expression::Undefined => None,
        Expression::Attribute(path) => document.find(path),
        Expression::IsDefined(path) => truth(document.find(path).is_some()),
        Expression::Not(inner) => truth(!as_truth(inner, document)?),
        Expression::All(list) => all(list, document, false).and_then(truth),
        Expression::Any(list) => all(list, document, true).and_then(truth),
        Expression::Compare(comparison, sides) => {
            let [left, right] = values(sides, document)?;
            truth(compare(*comparison, &left, &right)?)
        }
        Expression::In(wanted, searched, list) => {
            let searched = value(searched, document)?;
            let mut values = list.iter().filter_map(|item| value(item, document));
            let found = values.any(|item| order(&searched, &item) == Some(Ordering::Equal));
            truth(found == *wanted)
        }
        Expression::StartsWith(sides) => {
            let [text, part] = values(sides, document)?;
            truth(text.as_str()?.starts_with(part.as_str()?))
        }
        Expression::EndsWith(sides) => {
            let [text, part] = values(sides, document)?;
            truth(text.as_str()?.ends_with(part.as_str()?))
        }
        Expression::Calculate(operator, sides) => {
            let [left, right] = values(sides, document)?;
            calculate(*operator, left.as_f64()?, right.as_f64()?).map(Cow::Owned)
        }
    }
}

fn values<'a>(sides: &'a [Expression; 2], document: &'a dyn Document) -> Option<[Cow<'a, Value>; 2]> {
    let [left, right] = sides;
    Some([value(left, document)?, value(right, document)?])
}

fn as_truth(expression: &Expression, document: &dyn Document) -> Option<bool> {
    value(expression, document)?.as_bool()
}

/// AND (`decisive` is false) and OR (`decisive` is true): one decisive value decides, whatever the others are;
/// without one, an undefined value makes the whole undefined.
fn all(list: &[Expression], document: &dyn Document, decisive: bool) -> Option<bool> {
    let mut result = Some(!decisive);
    for item in list {
        match as_truth(item, document) {
            Some(truth) if truth == decisive => return Some(decisive),
            Some(_) => {}
            None => result = None,
        }
    }
    result
}

fn compare(comparison: Comparison, left: &Value, right: &Value) -> Option<bool> {
    let order = order(left, right)?;
    Some(match comparison {
        Comparison::Equal => order.is_eq(),
        Comparison::NotEqual => order.is_ne(),
        Comparison::Less => order.is_lt(),
        Comparison::LessOrEqual => order.is_le(),
        Comparison::Greater => order.is_gt(),
        Comparison::GreaterOrEqual => order.is_ge(),
    })
}

/// Only primitive values of one type compare; the hub's own documentation says no more.
pub(super) fn order(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::Null, Value::Null) => Some(Ordering::Equal),
        (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
        (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
        (Value::Number(left), Value::Number(right)) => left.as_f64()?.partial_cmp(&right.as_f64()?),
        _ => None,
    }
}

fn calculate(operator: Arithmetic, left: f64, right: f64) -> Option<Value> {
    number(match operator {
        Arithmetic::Add => left + right,
        Arithmetic::Subtract => left - right,
        Arithmetic::Multiply => left * right,
        Arithmetic::Divide => left / right,
        Arithmetic::Remainder => left % right,
    })
}

/// A number as people write it: whole numbers without a fraction. Undefined where there is none (1/0).
pub(super) fn number(value: f64) -> Option<Value> {
    /// Integers up to here are exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT {
        #[expect(clippy::cast_possible_truncation, reason = "a whole number within the exact ones")]
        return Some(Value::from(value as i64));
    }
    Number::from_f64(value).map(Value::Number)
}
