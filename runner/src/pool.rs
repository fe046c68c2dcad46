//! Pools of containers, one a version of a function, and who waits for them.
//!
//! Everything that decides who gets what stands behind one lock that is never held across an await: the warm path takes it
//! once to get a container and once to give it back. What follows from a decision (a launch, an end, a lease that is handed
//! over) is collected under the lock and done after it. What is decided is the policy crate's ([`stoker_policy::launch`],
//! [`stoker_policy::eviction`]): this module gathers the facts and carries out the answer.
//!
//! **Waiting.** A waiting call takes whichever comes first: a slot that frees up, or a launch, its own or another's. Functions
//! that have least are served first, and before them whoever has waited too long, so none starves; launches are capped, since
//! without that overload
//! becomes a storm of launches that nobody needs any more by the time they end. Once the longest waiting call has waited longer
//! than a launch takes and there is no room for it, functions behind it launch nothing until it has its turn. A call for which
//! nothing has moved for that long leaves: another runner may have room, and the fair place to wait is the balancer's queue.
//!
//! **Ahead.** Containers that serve once (`default`) are prepared ahead while others work, where that costs nobody anything.
//!
//! **Expected.** A function that is called in a rhythm slower than its idle timeout has a container launched just before its next call,
//! where there is room for that without evicting anyone ([`stoker_policy::prewarm`]).
//!
//! **Minimum.** Balancers say how many of a function's `min_containers` this runner shall keep ([`min_containers`]), ready or busy (for `default`:
//! prepared). They are launched when nobody waits and there is room without evicting anyone; one that ends is replaced; where a launch
//! failed it is tried again later, or by the next call. Their idle timeout does not end them. They are evicted only for a call, and only
//! when everything else that is idle would not make room for it; they come back when there is room again.
//!
//! **Secrets.** Containers that were launched with values that have been replaced end: at once where they are idle, else with their calls ([`rotate`]). So do those
//! of functions whose files were changed, where somebody says so.

mod drain;
mod fetch;
pub mod handover;
mod launch;
mod line;
mod member;
mod min_containers;
mod monitor;
mod pressure;
mod rotate;
mod version;
pub mod why;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stoker_core::function::{Digest, FunctionSpec};
use stoker_core::{CallId, ContainerId, Incarnation, Resources, Warmth};
use stoker_policy::launch::{Mean, cap};
use stoker_policy::shares::Apps;
use stoker_runtime::gate::Gate;
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::why::Ended;
use crate::container::state::{Event, State};
use crate::container::{Container, Launcher};
use crate::ledger::Ledger;
use crate::metrics::Meters;
use crate::observe::Observer;
use line::Given;
pub use line::{Acquired, Asker, Lease, Refused, Ticket};
use min_containers::Targets;
use version::{Version, count};

/// Given to a function between the request to end and the end, where nothing speaks against it.
const STOP_GRACE: Duration = Duration::from_secs(2);
/// The same where a call waits for its room.
const EVICT_GRACE: Duration = Duration::from_millis(100);
/// Versions remembered though they have no container.
const REMEMBERED: usize = 4096;

pub struct Pools {
    inner: Mutex<Inner>,
    pub ledger: Arc<Ledger>,
    /// Every call is inside from its offer to its outcome. Closed, the runner drains for good.
    pub gate: Gate,
    /// An operator wants no calls here for now.
    cordoned: AtomicBool,
    pub meters: Option<Arc<Meters>>,
    observer: Observer,
    pub launcher: Launcher,
    incarnation: Incarnation,
    freeze_after: Duration,
    next: AtomicU64,
    /// Something that matters to placement changed.
    pub changed: Arc<Notify>,
    /// A container more is there: less memory.
    grown: Notify,
    /// One with secrets is there that were not compared yet.
    uncompared: Notify,
    /// Launches, keepers, ends, and launches to come.
    tasks: TaskTracker,
    /// Launches are given up.
    stop: CancellationToken,
}

#[derive(Default)]
struct Inner {
    versions: HashMap<Digest, Version>,
    /// What balancers want to be kept ready.
    targets: Targets,
    /// Versions with less than their minimum.
    short: BTreeSet<Digest>,
    launching: u32,
    waiting: u32,
    /// What calls of all versions take.
    run: Mean,
    /// The sum of all versions' [moves](Version::moves).
    moves: u64,
    /// Calls that were served out of a line.
    turns: u64,
    /// Nothing is launched or prepared any more.
    stopping: bool,
}

