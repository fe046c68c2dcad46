//! The containers of one version of a function, its line, and what was observed of it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::Resources;
use stoker_core::Warmth;
use stoker_core::function::FunctionSpec;
use stoker_policy::eviction::{Frequency, Idle};
use stoker_policy::launch::{Facts, Mean, WaitingFunction, goes_on};
use stoker_policy::placement::key;
use stoker_policy::prewarm::Arrivals;
use stoker_policy::shares::{Apps, Function};
use stoker_policy::waiting::next_in_turn;

use super::fetch::Picture;
use super::line::Waiter;
use super::member::Member;
use super::why::Ended;
use crate::container::state::{Event, State};
use crate::ledger::Ledger;

/// A launch that failed is made again without a call after this at the earliest, and after twice as long each time, up to five minutes.
const REST: Duration = Duration::from_secs(10);

pub struct Version {
    /// Its numbers of containers may change; the rest is what the digest stands for.
    pub spec: Arc<FunctionSpec>,
    /// Its app, for those who share the runner by app.
    pub app: u64,
    pub members: HashMap<u64, Member>,
    /// Ready members with room for a call; the last one was used last.
    pub ready: Vec<u64>,
    pub launching: u32,
    pub waiters: VecDeque<Waiter>,
    /// Since when somebody has always been in the line, or its last launch in that time; of the last line, where nobody is.
    pub standing: Instant,
    /// When somebody was in the line last, but for who is there now.
    pub stood: Instant,
    /// The balancer whose call was served last out of the line.
    pub served: u64,
    /// When that was, as one of the [turns](super::Inner::turns) of the runner.
    pub turn: u64,
    /// Calls that run.
    pub busy: u32,
    /// How many balancers want to be kept ready here.
    pub kept: u32,
    /// Its last launch failed: none is started but for a call, or after a while.
    pub failing: bool,
    /// How often in a row that was so without a call, and when it was last.
    pub failures: u32,
    pub failed: Option<Instant>,
    pub frequency: Frequency,
    /// When its calls came.
    pub arrivals: Arrivals,
    pub run: Mean,
    pub cold: Mean,
    /// Counts what may have made room for one of its calls: those that ended, launches that came to an end, containers that went.
    pub moves: u64,
    /// How far things had come when one that waited for room gave up. Until they move, nobody else need try.
    pub gave_up: Option<u64>,
    /// Whether its image is here.
    pub picture: Picture,
    /// Why the last of its containers went that has gone.
    pub left: Option<Ended>,
}

impl Version {
    pub fn new(spec: Arc<FunctionSpec>) -> Self {
        Self {
            app: key(spec.name.app().as_bytes()),
            spec,
            members: HashMap::new(),
            ready: Vec::new(),
            launching: 0,
            waiters: VecDeque::new(),
            standing: Instant::now(),
            stood: Instant::now(),
            served: 0,
            turn: 0,
            busy: 0,
            kept: 0,
            failing: false,
            failures: 0,
            failed: None,
            frequency: Frequency::new(Instant::now()),
            arrivals: Arrivals::default(),
            run: Mean::default(),
            cold: Mean::default(),
            moves: 0,
            gave_up: None,
            picture: Picture::default(),
            left: None,
        }
    }

    /// How far things have come that could make room for one of its calls; `all` is that of the whole runner.
    pub fn progress(&self, all: u64) -> u64 {
        if self.may_grow() { all } else { self.moves }
    }

    /// Something is under way that may end the waiting of its calls.
    pub fn awaits(&self) -> bool {
        self.launching > 0 || matches!(self.picture, Picture::Coming)
    }

    pub fn per_container(&self) -> u32 {
        self.spec.concurrency.max(1)
    }

    pub fn may_grow(&self) -> bool {
        self.members.len() < self.spec.max_containers as usize
    }

    /// Those that take no call any more, and leave their place to another: they end, or will with the calls that they have.
    pub fn going(&self) -> usize {
        self.members.values().filter(|m| m.goes()).count()
    }

    pub fn warmth(&self) -> Warmth {
        let room = |m: &Member| self.per_container().saturating_sub(m.calls);
        let idle = self.ready.iter().filter_map(|seq| self.members.get(seq)).map(room).sum();
        Warmth { idle, busy: self.busy, waiting: count(self.waiters.len()) }
    }

