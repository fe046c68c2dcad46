//! How many connections of clients there are at all ports together, how many there may be, and what became of those that came to nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};
use stoker_core::error::{Code, Error, Retry};
use stoker_runtime::metrics::{Counter, Entered, Gauge, Labelled, Metrics};

use crate::metrics::{CONNECTIONS, CONNECTIONS_FAILED};

/// Most of them unless somebody says otherwise: as many as there may be calls inside, each on a connection of its own, and half of that again.
const MOST: usize = 30_000;

/// Beyond the most there may be so many more, which are told why they are not served. Others are closed.
const TOLD: usize = 64;

/// How long a client that was told should wait before it comes again.
const AGAIN: Duration = Duration::from_secs(1);

/// So often the log is told of connections that are turned away.
const WORD: Duration = Duration::from_secs(10);

/// Most connections for which this process may have files, as the system has it: half of all. The rest is for runners, handshakes and whatever else there is.
pub fn possible() -> usize {
    let files = getrlimit(Resource::Nofile).maximum;
    files.and_then(|files| usize::try_from(files).ok()).map_or(usize::MAX, |files| files / 2)
}

/// Most connections where nobody says how many.
pub fn usual() -> usize {
    possible().min(MOST)
}

/// The clients at all ports of a balancer.
pub struct Connections {
    open: AtomicUsize,
    most: usize,
    patience: Duration,
    ports: Labelled<Gauge>,
    full: Counter,
    silent: Counter,
    deaf: Counter,
    system: Counter,
    handshakes: Counter,
}

impl Connections {
    /// Of which there may be `most`, and each may take nothing of what there is for it for so long.
    pub fn new(most: usize, patience: Duration, metrics: &Metrics) -> Arc<Self> {
        let failed = metrics.labelled(&CONNECTIONS_FAILED);
        Arc::new(Self {
            open: AtomicUsize::new(0),
            most,
            patience,
            ports: metrics.labelled(&CONNECTIONS),
            full: failed.with(&["full"]),
            silent: failed.with(&["silent"]),
            deaf: failed.with(&["deaf"]),
            system: failed.with(&["system"]),
            handshakes: failed.with(&["tls"]),
        })
    }

    /// Those at one port, by its name in the metrics.
    pub fn at(self: &Arc<Self>, port: &'static str) -> Port {
        Port { connections: self.clone(), open: self.ports.with(&[port]), spoken: None }
    }
}

/// The clients at one port.
pub struct Port {
    connections: Arc<Connections>,
    open: Gauge,
    /// When the log was last told of connections that were turned away.
    spoken: Option<Instant>,
}

impl Port {
    /// One comes in. `None` where there is not even room to tell it that there is none.
    pub fn enter(&mut self) -> Option<ConnectionGuard> {
        let most = self.connections.most;
        // Taken first and given back when it was too much: two that race may both be turned away, never both let in.
        let before = self.connections.open.fetch_add(1, Ordering::Relaxed);
        let guard = ConnectionGuard {
            connections: self.connections.clone(),
            beyond: before >= most,
            _open: self.open.enter(),
        };
        if guard.beyond {
            self.connections.full.add_one();
            if self.may_speak() {
                tracing::warn!(
                    most,
                    "there are as many connections as there may be (`max_connections`): others are turned away"
                );
            }
        }
        (before < most.saturating_add(TOLD)).then_some(guard)
    }

    /// The system has none for us.
    pub fn cannot_accept(&mut self, error: &std::io::Error) {
        self.connections.system.add_one();
        if self.may_speak() {
            tracing::warn!(%error, "cannot accept a connection");
        }
    }

    /// How long one may take nothing of what there is for it.
    pub fn patience(&self) -> Duration {
        self.connections.patience
    }

    /// Counts those whose handshake came to nothing.
    pub fn handshakes(&self) -> Counter {
        self.connections.handshakes.clone()
    }

    fn may_speak(&mut self) -> bool {
        let now = Instant::now();
        let may = self.spoken.is_none_or(|spoken| now.duration_since(spoken) >= WORD);
        if may {
            self.spoken = Some(now);
        }
        may
    }
}

/// A client's connection, as long as this lives.
pub struct ConnectionGuard {
    connections: Arc<Connections>,
    beyond: bool,
    _open: Entered,
}

impl ConnectionGuard {
    /// Whether it is one too many.
    pub fn is_beyond(&self) -> bool {
        self.beyond
    }

    /// What it is told instead of being served.
    pub fn refusal(&self) -> Option<Error> {
        self.beyond.then(|| {
            let text = format!(
                "this balancer has {} connections of clients already, which is its limit: ask another one, or keep to fewer connections",
                self.connections.most
            );
            Error::new(Code::Overloaded, text).retry(Retry::After(AGAIN))
        })
    }

    /// It did not say in time what it wants.
    pub fn was_silent(&self) {
        self.connections.silent.add_one();
    }

    /// It did not take what there was for it.
    pub fn was_deaf(&self) {
        self.deaf().add_one();
    }

    /// Counts answers that it did not take.
    pub fn deaf(&self) -> &Counter {
        &self.connections.deaf
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.connections.open.fetch_sub(1, Ordering::Relaxed);
    }
}
