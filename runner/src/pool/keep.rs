//! The task beside a ready container.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::function::Digest;
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
enum Due {
    Watch,
    Freeze,
    End,
}

impl Pools {
    /// Freezes a container when it is idle, ends it when it is idle too long, notices when it ends by itself or says what nobody
    /// asked for, and looks now and then what it used. Ends with the container.
    pub(super) async fn stay_with(
        self: Arc<Self>,
        digest: Digest,
        seq: u64,
        container: Arc<Container>,
        keeper: Arc<Notify>,
        over: CancellationToken,
    ) {
        let freezes = self.driver.describe().freezes && container.spec.is_hot();
        let timeout = container.spec.idle_timeout();
        let watches = container.spec.is_hot() && container.spec.format.reads_stdio();
        // One that was handed over may stand still already.
        let mut frozen_since = {
            let inner = self.inner();
            let member = inner.versions.get(&digest).and_then(|version| version.members.get(&seq));
            member.filter(|member| member.state == State::Frozen).map(|member| member.since)
        };
        let mut rested = None;
        let mut eye: Option<Eye> = None;
        let mut looked = Instant::now();
        let mut fallen = false;
        loop {
            let idle = {
                let inner = self.inner();
                let Some(version) = inner.versions.get(&digest) else { return };
                let Some(member) = version.members.get(&seq) else { return };
                (member.calls == 0).then(|| (member.since, version.surplus() > 0))
            };
            if rested != idle.map(|(since, _)| since) {
                // A call has come since: the eye would see its answer.
                (rested, eye) = (None, None);
            }
            fallen &= idle.is_none();
            let due = idle.and_then(|(since, surplus)| {
                let frozen = frozen_since == Some(since);
                if watches && rested.is_none() {
                    Some((since + REST.min(self.freeze_after).min(timeout), since, Due::Watch))
                } else if freezes && !frozen {
                    Some((since + self.freeze_after.min(timeout), since, Due::Freeze))
                } else if surplus {
                    Some((since + timeout, since, Due::End))
                } else {
                    // One of the minimum stays, until there are more or it is less.
                    None
                }
            });
            let seen = async {
                match &eye {
                    Some(eye) => eye.opens().await,
                    None => std::future::pending().await,
                }
            };
            let timer = async {
                match due {
                    // Frozen: the call that thaws it starts the time anew, and says so at its end.
                    Some((at, _, Due::End)) if freezes => {
                        _ = tokio::time::timeout_at(at.into(), keeper.notified()).await;
                    }
                    // A call in between only moves the time on: soon enough seen when it has come.
                    Some((at, _, what)) => {
                        tokio::time::sleep_until(at.into()).await;
                        if what == Due::Freeze {
                            container.rests().await;
                        }
                    }
                    // Whoever changes that says so.
                    None => keeper.notified().await,
                }
            };
            tokio::select! {
                () = over.cancelled() => return,
                exit = container.wait(), if !fallen => {
                    let inner = self.inner();
                    let member = inner.versions.get(&digest).and_then(|v| v.members.get(&seq));
                    fallen = container.starts_again() && member.is_some_and(|m| m.calls > 0);
                    drop(inner);
                    if fallen {
                        // Its call sees to that.
                        continue;
                    }
                    tracing::info!(container = %container.id, ?exit, "a container ended by itself");
                    self.fell(digest, seq, |_| true);
                    return;
                }
                () = seen => {
                    (rested, eye) = (None, None);
                    continue;
                }
                () = timer => {}
            }
            if looked.elapsed() >= LOOK || due.is_some_and(|(.., what)| what == Due::Freeze) {
                container.look().await;
                looked = Instant::now();
            }
            let Some((at, since, what)) = due else { continue };
            if Instant::now() < at {
                continue;
            }
            let idle = |m: &Member| m.calls == 0 && m.since == since;
            if what == Due::Watch {
                rested = Some(since);
                match container.eye() {
                    Ok(opened) => eye = opened,
                    Err(unfit) => {
                        tracing::info!(container = %container.id, ?unfit, "an idle container takes no call, and goes");
                        if self.fell(digest, seq, idle) {
                            return;
                        }
                    }
                }
                continue;
            }
            // An idle timeout that is no longer than the time to freezing goes first.
            if since.elapsed() >= timeout
                && self.end(digest, seq, (STOP_GRACE, Ended::Expired), |m, surplus| idle(m) && surplus)
            {
                return;
            }
            if what == Due::End {
                continue;
            }
            let frozen = container.freeze(|| {
                let mut inner = self.inner();
                let member = inner.versions.get_mut(&digest).and_then(|v| v.members.get_mut(&seq));
                member.filter(|m| idle(m) && m.state == State::Idle).is_some_and(|m| m.step(Event::Froze))
            });
            match frozen.await {
                Ok(true) => {
                    frozen_since = Some(since);
                    container.seen.froze();
                    if let Some(meters) = &self.meters {
                        meters.freezes.add_one();
                    }
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(container = %container.id, %error, "an idle container could not be frozen");
                    // A call that took it meanwhile thaws it, or is refused.
                    if self.end(digest, seq, (Duration::ZERO, Ended::Broken), |m, _| idle(m)) {
                        return;
                    }
                    frozen_since = Some(since);
                }
            }
        }
    }

    /// A container did not stay as it was, for no call's reason. One that had no call yet is not replaced before a call tries:
    /// the next would go the same way.
    fn fell(self: &Arc<Self>, digest: Digest, seq: u64, when: impl FnOnce(&Member) -> bool) -> bool {
        let mut inner = self.inner();
        if let Some(version) = inner.versions.get_mut(&digest) {
            let unused = |m: &Member| m.serves() && m.fresh && m.calls == 0;
            if version.members.get(&seq).is_some_and(unused) {
                version.fails();
            }
        }
        drop(inner);
        self.end(digest, seq, (Duration::ZERO, Ended::Broken), |member, _| when(member))
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
