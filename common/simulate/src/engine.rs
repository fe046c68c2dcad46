//! The run: events in order of time, calls on their way, and what is seen of them.

mod balancer;
mod calls;
mod events;
pub mod node;
mod rivals;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use stoker_core::resources::{Ask, Resources};
use stoker_policy::board::Plan;
use stoker_policy::keeping::PATIENCE;
use stoker_policy::placement::key;

use self::balancer::{Balancer, Kept, Link, Turn};
use self::events::{Entry, Event};
use self::node::{Act, Node, Start};
use self::rivals::{Known, Listing, Rival};
use crate::measure::{Meter, Report};
use crate::random::Random;
use crate::scenario::{Change, Manners, Placer, Scenario};
use crate::trace::{Micros, SECOND, Trace, duration, micros};

/// News of a runner comes at most so often, as at the runner.
const NEWS_APART: Micros = 75_000;

/// A registry tells of a runner that came after this long.
const REGISTRY: Micros = SECOND / 10;

/// Pauses of rivals between their rounds.
const PAUSES: (Micros, Micros) = (10_000, 320_000);

/// Offers a call on average beyond which a run is a storm, and ends: nothing is learned from its rest.
const STORM: u64 = 60;

/// What a run does with every runner.
pub struct Rules {
    origin: Instant,
    pub manners: Manners,
    pub function_cpu: u32,
    pub launches_compute: bool,
}

impl Rules {
    /// A moment, as the policies know it: they only look at differences.
    pub fn instant(&self, at: Micros) -> Instant {
        self.origin + duration(at)
    }
}

/// Where a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// At its balancer.
    Placing,
    /// On its way to a runner, or waiting there: nothing of it has begun.
    Offered,
    /// A container is held for it.
    Held,
    Running,
    /// Its answer is on its way.
    Answering,
}

/// A call that is not over.
struct Active {
    nth: usize,
    function: u32,
    arrived: Micros,
    takes: Micros,
    balancer: u32,
    stamp: u32,
    stage: Stage,
    tries: u32,
    node: u32,
    start: Start,
    plan: Option<Plan>,
    unheard: u64,
    /// Its number in the line, once it has one, and whether it stands there.
    place: Option<u64>,
    queued: bool,
    /// It stands in a runner's line.
    in_line: bool,
    turn: Option<Turn>,
    /// Of a rival: the rest of its round, and its last pause.
    round: Vec<u32>,
    pause: Micros,
}

struct Run<'a> {
    scenario: &'a Scenario,
    trace: &'a Trace,
    rules: Rules,
    now: Micros,
    order: u64,
    events: BinaryHeap<Reverse<Entry>>,
    nodes: Vec<Node>,
    /// Functions that changed since a runner's last news, and when that was.
    news: Vec<(Vec<u32>, Option<Micros>)>,
    balancers: Vec<Balancer>,
    rivals: Vec<Rival>,
    listing: Listing,
    keys: Vec<u64>,
    asks: Vec<Ask>,
    calls: Vec<Active>,
    free: Vec<u32>,
    next: usize,
    silent_until: Micros,
    /// Balancers will look once more at who keeps what.
    looks: bool,
    random: Random,
    launches: Random,
    meter: Meter,
}

/// Runs a trace through a fleet.
#[must_use]
pub fn run(scenario: &Scenario, trace: &Trace) -> Report {
    let rules = Rules {
        origin: Instant::now(),
        manners: scenario.manners,
        function_cpu: scenario.function_cpu,
        launches_compute: scenario.launches_compute,
    };
    let balancers = scenario.balancers.max(1);
    let mut run = Run {
        scenario,
        trace,
        rules,
        now: 0,
        order: 0,
        events: BinaryHeap::new(),
        nodes: Vec::new(),
        news: Vec::new(),
        balancers: (0..balancers).map(|_| Balancer::default()).collect(),
        rivals: (0..balancers).map(|_| Rival::default()).collect(),
        listing: Listing::default(),
        keys: trace.functions.iter().map(|function| key(function.name.as_bytes())).collect(),
        asks: trace
            .functions
            .iter()
            .map(|f| Ask { memory: f.memory, cpu_millis: scenario.function_cpu })
            .collect(),
        calls: Vec::new(),
        free: Vec::new(),
        next: 0,
        silent_until: 0,
        looks: false,
        random: Random::new(scenario.seed, 21),
        launches: Random::new(scenario.seed, 22),
        meter: Meter::new(scenario, trace),
    };
    run.all();
    run.meter.report(scenario, trace, &run.nodes.iter().map(|node| node.size).collect::<Vec<_>>())
}

