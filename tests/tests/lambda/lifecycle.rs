//! The life of a container: what a start that fails, a crash and a time-out make of it, why it was started, and several calls at once in it.

use std::time::Duration;

use serde_json::{Value, json};
use stoker_core::error::{Blame, Code};
use stoker_sandbox::select::Choice;
use stoker_tests::calls::{Call, Door};
use stoker_tests::fleet::Plan;
use stoker_tests::functions::Change as _;

use crate::{Fifo, ask, fails, fleet, node, python};

/// A crash and a time-out end the process; its sandbox, and `/tmp` in it, stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_call_breaks_is_started_again_where_it_was() {
    let Some(main) = python("main", "kit.handler") else { return };
    let main = main.with_timeout(Duration::from_secs(2)).with_max_containers(1);
    for sandbox in [Choice::Auto, Choice::Process] {
        let fleet = fleet(sandbox, [main.clone()]).await;
        // Plain processes see the host's /tmp, which is no place for tests.
        let event = if sandbox == Choice::Process { json!({}) } else { json!({ "do": "tmp" }) };
        let mut container = Value::Null;
        for (n, ends) in
            [json!({ "do": "exit", "status": 3 }), json!({ "do": "hang" }), json!({})].iter().enumerate()
        {
            let report = ask(&fleet, "main", event.clone()).await.unwrap().json();
            assert_eq!(report["calls"], 1, "a new process: {report}");
            assert!(report["seen"].is_null() || report["seen"] == n + 1, "/tmp stays: {report}");
            let stream = report["env"]["AWS_LAMBDA_LOG_STREAM_NAME"].clone();
            assert!(container.is_null() || container == stream, "another container");
            container = stream;
            match n {
                0 => assert_eq!(fails(&fleet, "main", ends.clone()).await.0.code, Code::FunctionCrashed),
                1 => assert_eq!(fails(&fleet, "main", ends.clone()).await.0.code, Code::FunctionTimeout),
                _ => {}
            }
        }
        fleet.end().await;
    }
}

