//! JSON selectors: `{ ($.level = "ERROR" || $.code >= 500) && $.user.ids[0] != 12* }`.
//!
//! A property is `$` with `.name`, `.["any name"]` or `[index]` steps. A comparison is false where the property is not
//! there, so `!=` asks for a property that is there and differs; `NOT EXISTS` asks for one that is not. Values are
//! numbers, quoted or bare text with `*` wildcards, or `%regex%`; there are also `IS NULL`, `IS TRUE` and `IS FALSE`.

use fancy_regex::Regex;
use serde_json::Value;

use super::{Cursor, PatternError, regex_matches};

/// Levels of parentheses at most; keeps the recursion small.
const MAX_DEPTH: usize = 32;

#[derive(Debug, Clone)]
pub(super) enum Expr {
    Any(Vec<Expr>),
    All(Vec<Expr>),
    Test { path: Vec<Step>, test: Test },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Name(String),
    Index(usize),
}

#[derive(Debug, Clone)]
pub(super) enum Test {
    NotExists,
    Is(Value),
    Equal(Operand),
    NotEqual(Operand),
    Order(Order, f64),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Order {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone)]
pub(super) enum Operand {
    Number(f64, String),
    /// The parts between the wildcards.
    Text(Vec<String>),
    Regex(Regex),
}

impl Expr {
    /// A message that is no JSON matches nothing.
    pub(super) fn matches(&self, message: &str) -> bool {
        let message = message.trim();
        // Most lines are no JSON: do not bother the parser.
        if !message.starts_with(['{', '[']) {
            return false;
        }
        serde_json::from_str(message).is_ok_and(|value| self.holds(&value))
    }

    fn holds(&self, value: &Value) -> bool {
        match self {
            Self::Any(exprs) => exprs.iter().any(|expr| expr.holds(value)),
            Self::All(exprs) => exprs.iter().all(|expr| expr.holds(value)),
            Self::Test { path, test } => test.holds(find(value, path)),
        }
    }
}

impl Test {
    fn holds(&self, found: Option<&Value>) -> bool {
        let Some(found) = found else { return matches!(self, Self::NotExists) };
        match self {
            Self::NotExists => false,
            Self::Is(value) => found == value,
            Self::Equal(operand) => operand.equals(found) == Some(true),
            Self::NotEqual(operand) => operand.equals(found) == Some(false),
            Self::Order(order, limit) => found.as_f64().is_some_and(|number| match order {
                Order::Less => number < *limit,
                Order::LessOrEqual => number <= *limit,
                Order::Greater => number > *limit,
                Order::GreaterOrEqual => number >= *limit,
            }),
        }
    }
}

impl Operand {
    /// `None` where the value cannot be compared (null, objects and arrays).
    fn equals(&self, found: &Value) -> Option<bool> {
        let text = match found {
            Value::String(text) => text.clone(),
            Value::Number(number) => match self {
                Self::Number(wanted, _) => return Some(number.as_f64() == Some(*wanted)),
                Self::Text(_) | Self::Regex(_) => number.to_string(),
            },
            Value::Bool(value) => value.to_string(),
            Value::Null => return None,
            // "*" means "is there", whatever it is.
            Value::Array(_) | Value::Object(_) => return self.is_wildcard().then_some(true),
        };
        Some(match self {
            Self::Number(_, source) => text == *source,
            Self::Text(parts) => wildcard_matches(parts, &text),
            Self::Regex(regex) => regex_matches(regex, &text),
        })
    }

    fn is_wildcard(&self) -> bool {
        matches!(self, Self::Text(parts) if parts.len() > 1 && parts.iter().all(String::is_empty))
    }
}

/// Whether text consists of these parts with anything between them.
fn wildcard_matches(parts: &[String], text: &str) -> bool {
    let [first, middle @ .., last] = parts else { return parts.first().is_some_and(|only| only == text) };
    let Some(mut rest) = text.strip_prefix(first.as_str()) else { return false };
    for part in middle {
        match rest.split_once(part.as_str()) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last.as_str())
}

fn find<'v>(value: &'v Value, path: &[Step]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, step| match step {
        Step::Name(name) => value.as_object()?.get(name),
        Step::Index(index) => value.as_array()?.get(*index),
    })
}

/// Reads `{ ... }`.
pub(super) fn parse(cursor: Cursor) -> Result<Expr, PatternError> {
    let mut parser = Parser { cursor };
    parser.expect("{", "{")?;
    let expr = parser.any(0)?;
    parser.expect("}", "&&, || or }")?;
    parser.cursor.skip_spaces();
    if parser.cursor.peek().is_some() { Err(parser.expected("the end of the pattern")) } else { Ok(expr) }
}

struct Parser {
    cursor: Cursor,
}

impl Parser {
    fn any(&mut self, depth: usize) -> Result<Expr, PatternError> {
        let mut exprs = vec![self.all(depth)?];
        while self.eat("||") {
            exprs.push(self.all(depth)?);
        }
        Ok(Expr::Any(exprs))
    }

