//! How long a change of a runner's capacity takes to reach every balancer, in a cluster of real processes: etcd, two balancers, two
//! runners. Prints microseconds as JSON; `benches/run` makes a table of them.
//!
//! A change is the start or the end of a call, as the runner's count of calls in flight shows it. Its time begins before the call is
//! made, or before its input is ended, so that the call's own way is part of it. Each balancer is asked every millisecond.
//!
//! - *alone*: nothing had changed for a while. *Crowded*: something had changed up to 75 ms before, so that the runner may hold the news
//!   back for a moment.
//! - *caller*: the balancer that the call goes through. *Other*: the other one, which is connected to the runner as well.
//!   *Unlinked*: the other one, cut off from the runner: it knows what etcd knows.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use stoker_proto::v1::{LinkState, ListRunnersRequest};
use stoker_tests::calls::{Call, rest_of};
use stoker_tests::cluster::cut::Fault;
use stoker_tests::cluster::{Cluster, Plan};
use stoker_tests::functions::probe;

/// How often a balancer is asked.
const STEP: Duration = Duration::from_millis(1);

/// The longest that the runner holds news back.
const APART: Duration = Duration::from_millis(75);

/// What was seen, by how and by whom.
type Seen = BTreeMap<String, Vec<u128>>;

/// A moment up to this long.
fn some(most: Duration) -> Duration {
    most.mul_f64(RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64)
}

/// Waits until a balancer sees so many calls in flight, and says how long after `since` that was.
async fn sees(cluster: &Cluster, balancer: usize, in_flight: u32, since: Instant) -> u128 {
    let mut fleet = cluster.balancers[balancer].clients.fleet();
    loop {
        let runners =
            fleet.list_runners(ListRunnersRequest {}).await.expect("it answers").into_inner().runners;
        let seen: u32 =
            runners.iter().filter_map(|runner| runner.capacity.as_ref()).map(|it| it.in_flight).sum();
        if seen == in_flight {
            return since.elapsed().as_micros();
        }
        tokio::time::sleep(STEP).await;
    }
}

/// One call, held for a while: two changes.
async fn changes(cluster: &Cluster, how: &str, other: &str, pause: impl Fn() -> Duration, into: &mut Seen) {
    let mut note = |who: &str, took| into.entry(format!("{how} {who}")).or_default().push(took);
    let call = Call::of("held").probe("early");
    tokio::time::sleep(pause()).await;
    let began = Instant::now();
    let (body, answers) = cluster.balancers[0].clients.open(&call);
    let call = async { answers.await.expect("it is taken") };
    let (mut answers, caller, theirs) =
        tokio::join!(call, sees(cluster, 0, 1, began), sees(cluster, 1, 1, began));
    note("caller", caller);
    note(other, theirs);
    tokio::time::sleep(pause()).await;
    let ended = Instant::now();
    drop(body);
    let end = async { rest_of(&mut answers).await.expect("it succeeds") };
    let (_, caller, theirs) = tokio::join!(end, sees(cluster, 0, 0, ended), sees(cluster, 1, 0, ended));
    note("caller", caller);
    note(other, theirs);
}

async fn all(cluster: &Cluster, other: &str, calls: usize, into: &mut Seen) {
    for _ in 0..calls {
        changes(cluster, "alone", other, || APART * 2 + some(APART), into).await;
        changes(cluster, "crowded", other, || some(APART), into).await;
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let calls = std::env::args().nth(1).map_or(50, |calls| calls.parse().expect("a number of calls"));
    let plan = Plan::new(2, 2).wires();
    let cluster = plan.start([probe("held")]).await.expect("etcd is not left out");
    // From here on it is warm.
    cluster.balancers[0].clients.probe("held", "echo").await;
    let mut seen = Seen::new();
    all(&cluster, "other", calls, &mut seen).await;
    let cut_off = &cluster.balancers[1].server.name;
    for runner in &cluster.runners {
        runner.wire.as_ref().expect("the plan has wires").fault(cut_off, Fault::Cut);
    }
    let lost = |runners: &[stoker_proto::v1::RunnerDescription]| {
        runners.iter().all(|runner| runner.link() != LinkState::Ready)
    };
    cluster.until_seen(1, "the cut is noticed", lost).await;
    all(&cluster, "unlinked", calls, &mut seen).await;
    println!("{}", serde_json::to_string(&seen).expect("it is plain"));
    cluster.end().await;
}
