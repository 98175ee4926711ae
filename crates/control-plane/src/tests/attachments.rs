//! What hangs on functions beside policies: URLs, event-invoke settings, tags, runtime updates, code signing.

use super::permissions::published;
use super::*;

fn from<T: serde::de::DeserializeOwned>(members: Value) -> T {
    serde_json::from_value(members).unwrap()
}

fn address(id: &str) -> String {
    format!("http://{id}/")
}

/// Every setting, on every scope that may have it.
async fn everything(world: &World) -> String {
    let plane = &world.plane;
    published(world, "f").await;
    for qualifier in [None, Some("live")] {
        let request = json!({"FunctionName": "f", "Qualifier": qualifier, "AuthType": "NONE", "Cors": {"MaxAge": 5}});
        plane.create_function_url_config(&from(request), NOW, address).await.unwrap();
    }
    for qualifier in [None, Some("1"), Some("live")] {
        let request = json!({"FunctionName": "f", "Qualifier": qualifier, "MaximumRetryAttempts": 1});
        plane.put_function_event_invoke_config(&from(request), NOW).await.unwrap();
        let request = json!({"FunctionName": "f", "Qualifier": qualifier, "UpdateRuntimeOn": "FunctionUpdate"});
        let put = plane.put_runtime_management_config(&from(request)).await;
        assert_eq!(put.is_err(), qualifier == Some("live"));
    }
    let request = json!({"FunctionName": "f", "RecursiveLoop": "Allow"});
    plane.put_function_recursion_config(&from(request)).await.unwrap();
    let arn = "arn:aws:lambda:us-east-1:123456789012:function:f";
    plane.tag_resource(&from(json!({"Resource": arn, "Tags": {"a": "1"}})), NOW).await.unwrap();
    let request = json!({"AllowedPublishers": {"SigningProfileVersionArns": ["arn:aws:signer:..."]}});
    let created = plane.create_code_signing_config(&from(request), NOW).await.unwrap();
    let csc = created.code_signing_config.unwrap().code_signing_config_arn.unwrap();
    let request = json!({"FunctionName": "f", "CodeSigningConfigArn": csc});
    plane.put_function_code_signing_config(&from(request)).await.unwrap();
    csc
}

#[tokio::test]
async fn everything_attached_survives_a_restart() {
    let mut world = World::new().await;
    let csc = everything(&world).await;
    let before = world.plane.functions();
    assert_eq!((before[0].attached.urls.len(), before[0].attached.event_invoke.len()), (2, 3));
    world.restart().await;
    assert_eq!(world.plane.functions(), before);
    let get = from(json!({"CodeSigningConfigArn": csc}));
    assert!(world.plane.get_code_signing_config(&get).is_ok());
    assert_eq!(
        world
            .plane
            .list_functions_by_code_signing_config(&from(json!({"CodeSigningConfigArn": csc})))
            .unwrap()
            .function_arns
            .unwrap()
            .len(),
        1
    );
}

#[tokio::test]
async fn what_belongs_to_an_alias_or_a_version_goes_with_it() {
    let world = World::new().await;
    everything(&world).await;
    world.plane.delete_alias(&from(json!({"FunctionName": "f", "Name": "live"}))).await.unwrap();
    world.plane.delete_function(&delete_request("f", Some("1"))).await.unwrap();
    let attached = world.plane.function("f").unwrap().attached.clone();
    assert_eq!((attached.urls.len(), attached.event_invoke.len(), attached.runtime_updates.len()), (1, 1, 1));
    // An alias of the same name begins anew.
    world.plane.delete_function(&delete_request("f", None)).await.unwrap();
    published(&world, "f").await;
    let attached = world.plane.function("f").unwrap().attached.clone();
    assert!(attached.urls.is_empty() && attached.event_invoke.is_empty() && attached.tags.is_empty());
    assert_eq!(attached.code_signing, None);
}

#[tokio::test]
async fn the_id_of_a_url_stays_and_is_not_used_again() {
    let world = World::new().await;
    world.active("f").await;
    let create = || from(json!({"FunctionName": "f", "AuthType": "NONE"}));
    let first = world.plane.create_function_url_config(&create(), NOW, str::to_owned).await.unwrap().function_url;
    let change = json!({"FunctionName": "f", "InvokeMode": "RESPONSE_STREAM"});
    let changed = world.plane.update_function_url_config(&from(change), NOW, str::to_owned).await.unwrap();
    assert_eq!(changed.function_url, first);
    let id = first.clone().unwrap();
    assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()), "{id}");
    world.plane.delete_function_url_config(&from(json!({"FunctionName": "f"}))).await.unwrap();
    let second = world.plane.create_function_url_config(&create(), NOW, str::to_owned).await.unwrap().function_url;
    assert_ne!(first, second);
}

#[tokio::test]
async fn buckets_take_failures_and_no_successes() {
    let world = World::new().await;
    world.active("f").await;
    let bucket = json!({"Destination": "arn:aws:s3:::bucket"});
    let put = |destinations: Value| from(json!({"FunctionName": "f", "DestinationConfig": destinations}));
    assert!(world.plane.put_function_event_invoke_config(&put(json!({"OnFailure": bucket})), NOW).await.is_ok());
    let error = world.plane.put_function_event_invoke_config(&put(json!({"OnSuccess": bucket})), NOW).await;
    assert!(error.unwrap_err().message.starts_with("The provided destination config DestinationConfig(onSuccess="));
}

#[tokio::test]
async fn a_configuration_is_not_deleted_while_functions_follow_it() {
    let world = World::new().await;
    let csc = everything(&world).await;
    let delete = || from(json!({"CodeSigningConfigArn": csc}));
    let error = world.plane.delete_code_signing_config(&delete()).await.unwrap_err();
    assert_eq!(error.name, "ResourceConflictException");
    world.plane.delete_function(&delete_request("f", None)).await.unwrap();
    world.plane.delete_code_signing_config(&delete()).await.unwrap();
    assert_eq!(world.plane.delete_code_signing_config(&delete()).await.unwrap_err().status, 404);
}

#[tokio::test]
async fn enforced_signatures_refuse_code_and_leave_settings() {
    let world = World::new().await;
    let csc = everything(&world).await;
    let change = json!({
        "CodeSigningConfigArn": csc, "CodeSigningPolicies": {"UntrustedArtifactOnDeployment": "Enforce"}
    });
    world.plane.update_code_signing_config(&from(change), NOW).await.unwrap();
    let error = world.plane.update_function_code(&code_request("f", "second"), NOW).await.unwrap_err();
    assert_eq!(error.name, "CodeVerificationFailedException");
    let created = world.plane.create_function(&create_with("g", json!({"CodeSigningConfigArn": csc})), NOW).await;
    assert_eq!(created.unwrap_err().name, "CodeVerificationFailedException");
    assert!(world.plane.function("g").is_none());
    assert!(world.configure(json!({"FunctionName": "f", "Timeout": 7})).await.is_ok());
}
