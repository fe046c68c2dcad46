//! Jittered exponential back-off as an iterator of waits.

use std::time::Duration;

/// Doubling waits between a first and a longest one, each spread by ±25 % so that peers that failed together do not come
/// back together. Endless; seeded, so that tests repeat.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
    seed: u64,
}

impl Backoff {
    /// Waits of `first`, twice that, … up to `longest`.
    pub fn new(first: Duration, longest: Duration, seed: u64) -> Self {
        Self { next: first.min(longest), longest, seed }
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let base = self.next;
        self.next = base.saturating_mul(2).min(self.longest);
        let spread = split_mix(&mut self.seed) as f64 / u64::MAX as f64; // 0..=1
        Some(base.mul_f64(0.75 + spread / 2.0))
    }
}

/// SplitMix64: a small, well-known generator for jitter and tie-breaking; not for secrets.
pub fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_longest_within_a_quarter() {
        let waits: Vec<_> =
            Backoff::new(Duration::from_millis(10), Duration::from_millis(80), 7).take(6).collect();
        for (wait, base) in waits.iter().zip([10, 20, 40, 80, 80, 80]) {
            let base = f64::from(base) / 1000.0;
            assert!((base * 0.75..=base * 1.25).contains(&wait.as_secs_f64()), "{wait:?} around {base}");
        }
    }
}
