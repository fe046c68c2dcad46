//! Who waits, who goes next, how long it will take, and when there is no use in waiting.
//!
//! Both queues of a fleet are fair, each between those that it can tell apart: the balancer's between tenants, then between the
//! functions of each, and a runner's line between the balancers that offer to it. A busy one cannot starve another, neither
//! by coming first nor by filling the queue.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

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
#[derive(Debug)]
pub struct FairQueue<T> {
    tenants: HashMap<u64, Tenant<T>>,
    turns: VecDeque<u64>,
    lines: usize,
    held: Held,
    limits: Limits,
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
        Self { tenants: HashMap::new(), turns: VecDeque::new(), lines: 0, held: Held::default(), limits }
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
    /// Gives `entry` back when there is no room for it.
    pub fn push(&mut self, place: Place, id: u64, bytes: usize, entry: T) -> Result<Vec<T>, T> {
        let line = self.tenants.get(&place.tenant).map_or(Held::default(), |tenant| tenant.line(place.line));
        if line.len >= self.limits.per_function
            || line.bytes.saturating_add(bytes) > self.limits.bytes_per_function
        {
            return Err(entry);
        }
        // Nobody is pushed out before it is known that this makes room in both respects.
        let bounds = [(Bound::Length, self.limits.total, 1), (Bound::Bytes, self.limits.bytes, bytes)];
        let mut costs = [None; 2];
        for ((bound, limit, more), cost) in bounds.into_iter().zip(&mut costs) {
            let over = bound.of(self.held).saturating_add(more).saturating_sub(limit);
            if over > 0 {
                *cost = self.greedier(place, bound, limit, more, over);
                if cost.is_none() {
                    return Err(entry);
                }
            }
        }
        let mut out = Vec::new();
        for ((bound, limit, more), cost) in bounds.into_iter().zip(costs) {
            let Some(from) = cost else { continue };
            while bound.of(self.held) + more > limit
                && let Some(last) = self.push_out(from, bound)
            {
                out.push(last);
            }
        }
        self.insert(place, Entry { id, bytes, entry });
        Ok(out)
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

    /// The head of the line whose turn it is; the turn passes on.
    pub fn pop(&mut self) -> Option<(Place, u64, T)> {
        self.pop_if(|_, _| true)
    }

    /// The head of the first line, in the order of turns, that is wanted; lines that are passed over keep their turn.
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
        Some((place, entry.id, entry.entry))
    }

    /// Leaves without having been called.
    pub fn remove(&mut self, place: Place, id: u64) -> Option<T> {
        let line = self.tenants.get(&place.tenant)?.lines.get(&place.line)?;
        let at = line.entries.binary_search_by_key(&id, |other| other.id).ok()?;
        self.take(place, at).map(|entry| entry.entry)
    }
}

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

/// How fast calls end, observed: the ground of every retry time that we name.
#[derive(Debug, Clone)]
pub struct Rate {
    per_second: f64,
    /// Calls that ended in the samples behind `per_second`, as far as they count still.
    seen: f64,
    count: u32,
    since: Instant,
}

/// Length of one observation.
const SAMPLE: Duration = Duration::from_millis(500);

/// What was seen counts half after this long as evidence.
const MEMORY: Duration = Duration::from_secs(5);

/// A rate is the ground of a refusal only when so many calls made it: fewer may have been an odd lot.
const EVIDENCE: f64 = 20.0;

/// Nor where fewer than these are ahead: they may be gone at a stroke. With so many, and at half of the rate that would do, one in
/// three hundred would have had its turn.
const FEW: usize = 20;

/// A wait has to look so many times too long before it is not even begun: capacity may come that was not there before, and a
/// call that is turned away though it would have been served costs more than one that waits in vain.
const DOUBT: f64 = 2.0;

/// The longest wait that is told, in seconds: beyond it nobody needs to know.
const MOST_WAIT: f64 = 86_400.0;

/// Shortest and longest retry time that we name.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

