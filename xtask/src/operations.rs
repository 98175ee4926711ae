//! The table of the API's operations in docs/compatibility.md.
//!
//! Four sources, each with one thing to say: the model which operations there are, the `operate` of the frontend which
//! of them are served, the cases in `tests/api` which of them are tested, and `docs/operations.toml` what differs and
//! which tests there are besides. An operation that is served without a test, and a note on one that does not exist,
//! are errors.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

const MODEL: &str = "crates/aws-model/src/generated/operations.rs";
const DISPATCH: &str = "crates/frontend/src/lambda.rs";
const NOTES: &str = "docs/operations.toml";
const CASES: &str = "tests/api";
const DOCUMENT: &str = "docs/compatibility.md";
const BEGIN: &str = "<!-- operations: written by `cargo run -p xtask -- operations` -->";
const END: &str = "<!-- /operations -->";

/// What is said about an operation.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Note {
    /// How it differs from AWS's, as a phrase.
    #[serde(default)]
    differs: Option<String>,
    /// Names of tests besides the API cases, as the rest of the document writes them.
    #[serde(default)]
    tests: Vec<String>,
}

/// An operation of the model.
#[derive(Debug, PartialEq, Eq)]
struct Operation {
    name: String,
    method: String,
    uri: String,
    /// What the query must say, where another operation has the same method and path.
    query: Option<String>,
}

/// A file of API cases.
#[derive(Deserialize)]
struct Cases {
    case: Vec<Case>,
}

/// One case.
#[derive(Deserialize)]
struct Case {
    name: String,
    step: Vec<Step>,
}

/// One of its requests.
#[derive(Deserialize)]
struct Step {
    request: String,
    status: u16,
}

/// Writes the table, or with `--check` compares it.
pub fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let check = match arguments {
        [] => false,
        [one] if one == "--check" => true,
        _ => bail!("operations takes --check or nothing"),
    };
    let read = |path: &str| std::fs::read_to_string(root.join(path)).with_context(|| format!("reading {path}"));
    let notes: BTreeMap<String, Note> =
        toml::from_str(&read(NOTES)?).with_context(|| format!("{NOTES} is not what this chore reads"))?;
    let cases = cases(&root.join(CASES))?;
    let table = table(&model(&read(MODEL)?)?, &served(&read(DISPATCH)?)?, &cases, &notes)?;
    let document = read(DOCUMENT)?;
    let written = replace(&document, &table)?;
    if check {
        ensure!(
            written == document,
            "the table of operations in {DOCUMENT} is not that of {DISPATCH} and {NOTES}: run `cargo run -p xtask -- operations`"
        );
        return Ok(());
    }
    std::fs::write(root.join(DOCUMENT), written).with_context(|| format!("writing {DOCUMENT}"))
}

/// The operations of the generated table.
fn model(text: &str) -> Result<Vec<Operation>> {
    let member = |line: &str, name: &str| {
        let value = line.trim().strip_prefix(name)?.strip_prefix(": \"")?.strip_suffix("\",")?;
        Some(value.to_owned())
    };
    let mut operations: Vec<Operation> = Vec::new();
    for line in text.lines() {
        if let Some(name) = member(line, "name") {
            operations.push(Operation { name, method: String::new(), uri: String::new(), query: None });
        } else if let Some(last) = operations.last_mut() {
            if let Some(method) = member(line, "method") {
                last.method = method;
            } else if let Some(uri) = member(line, "uri") {
                last.uri = uri;
            } else if let Some(query) = line.trim().strip_prefix("query: Some((\"") {
                last.query = query.strip_suffix("\")),").map(|query| query.replace("\", \"", "="));
            }
        }
    }
    let whole = |operation: &Operation| !operation.method.is_empty() && !operation.uri.is_empty();
    ensure!(!operations.is_empty() && operations.iter().all(whole), "{MODEL} does not look as it did");
    operations.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(operations)
}

