//! A runner: its ledger, its containers, and who waits. The same order of things as in the runner's pools, with the decisions of
//! [`stoker_policy::launch`], [`stoker_policy::eviction`] and [`stoker_policy::prewarm`]; only that nothing really runs.

mod line;
mod min_containers;
mod room;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use stoker_core::capacity::Warmth;
use stoker_core::resources::{Ask, Resources};
use stoker_policy::eviction::Frequency;
use stoker_policy::launch::{Admission, Facts, Full, Mean, RunnerLoad, admit, cap, goes_on, turn, width};
use stoker_policy::prewarm::Arrivals;
use stoker_policy::shares::Function;
use stoker_policy::waiting::{may_claim, next_in_turn};

use self::room::Cost;
use super::Rules;
use crate::scenario::RunnerPolicy;
use crate::trace::{Micros, SECOND, duration};

/// What follows from what a runner did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// A container of this function is being launched.
    Launch { function: u32, start: Start },
    /// A call that waited has a container.
    Give { call: u32, start: Start },
    /// A container is idle from now on; it ends some time.
    Rests { function: u32, container: u32 },
    /// This function is as warm as it was not before.
    Changed { function: u32 },
    /// Nothing of this function is here any more.
    Bare { function: u32 },
    /// Idle containers made room.
    Evicted { count: u32 },
}

/// Who offers a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    /// A number of its balancer.
    pub balancer: u64,
    /// The call has waited there.
    pub waited: bool,
}

/// How a call met its container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It had served before.
    Warm,
    /// It was launched ahead, and this is its first call.
    Ahead,
    /// It was launched to be there whether or not anybody calls, and this is its first call.
    Kept,
    /// It was launched for a line that did not end, though each call in it was served soon, and this is its first call.
    Beside,
    /// It was launched for calls, and this is its first.
    Cold,
}

/// What comes of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquired {
    Now(Start),
    /// It stands in the line, as long as expected; it looks again after the pause.
    Wait {
        expected: Micros,
        pause: Micros,
    },
    /// `closed` is for calls of every function.
    Refused {
        closed: bool,
    },
}

#[derive(Debug, Clone, Copy)]
struct Resting {
    container: u32,
    since: Micros,
    start: Start,
}

struct Waiter {
    call: u32,
    balancer: u64,
    since: Micros,
    expected: Micros,
    overdue: bool,
    seen: Option<u64>,
}

struct Pool {
    /// Its app, for those who share the runner by app.
    app: u64,
    ask: Ask,
    idle: Vec<Resting>,
    busy: u32,
    /// Of those that are busy: they end with their calls.
    going: u32,
    launching: u32,
    waiters: VecDeque<Waiter>,
    /// Since when somebody has always been in the line, or its last launch in that time.
    standing: Micros,
    /// When somebody was in the line last, but for who is there now.
    stood: Micros,
    /// The balancer whose call was served last out of the line, and when that was among all that were.
    served: u64,
    turn: u64,
    /// How many each balancer wants to be kept here.
    wanted: Vec<u32>,
    frequency: Frequency,
    run: Mean,
    cold: Mean,
    moves: u64,
    gave_up: Option<u64>,
    arrivals: Arrivals,
}

impl Pool {
    fn bare(&self) -> bool {
        self.idle.is_empty() && self.busy == 0 && self.launching == 0
    }

    /// Containers that are here or will be, and stay.
    fn standing(&self) -> u32 {
        self.idle.len() as u32 + self.busy + self.launching - self.going
    }

    /// What it has of the runner.
    fn as_shared(&self) -> Function {
        Function {
            app: self.app,
            ask: self.ask,
            holds: self.standing(),
            works: self.busy + self.launching,
            waits: !self.waiters.is_empty(),
            served: self.turn,
        }
    }

    /// How many there shall be.
    fn minimum(&self) -> u32 {
        self.wanted.iter().copied().max().unwrap_or(0)
    }

    /// How many may go without it having too few.
    fn surplus(&self) -> u32 {
        self.standing().saturating_sub(self.minimum())
    }

    fn facts(&self, waiting: usize, now: Micros) -> Facts {
        let standing = if self.waiters.is_empty() { 0 } else { now - self.standing };
        Facts {
            waiting: waiting as u32,
            serving: self.idle.len() as u32 + self.busy - self.going,
            launching: self.launching,
            mean_call: self.run.get(),
            cold: self.cold.get(),
            standing: Duration::from_micros(standing),
            overdue: self.waiters.front().is_some_and(|waiter| waiter.overdue),
        }
    }

