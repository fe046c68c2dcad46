//! The runners: what they say of themselves, what this balancer saw of them, and one immutable list of them.
//!
//! One task follows the registry and opens and closes links; everybody else reads the list. A runner that left the registry is
//! kept as long as its link stands: the stream is the better witness.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use stoker_core::capacity::{Capacity, Warmth};
use stoker_core::function::Digest;
use stoker_core::machine::Machine as _;
use stoker_policy::placement::{self, Candidate};
use stoker_proto::{convert, v1};
use stoker_registry::Fleet as Listing;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;

use crate::directory::Known;
use crate::link;
use crate::link::session::Session;
use crate::link::state::{LinkEvent, LinkState};
use crate::queue::Queue;

/// A runner, as this balancer knows it.
pub struct Runner {
    pub name: String,
    pub address: String,
    key: u64,
    known_since: Instant,
    capacity: ArcSwap<(Capacity, Instant)>,
    pub lanes: Box<[Lane]>,
    turn: AtomicUsize,
    in_flight: Arc<AtomicU32>,
    observed: Mutex<Observed>,
    /// Cancelled when the registry does not list it any more: links end when they break.
    pub unlisted: CancellationToken,
}

/// One link: a connection with its stream.
pub struct Lane {
    pub session: ArcSwapOption<Session>,
    pub channel: ArcSwapOption<Channel>,
    status: Mutex<(LinkState, String)>,
}

#[derive(Default)]
struct Observed {
    full_until: Option<Instant>,
    warm: HashMap<Digest, (u32, Instant)>,
}

/// Counts a call on a runner as long as it lives.
pub struct InFlight(Arc<AtomicU32>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lane {
    fn status(&self) -> MutexGuard<'_, (LinkState, String)> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the link on; a move that its table does not have is a mistake of ours, which is logged and changes nothing.
    pub fn on(&self, event: LinkEvent, reason: &str) {
        let mut status = self.status();
        match status.0.on(event) {
            Ok(next) => *status = (next, reason.to_owned()),
            Err(wrong) => tracing::error!(%wrong, "a link was moved against its table"),
        }
    }
}

impl Runner {
    fn new(capacity: Capacity, lanes: usize, key: u64) -> Self {
        let now = Instant::now();
        let lane = || Lane {
            session: ArcSwapOption::empty(),
            channel: ArcSwapOption::empty(),
            status: Mutex::new((LinkState::Connecting, String::new())),
        };
        Self {
            name: capacity.runner.as_str().to_owned(),
            address: capacity.address.clone(),
            key,
            known_since: now,
            capacity: ArcSwap::from_pointee((capacity, now)),
            lanes: (0..lanes.max(1)).map(|_| lane()).collect(),
            turn: AtomicUsize::new(0),
            in_flight: Arc::default(),
            observed: Mutex::default(),
            unlisted: CancellationToken::new(),
        }
    }

    fn observed(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session to offer on; they take turns.
    pub fn session(&self) -> Option<Arc<Session>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        (0..self.lanes.len()).find_map(|i| self.lanes[(turn + i) % self.lanes.len()].session.load_full())
    }

    fn is_connected(&self) -> bool {
        self.lanes.iter().any(|lane| lane.session.load().is_some())
    }

    /// Counts a call here.
    pub fn enter(&self) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(self.in_flight.clone())
    }

    /// What it said last.
    pub fn capacity(&self) -> Arc<(Capacity, Instant)> {
        self.capacity.load_full()
    }

    /// Takes a record, unless a newer one of the same life is known.
    pub fn update(&self, record: Capacity, from_runner: bool) {
        let known = self.capacity.load();
        if known.0.incarnation == record.incarnation && known.0.sequence > record.sequence {
            return;
        }
        let now = Instant::now();
        if from_runner {
            let mut observed = self.observed();
            observed.full_until = None;
            observed.warm =
                record.functions.iter().map(|(digest, warmth)| (*digest, (warmth.idle, now))).collect();
        }
        self.capacity.store(Arc::new((record, now)));
    }

    /// It said how warm a function is.
    pub fn warmth(&self, warmth: &v1::Warmth) {
        if let Ok((digest, Warmth { idle, .. })) = convert::warmth(warmth) {
            let mut observed = self.observed();
            if idle > 0 {
                observed.full_until = None;
            }
            observed.warm.insert(digest, (idle, Instant::now()));
        }
    }

    /// It refused.
    pub fn refused(&self, function: &Digest) {
        let now = Instant::now();
        let mut observed = self.observed();
        observed.full_until = Some(now + placement::FULL_FOR);
        observed.warm.insert(*function, (0, now));
    }

    /// A call goes there: one idle container less, as far as we know.
    pub fn used(&self, function: &Digest) {
        if let Some((idle, _)) = self.observed().warm.get_mut(function) {
            *idle = idle.saturating_sub(1);
        }
    }

    /// A call ended there.
    pub fn ended(&self) {
        self.observed().full_until = None;
    }

    fn candidate(&self, function: &Known, now: Instant) -> Option<Candidate> {
        let capacity = self.capacity.load();
        if !self.is_connected()
            || !placement::eligible(&capacity.0, &function.spec.ask())
            || self.lanes.iter().any(|lane| lane.status().0 == LinkState::Draining)
        {
            return None;
        }
        let observed = self.observed();
        let warm = match observed.warm.get(&function.digest) {
            Some((idle, at)) if now.saturating_duration_since(*at) < placement::HINT_TTL => *idle,
            _ => 0,
        };
        // A function that is known to be warm there is not held back by the refusal of another.
        let full = warm == 0 && observed.full_until.is_some_and(|until| now < until);
        let weight = placement::weight(&capacity.0, now.saturating_duration_since(self.known_since));
        let load = self.in_flight.load(Ordering::Relaxed);
        Some(Candidate { key: self.key, weight, warm, full, load })
    }

    /// For operators.
    pub fn describe(&self) -> v1::RunnerDescription {
        let capacity = self.capacity();
        let best = |state: LinkState| match state {
            LinkState::Ready => 0,
            LinkState::Draining => 1,
            LinkState::Connecting => 2,
            LinkState::Lost => 3,
            LinkState::Closed => 4,
        };
        let (state, reason) = self
            .lanes
            .iter()
            .map(|lane| lane.status().clone())
            .min_by_key(|(state, _)| best(*state))
            .unwrap_or((LinkState::Closed, String::new()));
        let link = match state {
            LinkState::Connecting => v1::LinkState::Connecting,
            LinkState::Ready => v1::LinkState::Ready,
            LinkState::Draining => v1::LinkState::Draining,
            LinkState::Lost | LinkState::Closed => v1::LinkState::Lost,
        };
        v1::RunnerDescription {
            capacity: Some(convert::to_capacity(&capacity.0)),
            link: link.into(),
            reason,
            age: Some(convert::to_duration(capacity.1.elapsed())),
        }
    }
}