/// The operations that have an arm of `operate` or a guard before it.
fn served(text: &str) -> Result<BTreeSet<String>> {
    let (_, body) = text.split_once("async fn operate(").with_context(|| format!("{DISPATCH} has no `operate`"))?;
    let body = body.split_once("\n}").map_or(body, |(body, _)| body);
    let guards = text.lines().filter(|line| line.contains("routed.operation == "));
    let mut names = BTreeSet::new();
    for line in body.lines().chain(guards) {
        for part in line.split("Operation::").skip(1) {
            let name: String = part.chars().take_while(char::is_ascii_alphanumeric).collect();
            names.insert(name);
        }
    }
    Ok(names)
}

/// Every API case by the name that the document gives it, in the order of files and cases.
fn cases(folder: &Path) -> Result<Vec<(String, Case)>> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .with_context(|| format!("reading {CASES}"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    let mut cases = Vec::new();
    for path in files {
        let group = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {CASES}/{group}.toml"))?;
        let file: Cases = toml::from_str(&text).with_context(|| format!("{CASES}/{group}.toml holds no cases"))?;
        cases.extend(file.case.into_iter().map(|case| (format!("api/{group}: {}", case.name), case)));
    }
    Ok(cases)
}

/// The first case in which the operation succeeds, else the first that names it.
fn shown_by<'a>(operation: &Operation, operations: &[Operation], cases: &'a [(String, Case)]) -> Option<&'a str> {
    // Of operations with one method and path, the one that asks something of the query goes first.
    let narrower = operations.iter().find(|other| {
        operation.query.is_none()
            && other.query.is_some()
            && (&other.method, other.path()) == (&operation.method, operation.path())
    });
    let asks =
        |step: &Step| operation.is_asked(&step.request) && !narrower.is_some_and(|other| other.is_asked(&step.request));
    let find = |succeeds: bool| {
        let fits = |step: &Step| asks(step) && (!succeeds || (200..300).contains(&step.status));
        cases.iter().find(|(_, case)| case.step.iter().any(fits)).map(|(name, _)| name.as_str())
    };
    find(true).or_else(|| find(false))
}

impl Operation {
    /// The path alone: what the query must say stands in the model's URI too.
    fn path(&self) -> &str {
        self.uri.split_once('?').map_or(self.uri.as_str(), |(path, _)| path)
    }

    /// Whether a case's request is one for this operation.
    fn is_asked(&self, request: &str) -> bool {
        let Some((method, target)) = request.split_once(' ') else { return false };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let (wanted, found): (Vec<&str>, Vec<&str>) = (self.path().split('/').collect(), path.split('/').collect());
        let fits = |(wanted, found): (&&str, &&str)| wanted == found || (wanted.starts_with('{') && !found.is_empty());
        method == self.method
            && wanted.len() == found.len()
            && wanted.iter().zip(&found).all(fits)
            && self.query.as_deref().is_none_or(|wanted| query.split('&').any(|part| part == wanted))
    }
}

