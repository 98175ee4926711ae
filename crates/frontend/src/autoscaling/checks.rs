//! What the service's model asks of an input before its rules are asked, in the words of AWS's front layer: every violation
//! of one request in one message.

use control_plane::autoscaling::ScalingError;
use control_plane::autoscaling::record::Resource;

use super::shapes::Place;
use super::{DIMENSION, NAMESPACE};

/// Longest name of a resource, an action or a policy in a request that only looks for it, in characters.
const LONGEST_ID: usize = 1_600;

/// Longest name of an action or a policy that is made, in characters.
const LONGEST_NAME: usize = 256;

/// The namespaces of the service's model.
const NAMESPACES: [&str; 15] = [
    "ecs",
    "elasticmapreduce",
    "ec2",
    "appstream",
    "dynamodb",
    "rds",
    "sagemaker",
    "custom-resource",
    "comprehend",
    "lambda",
    "cassandra",
    "kafka",
    "elasticache",
    "neptune",
    "workspaces",
];

/// Collects violations.
#[derive(Default)]
pub(super) struct Checks {
    violations: Vec<String>,
}

impl Checks {
    fn fails(&mut self, value: &str, member: &str, constraint: &str) {
        let value = if value == "null" { value.to_owned() } else { format!("'{value}'") };
        self.violations
            .push(format!("Value {value} at '{member}' failed to satisfy constraint: Member must {constraint}"));
    }

    /// The member has to be there, with 1 to [`LONGEST_ID`] characters.
    pub(super) fn id(&mut self, value: Option<&str>, member: &str) {
        match value {
            None => self.fails("null", member, "not be null"),
            Some(value) => self.length(value, member, LONGEST_ID),
        }
    }

    fn length(&mut self, value: &str, member: &str, most: usize) {
        if value.is_empty() {
            self.fails(value, member, "have length greater than or equal to 1");
        } else if value.chars().count() > most {
            self.fails(value, member, &format!("have length less than or equal to {most}"));
        }
    }

    /// The name of a scheduled action that is made or changed.
    pub(super) fn action_name(&mut self, value: Option<&str>) {
        let member = "scheduledActionName";
        let Some(value) = value else { return self.fails("null", member, "not be null") };
        self.length(value, member, LONGEST_NAME);
        let refused = |character: char| character.is_control() || ":/|".contains(character);
        if value.starts_with(' ') || value.ends_with(' ') || value.contains(refused) {
            self.fails(value, member, "satisfy regular expression pattern: (?!((^[ ]+.*)|(.*([\\u0000-\\u001f]|[\\u007f-\\u009f]|[:/|])+.*)|(.*[ ]+$))).+");
        }
    }

    /// The name of a policy that is made or changed.
    pub(super) fn policy_name(&mut self, value: Option<&str>) {
        let member = "policyName";
        let Some(value) = value else { return self.fails("null", member, "not be null") };
        self.length(value, member, LONGEST_NAME);
        if value.contains(char::is_control) {
            self.fails(value, member, "satisfy regular expression pattern: \\p{Print}+");
        }
    }

    /// A capacity, or a number of seconds.
    pub(super) fn count(&mut self, value: Option<i64>, member: &str) -> Option<u32> {
        let value = value?;
        let count = u32::try_from(value).ok().filter(|count| i32::try_from(*count).is_ok());
        if count.is_none() {
            let bound = if value < 0 { "greater than or equal to 0" } else { "less than or equal to 2147483647" };
            self.fails(&value.to_string(), member, &format!("have value {bound}"));
        }
        count
    }

    /// One of some words.
    pub(super) fn word(&mut self, value: Option<&str>, member: &str, words: &[&str]) {
        match value {
            None => self.fails("null", member, "not be null"),
            Some(value) if !words.contains(&value) => {
                self.fails(value, member, &format!("satisfy enum value set: [{}]", words.join(", ")));
            }
            Some(_) => {}
        }
    }

    /// Something that has to be there.
    pub(super) fn needed(&mut self, there: bool, member: &str) {
        if !there {
            self.fails("null", member, "not be null");
        }
    }

    pub(super) fn page(&mut self, size: Option<i32>) {
        match size {
            Some(size) if size < 1 => {
                self.fails(&size.to_string(), "maxResults", "have value greater than or equal to 1")
            }
            Some(size) if size > 50 => {
                self.fails(&size.to_string(), "maxResults", "have value less than or equal to 50")
            }
            _ => {}
        }
    }

