//! The Runtime API.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use stoker_lambda::machine::State;
use stoker_lambda::{Failure, Invocation, MAX_ERROR, MAX_PAYLOAD, Refused, Said};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{Runtime, all, api, failed, head, invocation};

#[tokio::test]
async fn an_invocation_goes_out_and_its_answer_comes_back() {
    let (api, address) = api();
    let mut runtime = Runtime::new(address).await;
    let whole = Invocation {
        request_id: "id-1".into(),
        deadline: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1234)),
        arn: "arn:aws:lambda:us-east-1:012345678912:function:f".into(),
        trace: "Root=1-5;Parent=2;Sampled=1".into(),
        client_context: r#"{"custom":{"foo":"bär"}}"#.into(),
        identity: r#"{"cognitoIdentityId":"a"}"#.into(),
        tenant: "blue".into(),
        content_type: "application/json".into(),
        payload: r#"{"x":1}"#.into(),
        bandwidth: None,
    };
    let answer = api.invoke(whole).unwrap();
    let got = runtime.next().await;
    assert_eq!((got.status, got.text()), (200, r#"{"x":1}"#));
    // In the spelling of AWS's manual, which some look for.
    let expected = [
        ("Lambda-Runtime-Aws-Request-Id", "id-1"),
        ("Lambda-Runtime-Deadline-Ms", "1234"),
        ("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:012345678912:function:f"),
        ("Lambda-Runtime-Trace-Id", "Root=1-5;Parent=2;Sampled=1"),
        ("Lambda-Runtime-Client-Context", r#"{"custom":{"foo":"bär"}}"#),
        ("Lambda-Runtime-Cognito-Identity", r#"{"cognitoIdentityId":"a"}"#),
        ("Lambda-Runtime-Aws-Tenant-Id", "blue"),
        ("Content-Type", "application/json"),
    ];
    for (name, value) in expected {
        let line = format!("{name}: {value}");
        assert!(got.head.lines().any(|said| said == line), "{line} in {}", got.head);
    }
    let done = runtime.answer("id-1", b"[1]").await;
    assert_eq!((done.status, done.text()), (202, "{\"status\":\"OK\"}\n"));
    assert_eq!(all(answer).await, [head(None, false), Said::Piece("[1]".into()), Said::End]);
}

#[tokio::test]
async fn what_is_absent_is_no_header() {
    let (api, address) = api();
    let _answer = api.invoke(Invocation { payload: "1".into(), ..Invocation::default() }).unwrap();
    let got = Runtime::new(address).await.next().await;
    assert!(!got.head.contains("ambda-"), "{}", got.head);
    assert_eq!(got.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn a_runtime_is_ready_when_it_asks_and_idle_when_it_asks_again() {
    let (api, address) = api();
    let mut runtime = Runtime::new(address).await;
    runtime.send("GET", "/2018-06-01/runtime/invocation/next", &[], b"").await;
    api.ready().await.unwrap();
    for n in 0..3 {
        api.idle().await.unwrap();
        let id = format!("id-{n}");
        let answer = api.invoke(invocation(&id)).unwrap();
        assert_eq!(runtime.read().await.header("lambda-runtime-aws-request-id"), Some(&*id));
        assert_eq!(api.invoke(invocation("other")).unwrap_err(), Refused::Busy);
        assert_eq!(runtime.answer(&id, b"1").await.status, 202);
        assert_eq!(all(answer).await.len(), 3);
        assert_eq!(api.state(), State::ResponseSent);
        runtime.send("GET", "/2018-06-01/runtime/invocation/next", &[], b"").await;
    }
    api.idle().await.unwrap();
    assert_eq!(api.state(), State::Ready);
}

#[tokio::test]
async fn asking_twice_gives_the_same_invocation() {
    let (api, address) = api();
    let _answer = api.invoke(invocation("id-1")).unwrap();
    let mut runtime = Runtime::new(address).await;
    for _ in 0..2 {
        assert_eq!(runtime.next().await.header("lambda-runtime-aws-request-id"), Some("id-1"));
    }
}

#[tokio::test]
async fn a_runtime_that_goes_away_while_it_waits_takes_nothing_along() {
    let (api, address) = api();
    let mut gone = Runtime::new(address).await;
    gone.send("GET", "/2018-06-01/runtime/invocation/next", &[], b"").await;
    api.ready().await.unwrap();
    drop(gone);
    let mut runtime = Runtime::new(address).await;
    runtime.send("GET", "/2018-06-01/runtime/invocation/next", &[], b"").await;
    // The server has seen the second one when it answers a third request of the same connection's peer.
    assert_eq!(Runtime::new(address).await.call("GET", "/2018-06-01/ping", &[], b"").await.text(), "pong");
    let answer = api.invoke(invocation("id-1")).unwrap();
    assert_eq!(runtime.read().await.header("lambda-runtime-aws-request-id"), Some("id-1"));
    runtime.answer("id-1", b"").await;
    assert_eq!(all(answer).await, [head(None, false), Said::End]);
}

#[tokio::test]
async fn answers_that_do_not_belong_are_refused() {
    let (api, address) = api();
    let mut runtime = Runtime::new(address).await;
    runtime.answer("id-1", b"").await.is(400, "InvalidRequestID");
    let first = api.invoke(invocation("id-1")).unwrap();
    runtime.next().await;
    for bad in ["", "nope", "%3Cscript%3E", "id-1%20", "ID-1", "..", "id-1/x"] {
        let path = format!("/2018-06-01/runtime/invocation/{bad}/response");
        let reply = runtime.call("POST", &path, &[("accept", "application/xml")], b"").await;
        match bad {
            "id-1/x" => assert_eq!(reply.status, 404),
            _ => reply.is(400, "InvalidRequestID"),
        }
        match bad {
            "id-1/x" => {}
            _ => runtime.fail(bad, &[], b"").await.is(400, "InvalidRequestID"),
        }
    }
    assert_eq!(runtime.answer("id-1", b"1").await.status, 202);
    let again = runtime.answer("id-1", b"2").await;
    again.is(403, "InvalidStateTransition");
    assert!(again.text().contains(
        "State transition from RuntimeResponseSentState to InvocationResponse failed for runtime. Error: State transition is not allowed"
    ));
    runtime.fail("id-1", &[], b"{}").await.is(403, "InvalidStateTransition");
    assert_eq!(all(first).await[1], Said::Piece("1".into()));
    let second = api.invoke(invocation("id-2")).unwrap();
    runtime.next().await;
    runtime.answer("id-1", b"").await.is(400, "InvalidRequestID");
    assert_eq!(runtime.fail("id-2", &[], b"{}").await.status, 202);
    runtime.fail("id-2", &[], b"{}").await.is(403, "InvalidStateTransition");
    runtime.answer("id-2", b"").await.is(403, "InvalidStateTransition");
    assert_eq!(failed(all(second).await).kind, "Runtime.Unknown");
}

#[tokio::test]
async fn errors_arrive_as_they_were_said() {
    let (api, address) = api();
    let mut runtime = Runtime::new(address).await;
    let cause = r#"{"message":"why","paths":["a.py"]}"#;
    let with = r#"{"errorMessage":"m","errorType":"T","errorCause":{"message":"inner"}}"#;
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a str, Failure);
    let cases: [Case<'_>; 4] = [
        (
            &[("LAMBDA-runtime-function-error-type", "Function.Mine"), ("content-type", "text/x")],
            "body",
            said("Function.Mine", "text/x", "body", None),
        ),
        (
            &[("lambda-runtime-function-xray-error-cause", cause)],
            "{}",
            said(
                "Runtime.Unknown",
                "application/json",
                "{}",
                Some(r#"{"exceptions":[],"working_directory":"","paths":["a.py"],"message":"why"}"#),
            ),
        ),
        (
            &[("content-type", "application/vnd.aws.lambda.error.cause+json")],
            with,
            said(
                "Runtime.Unknown",
                "application/json",
                r#"{"errorMessage":"m","errorType":"T"}"#,
                Some(r#"{"exceptions":[],"working_directory":"","paths":[],"message":"inner"}"#),
            ),
        ),
        (
            &[("content-type", "application/vnd.aws.lambda.error.cause+json")],
            "no",
            said("Runtime.Unknown", "application/octet-stream", "\"Invalid error body\"", None),
        ),
    ];
    for (n, (headers, body, expected)) in cases.into_iter().enumerate() {
        let id = format!("id-{n}");
        let answer = api.invoke(invocation(&id)).unwrap();
        runtime.next().await;
        assert_eq!(runtime.fail(&id, headers, body.as_bytes()).await.status, 202);
        assert_eq!(failed(all(answer).await), expected);
    }
}

fn said(kind: &str, content_type: &str, payload: &str, cause: Option<&str>) -> Failure {
    Failure {
        kind: kind.into(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        content_type: content_type.into(),
        cause: cause.map(str::to_owned),
        broken: false,
    }
}

#[tokio::test]
async fn a_runtime_that_cannot_start_says_so_once() {
    let (api, address) = api();
    let mut runtime = Runtime::new(address).await;
    let path = "/2018-06-01/runtime/init/error";
    let headers = [("lambda-runtime-function-error-type", "Runtime.NoSuchHandler")];
    assert_eq!(runtime.call("POST", path, &headers, b"{\"errorMessage\":\"m\"}").await.status, 202);
    let failure = api.ready().await.unwrap_err();
    assert_eq!(failure, said("Runtime.NoSuchHandler", "application/json", "{\"errorMessage\":\"m\"}", None));
    runtime.call("POST", path, &headers, b"").await.is(403, "InvalidStateTransition");
    runtime.next().await.is(403, "InvalidStateTransition");
    assert_eq!(api.invoke(invocation("x")).unwrap_err(), Refused::NotReady);
}

#[tokio::test]
async fn a_start_cannot_fail_after_it_succeeded() {
    let (api, address) = api();
    let _answer = api.invoke(invocation("id-1")).unwrap();
    let mut runtime = Runtime::new(address).await;
    runtime.next().await;
    runtime.call("POST", "/2018-06-01/runtime/init/error", &[], b"").await.is(403, "InvalidStateTransition");
    assert_eq!(api.state(), State::Running);
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_refused_to_both_sides() {
    let (api, address) = api();
    let mut runtime = Runtime::new(address).await;
    for (n, size) in [(1, MAX_PAYLOAD), (2, MAX_PAYLOAD + 1), (3, 3 * MAX_PAYLOAD)] {
        let id = format!("id-{n}");
        let mut answer = api.invoke(invocation(&id)).unwrap();
        runtime.next().await;
        let body = vec![b'x'; size];
        let reader = tokio::spawn(async move {
            let mut got = (0, None);
            while let Some(said) = answer.next().await {
                match said {
                    Said::Piece(piece) => got.0 += piece.len(),
                    Said::Failed(failure) => got.1 = Some(failure),
                    _ => {}
                }
            }
            got
        });
        let reply = runtime.answer(&id, &body).await;
        let (bytes, failure) = reader.await.unwrap();
        if size <= MAX_PAYLOAD {
            assert_eq!((reply.status, bytes, failure), (202, size, None));
            continue;
        }
        reply.is(413, "RequestEntityTooLarge");
        assert!(reply.text().contains("Exceeded maximum allowed payload size (6291556 bytes)."));
        let failure = failure.unwrap();
        assert_eq!(
            failure.payload,
            r#"{"errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes).","errorType":"Function.ResponseSizeTooLarge"}"#
        );
        assert!(!failure.broken);
        runtime.fail(&id, &[], b"{}").await.is(403, "InvalidStateTransition");
    }
    // An error has a limit of its own.
    for (n, size) in [(4, MAX_ERROR), (5, MAX_ERROR + 1)] {
        let id = format!("id-{n}");
        let answer = api.invoke(invocation(&id)).unwrap();
        runtime.next().await;
        let reply = runtime.fail(&id, &[], &vec![b'x'; size]).await;
        let failure = failed(all(answer).await);
        if size <= MAX_ERROR {
            assert_eq!((reply.status, failure.payload.len()), (202, size));
            continue;
        }
        reply.is(413, "RequestEntityTooLarge");
        assert!(reply.text().contains("(1048576 bytes)"), "{reply:?}");
        let text = String::from_utf8(failure.payload.to_vec()).unwrap();
        assert!(text.contains("The function's error has more than 1048576 bytes"), "{text}");
        assert!(failure.kind == "Function.ResponseSizeTooLarge" && !failure.broken, "{failure:?}");
    }
    let too_large = Invocation { payload: vec![0; MAX_PAYLOAD + 1].into(), ..invocation("x") };
    assert_eq!(api.invoke(too_large).unwrap_err(), Refused::TooLarge);
    for payload in [&b""[..], b"{", b"{} {}", b"text", b"\"\xff\""] {
        let odd = Invocation { payload: Bytes::from_static(payload), ..invocation("x") };
        assert_eq!(api.invoke(odd).unwrap_err(), Refused::NotJson, "{payload:?}");
    }
}

#[tokio::test]
async fn an_answer_streams_and_may_fail_on_the_way() {
    let (api, address) = api();
    let mut runtime = Runtime::new(address).await;
    let begin = |id: &str| {
        format!(
            "POST /2018-06-01/runtime/invocation/{id}/response HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\
             trailer: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body\r\n\
             lambda-runtime-function-response-mode: streaming\r\ncontent-type: text/x\r\n\r\n3\r\nabc\r\n"
        )
    };
    // It is passed on while it is made.
    let mut answer = api.invoke(invocation("id-1")).unwrap();
    runtime.next().await;
    runtime.0.write_all(begin("id-1").as_bytes()).await.unwrap();
    assert_eq!(answer.next().await, Some(head(Some("text/x"), true)));
    assert_eq!(answer.next().await, Some(Said::Piece("abc".into())));
    runtime.0.write_all(b"2\r\nde\r\n0\r\n\r\n").await.unwrap();
    assert_eq!(runtime.read().await.status, 202);
    assert_eq!(all(answer).await, [Said::Piece("de".into()), Said::End]);
    // Its trailers say that it failed.
    let answer = api.invoke(invocation("id-2")).unwrap();
    runtime.next().await;
    runtime.0.write_all(begin("id-2").as_bytes()).await.unwrap();
    let trailers = "0\r\nLambda-Runtime-Function-Error-Type: Function.Mid\r\nLambda-Runtime-Function-Error-Body: e30=\r\n\r\n";
    runtime.0.write_all(trailers.as_bytes()).await.unwrap();
    assert_eq!(runtime.read().await.status, 202);
    assert_eq!(failed(all(answer).await), said("Function.Mid", "application/json", "{}", None));
    // It breaks off.
    let answer = api.invoke(invocation("id-3")).unwrap();
    runtime.next().await;
    runtime.0.write_all(begin("id-3").as_bytes()).await.unwrap();
    drop(runtime);
    let failure = failed(all(answer).await);
    assert_eq!((&*failure.kind, failure.broken), ("Runtime.TruncatedResponse", true));
    assert!(std::str::from_utf8(&failure.payload).unwrap().contains("RequestId: id-3 Error: "));
}

#[tokio::test]
async fn an_upload_that_is_cut_off_is_no_answer() {
    let (api, address) = api();
    let mut runtime = Runtime::new(address).await;
    let answer = api.invoke(invocation("id-1")).unwrap();
    runtime.next().await;
    let text = "POST /2018-06-01/runtime/invocation/id-1/response HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc";
    runtime.0.write_all(text.as_bytes()).await.unwrap();
    drop(runtime);
    let failure = failed(all(answer).await);
    assert_eq!((&*failure.kind, failure.broken), ("Runtime.TruncatedResponse", true));
    assert!(std::str::from_utf8(&failure.payload).unwrap().contains("RequestId: id-1 Error: "));
}

#[tokio::test]
async fn a_mode_that_does_not_exist_ends_the_runtime() {
    let (api, address) = api();
    let mut runtime = Runtime::new(address).await;
    let answer = api.invoke(invocation("id-1")).unwrap();
    runtime.next().await;
    let path = "/2018-06-01/runtime/invocation/id-1/response";
    let mode = [("Lambda-Runtime-Function-Response-Mode", "invalid-mode")];
    runtime.call("POST", path, &mode, b"").await.is(400, "InvalidFunctionResponseMode");
    let failure = failed(all(answer).await);
    assert_eq!(
        (&*failure.kind, failure.payload.len(), failure.broken),
        ("Runtime.InvalidResponseModeHeader", 0, true)
    );
    Runtime::new(address).await.next().await.is(403, "InvalidStateTransition");
}

#[tokio::test]
async fn paths_and_methods_that_do_not_exist() {
    let (_api, address) = api();
    let mut runtime = Runtime::new(address).await;
    for path in [
        "/",
        "/2018-06-01",
        "/2018-06-01/runtime",
        "/2018-06-01/runtime/restore/next",
        "/x/runtime/invocation/next",
    ] {
        let reply = runtime.call("GET", path, &[], b"").await;
        assert_eq!((reply.status, reply.text()), (404, "404 page not found\n"), "{path}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
    }
    for (method, path, allowed) in [
        ("POST", "ping", "GET"),
        ("POST", "runtime/invocation/next", "GET"),
        ("GET", "runtime/init/error", "POST"),
        ("PUT", "runtime/invocation/x/response", "POST"),
    ] {
        let reply = runtime.call(method, &format!("/2018-06-01/{path}"), &[], b"").await;
        assert_eq!((reply.status, reply.text(), reply.header("allow")), (405, "", Some(allowed)), "{path}");
    }
}

#[tokio::test]
async fn the_runtime_s_name_is_kept_from_its_first_request() {
    let (api, address) = api();
    let mut runtime = Runtime::new(address).await;
    assert_eq!(api.release(), None);
    let headers = [("user-agent", "aws-lambda-rust/1.0 more"), ("lambda-runtime-features", "a (b)")];
    runtime.call("GET", "/2018-06-01/ping", &headers, b"").await;
    runtime.call("GET", "/2018-06-01/ping", &[("user-agent", "other")], b"").await;
    assert_eq!(api.release().as_deref(), Some("aws-lambda-rust/1.0 (a b)"));
}

#[tokio::test]
async fn dropping_it_closes_everything() {
    let (api, address) = api();
    let mut runtime = Runtime::new(address).await;
    runtime.send("GET", "/2018-06-01/runtime/invocation/next", &[], b"").await;
    api.ready().await.unwrap();
    drop(api);
    assert_eq!(runtime.0.read(&mut [0; 1]).await.unwrap_or(0), 0);
}
