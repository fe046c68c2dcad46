//! Calls that ask for a container, those that wait for one in the line, and those that have one.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use stoker_core::call::Cold;
use stoker_core::function::{Digest, FunctionSpec};
use stoker_core::{CallId, Refusal, Warmth};
use stoker_policy::launch::{Admission, Full, RunnerLoad, WaitingFunction, admit, turn, width};
use stoker_policy::waiting::may_claim;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use super::version::Version;
use super::{Action, Inner, Pools};
use crate::container::state::State;
use crate::container::{Container, LaunchError};

/// Bounds of the advice when to come again.
const RETRY: std::ops::RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_secs(5);
/// Nothing has to move for at least this long before a call goes elsewhere: to be moved costs little, but more than a short call.
const STANDSTILL: Duration = Duration::from_millis(500);

/// Who waits for an image is told so this long before the deadline, or a tenth of the time that it has where that is less: a word that comes
/// with the deadline finds nobody. What comes in that time would hardly be launched in it.
const LAST_WORD: Duration = Duration::from_millis(50);

/// What a waiting call gets.
pub type Given = Result<Lease, LaunchError>;

/// Who offers a call.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asker {
    /// A number of its balancer.
    pub balancer: u64,
    /// The call has waited there.
    pub waited: bool,
    /// It has a place in another runner's line, and is no use here but at once.
    pub only_if_idle: bool,
}

/// A call in the line.
pub struct Waiter {
    pub id: u64,
    /// Whose it is.
    pub balancer: u64,
    pub since: Instant,
    /// A launch was started for it.
    pub caused: bool,
    /// It waited longer than a launch takes: no estimate holds it back any more.
    pub overdue: bool,
    /// How far things had come when it looked last.
    pub seen: Option<u64>,
    pub call: CallId,
    pub give: oneshot::Sender<Given>,
}

/// What came of asking for a container.
pub enum Acquired {
    Now(Lease),
    Wait { ticket: Ticket, expected: Duration },
    Refused(Refused),
}

/// Why a call is not let into the line.
pub struct Refused {
    pub reason: Refusal,
    pub detail: String,
    pub retry_after: Option<Duration>,
    /// Nor would a call of any other function be let in.
    pub line_full: bool,
}

impl Refused {
    /// One that has nothing to do with how many wait.
    fn at_once(reason: Refusal, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), retry_after: None, line_full: false }
    }

    fn stopping() -> Self {
        Self::at_once(Refusal::Draining, "the runner is stopping")
    }
}

/// A place in the line. Dropping it leaves the line.
pub struct Ticket {
    pub(super) pools: Arc<Pools>,
    pub(super) digest: Digest,
    pub(super) id: u64,
    pub(super) receive: oneshot::Receiver<Given>,
    pub(super) patience: Duration,
    pub(super) expected: Duration,
    /// When it is too late for a launch whose image is not here yet.
    pub(super) last_word: Instant,
}

impl Ticket {
    /// Until there is a container, the launch that this call caused failed, nothing has moved for so long that another runner
    /// is the better place, or the deadline is near and its image is not here.
    pub async fn wait(mut self) -> Given {
        let mut pause = self.patience;
        let mut last_word = pin!(tokio::time::sleep_until(self.last_word.into()));
        let mut told = false;
        loop {
            tokio::select! {
                biased;
                received = &mut self.receive => return received.unwrap_or(Err(LaunchError::Stopping)),
                () = &mut last_word, if !told => {
                    told = true;
                    match self.pools.lacks_image(&self.digest) {
                        Some(late) => return Err(late),
                        None => continue,
                    }
                }
                () = tokio::time::sleep(pause) => {}
            }
            // What it may have been given meanwhile is received above.
            self.pools.overdue(self.digest, self.id);
            pause = (pause * 2).max(self.expected).max(STANDSTILL);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.pools.leave(self.digest, self.id);
    }
}

/// A slot in a container, held for one call. Dropping it without [`Lease::finish`] ends the container
/// if the call had [touched](Lease::touch) it: nobody knows what it left behind.
pub struct Lease {
    pub(super) pools: Arc<Pools>,
    pub container: Arc<Container>,
    pub(super) digest: Digest,
    pub(super) seq: u64,
    pub(super) call: CallId,
    /// A connection from an earlier call, if one is fresh.
    pub connection: Option<UnixStream>,
    /// The call waited for a launch, and is the first in its container.
    pub cold: bool,
    /// Why its container was launched, where a call waited for that.
    pub why: Cold,
    /// No call ran in its container before.
    pub fresh: bool,
    pub(super) touched: Option<Instant>,
    pub(super) done: bool,
}

impl Lease {
    /// From here on the function may see something of the call.
    pub fn touch(&mut self) {
        self.touched = Some(Instant::now());
    }

