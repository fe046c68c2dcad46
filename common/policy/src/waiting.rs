//! Who waits, who goes next, how long it will take, and when there is no use in waiting.
//!
//! Both queues of a fleet are fair, each between those that it can tell apart: the balancer's between tenants, then between the
//! functions of each, and a runner's line between the balancers that offer to it. A busy one cannot starve another, neither
//! by coming first nor by filling the queue.

mod rate;

use std::collections::{HashMap, VecDeque};

pub use self::rate::{Rate, come_again};

/// How many may wait, and how much of their bodies may be kept meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Over all functions.
    pub total: usize,
    /// Of one function.
    pub per_function: usize,
    /// Bytes that those who wait hold, over all functions.
    pub bytes: usize,
    /// Of one function.
    pub bytes_per_function: usize,
}

impl Default for Limits {
    /// A small call that waits costs a few kilobytes beside its body: a full queue is some 200 MiB, and a tenth of a gigabyte of
    /// bodies is what a small machine can spare beside that. One function may have a fifth of the places and a quarter of the bytes.
    fn default() -> Self {
        Self { total: 10_000, per_function: 2_000, bytes: 128 << 20, bytes_per_function: 32 << 20 }
    }
}

/// The limit that stands in the way of one that would join, as [`Limits`] has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// So many of its function wait already.
    OfFunction(usize),
    /// With it those of its function would hold more bytes than so many.
    BytesOfFunction(usize),
    /// So many wait already, and its function has its share of them.
    Total(usize),
    /// With it all would hold more bytes than so many, and nobody has so much more than it that room could be made.
    Bytes(usize),
}

/// A line: that of a function among those of its tenant. Both are hashes of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Who pays.
    pub tenant: u64,
    /// What is called.
    pub line: u64,
}

/// Lines that take turns: tenants do, and with each turn of a tenant the next of its lines. Entries are known by a number that
/// the caller chooses, and that grows from one that joins to the next.
///
/// Who is called keeps its place, since there may be no room for it after all: the limits count it until it [leaves](Self::leave).
/// Whatever else this says is about those who stand in a line.
#[derive(Debug)]
pub struct FairQueue<T> {
    tenants: HashMap<u64, Tenant<T>>,
    turns: VecDeque<u64>,
    lines: usize,
    held: Held,
    called: Called,
    limits: Limits,
}

/// Those who were called and may come back, by their numbers.
#[derive(Debug, Default)]
struct Called {
    places: HashMap<u64, (Place, usize)>,
    of_line: HashMap<Place, Held>,
    held: Held,
}

impl Called {
    fn add(&mut self, place: Place, id: u64, bytes: usize) {
        self.places.insert(id, (place, bytes));
        self.of_line.entry(place).or_default().add(bytes);
        self.held.add(bytes);
    }

    fn take(&mut self, id: u64) {
        let Some((place, bytes)) = self.places.remove(&id) else { return };
        self.held.take(bytes);
        if let Some(line) = self.of_line.get_mut(&place) {
            line.take(bytes);
            if line.len == 0 {
                self.of_line.remove(&place);
            }
        }
    }

    fn line(&self, place: Place) -> Held {
        self.of_line.get(&place).copied().unwrap_or_default()
    }
}

/// How many wait, and the bytes that they hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Held {
    len: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Tenant<T> {
    lines: HashMap<u64, Line<T>>,
    turns: VecDeque<u64>,
    held: Held,
}

#[derive(Debug)]
struct Line<T> {
    entries: VecDeque<Entry<T>>,
    held: Held,
}

#[derive(Debug)]
struct Entry<T> {
    id: u64,
    bytes: usize,
    entry: T,
}

impl Held {
    fn add(&mut self, bytes: usize) {
        self.len += 1;
        self.bytes += bytes;
    }

    fn take(&mut self, bytes: usize) {
        self.len -= 1;
        self.bytes -= bytes;
    }

    fn with(self, other: Held) -> Held {
        Held { len: self.len + other.len, bytes: self.bytes + other.bytes }
    }
}

/// One of the two bounds.
#[derive(Debug, Clone, Copy)]
enum Bound {
    Length,
    Bytes,
}

impl Bound {
    fn of(self, held: Held) -> usize {
        match self {
            Bound::Length => held.len,
            Bound::Bytes => held.bytes,
        }
    }

    fn full(self, limit: usize) -> Full {
        match self {
            Bound::Length => Full::Total(limit),
            Bound::Bytes => Full::Bytes(limit),
        }
    }
}

impl<T> Tenant<T> {
    fn line(&self, line: u64) -> Held {
        self.lines.get(&line).map_or(Held::default(), |line| line.held)
    }

    /// The line that holds most.
    fn greediest(&self, bound: Bound) -> Option<(u64, usize)> {
        // The key decides between equals, so that the same calls give the same answers.
        self.lines
            .iter()
            .map(|(key, line)| (*key, bound.of(line.held)))
            .max_by_key(|(key, held)| (*held, *key))
    }
}

