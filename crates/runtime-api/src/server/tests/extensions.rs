//! The Extensions API over TCP: registration, events, shutdown, errors, and the subscriptions that are switched off.

use super::*;
use crate::{ExtensionPhase, ShutdownReason};

const REGISTER: &str = "/2020-01-01/extension/register";
const EVENT: &str = "/2020-01-01/extension/event/next";

async fn register(client: &mut Client, name: &str, headers: &str, events: &str) -> Answer {
    let headers = format!("Lambda-Extension-Name: {name}\r\n{headers}");
    client.post(REGISTER, &headers, &format!("{{\"events\":[{events}]}}")).await
}

async fn ask_event(client: &mut Client, id: &str) {
    client.write(format!("GET {EVENT} HTTP/1.1\r\nHost: x\r\nLambda-Extension-Identifier: {id}\r\n\r\n")).await;
}

fn options() -> Options {
    Options {
        function_name: "f".to_owned(),
        handler: "app.handler".to_owned(),
        account_id: "000000000000".to_owned(),
        ..Options::default()
    }
}

#[tokio::test]
async fn an_extension_lives_through_init_invoke_and_shutdown() {
    let mut host = Host::start(options()).await;
    host.api.expect_extensions(["tool".to_owned()]).unwrap();
    let mut extension = host.client().await;
    let answer = register(&mut extension, "tool", "", "\"INVOKE\",\"SHUTDOWN\"").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body, "{\"functionName\":\"f\",\"functionVersion\":\"$LATEST\",\"handler\":\"app.handler\"}");
    let id = answer.header("Lambda-Extension-Identifier").unwrap().to_owned();
    assert_eq!(id.len(), 36);
    assert_eq!(host.event().await, Event::ExtensionsRegistered);
    assert_eq!(host.api.extensions().shutdown_subscribers(), 1);

    let mut runtime = host.client().await;
    runtime.ask(NEXT).await;
    ask_event(&mut extension, &id).await;
    assert_eq!(host.event().await, Event::InitDone);

    let trace_id = Some("Root=1-2-3".to_owned());
    let receiver = host.api.invoke(Invocation { trace_id, ..invocation("a") }).unwrap();
    let event = extension.read().await;
    assert_eq!(
        event.body,
        "{\"eventType\":\"INVOKE\",\"deadlineMs\":1700000000123,\"requestId\":\"a\",\
         \"invokedFunctionArn\":\"arn:aws:lambda:us-east-1:000000000000:function:f\",\
         \"tracing\":{\"type\":\"X-Amzn-Trace-Id\",\"value\":\"Root=1-2-3\"}}"
    );
    assert_eq!(event.header("Content-Type"), Some("application/json"));
    assert_eq!(event.header("Lambda-Extension-Event-Identifier").map(str::len), Some(36));

    assert_eq!(runtime.read().await.status, 200);
    assert_eq!(runtime.post(&response("a"), "", "1").await.status, 202);
    outcome(receiver).await;
    runtime.ask(NEXT).await;
    ask_event(&mut extension, &id).await;
    assert_eq!(host.event().await, Event::Idle);

    assert_eq!(host.api.shutdown_extensions(ShutdownReason::Spindown, 7), 1);
    let event = extension.read().await;
    assert_eq!(event.body, "{\"eventType\":\"SHUTDOWN\",\"deadlineMs\":7,\"shutdownReason\":\"spindown\"}");
    assert_eq!(host.api.invoke(invocation("b")).unwrap_err(), crate::InvokeRefused::ShuttingDown);
}

#[tokio::test]
async fn the_account_is_told_to_those_who_ask() {
    let host = Host::start(options()).await;
    let mut client = host.client().await;
    let answer = register(&mut client, "one", "Lambda-Extension-Accept-Feature: other, accountId\r\n", "").await;
    assert!(answer.body.ends_with(",\"accountId\":\"000000000000\"}"), "{}", answer.body);
    let answer = register(&mut client, "two", "Lambda-Extension-Accept-Feature: other\r\n", "").await;
    assert!(!answer.body.contains("accountId"), "{}", answer.body);
}

#[tokio::test]
async fn requests_that_are_not_right_are_refused_by_name() {
    let host = Host::start(options()).await;
    let mut client = host.client().await;
    let cases = [
        (REGISTER, "", "{}", "Extension.InvalidExtensionName", "Empty extension name"),
        (
            REGISTER,
            "Lambda-Extension-Name: x\r\n",
            "{\"configurationKeys\":[\"a\"]}",
            "InvalidRequestFormat",
            "configurationKeys are deprecated; use environment variables instead",
        ),
        (
            "/2020-01-01/extension/init/error",
            "",
            "",
            "Extension.MissingExtensionIdentifier",
            "Missing Lambda-Extension-Identifier header",
        ),
        (
            "/2020-01-01/extension/init/error",
            "Lambda-Extension-Identifier: 7\r\n",
            "",
            "Extension.InvalidExtensionIdentifier",
            "Invalid Lambda-Extension-Identifier",
        ),
        (
            "/2020-01-01/extension/exit/error",
            "Lambda-Extension-Identifier: 00000000-0000-0000-0000-000000000000\r\n",
            "",
            "Extension.MissingHeader",
            "Lambda-Extension-Function-Error-Type not found",
        ),
    ];
    for (path, headers, body, error_type, text) in cases {
        let answer = client.post(path, headers, body).await;
        assert_eq!((answer.status, answer.body), (403, error_body(text, error_type)));
    }
    for body in ["", "[]", "{\"events\":\"INVOKE\"}", "{"] {
        let answer = client.post(REGISTER, "Lambda-Extension-Name: x\r\n", body).await;
        assert_eq!(answer.status, 403, "{body}");
        assert!(answer.body.contains("\"errorType\":\"InvalidRequestFormat\""), "{}", answer.body);
    }
}

#[tokio::test]
async fn an_extension_error_reaches_the_owner() {
    let mut host = Host::start(options()).await;
    let mut client = host.client().await;
    let id = register(&mut client, "tool", "", "").await.header("Lambda-Extension-Identifier").unwrap().to_owned();
    let headers =
        format!("Lambda-Extension-Identifier: {id}\r\nLambda-Extension-Function-Error-Type: Extension.NoConfig\r\n");
    let answer = client.post("/2020-01-01/extension/exit/error", &headers, "{\"errorMessage\":\"m\"}").await;
    assert_eq!((answer.status, answer.body.as_str()), (202, "{\"status\":\"OK\"}"));
    let expected = Event::ExtensionError {
        name: "tool".to_owned(),
        error_type: "Extension.NoConfig".to_owned(),
        body: Bytes::from_static(b"{\"errorMessage\":\"m\"}"),
        phase: ExtensionPhase::Exit,
    };
    assert_eq!(host.event().await, expected);
}

#[tokio::test]
async fn subscriptions_are_not_supported() {
    let host = Host::start(options()).await;
    let mut client = host.client().await;
    for (path, text, error_type) in [
        ("/2022-07-01/telemetry", "Telemetry API is not supported", "Telemetry.NotSupported"),
        ("/2020-08-15/logs", "Logs API is not supported", "Logs.NotSupported"),
    ] {
        client.write(format!("PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}")).await;
        let answer = client.read().await;
        assert_eq!((answer.status, answer.body), (202, error_body(text, error_type)));
    }
}
