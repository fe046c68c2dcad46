//! Reserved concurrency: a limit on the calls of a function, which balancers share by places in etcd. And what one machine may have of a balancer.

use std::time::Duration;

use stoker_core::error::{Blame, Code, Error, Retry};
use stoker_tests::calls::{Call, Clients, Door};
use stoker_tests::cluster::load::{Again, Failure, Work};
use stoker_tests::cluster::{Cluster, Plan};
use stoker_tests::functions::probe;
use stoker_tests::net::Host;
use stoker_tests::raw::Raw;
use stoker_tests::{net, patiently, program, within};
use tokio::task::JoinSet;

const PLACES: usize = 3;

/// Reserves, by the word of each balancer: one that has said it knows it.
async fn reserve(cluster: &Cluster, places: usize) {
    for balancer in &cluster.balancers {
        let body = format!(r#"{{"ReservedConcurrentExecutions":{places}}}"#);
        let path = "/2017-10-31/functions/limited/concurrency";
        let page = balancer.clients.page("PUT", path, &[], body).await;
        assert_eq!(page.status, 200, "{page:?}");
    }
}

fn is_one_too_many(error: &Error) -> bool {
    error.code == Code::Overloaded && !error.may_have_started
}

/// Calls until there is a place, and comes again when it is told to.
async fn until_placed(clients: &Clients, call: &Call) {
    loop {
        let Err(error) = clients.call(Door::Invoke, call.clone()).await else { return };
        assert!(is_one_too_many(&error), "{error:?}");
        let Retry::After(after) = error.retry else { panic!("{error:?}") };
        tokio::time::sleep(after).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_reserved_is_never_exceeded_by_all_balancers_together() {
    let Some(mut cluster) = Plan::new(2, 2).start([probe("limited")]).await else { return };
    reserve(&cluster, PLACES).await;
    // Four times as many clients as there are places, half of them at each balancer.
    let work = Work::of("limited").word("counted:10").clients(4 * PLACES).again(Again::Never);
    let load = cluster.load(work);
    load.until("a call that was one too many", |attempt| attempt.outcome.is_err()).await;
    load.more(600).await;
    let attempts = load.end().await;
    let sums = cluster.check(&attempts).await;
    for attempt in &sums.failed {
        assert!(
            matches!(&attempt.outcome, Err(Failure::Said(error)) if is_one_too_many(error)),
            "{attempt:?}"
        );
    }
    assert!(sums.answered >= PLACES, "{} of {}", sums.answered, sums.calls);
    let most = cluster.starts.most_at_once().await;
    assert!((1..=PLACES).contains(&most), "{most} ran at once by the functions' own record");
    println!("{} of {} calls had a place, {most} at once", sums.answered, sums.calls);
    // What is left is held by nobody after a while: the last of a limit is not lost.
    let all = async {
        for balancer in &cluster.balancers {
            until_placed(&balancer.clients, &Call::of("limited")).await;
        }
    };
    within("a place at each balancer", all).await;
    cluster.end().await;
}

/// One balancer has all places and callers who never leave off; those of the other have their part nevertheless.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancer_under_constant_demand_shares_its_places() {
    const ENOUGH: u32 = 50;
    let Some(mut cluster) = Plan::new(2, 2).start([probe("limited")]).await else { return };
    reserve(&cluster, PLACES).await;
    let (answers, answered) = tokio::sync::mpsc::channel(64);
    let mut answered = answered;
    let mut callers = JoinSet::new();
    let mut call_at = |at: usize| {
        for n in 0..2 * PLACES {
            let (clients, answers) = (cluster.balancers[at].clients.clone(), answers.clone());
            callers.spawn(async move {
                for call in 0.. {
                    let key = format!("{at}-{n}-{call}");
                    let call = Call::of("limited").probe("counted:10").header("Record", &key);
                    until_placed(&clients, &call).await;
                    if answers.send(at).await.is_err() {
                        return;
                    }
                }
            });
        }
    };
    let mut counts = [0; 2];
    let mut until = async |counts: &mut [u32; 2], at: usize, many: u32| {
        while counts[at] < many {
            let from = within("an answer", answered.recv()).await.expect("callers go on");
            counts[from] += 1;
        }
    };
    call_at(0);
    until(&mut counts, 0, ENOUGH).await;
    call_at(1);
    until(&mut counts, 1, ENOUGH).await;
    // And neither is left out from then on.
    counts = [0; 2];
    until(&mut counts, 1, 2 * ENOUGH).await;
    until(&mut counts, 0, ENOUGH).await;
    let most = cluster.starts.most_at_once().await;
    println!("{counts:?}, {most} at once");
    assert!((1..=PLACES).contains(&most), "{most} ran at once by the functions' own record");
    drop(answered);
    callers.abort_all();
    while callers.join_next().await.is_some() {}
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancer_that_is_killed_gives_its_places_back() {
    let Some(mut cluster) = Plan::new(2, 2).start([probe("limited")]).await else { return };
    reserve(&cluster, PLACES).await;
    let held = Call::of("limited").probe("sleep:3600000");
    let mut calls = JoinSet::new();
    for n in 0..PLACES {
        let (clients, call) = (cluster.balancers[0].clients.clone(), held.clone());
        let call = call.header("Record", &format!("held-{n}"));
        calls.spawn(async move { clients.call(Door::Invoke, call).await });
    }
    for n in 0..PLACES {
        cluster.starts.started(&format!("held-{n}")).await;
    }
    // All are at the first, by etcd's word, and neither has another.
    let holder = format!("/stoker/v1/places/t/limited/{}-", cluster.balancers[0].server.name);
    let rows = cluster.etcd.get("/stoker/v1/places/").await;
    assert!(
        matches!(&rows[..], [(key, value)] if key.starts_with(&holder) && value.contains("3")),
        "{rows:?}"
    );
    for balancer in &cluster.balancers {
        let error = balancer.clients.call(Door::Invoke, Call::of("limited")).await.unwrap_err();
        assert!(is_one_too_many(&error), "{error:?}");
    }
    cluster.balancers[0].server.kill().await;
    while let Some(ended) = calls.join_next().await {
        ended.unwrap().expect_err("its balancer is gone");
    }
    // They come free with its lease, and then the other has them all.
    let other = cluster.balancers[1].clients.clone();
    let call = Call::of("limited");
    let free = until_placed(&other, &call);
    tokio::time::timeout(patiently(Duration::from_secs(60)), free).await.expect("its lease is of 10 s");
    let mut calls = JoinSet::new();
    for n in 0..PLACES {
        let (clients, call) = (other.clone(), held.clone().header("Record", &format!("again-{n}")));
        calls.spawn(async move {
            loop {
                // One that comes before the place does is told to come again.
                let Err(error) = clients.call(Door::Invoke, call.clone()).await else { return };
                let Retry::After(after) = error.retry else { return };
                tokio::time::sleep(after).await;
            }
        });
    }
    for n in 0..PLACES {
        cluster.starts.started(&format!("again-{n}")).await;
    }
    calls.abort_all();
    while calls.join_next().await.is_some() {}
    cluster.end().await;
}

/// One machine takes what it can get, without a credential where none is asked for; another one is served all the same.
#[test]
fn a_machine_alone_does_not_keep_others_out() {
    net::run(async |net| {
        let plan = Plan::new(1, 1).on(&net).set("MAX_CALLS", "4").set("MAX_CONNECTIONS", "40");
        let Some(cluster) = plan.start([probe("once")]).await else { return };
        let (clients, other) = (&cluster.balancers[0].clients, net.host());
        let mut held = Vec::new();
        for _ in 0..2 {
            let (body, answers) = clients.open(&Call::of("once").probe("early"));
            let mut answers = answers.await.unwrap();
            assert!(answers.message().await.unwrap().is_some());
            held.push((body, answers));
        }
        for door in Door::ALL {
            let error = clients.call(door, Call::of("once")).await.unwrap_err();
            assert_eq!(
                (error.code, error.blame()),
                (Code::RateLimited, Blame::Caller),
                "{door:?}: {error:?}"
            );
            assert!(!error.may_have_started && error.message.contains("address_share"), "{error:?}");
        }
        is_served(&other, clients).await;
        drop(held);
        // Connections: of both ports together, with those that its clients have.
        let mut open = Vec::new();
        let refused = loop {
            assert!(open.len() < 20, "it has more than its half");
            let mut connection = Raw::connect(clients.http).await;
            connection.write(b"GET /v2/apps HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let reply = connection.reply().await.unwrap();
            if reply.status != 200 {
                break reply;
            }
            open.push(connection);
        };
        let text = String::from_utf8_lossy(&refused.body).into_owned();
        assert!(refused.status == 429 && text.contains("20 connections"), "{}: {text}", refused.status);
        is_served(&other, clients).await;
        drop(open);
        cluster.end().await;
    });
}

async fn is_served(host: &Host, clients: &Clients) {
    let mut command = host.command(&program("stoker"));
    let server = format!("http://{}", clients.grpc);
    command.args(["--server", &server, "call", "t/once", "--header", "Probe=echo", "--data", "Ada"]);
    let called = within("a call of another machine", command.kill_on_drop(true).output()).await.unwrap();
    assert!(called.status.success() && called.stdout == b"Ada", "{called:?}");
}
