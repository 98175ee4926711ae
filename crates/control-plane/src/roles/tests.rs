//! The rules of roles and the texts of their refusals.

use store::MemoryMetadata;

use super::*;

const TRUST: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"lambda.amazonaws.com"},"Action":"sts:AssumeRole"}]}"#;
const BASIC: &str = "arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole";
const NOW: Timestamp = Timestamp(1_767_323_045_678);

async fn roles(metadata: &Arc<MemoryMetadata>) -> Roles {
    Roles::open(Arc::clone(metadata) as Arc<dyn Metadata>, "123456789012".to_owned()).await.unwrap()
}

fn new(name: &str) -> NewRole {
    NewRole { name: name.to_owned(), trust_policy: TRUST.to_owned(), ..NewRole::default() }
}

#[tokio::test]
async fn a_role_lives_through_the_lab() {
    let metadata = Arc::new(MemoryMetadata::new());
    let before = roles(&metadata).await;
    let role = before.create(new("lambda-ex"), NOW).await.unwrap();
    assert_eq!(role.arn, "arn:aws:iam::123456789012:role/lambda-ex");
    assert!(role.id.starts_with("AROA") && role.id.len() == 21, "{}", role.id);
    assert_eq!((role.path.as_str(), role.max_session_secs, role.trust_policy.as_str()), ("/", 3_600, TRUST));
    before.attach("lambda-ex", BASIC).await.unwrap();
    before.attach("lambda-ex", BASIC).await.unwrap();

    let after = roles(&metadata).await;
    let role = after.get("lambda-ex").unwrap();
    assert_eq!(role.attached[BASIC], "AWSLambdaBasicExecutionRole");
    let error = after.delete("lambda-ex").await.unwrap_err();
    assert_eq!((error.code(), error.status()), ("DeleteConflict", 409));
    assert_eq!(error.to_string(), "Cannot delete entity, must detach all policies first.");
    after.detach("lambda-ex", BASIC).await.unwrap();
    let error = after.detach("lambda-ex", BASIC).await.unwrap_err();
    assert_eq!((error.code(), error.to_string()), ("NoSuchEntity", format!("Policy {BASIC} was not found.")));
    after.delete("lambda-ex").await.unwrap();
    let error = after.get("lambda-ex").unwrap_err();
    assert_eq!((error.code(), error.status()), ("NoSuchEntity", 404));
    assert_eq!(error.to_string(), "The role with name lambda-ex cannot be found.");
    assert!(roles(&metadata).await.list("/").is_empty());
}

#[tokio::test]
async fn names_are_unique_whatever_their_case() {
    let roles = roles(&Arc::default()).await;
    roles.create(new("Role"), NOW).await.unwrap();
    let error = roles.create(new("ROLE"), NOW).await.unwrap_err();
    assert_eq!((error.code(), error.status()), ("EntityAlreadyExists", 409));
    assert_eq!(error.to_string(), "Role with name Role already exists.");
    assert_eq!(roles.get("role").unwrap().name, "Role");
}

#[tokio::test]
async fn inline_policies_come_and_go() {
    let roles = roles(&Arc::default()).await;
    roles.create(new("r"), NOW).await.unwrap();
    let policy = r#"{"Statement":{"Effect":"Allow","Action":"s3:*","Resource":"*"}}"#;
    roles.put_inline("r", "p", policy).await.unwrap();
    assert_eq!(roles.get_inline("r", "p").unwrap(), policy);
    let error = roles.delete("r").await.unwrap_err();
    assert_eq!(error.to_string(), "Cannot delete entity, must delete policies first.");
    roles.delete_inline("r", "p").await.unwrap();
    let error = roles.delete_inline("r", "p").await.unwrap_err();
    assert_eq!(error.to_string(), "The role policy with name p cannot be found.");
    assert_eq!(roles.get_inline("r", "p").unwrap_err().code(), "NoSuchEntity");
    roles.delete("r").await.unwrap();
}

#[tokio::test]
async fn roles_change() {
    let roles = roles(&Arc::default()).await;
    roles.create(new("r"), NOW).await.unwrap();
    roles.update("r", Some("d".to_owned()), None).await.unwrap();
    roles.update("r", None, Some(7_200)).await.unwrap();
    roles.tag("r", [("k".to_owned(), "v".to_owned()), ("l".to_owned(), "w".to_owned())].into()).await.unwrap();
    roles.untag("r", &["k".to_owned(), "absent".to_owned()]).await.unwrap();
    let role = roles.get("r").unwrap();
    assert_eq!((role.description.as_deref(), role.max_session_secs), (Some("d"), 7_200));
    assert_eq!(role.tags, BTreeMap::from([("l".to_owned(), "w".to_owned())]));
    assert_eq!(roles.update("r", None, Some(60)).await.unwrap_err().code(), "ValidationError");
    let error = roles.update_trust_policy("r", "{}").await.unwrap_err();
    assert_eq!((error.code(), error.status()), ("MalformedPolicyDocument", 400));
}

#[tokio::test]
async fn malformed_requests_are_refused() {
    let roles = roles(&Arc::default()).await;
    for name in ["", "a b", &"n".repeat(65)] {
        assert_eq!(roles.create(new(name), NOW).await.unwrap_err().code(), "ValidationError", "{name}");
    }
    for path in ["x", "/x", "x/", "/ü/"] {
        let role = NewRole { path: Some(path.to_owned()), ..new("r") };
        assert_eq!(roles.create(role, NOW).await.unwrap_err().code(), "ValidationError", "{path}");
    }
    for policy in [
        "",
        "[]",
        "{}",
        r#"{"Statement":[{"Effect":"Allow","Action":"sts:AssumeRole"}]}"#,
        r#"{"Statement":[{"Effect":"Maybe","Principal":"*","Action":"sts:AssumeRole"}]}"#,
        r#"{"Statement":[{"Effect":"Allow","Principal":"*","Action":"sts:AssumeRole","Resource":"*"}]}"#,
        r#"{"Statement":[{"Effect":"Allow","Principal":"*"}]}"#,
    ] {
        let role = NewRole { trust_policy: policy.to_owned(), ..new("r") };
        assert_eq!(roles.create(role, NOW).await.unwrap_err().code(), "MalformedPolicyDocument", "{policy}");
    }
    roles.create(NewRole { path: Some("/service-role/".to_owned()), ..new("r") }, NOW).await.unwrap();
    assert_eq!(roles.get("r").unwrap().arn, "arn:aws:iam::123456789012:role/service-role/r");
    for arn in ["short", "arn:aws:s3:::bucket/that-is-long-enough", "arn:aws:iam::aws:role/not-a-policy"] {
        assert_eq!(roles.attach("r", arn).await.unwrap_err().code(), "ValidationError", "{arn}");
    }
    assert_eq!(roles.attach("absent", BASIC).await.unwrap_err().code(), "NoSuchEntity");
}

#[tokio::test]
async fn lists_are_by_path() {
    let roles = roles(&Arc::default()).await;
    roles.create(new("b"), NOW).await.unwrap();
    roles.create(NewRole { path: Some("/x/".to_owned()), ..new("a") }, NOW).await.unwrap();
    let names = |prefix| roles.list(prefix).iter().map(|role| role.name.clone()).collect::<Vec<_>>();
    assert_eq!(names("/"), ["a", "b"]);
    assert_eq!(names("/x/"), ["a"]);
}
