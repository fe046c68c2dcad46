//! Balancers that stop, die, and find nobody.

use stoker_core::error::{Blame, Code};
use stoker_tests::calls::{Call, Door};
use stoker_tests::cluster::Plan;
use stoker_tests::cluster::load::{Again, Failure, Work};
use stoker_tests::functions::probe;
use stoker_tests::left;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancer_told_to_stop_under_load_loses_no_call() {
    let Some(mut cluster) = Plan::new(2, 2).start([probe("once")]).await else { return };
    let load = cluster.load(Work::of("once").word("sleep:5"));
    load.more(200).await;
    cluster.balancers[0].server.stop().await;
    load.more(200).await;
    cluster.balancers[0].server.start_again();
    cluster.balancers[0].server.logged("ready").await;
    cluster.until_all_ready().await;
    load.more(100).await;
    load.until("a call through the balancer that is back", |attempt| {
        attempt.balancer == 0 && attempt.outcome.is_ok()
    })
    .await;
    let attempts = load.end().await;
    crate::all_answered(&cluster.check(&attempts).await);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancer_killed_under_load() {
    let Some(mut cluster) = Plan::new(2, 2).start([probe("once")]).await else { return };
    // Half of the clients know that their calls may be made twice, and ask another balancer when a connection breaks.
    let careful = cluster.load(Work::of("once").word("sleep:5").clients(8).prefix("careful-"));
    let knowing =
        cluster.load(Work::of("once").word("sleep:5").clients(8).again(Again::Knowingly).prefix("knowing-"));
    careful.more(200).await;
    knowing.more(200).await;
    let functions = || -> Vec<i32> {
        left::processes(&cluster.mark)
            .iter()
            .filter(|p| p.function && p.command.contains("probe"))
            .map(|p| p.pid)
            .collect()
    };
    let before = functions();
    cluster.balancers[0].server.kill().await;
    careful.more(200).await;
    knowing.more(200).await;
    // A container whose call lost its client may end with it; none of the others is harmed, and those that serve go on.
    let after = functions();
    assert!(
        before.iter().any(|pid| after.contains(pid)),
        "no container outlived a balancer: {before:?}, {after:?}"
    );
    let (careful, knowing) = (careful.end().await, knowing.end().await);
    let sums = cluster.check(&knowing).await;
    crate::all_answered(&sums);
    let sums = cluster.check(&careful).await;
    for attempt in &sums.failed {
        assert!(matches!(attempt.outcome, Err(Failure::Broken(_))) && attempt.balancer == 0, "{attempt:?}");
    }
    println!("{} of {} careful calls do not know their outcome", sums.failed.len(), sums.calls);
    cluster.balancers[0].server.start_again();
    cluster.balancers[0].server.logged("ready").await;
    cluster.until_all_ready().await;
    let clients = cluster.balancers[0].clients.clone();
    // The old connection may have to be found broken first.
    let fresh = stoker_tests::calls::Clients::connect(clients.grpc, clients.http).await;
    assert_eq!(fresh.call(Door::Invoke, Call::of("once").body("back")).await.unwrap().text(), "back");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancer_without_runners_refuses_clearly() {
    let Some(mut cluster) = Plan::new(1, 0).set("MAX_WAIT", "1s").start([probe("once")]).await else {
        return;
    };
    for door in Door::ALL {
        let error = cluster.balancers[0].clients.call(door, Call::of("once")).await.unwrap_err();
        assert_eq!((error.code, error.blame()), (Code::Unavailable, Blame::Platform), "{door:?}: {error:?}");
        assert!(!error.may_have_started && error.message.contains("runner"), "{door:?}: {error:?}");
    }
    // And serves as soon as there is one.
    cluster.add_runner().await;
    cluster.until_all_ready().await;
    assert_eq!(cluster.balancers[0].clients.probe("once", "echo").await.status, 200);
    cluster.end().await;
}
