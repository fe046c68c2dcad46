//! The runners: what they say of themselves, what this balancer saw of them, and one immutable list of them.
//!
//! One task follows the registry and opens and closes links; everybody else reads the list. A runner that left the registry is
//! kept as long as its link stands: the stream is the better witness.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use stoker_core::capacity::{Capacity, Warmth};
use stoker_core::function::Digest;
use stoker_core::machine::Machine as _;
use stoker_core::resources::{Ask, Resources};
use stoker_policy::placement::{self, Candidate};
use stoker_proto::{convert, v1};
use stoker_registry::Fleet as Listing;
use stoker_runtime::telemetry::Facts;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Channel;

use crate::directory::Known;
use crate::hash::QuickMap;
use crate::link;
use crate::link::session::Session;
use crate::link::state::{LinkEvent, LinkState};
use crate::observe::Observer;
use crate::panics::Panics;
use crate::queue::Queue;

/// A runner, as this balancer knows it.
pub struct Runner {
    pub name: String,
    pub address: String,
    /// What spans say of it.
    pub facts: Facts,
    key: u64,
    known_since: Instant,
    capacity: ArcSwap<(Capacity, Instant)>,
    pub lanes: Box<[Lane]>,
    turn: AtomicUsize,
    in_flight: Arc<AtomicU32>,
    observed: Mutex<Observed>,
    standing: watch::Sender<Standing>,
}

/// How a runner stands in the registry. One that is not listed is kept as long as a link to it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Listed,
    Unlisted,
    /// Given up, for good: one that is listed anew is another.
    GivenUp,
}

/// One link: a connection with its stream.
pub struct Lane {
    pub session: ArcSwapOption<Session>,
    /// The runner asked for no more offers here.
    draining: AtomicBool,
    pub channel: ArcSwapOption<Channel>,
    status: Mutex<(LinkState, String)>,
}

/// What this balancer saw. Changed only in the order of the runner's frames, so that a refusal never outlives the news that
/// came after it.
#[derive(Default)]
struct Observed {
    full_until: Option<Instant>,
    warm: QuickMap<Digest, (u32, Instant)>,
}

impl Observed {
    fn warm(&mut self, warmth: Option<&v1::Warmth>) {
        if let Some(Ok((digest, Warmth { idle, .. }))) = warmth.map(convert::warmth) {
            self.warm.insert(digest, (idle, Instant::now()));
        }
    }
}

/// Counts a call on a runner as long as it lives.
pub struct InFlight(Arc<AtomicU32>);

#[cfg(test)]
impl Default for InFlight {
    fn default() -> Self {
        Self(Arc::new(AtomicU32::new(1)))
    }
}

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
            Ok(next) => {
                *status = (next, reason.to_owned());
                self.draining.store(next == LinkState::Draining, Ordering::Relaxed);
            }
            Err(wrong) => tracing::error!(%wrong, "a link was moved against its table"),
        }
    }

    /// Whether the runner takes offers here.
    pub fn is_open(&self) -> bool {
        !self.draining.load(Ordering::Relaxed) && self.session.load().is_some()
    }
}

impl Runner {
    fn new(capacity: Capacity, lanes: usize, key: u64) -> Self {
        let now = Instant::now();
        let lane = || Lane {
            session: ArcSwapOption::empty(),
            draining: AtomicBool::new(false),
            channel: ArcSwapOption::empty(),
            status: Mutex::new((LinkState::Connecting, String::new())),
        };
        Self {
            name: capacity.runner.as_str().to_owned(),
            address: capacity.address.clone(),
            facts: crate::observe::of_runner(&capacity),
            key,
            known_since: now,
            capacity: ArcSwap::from_pointee((capacity, now)),
            lanes: (0..lanes.max(1)).map(|_| lane()).collect(),
            turn: AtomicUsize::new(0),
            in_flight: Arc::default(),
            observed: Mutex::default(),
            standing: watch::Sender::new(Standing::Listed),
        }
    }

    fn observed(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session to offer on; they take turns.
    pub fn session(&self) -> Option<Arc<Session>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let lanes = (0..self.lanes.len()).map(|i| &self.lanes[(turn + i) % self.lanes.len()]);
        lanes.filter(|lane| lane.is_open()).find_map(|lane| lane.session.load_full())
    }

