//! Provisioned concurrency.

use super::aliases::{alias, change, with_versions};
use super::*;
use crate::record::VersionId;
use crate::{LiveConcurrency, Provision, ProvisionFailure};

fn put(qualifier: &str, count: i32) -> types::PutProvisionedConcurrencyConfigRequest {
    types::PutProvisionedConcurrencyConfigRequest {
        function_name: Some("f".to_owned()),
        qualifier: Some(qualifier.to_owned()),
        provisioned_concurrent_executions: Some(count),
    }
}

fn get(qualifier: &str) -> types::GetProvisionedConcurrencyConfigRequest {
    let (function_name, qualifier) = (Some("f".to_owned()), Some(qualifier.to_owned()));
    types::GetProvisionedConcurrencyConfigRequest { function_name, qualifier }
}

fn delete(qualifier: &str) -> types::DeleteProvisionedConcurrencyConfigRequest {
    let (function_name, qualifier) = (Some("f".to_owned()), Some(qualifier.to_owned()));
    types::DeleteProvisionedConcurrencyConfigRequest { function_name, qualifier }
}

/// Versions and how many environments they shall have.
fn counts(provisions: &[Provision]) -> Vec<(u64, u32)> {
    let number = |id: VersionId| if let VersionId::Number(number) = id { number } else { 0 };
    provisions.iter().map(|provision| (number(provision.version.id), provision.count)).collect()
}

async fn with_version() -> World {
    let world = World::new().await;
    world.active("f").await;
    world.plane.publish_version(&publish_request("f")).await.unwrap();
    world
}

#[tokio::test]
async fn a_setting_becomes_ready_as_environments_do() {
    let mut world = with_version().await;
    let (answer, provisions) = world.plane.put_provisioned_concurrency_config(&put("1", 5), NOW).await.unwrap();
    assert_eq!(answer.status.as_deref(), Some("IN_PROGRESS"));
    assert_eq!(answer.requested_provisioned_concurrent_executions, Some(5));
    assert_eq!(answer.allocated_provisioned_concurrent_executions, Some(0));
    assert_eq!(counts(&provisions), [(1, 5)]);
    assert_eq!(answer.last_modified.as_deref(), Some("2026-01-02T03:04:05+0000"));
    world.restart().await;
    assert_eq!(world.plane.provisions()[0].count, 5);
    let status = |allocated, available, failed| {
        let live = LiveConcurrency { allocated, available, failed };
        let shown = world.plane.get_provisioned_concurrency_config(&get("1"), |_| live).unwrap();
        (shown.status.unwrap(), shown.status_reason)
    };
    assert_eq!(status(3, 3, None), ("IN_PROGRESS".to_owned(), None));
    assert_eq!(status(5, 2, None), ("READY".to_owned(), None));
    for (failure, reason) in [
        (ProvisionFailure::Initialization, "FUNCTION_ERROR_INIT_FAILURE"),
        (ProvisionFailure::Capacity, "INSUFFICIENT_CAPACITY"),
    ] {
        assert_eq!(status(1, 0, Some(failure)), ("FAILED".to_owned(), Some(reason.to_owned())));
    }

    let list =
        types::ListProvisionedConcurrencyConfigsRequest { function_name: Some("f".to_owned()), ..Default::default() };
    let listed = world.plane.list_provisioned_concurrency_configs(&list, |_| LiveConcurrency::default()).unwrap();
    let listed = listed.provisioned_concurrency_configs.unwrap();
    assert_eq!(listed[0].function_arn.as_deref(), Some("arn:aws:lambda:us-east-1:123456789012:function:f:1"));

    assert_eq!(world.plane.delete_provisioned_concurrency_config(&delete("1")).await.unwrap()[0].count, 0);
    world.plane.delete_provisioned_concurrency_config(&delete("1")).await.unwrap();
    let error = world.plane.get_provisioned_concurrency_config(&get("1"), |_| LiveConcurrency::default()).unwrap_err();
    let expected = "No Provisioned Concurrency Config found for this function";
    assert_eq!(said(&error), ("ProvisionedConcurrencyConfigNotFoundException", expected));
}

#[tokio::test]
async fn refusals_have_their_texts() {
    let world = with_version().await;
    let refused = async |request| {
        let error = world.plane.put_provisioned_concurrency_config(&request, NOW).await.unwrap_err();
        (error.name, error.message)
    };
    let invalid = |text: &str| ("InvalidParameterValueException", text.to_owned());
    let absent = |text: &str| ("ResourceNotFoundException", text.to_owned());
    let arn = "arn:aws:lambda:us-east-1:123456789012:function:f";
    let unpublished = "Provisioned Concurrency Configs cannot be applied to unpublished function versions.";
    assert_eq!(refused(put("$LATEST", 1)).await, invalid(unpublished));
    assert_eq!(refused(put("live", 1)).await, absent(&format!("Cannot find alias arn: {arn}:live")));
    assert_eq!(refused(put("2", 1)).await, absent(&format!("Function not found: {arn}:2")));
    let too_much = "Specified ConcurrentExecutions for function decreases account's UnreservedConcurrentExecution \
                    below its minimum value of [100].";
    assert_eq!(refused(put("1", 901)).await, invalid(too_much));
    world.plane.put_provisioned_concurrency_config(&put("1", 900), NOW).await.unwrap();
    // Replacing one's own setting does not count it twice.
    world.plane.put_provisioned_concurrency_config(&put("1", 800), NOW).await.unwrap();
    let neither = "The function resource provided must be an alias or a published version.";
    let error = world.plane.get_provisioned_concurrency_config(&get("$LATEST"), |_| LiveConcurrency::default());
    assert_eq!(error.unwrap_err().message, neither);
    let error = world.plane.delete_provisioned_concurrency_config(&delete("$LATEST")).await;
    assert_eq!(error.unwrap_err().message, neither);
}

