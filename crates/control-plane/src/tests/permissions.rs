//! Resource policies: statements, their scopes and their revisions.

use super::*;

/// Version 1 and the alias `live` on it.
pub(super) async fn published(world: &World, name: &str) {
    world.active(name).await;
    world.plane.publish_version(&publish_request(name)).await.unwrap();
    give_alias(world, name, "live").await;
}

pub(super) async fn give_alias(world: &World, name: &str, alias: &str) {
    let request = json!({"FunctionName": name, "Name": alias, "FunctionVersion": "1"});
    world.plane.create_alias(&serde_json::from_value(request).unwrap()).await.unwrap();
}

fn request(name: &str, sid: &str, members: Value) -> types::AddPermissionRequest {
    let mut body = json!({
        "FunctionName": name, "StatementId": sid, "Action": "lambda:InvokeFunction", "Principal": "s3.amazonaws.com"
    });
    for (member, value) in members.as_object().unwrap() {
        body[member] = value.clone();
    }
    serde_json::from_value(body).unwrap()
}

async fn add(world: &World, name: &str, sid: &str, members: Value) -> Result<Value, ApiError> {
    let response = world.plane.add_permission(&request(name, sid, members)).await?;
    Ok(serde_json::from_str(&response.statement.unwrap()).unwrap())
}

async fn remove(world: &World, name: &str, sid: &str, revision: Option<&str>) -> Result<(), ApiError> {
    let request = json!({"FunctionName": name, "StatementId": sid, "RevisionId": revision});
    world.plane.remove_permission(&serde_json::from_value(request).unwrap()).await
}

fn policy(world: &World, name: &str, qualifier: Option<&str>) -> Result<(Value, String), ApiError> {
    let request = json!({"FunctionName": name, "Qualifier": qualifier});
    let response = world.plane.get_policy(&serde_json::from_value(request).unwrap())?;
    Ok((serde_json::from_str(&response.policy.unwrap()).unwrap(), response.revision_id.unwrap()))
}

#[tokio::test]
async fn principals_and_conditions_are_written_as_lambda_writes_them() {
    let world = World::new().await;
    world.active("f").await;
    let cases = [
        (json!({"Principal": "*"}), json!("*"), json!({})),
        (json!({"Principal": "210987654321"}), json!({"AWS": "arn:aws:iam::210987654321:root"}), json!({})),
        (
            json!({"Principal": "arn:aws:iam::210987654321:user/u", "PrincipalOrgID": "o-1234567890"}),
            json!({"AWS": "arn:aws:iam::210987654321:user/u"}),
            json!({"StringEquals": {"aws:PrincipalOrgID": "o-1234567890"}}),
        ),
        (
            json!({"SourceArn": "arn:aws:s3:::b", "SourceAccount": "210987654321", "EventSourceToken": "token"}),
            json!({"Service": "s3.amazonaws.com"}),
            json!({"ArnLike": {"AWS:SourceArn": "arn:aws:s3:::b"},
                   "StringEquals": {"AWS:SourceAccount": "210987654321", "lambda:EventSourceToken": "token"}}),
        ),
        (
            json!({"Principal": "*", "Action": "lambda:InvokeFunctionUrl", "FunctionUrlAuthType": "NONE"}),
            json!("*"),
            json!({"StringEquals": {"lambda:FunctionUrlAuthType": "NONE"}}),
        ),
        (
            json!({"Principal": "*", "InvokedViaFunctionUrl": true}),
            json!("*"),
            json!({"Bool": {"lambda:InvokedViaFunctionUrl": "true"}}),
        ),
        (json!({"InvokedViaFunctionUrl": false}), json!({"Service": "s3.amazonaws.com"}), json!({})),
    ];
    for (number, (members, principal, condition)) in cases.into_iter().enumerate() {
        let statement = add(&world, "f", &format!("s{number}"), members).await.unwrap();
        assert_eq!(statement["Principal"], principal);
        assert_eq!(statement.get("Condition").cloned().unwrap_or(json!({})), condition);
    }
    for principal in ["invalid.nonaws.com", "example.com", ".amazonaws.com", "arn:aws:s3:::b", "12345"] {
        let error = add(&world, "f", "bad", json!({"Principal": principal})).await.unwrap_err();
        assert_eq!(error.message, "The provided principal was invalid. Please check the principal and try again.");
    }
    let error = add(&world, "f", "bad", json!({"FunctionUrlAuthType": "NONE"})).await.unwrap_err();
    assert_eq!(error.message, "FunctionUrlAuthType is only supported for lambda:InvokeFunctionUrl action");
}

