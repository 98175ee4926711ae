//! The rules of evaluation, against examples and against a plain model.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::record::Timestamp;
use crate::sessions::{NewSession, Sessions};

const FUNCTION: &str = "arn:aws:lambda:us-east-1:000000000000:function:f";

fn session() -> Session {
    let sessions = Sessions::new(&[0; 32]);
    let new = NewSession {
        role: "arn:aws:iam::000000000000:role/r",
        role_id: "AROAX",
        name: "me",
        policy: None,
        duration: Duration::from_secs(1),
    };
    let given = sessions.issue(&new, Timestamp(0)).unwrap();
    sessions.open(&given.access_key_id, &given.session_token, Timestamp(0)).unwrap()
}

fn policy(statements: &str) -> Document {
    Document::parse(&format!(r#"{{"Version":"2012-10-17","Statement":[{statements}]}}"#)).unwrap()
}

fn judge(who: Who<'_>, identity: &[&str], resource: Option<&str>, context: &[(&str, &str)]) -> Verdict {
    let identity: Vec<Document> = identity.iter().map(|text| policy(text)).collect();
    let resource = resource.map(policy);
    let context = context.iter().map(|(key, value)| ((*key).to_owned(), vec![(*value).to_owned()])).collect();
    let access = Access { who, action: "lambda:InvokeFunction", resource: FUNCTION, context };
    evaluate(&access, &Policies { identity: &identity, session: None, resource: resource.as_ref() })
}

fn allows(identity: &str) -> bool {
    let session = session();
    judge(Who::Session(&session), &[identity], None, &[("aws:userid", "AROAX:me"), ("lambda:name", "f")])
        == Verdict::Allowed
}

#[test]
fn actions_and_resources_have_wildcards() {
    let with = |action: &str, resource: &str| {
        allows(&format!(r#"{{"Effect":"Allow","Action":"{action}","Resource":"{resource}"}}"#))
    };
    assert!(with("*", "*"));
    assert!(with("lambda:*", "arn:aws:lambda:*:*:function:*"));
    assert!(with("LAMBDA:invokefunction", FUNCTION));
    assert!(with("lambda:Invoke*", "arn:aws:lambda:us-east-?:000000000000:function:f*"));
    assert!(!with("lambda:InvokeFunction", &format!("{FUNCTION}:*")));
    assert!(!with("lambda:GetFunction", "*"));
    assert!(!with("lambda:InvokeFunctionUrl", "*"));
    assert!(!with("s3:*", "*"));
    // A wildcard does not reach into the next part of an ARN.
    assert!(!with("*", "arn:aws:*:000000000000:function:f"));
    assert!(with("*", "arn:aws:lambda:us-east-1:000000000000:function:${lambda:name}"));
    assert!(!with("*", "arn:aws:lambda:us-east-1:000000000000:function:${lambda:absent}"));
    assert!(with("*", "arn:aws:lambda:us-east-1:000000000000:function:${lambda:absent, 'f'}"));
    assert!(!with("*", "arn:aws:lambda:us-east-1:000000000000:function:${*}"));
    assert!(allows(r#"{"Effect":"Allow","NotAction":"s3:*","NotResource":["arn:aws:s3:::b"]}"#));
    assert!(!allows(r#"{"Effect":"Allow","NotAction":["s3:*","lambda:*"],"Resource":"*"}"#));
}

#[test]
fn a_deny_wins_wherever_it_stands() {
    let session = session();
    let who = Who::Session(&session);
    let (allow, deny) = (
        r#"{"Effect":"Allow","Action":"*","Resource":"*"}"#,
        r#"{"Effect":"Deny","Action":"lambda:Invoke*","Resource":"*"}"#,
    );
    assert_eq!(judge(who, &[], None, &[]), Verdict::NotAllowed(Kind::Identity));
    assert_eq!(judge(who, &[allow], None, &[]), Verdict::Allowed);
    assert_eq!(judge(who, &[allow, deny], None, &[]), Verdict::Denied(Kind::Identity));
    let resource = r#"{"Effect":"Deny","Principal":"*","Action":"*","Resource":"*"}"#;
    assert_eq!(judge(who, &[allow], Some(resource), &[]), Verdict::Denied(Kind::Resource));
}

#[test]
fn a_resource_lets_in_whom_it_names() {
    let session = session();
    let named = |principal: &str| {
        format!(
            r#"{{"Effect":"Allow","Principal":{principal},"Action":"lambda:InvokeFunction","Resource":"{FUNCTION}"}}"#
        )
    };
    let judge = |who, principal: &str| judge(who, &[], Some(&named(principal)), &[]);
    let role = Who::Session(&session);
    for principal in [
        r#""*""#,
        r#"{"AWS":"*"}"#,
        r#"{"AWS":"arn:aws:iam::000000000000:role/r"}"#,
        r#"{"AWS":["x","arn:aws:sts::000000000000:assumed-role/r/me"]}"#,
        r#"{"AWS":"AROAX"}"#,
    ] {
        assert_eq!(judge(role, principal), Verdict::Allowed, "{principal}");
    }
    // The account alone leaves the decision to the role's own policies.
    for principal in [
        r#"{"AWS":"000000000000"}"#,
        r#"{"AWS":"arn:aws:iam::000000000000:root"}"#,
        r#"{"AWS":"arn:aws:iam::000000000000:role/other"}"#,
        r#"{"Service":"s3.amazonaws.com"}"#,
    ] {
        assert_eq!(judge(role, principal), Verdict::NotAllowed(Kind::Identity), "{principal}");
    }
    let s3 = Who::Service("s3.amazonaws.com");
    assert_eq!(judge(s3, r#"{"Service":"s3.amazonaws.com"}"#), Verdict::Allowed);
    assert_eq!(judge(s3, r#"{"Service":"sns.amazonaws.com"}"#), Verdict::NotAllowed(Kind::Resource));
    assert_eq!(judge(Who::Anonymous, r#"{"AWS":"000000000000"}"#), Verdict::NotAllowed(Kind::Resource));
    assert_eq!(judge(Who::Anonymous, r#""*""#), Verdict::Allowed);
}

#[test]
fn conditions_of_lambdas_policies() {
    let s3 = Who::Service("s3.amazonaws.com");
    let holds = |condition: &str, context: &[(&str, &str)]| {
        let statement = format!(
            r#"{{"Effect":"Allow","Principal":{{"Service":"s3.amazonaws.com"}},"Action":"*","Resource":"*","Condition":{condition}}}"#
        );
        judge(s3, &[], Some(&statement), context) == Verdict::Allowed
    };
    let bucket = [("aws:sourcearn", "arn:aws:s3:::bucket"), ("aws:sourceaccount", "000000000000")];
    assert!(holds(
        r#"{"ArnLike":{"AWS:SourceArn":"arn:aws:s3:::b*"},"StringEquals":{"AWS:SourceAccount":"000000000000"}}"#,
        &bucket
    ));
    assert!(!holds(
        r#"{"ArnLike":{"AWS:SourceArn":"arn:aws:s3:::b*"},"StringEquals":{"AWS:SourceAccount":"1"}}"#,
        &bucket
    ));
    assert!(!holds(r#"{"ArnLike":{"AWS:SourceArn":"arn:aws:s3:::b*"}}"#, &[]));
    assert!(holds(r#"{"ArnLikeIfExists":{"AWS:SourceArn":"arn:aws:s3:::b*"}}"#, &[]));
    assert!(holds(r#"{"StringNotEquals":{"aws:SourceAccount":["1","2"]}}"#, &bucket));
    assert!(holds(r#"{"StringNotEquals":{"aws:SourceAccount":["1","2"]}}"#, &[]));
    assert!(!holds(r#"{"StringNotEquals":{"aws:SourceAccount":["1","000000000000"]}}"#, &bucket));
    let url = [("lambda:functionurlauthtype", "NONE")];
    assert!(holds(r#"{"StringEquals":{"lambda:FunctionUrlAuthType":"NONE"}}"#, &url));
    assert!(!holds(r#"{"StringEquals":{"lambda:FunctionUrlAuthType":"none"}}"#, &url));
    assert!(holds(r#"{"StringEqualsIgnoreCase":{"lambda:FunctionUrlAuthType":"none"}}"#, &url));
    assert!(holds(r#"{"Bool":{"lambda:InvokedViaFunctionUrl":true}}"#, &[("lambda:invokedviafunctionurl", "true")]));
    assert!(holds(r#"{"Null":{"aws:PrincipalOrgID":"true"}}"#, &[]));
    assert!(!holds(r#"{"Null":{"aws:PrincipalOrgID":"true"}}"#, &[("aws:principalorgid", "o-1")]));
    assert!(holds(r#"{"NumericLessThan":{"k":"10"}}"#, &[("k", "9")]));
    assert!(!holds(r#"{"NumericLessThan":{"k":"10"}}"#, &[("k", "ten")]));
    let now = [("aws:currenttime", "1767323045")];
    assert!(holds(r#"{"DateGreaterThan":{"aws:CurrentTime":"2026-01-01T00:00:00Z"}}"#, &now));
    assert!(!holds(r#"{"DateLessThan":{"aws:CurrentTime":"2026-01-01"}}"#, &now));
    let ip = [("aws:sourceip", "203.0.113.9")];
    assert!(holds(r#"{"IpAddress":{"aws:SourceIp":["192.0.2.1","203.0.113.0/24"]}}"#, &ip));
    assert!(holds(r#"{"IpAddress":{"aws:SourceIp":"0.0.0.0/0"}}"#, &ip));
    assert!(!holds(r#"{"NotIpAddress":{"aws:SourceIp":"203.0.113.9"}}"#, &ip));
    assert!(!holds(r#"{"ForAnyValue:StringLike":{"k":"*"}}"#, &[]));
    assert!(holds(r#"{"ForAllValues:StringLike":{"k":"a*"}}"#, &[("k", "ab")]));
}

#[test]
fn what_is_not_understood_is_refused_and_denies_everything() {
    for (text, expected) in [
        ("", Malformed::Json),
        ("{}", Malformed::Missing("Statement")),
        (r#"{"Version":"2020-01-01","Statement":[]}"#, Malformed::Version),
        (r#"{"Statement":[{"Effect":"Allow","Resource":"*"}]}"#, Malformed::Missing("Action")),
        (r#"{"Statement":[{"Effect":"Allow","Action":{},"Resource":"*"}]}"#, Malformed::Syntax),
        (r#"{"Statement":[{"Effect":"Allow","Principal":"me","Action":"*"}]}"#, Malformed::Syntax),
        (
            r#"{"Statement":{"Effect":"Allow","Action":"*","Resource":"*","Condition":{"StringSame":{"a":"b"}}}}"#,
            Malformed::Operator("StringSame".to_owned()),
        ),
    ] {
        assert_eq!(Document::parse(text), Err(expected), "{text}");
        let session = session();
        let access = Access { who: Who::Session(&session), action: "a:b", resource: "*", context: Context::new() };
        assert_eq!(Document::parse_or_deny(text).effect(&access, None), Some(Effect::Deny));
    }
}

#[test]
fn the_managed_policies_are_documents() {
    for name in [
        "AdministratorAccess",
        "AWSLambda_FullAccess",
        "AWSLambdaRole",
        "service-role/AWSLambdaBasicExecutionRole",
        "ReadOnlyAccess",
        "service-role/AWSLambdaVPCAccessExecutionRole",
        "AWSXRayDaemonWriteAccess",
    ] {
        let text = managed(&format!("arn:aws:iam::aws:policy/{name}")).unwrap();
        assert!(Document::parse(&text).is_ok(), "{name}");
    }
    assert_eq!(managed("arn:aws:iam::aws:policy/Unknown"), None);
    assert_eq!(managed("arn:aws:iam::000000000000:policy/AdministratorAccess"), None);
}

#[tokio::test]
async fn a_role_is_allowed_what_its_policies_say_and_no_longer() {
    use crate::roles::{NewPolicy, NewRole};
    let metadata = Arc::new(store::MemoryMetadata::new());
    let blobs = Arc::new(store::MemoryBlobs::default());
    let settings = crate::Settings {
        account_id: "000000000000".to_owned(),
        region: "us-east-1".to_owned(),
        limits: crate::Limits::default(),
        objects: Arc::new(crate::objects::NoObjects),
    };
    let plane = ControlPlane::open(metadata, blobs, settings).await.unwrap();
    let trust = r#"{"Statement":[{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::000000000000:root","Service":"lambda.amazonaws.com"},"Action":"sts:AssumeRole"}]}"#;
    let new = NewRole { name: "r".to_owned(), trust_policy: trust.to_owned(), ..NewRole::default() };
    let role = plane.roles().create(new, Timestamp(0)).await.unwrap();
    assert!(plane.trusts(&role, Who::Root) && plane.trusts(&role, Who::Service("lambda.amazonaws.com")));
    assert!(!plane.trusts(&role, Who::Service("ec2.amazonaws.com")) && !plane.trusts(&role, Who::Anonymous));
    let sessions = Sessions::new(&[0; 32]);
    let begin = |policy| {
        let new =
            NewSession { role: &role.arn, role_id: &role.id, name: "me", policy, duration: Duration::from_secs(9) };
        let given = sessions.issue(&new, Timestamp(0)).unwrap();
        sessions.open(&given.access_key_id, &given.session_token, Timestamp(0)).unwrap()
    };
    let (whole, narrow) =
        (begin(None), begin(Some(r#"{"Statement":{"Effect":"Allow","Action":"s3:*","Resource":"*"}}"#)));
    let ask = |session: &Session| {
        let access = Access {
            who: Who::Session(session),
            action: "lambda:InvokeFunction",
            resource: FUNCTION,
            context: Context::new(),
        };
        plane.authorize(&access, None).map_err(|denied| denied.to_string())
    };
    let user = "User: arn:aws:sts::000000000000:assumed-role/r/me is not authorized to perform: lambda:InvokeFunction on \
                resource: arn:aws:lambda:us-east-1:000000000000:function:f";
    let none = "because no identity-based policy allows the lambda:InvokeFunction action";
    assert_eq!(ask(&whole), Err(format!("{user} {none}")));
    let document = r#"{"Statement":[{"Effect":"Allow","Action":"lambda:*","Resource":"*"}]}"#;
    let policy = NewPolicy { name: "p".to_owned(), document: document.to_owned(), ..NewPolicy::default() };
    let arn = plane.roles().create_policy(policy, Timestamp(0)).await.unwrap().arn.clone();
    plane.roles().attach("r", &arn).await.unwrap();
    assert_eq!(ask(&whole), Ok(()));
    assert_eq!(ask(&narrow), Err(format!("{user} because no session policy allows the lambda:InvokeFunction action")));
    assert_eq!(plane.roles().delete_policy(&arn).await.unwrap_err().code(), "DeleteConflict");
    let deny = r#"{"Statement":[{"Effect":"Deny","Action":"lambda:*","Resource":"*"}]}"#;
    assert_eq!(plane.roles().create_policy_version(&arn, deny, true, Timestamp(1)).await, Ok(2));
    assert_eq!(ask(&whole), Err(format!("{user} with an explicit deny in an identity-based policy")));
    plane.roles().set_default_policy_version(&arn, "v1", Timestamp(2)).await.unwrap();
    assert_eq!(ask(&whole), Ok(()));
    plane.roles().detach("r", &arn).await.unwrap();
    assert_eq!(ask(&whole), Err(format!("{user} {none}")));
    assert_eq!(plane.roles().delete_policy(&arn).await.unwrap_err().code(), "DeleteConflict");
    plane.roles().delete_policy_version(&arn, "v2").await.unwrap();
    plane.roles().delete_policy(&arn).await.unwrap();
    // A role that was made again under the same name is another one.
    plane.roles().attach("r", "arn:aws:iam::aws:policy/AdministratorAccess").await.unwrap();
    assert_eq!(ask(&whole), Ok(()));
    plane.roles().detach("r", "arn:aws:iam::aws:policy/AdministratorAccess").await.unwrap();
    plane.roles().delete("r").await.unwrap();
    let new = NewRole { name: "r".to_owned(), trust_policy: trust.to_owned(), ..NewRole::default() };
    plane.roles().create(new, Timestamp(0)).await.unwrap();
    plane.roles().attach("r", "arn:aws:iam::aws:policy/AdministratorAccess").await.unwrap();
    assert_eq!(ask(&whole), Err(format!("{user} {none}")));
}

/// One statement as a model sees it: whether it allows, its action, its resource.
type Plain = (bool, &'static str, &'static str);

fn plain() -> impl Strategy<Value = Plain> {
    let actions = proptest::sample::select(vec!["a:b", "a:*", "a:c", "*", "a:?", "?:b", "b:b"]);
    let resources = proptest::sample::select(vec!["*", "x", "y", "x*", "?", "xy"]);
    (any::<bool>(), actions, resources)
}

/// By trying every way to split: what `*` means, said plainly.
fn naive(pattern: &str, text: &str) -> bool {
    match (pattern.chars().next(), text.chars().next()) {
        (None, None) => true,
        (Some('*'), _) => {
            naive(&pattern[1..], text) || text.chars().next().is_some_and(|c| naive(pattern, &text[c.len_utf8()..]))
        }
        (Some('?'), Some(c)) => naive(&pattern[1..], &text[c.len_utf8()..]),
        (Some(p), Some(c)) if p == c => naive(&pattern[p.len_utf8()..], &text[c.len_utf8()..]),
        _ => false,
    }
}

proptest! {
    #[test]
    fn wildcards_mean_what_they_mean(pattern in "[ab*?é]{0,7}", text in "[abé]{0,8}") {
        prop_assert_eq!(pattern::fits(&pattern, &text, &Context::new()), naive(&pattern, &text));
    }

    #[test]
    fn evaluation_is_deny_over_allow_over_nothing(
        statements in proptest::collection::vec(plain(), 0..6),
        action in proptest::sample::select(vec!["a:b", "a:c", "b:b", "A:B"]),
        resource in proptest::sample::select(vec!["x", "y", "xy", "z"]),
    ) {
        let session = session();
        let texts: Vec<String> = statements.iter().map(|(allow, action, resource)| {
            let effect = if *allow { "Allow" } else { "Deny" };
            format!(r#"{{"Effect":"{effect}","Action":["{action}"],"Resource":"{resource}"}}"#)
        }).collect();
        let document = policy(&texts.join(","));
        let access = Access { who: Who::Session(&session), action, resource, context: Context::new() };
        let found = evaluate(&access, &Policies { identity: &[document], session: None, resource: None });
        let applies: Vec<bool> = statements.iter()
            .filter(|(_, a, r)| naive(a, &action.to_lowercase()) && naive(r, resource))
            .map(|(allow, ..)| *allow)
            .collect();
        let expected = if applies.contains(&false) {
            Verdict::Denied(Kind::Identity)
        } else if applies.contains(&true) {
            Verdict::Allowed
        } else {
            Verdict::NotAllowed(Kind::Identity)
        };
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn no_document_and_no_condition_panics(text in "\\PC{0,40}", operator in "[A-Za-z:]{0,20}", value in "\\PC{0,12}") {
        let _ = Document::parse(&text);
        let condition = serde_json::json!({ operator: { "k": [value.clone()] } });
        let statement = serde_json::json!({"Effect": "Allow", "Action": text, "Resource": value, "Condition": condition});
        let document = Document::parse_or_deny(&serde_json::json!({"Statement": [statement]}).to_string());
        let context = Context::from([("k".to_owned(), vec![value])]);
        document.effect(&Access { who: Who::Anonymous, action: &text, resource: &text, context }, Some("0"));
    }
}
