//! Who waits, who goes next, and how long it will take.
//!
//! The queue is fair between functions, not between calls: each function has its own line and the lines take turns, so that a
//! busy function cannot starve another.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// How many may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Over all functions.
    pub total: usize,
    /// Of one function.
    pub per_function: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { total: 10_000, per_function: 2_000 }
    }
}

/// Lines that take turns. `K` names a line; entries are known by a number that the caller chooses, and that grows from one
/// that joins to the next.
#[derive(Debug)]
pub struct FairQueue<K, T> {
    lines: HashMap<K, VecDeque<(u64, T)>>,
    turns: VecDeque<K>,
    len: usize,
    limits: Limits,
}

impl<K: Hash + Eq + Clone, T> FairQueue<K, T> {
    /// An empty queue.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { lines: HashMap::new(), turns: VecDeque::new(), len: 0, limits }
    }

    /// Everyone who waits.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Lines with somebody in them.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.turns.len()
    }

    /// Who waits in the line of `key`.
    #[must_use]
    pub fn line(&self, key: &K) -> usize {
        self.lines.get(key).map_or(0, VecDeque::len)
    }

    /// Joins the end of its line.
    ///
    /// # Errors
    /// Gives `entry` back when the line or the queue is full.
    pub fn push(&mut self, key: &K, id: u64, entry: T) -> Result<(), T> {
        if self.len >= self.limits.total || self.line(key) >= self.limits.per_function {
            return Err(entry);
        }
        self.line_of(key).push_back((id, entry));
        Ok(())
    }

    /// Goes back to its old place in its line: it was called and there was no room after all. Never refused, since its place
    /// was granted before.
    pub fn put_back(&mut self, key: &K, id: u64, entry: T) {
        let line = self.line_of(key);
        let at = line.partition_point(|(other, _)| *other < id);
        line.insert(at, (id, entry));
    }

    fn line_of(&mut self, key: &K) -> &mut VecDeque<(u64, T)> {
        self.len += 1;
        if !self.lines.contains_key(key) {
            self.turns.push_back(key.clone());
        }
        self.lines.entry(key.clone()).or_default()
    }

    /// The head of the line whose turn it is; the turn passes on.
    pub fn pop(&mut self) -> Option<(K, u64, T)> {
        let key = self.turns.pop_front()?;
        let line = self.lines.get_mut(&key)?;
        let (id, entry) = line.pop_front()?;
        self.len -= 1;
        if line.is_empty() {
            self.lines.remove(&key);
        } else {
            self.turns.push_back(key.clone());
        }
        Some((key, id, entry))
    }

    /// Leaves without having been called.
    pub fn remove(&mut self, key: &K, id: u64) -> Option<T> {
        let line = self.lines.get_mut(key)?;
        let at = line.iter().position(|(other, _)| *other == id)?;
        let (_, entry) = line.remove(at)?;
        self.len -= 1;
        if line.is_empty() {
            self.lines.remove(key);
            self.turns.retain(|other| other != key);
        }
        Some(entry)
    }
}

/// How fast calls end, observed: the ground of every retry time that we name.
#[derive(Debug, Clone)]
pub struct Rate {
    per_second: f64,
    count: u32,
    since: Instant,
}

/// Length of one observation.
const SAMPLE: Duration = Duration::from_millis(500);

/// Shortest and longest retry time that we name.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

impl Rate {
    /// Nothing observed yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { per_second: 0.0, count: 0, since: now }
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
            self.count = 0;
            self.since = now;
        }
    }

    /// When one that comes behind `ahead` others may expect its turn.
    #[must_use]
    pub fn retry_after(&self, ahead: usize, now: Instant) -> Duration {
        let span = now.saturating_duration_since(self.since).max(SAMPLE);
        let rate = self.per_second.max(f64::from(self.count) / span.as_secs_f64());
        if rate <= 0.0 {
            return Duration::from_secs(1);
        }
        Duration::from_secs_f64(((ahead + 1) as f64 / rate).min(RETRY.1.as_secs_f64())).max(RETRY.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_take_turns() {
        let mut queue = FairQueue::new(Limits { total: 100, per_function: 100 });
        for id in 0..10 {
            queue.push(&"busy", id, ()).expect("there is room");
        }
        queue.push(&"rare", 99, ()).expect("there is room");
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|(_, id, ())| id).collect();
        assert_eq!(&order[..3], &[0, 99, 1]);
    }

    #[test]
    fn both_limits_hold_and_a_return_is_never_refused() {
        let mut queue = FairQueue::new(Limits { total: 3, per_function: 2 });
        assert!(queue.push(&1, 1, 'a').is_ok() && queue.push(&1, 2, 'b').is_ok());
        assert_eq!(queue.push(&1, 3, 'c'), Err('c'));
        assert!(queue.push(&2, 4, 'd').is_ok());
        assert_eq!(queue.push(&3, 5, 'e'), Err('e'));
        queue.put_back(&1, 0, 'f');
        assert_eq!(queue.len(), 4);
        assert_eq!(queue.pop(), Some((1, 0, 'f')));
    }

    #[test]
    fn who_comes_back_finds_the_old_place() {
        let mut queue = FairQueue::new(Limits { total: 9, per_function: 9 });
        (1..=4).for_each(|id| queue.push(&'a', id, ()).expect("there is room"));
        let called: Vec<_> = (0..2).filter_map(|_| queue.pop()).collect();
        // In whatever order they come back.
        called.into_iter().rev().for_each(|(key, id, ())| queue.put_back(&key, id, ()));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).map(|(_, id, ())| id).collect();
        assert_eq!(order, [1, 2, 3, 4]);
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

    proptest! {
        #[test]
        fn nobody_is_lost_and_nobody_is_doubled(steps in proptest::collection::vec((0u8..4, 0u8..5), 0..200)) {
            let mut queue = FairQueue::new(Limits { total: 40, per_function: 15 });
            let mut inside = std::collections::BTreeMap::new();
            for (id, (what, key)) in (0u64..).zip(steps) {
                match what {
                    0 | 1 => if queue.push(&key, id, id).is_ok() { inside.insert(id, key); },
                    2 => if let Some((key, id, entry)) = queue.pop() {
                        prop_assert_eq!(id, entry);
                        prop_assert_eq!(inside.remove(&id), Some(key));
                    },
                    _ => if let Some((&id, &key)) = inside.iter().nth(usize::from(key)) {
                        prop_assert_eq!(queue.remove(&key, id), Some(id));
                        inside.remove(&id);
                    },
                }
                prop_assert_eq!(queue.len(), inside.len());
            }
            while let Some((key, id, _)) = queue.pop() {
                prop_assert_eq!(inside.remove(&id), Some(key));
            }
            prop_assert!(inside.is_empty() && queue.is_empty() && queue.lines() == 0);
        }
    }
}
