//! Creating, reading, listing, deleting.

use serde_json::json;

use super::*;

#[tokio::test]
async fn a_created_function_is_pending_with_all_defaults() {
    let world = World::new().await;
    let accepted = world.create("f").await;
    let mut shown = serde_json::to_value(&accepted.configuration).unwrap();
    let revision = shown["RevisionId"].take();
    assert_eq!(revision.as_str().unwrap().len(), 36);
    let sha = shown["CodeSha256"].take();
    assert_eq!(sha.as_str().unwrap().len(), 44);
    let runtime_version = shown["RuntimeVersionConfig"]["RuntimeVersionArn"].take();
    assert!(runtime_version.as_str().unwrap().starts_with("arn:aws:lambda:us-east-1::runtime:"));
    let expected = json!({
        "FunctionName": "f",
        "FunctionArn": "arn:aws:lambda:us-east-1:123456789012:function:f",
        "Runtime": "python3.12",
        "Role": ROLE,
        "Handler": "handler.handler",
        "CodeSize": package("first").0.len(),
        "Description": "",
        "Timeout": 3,
        "MemorySize": 128,
        "LastModified": "2026-01-02T03:04:05.678+0000",
        "CodeSha256": null,
        "Version": "$LATEST",
        "TracingConfig": {"Mode": "PassThrough"},
        "RevisionId": null,
        "State": "Pending",
        "StateReason": "The function is being created.",
        "StateReasonCode": "Creating",
        "PackageType": "Zip",
        "Architectures": ["x86_64"],
        "EphemeralStorage": {"Size": 512},
        "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"},
        "RuntimeVersionConfig": {"RuntimeVersionArn": null},
        "LoggingConfig": {"LogFormat": "Text", "LogGroup": "/aws/lambda/f"},
    });
    assert_eq!(shown, expected);

    world.settle(&accepted, Ok(())).await;
    let after = world.configuration("f", None).unwrap();
    assert_eq!((after.state.as_deref(), after.state_reason, after.state_reason_code), (Some("Active"), None, None));
    assert_eq!(after.last_update_status.as_deref(), Some("Successful"));
    assert_ne!(after.revision_id.as_deref(), revision.as_str());
}

#[tokio::test]
async fn a_function_that_cannot_be_prepared_has_failed() {
    let world = World::new().await;
    world.settle(&world.create("f").await, Err(broken_zip())).await;
    let shown = world.configuration("f", None).unwrap();
    assert_eq!(shown.state.as_deref(), Some("Failed"));
    assert_eq!(shown.state_reason.as_deref(), Some("cannot be unpacked"));
    assert_eq!(shown.state_reason_code.as_deref(), Some("InvalidZipFileException"));
    // An update gives it another chance.
    let accepted = world.plane.update_function_code(&code_request("f", "second"), NOW).await.unwrap();
    assert_eq!(accepted.configuration.state.as_deref(), Some("Pending"));
    world.settle(&accepted, Ok(())).await;
    assert_eq!(world.configuration("f", None).unwrap().state.as_deref(), Some("Active"));
}

#[tokio::test]
async fn settings_are_kept_and_shown() {
    let world = World::new().await;
    let request = create_with(
        "f",
        json!({
            "Timeout": 900, "MemorySize": 10_240, "EphemeralStorage": {"Size": 10_240}, "Description": "d",
            "Environment": {"Variables": {"KEY": "value"}}, "TracingConfig": {"Mode": "Active"},
            "LoggingConfig": {"LogFormat": "JSON", "SystemLogLevel": "WARN"}, "Architectures": ["arm64"],
            "Tags": {"team": "a"}, "DeadLetterConfig": {"TargetArn": "arn:aws:sqs:us-east-1:123456789012:q"},
        }),
    );
    world.plane.create_function(&request, NOW).await.unwrap();
    let read = types::GetFunctionRequest { function_name: Some("f".to_owned()), qualifier: None };
    let shown = world.plane.get_function(&read, |version| format!("at {}", version.code.digest)).unwrap();
    assert!(shown.code.unwrap().location.unwrap().starts_with("at "));
    assert_eq!(shown.tags.unwrap()["team"], "a");
    assert_eq!(shown.concurrency, None);
    let shown = serde_json::to_value(shown.configuration).unwrap();
    assert_eq!(shown["Environment"], json!({"Variables": {"KEY": "value"}}));
    assert_eq!(shown["LoggingConfig"]["ApplicationLogLevel"], "INFO");
    assert_eq!(shown["LoggingConfig"]["SystemLogLevel"], "WARN");
    assert_eq!((&shown["Timeout"], &shown["MemorySize"]), (&json!(900), &json!(10_240)));
    assert_eq!((&shown["TracingConfig"]["Mode"], &shown["Architectures"]), (&json!("Active"), &json!(["arm64"])));
    assert_eq!(shown["DeadLetterConfig"]["TargetArn"], "arn:aws:sqs:us-east-1:123456789012:q");
}

