//! A cluster of real processes: etcd, `stoker-lb` and `stoker-runner`, each killed, frozen, cut off, stopped and started again at will.
//! Its end is a check.

pub mod cut;
pub mod load;
pub mod port;
pub mod server;
pub mod starts;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stoker_core::function::FunctionSpec;
use stoker_proto::v1::{LinkState, RunnerDescription, RunnerState};
use stoker_proto::{convert, v1};
use stoker_registry::testing::Etcd;
use stoker_registry::{EtcdRegistry, Registry as _, etcd};

use self::cut::Wire;
use self::load::{Attempt, Load, Sums, Work, check};
use self::port::Port;
use self::server::Server;
use self::starts::Starts;
use crate::calls::{Clients, Page};
use crate::functions::Change as _;
use crate::left::{self, Ending, MARK};
use crate::middlebox::{Middlebox, Skew};
use crate::net::{self, Host, Net};
use crate::{LIMIT, patiently, within};

/// A cluster to be.
#[derive(Clone)]
pub struct Plan {
    balancers: usize,
    runners: usize,
    members: usize,
    room: u64,
    wires: bool,
    tls: bool,
    net: Option<Arc<Net>>,
    skew: Option<Skew>,
    etcd_directory: Option<PathBuf>,
    settings: Vec<(&'static str, String)>,
}

impl Plan {
    /// So many of each, with room for eight containers of 64 MiB a runner.
    #[must_use]
    pub fn new(balancers: usize, runners: usize) -> Self {
        Self {
            balancers,
            runners,
            members: 1,
            room: 8,
            wires: false,
            tls: false,
            net: None,
            skew: None,
            etcd_directory: None,
            settings: Vec::new(),
        }
    }

    /// So many members of etcd.
    #[must_use]
    pub fn members(mut self, members: usize) -> Self {
        self.members = members;
        self
    }

    /// Every server on a host of its own in this network, and etcd at addresses of its own.
    #[must_use]
    pub fn on(mut self, net: &Arc<Net>) -> Self {
        self.net = Some(net.clone());
        // Nobody else is in it.
        self.set("INSECURE", "true")
    }

    /// Balancers take runners for those of another release, and runners balancers.
    #[must_use]
    pub fn skew(mut self, skew: Skew) -> Self {
        self.skew = Some(skew);
        self
    }

    /// etcd keeps its data below this directory.
    #[must_use]
    pub fn etcd_in(mut self, directory: impl Into<PathBuf>) -> Self {
        self.etcd_directory = Some(directory.into());
        self
    }

    /// So many containers of 64 MiB a runner.
    #[must_use]
    pub fn room(mut self, containers: u64) -> Self {
        self.room = containers;
        self
    }

    /// Balancers reach runners over wires that can be cut.
    #[must_use]
    pub fn wires(mut self) -> Self {
        self.wires = true;
        self
    }

    /// etcd speaks TLS, and lets in only those with a certificate.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// A setting of every server: a `STOKER_…` variable without that prefix.
    #[must_use]
    pub fn set(mut self, key: &'static str, value: &str) -> Self {
        self.settings.push((key, value.to_owned()));
        self
    }

