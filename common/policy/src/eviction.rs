//! Which idle container goes when room is needed: GreedyDual, discounted by rank.
//!
//! Plain GreedyDual lets the frequency of a function protect every spare container that a burst left behind, and loses to LRU
//! for it. Dividing by the rank among its siblings says what is true: the k-th spare is less likely to be needed.
//!
//! What a function's owner asked to be kept warm goes last: only where everything else together would not make room.

use std::time::{Duration, Instant};

/// Time in which half of a [`Frequency`] is forgotten. Longer than the pauses of a function that people call by hand, short
/// next to a change of the load.
const HALF_LIFE: Duration = Duration::from_secs(300);

/// How often something happened of late: a count that decays.
#[derive(Debug, Clone, Copy)]
pub struct Frequency {
    count: f64,
    at: Instant,
}

impl Frequency {
    /// Nothing happened yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { count: 0.0, at: now }
    }

    /// It happened.
    pub fn add(&mut self, now: Instant) {
        self.count = self.at(now) + 1.0;
        self.at = now.max(self.at);
    }

    /// The count as it is worth now.
    #[must_use]
    pub fn at(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at);
        self.count * 0.5_f64.powf(passed.as_secs_f64() / HALF_LIFE.as_secs_f64())
    }
}

/// An idle container.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Idle {
    /// Calls of its function of late, decayed.
    pub frequency: f64,
    /// What a start of it took, measured.
    pub start: Duration,
    /// Bytes that it holds.
    pub size: u64,
    /// 0 for the one of its function that would be used first, 1 for the next, …
    pub rank: u32,
    /// How long it has been idle; breaks ties.
    pub idle: Duration,
    /// Its function would have fewer than it shall have at least.
    pub kept: bool,
}

/// What is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Bytes.
    pub size: u64,
    /// Containers, whatever their size.
    pub count: usize,
}

/// What keeping it is worth. Of the frequency it is the root: what happened often of late says with less and less certainty that it will happen
/// again, and one busy function would keep its last spare container before the only one of many rare functions.
#[must_use]
pub fn worth(c: &Idle) -> f64 {
    let size = c.size.max(1) as f64 / f64::from(1 << 20);
    c.frequency.max(0.0).sqrt() * c.start.as_secs_f64().max(1e-6) / size / f64::from(c.rank.saturating_add(1))
}

/// A container is wanted again that had a call within so many launches of it, and within this time however short those are. Who takes it for a line that
/// stood as long ([`Facts::lasts`](crate::launch::Facts::lasts)) has shown as much as that it is not wanted; balancers hear within 100 ms that it is idle.
const AGAIN: (u32, Duration) = (3, Duration::from_millis(100));

/// How many of a function's idle containers, the one used last first, are spoken for: they go to those who have a [claim](crate::shares::claim), and
/// to nobody else. `waiting` calls of its own stand in the line, for CPU since nothing else is missing, and each container holds `concurrency` of them:
/// where CPU is what all wait for, who takes one more gains nothing, whose container went launches it again, and in the end more is launched than
/// served. And to one who `has` a container goes none that was [just used](AGAIN): its next call is on its way, and would have to launch it again.
#[must_use]
pub fn spoken_for(idle: &[Idle], waiting: u32, concurrency: u32, has: bool) -> usize {
    let waited_for = (waiting.div_ceil(concurrency.max(1)) as usize).min(idle.len());
    let just = |one: &&Idle| one.idle < (one.start * AGAIN.0).max(AGAIN.1);
    let used = if has { idle.iter().take_while(just).count() } else { 0 };
    waited_for.max(used)
}

