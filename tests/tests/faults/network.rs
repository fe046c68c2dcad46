//! Networks that are slow, lose packets, carry them one way only, or fall silent without a word.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use stoker_core::error::{Code, Error};
use stoker_tests::be_patient;
use stoker_tests::calls::{Answer, Call, Door};
use stoker_tests::cluster::load::{Load, Work, longest_silence};
use stoker_tests::cluster::{Cluster, Plan, took};
use stoker_tests::functions::probe;
use stoker_tests::net::{self, HERE, Host, Net, Way};

use crate::{all_answered, balancer, only_the_lost_failed, runner, until_lost};

/// From and to every runner, whoever sends.
fn all_links(net: &Net, cluster: &Cluster, way: Way) {
    for b in 0..cluster.balancers.len() {
        for r in 0..cluster.runners.len() {
            net.between(balancer(cluster, b), runner(cluster, r), way);
        }
    }
}

/// Bodies that take many packets, both ways at once, come back as they were sent.
async fn large_bodies(cluster: &Cluster, bytes: usize) {
    let body: Bytes = (0..bytes).map(|n| (n % 251) as u8).collect::<Vec<_>>().into();
    let one = async |clients: usize, door| -> Result<Answer, Error> {
        cluster.balancers[clients].clients.call(door, Call::of("once").body(body.clone())).await
    };
    let (a, b, c) = tokio::join!(one(0, Door::Stream), one(1, Door::Session), one(0, Door::Http));
    for answer in [a, b, c] {
        assert!(answer.unwrap().body == body, "a body changed on its way");
    }
}

#[test]
fn slow_and_narrow_links() {
    net::run(async |net| {
        let Some(mut cluster) = Plan::new(2, 2).on(&net).start([probe("once")]).await else { return };
        let slow = Way::CLEAR.slow(Duration::from_millis(40), Duration::from_millis(20));
        all_links(&net, &cluster, slow.narrow(500_000));
        let load = cluster.load(Work::of("once").word("sleep:2"));
        load.more(200).await;
        large_bodies(&cluster, 300_000).await;
        load.more(100).await;
        let attempts = load.end().await;
        let sums = cluster.check(&attempts).await;
        crate::all_answered_at_once(&sums);
        cluster.end().await;
    });
}

#[test]
fn five_percent_of_all_packets_are_lost() {
    lossy(Way::CLEAR.slow(Duration::from_millis(2), Duration::from_millis(1)).lossy(0.05));
}

/// The silence of a packet that is lost is longer than three seconds here, now and then; links stand nevertheless.
#[test]
#[ignore = "takes two minutes on a quiet machine: --run-ignored only"]
fn five_percent_are_lost_and_the_rest_takes_200_ms() {
    be_patient(4);
    lossy(Way::CLEAR.slow(Duration::from_millis(200), Duration::from_millis(20)).lossy(0.05));
}

/// Calls go on where every way between any two is like that.
fn lossy(way: Way) {
    net::run(async |net| {
        let Some(mut cluster) = Plan::new(2, 2).on(&net).start([probe("once")]).await else { return };
        all_links(&net, &cluster, way);
        for host in [balancer(&cluster, 0), balancer(&cluster, 1), runner(&cluster, 0), runner(&cluster, 1)] {
            net.between(net::ETCD[0], host, way);
            net.between(HERE, host, way);
        }
        let (load, began) = (cluster.load(Work::of("once").word("sleep:2")), Instant::now());
        load.more(300).await;
        large_bodies(&cluster, 300_000).await;
        // What etcd is for goes on as well.
        cluster.apply(probe("later")).await;
        assert_eq!(cluster.balancers[1].clients.probe("later", "echo").await.status, 200);
        load.more(300).await;
        let attempts = load.end().await;
        assert!(net.lost() > 50, "{} packets were lost", net.lost());
        println!("{} packets were lost", net.lost());
        took("the longest time without an answer", longest_silence(&attempts, began));
        let sums = cluster.check(&attempts).await;
        println!("{} calls, {} answered", sums.calls, sums.answered);
        only_the_lost_failed(&sums, &[0, 1]);
        all_links(&net, &cluster, Way::CLEAR);
        cluster.until_all_ready().await;
        cluster.end().await;
    });
}

/// The kernel's own `netem` on every server's host, both ways between any two: 5 % lost, 200 ms each way.
#[test]
#[ignore = "needs a kernel with sch_netem: tests/vm/run --workspace -- --run-ignored only -E 'test(netem)'"]
fn five_percent_are_lost_and_the_rest_takes_200_ms_by_netem() {
    // The kernel that has it is a program with one processor.
    be_patient(4);
    net::run(async |net| {
        let Some(mut cluster) = Plan::new(2, 2).on(&net).start([probe("once")]).await else { return };
        let servers = cluster.balancers.iter().map(|b| b.host.clone());
        let servers = servers.chain(cluster.runners.iter().map(|r| r.host.clone()));
        let hosts: Vec<Host> = servers.map(|host| host.expect("each has one")).collect();
        for host in &hosts {
            host.netem("loss 5% delay 200ms 20ms").await;
        }
        let (load, began) = (cluster.load(Work::of("once").word("sleep:2")), Instant::now());
        load.more(100).await;
        cluster.apply(probe("later")).await;
        assert_eq!(cluster.balancers[1].clients.probe("later", "echo").await.status, 200);
        load.more(100).await;
        let attempts = load.end().await;
        for host in &hosts {
            let seen = host.netem("delay 0ms").await;
            let lost = seen.split_once("dropped ").and_then(|(_, rest)| rest.split_once(','));
            let lost: u64 = lost.and_then(|(count, _)| count.parse().ok()).expect("it counts");
            println!("{}: {lost} packets lost", host.address);
            assert!(lost > 0, "{seen}");
        }
        took("the longest time without an answer", longest_silence(&attempts, began));
        let sums = cluster.check(&attempts).await;
        println!("{} calls, {} answered", sums.calls, sums.answered);
        only_the_lost_failed(&sums, &[0, 1]);
        cluster.until_all_ready().await;
        cluster.end().await;
    });
}

