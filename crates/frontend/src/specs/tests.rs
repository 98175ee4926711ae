//! Which environments may serve which content.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use control_plane::record::{State, Timestamp};
use serde_json::json;
use worker::{CodeRef, LogSettings};

use super::*;

/// Knows every package and puts only into the specification what these tests look at.
struct Plain;

impl Build for Plain {
    fn build(&self, version: &FunctionVersion, key: VersionKey) -> Result<EnvironmentSpec, NoPackage> {
        Ok(EnvironmentSpec {
            key,
            function_name: version.function.clone(),
            version: version.id.to_string(),
            function_arn: version.arn.clone(),
            account_id: String::new(),
            region: String::new(),
            role: String::new(),
            runtime: String::new(),
            runtime_version_arn: None,
            handler: String::new(),
            code: CodeRef { digest: version.code.digest.to_string(), path: PathBuf::new() },
            layers: Vec::new(),
            environment: BTreeMap::new(),
            memory_mb: 128,
            timeout: Duration::from_secs(u64::from(version.settings.timeout_secs)),
            tmp_mb: 512,
            max_concurrency: 1,
            logging: LogSettings {
                group: String::new(),
                custom_group: false,
                format: worker::LogFormat::Text,
                application_level: None,
                system_level: None,
            },
            snap_start: snapshot_name(version),
        })
    }
}

/// `$LATEST` of function `f` as it is after so many changes; `modified` is a time.
fn version(content: u64, modified: i64) -> FunctionVersion {
    let record = json!({
        "function": "f",
        "id": "Latest",
        "arn": "arn:aws:lambda:us-east-1:000000000000:function:f",
        "settings": {
            "runtime": "provided.al2023", "handler": "h", "role": "r", "description": "", "timeout_secs": content,
            "memory_mib": 128, "ephemeral_mib": 512, "environment": null, "architecture": "X86_64",
            "tracing_active": false, "logging": {"group": "g", "format": "Text"}, "vpc": null, "dead_letter_arn": null,
            "kms_key_arn": null, "snap_start": false,
        },
        "code": {"digest": "00".repeat(32), "size": 1, "unzipped_size": 1},
        "revision_id": "1",
        "content": content,
        "last_modified": modified,
        "state": "Pending",
        "update": "None",
    });
    serde_json::from_value(record).unwrap()
}

fn key(specs: &Specs<Plain>, version: &Arc<FunctionVersion>) -> VersionKey {
    specs.get(version).unwrap().spec.key.clone()
}

#[test]
fn a_change_of_state_keeps_the_environments() {
    let specs = Specs::new(Plain);
    let pending = Arc::new(version(1, 10));
    let first = key(&specs, &pending);
    let active = Arc::new(FunctionVersion {
        state: State::Active,
        revision_id: "2".to_owned(),
        last_modified: Timestamp(11),
        ..version(1, 10)
    });
    let found = specs.get(&active).unwrap();
    assert_eq!((&found.spec.key, found.superseded), (&first, None));
    assert_eq!(key(&specs, &active), first);
}

#[test]
fn a_change_of_content_supersedes_them() {
    let specs = Specs::new(Plain);
    let old = Arc::new(version(1, 10));
    let first = key(&specs, &old);
    let found = specs.get(&Arc::new(version(2, 20))).unwrap();
    assert_ne!(found.spec.key, first);
    assert_eq!(found.superseded, Some(first));
    assert_eq!(found.spec.timeout, Duration::from_secs(2));
}

#[test]
fn an_invocation_that_comes_too_late_does_not_bring_the_old_content_back() {
    let specs = Specs::new(Plain);
    let (old, new) = (Arc::new(version(1, 10)), Arc::new(version(2, 20)));
    key(&specs, &old);
    let current = key(&specs, &new);
    let late = specs.get(&old).unwrap();
    assert_eq!((late.spec.timeout, late.superseded), (Duration::from_secs(1), None));
    assert_ne!(late.spec.key, current);
    assert_eq!(key(&specs, &new), current);
}

#[test]
fn a_function_made_again_starts_anew() {
    let specs = Specs::new(Plain);
    let old = key(&specs, &Arc::new(version(5, 10)));
    assert_eq!(specs.forget("f", None), std::slice::from_ref(&old));
    assert!(specs.forget("f", None).is_empty());
    // Even if an invocation of the deleted function put its content back meanwhile.
    let ghost = key(&specs, &Arc::new(version(5, 10)));
    let again = Arc::new(version(1, 30));
    let found = specs.get(&again).unwrap();
    assert!(found.spec.key != old && found.spec.key != ghost);
    assert_eq!(found.superseded, Some(ghost));
    assert_eq!(key(&specs, &again), found.spec.key, "it is kept");
}

#[test]
fn versions_are_forgotten_one_by_one() {
    let specs = Specs::new(Plain);
    let latest = Arc::new(version(1, 10));
    let published = Arc::new(FunctionVersion { id: VersionId::Number(1), ..version(1, 10) });
    let (latest_key, published_key) = (key(&specs, &latest), key(&specs, &published));
    assert_ne!(latest_key, published_key);
    assert_eq!(specs.forget("f", Some(VersionId::Number(1))), [published_key]);
    assert_eq!(specs.peek("f", VersionId::Latest).map(|spec| spec.key.clone()), Some(latest_key));
    assert!(specs.peek("f", VersionId::Number(1)).is_none());
}

#[test]
fn a_draft_serves_nothing() {
    let specs = Specs::new(Plain);
    let draft = specs.draft(&version(1, 10)).unwrap();
    assert!(specs.peek("f", VersionId::Latest).is_none());
    assert_ne!(key(&specs, &Arc::new(version(1, 10))), draft.key);
}