    /// Who of the line is served next: its balancers take turns.
    fn next(&mut self, turn: u64, now: Micros) -> Option<Waiter> {
        let at = next_in_turn(self.waiters.iter().map(|waiter| waiter.balancer), self.served)?;
        let waiter = self.unqueue(at, now)?;
        (self.served, self.turn) = (waiter.balancer, turn);
        Some(waiter)
    }

    /// Leaves the line.
    fn unqueue(&mut self, at: usize, now: Micros) -> Option<Waiter> {
        self.stood = now;
        self.waiters.remove(at)
    }

    /// How many calls of a balancer stand in the line.
    fn of(&self, balancer: u64) -> u32 {
        self.waiters.iter().filter(|waiter| waiter.balancer == balancer).count() as u32
    }

    fn patience(&self) -> Micros {
        match self.cold.get() {
            Duration::ZERO => SECOND / 5,
            known => known.as_micros() as Micros,
        }
    }
}

/// A runner.
pub struct Node {
    pub size: Resources,
    pub free: Resources,
    /// Counts its lives; what an earlier one was about to do does not happen.
    pub life: u32,
    pub alive: bool,
    pub running: u32,
    pub acts: Vec<Act>,
    pools: BTreeMap<u32, Pool>,
    /// Functions whose calls wait.
    waiting_functions: Vec<u32>,
    /// Functions with fewer containers than they shall have.
    short: BTreeSet<u32>,
    launching: u32,
    waiting: u32,
    moves: u64,
    /// Calls that were served out of a line.
    turns: u64,
    /// Of all functions.
    run: Mean,
    idle_memory: u64,
    idle_count: u32,
    next: u32,
}

impl Node {
    pub fn new(size: Resources) -> Self {
        Self {
            size,
            free: size,
            life: 0,
            alive: true,
            running: 0,
            acts: Vec::new(),
            pools: BTreeMap::new(),
            waiting_functions: Vec::new(),
            short: BTreeSet::new(),
            launching: 0,
            waiting: 0,
            moves: 0,
            turns: 0,
            run: Mean::default(),
            idle_memory: 0,
            idle_count: 0,
            next: 0,
        }
    }

    /// It is gone, and what it had with it.
    pub fn kill(&mut self) {
        *self = Self { life: self.life + 1, alive: false, ..Self::new(self.size) };
    }

    /// How warm it is for a function.
    pub fn warmth(&self, function: u32) -> Warmth {
        self.pools.get(&function).map_or(Warmth::default(), |pool| Warmth {
            idle: pool.idle.len() as u32,
            busy: pool.busy,
            waiting: pool.waiters.len() as u32,
        })
    }

    /// What idle containers hold.
    pub fn idle_memory(&self) -> u64 {
        self.idle_memory
    }

    /// What it could give to new containers.
    pub fn room(&self) -> Resources {
        let idle = Resources { memory: self.idle_memory, cpu_millis: 0, slots: self.idle_count };
        self.free.checked_add(idle).unwrap_or(self.size)
    }

    /// Calls that run and wait.
    pub fn load(&self) -> u32 {
        self.running + self.waiting
    }

    fn working(rules: &Rules) -> u32 {
        rules.function_cpu
    }

    fn starting(rules: &Rules) -> u32 {
        if rules.launches_compute { rules.function_cpu } else { 0 }
    }

