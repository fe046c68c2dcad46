//! The Telemetry API and the Logs API.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use stoker_lambda::telemetry::Kind as Lines;
use stoker_lambda::{About, Bandwidth, Over, RuntimeApi, Said};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::{Runtime, about, all, api, api_of, invocation};

const ID: &str = "lambda-extension-identifier";

/// An extension that has registered.
async fn extension(address: std::net::SocketAddr) -> (Runtime, String) {
    let mut extension = Runtime::new(address).await;
    let name = ("lambda-extension-name", "listener");
    let reply = extension.call("POST", "/2020-01-01/extension/register", &[name], br#"{"events":[]}"#).await;
    let id = reply.header(ID).unwrap().to_owned();
    (extension, id)
}

fn wants(types: &[&str], destination: Value) -> String {
    let buffering = json!({ "timeoutMs": 25, "maxBytes": 262_144, "maxItems": 1000 });
    json!({ "types": types, "buffering": buffering, "destination": destination }).to_string()
}

/// The next batch by HTTP, which is answered.
async fn batch(listener: &TcpListener) -> Vec<Value> {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut bytes = Vec::new();
    loop {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "{bytes:?}");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length =
            head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() < length.unwrap_or(usize::MAX) {
            continue;
        }
        assert!(head.starts_with("POST /telemetry HTTP/1.1"), "{head}");
        assert!(head.to_lowercase().contains("content-type: application/json"), "{head}");
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        return serde_json::from_str(body).unwrap();
    }
}

