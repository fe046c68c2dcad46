//! What a balancer knows of its runners, and whom it asks for a call.
//!
//! One structure for the balancer and for the simulator: who is there, how warm each said it is for which function, who refused a
//! moment ago, who is young. It is made so that placing a call among a thousand runners touches a handful of them: the warm ones
//! of a function are found by the function, and the best ranked of a function are kept until the fleet changes. A call costs no
//! allocation; a function's first call after a change of the fleet ranks all runners once.
//!
//! What is known gets better while a call is being offered around, so a [`Plan`] is asked for one runner at a time.

mod hints;
mod plan;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::Instant;

use stoker_core::capacity::Warmth;
use stoker_core::resources::{Ask, Resources};

use self::hints::{Hint, Warm};
pub use self::plan::{Choice, Plan, Why};
use crate::placement::{FULL_FOR, HINT_TTL, score, weight};

/// Ranks kept of each function. Who finds none of these open is one of many, in a fleet that is full or mostly drained, and the
/// spill over all runners serves it better than a walk down the list.
pub const DEPTH: usize = 32;

/// Functions whose ranks are kept. A key costs 150 bytes; beyond this all are forgotten at once, and ranked again by their next call.
const ORDERS: usize = 65_536;

/// The other end of a link, as far as a placement asks it.
pub trait Peer {
    /// It can be reached and takes calls.
    fn is_open(&self) -> bool;
    /// Calls of ours that it has.
    fn load(&self) -> u32;
}

impl<P: Peer> Peer for Arc<P> {
    fn is_open(&self) -> bool {
        P::is_open(self)
    }

    fn load(&self) -> u32 {
        P::load(self)
    }
}

/// A runner's place on the board. One that leaves takes its place's number with it: late words about it reach nobody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seat {
    at: u32,
    life: u32,
}

/// What a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The [`key`](crate::placement::key) of its function, which decides the order of rank.
    pub function: u64,
    /// A key of the function's version: warm is only what runs the same one.
    pub version: u64,
    /// What a container of it takes.
    pub ask: Ask,
}

struct Place<P> {
    life: u32,
    taken: Option<Taken<P>>,
}

struct Taken<P> {
    peer: P,
    key: u64,
    total: Resources,
    since: Instant,
    full_until: Option<Instant>,
    /// Counts its whole records: a hint of an earlier one is void.
    era: u32,
}

struct Order {
    epoch: u64,
    ask: Ask,
    ranked: Vec<u32>,
}

/// For keys that are hashes.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, _: &[u8]) {
        debug_assert!(false, "keys here are numbers");
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

type ByKey<V> = HashMap<u64, V, BuildHasherDefault<AsItIs>>;

/// The runners as one balancer knows them.
pub struct Board<P> {
    places: Vec<Place<P>>,
    free: Vec<u32>,
    /// Counts changes of who is there and how large.
    epoch: u64,
    /// Since when the eldest is there.
    eldest: Option<Instant>,
    orders: ByKey<Order>,
    hints: ByKey<Warm>,
    /// Versions with hints when they were last looked through.
    swept: usize,
    scratch: Vec<(f64, u64, u32)>,
}

impl<P> Default for Board<P> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            epoch: 0,
            eldest: None,
            orders: HashMap::default(),
            hints: HashMap::default(),
            swept: 0,
            scratch: Vec::new(),
        }
    }
}

