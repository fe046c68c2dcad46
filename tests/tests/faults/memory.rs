//! Little memory: whatever bodies pass through, a server holds a window of each.

use std::path::{Path, PathBuf};

use stoker_tests::cluster::Plan;
use stoker_tests::cluster::load::{Way, Work};
use stoker_tests::functions::probe;

use crate::all_answered_at_once;

/// What a server may take beside what it has when it is idle.
const MORE: u64 = 24 << 20;

/// A body, several of which at once would not fit.
const BODY: usize = 6 << 20;

/// A limit on the memory that one process takes from here on: a cgroup of its own.
struct Limit {
    group: PathBuf,
    /// The file that counts the processes that had to be killed.
    events: PathBuf,
}

impl Limit {
    /// `None` where cgroups cannot be made.
    fn of(name: &str, pid: i32, bytes: u64) -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup");
        // Version 1 has a hierarchy for memory, version 2 one for everything.
        let (parent, limit, events) = if root.join("memory").is_dir() {
            (root.join("memory"), "memory.limit_in_bytes", "memory.oom_control")
        } else {
            _ = std::fs::write(root.join("cgroup.subtree_control"), "+memory");
            (root.to_owned(), "memory.max", "memory.events")
        };
        let group = parent.join(format!("limit-{name}"));
        let made = std::fs::create_dir(&group)
            .and_then(|()| std::fs::write(group.join(limit), bytes.to_string()))
            .and_then(|()| std::fs::write(group.join("cgroup.procs"), pid.to_string()));
        if let Err(error) = made {
            println!("left out: no cgroup for memory: {error}");
            _ = std::fs::remove_dir(&group);
            return None;
        }
        Some(Self { events: group.join(events), group })
    }

    fn kills(&self) -> u64 {
        let text = std::fs::read_to_string(&self.events).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.map_or(0, |count| count.trim().parse().unwrap())
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        // Empty once its process has ended; before that a failing test leaves it to the machine's next start.
        _ = std::fs::remove_dir(&self.group);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_through_servers_with_little_memory() {
    let Some(mut cluster) = Plan::new(1, 1).start([probe("large")]).await else { return };
    cluster.balancers[0].clients.probe("large", "echo").await;
    let servers = [&cluster.balancers[0].server, &cluster.runners[0].server];
    let limits = servers.map(|server| Limit::of(&server.name, server.pid(), MORE));
    let work = Work::of("large").size(BODY).clients(8).ways(&[Way::Stream]);
    let load = cluster.load(work);
    load.more(8).await;
    let attempts = load.end().await;
    all_answered_at_once(&cluster.check(&attempts).await);
    for limit in limits.iter().flatten() {
        assert_eq!(limit.kills(), 0);
    }
    cluster.end().await;
}
