//! Runners drained and uncordoned by their operators, under load.

use std::path::Path;
use std::process::{Output, Stdio};

use stoker_proto::v1::{self, RunnerState};
use stoker_tests::cluster::load::Work;
use stoker_tests::cluster::{Cluster, Plan, is_ready, name};
use stoker_tests::functions::probe;
use stoker_tests::program;

/// Waits until every balancer says that this runner takes no calls and has none.
async fn until_drained(cluster: &Cluster, runner: &str) {
    for balancer in 0..cluster.balancers.len() {
        cluster
            .until_seen(balancer, "the runner is drained and empty", |seen| {
                seen.iter().filter(|seen| name(seen) == runner).any(|seen| {
                    let record = seen.capacity.as_ref().unwrap();
                    record.state() == RunnerState::Draining && record.in_flight == 0 && record.waiting == 0
                })
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_drained_and_uncordoned_under_load_loses_no_call() {
    let Some(mut cluster) = Plan::new(2, 2).start([probe("once")]).await else { return };
    let load = cluster.load(Work::of("once").word("sleep:5"));
    load.more(200).await;
    let (n, other) = cluster.favourite(&load);
    let runner = cluster.runners[n].server.name.clone();
    // One balancer passes it on, and all of them keep to it.
    let mut fleet = cluster.balancers[1].clients.fleet();
    let request = v1::DrainRunnerRequest { runner: runner.clone() };
    let record = fleet.drain_runner(request.clone()).await.unwrap().into_inner().capacity.unwrap();
    assert_eq!((record.runner.as_str(), record.state()), (runner.as_str(), RunnerState::Draining));
    until_drained(&cluster, &runner).await;
    // Again is no mistake.
    fleet.drain_runner(request).await.unwrap();
    load.more(200).await;
    let asked = std::time::Instant::now();
    load.more(100).await;
    let request = v1::UncordonRunnerRequest { runner: runner.clone() };
    let record = fleet.uncordon_runner(request.clone()).await.unwrap().into_inner().capacity.unwrap();
    assert_eq!(record.state(), RunnerState::Ready);
    let back = std::time::Instant::now();
    fleet.uncordon_runner(request).await.unwrap();
    cluster.until_all_ready().await;
    // The other one leaves, so that this one must serve.
    cluster.runners[other].server.stop().await;
    load.more(200).await;
    let attempts = load.end().await;
    let sums = cluster.check(&attempts).await;
    crate::all_answered(&sums);
    assert_eq!(sums.repeated, 0, "a call had to be made again");
    // Between the two words it had no call: one that began before `asked` may have ended after it, by a client's doing.
    let late = attempts.iter().filter(|attempt| attempt.at > asked && attempt.at < back);
    let served = late.filter(|attempt| attempt.outcome.as_ref().is_ok_and(|(_, by)| *by == runner)).count();
    assert_eq!(served, 0, "a drained runner served calls");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_drains_and_uncordons_under_load() {
    let Some(mut cluster) = Plan::new(2, 2).start([probe("once")]).await else { return };
    let load = cluster.load(Work::of("once").word("sleep:5"));
    load.more(200).await;
    let (n, _) = cluster.favourite(&load);
    let (server, runner) = (cluster.balancers[0].clients.grpc, cluster.runners[n].server.name.clone());
    let stoker = async |arguments: &[&str]| -> Output {
        let program: &Path = &program("stoker");
        let command = tokio::process::Command::new(program)
            .args(["--server", &format!("http://{server}")])
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        stoker_tests::within(&arguments.join(" "), command).await.unwrap()
    };
    let drained = stoker(&["drain", &runner]).await;
    assert!(drained.status.success(), "{drained:?}");
    // It returns when the runner has no call any more, and says so.
    until_drained(&cluster, &runner).await;
    let runners = stoker(&["runners"]).await;
    let text = String::from_utf8_lossy(&runners.stdout).into_owned();
    let line = text.lines().find(|line| line.contains(&runner)).unwrap_or_default();
    assert!(line.contains("drain"), "{text}");
    load.more(100).await;
    let back = stoker(&["uncordon", &runner]).await;
    assert!(back.status.success(), "{back:?}");
    cluster.until_all_ready().await;
    let unknown = stoker(&["drain", "nobody"]).await;
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert!(!unknown.status.success() && said.contains("nobody") && said.contains(&runner), "{unknown:?}");
    load.more(100).await;
    let attempts = load.end().await;
    let sums = cluster.check(&attempts).await;
    crate::all_answered(&sums);
    assert_eq!(sums.repeated, 0, "a call had to be made again");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_runner_that_is_started_again_is_ready() {
    let Some(mut cluster) = Plan::new(1, 2).start([probe("once")]).await else { return };
    let runner = cluster.runners[0].server.name.clone();
    let request = v1::DrainRunnerRequest { runner: runner.clone() };
    cluster.balancers[0].clients.fleet().drain_runner(request).await.unwrap();
    until_drained(&cluster, &runner).await;
    cluster.runners[0].server.stop().await;
    cluster.runners[0].server.start_again();
    cluster.runners[0].server.logged("serving").await;
    cluster
        .until_seen(0, "the next life takes calls", |seen| {
            seen.iter().any(|seen| name(seen) == runner && is_ready(seen))
        })
        .await;
    cluster.end().await;
}
