//! Conditions and calculations: from OR, which binds least, down to constants and attributes.

use serde_json::Value;

use super::Parser;
use crate::hub::query::lexer::Token;
use crate::hub::query::{Arithmetic, Comparison, Expression, QueryError};

/// Parentheses in parentheses. Far more than anybody writes, and far less than fills a stack.
const DEPTH_LIMIT: usize = 40;
/// Calculations in one query: each deepens the tree by one.
const CALCULATION_LIMIT: usize = 200;

impl Parser {
    pub(super) fn any(&mut self) -> Result<Expression, QueryError> {
        let first = self.all()?;
        let mut list = vec![first];
        while self.take_word("or") {
            list.push(self.all()?);
        }
        Ok(single_or(list, Expression::Any))
    }

    fn all(&mut self) -> Result<Expression, QueryError> {
        let first = self.not()?;
        let mut list = vec![first];
        while self.take_word("and") {
            list.push(self.not()?);
        }
        Ok(single_or(list, Expression::All))
    }

    fn not(&mut self) -> Result<Expression, QueryError> {
        if self.take_word("not") {
            return self.deeper(|parser| Ok(Expression::Not(Box::new(parser.not()?))));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expression, QueryError> {
        const COMPARISONS: [(&str, Comparison); 7] = [
            ("=", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<>", Comparison::NotEqual),
            ("<=", Comparison::LessOrEqual),
            ("<", Comparison::Less),
            (">=", Comparison::GreaterOrEqual),
            (">", Comparison::Greater),
        ];
        let left = self.sum()?;
        for (symbol, comparison) in COMPARISONS {
            if self.take_symbol(symbol) {
                return Ok(Expression::Compare(comparison, Box::new([left, self.sum()?])));
            }
        }
        let wanted = self.is_word("in");
        if self.take_word("in") || self.take_word("nin") {
            return Ok(Expression::In(wanted, Box::new(left), self.list()?));
        }
        Ok(left)
    }

    fn list(&mut self) -> Result<Vec<Expression>, QueryError> {
        self.symbol("[")?;
        let mut list = Vec::new();
        if self.take_symbol("]") {
            return Ok(list);
        }
        loop {
            list.push(self.sum()?);
            if self.take_symbol("]") {
                return Ok(list);
            }
            self.symbol(",")?;
        }
    }

    fn sum(&mut self) -> Result<Expression, QueryError> {
        self.chain(&[("+", Arithmetic::Add), ("-", Arithmetic::Subtract)], Self::product)
    }

    fn product(&mut self) -> Result<Expression, QueryError> {
        let operators =
            [("*", Arithmetic::Multiply), ("/", Arithmetic::Divide), ("%", Arithmetic::Remainder)];
        self.chain(&operators, Self::negation)
    }

    fn chain(
        &mut self,
        operators: &[(&str, Arithmetic)],
        operand: fn(&mut Self) -> Result<Expression, QueryError>,
    ) -> Result<Expression, QueryError> {
        let mut left = operand(self)?;
        while let Some((_, operator)) = operators.iter().find(|(symbol, _)| self.take_symbol(symbol)) {
            self.calculations = self.calculations.saturating_add(1);
            if self.calculations > CALCULATION_LIMIT {
                return Err(QueryError::Depth);
            }
            left = Expression::Calculate(*operator, Box::new([left, operand(self)?]));
        }
        Ok(left)
    }

    fn negation(&mut self) -> Result<Expression, QueryError> {
        if !self.take_symbol("-") {
            return self.primary();
        }
        let zero = Expression::Constant(0.into());
        self.deeper(|parser| {
            Ok(Expression::Calculate(Arithmetic::Subtract, Box::new([zero, parser.negation()?])))
        })
    }

    fn primary(&mut self) -> Result<Expression, QueryError> {
        if self.take_symbol("(") {
            let inner = self.deeper(Self::any)?;
            self.symbol(")")?;
            return Ok(inner);
        }
        if let Token::Constant(value) = self.peek() {
            let constant = Expression::Constant(value.clone());
            self.advance();
            return Ok(constant);
        }
        for (word, value) in [("true", true.into()), ("false", false.into()), ("null", Value::Null)] {
            if self.take_word(word) {
                return Ok(Expression::Constant(value));
            }
        }
        if self.take_word("undefined") {
            return Ok(Expression::Undefined);
        }
        if self.is_call() { self.function() } else { Ok(Expression::Attribute(self.attribute()?)) }
    }

    /// Only `IS_DEFINED` is documented for twins; the hub is known to take the other two as well.
    fn function(&mut self) -> Result<Expression, QueryError> {
        if self.take_word("is_defined") {
            return Ok(Expression::IsDefined(self.attribute_in_parentheses()?));
        }
        let function = if self.take_word("startswith") {
            Expression::StartsWith
        } else if self.take_word("endswith") {
            Expression::EndsWith
        } else {
            return self.expected("IS_DEFINED, STARTSWITH or ENDSWITH");
        };
        self.symbol("(")?;
        let text = self.deeper(Self::sum)?;
        self.symbol(",")?;
        let part = self.deeper(Self::sum)?;
        self.symbol(")")?;
        Ok(function(Box::new([text, part])))
    }

    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T, QueryError>) -> Result<T, QueryError> {
        self.depth = self.depth.saturating_add(1);
        if self.depth > DEPTH_LIMIT {
            return Err(QueryError::Depth);
        }
        let result = inner(self);
        self.depth = self.depth.saturating_sub(1);
        result
    }
}

fn single_or(mut list: Vec<Expression>, many: fn(Vec<Expression>) -> Expression) -> Expression {
    match list.pop() {
        Some(only) if list.is_empty() => only,
        last => {
            list.extend(last);
            many(list)
        }
    }
}
