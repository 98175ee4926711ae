//! What the model says of an operation as a whole.

use crate::generated::operations::{OPERATIONS, Operation};
use crate::shape::Shape;

pub(crate) struct OperationInfo {
    #[cfg_attr(not(test), allow(dead_code, reason = "the tests check that the table is in the order of the enum"))]
    pub operation: Operation,
    pub name: &'static str,
    pub method: &'static str,
    pub uri: &'static str,
    pub segments: &'static [Segment],
    /// A key and value that the query must have for this operation: two pairs share method and path.
    pub query: Option<(&'static str, &'static str)>,
    pub success: u16,
    pub input: &'static Shape,
}

/// A part of a path between slashes.
pub(crate) enum Segment {
    Literal(&'static str),
    Label(&'static str),
}

impl Operation {
    pub(crate) fn info(self) -> &'static OperationInfo {
        &OPERATIONS[self as usize]
    }

    /// The name in the model, as IAM actions and client methods spell it.
    pub fn name(self) -> &'static str {
        self.info().name
    }

    /// The HTTP status of a success, unless the answer chooses its own (Invoke, DeleteFunction).
    pub fn success_status(self) -> u16 {
        self.info().success
    }

    /// The HTTP method, in capitals.
    pub fn method(self) -> &'static str {
        self.info().method
    }

    /// The URI template with its `{Labels}` and its distinguishing query, if any.
    pub fn uri(self) -> &'static str {
        self.info().uri
    }

    /// The operation of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        OPERATIONS.binary_search_by(|info| info.name.cmp(name)).ok().map(|index| Self::ALL[index])
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_the_order_of_the_enum() {
        assert_eq!(Operation::ALL.len(), 85);
        for operation in Operation::ALL {
            assert_eq!(operation.info().operation, *operation);
            assert_eq!(Operation::from_name(operation.name()), Some(*operation));
        }
        assert_eq!(Operation::from_name("Nonsense"), None);
    }
}
