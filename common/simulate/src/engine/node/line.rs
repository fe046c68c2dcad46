//! Those who wait at a runner: who is served next, what is launched for them, and who has waited long enough.

use std::time::Instant;

use stoker_policy::launch::{Decision, WaitingFunction, cap, decide};

use super::room::Cost;
use super::{Act, Begun, Node, Rules, Start, Waiter};
use crate::scenario::RunnerPolicy;
use crate::trace::{Micros, SECOND};

/// Nothing has to move for at least this long before a call goes elsewhere, as at the runner.
const STANDSTILL: Micros = SECOND / 2;

impl Node {
    /// A call has waited for a while. It looks again after the pause that is returned, if it is still here and has hope; `None` and
    /// `true` if it has none and has left.
    pub fn overdue(
        &mut self,
        function: u32,
        call: u32,
        pause: Micros,
        now: Micros,
        rules: &Rules,
    ) -> (Option<Micros>, bool) {
        let all = self.moves;
        let Some(pool) = self.pools.get_mut(&function) else { return (None, false) };
        let Some(waiter) = pool.waiters.iter_mut().find(|waiter| waiter.call == call) else {
            return (None, false);
        };
        waiter.overdue = true;
        let expected = waiter.expected;
        self.pump(now, rules);
        let Some(pool) = self.pools.get_mut(&function) else { return (None, false) };
        let Some(at) = pool.waiters.iter().position(|waiter| waiter.call == call) else {
            return (None, false);
        };
        let seen = pool.waiters[at].seen.replace(all);
        if pool.launching > 0 || seen != Some(all) || rules.runner_policy == RunnerPolicy::Plain {
            return (Some((pause * 2).max(expected).max(STANDSTILL)), false);
        }
        pool.gave_up = Some(all);
        pool.unqueue(at, now);
        self.waiting -= 1;
        self.fed(function);
        self.pump(now, rules);
        (None, true)
    }

    /// A call starts here if somebody is idle, and does not wait else.
    pub fn start(&mut self, function: u32, now: Instant, rules: &Rules) -> Option<Start> {
        self.pools.get(&function).filter(|pool| pool.waiters.is_empty())?;
        let start = self.take(function, now, rules)?;
        self.acts.push(Act::Changed { function });
        Some(start)
    }

    /// A call that waits goes elsewhere.
    pub fn leave(&mut self, function: u32, call: u32, now: Micros, rules: &Rules) {
        let Some(pool) = self.pools.get_mut(&function) else { return };
        let Some(at) = pool.waiters.iter().position(|waiter| waiter.call == call) else { return };
        pool.unqueue(at, now);
        self.waiting -= 1;
        self.fed(function);
        self.pump(now, rules);
    }

    pub(super) fn fed(&mut self, function: u32) {
        if self.pools.get(&function).is_none_or(|pool| pool.waiters.is_empty()) {
            self.waiting_functions.retain(|other| *other != function);
        }
    }

    /// Serves whoever waits, with what there is; if nobody does, fills up what is short.
    pub(super) fn pump(&mut self, now: Micros, rules: &Rules) {
        self.serve_all(now, rules);
        self.refill_all(now, rules);
    }

    fn serve_all(&mut self, now: Micros, rules: &Rules) {
        // Neither can a call begin without CPU nor, where that computes, a launch.
        if self.waiting == 0 || self.free.cpu_millis < Self::working(rules).min(Self::starting(rules)) {
            return;
        }
        let apps = self.apps();
        let waiting = |function: &u32| {
            let pool = self.pools.get(function)?;
            let first = pool.waiters.front()?;
            let since = rules.instant(first.since);
            let (app, held) = (apps.waiting(&pool.as_shared(), &self.size), pool.busy + pool.launching);
            Some((WaitingFunction { app, since, held, overdue: first.overdue }, *function))
        };
        let mut order: Vec<_> = self.waiting_functions.iter().filter_map(waiting).collect();
        order.sort_unstable_by(|(a, one), (b, other)| a.order(b).then(one.cmp(other)));
        let mut held = false;
        for (_, function) in order {
            held |= self.serve(function, held, now, rules);
        }
    }

    fn serve(&mut self, function: u32, held: bool, now: Micros, rules: &Rules) -> bool {
        let instant = rules.instant(now);
        while self.pools.get(&function).is_some_and(|pool| !pool.waiters.is_empty()) {
            let Some(start) = self.take(function, instant, rules) else { break };
            self.turns += 1;
            let turn = self.turns;
            let waiter = self.pools.get_mut(&function).and_then(|pool| pool.next(turn, now));
            self.waiting -= 1;
            if let Some(Waiter { call, .. }) = waiter {
                self.acts.push(Act::Give { call, start });
                self.acts.push(Act::Changed { function });
            }
        }
        self.fed(function);
        loop {
            let Some(pool) = self.pools.get(&function) else { return false };
            let Some(last) = pool.waiters.len().checked_sub(1).filter(|_| pool.idle.is_empty()) else {
                return false;
            };
            let facts = pool.facts(last, now);
            let launch = match (rules.runner_policy, decide(&facts)) {
                (RunnerPolicy::Stoker, Decision::Wait) => None,
                (RunnerPolicy::Stoker, Decision::Launch) => Some((Start::Cold, Cost::Anybodys)),
                (RunnerPolicy::Stoker, Decision::LaunchBeside) => Some((Start::Beside, Cost::Larger)),
                (RunnerPolicy::Plain, _) => {
                    (facts.launching <= facts.waiting).then_some((Start::Cold, Cost::Anybodys))
                }
            };
            let allowed = !held && self.launching < cap(&self.size, &pool.ask);
            let Some((start, cost)) = launch.filter(|_| allowed) else { return false };
            match self.begin(function, start, cost, now, rules) {
                Begun::Launch => {}
                // It is for this one.
                Begun::Room => return true,
                Begun::Nothing => return facts.overdue,
            }
        }
    }
}
