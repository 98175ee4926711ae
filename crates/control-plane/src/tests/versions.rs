//! Publishing and listing versions.

use serde_json::json;

use super::*;

#[tokio::test]
async fn publishing_freezes_latest() {
    let world = World::new().await;
    world.active("f").await;
    let request = types::PublishVersionRequest { description: Some("one".to_owned()), ..publish_request("f") };
    let version = world.plane.publish_version(&request).await.unwrap().configuration;
    assert_eq!((version.version.as_deref(), version.description.as_deref()), (Some("1"), Some("one")));
    assert_eq!(version.function_arn.as_deref(), Some("arn:aws:lambda:us-east-1:123456789012:function:f:1"));
    assert_eq!(version.state.as_deref(), Some("Active"));
    let accepted = world.configure(json!({"FunctionName": "f", "Timeout": 9})).await.unwrap();
    world.settle(&accepted, Ok(())).await;
    assert_eq!(world.configuration("f", Some("1")).unwrap().timeout, Some(3));
    assert_eq!(world.configuration("f", None).unwrap().description.as_deref(), Some(""));
}

#[tokio::test]
async fn publishing_without_a_change_answers_the_last_version() {
    let world = World::new().await;
    world.active("f").await;
    let first = world.plane.publish_version(&publish_request("f")).await.unwrap().configuration;
    let again = world.plane.publish_version(&publish_request("f")).await.unwrap().configuration;
    assert_eq!(first, again);
    // The same values and the same code are no change.
    let accepted = world.configure(json!({"FunctionName": "f", "Timeout": 3})).await.unwrap();
    world.settle(&accepted, Ok(())).await;
    let accepted = world.plane.update_function_code(&code_request("f", "first"), NOW).await.unwrap();
    world.settle(&accepted, Ok(())).await;
    assert_eq!(world.plane.publish_version(&publish_request("f")).await.unwrap().configuration, first);
    let accepted = world.configure(json!({"FunctionName": "f", "Timeout": 4})).await.unwrap();
    world.settle(&accepted, Ok(())).await;
    let second = world.plane.publish_version(&publish_request("f")).await.unwrap().configuration;
    assert_eq!(second.version.as_deref(), Some("2"));
}

#[tokio::test]
async fn numbers_are_never_used_again() {
    let mut world = World::new().await;
    world.active("f").await;
    world.plane.publish_version(&publish_request("f")).await.unwrap();
    world.plane.delete_function(&delete_request("f", Some("1"))).await.unwrap();
    world.restart().await;
    let version = world.plane.publish_version(&publish_request("f")).await.unwrap().configuration;
    assert_eq!(version.version.as_deref(), Some("2"));
}

#[tokio::test]
async fn another_code_hash_is_refused() {
    let world = World::new().await;
    world.active("f").await;
    let current = world.configuration("f", None).unwrap().code_sha256.unwrap();
    let request = types::PublishVersionRequest { code_sha256: Some("other".to_owned()), ..publish_request("f") };
    let error = world.plane.publish_version(&request).await.unwrap_err();
    let expected = format!(
        "CodeSHA256 (other) is different from current CodeSHA256 in $LATEST ({current}). Please try again with the \
         CodeSHA256 in $LATEST."
    );
    assert_eq!(said(&error), ("InvalidParameterValueException", expected.as_str()));
    let request = types::PublishVersionRequest { code_sha256: Some(current), ..publish_request("f") };
    assert!(world.plane.publish_version(&request).await.is_ok());
}

#[tokio::test]
async fn versions_are_listed_in_the_order_of_their_numbers() {
    let world = World::new().await;
    world.active("f").await;
    for timeout in 4..16 {
        world.plane.publish_version(&publish_request("f")).await.unwrap();
        let accepted = world.configure(json!({"FunctionName": "f", "Timeout": timeout})).await.unwrap();
        world.settle(&accepted, Ok(())).await;
    }
    let mut seen = Vec::new();
    let mut request = types::ListVersionsByFunctionRequest {
        function_name: Some("f".to_owned()),
        max_items: Some(5),
        ..Default::default()
    };
    loop {
        let page = world.plane.list_versions_by_function(&request).unwrap();
        seen.extend(page.versions.unwrap().into_iter().map(|version| version.version.unwrap()));
        request.marker = page.next_marker;
        if request.marker.is_none() {
            break;
        }
    }
    let expected: Vec<String> =
        std::iter::once("$LATEST".to_owned()).chain((1..=12).map(|number| number.to_string())).collect();
    assert_eq!(seen, expected);
}
