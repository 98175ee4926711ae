//! Updates: their states, what runs meanwhile, and who may make them.

use serde_json::json;

use super::*;

#[tokio::test]
async fn the_old_version_runs_until_the_update_is_complete() {
    let world = World::new().await;
    world.active("f").await;
    let old = world.plane.resolve("f", None, 0.0).unwrap().version;
    let accepted = world.plane.update_function_code(&code_request("f", "second"), NOW).await.unwrap();
    let shown = &accepted.configuration;
    assert_eq!(shown.last_update_status.as_deref(), Some("InProgress"));
    assert_eq!(shown.last_update_status_reason.as_deref(), Some("The function is being created."));
    assert_eq!(shown.last_update_status_reason_code.as_deref(), Some("Creating"));
    assert_eq!(shown.state.as_deref(), Some("Active"));
    assert_eq!(world.plane.resolve("f", None, 0.0).unwrap().version, old);

    let error = world.configure(json!({"FunctionName": "f", "Timeout": 5})).await.unwrap_err();
    let expected = "The operation cannot be performed at this time. An update is in progress for resource: \
                    arn:aws:lambda:us-east-1:123456789012:function:f";
    assert_eq!(said(&error), ("ResourceConflictException", expected));

    world.settle(&accepted, Ok(())).await;
    let new = world.plane.resolve("f", None, 0.0).unwrap().version;
    assert_ne!(new.code.digest, old.code.digest);
    assert_eq!(world.configuration("f", None).unwrap().last_update_status.as_deref(), Some("Successful"));
}

#[tokio::test]
async fn a_failed_update_leaves_the_old_version_running() {
    let world = World::new().await;
    world.active("f").await;
    let old = world.plane.resolve("f", None, 0.0).unwrap().version;
    let accepted = world.plane.update_function_code(&code_request("f", "second"), NOW).await.unwrap();
    world.settle(&accepted, Err(broken_zip())).await;
    let shown = world.configuration("f", None).unwrap();
    assert_eq!((shown.state.as_deref(), shown.last_update_status.as_deref()), (Some("Active"), Some("Failed")));
    assert_eq!(shown.last_update_status_reason_code.as_deref(), Some("InvalidZipFileException"));
    assert_eq!(world.plane.resolve("f", None, 0.0).unwrap().version, old);
    let error = world.plane.publish_version(&publish_request("f")).await.unwrap_err();
    assert_eq!(error.name, "ResourceConflictException");
    // The one after a failed one falls back to the same.
    let accepted = world.configure(json!({"FunctionName": "f", "Timeout": 5})).await.unwrap();
    assert_eq!(world.plane.resolve("f", None, 0.0).unwrap().version, old);
    world.settle(&accepted, Ok(())).await;
    assert_eq!(world.plane.resolve("f", None, 0.0).unwrap().version.settings.timeout_secs, 5);
}

#[tokio::test]
async fn a_pending_function_cannot_be_updated() {
    let world = World::new().await;
    world.create("f").await;
    let expected = "The operation cannot be performed at this time. The function is currently in the following state: \
                    Pending";
    let error = world.configure(json!({"FunctionName": "f", "Timeout": 5})).await.unwrap_err();
    assert_eq!(said(&error), ("ResourceConflictException", expected));
    let error = world.plane.update_function_code(&code_request("f", "second"), NOW).await.unwrap_err();
    assert_eq!(error.message, expected);
    let error = world.plane.publish_version(&publish_request("f")).await.unwrap_err();
    assert_eq!(error.message, expected);
}

#[tokio::test]
async fn configuration_is_merged_by_member() {
    let world = World::new().await;
    let request = create_with(
        "f",
        json!({"Environment": {"Variables": {"KEY": "v"}}, "Description": "d",
               "LoggingConfig": {"LogFormat": "JSON", "ApplicationLogLevel": "DEBUG"}}),
    );
    let accepted = world.plane.create_function(&request, NOW).await.unwrap();
    world.settle(&accepted, Ok(())).await;
    let accepted = world
        .configure(json!({"FunctionName": "f", "MemorySize": 256, "LoggingConfig": {"LogGroup": "/mine"}}))
        .await
        .unwrap();
    let shown = serde_json::to_value(&accepted.configuration).unwrap();
    assert_eq!((&shown["MemorySize"], &shown["Description"]), (&json!(256), &json!("d")));
    assert_eq!(shown["Environment"], json!({"Variables": {"KEY": "v"}}));
    let logging = json!({"LogFormat": "JSON", "ApplicationLogLevel": "DEBUG", "SystemLogLevel": "INFO",
                         "LogGroup": "/mine"});
    assert_eq!(shown["LoggingConfig"], logging);
    world.settle(&accepted, Ok(())).await;
    let accepted = world
        .configure(json!({"FunctionName": "f", "Environment": {}, "LoggingConfig": {"LogFormat": "Text"}}))
        .await
        .unwrap();
    let shown = serde_json::to_value(&accepted.configuration).unwrap();
    assert_eq!(shown["Environment"], json!({"Variables": {}}));
    assert_eq!(shown["LoggingConfig"], json!({"LogFormat": "Text", "LogGroup": "/mine"}));
}

