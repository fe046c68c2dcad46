//! One call and its one outcome.

use std::time::Duration;

use stoker_core::call::longest_piece;
use stoker_proto::runner::v1::{self as wire, engage_request as req, engage_response as res};
use stoker_proto::{convert, v1};
use stoker_sandbox::select::Choice;

use crate::kit::{self, AMPLE, LIMIT, code, on_both_drivers, python, shell};

on_both_drivers!(
    a_default_function_answers,
    bodies_stream_both_ways,
    failures_are_precise,
    a_timeout_ends_the_container,
    a_cancel_reaches_the_container,
);

async fn a_default_function_answers(choice: Choice) {
    let fleet = kit::fleet(choice, 512, 8).await;
    let mut session = fleet.session().await;
    let answer = session.call(&shell("cat; echo \" $FN_HEADER_X_DO\"; echo note >&2"), "it", b"hello").await;
    let text = String::from_utf8_lossy(&answer.body);
    assert_eq!((answer.code(), text.as_ref()), ("OK", "hello it\n"), "{answer:?}");
    let answer = session.call(&shell("echo half; echo why >&2; exit 4"), "", b"").await;
    assert_eq!((answer.code(), answer.tail()), ("ERROR_CODE_FUNCTION_FAILED", "why\n"), "{answer:?}");
    let answer = session.call(&shell("kill -9 $$"), "", b"").await;
    assert_eq!(answer.code(), "ERROR_CODE_FUNCTION_CRASHED");
    let mut missing = shell("");
    missing.command = vec!["/does/not/exist".into()];
    let answer = session.call(&missing, "", b"").await;
    assert_eq!(answer.code(), "ERROR_CODE_FUNCTION_INIT_FAILED", "{answer:?}");
    fleet.end().await;
}

async fn bodies_stream_both_ways(choice: Choice) {
    let fleet = kit::fleet(choice, 512, 8).await;
    let mut session = fleet.session().await;
    let spec = python("");
    session.call(&spec, "echo", b"").await;
    let call = session.offer(&spec, "stream", b"first", false, AMPLE).await;
    let (total, mut sent, mut credit, mut got) = (8usize << 20, 5usize, 0usize, 0usize);
    loop {
        while sent < total && credit > 0 {
            let n = credit.min(60_000).min(total - sent);
            (sent, credit) = (sent + n, credit - n);
            session.body(call, &vec![7; n], sent == total).await;
        }
        match session.frame().await {
            res::Frame::Credit(more) => credit += more.bytes as usize,
            res::Frame::Body(body) => {
                got += body.data.len();
                session.credit(call, body.data.len()).await;
            }
            res::Frame::Finished(finished) => {
                assert!(finished.error.is_none(), "{finished:?}");
                got += finished.body.len();
                break;
            }
            _ => {}
        }
    }
    assert_eq!(got, total);
    // An answer that does not wait for the input.
    let call = session.offer(&spec, "early", b"x", false, AMPLE).await;
    assert_eq!(session.outcome(call).await.body, b"early");
    assert_eq!(session.call(&spec, "echo", b"still").await.body, b"still");
    fleet.end().await;
}

async fn failures_are_precise(choice: Choice) {
    let fleet = kit::fleet(choice, 512, 8).await;
    let mut session = fleet.session().await;
    let spec = python("");
    let crash = session.call(&spec, "crash", b"").await;
    assert_eq!((crash.code(), crash.tail()), ("ERROR_CODE_FUNCTION_CRASHED", "last words\n"), "{crash:?}");
    assert!(crash.finished.error.unwrap().may_have_started);
    for todo in ["garbage", "odd"] {
        let answer = session.call(&spec, todo, b"").await;
        assert_eq!(answer.code(), "ERROR_CODE_FUNCTION_INVALID_RESPONSE", "{todo}: {answer:?}");
    }
    assert_eq!(session.call(&spec, "excess", b"").await.body, b"hi");
    let clean = session.call(&spec, "echo", b"clean").await;
    assert_eq!(clean.body, b"clean");
    // One that fails in its own words, or closes its connection in due form, is not in doubt.
    assert_eq!(session.call(&spec, "fail", b"").await.code(), "ERROR_CODE_FUNCTION_FAILED");
    assert_eq!(session.call(&spec, "bye", b"").await.body, b"bye");
    assert_eq!(session.call(&spec, "pid", b"").await.container(), clean.container());
    fleet.end().await;
}

