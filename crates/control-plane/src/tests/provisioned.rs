//! Provisioned concurrency.

use super::*;
use crate::LiveConcurrency;

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

async fn with_version() -> World {
    let world = World::new().await;
    world.active("f").await;
    world.plane.publish_version(&publish_request("f")).await.unwrap();
    world
}

#[tokio::test]
async fn a_setting_becomes_ready_as_environments_do() {
    let mut world = with_version().await;
    let (answer, provision) = world.plane.put_provisioned_concurrency_config(&put("1", 5), NOW).await.unwrap();
    assert_eq!(answer.status.as_deref(), Some("IN_PROGRESS"));
    assert_eq!(answer.requested_provisioned_concurrent_executions, Some(5));
    assert_eq!(answer.allocated_provisioned_concurrent_executions, Some(0));
    assert_eq!((provision.version.id.to_string().as_str(), provision.count), ("1", 5));
    world.restart().await;
    assert_eq!(world.plane.provisions()[0].count, 5);
    let status = |allocated, available, failed| {
        let live = LiveConcurrency { allocated, available, failed };
        let shown = world.plane.get_provisioned_concurrency_config(&get("1"), |_| live).unwrap();
        (shown.status.unwrap(), shown.status_reason)
    };
    assert_eq!(status(3, 3, false), ("IN_PROGRESS".to_owned(), None));
    assert_eq!(status(5, 2, false), ("READY".to_owned(), None));
    assert_eq!(status(1, 0, true), ("FAILED".to_owned(), Some("FUNCTION_ERROR_INIT_FAILURE".to_owned())));

    let list =
        types::ListProvisionedConcurrencyConfigsRequest { function_name: Some("f".to_owned()), ..Default::default() };
    let listed = world.plane.list_provisioned_concurrency_configs(&list, |_| LiveConcurrency::default()).unwrap();
    let listed = listed.provisioned_concurrency_configs.unwrap();
    assert_eq!(listed[0].function_arn.as_deref(), Some("arn:aws:lambda:us-east-1:123456789012:function:f:1"));

    assert_eq!(world.plane.delete_provisioned_concurrency_config(&delete("1")).await.unwrap().count, 0);
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
