//! Private nats-servers for tests: each with a directory and ports of its own, killed and started again at will.
//!
//! It needs the program `nats-server`. Where that is missing a test fails and says what to install; with `STOKER_WITHOUT_NATS` set,
//! whoever runs the tests has said that those with NATS are left out.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::{ClusterInfo, PeerInfo};
use futures_util::TryStreamExt as _;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// Ports from here on are taken: below those that the kernel gives out, so that none is given away while the server is down.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A machine that is very busy may take this.
const START: Duration = Duration::from_secs(60);

/// Between two looks at a cluster, which says nothing by itself.
const PAUSE: Duration = Duration::from_millis(100);

/// The name of a cluster. Its members say it when they connect to each other.
pub const CLUSTER: &str = "members";

/// A port that stays the same over restarts.
struct Port {
    number: u16,
    /// The same number in UDP: whoever else wants the port finds it taken.
    _claim: UdpSocket,
}

impl Port {
    fn claim() -> Self {
        use std::hash::{BuildHasher as _, Hasher as _};
        let any = std::hash::RandomState::new().build_hasher().finish() % u64::from(PORTS.end - PORTS.start);
        let first = PORTS.start + u16::try_from(any).expect("it is less than the number of ports");
        let found = (first..PORTS.end).chain(PORTS.start..first).find_map(|number| {
            let claim = UdpSocket::bind(("127.0.0.1", number)).ok()?;
            TcpListener::bind(("127.0.0.1", number)).ok()?;
            Some(Self { number, _claim: claim })
        });
        found.expect("one of 12,000 ports is free")
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.number))
    }
}

/// See the module.
pub struct Nats {
    dir: tempfile::TempDir,
    /// Where it keeps what it is given.
    store: PathBuf,
    port: Port,
    /// Where the others of its cluster reach it.
    route: Option<Port>,
    /// Of a cluster's member.
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Nats {
    fn new() -> Option<Self> {
        if std::env::var_os("STOKER_WITHOUT_NATS").is_some() {
            return None;
        }
        let dir = tempfile::tempdir().expect("a directory can be made");
        let store = dir.path().to_owned();
        Some(Self { dir, store, port: Port::claim(), route: None, arguments: Vec::new(), child: None })
    }

    /// Starts one that keeps what it is given in this directory.
    pub async fn start_on(store: &Path) -> Option<Self> {
        let mut nats = Self::new()?;
        nats.store = store.to_owned();
        nats.start_again().await;
        Some(nats)
    }

    /// Starts one and returns when it serves; `None` where tests with NATS are left out.
    pub async fn start() -> Option<Self> {
        let mut nats = Self::new()?;
        nats.start_again().await;
        Some(nats)
    }

    /// Starts the members of one cluster and returns when all of them serve. `way` gives the address by which one member (the first number)
    /// reaches another (the second), which listens at the address.
    pub async fn cluster(
        members: usize,
        way: impl AsyncFn(usize, usize, SocketAddr) -> SocketAddr,
    ) -> Option<Vec<Self>> {
        let mut all = (0..members).map(|_| Self::new()).collect::<Option<Vec<_>>>()?;
        let routes: Vec<_> =
            all.iter_mut().map(|member| member.route.insert(Port::claim()).address()).collect();
        for (n, member) in all.iter_mut().enumerate() {
            let mut others = Vec::new();
            for (other, address) in routes.iter().enumerate().filter(|(other, _)| *other != n) {
                others.push(format!("nats://{}", way(n, other, *address).await));
            }
            let own = format!("nats://{}", routes[n]);
            let name = format!("member-{n}");
            let (others, name) = (others.join(","), name.as_str());
            // They know no other ways to each other than these.
            let words = [
                "--server_name",
                name,
                "--cluster_name",
                CLUSTER,
                "--cluster",
                &own,
                "--routes",
                &others,
                "--no_advertise",
            ];
            member.arguments = words.map(str::to_owned).to_vec();
            member.spawn();
        }
        for member in &all {
            member.serves().await;
        }
        Some(all)
    }

    /// The same as an address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Where it serves.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    /// Ends it at once, as the kernel would for want of memory.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        kill_process(Pid::from_child(&child), Signal::KILL).expect("it is our child");
        child.wait().expect("it can be waited for");
    }

    /// From now on it says nothing, and what is said to it waits; or it goes on.
    pub fn freeze(&self, frozen: bool) {
        let child = self.child.as_ref().expect("it runs");
        let pid = Pid::from_child(child);
        let signal = if frozen { Signal::STOP } else { Signal::CONT };
        kill_process(pid, signal).expect("it is our child");
        if frozen {
            // Until it has stopped.
            waitpid(Some(pid), WaitOptions::UNTRACED).expect("it is our child");
        }
    }

    /// Starts it on what it has written, and returns when it serves.
    pub async fn start_again(&mut self) {
        self.spawn();
        self.serves().await;
    }

    fn spawn(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).expect("a file can be made");
        let child = Command::new("nats-server")
            .args(["--addr", "127.0.0.1", "--jetstream", "--port", &self.port.number.to_string()])
            .args(&self.arguments)
            .arg("--store_dir")
            .arg(&self.store)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn()
            .expect("nats-server starts: install the package nats-server, or set STOKER_WITHOUT_NATS");
        self.child = Some(child);
    }

    /// Returns when everything in its cluster has somebody who leads, and all members have all of it: with three of them one may be lost
    /// then, and before that one is lost already.
    pub async fn is_whole(&self) {
        let jetstream = self.jetstream().await;
        let whole = async {
            while !is_whole(&jetstream).await.unwrap_or(false) {
                tokio::time::sleep(PAUSE).await;
            }
        };
        tokio::time::timeout(2 * START, whole).await.expect("the cluster becomes whole");
    }

    async fn jetstream(&self) -> jetstream::Context {
        let serves = async_nats::ConnectOptions::new().retry_on_initial_connect().connect(self.url());
        jetstream::new(serves.await.expect("the address is one"))
    }

    async fn serves(&self) {
        let jetstream = self.jetstream().await;
        let answers = async {
            // Each try waits for its answer.
            while jetstream.stream_names().try_next().await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(START, answers).await.expect("nats-server serves");
    }
}

async fn is_whole(jetstream: &jetstream::Context) -> Result<bool, async_nats::Error> {
    let whole = |cluster: &Option<ClusterInfo>| {
        let has_all = |member: &PeerInfo| member.current && !member.offline;
        cluster
            .as_ref()
            .is_none_or(|cluster| cluster.leader.is_some() && cluster.replicas.iter().all(has_all))
    };
    let mut names = jetstream.stream_names();
    while let Some(name) = names.try_next().await? {
        let stream = jetstream.get_stream(name).await?;
        if !whole(&stream.cached_info().cluster) {
            return Ok(false);
        }
        let mut consumers = stream.consumers();
        while let Some(consumer) = consumers.try_next().await? {
            if !whole(&consumer.cluster) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}