    /// A container for a call: at once, later, or not here.
    pub fn acquire(
        &mut self,
        call: u32,
        asker: Asker,
        (function, app): (u32, u64),
        ask: Ask,
        now: Micros,
        remaining: Duration,
        rules: &Rules,
    ) -> Acquired {
        let instant = rules.instant(now);
        let pool = self.pool(function, app, ask, instant);
        pool.arrivals.add(instant);
        if pool.waiters.is_empty()
            && let Some(start) = self.take(function, instant, rules)
        {
            self.acts.push(Act::Changed { function });
            return Acquired::Now(start);
        }
        let room = self.has_room(ask, rules);
        let busy = self.free.cpu_millis < Self::working(rules) || self.waiting > 0;
        let load = RunnerLoad {
            width: width(&self.size, &ask),
            cap: cap(&self.size, &ask),
            waiting: self.waiting,
            launching: self.launching,
            turn: if busy { turn(self.waiting, self.running, self.run.get()) } else { Duration::ZERO },
            room,
        };
        let Some(pool) = self.pools.get_mut(&function) else { return Acquired::Refused { closed: false } };
        let expected = match rules.runner_policy {
            RunnerPolicy::Plain if room && self.launching < load.cap => Duration::ZERO,
            RunnerPolicy::Plain => return Acquired::Refused { closed: false },
            RunnerPolicy::Stoker => match admit(&pool.facts(pool.waiters.len(), now), &load, remaining) {
                Admission::Wait(_) if pool.gave_up == Some(self.moves) => {
                    return Acquired::Refused { closed: false };
                }
                Admission::Wait(expected) => expected,
                Admission::Refuse(Full::Line | Full::Slow, expected)
                    if asker.waited
                        && pool.gave_up != Some(self.moves)
                        && expected <= remaining
                        && may_claim(pool.of(asker.balancer), self.waiting, self.size.slots) =>
                {
                    expected
                }
                Admission::Refuse(..) => {
                    return Acquired::Refused { closed: !may_claim(0, self.waiting, self.size.slots) };
                }
            },
        };
        let expected = expected.as_micros() as Micros;
        if pool.waiters.is_empty() {
            self.waiting_functions.push(function);
            if !goes_on(asker.waited, duration(now - pool.stood), pool.cold.get()) {
                pool.standing = now;
            }
        }
        let balancer = asker.balancer;
        pool.waiters.push_back(Waiter { call, balancer, since: now, expected, overdue: false, seen: None });
        let patience = pool.patience();
        self.waiting += 1;
        self.acts.push(Act::Changed { function });
        self.pump(now, rules);
        Acquired::Wait { expected, pause: patience }
    }

    fn pool(&mut self, function: u32, app: u64, ask: Ask, now: Instant) -> &mut Pool {
        self.pools.entry(function).or_insert_with(|| Pool {
            app,
            ask,
            idle: Vec::new(),
            busy: 0,
            going: 0,
            launching: 0,
            waiters: VecDeque::new(),
            standing: 0,
            stood: 0,
            served: 0,
            turn: 0,
            wanted: Vec::new(),
            frequency: Frequency::new(now),
            run: Mean::default(),
            cold: Mean::default(),
            moves: 0,
            gave_up: None,
            arrivals: Arrivals::default(),
        })
    }

    fn has_room(&self, ask: Ask, rules: &Rules) -> bool {
        let room = self.room();
        room.memory >= ask.memory && room.slots > 0 && self.free.cpu_millis >= Self::starting(rules)
    }

    /// The idle container that was used last, if there is CPU for it.
    fn take(&mut self, function: u32, now: Instant, rules: &Rules) -> Option<Start> {
        let pool = self.pools.get_mut(&function)?;
        let cpu = self.free.cpu_millis.checked_sub(Self::working(rules))?;
        let resting = pool.idle.pop()?;
        self.free.cpu_millis = cpu;
        self.idle_memory -= pool.ask.memory;
        self.idle_count -= 1;
        pool.busy += 1;
        self.running += 1;
        pool.frequency.add(now);
        Some(resting.start)
    }

    fn rest(&mut self, function: u32, start: Start, now: Micros) {
        let container = self.next;
        self.next = self.next.wrapping_add(1);
        if let Some(pool) = self.pools.get_mut(&function) {
            pool.idle.push(Resting { container, since: now, start });
            self.idle_memory += pool.ask.memory;
            self.idle_count += 1;
            self.acts.push(Act::Rests { function, container });
            self.acts.push(Act::Changed { function });
        }
    }

    /// A call is over that took so long in its function.
    pub fn release(&mut self, function: u32, took: Micros, now: Micros, rules: &Rules) {
        if let Some(pool) = self.pools.get_mut(&function) {
            pool.run.add(duration(took));
            self.run.add(duration(took));
        }
        self.give_back(function, now, rules);
    }

