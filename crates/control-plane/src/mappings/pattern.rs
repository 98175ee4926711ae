//! Whether a filter pattern is one: the grammar of event patterns, as far as Lambda takes it.
//!
//! A pattern is an object whose values are objects again or lists of what a value may be: a text, a number, true,
//! false, null, or an object with one comparison. `$or` takes a list of patterns.

use serde_json::{Map, Value};

/// Whether this text is a pattern that can be matched against.
pub(crate) fn is_pattern(text: &str) -> bool {
    // The parser has its own bound on nesting.
    matches!(serde_json::from_str(text), Ok(Value::Object(fields)) if fields_valid(&fields))
}

fn fields_valid(fields: &Map<String, Value>) -> bool {
    let valid = |(name, value): (&String, &Value)| match value {
        Value::Array(choices) if name == "$or" => {
            choices.len() >= 2
                && choices.iter().all(|choice| matches!(choice, Value::Object(fields) if fields_valid(fields)))
        }
        Value::Array(matchers) => !matchers.is_empty() && matchers.iter().all(matcher_valid),
        Value::Object(fields) => fields_valid(fields),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    };
    !fields.is_empty() && fields.iter().all(valid)
}

fn matcher_valid(matcher: &Value) -> bool {
    let comparison = match matcher {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return true,
        Value::Array(_) => return false,
        Value::Object(comparison) => comparison,
    };
    let mut comparisons = comparison.iter();
    let (Some((name, operand)), None) = (comparisons.next(), comparisons.next()) else { return false };
    match name.as_str() {
        "prefix" | "suffix" => operand.is_string() || ignores_case(operand),
        "equals-ignore-case" => operand.is_string(),
        "exists" => operand.is_boolean(),
        "numeric" => matches!(operand, Value::Array(parts) if numeric_valid(parts)),
        "anything-but" => anything_but_valid(operand),
        _ => false,
    }
}

/// `{"equals-ignore-case": "text"}`
fn ignores_case(operand: &Value) -> bool {
    matches!(operand, Value::Object(inner)
        if inner.len() == 1 && inner.get("equals-ignore-case").is_some_and(Value::is_string))
}

/// `["=", 1]`, or one or two bounds: `[">", 0, "<=", 5]`.
fn numeric_valid(parts: &[Value]) -> bool {
    let bound = |operator: &Value, value: &Value, operators: &[&str]| {
        operator.as_str().is_some_and(|operator| operators.contains(&operator)) && value.is_number()
    };
    match parts {
        [operator, value] => bound(operator, value, &["=", "<", "<=", ">", ">="]),
        [low, least, high, most] => {
            bound(low, least, &[">", ">="])
                && bound(high, most, &["<", "<="])
                && least.as_f64().zip(most.as_f64()).is_some_and(|(least, most)| least < most)
        }
        _ => false,
    }
}

fn anything_but_valid(operand: &Value) -> bool {
    match operand {
        Value::String(_) | Value::Number(_) => true,
        Value::Array(values) => {
            !values.is_empty() && (values.iter().all(Value::is_string) || values.iter().all(Value::is_number))
        }
        Value::Object(inner) => {
            let texts = |value: &Value| match value {
                Value::String(_) => true,
                Value::Array(values) => !values.is_empty() && values.iter().all(Value::is_string),
                _ => false,
            };
            inner.len() == 1
                && inner.iter().all(|(name, value)| {
                    matches!(name.as_str(), "prefix" | "suffix" | "equals-ignore-case") && texts(value)
                })
        }
        Value::Null | Value::Bool(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_are_told_from_other_text() {
        let good = [
            r#"{"body": {"location": ["New York"]}}"#,
            r#"{"a": [null, "", 1, true]}"#,
            r#"{"a": [{"prefix": "x"}], "b": [{"exists": false}], "c": [{"suffix": {"equals-ignore-case": ".PNG"}}]}"#,
            r#"{"a": [{"numeric": ["=", 1]}, {"numeric": [">", 0, "<=", 5.5]}]}"#,
            r#"{"a": [{"anything-but": ["x", "y"]}, {"anything-but": 3}, {"anything-but": {"prefix": "z"}}]}"#,
            r#"{"$or": [{"a": ["x"]}, {"b": [{"equals-ignore-case": "Y"}]}]}"#,
        ];
        for pattern in good {
            assert!(is_pattern(pattern), "{pattern}");
        }
        let bad = [
            "",
            "{",
            "[]",
            "{}",
            r#""text""#,
            r#"{"a": "x"}"#,
            r#"{"a": []}"#,
            r#"{"a": {}}"#,
            r#"{"a": [["x"]]}"#,
            r#"{"a": [{"prefix": 1}]}"#,
            r#"{"a": [{"prefix": "x", "suffix": "y"}]}"#,
            r#"{"a": [{}]}"#,
            r#"{"a": [{"like": "x"}]}"#,
            r#"{"a": [{"exists": "true"}]}"#,
            r#"{"a": [{"numeric": ["~", 1]}]}"#,
            r#"{"a": [{"numeric": [">", 5, "<", 1]}]}"#,
            r#"{"a": [{"anything-but": []}]}"#,
            r#"{"a": [{"anything-but": ["x", 1]}]}"#,
            r#"{"$or": [{"a": ["x"]}]}"#,
            r#"{"$or": [{"a": ["x"]}, 3]}"#,
        ];
        for pattern in bad {
            assert!(!is_pattern(pattern), "{pattern}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in "\\PC{0,200}", depth in 0usize..300) {
            is_pattern(&text);
            is_pattern(&format!("{}{}", r#"{"a":"#.repeat(depth), "}".repeat(depth)));
        }
    }
}