#[tokio::test]
async fn an_empty_environment_is_not_an_absent_one() {
    let world = World::new().await;
    let accepted = world.plane.create_function(&create_with("f", json!({"Environment": {}})), NOW).await.unwrap();
    assert_eq!(serde_json::to_value(accepted.configuration.environment).unwrap(), json!({"Variables": {}}));
}

#[tokio::test]
async fn publish_on_create_answers_version_one_with_an_unqualified_arn() {
    let world = World::new().await;
    let accepted = world.plane.create_function(&create_with("f", json!({"Publish": true})), NOW).await.unwrap();
    assert_eq!(accepted.configuration.version.as_deref(), Some("1"));
    assert!(accepted.configuration.function_arn.as_deref().unwrap().ends_with("function:f"));
    assert_eq!(world.configuration("f", Some("1")).unwrap().state.as_deref(), Some("Pending"));
    world.settle(&accepted, Ok(())).await;
    for qualifier in ["1", "$LATEST"] {
        assert_eq!(world.configuration("f", Some(qualifier)).unwrap().state.as_deref(), Some("Active"));
    }
}

#[tokio::test]
async fn refusals_of_create_have_their_texts() {
    let world = World::new().await;
    let cases = [
        (
            json!({"Runtime": null}),
            "Runtime and Handler are mandatory parameters for functions created with deployment packages.",
        ),
        (
            json!({"Handler": null}),
            "Runtime and Handler are mandatory parameters for functions created with deployment packages.",
        ),
        (
            json!({"MemorySize": 10_241}),
            "'MemorySize' value failed to satisfy constraint: Member must have value less than or equal to 10240",
        ),
        (
            json!({"Timeout": 901}),
            "'Timeout' value failed to satisfy constraint: Member must have value less than or equal to 900",
        ),
        (
            json!({"Environment": {"Variables": {"AWS_REGION": "x"}}}),
            "Lambda was unable to configure your environment variables because the environment variables you have provided contains reserved keys that are currently not supported for modification. Reserved keys used in this request: AWS_REGION",
        ),
        (
            json!({"Layers": ["arn:aws:lambda:us-east-1:123456789012:layer:l:1"]}),
            "Layer version arn:aws:lambda:us-east-1:123456789012:layer:l:1 does not exist.",
        ),
        (
            json!({"Layers": ["arn:aws:lambda:eu-west-1:123456789012:layer:l:1"]}),
            "Layers are not in the same region as the function. Layers are expected to be in region us-east-1.",
        ),
        (json!({"Layers": ["a", "a", "a", "a", "a", "a"]}), "Cannot reference more than 5 layers."),
        (
            json!({"LoggingConfig": {"SystemLogLevel": "WARN"}}),
            "Log Level is not supported when LogFormat is set to \"Text\". Remove log level from your request or change the LogFormat to \"JSON\" and try again.",
        ),
        (json!({"PackageType": "Image"}), "PackageType Image is not supported yet by this version of Firelet."),
        (
            json!({"Code": {"ImageUri": "x"}}),
            "Please don't provide ImageUri when creating a function with packageType Zip.",
        ),
        (
            json!({"SnapStart": {"ApplyOn": "PublishedVersions"}, "Runtime": "python3.11"}),
            "python3.11 is not supported for SnapStart enabled functions.",
        ),
        (
            json!({"VpcConfig": {"SecurityGroupIds": ["sg-1"]}}),
            "SubnetIds and SecurityIds must coexist or be both empty list.",
        ),
        (
            json!({"Code": {"ZipFile": "aGVsbG8="}}),
            "Could not unzip uploaded file. Please check your file, then try to upload again.",
        ),
        (json!({"Code": {"ZipFile": ""}}), "Uploaded file must be a non-empty zip"),
        (
            json!({"FunctionName": "n".repeat(65)}),
            &format!(
                "1 validation error detected: Value '{}' at 'functionName' failed to satisfy constraint: Member must have length less than or equal to 64",
                "n".repeat(65)
            ),
        ),
    ];
    for (members, expected) in cases {
        let error = world.plane.create_function(&create_with("f", members), NOW).await.unwrap_err();
        assert_eq!(said(&error), ("InvalidParameterValueException", expected));
    }
    let mut request = create_request("f");
    request.code = Some(types::FunctionCode::default());
    let error = world.plane.create_function(&request, NOW).await.unwrap_err();
    assert_eq!(error.message, "Please provide a source for function code.");
    assert!(world.plane.functions().is_empty());
    assert_eq!(world.blobs.list().await.unwrap(), []);
}

