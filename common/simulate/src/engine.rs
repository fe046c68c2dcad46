//! The run: events in order of time, calls on their way, and what is seen of them.

mod balancer;
mod calls;
mod events;
mod fleet;
pub mod node;
mod rivals;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use stoker_core::resources::Ask;
use stoker_policy::board::Plan;
use stoker_policy::placement::key;

use self::balancer::{Balancer, Turn};
use self::events::{Entry, Event};
use self::node::{Act, Node, Start};
use self::rivals::{Listing, Rival};
use crate::measure::{Meter, Report};
use crate::random::Random;
use crate::scenario::{Placer, RunnerPolicy, Scenario};
use crate::trace::{Micros, SECOND, Trace, duration, micros};

/// News of a runner comes at most so often, as at the runner.
const NEWS_APART: Micros = 75_000;

/// A runner says nothing of a wait that is as short as this, as at the runner.
const UNTOLD: Micros = 5_000;

/// Those who call again and again begin one after the other.
const CALLERS_APART: Micros = 1_000;

/// A registry tells of a runner that came after this long.
const REGISTRY: Micros = SECOND / 10;

/// Pauses of rivals between their rounds.
const PAUSES: (Micros, Micros) = (10_000, 320_000);

/// Offers a call on average beyond which a run is a storm, and ends: nothing is learned from its rest.
const STORM: u64 = 60;

/// Calls that may have been offered without having ended, and are no sign of a storm: as many as the fleet has cores, and however few it has.
const BEGUN: u64 = 5_000;

/// What a run does with every runner.
pub struct Rules {
    origin: Instant,
    pub runner_policy: RunnerPolicy,
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
pub struct Active {
    pub nth: usize,
    pub function: u32,
    arrived: Micros,
    pub takes: Micros,
    pub balancer: u32,
    stamp: u32,
    stage: Stage,
    pub tries: u32,
    node: u32,
    pub start: Start,
    plan: Option<Plan>,
    unheard: u64,
    /// Its number in the line, once it has one, and whether it stands there.
    place: Option<u64>,
    queued: bool,
    /// It stands in a runner's line, as its balancer knows.
    in_line: bool,
    /// When its runner says so.
    told: Micros,
    /// It was offered to a second runner, which has not answered; meanwhile it does not start at the first.
    second: bool,
    /// Its balancer knows by then that a container is held for it.
    ready: Option<Micros>,
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
    /// Of each function its app.
    apps: Vec<u64>,
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
        runner_policy: scenario.runner_policy,
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
        apps: trace.functions.iter().map(|function| key(function.app().as_bytes())).collect(),
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
        let callers = self.scenario.callers.min(self.trace.calls.len());
        for caller in 0..callers {
            let balancer = (caller * self.balancers.len() / callers) as u32;
            // Each balancer has callers of every function.
            let function = (caller % self.trace.functions.len().max(1)) as u32;
            self.at(caller as Micros * CALLERS_APART, Event::Caller { balancer, function });
        }
        if let Some(first) = self.trace.calls.first().filter(|_| callers == 0) {
            self.at(first.at, Event::Arrive);
        }
        let begun = BEGUN.max(self.scenario.cores() as u64);
        while let Some(Reverse(Entry { at, event, .. })) = self.events.pop() {
            let over = self.next == self.trace.calls.len() && self.free.len() == self.calls.len();
            if over || self.meter.tries > STORM * (self.meter.ended + begun) {
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
        self.at(self.now.saturating_add(pause), event);
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Arrive => {
                if let Some(next) = self.trace.calls.get(self.next + 1) {
                    self.at(next.at, Event::Arrive);
                }
                let balancer = self.random.below(self.balancers.len()) as u32;
                self.arrive(balancer, self.trace.calls[self.next].function);
            }
            Event::Caller { balancer, function } if self.next < self.trace.calls.len() => {
                self.arrive(balancer, function);
            }
            Event::Accepted { call, stamp } if self.is(call, stamp) => self.accepted(call),
            Event::SecondRefused { call, stamp, node, warmth } if self.is(call, stamp) => {
                self.second_refused(call, node, warmth);
            }
            Event::Offered { call, stamp } if self.is(call, stamp) => self.offered(call),
            Event::Second { call, stamp, node, life } if self.is(call, stamp) => {
                self.second(call, node, self.lives(node, life));
            }
            Event::Refused { call, stamp, warmth, closed } if self.is(call, stamp) => {
                self.refused(call, Some(warmth), closed);
            }
            Event::Begin { call, stamp } if self.is(call, stamp) => self.begin(call),
            Event::Done { call, stamp } if self.is(call, stamp) => self.done(call),
            Event::Answered { call, stamp, warmth } if self.is(call, stamp) => self.answered(call, warmth),
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
                    let (stamp, warmth) = (self.stamp(call), self.nodes[node as usize].warmth(function));
                    self.after(self.scenario.hop, Event::Refused { call, stamp, warmth, closed: false });
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
                    self.listing.reports(|node| self.nodes[node as usize].load());
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
                Act::Give { call, start } => self.given(call, start),
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
        if !self.scenario.prewarms || self.scenario.runner_policy == RunnerPolicy::Plain {
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
}
