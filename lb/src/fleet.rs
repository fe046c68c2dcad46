//! The runners: what they say of themselves, what this balancer saw of them, and one immutable list of them.
//!
//! One task follows the registry and opens and closes links; everybody else reads the list. A runner that left the registry is
//! kept as long as its link stands: the stream is the better witness.

mod runner;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use stoker_core::function::Digest;
use stoker_core::ids::CallId;
use stoker_policy::board::{self, Board};
use stoker_registry::Fleet as Listing;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::runner::{InFlight, Link, Runner};
use crate::directory::Known;
use crate::explain::Census;
use crate::link;
use crate::link::dial::Dial;
use crate::observe::Observer;
use crate::panics::Panics;
use crate::queue::Queue;
use crate::reoffer::Reoffers;
use crate::scaling::Wanted;

/// A version of a function, as the board knows it: digests are hashes already.
fn version(digest: &Digest) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = digest.0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// What a call of a function needs, as the board knows it.
fn wanted(function: &Known) -> board::Wanted {
    board::Wanted { function: function.key, version: version(&function.digest), ask: function.spec.ask() }
}

/// The fleet.
pub struct Fleet {
    runners: ArcSwap<Vec<Arc<Runner>>>,
    board: Arc<Mutex<Board<Arc<Runner>>>>,
    /// Counts what operators may want to see.
    version: watch::Sender<u64>,
    known: watch::Sender<bool>,
    pub queue: Queue<Arc<Runner>>,
    /// Calls that wait at a runner and would rather start at another.
    pub reoffers: Reoffers<Runner>,
    /// When a large fleet was counted last.
    counted: Mutex<Option<Instant>>,
    /// Calls that came when there was no runner at all.
    nobody: AtomicU64,
    /// Calls of ours that ended, and the microseconds that they ran.
    ended: AtomicU64,
    ran: AtomicU64,
    /// How many runners each zone should have.
    pub wanted: ArcSwap<Wanted>,
    pub name: String,
    /// Of this life of the balancer, so that runners know its sessions as those of one.
    pub instance: u64,
    /// How runners are reached.
    pub dial: Dial,
    /// Definitions on a session before it is renewed.
    pub renew_after: usize,
    pub panics: Panics,
    calls: AtomicU64,
    observer: Arc<Observer>,
}

impl Fleet {
    pub fn new(
        name: String,
        dial: Dial,
        queue: Queue<Arc<Runner>>,
        renew_after: usize,
        panics: Panics,
        observer: Arc<Observer>,
    ) -> Arc<Self> {
        Arc::new(Self {
            runners: ArcSwap::default(),
            board: Arc::default(),
            version: watch::Sender::new(0),
            known: watch::Sender::new(false),
            queue,
            reoffers: Reoffers::default(),
            counted: Mutex::default(),
            nobody: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            ran: AtomicU64::new(0),
            wanted: ArcSwap::default(),
            instance: some_number(),
            name,
            dial,
            renew_after,
            panics,
            calls: AtomicU64::new(0),
            observer,
        })
    }

