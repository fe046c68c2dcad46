//! A fleet and what happens to it.

use stoker_core::resources::Resources;

use crate::trace::{Micros, SECOND};

/// Most runners of one fleet: a balancer that meets a function for the first time ranks all of them, and with a thousand functions that takes a minute.
pub const MOST_RUNNERS: usize = 100_000;

/// Most balancers: each has a view of its own of every runner and function.
pub const MOST_BALANCERS: usize = 1000;

/// Runners of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// How many.
    pub count: usize,
    /// What each gives out.
    pub size: Resources,
}

/// How calls find their runners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Placer {
    /// What the balancer does: warm first, then weighted rendezvous, and a queue that is woken by room.
    Stoker,
    /// Any.
    Random,
    /// The one with the fewest calls by the last report and by what was sent there since.
    LeastConnections,
    /// The better of two, by the same.
    PowerOfTwo,
    /// Consistent hashing that walks on from runners with a quarter more calls than the mean.
    BoundedHash,
    /// Fn's placer `ch`: jump hash over the list, then down the list.
    FnHash,
    /// Fn's placer `naive`: down the list from anywhere.
    FnNaive,
    /// Rendezvous order, nothing else.
    Rendezvous,
    /// Runners tell the balancer of a call that ended that a container is idle; whoever has no such word asks anyone.
    Pull,
}

impl Placer {
    /// All of them.
    pub const ALL: [Placer; 9] = [
        Placer::Stoker,
        Placer::Random,
        Placer::LeastConnections,
        Placer::PowerOfTwo,
        Placer::BoundedHash,
        Placer::FnHash,
        Placer::FnNaive,
        Placer::Rendezvous,
        Placer::Pull,
    ];

    /// As it is typed.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Placer::Stoker => "stoker",
            Placer::Random => "random",
            Placer::LeastConnections => "least-connections",
            Placer::PowerOfTwo => "power-of-two",
            Placer::BoundedHash => "bounded-hash",
            Placer::FnHash => "fn-hash",
            Placer::FnNaive => "fn-naive",
            Placer::Rendezvous => "rendezvous",
            Placer::Pull => "pull",
        }
    }
}

/// What a runner does with a call for which nothing is idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunnerPolicy {
    /// What our runner does: it waits for a busy container where that is sooner than a launch, shares fairly, and evicts by worth.
    Stoker,
    /// A launch if there is room for one, else a refusal; the least recently used container makes room.
    Plain,
}

/// Something that happens to the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// This runner is killed, and comes back empty after a while if it does.
    Kill {
        /// Its number.
        runner: usize,
        /// After this long.
        back: Option<Micros>,
    },
    /// One more runner of this size.
    Add {
        /// What it gives out.
        size: Resources,
    },
    /// The registry falls silent for so long: who comes is not seen, who goes is seen by the link.
    Silence {
        /// For so long.
        lasts: Micros,
    },
}

/// A fleet, and what is done to it.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// The runners at the beginning.
    pub runners: Vec<Kind>,
    /// Balancers; calls come to any of them.
    pub balancers: usize,
    /// Callers, the same number at each balancer, who each make the next call of the trace when the one before is answered, always of the same
    /// function, which as many call as any other; none: calls come when the trace says.
    pub callers: usize,
    /// How calls find their runners.
    pub placer: Placer,
    /// What runners do.
    pub runner_policy: RunnerPolicy,
    /// Thousandths of a core that a function works with.
    pub function_cpu: u32,
    /// Whether a launch holds as much, as it does at our runner.
    pub launches_compute: bool,
    /// One way from balancer to runner.
    pub hop: Micros,
    /// How often the registry tells of the load of all, for placers that go by it.
    pub report: Micros,
    /// Idle containers end after this long.
    pub idle_timeout: Micros,
    /// Containers that every function shall have over the whole fleet, called or not.
    pub min_containers: u32,
    /// Containers are launched before calls that are expected.
    pub prewarms: bool,
    /// Calls that no runner took leave after this long.
    pub max_wait: Micros,
    /// The start that is not measured, as part of the calls: nothing is warm yet.
    pub warm_up: f64,
    /// What happens, and when.
    pub changes: Vec<(Micros, Change)>,
    /// Repeats it.
    pub seed: u64,
}

impl Default for Scenario {
    fn default() -> Self {
        let size = Resources { memory: 16 << 30, cpu_millis: 16_000, slots: 1000 };
        Self {
            runners: vec![Kind { count: 20, size }],
            balancers: 4,
            callers: 0,
            placer: Placer::Stoker,
            runner_policy: RunnerPolicy::Stoker,
            function_cpu: 1000,
            launches_compute: true,
            hop: 300,
            report: SECOND,
            idle_timeout: 600 * SECOND,
            min_containers: 0,
            prewarms: true,
            max_wait: 60 * SECOND,
            warm_up: 0.25,
            changes: Vec::new(),
            seed: 1,
        }
    }
}

impl Scenario {
    /// Cores of all runners.
    #[must_use]
    pub fn cores(&self) -> f64 {
        self.runners.iter().map(|kind| kind.count as f64 * f64::from(kind.size.cpu_millis) / 1000.0).sum()
    }

    /// Memory of all runners.
    #[must_use]
    pub fn memory(&self) -> u64 {
        self.runners.iter().map(|kind| kind.count as u64 * kind.size.memory).sum()
    }

    /// The same fleet under another way to place, with the runners that belong to it.
    #[must_use]
    pub fn placed_by(&self, placer: Placer) -> Self {
        let runner_policy = if placer == Placer::Stoker { RunnerPolicy::Stoker } else { RunnerPolicy::Plain };
        Self { placer, runner_policy, ..self.clone() }
    }
}
