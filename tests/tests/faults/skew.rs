//! Peers of another release: in a fleet that is being upgraded, balancers and runners, clients and balancers are one release apart for a
//! while, either way round.

use stoker_proto::v1::{self, LinkState, RunnerState};
use stoker_tests::calls::{Call, Clients, Door};
use stoker_tests::cluster::load::{Way, Work};
use stoker_tests::cluster::{Cluster, Plan, is_ready, name};
use stoker_tests::functions::probe;
use stoker_tests::middlebox::{Middlebox, Skew};

use crate::all_answered_at_once;

/// Everything that balancers and runners say to each other, between peers that take each other for those of another release.
async fn works(skew: Skew) {
    let functions = [probe("once"), probe("image")];
    let Some(mut cluster) = Plan::new(2, 2).skew(skew).start(functions).await else { return };
    let small = cluster.load(Work::of("once").word("sleep:2").prefix("small-").clients(6));
    let large = cluster
        .load(Work::of("once").size(400_000).ways(&[Way::Stream, Way::Invoke]).prefix("large-").clients(2));
    let left = Work::of("once").word("sleep:5").ways(&[Way::Leave]).prefix("left-").clients(2);
    let left = cluster.load_apart(left).await;
    small.more(100).await;
    large.more(10).await;
    left.more(20).await;
    // Words beside the session.
    let (n, _) = cluster.favourite(&small);
    let runner = cluster.runners[n].server.name.clone();
    let mut fleet = cluster.balancers[1].clients.fleet();
    let record =
        fleet.drain_runner(v1::DrainRunnerRequest { runner: runner.clone() }).await.unwrap().into_inner();
    assert_eq!(record.capacity.unwrap().state(), RunnerState::Draining);
    cluster
        .until_seen(0, "the other balancer hears of it", |seen| {
            seen.iter().any(|seen| name(seen) == runner && seen.link() == LinkState::Draining)
        })
        .await;
    small.more(100).await;
    fleet.uncordon_runner(v1::UncordonRunnerRequest { runner }).await.unwrap();
    cluster.until_all_ready().await;
    small.more(100).await;
    for load in [small, large] {
        let attempts = load.end().await;
        all_answered_at_once(&cluster.check(&attempts).await);
    }
    let attempts = left.end().await;
    drop(cluster.check(&attempts).await);
    clients(&cluster, skew).await;
    cluster.end().await;
}

/// Every door of a balancer, for a client of another release.
async fn clients(cluster: &Cluster, skew: Skew) {
    let direct = &cluster.balancers[0].clients;
    let middlebox = Middlebox::to(direct.grpc, skew).await;
    let clients = Clients::connect(middlebox.address, direct.http).await;
    for door in [Door::Invoke, Door::Stream, Door::Session] {
        let answer = clients.call(door, Call::of("once").body("through")).await.unwrap();
        assert_eq!(answer.text(), "through", "{door:?}");
    }
    let error = clients.call(Door::Invoke, Call::of("nothing")).await.unwrap_err();
    assert_eq!(error.code, stoker_core::error::Code::NotFound);
    let listed =
        clients.functions().list_functions(v1::ListFunctionsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.functions.len(), 2);
    let functions = listed.functions.into_iter().filter_map(|described| described.function).collect();
    clients
        .functions()
        .apply_functions(v1::ApplyFunctionsRequest { functions, ..Default::default() })
        .await
        .unwrap();
    let runners = clients.fleet().list_runners(v1::ListRunnersRequest {}).await.unwrap().into_inner().runners;
    assert!(runners.len() == 2 && runners.iter().all(is_ready), "{runners:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_of_the_release_before() {
    works(Skew::Older).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_of_the_release_after() {
    works(Skew::Newer).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_without_a_common_version_refuse_each_other_clearly() {
    let Some(mut cluster) = Plan::new(1, 0).start([probe("once")]).await else { return };
    cluster.add_runner().await;
    cluster.until_ready(0, 1).await;
    // Beside it one that no session can be opened with.
    let stranger = cluster.add_runner_through(Skew::Apart).await;
    let stranger = cluster.runners[stranger].server.name.clone();
    cluster
        .until_seen(0, "the reason", |seen| {
            seen.iter().any(|seen| {
                name(seen) == stranger
                    && seen.link() == LinkState::Lost
                    && seen.reason.contains("version")
                    && seen.reason.contains(&stoker_proto::SESSION_VERSION.to_string())
            })
        })
        .await;
    let load = cluster.load(Work::of("once"));
    load.more(100).await;
    let attempts = load.end().await;
    assert!(attempts.iter().all(|attempt| attempt.outcome.as_ref().is_ok_and(|(_, by)| *by != stranger)));
    all_answered_at_once(&cluster.check(&attempts).await);
    cluster.end().await;
}