async fn a_timeout_ends_the_container(choice: Choice) {
    let fleet = kit::fleet(choice, 512, 8).await;
    let mut session = fleet.session().await;
    let mut short = python("");
    short.timeout_ms = 200;
    let late = session.call(&short, "sleep", b"1000").await;
    assert_eq!(late.code(), "ERROR_CODE_FUNCTION_TIMEOUT", "{late:?}");
    let spec = python("");
    let first = session.call(&spec, "pid", b"").await;
    let call = session.offer(&spec, "sleep", b"1000", true, 1000).await;
    let late = session.outcome(call).await;
    assert_eq!((late.code(), late.container()), ("ERROR_CODE_DEADLINE_EXCEEDED", first.container()));
    let next = session.call(&spec, "pid", b"").await;
    assert_eq!(next.code(), "OK", "{next:?}");
    assert_ne!(first.container(), next.container());
    let call = session.offer(&spec, "pid", b"", true, 0).await;
    assert_eq!(session.outcome(call).await.refusal(), Some(wire::RefusalReason::Expired));
    fleet.end().await;
}

async fn a_cancel_reaches_the_container(choice: Choice) {
    let fleet = kit::fleet(choice, 512, 8).await;
    let mut session = fleet.session().await;
    let spec = python("");
    let first = session.call(&spec, "pid", b"").await;
    for reason in [wire::CancelReason::CallerGone, wire::CancelReason::Deadline] {
        let call = session.offer(&spec, "echo", b"half", false, AMPLE).await;
        session.started(call).await;
        session.cancel(call, reason).await;
        let expected = match reason {
            wire::CancelReason::Deadline => "ERROR_CODE_DEADLINE_EXCEEDED",
            _ => "ERROR_CODE_CANCELLED",
        };
        let answer = session.outcome(call).await;
        assert_eq!(answer.code(), expected, "{answer:?}");
        let next = session.call(&spec, "pid", b"").await;
        assert_ne!(first.container(), next.container());
    }
    fleet.end().await;
}

/// A session that is lost is a caller that went away, for every call on it: what ran ends with its container, what waited
/// leaves the line.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_session_cancels_its_calls() {
    let fleet = kit::fleet(Choice::Auto, 64, 8).await;
    let mut session = fleet.session().await;
    let spec = python("");
    let running = session.offer(&spec, "echo", b"half", false, AMPLE).await;
    let started = session.started(running).await;
    session.offer(&spec, "echo", b"waits", true, AMPLE).await;
    drop(session);
    let mut session = fleet.session().await;
    session.until("nothing runs or waits", |c| c.in_flight == 0 && c.waiting == 0).await;
    assert_ne!(session.call(&spec, "pid", b"").await.container(), started.container);
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_call_is_one_frame_each_way() {
    let fleet = kit::fleet(Choice::Auto, 512, 8).await;
    let mut session = fleet.session().await;
    let spec = python("");
    let first = session.call(&spec, "pid", b"").await;
    assert_eq!(first.code(), "OK", "{first:?}");
    assert!(first.finished.timings.unwrap().cold);
    for _ in 0..50 {
        let answer = session.call(&spec, "pid", b"").await;
        assert_eq!((&answer.body, answer.frames), (&first.body, 1), "{answer:?}");
    }
    fleet.end().await;
}

