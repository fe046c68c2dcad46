//! The Extensions API.

use std::time::Duration;

use serde_json::{Value, json};
use stoker_lambda::{Refused, Said};

use crate::{Reply, Runtime, about, all, api, api_of, failed, invocation};

const REGISTER: &str = "/2020-01-01/extension/register";
const NEXT: &str = "/2020-01-01/extension/event/next";
const EXIT_ERROR: &str = "/2020-01-01/extension/exit/error";
const INIT_ERROR: &str = "/2020-01-01/extension/init/error";
const RUNTIME_NEXT: &str = "/2018-06-01/runtime/invocation/next";
const ID: &str = "lambda-extension-identifier";

async fn register(extension: &mut Runtime, name: &str, events: Value) -> Reply {
    let body = json!({ "events": events }).to_string();
    extension.call("POST", REGISTER, &[("Lambda-Extension-Name", name)], body.as_bytes()).await
}

fn json_of(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap()
}

#[tokio::test]
async fn an_extension_is_told_of_invocations_and_of_the_end() {
    let (api, address) = api_of(about(&["outside"]));
    let mut runtime = Runtime::new(address).await;
    let mut outside = Runtime::new(address).await;
    let mut inside = Runtime::new(address).await;

    let reply = register(&mut outside, "outside", json!(["INVOKE", "SHUTDOWN"])).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let expected =
        concat!(r#"{"functionName":"f","functionVersion":"$LATEST","handler":"kit.handler"}"#, "\n");
    assert_eq!(reply.text(), expected);
    let outside_id = reply.header(ID).unwrap().to_owned();
    let feature = ("lambda-extension-accept-feature", "x,accountId,");
    let name = ("lambda-extension-name", "inside");
    let reply = inside.call("POST", REGISTER, &[name, feature], br#"{"events":[]}"#).await;
    assert_eq!(json_of(&reply)["accountId"], "012345678912");
    let inside_id = reply.header(ID).unwrap().to_owned();

    // The init is done when all of them have asked.
    runtime.send("GET", RUNTIME_NEXT, &[], b"").await;
    outside.send("GET", NEXT, &[(ID, &outside_id)], b"").await;
    {
        let ready = api.ready();
        tokio::pin!(ready);
        // What is asked above has arrived when a later request was answered.
        assert_eq!(
            Runtime::new(address).await.call("GET", "/2018-06-01/ping", &[], b"").await.text(),
            "pong"
        );
        assert!(tokio::time::timeout(Duration::ZERO, &mut ready).await.is_err(), "one is missing");
        inside.send("GET", NEXT, &[(ID, &inside_id)], b"").await;
        ready.await.unwrap();
    }
    let mut late = Runtime::new(address).await;
    register(&mut late, "late", json!([])).await.is(403, "Extension.RegistrationClosed");

    // An invocation is over when those who are told of it are back.
    let mut work = invocation("id-1");
    work.trace = "Root=1-5;Parent=2;Sampled=1".into();
    work.arn = "arn:x".into();
    work.deadline = Some(std::time::UNIX_EPOCH + Duration::from_millis(77));
    let answer = api.invoke(work).unwrap();
    let event = outside.read().await;
    assert!(event.header("lambda-extension-event-identifier").is_some());
    assert_eq!(event.header("content-type"), Some("application/json"));
    let expected = concat!(
        r#"{"eventType":"INVOKE","deadlineMs":77,"requestId":"id-1","invokedFunctionArn":"arn:x","#,
        r#""tracing":{"type":"X-Amzn-Trace-Id","value":"Root=1-5;Parent=2;Sampled=1"}}"#
    );
    assert_eq!(event.text(), expected);
    runtime.read().await;
    assert_eq!(runtime.answer("id-1", b"1").await.status, 202);
    assert_eq!(all(answer).await.last(), Some(&Said::End), "it waits for no extension");
    runtime.send("GET", RUNTIME_NEXT, &[], b"").await;
    {
        let idle = api.idle();
        tokio::pin!(idle);
        assert_eq!(
            Runtime::new(address).await.call("GET", "/2018-06-01/ping", &[], b"").await.text(),
            "pong"
        );
        assert!(tokio::time::timeout(Duration::ZERO, &mut idle).await.is_err(), "the extension is at work");
        outside.send("GET", NEXT, &[(ID, &outside_id)], b"").await;
        idle.await.unwrap();
    }

    // The end.
    assert!(api.waits_for_the_end());
    let end = api.shut_down("spindown", Duration::from_secs(60));
    let extension = async {
        let event = json_of(&outside.read().await);
        assert_eq!((&event["eventType"], &event["shutdownReason"]), (&json!("SHUTDOWN"), &json!("spindown")));
        assert!(event["deadlineMs"].as_u64().is_some_and(|at| at > 1_700_000_000_000), "{event}");
        outside.send("GET", NEXT, &[(ID, &outside_id)], b"").await;
    };
    tokio::join!(end, extension);
}

#[tokio::test]
async fn what_is_not_allowed_is_refused() {
    let (_api, address) = api();
    let mut extension = Runtime::new(address).await;
    register(&mut extension, "", json!([])).await.is(403, "Extension.InvalidExtensionName");
    register(&mut extension, "a", json!(["INVOKE", "SHUTDOWN"])).await.is(403, "Extension.InvalidEventType");
    register(&mut extension, "a", json!("INVOKE")).await.is(403, "InvalidRequestFormat");
    let id = register(&mut extension, "a", json!(["INVOKE"])).await.header(ID).unwrap().to_owned();
    register(&mut extension, "a", json!(["INVOKE"])).await.is(403, "Extension.InvalidExtensionState");
    extension.call("GET", NEXT, &[], b"").await.is(403, "Extension.MissingExtensionIdentifier");
    extension.call("GET", NEXT, &[(ID, "x")], b"").await.is(403, "Extension.InvalidExtensionIdentifier");
    let nobody = "00000000-0000-0000-0000-000000000000";
    extension.call("GET", NEXT, &[(ID, nobody)], b"").await.is(403, "Extension.UnknownExtensionIdentifier");
    extension.call("POST", EXIT_ERROR, &[(ID, &id)], b"").await.is(403, "Extension.MissingHeader");
    assert_eq!(extension.call("POST", NEXT, &[], b"").await.status, 405);
    assert_eq!(extension.call("GET", "/2020-01-01/extension/x", &[], b"").await.status, 404);
    for n in 1..10 {
        assert_eq!(register(&mut extension, &format!("more-{n}"), json!([])).await.status, 200);
    }
    register(&mut extension, "too-many", json!([])).await.is(403, "Extension.TooManyExtensions");
}

#[tokio::test]
async fn an_extension_that_cannot_start_is_the_end_of_the_init() {
    let (api, address) = api();
    let mut extension = Runtime::new(address).await;
    let id = register(&mut extension, "a", json!([])).await.header(ID).unwrap().to_owned();
    let kind = ("lambda-extension-function-error-type", "Extension.NoConfig");
    for _ in 0..2 {
        assert_eq!(extension.call("POST", INIT_ERROR, &[(ID, &id), kind], b"{}").await.status, 202);
    }
    let failure = api.ready().await.unwrap_err();
    assert_eq!((&*failure.kind, failure.broken), ("Extension.InitError", true));
    assert_eq!(failure.told(), "Extension.InitError: Error: the extension a failed: Extension.NoConfig");
    assert_eq!(api.invoke(invocation("x")).unwrap_err(), Refused::NotReady);
}

#[tokio::test]
async fn an_extension_that_cannot_go_on_ends_the_invocation() {
    let (api, address) = api();
    let mut extension = Runtime::new(address).await;
    let mut runtime = Runtime::new(address).await;
    let id = register(&mut extension, "a", json!(["INVOKE"])).await.header(ID).unwrap().to_owned();
    let answer = api.invoke(invocation("id-1")).unwrap();
    assert_eq!(extension.call("GET", NEXT, &[(ID, &id)], b"").await.status, 200);
    runtime.next().await;
    let kind = ("lambda-extension-function-error-type", "odd");
    assert_eq!(extension.call("POST", EXIT_ERROR, &[(ID, &id), kind], b"{}").await.status, 202);
    let failure = failed(all(answer).await);
    assert_eq!((&*failure.kind, failure.broken), ("Extension.ExitError", true));
    let body: Value = serde_json::from_slice(&failure.payload).unwrap();
    assert_eq!(body["errorMessage"], "RequestId: id-1 Error: the extension a failed: Extension.Unknown");
    assert_eq!(api.idle().await.unwrap_err().kind, "Extension.ExitError");
}

#[tokio::test]
async fn the_end_of_a_process_ends_the_invocation() {
    let (api, address) = api_of(about(&["outside"]));
    let mut extension = Runtime::new(address).await;
    let mut runtime = Runtime::new(address).await;
    let id = register(&mut extension, "outside", json!(["INVOKE"])).await.header(ID).unwrap().to_owned();
    api.registered().await.unwrap();
    let answer = api.invoke(invocation("id-1")).unwrap();
    assert_eq!(extension.call("GET", NEXT, &[(ID, &id)], b"").await.status, 200);
    runtime.next().await;
    api.extension_ended("outside", "exit status 1").await;
    let failure = failed(all(answer).await);
    assert_eq!((&*failure.kind, failure.broken), ("Extension.Crash", true));
    let body: Value = serde_json::from_slice(&failure.payload).unwrap();
    assert_eq!(body["errorMessage"], "RequestId: id-1 Error: the extension outside failed: exit status 1");
    assert_eq!(api.idle().await.unwrap_err().kind, "Extension.Crash");
    extension.call("GET", NEXT, &[(ID, &id)], b"").await.is(403, "Extension.InvalidExtensionState");
}

#[tokio::test]
async fn one_that_ends_before_it_registers_ends_the_init() {
    let (api, _) = api_of(about(&["outside"]));
    api.extension_ended("outside", "exit code 0").await;
    assert_eq!(api.registered().await.unwrap_err().kind, "Extension.Crash");
    assert_eq!(
        api.ready().await.unwrap_err().told(),
        "Extension.Crash: Error: the extension outside failed: exit code 0"
    );
}

#[tokio::test]
async fn where_there_shall_be_none_there_is_no_api_for_them() {
    let (_api, address) = api_of(stoker_lambda::About { no_extensions: true, ..about(&[]) });
    let mut extension = Runtime::new(address).await;
    assert_eq!(register(&mut extension, "inside", json!([])).await.status, 404);
    assert_eq!(extension.call("PUT", "/2022-07-01/telemetry", &[], b"{}").await.status, 404);
}

#[tokio::test]
async fn a_runtime_is_gone_though_its_extensions_are_there() {
    let (api, address) = api_of(about(&["outside"]));
    let mut runtime = Runtime::new(address).await;
    let mut extension = Runtime::new(address).await;
    let id = register(&mut extension, "outside", json!(["INVOKE"])).await.header(ID).unwrap().to_owned();
    extension.send("GET", NEXT, &[(ID, &id)], b"").await;
    runtime.send("GET", RUNTIME_NEXT, &[], b"").await;
    api.ready().await.unwrap();
    let alone = api.left_alone();
    tokio::pin!(alone);
    assert!(tokio::time::timeout(Duration::ZERO, &mut alone).await.is_err(), "the runtime is there");
    drop(runtime);
    alone.await;
    // Its own threads may have registered on a connection that the runtime uses, too.
    let mut both = Runtime::new(address).await;
    register(&mut both, "late", json!([])).await.is(403, "Extension.RegistrationClosed");
    api.left_alone().await;
    assert_eq!(both.call("GET", "/2018-06-01/ping", &[], b"").await.status, 200);
    let alone = api.left_alone();
    tokio::pin!(alone);
    assert!(tokio::time::timeout(Duration::ZERO, &mut alone).await.is_err(), "it is used by the runtime");
}
