//! How containers come: for those who wait, ahead of need, and what becomes of a launch.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use stoker_core::ContainerId;
use stoker_core::error::Blame;
use stoker_core::function::{Digest, FunctionSpec};
use stoker_policy::eviction::{Idle, Need, spoken_for, victims};
use stoker_policy::launch::{Decision, decide};
use stoker_policy::prewarm::Expected;
use stoker_policy::shares::Taking;
use tokio::net::UnixStream;

use super::line::Waiter;
use super::member::Member;
use super::rotate::DRAINED;
use super::version::Version;
use super::why::{Ended, cold};
use super::{Action, EVICT_GRACE, Inner, Pools};
use crate::container::state::Event;
use crate::container::{Container, LaunchError};

/// At whose cost a container is launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cost {
    /// Nobody's: there is room, or it is not launched.
    Nobodys,
    /// Of those who hold more than the function and its app.
    Larger,
    /// Of whoever has what is worth less: one waits for it, and is told if the launch fails.
    Anybodys,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    /// It comes.
    Launch,
    /// Others end for it.
    Room,
    Nothing,
}

impl Pools {
    /// Whether a container could be started now, after evictions, or in the place of one that goes.
    pub(super) fn room(&self, inner: &Inner, digest: &Digest, spec: &FunctionSpec) -> bool {
        let (free, ask) = (self.ledger.free(), spec.ask());
        let idle = inner.reclaimable();
        let going = inner.versions.get(digest).map_or(0, Version::going);
        free.memory.saturating_add(idle.memory).saturating_add(ask.memory.saturating_mul(going as u64))
            >= ask.memory
            && free.slots.saturating_add(idle.slots).saturating_add(super::count(going)) > 0
            && free.cpu_millis >= ask.cpu_millis
    }

    /// Launches what those who wait for a version need. `true` if others are to leave it the room that there is: the first of them waits too long,
    /// or more is being made.
    pub(super) fn launch_for(
        self: &Arc<Self>,
        inner: &mut Inner,
        digest: Digest,
        held: bool,
        actions: &mut Vec<Action>,
    ) -> bool {
        loop {
            let Some(version) = inner.versions.get(&digest) else { return false };
            // Those that are ready want only CPU.
            let Some(last) = version.waiters.len().checked_sub(1).filter(|_| version.ready.is_empty()) else {
                return false;
            };
            let cap = self.cap(&version.spec);
            let allowed = !held && !inner.stopping && inner.launching < cap && version.may_grow();
            let facts = version.facts(last);
            let cost = match decide(&facts) {
                Decision::Wait => return false,
                Decision::LaunchBeside if version.failing => return false,
                Decision::LaunchBeside => Cost::Larger,
                Decision::Launch => Cost::Anybodys,
            };
            if !allowed {
                return false;
            }
            let overdue = version.overdue();
            if self.fetches(inner, digest, actions) {
                return false;
            }
            match self.begin(inner, digest, cost, actions) {
                Begun::Launch => {}
                // It is for this one.
                Begun::Room => return true,
                Begun::Nothing => return overdue,
            }
        }
    }

    /// Launches what a version shall have without being asked by a call, if that costs nobody anything: its minimum, and
    /// `ahead` of calls more, which only other calls of it are a reason for.
    pub(super) fn refill(
        self: &Arc<Self>,
        inner: &mut Inner,
        digest: Digest,
        ahead: bool,
        actions: &mut Vec<Action>,
    ) {
        loop {
            let Some(version) = inner.versions.get(&digest) else { return };
            let cap = self.cap(&version.spec);
            let wanted = if ahead { version.ahead(cap) } else { version.minimum() };
            // So it is for most, at every call.
            if wanted == 0 && inner.short.is_empty() {
                return;
            }
            let standing = version.standing();
            let enough = standing >= wanted || version.failing || inner.stopping || self.drains();
            let (may_grow, short) = (version.may_grow(), !enough && standing < version.minimum());
            if short {
                inner.short.insert(digest);
            } else {
                inner.short.remove(&digest);
            }
            if enough {
                return;
            }
            let allowed = inner.waiting == 0 && inner.launching < cap && may_grow;
            let begins = allowed
                && !self.fetches(inner, digest, actions)
                && self.begin(inner, digest, Cost::Nobodys, actions) == Begun::Launch;
            if !begins {
                return;
            }
        }
    }

