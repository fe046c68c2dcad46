//! Pools of containers, one a function version, and who waits for them.
//!
//! Everything that decides who gets what stands behind one lock that is never held across an await: the warm path takes it
//! once to get a container and once to give it back. What follows from a decision (a launch, an end, a lease that is handed
//! over) is collected under the lock and done after it.
//!
//! A waiting call takes whichever comes first: a slot that frees up, or a launch, its own or another's. Functions are served
//! in the order of their longest waiting call, so none starves; launches are capped, since without that overload becomes a
//! storm of launches that nobody needs any more by the time they end.

pub mod evict;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use stoker_core::function::{Digest, Format, FunctionSpec};
use stoker_core::machine::Machine as _;
use stoker_core::{CallId, ContainerId, Incarnation, Refusal, Resources, Warmth};
use stoker_sandbox::Driver;
use tokio::net::UnixStream;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::container::state::{Event, State};
use crate::container::{self, CONNECTION_IDLE, Container, LaunchError};
use crate::ledger::{Grant, Ledger};
use crate::logs::Logs;

/// What a function takes before anything was measured.
const GUESS_COLD: Duration = Duration::from_millis(200);
const GUESS_RUN: Duration = Duration::from_millis(50);
/// Bounds of the advice when to come again.
const RETRY: std::ops::RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_secs(5);
/// Calls of a function that may wait here though it has no container and no room: enough to get its turn.
const CLAIMS: usize = 2;
/// Given to a function between the request to end and the end, where nothing speaks against it.
const STOP_GRACE: Duration = Duration::from_secs(2);

pub struct Pools {
    inner: Mutex<Inner>,
    pub ledger: Arc<Ledger>,
    pub logs: Arc<Logs>,
    driver: Arc<dyn Driver>,
    incarnation: Incarnation,
    freeze_after: Duration,
    next: AtomicU64,
    /// Something that matters to placement changed.
    pub changed: Arc<Notify>,
    /// Launches, keepers and ends.
    pub tasks: TaskTracker,
}

#[derive(Default)]
struct Inner {
    pools: HashMap<Digest, Pool>,
    launching: usize,
    waiting: usize,
    draining: bool,
    /// Launches are not wanted any more either.
    stopping: bool,
}

struct Pool {
    spec: Arc<FunctionSpec>,
    members: HashMap<u64, Member>,
    /// Ready members with room for a call; the last one was used last.
    ready: Vec<u64>,
    launching: u32,
    waiters: VecDeque<Waiter>,
    busy: u32,
    uses: u64,
    run: Mean,
    cold: Mean,
}

struct Member {
    container: Option<Arc<Container>>,
    state: State,
    calls: u32,
    used: bool,
    /// Not trusted any more; ends with its last call.
    doomed: bool,
    since: Instant,
    connections: Vec<(UnixStream, Instant)>,
    /// Its keeper sleeps until it is idle.
    keeper: Arc<Notify>,
    over: CancellationToken,
    cause: Option<u64>,
    _standing: Grant,
    working: Option<Grant>,
}

struct Waiter {
    id: u64,
    since: Instant,
    /// A launch was started for it.
    caused: bool,
    /// It waited longer than a launch takes: no estimate holds it back any more.
    impatient: bool,
    call: CallId,
    give: oneshot::Sender<Result<Lease, LaunchError>>,
}

/// A mean that forgets.
#[derive(Default, Clone, Copy)]
struct Mean(Option<f64>);

impl Mean {
    fn add(&mut self, value: Duration) {
        let value = value.as_secs_f64();
        self.0 = Some(self.0.map_or(value, |old| old * 0.8 + value * 0.2));
    }
    fn or(self, guess: Duration) -> Duration {
        self.0.map_or(guess, Duration::from_secs_f64)
    }
}

impl Member {
    fn step(&mut self, event: Event) -> bool {
        match self.state.on(event) {
            Ok(state) => {
                self.state = state;
                true
            }
            Err(refused) => {
                tracing::warn!(%refused, "a container was asked for what it cannot do");
                false
            }
        }
    }
}

