//! Who gets which container, and what becomes of it: reuse, sharing, freezing, room, keeping warm.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use stoker_proto::runner::v1::{self as wire, engage_request as req};
use stoker_runner::Config;
use stoker_sandbox::select::Choice;

use crate::kit::{self, AMPLE, LIMIT, another, on_both_drivers, python, warmth};

on_both_drivers!(a_frozen_container_answers, calls_share_a_container);

async fn a_frozen_container_answers(choice: Choice) {
    let state = tempfile::tempdir().unwrap();
    let config = Config { freeze_after: Duration::ZERO, ..kit::config(choice, 64, 8, state.path()) };
    let fleet = kit::start(config).await;
    let mut session = fleet.session().await;
    let spec = python("");
    let first = session.call(&spec, "echo", b"1").await;
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < LIMIT, "it is never found frozen");
        let answer = session.call(&spec, "echo", b"2").await;
        let found = (answer.code(), &answer.body[..], answer.waited, answer.container());
        assert_eq!(found, ("OK", &b"2"[..], false, first.container()), "{answer:?}");
        if answer.finished.timings.unwrap().thaw_us > 0 {
            break;
        }
    }
    fleet.end().await;
}

async fn calls_share_a_container(choice: Choice) {
    let fleet = kit::fleet(choice, 512, 8).await;
    let mut session = fleet.session().await;
    let mut spec = python("");
    spec.concurrency = 4;
    let first = session.call(&spec, "pid", b"").await;
    // Each of the four answers only when all four are there.
    let mut calls = Vec::new();
    for _ in 0..4 {
        calls.push(session.offer(&spec, "meet", b"", true, AMPLE).await);
    }
    for answer in session.outcomes(calls).await.into_values() {
        assert_eq!((answer.code(), answer.container()), ("OK", first.container()));
    }
    fleet.end().await;
}

/// Fifty callers and room for four: everyone is served or told when to come again, and another function gets its turn.
#[tokio::test(flavor = "multi_thread")]
async fn overload_is_answered_or_refused() {
    let fleet = kit::fleet(Choice::Auto, 256, 4).await;
    let mut session = fleet.session().await;
    let mut calls = Vec::new();
    for _ in 0..50 {
        calls.push(session.offer(&python(""), "sleep", b"0.02", true, AMPLE).await);
    }
    let other = session.offer(&another(1), "echo", b"other", true, AMPLE).await;
    calls.push(other);
    let answers = session.outcomes(calls).await;
    for answer in answers.values() {
        match &answer.refused {
            Some(no) => {
                assert!(no.reason() == wire::RefusalReason::Full && no.retry_after.is_some(), "{no:?}")
            }
            None => assert_eq!(answer.code(), "OK", "{answer:?}"),
        }
    }
    assert_eq!(answers[&other].body, b"other");
    let answered = answers.values().filter(|a| a.refused.is_none()).count();
    println!("answered {answered} of {}", answers.len());
    assert!(answered > 4);
    session.until("it is quiet", |c| c.in_flight == 0 && c.waiting == 0).await;
    fleet.end().await;
}

/// A call behind others that never end goes away in time to be served elsewhere, and who comes after it is told at once.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_in_vain_is_given_away() {
    let fleet = kit::fleet(Choice::Auto, 64, 4).await;
    let mut session = fleet.session().await;
    let spec = python("");
    // Known to be quick, so that waiting seems worth it.
    for _ in 0..5 {
        assert_eq!(session.call(&spec, "echo", b"x").await.code(), "OK");
    }
    let endless = session.offer(&spec, "echo", b"", false, AMPLE).await;
    session.started(endless).await;
    session.frame().await;
    for accepted in [true, false] {
        let answer = session.call(&spec, "echo", b"x").await;
        assert_eq!(answer.refusal(), Some(wire::RefusalReason::Full), "{answer:?}");
        assert!(answer.refused.unwrap().retry_after.is_some());
        assert_eq!(answer.waited, accepted);
    }
    // Another function, which would need the room that the endless call has.
    for accepted in [true, false] {
        let answer = session.call(&another(1), "echo", b"x").await;
        assert_eq!(
            (answer.refusal(), answer.waited),
            (Some(wire::RefusalReason::Full), accepted),
            "{answer:?}"
        );
    }
    session.body(endless, b"end", true).await;
    assert_eq!(session.outcome(endless).await.body, b"end");
    assert_eq!(session.call(&spec, "echo", b"x").await.code(), "OK");
    assert_eq!(session.call(&another(1), "echo", b"x").await.code(), "OK");
    fleet.end().await;
}

