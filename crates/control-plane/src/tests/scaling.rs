//! How many environments a version on a capacity provider has.

use super::*;
use crate::LiveConcurrency;
use crate::record::VersionId;

const PROVIDER: &str = "arn:aws:lambda:us-east-1:123456789012:capacity-provider:firelet";

fn put(qualifier: &str, config: Value) -> types::PutFunctionScalingConfigRequest {
    let request = json!({"FunctionName": "f", "Qualifier": qualifier, "FunctionScalingConfig": config});
    serde_json::from_value(request).unwrap()
}

fn bounds(least: u32, most: u32) -> Value {
    json!({"MinExecutionEnvironments": least, "MaxExecutionEnvironments": most})
}

/// A function on the capacity provider with two versions.
async fn with_versions() -> World {
    let world = World::new().await;
    let capacity = json!({"LambdaManagedInstancesCapacityProviderConfig": {"CapacityProviderArn": PROVIDER}});
    let create = create_with("f", json!({"CapacityProviderConfig": capacity, "Publish": true}));
    let created = world.plane.create_function(&create, NOW).await.unwrap();
    world.settle(&created, Ok(())).await;
    let update = world.configure(json!({"FunctionName": "f", "Timeout": 9})).await.unwrap();
    world.settle(&update, Ok(())).await;
    world.plane.publish_version(&publish_request("f")).await.unwrap();
    world
}

impl World {
    /// What is applied and what is requested, with so many environments.
    fn scaling(&self, qualifier: &str, allocated: u32) -> (Option<Value>, Option<Value>) {
        let request = json!({"FunctionName": "f", "Qualifier": qualifier});
        let request: types::GetFunctionScalingConfigRequest = serde_json::from_value(request).unwrap();
        let live = |_: &_| LiveConcurrency { allocated, available: allocated, failed: None };
        let shown = self.plane.get_function_scaling_config(&request, live).unwrap();
        let value = |config: Option<types::FunctionScalingConfig>| config.map(|it| serde_json::to_value(it).unwrap());
        (value(shown.applied_function_scaling_config), value(shown.requested_function_scaling_config))
    }

    fn kept(&self) -> Vec<(VersionId, u32, Option<u32>)> {
        let provisions = self.plane.provisions().into_iter();
        let most = |version: &_| self.plane.most_environments(version);
        provisions.map(|kept| (kept.version.id, kept.count, most(&kept.version))).collect()
    }
}

#[tokio::test]
async fn a_setting_is_applied_when_the_environments_are_there_and_outlives_a_restart() {
    let mut world = with_versions().await;
    assert_eq!(world.scaling("1", 0), (None, None));
    let before = world.configuration("f", Some("1")).unwrap();
    let (answer, version) = world.plane.put_function_scaling_config(&put("1", bounds(2, 5))).await.unwrap();
    assert_eq!((answer.function_state.as_deref(), version.id), (Some("Active"), VersionId::Number(1)));
    assert_ne!(world.configuration("f", Some("1")).unwrap().revision_id, before.revision_id);
    world.restart().await;
    let so_far = json!({"MaxExecutionEnvironments": 5});
    assert_eq!(world.scaling("1", 1), (Some(so_far), Some(bounds(2, 5))));
    assert_eq!(world.scaling("1", 2), (Some(bounds(2, 5)), None));
    assert_eq!(world.scaling("2", 2), (None, None));
    assert_eq!(world.kept(), [(VersionId::Number(1), 2, Some(5))]);
    // One without a lower bound is to be carried out after a restart, too.
    world.plane.put_function_scaling_config(&put("2", bounds(0, 1))).await.unwrap();
    assert_eq!(world.kept(), [(VersionId::Number(1), 2, Some(5)), (VersionId::Number(2), 0, Some(1))]);
    world.plane.put_function_scaling_config(&put("1", json!({}))).await.unwrap();
    assert_eq!(world.scaling("1", 0), (None, None));
    assert_eq!(world.kept(), [(VersionId::Number(2), 0, Some(1))]);
    // It goes with its version.
    let delete = types::DeleteFunctionRequest { function_name: Some("f".to_owned()), qualifier: Some("2".to_owned()) };
    world.plane.delete_function(&delete).await.unwrap();
    assert_eq!(world.kept(), []);
}