    /// A call that had a container does not need it any more.
    pub fn give_back(&mut self, function: u32, now: Micros, rules: &Rules) {
        let Some(pool) = self.pools.get_mut(&function) else { return };
        pool.busy -= 1;
        pool.moves += 1;
        self.moves += 1;
        self.running -= 1;
        self.free.cpu_millis += Self::working(rules);
        match pool.going.checked_sub(1) {
            None => self.rest(function, Start::Warm, now),
            Some(going) => {
                pool.going = going;
                let ask = pool.ask.standing();
                self.gone(function, ask);
            }
        }
        self.pump(now, rules);
    }

    /// A launch has come to its end.
    pub fn launched(&mut self, function: u32, start: Start, took: Micros, now: Micros, rules: &Rules) {
        let Some(pool) = self.pools.get_mut(&function) else { return };
        pool.launching -= 1;
        pool.cold.add(duration(took));
        pool.moves += 1;
        self.launching -= 1;
        self.moves += 1;
        self.free.cpu_millis += Self::starting(rules);
        self.rest(function, start, now);
        self.pump(now, rules);
    }

    /// An idle container has had its time, if nobody used it meanwhile and it need not be kept.
    pub fn expire(&mut self, function: u32, container: u32) {
        if self.pools.get(&function).is_some_and(|pool| pool.surplus() > 0) {
            self.ends(function, container);
        }
    }

    /// An idle container ends, if it is idle still.
    fn ends(&mut self, function: u32, container: u32) {
        let Some(pool) = self.pools.get(&function) else { return };
        if let Some(at) = pool.idle.iter().position(|resting| resting.container == container) {
            self.end(function, at);
        }
    }

    /// Ends an idle container.
    fn end(&mut self, function: u32, at: usize) {
        let Some(pool) = self.pools.get_mut(&function) else { return };
        pool.idle.remove(at);
        pool.moves += 1;
        self.moves += 1;
        let ask = pool.ask.standing();
        self.idle_memory -= ask.memory;
        self.idle_count -= 1;
        self.gone(function, ask);
    }

    /// A container is not there any more.
    fn gone(&mut self, function: u32, ask: Resources) {
        self.free.memory += ask.memory;
        self.free.slots += ask.slots;
        self.acts.push(Act::Changed { function });
        let Some(pool) = self.pools.get(&function) else { return };
        if pool.standing() < pool.minimum() {
            self.short.insert(function);
        }
        if pool.bare() {
            self.acts.push(Act::Bare { function });
        }
    }

    /// When a function is expected that has nothing here: when to launch, and until when it is worth it.
    pub fn expects(&self, function: u32, kept: Duration) -> Option<(Instant, Instant)> {
        let pool = self.pools.get(&function).filter(|pool| pool.bare())?;
        let expected = pool.arrivals.expects(pool.cold.get(), kept)?;
        Some((expected.launch, expected.until))
    }

    /// Launches a container ahead of a call, if that costs nobody anything.
    pub fn prewarm(&mut self, function: u32, now: Micros, rules: &Rules) -> bool {
        let Some(pool) = self.pools.get(&function).filter(|pool| pool.bare()) else { return false };
        let allowed = self.waiting == 0 && self.launching < cap(&self.size, &pool.ask);
        allowed && self.begin(function, Start::Ahead, Cost::Nobodys, now, rules) == Begun::Launch
    }

    /// Starts a launch if there is room, or if some can be made at the cost of who is to bear it.
    fn begin(&mut self, function: u32, start: Start, cost: Cost, now: Micros, rules: &Rules) -> Begun {
        let Some(ask) = self.pools.get(&function).map(|pool| pool.ask) else { return Begun::Nothing };
        let Some(cpu) = self.free.cpu_millis.checked_sub(Self::starting(rules)) else {
            return Begun::Nothing;
        };
        let standing = ask.standing();
        if self.free.checked_sub(standing).is_none()
            && (cost == Cost::Nobodys || !self.make_room(function, cost, now, rules))
        {
            return Begun::Nothing;
        }
        // Those that end with their calls are not gone yet.
        let Some(free) = self.free.checked_sub(standing) else { return Begun::Room };
        self.free = Resources { cpu_millis: cpu, ..free };
        self.launching += 1;
        if let Some(pool) = self.pools.get_mut(&function) {
            pool.launching += 1;
            pool.standing = now;
        }
        self.acts.push(Act::Launch { function, start });
        Begun::Launch
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    /// It comes.
    Launch,
    /// Others end for it.
    Room,
    Nothing,
}
