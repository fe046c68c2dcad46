//! Which idle container goes when room is needed: GreedyDual, discounted by rank.
//!
//! Plain GreedyDual lets the frequency of a function protect every spare container that a burst left behind, and loses to LRU
//! for it. Dividing by the rank among its siblings says what is true: the k-th spare is less likely to be needed.

use std::time::Duration;

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
}

/// What keeping it is worth.
#[must_use]
pub fn worth(c: &Idle) -> f64 {
    let size = c.size.max(1) as f64 / f64::from(1 << 20);
    c.frequency.max(0.0).sqrt() * c.start.as_secs_f64().max(1e-6) / size / f64::from(c.rank.saturating_add(1))
}

/// The fewest of the least worthy that together free `needed` bytes, as positions in `idle`; `None` if all of them would not.
#[must_use]
pub fn victims(idle: &[Idle], needed: u64) -> Option<Vec<usize>> {
    let mut order: Vec<usize> = (0..idle.len()).collect();
    order.sort_by(|a, b| {
        worth(&idle[*a]).total_cmp(&worth(&idle[*b])).then(idle[*b].idle.cmp(&idle[*a].idle)).then(a.cmp(b))
    });
    let mut freed = 0u64;
    let mut chosen = Vec::new();
    for at in order {
        if freed >= needed {
            break;
        }
        freed = freed.saturating_add(idle[at].size);
        chosen.push(at);
    }
    (freed >= needed).then_some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Idle = Idle {
        frequency: 1.0,
        start: Duration::from_millis(100),
        size: 64 << 20,
        rank: 0,
        idle: Duration::ZERO,
    };

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
            assert_eq!(victims(&[ONE, other], 1), Some(vec![1]), "{other:?}");
        }
    }

    #[test]
    fn no_more_than_needed_and_nothing_in_vain() {
        let all = [ONE; 4];
        assert_eq!(victims(&all, 100 << 20).map(|v| v.len()), Some(2));
        assert_eq!(victims(&all, 1 << 40), None);
        assert_eq!(victims(&all, 0), Some(vec![]));
    }
}