    /// Joins the end of the line; `waited` if it stood in its balancer's before.
    pub fn queue(&mut self, waiter: Waiter, waited: bool) {
        let gap = waiter.since.saturating_duration_since(self.stood);
        if self.waiters.is_empty() && !goes_on(waited, gap, self.cold.get()) {
            self.standing = waiter.since;
        }
        self.waiters.push_back(waiter);
    }

    /// Leaves the line.
    pub fn unqueue(&mut self, at: usize) -> Option<Waiter> {
        self.stood = Instant::now();
        self.waiters.remove(at)
    }

    /// For a call behind `waiting` others.
    pub fn facts(&self, waiting: usize) -> Facts {
        let serving = count(self.members.values().filter(|m| m.serves()).count());
        Facts {
            waiting: count(waiting),
            serving: serving.saturating_mul(self.per_container()),
            launching: self.launching.saturating_mul(self.per_container()),
            mean_call: self.run.get(),
            cold: self.cold.get(),
            standing: match self.waiters.is_empty() {
                true => Duration::ZERO,
                false => self.standing.elapsed(),
            },
            overdue: self.overdue(),
        }
    }

    /// How it stands beside others whose calls wait; `None` if none of its own does.
    pub fn as_waiting(&self, apps: &Apps, total: &Resources) -> Option<WaitingFunction> {
        let first = self.waiters.front()?;
        let (app, held) = (apps.waiting(&self.as_shared(), total), self.busy + self.launching);
        Some(WaitingFunction { app, since: first.since, held, overdue: first.overdue })
    }

    /// What it has of the runner. Calls fill the containers that work before others.
    pub fn as_shared(&self) -> Function {
        Function {
            app: self.app,
            ask: self.spec.ask(),
            holds: count(self.members.len() - self.members.values().filter(|m| m.goes()).count()),
            works: self.busy.div_ceil(self.per_container()) + self.launching,
            waits: !self.waiters.is_empty(),
            served: self.turn,
        }
    }

    /// Who of the line is served next: its balancers take turns.
    pub fn next(&self) -> Option<usize> {
        next_in_turn(self.waiters.iter().map(|waiter| waiter.balancer), self.served)
    }

    /// How many calls of a balancer stand in the line.
    pub fn of(&self, balancer: u64) -> u32 {
        count(self.waiters.iter().filter(|waiter| waiter.balancer == balancer).count())
    }

    /// The first in line has waited longer than a launch takes.
    pub fn overdue(&self) -> bool {
        self.waiters.front().is_some_and(|w| w.overdue)
    }

    /// Ready members without a call, the one used last first.
    pub fn idle(&self) -> impl Iterator<Item = (u64, &Member)> {
        let member = |seq: &u64| Some((*seq, self.members.get(seq)?));
        self.ready.iter().rev().filter_map(member).filter(|(_, m)| m.calls == 0)
    }

    /// How many shall be there whether or not they are used.
    pub fn minimum(&self) -> usize {
        self.kept.min(self.spec.max_containers) as usize
    }

    /// What it launched was no good.
    pub fn fails(&mut self) {
        self.failing = true;
        self.failures = self.failures.saturating_add(1);
        self.failed = Some(Instant::now());
    }

    /// Whether enough time has passed to try again what failed: longer each time.
    pub fn rested(&self, now: Instant) -> bool {
        let rest = REST * (1 << self.failures.saturating_sub(1).min(5));
        self.failed.is_none_or(|failed| now.saturating_duration_since(failed) >= rest)
    }

    /// How many of them count for it. Of those that serve once, only the ones that still will.
    pub fn standing(&self) -> usize {
        let there = match self.spec.is_hot() {
            true => self.members.values().filter(|m| m.serves()).count(),
            false => self.ready.len(),
        };
        there + self.launching as usize
    }

    /// How many may go without it having too few.
    pub fn surplus(&self) -> usize {
        self.standing().saturating_sub(self.minimum())
    }

    /// How many shall be there while calls come: the minimum, and for a format whose containers serve once the next one or
    /// some, prepared while others work.
    pub fn ahead(&self, cap: u32) -> usize {
        match self.spec.is_hot() {
            true => self.minimum(),
            false => self.minimum().max((self.busy / 2).clamp(1, cap) as usize),
        }
    }