/// However many functions take turns, idle containers of others make room.
#[tokio::test(flavor = "multi_thread")]
async fn idle_containers_make_room() {
    let fleet = kit::fleet(Choice::Auto, 128, 8).await;
    let mut session = fleet.session().await;
    for n in 0..4 {
        assert_eq!(session.call(&another(n), "echo", b"x").await.body, b"x", "{n}");
    }
    fleet.end().await;
}

/// What a balancer wants to be kept is there before any call, and stays when its idle timeout has passed.
#[tokio::test(flavor = "multi_thread")]
async fn a_minimum_is_kept() {
    let fleet = kit::fleet(Choice::Auto, 512, 8).await;
    let mut session = fleet.session().await;
    let mut spec = python("");
    spec.idle_timeout_ms = 1;
    session.keep(&[(&spec, 2)]).await;
    session.until("two are idle", |c| warmth(c, &spec).idle == 2).await;
    let first = session.call(&spec, "pid", b"").await;
    assert!(!first.waited, "it was cold");
    // Another function's idle containers come and go; these stay.
    let mut other = another(1);
    other.idle_timeout_ms = 1;
    session.call(&other, "pid", b"").await;
    session.until("the other's is gone", |c| c.functions.len() == 1).await;
    assert_eq!(warmth(&session.capacity, &spec).idle, 2);
    assert_eq!(first.code(), "OK");
    // One that ends is replaced.
    session.call(&spec, "crash", b"").await;
    session.until("two are idle again", |c| warmth(c, &spec).idle == 2 && c.in_flight == 0).await;
    // With a smaller number the surplus goes.
    session.keep(&[(&spec, 1)]).await;
    session.until("one is left", |c| warmth(c, &spec).idle == 1).await;
    // What is said replaces what was said before.
    let mut newer = spec.clone();
    newer.env.insert("VERSION".into(), "2".into());
    session.keep(&[(&newer, 1)]).await;
    session.until("the old one is gone", |c| c.functions.len() == 1 && warmth(c, &newer).idle == 1).await;
    fleet.end().await;
}

/// What a balancer wants to be kept is forgotten when it does not say it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_minimum_is_not_for_ever() {
    let fleet = kit::fleet(Choice::Auto, 512, 8).await;
    let mut session = fleet.session().await;
    let mut spec = python("");
    spec.idle_timeout_ms = 1;
    session.keep(&[(&spec, 2)]).await;
    session.until("two are idle", |c| warmth(c, &spec).idle == 2).await;
    session.keep_for(&[(&spec, 2)], Duration::from_millis(1)).await;
    session.until("they are gone", |c| c.functions.is_empty()).await;
    // A session that names what it has not defined breaks the protocol.
    let kept = vec![wire::Kept { digest: vec![7; 32].into(), containers: 1 }];
    session.say(req::Frame::Keep(wire::Keep { kept, holds: None })).await;
    let ended = loop {
        match session.receive.message().await {
            Ok(frame) => assert!(frame.is_some(), "it ended well"),
            Err(status) => break status,
        }
    };
    assert!(ended.message().contains("Keep: a function was not defined"), "{ended}");
    fleet.end().await;
}

/// What is kept warm goes last, but it does go when nothing else makes room for a call.
#[tokio::test(flavor = "multi_thread")]
async fn a_minimum_gives_way_to_calls_and_last() {
    let fleet = kit::fleet(Choice::Auto, 128, 8).await;
    let mut session = fleet.session().await;
    let kept = another(0);
    session.keep(&[(&kept, 1)]).await;
    let warm = session.call(&kept, "pid", b"").await;
    for n in 1..4 {
        assert_eq!(session.call(&another(n), "pid", b"").await.code(), "OK");
    }
    assert_eq!(session.call(&kept, "pid", b"").await.container(), warm.container());
    let mut large = another(9);
    large.memory = 128 << 20;
    assert_eq!(session.call(&large, "pid", b"").await.code(), "OK");
    assert_ne!(session.call(&kept, "pid", b"").await.container(), warm.container());
    fleet.end().await;
}

