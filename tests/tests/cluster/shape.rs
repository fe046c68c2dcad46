//! Any number of balancers before any number of runners, and everything of them started again one by one.

use std::process::Command;

use stoker_core::error::{Code, Retry};
use stoker_tests::calls::{Call, Clients, Door};
use stoker_tests::cluster::Plan;
use stoker_tests::cluster::load::{Attempt, Work};
use stoker_tests::cluster::server::Server;
use stoker_tests::functions::probe;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_balancers_and_three_runners() {
    // Two containers a runner: the clients of two functions fill all of them.
    let functions = [probe("f0"), probe("f1")];
    let Some(mut cluster) = Plan::new(2, 3).room(2).start(functions).await else { return };
    let loads = ["f0", "f1"].map(|name| cluster.load(Work::of(name).word("sleep:20").clients(8)));
    let names: Vec<_> = cluster.runners.iter().map(|runner| runner.server.name.clone()).collect();
    for (runner, balancer) in names.iter().flat_map(|name| [(name, 0), (name, 1)]) {
        let what = format!("a call through balancer {balancer} on {runner}");
        let there = |attempt: &Attempt| {
            attempt.balancer == balancer && attempt.outcome.as_ref().is_ok_and(|(_, by)| by == runner)
        };
        tokio::select! {
            () = loads[0].until(&what, there) => {}
            () = loads[1].until(&what, there) => {}
        }
    }
    for load in loads {
        let attempts = load.end().await;
        crate::all_answered(&cluster.check(&attempts).await);
    }
    // One more of each, while the others run.
    cluster.add_runner().await;
    let n = cluster.add_balancer().await;
    cluster.until_all_ready().await;
    assert_eq!(cluster.balancers[n].clients.probe("f0", "echo").await.status, 200);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_in_etcd_can_be_read_with_its_own_tool() {
    let Some(cluster) = Plan::new(1, 2).start([probe("shown")]).await else { return };
    let endpoint = cluster.etcd.endpoint();
    let run = tokio::task::spawn_blocking(move || {
        Command::new("etcdctl")
            .args(["--endpoints", &endpoint, "get", "--prefix", "/stoker/v1/"])
            .env("ETCDCTL_API", "3")
            .output()
    });
    match run.await.unwrap() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("left out: etcdctl (package etcd-client) is missing");
        }
        output => {
            let output = output.unwrap();
            let text = String::from_utf8(output.stdout).expect("text for people");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let lines: Vec<&str> = text.lines().collect();
            let value = |key: &str| -> serde_json::Value {
                let at =
                    lines.iter().position(|line| *line == key).unwrap_or_else(|| panic!("{key} in {text}"));
                serde_json::from_str(lines[at + 1])
                    .unwrap_or_else(|_| panic!("{key} is no JSON in one line: {text}"))
            };
            for runner in &cluster.runners {
                let record = value(&format!("/stoker/v1/runners/{}", runner.server.name));
                assert!(record.to_string().contains(&runner.server.name), "{record:#}");
            }
            let function = value("/stoker/v1/functions/t/shown");
            assert!(function.to_string().contains("probe"), "{function:#}");
        }
    }
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_restarted_one_by_one_under_load_loses_no_call() {
    let Some(mut cluster) = Plan::new(2, 2).start([probe("once")]).await else { return };
    let load = cluster.load(Work::of("once").word("sleep:5"));
    load.more(200).await;
    for n in 0..2 {
        cluster.runners[n].server.stop().await;
        cluster.runners[n].server.start_again();
        cluster.runners[n].server.logged("ready").await;
        cluster.until_all_ready().await;
        load.more(100).await;
    }
    for n in 0..2 {
        cluster.balancers[n].server.stop().await;
        cluster.balancers[n].server.start_again();
        cluster.balancers[n].server.logged("ready").await;
        cluster.until_all_ready().await;
        load.more(100).await;
    }
    cluster.etcd.kill();
    cluster.etcd.restart().await;
    load.more(100).await;
    let attempts = load.end().await;
    let sums = cluster.check(&attempts).await;
    crate::all_answered(&sums);
    println!("{} of {} calls were made again elsewhere", sums.repeated, sums.calls);
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_that_the_system_chooses() {
    let Some(cluster) = Plan::new(1, 0).start([probe("once")]).await else { return };
    let any = || "127.0.0.1:0".to_owned();
    let state = tempfile::tempdir().unwrap();
    let settings = [
        ("ETCD", cluster.etcd.endpoint()),
        ("LISTEN", any()),
        ("ADMIN_LISTEN", any()),
        ("MEMORY", "128MiB".to_owned()),
        ("STATE", state.path().display().to_string()),
    ];
    // One that is told no address says to balancers which one it was given.
    let mut runner =
        Server::start("stoker-runner", &format!("{}-any", cluster.mark), &cluster.mark, settings);
    runner.logged("ready").await;
    cluster.until_ready(0, 1).await;
    let settings = [
        ("ETCD", cluster.etcd.endpoint()),
        ("LISTEN", any()),
        ("HTTP_LISTEN", any()),
        ("ADMIN_LISTEN", any()),
    ];
    let mut balancer = Server::start("stoker-lb", "any", &cluster.mark, settings);
    let said = balancer.logged("serving").await;
    balancer.logged("ready").await;
    let address = |key: &str| said[key].as_str().unwrap().parse().unwrap();
    let clients = Clients::connect(address("grpc"), address("http")).await;
    for door in [Door::Invoke, Door::Http] {
        let answer = clients.call(door, Call::of("once").body("found")).await.unwrap();
        assert_eq!(answer.text(), "found");
    }
    assert_eq!(cluster.page(address("admin"), "/readyz").await.status, 200);
    balancer.stop().await;
    runner.stop().await;
    cluster.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_end_and_start_without_etcd_and_are_ready_when_it_comes() {
    let Some(mut cluster) = Plan::new(1, 1).start([probe("once")]).await else { return };
    assert_eq!(cluster.balancers[0].clients.probe("once", "echo").await.status, 200);
    cluster.etcd.kill();
    cluster.balancers[0].server.stop().await;
    cluster.runners[0].server.stop().await;
    cluster.balancers[0].server.start_again();
    cluster.balancers[0].server.logged("serving").await;
    cluster.runners[0].server.start_again();
    cluster.runners[0].server.logged("serving").await;
    for admin in [cluster.balancers[0].admin, cluster.runners[0].admin] {
        let page = cluster.page(admin, "/readyz").await;
        let why = String::from_utf8_lossy(&page.body).into_owned();
        assert_eq!(page.status, 503, "{why}");
        assert!(why.contains("etcd"), "{why}");
        assert_eq!(cluster.page(admin, "/livez").await.status, 200);
    }
    // A client that comes too early is told so, and that nothing has started.
    let error = cluster.balancers[0].clients.call(Door::Http, Call::of("once")).await.unwrap_err();
    assert!(error.code == Code::Unavailable && !error.may_have_started, "{error:?}");
    assert_ne!(error.retry, Retry::Never, "{error:?}");
    cluster.etcd.restart().await;
    cluster.balancers[0].server.logged("ready").await;
    cluster.runners[0].server.logged("ready").await;
    cluster.until_all_ready().await;
    assert_eq!(cluster.balancers[0].clients.probe("once", "echo").await.status, 200);
    cluster.end().await;
}
