//! The AWS query protocol, which IAM and STS speak: form fields in, XML out.

mod xml;

use std::collections::HashMap;

use hyper::StatusCode;
use hyper::header::HeaderValue;

use crate::reply::{Reply, reply};
pub(crate) use xml::Xml;

const XML: HeaderValue = HeaderValue::from_static("text/xml");

/// The fields of a request, by their names.
#[derive(Debug, Default)]
pub(crate) struct Form {
    fields: HashMap<String, String>,
}

impl Form {
    /// Reads a body of type `application/x-www-form-urlencoded`. Of a field given twice, the last one counts.
    pub(crate) fn parse(body: &str) -> Self {
        let fields = aws_model::query_pairs(body).map(|(key, value)| (key.into_owned(), value.into_owned())).collect();
        Self { fields }
    }

    /// A field, if it is there; an empty one is.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    /// The structures of a list (`Tags.member.1.Key`), in order: for each the fields named, absent ones as `None`.
    /// The list ends where a number has none of them.
    pub(crate) fn members<const N: usize>(&self, list: &str, names: [&str; N]) -> Vec<[Option<&str>; N]> {
        (1..)
            .map(|number| names.map(|name| self.get(&format!("{list}.member.{number}.{name}"))))
            .take_while(|member| member.iter().any(Option::is_some))
            .collect()
    }

    /// The strings of a list (`TagKeys.member.1`), in order.
    pub(crate) fn strings(&self, list: &str) -> Vec<&str> {
        (1..).map_while(|number| self.get(&format!("{list}.member.{number}"))).collect()
    }
}

/// A service that speaks the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Service {
    /// Namespace of its answers.
    pub(crate) namespace: &'static str,
}

/// Identity and Access Management.
pub(crate) const IAM: Service = Service { namespace: "https://iam.amazonaws.com/doc/2010-05-08/" };

/// Security Token Service.
pub(crate) const STS: Service = Service { namespace: "https://sts.amazonaws.com/doc/2011-06-15/" };

/// An error of the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QueryError {
    /// HTTP status; from 500 on the service is at fault.
    pub(crate) status: u16,
    /// What clients switch on.
    pub(crate) code: &'static str,
    /// What people read.
    pub(crate) message: String,
}

impl QueryError {
    pub(crate) fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    /// The service has no such operation.
    pub(crate) fn invalid_action(action: &str, version: &str) -> Self {
        Self::new(400, "InvalidAction", format!("Could not find operation {action} for version {version}"))
    }

    /// A field that has to be there is not.
    pub(crate) fn missing(field: &str) -> Self {
        let mut path = field.to_owned();
        if let Some(first) = path.get_mut(..1) {
            first.make_ascii_lowercase();
        }
        let message = format!(
            "1 validation error detected: Value null at '{path}' failed to satisfy constraint: Member must not be null"
        );
        Self::new(400, "ValidationError", message)
    }

    /// The error as an answer.
    pub(crate) fn reply(&self, service: Service, request_id: &str) -> Reply {
        let mut xml = Xml::new();
        xml.open_with_namespace("ErrorResponse", service.namespace);
        xml.open("Error");
        xml.text("Type", if self.status < 500 { "Sender" } else { "Receiver" });
        xml.text("Code", self.code);
        xml.text("Message", &self.message);
        xml.close();
        xml.text("RequestId", request_id);
        xml.close();
        reply(StatusCode::from_u16(self.status).unwrap_or(StatusCode::BAD_REQUEST), XML, xml.finish())
    }
}

/// A successful answer. `result` writes what stands within `<ActionResult>`; `None` where the operation returns nothing.
pub(crate) fn success(
    service: Service,
    action: &str,
    request_id: &str,
    result: Option<impl FnOnce(&mut Xml)>,
) -> Reply {
    let mut xml = Xml::new();
    xml.open_with_namespace(&format!("{action}Response"), service.namespace);
    if let Some(write) = result {
        xml.open(&format!("{action}Result"));
        write(&mut xml);
        xml.close();
    }
    xml.open("ResponseMetadata");
    xml.text("RequestId", request_id);
    xml.close();
    xml.close();
    reply(StatusCode::OK, XML, xml.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read_with_their_lists() {
        let form = Form::parse(
            "Action=TagRole&RoleName=a%2Fb+c&Tags.member.1.Key=k1&Tags.member.1.Value=&Tags.member.2.Key=k%202\
             &Tags.member.4.Key=lost&TagKeys.member.1=x&TagKeys.member.2=y",
        );
        assert_eq!(form.get("RoleName"), Some("a/b c"));
        assert_eq!(form.get("Absent"), None);
        assert_eq!(form.members("Tags", ["Key", "Value"]), [[Some("k1"), Some("")], [Some("k 2"), None]]);
        assert_eq!(form.strings("TagKeys"), ["x", "y"]);
    }

    #[test]
    fn a_missing_field_is_named_as_the_service_does() {
        let error = QueryError::missing("RoleName");
        assert_eq!(
            error.message,
            "1 validation error detected: Value null at 'roleName' failed to satisfy constraint: Member must not be null"
        );
    }

    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_fields_survive_the_form(fields in proptest::collection::btree_map("\\PC{1,8}", "\\PC{0,16}", 0..6)) {
            let encode = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
            let pairs: Vec<String> = fields.iter().map(|(key, value)| format!("{}={}", encode(key), encode(value))).collect();
            let form = Form::parse(&pairs.join("&"));
            for (key, value) in &fields {
                prop_assert_eq!(form.get(key), Some(value.as_str()));
            }
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(body in "\\PC{0,64}") {
            let form = Form::parse(&body);
            form.members("Tags", ["Key", "Value"]);
            form.strings("TagKeys");
        }
    }
}
