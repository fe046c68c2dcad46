//! A runner that becomes its next release under load.

use std::time::Instant;

use stoker_tests::cluster::load::{Work, longest_silence};
use stoker_tests::cluster::{Plan, took};
use stoker_tests::functions::{Change as _, probe};

/// The only runner of a fleet: no call fails, none has to be made again, and no function is started a second time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runner_upgraded_in_place_loses_no_call_and_no_warm_container() {
    let functions = ["busy", "frozen"].map(|name| probe(name).with_max_containers(1));
    let Some(mut cluster) = Plan::new(2, 1).start(functions).await else { return };
    let before = cluster.load(Work::of("frozen").clients(1));
    before.more(5).await;
    let before = before.end().await;
    let busy = cluster.load(Work::of("busy").word("sleep:1").clients(8));
    busy.more(200).await;
    let upgraded = Instant::now();
    cluster.runners[0].server.upgrade();
    let said = cluster.runners[0].server.logged("took over from the former program").await;
    assert_eq!(said["containers"], 2, "{said}");
    cluster.until_all_ready().await;
    busy.more(400).await;
    let after = cluster.load(Work::of("frozen").clients(1).prefix("after."));
    after.more(5).await;
    let (after, busy) = (after.end().await, busy.end().await);
    took("the longest time without an answer after the signal", longest_silence(&busy, upgraded));
    let starts = cluster.starts.by_key().await;
    let mut first_calls = 0;
    for attempts in [before, after, busy] {
        let sums = cluster.check(&attempts).await;
        crate::all_answered(&sums);
        assert_eq!(sums.repeated, 0, "a call had to be made again");
        // A process counts its calls.
        let first = |start: &&stoker_tests::cluster::starts::Start| start.by.ends_with("-1");
        first_calls += attempts.iter().flat_map(|attempt| &starts[&attempt.key]).filter(first).count();
    }
    assert_eq!(first_calls, 2, "each function was started once");
    cluster.end().await;
}
