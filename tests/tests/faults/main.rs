//! What a fleet withstands: bad networks, hangs, full disks, clocks that jump, little memory, an etcd that is away, and peers of other
//! releases. Real processes, each on a host of its own where the fault is in the network. What clients saw and what functions recorded is
//! held against the promises; times are printed and decide nothing.

#![expect(clippy::unwrap_used, reason = "tests, though clippy does not see it in their helpers")]

mod changes;
mod clocks;
mod disk;
mod hangs;
mod memory;
mod network;
mod registry;
mod skew;

use std::net::Ipv4Addr;

use stoker_core::error::{Code, Retry};
use stoker_proto::v1::LinkState;
use stoker_tests::cluster::load::{Attempt, Failure, Sums};
use stoker_tests::cluster::{Cluster, name};

/// Every call was answered.
fn all_answered(sums: &Sums) {
    let failed: Vec<&Attempt> = sums.failed.iter().take(5).collect();
    assert!(failed.is_empty(), "{} of {} calls failed, such as {failed:#?}", sums.failed.len(), sums.calls);
}

/// Every call was answered, by the balancer that was asked first.
fn all_answered_at_once(sums: &Sums) {
    all_answered(sums);
    assert_eq!(sums.repeated, 0, "calls had to be made again");
}

/// What failed may have started where a runner was lost to one of these balancers, and says so. Nothing else failed.
fn only_the_lost_failed(sums: &Sums, balancers: &[usize]) {
    for Attempt { key, outcome, balancer, .. } in &sums.failed {
        let Err(Failure::Said(error)) = outcome else { panic!("{key}: {outcome:?}") };
        assert_eq!((error.code, error.retry), (Code::RunnerLost, Retry::Never), "{key}: {error:?}");
        assert!(error.may_have_started && balancers.contains(balancer), "{key}: {error:?}");
    }
    println!("{} of {} calls failed, {} were made again", sums.failed.len(), sums.calls, sums.repeated);
}

/// Where a balancer is.
fn balancer(cluster: &Cluster, n: usize) -> Ipv4Addr {
    cluster.balancers[n].host.as_ref().unwrap().address
}

/// Where a runner is.
fn runner(cluster: &Cluster, n: usize) -> Ipv4Addr {
    cluster.runners[n].host.as_ref().unwrap().address
}

/// Waits until a balancer has noticed that it does not reach a runner.
async fn until_lost(cluster: &Cluster, balancer: usize, runner: &str) {
    let lost =
        |seen: &stoker_proto::v1::RunnerDescription| name(seen) != runner || seen.link() != LinkState::Ready;
    cluster.until_seen(balancer, "the fault is noticed", |seen| seen.iter().all(lost)).await;
}
