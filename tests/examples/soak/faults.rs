//! The faults of a soak: at most two at once, each for some seconds, chosen by a seed.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use stoker_proto::v1;
use stoker_registry::testing::Etcd;
use stoker_tests::cluster::Cluster;
use stoker_tests::net::{ETCD, Net, Way};

use crate::{BALANCERS, MEMBERS, RUNNERS};

/// An operator's word to a runner is waited for so long: the balancer that passes it on may be hit by another fault.
const WORD: Duration = Duration::from_secs(2);

/// How many kinds there are.
const KINDS: u64 = 11;

/// What is wrong now, and with whom.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    RunnerKilled(usize),
    RunnerFrozen(usize),
    RunnerStopped(usize),
    RunnerDrained(usize),
    BalancerKilled(usize),
    BalancerFrozen(usize),
    BalancerStopped(usize),
    MemberKilled(usize),
    MemberFrozen(usize),
    /// Between a balancer and a runner.
    Link(usize, usize, Way),
    /// Between a runner and every member of etcd.
    Unregistered(usize),
}

impl Fault {
    fn kind(self) -> &'static str {
        match self {
            Fault::RunnerKilled(_) => "runner killed",
            Fault::RunnerFrozen(_) => "runner frozen",
            Fault::RunnerStopped(_) => "runner stopped and started again",
            Fault::RunnerDrained(_) => "runner drained",
            Fault::BalancerKilled(_) => "balancer killed",
            Fault::BalancerFrozen(_) => "balancer frozen",
            Fault::BalancerStopped(_) => "balancer stopped and started again",
            Fault::MemberKilled(_) => "member of etcd killed",
            Fault::MemberFrozen(_) => "member of etcd frozen",
            Fault::Link(_, _, Way::SILENT) => "link silent",
            Fault::Link(..) => "link slow and lossy",
            Fault::Unregistered(_) => "runner cut off from etcd",
        }
    }

    /// Whether both would be about one server, or would leave none of its kind.
    fn collides(self, other: Self) -> bool {
        use Fault::{
            BalancerFrozen, BalancerKilled, BalancerStopped, Link, MemberFrozen, MemberKilled, RunnerDrained,
            RunnerFrozen, RunnerKilled, RunnerStopped, Unregistered,
        };
        let runner = |fault| match fault {
            RunnerKilled(n) | RunnerFrozen(n) | RunnerStopped(n) | RunnerDrained(n) | Unregistered(n) => {
                Some(n)
            }
            Link(_, n, _) => Some(n),
            _ => None,
        };
        let balancer = |fault| matches!(fault, BalancerKilled(_) | BalancerFrozen(_) | BalancerStopped(_));
        let member = |fault| matches!(fault, MemberKilled(_) | MemberFrozen(_));
        (runner(self).is_some() && runner(self) == runner(other))
            || (balancer(self) && balancer(other))
            || (member(self) && member(other))
    }
}

/// See the module.
pub struct Faults {
    random: u64,
    active: Vec<Fault>,
    kinds: BTreeMap<&'static str, usize>,
}

impl Faults {
    pub fn new(seed: u64) -> Self {
        Self { random: seed, active: Vec::new(), kinds: BTreeMap::new() }
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        self.kinds.values().sum()
    }