fn table(
    operations: &[Operation],
    served: &BTreeSet<String>,
    cases: &[(String, Case)],
    notes: &BTreeMap<String, Note>,
) -> Result<String> {
    let mut problems = Vec::new();
    let known: BTreeSet<&str> = operations.iter().map(|operation| operation.name.as_str()).collect();
    for name in served.iter().chain(notes.keys()).filter(|name| !known.contains(name.as_str())) {
        problems.push(format!("the model has no operation {name}"));
    }
    let open = operations.iter().filter(|operation| !served.contains(&operation.name)).count();
    let mut out = format!(
        "{} operations, {} of them served; the others are routed, validated and refused with 501 `NotImplementedException`.\n\n\
         | Operation | Request | Status | Test |\n|---|---|---|---|\n",
        operations.len(),
        operations.len() - open
    );
    let none = Note::default();
    for operation in operations {
        let note = notes.get(&operation.name).unwrap_or(&none);
        let served = served.contains(&operation.name);
        let case = shown_by(operation, operations, cases);
        if served && note.tests.is_empty() && case.is_none() {
            problems.push(format!("{} is served, and neither {CASES} nor {NOTES} has a test of it", operation.name));
        }
        let status = match (served, &note.differs) {
            (true, None) => "same".to_owned(),
            (true, Some(differs)) => format!("differs: {differs}"),
            (false, None) => "open".to_owned(),
            (false, Some(differs)) => format!("open: {differs}"),
        };
        let tests = case.into_iter().chain(note.tests.iter().map(String::as_str));
        let tests: Vec<String> = tests.map(|test| format!("`{test}`")).collect();
        writeln!(
            out,
            "| {} | `{} {}` | {status} | {} |",
            operation.name,
            operation.method,
            operation.uri,
            tests.join(", ")
        )?;
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(out)
}

/// The document with what stands between the markers replaced.
fn replace(document: &str, table: &str) -> Result<String> {
    let (before, rest) = document.split_once(BEGIN).with_context(|| format!("{DOCUMENT} lacks the line {BEGIN}"))?;
    let (_, after) = rest.split_once(END).with_context(|| format!("{DOCUMENT} lacks the line {END}"))?;
    Ok(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_table_is_up_to_date() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        run(root, &["--check".to_owned()]).unwrap();
    }

    #[test]
    fn arms_and_guards_are_served() {
        let text = "
            Ok(routed) if routed.operation == Operation::Invoke => x,
            Operation::CreateFunction => LIMIT,
            async fn operate() {
                match input.operation {
                    Operation::GetAlias | Operation::ListAliases => aliases(),
                    operation => refuse(operation),
                }\n}\nOperation::Elsewhere => 1,";
        let names: Vec<String> = served(text).unwrap().into_iter().collect();
        assert_eq!(names, ["GetAlias", "Invoke", "ListAliases"]);
    }

    fn operation(name: &str, uri: &str, query: Option<&str>) -> Operation {
        let text = str::to_owned;
        Operation { name: text(name), method: text("GET"), uri: text(uri), query: query.map(text) }
    }

    #[test]
    fn what_is_forgotten_shows() {
        let operations = [operation("A", "/a", None), operation("B", "/b", None)];
        let served: BTreeSet<String> = ["A".to_owned()].into();
        let error = table(&operations, &served, &[], &BTreeMap::new()).unwrap_err();
        assert_eq!(error.to_string(), "A is served, and neither tests/api nor docs/operations.toml has a test of it");
        let mut notes: BTreeMap<String, Note> = toml::from_str("[A]\ntests = [\"t\"]\ndiffers = \"a lot\"").unwrap();
        let text = table(&operations, &served, &[], &notes).unwrap();
        assert!(text.contains("| A | `GET /a` | differs: a lot | `t` |\n| B | `GET /b` | open |  |\n"), "{text}");
        notes.insert("C".to_owned(), Note::default());
        let error = table(&operations, &served, &[], &notes).unwrap_err();
        assert!(error.to_string().contains("the model has no operation C"), "{error}");
    }

    #[test]
    fn cases_are_found_by_their_requests() {
        let step = |request: &str, status| Step { request: request.to_owned(), status };
        let case = |name: &str, steps| (name.to_owned(), Case { name: name.to_owned(), step: steps });
        let operations = [
            operation("Get", "/d/{N}/c", None),
            operation("List", "/d/{N}/c?List=ALL", Some("List=ALL")),
            operation("Other", "/d/{N}", None),
        ];
        let cases = [
            case("listed", vec![step("GET /d/f/c?Marker=x&List=ALL", 200)]),
            case("absent", vec![step("POST /d/f/c", 200), step("GET /d/f/c", 404)]),
            case("there", vec![step("GET /d/f%2Fg/c?Qualifier=1", 200)]),
        ];
        let shown: Vec<_> = operations.iter().map(|one| shown_by(one, &operations, &cases)).collect();
        assert_eq!(shown, [Some("there"), Some("listed"), None]);
        assert_eq!(shown_by(&operations[0], &operations, &cases[..2]), Some("absent"));
    }
}
