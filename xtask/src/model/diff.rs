//! What another description of the service would change of the committed model, item by item.

use std::collections::BTreeMap;

/// The changes between two generated files of one name, a line each; lines within an item are indented.
pub fn changes(file: &str, committed: &str, generated: &str) -> Vec<String> {
    let (old, new) = (items(committed), items(generated));
    let mut out = Vec::new();
    for (name, text) in &new {
        match old.get(name) {
            None => out.push(format!("+ {file}: {name}")),
            Some(before) if before == text => {}
            Some(before) => {
                // Members stand one to a line, in the model's order; where one moved is no change.
                let without = |lines: &[String], other: &[String], sign: char| {
                    let lines = lines.iter().filter(|line| !other.contains(line));
                    lines.map(|line| format!("    {sign} {line}")).collect::<Vec<_>>()
                };
                let mut lines = without(before, text, '-');
                lines.extend(without(text, before, '+'));
                if !lines.is_empty() {
                    out.push(format!("~ {file}: {name}"));
                    out.extend(lines);
                }
            }
        }
    }
    out.extend(old.keys().filter(|name| !new.contains_key(*name)).map(|name| format!("- {file}: {name}")));
    out
}

/// The items of a generated file by name: statics, structures and functions, and the elements of the operations' table.
fn items(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut items = BTreeMap::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let indent = line.len() - line.trim_start().len();
        let declared = name(line.trim());
        let element = (line.trim() == "OperationInfo {").then(|| lines.peek().map_or("", |line| line.trim()));
        let element = element.and_then(|line| line.strip_prefix("operation: Operation::")?.strip_suffix(','));
        let Some(name) = element.or(declared) else { continue };
        let mut body = Vec::new();
        if !line.ends_with(';') && line.ends_with(['{', '[', '(']) {
            for line in lines.by_ref() {
                if line.len() - line.trim_start().len() == indent && line.trim_start().starts_with(['}', ']', ')']) {
                    break;
                }
                body.push(line.trim().to_owned());
            }
        } else {
            body.push(line.to_owned());
        }
        items.insert(name.to_owned(), unwrapped(&body));
    }
    items
}

/// The lines with each member on one of its own, however rustfmt has broken it.
fn unwrapped(lines: &[String]) -> Vec<String> {
    const MEMBER: &str = "Member {";
    let mut out = Vec::new();
    let mut rest = lines.iter();
    while let Some(line) = rest.next() {
        let Some(start) = line.find(MEMBER) else {
            out.push(line.clone());
            continue;
        };
        let mut member = line[start..].to_owned();
        if line.ends_with(MEMBER) {
            for line in rest.by_ref() {
                let end = line.starts_with('}');
                member = format!("{} {line}", if end { member.trim_end_matches(',') } else { &member });
                if end {
                    break;
                }
            }
        }
        let (head, tail) = member.rsplit_once('}').unwrap_or((&member, ""));
        let around = [line[..start].to_owned(), format!("{head}}}"), tail.trim_start_matches(',').to_owned()];
        out.extend(around.into_iter().filter(|part| !part.is_empty()));
    }
    out
}

/// The name that a line declares. Tables of everything would only repeat what their elements say.
fn name(line: &str) -> Option<&str> {
    let rest =
        ["pub struct ", "pub(crate) static ", "static ", "pub fn "].iter().find_map(|head| line.strip_prefix(head))?;
    let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_')?;
    let name = &rest[..end];
    (!rest[end..].starts_with(": [")).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_by_item() {
        let old = "\
pub(crate) static A: Shape = Shape {
    limits: 1,
    kind: 2,
};

pub(crate) static GONE: Shape = Shape { kind: 3 };

impl ApiError {
    pub fn one(x: u8) -> Self {
        Self::new(400)
    }
}

static TABLE: [OperationInfo; 1] = [
    OperationInfo {
        operation: Operation::Get,
        method: \"GET\",
    },
];
";
        let new = old
            .replace("limits: 1", "limits: 5")
            .replace("GONE", "NEW")
            .replace("400", "409")
            .replace("];", "    OperationInfo {\n        operation: Operation::Put,\n    },\n];");
        assert_eq!(
            changes("f", old, &new),
            [
                "~ f: A",
                "    - limits: 1,",
                "    + limits: 5,",
                "+ f: NEW",
                "+ f: Put",
                "~ f: one",
                "    - Self::new(400)",
                "    + Self::new(409)",
                "- f: GONE",
            ]
        );
        assert!(changes("f", old, old).is_empty());
    }

    #[test]
    fn how_a_member_is_broken_is_no_change() {
        let wrapped = "\
static A: Shape = Shape {
    kind: Kind::Structure(&[Member {
        name: \"N\",
        shape: &S,
    }]),
};
";
        let flat = "\
static A: Shape = Shape {
    kind: Kind::Structure(&[
        Member { name: \"N\", shape: &S },
        Member { name: \"O\", shape: &S },
    ]),
};
";
        assert_eq!(changes("f", wrapped, flat), ["~ f: A", "    + Member { name: \"O\", shape: &S }"]);
    }
}
