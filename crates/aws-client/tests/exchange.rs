//! The client against servers that answer what a test tells them to, and see what came.

#![allow(clippy::unwrap_used, reason = "the helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::io::SeekFrom;
use std::time::Duration;

use aws_client::logs::{Event, Writer};
use aws_client::s3::{DownloadError, Object, download};
use aws_client::{Call, Client, Credentials, Endpoints, Identity, Options, SendError, Service};
use bytes::Bytes;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderValue};
use hyper::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// What the server does with a connection after it has read a request.
enum Do {
    Answer(&'static str, String),
    /// Sends these bytes as they are, then closes.
    Raw(&'static str),
    /// Closes at once.
    Close,
    /// Answers nothing, for ever.
    Wait,
}

fn ok(body: &str) -> Do {
    Do::Answer("200 OK", body.to_owned())
}

/// A server that answers one request per connection, in this order. Requests come out as text.
async fn serve(script: Vec<Do>) -> (String, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (seen, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut waiting = Vec::new();
        for step in script {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let _ = seen.send(read_request(&mut stream).await);
            let text = match step {
                Do::Answer(status, body) => {
                    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
                }
                Do::Raw(text) => text.to_owned(),
                Do::Close => String::new(),
                Do::Wait => {
                    waiting.push(stream);
                    continue;
                }
            };
            let _ = stream.write_all(text.as_bytes()).await;
        }
        if !waiting.is_empty() {
            std::future::pending().await
        }
    });
    (address, requests)
}

/// Head and body.
async fn read_request(stream: &mut TcpStream) -> String {
    let (mut bytes, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let read = stream.read(&mut chunk).await.unwrap_or(0);
        bytes.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        if body.len() >= length || read == 0 {
            return text;
        }
    }
}

fn client(service: Service, endpoint: &str, credentials: bool) -> Client {
    let endpoints =
        Endpoints::resolve(&BTreeMap::from([(service, endpoint.to_owned())]), |_| None, "eu-west-1").unwrap();
    let credentials = credentials.then(|| Credentials {
        access_key_id: "AKID".to_owned(),
        secret_access_key: "secret".to_owned(),
        session_token: Some("token".to_owned()),
    });
    Client::new(Options { answer_timeout: Duration::from_secs(2), ..Options::new("eu-west-1", credentials) }, endpoints)
        .unwrap()
}

fn call(service: Service, attempts: u32) -> Call {
    Call {
        service,
        method: Method::POST,
        path: "/".to_owned(),
        headers: HeaderMap::new(),
        body: Bytes::from_static(b"Action=X"),
        identity: Identity::Own,
        limit: 1_000,
        attempts,
    }
}

async fn contents(file: &mut tokio::fs::File) -> String {
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).await.unwrap();
    file.read_to_string(&mut text).await.unwrap();
    text
}

#[tokio::test]
async fn requests_are_signed_for_service_and_region() {
    let (url, mut requests) = serve(vec![ok("fine"), ok("fine")]).await;
    let answer = client(Service::Iam, &url, true).send(&call(Service::Iam, 1)).await.unwrap();
    assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"fine"[..]));
    let request = requests.recv().await.unwrap();
    assert!(request.contains("/us-east-1/iam/aws4_request, SignedHeaders="), "{request}");
    assert!(request.contains("x-amz-security-token: token"), "{request}");
    assert!(request.contains(&format!("host: {}", url.trim_start_matches("http://"))), "{request}");

    client(Service::Sts, &url, false).send(&call(Service::Sts, 1)).await.unwrap();
    assert!(!requests.recv().await.unwrap().contains("authorization"));
}

