//! The life of containers, seen from outside: freezing, ageing, making room, sharing, being prepared ahead.

use std::time::{Duration, Instant};

use stoker_core::error::{Code, Retry};
use stoker_tests::calls::{Call, Door, rest_of};
use stoker_tests::fleet::Plan;
use stoker_tests::functions::{Change as _, probe, shell};
use stoker_tests::left::{Ending, processes};
use stoker_tests::within;

use crate::sandbox;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_container_is_frozen_and_thawed() {
    if !sandbox().freezes {
        println!("left out: the sandbox of this machine does not freeze: {}", sandbox().why);
        return;
    }
    let fleet = Plan::default().freeze_after(Duration::ZERO).start([probe("cool")]).await;
    let first = fleet.clients.probe("cool", "report").await.json();
    let begun = Instant::now();
    loop {
        // It is frozen as soon as it is idle, so one of the next calls finds it so.
        let answer = fleet.clients.probe("cool", "report").await;
        assert_eq!(answer.json()["pid"], first["pid"], "another container");
        if answer.timings.unwrap().thaw_us > 0 {
            break;
        }
        assert!(begun.elapsed() < stoker_tests::LIMIT, "it was never frozen");
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_container_goes_after_its_time() {
    let function = probe("brief").with_idle_timeout(Duration::from_millis(100));
    let fleet = Plan::default().start([function, probe("lasting")]).await;
    fleet.clients.probe("lasting", "echo").await;
    let before = processes(&fleet.mark);
    fleet.clients.probe("brief", "echo").await;
    let mut brief = processes(&fleet.mark);
    brief.retain(|process| process.function && !before.contains(process));
    assert!(!brief.is_empty());
    Ending::of_processes(&brief).wait().await;
    assert_eq!(fleet.clients.probe("brief", "report").await.json()["calls"], 1);
    assert_eq!(fleet.clients.probe("lasting", "report").await.json()["calls"], 2, "it went before its time");
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_containers_make_room() {
    let functions: Vec<_> = (0..6).map(|n| probe(&format!("f{n}"))).collect();
    let fleet = Plan::default().room(2).start(functions).await;
    let mut fresh = 0;
    for _ in 0..3 {
        for n in 0..6 {
            let report = fleet.clients.probe(&format!("f{n}"), "report").await.json();
            fresh += u32::from(report["calls"] == 1);
        }
    }
    // Which two stay warm is a matter of what they cost; four of six must start anew each time.
    assert!(
        (6 + 2 * 4..=18).contains(&fresh),
        "{fresh} of 18 calls had a fresh container, and there was room for two"
    );
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_containers_do_not_make_room() {
    let fleet = Plan::default().room(1).start([probe("busy"), probe("other")]).await;
    let (send, answers) = fleet.clients.open(&Call::of("busy").probe("early"));
    let mut running = within("the head", answers).await.unwrap();
    let call = Call::of("other").timeout(Duration::from_millis(300));
    let error = fleet.clients.call(Door::Session, call).await.unwrap_err();
    assert_eq!(error.code, Code::DeadlineExceeded, "{error:?}");
    assert!(!error.may_have_started, "{error:?}");
    drop(send);
    assert_eq!(rest_of(&mut running).await.unwrap().text(), "early, then 0 bytes");
    assert_eq!(fleet.clients.probe("other", "echo").await.status, 200);
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_larger_than_every_runner_is_refused_for_good() {
    let fleet = Plan::default().start([probe("giant").with_memory(1 << 20)]).await;
    for door in Door::ALL {
        let error = fleet.clients.call(door, Call::of("giant")).await.unwrap_err();
        assert_eq!((error.code, error.retry), (Code::ResourcesImpossible, Retry::Never), "{error:?}");
        assert!(!error.may_have_started);
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_share_a_container() {
    let fleet = Plan::default().start([probe("shared").with_concurrency(4).with_max_containers(1)]).await;
    let mut running = Vec::new();
    for _ in 0..4 {
        // Each has begun its answer and waits for the end of its body: all four are in there at once.
        let (send, answers) = fleet.clients.open(&Call::of("shared").probe("early"));
        running.push((send, within("the head of a call among others", answers).await.unwrap()));
    }
    fleet
        .until("four calls run in one container", |record| {
            record.in_flight == 4 && record.free.slots == record.total.slots - 1
        })
        .await;
    // A fifth waits for a place among them.
    let clients = fleet.clients.clone();
    let fifth = tokio::spawn(async move { clients.probe("shared", "report").await });
    let seen =
        fleet.until_heard("the fifth waits", |seen| seen.waiting + seen.queued > 0 || fifth.is_finished());
    seen.await;
    assert!(!fifth.is_finished(), "five at once, though four may");
    for (send, mut answers) in running {
        drop(send);
        assert_eq!(rest_of(&mut answers).await.unwrap().text(), "early, then 0 bytes");
    }
    assert_eq!(within("the fifth", fifth).await.unwrap().json()["calls"], 5);
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_container_of_one_call_is_prepared_ahead() {
    let function = shell("ahead", "cat");
    let fleet = Plan::default().start([function.clone()]).await;
    let digest = fleet.marked(function).digest();
    for n in 0..3 {
        let call = Call::of("ahead").body(format!("call {n}"));
        let answer = fleet.clients.call(Door::Invoke, call).await.unwrap();
        assert_eq!(answer.text(), format!("call {n}"));
        let cold = answer.timings.unwrap().cold;
        assert_eq!(cold, n == 0, "call {n}: what was prepared ahead is not a cold start");
        fleet
            .until("the next is ready", |record| record.functions.get(&digest).is_some_and(|w| w.idle == 1))
            .await;
    }
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cold_calls_at_once_start_no_more_than_they_can_use() {
    let fleet = Plan::default().start([probe("burst")]).await;
    let calls: Vec<_> = (0..4)
        .map(|_| {
            let clients = fleet.clients.clone();
            tokio::spawn(async move { clients.probe("burst", "report").await.json() })
        })
        .collect();
    for call in calls {
        call.await.unwrap();
    }
    fleet.until_quiet().await;
    let (idle, ..) = fleet.warmth(&probe("burst"));
    assert!((1..=4).contains(&idle), "{idle} containers for four calls");
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_version_takes_over() {
    let fleet = Plan::default().start([probe("versions").with_env("VERSION", "1")]).await;
    assert_eq!(fleet.clients.probe("versions", "report").await.json()["env"]["VERSION"], "1");
    fleet.apply(probe("versions").with_env("VERSION", "2")).await;
    assert_eq!(fleet.clients.probe("versions", "report").await.json()["env"]["VERSION"], "2");
    fleet.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_runners_share_the_work() {
    let fleet = Plan::default().runners(3).room(2).start([probe("spread")]).await;
    let mut running = Vec::new();
    for _ in 0..6 {
        let (send, answers) = fleet.clients.open(&Call::of("spread").probe("early"));
        running.push((send, within("the head", answers).await.unwrap()));
    }
    let mut runners = std::collections::BTreeSet::new();
    for (send, mut answers) in running {
        drop(send);
        runners.insert(rest_of(&mut answers).await.unwrap().runner);
    }
    assert_eq!(runners.len(), 3, "six calls at once, and room for two on each: {runners:?}");
    fleet.end().await;
}
