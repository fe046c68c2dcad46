//! How a runner comes to its end, and how it is drained: who is let in no more, and which containers go when.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use stoker_core::function::Digest;

use super::why::Ended;
use super::{Action, Inner, Pools, STOP_GRACE};
use crate::container::LaunchError;

impl Pools {
    /// Ends what nobody uses and nobody waits for.
    pub(super) fn end_unused(&self, inner: &mut Inner, actions: &mut Vec<Action>) {
        let unused: Vec<(Digest, u64)> = inner
            .versions
            .iter()
            .filter(|(_, version)| version.waiters.is_empty())
            .flat_map(|(digest, version)| version.idle().map(|(seq, _)| (*digest, seq)))
            .collect();
        let stop = |(digest, seq)| inner.stop(digest, seq, STOP_GRACE, Ended::Drained);
        actions.extend(unused.into_iter().filter_map(stop));
    }

    /// Whether an operator wants no calls here.
    pub fn is_cordoned(&self) -> bool {
        self.cordoned.load(Ordering::Relaxed)
    }

    /// Whether new calls are refused.
    pub fn drains(&self) -> bool {
        self.gate.is_closed() || self.is_cordoned()
    }

    /// Takes no new calls until [`Pools::uncordon`]. What runs and waits goes on; containers end as soon as they are idle.
    pub fn cordon(self: &Arc<Self>) {
        let mut actions = Vec::new();
        let mut inner = self.inner();
        self.cordoned.store(true, Ordering::Relaxed);
        self.pump(&mut inner, &mut actions);
        drop(inner);
        self.act(actions);
        self.changed.notify_one();
    }

    /// Takes calls again, and has its minimum again.
    pub fn uncordon(self: &Arc<Self>) {
        let mut actions = Vec::new();
        let mut inner = self.inner();
        self.cordoned.store(false, Ordering::Relaxed);
        self.pump(&mut inner, &mut actions);
        let kept: Vec<Digest> =
            inner.versions.iter().filter(|(_, v)| v.minimum() > 0).map(|(digest, _)| *digest).collect();
        for digest in kept {
            self.refill(&mut inner, digest, false, &mut actions);
        }
        drop(inner);
        self.act(actions);
        self.changed.notify_one();
    }

    /// Lets no call in any more; what runs and waits goes on.
    pub fn drain(&self) {
        self.gate.close();
        self.changed.notify_one();
    }

    /// Containers are being ended whatever they do.
    pub fn stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Ends every container without waiting for it, and gives away those who wait.
    pub fn abandon(self: &Arc<Self>) {
        self.drain();
        self.stop.cancel();
        self.end_all(Duration::ZERO, |_| true);
    }

    /// Ends every container: idle ones first, then the rest. Returns when nothing is left.
    pub async fn stop_all(self: &Arc<Self>) {
        self.drain();
        self.stop.cancel();
        self.end_all(STOP_GRACE, |calls| calls == 0);
        self.end_all(Duration::ZERO, |_| true);
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn end_all(self: &Arc<Self>, grace: Duration, which: impl Fn(u32) -> bool) {
        let mut inner = self.inner();
        inner.stopping = true;
        inner.waiting = 0;
        let waiters = inner.versions.values_mut().flat_map(|v| v.waiters.drain(..));
        let mut actions: Vec<_> = waiters
            .map(|waiter| Action::Give { give: waiter.give, given: Err(LaunchError::Stopping) })
            .collect();
        let all: Vec<(Digest, u64)> = inner
            .versions
            .iter()
            .flat_map(|(d, v)| v.members.iter().map(|(seq, m)| (*d, *seq, m.calls)))
            .filter(|(.., calls)| which(*calls))
            .map(|(digest, seq, _)| (digest, seq))
            .collect();
        let stop = |(digest, seq)| inner.stop(digest, seq, grace, Ended::Drained);
        actions.extend(all.into_iter().filter_map(stop));
        drop(inner);
        self.act(actions);
        self.changed.notify_one();
    }
}
