//! Runners that die, freeze, and come back.

use std::time::Instant;

use rustix::process::{Pid, Signal};
use stoker_core::error::{Blame, Code, Retry};
use stoker_proto::v1::LinkState;
use stoker_tests::cluster::load::{Attempt, Failure, Load, Sums, Work, longest_silence};
use stoker_tests::cluster::{Cluster, Plan, name, took};
use stoker_tests::functions::{Change as _, probe};

/// What failed may have started on a runner that was lost, and says so in one clear error. Nothing else failed.
fn only_what_may_have_started_failed(sums: &Sums, lost: &str) {
    for Attempt { key, outcome, .. } in &sums.failed {
        let Err(Failure::Said(error)) = outcome else { panic!("{key}: {outcome:?}") };
        assert_eq!(
            (error.code, error.blame(), error.retry),
            (Code::RunnerLost, Blame::Platform, Retry::Never)
        );
        assert!(error.may_have_started, "{key}: {error:?}");
        assert!(error.message.contains(lost), "{key}: {error:?}");
    }
}

/// The other runner leaves, so that the one that is back takes every call.
async fn serves_alone(cluster: &mut Cluster, load: &Load, back: &str, other: usize) {
    cluster.runners[other].server.stop().await;
    let (back, since) = (back.to_owned(), Instant::now());
    load.until("a call on the runner that is back", move |attempt| {
        attempt.at > since && attempt.outcome.as_ref().is_ok_and(|(_, runner)| *runner == back)
    })
    .await;
    load.more(100).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_killed_under_load() {
    let functions = [probe("once"), probe("again").idempotent()];
    let Some(mut cluster) = Plan::new(2, 2).start(functions).await else { return };
    let once = cluster.load(Work::of("once").word("sleep:5"));
    let again = cluster.load(Work::of("again").word("sleep:5").clients(8));
    once.more(200).await;
    again.more(100).await;
    let (n, other) = cluster.favourite(&once);
    let lost = cluster.runners[n].server.name.clone();
    let killed = Instant::now();
    cluster.runners[n].server.kill().await;
    once.more(400).await;
    again.more(200).await;
    cluster.runners[n].server.start_again();
    cluster.runners[n].server.logged("serving").await;
    cluster.until_all_ready().await;
    serves_alone(&mut cluster, &once, &lost, other).await;
    let (once, again) = (once.end().await, again.end().await);
    let sums = cluster.check(&once).await;
    only_what_may_have_started_failed(&sums, &lost);
    println!("{} of {} calls failed", sums.failed.len(), sums.calls);
    took("the longest time without an answer after the kill", longest_silence(&once, killed));
    let sums = cluster.check_idempotent(&again).await;
    crate::all_answered(&sums);
    println!("{} of {} idempotent calls reached a function more than once", sums.twice, sums.calls);
    cluster.end().await;
}

/// How long nobody is served, and where that time goes, while the registry has much to tell: six hundred functions are created meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten kills, each of which says how long it took"]
async fn a_runner_killed_while_functions_are_applied() {
    for _ in 0..10 {
        let Some(mut cluster) = Plan::new(2, 2).start([probe("once")]).await else { return };
        let load = cluster.load(Work::of("once").word("sleep:5"));
        load.more(400).await;
        let (n, _) = cluster.favourite(&load);
        let lost = cluster.runners[n].server.name.clone();
        let applied = async {
            for number in 0..600 {
                cluster.apply(probe(&format!("other{number}"))).await;
            }
        };
        let server = cluster.runners[n].server.pid();
        let kill = async {
            load.more(200).await;
            let killed = Instant::now();
            rustix::process::kill_process(Pid::from_raw(server).expect("a process"), Signal::KILL)
                .expect("it runs");
            load.more(400).await;
            killed
        };
        let ((), killed) = tokio::join!(applied, kill);
        cluster.runners[n].server.kill().await;
        let attempts = load.end().await;
        let sums = cluster.check(&attempts).await;
        only_what_may_have_started_failed(&sums, &lost);
        let after = |attempt: &&Attempt| attempt.at > killed;
        let told = attempts
            .iter()
            .filter(after)
            .filter(|attempt| attempt.outcome.is_err())
            .map(|attempt| attempt.at);
        let elsewhere =
            |attempt: &&Attempt| attempt.outcome.as_ref().is_ok_and(|(_, runner)| *runner != lost);
        let answered = attempts.iter().filter(after).filter(elsewhere).map(|attempt| attempt.at).min();
        println!(
            "{} failed, the first after {:?}, the last after {:?}; the first answer of the other runner after {:?}, {:?} at most without one",
            sums.failed.len(),
            told.clone().min().map(|at| at - killed),
            told.max().map(|at| at - killed),
            answered.map(|at| at - killed),
            longest_silence(&attempts, killed),
        );
        cluster.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_that_freezes_is_noticed_and_comes_back() {
    let Some(mut cluster) = Plan::new(2, 2).start([probe("once"), probe("again").idempotent()]).await else {
        return;
    };
    let once = cluster.load(Work::of("once"));
    let again = cluster.load(Work::of("again").clients(8));
    once.more(200).await;
    let (n, other) = cluster.favourite(&once);
    let frozen = cluster.runners[n].server.name.clone();
    cluster.runners[n].server.freeze();
    let since = Instant::now();
    for balancer in 0..2 {
        cluster
            .until_seen(balancer, "the frozen runner is noticed", |seen| {
                seen.iter().all(|runner| name(runner) != frozen || runner.link() != LinkState::Ready)
            })
            .await;
    }
    took("until a frozen runner was noticed", since.elapsed());
    once.more(200).await;
    again.more(100).await;
    cluster.runners[n].server.thaw();
    cluster.until_all_ready().await;
    serves_alone(&mut cluster, &once, &frozen, other).await;
    let (once, again) = (once.end().await, again.end().await);
    let sums = cluster.check(&once).await;
    only_what_may_have_started_failed(&sums, &frozen);
    println!("{} of {} calls failed", sums.failed.len(), sums.calls);
    let sums = cluster.check_idempotent(&again).await;
    crate::all_answered(&sums);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_told_to_stop_under_load_loses_no_call() {
    let Some(mut cluster) = Plan::new(2, 2).start([probe("once")]).await else { return };
    let load = cluster.load(Work::of("once").word("sleep:5"));
    load.more(200).await;
    let (n, _) = cluster.favourite(&load);
    cluster.runners[n].server.stop().await;
    load.more(200).await;
    cluster.runners[n].server.start_again();
    cluster.runners[n].server.logged("serving").await;
    cluster.until_all_ready().await;
    load.more(200).await;
    let attempts = load.end().await;
    let sums = cluster.check(&attempts).await;
    crate::all_answered(&sums);
    assert_eq!(sums.repeated, 0, "a call had to be made again");
    cluster.end().await;
}