impl Rate {
    /// Nothing observed yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { per_second: 0.0, seen: 0.0, count: 0, since: now }
    }

    /// One call ended.
    pub fn ended(&mut self, now: Instant) {
        self.count += 1;
        let span = now.saturating_duration_since(self.since);
        if span >= SAMPLE {
            let seen = f64::from(self.count) / span.as_secs_f64();
            // The weight of the past falls with the length of the sample, so that a rate from before a pause is forgotten.
            let keep = 0.5_f64.powf(span.as_secs_f64() / SAMPLE.as_secs_f64());
            self.per_second =
                if self.per_second == 0.0 { seen } else { self.per_second * keep + seen * (1.0 - keep) };
            let keep = 0.5_f64.powf(span.as_secs_f64() / MEMORY.as_secs_f64());
            self.seen = self.seen * keep + f64::from(self.count);
            self.count = 0;
            self.since = now;
        }
    }

    /// Calls a second, the better of what was and what is.
    #[must_use]
    pub fn per_second(&self, now: Instant) -> f64 {
        let span = now.saturating_duration_since(self.since).max(SAMPLE);
        self.per_second.max(f64::from(self.count) / span.as_secs_f64())
    }

    /// How long one behind `ahead` others will wait, where that is surely longer than `time`.
    #[must_use]
    pub fn too_long(&self, ahead: usize, time: Duration, now: Instant) -> Option<Duration> {
        let rate = self.per_second(now);
        if ahead < FEW || self.seen + f64::from(self.count) < EVIDENCE || rate <= 0.0 {
            return None;
        }
        let wait = (ahead + 1) as f64 / rate;
        (wait > DOUBT * time.as_secs_f64()).then(|| Duration::from_secs_f64(wait.min(MOST_WAIT)))
    }

    /// When one that comes behind `ahead` others may expect its turn.
    #[must_use]
    pub fn retry_after(&self, ahead: usize, now: Instant) -> Duration {
        let rate = self.per_second(now);
        if rate <= 0.0 {
            return Duration::from_secs(1);
        }
        Duration::from_secs_f64(((ahead + 1) as f64 / rate).min(RETRY.1.as_secs_f64())).max(RETRY.0)
    }
}