    fn all(&mut self, depth: usize) -> Result<Expr, PatternError> {
        let mut exprs = vec![self.one(depth)?];
        while self.eat("&&") {
            exprs.push(self.one(depth)?);
        }
        Ok(Expr::All(exprs))
    }

    fn one(&mut self, depth: usize) -> Result<Expr, PatternError> {
        if self.eat("(") {
            if depth == MAX_DEPTH {
                return Err(PatternError::TooDeep { at: self.cursor.position() });
            }
            let expr = self.any(depth + 1)?;
            self.expect(")", ")")?;
            return Ok(expr);
        }
        let path = self.path()?;
        Ok(Expr::Test { path, test: self.test()? })
    }

    fn path(&mut self) -> Result<Vec<Step>, PatternError> {
        self.expect("$", "a property such as $.level")?;
        let mut path = Vec::new();
        loop {
            if self.cursor.eat(".[\"") || self.cursor.eat("[\"") {
                self.cursor.at -= 1;
                path.push(Step::Name(self.cursor.quoted()?));
                self.expect("]", "]")?;
            } else if self.cursor.eat("[") {
                let digits = self.cursor.word(|c| c.is_ascii_digit());
                path.push(Step::Index(digits.parse().map_err(|_| self.expected("an index"))?));
                self.expect("]", "]")?;
            } else if self.cursor.eat(".") {
                let name = self.cursor.word(|c| c.is_alphanumeric() || "_-:@/#$".contains(c));
                if name.is_empty() {
                    return Err(self.expected("a property name"));
                }
                path.push(Step::Name(name));
            } else if path.is_empty() {
                return Err(self.expected("a property such as $.level"));
            } else {
                return Ok(path);
            }
        }
    }

    fn test(&mut self) -> Result<Test, PatternError> {
        if self.eat_word("NOT") {
            return if self.eat_word("EXISTS") { Ok(Test::NotExists) } else { Err(self.expected("EXISTS")) };
        }
        if self.eat_word("IS") {
            let values = [("NULL", Value::Null), ("TRUE", Value::Bool(true)), ("FALSE", Value::Bool(false))];
            for (word, value) in values {
                if self.eat_word(word) {
                    return Ok(Test::Is(value));
                }
            }
            return Err(self.expected("NULL, TRUE or FALSE"));
        }
        let order = if self.eat("!=") {
            return Ok(Test::NotEqual(self.operand()?));
        } else if self.eat("<=") {
            Order::LessOrEqual
        } else if self.eat(">=") {
            Order::GreaterOrEqual
        } else if self.eat("<") {
            Order::Less
        } else if self.eat(">") {
            Order::Greater
        } else if self.eat("=") {
            return Ok(Test::Equal(self.operand()?));
        } else {
            return Err(self.expected("=, !=, <, <=, >, >=, IS or NOT EXISTS"));
        };
        self.cursor.skip_spaces();
        let at = self.cursor.position();
        match self.operand()? {
            Operand::Number(number, _) => Ok(Test::Order(order, number)),
            Operand::Text(_) | Operand::Regex(_) => Err(PatternError::Expected { expected: "a number", at }),
        }
    }

    fn operand(&mut self) -> Result<Operand, PatternError> {
        self.cursor.skip_spaces();
        let text = match self.cursor.peek() {
            Some('%') => return self.cursor.regex().map(Operand::Regex),
            Some('"') => self.cursor.quoted()?,
            _ => {
                let word = self.cursor.word(|c| !c.is_whitespace() && !"(){}&|=<>!\"%".contains(c));
                if word.is_empty() {
                    return Err(self.expected("a value"));
                }
                if let Some(number) = number(&word) {
                    return Ok(Operand::Number(number, word));
                }
                word
            }
        };
        Ok(Operand::Text(text.split('*').map(str::to_owned).collect()))
    }

    fn eat(&mut self, text: &str) -> bool {
        self.cursor.skip_spaces();
        self.cursor.eat(text)
    }

    /// A keyword, in any case, that does not go on.
    fn eat_word(&mut self, keyword: &str) -> bool {
        self.cursor.skip_spaces();
        let start = self.cursor.at;
        let found = self.cursor.word(|c| c.is_ascii_alphabetic()).eq_ignore_ascii_case(keyword);
        if !found {
            self.cursor.at = start;
        }
        found
    }

    fn expect(&mut self, text: &str, expected: &'static str) -> Result<(), PatternError> {
        if self.eat(text) { Ok(()) } else { Err(self.expected(expected)) }
    }

    fn expected(&self, expected: &'static str) -> PatternError {
        PatternError::Expected { expected, at: self.cursor.position() }
    }
}

/// A finite decimal number; not `inf`, `nan` and what else Rust would read.
fn number(word: &str) -> Option<f64> {
    let digits = word.strip_prefix(['-', '+']).unwrap_or(word);
    let looks_right = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    word.parse().ok().filter(|number: &f64| looks_right && number.is_finite())
}