/// A start that fails is made a second time, within the call, with the time of a call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_fails_is_made_again_within_the_call() {
    let Some(raises) = python("raise", "kit_init.handler") else { return };
    let functions = ["raise", "exit", "hang"].map(|how| {
        let mut spec = raises.clone().with_env("KIT_FIRST", how).with_init_timeout(Duration::from_secs(2));
        spec.name = stoker_core::function::FunctionName::new(stoker_tests::functions::APP, how).unwrap();
        spec
    });
    let fleet = fleet(Choice::Native, functions).await;
    for how in ["raise", "exit", "hang"] {
        let answer = ask(&fleet, how, json!({})).await.unwrap();
        let report = answer.json();
        assert_eq!((&report["first"], &report["kind"]), (&json!(false), &json!("on-demand")), "{report}");
        assert!(answer.timings.unwrap().cold, "{how}");
        assert_eq!(ask(&fleet, how, json!({})).await.unwrap().json()["pid"], report["pid"]);
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_knows_why_it_was_started() {
    let Some(mut kept) = python("kept", "kit_init.handler") else { return };
    (kept.min_containers, kept.max_containers) = (2, 2);
    let fleet = fleet(Choice::Auto, [kept.clone()]).await;
    // A runner knows of the minimum from the first call on, at the latest: one of the two is there before its call.
    ask(&fleet, "kept", json!({})).await.unwrap();
    fleet.until("both are there", |record| record.functions.values().any(|warmth| warmth.idle == 2)).await;
    let gate = Fifo::new(&kept.workdir);
    // Each returns only when the other is under way.
    let calls = ["r", "w"].map(|mode| {
        let (clients, event) = (fleet.clients.clone(), json!({ "gate": gate.0, "mode": mode }));
        let call = Call::of("kept").body(event.to_string());
        tokio::spawn(async move { clients.call(Door::Session, call).await })
    });
    let mut kinds = Vec::new();
    for call in calls {
        kinds.push(call.await.unwrap().unwrap().json()["kind"].as_str().unwrap().to_owned());
    }
    assert!(
        kinds.iter().all(|kind| ["on-demand", "provisioned-concurrency"].contains(&&**kind)),
        "{kinds:?}"
    );
    assert!(kinds.contains(&"provisioned-concurrency".to_owned()), "{kinds:?}");
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_for_snapshots_run_and_keys_are_asked_for() {
    let Some(snap) = python("snap", "kit_init.handler") else { return };
    let mut snap = snap
        .with_env("AWS_ACCESS_KEY_ID", "key")
        .with_env("AWS_SECRET_ACCESS_KEY", "secret")
        .with_env("AWS_SESSION_TOKEN", "session");
    snap.format_options.snap_start = true;
    let mut broken = snap.clone().with_env("KIT_HOOK", "raise");
    broken.name = stoker_core::function::FunctionName::new(stoker_tests::functions::APP, "broken").unwrap();
    let fleet = fleet(Choice::Auto, [snap, broken]).await;
    let report = ask(&fleet, "snap", json!({})).await.unwrap().json();
    assert_eq!((&report["kind"], &report["restored"]), (&json!("snap-start"), &json!(["once"])), "{report}");
    assert!(report["key"].is_null(), "{report}");
    assert_eq!(
        (&report["keys"]["AccessKeyId"], &report["keys"]["Token"]),
        (&json!("key"), &json!("session"))
    );
    let (error, _, body) = fails(&fleet, "broken", json!({})).await;
    assert_eq!(
        (error.code, &body["errorMessage"]),
        (Code::FunctionInitFailed, &json!("thrown by a hook")),
        "{error:?}"
    );
    fleet.end().await;
}

/// AWS's client for Python takes several calls at once, in processes of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_calls_run_at_once_in_one_container() {
    let Some(wide) = python("wide", "kit_init.handler") else { return };
    let wide = wide.with_concurrency(2).with_max_containers(1);
    let fleet = fleet(Choice::Auto, [wide.clone()]).await;
    let gate = Fifo::new(&wide.workdir);
    for _ in 0..2 {
        let calls = ["r", "w"].map(|mode| {
            let (clients, event) = (fleet.clients.clone(), json!({ "gate": gate.0, "mode": mode }));
            let call = Call::of("wide").body(event.to_string());
            tokio::spawn(async move { clients.call(Door::Session, call).await })
        });
        let mut containers = Vec::new();
        for call in calls {
            let report = call.await.unwrap().unwrap().json();
            assert_eq!(report["most"], "2");
            containers.push(report["container"].clone());
        }
        assert_eq!(containers[0], containers[1], "one container");
    }
    fleet.end().await;
}

/// What a caller may say about its one call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_says_how_it_is_made() {
    let (Some(main), Some(mut stream)) = (python("main", "kit.handler"), node("stream", "kit.stream")) else {
        return;
    };
    stream.format_options.stream_rate = 64 << 10;
    stream.format_options.stream_burst = 32 << 10;
    let mut plan = Plan::default();
    plan.resources.memory = 2 << 30;
    let fleet = plan.start([main, stream]).await;
    let call = Call::of("main")
        .header("Invoke-Id", "its-own-id")
        .header("Invoked-Function-Arn", "arn:aws:lambda:us-east-1:1:function:x")
        .header("lambda-runtime-aws-tenant-id", "blue")
        .body("{}");
    let answer = fleet.clients.call(Door::Session, call).await.unwrap();
    let report = answer.json();
    assert_eq!(
        (&report["request_id"], &report["arn"]),
        (&json!("its-own-id"), &json!("arn:aws:lambda:us-east-1:1:function:x"))
    );
    let told = ["invoke-id", "invoked-function-version", "tenant-id", "reservation-token"]
        .map(|name| answer.header(name));
    assert_eq!(told, [Some("its-own-id"), Some("$LATEST"), Some("blue"), Some(&*answer.call_id)]);
    for (name, value, refused) in [
        ("MaxPayloadSize", "x", "ErrInvalidMaxPayloadSize"),
        ("InvokeResponseMode", "x", "ErrInvalidInvokeResponseMode"),
        ("Invoked-Function-Version", "7", "ErrInvalidFunctionVersion"),
    ] {
        let error = fleet
            .clients
            .call(Door::Session, Call::of("main").header(name, value).body("{}"))
            .await
            .unwrap_err();
        assert_eq!((error.code, error.blame()), (Code::InvalidRequest, Blame::Caller), "{error:?}");
        assert!(error.message.contains(refused), "{error:?}");
    }
    // More than its caller takes.
    let call = Call::of("main").header("MaxPayloadSize", "10").body("{}");
    let error = fleet.clients.call(Door::Session, call).await.unwrap_err();
    assert_eq!(error.code, Code::ResponseTooLarge, "{error:?}");
    // A stream of a function that is held back comes whole, in pieces or as one, with or without the caller's own limit.
    for headers in [
        &[][..],
        &[("InvokeResponseMode", "Buffered")][..],
        &[("InvokeResponseMode", "Streaming"), ("ResponseBandwidthRate", "33000")][..],
    ] {
        let mut call = Call::of("stream").body(json!({ "pieces": 40, "size": 1000 }).to_string());
        for (name, value) in headers {
            call = call.header(name, value);
        }
        let answer = fleet.clients.call(Door::Session, call).await.unwrap();
        assert_eq!(answer.text().matches(';').count(), 40, "{headers:?}");
        assert!(answer.body.len() > 40_000, "{headers:?}: {}", answer.body.len());
    }
    // One that is not to stream has its error, and nothing of its part.
    let call = Call::of("stream").header("InvokeResponseMode", "Buffered");
    let error = fleet
        .clients
        .call(Door::Session, call.body(json!({ "pieces": 2, "fail": true }).to_string()))
        .await
        .unwrap_err();
    assert!(error.message.contains("RangeError: thrown on the way"), "{error:?}");
    fleet.end().await;
}
