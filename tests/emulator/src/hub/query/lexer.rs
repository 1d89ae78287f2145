//! Cuts the text of a query into tokens.

use serde_json::{Number, Value};

use super::QueryError;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// A keyword, or one part of an attribute's name.
    Word(String),
    /// `[[…]]`: a part of an attribute's name that may hold any character.
    Bracketed(String),
    /// A string or a number.
    Constant(Value),
    Symbol(&'static str),
    End,
}

/// Longer ones first, so that `<=` is not read as `<` and `=`.
const SYMBOLS: [&str; 18] =
    ["<=", ">=", "<>", "!=", "=", "<", ">", "+", "-", "*", "/", "%", "(", ")", "[", "]", ",", "."];

/// The tokens, each with the place in `text` where it begins. The last one is [`Token::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<(usize, Token)>, QueryError> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let at = text.len().saturating_sub(rest.len());
        let (token, after) = next(rest).ok_or(QueryError::Unreadable { at })?;
        tokens.push((at, token));
        rest = after.trim_start();
    }
    tokens.push((text.len(), Token::End));
    Ok(tokens)
}

fn next(text: &str) -> Option<(Token, &str)> {
    if let Some(name) = text.strip_prefix("[[") {
        let (name, rest) = name.split_once("]]")?;
        return Some((Token::Bracketed(name.to_owned()), rest));
    }
    let first = text.chars().next()?;
    if first == '\'' || first == '"' {
        return string(text.get(1..)?, first);
    }
    if first.is_ascii_digit() {
        return number(text);
    }
    if is_of_word(first) {
        let (word, rest) = split_while(text, is_of_word);
        return Some((Token::Word(word.to_owned()), rest));
    }
    let symbol = SYMBOLS.into_iter().find(|symbol| text.starts_with(symbol))?;
    Some((Token::Symbol(symbol), text.strip_prefix(symbol)?))
}

fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

fn split_while(text: &str, keep: impl Fn(char) -> bool) -> (&str, &str) {
    let end = text.find(|c| !keep(c)).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

fn string(text: &str, quote: char) -> Option<(Token, &str)> {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            '\\' => value.push(match chars.next()? {
                'u' => {
                    let digits: String = chars.by_ref().take(4).collect();
                    char::from_u32(u32::from_str_radix(&digits, 16).ok()?)?
                }
                c @ ('\'' | '"' | '\\') => c,
                _ => return None,
            }),
            c if c == quote => return Some((Token::Constant(Value::String(value)), chars.as_str())),
            c => value.push(c),
        }
    }
}

fn number(text: &str) -> Option<(Token, &str)> {
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let (digits, rest) = split_while(digits, |c| c.is_ascii_alphanumeric());
        return Some((Token::Constant(i64::from_str_radix(digits, 16).ok()?.into()), rest));
    }
    let (mantissa, after) = split_while(text, |c| c.is_ascii_digit() || c == '.');
    let exponent = after.strip_prefix(['e', 'E']).map(|exponent| {
        let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        split_while(digits, |c| c.is_ascii_digit()).1
    });
    let rest = exponent.unwrap_or(after);
    let text = text.strip_suffix(rest)?;
    let number = match text.parse::<i64>() {
        Ok(integer) => Number::from(integer),
        Err(_) => Number::from_f64(text.parse().ok()?)?,
    };
    // `2x` is neither a number nor a name.
    let ends = !mantissa.ends_with('.') && !rest.starts_with(is_of_word);
    ends.then_some((Token::Constant(Value::Number(number)), rest))
}
