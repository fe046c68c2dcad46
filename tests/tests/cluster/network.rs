//! The wire between one balancer and one runner: cut, silent, healed.

use std::time::Instant;

use stoker_core::error::{Blame, Code};
use stoker_proto::v1::LinkState;
use stoker_tests::calls::{Call, Door};
use stoker_tests::cluster::cut::Fault;
use stoker_tests::cluster::load::{Failure, Work};
use stoker_tests::cluster::{Cluster, Plan, name, took};
use stoker_tests::functions::probe;

/// Faults the wire between balancer 0 and runner 0 under load, heals it, and holds every call against the promises.
async fn one_wire(fault: Fault) {
    let Some(mut cluster) = Plan::new(2, 2).wires().start([probe("once")]).await else { return };
    let load = cluster.load(Work::of("once").word("sleep:2"));
    load.more(200).await;
    let (n, other) = cluster.favourite(&load);
    let lost = cluster.runners[n].server.name.clone();
    set(&cluster, n, fault);
    let since = Instant::now();
    cluster
        .until_seen(0, "the fault is noticed", |seen| {
            seen.iter().any(|runner| name(runner) == lost && runner.link() != LinkState::Ready)
        })
        .await;
    took("until the fault was noticed", since.elapsed());
    // The other balancer has both still.
    cluster.until_ready(1, 2).await;
    load.more(300).await;
    set(&cluster, n, Fault::None);
    cluster.until_all_ready().await;
    // Without the other runner every call goes over the wire that was healed.
    cluster.runners[other].server.stop().await;
    let (name, alone) = (lost.clone(), Instant::now());
    load.until("a call over the wire that was healed", move |attempt| {
        attempt.at > alone
            && attempt.balancer == 0
            && attempt.outcome.as_ref().is_ok_and(|(_, runner)| *runner == name)
    })
    .await;
    let attempts = load.end().await;
    let sums = cluster.check(&attempts).await;
    for attempt in &sums.failed {
        let Err(Failure::Said(error)) = &attempt.outcome else { panic!("{attempt:?}") };
        assert!(error.code == Code::RunnerLost && error.may_have_started, "{attempt:?}");
        assert!(attempt.balancer == 0 && error.message.contains(&lost), "{attempt:?}");
    }
    println!("{} of {} calls failed", sums.failed.len(), sums.calls);
    cluster.end().await;
}

fn set(cluster: &Cluster, runner: usize, fault: Fault) {
    cluster.runners[runner].wire.as_ref().unwrap().fault(&cluster.balancers[0].server.name, fault);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wire_that_is_cut_and_healed() {
    one_wire(Fault::Cut).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wire_that_falls_silent_and_is_healed() {
    one_wire(Fault::Silence).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancer_that_sees_etcd_and_reaches_no_runner_refuses_clearly() {
    let plan = Plan::new(2, 1).wires().set("MAX_WAIT", "1s");
    let Some(cluster) = plan.start([probe("once")]).await else { return };
    set(&cluster, 0, Fault::Cut);
    let lost = |link| link != LinkState::Ready;
    cluster.until_seen(0, "the cut is noticed", |seen| seen.iter().all(|runner| lost(runner.link()))).await;
    for door in Door::ALL {
        let error = cluster.balancers[0].clients.call(door, Call::of("once")).await.unwrap_err();
        assert_eq!((error.code, error.blame()), (Code::Unavailable, Blame::Platform), "{door:?}: {error:?}");
        assert!(!error.may_have_started && error.message.contains("runner"), "{door:?}: {error:?}");
    }
    assert_eq!(cluster.balancers[1].clients.probe("once", "echo").await.status, 200);
    set(&cluster, 0, Fault::None);
    cluster.until_all_ready().await;
    assert_eq!(cluster.balancers[0].clients.probe("once", "echo").await.status, 200);
    cluster.end().await;
}