    /// Starts it, with these functions; returns when every balancer knows them and is connected to every runner. `None` where
    /// tests with etcd are left out.
    pub async fn start(mut self, functions: impl IntoIterator<Item = FunctionSpec>) -> Option<Cluster> {
        let (etcd, others) = if self.tls {
            (Etcd::start_with_tls().await?, Vec::new())
        } else {
            let loopback = [IpAddr::from([127, 0, 0, 1]); net::ETCD.len()];
            let addresses = self.net.as_ref().map_or(loopback, |_| net::ETCD.map(IpAddr::V4));
            let members = Etcd::start_at(&addresses[..self.members], self.etcd_directory.as_deref()).await?;
            let mut members = members.into_iter();
            (members.next()?, members.collect())
        };
        if let Some(etcd::Tls { ca, identity: Some((certificate, key)) }) = etcd.tls() {
            let files = [("ETCD_CA", ca), ("ETCD_CERTIFICATE", certificate), ("ETCD_KEY", key)];
            self.settings.extend(files.map(|(key, file)| (key, file.display().to_string())));
        }
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mark = format!("cluster-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let state = tempfile::Builder::new().prefix("stoker-cluster-").tempdir().unwrap();
        let mut cluster = Cluster {
            etcd,
            others,
            balancers: Vec::new(),
            runners: Vec::new(),
            starts: Starts::new(),
            mark,
            plan: self.clone(),
            state,
        };
        for _ in 0..self.runners {
            cluster.add_runner().await;
        }
        for _ in 0..self.balancers {
            cluster.add_balancer().await;
        }
        for n in 0..self.balancers {
            cluster.until_ready(n, self.runners).await;
        }
        for function in functions {
            cluster.apply(function).await;
        }
        Some(cluster)
    }
}

/// A balancer, and connections to it.
pub struct Balancer {
    pub server: Server,
    pub clients: Clients,
    pub admin: SocketAddr,
    /// Where it is, in a network.
    pub host: Option<Host>,
    _ports: Vec<Port>,
}

/// A runner.
pub struct Runner {
    pub server: Server,
    pub admin: SocketAddr,
    /// What balancers reach it by, where the plan asks for it.
    pub wire: Option<Wire>,
    /// What makes it look like one of another release, where the plan asks for it.
    _box: Option<Middlebox>,
    /// Where it is, in a network.
    pub host: Option<Host>,
    _ports: Vec<Port>,
}

/// A cluster that serves.
pub struct Cluster {
    pub etcd: Etcd,
    /// Members of etcd beside that one.
    pub others: Vec<Etcd>,
    pub balancers: Vec<Balancer>,
    pub runners: Vec<Runner>,
    pub starts: Starts,
    /// What its processes carry.
    pub mark: String,
    plan: Plan,
    state: tempfile::TempDir,
}

impl Cluster {
    /// Adds a runner, and waits until it serves.
    pub async fn add_runner(&mut self) -> usize {
        self.add_runner_with([]).await
    }

    /// The same, seen through this by every balancer.
    pub async fn add_runner_through(&mut self, skew: Skew) -> usize {
        let before = self.plan.skew.replace(skew);
        let n = self.add_runner().await;
        self.plan.skew = before;
        n
    }

