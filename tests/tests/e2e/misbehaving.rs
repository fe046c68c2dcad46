//! Functions that misbehave: each gets its precise error through gRPC and HTTP alike, with the last lines that it wrote, and
//! whatever it did, the next call is served by a fresh container.

use std::time::Duration;

use stoker_core::FunctionSpec;
use stoker_core::error::{Blame, Code, Error, Retry};
use stoker_sandbox::select::Choice;
use stoker_tests::calls::{Call, Door};
use stoker_tests::fleet::Plan;
use stoker_tests::functions::{Change as _, probe, probe_that, shell};

use crate::sandbox;

/// The doors that show an error in different ways: a gRPC status with details, and HTTP with JSON.
const DOORS: [Door; 2] = [Door::Invoke, Door::Http];

/// The strongest sandbox of this machine, and the one that isolates nothing: an error is as precise in both.
const SANDBOXES: [Choice; 2] = [Choice::Auto, Choice::Process];

/// What an error must be.
struct Expected {
    code: Code,
    may_have_started: bool,
    /// Parts of its message.
    says: &'static [&'static str],
    /// Parts of what the function wrote last.
    tail: &'static [&'static str],
}

fn check(error: &Error, expected: &Expected) {
    assert_eq!(error.code, expected.code, "{error:?}");
    assert_eq!(error.blame(), Blame::Function, "{error:?}");
    assert_eq!(error.retry, Retry::Never, "{error:?}");
    assert_eq!(error.may_have_started, expected.may_have_started, "{error:?}");
    for part in expected.says {
        assert!(error.message.contains(part), "{part:?} is missing in {error:?}");
    }
    for part in expected.tail {
        assert!(error.log_tail.contains(part), "{part:?} is missing in {error:?}");
    }
}

/// A call that does its worst, through both doors; then a good one, which a fresh container serves.
async fn fails(function: FunctionSpec, word: &str, expected: Expected) {
    fails_in(&SANDBOXES, function, word, expected).await;
}

async fn fails_in(sandboxes: &[Choice], function: FunctionSpec, word: &str, expected: Expected) {
    let name = function.name.function().to_owned();
    for &sandbox in sandboxes {
        let fleet = Plan::default().sandbox(sandbox).start([function.clone()]).await;
        for door in DOORS {
            let error = fleet.clients.call(door, Call::of(&name).probe(word)).await.unwrap_err();
            check(&error, &expected);
            let next = fleet.clients.probe(&name, "report").await.json();
            assert_eq!(next["calls"], 1, "the container of a call that failed was used again: {next}");
            // That one stays.
            assert_eq!(fleet.clients.probe(&name, "report").await.json()["calls"], 2);
        }
        fleet.end().await;
    }
}