#[tokio::test]
async fn the_signature_of_somebody_else_is_passed_on_with_its_host() {
    let (url, mut requests) = serve(vec![ok("")]).await;
    let mut call = Call { identity: Identity::Signed, ..call(Service::Sts, 1) };
    call.headers.insert(HOST, HeaderValue::from_static("firelet:9000"));
    call.headers.insert(AUTHORIZATION, HeaderValue::from_static("AWS4-HMAC-SHA256 theirs"));
    client(Service::Sts, &url, true).send(&call).await.unwrap();
    let request = requests.recv().await.unwrap();
    assert!(request.contains("host: firelet:9000") && request.contains("AWS4-HMAC-SHA256 theirs"), "{request}");
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_the_rest_is_not() {
    let (url, _requests) = serve(vec![Do::Answer("503 Slow Down", String::new()), Do::Close, ok("at last")]).await;
    let answer = client(Service::Sts, &url, true).send(&call(Service::Sts, 3)).await.unwrap();
    assert_eq!(&answer.body[..], b"at last");

    let (url, _requests) = serve(vec![Do::Answer("400 Bad", "no".to_owned()), ok("never")]).await;
    let answer = client(Service::Sts, &url, true).send(&call(Service::Sts, 3)).await.unwrap();
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (400, &b"no"[..]));

    let (url, _requests) = serve(vec![Do::Answer("500 Oh", "once".to_owned()), ok("never")]).await;
    let answer = client(Service::Sts, &url, true).send(&call(Service::Sts, 1)).await.unwrap();
    assert_eq!(answer.status.as_u16(), 500);
}

#[tokio::test]
async fn long_and_absent_answers_are_errors() {
    let (url, _requests) = serve(vec![ok(&"x".repeat(1_001))]).await;
    let error = client(Service::Sts, &url, true).send(&call(Service::Sts, 1)).await.unwrap_err();
    assert!(matches!(error, SendError::TooLong { limit: 1_000, .. }), "{error}");

    let (url, _requests) = serve(vec![Do::Wait]).await;
    let error = client(Service::Sts, &url, true).send(&call(Service::Sts, 1)).await.unwrap_err();
    assert!(matches!(error, SendError::Slow { .. }), "{error}");

    let error = client(Service::Sts, "http://127.0.0.1:1", true).send(&call(Service::Sts, 2)).await.unwrap_err();
    assert!(error.chain().starts_with("sts cannot be reached at http://127.0.0.1:1: "), "{}", error.chain());

    let error = client(Service::Sts, &url, true).send(&call(Service::Iam, 1)).await.unwrap_err();
    assert_eq!(error.to_string(), "iam has no endpoint: set `iam` below `[endpoints]`, or AWS_ENDPOINT_URL_IAM");
}

#[tokio::test]
async fn a_download_that_breaks_off_starts_again() {
    let half = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf-";
    let whole = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-amz-version-id: v7\r\nconnection: close\r\n\r\nwhole";
    let (url, mut requests) = serve(vec![Do::Raw(half), Do::Raw(whole)]).await;
    let mut file = tokio::fs::File::from_std(tempfile::tempfile().unwrap());
    let object = Object { bucket: "b", key: "dir/code ü.zip", version: Some("v7") };
    let downloaded = download(&client(Service::S3, &url, true), object, 100, &mut file).await.unwrap();
    assert_eq!((downloaded.size, downloaded.version.as_deref()), (5, Some("v7")));
    assert_eq!(contents(&mut file).await, "whole");
    let request = requests.recv().await.unwrap();
    assert!(request.starts_with("GET /b/dir/code%20%C3%BC.zip?versionId=v7 HTTP/1.1\r\n"), "{request}");
    assert!(request.contains("x-amz-content-sha256: e3b0c442"), "{request}");
}

#[tokio::test]
async fn a_download_is_refused_in_the_words_of_s3_or_for_its_size() {
    let mut file = tokio::fs::File::from_std(tempfile::tempfile().unwrap());
    let object = Object { bucket: "b", key: "k", version: None };
    let error = "<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>";
    let (url, _requests) = serve(vec![Do::Answer("404 Not Found", error.to_owned())]).await;
    let refused = download(&client(Service::S3, &url, true), object, 100, &mut file).await.unwrap_err();
    assert_eq!(refused.to_string(), "S3 answered NoSuchBucket: The specified bucket does not exist");

    let (url, _requests) = serve(vec![Do::Answer("403 Forbidden", "<html>".to_owned())]).await;
    let refused = download(&client(Service::S3, &url, true), object, 100, &mut file).await.unwrap_err();
    assert_eq!(refused.to_string(), "S3 answered Forbidden: The service answered 403 Forbidden.");

    let large =
        format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{}0\r\n\r\n", "5\r\nabcde\r\n".repeat(30));
    for answer in ["HTTP/1.1 200 OK\r\ncontent-length: 101\r\n\r\n".to_owned(), large] {
        let (url, _requests) = serve(vec![Do::Raw(answer.leak())]).await;
        let error = download(&client(Service::S3, &url, true), object, 100, &mut file).await.unwrap_err();
        assert!(matches!(error, DownloadError::TooLarge { limit: 100 }), "{error}");
        assert!(contents(&mut file).await.len() <= 100);
    }
}

