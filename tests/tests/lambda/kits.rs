//! Handlers with the clients for Node and Rust, and answers to HTTP requests in all of them.

use std::fs::File;
use std::io::Write as _;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use stoker_core::FunctionSpec;
use stoker_core::error::Code;
use stoker_proto::v1::invoke_stream_response::Frame;
use stoker_sandbox::select::Choice;
use stoker_tests::calls::{Call, Door, Page, rest_of};
use stoker_tests::fleet::Fleet;
use stoker_tests::functions::Change as _;
use stoker_tests::within;

use crate::{Fifo, ask, fails, fleet, newer_node, node, python, rust};

/// One request of a trigger, and what a web framework would look at.
async fn page(fleet: &Fleet, name: &str) -> (Page, Vec<String>) {
    let headers = [("X-Any", "thing"), ("Cookie", "c=3")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let page = fleet.clients.page("PUT", &format!("/t/t/{name}/path?name=Ada"), &headers, "hello").await;
    let cookies = page.headers.get_all("set-cookie").iter().map(|value| value.to_str().unwrap().to_owned());
    let cookies = cookies.collect();
    (page, cookies)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_requests_are_events_and_answers_responses() {
    let all = [python("python", "kit.http"), node("node", "kit.page"), rust("rust", "http")];
    let all: Vec<_> = all.into_iter().flatten().collect();
    let has = |name: &str| all.iter().any(|function| function.name.function() == name);
    let trigger = |spec: FunctionSpec| {
        let path = format!("/{}/path", spec.name.function());
        spec.with_trigger(&path)
    };
    let fleet = fleet(Choice::Auto, all.iter().cloned().map(trigger)).await;
    if has("python") {
        let (page, cookies) = page(&fleet, "python").await;
        assert_eq!((page.status, page.header("x-kit")), (201, "python"), "{page:?}");
        assert_eq!(cookies, ["a=1", "b=2"]);
        let event: Value = serde_json::from_slice(&page.body).unwrap();
        assert_eq!(
            (&event["rawPath"], &event["rawQueryString"]),
            (&json!("/python/path"), &json!("name=Ada"))
        );
        assert_eq!((&event["headers"]["x-any"], &event["cookies"]), (&json!("thing"), &json!(["c=3"])));
        assert_eq!(
            (&event["body"], &event["requestContext"]["http"]["method"]),
            (&json!("hello"), &json!("PUT"))
        );
        let from = (&event["requestContext"]["http"]["sourceIp"], &event["headers"]["x-forwarded-for"]);
        assert_eq!(from, (&json!("127.0.0.1"), &json!("127.0.0.1")));
    }
    if has("node") {
        let (page, cookies) = page(&fleet, "node").await;
        assert_eq!((page.status, page.header("x-kit")), (203, "node"), "{page:?}");
        assert_eq!((cookies, &page.body[..]), (vec!["a=1".into(), "b=2".into()], &b"PUT /node/path"[..]));
    }
    if has("rust") {
        let (page, cookies) = page(&fleet, "rust").await;
        assert_eq!((page.status, page.header("x-kit")), (202, "rust"), "{page:?}");
        assert_eq!(
            (cookies, &page.body[..]),
            (vec!["a=1".into(), "b=2".into()], &b"PUT /rust/path Ada hello"[..])
        );
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_in_node_is_at_home() {
    a_handler_is_at_home(node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_in_a_newer_node_is_at_home() {
    a_handler_is_at_home(newer_node).await;
}

async fn a_handler_is_at_home(node: fn(&str, &str) -> Option<FunctionSpec>) {
    let Some(main) = node("main", "kit.handler") else { return };
    let stream = node("stream", "kit.stream").unwrap();
    let fleet = fleet(Choice::Auto, [main, stream.clone()]).await;
    for calls in 1..4 {
        let answer = ask(&fleet, "main", json!({})).await.unwrap();
        assert_eq!(answer.json()["calls"], calls);
        assert_eq!(answer.json()["request_id"], answer.call_id.as_str());
    }
    let (error, _, body) = fails(&fleet, "main", json!({ "do": "throw" })).await;
    assert_eq!(error.code, Code::FunctionFailed, "{error:?}");
    assert_eq!(
        (&body["errorType"], &body["errorMessage"]),
        (&json!("TypeError"), &json!("thrown on purpose"))
    );
    let (error, report, _) = fails(&fleet, "main", json!({ "do": "exit", "status": 3 })).await;
    assert_eq!((error.code, &*report.kind), (Code::FunctionCrashed, "Runtime.ExitError"), "{error:?}");

    // An answer that streams: whole through every door, however many pieces.
    for door in Door::ALL {
        let call = Call::of("stream").body(json!({ "pieces": 300 }).to_string());
        let answer = fleet.clients.call(door, call).await.unwrap();
        assert_eq!(answer.text().matches(';').count(), 300, "{door:?}: {}", answer.text());
    }
    // Each piece comes as it is made: the second is made only after the first was read here. By HTTP:
    let gate = Fifo::new(&stream.workdir);
    let mut opener = File::options().read(true).write(true).open(&gate.0).unwrap();
    let connection = tokio::net::TcpStream::connect(fleet.clients.http).await.unwrap();
    let (mut send, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(connection)).await.unwrap();
    let connection = tokio::spawn(connection);
    let body = json!({ "pieces": 3, "gate": gate.0 }).to_string();
    let request = http::Request::post("/invoke/t/stream").header("host", "stoker.test");
    let answer = send.send_request(request.body(http_body_util::Full::new(Bytes::from(body))).unwrap());
    let mut answer = within("the head", answer).await.unwrap().into_body();
    let mut seen = String::new();
    for piece in 0..3 {
        let end = format!("piece {piece};");
        within("a piece as it is made", async {
            while !seen.ends_with(&end) {
                let frame = answer.frame().await.expect("the answer goes on").unwrap();
                seen.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
            }
        })
        .await;
        opener.write_all(b"g").unwrap();
    }
    assert!(answer.frame().await.is_none_or(|frame| frame.is_ok()), "it ends well");
    connection.abort();
    drop((gate, opener));
    // And by gRPC:
    let gate = Fifo::new(&stream.workdir);
    let mut opener = File::options().read(true).write(true).open(&gate.0).unwrap();
    let call = Call::of("stream").body(json!({ "pieces": 3, "gate": gate.0 }).to_string());
    let (send, answers) = fleet.clients.open(&call);
    let body = stoker_proto::v1::invoke_stream_request::Frame::Body(call.body.clone());
    send.send(stoker_proto::v1::InvokeStreamRequest { frame: Some(body) }).await.unwrap();
    drop(send);
    let mut answers = within("the head", answers).await.unwrap();
    let mut seen = String::new();
    for piece in 0..3 {
        let end = format!("piece {piece};");
        within("a piece as it is made", async {
            while !seen.ends_with(&end) {
                let answer = answers.message().await.unwrap().expect("the answer goes on");
                if let Some(Frame::Body(bytes)) = answer.frame {
                    seen.push_str(std::str::from_utf8(&bytes).unwrap());
                }
            }
        })
        .await;
        opener.write_all(b"g").unwrap();
    }
    rest_of(&mut answers).await.unwrap();
    assert_eq!(seen, "piece 0;piece 1;piece 2;");

    // One that fails on the way: the part that came, and then the error in its words; its process stays.
    let call = Call::of("stream").body(json!({ "pieces": 2, "fail": true }).to_string());
    let error = fleet.clients.call(Door::Session, call).await.unwrap_err();
    assert_eq!(error.code, Code::FunctionFailed, "{error:?}");
    assert!(error.message.contains("RangeError: thrown on the way"), "{error:?}");
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_in_rust_is_at_home() {
    let Some(main) = rust("main", "event") else { return };
    // With its graceful shutdown it registers an extension of its own.
    let graceful = rust("graceful", "event").unwrap().with_env("KIT_GRACEFUL", "1");
    let fleet = fleet(Choice::Auto, [main, graceful]).await;
    for name in ["main", "graceful"] {
        let answer = ask(&fleet, name, json!({ "n": 1 })).await.unwrap();
        assert_eq!(answer.json()["event"], json!({ "n": 1 }));
        assert_eq!(answer.json()["request_id"], answer.call_id.as_str());
        for (event, text) in
            [("fail", "failed on purpose"), ("panic", "Lambda panicked: panicked on purpose")]
        {
            let (error, report, body) = fails(&fleet, name, json!({ "do": event })).await;
            assert_eq!((error.code, &*report.kind), (Code::FunctionFailed, "Runtime.Unknown"), "{error:?}");
            assert_eq!(body["errorMessage"], text);
        }
        let (_, report, body) = fails(&fleet, name, json!({ "do": "exit" })).await;
        assert_eq!(report.kind, "Runtime.ExitError");
        assert!(body["errorMessage"].as_str().unwrap().ends_with("exit status 3"), "{body}");
    }
    fleet.end().await;
}
