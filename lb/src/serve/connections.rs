//! How many connections of clients there are at all ports together, how many there may be, and what became of those that came to nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit};
use stoker_core::error::{Code, Error, Retry};
use stoker_runtime::metrics::{Counter, Entered, Gauge, Labelled, Metrics};
use stoker_runtime::tls::Secured;

use crate::addresses::{Address, Addresses, Counted};
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
    addresses: Arc<Addresses>,
    patience: Duration,
    ports: Labelled<Gauge>,
    full: Counter,
    crowd: Counter,
    silent: Counter,
    deaf: Counter,
    system: Counter,
    handshakes: Counter,
}

impl Connections {
    /// Of which there may be `most`, one address so many of them as `addresses` says, and each may take nothing of what there is for it for so long.
    pub fn new(most: usize, addresses: Arc<Addresses>, patience: Duration, metrics: &Metrics) -> Arc<Self> {
        let failed = metrics.labelled(&CONNECTIONS_FAILED);
        Arc::new(Self {
            open: AtomicUsize::new(0),
            most,
            addresses,
            patience,
            ports: metrics.labelled(&CONNECTIONS),
            full: failed.with(&["full"]),
            crowd: failed.with(&["crowd"]),
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
    pub fn enter(&mut self, stream: &Secured) -> Option<ConnectionGuard> {
        // Who shows a certificate of ours is known, and has limits of its own.
        let remote = stream.remote().filter(|_| stream.peer().is_none());
        let address = remote.and_then(|remote| self.connections.addresses.find(remote.ip()));
        self.enter_from(address)
    }

    fn enter_from(&mut self, address: Option<Arc<Address>>) -> Option<ConnectionGuard> {
        let most = self.connections.most;
        // Taken first and given back when it was too much: two that race may both be turned away, never both let in.
        let before = self.connections.open.fetch_add(1, Ordering::Relaxed);
        let part = address.as_ref().map_or(most, |address| address.part(most));
        let counted = address.as_ref().map(Address::connection);
        let of_address = counted.as_ref().map_or(0, |(_, before)| *before);
        let beyond = match () {
            // What it can do something about is told before what it cannot.
            () if of_address >= part => Some(Beyond::Address(part)),
            () if before >= most => Some(Beyond::All),
            () => None,
        };
        let guard = ConnectionGuard {
            connections: self.connections.clone(),
            beyond,
            address,
            _counted: counted.map(|(counted, _)| counted),
            _open: self.open.enter(),
        };
        match beyond {
            None => {}
            Some(Beyond::All) => {
                self.connections.full.add_one();
                if self.may_speak() {
                    tracing::warn!(
                        most,
                        "there are as many connections as there may be (`max_connections`): others are turned away"
                    );
                }
            }
            Some(Beyond::Address(most)) => {
                self.connections.crowd.add_one();
                if self.may_speak() {
                    tracing::warn!(
                        most,
                        address = ?guard.address,
                        "one address has as many connections as one may have (`address_share`): others of it are turned away"
                    );
                }
            }
        }
        (before < most.saturating_add(TOLD) && of_address < part.saturating_add(TOLD)).then_some(guard)
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
    beyond: Option<Beyond>,
    address: Option<Arc<Address>>,
    _counted: Option<Counted>,
    _open: Entered,
}

/// What a connection is one too many of.
#[derive(Debug, Clone, Copy)]
enum Beyond {
    All,
    /// Of those from its address, which may have so many.
    Address(usize),
}

impl ConnectionGuard {
    /// Whether it is one too many.
    pub fn is_beyond(&self) -> bool {
        self.beyond.is_some()
    }

    /// With what it is counted, unless it is this machine's or its client is known.
    pub fn address(&self) -> Option<&Arc<Address>> {
        self.address.as_ref()
    }

    /// What it is told instead of being served.
    pub fn refusal(&self) -> Option<Error> {
        let (code, text) = match self.beyond? {
            Beyond::All => {
                let most = self.connections.most;
                let text = format!(
                    "this balancer has {most} connections of clients already, which is its limit: ask another one, or keep to fewer connections"
                );
                (Code::Overloaded, text)
            }
            Beyond::Address(most) => {
                let text = format!(
                    "this address has {most} connections here already, which is as many as callers that nobody knows may have from one \
                     (`address_share`): keep to fewer connections"
                );
                (Code::RateLimited, text)
            }
        };
        Some(Error::new(code, text).retry(Retry::After(AGAIN)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_its_share_of_connections() {
        let (metrics, addresses) = (Metrics::default(), Addresses::new(50));
        let all = Connections::new(6, addresses.clone(), Duration::from_secs(60), &metrics);
        let (mut grpc, mut http) = (all.at("grpc"), all.at("http"));
        let greedy = || addresses.find([192, 0, 2, 1].into());
        let mut held = vec![grpc.enter_from(greedy()), http.enter_from(greedy()), http.enter_from(greedy())];
        assert!(held.iter().all(|guard| guard.as_ref().is_some_and(|guard| guard.refusal().is_none())));
        // At whichever port. So many are told, and the rest is closed.
        for n in 0..TOLD {
            let guard = [&mut grpc, &mut http][n % 2].enter_from(greedy());
            let refusal = guard.as_ref().and_then(ConnectionGuard::refusal).expect("it has its share");
            assert_eq!(refusal.code, Code::RateLimited);
            assert!(refusal.message.contains("3 connections"), "{}", refusal.message);
            held.push(guard);
        }
        assert!(grpc.enter_from(greedy()).is_none());
        held.truncate(3);
        // There is as much for others.
        let others: Vec<_> =
            (2..5).map(|n| grpc.enter_from(addresses.find([192, 0, 2, n].into())).unwrap()).collect();
        assert!(others.iter().all(|guard| guard.refusal().is_none()));
        let refusal = http.enter_from(None).and_then(|guard| guard.refusal());
        assert_eq!(refusal.map(|error| error.code), Some(Code::Overloaded));
        held.clear();
        assert!(grpc.enter_from(greedy()).is_some_and(|guard| guard.refusal().is_none()));
        let text = metrics.text();
        assert!(text.contains(&format!(r#"connections_failed_total{{why="crowd"}} {}"#, TOLD + 1)), "{text}");
    }
}
