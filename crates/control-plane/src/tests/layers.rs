//! Layers and the functions that use them: sizes, packages that stay and packages that go.

use super::*;

fn layer_request(name: &str, content: &str) -> types::PublishLayerVersionRequest {
    types::PublishLayerVersionRequest {
        layer_name: Some(name.to_owned()),
        content: Some(types::LayerVersionContentInput {
            zip_file: Some(package(content)),
            ..types::LayerVersionContentInput::default()
        }),
        ..types::PublishLayerVersionRequest::default()
    }
}

async fn publish(world: &World, name: &str, content: &str) -> Result<String, ApiError> {
    let location = |name: &str, version: u64| format!("{name}/{version}");
    let answer = world.plane.publish_layer_version(&layer_request(name, content), NOW, location).await?;
    Ok(answer.layer_version_arn.unwrap())
}

async fn delete_version(world: &World, name: &str, number: i64) {
    let request = types::DeleteLayerVersionRequest { layer_name: Some(name.to_owned()), version_number: Some(number) };
    world.plane.delete_layer_version(&request).await.unwrap();
}

async fn stored(world: &World) -> usize {
    world.plane.settled().await;
    world.blobs.list().await.unwrap().len()
}

#[tokio::test]
async fn a_package_stays_while_a_layer_or_a_function_needs_it() {
    let mut world = World::new().await;
    let arn = publish(&world, "deps", "a layer").await.unwrap();
    let accepted =
        world.plane.create_function(&create_with("f", json!({"Layers": [arn.as_str()]})), NOW).await.unwrap();
    assert_eq!(accepted.work.as_ref().unwrap().version.settings.layers[0].arn, arn);
    world.settle(&accepted, Ok(())).await;
    assert_eq!(stored(&world).await, 2);
    delete_version(&world, "deps", 1).await;
    assert_eq!(stored(&world).await, 2, "the function uses it");
    world.restart().await;
    assert_eq!(stored(&world).await, 2, "the function uses it after a restart");
    let shown = world.configuration("f", None).unwrap().layers.unwrap();
    assert_eq!(shown[0].arn.as_deref(), Some(arn.as_str()));

    let without = world.configure(json!({"FunctionName": "f", "Layers": []})).await.unwrap();
    assert_eq!(stored(&world).await, 2, "invocations run what was before until the update is complete");
    world.settle(&without, Ok(())).await;
    assert_eq!(stored(&world).await, 1);
}

#[tokio::test]
async fn a_package_goes_with_the_last_layer_version_that_has_it() {
    let world = World::new().await;
    publish(&world, "one", "same").await.unwrap();
    publish(&world, "two", "same").await.unwrap();
    delete_version(&world, "one", 1).await;
    assert_eq!(stored(&world).await, 1);
    delete_version(&world, "two", 1).await;
    assert_eq!(stored(&world).await, 0);
}

#[tokio::test]
async fn layers_survive_a_restart_with_their_policies_and_numbers() {
    let mut world = World::new().await;
    publish(&world, "deps", "1").await.unwrap();
    publish(&world, "deps", "2").await.unwrap();
    let permission = types::AddLayerVersionPermissionRequest {
        layer_name: Some("deps".to_owned()),
        version_number: Some(1),
        statement_id: Some("all".to_owned()),
        action: Some("lambda:GetLayerVersion".to_owned()),
        principal: Some("*".to_owned()),
        organization_id: Some("o-0123456789".to_owned()),
        revision_id: None,
    };
    world.plane.add_layer_version_permission(&permission).await.unwrap();
    delete_version(&world, "deps", 2).await;
    world.restart().await;
    let asked = types::GetLayerVersionPolicyRequest { layer_name: Some("deps".to_owned()), version_number: Some(1) };
    let policy = world.plane.get_layer_version_policy(&asked).unwrap().policy.unwrap();
    let condition = r#""Condition":{"StringEquals":{"aws:PrincipalOrgID":"o-0123456789"}}"#;
    assert!(policy.contains(condition), "{policy}");
    assert!(publish(&world, "deps", "3").await.unwrap().ends_with(":layer:deps:3"));
    assert_eq!(stored(&world).await, 2);
}

#[tokio::test]
async fn code_and_layers_are_limited_together() {
    let limits = Limits { unzipped_code: 1_000, ..Limits::default() };
    let world = World::over(Arc::new(MemoryMetadata::new()), Arc::new(MemoryBlobs::new()), limits).await;
    let big = publish(&world, "big", &"x".repeat(900)).await.unwrap();
    let small = publish(&world, "small", &"x".repeat(200)).await.unwrap();
    let with = |arns: &[&String]| create_with("f", json!({"Layers": arns}));

    let refused = world.plane.create_function(&with(&[&big, &small]), NOW).await.unwrap_err();
    assert_eq!(refused.message, "Layers consume more than the available size of 1000 bytes");
    let mut request = with(&[&big]);
    request.code = Some(types::FunctionCode { zip_file: Some(package(&"y".repeat(101))), ..Default::default() });
    let refused = world.plane.create_function(&request, NOW).await.unwrap_err();
    let message = "Function code combined with layers exceeds the maximum allowed size of 1000 bytes. The actual size \
                   is 1001 bytes.";
    assert_eq!(said(&refused), ("InvalidParameterValueException", message));
    assert_eq!(stored(&world).await, 2, "the packages of refused functions are gone");

    let accepted = world.plane.create_function(&with(&[&big]), NOW).await.unwrap();
    world.settle(&accepted, Ok(())).await;
    let grown = world.plane.update_function_code(&code_request("f", &"y".repeat(101)), NOW).await.unwrap_err();
    assert_eq!(grown.message, message);
    let more = world.configure(json!({"FunctionName": "f", "Layers": [big, small]})).await.unwrap_err();
    assert_eq!(more.message, "Layers consume more than the available size of 1000 bytes");
    world.configure(json!({"FunctionName": "f", "Layers": [small]})).await.unwrap();
}

#[tokio::test]
async fn a_layer_in_use_may_be_deleted_while_functions_are_made_of_it() {
    let world = World::new().await;
    // Each round is a race between a deletion with its collection and a creation: whoever wins, a function that was
    // made has its layer's package.
    for round in 0..20 {
        let name = format!("layer-{round}");
        let arn = publish(&world, &name, &name).await.unwrap();
        let function = create_with(&format!("f-{round}"), json!({"Layers": [arn]}));
        let (created, ()) = tokio::join!(world.plane.create_function(&function, NOW), delete_version(&world, &name, 1));
        world.plane.settled().await;
        if let Ok(accepted) = created {
            let digest = accepted.work.unwrap().version.settings.layers[0].code.digest;
            assert!(world.blobs.list().await.unwrap().contains(&digest));
        }
    }
}
