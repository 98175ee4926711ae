//! Texts with wildcards: `*` for any characters, `?` for one, `${key}` for a value of the request.

use super::Context;

/// A part of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Any,
    One,
    Just(char),
}

/// Whether a text fits a pattern. Variables that the request has no single value for fit nothing.
pub(super) fn fits(pattern: &str, text: &str, context: &Context) -> bool {
    tokens(pattern, context).is_some_and(|tokens| glob(&tokens, text))
}

/// The same without regard to the case of ASCII letters, as actions are compared.
pub(super) fn fits_any_case(pattern: &str, text: &str) -> bool {
    tokens(&pattern.to_ascii_lowercase(), &Context::new())
        .is_some_and(|tokens| glob(&tokens, &text.to_ascii_lowercase()))
}

/// Whether an ARN fits a pattern: part by part, so that no wildcard reaches over a colon but in the last part.
pub(super) fn fits_arn(pattern: &str, arn: &str, context: &Context) -> bool {
    if pattern == "*" {
        return true;
    }
    let (patterns, parts): (Vec<&str>, Vec<&str>) = (pattern.splitn(6, ':').collect(), arn.splitn(6, ':').collect());
    if patterns.len() < 6 || parts.len() < 6 {
        return fits(pattern, arn, context);
    }
    patterns.iter().zip(parts).all(|(pattern, part)| fits(pattern, part, context))
}

/// A text with its variables replaced, and no wildcards.
pub(super) fn expanded(text: &str, context: &Context) -> Option<String> {
    let mut out = String::new();
    pieces(text, context, |piece| match piece {
        Piece::Written(text) | Piece::Replaced(text) => out.push_str(text),
    })?;
    Some(out)
}

enum Piece<'a> {
    /// As it stands in the policy.
    Written(&'a str),
    /// In place of a variable.
    Replaced(&'a str),
}

fn pieces(text: &str, context: &Context, mut take: impl FnMut(Piece<'_>)) -> Option<()> {
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        take(Piece::Written(before));
        let (name, after) = after.split_once('}')?;
        let (key, default) = match name.split_once(',') {
            Some((key, default)) => (key.trim(), Some(default.trim().trim_matches('\''))),
            None => (name, None),
        };
        match key {
            "*" | "?" | "$" => take(Piece::Replaced(key)),
            key => match (context.get(&key.to_ascii_lowercase()).map(Vec::as_slice), default) {
                (Some([value]), _) => take(Piece::Replaced(value)),
                (_, Some(default)) => take(Piece::Replaced(default)),
                _ => return None,
            },
        }
        rest = after;
    }
    take(Piece::Written(rest));
    Some(())
}

fn tokens(pattern: &str, context: &Context) -> Option<Vec<Token>> {
    let mut tokens = Vec::with_capacity(pattern.len());
    pieces(pattern, context, |piece| match piece {
        Piece::Replaced(text) => tokens.extend(text.chars().map(Token::Just)),
        Piece::Written(text) => tokens.extend(text.chars().map(|character| match character {
            '*' => Token::Any,
            '?' => Token::One,
            other => Token::Just(other),
        })),
    })?;
    Some(tokens)
}

/// In at most as many steps as the two have characters, multiplied: only the last `*` is ever tried again.
fn glob(pattern: &[Token], text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let (mut at, mut next) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while at < text.len() {
        match pattern.get(next) {
            Some(Token::Any) => {
                star = Some((next, at));
                next += 1;
                continue;
            }
            Some(Token::One) => {
                at += 1;
                next += 1;
                continue;
            }
            Some(Token::Just(character)) if *character == text[at] => {
                at += 1;
                next += 1;
                continue;
            }
            Some(Token::Just(_)) | None => {}
        }
        let Some((place, from)) = star else { return false };
        star = Some((place, from + 1));
        at = from + 1;
        next = place + 1;
    }
    pattern[next..].iter().all(|token| *token == Token::Any)
}
