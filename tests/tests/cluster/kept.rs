//! `min_containers`: there before any call, over the whole fleet, and moved with what becomes of it.

use std::time::Duration;

use stoker_core::function::FunctionSpec;
use stoker_proto::v1::{self, RunnerDescription};
use stoker_tests::calls::{Call, Door};
use stoker_tests::cluster::{Cluster, Plan, is_ready, name};
use stoker_tests::functions::{Change as _, probe};

/// Idle containers of all functions on each runner that takes calls.
fn idle(seen: &[RunnerDescription]) -> Vec<(&str, u32)> {
    let of = |runner: &RunnerDescription| {
        runner.capacity.iter().flat_map(|record| &record.functions).map(|warmth| warmth.idle).sum()
    };
    seen.iter().filter(|runner| is_ready(runner)).map(|runner| (name(runner), of(runner))).collect()
}

/// Waits until every balancer sees so many, no two of them on one runner, and says where.
async fn until_kept(cluster: &Cluster, what: &str, containers: usize) -> Vec<String> {
    let mut holders = Vec::new();
    for balancer in (0..cluster.balancers.len()).filter(|n| cluster.balancers[*n].server.runs()) {
        let found = std::sync::Mutex::new(Vec::new());
        let spread = |seen: &[RunnerDescription]| {
            let idle = idle(seen);
            *found.lock().unwrap() =
                idle.iter().filter(|(_, n)| *n > 0).map(|(name, _)| (*name).to_owned()).collect();
            idle.iter().all(|(_, n)| *n <= 1) && idle.iter().filter(|(_, n)| *n == 1).count() == containers
        };
        cluster.until_seen(balancer, what, spread).await;
        holders = found.into_inner().unwrap();
    }
    holders
}

fn kept(containers: u32) -> FunctionSpec {
    let mut spec = probe("kept").with_idle_timeout(Duration::from_millis(1));
    spec.min_containers = containers;
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minimum_is_there_before_any_call_and_moves_with_the_fleet() {
    let Some(mut cluster) = Plan::new(2, 3).start([kept(2)]).await else { return };
    let holders = until_kept(&cluster, "two are kept, on two runners", 2).await;
    // Its first call ever is warm, by whatever balancer.
    for balancer in &cluster.balancers {
        let answer = balancer.clients.call(Door::Session, Call::of("kept").probe("echo")).await.unwrap();
        assert!(!answer.timings.unwrap().cold);
    }
    // One of the two runners dies: another keeps its part.
    let lost = cluster.runners.iter().position(|runner| runner.server.name == holders[0]).unwrap();
    cluster.runners[lost].server.kill().await;
    let holders = until_kept(&cluster, "two are kept on the runners that are left", 2).await;
    assert!(!holders.contains(&cluster.runners[lost].server.name));
    // One more is wanted than there are runners to spread them over, and with the third they are spread again.
    cluster.apply(kept(3)).await;
    cluster.runners[lost].server.start_again();
    cluster.runners[lost].server.logged("serving").await;
    until_kept(&cluster, "three are kept, one on each runner", 3).await;
    // A drained runner keeps nothing.
    cluster.apply(kept(1)).await;
    let holders = until_kept(&cluster, "one is kept", 1).await;
    let request = v1::DrainRunnerRequest { runner: holders[0].clone() };
    cluster.balancers[0].clients.fleet().drain_runner(request).await.unwrap();
    let others = until_kept(&cluster, "another runner keeps it", 1).await;
    assert_ne!(others, holders);
    cluster.delete("t/kept").await;
    until_kept(&cluster, "a function that was deleted is not kept", 0).await;
    cluster.end().await;
}
