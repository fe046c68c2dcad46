//! Our balancer: the board of [`stoker_policy::board`], and the queue of those that nobody took, woken by room.
//!
//! The lines are the real ones ([`FairQueue`]); turns go as in the balancer: news of a runner becomes turns to ask that runner, and
//! a turn that was no use to one line goes to the next until every line has seen it.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Instant;

use stoker_core::resources::{Ask, Resources};
use stoker_policy::board::{Board, Peer, Plan, Seat, Wanted};
use stoker_policy::min_containers::{Candidate, Shares, room};
use stoker_policy::waiting::{FairQueue, Limits, MOST_LINES, Place};

use super::node::Node;

/// A runner, as its link shows it.
#[derive(Clone)]
pub struct Link(Rc<State>);

struct State {
    node: u32,
    seat: Seat,
    open: Cell<bool>,
    load: Cell<u32>,
}

impl Peer for Link {
    fn is_open(&self) -> bool {
        self.0.open.get()
    }

    fn load(&self) -> u32 {
        self.0.load.get()
    }
}

impl Link {
    pub fn new(node: u32, seat: Seat) -> Self {
        Self(Rc::new(State { node, seat, open: Cell::new(true), load: Cell::new(0) }))
    }

    pub fn node(&self) -> u32 {
        self.0.node
    }

    pub fn seat(&self) -> Seat {
        self.0.seat
    }

    pub fn open(&self, open: bool) {
        self.0.open.set(open);
    }

    pub fn enter(&self) {
        self.0.load.set(self.0.load.get() + 1);
    }

    pub fn leave(&self) {
        self.0.load.set(self.0.load.get().saturating_sub(1));
    }
}

/// The right to ask a runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    pub node: u32,
    /// Lines to which it was no use.
    seen: Vec<u64>,
}

/// A call that gets a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Called {
    pub call: u32,
    pub turn: Turn,
}

/// What a runner is told to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    pub node: u32,
    pub function: u32,
    pub containers: u32,
}

/// Who waits, as the queue has to know it.
pub struct Waiting {
    pub call: u32,
    ask: Ask,
}

pub struct Balancer {
    pub board: Board<Link>,
    /// By the number of the runner.
    pub links: Vec<Option<Link>>,
    queue: FairQueue<Waiting>,
    /// Calls of ours in the lines of runners, by the number of the runner.
    in_line: Vec<u32>,
    /// The same calls by their function, those that came first in front, and where they stand.
    standing: BTreeMap<u32, VecDeque<(u32, u32)>>,
    /// Where the containers stand that are kept of each function, and what runners were told of that.
    shares: Vec<Shares<u32>>,
    told: BTreeMap<(u32, u32), u32>,
    places: u64,
    pub unheard: u64,
    last: Option<u32>,
    /// Turns that were given and not yet taken.
    pub called: VecDeque<Called>,
}

impl Default for Balancer {
    fn default() -> Self {
        Self {
            board: Board::default(),
            links: Vec::new(),
            queue: FairQueue::new(Limits::default()),
            in_line: Vec::new(),
            standing: BTreeMap::new(),
            shares: Vec::new(),
            told: BTreeMap::new(),
            places: 0,
            unheard: 0,
            last: None,
            called: VecDeque::new(),
        }
    }
}

impl Balancer {
    pub fn link(&self, node: u32) -> Option<&Link> {
        self.links.get(node as usize)?.as_ref()
    }

    /// Whether a call of this function may be offered, or stands behind others.
    pub fn may_try(&self, function: u64) -> bool {
        self.queue.line(line(function)) == 0
    }

    pub fn plan(wanted: Wanted, seed: u64) -> Plan {
        Plan::new(wanted, seed)
    }

    /// Puts a call in the line: again at its old place if it has a number. `unheard` is what it was before the try that came to
    /// nothing, `refused` the turn of that try. `None` if there is no place.
    pub fn wait(
        &mut self,
        call: u32,
        function: u64,
        ask: Ask,
        number: Option<u64>,
        unheard: u64,
        refused: Option<Turn>,
    ) -> Option<u64> {
        let waiting = Waiting { call, ask };
        let number = match number {
            Some(number) => {
                self.queue.put_back(line(function), number, 0, waiting);
                number
            }
            None => {
                self.queue.push(line(function), self.places + 1, 0, waiting).ok()?;
                self.places += 1;
                self.places
            }
        };
        if let Some(mut turn) = refused {
            turn.seen.push(function);
            if turn.seen.len() < MOST_LINES {
                self.give(turn);
            }
        }
        if self.unheard != unheard
            && let Some(node) = self.last
        {
            self.give(Turn { node, seen: Vec::new() });
        }
        Some(number)
    }

    /// Gives a place up; says whether the call stood in the line.
    pub fn leave(&mut self, function: u64, number: u64) -> bool {
        self.queue.leave(line(function), number).is_some()
    }

    fn give(&mut self, turn: Turn) -> bool {
        let next = self.queue.pop_if(|place, _| !turn.seen.contains(&place.line));
        let Some((_, _, waiting)) = next else { return false };
        self.called.push_back(Called { call: waiting.call, turn });
        true
    }