/// Batches until one has this event.
async fn until(listener: &TcpListener, kind: &str) -> Vec<Value> {
    let mut events = Vec::new();
    while !events.iter().any(|event: &Value| event["type"] == kind) {
        events.extend(batch(listener).await);
    }
    events
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

/// One invocation that is answered.
async fn invoke(api: &RuntimeApi, runtime: &mut Runtime) {
    let mut work = invocation("id-1");
    work.tenant = "blue".into();
    work.trace = "Root=1-5".into();
    let answer = api.invoke(work).unwrap();
    runtime.next().await;
    api.telemetry().line(Lines::Function, b"hello \"there\"");
    runtime.answer("id-1", b"12345").await;
    all(answer).await;
    let (init, duration) = (Some(Duration::from_millis(5)), Duration::from_micros(1500));
    api.over("id-1", &Over { init, duration, memory_used: 33, ..Over::default() });
}

#[tokio::test]
async fn a_subscriber_is_told_everything_in_its_order() {
    let (api, address) = api();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut extension, id) = extension(address).await;
    api.telemetry().line(Lines::Function, b"early");
    let uri = format!("http://sandbox.localdomain:{}/telemetry", listener.local_addr().unwrap().port());
    let body = wants(&["platform", "function", "extension"], json!({ "protocol": "HTTP", "URI": uri }));
    let reply = extension.call("PUT", "/2022-07-01/telemetry", &[(ID, &id)], body.as_bytes()).await;
    assert_eq!((reply.status, reply.text()), (200, "\"OK\""));
    let mut runtime = Runtime::new(address).await;
    extension.send("GET", "/2020-01-01/extension/event/next", &[(ID, &id)], b"").await;
    runtime.send("GET", "/2018-06-01/runtime/invocation/next", &[], b"").await;
    api.ready().await.unwrap();
    drop(runtime);
    let mut runtime = Runtime::new(address).await;
    invoke(&api, &mut runtime).await;
    let events = until(&listener, "platform.report").await;
    let expected = [
        "platform.initStart",
        "function",
        "platform.telemetrySubscription",
        "platform.extension",
        "platform.initRuntimeDone",
        "platform.initReport",
        "platform.start",
        "function",
        "platform.runtimeDone",
        "platform.report",
    ];
    assert_eq!(kinds(&events), expected);
    let record = |n: usize| &events[n]["record"];
    assert_eq!(record(1), "early");
    assert_eq!(record(7), "hello \"there\"");
    assert_eq!(record(3), &json!({ "name": "listener", "state": "Ready", "events": [] }));
    let tracing = json!({ "type": "X-Amzn-Trace-Id", "value": "Root=1-5" });
    let start = json!({ "requestId": "id-1", "version": "$LATEST", "tenantId": "blue", "tracing": tracing });
    assert_eq!(record(6), &start);
    assert_eq!(
        (&record(8)["status"], &record(8)["metrics"]["producedBytes"]),
        (&json!("success"), &json!(5))
    );
    assert_eq!(record(8)["spans"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        record(9)["metrics"],
        json!({
            "durationMs": 1.5, "billedDurationMs": 2, "memorySizeMB": 128, "maxMemoryUsedMB": 33,
            "initDurationMs": 5.0
        })
    );
    assert!(
        events.iter().all(|event| event["time"].as_str().is_some_and(|at| at.ends_with('Z'))),
        "{events:?}"
    );
    // Who comes now comes too late.
    let mut late = Runtime::new(address).await;
    for (path, kind) in [
        ("/2022-07-01/telemetry", "Telemetry.SubscriptionClosed"),
        ("/2020-08-15/logs", "Logs.SubscriptionClosed"),
    ] {
        late.call("PUT", path, &[(ID, &id)], body.as_bytes()).await.is(403, kind);
    }
}

#[tokio::test]
async fn the_logs_api_has_events_of_its_own_and_speaks_tcp() {
    let (api, address) = api();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut extension, id) = extension(address).await;
    let port = listener.local_addr().unwrap().port();
    let body = wants(&["platform"], json!({ "protocol": "TCP", "port": port }));
    let reply = extension.call("PUT", "/2020-08-15/logs", &[(ID, &id)], body.as_bytes()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    let mut runtime = Runtime::new(address).await;
    invoke(&api, &mut runtime).await;
    let mut lines = String::new();
    while !lines.contains("platform.report") {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_to_string(&mut lines).await.unwrap();
    }
    let events: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = [
        "platform.logsSubscription",
        "platform.start",
        "platform.runtimeDone",
        "platform.end",
        "platform.report",
    ];
    assert_eq!(kinds(&events), expected);
}

#[tokio::test]
async fn subscriptions_are_checked() {
    let (_api, address) = api();
    let (mut extension, id) = extension(address).await;
    let body = wants(&["platform"], json!({ "protocol": "TCP", "port": 1 }));
    let put = async |extension: &mut Runtime, id: &str, body: &str| {
        extension.call("PUT", "/2022-07-01/telemetry", &[(ID, id)], body.as_bytes()).await
    };
    let nobody = "00000000-0000-0000-0000-000000000000";
    put(&mut extension, nobody, &body).await.is(403, "Extension.UnknownExtensionIdentifier");
    put(&mut extension, &id, "{}").await.is(400, "ValidationError");
}

#[tokio::test]
async fn what_could_not_be_delivered_is_counted() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // Nobody is there at first.
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = tries.clone();
    let connect: stoker_lambda::telemetry::Connect = Arc::new(move |port| {
        let first = counted.fetch_add(1, Ordering::Relaxed) == 0;
        Box::pin(async move {
            match first {
                true => Err(io::ErrorKind::ConnectionRefused.into()),
                false => TcpStream::connect(("127.0.0.1", port)).await,
            }
        })
    });
    let (api, address) = api_of(About { connect, ..about(&[]) });
    let (mut extension, id) = extension(address).await;
    let uri = format!("http://sandbox:{port}/telemetry");
    let body = wants(&["platform", "function"], json!({ "protocol": "HTTP", "URI": uri }));
    assert_eq!(
        extension.call("PUT", "/2022-07-01/telemetry", &[(ID, &id)], body.as_bytes()).await.status,
        200
    );
    let mut lost = 0;
    let events = loop {
        // One that comes while the first batch is still on its way is in that; else it brings the count.
        api.telemetry().line(Lines::Function, b"x");
        lost += 1;
        let more = tokio::time::timeout(Duration::from_millis(200), until(&listener, "platform.logsDropped"));
        if let Ok(events) = more.await {
            break events;
        }
        assert!(lost < 100, "the count never came");
    };
    let dropped = &events.iter().find(|event| event["type"] == "platform.logsDropped").unwrap()["record"];
    assert!(dropped["droppedRecords"].as_u64().unwrap() >= 2, "{dropped}");
    assert!(dropped["droppedBytes"].as_u64().unwrap() > 100, "{dropped}");
}

