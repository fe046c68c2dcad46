//! A private nats-server for tests: its own directory, its own port, killed and started again at will.
//!
//! It needs the program `nats-server`. Where that is missing a test fails and says what to install; with `STOKER_WITHOUT_NATS` set,
//! whoever runs the tests has said that those with NATS are left out.

use std::net::{TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use rustix::process::{Pid, Signal, kill_process};

/// Ports from here on are taken: below those that the kernel gives out, so that none is given away while the server is down.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A machine that is very busy may take this.
const START: Duration = Duration::from_secs(60);

/// See the module.
pub struct Nats {
    dir: tempfile::TempDir,
    port: u16,
    /// The same number in UDP: whoever else wants the port finds it taken.
    _claim: UdpSocket,
    child: Option<Child>,
}

impl Nats {
    /// Starts one and returns when it serves; `None` where tests with NATS are left out.
    pub async fn start() -> Option<Self> {
        use std::hash::{BuildHasher as _, Hasher as _};
        if std::env::var_os("STOKER_WITHOUT_NATS").is_some() {
            return None;
        }
        let any = std::hash::RandomState::new().build_hasher().finish() % u64::from(PORTS.end - PORTS.start);
        let first = PORTS.start + u16::try_from(any).expect("it is less than the number of ports");
        let (port, claim) = (first..PORTS.end)
            .chain(PORTS.start..first)
            .find_map(|port| {
                let claim = UdpSocket::bind(("127.0.0.1", port)).ok()?;
                TcpListener::bind(("127.0.0.1", port)).ok()?;
                Some((port, claim))
            })
            .expect("one of 12,000 ports is free");
        let dir = tempfile::tempdir().expect("a directory can be made");
        let mut nats = Self { dir, port, _claim: claim, child: None };
        nats.start_again().await;
        Some(nats)
    }

    /// The same as an address.
    #[must_use]
    pub fn address(&self) -> std::net::SocketAddr {
        std::net::SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Where it serves.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Ends it at once, as the kernel would for want of memory.
    pub fn kill(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        kill_process(Pid::from_child(&child), Signal::KILL).expect("it is our child");
        child.wait().expect("it can be waited for");
    }

    /// Starts it on what it has written, and returns when it serves.
    pub async fn start_again(&mut self) {
        let log = std::fs::File::create(self.dir.path().join("log")).expect("a file can be made");
        let child = Command::new("nats-server")
            .args(["--addr", "127.0.0.1", "--jetstream", "--port", &self.port.to_string()])
            .arg("--store_dir")
            .arg(self.dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log)
            .spawn()
            .expect("nats-server starts: install the package nats-server, or set STOKER_WITHOUT_NATS");
        self.child = Some(child);
        let serves = async_nats::ConnectOptions::new().retry_on_initial_connect().connect(self.url());
        let client = serves.await.expect("the address is one");
        let jetstream = async_nats::jetstream::new(client);
        let answers = async {
            // Each try waits for its answer.
            while jetstream.stream_names().try_next().await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(START, answers).await.expect("nats-server serves");
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}