/// The least worthy that together make up for `need`, as positions in `idle`, no more of them than it takes in that order;
/// `None` if all of them would not do.
#[must_use]
pub fn victims(idle: &[Idle], need: Need) -> Option<Vec<usize>> {
    let mut order: Vec<usize> = (0..idle.len()).collect();
    order.sort_by(|a, b| {
        let (one, other) = (&idle[*a], &idle[*b]);
        one.kept
            .cmp(&other.kept)
            .then(worth(one).total_cmp(&worth(other)))
            .then(other.idle.cmp(&one.idle))
            .then(a.cmp(b))
    });
    let mut freed = 0u64;
    let mut chosen = Vec::new();
    for at in order {
        if freed >= need.size && chosen.len() >= need.count {
            break;
        }
        freed = freed.saturating_add(idle[at].size);
        chosen.push(at);
    }
    (freed >= need.size && chosen.len() >= need.count).then_some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: Idle = Idle {
        frequency: 1.0,
        start: Duration::from_millis(100),
        size: 64 << 20,
        rank: 0,
        idle: Duration::ZERO,
        kept: false,
    };

    fn bytes(size: u64) -> Need {
        Need { size, count: 0 }
    }

    #[test]
    fn spares_go_first_then_the_cheap_the_large_and_the_rare() {
        let others = [
            Idle { rank: 1, ..ONE },
            Idle { start: Duration::from_millis(50), ..ONE },
            Idle { size: 128 << 20, ..ONE },
            Idle { frequency: 0.2, ..ONE },
            Idle { idle: Duration::from_secs(1), ..ONE },
        ];
        for other in others {
            assert_eq!(victims(&[ONE, other], bytes(1)), Some(vec![1]), "{other:?}");
            let kept = Idle { kept: true, ..other };
            assert_eq!(victims(&[ONE, kept], bytes(1)), Some(vec![0]), "{kept:?}");
        }
    }

    #[test]
    fn no_more_than_needed_and_nothing_in_vain() {
        let all = [ONE; 4];
        let chosen = |need| victims(&all, need).map(|v| v.len());
        assert_eq!(chosen(bytes(100 << 20)), Some(2));
        assert_eq!(chosen(Need { size: 1, count: 3 }), Some(3));
        assert_eq!(chosen(bytes(1 << 40)), None);
        assert_eq!(chosen(Need { size: 0, count: 5 }), None);
        assert_eq!(chosen(bytes(0)), Some(0));
    }

    #[test]
    fn what_is_waited_for_or_was_just_used_is_spoken_for() {
        let idle = [ONE; 4];
        assert_eq!(spoken_for(&idle, 0, 1, false), 0, "nobody waits");
        assert_eq!(spoken_for(&idle, 3, 1, false), 3);
        assert_eq!(spoken_for(&idle, 3, 2, false), 2, "two calls in each");
        assert_eq!(spoken_for(&idle, 3, 0, false), 3, "one call in each is the least");
        assert_eq!(spoken_for(&idle, 9, 1, false), 4, "no more than there are");
        let since = [0, 299, 300, 301].map(|ms| Idle { idle: Duration::from_millis(ms), ..ONE });
        assert_eq!(spoken_for(&since, 0, 1, true), 2, "three launches take 300 ms");
        let quick = since.map(|one| Idle { start: Duration::from_millis(5), idle: one.idle / 3, ..one });
        assert_eq!(spoken_for(&quick, 0, 1, true), 2, "or 100 ms");
        assert_eq!(spoken_for(&since, 3, 1, true), 3);
        assert_eq!(spoken_for(&since, 0, 1, false), 0, "one without a container needs it more");
    }

    #[test]
    fn half_is_forgotten() {
        let start = Instant::now();
        let mut frequency = Frequency::new(start);
        frequency.add(start);
        frequency.add(start);
        assert!((frequency.at(start + HALF_LIFE) - 1.0).abs() < 1e-9);
        frequency.add(start + HALF_LIFE);
        assert!((frequency.at(start + 2 * HALF_LIFE) - 1.0).abs() < 1e-9);
    }

    fn any_idle() -> impl Strategy<Value = Idle> {
        (0.0..50.0f64, 0u64..2_000, 0u64..300, 0u32..4, 0u64..100, any::<bool>()).prop_map(
            |(frequency, start, mib, rank, idle, kept)| Idle {
                frequency,
                start: Duration::from_millis(start),
                size: mib << 20,
                rank,
                idle: Duration::from_secs(idle),
                kept,
            },
        )
    }

    proptest! {
        #[test]
        fn enough_none_twice_the_last_one_needed_and_kept_ones_last(
            idle in prop::collection::vec(any_idle(), 0..30), mib in 0u64..2_000, count in 0usize..20,
        ) {
            let need = Need { size: mib << 20, count };
            let all: u64 = idle.iter().map(|c| c.size).sum();
            let Some(chosen) = victims(&idle, need) else {
                prop_assert!(all < need.size || idle.len() < count);
                return Ok(());
            };
            let size = |v: &[usize]| v.iter().map(|at| idle[*at].size).sum::<u64>();
            prop_assert!(size(&chosen) >= need.size && chosen.len() >= count);
            if let Some((_, fewer)) = chosen.split_last() {
                prop_assert!(size(fewer) < need.size || fewer.len() < count);
            }
            let mut sorted = chosen.clone();
            sorted.sort_unstable();
            sorted.dedup();
            prop_assert_eq!(sorted.len(), chosen.len());
            let spared = (0..idle.len()).filter(|at| !chosen.contains(at) && !idle[*at].kept).count();
            prop_assert!(spared == 0 || chosen.iter().all(|at| !idle[*at].kept));
        }
    }
}