/// What follows from a decision, done after the lock.
enum Action {
    Launch { digest: Digest, spec: Arc<FunctionSpec>, seq: u64, id: ContainerId, ahead: bool },
    Fetch { digest: Digest, spec: Arc<FunctionSpec> },
    Stop { digest: Digest, seq: u64, container: Arc<Container>, grace: Duration, why: Ended },
    Give { give: oneshot::Sender<Given>, given: Given },
}

impl Pools {
    pub fn new(
        ledger: Arc<Ledger>,
        launcher: Launcher,
        incarnation: Incarnation,
        freeze_after: Duration,
        observer: Observer,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            ledger,
            gate: Gate::default(),
            cordoned: AtomicBool::new(false),
            meters: observer.meters.clone(),
            observer,
            launcher,
            incarnation,
            freeze_after,
            next: AtomicU64::new(1),
            changed: Arc::new(Notify::new()),
            grown: Notify::new(),
            uncompared: Notify::new(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Launches that may run at once, for a function that would like one more.
    fn cap(&self, spec: &FunctionSpec) -> u32 {
        cap(&self.ledger.total(), &spec.ask())
    }

    /// Of a member that was taken.
    fn lease(
        self: &Arc<Self>,
        version: &mut Version,
        digest: Digest,
        seq: u64,
        call: CallId,
        cold: bool,
        fresh: bool,
    ) -> Option<Lease> {
        let member = version.members.get_mut(&seq)?;
        let container = member.container.clone()?;
        let (connection, why) = (member.connection(), member.why);
        container.log.begin(call);
        let (touched, done) = (None, false);
        Some(Lease {
            pools: self.clone(),
            container,
            digest,
            seq,
            call,
            connection,
            cold,
            why,
            fresh,
            touched,
            done,
        })
    }

    /// A call is over.
    fn release(self: &Arc<Self>, lease: &Lease, keep: bool, connection: Option<UnixStream>) -> Warmth {
        lease.container.log.end(lease.call);
        let mut actions = Vec::new();
        let mut inner = self.inner();
        let Some(version) = inner.versions.get_mut(&lease.digest) else { return Warmth::default() };
        let took = lease.touched.map(|touched| touched.elapsed());
        if let Some(took) = took {
            version.run.add(took);
        }
        version.moves += 1;
        let ends = version.give_back(lease.seq, keep, connection);
        inner.moves += 1;
        if let Some(took) = took {
            inner.run.add(took);
        }
        if let Some(why) = ends {
            // One that did nothing wrong may end in its own way.
            let grace = match why {
                Ended::Drained => STOP_GRACE,
                Ended::Evicted => EVICT_GRACE,
                _ => Duration::ZERO,
            };
            actions.extend(inner.stop(lease.digest, lease.seq, grace, why));
        }
        self.pump(&mut inner, &mut actions);
        self.refill(&mut inner, lease.digest, true, &mut actions);
        let warmth = inner.versions.get(&lease.digest).map(Version::warmth).unwrap_or_default();
        drop(inner);
        self.act(actions);
        self.changed.notify_one();
        warmth
    }

    fn act(self: &Arc<Self>, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Launch { digest, spec, seq, id, ahead } => {
                    let pools = self.clone();
                    self.tasks.spawn(async move { pools.launch(digest, spec, seq, id, ahead).await });
                }
                Action::Fetch { digest, spec } => {
                    let pools = self.clone();
                    self.tasks.spawn(async move { pools.fetch(digest, spec).await });
                }
                Action::Stop { digest, seq, container, grace, why } => {
                    if let Some(meters) = &self.meters {
                        meters.ended(why);
                    }
                    let pools = self.clone();
                    self.tasks.spawn(async move {
                        container.stop(grace).await;
                        drop(container);
                        pools.gone(digest, seq);
                    });
                }
                // A call that left meanwhile drops the lease, which gives it to the next.
                Action::Give { give, given } => _ = give.send(given),
            }
        }
    }

    /// A container has ended, and holds nothing any more.
    fn gone(self: &Arc<Self>, digest: Digest, seq: u64) {
        let mut actions = Vec::new();
        let mut inner = self.inner();
        let removed = inner.versions.get_mut(&digest).and_then(|version| version.members.remove(&seq));
        if let Some(mut member) = removed {
            member.step(Event::Ended);
            member.over.cancel();
        }
        inner.moved(&digest);
        self.pump(&mut inner, &mut actions);
        self.refill(&mut inner, digest, false, &mut actions);
        self.expect(&inner, digest);
        drop(inner);
        self.act(actions);
        self.changed.notify_one();
    }