/// Runners that may be asked for a call, with what placement needs to know of them.
pub struct Candidates {
    pub runners: Vec<Arc<Runner>>,
    pub facts: Vec<Candidate>,
}

/// Whether a call can hope for a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hope {
    /// Some runner may take it, now or later.
    Some,
    /// There is no runner at all.
    Empty,
    /// There are runners, and none of them is large enough.
    TooSmall,
}

/// The fleet.
pub struct Fleet {
    runners: ArcSwap<Vec<Arc<Runner>>>,
    /// Counts what operators may want to see.
    version: watch::Sender<u64>,
    known: watch::Sender<bool>,
    pub queue: Queue,
    pub name: String,
    pub calls: AtomicU64,
}

impl Fleet {
    pub fn new(name: String, queue: Queue) -> Arc<Self> {
        Arc::new(Self {
            runners: ArcSwap::default(),
            version: watch::Sender::new(0),
            known: watch::Sender::new(false),
            queue,
            name,
            calls: AtomicU64::new(0),
        })
    }

    /// All runners, by name.
    pub fn runners(&self) -> Arc<Vec<Arc<Runner>>> {
        self.runners.load_full()
    }

    /// Ticks with every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Whether the registry has been read.
    pub fn known(&self) -> watch::Receiver<bool> {
        self.known.subscribe()
    }

    /// Who may be asked for a call of `function`.
    pub fn candidates(&self, function: &Known) -> Candidates {
        let now = Instant::now();
        let (runners, facts) = self
            .runners
            .load()
            .iter()
            .filter_map(|runner| runner.candidate(function, now).map(|facts| (runner.clone(), facts)))
            .unzip();
        Candidates { runners, facts }
    }

    /// Whether it makes sense to wait.
    pub fn hope(&self, function: &Known) -> Hope {
        let runners = self.runners.load();
        if runners.is_empty() {
            Hope::Empty
        } else if runners.iter().all(|r| !r.capacity.load().0.total.could_hold(&function.spec.ask())) {
            Hope::TooSmall
        } else {
            Hope::Some
        }
    }

    /// Something that matters to placement has changed.
    pub fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
        self.queue.changed();
    }

    /// Follows the registry until `stop`; links are tasks of `tasks`, and they end with `stop` too.
    pub async fn follow(
        self: Arc<Self>,
        mut listing: watch::Receiver<Arc<Listing>>,
        streams: usize,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) {
        // Links that ended say so here; at most one message each.
        let (gone, mut ended) = mpsc::channel::<Arc<Runner>>(64);
        let mut links: Vec<Arc<Runner>> = Vec::new();
        loop {
            let now = listing.borrow_and_update().clone();
            self.reconcile(&now, &mut links, streams, &tasks, &stop, &gone);
            if now.known {
                self.known.send_replace(true);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = listing.changed() => if changed.is_err() {
                    // The registry is gone with its process; what is known stays in use until we are stopped.
                    stop.cancelled().await;
                    return;
                },
                Some(runner) = ended.recv() => links.retain(|other| !Arc::ptr_eq(other, &runner)),
            }
        }
    }

    fn reconcile(
        self: &Arc<Self>,
        listing: &Listing,
        links: &mut Vec<Arc<Runner>>,
        streams: usize,
        tasks: &TaskTracker,
        stop: &CancellationToken,
        gone: &mpsc::Sender<Arc<Runner>>,
    ) {
        for runner in links.iter() {
            let listed = listing
                .runners
                .values()
                .any(|c| c.runner.as_str() == runner.name && c.address == runner.address);
            if !listed {
                runner.unlisted.cancel();
            }
        }
        for record in listing.runners.values() {
            let known = links.iter().find(|r| {
                r.name == record.runner.as_str() && r.address == record.address && !r.unlisted.is_cancelled()
            });
            match known {
                Some(runner) => runner.update(record.as_ref().clone(), false),
                None => {
                    let key = placement::key(record.runner.as_str().as_bytes());
                    let runner = Arc::new(Runner::new(record.as_ref().clone(), streams, key));
                    links.push(runner.clone());
                    tasks.spawn(link::run(runner, self.clone(), stop.clone(), gone.clone()));
                }
            }
        }
        let mut runners = links.clone();
        runners.sort_by(|a, b| a.name.cmp(&b.name));
        self.runners.store(Arc::new(runners));
        self.changed();
    }
}

/// How long a runner may take to open a connection or to welcome us.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