/// Where a body's length is known nobody looks for the ends of pieces: not the function, which is told it, and not credit and windows, in which so many
/// pieces fit that none is cut.
#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_is_known_is_told() {
    let fleet = kit::fleet(Choice::Auto, 512, 8).await;
    let mut session = fleet.session().await;
    let spec = python("");
    let (piece, length) = (vec![7; 60_000], 300_005);
    for said in [Some(length), None] {
        let call = session.offer_of_length(&spec, "length", b"first", false, AMPLE, said).await;
        let (mut sent, mut credit) = (5, 0);
        let answer = loop {
            while sent < length && credit >= piece.len() {
                (sent, credit) = (sent + 60_000, credit - piece.len());
                session.body(call, &piece, sent == length).await;
            }
            match session.frame().await {
                res::Frame::Ready(_) => session.start(call).await,
                res::Frame::Credit(more) => credit += more.bytes as usize,
                res::Frame::Finished(finished) => break finished,
                _ => {}
            }
        };
        let told = said.map_or("none".to_owned(), |length| length.to_string());
        assert_eq!(String::from_utf8_lossy(&answer.body), told, "{answer:?}");
    }

    for version in [stoker_proto::OLDEST_SESSION_VERSION, stoker_proto::SESSION_VERSION] {
        let longest = longest_piece(stoker_proto::window(version));
        let mut session = kit::Session::open_as(fleet.client().await, version).await;
        let call = session.offer(&spec, "give", b"1000000", true, AMPLE).await;
        let (mut got, mut said) = (0, None);
        let finished = loop {
            match session.frame().await {
                res::Frame::Ready(_) => session.start(call).await,
                res::Frame::Head(head) => said = head.length,
                res::Frame::Body(body) => {
                    assert!(
                        got % longest + body.data.len() <= longest,
                        "{} bytes behind {got}",
                        body.data.len()
                    );
                    got += body.data.len();
                    session.credit(call, body.data.len()).await;
                }
                res::Frame::Finished(finished) => break finished,
                _ => {}
            }
        };
        assert_eq!((said, got + finished.body.len()), (Some(1_000_000), 1_000_000), "{finished:?}");
    }

    // What was said holds.
    let call = session.offer_of_length(&spec, "length", b"first", false, AMPLE, Some(10)).await;
    session.started(call).await;
    while !matches!(session.frame().await, res::Frame::Credit(_)) {}
    session.body(call, b"four", true).await;
    let violation = session.violation().await;
    assert!(violation.message().contains("not as long as was said"), "{violation}");
    fleet.end().await;
}

