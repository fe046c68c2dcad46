//! Disks that are full.

use std::path::Path;

use stoker_core::error::{Blame, Code};
use stoker_proto::{convert, v1};
use stoker_tests::calls::{Call, Door};
use stoker_tests::cluster::Plan;
use stoker_tests::cluster::load::Work;
use stoker_tests::disk::{Full, mounted};
use stoker_tests::functions::{Change as _, probe};
use stoker_tests::left::{self, Ending};
use stoker_tests::net;
use stoker_tests::within;

use crate::{all_answered, only_the_lost_failed};

#[test]
fn a_runner_whose_disk_is_full_serves_on_and_starts_again() {
    net::run(async |_| {
        let functions = (0..12).map(|n| probe(&format!("f{n}"))).chain([probe("warm")]);
        let Some(mut cluster) = Plan::new(1, 0).room(16).start(functions).await else { return };
        let directory = tempfile::tempdir().unwrap();
        let disk = mounted(directory.path(), "size=4m,nr_inodes=400");
        cluster.add_runner_with([("STATE", disk.display().to_string())]).await;
        cluster.until_all_ready().await;
        let load = cluster.load(Work::of("warm").word("sleep:2").clients(2));
        load.more(50).await;
        let full = Full::fill(&disk);
        load.more(50).await;
        // Functions that need nothing of the disk start all the same.
        let clients = cluster.balancers[0].clients.clone();
        for n in 0..12 {
            let call = Call::of(&format!("f{n}")).header("Record", &format!("cold-{n}")).body("x");
            assert_eq!(clients.call(Door::ALL[n % 4], call).await.unwrap().text(), "x");
        }
        // Killed, it starts again: what its earlier life had written is cleared away first, once the last process of that life has ended.
        let family = Ending::of_processes(&left::descendants(cluster.runners[0].server.pid()));
        cluster.runners[0].server.kill().await;
        family.wait().await;
        cluster.runners[0].server.start_again();
        cluster.runners[0].server.logged("ready").await;
        cluster.until_all_ready().await;
        for n in 0..12 {
            clients.probe(&format!("f{n}"), "echo").await;
        }
        load.more(50).await;
        full.free();
        let attempts = load.end().await;
        let sums = cluster.check(&attempts).await;
        only_the_lost_failed(&sums, &[0]);
        let starts = cluster.starts.by_key().await;
        assert!((0..12).all(|n| starts[&format!("cold-{n}")].len() == 1), "{starts:?}");
        cluster.end().await;
        let left: Vec<_> = std::fs::read_dir(&disk).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.iter().all(|path| only_locks(path)), "left behind: {left:?}");
    });
}

/// Locks stay, and directories of theirs; nothing else does.
fn only_locks(path: &Path) -> bool {
    match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().all(|entry| only_locks(&entry.path())),
        Err(_) => path.extension().is_some_and(|extension| extension == "lock"),
    }
}

#[test]
fn an_etcd_whose_disk_is_full_stops_changes_and_no_call() {
    net::run(async |_| {
        let directory = tempfile::tempdir().unwrap();
        // etcd takes 64 MiB for its log ahead, twice.
        let disk = mounted(directory.path(), "size=200m,nr_inodes=400");
        let plan = Plan::new(2, 2).etcd_in(&disk);
        let Some(mut cluster) = plan.start([probe("once"), probe("cold")]).await else { return };
        let load = cluster.load(Work::of("once").word("sleep:2"));
        load.more(100).await;
        let full = Full::fill(&disk);
        // Changes go on until etcd has to write where there is no room.
        let refused = async {
            let mut functions = cluster.balancers[0].clients.functions();
            for n in 0..10_000 {
                let large = probe("large").with_env("N", &format!("{n}{}", "x".repeat(100_000)));
                let functions_ = vec![convert::to_function(&cluster.marked(large))];
                let request = v1::ApplyFunctionsRequest { functions: functions_, ..Default::default() };
                if let Err(status) = functions.apply_functions(request).await {
                    return stoker_proto::status::from_status(&status);
                }
            }
            panic!("a full disk takes everything");
        };
        let error = within("a change that is refused", refused).await;
        assert_eq!((error.code, error.blame()), (Code::Unavailable, Blame::Platform), "{error:?}");
        load.more(200).await;
        assert_eq!(cluster.balancers[1].clients.probe("cold", "echo").await.status, 200);
        full.free();
        // etcd has ended: whoever keeps it starts it again.
        cluster.etcd.kill();
        cluster.etcd.restart().await;
        cluster.apply(probe("later")).await;
        cluster.until_all_ready().await;
        assert_eq!(cluster.balancers[1].clients.probe("later", "echo").await.status, 200);
        let attempts = load.end().await;
        all_answered(&cluster.check(&attempts).await);
        cluster.end().await;
    });
}