    /// The call is over; `keep` says whether the container takes another.
    pub fn finish(mut self, keep: bool, connection: Option<UnixStream>) -> Warmth {
        self.done = true;
        let pools = self.pools.clone();
        pools.release(&self, keep, connection)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if !self.done {
            let (pools, keep) = (self.pools.clone(), self.touched.is_none());
            let connection = self.connection.take().filter(|_| keep);
            pools.release(self, keep, connection);
        }
    }
}

impl Pools {
    /// A container for a call: at once, later, or not here.
    pub fn acquire(
        self: &Arc<Self>,
        digest: Digest,
        spec: &Arc<FunctionSpec>,
        call: CallId,
        asker: Asker,
        remaining: Duration,
    ) -> Acquired {
        let mut inner = self.inner();
        inner.meet(digest, spec);
        let Some(version) = inner.versions.get_mut(&digest) else {
            return Acquired::Refused(Refused::stopping());
        };
        version.arrivals.add(Instant::now());
        let mut actions = Vec::new();
        if version.waiters.is_empty()
            && let Some((seq, fresh)) = version.take(&self.ledger)
            && let Some(lease) = self.lease(version, digest, seq, call, false, fresh)
        {
            self.refill(&mut inner, digest, true, &mut actions);
            drop(inner);
            self.act(actions);
            self.changed.notify_one();
            return Acquired::Now(lease);
        }
        let expected = match self.weigh(&inner, digest, spec, asker, remaining) {
            Ok(expected) => expected,
            Err(refused) => return Acquired::Refused(refused),
        };
        let Some(version) = inner.versions.get_mut(&digest) else {
            return Acquired::Refused(Refused::stopping());
        };
        let (give, receive) = oneshot::channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let since = Instant::now();
        let (caused, overdue, seen) = (false, false, None);
        let balancer = asker.balancer;
        version.queue(Waiter { id, balancer, since, caused, overdue, seen, call, give }, asker.waited);
        let patience = version.patience();
        inner.waiting += 1;
        self.pump(&mut inner, &mut actions);
        drop(inner);
        self.act(actions);
        self.changed.notify_one();
        let last_word = since + remaining.saturating_sub(LAST_WORD.min(remaining / 10));
        let ticket = Ticket { pools: self.clone(), digest, id, receive, patience, expected, last_word };
        Acquired::Wait { ticket, expected }
    }

    /// When a call that finds nothing idle may expect a container here, or why it is not let into the line.
    fn weigh(
        &self,
        inner: &Inner,
        digest: Digest,
        spec: &FunctionSpec,
        asker: Asker,
        remaining: Duration,
    ) -> Result<Duration, Refused> {
        if inner.stopping {
            return Err(Refused::stopping());
        }
        let total = self.ledger.total();
        if !total.could_hold(&spec.ask()) {
            let detail = format!(
                "the function asks for {} and {}, more than this runner has",
                stoker_core::units::format_size(spec.memory),
                stoker_core::units::format_cpu(spec.cpu_millis),
            );
            return Err(Refused::at_once(Refusal::TooLarge, detail));
        }
        if asker.only_if_idle {
            let detail = "no container is idle, and the call waits elsewhere";
            return Err(Refused::at_once(Refusal::NoneIdle, detail));
        }
        let version = inner.versions.get(&digest).ok_or_else(Refused::stopping)?;
        let (waiting, launching) = (inner.waiting, inner.launching);
        let (running, mean) = (inner.versions.values().map(|v| v.busy).sum(), inner.run.get());
        let full = waiting > 0 || self.ledger.free().cpu_millis < spec.ask().cpu_millis;
        let load = RunnerLoad {
            width: width(&total, &spec.ask()),
            cap: self.cap(spec),
            waiting,
            launching,
            turn: if full { turn(waiting, running, mean) } else { Duration::ZERO },
            room: self.room(inner, &digest, spec) && (version.may_grow() || version.going() > 0),
        };
        let stuck = version.gave_up == Some(version.progress(inner.moves));
        let (detail, expected) = match admit(&version.facts(version.waiters.len()), &load, remaining) {
            Admission::Wait(expected) if stuck => {
                let detail = "others waited in vain, and nothing has changed since";
                let retry_after = Some(expected.clamp(*RETRY.start(), *RETRY.end()));
                return Err(Refused { retry_after, ..Refused::at_once(Refusal::Full, detail) });
            }
            Admission::Wait(expected) => return Ok(expected),
            // Between balancers slots are shared in the line: none that has waited is kept out of it by one that fills it.
            Admission::Refuse(Full::Line | Full::Slow, expected)
                if !stuck
                    && asker.waited
                    && expected <= remaining
                    && may_claim(version.of(asker.balancer), waiting, total.slots) =>
            {
                return Ok(expected);
            }
            Admission::Refuse(Full::Line, expected) => {
                (format!("{waiting} calls wait here already"), expected)
            }
            Admission::Refuse(Full::Slow, expected) if !version.may_grow() => {
                let detail = format!(
                    "its max_containers ({}) are here and have calls, and the wait would be too long",
                    spec.max_containers
                );
                (detail, expected)
            }
            Admission::Refuse(Full::Slow, expected) => {
                ("no memory, CPU or slot is free, and the wait would be too long".to_owned(), expected)
            }
            Admission::Refuse(Full::Late, expected) => {
                (format!("a container is expected in {expected:?}, later than the caller waits"), expected)
            }
        };
        let retry_after = Some(expected.clamp(*RETRY.start(), *RETRY.end()));
        let line_full = !may_claim(0, waiting, total.slots);
        Err(Refused { retry_after, line_full, ..Refused::at_once(Refusal::Full, detail) })
    }

