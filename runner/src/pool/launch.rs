//! How containers come: for those who wait, ahead of need, and what becomes of a launch.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use stoker_core::error::Blame;
use stoker_core::function::{Digest, FunctionSpec};
use stoker_core::{ContainerId, Resources};
use stoker_policy::eviction::{Idle, Need, spoken_for, victims};
use stoker_policy::launch::{Decision, decide};
use stoker_policy::prewarm::Expected;
use tokio::net::UnixStream;

use super::line::Waiter;
use super::member::Member;
use super::version::Version;
use super::why::{Ended, cold};
use super::{Action, EVICT_GRACE, Inner, Pools};
use crate::container::state::{Event, State};
use crate::container::{Container, LaunchError};

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

    /// Launches what those who wait for a version need. `true` if there is no room for the first of them, who waits too long.
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
            let decision = decide(&version.facts(last));
            let beside = decision == Decision::LaunchBeside;
            // Where others wait, room is theirs.
            let alone = inner.waiting == super::count(version.waiters.len()) && !version.failing;
            if !allowed || decision == Decision::Wait || (beside && !alone) {
                return false;
            }
            let overdue = version.overdue();
            if self.fetches(inner, digest, actions) {
                return false;
            }
            if !self.begin(inner, digest, !beside, actions) {
                return overdue;
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
            if !allowed || self.fetches(inner, digest, actions) || !self.begin(inner, digest, false, actions)
            {
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
            self.begin(&mut inner, digest, false, &mut actions);
        }
        drop(inner);
        self.act(actions);
    }

    /// Starts a launch if there is room; else makes some, where it is `needed` by one who waits: that one is told if it fails.
    fn begin(
        self: &Arc<Self>,
        inner: &mut Inner,
        digest: Digest,
        needed: bool,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(version) = inner.versions.get_mut(&digest) else { return false };
        let spec = version.spec.clone();
        let ask = spec.ask();
        let Some(working) = self.ledger.take(ask.working()) else { return false };
        let Some(standing) = self.ledger.take(ask.standing()) else {
            if needed {
                self.make_room(inner, digest, ask.standing(), actions);
            }
            return false;
        };
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let id = ContainerId::new(self.incarnation, seq);
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
        true
    }

    /// Ends idle containers of others that nobody waits for until `need` fits, unless enough are ending already.
    fn make_room(&self, inner: &mut Inner, own: Digest, need: Resources, actions: &mut Vec<Action>) {
        let mut free = self.ledger.free();
        let now = Instant::now();
        let has = inner.versions.get(&own).is_some_and(|version| version.standing() > 0);
        let (mut keys, mut idle): (Vec<(Digest, u64)>, Vec<Idle>) = Default::default();
        for (digest, version) in &inner.versions {
            let ending = version.members.values().filter(|m| m.state == State::Stopping).count();
            free.memory = free.memory.saturating_add(version.spec.memory.saturating_mul(ending as u64));
            free.slots = free.slots.saturating_add(super::count(ending));
            if *digest != own {
                let stay = spoken_for(super::count(version.waiters.len()), version.per_container(), has);
                for (seq, candidate) in version.candidates(now).into_iter().skip(stay) {
                    keys.push((*digest, seq));
                    idle.push(candidate);
                }
            }
        }
        let missing = Need {
            size: need.memory.saturating_sub(free.memory),
            count: need.slots.saturating_sub(free.slots) as usize,
        };
        for at in victims(&idle, missing).unwrap_or_default() {
            let (digest, seq) = keys[at];
            actions.extend(inner.stop(digest, seq, EVICT_GRACE, Ended::Evicted));
        }
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
                inner.let_go(digest, [seq], &mut actions);
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
        self.waiters.remove(at)
    }
}