impl Pool {
    fn new(spec: Arc<FunctionSpec>) -> Self {
        Self {
            spec,
            members: HashMap::new(),
            ready: Vec::new(),
            launching: 0,
            waiters: VecDeque::new(),
            busy: 0,
            uses: 0,
            run: Mean::default(),
            cold: Mean::default(),
        }
    }

    fn per_container(&self) -> u32 {
        self.spec.concurrency.max(1)
    }

    fn warmth(&self) -> Warmth {
        let idle = self
            .ready
            .iter()
            .filter_map(|seq| self.members.get(seq))
            .map(|m| self.per_container().saturating_sub(m.calls))
            .sum();
        Warmth { idle, busy: self.busy, waiting: u32::try_from(self.waiters.len()).unwrap_or(u32::MAX) }
    }

    /// How long one more waiting call would wait for a slot that frees up.
    fn queue_time(&self) -> Duration {
        let running =
            u32::try_from(self.members.len()).unwrap_or(u32::MAX).saturating_sub(self.launching).max(1);
        let slots = running.saturating_mul(self.per_container());
        self.run.or(GUESS_RUN).mul_f64((self.waiters.len() + 1) as f64 / f64::from(slots))
    }

    /// Takes a ready member for a call, if there is CPU for it.
    fn take(&mut self, pools: &Arc<Pools>, call: CallId, cold: bool) -> Option<Lease> {
        let at = match self.per_container() {
            1 => self.ready.len().checked_sub(1)?,
            // Filling those that work keeps the others free to be frozen or evicted.
            _ => self
                .ready
                .iter()
                .rposition(|seq| self.members.get(seq).is_some_and(|m| m.calls > 0))
                .or(self.ready.len().checked_sub(1))?,
        };
        let seq = self.ready[at];
        let limit = self.per_container();
        let member = self.members.get_mut(&seq)?;
        if member.calls == 0 {
            member.working = Some(pools.ledger.take(self.spec.ask().working())?);
            if member.state == State::Frozen {
                member.step(Event::Thawed);
            }
            member.step(Event::Took);
        }
        member.calls += 1;
        if member.calls >= limit {
            self.ready.remove(at);
        }
        self.busy += 1;
        self.uses += 1;
        let container = member.container.clone()?;
        let mut connection = None;
        while let Some((stream, since)) = member.connections.pop() {
            if since.elapsed() <= CONNECTION_IDLE {
                connection = Some(stream);
                break;
            }
        }
        container.log.begin(call);
        Some(Lease {
            pools: pools.clone(),
            container,
            digest: None,
            seq,
            call,
            connection,
            cold,
            fresh: !std::mem::replace(&mut member.used, true),
            touched: false,
            begun: Instant::now(),
            done: false,
        })
    }
}

/// What follows from a decision, done after the lock.
enum Action {
    Launch { digest: Digest, spec: Arc<FunctionSpec>, seq: u64, id: ContainerId },
    Stop { digest: Digest, seq: u64, container: Arc<Container>, grace: Duration },
    Give { give: oneshot::Sender<Result<Lease, LaunchError>>, lease: Lease },
}

/// What came of asking for a container.
pub enum Acquired {
    Now(Lease),
    Wait { ticket: Ticket, expected: Duration },
    Refused { reason: Refusal, detail: String, retry_after: Option<Duration> },
}

impl Pools {
    pub fn new(
        ledger: Arc<Ledger>,
        logs: Arc<Logs>,
        driver: Arc<dyn Driver>,
        incarnation: Incarnation,
        freeze_after: Duration,
    ) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            ledger,
            logs,
            driver,
            incarnation,
            freeze_after,
            next: AtomicU64::new(1),
            changed: Arc::new(Notify::new()),
            tasks: TaskTracker::new(),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn launch_cap(&self) -> usize {
        (self.ledger.total().slots as usize / 4).max(2)
    }