/// Makes the way between balancer 0 and the runner that serves most bad, heals it, and holds every call against the promises.
async fn one_way(net: Arc<Net>, to_runner: Way, to_balancer: Way) {
    let Some(mut cluster) = Plan::new(2, 2).on(&net).start([probe("once")]).await else { return };
    let load = cluster.load(Work::of("once").word("sleep:2"));
    load.more(200).await;
    let (n, other) = cluster.favourite(&load);
    let (here, there) = (balancer(&cluster, 0), runner(&cluster, n));
    let lost = cluster.runners[n].server.name.clone();
    let since = Instant::now();
    net.way(here, there, to_runner);
    net.way(there, here, to_balancer);
    until_lost(&cluster, 0, &lost).await;
    took("until the fault was noticed", since.elapsed());
    // The other balancer has both still.
    cluster.until_ready(1, 2).await;
    load.more(300).await;
    let healed = Instant::now();
    net.between(here, there, Way::CLEAR);
    cluster.until_all_ready().await;
    took("until the way was used again", healed.elapsed());
    serves_alone(&mut cluster, &load, &lost, other).await;
    let attempts = load.end().await;
    let sums = cluster.check(&attempts).await;
    only_the_lost_failed(&sums, &[0]);
    cluster.end().await;
}

/// Without the other runner every call goes over the way that was healed.
async fn serves_alone(cluster: &mut Cluster, load: &Load, back: &str, other: usize) {
    cluster.runners[other].server.stop().await;
    let (back, alone) = (back.to_owned(), Instant::now());
    load.until("a call over the way that was healed", move |attempt| {
        attempt.at > alone
            && attempt.balancer == 0
            && attempt.outcome.as_ref().is_ok_and(|(_, runner)| *runner == back)
    })
    .await;
}

#[test]
fn silence_between_one_balancer_and_one_runner() {
    net::run(async |net| one_way(net, Way::SILENT, Way::SILENT).await);
}

#[test]
fn a_link_that_carries_only_what_goes_to_the_runner() {
    net::run(async |net| one_way(net, Way::CLEAR, Way::SILENT).await);
}

#[test]
fn a_link_that_carries_only_what_comes_from_the_runner() {
    net::run(async |net| one_way(net, Way::SILENT, Way::CLEAR).await);
}

#[test]
fn a_balancer_that_vanishes_without_a_word_frees_what_it_held() {
    net::run(async |net| {
        // Room for one container: as long as the call is held, nobody else's runs.
        let Some(cluster) = Plan::new(2, 1).on(&net).room(1).start([probe("once")]).await else { return };
        let held = Call::of("once").probe("early").header("Record", "held");
        let (body, answers) = cluster.balancers[0].clients.open(&held);
        let mut answers = answers.await.unwrap();
        assert!(answers.message().await.unwrap().is_some());
        let since = Instant::now();
        net.between(balancer(&cluster, 0), runner(&cluster, 0), Way::SILENT);
        let next =
            cluster.balancers[1].clients.call(Door::Invoke, Call::of("once").body("next")).await.unwrap();
        assert_eq!(next.text(), "next");
        took("until the room was given to another", since.elapsed());
        // The client of the first is told, once, and not that it could try again.
        let error = loop {
            match answers.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("half an answer as if it were whole"),
                Err(status) => break stoker_proto::status::from_status(&status),
            }
        };
        assert!(error.code == Code::RunnerLost && error.may_have_started, "{error:?}");
        drop(body);
        net.between(balancer(&cluster, 0), runner(&cluster, 0), Way::CLEAR);
        cluster.until_all_ready().await;
        assert_eq!(cluster.balancers[0].clients.probe("once", "echo").await.status, 200);
        cluster.end().await;
    });
}

#[test]
fn runners_that_etcd_sees_and_no_balancer_reaches() {
    net::run(async |net| {
        let plan = Plan::new(2, 2).on(&net).set("MAX_WAIT", "2s");
        let Some(mut cluster) = plan.start([probe("once")]).await else { return };
        let load = cluster.load(Work::of("once").word("sleep:2"));
        load.more(200).await;
        all_links(&net, &cluster, Way::SILENT);
        for n in 0..2 {
            for runner in &cluster.runners {
                until_lost(&cluster, n, &runner.server.name).await;
            }
        }
        let error = cluster.balancers[0].clients.call(Door::Invoke, Call::of("once")).await.unwrap_err();
        assert!(error.code == Code::Unavailable && !error.may_have_started, "{error:?}");
        all_links(&net, &cluster, Way::CLEAR);
        cluster.until_all_ready().await;
        load.more(100).await;
        let attempts = load.end().await;
        let sums = cluster.check(&attempts).await;
        for attempt in &sums.failed {
            let Err(stoker_tests::cluster::load::Failure::Said(error)) = &attempt.outcome else {
                panic!("{attempt:?}")
            };
            assert!(matches!(error.code, Code::RunnerLost | Code::Unavailable), "{attempt:?}");
        }
        let load = cluster.load(Work::of("once").prefix("after-"));
        load.more(200).await;
        let attempts = load.end().await;
        all_answered(&cluster.check(&attempts).await);
        cluster.end().await;
    });
}