/// When to come again with so much `time` for a wait that is too long for it now.
#[must_use]
pub fn come_again(wait: Duration, time: Duration) -> Duration {
    wait.saturating_sub(time).clamp(RETRY.0, RETRY.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, HashSet};

    const ROOMY: Limits = Limits { total: 100, per_function: 100, bytes: 1000, bytes_per_function: 1000 };

    fn at(tenant: u64, line: u64) -> Place {
        Place { tenant, line }
    }

    fn order<T>(queue: &mut FairQueue<T>) -> Vec<u64> {
        std::iter::from_fn(|| queue.pop()).map(|(_, id, _)| id).collect()
    }

    fn push(queue: &mut FairQueue<()>, place: Place, id: u64) {
        assert_eq!(queue.push(place, id, 0, ()), Ok(Vec::new()));
    }

    #[test]
    fn lines_take_turns() {
        let mut queue = FairQueue::new(ROOMY);
        (0..10).for_each(|id| push(&mut queue, at(1, 1), id));
        push(&mut queue, at(1, 2), 99);
        assert_eq!(order(&mut queue)[..3], [0, 99, 1]);
    }

    #[test]
    fn tenants_take_turns_however_many_functions_they_have() {
        let mut queue = FairQueue::new(ROOMY);
        (0..10).for_each(|id| push(&mut queue, at(1, id), id));
        (50..53).for_each(|id| push(&mut queue, at(2, 1), id));
        assert_eq!((queue.ahead(at(2, 1)), queue.ahead(at(3, 1)), queue.ahead(at(1, 9))), (7, 2, 13));
        assert_eq!(order(&mut queue)[..7], [0, 50, 1, 51, 2, 52, 3]);
    }

    #[test]
    fn a_line_that_is_passed_over_keeps_its_turn() {
        let mut queue = FairQueue::new(ROOMY);
        for (id, place) in [(1, at(1, 1)), (2, at(1, 1)), (3, at(1, 2)), (4, at(2, 3))] {
            push(&mut queue, place, id);
        }
        let other = queue.pop_if(|place, ()| place.line == 3).map(|(_, id, ())| id);
        assert_eq!((other, queue.pop_if(|_, ()| false)), (Some(4), None));
        assert_eq!(order(&mut queue), [1, 3, 2]);
    }

    #[test]
    fn the_limits_hold_and_a_return_is_never_refused() {
        let limits = Limits { total: 3, per_function: 2, bytes: 10, bytes_per_function: 8 };
        let mut queue = FairQueue::new(limits);
        assert!(queue.push(at(1, 1), 1, 0, 'a').is_ok() && queue.push(at(1, 1), 2, 0, 'b').is_ok());
        assert_eq!(queue.push(at(1, 1), 3, 0, 'c'), Err('c'), "its line is full");
        assert_eq!(queue.push(at(1, 2), 3, 9, 'c'), Err('c'), "its body is too much for a line");
        assert!(queue.push(at(1, 2), 4, 8, 'd').is_ok());
        queue.put_back(at(1, 1), 0, 0, 'f');
        assert_eq!((queue.len(), queue.bytes()), (4, 8));
        assert_eq!(queue.pop(), Some((at(1, 1), 0, 'f')));
    }

    #[test]
    fn who_has_less_than_a_share_pushes_out_the_last_of_who_has_most() {
        let limits = Limits { total: 6, per_function: 6, bytes: 100, bytes_per_function: 100 };
        let mut queue = FairQueue::new(limits);
        for (id, place) in
            [(1, at(1, 1)), (2, at(1, 1)), (3, at(1, 1)), (4, at(1, 2)), (5, at(1, 1)), (6, at(1, 1))]
        {
            assert_eq!(queue.push(place, id, 10, id), Ok(vec![]));
        }
        assert_eq!(queue.push(at(1, 1), 7, 0, 7), Err(7), "nobody has more");
        assert_eq!(queue.push(at(2, 1), 8, 0, 8), Ok(vec![6]), "another tenant");
        assert_eq!(queue.push(at(1, 2), 9, 0, 9), Ok(vec![5]), "another function of the same");
        assert_eq!(queue.push(at(2, 1), 10, 0, 10), Ok(vec![3]));
        assert_eq!(queue.push(at(2, 1), 11, 0, 11), Ok(vec![9]), "up to an equal share");
        assert_eq!(queue.push(at(2, 1), 12, 0, 12), Err(12));
        // By bytes as well, and only if that makes room.
        let mut queue = FairQueue::new(Limits { total: 99, ..limits });
        (1..=5).for_each(|id| assert_eq!(queue.push(at(1, 1), id, 20, id), Ok(vec![])));
        assert_eq!(queue.push(at(2, 1), 6, 30, 6), Ok(vec![5, 4]));
        assert_eq!(queue.push(at(2, 1), 7, 40, 7), Err(7));
        assert_eq!((queue.len(), queue.bytes()), (4, 90));
    }

    #[test]
    fn who_comes_back_finds_the_old_place() {
        let mut queue = FairQueue::new(ROOMY);
        (1..=4).for_each(|id| push(&mut queue, at(1, 1), id));
        let called: Vec<_> = (0..2).filter_map(|_| queue.pop()).collect();
        // In whatever order they come back.
        called.into_iter().rev().for_each(|(place, id, ())| queue.put_back(place, id, 0, ()));
        assert_eq!(order(&mut queue), [1, 2, 3, 4]);
    }

    #[test]
    fn retry_times_follow_the_rate() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        assert_eq!(rate.retry_after(5, start), Duration::from_secs(1));
        for n in 1..=200u32 {
            rate.ended(start + Duration::from_millis(10) * n);
        }
        let wait = rate.retry_after(99, start + Duration::from_secs(2));
        assert!((Duration::from_millis(800)..Duration::from_millis(1200)).contains(&wait), "{wait:?}");
    }

    #[test]
    fn only_a_wait_that_is_surely_too_long_is_refused() {
        let start = Instant::now();
        let mut rate = Rate::new(start);
        let second = Duration::from_secs(1);
        for n in 1..=5u32 {
            rate.ended(start + Duration::from_millis(100) * n);
        }
        let now = start + Duration::from_millis(500);
        assert_eq!(rate.too_long(10_000, second, now), None, "five calls prove nothing");
        for n in 6..=100u32 {
            rate.ended(start + Duration::from_millis(100) * n);
        }
        let now = start + 10 * second;
        // Ten a second.
        let wait = rate.too_long(39, second, now).expect("four seconds are too long");
        assert!((3 * second..5 * second).contains(&wait), "{wait:?}");
        assert_eq!(come_again(wait, second), wait - second);
        assert_eq!(rate.too_long(39, 3 * second, now), None, "it may still come true");
        assert_eq!(rate.too_long(10, second / 10, now), None, "few are gone at a stroke");
    }

    #[test]
    fn balancers_take_turns_in_a_line() {
        let mut line = vec![(7, 'a'), (7, 'b'), (7, 'c'), (3, 'd'), (9, 'e'), (3, 'f')];
        let (mut last, mut order) = (0, String::new());
        while let Some(next) = next_in_turn(line.iter().map(|(asker, _)| *asker), last) {
            let (asker, call) = line.remove(next);
            last = asker;
            order.push(call);
        }
        assert_eq!(order, "daefbc");
    }

    proptest! {
        /// Whatever comes and goes: nobody is lost, nobody is doubled, the sums are those of who is inside, and no limit is broken.
        #[test]
        fn nobody_is_lost_and_nobody_is_doubled(
            steps in proptest::collection::vec((0u8..5, 0u64..4, 0u64..4, 0usize..30), 0..300),
        ) {
            let limits = Limits { total: 40, per_function: 15, bytes: 500, bytes_per_function: 200 };
            let mut queue = FairQueue::new(limits);
            let mut inside = BTreeMap::new();
            for (id, (what, tenant, line, bytes)) in (0u64..).zip(steps) {
                let place = at(tenant, line);
                match what {
                    0..=2 => if let Ok(out) = queue.push(place, id, bytes, id) {
                        inside.insert(id, (place, bytes));
                        let own = inside.values().filter(|(other, _)| other.tenant == tenant).count();
                        for gone in out {
                            let (from, _) = inside.remove(&gone).expect("it was inside");
                            let left = inside.values().filter(|(other, _)| other.tenant == from.tenant).count();
                            prop_assert!(from.tenant == tenant || left + 1 >= own || bytes > 0);
                        }
                        prop_assert!(inside.len() <= limits.total);
                        prop_assert!(queue.bytes() <= limits.bytes);
                    },
                    3 => if let Some((place, id, entry)) = queue.pop() {
                        prop_assert_eq!(id, entry);
                        prop_assert_eq!(inside.remove(&id).map(|(place, _)| place), Some(place));
                    },
                    _ => if let Some((&id, &(place, _))) = inside.iter().nth(bytes) {
                        prop_assert_eq!(queue.remove(place, id), Some(id));
                        inside.remove(&id);
                    },
                }
                let places: HashSet<_> = inside.values().map(|(place, _)| *place).collect();
                prop_assert_eq!((queue.len(), queue.lines()), (inside.len(), places.len()));
                prop_assert_eq!(queue.bytes(), inside.values().map(|(_, bytes)| bytes).sum::<usize>());
            }
            while let Some((place, id, _)) = queue.pop() {
                prop_assert_eq!(inside.remove(&id).map(|(place, _)| place), Some(place));
            }
            prop_assert!(inside.is_empty() && queue.is_empty() && queue.lines() == 0);
        }

        /// What is said to be ahead is what comes first.
        #[test]
        fn ahead_is_who_comes_first(
            waiting in proptest::collection::vec((0u64..3, 0u64..3), 0..40), tenant in 0u64..4, line in 0u64..4,
        ) {
            let mut queue = FairQueue::new(ROOMY);
            for (id, (tenant, line)) in (0u64..).zip(waiting) {
                push(&mut queue, at(tenant, line), id);
            }
            let ahead = queue.ahead(at(tenant, line));
            push(&mut queue, at(tenant, line), 1000);
            let came = order(&mut queue).iter().position(|id| *id == 1000).expect("it is inside");
            // Turns that stand before it when it comes may be its own tenant's or another's.
            prop_assert!(came <= ahead && ahead <= came + 16, "{came} came before, {ahead} were said to");
        }
    }
}