    /// If nothing of a version is here and its next call can be foretold, a container is launched just before. What is foretold is
    /// looked at again then; the task ends with its launch or with the runner.
    pub(super) fn expect(self: &Arc<Self>, inner: &Inner, digest: Digest) {
        let Some(version) = inner.versions.get(&digest).filter(|version| version.members.is_empty()) else {
            return;
        };
        let expected = version.arrivals.expects(version.cold.get(), version.spec.idle_timeout());
        let Some(Expected { launch, until }) = expected.filter(|_| !inner.stopping) else { return };
        let pools = self.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = pools.stop.cancelled() => {}
                () = tokio::time::sleep_until(launch.into()) => pools.prewarm(digest, until),
            }
        });
    }

    /// Launches what is expected, if that is still so and costs nobody anything.
    fn prewarm(self: &Arc<Self>, digest: Digest, until: Instant) {
        let mut actions = Vec::new();
        let mut inner = self.inner();
        let Some(version) = inner.versions.get(&digest) else { return };
        let wanted = version.members.is_empty() && !version.failing && Instant::now() <= until;
        let free = inner.waiting == 0 && inner.launching < self.cap(&version.spec);
        if wanted && free && !inner.stopping && !self.drains() {
            self.begin(&mut inner, digest, Cost::Nobodys, &mut actions);
        }
        drop(inner);
        self.act(actions);
    }

    /// Starts a launch if there is room; else makes some, at the cost of who is to bear it.
    fn begin(
        self: &Arc<Self>,
        inner: &mut Inner,
        digest: Digest,
        cost: Cost,
        actions: &mut Vec<Action>,
    ) -> Begun {
        let Some(version) = inner.versions.get_mut(&digest) else { return Begun::Nothing };
        let spec = version.spec.clone();
        let ask = spec.ask();
        let Some(working) = self.ledger.take(ask.working()) else { return Begun::Nothing };
        let Some(standing) = self.ledger.take(ask.standing()) else {
            let room = cost != Cost::Nobodys && self.make_room(inner, digest, cost, actions);
            return if room { Begun::Room } else { Begun::Nothing };
        };
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let id = ContainerId::new(self.incarnation, seq);
        let needed = cost == Cost::Anybodys;
        let cause = version.waiters.iter_mut().find(|w| needed && !w.caused).map(|w| {
            w.caused = true;
            w.id
        });
        version.standing = Instant::now();
        let why = cold(version);
        version.members.insert(seq, Member::new(standing, Some(working), cause, why));
        version.launching += 1;
        inner.launching += 1;
        let ahead = cause.is_none();
        actions.push(Action::Launch { digest, spec, seq, id, ahead });
        Begun::Launch
    }

    /// Ends idle containers of others until one of `own` fits, unless enough are ending already: of those that no call waits for, and of those that do
    /// where it has a claim. Where one that comes free would not be enough, those on which it has a claim take no more calls and end with the last.
    /// `true` if there will be room.
    fn make_room(&self, inner: &mut Inner, own: Digest, cost: Cost, actions: &mut Vec<Action>) -> bool {
        let Some(taker) = inner.versions.get(&own) else { return false };
        let (mut missing, ask) = (self.ledger.free(), taker.spec.ask().standing());
        for version in inner.versions.values() {
            let going = version.members.values().filter(|m| m.gives_way()).count();
            missing.memory = missing.memory.saturating_add(version.spec.memory.saturating_mul(going as u64));
            missing.slots = missing.slots.saturating_add(super::count(going));
        }
        let missing = Need {
            size: ask.memory.saturating_sub(missing.memory),
            count: ask.slots.saturating_sub(missing.slots) as usize,
        };
        if missing == (Need { size: 0, count: 0 }) {
            return true;
        }
        let (apps, total, now) = (inner.apps(), self.ledger.total(), Instant::now());
        let (lasts, has) = (taker.facts(taker.waiters.len()).lasts(), taker.standing() > 0);
        let mut taking = Taking::new(apps.holder(&taker.as_shared()), lasts, &total);
        let (mut keys, mut idle): (Vec<(Digest, u64)>, Vec<Idle>) = Default::default();
        let mut busy = Vec::new();
        for (digest, version) in &inner.versions {
            if *digest == own || version.members.is_empty() {
                continue;
            }
            let holder = apps.holder(&version.as_shared());
            let candidates = version.candidates(now);
            let ones: Vec<Idle> = candidates.iter().map(|(_, idle)| *idle).collect();
            let asked = match cost {
                Cost::Anybodys => {
                    let waiting = super::count(version.waiters.len());
                    spoken_for(&ones, waiting, version.per_container(), has)
                }
                Cost::Larger | Cost::Nobodys => ones.len(),
            };
            let stay = asked - taking.of(&holder, asked);
            for (seq, candidate) in candidates.into_iter().skip(stay) {
                keys.push((*digest, seq));
                idle.push(candidate);
            }
            // They are never idle, or one would not do when it is.
            if version.per_container() > 1 || version.spec.memory < missing.size {
                busy.push((*digest, holder));
            }
        }
        let chosen = victims(&idle, missing).or_else(|| {
            for (digest, holder) in busy {
                let works = inner.versions[&digest].at_work();
                let may = taking.of(&holder, works.len());
                for (seq, candidate) in works.into_iter().take(may) {
                    keys.push((digest, seq));
                    idle.push(candidate);
                }
            }
            victims(&idle, missing)
        });
        let Some(chosen) = chosen else { return false };
        for at in chosen {
            let (digest, seq) = keys[at];
            inner.let_go(digest, [seq], (EVICT_GRACE, Ended::Evicted), actions);
        }
        true
    }

    pub(super) async fn launch(
        self: Arc<Self>,
        digest: Digest,
        spec: Arc<FunctionSpec>,
        seq: u64,
        id: ContainerId,
        ahead: bool,
    ) {
        if let Some(meters) = &self.meters {
            meters.launches(ahead);
        }
        let fetched = self.fetched(&digest);
        let (begun, told) = (Instant::now(), spec.clone());
        match self.launcher.launch(id, spec, ahead, &self.stop).await {
            Ok((mut container, connection)) => {
                // The next launch has its image here, and is what decisions are about.
                let took = begun.elapsed().saturating_sub(container.launched.image);
                if let Some((_, fetch)) = fetched {
                    container.launched.image += fetch;
                    container.launched.began = begun.checked_sub(fetch).unwrap_or(begun);
                }
                if let Some(meters) = &self.meters {
                    meters.launched(&container.launched);
                }
                if ahead {
                    self.observer.launched(true, &container.launched, &container.seen);
                }
                self.launched(digest, seq, Arc::new(container), connection, took);
            }
            Err(error) => {
                if let (Some(meters), Some(blame)) = (&self.meters, error.blame()) {
                    meters.launch_failed(blame.as_str());
                }
                // A call that caused it tells of it itself.
                if ahead {
                    self.observer.launch_failed(begun, &told, &error);
                }
                self.failed(digest, seq, error);
            }
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
        let mut actions = Vec::new();
        let mut inner = self.inner();
        inner.launching -= 1;
        let stopping = inner.stopping;
        inner.moved(&digest);
        let Some(version) = inner.versions.get_mut(&digest) else { return };
        version.launching -= 1;
        version.cold.add(took);
        let has_secrets = !version.spec.secrets.is_empty();
        let Some(member) = version.members.get_mut(&seq) else { return };
        member.step(Event::Created);
        member.step(Event::Ready);
        member.working = None;
        member.since = Instant::now();
        member.container = Some(container.clone());
        member.connected(connection);
        let (keeper, over, stale) = (member.keeper.clone(), member.over.clone(), member.stale);
        version.ready.push(seq);
        if stopping {
            actions.extend(inner.stop(digest, seq, Duration::ZERO, Ended::Drained));
        } else {
            if version.surplus() > 0 && version.minimum() > 0 {
                version.wake_keepers();
            }
            let pools = self.clone();
            self.tasks.spawn(async move { pools.stay_with(digest, seq, container, keeper, over).await });
            self.pump(&mut inner, &mut actions);
            if stale {
                // Whoever waited for it has it: the call is from before.
                inner.let_go(digest, [seq], DRAINED, &mut actions);
            }
            self.refill(&mut inner, digest, true, &mut actions);
        }
        drop(inner);
        self.act(actions);
        self.grown.notify_one();
        if has_secrets {
            self.uncompared.notify_one();
        }
    }

    fn failed(self: &Arc<Self>, digest: Digest, seq: u64, error: LaunchError) {
        let mut actions = Vec::new();
        let mut inner = self.inner();
        if let Some(version) = inner.versions.get(&digest) {
            let blame = error.blame().map(Blame::as_str);
            tracing::info!(function = %version.spec.name, blame, %error, "a container could not be launched");
        }
        inner.launching -= 1;
        inner.moved(&digest);
        let told = inner.versions.get_mut(&digest).and_then(|version| version.fail(seq));
        if let Some(waiter) = told {
            inner.waiting -= 1;
            actions.push(Action::Give { give: waiter.give, given: Err(error) });
        }
        self.pump(&mut inner, &mut actions);
        drop(inner);
        self.act(actions);
    }
}

impl Version {
    /// A launch failed: the waiter that caused it, if it still waits, must be told.
    fn fail(&mut self, seq: u64) -> Option<Waiter> {
        self.launching -= 1;
        self.fails();
        let cause = self.members.remove(&seq)?.cause?;
        let at = self.waiters.iter().position(|w| w.id == cause)?;
        self.unqueue(at)
    }
}
