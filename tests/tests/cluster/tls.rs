//! etcd by TLS, in both servers.

use stoker_tests::calls::{Call, Door};
use stoker_tests::cluster::server::Server;
use stoker_tests::cluster::{Cluster, Plan};
use stoker_tests::functions::{Change as _, probe};

async fn answers(cluster: &Cluster) {
    let answer = cluster.balancers[0].clients.call(Door::Session, Call::of("once").body("x")).await.unwrap();
    assert_eq!(answer.text(), "x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_that_asks_for_certificates() {
    let Some(mut cluster) = Plan::new(1, 1).tls().start([probe("once")]).await else { return };
    assert!(cluster.etcd.endpoint().starts_with("https://"));
    answers(&cluster).await;
    // Whoever has no certificate is not let in, and says what it waits for.
    let etcd = cluster.etcd.tls().unwrap();
    let settings = vec![
        ("ETCD", cluster.etcd.endpoint()),
        ("ETCD_CA", etcd.ca.display().to_string()),
        ("LISTEN", "127.0.0.1:0".to_owned()),
        ("HTTP_LISTEN", "127.0.0.1:0".to_owned()),
        ("ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
    ];
    let mut stranger =
        Server::start("stoker-lb", &format!("{}-stranger", cluster.mark), &cluster.mark, settings);
    stranger.logged_about("is interrupted").await;
    stranger.stop().await;
    // The way is found again after etcd was gone: a function and a runner that come later are seen.
    cluster.etcd.kill();
    cluster.balancers[0].server.logged_about("is interrupted").await;
    answers(&cluster).await;
    cluster.etcd.restart().await;
    cluster.until_all_ready().await;
    cluster.add_runner().await;
    cluster.until_all_ready().await;
    cluster.apply(probe("once").with_concurrency(2)).await;
    answers(&cluster).await;
    cluster.end().await;
}