#[tokio::test]
async fn the_environment_is_measured_as_json() {
    let world = World::new().await;
    // {"K":"..."} is eight bytes around the value.
    let with = |length: usize| create_with("f", json!({"Environment": {"Variables": {"K1": "x".repeat(length)}}}));
    let error = world.plane.create_function(&with(4_096 - 8), NOW).await.unwrap_err();
    let json = format!("{{\"K1\":\"{}\"}}", "x".repeat(4_088));
    let expected = format!(
        "Lambda was unable to configure your environment variables because the environment variables you have \
         provided exceeded the 4KB limit. String measured: {json}"
    );
    assert_eq!(said(&error), ("InvalidParameterValueException", expected.as_str()));
    assert!(world.plane.create_function(&with(4_096 - 9), NOW).await.is_ok());
}

#[tokio::test]
async fn packages_have_limits() {
    let limits = Limits { zipped_code: 150, unzipped_code: 1_000, ..Limits::default() };
    let world = World::over(Arc::new(MemoryMetadata::new()), Arc::new(MemoryBlobs::new()), limits).await;
    let mut request = create_request("f");
    request.code.as_mut().unwrap().zip_file = Some(package(&format!("{:?}", (0..200).collect::<Vec<u32>>())));
    let error = world.plane.create_function(&request, NOW).await.unwrap_err();
    assert_eq!((error.status, error.name), (413, "RequestEntityTooLargeException"));
    assert_eq!(error.message, "Zipped size must be smaller than 150 bytes");
    request.code.as_mut().unwrap().zip_file = Some(package(&"a".repeat(5_000)));
    let error = world.plane.create_function(&request, NOW).await.unwrap_err();
    let expected = ("InvalidParameterValueException", "Unzipped size must be smaller than 1000 bytes");
    assert_eq!(said(&error), expected);
}

#[tokio::test]
async fn stored_code_is_limited_over_all_versions() {
    let limits = Limits { total_code: 12, ..Limits::default() };
    let world = World::over(Arc::new(MemoryMetadata::new()), Arc::new(MemoryBlobs::new()), limits).await;
    world.active("f").await;
    world.plane.publish_version(&publish_request("f")).await.unwrap();
    let error = world.plane.create_function(&create_request("g"), NOW).await.unwrap_err();
    assert_eq!(said(&error), ("CodeStorageExceededException", "Code storage limit exceeded."));
    assert_eq!(world.plane.get_account_settings().account_usage.unwrap().total_code_size, Some(10));
}

#[tokio::test]
async fn a_name_can_be_taken_once() {
    let world = World::new().await;
    world.create("f").await;
    let error = world.plane.create_function(&create_request("f"), NOW).await.unwrap_err();
    assert_eq!((error.status, error.message.as_str()), (409, "Function already exist: f"));
    let arn = "arn:aws:lambda:us-east-1:123456789012:function:f";
    let error = world.plane.create_function(&create_request(arn), NOW).await.unwrap_err();
    assert_eq!(error.message, "Function already exist: f");
    let foreign = "arn:aws:lambda:us-east-1:999999999999:function:g";
    let error = world.plane.create_function(&create_request(foreign), NOW).await.unwrap_err();
    assert_eq!((error.status, error.name), (403, "AccessDeniedException"));
}

#[tokio::test]
async fn absent_functions_are_named_as_asked() {
    let world = World::new().await;
    let arn = "arn:aws:lambda:us-east-1:123456789012:function:f";
    let text = |result: Result<types::FunctionConfiguration, ApiError>| result.unwrap_err().message;
    assert_eq!(text(world.configuration("f", None)), format!("Function not found: {arn}"));
    assert_eq!(text(world.configuration("f", Some("7"))), format!("Function not found: {arn}:7"));
    let invoke = |qualifier| world.plane.resolve("f", qualifier, 0.0).unwrap_err().message;
    assert_eq!(invoke(None), format!("Function not found: {arn}:$LATEST"));
    assert_eq!(invoke(Some("live")), format!("Function not found: {arn}:live"));
    world.active("f").await;
    assert_eq!(invoke(Some("live")), format!("Function not found: {arn}:live"));
    assert_eq!(text(world.configuration("f", Some("1"))), format!("Function not found: {arn}:1"));
    let foreign = "arn:aws:lambda:us-east-1:999999999999:function:f";
    assert_eq!(text(world.configuration(foreign, None)), format!("Function not found: {foreign}"));
    let elsewhere = "arn:aws:lambda:eu-west-1:123456789012:function:f";
    let expected = "Functions from 'eu-west-1' are not reachable in this region ('us-east-1')";
    assert_eq!(text(world.configuration(elsewhere, None)), expected);
}