    /// A container for a call: at once, later, or not here.
    pub fn acquire(
        self: &Arc<Self>,
        digest: Digest,
        spec: &Arc<FunctionSpec>,
        call: CallId,
        remaining: Duration,
    ) -> Acquired {
        let mut inner = self.inner();
        if inner.draining {
            let detail = "the runner is stopping".to_owned();
            return Acquired::Refused { reason: Refusal::Draining, detail, retry_after: None };
        }
        if !self.ledger.total().could_hold(&spec.ask()) {
            let detail = format!(
                "the function asks for {} and {}, more than this runner has",
                stoker_core::units::format_size(spec.memory),
                stoker_core::units::format_cpu(spec.cpu_millis),
            );
            return Acquired::Refused { reason: Refusal::TooLarge, detail, retry_after: None };
        }
        let cap = self.launch_cap();
        let line = (self.ledger.total().slots as usize * 4).max(16);
        let (waiting, launching) = (inner.waiting, inner.launching);
        let room = self.room(&inner, spec);
        let pool = inner.pools.entry(digest).or_insert_with(|| Pool::new(spec.clone()));
        if pool.waiters.is_empty()
            && let Some(mut lease) = pool.take(self, call, false)
        {
            lease.digest = Some(digest);
            let ahead = self.prepare_ahead(&mut inner, digest);
            drop(inner);
            self.act(ahead);
            self.changed.notify_one();
            return Acquired::Now(lease);
        }
        let (queue, cold) = (pool.queue_time(), pool.cold.or(GUESS_COLD));
        let may_launch = room && pool.members.len() < spec.max_containers as usize;
        let expected = match (pool.members.is_empty(), may_launch) {
            (_, true) => cold + cold.mul_f64((launching / cap) as f64),
            (false, false) => queue,
            (true, false) => queue.max(cold),
        };
        let worth = may_launch
            || (!pool.members.is_empty() && queue <= cold.max(pool.run.or(GUESS_RUN).mul_f64(2.0)))
            || (pool.members.is_empty() && pool.waiters.len() < CLAIMS);
        if waiting >= line || !worth || expected > remaining {
            let detail = match (waiting >= line, worth) {
                (true, _) => format!("{waiting} calls wait here already"),
                (_, false) => "no memory, CPU or slot is free, and the wait would be too long".to_owned(),
                _ => format!("a container is expected in {expected:?}, later than the caller waits"),
            };
            let retry_after = Some(expected.clamp(*RETRY.start(), *RETRY.end()));
            return Acquired::Refused { reason: Refusal::Full, detail, retry_after };
        }
        let (give, receive) = oneshot::channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        pool.waiters.push_back(Waiter {
            id,
            since: Instant::now(),
            caused: false,
            impatient: false,
            call,
            give,
        });
        inner.waiting += 1;
        let actions = self.pump(&mut inner);
        drop(inner);
        self.act(actions);
        self.changed.notify_one();
        Acquired::Wait {
            ticket: Ticket { pools: self.clone(), digest, id, receive, patience: cold },
            expected,
        }
    }

    /// Whether a container could be started now or after evictions.
    fn room(&self, inner: &Inner, spec: &FunctionSpec) -> bool {
        let (free, ask) = (self.ledger.free(), spec.ask());
        let idle = reclaimable(inner);
        free.memory.saturating_add(idle.memory) >= ask.memory
            && free.slots.saturating_add(idle.slots) > 0
            && free.cpu_millis >= ask.cpu_millis
    }

    /// Serves whoever waits, with what there is.
    fn pump(self: &Arc<Self>, inner: &mut Inner) -> Vec<Action> {
        let mut actions = Vec::new();
        if inner.waiting == 0 {
            return actions;
        }
        let mut hungry: Vec<(Instant, Digest)> =
            inner.pools.iter().filter_map(|(d, p)| Some((p.waiters.front()?.since, *d))).collect();
        hungry.sort_unstable();
        for (_, digest) in hungry {
            self.serve(inner, digest, &mut actions);
        }
        actions
    }

