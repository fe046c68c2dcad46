//! Versions and aliases of a function, and how a call that names one finds it inside.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use stoker_core::later::Later;
use stoker_proto::v1;
use stoker_sandbox::select::Choice;
use stoker_tests::calls::{Call, Door};
use stoker_tests::fleet::{Fleet, Plan};
use stoker_tests::within;

use crate::{ask, fleet, node, python};

/// One request to AWS's API.
async fn aws(fleet: &Fleet, method: &str, path: &str, body: &Value) -> Value {
    let path = format!("/2015-03-31/functions/main{path}");
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let page = fleet.clients.page(method, &path, &[], body).await;
    assert!((200..300).contains(&page.status), "{method} {path}: {page:?}");
    serde_json::from_slice(&page.body).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_knows_its_number() {
    let Some(main) = python("main", "kit.handler") else { return };
    let fleet = fleet(Choice::Auto, [main]).await;
    let published = aws(&fleet, "POST", "/versions", &json!({})).await;
    assert_eq!(published["Version"], "1", "{published}");
    let alias = json!({ "Name": "live", "FunctionVersion": "1" });
    aws(&fleet, "POST", "/aliases", &alias).await;

    let latest = ask(&fleet, "main", json!({})).await.unwrap().json();
    assert_eq!(latest["env"]["AWS_LAMBDA_FUNCTION_VERSION"], "$LATEST");
    for (calls, qualifier) in [(1, "1"), (2, "live")] {
        let one = aws(&fleet, "POST", &format!("/invocations?Qualifier={qualifier}"), &json!({})).await;
        assert_eq!(one["env"]["AWS_LAMBDA_FUNCTION_VERSION"], "1", "{qualifier}");
        let arn = one["arn"].as_str().unwrap();
        assert!(arn.ends_with(&format!(":function:main:{qualifier}")), "{arn}");
        assert_eq!(one["calls"], calls, "a container of its own, by its number and by its alias");
    }
    let latest = aws(&fleet, "POST", "/invocations?Qualifier=$LATEST", &json!({})).await;
    assert_eq!(
        (&latest["env"]["AWS_LAMBDA_FUNCTION_VERSION"], &latest["calls"]),
        (&json!("$LATEST"), &json!(2))
    );

    // By the doors of others, too: there the number that a caller expects is checked.
    for (expected, right) in [("1", true), ("2", false)] {
        let call = Call::of("main:1").header("Invoked-Function-Version", expected).body("{}");
        let answer = fleet.clients.call(Door::Session, call).await;
        assert_eq!(answer.is_ok(), right, "{answer:?}");
        if let Ok(answer) = answer {
            assert_eq!(answer.header("invoked-function-version"), Some("1"));
            let arn = answer.json()["arn"].as_str().unwrap().to_owned();
            assert!(arn.ends_with(":function:main:1"), "{arn}");
        }
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_provisioned_for_a_version_is_there_before_its_first_call() {
    let Some(main) = python("main", "kit.handler") else { return };
    let fleet = fleet(Choice::Auto, [main]).await;
    aws(&fleet, "POST", "/versions", &json!({})).await;
    let provisioned = async |method: &str, body: &str| {
        let path = "/2019-09-30/functions/main/provisioned-concurrency?Qualifier=1";
        fleet.clients.page(method, path, &[], body.to_owned()).await
    };
    let made = provisioned("PUT", r#"{"ProvisionedConcurrentExecutions": 2}"#).await;
    assert_eq!(made.status, 202, "{made:?}");
    fleet.until("both are there", |record| record.functions.values().any(|warmth| warmth.idle == 2)).await;
    let found = |answer: &Value| {
        ["AWS_LAMBDA_FUNCTION_VERSION", "AWS_LAMBDA_INITIALIZATION_TYPE"]
            .map(|name| answer["env"][name].clone())
    };
    let one = aws(&fleet, "POST", "/invocations?Qualifier=1", &json!({})).await;
    assert_eq!(found(&one), ["1", "provisioned-concurrency"], "{one}");
    // They are the version's: whoever names none has a container started.
    let latest = ask(&fleet, "main", json!({})).await.unwrap();
    assert!(latest.timings.unwrap().cold);
    assert_eq!(found(&latest.json()), ["$LATEST", "on-demand"]);
    assert_eq!(provisioned("DELETE", "").await.status, 204);
    assert_eq!(provisioned("GET", "").await.status, 404);
    fleet.end().await;
}

/// How the answer of a direct invoke ended, as its trailers say it, and what came of it.
async fn told(
    fleet: &Fleet,
    function: &str,
    headers: &[(&str, &str)],
    event: &Value,
) -> (http::HeaderMap, Vec<u8>) {
    let connection = tokio::net::TcpStream::connect(fleet.clients.http).await.unwrap();
    let (mut send, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(connection)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = http::Request::post(format!("/invoke/t/{function}")).header("host", "stoker.test");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(bytes::Bytes::from(event.to_string()))).unwrap();
    let answer =
        within("the answer", async { send.send_request(request).await.unwrap().collect().await }).await;
    let answer = answer.expect("it does not break off");
    connection.abort();
    (answer.trailers().cloned().unwrap_or_default(), answer.to_bytes().to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_direct_invoke_is_told() {
    let Some(mut stream) = node("stream", "kit.stream") else { return };
    // As slow as can be: what takes a minute by this is not done within the test's patience.
    stream.format_options.stream_rate = 32 << 10;
    stream.format_options.stream_burst = 32 << 10;
    let fleet = fleet(Choice::Auto, [stream]).await;
    let reads = ("te", "trailers");
    let streams = ("InvokeResponseMode", "Streaming");
    let get = |trailers: &http::HeaderMap, name: &str| {
        trailers.get(name).map(|value| value.to_str().unwrap().to_owned())
    };

    let (trailers, body) = told(&fleet, "stream", &[reads, streams], &json!({ "pieces": 2 })).await;
    assert_eq!(
        (&*body, get(&trailers, "end-of-response").as_deref()),
        (&b"piece 0;piece 1;"[..], Some("Complete"))
    );
    assert_eq!(trailers.len(), 1, "{trailers:?}");

    // It failed on the way: all that it said is there, and why.
    let (trailers, body) =
        told(&fleet, "stream", &[reads, streams], &json!({ "pieces": 1, "fail": true })).await;
    assert_eq!((&*body, get(&trailers, "end-of-response").as_deref()), (&b"piece 0;"[..], Some("Complete")));
    let why = get(&trailers, "lambda-runtime-function-error-body").unwrap();
    let why: Value = serde_json::from_slice(&BASE64.decode(why).unwrap()).unwrap();
    assert_eq!(why["errorMessage"], "thrown on the way", "{why}");
    assert!(trailers.contains_key("lambda-runtime-function-error-type"), "{trailers:?}");

    // More than the caller takes.
    let asked = [reads, streams, ("MaxPayloadSize", "40000")];
    let (trailers, _) = told(&fleet, "stream", &asked, &json!({ "pieces": 1, "size": 50_000 })).await;
    assert_eq!(get(&trailers, "end-of-response").as_deref(), Some("Oversized"), "{trailers:?}");

    // Who does not ask directly, or cannot read trailers, gets none.
    for headers in [&[reads][..], &[streams][..]] {
        let (trailers, body) = told(&fleet, "stream", headers, &json!({ "pieces": 1 })).await;
        assert_eq!((trailers.len(), &*body), (0, &b"piece 0;"[..]), "{headers:?}");
    }

    // Who wants the answer as a whole gets it at once: by its rate this would take more than a minute.
    let event = json!({ "pieces": 5, "size": 500_000 }).to_string();
    let page = fleet.clients.page("POST", "/2015-03-31/functions/stream/invocations", &[], event).await;
    assert_eq!((page.status, page.body.len() > 2_500_000), (200, true), "{} bytes", page.body.len());
    fleet.end().await;
}

/// A call for later that fails is made again, as the same call: its log has both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_made_again_says_so_in_its_log() {
    let Some(mut main) = python("main", "kit.handler") else { return };
    main.later = Later { max_attempts: 2, backoff_ms: 1, ..Later::default() };
    let directory = tempfile::tempdir().unwrap();
    let queue =
        stoker_queue::disk::Config { reserve: 0, ..stoker_queue::disk::Config::new(directory.path()) };
    let mut plan = Plan::default();
    plan.resources.memory = 2 << 30;
    plan.balancer.later = stoker_lb::CallQueue::Disk(queue);
    let fleet = plan.start([main]).await;
    let submit = v1::SubmitRequest {
        function: "t/main".to_owned(),
        body: json!({ "do": "throw" }).to_string().into(),
        ..Default::default()
    };
    let id = fleet.clients.calls().submit(submit).await.unwrap().into_inner().call_id;
    let mut calls = fleet.clients.calls();
    let ended = calls.wait_call(v1::WaitCallRequest { call_id: id.clone() });
    let ended = within("the end of the call", ended).await.unwrap().into_inner().call.unwrap();
    assert_eq!((ended.state(), ended.attempts.len()), (v1::CallState::Dead, 2), "{ended:?}");
    let request = v1::StreamLogsRequest {
        function: "t/main".to_owned(),
        call_id: id.clone(),
        follow: true,
        ..Default::default()
    };
    let mut log = fleet.clients.fleet().stream_logs(request).await.unwrap().into_inner();
    let mut ends = 0;
    within("both ends", async {
        while ends < 2 {
            let lines = log.message().await.unwrap().expect("the log goes on").lines;
            let says =
                |line: &&v1::LogLine| String::from_utf8_lossy(&line.text) == format!("END RequestId: {id}");
            ends += lines.iter().filter(says).count();
        }
    })
    .await;
    fleet.end().await;
}