    fn nobody(&mut self, node: u32) {
        self.unheard += 1;
        self.last = Some(node);
    }

    /// A call ended there, and left somebody `idle` or not; says whether anybody who has no place is told.
    pub fn ended(&mut self, node: u32, idle: bool) -> bool {
        // Where one of ours stands in the line and nobody is idle, the line has taken what came free.
        if !idle && self.in_line.get(node as usize).is_some_and(|count| *count > 0) {
            return false;
        }
        let given = self.give(Turn { node, seen: Vec::new() });
        if !given {
            self.nobody(node);
        }
        given
    }

    /// It said that it has so much room. Where none of ours stands in its line one may ask in any case, since a full runner, too,
    /// may take a call into its line. Says whether anybody is told.
    pub fn room(&mut self, node: u32, mut room: Resources) -> bool {
        let mut given = false;
        let mut may_wait = self.in_line.get(node as usize).is_none_or(|count| *count == 0);
        loop {
            let fits = |waiting: &Waiting| {
                let standing = room.checked_sub(waiting.ask.standing());
                standing.and_then(|left| left.checked_sub(waiting.ask.working()))
            };
            let next = self.queue.pop_if(|_, waiting| may_wait || fits(waiting).is_some());
            let Some((_, _, waiting)) = next else { break };
            (room, may_wait, given) = (fits(&waiting).unwrap_or_default(), false, true);
            self.called.push_back(Called { call: waiting.call, turn: Turn { node, seen: Vec::new() } });
        }
        if self.queue.is_empty() {
            self.nobody(node);
        }
        given
    }

    /// One of ours stands in its line, and would rather start elsewhere.
    pub fn stands(&mut self, node: u32, function: u32, call: u32) {
        self.in_line.resize(self.in_line.len().max(node as usize + 1), 0);
        self.in_line[node as usize] += 1;
        self.would_move(node, function, call);
    }

    /// A second runner was no use to one that stands in a line.
    pub fn would_move(&mut self, node: u32, function: u32, call: u32) {
        self.standing.entry(function).or_default().push_back((call, node));
    }

    /// The first of those in other lines who could start at this runner.
    pub fn mover(&mut self, function: u32, to: u32) -> Option<u32> {
        let line = self.standing.get_mut(&function)?;
        let at = line.iter().position(|(_, node)| *node != to)?;
        line.remove(at).map(|(call, _)| call)
    }

    /// And does not stand there any more.
    pub fn leaves(&mut self, node: u32, function: u32, call: u32) {
        self.in_line[node as usize] -= 1;
        if let Some(line) = self.standing.get_mut(&function) {
            line.retain(|(other, _)| *other != call);
            if line.is_empty() {
                self.standing.remove(&function);
            }
        }
        self.ended(node, true);
    }

    /// Decides who keeps what of functions that shall each have so many containers; gives what runners do not know yet.
    pub fn keep(
        &mut self,
        wanted: u32,
        keys: &[u64],
        asks: &[Ask],
        nodes: &[Node],
        now: Instant,
    ) -> Vec<Kept> {
        self.shares.resize(keys.len(), Shares::default());
        // What is left of each runner's room by those before.
        let mut free: Vec<Resources> = nodes.iter().map(|node| node.free).collect();
        let mut list = BTreeMap::new();
        for (((function, key), ask), shares) in (0u32..).zip(keys).zip(asks).zip(&mut self.shares) {
            let of = Wanted { function: *key, version: *key, ask: *ask };
            let candidates: Vec<_> = self
                .board
                .ranking(&of)
                .filter(|link| link.is_open())
                .map(|link| {
                    let node = link.node();
                    let has = nodes[node as usize].standing(function);
                    Candidate { runner: node, has, room: room(&free[node as usize], ask) }
                })
                .collect();
            shares.place(wanted, u32::MAX, &candidates, now);
            for share in shares.iter() {
                list.insert((share.runner, function), share.containers);
                let has = candidates.iter().find(|c| c.runner == share.runner).map_or(0, |c| c.has);
                let free = &mut free[share.runner as usize];
                let more = share.containers.saturating_sub(has);
                free.memory = free.memory.saturating_sub(ask.standing().memory * u64::from(more));
                free.slots = free.slots.saturating_sub(more);
            }
        }
        let gone = self.told.keys().filter(|at| !list.contains_key(at)).map(|at| (*at, 0));
        let news = list.iter().filter(|(at, n)| self.told.get(at) != Some(n)).map(|(at, n)| (*at, *n));
        let kept = |((node, function), containers)| Kept { node, function, containers };
        let said = gone.chain(news).map(kept).collect();
        self.told = list;
        said
    }

    /// It is lost, with all that stood in its line.
    pub fn gone(&mut self, node: u32) -> Option<Link> {
        if let Some(count) = self.in_line.get_mut(node as usize) {
            *count = 0;
        }
        self.standing.values_mut().for_each(|line| line.retain(|(_, at)| *at != node));
        self.links.get_mut(node as usize)?.take()
    }
}

/// The line of a function; all are one tenant's.
fn line(function: u64) -> Place {
    Place { tenant: 0, line: function }
}