    pub fn kinds(&self) -> &BTreeMap<&'static str, usize> {
        &self.kinds
    }

    /// How long until the next change.
    pub fn pause(&mut self) -> Duration {
        Duration::from_millis(1000 + self.below(3000))
    }

    /// Begins a fault, or ends one, and says so.
    pub async fn next(&mut self, cluster: &mut Cluster, net: &Net, now: Duration) {
        let before = self.active.clone();
        self.step(cluster, net).await;
        println!("{:>8.1} s: {before:?} -> {:?}", now.as_secs_f64(), self.active);
    }

    async fn step(&mut self, cluster: &mut Cluster, net: &Net) {
        if self.active.len() == 2 || (self.active.len() == 1 && self.below(2) == 0) {
            return self.end_first(cluster, net).await;
        }
        let fault = self.choose();
        if self.active.iter().any(|other| fault.collides(*other)) {
            return self.end_first(cluster, net).await;
        }
        if begin(fault, cluster, net).await {
            *self.kinds.entry(fault.kind()).or_default() += 1;
            self.active.push(fault);
        }
    }

    /// Ends all that there are.
    pub async fn end_all(&mut self, cluster: &mut Cluster, net: &Net) {
        while !self.active.is_empty() {
            self.end_first(cluster, net).await;
        }
    }

    async fn end_first(&mut self, cluster: &mut Cluster, net: &Net) {
        let fault = self.active.remove(0);
        if !end(fault, cluster, net).await {
            // Another fault is in its way; that one ends first.
            self.active.push(fault);
        }
    }

    fn choose(&mut self) -> Fault {
        let (runner, balancer) = (self.below(RUNNERS as u64) as usize, self.below(BALANCERS as u64) as usize);
        let member = self.below(MEMBERS as u64) as usize;
        match self.below(KINDS) {
            0 => Fault::RunnerKilled(runner),
            1 => Fault::RunnerFrozen(runner),
            2 => Fault::RunnerStopped(runner),
            3 => Fault::RunnerDrained(runner),
            4 => Fault::BalancerKilled(balancer),
            5 => Fault::BalancerFrozen(balancer),
            6 => Fault::BalancerStopped(balancer),
            7 => Fault::MemberKilled(member),
            8 => Fault::MemberFrozen(member),
            9 if self.below(2) == 0 => Fault::Link(balancer, runner, Way::SILENT),
            9 => {
                let slow = Way::CLEAR.slow(Duration::from_millis(30), Duration::from_millis(20));
                Fault::Link(balancer, runner, slow.lossy(0.05))
            }
            _ => Fault::Unregistered(runner),
        }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

fn member(cluster: &mut Cluster, n: usize) -> &mut Etcd {
    if n == 0 { &mut cluster.etcd } else { &mut cluster.others[n - 1] }
}

fn host(cluster: &Cluster, runner: usize) -> Ipv4Addr {
    cluster.runners[runner].host.as_ref().expect("it is in a network").address
}

/// Makes it so; `false` where that could not be done.
async fn begin(fault: Fault, cluster: &mut Cluster, net: &Net) -> bool {
    match fault {
        Fault::RunnerKilled(n) => cluster.runners[n].server.kill().await,
        Fault::RunnerFrozen(n) => cluster.runners[n].server.freeze(),
        Fault::RunnerStopped(n) => cluster.runners[n].server.stop().await,
        Fault::RunnerDrained(n) => return operate(cluster, n, true).await,
        Fault::BalancerKilled(n) => cluster.balancers[n].server.kill().await,
        Fault::BalancerFrozen(n) => cluster.balancers[n].server.freeze(),
        Fault::BalancerStopped(n) => cluster.balancers[n].server.stop().await,
        Fault::MemberKilled(n) => member(cluster, n).kill(),
        Fault::MemberFrozen(n) => member(cluster, n).freeze(),
        Fault::Link(balancer, runner, way) => between(cluster, net, balancer, runner, way),
        Fault::Unregistered(n) => ETCD.iter().for_each(|at| net.between(*at, host(cluster, n), Way::SILENT)),
    }
    true
}

/// Makes it good again; `false` where that could not be done now.
async fn end(fault: Fault, cluster: &mut Cluster, net: &Net) -> bool {
    match fault {
        Fault::RunnerKilled(n) | Fault::RunnerStopped(n) => {
            cluster.runners[n].server.start_again();
            cluster.runners[n].server.logged("serving").await;
        }
        Fault::RunnerFrozen(n) => cluster.runners[n].server.thaw(),
        Fault::RunnerDrained(n) => return operate(cluster, n, false).await,
        Fault::BalancerKilled(n) | Fault::BalancerStopped(n) => {
            cluster.balancers[n].server.start_again();
            cluster.balancers[n].server.logged("serving").await;
        }
        Fault::BalancerFrozen(n) => cluster.balancers[n].server.thaw(),
        Fault::MemberKilled(n) => member(cluster, n).restart().await,
        Fault::MemberFrozen(n) => member(cluster, n).thaw(),
        Fault::Link(balancer, runner, _) => between(cluster, net, balancer, runner, Way::CLEAR),
        Fault::Unregistered(n) => ETCD.iter().for_each(|at| net.between(*at, host(cluster, n), Way::CLEAR)),
    }
    true
}

fn between(cluster: &Cluster, net: &Net, balancer: usize, runner: usize, way: Way) {
    let at = cluster.balancers[balancer].host.as_ref().expect("it is in a network").address;
    net.between(at, host(cluster, runner), way);
}

/// Drains a runner or takes that back, by way of whichever balancer can.
async fn operate(cluster: &Cluster, runner: usize, drain: bool) -> bool {
    let runner = cluster.runners[runner].server.name.clone();
    for clients in cluster.clients() {
        let mut fleet = clients.fleet();
        let asked = async {
            if drain {
                fleet.drain_runner(v1::DrainRunnerRequest { runner: runner.clone() }).await.is_ok()
            } else {
                fleet.uncordon_runner(v1::UncordonRunnerRequest { runner: runner.clone() }).await.is_ok()
            }
        };
        if tokio::time::timeout(WORD, asked).await == Ok(true) {
            return true;
        }
    }
    false
}