impl<P: Peer + Clone> Board<P> {
    /// A runner is there: its [`key`](crate::placement::key), its size, and itself, made for its place.
    pub fn join(&mut self, key: u64, total: Resources, now: Instant, make: impl FnOnce(Seat) -> P) -> P {
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { life: 0, taken: None });
            (self.places.len() - 1) as u32
        });
        let place = &mut self.places[at as usize];
        let peer = make(Seat { at, life: place.life });
        let taken = Taken { peer: peer.clone(), key, total, since: now, full_until: None, era: 0 };
        place.taken = Some(taken);
        self.changed();
        peer
    }

    /// It is gone.
    pub fn leave(&mut self, seat: Seat) {
        let Some(place) = self.places.get_mut(seat.at as usize).filter(|place| place.life == seat.life)
        else {
            return;
        };
        if place.taken.take().is_some() {
            place.life = place.life.wrapping_add(1);
            self.free.push(seat.at);
            self.changed();
        }
    }

    /// It began a new life: nothing that was known holds, and it is young again.
    pub fn renew(&mut self, seat: Seat, now: Instant) {
        if let Some(taken) = self.taken(seat) {
            (taken.since, taken.full_until) = (now, None);
            taken.era = taken.era.wrapping_add(1);
            self.changed();
        }
    }

    /// This is what it has.
    pub fn resize(&mut self, seat: Seat, total: Resources) {
        if let Some(taken) = self.taken(seat).filter(|taken| taken.total != total) {
            taken.total = total;
            self.changed();
        }
    }

    fn changed(&mut self) {
        self.epoch += 1;
        self.eldest = self.places.iter().filter_map(|place| Some(place.taken.as_ref()?.since)).min();
    }

    fn taken(&mut self, seat: Seat) -> Option<&mut Taken<P>> {
        let place = self.places.get_mut(seat.at as usize).filter(|place| place.life == seat.life)?;
        place.taken.as_mut()
    }

    /// Its whole record: how warm it is by version. What it does not name is not warm there.
    pub fn spoke(&mut self, seat: Seat, warm: impl IntoIterator<Item = (u64, Warmth)>, now: Instant) {
        let Some(taken) = self.taken(seat) else { return };
        taken.full_until = None;
        taken.era = taken.era.wrapping_add(1);
        for (version, warmth) in warm {
            self.said(seat, version, warmth, now);
        }
    }

    /// It said how warm it is for a version.
    pub fn said(&mut self, seat: Seat, version: u64, warmth: Warmth, now: Instant) {
        let Some(era) = self.taken(seat).map(|taken| taken.era) else { return };
        let hint = Hint { seat, warmth, era, at: now };
        if let Some(warm) = self.hints.get_mut(&version) {
            warm.put(hint);
        } else if warmth.idle > 0 || warmth.busy > 0 {
            self.hints.entry(version).or_default().put(hint);
            if self.hints.len() > 2 * self.swept + 1024 {
                self.sweep(now);
            }
        }
    }

    /// Forgets versions of which nobody is warm any more.
    fn sweep(&mut self, now: Instant) {
        let places = &self.places;
        self.hints.retain(|_, warm| {
            warm.retain(|hint| holds(places, hint, now).is_some());
            !warm.is_empty()
        });
        self.swept = self.hints.len();
    }

    /// It refused for want of room.
    pub fn refused(&mut self, seat: Seat, now: Instant) {
        if let Some(taken) = self.taken(seat) {
            taken.full_until = Some(now + FULL_FOR);
        }
    }

    /// Something became free there.
    pub fn freed(&mut self, seat: Seat) {
        if let Some(taken) = self.taken(seat) {
            taken.full_until = None;
        }
    }

    /// A call goes there: one idle container less, as far as we know, or one more in the line.
    pub fn used(&mut self, seat: Seat, version: u64) {
        if let Some(warm) = self.hints.get_mut(&version) {
            warm.used(seat);
        }
    }

    /// The runners in the order in which a function's calls go to them if nobody is warm, the first 32 of those that are large enough.
    pub fn ranking(&mut self, wanted: &Wanted) -> impl Iterator<Item = &P> {
        self.rank(wanted);
        let ranked = self.orders.get(&wanted.function).map_or(&[][..], |order| &order.ranked);
        ranked.iter().filter_map(|at| Some(&self.places[*at as usize].taken.as_ref()?.peer))
    }

    /// Makes sure that the order of a function is there.
    fn rank(&mut self, wanted: &Wanted) {
        if self.orders.get(&wanted.function).is_some_and(|o| o.epoch == self.epoch && o.ask == wanted.ask) {
            return;
        }
        self.scratch.clear();
        for (at, place) in (0u32..).zip(&self.places) {
            if let Some(taken) = place.taken.as_ref().filter(|taken| taken.total.could_hold(&wanted.ask)) {
                let score = score(wanted.function, taken.key, weight(&taken.total));
                self.scratch.push((score, taken.key, at));
            }
        }
        let better = |a: &(f64, u64, u32), b: &(f64, u64, u32)| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1));
        if self.scratch.len() > DEPTH {
            self.scratch.select_nth_unstable_by(DEPTH, better);
            self.scratch.truncate(DEPTH);
        }
        self.scratch.sort_unstable_by(better);
        if self.orders.len() >= ORDERS && !self.orders.contains_key(&wanted.function) {
            self.orders.clear();
        }
        let (epoch, ask) = (self.epoch, wanted.ask);
        let order = self.orders.entry(wanted.function).or_insert(Order { epoch, ask, ranked: Vec::new() });
        (order.epoch, order.ask) = (epoch, ask);
        order.ranked.clear();
        order.ranked.extend(self.scratch.iter().map(|(.., at)| *at));
    }
}

/// The runner of a hint that still counts.
fn holds<'a, P>(places: &'a [Place<P>], hint: &Hint, now: Instant) -> Option<&'a Taken<P>> {
    let place = &places[hint.seat.at as usize];
    let taken = place.taken.as_ref().filter(|_| place.life == hint.seat.life)?;
    let fresh = hint.era == taken.era && now.saturating_duration_since(hint.at) < HINT_TTL;
    fresh.then_some(taken)
}

#[cfg(test)]
mod tests;