/// Concurrent cold calls start no more containers than they can use, and all of them are answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_starts_no_more_than_it_uses() {
    let fleet = kit::fleet(Choice::Auto, 1024, 32).await;
    let mut session = fleet.session().await;
    let mut calls = Vec::new();
    for _ in 0..6 {
        calls.push(session.offer(&python(""), "pid", b"", true, AMPLE).await);
    }
    let answers = session.outcomes(calls).await;
    assert!(answers.values().all(|a| a.code() == "OK"), "{answers:?}");
    let used: HashSet<_> = answers.values().map(|a| a.container().to_owned()).collect();
    session.until("it is quiet", |c| c.in_flight == 0 && c.waiting == 0).await;
    let there = (session.capacity.total.unwrap().slots - session.capacity.free.unwrap().slots) as usize;
    assert!(there <= 6 && used.len() <= there, "{there} containers, {} of them used", used.len());
    fleet.end().await;
}

/// What a container used is told with its calls' ends.
#[tokio::test(flavor = "multi_thread")]
async fn usage_is_told() {
    let fleet = kit::fleet(Choice::Auto, 512, 8).await;
    if !fleet.runner.describe().contains("native") || fleet.runner.describe().contains("no cgroups") {
        println!("left out: this machine's sandbox does not count");
        return;
    }
    let mut session = fleet.session().await;
    // One that ends with its call tells all of it.
    let shell = session.call(&kit::shell("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"), "", b"").await;
    let usage = shell.finished.usage.unwrap();
    assert!(usage.cpu_us > 0 && usage.memory_peak > 0, "{usage:?}");
    // A hot one tells what was last seen of it, soon.
    let spec = python("");
    let begun = Instant::now();
    let cold = session.call(&spec, "work", b"").await.finished.usage.unwrap();
    assert!(cold.memory_peak > 0, "{cold:?}");
    loop {
        let usage = session.call(&spec, "work", b"").await.finished.usage.unwrap();
        if usage.cpu_us >= cold.cpu_us + 50_000 {
            break;
        }
        assert!(begun.elapsed() < LIMIT, "its usage never grows: {usage:?}");
    }
    fleet.end().await;
}

/// Who changed the files of a function says so, and no call that comes after finds a container that may have read the former ones: not an idle one, not one with a
/// call, which that call keeps to its end, and not one whose launch had begun.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_function_starts_anew() {
    let fleet = kit::fleet(Choice::Auto, 512, 8).await;
    let (mut session, mut other) = (fleet.session().await, fleet.session().await);
    let mut spec = python("");
    spec.concurrency = 2;
    let neighbour = another(1);
    let kept = session.call(&neighbour, "pid", b"").await;
    let idle = session.call(&spec, "pid", b"").await;
    fleet.runner.renew(|one| one.name == spec.name);
    let long = other.offer(&spec, "echo", b"", false, AMPLE).await;
    let busy = other.started(long).await.container;
    assert_ne!(busy, idle.container());
    fleet.runner.renew(|one| one.name == spec.name);
    let second = session.call(&spec, "pid", b"").await;
    assert!(second.code() == "OK" && second.container() != busy, "{second:?}");
    other.body(long, b"end", true).await;
    let answer = other.outcome(long).await;
    assert_eq!((answer.code(), &answer.body[..], answer.container()), ("OK", &b"end"[..], &*busy));
    // A call that waits for its launch gets it; the next does not.
    let slow = another(2);
    let first = session.offer(&slow, "pid", b"", true, AMPLE).await;
    fleet.runner.renew(|one| one.name == slow.name);
    let first = session.outcome(first).await;
    let next = session.call(&slow, "pid", b"").await;
    assert_eq!((first.code(), next.code()), ("OK", "OK"));
    assert_eq!(session.call(&slow, "pid", b"").await.container(), next.container(), "once is enough");
    assert_eq!(session.call(&neighbour, "pid", b"").await.container(), kept.container(), "others stay");
    fleet.end().await;
}
