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
                out.push(format!("~ {file}: {name}"));
                // Members stand one to a line, in the model's order; where one moved is no change.
                let gone = before.lines().filter(|line| !text.lines().any(|other| other == *line));
                let came = text.lines().filter(|line| !before.lines().any(|other| other == *line));
                out.extend(gone.map(|line| format!("    - {}", line.trim())));
                out.extend(came.map(|line| format!("    + {}", line.trim())));
            }
        }
    }
    out.extend(old.keys().filter(|name| !new.contains_key(*name)).map(|name| format!("- {file}: {name}")));
    out
}

/// The items of a generated file by name: statics, structures and functions, and the elements of the operations' table.
fn items(text: &str) -> BTreeMap<String, String> {
    let mut items = BTreeMap::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let indent = line.len() - line.trim_start().len();
        let declared = name(line.trim());
        let element = (line.trim() == "OperationInfo {").then(|| lines.peek().map_or("", |line| line.trim()));
        let element = element.and_then(|line| line.strip_prefix("operation: Operation::")?.strip_suffix(','));
        let Some(name) = element.or(declared) else { continue };
        let mut body = String::new();
        if !line.ends_with(';') && line.ends_with(['{', '[', '(']) {
            for line in lines.by_ref() {
                if line.len() - line.trim_start().len() == indent && line.trim_start().starts_with(['}', ']', ')']) {
                    break;
                }
                body.push_str(line.trim());
                body.push('\n');
            }
        } else {
            body.push_str(line);
        }
        items.insert(name.to_owned(), body);
    }
    items
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
}