    /// The same, with settings of its own.
    pub async fn add_runner_with(&mut self, own: impl IntoIterator<Item = (&'static str, String)>) -> usize {
        let n = self.runners.len();
        let (host, [grpc, admin], ports) = self.place([7170, 7190]);
        let wire = if self.plan.wires { Some(Wire::to(grpc).await) } else { None };
        let middlebox = match self.plan.skew {
            Some(skew) => Some(Middlebox::to(grpc, skew).await),
            None => None,
        };
        let advertised = middlebox.as_ref().map(|middlebox| middlebox.address);
        let advertised = advertised.or(wire.as_ref().map(|wire| wire.address)).unwrap_or(grpc);
        let mut settings = vec![
            ("ETCD", self.endpoints()),
            ("LISTEN", grpc.to_string()),
            ("ADMIN_LISTEN", admin.to_string()),
            ("ADVERTISE", format!("http://{advertised}")),
            ("MEMORY", format!("{}MiB", 64 * self.plan.room)),
            ("CPU", "8".to_owned()),
            ("STATE", self.state.path().display().to_string()),
        ];
        settings.extend(self.plan.settings.clone());
        settings.extend(own);
        let name = format!("{}-r{n}", self.mark);
        let server = Server::start_on(host.as_ref(), "stoker-runner", &name, &self.mark, settings);
        server.logged("serving").await;
        self.runners.push(Runner { server, admin, wire, _box: middlebox, host, _ports: ports });
        n
    }

    /// Where a server is to listen: on a host of its own at the usual ports, or on loopback at ports that stay its own.
    fn place<const N: usize>(&self, usual: [u16; N]) -> (Option<Host>, [SocketAddr; N], Vec<Port>) {
        match &self.plan.net {
            Some(net) => {
                let host = net.host();
                let addresses = usual.map(|port| SocketAddr::from((host.address, port)));
                (Some(host), addresses, Vec::new())
            }
            None => {
                let ports = usual.map(|_| Port::claim());
                let addresses = ports.each_ref().map(|port| port.address);
                (None, addresses, ports.into())
            }
        }
    }

    /// Every member of etcd, as servers are told.
    fn endpoints(&self) -> String {
        let members = std::iter::once(&self.etcd).chain(&self.others);
        members.map(Etcd::endpoint).collect::<Vec<_>>().join(",")
    }

    /// Adds a balancer, and waits until it is ready.
    pub async fn add_balancer(&mut self) -> usize {
        let n = self.balancers.len();
        let (host, [grpc, http, admin], ports) = self.place([7070, 7080, 7090]);
        let mut settings = vec![
            ("ETCD", self.endpoints()),
            ("LISTEN", grpc.to_string()),
            ("HTTP_LISTEN", http.to_string()),
            ("ADMIN_LISTEN", admin.to_string()),
        ];
        settings.extend(self.plan.settings.clone());
        let name = format!("{}-b{n}", self.mark);
        let server = Server::start_on(host.as_ref(), "stoker-lb", &name, &self.mark, settings);
        server.logged("ready").await;
        let clients = Clients::connect(grpc, http).await;
        self.balancers.push(Balancer { server, clients, admin, host, _ports: ports });
        n
    }

    /// The balancers that run.
    #[must_use]
    pub fn clients(&self) -> Vec<Clients> {
        self.balancers.iter().filter(|b| b.server.runs()).map(|b| b.clients.clone()).collect()
    }

    /// The function as it is registered here: its processes carry the mark, and record the calls that reach them.
    #[must_use]
    pub fn marked(&self, function: FunctionSpec) -> FunctionSpec {
        let pipe = self.starts.pipe();
        function
            .with_env(MARK, &self.mark)
            .with_env("PROBE_RECORD", pipe.path().to_str().unwrap())
            .with_workdir(pipe.directory())
    }

    /// Creates or replaces a function; returns when every balancer knows.
    pub async fn apply(&self, function: FunctionSpec) {
        let function = self.marked(function);
        assert_eq!(function.check(), Ok(()));
        // A balancer that has applied it knows it; for all but the first nothing changes.
        for clients in self.clients() {
            let functions = vec![convert::to_function(&function)];
            let request = v1::ApplyFunctionsRequest { functions, ..Default::default() };
            let applied = async {
                // On a machine that is very busy etcd may answer too late. The same again is right whatever came of it.
                while let Err(status) = clients.functions().apply_functions(request.clone()).await {
                    assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
                }
            };
            within("a function that is applied", applied).await;
        }
    }

    /// Deletes a function, by the word of one balancer.
    pub async fn delete(&self, function: &str) {
        let request = v1::DeleteFunctionRequest { function: function.to_owned() };
        self.clients()[0].functions().delete_function(request).await.unwrap();
    }

    /// A view of the registry that is the test's own.
    #[must_use]
    pub fn view(&self) -> EtcdRegistry {
        EtcdRegistry::connect(etcd::Config::new(vec![self.etcd.endpoint()])).unwrap()
    }

    /// Waits until this is so of the runners as one balancer sees them.
    pub async fn until_seen(
        &self,
        balancer: usize,
        what: &str,
        holds: impl Fn(&[RunnerDescription]) -> bool,
    ) {
        let mut watch = self.balancers[balancer]
            .clients
            .fleet()
            .watch_fleet(v1::WatchFleetRequest {})
            .await
            .unwrap()
            .into_inner();
        let mut last = Vec::new();
        let seen = async {
            loop {
                let seen = watch.message().await.unwrap().expect("the watch goes on");
                if holds(&seen.runners) {
                    return;
                }
                last = seen.runners;
            }
        };
        let limit = patiently(LIMIT);
        if tokio::time::timeout(limit, seen).await.is_err() {
            panic!("{what}: not within {limit:?}; balancer {balancer} sees {last:#?}");
        }
    }

    /// Waits until a balancer is connected to so many runners that take calls, and to no other.
    pub async fn until_ready(&self, balancer: usize, runners: usize) {
        let what = format!("{runners} runners that are ready for balancer {balancer}");
        let ready = |seen: &[RunnerDescription]| seen.iter().filter(|runner| is_ready(runner)).count();
        self.until_seen(balancer, &what, |seen| seen.len() == runners && ready(seen) == runners).await;
    }

    /// Waits until all that run know all that run.
    pub async fn until_all_ready(&self) {
        let runners = self.runners.iter().filter(|runner| runner.server.runs()).count();
        for n in (0..self.balancers.len()).filter(|n| self.balancers[*n].server.runs()) {
            self.until_ready(n, runners).await;
        }
    }

    /// The runner that serves most of a load, and another.
    #[must_use]
    pub fn favourite(&self, load: &Load) -> (usize, usize) {
        let favourite = load.favourite();
        let n = self
            .runners
            .iter()
            .position(|runner| runner.server.name == favourite)
            .expect("it is one of ours");
        (n, (n + 1) % self.runners.len())
    }

    /// Starts a load on all balancers that run.
    #[must_use]
    pub fn load(&self, work: Work) -> Load {
        Load::start(work, self.clients())
    }

    /// The same over connections of its own: a balancer closes one on which clients go away in great numbers.
    pub async fn load_apart(&self, work: Work) -> Load {
        let mut clients = Vec::new();
        for shared in self.clients() {
            clients.push(Clients::connect(shared.grpc, shared.http).await);
        }
        Load::start(work, clients)
    }

    /// Holds what clients saw against what functions recorded.
    pub async fn check(&mut self, attempts: &[Attempt]) -> Sums {
        check(attempts, &self.starts.by_key().await, false)
    }

    /// The same, of functions that may be run twice.
    pub async fn check_idempotent(&mut self, attempts: &[Attempt]) -> Sums {
        check(attempts, &self.starts.by_key().await, true)
    }

    /// A page of a server's admin port.
    pub async fn page(&self, admin: SocketAddr, path: &str) -> Page {
        let clients = Clients { http: admin, ..self.balancers[0].clients.clone() };
        // As a scraper that knows the newer form of metrics.
        let accept = [("accept".to_owned(), "application/openmetrics-text".to_owned())];
        clients.page("GET", path, &accept, "").await
    }

    /// Stops everything in order, and checks that it ends well and nothing is left behind.
    ///
    /// # Panics
    /// When something is.
    pub async fn end(mut self) {
        let processes = Ending::of(&self.mark);
        let names: Vec<_> = self.runners.iter().map(|runner| runner.server.name.clone()).collect();
        for Balancer { server, .. } in self.balancers.iter_mut().filter(|b| b.server.runs()) {
            server.stop().await;
        }
        for Runner { server, .. } in self.runners.iter_mut().filter(|r| r.server.runs()) {
            server.stop().await;
        }
        processes.wait().await;
        let mut unanswered = false;
        for Runner { server, .. } in &self.runners {
            unanswered |= server.had_logged("its lease ends by itself").await;
        }
        if unanswered {
            // etcd was too busy to answer when it was told.
            let view = self.view();
            let mut fleet = view.fleet();
            let empty = fleet.wait_for(|fleet| fleet.known && fleet.runners.is_empty());
            drop(within("the end of the leases", empty).await.unwrap());
        }
        let keys = self.etcd.get("/stoker/v1/runners/").await;
        assert!(keys.is_empty(), "runners that have stopped are registered still: {keys:?}");
        let left = left::behind(&self.mark, &names, self.state.path());
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

/// Whether a balancer is connected to it and it takes calls.
#[must_use]
pub fn is_ready(runner: &RunnerDescription) -> bool {
    let record = runner.capacity.as_ref();
    runner.link() == LinkState::Ready && record.is_some_and(|record| record.state() == RunnerState::Ready)
}

/// The name of a runner.
#[must_use]
pub fn name(runner: &RunnerDescription) -> &str {
    runner.capacity.as_ref().map_or("", |record| &record.runner)
}

/// Says how long something took, for people: no test depends on it.
pub fn took(what: &str, time: Duration) {
    println!("{what}: {} ms", time.as_millis());
}