    /// A call leaves the line, if it is still there.
    fn leave(self: &Arc<Self>, digest: Digest, id: u64) {
        let mut actions = Vec::new();
        let mut inner = self.inner();
        let Some(version) = inner.versions.get_mut(&digest) else { return };
        let Some(at) = version.waiters.iter().position(|w| w.id == id) else { return };
        let left = version.unqueue(at);
        inner.waiting -= 1;
        self.pump(&mut inner, &mut actions);
        drop(inner);
        drop(left);
        self.act(actions);
        self.changed.notify_one();
    }

    /// No estimate holds this waiter back any more. Where nothing has moved since it was here last, and nothing is about to, it
    /// leaves.
    fn overdue(self: &Arc<Self>, digest: Digest, id: u64) {
        let mut actions = Vec::new();
        let mut inner = self.inner();
        let version = inner.versions.get_mut(&digest);
        if let Some(waiter) = version.and_then(|v| v.waiters.iter_mut().find(|w| w.id == id)) {
            waiter.overdue = true;
        }
        self.pump(&mut inner, &mut actions);
        if let Some(give) = inner.gives_up(digest, id) {
            let retry_after = inner.versions[&digest].patience().clamp(*RETRY.start(), *RETRY.end());
            actions.push(Action::Give { give, given: Err(LaunchError::Full { retry_after }) });
            // Who was held behind it is not any more.
            self.pump(&mut inner, &mut actions);
            self.changed.notify_one();
        }
        drop(inner);
        self.act(actions);
    }

    /// Serves whoever waits, with what there is; if nobody does, fills up what is short.
    pub(super) fn pump(self: &Arc<Self>, inner: &mut Inner, actions: &mut Vec<Action>) {
        if inner.waiting > 0 {
            let (apps, total) = (inner.apps(), self.ledger.total());
            let as_waiting =
                |(digest, version): (&Digest, &Version)| Some((version.as_waiting(&apps, &total)?, *digest));
            let mut waiting: Vec<(WaitingFunction, Digest)> =
                inner.versions.iter().filter_map(as_waiting).collect();
            waiting.sort_unstable_by(|(a, one), (b, other)| a.order(b).then(one.cmp(other)));
            let mut held = false;
            for (_, digest) in waiting {
                held |= self.serve(inner, digest, held, actions);
            }
        }
        if self.is_cordoned() {
            self.end_unused(inner, actions);
        } else if inner.waiting == 0 && !inner.short.is_empty() {
            for digest in inner.short.clone() {
                self.refill(inner, digest, false, actions);
            }
        }
    }

    /// Serves those who wait for one version, launching nothing if others are `held`. `true` if its first has waited too long,
    /// and there is no room: then those behind it are held.
    fn serve(
        self: &Arc<Self>,
        inner: &mut Inner,
        digest: Digest,
        held: bool,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(version) = inner.versions.get_mut(&digest) else { return false };
        while let Some(next) = version.next() {
            let waiter = &version.waiters[next];
            if waiter.give.is_closed() {
                version.unqueue(next);
                inner.waiting -= 1;
                continue;
            }
            let (call, caused) = (waiter.call, waiter.caused);
            let Some((seq, fresh)) = version.take(&self.ledger) else { break };
            let Some(lease) = self.lease(version, digest, seq, call, caused && fresh, fresh) else { break };
            let Some(waiter) = version.unqueue(next) else { break };
            inner.turns += 1;
            (version.served, version.turn) = (waiter.balancer, inner.turns);
            inner.waiting -= 1;
            actions.push(Action::Give { give: waiter.give, given: Ok(lease) });
        }
        self.launch_for(inner, digest, held, actions)
    }
}

impl Inner {
    /// Takes an overdue waiter out of the line if there is nothing to hope for.
    fn gives_up(&mut self, digest: Digest, id: u64) -> Option<oneshot::Sender<Given>> {
        // Their end is a move.
        let ending = self.versions.values().any(|v| v.members.values().any(|m| m.state == State::Stopping));
        let moves = self.moves;
        let version = self.versions.get_mut(&digest)?;
        let (progress, hope) = (version.progress(moves), ending || version.awaits());
        let at = version.waiters.iter().position(|w| w.id == id)?;
        let seen = version.waiters[at].seen.replace(progress);
        if hope || seen != Some(progress) {
            return None;
        }
        version.gave_up = Some(progress);
        self.waiting -= 1;
        version.unqueue(at).map(|waiter| waiter.give)
    }
}
