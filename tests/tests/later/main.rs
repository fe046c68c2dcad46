//! Calls for later in clusters of real processes: whatever is killed, every call that was accepted ends, and what was run twice is
//! known. Who submitted what is recorded by the test, what ran by the functions, what became of it by the queue: three records that
//! must fit together.

#![expect(clippy::unwrap_used, reason = "tests, though clippy does not see it in their helpers")]

mod away;
mod members;
mod room;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use stoker_core::backoff::split_mix;
use stoker_core::later::Later;
use stoker_proto::v1;
use stoker_queue::testing::Nats;
use stoker_tests::calls::Clients;
use stoker_tests::cluster::cut::{Fault, Wire};
use stoker_tests::cluster::{Cluster, Plan};
use stoker_tests::functions::probe;
use stoker_tests::{patiently, within};
use tokio::time::MissedTickBehavior;
use tonic::Request;

use members::Members;

/// Calls of each round at least; more come as long as its faults last.
const CALLS: usize = 40;

/// One more comes so often.
const PACE: Duration = Duration::from_millis(100);

/// What each round is drawn from; the seeds are in the output of a failure.
const SEEDS: [u64; 3] = [1, 2, 3];

fn work() -> stoker_core::FunctionSpec {
    let mut spec = probe("later");
    spec.later = Later { max_attempts: 20, backoff_ms: 20, ..Later::default() };
    spec
}

/// What is out of order may be so for as long: a member is cut off, those that are left choose who leads, and one of them dies then.
const ACCEPTED: Duration = Duration::from_secs(120);

