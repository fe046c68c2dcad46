//! A private etcd for tests: its own directory, its own ports, killed, frozen, thawed, compacted and emptied at will.
//!
//! It needs the `etcd` program. Where that is missing a test fails and says what to install; with `STOKER_WITHOUT_ETCD` set, whoever runs
//! the tests has said that those with etcd are left out.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{Client, CompactionOptions, ConnectOptions, DeleteOptions, GetOptions, PutOptions};
use futures_util::future::join_all;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tokio::sync::oneshot;

use crate::etcd::Tls;

/// Ports from here on are taken: below those that the kernel gives out, so that none is given away while etcd is down.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Starting takes a fraction of a second. A machine that is very busy may take this.
const START: Duration = Duration::from_secs(60);

/// What comparing a password costs. At etcd's own setting (10) it takes a fifth of a second of a core for each connection, which is nothing that most tests are
/// about.
const BCRYPT: &str = "4";
/// The same where it takes longer than a request may.
const SLOW_BCRYPT: &str = "12";

/// The last lines that it wrote, for the message of a failure.
const LINES: usize = 40;

/// See the module.
pub struct Etcd {
    name: String,
    /// Every member's name and peer address, as etcd wants it.
    cluster: String,
    dir: tempfile::TempDir,
    client: Port,
    peer: Port,
    tls: Option<Tls>,
    bcrypt: &'static str,
    child: Option<Child>,
    log: Arc<Mutex<VecDeque<String>>>,
}

/// Where etcd listens, unless it is told otherwise.
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A port that is ours, whether something listens on it now or not.
struct Port {
    address: SocketAddr,
    /// The same number in UDP: whoever else wants the port finds it taken.
    _claim: UdpSocket,
}

impl Port {
    fn claim(ip: IpAddr) -> Self {
        use std::hash::{BuildHasher as _, Hasher as _};
        let first =
            std::hash::RandomState::new().build_hasher().finish() % u64::from(PORTS.end - PORTS.start);
        let first = u16::try_from(first).expect("it is less than the number of ports");
        (PORTS.start + first..PORTS.end)
            .chain(PORTS.start..PORTS.start + first)
            .find_map(|number| {
                let address = SocketAddr::new(ip, number);
                let claim = UdpSocket::bind(address).ok()?;
                TcpListener::bind(address).ok()?;
                Some(Port { address, _claim: claim })
            })
            .expect("one of 12,000 ports is free")
    }

    fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.address)
    }
}

