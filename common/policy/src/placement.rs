//! Which runner to ask next: warm-first rendezvous.
//!
//! Asking a warm runner that turns out to be full costs one round trip; skipping a warm runner costs a cold start. So hints of
//! warmth come first, then the weighted rendezvous order, in which balancers that share nothing agree and a lost runner moves
//! only its own share of the functions. A runner's refusal is the bound, not our view of its load.

use std::time::Duration;

use stoker_core::backoff::split_mix;
use stoker_core::capacity::{Capacity, RunnerState};
use stoker_core::resources::Ask;

/// A hint of warmth is believed for this long.
pub const HINT_TTL: Duration = Duration::from_secs(5);

/// A runner that refused is not asked again for this long, unless it says that something became free.
pub const FULL_FOR: Duration = Duration::from_millis(20);

/// Most runners asked in the order of rank before the one spill.
pub const MAX_TRIES: usize = 8;

/// A runner that is new or back gets its whole weight after this long.
pub const RAMP: Duration = Duration::from_secs(30);

/// With this many warm runners or more the call is spread over them; below, the best ranked is used so that warmth gathers.
const SPREAD_FROM: usize = 3;

/// What is known of a runner that passed the filter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// A hash of its name, the same on every balancer.
    pub key: u64,
    /// Its share of the functions; not positive means none.
    pub weight: f64,
    /// Containers of this function that it said were idle, if that is fresh.
    pub warm: u32,
    /// It refused within [`FULL_FOR`].
    pub full: bool,
    /// Calls of ours that it has.
    pub load: u32,
}

/// Whether a runner may be asked at all for a function that needs `ask`.
#[must_use]
pub fn eligible(capacity: &Capacity, ask: &Ask) -> bool {
    capacity.state == RunnerState::Ready && capacity.total.could_hold(ask)
}

/// A runner's weight: its memory in units of 128 MiB, ramped up while it is young.
#[must_use]
pub fn weight(capacity: &Capacity, age: Duration) -> f64 {
    let size = capacity.total.memory as f64 / f64::from(128 << 20);
    let ramp = (age.as_secs_f64() / RAMP.as_secs_f64()).clamp(0.02, 1.0);
    size.max(0.01) * ramp
}

/// A stable 64-bit hash (FNV-1a, mixed): the same on every machine and in every version.
#[must_use]
pub fn key(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    split_mix(&mut hash)
}

/// The rank of a runner for a function, larger is better: weighted rendezvous hashing.
#[must_use]
pub fn score(function: u64, runner: u64, weight: f64) -> f64 {
    let mut state = function ^ runner.rotate_left(32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // 53 bits, never 0 and never 1.
    let unit = ((split_mix(&mut state) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    if weight > 0.0 { -weight / unit.ln() } else { 0.0 }
}

/// The order in which the runners are asked for one call, each at most once. Yields the names that came with them.
#[derive(Debug)]
pub struct Plan {
    function: u64,
    /// Each with its caller's name for it. Those that were asked count as full from then on.
    candidates: Vec<(usize, Candidate)>,
    tries: usize,
    spilled: bool,
    seed: u64,
}

/// Plans one call of `function` (its [`key`]) over candidates, each with the caller's name for it.
#[must_use]
pub fn plan(function: u64, candidates: Vec<(usize, Candidate)>, seed: u64) -> Plan {
    Plan { function, candidates, tries: 0, spilled: false, seed }
}

impl Plan {
    fn open(&self, warm: bool) -> impl Iterator<Item = (usize, &Candidate)> {
        let open = self.candidates.iter().map(|(_, c)| c).enumerate();
        open.filter(move |(_, c)| !c.full && (!warm || c.warm > 0))
    }

    fn best(&self, warm: bool) -> Option<usize> {
        self.open(warm)
            .map(|(at, c)| (score(self.function, c.key, c.weight), c.key, at))
            .max_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)))
            .map(|(_, _, at)| at)
    }

    fn by_rank(&mut self) -> Option<usize> {
        let warm = self.open(true).count();
        if warm < SPREAD_FROM {
            return self.best(warm > 0);
        }
        let nth = below(&mut self.seed, warm);
        self.open(true).nth(nth).map(|(at, _)| at)
    }

    fn spill(&mut self) -> Option<usize> {
        let left = self.open(false).count();
        if left == 0 {
            return None;
        }
        let (one, other) = (below(&mut self.seed, left), below(&mut self.seed, left));
        [one, other]
            .into_iter()
            .filter_map(|nth| self.open(false).nth(nth))
            .min_by_key(|(_, c)| c.load)
            .map(|(at, _)| at)
    }
}