#[tokio::test]
async fn a_setting_goes_with_its_version() {
    let world = with_version().await;
    world.plane.put_provisioned_concurrency_config(&put("1", 5), NOW).await.unwrap();
    world.plane.delete_function(&delete_request("f", Some("1"))).await.unwrap();
    assert!(world.plane.provisions().is_empty());
}

#[tokio::test]
async fn environments_of_an_alias_are_its_versions_and_move_with_it() {
    let mut world = with_versions().await;
    world.plane.create_alias(&alias(json!({}))).await.unwrap();
    let (_, provisions) = world.plane.put_provisioned_concurrency_config(&put("live", 5), NOW).await.unwrap();
    assert_eq!(counts(&provisions), [(1, 5)]);
    let (_, provisions) = world.plane.update_alias(&change(json!({"FunctionVersion": "2"}))).await.unwrap();
    assert_eq!(counts(&provisions), [(1, 0), (2, 5)]);
    let weights = json!({"RoutingConfig": {"AdditionalVersionWeights": {"1": 0.3}}});
    let (_, provisions) = world.plane.update_alias(&change(weights)).await.unwrap();
    assert_eq!(counts(&provisions), [(1, 2), (2, 3)]);
    let (_, provisions) = world.plane.update_alias(&change(json!({"Description": "d"}))).await.unwrap();
    assert_eq!(counts(&provisions), []);
    world.restart().await;
    assert_eq!(counts(&world.plane.provisions()), [(1, 2), (2, 3)]);
    // What is there of both versions counts.
    let live = |version: &crate::record::FunctionVersion| {
        let allocated = if version.id == VersionId::Number(1) { 2 } else { 3 };
        LiveConcurrency { allocated, available: 1, failed: None }
    };
    let shown = world.plane.get_provisioned_concurrency_config(&get("live"), live).unwrap();
    assert_eq!(shown.status.as_deref(), Some("READY"));
    assert_eq!(shown.available_provisioned_concurrent_executions, Some(2));
    let request = types::DeleteAliasRequest { function_name: Some("f".to_owned()), name: Some("live".to_owned()) };
    assert_eq!(counts(&world.plane.delete_alias(&request).await.unwrap()), [(1, 0), (2, 0)]);
    assert!(world.plane.provisions().is_empty());
}

#[tokio::test]
async fn a_version_has_the_environments_of_one_setting() {
    let world = with_versions().await;
    world.plane.create_alias(&alias(json!({}))).await.unwrap();
    world.plane.create_alias(&alias(json!({"Name": "also"}))).await.unwrap();
    world.plane.create_alias(&alias(json!({"Name": "latest", "FunctionVersion": "$LATEST"}))).await.unwrap();
    let put = async |qualifier| world.plane.put_provisioned_concurrency_config(&put(qualifier, 1), NOW).await;
    let of_alias = "Alias can't be used for Provisioned Concurrency configuration on an already Provisioned version";
    let of_version = "Version is pointed by a Provisioned Concurrency alias";
    put("live").await.unwrap();
    assert_eq!(said(&put("1").await.unwrap_err()), ("ResourceConflictException", of_version));
    assert_eq!(said(&put("also").await.unwrap_err()), ("ResourceConflictException", of_alias));
    put("2").await.unwrap();
    let error = world.plane.update_alias(&change(json!({"FunctionVersion": "2"}))).await.unwrap_err();
    assert_eq!(said(&error), ("ResourceConflictException", of_alias));
    let unpublished = "Provisioned Concurrency Configs cannot be applied to unpublished function versions.";
    assert_eq!(put("latest").await.unwrap_err().message, unpublished);
    let error = world.plane.update_alias(&change(json!({"FunctionVersion": "$LATEST"}))).await.unwrap_err();
    assert_eq!(error.message, unpublished);
    world.plane.delete_provisioned_concurrency_config(&delete("live")).await.unwrap();
    put("also").await.unwrap();

    let list = types::ListProvisionedConcurrencyConfigsRequest {
        function_name: Some("f".to_owned()),
        max_items: Some(1),
        ..Default::default()
    };
    let arns = |marker: Option<String>| {
        let list = types::ListProvisionedConcurrencyConfigsRequest { marker, ..list.clone() };
        let page = world.plane.list_provisioned_concurrency_configs(&list, |_| LiveConcurrency::default()).unwrap();
        let arns = page.provisioned_concurrency_configs.unwrap().into_iter().filter_map(|config| config.function_arn);
        (arns.collect::<Vec<_>>().join(" "), page.next_marker)
    };
    let (first, marker) = arns(None);
    let (second, end) = arns(marker);
    let arn = "arn:aws:lambda:us-east-1:123456789012:function:f";
    assert_eq!((first, second, end), (format!("{arn}:2"), format!("{arn}:also"), None));
}
