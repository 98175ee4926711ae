//! Aliases: their rules, and what they lead to.

use serde_json::json;

use super::*;

const ARN: &str = "arn:aws:lambda:us-east-1:123456789012:function:f";

pub(super) fn alias(members: Value) -> types::CreateAliasRequest {
    let mut body = json!({"FunctionName": "f", "Name": "live", "FunctionVersion": "1"});
    for (member, value) in members.as_object().unwrap() {
        body[member] = value.clone();
    }
    serde_json::from_value(body).unwrap()
}

pub(super) fn change(members: Value) -> types::UpdateAliasRequest {
    let mut body = json!({"FunctionName": "f", "Name": "live"});
    for (member, value) in members.as_object().unwrap() {
        body[member] = value.clone();
    }
    serde_json::from_value(body).unwrap()
}

fn weights(version: &str, weight: f64) -> Value {
    json!({"AdditionalVersionWeights": {version: weight}})
}

fn delete(name: &str) -> types::DeleteAliasRequest {
    types::DeleteAliasRequest { function_name: Some("f".to_owned()), name: Some(name.to_owned()) }
}

/// A function `f` with the versions 1 and 2.
pub(super) async fn with_versions() -> World {
    let world = World::new().await;
    world.active("f").await;
    world.plane.publish_version(&publish_request("f")).await.unwrap();
    let accepted = world.configure(json!({"FunctionName": "f", "Timeout": 9})).await.unwrap();
    world.settle(&accepted, Ok(())).await;
    world.plane.publish_version(&publish_request("f")).await.unwrap();
    world
}

#[tokio::test]
async fn an_alias_leads_to_its_version_and_survives_a_restart() {
    let mut world = with_versions().await;
    let created = world.plane.create_alias(&alias(json!({"Description": "d"}))).await.unwrap();
    assert_eq!(created.alias_arn, Some(format!("{ARN}:live")));
    assert_eq!((created.function_version.as_deref(), created.description.as_deref()), (Some("1"), Some("d")));
    assert_eq!(created.routing_config, None);
    world.restart().await;
    let get = types::GetAliasRequest { function_name: Some("f".to_owned()), name: Some("live".to_owned()) };
    assert_eq!(world.plane.get_alias(&get).unwrap(), created);
    let resolved = world.plane.resolve("f", Some("live"), 0.0).unwrap();
    assert_eq!((resolved.version.id.to_string(), resolved.invoked_arn), ("1".to_owned(), format!("{ARN}:live")));
    let shown = world.configuration("f:live", None).unwrap();
    assert_eq!((shown.function_arn, shown.version.as_deref()), (Some(format!("{ARN}:live")), Some("1")));
}

#[tokio::test]
async fn weights_share_the_invocations() {
    let world = with_versions().await;
    world.plane.create_alias(&alias(json!({"RoutingConfig": weights("2", 0.25)}))).await.unwrap();
    let version = |chance| world.plane.resolve("f", Some("live"), chance).unwrap().version.id.to_string();
    assert_eq!([version(0.0), version(0.2499), version(0.25), version(0.9999)], ["2", "2", "1", "1"]);
    // Management reads show the main version.
    assert_eq!(world.configuration("f", Some("live")).unwrap().version.as_deref(), Some("1"));
    world.plane.update_alias(&change(json!({"RoutingConfig": weights("2", 0.0)}))).await.unwrap();
    assert_eq!(world.plane.resolve("f", Some("live"), 0.0).unwrap().version.id.to_string(), "1");
    world.plane.update_alias(&change(json!({"RoutingConfig": weights("2", 1.0)}))).await.unwrap();
    assert_eq!(world.plane.resolve("f", Some("live"), 0.9999).unwrap().version.id.to_string(), "2");
    let (updated, _) = world.plane.update_alias(&change(json!({"RoutingConfig": {}}))).await.unwrap();
    assert_eq!(updated.routing_config, None);
}

#[tokio::test]
async fn an_update_changes_what_it_names_and_always_the_revision() {
    let world = with_versions().await;
    let first = world
        .plane
        .create_alias(&alias(json!({"Description": "d", "RoutingConfig": weights("2", 0.5)})))
        .await
        .unwrap();
    let (same, _) = world.plane.update_alias(&change(json!({}))).await.unwrap();
    assert_ne!(same.revision_id, first.revision_id);
    assert_eq!(types::AliasConfiguration { revision_id: first.revision_id.clone(), ..same.clone() }, first);
    let stale = change(json!({"Description": "e", "RevisionId": first.revision_id}));
    let error = world.plane.update_alias(&stale).await.unwrap_err();
    assert_eq!((error.name, error.status), ("PreconditionFailedException", 412));
    let fresh = change(json!({"Description": "e", "RevisionId": same.revision_id}));
    let (updated, _) = world.plane.update_alias(&fresh).await.unwrap();
    assert_eq!(updated.description.as_deref(), Some("e"));
    assert_eq!(updated.routing_config, first.routing_config);
    let error = world.plane.update_alias(&change(json!({"FunctionVersion": "2"}))).await.unwrap_err();
    let expected = "Invalid function version 2. Function version 2 is already included in routing configuration.";
    assert_eq!(said(&error), ("InvalidParameterValueException", expected));
    let moved = change(json!({"FunctionVersion": "2", "RoutingConfig": weights("1", 0.1)}));
    assert_eq!(world.plane.update_alias(&moved).await.unwrap().0.function_version.as_deref(), Some("2"));
}