    /// How warm a function is here.
    pub fn warmth(&self, digest: &Digest) -> Warmth {
        self.inner().versions.get(digest).map(Version::warmth).unwrap_or_default()
    }

    /// For the capacity record: what idle containers hold, calls that run, calls that wait, and each function.
    pub fn survey(&self) -> Survey {
        let inner = self.inner();
        let functions: BTreeMap<Digest, Warmth> = inner
            .versions
            .iter()
            .filter(|(_, v)| !v.members.is_empty() || !v.waiters.is_empty())
            .map(|(d, v)| (*d, v.warmth()))
            .collect();
        Survey {
            free: self.ledger.free(),
            reclaimable: inner.reclaimable(),
            in_flight: inner.versions.values().map(|v| v.busy).sum(),
            waiting: inner.waiting,
            functions,
            containers: match self.meters {
                Some(_) => {
                    inner.versions.values().flat_map(|v| v.members.values().map(|m| m.state)).collect()
                }
                None => Vec::new(),
            },
            used: match self.meters {
                Some(_) => {
                    let members = inner.versions.values().flat_map(|v| v.members.values());
                    let used = members.filter_map(|m| m.container.as_ref()?.used());
                    used.fold(0, |sum, used| sum.saturating_add(used.memory))
                }
                None => 0,
            },
        }
    }
}

/// What [`Pools::survey`] found.
pub struct Survey {
    pub free: Resources,
    pub reclaimable: Resources,
    pub in_flight: u32,
    pub waiting: u32,
    pub functions: BTreeMap<Digest, Warmth>,
    /// The state of each container, where somebody counts them.
    pub containers: Vec<State>,
    /// Memory that containers had when they were looked at last, where somebody counts.
    pub used: u64,
}

impl Inner {
    /// A call of this version came: whatever failed before, it is tried again.
    fn meet(&mut self, digest: Digest, spec: &Arc<FunctionSpec>) {
        let version = self.know(digest, spec);
        version.failures = 0;
        version.failing = false;
    }

    /// This version is known from now on, with the numbers that came last.
    fn know(&mut self, digest: Digest, spec: &Arc<FunctionSpec>) -> &mut Version {
        if !self.versions.contains_key(&digest) {
            self.forget();
        }
        let version = self.versions.entry(digest).or_insert_with(|| Version::new(spec.clone()));
        if !Arc::ptr_eq(&version.spec, spec) {
            let before = version.minimum();
            version.spec = spec.clone();
            version.gave_up = None;
            if version.minimum() < before {
                version.wake_keepers();
            }
        }
        version
    }

    /// Marks a member as ending, once. One that is still being launched has nothing to stop yet: its launch sees to it.
    fn stop(&mut self, digest: Digest, seq: u64, grace: Duration, why: Ended) -> Option<Action> {
        let version = self.versions.get_mut(&digest)?;
        let member = version.members.get_mut(&seq)?;
        let container = member.container.clone()?;
        if member.state == State::Stopping {
            return None;
        }
        member.ending();
        version.ready.retain(|s| *s != seq);
        version.left = Some(why);
        Some(Action::Stop { digest, seq, container, grace, why })
    }

    /// There may be room that was not there before.
    fn moved(&mut self, digest: &Digest) {
        self.moves += 1;
        if let Some(version) = self.versions.get_mut(digest) {
            version.moves += 1;
        }
    }

    /// What idle containers hold.
    fn reclaimable(&self) -> Resources {
        let mut sum = Resources::default();
        for version in self.versions.values() {
            let idle = version.idle().count();
            sum.memory = sum.memory.saturating_add(version.spec.memory.saturating_mul(idle as u64));
            sum.slots = sum.slots.saturating_add(count(idle));
        }
        sum
    }

    /// What apps have of the runner.
    fn apps(&self) -> Apps {
        let here = |version: &&Version| !version.members.is_empty() || !version.waiters.is_empty();
        self.versions.values().filter(here).map(Version::as_shared).collect()
    }

    /// Versions without containers and waiters keep what was measured only for a while: as long as they are of few.
    fn forget(&mut self) {
        if self.versions.len() > REMEMBERED {
            self.versions.retain(|_, v| !v.members.is_empty() || !v.waiters.is_empty() || v.kept > 0);
            let versions = &self.versions;
            self.short.retain(|digest| versions.contains_key(digest));
        }
    }
}