impl Run<'_> {
    fn all(&mut self) {
        for kind in &self.scenario.runners {
            for _ in 0..kind.count {
                let node = self.add(kind.size);
                self.list(node);
            }
        }
        self.keep();
        for (nth, (at, _)) in (0u32..).zip(&self.scenario.changes) {
            self.at(*at, Event::Change { nth });
        }
        if self.scenario.placer != Placer::Stoker {
            self.after(self.scenario.report, Event::Report);
        }
        if let Some(first) = self.trace.calls.first() {
            self.at(first.at, Event::Arrive);
        }
        while let Some(Reverse(Entry { at, event, .. })) = self.events.pop() {
            let over = self.next == self.trace.calls.len() && self.free.len() == self.calls.len();
            if over || self.meter.tries > STORM * (self.meter.ended + 5_000) {
                self.meter.stormed = !over;
                return;
            }
            self.now = at;
            self.on(event);
        }
    }

    fn at(&mut self, at: Micros, event: Event) {
        self.order += 1;
        self.events.push(Reverse(Entry { at, order: self.order, event }));
    }

    fn after(&mut self, pause: Micros, event: Event) {
        self.at(self.now + pause, event);
    }

    /// A runner is there; nobody knows it yet.
    fn add(&mut self, size: Resources) -> u32 {
        self.nodes.push(Node::new(size));
        self.news.push((Vec::new(), None));
        self.meter.added();
        (self.nodes.len() - 1) as u32
    }

    /// Everybody knows it.
    fn list(&mut self, node: u32) {
        let name = format!("runner-{node}");
        let (key, size, now) =
            (key(name.as_bytes()), self.nodes[node as usize].size, self.rules.instant(self.now));
        for balancer in &mut self.balancers {
            let link = balancer.board.join(key, size, now, |seat| Link::new(node, seat));
            balancer.links.resize(balancer.links.len().max(node as usize + 1), None);
            balancer.links[node as usize] = Some(link);
        }
        let cores = (f64::from(size.cpu_millis) / 1000.0).max(0.001);
        self.listing.known.push(Known { node, key, cores, reported: 0 });
        self.listing.changed();
        for at in 0..self.balancers.len() {
            self.balancers[at].room(node, size);
            self.called(at);
        }
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Arrive => self.arrive(),
            Event::Offered { call, stamp } if self.is(call, stamp) => self.offered(call),
            Event::Second { call, stamp, node, life } if self.is(call, stamp) => {
                self.second(call, node, self.lives(node, life));
            }
            Event::Refused { call, stamp, idle, closed } if self.is(call, stamp) => {
                self.refused(call, Some(idle), closed);
            }
            Event::Begin { call, stamp } if self.is(call, stamp) => self.begin(call),
            Event::Done { call, stamp } if self.is(call, stamp) => self.done(call),
            Event::Answered { call, stamp, idle } if self.is(call, stamp) => self.answered(call, idle),
            Event::Again { call, stamp } if self.is(call, stamp) => self.round(call),
            Event::TooLong { call, stamp } => {
                let known = self.calls.get(call as usize).filter(|c| c.stamp == stamp && c.queued);
                if let Some(active) = known {
                    let (at, function, place) = (active.balancer, active.function, active.place);
                    self.balancers[at as usize]
                        .leave(self.keys[function as usize], place.unwrap_or_default());
                    self.lost(call);
                }
            }
            Event::Overdue { node, life, call, function, pause } if self.lives(node, life) => {
                let (again, left) =
                    self.nodes[node as usize].overdue(function, call, pause, self.now, &self.rules);
                if let Some(pause) = again {
                    self.after(pause, Event::Overdue { node, life, call, function, pause });
                }
                if left {
                    self.left_line(call);
                    let (stamp, idle) = (self.stamp(call), self.nodes[node as usize].idle(function));
                    self.after(self.scenario.hop, Event::Refused { call, stamp, idle, closed: false });
                }
                self.acts(node);
            }
            Event::Launched { node, life, function, start, took } if self.lives(node, life) => {
                self.meter.idle(node, &self.nodes[node as usize], self.now);
                self.nodes[node as usize].launched(function, start, took, self.now, &self.rules);
                self.acts(node);
            }
            Event::Expire { node, life, function, container } if self.lives(node, life) => {
                self.meter.idle(node, &self.nodes[node as usize], self.now);
                self.nodes[node as usize].expire(function, container);
                self.acts(node);
            }
            Event::Prewarm { node, life, function, until } if self.lives(node, life) => {
                if self.now <= until && self.nodes[node as usize].prewarm(function, self.now, &self.rules) {
                    self.meter.prewarmed();
                }
                self.acts(node);
            }
            Event::News { node, life } if self.lives(node, life) => {
                self.news[node as usize].1 = Some(self.now);
                self.after(self.scenario.hop, Event::Heard { node, life });
            }
            Event::Heard { node, life } if self.lives(node, life) => self.heard(node),
            Event::Report => {
                if self.silent_until <= self.now {
                    for known in &mut self.listing.known {
                        known.reported = self.nodes[known.node as usize].load();
                    }
                    for rival in &mut self.rivals {
                        rival.own.iter_mut().for_each(|(now, then)| *then = *now);
                    }
                }
                self.after(self.scenario.report, Event::Report);
            }
            Event::Listed { node } => {
                self.list(node);
                self.keep();
            }
            Event::Keep => {
                self.looks = false;
                self.keep();
            }
            Event::Change { nth } => self.change(nth),
            Event::Back { node } => {
                self.nodes[node as usize].alive = true;
                self.tell(node);
            }
            // Of a call or of a runner's life that is over.
            _ => {}
        }
    }

    fn lives(&self, node: u32, life: u32) -> bool {
        let node = &self.nodes[node as usize];
        node.alive && node.life == life
    }

    /// What follows from what a runner did.
    fn acts(&mut self, node: u32) {
        let mut acts = std::mem::take(&mut self.nodes[node as usize].acts);
        let life = self.nodes[node as usize].life;
        for act in acts.drain(..) {
            match act {
                Act::Launch { function, start } => {
                    let median = self.trace.functions[function as usize].cold as f64;
                    let took = self.launches.log_normal(median, 0.2) as Micros;
                    self.meter.launched();
                    self.after(took, Event::Launched { node, life, function, start, took });
                }
                Act::Give { call, start } => {
                    self.left_line(call);
                    let active = &mut self.calls[call as usize];
                    (active.start, active.stage) = (start, Stage::Held);
                    let stamp = self.stamp(call);
                    // The word that it is ready, and the permission to start.
                    self.after(2 * self.scenario.hop, Event::Begin { call, stamp });
                }
                Act::Rests { function, container } => {
                    let timeout = self.scenario.idle_timeout;
                    self.after(timeout, Event::Expire { node, life, function, container });
                }
                Act::Changed { function } => self.changed(node, function),
                Act::Bare { function } => self.expect(node, life, function),
                Act::Evicted { count } => self.meter.evicted(count),
            }
        }
        self.nodes[node as usize].acts = acts;
    }

    fn expect(&mut self, node: u32, life: u32, function: u32) {
        if !self.scenario.prewarms || self.scenario.manners == Manners::Plain {
            return;
        }
        let kept = duration(self.scenario.idle_timeout);
        if let Some((launch, until)) = self.nodes[node as usize].expects(function, kept) {
            let after = |at: Instant| micros(at.saturating_duration_since(self.rules.origin));
            let (launch, until) = (after(launch), after(until));
            if until > self.now {
                self.at(launch.max(self.now), Event::Prewarm { node, life, function, until });
            }
        }
    }

    /// Every balancer decides which runners keep how many containers ready, and says so.
    fn keep(&mut self) {
        let wanted = self.scenario.min_containers;
        if wanted == 0 || self.scenario.placer != Placer::Stoker {
            return;
        }
        for at in 0..self.balancers.len() {
            let now = self.rules.instant(self.now);
            for Kept { node, function, containers } in
                self.balancers[at].keep(wanted, &self.keys, &self.asks, &self.nodes, now)
            {
                if !self.nodes[node as usize].alive {
                    continue;
                }
                let ask = self.asks[function as usize];
                self.nodes[node as usize].keep(at, function, ask, containers, self.now, &self.rules);
            }
        }
        (0..self.nodes.len() as u32).for_each(|node| self.acts(node));
        // A runner that cannot is passed over after a while.
        if !self.looks && self.nodes.iter().any(Node::is_short) {
            self.looks = true;
            self.after(micros(PATIENCE), Event::Keep);
        }
    }

    /// A function's warmth is news.
    fn changed(&mut self, node: u32, function: u32) {
        if self.scenario.placer != Placer::Stoker {
            return;
        }
        let (changed, last) = &mut self.news[node as usize];
        let due = changed.is_empty();
        if !changed.contains(&function) {
            changed.push(function);
        }
        if due {
            let wait = last.map_or(0, |last| (last + NEWS_APART).saturating_sub(self.now));
            let life = self.nodes[node as usize].life;
            self.after(wait, Event::News { node, life });
        }
    }

    fn heard(&mut self, node: u32) {
        let mut changed = std::mem::take(&mut self.news[node as usize].0);
        let now = self.rules.instant(self.now);
        let room = self.nodes[node as usize].room();
        for at in 0..self.balancers.len() {
            let balancer = &mut self.balancers[at];
            let Some(link) = balancer.link(node).cloned() else { continue };
            balancer.board.freed(link.seat());
            for function in &changed {
                let idle = self.nodes[node as usize].idle(*function);
                balancer.board.said(link.seat(), self.keys[*function as usize], idle, now);
            }
            let given = balancer.room(node, room);
            self.called(at);
            let mut cpu = room.cpu_millis;
            for function in changed.iter().filter(|_| !given) {
                cpu = self.idle(at, *function, node, self.nodes[node as usize].idle(*function), cpu);
            }
        }
        changed.clear();
        // What changed while the news was told is the next news.
        changed.append(&mut self.news[node as usize].0);
        let more = !changed.is_empty();
        self.news[node as usize].0 = changed;
        if more {
            let life = self.nodes[node as usize].life;
            self.after(NEWS_APART, Event::News { node, life });
        }
    }

    fn tell(&mut self, node: u32) {
        let at = (self.now + REGISTRY).max(self.silent_until);
        self.at(at, Event::Listed { node });
    }

    fn change(&mut self, nth: u32) {
        let Some((_, change)) = self.scenario.changes.get(nth as usize).copied() else { return };
        match change {
            Change::Silence { lasts } => self.silent_until = self.now + lasts,
            Change::Add { size } => {
                let node = self.add(size);
                self.tell(node);
            }
            Change::Kill { runner, back } => {
                if self.nodes.get(runner).is_some_and(|node| node.alive) {
                    self.kill(runner as u32);
                    if let Some(back) = back {
                        self.after(back, Event::Back { node: runner as u32 });
                    }
                }
            }
        }
        self.meter.changed(self.now);
    }

    fn kill(&mut self, node: u32) {
        self.meter.idle(node, &self.nodes[node as usize], self.now);
        self.nodes[node as usize].kill();
        self.news[node as usize] = (Vec::new(), None);
        for balancer in &mut self.balancers {
            if let Some(link) = balancer.gone(node) {
                link.open(false);
                balancer.board.leave(link.seat());
            }
        }
        self.listing.known.retain(|known| known.node != node);
        self.listing.changed();
        let there = |active: &Active| active.node == node && active.stage != Stage::Placing;
        let of_it: Vec<(u32, Stage)> = (0u32..)
            .zip(&self.calls)
            .filter(|(call, active)| there(active) && !self.free.contains(call))
            .map(|(call, active)| (call, active.stage))
            .collect();
        for (call, stage) in of_it {
            match stage {
                Stage::Running => {
                    self.exit(call);
                    self.lost(call);
                }
                // An answer that is on its way arrives; what has not begun is offered elsewhere.
                Stage::Answering | Stage::Placing => {}
                Stage::Offered | Stage::Held => {
                    self.stamp(call);
                    self.calls[call as usize].in_line = false;
                    self.refused(call, None, false);
                }
            }
        }
        self.keep();
    }
}
