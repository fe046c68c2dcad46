//! Seeded random numbers, the same on every machine and in every version: a run is repeated by its seed.

use stoker_core::backoff::split_mix;

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The stream of a seed; `part` separates streams of one seed.
    #[must_use]
    pub fn new(seed: u64, part: u64) -> Self {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ part.rotate_left(32);
        split_mix(&mut state);
        Self(state)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        split_mix(&mut self.0)
    }

    /// Between 0 and 1, neither of them.
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// One of `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    /// With the mean 0 and the deviation 1.
    pub fn normal(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Log-normal around a median.
    pub fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        median * (sigma * self.normal()).exp()
    }

    /// The time to the next of events that come independently, `mean` apart.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.unit().ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_what_they_are_called() {
        let mut random = Random::new(1, 2);
        let mean = |mut draw: Box<dyn FnMut() -> f64>| (0..20_000).map(|_| draw()).sum::<f64>() / 20_000.0;
        let (mut a, mut b, mut c) = (random.clone(), random.clone(), random.clone());
        assert!((mean(Box::new(move || a.unit())) - 0.5).abs() < 0.01);
        assert!(mean(Box::new(move || b.normal())).abs() < 0.03);
        assert!((mean(Box::new(move || c.exponential(3.0))) - 3.0).abs() < 0.1);
        let mut draws: Vec<f64> = (0..9999).map(|_| random.log_normal(5.0, 1.0)).collect();
        draws.sort_by(f64::total_cmp);
        assert!((draws[5000] - 5.0).abs() < 0.3);
        assert!((0..1000).all(|_| random.below(3) < 3));
    }
}
