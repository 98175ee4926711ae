//! The wire, byte for byte, against a real server: what clients' libraries hide from the tests that use them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Answer, Client, Firelet, Options};
use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// How long anything here may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// A server, or `None` where it was not built or this host cannot run it.
async fn server() -> Result<Option<Firelet>> {
    match Firelet::start(Options { arguments: vec!["--network".into(), "off".into()], ..Options::default() }).await {
        Ok(firelet) => Ok(Some(firelet)),
        Err(error) if error.to_string().contains("no firelet binary") => {
            eprintln!("SKIPPED: {error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

const ROLE: &str = "arn:aws:iam::000000000000:role/test";

/// A function whose code is a zip with one file, `bootstrap`, that is never run.
async fn create(client: &mut Client, name: &str) -> Result<()> {
    let code = harness::zip_files(&[("bootstrap", 0o755, b"#!/bin/sh\n")])?;
    client.create_function(&harness::Function::new(name, "provided.al2023", "bootstrap", code)).await?;
    Ok(())
}

async fn lambda(client: &mut Client, method: Method, path: &str, body: &Value) -> Result<Answer> {
    client.request(method, path, &[("content-type", "application/json")], body.to_string()).await
}

async fn logs(client: &mut Client, operation: &str, input: &Value) -> Result<Answer> {
    let target = format!("Logs_20140328.{operation}");
    let headers = [("x-amz-target", target.as_str()), ("content-type", "application/x-amz-json-1.1")];
    client.request(Method::POST, "/", &headers, input.to_string()).await
}

async fn query(client: &mut Client, form: &str) -> Result<Answer> {
    let headers = [("content-type", "application/x-www-form-urlencoded; charset=utf-8")];
    client.request(Method::POST, "/", &headers, form.to_owned()).await
}

fn text(answer: &Answer) -> &str {
    std::str::from_utf8(&answer.body).unwrap_or("not utf-8")
}

#[track_caller]
fn expect(answer: &Answer, status: u16, error: &str, body: &str) {
    assert_eq!((answer.status.as_u16(), text(answer)), (status, body));
    assert_eq!(answer.header("x-amzn-errortype"), error);
    assert_eq!(answer.header("x-amzn-requestid").len(), 36);
}

#[tokio::test]
async fn invoke_refuses_in_lambdas_words() -> Result<()> {
    let Some(firelet) = server().await? else { return Ok(()) };
    let mut client = firelet.client().await?;
    let absent = client.invoke("absent", "{}").await?;
    expect(
        &absent,
        404,
        "ResourceNotFoundException",
        r#"{"Message":"Function not found: arn:aws:lambda:us-east-1:000000000000:function:absent:$LATEST","Type":"User"}"#,
    );
    create(&mut client, "f").await?;
    let broken = client.invoke("f", "{\"a\": nope}").await?;
    expect(
        &broken,
        400,
        "InvalidRequestContentException",
        "{\"Type\":\"User\",\"message\":\"Could not parse request body into json: Could not parse payload into json: \
         Unrecognized token 'nope': was expecting (JSON String, Number, Array, Object or token 'null', 'true' or \
         'false')\\n at [Source: (byte[])\\\"{\\\"a\\\": nope}\\\"; line: 1, column: 12]\"}",
    );
    let large = client.invoke("f", vec![b' '; 6_291_457]).await?;
    expect(
        &large,
        413,
        "RequestTooLargeException",
        r#"{"Type":"User","message":"6291457 byte payload is too large for the RequestResponse invocation type (limit 6291456 bytes)"}"#,
    );
    let path = "/2015-03-31/functions/f/invocations";
    let context = client.request(Method::POST, path, &[("x-amz-client-context", "e30")], "{}").await?;
    expect(
        &context,
        400,
        "InvalidRequestContentException",
        r#"{"Type":"User","message":"Client context must be a valid Base64-encoded JSON object."}"#,
    );
    let kind = client.request(Method::POST, path, &[("x-amz-invocation-type", "Sync")], "{}").await?;
    expect(
        &kind,
        400,
        "ValidationException",
        r#"{"message":"1 validation error detected: Value 'Sync' at 'invocationType' failed to satisfy constraint: Member must satisfy enum value set: [Event, RequestResponse, DryRun]"}"#,
    );
    let dry = client.request(Method::POST, path, &[("x-amz-invocation-type", "DryRun")], "{}").await?;
    assert_eq!((dry.status.as_u16(), text(&dry)), (204, ""));
    let event = client.request(Method::POST, path, &[("x-amz-invocation-type", "Event")], "{}").await?;
    assert_eq!((event.status.as_u16(), event.header("x-amzn-errortype")), (501, "NotImplementedException"));
    firelet.stop().await
}

#[tokio::test]
async fn the_api_refuses_what_it_does_not_take() -> Result<()> {
    let Some(firelet) = server().await? else { return Ok(()) };
    let mut client = firelet.client().await?;
    let unknown = client.request(Method::GET, "/2015-03-31/nothing", &[], "").await?;
    expect(&unknown, 404, "UnknownOperationException", r#"{"message":"Unknown operation."}"#);
    let heartbeat = "/2025-12-01/durable-execution-callbacks/aWQ=/heartbeat";
    let later = lambda(&mut client, Method::POST, heartbeat, &json!({})).await?;
    expect(
        &later,
        501,
        "NotImplementedException",
        r#"{"Type":"Service","message":"SendDurableExecutionCallbackHeartbeat is not implemented yet in this version of Firelet."}"#,
    );
    let large = client.request(Method::POST, "/2015-03-31/functions", &[], vec![b' '; 70_167_212]).await?;
    expect(
        &large,
        413,
        "RequestEntityTooLargeException",
        r#"{"message":"Request must be smaller than 70167211 bytes for the CreateFunction operation"}"#,
    );
    let zip = json!({"FunctionName": "f", "Runtime": "provided.al2023", "Handler": "h", "Role": ROLE, "Code": {"ZipFile": "bm90IGEgemlw"}});
    let broken = lambda(&mut client, Method::POST, "/2015-03-31/functions", &zip).await?;
    expect(
        &broken,
        400,
        "InvalidParameterValueException",
        r#"{"Type":"User","message":"Could not unzip uploaded file. Please check your file, then try to upload again."}"#,
    );
    firelet.stop().await
}

#[tokio::test]
async fn the_code_location_gives_the_package_back() -> Result<()> {
    let Some(firelet) = server().await? else { return Ok(()) };
    let mut client = firelet.client().await?;
    create(&mut client, "f").await?;
    let function = client.request(Method::GET, "/2015-03-31/functions/f", &[], "").await?.json()?;
    let location = function["Code"]["Location"].as_str().context("no location")?;
    let path = location.strip_prefix(&format!("http://{}", firelet.address())).context("another host")?;
    let package = client.request(Method::GET, path, &[], "").await?;
    assert_eq!(package.body.as_ref(), harness::zip_files(&[("bootstrap", 0o755, b"#!/bin/sh\n")])?);
    let absent = client.request(Method::GET, "/_firelet/code/f/7", &[], "").await?;
    assert_eq!(absent.status.as_u16(), 404);
    let deleted = client.request(Method::DELETE, "/2015-03-31/functions/f", &[], "").await?;
    assert_eq!((deleted.status.as_u16(), text(&deleted)), (204, ""));
    firelet.stop().await
}

#[tokio::test]
async fn iam_and_sts_speak_the_query_protocol() -> Result<()> {
    let Some(firelet) = server().await? else { return Ok(()) };
    let mut client = firelet.client().await?;
    let identity = query(&mut client, "Action=GetCallerIdentity&Version=2011-06-15").await?;
    assert_eq!(identity.header("content-type"), "text/xml");
    assert_eq!(
        text(&identity),
        format!(
            "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult>\
             <Arn>arn:aws:iam::000000000000:root</Arn><UserId>000000000000</UserId><Account>000000000000</Account>\
             </GetCallerIdentityResult><ResponseMetadata><RequestId>{}</RequestId></ResponseMetadata>\
             </GetCallerIdentityResponse>",
            identity.header("x-amzn-requestid")
        )
    );
    let absent = query(&mut client, "Action=GetRole&Version=2010-05-08&RoleName=a%26b").await?;
    assert_eq!(absent.status.as_u16(), 404);
    assert!(
        text(&absent).contains(
            "<Error><Type>Sender</Type><Code>NoSuchEntity</Code><Message>The role with name a&amp;b cannot be found.</Message></Error>"
        ),
        "{}",
        text(&absent)
    );
    let unknown = query(&mut client, "Action=Fly&Version=2010-05-08").await?;
    assert!(
        text(&unknown).contains(
            "<Code>InvalidAction</Code><Message>Could not find operation Fly for version 2010-05-08</Message>"
        )
    );
    let missing = query(&mut client, "Action=GetRole&Version=2010-05-08").await?;
    assert!(text(&missing).contains("<Code>ValidationError</Code>"), "{}", text(&missing));

    let trust = "%7B%22Version%22%3A%222012-10-17%22%2C%22Statement%22%3A%5B%7B%22Effect%22%3A%22Allow%22%2C%22Principal%22%3A%22%2A%22%2C%22Action%22%3A%22sts%3AAssumeRole%22%7D%5D%7D";
    let form = format!(
        "Action=CreateRole&Version=2010-05-08&RoleName=lab&AssumeRolePolicyDocument={trust}&Description=a+%3Cb%3E\
         &Tags.member.1.Key=k&Tags.member.1.Value=v%26w"
    );
    let created = query(&mut client, &form).await?;
    let body = text(&created);
    assert!(body.contains("<Description>a &lt;b&gt;</Description>"), "{body}");
    assert!(body.contains(&format!("<AssumeRolePolicyDocument>{trust}</AssumeRolePolicyDocument>")), "{body}");
    assert!(body.contains("<Tags><member><Key>k</Key><Value>v&amp;w</Value></member></Tags>"), "{body}");
    let deleted = query(&mut client, "Action=DeleteRole&Version=2010-05-08&RoleName=lab").await?;
    assert!(
        text(&deleted)
            .starts_with("<DeleteRoleResponse xmlns=\"https://iam.amazonaws.com/doc/2010-05-08/\"><ResponseMetadata>")
    );
    firelet.stop().await
}

#[tokio::test]
async fn logs_are_written_read_and_refused() -> Result<()> {
    let Some(firelet) = server().await? else { return Ok(()) };
    let mut client = firelet.client().await?;
    let absent = logs(&mut client, "DescribeLogStreams", &json!({"logGroupName": "absent"})).await?;
    assert_eq!(absent.status.as_u16(), 400);
    assert_eq!(absent.header("content-type"), "application/x-amz-json-1.1");
    assert_eq!(
        text(&absent),
        r#"{"__type":"ResourceNotFoundException","message":"The specified log group does not exist."}"#
    );
    let unknown = logs(&mut client, "StartQuery", &json!({})).await?;
    assert_eq!(unknown.json()?["__type"], "UnknownOperationException");
    let malformed = logs(&mut client, "GetLogEvents", &json!({"logGroupName": 1})).await?;
    assert_eq!(malformed.json()?["__type"], "SerializationException");

    let made = logs(&mut client, "CreateLogGroup", &json!({"logGroupName": "g", "tags": {"a": "b"}})).await?;
    assert_eq!((made.status.as_u16(), text(&made)), (200, ""));
    let again = logs(&mut client, "CreateLogGroup", &json!({"logGroupName": "g"})).await?;
    assert_eq!(again.json()?["__type"], "ResourceAlreadyExistsException");
    logs(&mut client, "CreateLogStream", &json!({"logGroupName": "g", "logStreamName": "s"})).await?;
    let events = json!([{"timestamp": now_ms(), "message": "one"}, {"timestamp": now_ms(), "message": "two"}]);
    let put = json!({"logGroupName": "g", "logStreamName": "s", "logEvents": events});
    assert_eq!(logs(&mut client, "PutLogEvents", &put).await?.status.as_u16(), 200);
    let arn = "arn:aws:logs:us-east-1:000000000000:log-group:g:*";
    let filter = json!({"logGroupIdentifier": arn, "filterPattern": "two"});
    let found = logs(&mut client, "FilterLogEvents", &filter).await?.json()?;
    assert_eq!(found["events"].as_array().map(Vec::len), Some(1));
    assert_eq!((&found["events"][0]["message"], &found["events"][0]["logStreamName"]), (&json!("two"), &json!("s")));
    let groups = logs(&mut client, "DescribeLogGroups", &json!({"logGroupNamePrefix": "g"})).await?.json()?;
    assert_eq!(groups["logGroups"][0]["arn"], arn);
    firelet.stop().await
}

#[tokio::test]
async fn followers_see_events_as_they_come_and_do_not_hold_up_the_stop() -> Result<()> {
    let Some(firelet) = server().await? else { return Ok(()) };
    let mut client = firelet.client().await?;
    for (operation, input) in [
        ("CreateLogGroup", json!({"logGroupName": "g"})),
        ("CreateLogStream", json!({"logGroupName": "g", "logStreamName": "s"})),
    ] {
        logs(&mut client, operation, &input).await?;
    }
    let mut follower = follow(firelet.address(), "g").await?;
    let events = json!([{"timestamp": now_ms(), "message": "hello\n"}]);
    logs(&mut client, "PutLogEvents", &json!({"logGroupName": "g", "logStreamName": "s", "logEvents": events})).await?;
    let line = tokio::time::timeout(DEADLINE, next_line(&mut follower)).await??;
    let line: Value = serde_json::from_str(&line)?;
    assert_eq!((&line["stream"], &line["message"]), (&json!("s"), &json!("hello\n")));
    let log = firelet.log();
    firelet.stop().await?;
    assert!(!log.contains("cut off"), "{log}");
    let mut rest = String::new();
    tokio::time::timeout(DEADLINE, follower.read_to_string(&mut rest)).await??;
    assert!(rest.ends_with("0\r\n\r\n"), "the stream ends in order: {rest:?}");
    Ok(())
}

#[tokio::test]
async fn bodies_may_come_in_chunks_and_one_connection_serves_many_requests() -> Result<()> {
    let Some(firelet) = server().await? else { return Ok(()) };
    let mut stream = BufReader::new(TcpStream::connect(firelet.address()).await?);
    let request = "POST /2015-03-31/functions/absent/invocations HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n\
                   3\r\n{\"a\r\n4\r\n\":1}\r\n0\r\n\r\n";
    for _ in 0..3 {
        stream.get_mut().write_all(request.as_bytes()).await?;
        let (head, length) = head(&mut stream).await?;
        ensure!(head.starts_with("HTTP/1.1 404"), "{head}");
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        ensure!(body.starts_with(b"{\"Message\":\"Function not found"), "{}", String::from_utf8_lossy(&body));
    }
    firelet.stop().await
}

/// A caller that hangs up right after its request leaves a function that becomes active all the same.
#[tokio::test]
async fn a_lost_caller_does_not_leave_a_function_pending() -> Result<()> {
    let Some(firelet) = server().await? else { return Ok(()) };
    let mut client = firelet.client().await?;
    create(&mut client, "f").await?;
    for round in 0..20 {
        let body = json!({"Timeout": 10 + round}).to_string();
        let request = format!(
            "PUT /2015-03-31/functions/f/configuration HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(firelet.address()).await?;
        stream.write_all(request.as_bytes()).await?;
        // Cut off in the middle of the change, more or less: what matters is that no cut leaves it half done.
        drop(stream);
        let settled = async {
            loop {
                let path = "/2015-03-31/functions/f/configuration";
                let configuration = client.request(Method::GET, path, &[], "").await?.json()?;
                if configuration["LastUpdateStatus"] != "InProgress" {
                    return anyhow::Ok(configuration["LastUpdateStatus"].clone());
                }
            }
        };
        assert_eq!(tokio::time::timeout(DEADLINE, settled).await??, "Successful");
    }
    firelet.stop().await
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}

/// Follows a log group; resolves once the server has answered, so that nothing after is missed.
async fn follow(address: SocketAddr, group: &str) -> Result<BufReader<TcpStream>> {
    let mut stream = BufReader::new(TcpStream::connect(address).await?);
    let request = format!("GET /_firelet/logs/follow?group={group} HTTP/1.1\r\nhost: x\r\n\r\n");
    stream.get_mut().write_all(request.as_bytes()).await?;
    let (head, _) = tokio::time::timeout(DEADLINE, head(&mut stream)).await??;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok(stream)
}

/// Reads the head of an answer; also returns its content length, 0 where it has none.
async fn head(stream: &mut BufReader<TcpStream>) -> Result<(String, usize)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        ensure!(stream.read_line(&mut head).await? > 0, "the connection ended: {head}");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
    Ok((head, length))
}

/// The next line of a chunked stream that is an event.
async fn next_line(stream: &mut BufReader<TcpStream>) -> Result<String> {
    loop {
        let mut line = String::new();
        ensure!(stream.read_line(&mut line).await? > 0, "the stream ended");
        if line.starts_with('{') {
            return Ok(line);
        }
    }
}