#[tokio::test]
async fn arns_are_qualified_as_asked() {
    let world = World::new().await;
    world.active("f").await;
    world.plane.publish_version(&publish_request("f")).await.unwrap();
    let arn = "arn:aws:lambda:us-east-1:123456789012:function:f";
    for (name, qualifier, suffix) in
        [("f", None, ""), ("f", Some("$LATEST"), ":$LATEST"), ("f:$LATEST", None, ":$LATEST"), ("f:1", None, ":1")]
    {
        assert_eq!(world.configuration(name, qualifier).unwrap().function_arn, Some(format!("{arn}{suffix}")));
        assert_eq!(world.plane.resolve(name, qualifier, 0.0).unwrap().invoked_arn, format!("{arn}{suffix}"));
    }
    let error = world.configuration("f:1", Some("$LATEST")).unwrap_err();
    assert_eq!(error.message, "The derived qualifier from the function name does not match the specified qualifier.");
}

#[tokio::test]
async fn lists_are_paged_and_leave_states_out() {
    let world = World::new().await;
    for name in ["b", "a", "a-b", "c"] {
        world.active(name).await;
    }
    world.plane.publish_version(&publish_request("a")).await.unwrap();
    let mut seen = Vec::new();
    let mut request = types::ListFunctionsRequest { max_items: Some(2), ..types::ListFunctionsRequest::default() };
    loop {
        let page = world.plane.list_functions(&request).unwrap();
        seen.extend(page.functions.unwrap().into_iter().map(|function| function.function_name.unwrap()));
        request.marker = page.next_marker;
        if request.marker.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["a", "a-b", "b", "c"]);

    let all = types::ListFunctionsRequest { function_version: Some("ALL".to_owned()), ..Default::default() };
    let functions = world.plane.list_functions(&all).unwrap().functions.unwrap();
    let arns: Vec<&str> = functions.iter().map(|function| function.function_arn.as_deref().unwrap()).collect();
    assert!(arns[0].ends_with("function:a:$LATEST") && arns[1].ends_with("function:a:1"), "{arns:?}");
    assert_eq!(arns.len(), 5);
    let first = &functions[0];
    assert!(first.state.is_none() && first.last_update_status.is_none() && first.runtime_version_config.is_none());
}

#[tokio::test]
async fn deletion_has_its_rules() {
    let world = World::new().await;
    world.active("f").await;
    world.plane.publish_version(&publish_request("f")).await.unwrap();
    let delete = async |name: &str, qualifier| world.plane.delete_function(&delete_request(name, qualifier)).await;
    let error = delete("f", Some("$LATEST")).await.unwrap_err();
    assert_eq!(error.message, "$LATEST version cannot be deleted without deleting the function.");
    let error = delete("f", Some("live")).await.unwrap_err();
    assert_eq!(error.message, "Deletion of aliases is not currently supported.");
    // A version that is not there is as good as deleted; a function is not.
    assert_eq!(delete("f", Some("2")).await.unwrap().versions.len(), 0);
    let error = delete("g", Some("2")).await.unwrap_err();
    assert_eq!((error.status, error.name), (404, "ResourceNotFoundException"));
    let gone = delete("f:1", None).await.unwrap();
    assert_eq!(gone.versions.iter().map(|version| version.id.to_string()).collect::<Vec<_>>(), ["1"]);
    assert!(world.configuration("f", None).is_ok());
    let gone = delete("f", None).await.unwrap();
    assert_eq!((gone.versions.len(), gone.response.status_code), (1, Some(204)));
    assert_eq!(delete("f", None).await.unwrap_err().status, 404);
}

#[tokio::test]
async fn accounts_are_counted() {
    let world = World::new().await;
    world.create("f").await;
    let settings = serde_json::to_value(world.plane.get_account_settings()).unwrap();
    let expected = json!({
        "AccountLimit": {"TotalCodeSize": 322_122_547_200_i64, "CodeSizeUnzipped": 262_144_000,
            "CodeSizeZipped": 52_428_800, "ConcurrentExecutions": 1000, "UnreservedConcurrentExecutions": 1000},
        "AccountUsage": {"TotalCodeSize": 5, "FunctionCount": 1},
    });
    assert_eq!(settings, expected);
}
