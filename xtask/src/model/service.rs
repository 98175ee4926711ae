//! The parts of botocore's `service-2.json` that the generator reads, and which shapes each direction reaches.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use serde::Deserialize;

#[derive(Deserialize)]
pub struct Service {
    pub operations: BTreeMap<String, Operation>,
    pub shapes: BTreeMap<String, Shape>,
    /// Structure members in the order of the file, which a map would lose.
    #[serde(skip)]
    pub order: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
pub struct Operation {
    pub http: Http,
    pub input: Option<Reference>,
    pub output: Option<Reference>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Http {
    pub method: String,
    pub request_uri: String,
    pub response_code: u16,
}

#[derive(Deserialize)]
pub struct Reference {
    pub shape: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    pub shape: String,
    pub location: Option<String>,
    pub location_name: Option<String>,
}

#[derive(Deserialize)]
pub struct Shape {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub members: BTreeMap<String, Member>,
    #[serde(default)]
    pub required: Vec<String>,
    pub payload: Option<String>,
    pub member: Option<Reference>,
    pub key: Option<Reference>,
    pub value: Option<Reference>,
    pub min: Option<f64>,
    pub max: Option<f64>,
    pub pattern: Option<String>,
    #[serde(default, rename = "enum")]
    pub values: Vec<String>,
    #[serde(default)]
    pub sensitive: bool,
    #[serde(default)]
    pub exception: bool,
    #[serde(default)]
    pub fault: bool,
    pub error: Option<ErrorTrait>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErrorTrait {
    pub http_status_code: u16,
}

impl Service {
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let mut service: Self = serde_json::from_slice(bytes).context("the file is no botocore service description")?;
        service.order = member_order(bytes)?;
        Ok(service)
    }

    /// Every shape that the inputs (or the outputs) of the operations reach.
    pub fn reached(&self, inputs: bool) -> BTreeSet<&str> {
        let mut seen = BTreeSet::new();
        for operation in self.operations.values() {
            let root = if inputs { &operation.input } else { &operation.output };
            if let Some(root) = root {
                self.reach(&root.shape, &mut seen);
            }
        }
        seen
    }

    fn reach<'a>(&'a self, name: &'a str, seen: &mut BTreeSet<&'a str>) {
        let Some(shape) = self.shapes.get(name) else { return };
        if !seen.insert(name) {
            return;
        }
        for member in shape.members.values() {
            self.reach(&member.shape, seen);
        }
        for reference in [&shape.member, &shape.key, &shape.value].into_iter().flatten() {
            self.reach(&reference.shape, seen);
        }
    }

    /// The members of a structure in the model's order.
    pub fn members<'a>(&'a self, name: &str) -> impl Iterator<Item = (&'a str, &'a Member)> {
        let shape = &self.shapes[name];
        self.order[name].iter().map(|member| (member.as_str(), &shape.members[member]))
    }
}

/// Reads only the key order of every `members` object: deserializing into a list of pairs keeps it.
fn member_order(bytes: &[u8]) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    #[derive(Deserialize)]
    struct File {
        shapes: BTreeMap<String, Ordered>,
    }
    #[derive(Deserialize)]
    struct Ordered {
        #[serde(default)]
        members: Keys,
    }
    #[derive(Default)]
    struct Keys(Vec<String>);
    impl<'de> Deserialize<'de> for Keys {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Keys;
                fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    formatter.write_str("an object")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                    let mut keys = Vec::new();
                    while let Some((key, _)) = map.next_entry::<String, serde::de::IgnoredAny>()? {
                        keys.push(key);
                    }
                    Ok(Keys(keys))
                }
            }
            deserializer.deserialize_map(Visitor)
        }
    }
    let file: File = serde_json::from_slice(bytes)?;
    Ok(file.shapes.into_iter().map(|(name, shape)| (name, shape.members.0)).collect())
}