fn events(range: std::ops::Range<i64>) -> impl Iterator<Item = Event> {
    range.map(|number| Event { timestamp_ms: number, message: format!("line {number}") })
}

#[tokio::test]
async fn log_events_are_sent_with_their_stream_made_where_it_is_missing() {
    let absent = r#"{"__type":"com.amazonaws.logs#ResourceNotFoundException","message":"none"}"#;
    let exists = r#"{"__type":"ResourceAlreadyExistsException","message":"there"}"#;
    let rejected = r#"{"rejectedLogEventsInfo":{"tooOldLogEventEndIndex":1}}"#;
    let (url, mut requests) = serve(vec![
        Do::Answer("400 Bad", absent.to_owned()),
        Do::Answer("400 Bad", exists.to_owned()),
        ok(""),
        ok(rejected),
    ])
    .await;
    let writer = Writer::start(client(Service::Logs, &url, true), 1_000_000);
    writer.append("g", "s", events(0..3));
    writer.finish(Duration::from_secs(20)).await;
    let mut targets = Vec::new();
    let mut last = String::new();
    while let Ok(request) = requests.try_recv() {
        let target = request.lines().find_map(|line| line.strip_prefix("x-amz-target: Logs_20140328."));
        targets.push(target.unwrap().to_owned());
        last = request;
    }
    assert_eq!(targets, ["PutLogEvents", "CreateLogGroup", "CreateLogStream", "PutLogEvents"]);
    let expected = r#"{"logGroupName":"g","logStreamName":"s","logEvents":[{"timestamp":0,"message":"line 0"},{"timestamp":1,"message":"line 1"},{"timestamp":2,"message":"line 2"}]}"#;
    assert!(last.ends_with(expected), "{last}");
    assert_eq!(writer.lost(), 1);
}

#[tokio::test]
async fn log_events_wait_for_a_service_that_is_down_and_what_finds_no_room_is_counted() {
    let (url, mut requests) = serve(vec![Do::Close, Do::Close, Do::Close, ok("")]).await;
    let writer = Writer::start(client(Service::Logs, &url, true), 100);
    writer.append("g", "s", events(0..10));
    assert_eq!(writer.lost(), 7, "three of them fit");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        let request = tokio::time::timeout_at(deadline, requests.recv()).await.unwrap().expect("the server is there");
        assert_eq!(request.matches("line ").count(), 3);
        if requests.is_closed() {
            break;
        }
    }
    writer.finish(Duration::from_secs(20)).await;
    assert_eq!(writer.lost(), 7, "what waited was sent in the end");
}

#[tokio::test]
async fn what_cannot_be_sent_before_the_end_is_lost() {
    let (url, _requests) = serve(vec![Do::Wait]).await;
    let writer = Writer::start(client(Service::Logs, &url, true), 1_000);
    writer.append("g", "s", events(0..2));
    writer.finish(Duration::from_millis(50)).await;
    assert_eq!(writer.lost(), 2);

    let (url, _requests) =
        serve(vec![Do::Answer("400 Bad", r#"{"__type":"InvalidParameterException"}"#.to_owned())]).await;
    let writer = Writer::start(client(Service::Logs, &url, true), 1_000);
    writer.append("g", "s", events(0..2));
    writer.finish(Duration::from_secs(20)).await;
    assert_eq!(writer.lost(), 2);
}
