//! The way of a call: to its balancer, from runner to runner, and back.

use std::time::Duration;

use stoker_core::capacity::Warmth;
use stoker_policy::board::Wanted;
use stoker_policy::placement::key;

use super::balancer::{Balancer, Called};
use super::events::Event;
use super::node::{Acquired, Asker, Start};
use super::{Active, PAUSES, Run, Stage, UNTOLD};
use crate::scenario::Placer;
use crate::trace::Micros;

impl Run<'_> {
    pub(super) fn is(&self, call: u32, stamp: u32) -> bool {
        self.calls[call as usize].stamp == stamp
    }

    /// What comes next for a call makes all void that was to come for it.
    pub(super) fn stamp(&mut self, call: u32) -> u32 {
        let active = &mut self.calls[call as usize];
        active.stamp = active.stamp.wrapping_add(1);
        active.stamp
    }

    pub(super) fn arrive(&mut self, balancer: u32, function: u32) {
        let nth = self.next;
        let coming = self.trace.calls[nth];
        self.next += 1;
        let active = Active {
            nth,
            function,
            arrived: self.now,
            takes: coming.takes,
            balancer,
            stamp: 0,
            stage: Stage::Placing,
            tries: 0,
            node: u32::MAX,
            start: Start::Warm,
            plan: None,
            unheard: 0,
            place: None,
            queued: false,
            in_line: false,
            told: 0,
            second: false,
            ready: None,
            turn: None,
            round: Vec::new(),
            pause: PAUSES.0 / 2,
        };
        let call = match self.free.pop() {
            Some(call) => {
                let stamp = self.calls[call as usize].stamp.wrapping_add(1);
                self.calls[call as usize] = Active { stamp, ..active };
                call
            }
            None => {
                self.calls.push(active);
                (self.calls.len() - 1) as u32
            }
        };
        if self.scenario.placer != Placer::Stoker {
            return self.round(call);
        }
        let (ask, function) = (self.asks[function as usize], self.keys[function as usize]);
        let balancer = &self.balancers[balancer as usize];
        let unheard = balancer.unheard;
        self.calls[call as usize].unheard = unheard;
        if balancer.may_try(function) {
            let plan = Balancer::plan(Wanted { function, version: function, ask }, nth as u64);
            self.calls[call as usize].plan = Some(plan);
            self.next_try(call);
        } else {
            self.wait(call);
        }
    }

    /// Asks the next runner of our plan, or stands in line.
    pub(super) fn next_try(&mut self, call: u32) {
        let active = &mut self.calls[call as usize];
        let balancer = &mut self.balancers[active.balancer as usize];
        let now = self.rules.instant(self.now);
        let choice = active.plan.as_mut().and_then(|plan| plan.next(&mut balancer.board, now));
        match choice {
            Some(choice) => self.offer(call, choice.peer.node()),
            None => {
                self.calls[call as usize].plan = None;
                self.wait(call);
            }
        }
    }

    pub(super) fn wait(&mut self, call: u32) {
        let active = &mut self.calls[call as usize];
        let (at, function, unheard) = (active.balancer as usize, active.function as usize, active.unheard);
        let (turn, place) = (active.turn.take(), active.place);
        (active.queued, active.stage) = (true, Stage::Placing);
        let ask = self.asks[function];
        let number = self.balancers[at].wait(call, self.keys[function], ask, place, unheard, turn);
        let Some(number) = number else { return self.lost(call) };
        self.calls[call as usize].place = Some(number);
        let left = (self.calls[call as usize].arrived + self.scenario.max_wait).saturating_sub(self.now);
        let stamp = self.stamp(call);
        self.after(left, Event::TooLong { call, stamp });
        self.called(at);
    }

    /// Those who got a turn ask.
    pub(super) fn called(&mut self, at: usize) {
        while let Some(Called { call, turn }) = self.balancers[at].called.pop_front() {
            let (unheard, node) = (self.balancers[at].unheard, turn.node);
            let active = &mut self.calls[call as usize];
            (active.queued, active.turn, active.unheard) = (false, Some(turn), unheard);
            let ask = self.asks[active.function as usize];
            let open =
                self.nodes[node as usize].size.could_hold(&ask) && self.balancers[at].link(node).is_some();
            if open {
                self.offer(call, node);
            } else {
                self.wait(call);
            }
        }
    }

    /// A rival's next try, or its next round after a pause.
    pub(super) fn round(&mut self, call: u32) {
        let active = &mut self.calls[call as usize];
        let (at, function) = (active.balancer as usize, active.function as usize);
        let mut round = std::mem::take(&mut active.round);
        let placer = self.scenario.placer;
        self.rivals[at].round(
            placer,
            &self.listing,
            function as u32,
            self.keys[function],
            &mut self.random,
            &mut round,
        );
        round.reverse();
        self.calls[call as usize].round = round;
        self.rival_try(call);
    }

    pub(super) fn rival_try(&mut self, call: u32) {
        let ask = self.asks[self.calls[call as usize].function as usize];
        while let Some(node) = self.calls[call as usize].round.pop() {
            let known = &self.nodes[node as usize];
            if known.alive && known.size.could_hold(&ask) {
                return self.offer(call, node);
            }
        }
        let active = &mut self.calls[call as usize];
        if self.now - active.arrived > self.scenario.max_wait {
            return self.lost(call);
        }
        active.pause = (active.pause * 2).min(PAUSES.1);
        let pause = (active.pause as f64 * (0.75 + self.random.unit() / 2.0)) as Micros;
        let stamp = self.stamp(call);
        self.after(pause, Event::Again { call, stamp });
    }

    pub(super) fn offer(&mut self, call: u32, node: u32) {
        let active = &mut self.calls[call as usize];
        (active.node, active.stage) = (node, Stage::Offered);
        (active.second, active.ready) = (false, None);
        active.tries += 1;
        self.meter.tries += 1;
        let (at, function) = (active.balancer as usize, active.function as usize);
        if let Some(link) = self.balancers[at].link(node).cloned() {
            link.enter();
            self.balancers[at].board.used(link.seat(), self.keys[function]);
        }
        let own = &mut self.rivals[at].own;
        own.resize(own.len().max(node as usize + 1), (0, 0));
        own[node as usize].0 += 1;
        let stamp = self.stamp(call);
        self.after(self.scenario.hop, Event::Offered { call, stamp });
    }

    /// A call is not at its runner any more.
    pub(super) fn exit(&mut self, call: u32) {
        let active = &self.calls[call as usize];
        let at = active.balancer as usize;
        if let Some(link) = self.balancers[at].link(active.node) {
            link.leave();
        }
        if let Some((now, _)) = self.rivals[at].own.get_mut(active.node as usize) {
            *now = now.saturating_sub(1);
        }
    }

    pub(super) fn offered(&mut self, call: u32) {
        let active = &self.calls[call as usize];
        let (node, function, takes) = (active.node, active.function, active.takes);
        let (ask, app) = (self.asks[function as usize], self.apps[function as usize]);
        self.meter.idle(node, &self.nodes[node as usize], self.now);
        let runner = &mut self.nodes[node as usize];
        let life = runner.life;
        // Balancers have numbers that say nothing of their order.
        let asker = Asker { balancer: key(&active.balancer.to_le_bytes()), waited: active.place.is_some() };
        let acquired = runner.acquire(
            call,
            asker,
            (function, app),
            ask,
            self.now,
            Duration::from_secs(3600),
            &self.rules,
        );
        match acquired {
            Acquired::Now(start) => {
                self.gives_up_place(call);
                let active = &mut self.calls[call as usize];
                (active.start, active.stage) = (start, Stage::Running);
                let stamp = self.stamp(call);
                self.after(takes, Event::Done { call, stamp });
            }
            Acquired::Wait { expected, pause } => {
                let active = &mut self.calls[call as usize];
                active.told = if expected > UNTOLD { self.now } else { self.now + UNTOLD };
                let (told, stamp) = (active.told, active.stamp);
                self.at(told + self.scenario.hop, Event::Accepted { call, stamp });
                self.after(pause, Event::Overdue { node, life, call, function, pause });
            }
            Acquired::Refused { closed } => {
                let (stamp, warmth) = (self.stamp(call), self.nodes[node as usize].warmth(function));
                self.after(self.scenario.hop, Event::Refused { call, stamp, warmth, closed });
            }
        }
        self.acts(node);
    }

    /// Its balancer knows that it stands in a line.
    pub(super) fn accepted(&mut self, call: u32) {
        let active = &mut self.calls[call as usize];
        active.in_line = true;
        let (at, node, function) = (active.balancer as usize, active.node, active.function);
        self.balancers[at].stands(node, function, call);
    }

    /// A call that stood in a line has a container.
    pub(super) fn given(&mut self, call: u32, start: Start) {
        self.left_line(call);
        let (now, hop) = (self.now, self.scenario.hop);
        let active = &mut self.calls[call as usize];
        active.start = start;
        if now < active.told {
            // Nobody was told that it waits: it starts like one that did not.
            return self.begin(call);
        }
        (active.stage, active.ready) = (Stage::Held, Some(now + hop));
        if !active.second {
            let stamp = self.stamp(call);
            // The word that it is ready, and the permission to start.
            self.after(2 * hop, Event::Begin { call, stamp });
        }
    }

    /// Refused, with how warm its function is there; or its runner is lost and it has not begun.
    pub(super) fn refused(&mut self, call: u32, warmth: Option<Warmth>, closed: bool) {
        self.exit(call);
        let active = &self.calls[call as usize];
        let (at, node, function) = (active.balancer as usize, active.node, active.function as usize);
        self.calls[call as usize].stage = Stage::Placing;
        if self.scenario.placer != Placer::Stoker {
            return self.rival_try(call);
        }
        let now = self.rules.instant(self.now);
        let balancer = &mut self.balancers[at];
        if let (Some(link), Some(warmth)) = (balancer.link(node).cloned(), warmth) {
            balancer.board.refused(link.seat(), now);
            balancer.board.said(link.seat(), self.keys[function], warmth, now);
        }
        if self.calls[call as usize].turn.is_some() {
            if closed {
                // Nobody else would get in.
                self.calls[call as usize].turn = None;
            }
            self.wait(call);
        } else {
            self.next_try(call);
        }
    }

    /// So many containers of a function are idle at a runner, which has so much free CPU, and nobody without a place wants them: calls that
    /// stand in other lines ask there too, as many as could start. Gives what CPU is left.
    pub(super) fn idle(&mut self, at: usize, function: u32, node: u32, containers: u32, mut cpu: u32) -> u32 {
        let works = self.asks[function as usize].working().cpu_millis;
        for _ in 0..containers {
            let Some(left) = cpu.checked_sub(works) else { break };
            let Some(call) = self.balancers[at].mover(function, node) else { break };
            cpu = left;
            let active = &mut self.calls[call as usize];
            active.tries += 1;
            active.second = true;
            self.meter.tries += 1;
            let (stamp, life) = (active.stamp, self.nodes[node as usize].life);
            if let Some(link) = self.balancers[at].link(node) {
                let seat = link.seat();
                self.balancers[at].board.used(seat, self.keys[function as usize]);
            }
            self.after(self.scenario.hop, Event::Second { call, stamp, node, life });
        }
        cpu
    }

    /// The second runner has it: it starts there at once, or not there.
    pub(super) fn second(&mut self, call: u32, node: u32, lives: bool) {
        let active = &self.calls[call as usize];
        let (first, function, at, stamp) =
            (active.node, active.function, active.balancer as usize, active.stamp);
        let instant = self.rules.instant(self.now);
        if lives {
            self.meter.idle(node, &self.nodes[node as usize], self.now);
        }
        let started =
            if lives { self.nodes[node as usize].start(function, instant, &self.rules) } else { None };
        let Some(start) = started else {
            let warmth = self.nodes[node as usize].warmth(function);
            return self.after(self.scenario.hop, Event::SecondRefused { call, stamp, node, warmth });
        };
        if self.calls[call as usize].stage == Stage::Held {
            self.nodes[first as usize].give_back(function, self.now, &self.rules);
        } else {
            self.nodes[first as usize].leave(function, call, self.now, &self.rules);
        }
        self.left_line(call);
        self.exit(call);
        if let Some(link) = self.balancers[at].link(node) {
            link.enter();
        }
        let active = &mut self.calls[call as usize];
        (active.node, active.start) = (node, start);
        self.begin(call);
        self.acts(first);
        self.acts(node);
    }

    /// Nobody was idle there: it starts at the first where that is ready, and is offered elsewhere again where not.
    pub(super) fn second_refused(&mut self, call: u32, node: u32, warmth: Warmth) {
        let active = &mut self.calls[call as usize];
        active.second = false;
        let (at, first, function, ready) =
            (active.balancer as usize, active.node, active.function, active.ready);
        let now = self.rules.instant(self.now);
        if let Some(link) = self.balancers[at].link(node).cloned() {
            let board = &mut self.balancers[at].board;
            board.refused(link.seat(), now);
            board.said(link.seat(), self.keys[function as usize], warmth, now);
        }
        match ready {
            Some(ready) => {
                let stamp = self.stamp(call);
                self.at(ready.max(self.now) + self.scenario.hop, Event::Begin { call, stamp });
            }
            None if self.calls[call as usize].in_line => self.balancers[at].would_move(first, function, call),
            None => {}
        }
    }

    /// A call does not stand in a runner's line any more: another of its balancer may.
    pub(super) fn left_line(&mut self, call: u32) {
        let active = &mut self.calls[call as usize];
        if std::mem::take(&mut active.in_line) {
            let (at, node, function) = (active.balancer as usize, active.node, active.function);
            self.balancers[at].leaves(node, function, call);
            self.called(at);
        }
    }

    /// A call that starts, or is over, needs its place in the queue no more.
    fn gives_up_place(&mut self, call: u32) {
        let active = &self.calls[call as usize];
        if let Some(place) = active.place {
            self.balancers[active.balancer as usize].leave(self.keys[active.function as usize], place);
        }
    }

    pub(super) fn begin(&mut self, call: u32) {
        self.gives_up_place(call);
        let active = &mut self.calls[call as usize];
        (active.stage, active.second, active.ready) = (Stage::Running, false, None);
        let (takes, stamp) = (self.calls[call as usize].takes, self.stamp(call));
        self.after(takes, Event::Done { call, stamp });
    }

    pub(super) fn done(&mut self, call: u32) {
        let active = &mut self.calls[call as usize];
        active.stage = Stage::Answering;
        let (node, function, takes, nth) = (active.node, active.function, active.takes, active.nth);
        self.meter.worked(node, nth, takes);
        self.meter.idle(node, &self.nodes[node as usize], self.now);
        self.nodes[node as usize].release(function, takes, self.now, &self.rules);
        let (stamp, warmth) = (self.stamp(call), self.nodes[node as usize].warmth(function));
        self.after(self.scenario.hop, Event::Answered { call, stamp, warmth });
        self.acts(node);
    }

    pub(super) fn answered(&mut self, call: u32, warmth: Warmth) {
        self.exit(call);
        let active = &self.calls[call as usize];
        let (at, node, function) = (active.balancer as usize, active.node, active.function);
        let added = self.now - active.arrived - active.takes;
        self.meter.answered(active, self.now, added);
        self.over(call);
        let now = self.rules.instant(self.now);
        let balancer = &mut self.balancers[at];
        if let Some(link) = balancer.link(node).cloned() {
            balancer.board.freed(link.seat());
            balancer.board.said(link.seat(), self.keys[function as usize], warmth, now);
        }
        let idle = warmth.idle;
        if self.scenario.placer == Placer::Stoker {
            let given = balancer.ended(node, idle > 0);
            self.called(at);
            if !given {
                // What it worked with is free, unless one in the line has taken it.
                self.idle(at, function, node, idle.min(1), u32::MAX);
            }
        } else if idle > 0 {
            self.rivals[at].told(function, node);
        }
    }

    pub(super) fn over(&mut self, call: u32) {
        self.gives_up_place(call);
        self.stamp(call);
        let active = &mut self.calls[call as usize];
        active.queued = false;
        let (balancer, function) = (active.balancer, active.function);
        self.free.push(call);
        if self.scenario.callers > 0 {
            self.after(0, Event::Caller { balancer, function });
        }
    }

    /// A call that nobody answers.
    pub(super) fn lost(&mut self, call: u32) {
        self.meter.lost(self.calls[call as usize].nth);
        self.over(call);
    }
}
