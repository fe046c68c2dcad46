//! Which idle containers go to make room. Pure.
//!
//! Rank-discounted GreedyDual: what is dear to rebuild, often used and small stays; each further idle container of one
//! function counts for less.

use std::time::Duration;

/// An idle container.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<K> {
    pub key: K,
    /// Calls that its function had here.
    pub uses: u64,
    /// What a launch took.
    pub rebuild: Duration,
    pub memory: u64,
    /// It is the n-th idle one of its function, the most recently used being 0.
    pub rank: usize,
    /// Without a call for so long.
    pub idle: Duration,
}

impl<K> Candidate<K> {
    fn worth(&self) -> f64 {
        let seconds = self.rebuild.as_secs_f64().max(0.001);
        let mib = (self.memory as f64 / f64::from(1 << 20)).max(1.0);
        (self.uses.max(1) as f64).sqrt() * seconds
            / mib
            / (self.rank + 1) as f64
            / (1.0 + self.idle.as_secs_f64())
    }
}

/// The least valuable ones that free `memory` bytes and `slots` slots, or none if all of them would not do.
pub fn victims<K: Copy>(mut candidates: Vec<Candidate<K>>, memory: u64, slots: u32) -> Vec<K> {
    candidates.sort_by(|a, b| a.worth().total_cmp(&b.worth()));
    let (mut got, mut chosen) = (0u64, Vec::new());
    for candidate in candidates {
        if got >= memory && chosen.len() >= slots as usize {
            break;
        }
        got = got.saturating_add(candidate.memory);
        chosen.push(candidate.key);
    }
    if got >= memory && chosen.len() >= slots as usize { chosen } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_valuable_go_and_no_more_than_needed() {
        let candidate = |key, uses, rebuild, memory: u64, rank| Candidate {
            key,
            uses,
            rebuild: Duration::from_millis(rebuild),
            memory: memory << 20,
            rank,
            idle: Duration::ZERO,
        };
        let all = vec![
            candidate('a', 100, 500, 64, 0),
            candidate('b', 100, 500, 64, 1),
            candidate('c', 1, 5, 64, 0),
            candidate('d', 100, 500, 512, 0),
        ];
        assert_eq!(victims(all.clone(), 64 << 20, 1), ['c']);
        assert_eq!(victims(all.clone(), 65 << 20, 1), ['c', 'd']);
        assert_eq!(victims(all.clone(), 4 << 30, 1), []);
        assert_eq!(victims(all, 0, 3), ['c', 'd', 'b']);
    }
}
