//! A fleet inside the test: a registry in memory, a balancer, and runners with real sandboxes. Its end is a check.
//!
//! Runners are in this process, or (see [`Fleet::add_process`]) in processes of their own that can be killed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stoker_core::function::FunctionSpec;
use stoker_core::{Capacity, Resources, RunnerName};
use stoker_lb::Balancer;
use stoker_proto::v1::{
    LinkState, RunnerDescription, StreamLogsRequest, StreamLogsResponse, WatchFleetRequest,
};
use stoker_registry::{Applied, MemoryRegistry, Registration, Registry as _};
use stoker_runner::Runner;
use stoker_sandbox::select::{self, Choice};
use stoker_sandbox::{Description, spawner};

use crate::calls::Clients;
use crate::left::{self, Ending, MARK};
use crate::member::Member;
use crate::{program, within};

/// A fleet to be.
#[derive(Debug, Clone)]
pub struct Plan {
    pub runners: usize,
    pub resources: Resources,
    pub freeze_after: Duration,
    pub sandbox: Choice,
    pub balancer: stoker_lb::Config,
}

impl Default for Plan {
    /// One runner with room for eight containers of 64 MiB, which does not freeze.
    fn default() -> Self {
        Self {
            runners: 1,
            resources: Resources { memory: 512 << 20, cpu_millis: 8000, slots: 8 },
            freeze_after: Duration::from_secs(600),
            sandbox: Choice::Auto,
            balancer: balancer_config(),
        }
    }
}

impl Plan {
    /// So many runners inside the test.
    #[must_use]
    pub fn runners(mut self, runners: usize) -> Self {
        self.runners = runners;
        self
    }

    /// So many containers of 64 MiB a runner.
    #[must_use]
    pub fn room(mut self, containers: u32) -> Self {
        self.resources.memory = u64::from(containers) * (64 << 20);
        self.resources.slots = containers;
        self
    }

    /// Idle containers stand still after this long.
    #[must_use]
    pub fn freeze_after(mut self, time: Duration) -> Self {
        self.freeze_after = time;
        self
    }

    /// How its functions are kept apart.
    #[must_use]
    pub fn sandbox(mut self, sandbox: Choice) -> Self {
        self.sandbox = sandbox;
        self
    }

    /// Calls wait at most this long in the balancer, and so many of one function.
    #[must_use]
    pub fn queue(mut self, max_wait: Duration, total: usize, per_function: usize) -> Self {
        self.balancer.max_wait = max_wait;
        self.balancer.queue.total = total;
        self.balancer.queue.per_function = per_function;
        self
    }

    /// Starts it, with these functions.
    pub async fn start(self, functions: impl IntoIterator<Item = FunctionSpec>) -> Fleet {
        Fleet::start(self, functions).await
    }
}

/// The balancer of a test: free ports.
#[must_use]
pub fn balancer_config() -> stoker_lb::Config {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    stoker_lb::Config { grpc: any, http: any, ..stoker_lb::Config::default() }
}

/// The runner of a test: a free port, and a spawner that carries the mark.
#[must_use]
pub fn runner_config(mark: &str, name: &str, state: &Path, resources: Resources) -> stoker_runner::Config {
    let mut config = stoker_runner::Config::new(RunnerName::new(name).unwrap(), resources, state);
    config.listen = SocketAddr::from(([127, 0, 0, 1], 0));
    config.spawner = spawner::Command { program: program("member"), args: vec![mark.to_owned()] };
    config.freeze_after = Duration::from_secs(600);
    // One process may have several, and a store has one owner.
    config.images.directory = state.join("images").join(name);
    config
}

/// What a sandbox can do on this machine.
///
/// # Errors
/// Why it does not work here.
pub async fn sandbox(choice: Choice) -> Result<Description, stoker_sandbox::Error> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let state = tempfile::Builder::new().prefix("stoker-look-").tempdir().unwrap();
    let name = format!("look-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let spawner = spawner::Command { program: program("member"), args: Vec::new() };
    let config = select::Config::new(choice, name, state.path()).with_spawner(spawner);
    let driver = select::select(config).await?.driver;
    let description = driver.describe().clone();
    driver.close().await;
    Ok(description)
}

