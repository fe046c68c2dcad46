//! Clocks on the wall that jump. Nothing here may depend on them: deadlines, leases and links go by a clock that only ticks.

use std::path::{Path, PathBuf};
use std::time::Duration;

use stoker_registry::Registry as _;
use stoker_tests::calls::{Call, Door};
use stoker_tests::cluster::load::Work;
use stoker_tests::cluster::server::Server;
use stoker_tests::cluster::{Cluster, Plan};
use stoker_tests::functions::probe;

use crate::all_answered;

/// What shows a program another time (Debian: `faketime`); `None` where it is missing.
fn library() -> Option<PathBuf> {
    let found = ["x86_64", "aarch64"]
        .map(|machine| format!("/usr/lib/{machine}-linux-gnu/faketime/libfaketimeMT.so.1"))
        .into_iter()
        .find(|path| Path::new(path).exists());
    if found.is_none() {
        println!("left out: libfaketime (package faketime) is missing");
    }
    found.map(PathBuf::from)
}

/// The clock on the wall of every server of a cluster.
struct Wall {
    file: tempfile::NamedTempFile,
}

impl Wall {
    async fn of(cluster: &mut Cluster, library: &Path) -> Self {
        let wall = Self { file: tempfile::NamedTempFile::new().unwrap() };
        wall.jump("+0");
        let runners = cluster.runners.iter_mut().map(|runner| &mut runner.server);
        let balancers = cluster.balancers.iter_mut().map(|balancer| &mut balancer.server);
        for server in runners.chain(balancers) {
            server.stop().await;
            let variables = [
                ("LD_PRELOAD", library.display().to_string()),
                ("FAKETIME_TIMESTAMP_FILE", wall.file.path().display().to_string()),
                // It is to be looked up each time, and only the wall's clock is meant.
                ("FAKETIME_NO_CACHE", "1".to_owned()),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
            ];
            for (key, value) in variables {
                server.set_variable(key, &value);
            }
            again(server).await;
        }
        cluster.until_all_ready().await;
        wall
    }

    /// So far from the truth from now on.
    fn jump(&self, offset: &str) {
        let next = self.file.path().with_extension("next");
        std::fs::write(&next, format!("{offset}\n")).unwrap();
        std::fs::rename(&next, self.file.path()).unwrap();
    }
}

async fn again(server: &mut Server) {
    server.start_again();
    server.logged("ready").await;
}

/// When a balancer believes that it is: the names of calls begin with the time.
async fn believed(cluster: &Cluster) -> u64 {
    let answer = cluster.balancers[0].clients.call(Door::Invoke, Call::of("once")).await.unwrap();
    u64::from_str_radix(&answer.call_id[..12], 16).expect("milliseconds in hexadecimal")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_expires_no_call_and_no_lease() {
    let Some(library) = library() else { return };
    let plan = Plan::new(2, 2).set("ETCD_LEASE", "2s");
    let Some(mut cluster) = plan.start([probe("once"), probe("long")]).await else { return };
    let wall = Wall::of(&mut cluster, &library).await;
    let (view, before) = (cluster.view(), believed(&cluster).await);
    let mut written = view.fleet();
    written.wait_for(|fleet| fleet.runners.len() == 2).await.unwrap();
    // Whoever loses its key is seen by it.
    let kept = tokio::spawn(async move {
        // Fails when the view is dropped, which is before any runner stops.
        written.wait_for(|fleet| fleet.runners.len() < 2).await.is_ok()
    });
    let load = cluster.load(Work::of("once").word("sleep:2"));
    load.more(100).await;
    // In flight over all the jumps, with a deadline that is far off on a clock that ticks.
    let clients = cluster.balancers[1].clients.clone();
    let long = Call::of("long").probe("sleep:6000").timeout(Duration::from_secs(15));
    let long = tokio::spawn(async move { clients.call(Door::Session, long).await });
    let day = 24 * 3600 * 1000;
    wall.jump("+864000");
    assert!(believed(&cluster).await > before + 9 * day, "the jump is not felt");
    load.more(300).await;
    wall.jump("-864000");
    assert!(believed(&cluster).await < before - 9 * day, "the jump is not felt");
    load.more(300).await;
    let answer = long.await.unwrap().unwrap();
    assert_eq!(answer.text(), "slept");
    drop(view);
    assert!(!kept.await.unwrap(), "a runner lost its lease");
    // Lives that begin in the past are taken for what they are: the next ones.
    for n in 0..2 {
        cluster.runners[n].server.stop().await;
        again(&mut cluster.runners[n].server).await;
        cluster.balancers[n].server.stop().await;
        again(&mut cluster.balancers[n].server).await;
        cluster.until_all_ready().await;
        load.more(50).await;
    }
    let attempts = load.end().await;
    all_answered(&cluster.check(&attempts).await);
    cluster.end().await;
}