impl<T> FairQueue<T> {
    /// An empty queue.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            tenants: HashMap::new(),
            turns: VecDeque::new(),
            lines: 0,
            held: Held::default(),
            called: Called::default(),
            limits,
        }
    }

    /// Everyone who waits.
    #[must_use]
    pub fn len(&self) -> usize {
        self.held.len
    }

    /// Nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.len == 0
    }

    /// What those who wait hold.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.held.bytes
    }

    /// Lines with somebody in them.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// Who waits in a line.
    #[must_use]
    pub fn line(&self, place: Place) -> usize {
        self.tenants.get(&place.tenant).map_or(0, |tenant| tenant.line(place.line).len)
    }

    /// How many have their turn before one who joins this line now, if nobody else comes.
    #[must_use]
    pub fn ahead(&self, place: Place) -> usize {
        let own = self.line(place);
        let tenant = self.tenants.get(&place.tenant);
        let beside = tenant.map_or(0, |tenant| {
            let others = tenant.lines.iter().filter(|(line, _)| **line != place.line);
            others.map(|(_, line)| line.held.len.min(own + 1)).sum()
        });
        let own = own + beside;
        let others = self.tenants.iter().filter(|(tenant, _)| **tenant != place.tenant);
        own + others.map(|(_, tenant)| tenant.held.len.min(own + 1)).sum::<usize>()
    }

    /// Joins the end of its line, with so many bytes in its hands. Where the queue is full, whoever has less than an equal share of
    /// it gets in, and the last of those who have most are pushed out: they are returned.
    ///
    /// # Errors
    /// There is no room for it: says which limit is reached.
    pub fn push(&mut self, place: Place, id: u64, bytes: usize, entry: T) -> Result<Vec<T>, Full> {
        let line = self.tenants.get(&place.tenant).map_or(Held::default(), |tenant| tenant.line(place.line));
        let line = line.with(self.called.line(place));
        if line.len >= self.limits.per_function {
            return Err(Full::OfFunction(self.limits.per_function));
        }
        if line.bytes.saturating_add(bytes) > self.limits.bytes_per_function {
            return Err(Full::BytesOfFunction(self.limits.bytes_per_function));
        }
        // Nobody is pushed out before it is known that this makes room in both respects.
        let bounds = [(Bound::Length, self.limits.total, 1), (Bound::Bytes, self.limits.bytes, bytes)];
        let mut costs = [None; 2];
        for ((bound, limit, more), cost) in bounds.into_iter().zip(&mut costs) {
            let over = bound.of(self.granted()).saturating_add(more).saturating_sub(limit);
            if over > 0 {
                *cost = self.greedier(place, bound, limit, more, over);
                if cost.is_none() {
                    return Err(bound.full(limit));
                }
            }
        }
        let mut out = Vec::new();
        for ((bound, limit, more), cost) in bounds.into_iter().zip(costs) {
            let Some(from) = cost else { continue };
            while bound.of(self.granted()) + more > limit
                && let Some(last) = self.push_out(from, bound)
            {
                out.push(last);
            }
        }
        self.insert(place, Entry { id, bytes, entry });
        Ok(out)
    }

    /// What the limits of the whole bound.
    fn granted(&self) -> Held {
        self.held.with(self.called.held)
    }

    /// Who has so much more than a new-comer that room is made at its cost: a tenant, or a line of the new-comer's own tenant.
    fn greedier(&self, place: Place, bound: Bound, limit: usize, more: usize, over: usize) -> Option<Cost> {
        let own = self.tenants.get(&place.tenant);
        let mine = own.map_or(0, |tenant| bound.of(tenant.held)) + more;
        let tenants = self.tenants.len() + usize::from(own.is_none());
        // Whoever has an equal share or more need not look for one with less right to it.
        if mine <= limit / tenants {
            let held = self.tenants.iter().map(|(key, tenant)| (bound.of(tenant.held), *key));
            let (most, tenant) = held.max()?;
            return (tenant != place.tenant && most >= mine + over).then_some(Cost::Tenant(tenant));
        }
        let own = own?;
        let mine = bound.of(own.line(place.line)) + more;
        let (line, most) = own.greediest(bound)?;
        let other = line != place.line && most >= mine + over;
        other.then_some(Cost::Line(Place { tenant: place.tenant, line }))
    }

    /// The last of the longest line there.
    fn push_out(&mut self, from: Cost, bound: Bound) -> Option<T> {
        let place = match from {
            Cost::Line(place) => place,
            Cost::Tenant(tenant) => {
                let (line, _) = self.tenants.get(&tenant)?.greediest(bound)?;
                Place { tenant, line }
            }
        };
        let last = self.line(place).checked_sub(1)?;
        self.take(place, last).map(|entry| entry.entry)
    }

    /// Goes back to its old place in its line: it was called and there was no room after all. Never refused, since its place
    /// was granted before.
    pub fn put_back(&mut self, place: Place, id: u64, bytes: usize, entry: T) {
        self.leave(place, id);
        self.insert(place, Entry { id, bytes, entry });
    }

    fn insert(&mut self, place: Place, entry: Entry<T>) {
        let tenant = self.tenants.entry(place.tenant).or_insert_with(|| {
            self.turns.push_back(place.tenant);
            Tenant { lines: HashMap::new(), turns: VecDeque::new(), held: Held::default() }
        });
        let line = tenant.lines.entry(place.line).or_insert_with(|| {
            tenant.turns.push_back(place.line);
            self.lines += 1;
            Line { entries: VecDeque::new(), held: Held::default() }
        });
        self.held.add(entry.bytes);
        tenant.held.add(entry.bytes);
        line.held.add(entry.bytes);
        let at = line.entries.partition_point(|other| other.id < entry.id);
        line.entries.insert(at, entry);
    }

    /// Takes out the entry at `at` of a line. Turns are as before, but for those that end here.
    fn take(&mut self, place: Place, at: usize) -> Option<Entry<T>> {
        let tenant = self.tenants.get_mut(&place.tenant)?;
        let line = tenant.lines.get_mut(&place.line)?;
        let entry = line.entries.remove(at)?;
        line.held.take(entry.bytes);
        tenant.held.take(entry.bytes);
        self.held.take(entry.bytes);
        if line.entries.is_empty() {
            tenant.lines.remove(&place.line);
            tenant.turns.retain(|other| *other != place.line);
            self.lines -= 1;
        }
        if tenant.lines.is_empty() {
            self.tenants.remove(&place.tenant);
            self.turns.retain(|other| *other != place.tenant);
        }
        Some(entry)
    }

    /// Calls the head of the line whose turn it is; the turn passes on.
    pub fn pop(&mut self) -> Option<(Place, u64, T)> {
        self.pop_if(|_, _| true)
    }

    /// Calls the head of the first line, in the order of turns, that is wanted; lines that are passed over keep their turn.
    pub fn pop_if(&mut self, mut wanted: impl FnMut(Place, &T) -> bool) -> Option<(Place, u64, T)> {
        let mut first = |tenant: u64| {
            let lines = self.tenants.get(&tenant)?;
            lines.turns.iter().copied().position(|line| {
                let head = lines.lines.get(&line).and_then(|line| line.entries.front());
                head.is_some_and(|head| wanted(Place { tenant, line }, &head.entry))
            })
        };
        let found =
            self.turns.iter().enumerate().find_map(|(at, tenant)| Some((at, *tenant, first(*tenant)?)));
        let (at, tenant, line) = found?;
        // The turn passes on before the entry goes: what ends with it then is taken out of the turns.
        self.turns.remove(at);
        self.turns.push_back(tenant);
        let turns = &mut self.tenants.get_mut(&tenant)?.turns;
        let line = turns.remove(line)?;
        turns.push_back(line);
        let place = Place { tenant, line };
        let entry = self.take(place, 0)?;
        self.called.add(place, entry.id, entry.bytes);
        Some((place, entry.id, entry.entry))
    }

    /// Gives its place up: it stands in the line, and is returned, or was called and does not come back.
    pub fn leave(&mut self, place: Place, id: u64) -> Option<T> {
        self.called.take(id);
        let line = self.tenants.get(&place.tenant)?.lines.get(&place.line)?;
        let at = line.entries.binary_search_by_key(&id, |other| other.id).ok()?;
        self.take(place, at).map(|entry| entry.entry)
    }
}

