//! Resource policies, of functions and of layer versions: statements with ids of their own, kept in the order in which
//! they were added and shown as one JSON document.

use std::collections::BTreeMap;

use aws_model::ApiError;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

/// Largest policy of a resource, in bytes of its JSON text.
const MOST_POLICY: usize = 20_480;

/// One permission. Serializes as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Statement {
    pub sid: String,
    /// Always `Allow`.
    pub effect: String,
    /// `"*"`, `{"Service": ..}` or `{"AWS": ..}`.
    pub principal: Value,
    pub action: String,
    /// An ARN.
    pub resource: String,
    /// Operator to key to value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", serialize_with = "in_order")]
    pub condition: BTreeMap<String, BTreeMap<String, String>>,
}

/// The statements of one resource.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Changes with every change of the policy.
    pub revision_id: String,
    pub statements: Vec<Statement>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Document<'a> {
    version: &'static str,
    id: &'static str,
    statement: &'a [Statement],
}

impl Policy {
    /// The statement with this id.
    pub fn statement(&self, sid: &str) -> Option<&Statement> {
        self.statements.iter().find(|statement| statement.sid == sid)
    }

    /// The whole policy as GetPolicy shows it.
    pub fn document(&self) -> String {
        let document = Document { version: "2012-10-17", id: "default", statement: &self.statements };
        // Maps with text as keys always serialize.
        serde_json::to_string(&document).unwrap_or_default()
    }

    /// Adds a statement under an id that is free.
    ///
    /// # Errors
    /// ResourceConflictException, PolicyLengthExceededException.
    pub(crate) fn add(&mut self, statement: Statement) -> Result<(), ApiError> {
        if self.statement(&statement.sid).is_some() {
            return Err(ApiError::resource_conflict(format!(
                "The statement id ({}) provided already exists. Please provide a new statement id, or remove the \
                 existing statement.",
                statement.sid
            )));
        }
        self.statements.push(statement);
        let size = self.document().len();
        if size > MOST_POLICY {
            return Err(ApiError::policy_length_exceeded(format!(
                "The final policy size ({size}) is bigger than the limit ({MOST_POLICY})."
            )));
        }
        Ok(())
    }

    /// Takes a statement out.
    ///
    /// # Errors
    /// ResourceNotFoundException.
    pub(crate) fn remove(&mut self, sid: &str) -> Result<Statement, ApiError> {
        match self.statements.iter().position(|statement| statement.sid == sid) {
            Some(index) => Ok(self.statements.remove(index)),
            None => Err(ApiError::resource_not_found(format!("Statement {sid} is not found in resource policy."))),
        }
    }
}

/// Operators and keys of conditions in the order in which the service was recorded showing them; others come last.
const ORDER: [&str; 6] = [
    "StringEquals",
    "ArnLike",
    "lambda:FunctionUrlAuthType",
    "lambda:EventSourceToken",
    "aws:PrincipalOrgID",
    "AWS:SourceAccount",
];

fn in_order<S: Serializer>(
    condition: &BTreeMap<String, BTreeMap<String, String>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(ordered(condition).map(|(operator, keys)| (operator, Keys(keys))))
}

fn ordered<T>(map: &BTreeMap<String, T>) -> impl Iterator<Item = (&String, &T)> {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(name, _)| ORDER.iter().position(|known| known == name).unwrap_or(ORDER.len()));
    entries.into_iter()
}

struct Keys<'a>(&'a BTreeMap<String, String>);

impl Serialize for Keys<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(ordered(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_shown_as_one_document() {
        let statement = Statement {
            sid: "s".to_owned(),
            effect: "Allow".to_owned(),
            principal: serde_json::json!({"Service": "s3.amazonaws.com"}),
            action: "lambda:InvokeFunction".to_owned(),
            resource: "arn:aws:lambda:us-east-1:000000000000:function:f".to_owned(),
            condition: BTreeMap::new(),
        };
        let policy = Policy { revision_id: "r".to_owned(), statements: vec![statement] };
        assert_eq!(
            policy.document(),
            r#"{"Version":"2012-10-17","Id":"default","Statement":[{"Sid":"s","Effect":"Allow","Principal":{"Service":"s3.amazonaws.com"},"Action":"lambda:InvokeFunction","Resource":"arn:aws:lambda:us-east-1:000000000000:function:f"}]}"#
        );
        assert!(policy.statement("s").is_some() && policy.statement("t").is_none());
    }
}