/// A function that cannot become ready, through both doors; another one is served meanwhile, and a corrected one at once.
async fn does_not_start(function: FunctionSpec, expected: Expected) {
    let name = function.name.function().to_owned();
    let mut corrected = function.clone();
    corrected.env.remove("PROBE_START");
    for sandbox in SANDBOXES {
        let fleet = Plan::default().sandbox(sandbox).start([function.clone(), probe("good")]).await;
        for door in DOORS {
            let error = fleet.clients.call(door, Call::of(&name)).await.unwrap_err();
            check(&error, &expected);
            assert_eq!(fleet.clients.probe("good", "echo").await.status, 200);
        }
        fleet.apply(corrected.clone()).await;
        assert_eq!(fleet.clients.probe(&name, "report").await.json()["calls"], 1);
        fleet.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_exits_at_start() {
    let says = &["exited with status 3", "before it was ready"];
    let tail = &["probe: first line", "probe: exiting with 3"];
    does_not_start(
        probe_that("early-exit", "exit:3"),
        Expected { code: Code::FunctionInitFailed, may_have_started: false, says, tail },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_whose_program_is_not_there() {
    let mut function = probe("no-program");
    function.command = vec!["no-such-program".to_owned()];
    let fleet = Plan::default().start([function]).await;
    for door in DOORS {
        let error = fleet.clients.call(door, Call::of("no-program")).await.unwrap_err();
        let says = &["no-such-program"];
        check(&error, &Expected { code: Code::FunctionInitFailed, may_have_started: false, says, tail: &[] });
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_never_listens() {
    let function = probe_that("deaf", "never-listen").with_init_timeout(Duration::from_millis(700));
    let says = &["FN_LISTENER", "700ms", "the socket never appeared"];
    let tail = &["probe: not listening"];
    does_not_start(
        function,
        Expected { code: Code::FunctionInitTimeout, may_have_started: false, says, tail },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_whose_socket_leads_elsewhere() {
    for start in ["bad-link", "no-socket"] {
        let says = &["the function's socket is not usable"];
        does_not_start(
            probe_that("bad-socket", start),
            Expected { code: Code::FunctionInitFailed, may_have_started: false, says, tail: &[] },
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_exits_mid_call() {
    let says = &["exited with status 7", "before it had answered"];
    let tail = &["probe: exiting with 7 in a call"];
    fails(
        probe("exits"),
        "exit:7",
        Expected { code: Code::FunctionCrashed, may_have_started: true, says, tail },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_dies_of_a_signal_mid_call() {
    let tail = &["probe: aborting in a call"];
    fails(
        probe("aborts"),
        "abort",
        Expected { code: Code::FunctionCrashed, may_have_started: true, says: &["signal 6"], tail },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_exits_in_its_answer() {
    let says = &["exited with status 0"];
    fails(
        probe("halves"),
        "half",
        Expected { code: Code::FunctionCrashed, may_have_started: true, says, tail: &[] },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_exceeds_its_memory() {
    if !sandbox().limits_memory {
        println!("left out: the sandbox of this machine does not limit memory: {}", sandbox().why);
        return;
    }
    let says = &["memory limit of 64MiB", "raise `memory`"];
    fails_in(
        &[Choice::Auto],
        probe("hungry"),
        "memory:300",
        Expected { code: Code::FunctionOutOfMemory, may_have_started: true, says, tail: &[] },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_forks_without_end() {
    if !sandbox().limits_pids {
        println!("left out: the sandbox of this machine does not limit processes: {}", sandbox().why);
        return;
    }
    let fleet = Plan::default().start([probe("forks").with_memory(256), probe("good")]).await;
    let forked: u32 = fleet.clients.probe("forks", "forks").await.text().parse().unwrap();
    assert!((100..2000).contains(&forked), "{forked} processes");
    // Neither it nor another function is the worse for it.
    for name in ["forks", "good"] {
        assert_eq!(fleet.clients.probe(name, "echo").await.status, 200);
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_writes_garbage() {
    fails(
        probe("garbage"),
        "garbage",
        Expected { code: Code::FunctionInvalidResponse, may_have_started: true, says: &[], tail: &[] },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_whose_headers_are_too_large() {
    fails(
        probe("wide"),
        "headers:100000",
        Expected { code: Code::ResponseHeadersTooLarge, may_have_started: true, says: &[], tail: &[] },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_writes_to_stderr_without_end() {
    let fleet = Plan::default().start([probe("loud")]).await;
    for _ in 0..2 {
        assert_eq!(fleet.clients.probe("loud", "stderr:32").await.text(), "flooded");
    }
    // The last lines are there, and no more than an error can carry.
    let error = fleet.clients.call(Door::Invoke, Call::of("loud").probe("exit:9")).await.unwrap_err();
    assert!(error.log_tail.contains("exiting with 9"), "{error:?}");
    assert!(error.log_tail.len() <= stoker_core::error::MAX_LOG_TAIL);
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_answers_and_then_keeps_writing() {
    let fleet = Plan::default().start([probe("excess")]).await;
    for door in Door::ALL {
        let answer = fleet.clients.call(door, Call::of("excess").probe("excess")).await.unwrap();
        assert_eq!(answer.text(), "complete", "{door:?}");
        let next = fleet.clients.probe("excess", "report").await.json();
        assert_eq!(next["calls"], 1, "a container that wrote too much was used again");
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_ignores_sigterm() {
    let function = probe_that("stubborn", "ignore-sigterm").with_timeout(Duration::from_millis(500));
    let fleet = Plan::default().start([function]).await;
    for door in DOORS {
        let error = fleet.clients.call(door, Call::of("stubborn").probe("hang")).await.unwrap_err();
        check(
            &error,
            &Expected { code: Code::FunctionTimeout, may_have_started: true, says: &["500ms"], tail: &[] },
        );
        assert_eq!(fleet.clients.probe("stubborn", "report").await.json()["calls"], 1);
    }
    // An idle one that does not want to go goes with its fleet.
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_fails_by_its_own_word_keeps_its_container() {
    let fleet = Plan::default().start([probe("fails")]).await;
    for (door, calls) in DOORS.into_iter().zip([2, 4]) {
        let error = fleet.clients.call(door, Call::of("fails").probe("no-such-word")).await.unwrap_err();
        let says = &[];
        check(&error, &Expected { code: Code::FunctionFailed, may_have_started: true, says, tail: &[] });
        assert_eq!(fleet.clients.probe("fails", "report").await.json()["calls"], calls);
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn functions_of_one_call_fail_precisely() {
    let memory = sandbox().limits_memory;
    let cases: [(&str, &str, Code, &str, &str); 4] = [
        ("status", "echo last words >&2; exit 3", Code::FunctionFailed, "status 3", "last words"),
        ("signal", "kill -9 $$", Code::FunctionCrashed, "signal 9", ""),
        ("slow", "echo started >&2; sleep 1000", Code::FunctionTimeout, "", "started"),
        ("hungry", "x=x; while :; do x=$x$x; done", Code::FunctionOutOfMemory, "memory limit", ""),
    ];
    let fleet = Plan::default().start([]).await;
    for (name, script, code, says, tail) in cases {
        if code == Code::FunctionOutOfMemory && !memory {
            println!("left out: memory of `default`: {}", sandbox().why);
            continue;
        }
        let timeout = if code == Code::FunctionTimeout { 1500 } else { 20_000 };
        fleet.apply(shell(name, script).with_timeout(Duration::from_millis(timeout))).await;
        for door in DOORS {
            let error = fleet.clients.call(door, Call::of(name)).await.unwrap_err();
            let expected = Expected { code, may_have_started: true, says: &[], tail: &[] };
            check(&error, &expected);
            assert!(error.message.contains(says), "{error:?}");
            assert!(error.log_tail.contains(tail), "{error:?}");
        }
    }
    fleet.apply(shell("good", "cat")).await;
    let answer = fleet.clients.call(Door::Http, Call::of("good").body("fine")).await.unwrap();
    assert_eq!(answer.text(), "fine");
    fleet.end().await;
}

/// Answers before reading: the head and the first bytes are there before the caller has sent anything of the body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_answers_before_reading() {
    use stoker_proto::v1::{InvokeStreamRequest, invoke_stream_request, invoke_stream_response::Frame};
    let fleet = Plan::default().start([probe("early")]).await;
    let (send, answers) = fleet.clients.open(&Call::of("early").probe("early"));
    let mut answers = stoker_tests::within("the head", answers).await.unwrap();
    let mut seen = Vec::new();
    while seen != b"early" {
        let frame = stoker_tests::within("an early answer", answers.message()).await.unwrap().unwrap().frame;
        match frame.unwrap() {
            Frame::Answer(answer) => assert_eq!(answer.head.unwrap().status, 200),
            Frame::Body(piece) => seen.extend_from_slice(&piece),
            Frame::End(_) => panic!("the end came before the body"),
        }
    }
    let body = invoke_stream_request::Frame::Body(vec![7; 1000].into());
    send.send(InvokeStreamRequest { frame: Some(body) }).await.unwrap();
    drop(send);
    let rest = stoker_tests::within("the rest", stoker_tests::calls::rest_of(&mut answers)).await.unwrap();
    assert_eq!(rest.text(), ", then 1000 bytes");
    // The other doors have no such order of events to see, but the same answer.
    for door in Door::ALL {
        let call = Call::of("early").probe("early").body(vec![7; 100_000]);
        let answer = fleet.clients.call(door, call).await.unwrap();
        assert_eq!(answer.text(), "early, then 100000 bytes", "{door:?}");
    }
    fleet.end().await;
}