/// A turn that was no use to so many lines is over. A runner that is full refuses all of them, and there may be thousands; the lines
/// that have seen it stand behind the others now, and more news will come.
pub const MOST_LINES: usize = 16;

/// At whose cost room is made.
#[derive(Debug, Clone, Copy)]
enum Cost {
    Tenant(u64),
    Line(Place),
}

/// Calls of one balancer that may always wait in a runner's line of a function, however bad the prospect: one. With it every
/// balancer that has work has somebody in the line when a slot frees up, and [`next_in_turn`] does the rest. Without it the one
/// whose call has just ended, which learns of the room first, would take it again and again.
const CLAIMS_OF_ONE: u32 = 1;

/// Most calls that may wait on a runner so that one of them may still be a claim, for each of its slots, and however few it has. It
/// bounds what many balancers with many functions may claim: three times of what may wait there otherwise.
const CLAIMS_BELOW: (u32, u32) = (12, 48);

/// Whether a balancer that has `own` calls in a runner's line of a function may add one that waited already, and that the runner
/// would refuse for want of room. `waiting` calls of all functions wait on the runner, which has so many slots.
#[must_use]
pub fn may_claim(own: u32, waiting: u32, slots: u32) -> bool {
    own < CLAIMS_OF_ONE && waiting < slots.saturating_mul(CLAIMS_BELOW.0).max(CLAIMS_BELOW.1)
}

/// Who of a line is served next: the first call of the balancer whose turn it is after `last`. Takes the balancers of those who
/// wait, in their order; gives a place in it.
#[must_use]
pub fn next_in_turn(askers: impl Iterator<Item = u64>, last: u64) -> Option<usize> {
    // Who comes after the last one goes before who comes again from the beginning.
    askers
        .enumerate()
        .map(|(at, asker)| (asker.wrapping_sub(last).wrapping_sub(1), at))
        .min()
        .map(|(_, at)| at)
}

#[cfg(test)]
mod tests;