#[tokio::test]
async fn the_last_of_it_is_delivered_before_the_end() {
    let (api, address) = api();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut extension, id) = extension(address).await;
    let uri = format!("http://sandbox:{}/telemetry", listener.local_addr().unwrap().port());
    let slow = json!({
        "types": ["function"], "buffering": { "timeoutMs": 30_000 }, "destination": { "protocol": "HTTP", "URI": uri }
    });
    let reply =
        extension.call("PUT", "/2022-07-01/telemetry", &[(ID, &id)], slow.to_string().as_bytes()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    api.telemetry().line(Lines::Function, b"last words");
    let end = api.flush(Duration::from_secs(60));
    let (events, ()) = tokio::join!(until(&listener, "function"), end);
    assert_eq!(events[0]["record"], "last words");
}

#[tokio::test]
async fn what_a_stream_was_is_measured() {
    let (api, address) = api();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut extension, id) = extension(address).await;
    let uri = format!("http://sandbox:{}/telemetry", listener.local_addr().unwrap().port());
    let body = wants(&["platform", "extension"], json!({ "protocol": "HTTP", "URI": uri }));
    let reply = extension.call("PUT", "/2022-07-01/telemetry", &[(ID, &id)], body.as_bytes()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    api.telemetry().line(Lines::Extension, b"of an extension");
    api.telemetry().line(Lines::Function, b"that nobody here wants");
    // Twice the burst: the second half is held back.
    let bandwidth = Some(Bandwidth { rate: 1 << 20, burst: 64 << 10 });
    let mut answer = api.invoke(stoker_lambda::Invocation { bandwidth, ..invocation("id-1") }).unwrap();
    let mut runtime = Runtime::new(address).await;
    runtime.next().await;
    let path = "/2018-06-01/runtime/invocation/id-1/response";
    let mode = [("Lambda-Runtime-Function-Response-Mode", "streaming")];
    let (body, mut size) = (vec![b'x'; 128 << 10], 0);
    let read = async {
        while let Some(said) = answer.next().await {
            if let Said::Piece(piece) = said {
                size += piece.len();
            }
        }
    };
    let (reply, ()) = tokio::join!(runtime.call("POST", path, &mode, &body), read);
    assert_eq!((reply.status, size), (202, 128 << 10));
    let throttled = answer.throttled();
    assert!(throttled.is_some_and(|time| !time.is_zero()), "{throttled:?}");
    assert!(api.over("id-1", &Over { duration: Duration::from_millis(128), throttled, ..Over::default() }));
    let events = until(&listener, "platform.report").await;
    assert!(events.iter().any(|event| event["type"] == "extension" && event["record"] == "of an extension"));
    assert!(events.iter().all(|event| event["type"] != "function"));
    let report = events.iter().find(|event| event["type"] == "platform.report").unwrap();
    let metrics = &report["record"]["metrics"];
    assert_eq!(metrics["producedBytes"], 128 << 10);
    assert!(metrics["throttledMs"].as_f64().unwrap() > 0.0, "{metrics}");
    assert!(metrics["responseLatencyMs"].is_number() && metrics["throughputBps"].is_number(), "{metrics}");
}