/// Submits one call until a balancer has accepted it: its key makes the repetitions one call. Each of them is answered, whatever the queue does.
async fn submit(clients: &[Clients], key: &str, seed: &mut u64) -> String {
    let header = |name: &str, value: &str| v1::Header {
        name: name.to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    let headers = vec![header("Record", key), header("Probe", "sleep:20")];
    let request = v1::SubmitRequest {
        function: "t/later".to_owned(),
        head: Some(v1::RequestHead { headers, ..Default::default() }),
        idempotency_key: key.to_owned(),
        ..Default::default()
    };
    let (began, limit) = (Instant::now(), patiently(ACCEPTED));
    loop {
        let client = &clients[split_mix(seed) as usize % clients.len()];
        let mut calls = client.calls();
        match within(&format!("any answer to the submit of {key}"), calls.submit(request.clone())).await {
            Ok(accepted) => return accepted.into_inner().call_id,
            // Whoever is down comes back, and what cannot be done now is said to be so.
            Err(status) => {
                println!("{key} after {:?}: {status}", began.elapsed());
                assert!(began.elapsed() < limit, "{key} was not accepted within {limit:?}: {status:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// How each call ended.
async fn ends(clients: &[Clients], ids: &HashMap<String, String>) -> HashMap<String, v1::CallDescription> {
    let mut ends = HashMap::new();
    for (key, id) in ids {
        let ended = async {
            for client in clients.iter().cycle() {
                let mut ask = Request::new(v1::WaitCallRequest { call_id: id.clone() });
                ask.set_timeout(Duration::from_secs(60));
                match client.calls().wait_call(ask).await {
                    Ok(answer) => return answer.into_inner().call.unwrap(),
                    Err(status) => {
                        assert_ne!(status.code(), tonic::Code::NotFound, "{key} was accepted and is unknown");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
            unreachable!("it goes round")
        };
        let limit = patiently(ACCEPTED);
        let ended = tokio::time::timeout(limit, ended).await;
        ends.insert(key.clone(), ended.unwrap_or_else(|_| panic!("{key} did not end within {limit:?}")));
    }
    ends
}

/// Every call was done, and what ran more than once says why.
async fn check(cluster: &mut Cluster, ids: &HashMap<String, String>) -> usize {
    let clients = cluster.clients();
    let ends = ends(&clients, ids).await;
    let starts = cluster.starts.by_key().await;
    let mut twice = 0;
    for (key, call) in &ends {
        assert_eq!(call.state(), v1::CallState::Done, "{key}: {call:?}");
        let started = starts.get(key).map_or(0, Vec::len);
        assert!(started >= 1, "{key} is done, and nobody ran it: {call:?}");
        // Each start is an attempt that is known; all but the last were cut off or may have started.
        assert!(started <= call.attempts.len(), "{key} was started {started} times: {call:?}");
        let (last, before) = call.attempts.split_last().unwrap();
        assert!(last.error.is_none() && !last.interrupted, "{key}: {call:?}");
        for attempt in before {
            let known = attempt.interrupted || attempt.error.as_ref().is_some_and(|e| e.may_have_started);
            assert!(known, "{key} was made again without need: {call:?}");
        }
        twice += usize::from(started > 1);
    }
    let unknown: Vec<_> = starts.keys().filter(|key| !ids.contains_key(*key)).collect();
    assert!(unknown.is_empty(), "calls ran that nobody submitted: {unknown:?}");
    twice
}

/// What keeps the calls.
enum Kept {
    /// A directory of the one balancer.
    Disk,
    /// A server of its own, and the wire by which balancers reach it.
    Server { nats: Nats, wire: Wire },
    /// Three members of one cluster.
    Members(Members),
}

/// Kinds of faults.
const KINDS: u64 = 4;

/// One fault of a kind: something dies, and starts again, or nothing is heard of it for a while.
async fn fault(cluster: &mut Cluster, kept: &mut Kept, kind: u64, seed: &mut u64) {
    let choice = split_mix(seed);
    match (kind % KINDS, kept) {
        (0, Kept::Members(members)) => members.kill_one(seed).await,
        (3, Kept::Members(members)) => members.part_one(seed).await,
        (0, Kept::Server { nats, .. }) => {
            println!("nats-server is killed");
            nats.kill();
            nats.start_again().await;
        }
        (3, Kept::Server { wire, .. }) => {
            println!("nothing passes between balancers and nats-server");
            // By the name that our clients have there. Longer than a lease, so that calls are given to others.
            wire.fault("stoker", Fault::Silence);
            tokio::time::sleep(Duration::from_millis(3000)).await;
            wire.fault("stoker", Fault::None);
        }
        (0 | 1, _) => {
            let n = (choice >> 8) as usize % cluster.balancers.len();
            println!("balancer {n} is killed");
            let server = &mut cluster.balancers[n].server;
            server.kill().await;
            server.start_again();
            server.logged("ready").await;
        }
        _ => {
            let n = (choice >> 8) as usize % cluster.runners.len();
            println!("runner {n} is killed");
            let server = &mut cluster.runners[n].server;
            server.kill().await;
            server.start_again();
            server.logged("serving").await;
        }
    }
}

async fn rounds(mut cluster: Cluster, mut kept: Kept, seeds: &[u64]) {
    cluster.apply(work()).await;
    let mut ids = HashMap::new();
    for &round in seeds {
        println!("seed {round}");
        let (mut seed, mut faults) = (round, round.wrapping_mul(0x9e37));
        let clients: Vec<_> = cluster.balancers.iter().map(|b| b.clients.clone()).collect();
        let over = AtomicBool::new(false);
        let submits = async {
            let mut ids = Vec::new();
            let mut pace = tokio::time::interval(PACE);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while ids.len() < CALLS || !over.load(Ordering::Relaxed) {
                pace.tick().await;
                let key = format!("r{round}-{}", ids.len());
                ids.push((key.clone(), submit(&clients, &key, &mut seed).await));
            }
            ids
        };
        let dies = async {
            // Each kind, in an order that is drawn.
            let first = split_mix(&mut faults);
            for kind in 0..KINDS {
                fault(&mut cluster, &mut kept, first % KINDS + kind, &mut faults).await;
            }
            over.store(true, Ordering::Relaxed);
        };
        let (accepted, ()) = tokio::join!(submits, dies);
        ids.extend(accepted);
    }
    cluster.until_all_ready().await;
    let twice = check(&mut cluster, &ids).await;
    println!("{} calls are done, {twice} of them ran more than once", ids.len());
    // The same submits again are the same calls.
    let (clients, mut seed) = (cluster.clients(), 0);
    for (key, id) in ids.iter().take(5) {
        assert_eq!(submit(&clients, key, &mut seed).await, *id);
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_accepted_is_lost_on_one_disk() {
    let directory = tempfile::tempdir().unwrap();
    let queue = directory.path().join("queue");
    let plan = Plan::new(1, 2).set("LATER_QUEUE", queue.to_str().unwrap());
    let Some(cluster) = plan.start([]).await else { return };
    rounds(cluster, Kept::Disk, &SEEDS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_accepted_is_lost_in_a_cluster_with_nats() {
    let Some(nats) = Nats::start().await else { return };
    let wire = Wire::to(nats.address()).await;
    let url = format!("nats://{}", wire.address);
    let plan = Plan::new(2, 2).set("LATER_QUEUE", &url).set("LATER_LEASE", "2s");
    let Some(cluster) = plan.start([]).await else { return };
    rounds(cluster, Kept::Server { nats, wire }, &SEEDS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_accepted_is_lost_when_members_of_the_queue_die_or_are_cut_off() {
    let Some(members) = Members::start().await else { return };
    let plan = Plan::new(2, 2).set("LATER_QUEUE", &members.url());
    let plan = plan.set("LATER_NATS_REPLICAS", "3").set("LATER_LEASE", "2s");
    let Some(cluster) = plan.start([]).await else { return };
    rounds(cluster, Kept::Members(members), &SEEDS[..1]).await;
}