/// A fleet that serves.
pub struct Fleet {
    pub registry: MemoryRegistry,
    pub clients: Clients,
    /// What its processes carry.
    pub mark: String,
    plan: Plan,
    balancer: Balancer,
    runners: Vec<Runner>,
    members: Vec<(Member, Box<dyn Registration>)>,
    /// Every runner that it ever had.
    names: Vec<String>,
    state: tempfile::TempDir,
}

impl Fleet {
    async fn start(plan: Plan, functions: impl IntoIterator<Item = FunctionSpec>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mark = format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let registry = MemoryRegistry::default();
        let state = tempfile::Builder::new().prefix("stoker-test-").tempdir().unwrap();
        let (mut runners, mut names) = (Vec::new(), Vec::new());
        for n in 0..plan.runners {
            let name = format!("{mark}-{n}");
            let mut config = runner_config(&mark, &name, state.path(), plan.resources);
            config.freeze_after = plan.freeze_after;
            config.sandbox = plan.sandbox;
            runners.push(Runner::start(config, Arc::new(registry.clone())).await.unwrap());
            names.push(name);
        }
        let balancer = Balancer::start(plan.balancer.clone(), Arc::new(registry.clone())).await.unwrap();
        balancer.ready().await;
        let clients = Clients::connect(balancer.grpc_address(), balancer.http_address()).await;
        let fleet =
            Self { registry, clients, mark, plan, balancer, runners, members: Vec::new(), names, state };
        for function in functions {
            fleet.apply(function).await;
        }
        fleet
    }

    /// Creates or replaces a function. Its processes carry the fleet's mark.
    pub async fn apply(&self, mut function: FunctionSpec) -> Applied {
        function.env.insert(MARK.to_owned(), self.mark.clone());
        assert_eq!(function.check(), Ok(()));
        self.registry.apply_functions(vec![function]).await.unwrap()[0]
    }

    /// The same function as [`Fleet::apply`] registers.
    #[must_use]
    pub fn marked(&self, mut function: FunctionSpec) -> FunctionSpec {
        function.env.insert(MARK.to_owned(), self.mark.clone());
        function
    }

