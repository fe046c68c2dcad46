//! Changes that lose nothing: everything replaced under load, and a drain that lets what runs end.

use std::time::Duration;

use stoker_proto::v1::{self, LinkState, RunnerState};
use stoker_registry::Registry as _;
use stoker_tests::calls::{Call, Door, rest_of};
use stoker_tests::cluster::load::{Way, Work};
use stoker_tests::cluster::server::Server;
use stoker_tests::cluster::{Cluster, Plan, name};
use stoker_tests::functions::{Change as _, probe};
use stoker_tests::within;

use crate::{all_answered, all_answered_at_once};

async fn replaced(server: &mut Server) {
    server.stop().await;
    server.start_again();
    server.logged("ready").await;
}

/// In flight at any moment, and long beside a restart.
fn works() -> [Work; 3] {
    [
        Work::of("short").word("sleep:5").clients(6).ways(&[Way::Invoke, Way::Session, Way::Stream]),
        Work::of("long").word("sleep:1500").clients(3).ways(&[Way::Invoke, Way::Session, Way::Stream]),
        Work::of("large").size(300_000).clients(2).ways(&[Way::Invoke, Way::Stream]),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_balancer_runner_and_member_replaced_under_load_and_no_call_fails() {
    let functions = [probe("short"), probe("long"), probe("large")];
    let Some(mut cluster) = Plan::new(2, 3).members(3).start(functions).await else { return };
    let loads = works().map(|work| cluster.load(work));
    for load in &loads {
        load.more(3).await;
    }
    for n in 0..3 {
        replaced(&mut cluster.runners[n].server).await;
        cluster.until_all_ready().await;
        loads[0].more(30).await;
    }
    for n in 0..2 {
        replaced(&mut cluster.balancers[n].server).await;
        cluster.until_all_ready().await;
        loads[0].more(30).await;
    }
    cluster.etcd.kill();
    cluster.etcd.restart().await;
    for member in &mut cluster.others {
        member.kill();
        member.restart().await;
    }
    for load in &loads {
        load.more(3).await;
    }
    for load in loads {
        let attempts = load.end().await;
        let sums = cluster.check(&attempts).await;
        all_answered(&sums);
        println!("{} calls, {} of them made again elsewhere", sums.calls, sums.repeated);
    }
    cluster.end().await;
}

/// Waits until every balancer sees a runner's link and record so.
async fn until(cluster: &Cluster, runner: &str, what: &str, holds: impl Fn(LinkState, u32) -> bool) {
    for balancer in 0..cluster.balancers.len() {
        let is = |seen: &v1::RunnerDescription| {
            let record = seen.capacity.as_ref();
            name(seen) == runner
                && record.is_some_and(|record| {
                    record.state() == RunnerState::Draining && holds(seen.link(), record.in_flight)
                })
        };
        cluster.until_seen(balancer, what, |seen| seen.iter().any(is)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_is_announced_then_refuses_then_waits() {
    let plan = Plan::new(2, 2).set("DRAIN_GRACE", "25s");
    let Some(mut cluster) = plan.start([probe("once").with_timeout(Duration::from_secs(30))]).await else {
        return;
    };
    let view = cluster.view();
    let mut written = view.fleet();
    // A call that ends when it is told to, and not before.
    let held = Call::of("once").probe("early").header("Record", "held");
    let (body, answers) = cluster.balancers[0].clients.open(&held);
    let mut answers = answers.await.unwrap();
    assert!(answers.message().await.unwrap().is_some());
    let held_by = written.wait_for(|fleet| fleet.runners.values().any(|record| record.in_flight == 1));
    let fleet = within("the call is in flight", held_by).await.unwrap().clone();
    let busy = fleet.runners.values().find(|record| record.in_flight == 1).unwrap().runner.clone();
    let n = cluster.runners.iter().position(|runner| runner.server.name == busy.as_str()).unwrap();
    let runner = cluster.runners[n].server.name.clone();
    // Told to stop, it says first that it drains: to etcd and to both balancers. The call goes on.
    cluster.runners[n].server.terminate();
    let marked = written.wait_for(|fleet| {
        fleet.runners.values().any(|record| {
            record.runner.as_str() == runner && record.state == stoker_core::RunnerState::Draining
        })
    });
    drop(within("the mark in etcd", marked).await.unwrap());
    until(&cluster, &runner, "it drains and holds the call", |link, in_flight| {
        link == LinkState::Draining && in_flight == 1
    })
    .await;
    // Others are served elsewhere, without a word to their clients.
    let load = cluster.load(Work::of("once"));
    load.more(200).await;
    let attempts = load.end().await;
    assert!(attempts.iter().all(|attempt| attempt.outcome.as_ref().is_ok_and(|(_, by)| *by != runner)));
    all_answered_at_once(&cluster.check(&attempts).await);
    // And the one that was held ends well, and the runner with it.
    drop(body);
    let answer = within("the end of the call", rest_of(&mut answers)).await.unwrap();
    assert!(answer.text().contains("then 0 bytes"), "{answer:?}");
    cluster.runners[n].server.ended().await;
    cluster.until_all_ready().await;
    assert_eq!(
        cluster.balancers[1].clients.call(Door::Http, Call::of("once").body("x")).await.unwrap().text(),
        "x"
    );
    assert_eq!(cluster.starts.by_key().await["held"].len(), 1);
    cluster.end().await;
}
