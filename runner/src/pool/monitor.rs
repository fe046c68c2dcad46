//! The task beside a ready container.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::function::Digest;
use stoker_sandbox::ExitCause;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::member::Member;
use super::why::Ended;
use super::{Pools, STOP_GRACE};
use crate::container::Container;
use crate::container::channel::Eye;
use crate::container::state::{Event, State};

/// What a container that is never idle for long used is looked at no more often: a look is some reads of files.
const LOOK: Duration = Duration::from_secs(1);

/// One whose calls come on STDIN is watched from so long after its last: until then the look before each call is enough, and
/// costs the calls of a busy one nothing.
const REST: Duration = Duration::from_millis(50);

/// What is to be done with a member that stays idle.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Watch,
    Freeze,
    End,
}

/// … and when: if it is idle since then still.
#[derive(Clone, Copy)]
struct Due {
    at: Instant,
    since: Instant,
    what: What,
}

/// A member without calls.
#[derive(Clone, Copy)]
struct Idle {
    since: Instant,
    /// Its function has more than it shall have.
    surplus: bool,
}

fn idle_since(since: Instant) -> impl Fn(&Member) -> bool {
    move |member| member.calls == 0 && member.since == since
}

impl Pools {
    /// Freezes a container when it is idle, ends it when it is idle too long, notices when it ends by itself or says what nobody
    /// asked for, and looks now and then what it used. Ends with the container.
    pub(super) async fn stay_with(
        self: Arc<Self>,
        digest: Digest,
        seq: u64,
        container: Arc<Container>,
        woken: Arc<Notify>,
        over: CancellationToken,
    ) {
        let mut monitor = Monitor::new(self, digest, seq, container);
        loop {
            let Some(idle) = monitor.idle() else { return };
            let due = monitor.due(idle);
            tokio::select! {
                () = over.cancelled() => return,
                exit = monitor.container.wait(), if !monitor.fallen => {
                    monitor.fallen = monitor.has_a_call_that_sees_to_it();
                    if monitor.fallen {
                        continue;
                    }
                    // Not one whose end somebody saw to: a drain, or its place was wanted.
                    if monitor.pools.fell(digest, seq, |member| member.state != State::Stopping) {
                        let container = &monitor.container.id;
                        match (exit.cause, monitor.container.spec.is_hot()) {
                            // As a process does that has one call.
                            (ExitCause::Code(0), false) => tracing::debug!(%container, "a container is done"),
                            _ => tracing::info!(%container, ?exit, "a container ended by itself"),
                        }
                    }
                    return;
                }
                () = monitor.says_something() => {
                    monitor.close_eye();
                    continue;
                }
                () = monitor.until(due, &woken) => {}
            }
            monitor.look(due).await;
            if let Some(due) = due.filter(|due| due.at <= Instant::now())
                && monitor.carry_out(due).await
            {
                return;
            }
        }
    }
}

/// What the task beside a container knows from one turn to the next.
struct Monitor {
    pools: Arc<Pools>,
    digest: Digest,
    seq: u64,
    container: Arc<Container>,
    freezes: bool,
    watches: bool,
    timeout: Duration,
    /// Idle since then, it was frozen, or could not be.
    frozen_since: Option<Instant>,
    /// Idle since then, it is watched.
    rested: Option<Instant>,
    eye: Option<Eye>,
    /// What it used was looked at then.
    looked: Instant,
    /// It ended under a call that has it started again.
    fallen: bool,
}

impl Monitor {
    fn new(pools: Arc<Pools>, digest: Digest, seq: u64, container: Arc<Container>) -> Self {
        let is_hot = container.spec.is_hot();
        // One that was handed over may stand still already.
        let frozen_since = {
            let inner = pools.inner();
            let member = inner.versions.get(&digest).and_then(|version| version.members.get(&seq));
            member.filter(|member| member.state == State::Frozen).map(|member| member.since)
        };
        Self {
            freezes: pools.launcher.driver.describe().freezes && is_hot,
            watches: is_hot && container.spec.format.reads_stdio(),
            timeout: container.spec.idle_timeout(),
            frozen_since,
            rested: None,
            eye: None,
            looked: Instant::now(),
            fallen: false,
            pools,
            digest,
            seq,
            container,
        }
    }

    /// How it stands now, `Some(None)` while it has calls; `None` if it is gone.
    fn idle(&mut self) -> Option<Option<Idle>> {
        let idle = {
            let inner = self.pools.inner();
            let version = inner.versions.get(&self.digest)?;
            let member = version.members.get(&self.seq)?;
            (member.calls == 0).then(|| Idle { since: member.since, surplus: version.surplus() > 0 })
        };
        if self.rested != idle.map(|idle| idle.since) {
            // A call has come since: the eye would see its answer.
            self.close_eye();
        }
        self.fallen &= idle.is_none();
        Some(idle)
    }

    fn close_eye(&mut self) {
        (self.rested, self.eye) = (None, None);
    }

    fn due(&self, idle: Option<Idle>) -> Option<Due> {
        let Idle { since, surplus } = idle?;
        let (after, what) = if self.watches && self.rested.is_none() {
            (REST.min(self.pools.freeze_after).min(self.timeout), What::Watch)
        } else if self.freezes && self.frozen_since != Some(since) {
            (self.pools.freeze_after.min(self.timeout), What::Freeze)
        } else if surplus {
            (self.timeout, What::End)
        } else {
            // One of the minimum stays, until there are more or it is less.
            return None;
        };
        Some(Due { at: since + after, since, what })
    }