    fn serve(self: &Arc<Self>, inner: &mut Inner, digest: Digest, actions: &mut Vec<Action>) {
        let Some(pool) = inner.pools.get_mut(&digest) else { return };
        while let Some(waiter) = pool.waiters.front() {
            if waiter.give.is_closed() {
                pool.waiters.pop_front();
                inner.waiting -= 1;
                continue;
            }
            let Some(mut lease) = pool.take(self, waiter.call, false) else { break };
            let Some(waiter) = pool.waiters.pop_front() else { break };
            inner.waiting -= 1;
            lease.digest = Some(digest);
            lease.cold = waiter.caused && lease.fresh;
            actions.push(Action::Give { give: waiter.give, lease });
        }
        loop {
            let Some(pool) = inner.pools.get_mut(&digest) else { return };
            let covered = pool.launching as usize * pool.per_container() as usize;
            let wanting = pool.waiters.len() > covered;
            let patient = pool.waiters.front().is_some_and(|w| !w.impatient)
                && pool.members.values().any(|m| m.state == State::Busy)
                && pool.queue_time() < pool.cold.or(GUESS_COLD);
            let allowed =
                inner.launching < self.launch_cap() && pool.members.len() < pool.spec.max_containers as usize;
            if !wanting || patient || !allowed || inner.stopping || !pool.ready.is_empty() {
                return;
            }
            if !self.begin_launch(inner, digest, true, actions) {
                return;
            }
        }
    }

    /// Starts a launch if there is, or can be made, room.
    fn begin_launch(
        self: &Arc<Self>,
        inner: &mut Inner,
        digest: Digest,
        evict: bool,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(spec) = inner.pools.get(&digest).map(|p| p.spec.clone()) else { return false };
        let ask = spec.ask();
        let Some(working) = self.ledger.take(ask.working()) else { return false };
        let Some(standing) = self.ledger.take(ask.standing()) else {
            if evict {
                self.make_room(inner, digest, ask.standing(), actions);
            }
            return false;
        };
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let id = ContainerId::new(self.incarnation, seq);
        let Some(pool) = inner.pools.get_mut(&digest) else { return false };
        let cause = pool.waiters.iter_mut().find(|w| !w.caused).map(|w| {
            w.caused = true;
            w.id
        });
        pool.members.insert(
            seq,
            Member {
                container: None,
                state: State::Creating,
                calls: 0,
                used: false,
                doomed: false,
                since: Instant::now(),
                connections: Vec::new(),
                keeper: Arc::new(Notify::new()),
                over: CancellationToken::new(),
                cause,
                _standing: standing,
                working: Some(working),
            },
        );
        pool.launching += 1;
        inner.launching += 1;
        actions.push(Action::Launch { digest, spec, seq, id });
        true
    }

    /// Ends idle containers of others until `need` fits, unless enough are ending already.
    fn make_room(&self, inner: &mut Inner, own: Digest, need: Resources, actions: &mut Vec<Action>) {
        let mut free = self.ledger.free();
        let mut candidates = Vec::new();
        for (digest, pool) in &inner.pools {
            for member in pool.members.values().filter(|m| m.state == State::Stopping) {
                free.memory = free.memory.saturating_add(pool.spec.memory);
                free.slots = free.slots.saturating_add(1);
                _ = member;
            }
            if *digest == own {
                continue;
            }
            let idle = pool.ready.iter().rev().filter(|s| pool.members.get(s).is_some_and(|m| m.calls == 0));
            for (rank, seq) in idle.enumerate() {
                candidates.push(evict::Candidate {
                    key: (*digest, *seq),
                    uses: pool.uses,
                    rebuild: pool.cold.or(GUESS_COLD),
                    memory: pool.spec.memory,
                    rank,
                    idle: pool.members.get(seq).map_or(Duration::ZERO, |m| m.since.elapsed()),
                });
            }
        }
        let memory = need.memory.saturating_sub(free.memory);
        let slots = need.slots.saturating_sub(free.slots);
        if memory == 0 && slots == 0 {
            return;
        }
        for (digest, seq) in evict::victims(candidates, memory, slots) {
            actions.extend(stop(inner, digest, seq, STOP_GRACE));
        }
    }