    /// Those that could go to make room, least recently used last, as the policy wants to know them.
    pub fn candidates(&self, now: Instant) -> Vec<(u64, Idle)> {
        let frequency = self.frequency.at(now);
        let mut all: Vec<_> = self
            .idle()
            .zip(0u32..)
            .map(|((seq, member), rank)| {
                let idle = now.saturating_duration_since(member.since);
                let (start, size) = (self.cold.get(), self.spec.memory);
                (seq, Idle { frequency, start, size, rank, idle, kept: true })
            })
            .collect();
        let surplus = self.surplus();
        all.iter_mut().rev().take(surplus).for_each(|(_, idle)| idle.kept = false);
        all
    }

    /// Those that could go when their calls have ended, with the fewest calls last.
    pub fn at_work(&self) -> Vec<(u64, Idle)> {
        let mut all: Vec<_> = self
            .members
            .iter()
            .filter(|(_, m)| m.calls > 0 && m.serves())
            .map(|(seq, m)| (m.calls, *seq))
            .collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        let (start, size, idle, kept) =
            (self.cold.get(), self.spec.memory, Duration::ZERO, self.surplus() == 0);
        // What calls are in it for is worth more than any that is idle.
        let one = |rank| Idle { frequency: f64::MAX, start, size, rank, idle, kept };
        all.into_iter().zip(0u32..).map(|((_, seq), rank)| (seq, one(rank))).collect()
    }

    /// Takes a ready member for a call, if there is CPU for it, and says whether it is the first call in it.
    pub fn take(&mut self, ledger: &Arc<Ledger>) -> Option<(u64, bool)> {
        let limit = self.per_container();
        let last = self.ready.len().checked_sub(1)?;
        let at = match limit {
            1 => last,
            // Filling those that work keeps the others free to be frozen or evicted.
            _ => {
                let works = |seq: &u64| self.members.get(seq).is_some_and(|m| m.calls > 0);
                self.ready.iter().rposition(works).unwrap_or(last)
            }
        };
        let seq = self.ready[at];
        let member = self.members.get_mut(&seq).filter(|m| m.container.is_some())?;
        if member.calls == 0 {
            member.working = Some(ledger.take(self.spec.ask().working())?);
            if member.state == State::Frozen {
                member.step(Event::Thawed);
            }
            member.step(Event::Took);
        }
        member.calls += 1;
        let fresh = std::mem::replace(&mut member.fresh, false);
        if member.calls >= limit {
            self.ready.remove(at);
        }
        self.busy += 1;
        self.frequency.add(Instant::now());
        Some((seq, fresh))
    }

    /// A call that [took](Self::take) `seq` is over. Why the member must end now, if so.
    pub fn give_back(
        &mut self,
        seq: u64,
        keep: bool,
        connection: Option<tokio::net::UnixStream>,
    ) -> Option<Ended> {
        self.busy -= 1;
        let limit = self.per_container();
        let member = self.members.get_mut(&seq)?;
        let full = member.calls >= limit;
        member.calls -= 1;
        if member.calls == 0 {
            member.working = None;
            member.since = Instant::now();
        }
        if !keep {
            member.doomed = Some(if self.spec.is_hot() { Ended::Broken } else { Ended::Once });
        }
        if member.state != State::Busy {
            return None;
        }
        if let Some(why) = member.doomed {
            self.ready.retain(|s| *s != seq);
            // Other calls in it are not to blame.
            return (member.calls == 0).then_some(why);
        }
        member.connected(connection);
        let idle = member.calls == 0;
        if idle {
            member.step(Event::Freed);
            member.keeper.notify_one();
        }
        if idle && !full {
            self.ready.retain(|s| *s != seq);
        }
        if full || idle {
            self.ready.push(seq);
        }
        None
    }

    /// Lets the keepers of idle members look again: what they may do depends on how many there are.
    pub fn wake_keepers(&self) {
        self.members.values().filter(|m| m.calls == 0).for_each(|m| m.keeper.notify_one());
    }

    /// How long a launch takes, for those who wait; a guess until one was seen.
    pub fn patience(&self) -> Duration {
        match self.cold.get() {
            Duration::ZERO => Duration::from_millis(200),
            known => known,
        }
    }
}

pub fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