    /// The namespace, which every request has.
    pub(super) fn namespace(&mut self, place: &Place) {
        self.word(place.service_namespace.as_deref(), "serviceNamespace", &NAMESPACES);
    }

    /// All that names a target.
    pub(super) fn place(&mut self, place: &Place) {
        self.namespace(place);
        self.id(place.resource_id.as_deref(), "resourceId");
        self.needed(place.scalable_dimension.is_some(), "scalableDimension");
    }

    /// The end: nothing, or everything that was found.
    pub(super) fn end(self) -> Result<(), ScalingError> {
        let count = self.violations.len();
        if count == 0 {
            return Ok(());
        }
        let plural = if count == 1 { "" } else { "s" };
        let all = self.violations.join("; ");
        Err(ScalingError::Validation(format!("{count} validation error{plural} detected: {all}")))
    }
}

/// The resource of a checked place. Only functions' provisioned concurrency scales here.
pub(super) fn resource(place: &Place) -> Result<Resource, ScalingError> {
    let ours = place.service_namespace.as_deref() == Some(NAMESPACE)
        && place.scalable_dimension.as_deref().is_none_or(|dimension| dimension == DIMENSION);
    let resource = place.resource_id.as_deref().and_then(Resource::parse);
    resource.filter(|_| ours).ok_or_else(|| {
        ScalingError::Validation("Unsupported service namespace, resource type or scalable dimension".to_owned())
    })
}

/// The resource that a list is about; `None` is all of them. An outer `None`: nothing here can be meant.
pub(super) fn listed(place: &Place) -> Result<Option<Option<Resource>>, ScalingError> {
    if place.service_namespace.as_deref() != Some(NAMESPACE) {
        return Ok(None);
    }
    if place.resource_id.is_none() {
        if place.scalable_dimension.is_some() {
            return Err(ScalingError::Validation(
                "If you specify a scalable dimension, you must also specify a resource ID".to_owned(),
            ));
        }
        return Ok(Some(None));
    }
    resource(place).map(|resource| Some(Some(resource)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(namespace: &str, resource: Option<&str>, dimension: Option<&str>) -> Place {
        Place {
            service_namespace: Some(namespace.to_owned()),
            resource_id: resource.map(str::to_owned),
            scalable_dimension: dimension.map(str::to_owned),
        }
    }

    #[test]
    fn every_violation_is_in_one_message() {
        let mut checks = Checks::default();
        checks.place(&place("lamda", None, Some(DIMENSION)));
        assert_eq!(checks.count(Some(-1), "minCapacity"), None);
        assert_eq!(checks.count(Some(7), "maxCapacity"), Some(7));
        let text = checks.end().unwrap_err().to_string();
        assert!(text.starts_with("3 validation errors detected: Value 'lamda' at 'serviceNamespace' failed to satisfy constraint: Member must satisfy enum value set: [ecs, "), "{text}");
        assert!(
            text.contains("; Value null at 'resourceId' failed to satisfy constraint: Member must not be null; "),
            "{text}"
        );
        assert!(text.ends_with("Value '-1' at 'minCapacity' failed to satisfy constraint: Member must have value greater than or equal to 0"), "{text}");
        assert_eq!(Checks::default().end(), Ok(()));
    }

    #[test]
    fn names_of_actions_have_no_colons_and_no_blanks_around() {
        for (name, good) in
            [("scale up", true), ("a:b", false), (" a", false), ("a ", false), ("", false), ("a\nb", false)]
        {
            let mut checks = Checks::default();
            checks.action_name(Some(name));
            assert_eq!(checks.end().is_ok(), good, "{name:?}");
        }
    }

    #[test]
    fn only_provisioned_concurrency_scales() {
        let f = Some("function:f:1");
        assert!(resource(&place("lambda", f, Some(DIMENSION))).is_ok());
        for (namespace, id, dimension) in [
            ("dynamodb", Some("table/t"), "dynamodb:table:ReadCapacityUnits"),
            ("lambda", f, "dynamodb:table:ReadCapacityUnits"),
            ("lambda", Some("function:f:$LATEST"), DIMENSION),
        ] {
            let error = resource(&place(namespace, id, Some(dimension))).unwrap_err();
            assert_eq!(error.to_string(), "Unsupported service namespace, resource type or scalable dimension");
        }
        assert_eq!(listed(&place("ecs", None, None)), Ok(None));
        assert_eq!(listed(&place("lambda", None, None)), Ok(Some(None)));
        assert!(listed(&place("lambda", None, Some(DIMENSION))).is_err());
    }
}