    /// `default` containers serve once: while one works, the next is prepared, if that costs nobody anything.
    fn prepare_ahead(self: &Arc<Self>, inner: &mut Inner, digest: Digest) -> Vec<Action> {
        let mut actions = Vec::new();
        let (cap, line) = (self.launch_cap(), inner.waiting);
        if inner.draining || inner.launching >= cap || line > 0 {
            return actions;
        }
        let Some(pool) = inner.pools.get(&digest).filter(|p| p.spec.format == Format::Default) else {
            return actions;
        };
        let wanted = (pool.busy as usize / 2).clamp(1, cap);
        let there = pool.ready.len() + pool.launching as usize;
        let allowed = pool.members.len() < pool.spec.max_containers as usize;
        if there < wanted && allowed {
            self.begin_launch(inner, digest, false, &mut actions);
        }
        actions
    }

    fn act(self: &Arc<Self>, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Launch { digest, spec, seq, id } => {
                    let pools = self.clone();
                    self.tasks.spawn(async move { pools.launch(digest, spec, seq, id).await });
                }
                Action::Stop { digest, seq, container, grace } => {
                    let pools = self.clone();
                    self.tasks.spawn(async move {
                        container.stop(grace).await;
                        drop(container);
                        pools.gone(digest, seq);
                    });
                }
                // A call that left meanwhile drops the lease, which gives it to the next.
                Action::Give { give, lease } => _ = give.send(Ok(lease)),
            }
        }
    }

    async fn launch(self: Arc<Self>, digest: Digest, spec: Arc<FunctionSpec>, seq: u64, id: ContainerId) {
        let begun = Instant::now();
        match container::launch(&*self.driver, &self.logs, id, spec).await {
            Ok((container, connection)) => {
                self.launched(digest, seq, Arc::new(container), connection, begun.elapsed());
            }
            Err(error) => self.failed(digest, seq, error),
        }
        self.changed.notify_one();
    }

    fn launched(
        self: &Arc<Self>,
        digest: Digest,
        seq: u64,
        container: Arc<Container>,
        connection: Option<UnixStream>,
        took: Duration,
    ) {
        let mut inner = self.inner();
        inner.launching -= 1;
        let stopping = inner.stopping;
        let Some(pool) = inner.pools.get_mut(&digest) else { return };
        pool.launching -= 1;
        pool.cold.add(took);
        let Some(member) = pool.members.get_mut(&seq) else { return };
        member.step(Event::Created);
        member.step(Event::Ready);
        member.working = None;
        member.since = Instant::now();
        member.container = Some(container.clone());
        member.connections.extend(connection.map(|c| (c, Instant::now())));
        let (keeper, over) = (member.keeper.clone(), member.over.clone());
        pool.ready.push(seq);
        let mut actions = Vec::new();
        if stopping {
            actions.extend(stop(&mut inner, digest, seq, STOP_GRACE));
        } else {
            let pools = self.clone();
            self.tasks.spawn(async move { pools.keep(digest, seq, container, keeper, over).await });
            actions = self.pump(&mut inner);
            actions.extend(self.prepare_ahead(&mut inner, digest));
        }
        drop(inner);
        self.act(actions);
    }

    fn failed(self: &Arc<Self>, digest: Digest, seq: u64, error: LaunchError) {
        let mut inner = self.inner();
        inner.launching -= 1;
        let mut told = None;
        if let Some(pool) = inner.pools.get_mut(&digest) {
            pool.launching -= 1;
            let cause = pool.members.remove(&seq).and_then(|m| m.cause);
            let at = cause.and_then(|id| pool.waiters.iter().position(|w| w.id == id));
            told = at.and_then(|at| pool.waiters.remove(at));
        }
        if told.is_some() {
            inner.waiting -= 1;
        }
        let actions = self.pump(&mut inner);
        drop(inner);
        tracing::info!(?error, "a container could not be launched");
        if let Some(waiter) = told {
            _ = waiter.give.send(Err(error));
        }
        self.act(actions);
    }

    fn gone(self: &Arc<Self>, digest: Digest, seq: u64) {
        let mut inner = self.inner();
        let removed = inner.pools.get_mut(&digest).and_then(|pool| pool.members.remove(&seq));
        if let Some(mut member) = removed {
            member.step(Event::Ended);
            member.over.cancel();
        }
        let actions = self.pump(&mut inner);
        // A pool without containers and waiters keeps what was measured only for a while: as long as it is one of few.
        if inner.pools.len() > 4096 {
            inner.pools.retain(|_, pool| !pool.members.is_empty() || !pool.waiters.is_empty());
        }
        drop(inner);
        self.act(actions);
        self.changed.notify_one();
    }

    /// The task beside a ready container: freezes it when it is idle, ends it when it is idle too long, notices when it
    /// ends by itself. Ends with the container.
    async fn keep(
        self: Arc<Self>,
        digest: Digest,
        seq: u64,
        container: Arc<Container>,
        keeper: Arc<Notify>,
        over: CancellationToken,
    ) {
        let freezes = self.driver.describe().freezes && container.spec.format.is_hot();
        let mut frozen_since = None;
        loop {
            let idle_since = match self.inner().pools.get(&digest).and_then(|p| p.members.get(&seq)) {
                None => return,
                Some(m) if m.calls == 0 => Some(m.since),
                Some(_) => None,
            };
            let due = idle_since.map(|since| match freezes && frozen_since != Some(since) {
                true => (since + self.freeze_after.min(container.spec.idle_timeout()), since),
                false => (since + container.spec.idle_timeout(), since),
            });
            let timer = async {
                match due {
                    Some((at, _)) => tokio::time::sleep_until(at.into()).await,
                    // Busy: whoever gives it back says so.
                    None => keeper.notified().await,
                }
            };
            tokio::select! {
                () = over.cancelled() => return,
                exit = container.wait() => {
                    tracing::info!(container = %container.id, ?exit, "a container ended by itself");
                    self.end(digest, seq, Duration::ZERO, |_| true);
                    return;
                }
                () = timer => {}
            }
            let Some((at, since)) = due else { continue };
            if Instant::now() < at {
                continue;
            }
            let idle = |m: &Member| m.calls == 0 && m.since == since;
            if since.elapsed() >= container.spec.idle_timeout() {
                if self.end(digest, seq, STOP_GRACE, idle) {
                    return;
                }
            } else if freezes && frozen_since != Some(since) {
                let frozen = container
                    .freeze(|| {
                        let mut inner = self.inner();
                        let member = inner.pools.get_mut(&digest).and_then(|p| p.members.get_mut(&seq));
                        member.filter(|m| idle(m)).is_some_and(|m| m.step(Event::Froze))
                    })
                    .await;
                match frozen {
                    Ok(true) => frozen_since = Some(since),
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(container = %container.id, %error, "an idle container could not be frozen");
                        self.end(digest, seq, Duration::ZERO, |_| true);
                        return;
                    }
                }
            }
        }
    }

    /// Ends a container if it is as `when` says.
    fn end(
        self: &Arc<Self>,
        digest: Digest,
        seq: u64,
        grace: Duration,
        when: impl FnOnce(&Member) -> bool,
    ) -> bool {
        let mut inner = self.inner();
        let fits = inner.pools.get(&digest).and_then(|p| p.members.get(&seq)).is_some_and(when);
        let action = if fits { stop(&mut inner, digest, seq, grace) } else { None };
        drop(inner);
        self.act(action.into_iter().collect());
        self.changed.notify_one();
        fits
    }

    /// No estimate holds this waiter back any more.
    fn impatient(self: &Arc<Self>, digest: Digest, id: u64) {
        let mut inner = self.inner();
        let waiter = inner.pools.get_mut(&digest).and_then(|p| p.waiters.iter_mut().find(|w| w.id == id));
        if let Some(waiter) = waiter {
            waiter.impatient = true;
        }
        let actions = self.pump(&mut inner);
        drop(inner);
        self.act(actions);
    }

    /// A call is over.
    fn release(self: &Arc<Self>, lease: &mut Lease, keep: bool, connection: Option<UnixStream>) -> Warmth {
        lease.container.log.end(lease.call);
        let Some(digest) = lease.digest else { return Warmth::default() };
        let mut inner = self.inner();
        let mut actions = Vec::new();
        let Some(pool) = inner.pools.get_mut(&digest) else { return Warmth::default() };
        pool.busy -= 1;
        if lease.touched {
            pool.run.add(lease.begun.elapsed());
        }
        let limit = pool.per_container();
        let mut stopping = None;
        if let Some(member) = pool.members.get_mut(&lease.seq) {
            let full = member.calls >= limit;
            member.calls -= 1;
            if member.calls == 0 {
                member.working = None;
                member.since = Instant::now();
            }
            member.doomed |= !keep;
            if member.state == State::Busy && member.doomed {
                pool.ready.retain(|s| *s != lease.seq);
                // Other calls in it are not to blame.
                stopping = (member.calls == 0).then_some(lease.seq);
            } else if member.state == State::Busy {
                member.connections.extend(connection.map(|c| (c, Instant::now())));
                if full {
                    pool.ready.push(lease.seq);
                }
                if member.calls == 0 {
                    member.step(Event::Freed);
                    member.keeper.notify_one();
                }
            }
        }
        if let Some(seq) = stopping {
            actions.extend(stop(&mut inner, digest, seq, Duration::ZERO));
        }
        actions.extend(self.pump(&mut inner));
        actions.extend(self.prepare_ahead(&mut inner, digest));
        let warmth = inner.pools.get(&digest).map(Pool::warmth).unwrap_or_default();
        drop(inner);
        self.act(actions);
        self.changed.notify_one();
        warmth
    }

    /// How warm a function is here.
    pub fn warmth(&self, digest: &Digest) -> Warmth {
        self.inner().pools.get(digest).map(Pool::warmth).unwrap_or_default()
    }

    /// For the capacity record: what idle containers hold, calls that run, calls that wait, and each function.
    pub fn survey(&self) -> Survey {
        let inner = self.inner();
        let functions: BTreeMap<Digest, Warmth> = inner
            .pools
            .iter()
            .filter(|(_, p)| !p.members.is_empty() || !p.waiters.is_empty())
            .map(|(d, p)| (*d, p.warmth()))
            .collect();
        Survey {
            reclaimable: reclaimable(&inner),
            in_flight: inner.pools.values().map(|p| p.busy).sum(),
            waiting: u32::try_from(inner.waiting).unwrap_or(u32::MAX),
            draining: inner.draining,
            functions,
        }
    }

    /// Refuses everything from now on; what runs and waits goes on.
    pub fn drain(&self) {
        self.inner().draining = true;
        self.changed.notify_one();
    }

    /// Ends every container without waiting for it.
    pub fn abandon(self: &Arc<Self>) {
        let mut inner = self.inner();
        (inner.draining, inner.stopping) = (true, true);
        let all: Vec<(Digest, u64)> =
            inner.pools.iter().flat_map(|(d, p)| p.members.keys().map(|seq| (*d, *seq))).collect();
        let actions =
            all.into_iter().filter_map(|(d, seq)| stop(&mut inner, d, seq, Duration::ZERO)).collect();
        drop(inner);
        self.act(actions);
    }

    /// Ends every container: idle ones first, then the rest. Returns when nothing is left.
    pub async fn stop_all(self: &Arc<Self>) {
        for idle_first in [true, false] {
            let mut inner = self.inner();
            (inner.draining, inner.stopping) = (true, true);
            let all: Vec<(Digest, u64)> = inner
                .pools
                .iter()
                .flat_map(|(d, p)| p.members.iter().map(|(seq, m)| (*d, *seq, m.calls)))
                .filter(|(.., calls)| !idle_first || *calls == 0)
                .map(|(digest, seq, _)| (digest, seq))
                .collect();
            let grace = if idle_first { STOP_GRACE } else { Duration::ZERO };
            let actions = all.into_iter().filter_map(|(d, seq)| stop(&mut inner, d, seq, grace)).collect();
            drop(inner);
            self.act(actions);
        }
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// What [`Pools::survey`] found.
pub struct Survey {
    pub reclaimable: Resources,
    pub in_flight: u32,
    pub waiting: u32,
    pub draining: bool,
    pub functions: BTreeMap<Digest, Warmth>,
}

fn reclaimable(inner: &Inner) -> Resources {
    let mut sum = Resources::default();
    for pool in inner.pools.values() {
        let idle = pool.ready.iter().filter(|s| pool.members.get(s).is_some_and(|m| m.calls == 0)).count();
        sum.memory = sum.memory.saturating_add(pool.spec.memory.saturating_mul(idle as u64));
        sum.slots = sum.slots.saturating_add(u32::try_from(idle).unwrap_or(u32::MAX));
    }
    sum
}

/// Marks a member as ending, once. One that is still being launched has nothing to stop yet: its launch sees to it.
fn stop(inner: &mut Inner, digest: Digest, seq: u64, grace: Duration) -> Option<Action> {
    let pool = inner.pools.get_mut(&digest)?;
    let member = pool.members.get_mut(&seq)?;
    let container = member.container.clone()?;
    if member.state == State::Stopping {
        return None;
    }
    member.step(Event::Stop);
    member.connections.clear();
    pool.ready.retain(|s| *s != seq);
    Some(Action::Stop { digest, seq, container, grace })
}

/// A place in the line. Dropping it leaves the line.
pub struct Ticket {
    pools: Arc<Pools>,
    digest: Digest,
    id: u64,
    receive: oneshot::Receiver<Result<Lease, LaunchError>>,
    patience: Duration,
}

impl Ticket {
    /// Until there is a container, or the launch that this call caused failed.
    pub async fn wait(mut self) -> Result<Lease, LaunchError> {
        let received = tokio::select! {
            received = &mut self.receive => received,
            () = tokio::time::sleep(self.patience) => {
                self.pools.impatient(self.digest, self.id);
                (&mut self.receive).await
            }
        };
        received.unwrap_or_else(|_| Err(LaunchError::Platform("the runner is stopping".to_owned())))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inner = self.pools.inner();
        let Some(pool) = inner.pools.get_mut(&self.digest) else { return };
        if let Some(at) = pool.waiters.iter().position(|w| w.id == self.id) {
            let left = pool.waiters.remove(at);
            inner.waiting -= 1;
            drop(inner);
            drop(left);
        }
    }
}

/// A slot in a container, held for one call. Dropping it without [`Lease::finish`] ends the container
/// if the call had [touched](Lease::touch) it: nobody knows what it left behind.
pub struct Lease {
    pools: Arc<Pools>,
    pub container: Arc<Container>,
    digest: Option<Digest>,
    seq: u64,
    call: CallId,
    /// A connection from an earlier call, if one is fresh.
    pub connection: Option<UnixStream>,
    /// The call waited for a launch.
    pub cold: bool,
    begun: Instant,
    /// No call ran in the container before.
    fresh: bool,
    touched: bool,
    done: bool,
}

impl Lease {
    /// From here on the function may see something of the call.
    pub fn touch(&mut self) {
        self.touched = true;
    }

    /// The call is over; `keep` says whether the container takes another.
    pub fn finish(mut self, keep: bool, connection: Option<UnixStream>) -> Warmth {
        self.done = true;
        let pools = self.pools.clone();
        pools.release(&mut self, keep, connection)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.done {
            self.done = true;
            let (pools, keep) = (self.pools.clone(), !self.touched);
            let connection = self.connection.take().filter(|_| keep);
            pools.release(self, keep, connection);
        }
    }
}