    /// Where its runners keep what they have on disk.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.state.path().to_owned()
    }

    /// Adds a runner in a process of its own, with a name that it had before or a new one. Returns its place in the list of those,
    /// once the balancer is connected to it.
    pub async fn add_process(&mut self, name: Option<&str>) -> usize {
        let name = name.map_or_else(|| format!("{}-p{}", self.mark, self.members.len()), str::to_owned);
        let member = Member::runner(&self.mark, &name, self.state.path(), self.plan.resources);
        let registration = self.registry.register(member.record()).await.unwrap();
        self.names.push(name);
        self.members.push((member, registration));
        self.until_linked(&self.names[self.names.len() - 1]).await;
        self.members.len() - 1
    }

    /// Waits until the balancer is connected to a runner of this name.
    pub async fn until_linked(&self, name: &str) {
        let mut watch = self.clients.fleet().watch_fleet(WatchFleetRequest {}).await.unwrap().into_inner();
        let linked = |runner: &RunnerDescription| {
            runner.link() == LinkState::Ready
                && runner.capacity.as_ref().is_some_and(|record| record.runner == name)
        };
        within(&format!("a connection to {name}"), async {
            while !watch.message().await.unwrap().expect("the watch goes on").runners.iter().any(linked) {}
        })
        .await;
    }

    /// A runner in a process of its own.
    pub fn member(&mut self, n: usize) -> &mut Member {
        &mut self.members[n].0
    }

    /// Takes one out: its record is gone from the registry, and the process is the caller's.
    pub fn remove_member(&mut self, n: usize) -> Member {
        let (member, registration) = self.members.remove(n);
        drop(registration);
        member
    }

    /// The records of the runners inside the test.
    #[must_use]
    pub fn records(&self) -> Vec<Capacity> {
        let fleet = self.registry.fleet();
        let fleet = fleet.borrow();
        fleet.runners.values().map(|record| record.as_ref().clone()).collect()
    }

    /// Waits until the runners inside the test say that this is so.
    pub async fn until(&self, what: &str, holds: impl Fn(&Capacity) -> bool) {
        let names: Vec<_> = self.runners.iter().map(|runner| runner.name().clone()).collect();
        let mut fleet = self.registry.fleet();
        let all = fleet.wait_for(|fleet| {
            names.iter().all(|name| fleet.runners.get(name).is_some_and(|record| holds(record)))
        });
        if tokio::time::timeout(crate::LIMIT, all).await.is_err() {
            panic!("{what}: not within {:?}; the runners say {:#?}", crate::LIMIT, self.records());
        }
    }

    /// How much of this function is warm, over the runners inside the test: idle, busy, waiting.
    #[must_use]
    pub fn warmth(&self, function: &FunctionSpec) -> (u32, u32, u32) {
        let digest = self.marked(function.clone()).digest();
        self.records()
            .iter()
            .filter_map(|record| record.functions.get(&digest))
            .fold((0, 0, 0), |sum, w| (sum.0 + w.idle, sum.1 + w.busy, sum.2 + w.waiting))
    }

    /// Waits until so many calls of this function run, over the runners inside the test.
    pub async fn until_busy(&self, function: &FunctionSpec, calls: u32) {
        let digest = self.marked(function.clone()).digest();
        self.until("calls run", |record| record.functions.get(&digest).is_some_and(|w| w.busy >= calls))
            .await;
    }

    /// Waits until this is so of what the balancer has heard, and says what that was.
    pub async fn until_heard(&self, what: &str, holds: impl Fn(&Heard) -> bool) -> Heard {
        let mut watch = self.clients.fleet().watch_fleet(WatchFleetRequest {}).await.unwrap().into_inner();
        let heard = async {
            loop {
                let seen = watch.message().await.unwrap().expect("the watch goes on");
                let records = || seen.runners.iter().filter_map(|runner| runner.capacity.as_ref());
                let heard = Heard {
                    running: records().map(|record| record.in_flight).sum(),
                    waiting: records().map(|record| record.waiting).sum(),
                    queued: seen.queued,
                };
                if holds(&heard) {
                    return heard;
                }
            }
        };
        within(what, heard).await
    }

    /// Everything that a function writes from now on, and what it wrote so far.
    pub async fn log(&self, function: &FunctionSpec) -> Log {
        let request =
            StreamLogsRequest { function: function.name.to_string(), follow: true, ..Default::default() };
        Log(self.clients.fleet().stream_logs(request).await.unwrap().into_inner())
    }

    /// What is free or would be given up on demand is all that there is: nothing runs, nothing waits, no grant was lost.
    pub async fn until_quiet(&self) {
        self.until("everything that was taken comes back", |record| {
            record.in_flight == 0
                && record.waiting == 0
                && record.free.memory + record.reclaimable.memory == record.total.memory
                && record.free.slots + record.reclaimable.slots == record.total.slots
        })
        .await;
    }

    /// Ends it, and checks that capacity came back and nothing is left behind.
    ///
    /// # Panics
    /// When something is.
    pub async fn end(self) {
        self.until_quiet().await;
        let processes = Ending::of(&self.mark);
        drop(self.clients);
        within("the end of the balancer", self.balancer.stop(Duration::from_secs(5))).await;
        for runner in self.runners {
            within("the end of a runner", runner.stop(Duration::from_secs(5))).await;
        }
        for (member, registration) in self.members {
            registration.withdraw().await;
            within("the end of a runner's process", member.stop()).await;
        }
        processes.wait().await;
        let fleet = self.registry.fleet();
        assert!(fleet.borrow().runners.is_empty(), "runners that have stopped are registered still");
        // Images are meant to stay, but nothing half-done.
        for store in std::fs::read_dir(self.state.path().join("images")).into_iter().flatten() {
            let tmp = store.unwrap().path().join("tmp");
            assert_eq!(std::fs::read_dir(&tmp).unwrap().count(), 0, "{}", tmp.display());
        }
        std::fs::remove_dir_all(self.state.path().join("images")).ok();
        let left = left::behind(&self.mark, &self.names, self.state.path());
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

/// What a balancer knows of calls: those that run and those that wait on its runners, and those that wait in itself.
#[derive(Debug, Clone, Copy)]
pub struct Heard {
    pub running: u32,
    pub waiting: u32,
    pub queued: u32,
}

/// What a function writes, as it comes.
pub struct Log(tonic::Streaming<StreamLogsResponse>);

impl Log {
    /// Waits for the next line with this in it.
    pub async fn until(&mut self, part: &str) {
        within(&format!("{part:?} in the log"), async {
            loop {
                let lines = self.0.message().await.unwrap().expect("the log goes on").lines;
                if lines.iter().any(|line| String::from_utf8_lossy(&line.text).contains(part)) {
                    return;
                }
            }
        })
        .await;
    }
}