#[tokio::test]
async fn every_qualifier_has_a_policy_and_a_revision_of_its_own() {
    let world = World::new().await;
    published(&world, "f").await;
    let mut revisions = Vec::new();
    for (qualifier, arn) in [(None, "function:f"), (Some("1"), "function:f:1"), (Some("live"), "function:f:live")] {
        let statement = add(&world, "f", "s", json!({"Qualifier": qualifier})).await.unwrap();
        assert!(statement["Resource"].as_str().unwrap().ends_with(arn));
        let (document, revision) = policy(&world, "f", qualifier).unwrap();
        assert_eq!(document["Statement"], json!([statement]));
        assert!(!revisions.contains(&revision));
        revisions.push(revision);
    }
    // The revision of a policy is that of what it belongs to.
    let function = world.plane.function("f").unwrap();
    let records = [&function.latest.revision_id, &function.versions[&1].revision_id];
    assert_eq!(records, [&revisions[0], &revisions[1]]);
    assert_eq!(function.attached.aliases["live"].revision_id, revisions[2]);
    // Publishing again finds nothing changed.
    let again = world.plane.publish_version(&publish_request("f")).await.unwrap().configuration;
    assert_eq!(again.version.as_deref(), Some("1"));
}

#[tokio::test]
async fn a_stale_revision_is_refused_and_changes_nothing() {
    let world = World::new().await;
    world.active("f").await;
    let before = world.plane.function("f").unwrap().latest.revision_id.clone();
    add(&world, "f", "a", json!({"RevisionId": before})).await.unwrap();
    let (document, current) = policy(&world, "f", None).unwrap();
    let error = add(&world, "f", "b", json!({"RevisionId": before})).await.unwrap_err();
    assert_eq!((error.status, error.name), (412, "PreconditionFailedException"));
    assert!(error.message.contains("GetPolicy"));
    assert_eq!(remove(&world, "f", "a", Some(&before)).await.unwrap_err(), error);
    assert_eq!(policy(&world, "f", None).unwrap(), (document, current.clone()));
    remove(&world, "f", "a", Some(&current)).await.unwrap();
    assert_ne!(world.plane.function("f").unwrap().latest.revision_id, current);
}

#[tokio::test]
async fn a_policy_added_while_pending_does_not_lose_the_work() {
    let world = World::new().await;
    let accepted = world.create("f").await;
    add(&world, "f", "a", json!({})).await.unwrap();
    world.settle(&accepted, Ok(())).await;
    let state = world.configuration("f", None).unwrap().state;
    assert_eq!(state.as_deref(), Some("Active"));
}

#[tokio::test]
async fn a_policy_goes_with_its_last_statement_and_with_its_version() {
    let mut world = World::new().await;
    world.active("f").await;
    world.plane.publish_version(&publish_request("f")).await.unwrap();
    add(&world, "f", "a", json!({})).await.unwrap();
    add(&world, "f", "a", json!({"Qualifier": "1"})).await.unwrap();
    remove(&world, "f", "a", None).await.unwrap();
    let gone = policy(&world, "f", None).unwrap_err();
    assert_eq!(said(&gone), ("ResourceNotFoundException", "The resource you requested does not exist."));
    world.restart().await;
    assert!(policy(&world, "f", Some("1")).is_ok());
    world.plane.delete_function(&delete_request("f", Some("1"))).await.unwrap();
    assert_eq!(policy(&world, "f", Some("1")).unwrap_err(), gone);
    assert!(world.plane.function("f").unwrap().attached.policies.is_empty());
}

#[tokio::test]
async fn a_policy_has_twenty_kibibytes_at_most() {
    let world = World::new().await;
    world.active("f").await;
    let mut count = 0;
    let error = loop {
        let sid = format!("{count:0100}");
        match add(&world, "f", &sid, json!({"SourceArn": format!("arn:aws:s3:::{}", "b".repeat(800))})).await {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.name, "PolicyLengthExceededException");
    assert!(error.message.starts_with("The final policy size (2"), "{}", error.message);
    assert!(error.message.ends_with(") is bigger than the limit (20480)."), "{}", error.message);
    let (document, _) = policy(&world, "f", None).unwrap();
    assert_eq!(document["Statement"].as_array().unwrap().len(), count);
    assert!(document.to_string().len() <= 20_480);
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let world = World::new().await;
    published(&world, "f").await;
    let arn = "arn:aws:lambda:us-east-1:123456789012:function";
    let error = add(&world, "f", "s", json!({"Qualifier": "nolive"})).await.unwrap_err();
    assert_eq!(error.message, format!("Cannot find alias arn: {arn}:f:nolive"));
    for qualifier in ["42", "with-$-inside"] {
        let error = add(&world, "f", "s", json!({"Qualifier": qualifier})).await.unwrap_err();
        assert_eq!(error.message, format!("Function not found: {arn}:f:{qualifier}"));
    }
    let elsewhere = "arn:aws:lambda:us-east-1:210987654321:function:f";
    let error = add(&world, elsewhere, "s", json!({})).await.unwrap_err();
    assert_eq!(error.message, format!("Function not found: {elsewhere}"));
}
