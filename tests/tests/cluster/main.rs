//! Clusters of real processes and a real etcd, and the faults that they must withstand, each a test named after it. What clients saw
//! and what functions recorded is held against the promises; times are printed and decide nothing.

#![expect(clippy::unwrap_used, reason = "tests, though clippy does not see it in their helpers")]

mod balancers;
mod changes;
mod drains;
mod kept;
mod limits;
mod network;
mod registry;
mod runners;
mod secure;
mod seeing;
mod shape;
mod tls;
mod upgrades;

use stoker_tests::cluster::load::{Attempt, Sums};

/// Every call was answered: what could not start on one balancer or runner did on another.
fn all_answered(sums: &Sums) {
    let failed: Vec<&Attempt> = sums.failed.iter().take(5).collect();
    assert!(failed.is_empty(), "{} of {} calls failed, such as {failed:#?}", sums.failed.len(), sums.calls);
    assert_eq!(sums.answered, sums.calls);
}