    /// A call ended that ran for so many microseconds.
    pub fn ran(&self, micros: u64) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        self.ran.fetch_add(micros, Ordering::Relaxed);
    }

    /// Calls of ours that ran, and for how long all together, since the balancer started.
    pub fn run(&self) -> (u64, Duration) {
        (self.ended.load(Ordering::Relaxed), Duration::from_micros(self.ran.load(Ordering::Relaxed)))
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

    /// Who is asked for a call of `function`, in this order, and why: each by what is known when it is asked for.
    pub fn plan(&self, function: &Known) -> impl Iterator<Item = (Arc<Runner>, board::Why)> + use<> {
        let mut plan = board::Plan::new(wanted(function), self.calls.fetch_add(1, Ordering::Relaxed));
        let board = self.board.clone();
        std::iter::from_fn(move || {
            let mut board = board.lock().unwrap_or_else(PoisonError::into_inner);
            plan.next(&mut board, Instant::now()).map(|choice| (choice.peer, choice.why))
        })
    }

    /// Who stands first in the order of a function's runners, into `ranked`.
    pub fn ranking(&self, function: &Known, ranked: &mut Vec<Arc<Runner>>) {
        ranked.clear();
        let mut board = self.board.lock().unwrap_or_else(PoisonError::into_inner);
        ranked.extend(board.ranking(&wanted(function)).cloned());
    }

    /// Calls that left without a runner so far.
    pub fn unserved(&self) -> u64 {
        self.queue.left_all() + self.nobody.load(Ordering::Relaxed)
    }

    /// A call left since there is no runner.
    pub fn nobody(&self) {
        self.nobody.fetch_add(1, Ordering::Relaxed);
    }

    /// How the fleet stands for a function. In a large fleet it is counted only now and then.
    pub fn census(&self, function: &Known) -> Option<Census> {
        let runners = self.runners.load();
        let now = Instant::now();
        if runners.len() > SMALL_FLEET {
            let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
            if counted.is_some_and(|last| now.saturating_duration_since(last) < COUNT_PAUSE) {
                return None;
            }
            *counted = Some(now);
        }
        let mut census = Census::default();
        for runner in runners.iter() {
            census.runners += 1;
            census.open += u32::from(runner.may_take(function));
            if let Some(warmth) = runner.capacity().0.functions.get(&function.digest) {
                census.idle += warmth.idle;
                census.busy += warmth.busy;
                census.waiting += warmth.waiting;
            }
        }
        Some(census)
    }

    /// Wakes those who wait for what this runner says of itself now; one `may_wait` there in any case. Says whether anybody waited for that.
    pub fn room(&self, runner: &Arc<Runner>, may_wait: bool) -> bool {
        let record = runner.capacity();
        let busy = |function: &Digest| record.0.functions.get(function).map_or(0, |warmth| warmth.busy);
        self.queue.room(runner, runner.room(), busy, may_wait)
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
                Some(runner) = ended.recv() => {
                    links.retain(|other| !Arc::ptr_eq(other, &runner));
                    runner.board().leave(runner.seat);
                }
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
                Some(runner) => {
                    let news = runner.is_news(record);
                    runner.update(record.as_ref().clone(), false);
                    // Most of the time the link has said it before.
                    if news {
                        self.room(runner, !runner.has_ours());
                    }
                }
                None => {
                    let runner = Runner::join(&self.board, record.as_ref().clone(), streams);
                    links.push(runner.clone());
                    tasks.spawn(link::run(runner, self.clone(), stop.clone(), gone.clone()));
                }
            }
        }
        let mut runners = links.clone();
        runners.sort_by(|a, b| a.name.cmp(&b.name));
        for named in runners.chunk_by(|a, b| a.name == b.name) {
            for runner in named {
                let other = named.iter().find(|other| !Arc::ptr_eq(other, runner));
                runner.beside(other.map(AsRef::as_ref));
            }
        }
        self.runners.store(Arc::new(runners));
        self.relinked();
    }
}

impl Drop for Fleet {
    /// Runners know the board that they are on: without this they would keep each other.
    fn drop(&mut self) {
        *self.board.lock().unwrap_or_else(PoisonError::into_inner) = Board::default();
    }
}

/// So many runners are counted at any time. It takes 0.1 µs each; more of them are counted at most so often.
const SMALL_FLEET: usize = 64;
const COUNT_PAUSE: Duration = Duration::from_millis(5);

/// One that no other balancer has.
fn some_number() -> u64 {
    let [.., a, b, c, d, e, f, g, h] = *CallId::new().as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h]).max(1)
}

/// The registry's view is taken up at most so often: in a large fleet it changes all the time, and what matters at once comes on the links.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// How long a runner may take to open a connection or to welcome us.
pub const HANDSHAKE: Duration = Duration::from_secs(5);