#[tokio::test]
async fn without_environments_a_version_is_deactivated() {
    let world = with_versions().await;
    let (answer, _) = world.plane.put_function_scaling_config(&put("1", bounds(0, 0))).await.unwrap();
    assert_eq!(answer.function_state.as_deref(), Some("Deactivated"));
    let state = |qualifier| world.configuration("f", Some(qualifier)).unwrap().state;
    assert_eq!((state("1").as_deref(), state("2").as_deref()), (Some("Deactivated"), Some("Active")));
    let request = types::ListFunctionVersionsByCapacityProviderRequest {
        capacity_provider_name: Some("firelet".to_owned()),
        ..Default::default()
    };
    let listed = world.plane.list_function_versions_by_capacity_provider(&request).unwrap();
    let states: Vec<_> = listed.function_versions.unwrap().into_iter().map(|item| item.state.unwrap()).collect();
    assert_eq!(states, ["Active", "Deactivated", "Active"]);
    let (answer, _) = world.plane.put_function_scaling_config(&put("1", bounds(0, 1))).await.unwrap();
    assert_eq!(answer.function_state.as_deref(), Some("Active"));
    assert_eq!(state("1").as_deref(), Some("Active"));
}

#[tokio::test]
async fn refusals_have_their_texts() {
    let world = with_versions().await;
    let refused = async |request| {
        let error = world.plane.put_function_scaling_config(&request).await.unwrap_err();
        (error.name, error.message)
    };
    let invalid = |text: &str| ("InvalidParameterValueException", text.to_owned());
    let absent = |qualifier: &str| {
        let arn = format!("arn:aws:lambda:us-east-1:123456789012:function:f:{qualifier}");
        ("ResourceNotFoundException", format!("Function not found: {arn}"))
    };
    assert_eq!(refused(put("9", bounds(1, 2))).await, absent("9"));
    assert_eq!(refused(put("$LATEST.PUBLISHED", bounds(1, 2))).await, absent("$LATEST.PUBLISHED"));
    let text = "MinExecutionEnvironments (3) must not be greater than MaxExecutionEnvironments (2).";
    assert_eq!(refused(put("1", bounds(3, 2))).await, invalid(text));
    let text = "MinExecutionEnvironments and MaxExecutionEnvironments must be given together.";
    assert_eq!(refused(put("1", json!({"MinExecutionEnvironments": 1}))).await, invalid(text));

    // The other way to have environments kept goes beside it in neither order.
    let provision = |qualifier: &str| types::PutProvisionedConcurrencyConfigRequest {
        function_name: Some("f".to_owned()),
        qualifier: Some(qualifier.to_owned()),
        provisioned_concurrent_executions: Some(1),
    };
    world.plane.put_provisioned_concurrency_config(&provision("1"), NOW).await.unwrap();
    let text = "FunctionScalingConfig is not supported for function versions with Provisioned Concurrency.";
    assert_eq!(refused(put("1", bounds(1, 2))).await, ("ResourceConflictException", text.to_owned()));
    world.plane.put_function_scaling_config(&put("2", bounds(1, 2))).await.unwrap();
    let error = world.plane.put_provisioned_concurrency_config(&provision("2"), NOW).await.unwrap_err();
    let text = "Provisioned Concurrency is not supported for function versions with a FunctionScalingConfig.";
    assert_eq!(said(&error), ("InvalidParameterValueException", text));

    let plain = World::new().await;
    plain.active("f").await;
    plain.plane.publish_version(&publish_request("f")).await.unwrap();
    let error = plain.plane.put_function_scaling_config(&put("1", bounds(1, 2))).await.unwrap_err();
    let text = "FunctionScalingConfig is supported for functions with a capacity provider only. Set \
                CapacityProviderConfig and publish a version.";
    assert_eq!(said(&error), ("InvalidParameterValueException", text));
}
