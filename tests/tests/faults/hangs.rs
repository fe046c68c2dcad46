//! Processes that stand still and are not dead.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use stoker_core::error::Code;
use stoker_tests::calls::{Call, Door};
use stoker_tests::cluster::load::{Again, Failure, Work};
use stoker_tests::cluster::{Plan, took};
use stoker_tests::functions::{Change as _, probe};
use stoker_tests::left;

use crate::all_answered;

/// More functions than a runner has sandboxes parked ahead.
const COLD: usize = 24;

/// How long those who call them wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// The process that starts a runner's containers: its own child.
fn spawner(runner: i32) -> Pid {
    let threads = std::fs::read_dir(format!("/proc/{runner}/task")).unwrap();
    let children =
        threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("children")).unwrap());
    let children = children.collect::<String>();
    let child = children.split_whitespace().next().expect("a runner has a spawner");
    Pid::from_raw(child.parse().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_that_cannot_start_anything_keeps_its_warm_calls_and_loses_no_other() {
    let functions = (0..=COLD).map(|n| probe(&format!("f{n}")).with_init_timeout(Duration::from_secs(10)));
    let Some(mut cluster) = Plan::new(2, 2).room(64).start(functions).await else { return };
    let warm = cluster.load(Work::of("f0").word("sleep:2").clients(2));
    warm.more(100).await;
    let (n, other) = cluster.favourite(&warm);
    // The runner itself lives: its links stand and its lease is kept.
    let spawner = spawner(cluster.runners[n].server.pid());
    kill_process(spawner, Signal::STOP).unwrap();
    let since = Instant::now();
    let cold = (1..=COLD).map(|n| {
        let clients = cluster.balancers[n % 2].clients.clone();
        async move {
            let call = Call::of(&format!("f{n}")).header("Record", &format!("cold-{n}")).body("x");
            clients.call(Door::Session, call.timeout(PATIENCE)).await
        }
    });
    let cold = futures_util::future::join_all(cold).await;
    took("until every cold call had its outcome", since.elapsed());
    // One that waits there for a container that does not come has not started, and says so.
    for error in cold.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert!(error.code == Code::DeadlineExceeded && !error.may_have_started, "{error:?}");
    }
    let answered = cold.iter().filter(|outcome| outcome.is_ok()).count();
    println!("{answered} of {COLD} cold calls were answered");
    warm.more(100).await;
    kill_process(spawner, Signal::CONT).unwrap();
    let attempts = warm.end().await;
    all_answered(&cluster.check(&attempts).await);
    // It starts containers again.
    cluster.runners[other].server.stop().await;
    for n in 1..=COLD {
        cluster.balancers[0].clients.probe(&format!("f{n}"), "echo").await;
    }
    let starts = cluster.starts.by_key().await;
    for (n, outcome) in cold.iter().enumerate() {
        let started = starts.get(&format!("cold-{}", n + 1)).map_or(0, Vec::len);
        assert_eq!(started, usize::from(outcome.is_ok()), "f{}: {outcome:?}", n + 1);
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_that_stands_still_is_timed_out_and_replaced() {
    let function = probe("stands").with_timeout(Duration::from_secs(2)).with_max_containers(1);
    let Some(mut cluster) = Plan::new(1, 1).room(1).start([function]).await else { return };
    let clients = cluster.balancers[0].clients.clone();
    clients.probe("stands", "echo").await;
    let old = left::processes(&cluster.mark);
    let old: Vec<_> = old.into_iter().filter(|p| p.function && p.command.contains("probe")).collect();
    assert_eq!(old.len(), 1, "{old:?}");
    let work = Work::of("stands").word("sleep:50").clients(1).again(Again::Never);
    let load = cluster.load(work);
    load.more(2).await;
    kill_process(Pid::from_raw(old[0].pid).unwrap(), Signal::STOP).unwrap();
    load.until("the call that it held ends", |attempt| attempt.outcome.is_err()).await;
    load.more(5).await;
    left::Ending::of_processes(&old).wait().await;
    let attempts = load.end().await;
    let sums = cluster.check(&attempts).await;
    assert_eq!(sums.failed.len(), 1, "{:?}", sums.failed);
    let Err(Failure::Said(error)) = &sums.failed[0].outcome else { panic!("{:?}", sums.failed) };
    assert_eq!(error.code, Code::FunctionTimeout, "{error:?}");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancer_killed_in_the_middle_of_calls_leaves_none_of_them_behind() {
    // Room for two: what a dead balancer held must be free for the other one's calls.
    let Some(mut cluster) = Plan::new(2, 1).room(2).start([probe("once")]).await else { return };
    let mut held = Vec::new();
    for n in 0..2 {
        let call = Call::of("once").probe("early").header("Record", &format!("held-{n}"));
        let (body, answers) = cluster.balancers[0].clients.open(&call);
        let mut answers = answers.await.unwrap();
        assert!(answers.message().await.unwrap().is_some());
        held.push((body, answers));
    }
    cluster.balancers[0].server.kill().await;
    for (_, answers) in &mut held {
        // Its end is an error, and never the end of an answer.
        while answers.message().await.is_ok_and(|frame| {
            assert!(frame.is_some(), "half an answer as if it were whole");
            true
        }) {}
    }
    let load = cluster.load(Work::of("once").clients(2));
    load.more(50).await;
    cluster
        .until_seen(1, "the runner has no call of the dead balancer", |seen| {
            seen.iter().all(|runner| runner.capacity.as_ref().is_some_and(|record| record.in_flight <= 2))
        })
        .await;
    let attempts = load.end().await;
    all_answered(&cluster.check(&attempts).await);
    cluster
        .until_seen(1, "the runner has no call any more", |seen| {
            seen.iter().all(|runner| runner.capacity.as_ref().is_some_and(|record| record.in_flight == 0))
        })
        .await;
    let starts = cluster.starts.by_key().await;
    assert!(["held-0", "held-1"].iter().all(|key| starts[*key].len() == 1), "{starts:?}");
    cluster.end().await;
}
