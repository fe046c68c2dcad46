//! etcd goes, hangs and returns, and calls do not notice.

use std::time::Instant;

use stoker_registry::Registry as _;
use stoker_tests::calls::{Call, Door};
use stoker_tests::cluster::load::Work;
use stoker_tests::cluster::{Cluster, Plan, took};
use stoker_tests::functions::{Change as _, probe};
use stoker_tests::within;

/// What the registry must do after its return: a new function, a runner that comes and one that goes are seen by every balancer.
async fn registry_works(cluster: &mut Cluster, word: &str) {
    let since = Instant::now();
    cluster.until_all_ready().await;
    cluster.apply(probe("later").with_env("PROBE_VERSION", word)).await;
    for clients in cluster.clients() {
        let answer = clients.call(Door::Invoke, Call::of("later").probe("version:0")).await.unwrap();
        assert_eq!(answer.text(), word);
    }
    let n = cluster.add_runner().await;
    cluster.until_all_ready().await;
    cluster.runners[n].server.stop().await;
    cluster.until_all_ready().await;
    took("until the registry was right again", since.elapsed());
}

/// Everybody has noticed that etcd does not answer.
async fn noticed(cluster: &Cluster) {
    let servers = cluster.balancers.iter().map(|balancer| &balancer.server);
    for server in servers.chain(cluster.runners.iter().map(|runner| &runner.server)) {
        server.logged_about("is interrupted").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_killed_and_restarted_under_load() {
    let Some(mut cluster) = Plan::new(2, 2).start([probe("once")]).await else { return };
    let load = cluster.load(Work::of("once"));
    load.more(200).await;
    cluster.etcd.kill();
    noticed(&cluster).await;
    load.more(500).await;
    for balancer in &cluster.balancers {
        let page = cluster.page(balancer.admin, "/readyz").await;
        assert_eq!(page.status, 200, "a balancer stays ready without etcd: {page:?}");
    }
    cluster.etcd.restart().await;
    load.more(200).await;
    registry_works(&mut cluster, "restarted").await;
    let attempts = load.end().await;
    let sums = cluster.check(&attempts).await;
    crate::all_answered(&sums);
    assert_eq!(sums.repeated, 0, "a call had to be made again");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_frozen_and_thawed_under_load() {
    let Some(mut cluster) = Plan::new(2, 2).start([probe("once")]).await else { return };
    let load = cluster.load(Work::of("once"));
    load.more(200).await;
    cluster.etcd.freeze();
    noticed(&cluster).await;
    load.more(500).await;
    cluster.etcd.thaw();
    load.more(200).await;
    registry_works(&mut cluster, "thawed").await;
    let attempts = load.end().await;
    let sums = cluster.check(&attempts).await;
    crate::all_answered(&sums);
    assert_eq!(sums.repeated, 0, "a call had to be made again");
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runners_whose_keys_vanished_stay_in_use_and_are_written_again() {
    let Some(mut cluster) = Plan::new(2, 2).start([probe("once")]).await else { return };
    let load = cluster.load(Work::of("once"));
    load.more(200).await;
    cluster.etcd.revoke_leases().await;
    load.more(500).await;
    registry_works(&mut cluster, "revoked").await;
    // Readers keep what a balancer must keep; this one knows only what stands there now.
    let view = cluster.view();
    let mut written = view.fleet();
    let both = written.wait_for(|fleet| fleet.known && fleet.runners.len() == 2);
    drop(within("both runners are written again", both).await.unwrap());
    let attempts = load.end().await;
    let sums = cluster.check(&attempts).await;
    crate::all_answered(&sums);
    assert_eq!(sums.repeated, 0, "a call had to be made again");
    cluster.end().await;
}