#[tokio::test]
async fn stale_revisions_are_refused() {
    let world = World::new().await;
    let created = world.create("f").await;
    world.settle(&created, Ok(())).await;
    // The one that create answered is stale: the function has become Active since.
    let stale = created.configuration.revision_id.unwrap();
    let text = "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to \
                retrieve the latest Revision Id";
    let error = world.configure(json!({"FunctionName": "f", "RevisionId": stale})).await.unwrap_err();
    assert_eq!((error.status, said(&error)), (412, ("PreconditionFailedException", text)));
    let request = types::UpdateFunctionCodeRequest { revision_id: Some(stale.clone()), ..code_request("f", "x") };
    let error = world.plane.update_function_code(&request, NOW).await.unwrap_err();
    assert_eq!(error.message, text);
    let request = types::PublishVersionRequest { revision_id: Some(stale), ..publish_request("f") };
    assert_eq!(world.plane.publish_version(&request).await.unwrap_err().message, text);
    let fresh = world.configuration("f", None).unwrap().revision_id;
    assert!(world.configure(json!({"FunctionName": "f", "RevisionId": fresh})).await.is_ok());
}

#[tokio::test]
async fn of_concurrent_updates_with_one_revision_one_wins() {
    let world = World::new().await;
    world.active("f").await;
    let revision = world.configuration("f", None).unwrap().revision_id.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for timeout in 1..=20 {
        let plane = world.plane.clone();
        let body = json!({"FunctionName": "f", "RevisionId": revision, "Timeout": timeout});
        tasks.spawn(async move {
            let request = serde_json::from_value(body).unwrap();
            plane.update_function_configuration(&request, NOW).await.map(|_| timeout)
        });
    }
    let won: Vec<u32> = tasks.join_all().await.into_iter().filter_map(Result::ok).collect();
    assert_eq!(won.len(), 1);
    assert_eq!(world.plane.function("f").unwrap().latest.settings.timeout_secs, won[0]);
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let world = World::new().await;
    world.active("f").await;
    let before = world.plane.functions();
    let request = types::UpdateFunctionCodeRequest { dry_run: Some(true), ..code_request("f", "second") };
    let accepted = world.plane.update_function_code(&request, NOW).await.unwrap();
    assert!(accepted.work.is_none());
    assert_ne!(accepted.configuration.code_sha256, world.configuration("f", None).unwrap().code_sha256);
    assert_eq!(world.plane.functions(), before);
    assert_eq!(world.blobs.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn publish_with_the_code_waits_for_the_same_work() {
    let world = World::new().await;
    world.active("f").await;
    let request = types::UpdateFunctionCodeRequest { publish: Some(true), ..code_request("f", "second") };
    let accepted = world.plane.update_function_code(&request, NOW).await.unwrap();
    assert_eq!(accepted.configuration.version.as_deref(), Some("1"));
    assert!(accepted.configuration.function_arn.as_deref().unwrap().ends_with(":f:1"));
    assert_eq!(world.configuration("f", Some("1")).unwrap().state.as_deref(), Some("Pending"));
    world.settle(&accepted, Ok(())).await;
    let shown = world.configuration("f", Some("1")).unwrap();
    assert_eq!((shown.state.as_deref(), shown.last_update_status.as_deref()), (Some("Active"), Some("Successful")));
}

#[tokio::test]
async fn late_reports_change_nothing() {
    let world = World::new().await;
    let created = world.create("f").await;
    world.settle(&created, Ok(())).await;
    let before = world.plane.functions();
    world.settle(&created, Err(broken_zip())).await;
    assert_eq!(world.plane.functions(), before);
    world.plane.delete_function(&delete_request("f", None)).await.unwrap();
    let again = world.create("f").await;
    world.settle(&created, Ok(())).await;
    assert_eq!(world.configuration("f", None).unwrap().state.as_deref(), Some("Pending"));
    world.settle(&again, Ok(())).await;
    assert_eq!(world.configuration("f", None).unwrap().state.as_deref(), Some("Active"));
}

#[tokio::test]
async fn versions_and_aliases_cannot_be_updated() {
    let world = World::new().await;
    world.active("f").await;
    for name in ["f:1", "f:live"] {
        let error = world.configure(json!({"FunctionName": name})).await.unwrap_err();
        assert_eq!(error.name, "InvalidParameterValueException");
    }
    assert!(world.configure(json!({"FunctionName": "f:$LATEST"})).await.is_ok());
}