    /// A connection, for what is asked beside the sessions.
    pub fn channel(&self) -> Option<Channel> {
        self.lanes.iter().find_map(|lane| lane.channel.load_full()).map(|channel| (*channel).clone())
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
        let (life, known_life) = (record.incarnation, known.0.incarnation);
        // A runner knows its own life; the registry may still tell of an earlier one, whose number is lower.
        if (life == known_life && known.0.sequence > record.sequence)
            || (!from_runner && life.0 < known_life.0)
        {
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

    /// A call ended there, and this is how warm its function is now.
    pub fn ended(&self, warmth: Option<&v1::Warmth>) {
        let mut observed = self.observed();
        observed.full_until = None;
        observed.warm(warmth);
    }

    /// It refused; full it is where it said so.
    pub fn refused(&self, full: bool, warmth: Option<&v1::Warmth>) {
        let mut observed = self.observed();
        if full {
            observed.full_until = Some(Instant::now() + placement::FULL_FOR);
        }
        observed.warm(warmth);
    }

    /// A call goes there: one idle container less, as far as we know.
    pub fn used(&self, function: &Digest) {
        if let Some((idle, _)) = self.observed().warm.get_mut(function) {
            *idle = idle.saturating_sub(1);
        }
    }

    /// What it could give to new containers.
    pub fn room(&self) -> Resources {
        let record = &self.capacity.load().0;
        record.free.checked_add(record.reclaimable).unwrap_or(record.total)
    }

    /// Whether it is large enough for such a container.
    pub fn could_hold(&self, ask: &Ask) -> bool {
        self.capacity.load().0.total.could_hold(ask)
    }

    /// Whether it may be asked at all for a call of `function`.
    pub fn may_take(&self, function: &Known) -> bool {
        self.lanes.iter().any(Lane::is_open)
            && placement::eligible(&self.capacity.load().0, &function.spec.ask())
    }

    fn candidate(&self, function: &Known, now: Instant) -> Option<Candidate> {
        if !self.may_take(function) {
            return None;
        }
        let observed = self.observed();
        let warm = match observed.warm.get(&function.digest) {
            Some((idle, at)) if now.saturating_duration_since(*at) < placement::HINT_TTL => *idle,
            _ => 0,
        };
        // A function that is known to be warm there is not held back by the refusal of another.
        let full = warm == 0 && observed.full_until.is_some_and(|until| now < until);
        let weight =
            placement::weight(&self.capacity.load().0, now.saturating_duration_since(self.known_since));
        let load = self.in_flight.load(Ordering::Relaxed);
        Some(Candidate { key: self.key, weight, warm, full, load })
    }

    /// Whether the registry lists it now.
    pub fn is_listed(&self) -> bool {
        *self.standing.borrow() == Standing::Listed
    }

    /// The registry lists it again, or still; `false` if it has been given up.
    fn list(&self) -> bool {
        self.standing.send_if_modified(|standing| {
            let back = *standing == Standing::Unlisted;
            if back {
                *standing = Standing::Listed;
            }
            back
        });
        self.is_listed()
    }

    fn unlist(&self) {
        self.standing.send_if_modified(|standing| {
            let gone = *standing == Standing::Listed;
            if gone {
                *standing = Standing::Unlisted;
            }
            gone
        });
    }

    /// Gives it up if nothing speaks for it any more: neither the registry nor a link. Says whether it is given up.
    pub fn give_up(&self) -> bool {
        let linked = self.lanes.iter().any(|lane| lane.session.load().is_some());
        self.standing.send_if_modified(|standing| {
            let over = *standing == Standing::Unlisted && !linked;
            if over {
                *standing = Standing::GivenUp;
            }
            over
        });
        *self.standing.borrow() == Standing::GivenUp
    }

    /// Returns when it is given up.
    pub async fn given_up(&self) {
        let mut standing = self.standing.subscribe();
        while !self.give_up() {
            // The sender is here.
            standing.changed().await.ok();
        }
    }

    /// How its links stand: the best of them, and what is wrong with it where something is.
    pub fn link(&self) -> (LinkState, String) {
        let best = |state: LinkState| match state {
            LinkState::Ready => 0,
            LinkState::Draining => 1,
            LinkState::Connecting => 2,
            LinkState::Lost => 3,
            LinkState::Closed => 4,
        };
        let lanes = self.lanes.iter().map(|lane| lane.status().clone());
        lanes.min_by_key(|(state, _)| best(*state)).unwrap_or((LinkState::Closed, String::new()))
    }

    /// For operators.
    pub fn describe(&self) -> v1::RunnerDescription {
        let capacity = self.capacity();
        let (state, reason) = self.link();
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

/// The fleet.
pub struct Fleet {
    runners: ArcSwap<Vec<Arc<Runner>>>,
    /// Counts what operators may want to see.
    version: watch::Sender<u64>,
    known: watch::Sender<bool>,
    pub queue: Queue<Arc<Runner>>,
    pub name: String,
    /// Definitions on a session before it is renewed.
    pub renew_after: usize,
    pub panics: Panics,
    calls: AtomicU64,
    observer: Arc<Observer>,
}

impl Fleet {
    pub fn new(
        name: String,
        queue: Queue<Arc<Runner>>,
        renew_after: usize,
        panics: Panics,
        observer: Arc<Observer>,
    ) -> Arc<Self> {
        Arc::new(Self {
            runners: ArcSwap::default(),
            version: watch::Sender::new(0),
            known: watch::Sender::new(false),
            queue,
            name,
            renew_after,
            panics,
            calls: AtomicU64::new(0),
            observer,
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

    /// Who is asked for a call of `function`, in this order.
    pub fn plan(&self, function: &Known) -> impl Iterator<Item = Arc<Runner>> + use<> {
        let now = Instant::now();
        let all = self.runners();
        let facts: Vec<_> = all
            .iter()
            .enumerate()
            .filter_map(|(at, runner)| Some((at, runner.candidate(function, now)?)))
            .collect();
        let seed = self.calls.fetch_add(1, Ordering::Relaxed);
        placement::plan(function.key, facts, seed).map(move |at| all[at].clone())
    }

    /// Something has changed that operators may want to see.
    pub fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    /// A link stands otherwise than before.
    pub fn relinked(&self) {
        self.observer.links(self.runners().iter().map(|runner| runner.link().0));
        self.changed();
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
                () = tokio::time::sleep(LOOK_PAUSE) => {}
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
        let mut linked: HashMap<String, Vec<Arc<Runner>>> = HashMap::new();
        for runner in links.iter() {
            let record = listing.runners.get(&runner.capacity().0.runner);
            if record.is_none_or(|record| record.address != runner.address) {
                runner.unlist();
            }
            // More than one where a runner has come back at another address.
            linked.entry(runner.name.clone()).or_default().push(runner.clone());
        }
        for record in listing.runners.values() {
            let is = |runner: &&Arc<Runner>| runner.address == record.address && runner.list();
            match linked.get(record.runner.as_str()).and_then(|lives| lives.iter().find(is)) {
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
        self.relinked();
    }
}

/// The registry's view is taken up at most so often: in a large fleet it changes all the time, and what matters at once comes on the links.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// How long a runner may take to open a connection or to welcome us.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
