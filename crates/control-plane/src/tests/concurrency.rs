//! Reserved concurrency and the account's sums.

use super::*;

const ARN: &str = "arn:aws:lambda:us-east-1:123456789012:function:f";

fn put(name: &str, count: i32) -> types::PutFunctionConcurrencyRequest {
    types::PutFunctionConcurrencyRequest {
        function_name: Some(name.to_owned()),
        reserved_concurrent_executions: Some(count),
    }
}

fn provision(count: i32) -> types::PutProvisionedConcurrencyConfigRequest {
    types::PutProvisionedConcurrencyConfigRequest {
        function_name: Some("f".to_owned()),
        qualifier: Some("1".to_owned()),
        provisioned_concurrent_executions: Some(count),
    }
}

fn reserved(world: &World, name: &str) -> Option<i32> {
    let request = types::GetFunctionConcurrencyRequest { function_name: Some(name.to_owned()) };
    world.plane.get_function_concurrency(&request).unwrap().reserved_concurrent_executions
}

fn unreserved(world: &World) -> Option<i32> {
    world.plane.get_account_settings().account_limit.unwrap().unreserved_concurrent_executions
}

async fn world() -> World {
    let world = World::new().await;
    world.active("f").await;
    world.active("g").await;
    world.plane.publish_version(&publish_request("f")).await.unwrap();
    world
}

#[tokio::test]
async fn a_reservation_is_kept_shown_and_taken_back() {
    let mut world = world().await;
    assert_eq!(reserved(&world, "f"), None);
    let answer = world.plane.put_function_concurrency(&put("f", 101)).await.unwrap();
    assert_eq!(answer.reserved_concurrent_executions, Some(101));
    world.restart().await;
    assert_eq!((reserved(&world, "f"), unreserved(&world)), (Some(101), Some(899)));
    let get = types::GetFunctionRequest { function_name: Some("f".to_owned()), qualifier: None };
    let shown = world.plane.get_function(&get, |_| String::new()).unwrap();
    assert_eq!(shown.concurrency.unwrap().reserved_concurrent_executions, Some(101));
    world.plane.put_function_concurrency(&put("f", 0)).await.unwrap();
    assert_eq!((reserved(&world, "f"), unreserved(&world)), (Some(0), Some(1000)));
    let delete = types::DeleteFunctionConcurrencyRequest { function_name: Some("f".to_owned()) };
    for _ in 0..2 {
        world.plane.delete_function_concurrency(&delete).await.unwrap();
    }
    assert_eq!(reserved(&world, "f"), None);
    assert_eq!(world.plane.get_function(&get, |_| String::new()).unwrap().concurrency, None);
}

#[tokio::test]
async fn a_hundred_stay_unreserved() {
    let world = world().await;
    let refused = async |name, count| {
        let error = world.plane.put_function_concurrency(&put(name, count)).await.unwrap_err();
        (error.name, error.message)
    };
    let text = "Specified ReservedConcurrentExecutions for function decreases account's UnreservedConcurrentExecution \
                below its minimum value of [100].";
    let expected = ("InvalidParameterValueException", text.to_owned());
    assert_eq!(refused("f", 901).await, expected);
    world.plane.put_function_concurrency(&put("f", 900)).await.unwrap();
    assert_eq!(refused("g", 1).await, expected);
    // To stop a function is always possible, and so is to take less than before.
    world.plane.put_function_concurrency(&put("g", 0)).await.unwrap();
    world.plane.put_function_concurrency(&put("f", 900)).await.unwrap();
    world.plane.put_function_concurrency(&put("f", 899)).await.unwrap();
    world.plane.put_function_concurrency(&put("g", 1)).await.unwrap();
    world.plane.delete_function(&delete_request("f", None)).await.unwrap();
    assert_eq!(unreserved(&world), Some(999));
}

#[tokio::test]
async fn an_account_below_the_minimum_keeps_all_it_has() {
    let limits = Limits { concurrent_executions: 10, ..Limits::default() };
    let world = World::over(Arc::new(MemoryMetadata::new()), Arc::new(MemoryBlobs::new()), limits).await;
    world.active("f").await;
    let error = world.plane.put_function_concurrency(&put("f", 1)).await.unwrap_err();
    assert!(error.message.ends_with("below its minimum value of [10]."), "{}", error.message);
    world.plane.put_function_concurrency(&put("f", 0)).await.unwrap();
}

#[tokio::test]
async fn reserved_and_provisioned_concurrency_check_each_other() {
    let world = world().await;
    world.plane.put_function_concurrency(&put("f", 1)).await.unwrap();
    let error = world.plane.put_provisioned_concurrency_config(&provision(2), NOW).await.unwrap_err();
    let expected =
        "Requested Provisioned Concurrency should not be greater than the reservedConcurrentExecution for function";
    assert_eq!(said(&error), ("InvalidParameterValueException", expected));
    world.plane.put_function_concurrency(&put("f", 5)).await.unwrap();
    world.plane.put_provisioned_concurrency_config(&provision(2), NOW).await.unwrap();
    // The one is within the other.
    assert_eq!(unreserved(&world), Some(995));
    let error = world.plane.put_function_concurrency(&put("f", 1)).await.unwrap_err();
    let expected =
        " ReservedConcurrentExecutions  1 should not be lower than function's total provisioned concurrency [2].";
    assert_eq!(said(&error), ("InvalidParameterValueException", expected));
    let delete = types::DeleteFunctionConcurrencyRequest { function_name: Some("f".to_owned()) };
    world.plane.delete_function_concurrency(&delete).await.unwrap();
    assert_eq!(unreserved(&world), Some(998));
    let error = world.plane.put_provisioned_concurrency_config(&provision(1001), NOW).await.unwrap_err();
    let expected =
        "Specified ConcurrentExecutions for function is greater than account's unreserved concurrency [1000].";
    assert_eq!(error.message, expected);
}

#[tokio::test]
async fn only_functions_as_a_whole_have_a_reservation() {
    let world = world().await;
    let text = "This operation is permitted on Lambda functions only. Aliases and versions do not support this \
                operation. Please specify either a function name or an unqualified function ARN.";
    for name in ["f:1", "f:live", "f:$LATEST", &format!("{ARN}:1")] {
        let error = world.plane.put_function_concurrency(&put(name, 1)).await.unwrap_err();
        assert_eq!(said(&error), ("InvalidParameterValueException", text));
    }
    world.plane.put_function_concurrency(&put(ARN, 1)).await.unwrap();
    let error = world.plane.put_function_concurrency(&put("absent", 1)).await.unwrap_err();
    assert_eq!(error.message, "Function not found: arn:aws:lambda:us-east-1:123456789012:function:absent:$LATEST");
}
