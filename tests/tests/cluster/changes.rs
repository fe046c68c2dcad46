//! A function that changes while it is called.

use std::collections::HashSet;

use stoker_core::error::{Code, Retry};
use stoker_tests::cluster::Plan;
use stoker_tests::cluster::load::{Failure, Work, check};
use stoker_tests::functions::{Change as _, probe};
use stoker_tests::left;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_updated_deleted_and_made_again_under_load() {
    let version = |version: &str| probe("changes").with_env("PROBE_VERSION", version);
    let Some(mut cluster) = Plan::new(2, 2).start([version("v0")]).await else { return };
    let load = cluster.load(Work::of("changes").word("version:2"));
    load.more(200).await;
    for next in ["v1", "v2"] {
        cluster.apply(version(next)).await;
        load.until("an answer of the new version", |a| {
            a.outcome.as_ref().is_ok_and(|(body, _)| body == next)
        })
        .await;
        load.more(100).await;
    }
    cluster.delete("t/changes").await;
    let not_found =
        |failure: &Failure| matches!(failure, Failure::Said(error) if error.code == Code::NotFound);
    for balancer in 0..2 {
        load.until("a balancer that does not know it any more", |attempt| {
            attempt.balancer == balancer && attempt.outcome.as_ref().is_err_and(not_found)
        })
        .await;
    }
    load.more(100).await;
    cluster.apply(version("v3")).await;
    load.until("an answer of the version after", |a| a.outcome.as_ref().is_ok_and(|(body, _)| body == "v3"))
        .await;
    load.more(100).await;
    let attempts = load.end().await;
    let starts = cluster.starts.by_key().await;
    let sums = check(&attempts, &starts, false);
    for attempt in &sums.failed {
        let Err(Failure::Said(error)) = &attempt.outcome else { panic!("{attempt:?}") };
        assert_eq!((error.code, error.retry), (Code::NotFound, Retry::Never), "{attempt:?}");
        assert!(!starts.contains_key(&attempt.key), "{attempt:?}");
    }
    // One whole version each: the one that recorded the call is the one that answered.
    for attempt in attempts.iter().filter(|attempt| attempt.outcome.is_ok()) {
        let (body, _) = attempt.outcome.as_ref().unwrap();
        assert_eq!(*body, starts[&attempt.key][0].version, "{attempt:?}");
    }
    let versions: HashSet<&str> = starts.values().flatten().map(|start| start.version.as_str()).collect();
    assert_eq!(versions, HashSet::from(["v0", "v1", "v2", "v3"]));
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_of_old_versions_leave_when_idle() {
    let version = |version: &str| {
        let idle = std::time::Duration::from_millis(500);
        probe("leaves").with_env("PROBE_VERSION", version).with_idle_timeout(idle)
    };
    let Some(cluster) = Plan::new(1, 1).start([version("old")]).await else { return };
    assert_eq!(cluster.balancers[0].clients.probe("leaves", "version:0").await.text(), "old");
    let probes = |cluster: &stoker_tests::cluster::Cluster| -> Vec<left::Process> {
        let all = left::processes(&cluster.mark);
        all.into_iter().filter(|process| process.function && process.command.contains("probe")).collect()
    };
    let old = probes(&cluster);
    assert!(!old.is_empty());
    cluster.apply(version("new")).await;
    assert_eq!(cluster.balancers[0].clients.probe("leaves", "version:0").await.text(), "new");
    left::Ending::of_processes(&old).wait().await;
    assert_eq!(cluster.balancers[0].clients.probe("leaves", "version:0").await.text(), "new");
    cluster.end().await;
}