impl Iterator for Plan {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let next = if self.tries < MAX_TRIES {
            self.by_rank()
        } else if self.spilled {
            None
        } else {
            self.spilled = true;
            self.spill()
        }?;
        let (name, candidate) = self.candidates.get_mut(next)?;
        candidate.full = true;
        self.tries += 1;
        Some(*name)
    }
}

fn below(seed: &mut u64, n: usize) -> usize {
    (split_mix(seed) % n as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn runner(n: u64) -> Candidate {
        Candidate { key: key(&n.to_le_bytes()), weight: 1.0, warm: 0, full: false, load: 0 }
    }

    fn named(candidates: &[Candidate]) -> Vec<(usize, Candidate)> {
        candidates.iter().copied().enumerate().collect()
    }

    fn home(function: u64, candidates: &[Candidate]) -> Option<u64> {
        plan(function, named(candidates), 1).next().map(|i| candidates[i].key)
    }

    #[test]
    fn a_lost_runner_moves_only_its_share() {
        let all: Vec<_> = (0..20).map(runner).collect();
        let fewer = &all[..19];
        let functions = (0..4000u64).map(|f| key(&f.to_le_bytes()));
        let mut moved = 0;
        for function in functions {
            let before = home(function, &all);
            if before == Some(all[19].key) {
                moved += 1;
            } else {
                assert_eq!(before, home(function, fewer), "a function whose runner stayed does not move");
            }
        }
        assert!((120..280).contains(&moved), "{moved} of 4000 moved, a twentieth was due");
    }

    #[test]
    fn weight_is_share() {
        let mut all: Vec<_> = (0..4).map(runner).collect();
        all[0].weight = 3.0;
        let hits = (0..6000u64).filter(|f| home(key(&f.to_le_bytes()), &all) == Some(all[0].key)).count();
        assert!((2700..3300).contains(&hits), "{hits} of 6000, half was due");
    }

    #[test]
    fn warm_ones_come_first_and_full_ones_never() {
        let mut all: Vec<_> = (0..6).map(runner).collect();
        let cold = plan(7, named(&all), 3).next().expect("there are runners");
        let other = (cold + 1) % 6;
        all[other].warm = 1;
        assert_eq!(plan(7, named(&all), 3).next(), Some(other));
        all[other].full = true;
        assert!(plan(7, named(&all), 3).all(|i| i != other));
    }

    #[test]
    fn many_runners_are_eight_tries_and_one_spill() {
        let all: Vec<_> = (0..50).map(runner).collect();
        assert_eq!(plan(7, named(&all), 3).count(), MAX_TRIES + 1);
    }

    proptest! {
        #[test]
        fn each_is_asked_at_most_once_and_the_same_seed_repeats(
            facts in proptest::collection::vec((any::<u64>(), 0.1f64..4.0, 0u32..3, any::<bool>(), 0u32..9), 0..30),
            function: u64, seed: u64,
        ) {
            let all: Vec<_> = facts.into_iter()
                .map(|(key, weight, warm, full, load)| Candidate { key, weight, warm, full, load }).collect();
            let order: Vec<_> = plan(function, named(&all), seed).collect();
            let again: Vec<_> = plan(function, named(&all), seed).collect();
            prop_assert_eq!(&order, &again);
            let distinct: std::collections::HashSet<_> = order.iter().collect();
            prop_assert_eq!(distinct.len(), order.len());
            let open = all.iter().filter(|c| !c.full).count();
            prop_assert_eq!(order.len(), open.min(MAX_TRIES + 1));
        }
    }
}