/// The function's time does not pass while the reader of its answer stands still; the caller's does.
#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_reader_is_not_the_functions_fault() {
    let fleet = kit::fleet(Choice::Auto, 512, 8).await;
    let mut session = fleet.session().await;
    let mut spec = python("");
    spec.timeout_ms = 1_000;
    let size = 4 << 20;
    // Far more than a window and the socket's buffers hold: the function stands still in its write.
    let call = session.offer(&spec, "give", size.to_string().as_bytes(), true, 2_500).await;
    let answer = loop {
        match session.frame().await {
            res::Frame::Ready(_) => session.start(call).await,
            // Taken, and no credit given for it.
            res::Frame::Accepted(_) | res::Frame::Head(_) | res::Frame::Body(_) => {}
            res::Frame::Finished(finished) => break finished,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(code(&answer), "ERROR_CODE_DEADLINE_EXCEEDED", "{answer:?}");

    // One that goes on after the function's timeout gets all of it. The stall is as long as another call that runs into the
    // same timeout, and began before it.
    let slow = session.offer(&spec, "give", size.to_string().as_bytes(), true, AMPLE).await;
    let (mut got, mut unpaid, mut other) = (0, 0, None);
    loop {
        match session.frame().await {
            res::Frame::Ready(ready) => session.start(ready.call).await,
            res::Frame::Accepted(_) | res::Frame::Head(_) => {}
            res::Frame::Body(body) => {
                assert_eq!(body.call, slow);
                got += body.data.len();
                if other == Some(0) {
                    session.credit(slow, body.data.len()).await;
                    continue;
                }
                unpaid += body.data.len();
                if other.is_none() && unpaid == 256 * 1024 {
                    other = Some(session.offer(&spec, "sleep", b"1000", true, AMPLE).await);
                }
            }
            res::Frame::Finished(finished) if Some(finished.call) == other => {
                assert_eq!(code(&finished), "ERROR_CODE_FUNCTION_TIMEOUT", "{finished:?}");
                other = Some(0);
                session.credit(slow, std::mem::take(&mut unpaid)).await;
            }
            res::Frame::Finished(finished) => {
                assert_eq!((finished.call, code(&finished)), (slow, "OK"), "{finished:?}");
                got += finished.body.len();
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(got, size);
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn violations_end_the_session() {
    let fleet = kit::fleet(Choice::Auto, 512, 8).await;
    for (frame, words) in [
        (req::Frame::Start(wire::Start { call: 9 }), "never offered"),
        (req::Frame::Offer(wire::Offer { call: 1, ..Default::default() }), "16 bytes"),
        (
            req::Frame::Offer(wire::Offer {
                call: 1,
                call_id: vec![0; 16].into(),
                digest: vec![0; 32].into(),
                ..Default::default()
            }),
            "not defined",
        ),
        (req::Frame::Hello(wire::Hello::default()), "second Hello"),
    ] {
        let mut session = fleet.session().await;
        session.say(frame).await;
        let status = session.violation().await;
        assert!(status.message().contains(words), "{status}");
    }
    fleet.end().await;
}

/// A balancer of a later release may say more of a function than this runner knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_function_that_is_not_understood_is_refused_and_others_are_not() {
    let fleet = kit::fleet(Choice::Auto, 512, 8).await;
    let mut session = fleet.session().await;
    let known = python("");
    let odd = v1::Function { format: "of tomorrow".into(), ..convert::to_function(&known) };
    for (n, function) in [(7u8, Some(convert::to_function(&known))), (8, Some(odd))] {
        let digest = vec![n; 32];
        let define = wire::Define { digest: digest.clone().into(), function, ..Default::default() };
        session.say(req::Frame::Define(Box::new(define))).await;
        let call = session.offer_of(&digest).await;
        let frame = session.frame().await;
        let res::Frame::Refused(refused) = frame else { panic!("{frame:?}") };
        assert_eq!((refused.call, refused.reason()), (call, wire::RefusalReason::TooLarge));
        assert!(refused.detail.contains("is to be upgraded"), "{}", refused.detail);
        // To keep it ready is no mistake either.
        let kept = vec![wire::Kept { digest: digest.into(), containers: 1 }];
        session.say(req::Frame::Keep(wire::Keep { kept, holds: None })).await;
    }
    assert_eq!(session.call(&known, "echo", b"x").await.code(), "OK");
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_beyond_the_limit_is_named() {
    let fleet = kit::fleet(Choice::Auto, 512, 8).await;
    if !fleet.runner.describe().contains("native") {
        println!("left out: this machine has no native sandbox");
        return;
    }
    let mut session = fleet.session().await;
    let spec = python("");
    session.call(&spec, "pid", b"").await;
    let answer = session.call(&spec, "eat", b"").await;
    assert_eq!(answer.code(), "ERROR_CODE_FUNCTION_OUT_OF_MEMORY", "{answer:?}");
    let said = answer.finished.error.unwrap().message;
    assert!(said.contains("memory limit of") && said.contains("MiB at most"), "{said}");
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_streamed() {
    let fleet = kit::fleet(Choice::Auto, 512, 8).await;
    let mut session = fleet.session().await;
    let spec = shell("echo from the function >&2");
    session.call(&spec, "", b"").await;
    let request = wire::StreamLogsRequest {
        app: "test".into(),
        function: "shell".into(),
        follow: true,
        ..Default::default()
    };
    let mut lines = fleet.client().await.stream_logs(request).await.unwrap().into_inner();
    let message = tokio::time::timeout(LIMIT, lines.message()).await.unwrap();
    let line = message.unwrap().unwrap().lines.remove(0);
    assert_eq!(
        (&line.text[..], line.runner.as_str()),
        (&b"from the function"[..], fleet.runner.name().as_str())
    );
    assert!(!line.call_id.is_empty());
    drop(lines);
    fleet.end().await;
}

/// A drain turns new calls away, and waits for those that run.
#[tokio::test(flavor = "multi_thread")]
async fn draining_refuses_and_waits_for_what_runs() {
    let fleet = kit::fleet(Choice::Auto, 512, 8).await;
    let mut session = fleet.session().await;
    let spec = python("");
    let running = session.offer(&spec, "echo", b"half", false, AMPLE).await;
    session.started(running).await;
    assert!(matches!(session.frame().await, res::Frame::Credit(_)));
    let calls = async {
        // No state of a stopping runner can be changed any more.
        let mut client = fleet.client().await;
        session.until("it drains", |c| c.state() == v1::RunnerState::Draining).await;
        let new = session.call(&spec, "echo", b"new").await;
        assert_eq!(new.refusal(), Some(wire::RefusalReason::Draining));
        for status in [
            client.drain(wire::DrainRequest::default()).await.unwrap_err(),
            client.uncordon(wire::UncordonRequest {}).await.unwrap_err(),
        ] {
            assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
        }
        session.body(running, b" and half", true).await;
        assert_eq!(session.outcome(running).await.body, b"half and half");
    };
    let ((), ()) = tokio::join!(fleet.runner.stop(Duration::from_secs(600)), calls);
    assert!(session.drains);
}

/// Drained by an operator, a runner finishes what it has, keeps nothing warm, and stays until it is wanted again.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_drains_and_uncordons() {
    let fleet = kit::fleet(Choice::Auto, 512, 8).await;
    let (mut session, mut client) = (fleet.session().await, fleet.client().await);
    let (spec, once, kept) = (python(""), shell("cat"), kit::another(1));
    session.keep(&[(&kept, 1)]).await;
    // Of each there is one idle.
    for spec in [&spec, &once, &kept] {
        session.call(spec, "echo", b"x").await;
        session.until("one is idle", |c| kit::warmth(c, spec).idle == 1).await;
    }
    let running = session.offer(&spec, "echo", b"half", false, AMPLE).await;
    session.started(running).await;
    assert!(matches!(session.frame().await, res::Frame::Credit(_)));
    for _ in 0..2 {
        let reason = "maintenance".to_owned();
        let drained = client.drain(wire::DrainRequest { reason }).await.unwrap().into_inner();
        assert_eq!(drained.capacity.unwrap().state(), v1::RunnerState::Draining);
    }
    session
        .until("only what runs is left", |c| {
            c.state() == v1::RunnerState::Draining && c.total.unwrap().slots - c.free.unwrap().slots == 1
        })
        .await;
    assert!(session.drains);
    let new = session.offer(&spec, "echo", b"new", true, AMPLE).await;
    assert_eq!(session.outcome(new).await.refusal(), Some(wire::RefusalReason::Draining));
    // Who comes now is told, too.
    let mut late = fleet.session().await;
    late.until("it drains", |c| c.state() == v1::RunnerState::Draining).await;
    late.frame_of_draining().await;
    session.body(running, b" and half", true).await;
    assert_eq!(session.outcome(running).await.body, b"half and half");
    session.until("nothing is left", |c| c.free == c.total).await;
    for _ in 0..2 {
        let ready = client.uncordon(wire::UncordonRequest {}).await.unwrap().into_inner();
        assert_eq!(ready.capacity.unwrap().state(), v1::RunnerState::Ready);
    }
    for session in [&mut session, &mut late] {
        session.until("it is ready", |c| c.state() == v1::RunnerState::Ready).await;
        session.until("what shall be warm is", |c| kit::warmth(c, &kept).idle == 1).await;
        assert_eq!(session.call(&spec, "echo", b"again").await.body, b"again");
    }
    // And drained once more it says so once more.
    session.drains = false;
    client.drain(wire::DrainRequest::default()).await.unwrap();
    session.frame_of_draining().await;
    fleet.end().await;
}

/// A stream that nobody ends, and a balancer that says nothing, do not hold the end.
#[tokio::test(flavor = "multi_thread")]
async fn idle_streams_do_not_hold_the_end() {
    let fleet = kit::fleet(Choice::Auto, 512, 8).await;
    let session = fleet.session().await;
    let address = format!("http://{}", fleet.runner.address());
    let channel = tonic::transport::Endpoint::from_shared(address).unwrap().connect().await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
    let mut watch = health.watch(request).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    let request =
        wire::StreamLogsRequest { app: "a".into(), function: "b".into(), follow: true, ..Default::default() };
    let logs = fleet.client().await.stream_logs(request).await.unwrap().into_inner();
    // Its limit is there for what is held for ever.
    fleet.end().await;
    drop((session, watch, logs));
}

/// A call that outlasts the grace is ended by the runner, and it is the runner that is blamed.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_that_ends_calls_is_not_blamed_on_the_function() {
    let fleet = kit::fleet(Choice::Auto, 512, 8).await;
    let mut session = fleet.session().await;
    let spec = python("");
    let call = session.offer(&spec, "echo", b"half", false, AMPLE).await;
    session.started(call).await;
    let (answer, ()) = tokio::join!(session.outcome(call), fleet.end());
    assert_eq!(answer.code(), "ERROR_CODE_RUNNER_LOST", "{answer:?}");
    assert!(answer.finished.error.unwrap().may_have_started);
}
