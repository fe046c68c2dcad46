//! etcd that is away, cut off, silent, short of members, or has forgotten what was. Calls do not notice.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use stoker_core::error::{Blame, Code};
use stoker_proto::{convert, v1};
use stoker_registry::Registry as _;
use stoker_registry::testing::Etcd;
use stoker_tests::calls::{Call, Door};
use stoker_tests::cluster::load::Work;
use stoker_tests::cluster::{Cluster, Plan, name, took};
use stoker_tests::functions::{Change as _, probe};
use stoker_tests::net::{self, Net, Way};
use stoker_tests::within;

use crate::{all_answered_at_once, balancer, runner};

/// Between every member of etcd and a host.
fn from_etcd(net: &Net, host: Ipv4Addr, way: Way) {
    net::ETCD.iter().for_each(|member| net.between(*member, host, way));
}

/// An operator's change is refused, and says why.
async fn no_change(cluster: &Cluster) {
    let functions = vec![convert::to_function(&cluster.marked(probe("refused")))];
    let request = v1::ApplyFunctionsRequest { functions, ..Default::default() };
    let status = cluster.balancers[0].clients.functions().apply_functions(request).await.unwrap_err();
    let error = stoker_proto::status::from_status(&status);
    assert_eq!((error.code, error.blame()), (Code::Unavailable, Blame::Platform), "{error:?}");
    assert!(error.message.contains("etcd"), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_away_for_long_no_call_to_a_known_function_fails() {
    away(Duration::from_secs(20), 20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes ten minutes"]
async fn etcd_away_for_ten_minutes_no_call_to_a_known_function_fails() {
    away(Duration::from_secs(600), 200).await;
}

/// etcd goes for so long, many times a lease; so many functions are called for the first time meanwhile.
async fn away(length: Duration, cold: usize) {
    let functions = (0..cold).map(|n| probe(&format!("f{n}")).with_memory(32));
    let plan = Plan::new(2, 2).room(32).set("ETCD_LEASE", "2s");
    let Some(mut cluster) = plan.start(functions.chain([probe("warm")])).await else { return };
    let load = cluster.load(Work::of("warm").word("sleep:5").clients(4).pause(Duration::from_millis(100)));
    load.more(100).await;
    cluster.etcd.kill();
    let since = Instant::now();
    // Cold ones, of which nobody had made a call before, all the while.
    let mut slowest = Duration::ZERO;
    for n in 0..cold {
        let clients = &cluster.balancers[n % 2].clients;
        let call = Call::of(&format!("f{n}")).header("Record", &format!("cold-{n}")).body("x");
        let asked = Instant::now();
        assert_eq!(clients.call(Door::ALL[n % 4], call).await.unwrap().text(), "x");
        slowest = slowest.max(asked.elapsed());
        while since.elapsed() < length.mul_f64(n as f64 / cold as f64) {
            load.more(10).await;
        }
        if n == cold / 2 {
            // A runner that starts again is found where it was.
            cluster.runners[0].server.stop().await;
            cluster.runners[0].server.start_again();
            cluster.until_all_ready().await;
        }
    }
    no_change(&cluster).await;
    took("etcd was away for", since.elapsed());
    println!("{cold} cold calls, the slowest took {slowest:?}");
    cluster.etcd.restart().await;
    load.more(100).await;
    // The runner that was started again takes the place of its earlier life.
    cluster.runners[0].server.logged("ready").await;
    cluster.until_all_ready().await;
    cluster.apply(probe("later")).await;
    let attempts = load.end().await;
    let sums = cluster.check(&attempts).await;
    all_answered_at_once(&sums);
    println!("{} warm calls, {} failed", sums.calls, sums.failed.len());
    let starts = cluster.starts.by_key().await;
    assert!((0..cold).all(|n| starts[&format!("cold-{n}")].len() == 1));
    cluster.end().await;
}

#[test]
fn runners_cut_off_from_etcd_lose_their_keys_and_stay_in_use() {
    net::run(async |net| {
        let plan = Plan::new(2, 2).on(&net).set("ETCD_LEASE", "2s");
        let Some(mut cluster) = plan.start([probe("once")]).await else { return };
        let view = cluster.view();
        let mut written = view.fleet();
        let load = cluster.load(Work::of("once").word("sleep:2"));
        load.more(100).await;
        for n in 0..2 {
            from_etcd(&net, runner(&cluster, n), Way::SILENT);
        }
        let gone = written.wait_for(|fleet| fleet.known && fleet.runners.is_empty());
        drop(within("the keys of both runners end", gone).await.unwrap());
        cluster.until_all_ready().await;
        load.more(300).await;
        for n in 0..2 {
            from_etcd(&net, runner(&cluster, n), Way::CLEAR);
        }
        let back = written.wait_for(|fleet| fleet.runners.len() == 2);
        drop(within("both runners are written again", back).await.unwrap());
        let attempts = load.end().await;
        all_answered_at_once(&cluster.check(&attempts).await);
        cluster.end().await;
    });
}

#[test]
fn everybody_cut_off_from_etcd_without_a_word() {
    net::run(async |net| {
        let Some(mut cluster) = Plan::new(2, 2).on(&net).start([probe("once"), probe("cold")]).await else {
            return;
        };
        let load = cluster.load(Work::of("once").word("sleep:2"));
        load.more(100).await;
        let hosts = [balancer(&cluster, 0), balancer(&cluster, 1), runner(&cluster, 0), runner(&cluster, 1)];
        hosts.iter().for_each(|host| from_etcd(&net, *host, Way::SILENT));
        for server in
            cluster.balancers.iter().map(|b| &b.server).chain(cluster.runners.iter().map(|r| &r.server))
        {
            server.logged_about("is interrupted").await;
        }
        no_change(&cluster).await;
        assert_eq!(cluster.balancers[1].clients.probe("cold", "echo").await.status, 200);
        load.more(200).await;
        hosts.iter().for_each(|host| from_etcd(&net, *host, Way::CLEAR));
        cluster.apply(probe("later")).await;
        cluster.add_runner().await;
        cluster.until_all_ready().await;
        let attempts = load.end().await;
        all_answered_at_once(&cluster.check(&attempts).await);
        cluster.end().await;
    });
}

#[test]
fn a_watch_that_dies_silently_is_left_for_another_member() {
    net::run(async |net| {
        let plan = Plan::new(2, 1).on(&net).members(3);
        let Some(mut cluster) = plan.start([probe("once")]).await else { return };
        let load = cluster.load(Work::of("once").word("sleep:2"));
        load.more(100).await;
        // It does not matter which member the balancer watches: what is left is the third. Its questions arrive, the answers do not.
        let here = balancer(&cluster, 0);
        net.way(net::ETCD[0], here, Way::SILENT);
        net.way(net::ETCD[1], here, Way::SILENT);
        let since = Instant::now();
        cluster.add_runner().await;
        cluster.until_all_ready().await;
        took("until a change was seen by way of another member", since.elapsed());
        cluster.apply(probe("later")).await;
        load.more(100).await;
        let attempts = load.end().await;
        all_answered_at_once(&cluster.check(&attempts).await);
        cluster.end().await;
    });
}

#[test]
fn what_was_compacted_while_a_balancer_was_cut_off_is_known_afterwards() {
    net::run(async |net| {
        let version = |version: &str| probe("changes").with_env("PROBE_VERSION", version);
        let Some(mut cluster) = Plan::new(2, 2).on(&net).start([version("old")]).await else { return };
        let load = cluster.load(Work::of("changes").word("version:2"));
        load.more(100).await;
        from_etcd(&net, balancer(&cluster, 0), Way::SILENT);
        // The other balancer makes a change and sees it; a runner comes, another goes for good.
        let functions = vec![convert::to_function(&cluster.marked(version("new")))];
        let request = v1::ApplyFunctionsRequest { functions, ..Default::default() };
        cluster.balancers[1].clients.functions().apply_functions(request).await.unwrap();
        cluster.add_runner().await;
        cluster.runners[0].server.stop().await;
        cluster.etcd.compact().await;
        let gone = cluster.runners[0].server.name.clone();
        from_etcd(&net, balancer(&cluster, 0), Way::CLEAR);
        cluster
            .until_seen(0, "what happened meanwhile", |seen| {
                seen.len() == 2 && seen.iter().all(|runner| name(runner) != gone)
            })
            .await;
        load.until("the new version by way of the balancer that was cut off", |attempt| {
            attempt.balancer == 0 && attempt.outcome.as_ref().is_ok_and(|(body, _)| body == "new")
        })
        .await;
        let attempts = load.end().await;
        all_answered_at_once(&cluster.check(&attempts).await);
        cluster.end().await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_that_loses_a_member_and_then_its_quorum() {
    let Some(mut cluster) = Plan::new(2, 2).members(3).start([probe("once"), probe("cold")]).await else {
        return;
    };
    let load = cluster.load(Work::of("once").word("sleep:2"));
    load.more(100).await;
    // Without one member everything goes on, changes as well. An election may take longer than an operator is kept waiting.
    cluster.etcd.kill();
    until_changed(&cluster, "without one").await;
    load.more(100).await;
    // Without two there is no change, and every call goes on.
    cluster.others[0].kill();
    no_change(&cluster).await;
    assert_eq!(cluster.balancers[1].clients.probe("cold", "echo").await.status, 200);
    load.more(200).await;
    let dead: &mut [Etcd] = &mut cluster.others[..1];
    Etcd::restart_all(dead).await;
    cluster.etcd.restart().await;
    until_changed(&cluster, "with all").await;
    cluster.add_runner().await;
    cluster.until_all_ready().await;
    let attempts = load.end().await;
    all_answered_at_once(&cluster.check(&attempts).await);
    cluster.end().await;
}

/// A change gets through in the end: whoever is told that etcd is away asks again.
async fn until_changed(cluster: &Cluster, word: &str) {
    let changed = async {
        let functions =
            vec![convert::to_function(&cluster.marked(probe("later").with_env("PROBE_VERSION", word)))];
        let request = v1::ApplyFunctionsRequest { functions, ..Default::default() };
        let mut functions = cluster.balancers[0].clients.functions();
        while let Err(status) = functions.apply_functions(request.clone()).await {
            let error = stoker_proto::status::from_status(&status);
            assert_eq!(error.code, Code::Unavailable, "{error:?}");
        }
    };
    within("a change", changed).await;
}