impl Etcd {
    /// Starts one and returns when it serves; `None` where tests with etcd are left out.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[LOOPBACK], None, |_| None).await?.pop()
    }

    /// Starts one that speaks TLS and lets in only those with a certificate of its authority.
    pub async fn start_with_tls() -> Option<Self> {
        Self::start_with(&[LOOPBACK], None, |dir| Some(certificates(dir))).await?.pop()
    }

    /// Starts the members of one cluster.
    pub async fn start_cluster(members: usize) -> Option<Vec<Self>> {
        Self::start_with(&vec![LOOPBACK; members], None, |_| None).await
    }

    /// Starts the members of one cluster, each at an address of this machine, with their data below a directory if one is named.
    pub async fn start_at(addresses: &[IpAddr], directory: Option<&Path>) -> Option<Vec<Self>> {
        Self::start_with(addresses, directory, |_| None).await
    }

    async fn start_with(
        addresses: &[IpAddr],
        parent: Option<&Path>,
        tls: impl Fn(&Path) -> Option<Tls>,
    ) -> Option<Vec<Self>> {
        if std::env::var_os("STOKER_WITHOUT_ETCD").is_some() {
            return None;
        }
        let named = addresses.iter().enumerate().map(|(n, address)| (format!("m{n}"), Port::claim(*address)));
        let peers: Vec<(String, Port)> = named.collect();
        let cluster: Vec<String> =
            peers.iter().map(|(name, port)| format!("{name}={}", port.url("http"))).collect();
        let cluster = cluster.join(",");
        let mut all: Vec<Self> = peers
            .into_iter()
            .map(|(name, peer)| {
                let dir = parent.map_or_else(tempfile::tempdir, tempfile::tempdir_in);
                let dir = dir.expect("a directory for etcd");
                let client = Port::claim(peer.address.ip());
                let (tls, cluster) = (tls(dir.path()), cluster.clone());
                let (bcrypt, child, log) = (BCRYPT, None, Arc::default());
                Self { name, cluster, dir, client, peer, tls, bcrypt, child, log }
            })
            .collect();
        Self::restart_all(&mut all).await;
        Some(all)
    }

    /// Starts members of one cluster again: none serves before most of them run.
    pub async fn restart_all(members: &mut [Self]) {
        join_all(members.iter_mut().map(Self::restart)).await;
    }

    /// Where clients find it; stays the same over [`Etcd::restart`].
    #[must_use]
    pub fn endpoint(&self) -> String {
        self.client.url(if self.tls.is_some() { "https" } else { "http" })
    }

    /// The keys and certificates of its clients, where it asks for them.
    #[must_use]
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Starts it again, with its data; returns when it serves.
    ///
    /// # Panics
    /// If it cannot be started.
    pub async fn restart(&mut self) {
        assert!(self.child.is_none(), "etcd runs");
        let data = self.dir.path().join("data");
        let (client, peer) = (self.endpoint(), self.peer.url("http"));
        let mut command = Command::new("etcd");
        if let Some(Tls { ca, identity }) = &self.tls {
            let (certificate, key) = identity.as_ref().expect("the kit makes one");
            command.arg("--trusted-ca-file").arg(ca).arg("--client-cert-auth");
            command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
        }
        let spawned = command
            .args(["--bcrypt-cost", self.bcrypt])
            .args(["--name", &self.name, "--heartbeat-interval", "50", "--election-timeout", "500"])
            .arg("--data-dir")
            .arg(data)
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &self.cluster])
            // Debian's build asks for this word on other machines than x86-64.
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH.replace("aarch64", "arm64"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = spawned.unwrap_or_else(|error| {
            panic!("etcd cannot be started ({error}): install it (Debian: etcd-server) or set STOKER_WITHOUT_ETCD=1")
        });
        let lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        self.child = Some(child);
        let (ready, is_ready) = oneshot::channel();
        let (mut ready, log) = (Some(ready), self.log.clone());
        // Ends when etcd does. Until then what it writes must be read, or it stops.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if line.contains("ready to serve client requests") {
                    // Whoever waits may have given up.
                    ready.take().map(|ready| ready.send(()).ok());
                }
                let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                if log.len() == LINES {
                    log.pop_front();
                }
                log.push_back(line);
            }
        });
        let started = tokio::time::timeout(START, is_ready).await;
        assert!(matches!(started, Ok(Ok(()))), "etcd did not start:\n{}", self.log());
    }

    /// Has the comparison of a password that is set from now on take about a second of a core.
    pub async fn compare_slowly(&mut self) {
        self.kill();
        self.bcrypt = SLOW_BCRYPT;
        self.restart().await;
    }

    fn log(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().map(|line| format!("{line}\n")).collect()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("etcd runs"))
    }

    /// SIGKILL. Its data stay.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("etcd can be killed");
            child.wait().expect("etcd can be waited for");
        }
    }

    /// SIGKILL, and its data are gone.
    pub fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.dir.path().join("data")).expect("the data can be removed");
    }

    /// SIGSTOP: connections stay open and nothing answers. Returns when it stands.
    pub fn freeze(&self) {
        kill_process(self.pid(), Signal::STOP).expect("etcd can be stopped");
        waitpid(Some(self.pid()), WaitOptions::UNTRACED).expect("etcd can be waited for");
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        kill_process(self.pid(), Signal::CONT).expect("etcd can be continued");
    }

    async fn client(&self) -> Client {
        let mut options = ConnectOptions::new();
        if let Some(tls) = self.tls.clone() {
            options = tls.add_to(options).await.expect("the kit's certificates are right");
        }
        Client::connect([self.endpoint()], Some(options)).await.expect("etcd can be connected to")
    }

    /// Forgets every revision but the newest.
    pub async fn compact(&self) {
        let mut client = self.client().await;
        let newest = client.put("/compacted", "", None).await.expect("etcd answers");
        let newest = newest.header().expect("every answer has a header").revision();
        let options = CompactionOptions::new().with_physical();
        client.compact(newest, Some(options)).await.expect("etcd can be compacted");
    }

    /// Writes values, without a lease.
    pub async fn put(&self, rows: impl IntoIterator<Item = (String, Vec<u8>)>) {
        let mut client = self.client().await;
        for (key, value) in rows {
            client.put(key, value, None).await.expect("etcd answers");
        }
    }

    /// Writes a value with a lease that nobody keeps.
    pub async fn put_for(&self, ttl: Duration, key: &str, value: impl Into<Vec<u8>>) {
        let mut client = self.client().await;
        let seconds = i64::try_from(ttl.as_secs()).expect("it is short");
        let lease = client.lease_grant(seconds, None).await.expect("etcd answers").id();
        let options = PutOptions::new().with_lease(lease);
        client.put(key, value, Some(options)).await.expect("etcd answers");
    }

    /// From now on only this user, who may do everything, is let in.
    pub async fn require_password(&self, password: &str) {
        let mut auth = self.client().await.auth_client();
        auth.user_add("root", password, None).await.expect("etcd answers");
        auth.role_add("root").await.expect("etcd answers");
        auth.user_grant_role("root", "root").await.expect("etcd answers");
        auth.auth_enable().await.expect("etcd answers");
    }

    /// Removes every key with this prefix.
    pub async fn delete(&self, prefix: &str) {
        let options = DeleteOptions::new().with_prefix();
        self.client().await.delete(prefix, Some(options)).await.expect("etcd answers");
    }

    /// Keys and values under a prefix.
    pub async fn get(&self, prefix: &str) -> Vec<(String, String)> {
        let options = GetOptions::new().with_prefix();
        let mut found = self.client().await.get(prefix, Some(options)).await.expect("etcd answers");
        let text = |bytes| String::from_utf8(bytes).expect("it is text");
        found
            .take_kvs()
            .into_iter()
            .map(|row| row.into_key_value())
            .map(|(k, v)| (text(k), text(v)))
            .collect()
    }

    /// Ends every lease, and with it every key that has one.
    pub async fn revoke_leases(&self) {
        let mut leases = self.client().await.lease_client();
        for lease in leases.leases().await.expect("etcd answers").leases() {
            leases.revoke(lease.id()).await.expect("etcd answers");
        }
    }
}

/// An authority, and one certificate of it that serves etcd and its clients.
fn certificates(dir: &Path) -> Tls {
    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    };
    let write = |name: &str, pem: String| {
        let path = dir.join(name);
        std::fs::write(&path, pem).expect("the directory can be written to");
        path
    };
    let key = || KeyPair::generate().expect("a key can be made");
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority_key = key();
    let root = authority.self_signed(&authority_key).expect("a certificate can be made");
    let authority = Issuer::new(authority, authority_key);

    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("it is an address");
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let own = key();
    let certificate = params.signed_by(&own, &authority).expect("a certificate can be made");
    Tls {
        ca: write("ca.pem", root.pem()),
        identity: Some((write("own.pem", certificate.pem()), write("own.key", own.serialize_pem()))),
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}