#[tokio::test]
async fn routings_that_cannot_be_are_refused() {
    let world = with_versions().await;
    let refused = async |members| {
        let error = world.plane.create_alias(&alias(members)).await.unwrap_err();
        (error.name, error.message)
    };
    let invalid = |text: &str| ("InvalidParameterValueException", text.to_owned());
    let absent = |text: String| ("ResourceNotFoundException", text);
    assert_eq!(
        refused(json!({"RoutingConfig": {"AdditionalVersionWeights": {"1": 0.1, "2": 0.1}}})).await,
        invalid("Number of items in AdditionalVersionWeights cannot be greater than 1")
    );
    assert_eq!(
        refused(json!({"RoutingConfig": weights("1", 0.1)})).await,
        invalid("Invalid function version 1. Function version 1 is already included in routing configuration.")
    );
    assert_eq!(
        refused(json!({"FunctionVersion": "$LATEST", "RoutingConfig": weights("1", 0.1)})).await,
        invalid("$LATEST is not supported for an alias pointing to more than 1 version")
    );
    assert_eq!(refused(json!({"FunctionVersion": "10"})).await, absent(format!("Function not found: {ARN}:10")));
    assert_eq!(
        refused(json!({"RoutingConfig": weights("10", 0.1)})).await,
        absent(format!("Function not found: {ARN}:10"))
    );
    assert_eq!(
        refused(json!({"RoutingConfig": weights("02", 0.1)})).await,
        absent(format!("Function not found: {ARN}:02"))
    );
    let other = "arn:aws:lambda:us-east-1:123456789012:function:g";
    assert_eq!(refused(json!({"FunctionName": "g"})).await, absent(format!("Function not found: {other}:1")));
    world.plane.create_alias(&alias(json!({}))).await.unwrap();
    let error = world.plane.create_alias(&alias(json!({}))).await.unwrap_err();
    let expected = format!("Alias already exists: {ARN}:live");
    assert_eq!((said(&error), error.status), (("ResourceConflictException", expected.as_str()), 409));
}

#[tokio::test]
async fn both_versions_of_an_alias_have_one_role() {
    let world = with_versions().await;
    let role = "arn:aws:iam::123456789012:role/other-role";
    let accepted = world.configure(json!({"FunctionName": "f", "Role": role})).await.unwrap();
    world.settle(&accepted, Ok(())).await;
    world.plane.publish_version(&publish_request("f")).await.unwrap();
    let error = world.plane.create_alias(&alias(json!({"RoutingConfig": weights("3", 0.1)}))).await.unwrap_err();
    assert_eq!(error.message, "Specified versions must be associated with the same execution role");
}

#[tokio::test]
async fn a_version_that_aliases_lead_to_stays() {
    let world = with_versions().await;
    world.plane.create_alias(&alias(json!({"RoutingConfig": weights("2", 0.1)}))).await.unwrap();
    world.plane.create_alias(&alias(json!({"Name": "also"}))).await.unwrap();
    let delete_version = async |number| world.plane.delete_function(&delete_request("f", Some(number))).await;
    for (number, names) in [("1", "also, live"), ("2", "live")] {
        let error = delete_version(number).await.unwrap_err();
        let expected = format!("Unable to delete version because the following aliases reference it: [{names}]");
        assert_eq!(said(&error), ("ResourceConflictException", expected.as_str()));
    }
    for name in ["live", "live", "also"] {
        world.plane.delete_alias(&delete(name)).await.unwrap();
    }
    assert_eq!(delete_version("1").await.unwrap().versions.len(), 1);
    assert_eq!(delete_version("1").await.unwrap().versions.len(), 0, "deleting again is no error");
    let error = world.plane.resolve("f", Some("live"), 0.0).unwrap_err();
    assert_eq!(error.message, format!("Function not found: {ARN}:live"));
}

#[tokio::test]
async fn absent_aliases_are_told_in_the_words_of_each_operation() {
    let world = with_versions().await;
    let get = |function: &str, name: &str| {
        let request = types::GetAliasRequest { function_name: Some(function.to_owned()), name: Some(name.to_owned()) };
        world.plane.get_alias(&request).unwrap_err().message
    };
    assert_eq!(get("f", "live"), format!("Cannot find alias arn: {ARN}:live"));
    assert_eq!(get("absent", "live"), "Function not found: arn:aws:lambda:us-east-1:123456789012:function:absent");
    let update = world.plane.update_alias(&change(json!({}))).await.unwrap_err();
    assert_eq!(update.message, format!("Alias not found: {ARN}:live"));
    let mismatch = "The derived qualifier from the function name does not match the specified qualifier.";
    assert_eq!(get("f:other", "live"), mismatch);
    assert_eq!(
        get("arn:aws:lambda:us-east-1:999999999999:function:f", "live"),
        "Function not found: arn:aws:lambda:us-east-1:999999999999:function:f"
    );
}

#[tokio::test]
async fn aliases_are_listed_by_name_and_by_version() {
    let world = with_versions().await;
    for (name, version) in [("c", "1"), ("a", "2"), ("b", "1"), ("latest", "$LATEST")] {
        world.plane.create_alias(&alias(json!({"Name": name, "FunctionVersion": version}))).await.unwrap();
    }
    let names = |version: Option<&str>, marker: Option<String>| {
        let request = types::ListAliasesRequest {
            function_name: Some("f".to_owned()),
            function_version: version.map(str::to_owned),
            marker,
            max_items: Some(2),
        };
        let listed = world.plane.list_aliases(&request).unwrap();
        let names: Vec<String> = listed.aliases.unwrap().into_iter().filter_map(|alias| alias.name).collect();
        (names.join(" "), listed.next_marker)
    };
    let (first, marker) = names(None, None);
    assert_eq!((first.as_str(), names(None, marker)), ("a b", ("c latest".to_owned(), None)));
    assert_eq!(names(Some("1"), None).0, "b c");
    assert_eq!(names(Some("$LATEST"), None).0, "latest");
    assert_eq!(names(Some("9"), None).0, "");
}