    /// Nobody asked it to.
    async fn says_something(&self) {
        match &self.eye {
            Some(eye) => eye.opens().await,
            None => std::future::pending().await,
        }
    }

    /// Until something may be due.
    async fn until(&self, due: Option<Due>, woken: &Notify) {
        match due {
            // Frozen: the call that thaws it starts the time anew, and says so at its end.
            Some(Due { at, what: What::End, .. }) if self.freezes => {
                _ = tokio::time::timeout_at(at.into(), woken.notified()).await;
            }
            // A call in between only moves the time on: soon enough seen when it has come.
            Some(Due { at, what, .. }) => {
                tokio::time::sleep_until(at.into()).await;
                if what == What::Freeze {
                    self.container.rests().await;
                }
            }
            // Whoever changes that says so.
            None => woken.notified().await,
        }
    }

    fn has_a_call_that_sees_to_it(&self) -> bool {
        let inner = self.pools.inner();
        let member = inner.versions.get(&self.digest).and_then(|version| version.members.get(&self.seq));
        self.container.starts_again() && member.is_some_and(|member| member.calls > 0)
    }

    async fn look(&mut self, due: Option<Due>) {
        if self.looked.elapsed() >= LOOK || due.is_some_and(|due| due.what == What::Freeze) {
            self.container.look().await;
            self.looked = Instant::now();
        }
    }

    /// Does what is due. `true` if the container is over with that.
    async fn carry_out(&mut self, due: Due) -> bool {
        let Due { since, what, .. } = due;
        if what == What::Watch {
            return self.watch(since);
        }
        // An idle timeout that is no longer than the time to freezing goes first.
        let idle = idle_since(since);
        let expired = (STOP_GRACE, Ended::Expired);
        if since.elapsed() >= self.timeout
            && self.pools.end(self.digest, self.seq, expired, |member, surplus| idle(member) && surplus)
        {
            return true;
        }
        what == What::Freeze && self.freeze(since).await
    }

    fn watch(&mut self, since: Instant) -> bool {
        self.rested = Some(since);
        match self.container.eye() {
            Ok(opened) => {
                self.eye = opened;
                false
            }
            Err(unfit) => {
                tracing::info!(container = %self.container.id, ?unfit, "an idle container takes no call, and goes");
                self.pools.fell(self.digest, self.seq, idle_since(since))
            }
        }
    }

    async fn freeze(&mut self, since: Instant) -> bool {
        let idle = idle_since(since);
        let frozen = self.container.freeze(|| {
            let mut inner = self.pools.inner();
            let version = inner.versions.get_mut(&self.digest);
            let member = version.and_then(|version| version.members.get_mut(&self.seq));
            member.filter(|m| idle(m) && m.state == State::Idle).is_some_and(|m| m.step(Event::Froze))
        });
        match frozen.await {
            Ok(true) => {
                self.frozen_since = Some(since);
                self.container.seen.froze();
                if let Some(meters) = &self.pools.meters {
                    meters.freezes.add_one();
                }
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(container = %self.container.id, %error, "an idle container could not be frozen");
                // A call that took it meanwhile thaws it, or is refused.
                let broken = (Duration::ZERO, Ended::Broken);
                if self.pools.end(self.digest, self.seq, broken, |member, _| idle(member)) {
                    return true;
                }
                self.frozen_since = Some(since);
            }
        }
        false
    }
}

impl Pools {
    /// A container did not stay as it was, for no call's reason. One that had no call yet is not replaced before a call tries:
    /// the next would go the same way.
    fn fell(self: &Arc<Self>, digest: Digest, seq: u64, when: impl FnOnce(&Member) -> bool) -> bool {
        let mut inner = self.inner();
        let mut why = Ended::Broken;
        if let Some(version) = inner.versions.get_mut(&digest) {
            let unused = |m: &Member| m.serves() && m.fresh && m.calls == 0;
            if version.members.get(&seq).is_some_and(unused) {
                version.fails();
            }
            // A process of one call ends with it, whether we see that before or after the call's own end.
            if !version.spec.is_hot() && version.members.get(&seq).is_some_and(|m| !m.fresh) {
                why = Ended::Once;
            }
        }
        drop(inner);
        self.end(digest, seq, (Duration::ZERO, why), |member, _| when(member))
    }

    /// Ends a container if it is as `when` says, told also whether its function has more than it shall have.
    fn end(
        self: &Arc<Self>,
        digest: Digest,
        seq: u64,
        (grace, why): (Duration, Ended),
        when: impl FnOnce(&Member, bool) -> bool,
    ) -> bool {
        let mut inner = self.inner();
        let version = inner.versions.get(&digest);
        let fits = version.is_some_and(|v| v.members.get(&seq).is_some_and(|m| when(m, v.surplus() > 0)));
        let action = if fits { inner.stop(digest, seq, grace, why) } else { None };
        drop(inner);
        self.act(action.into_iter().collect());
        self.changed.notify_one();
        fits
    }
}
