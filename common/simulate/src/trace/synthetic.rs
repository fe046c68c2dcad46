//! Traces that are made up, of shapes that were published.

use super::{Call, Function, Micros, SECOND, Trace};
use crate::random::Random;

const MIB: f64 = (1 << 20) as f64;

/// Much traffic on functions of skewed popularity, with bursts: where placement is tested. It grows to its full rate over the first
/// quarter, as that of a fleet does that was just started; from then on everything is stationary, so that a run of minutes says what
/// a run of hours would.
#[derive(Debug, Clone, PartialEq)]
pub struct Steady {
    /// Different functions.
    pub functions: usize,
    /// How much more the popular ones are called: the exponent of Zipf's law.
    pub skew: f64,
    /// Cores that shall be busy on average.
    pub work: f64,
    /// Calls to make.
    pub calls: usize,
    /// Time from one burst to the next on average; none if zero. A burst is 10 to 50 calls of one function within 200 ms, every
    /// second time of an unpopular one.
    pub bursts: Micros,
    /// Repeats it.
    pub seed: u64,
}

impl Default for Steady {
    fn default() -> Self {
        Self { functions: 1000, skew: 1.1, work: 0.6 * 320.0, calls: 150_000, bursts: 4 * SECOND, seed: 1 }
    }
}

impl Steady {
    /// Makes it.
    #[must_use]
    pub fn trace(&self) -> Trace {
        let mut random = Random::new(self.seed, 1);
        let count = self.functions.max(1);
        let mut medians = Vec::with_capacity(count);
        let functions: Vec<Function> = (0..count)
            .map(|n| {
                medians.push(random.log_normal(0.150, 1.2).clamp(0.003, 10.0));
                Function {
                    name: format!("steady/f{n}"),
                    memory: (random.log_normal(170.0, 0.67).clamp(32.0, 2048.0) * MIB) as u64,
                    cold: (random.log_normal(0.5, 0.6).clamp(0.05, 10.0) * SECOND as f64) as Micros,
                }
            })
            .collect();
        let popular = Zipf::new(count, self.skew);
        // A call's own spread makes its mean a little more than its median.
        let spread = 0.3_f64;
        let mean = |n: usize| medians[n] * (spread * spread / 2.0).exp();
        let expected: f64 = (0..count).map(|n| popular.part(n) * mean(n)).sum();
        let even: f64 = (0..count).map(mean).sum::<f64>() / count as f64;
        let burst = if self.bursts == 0 { 0.0 } else { 30.0 * SECOND as f64 / self.bursts as f64 };
        let rate = ((self.work - burst * (expected + even) / 2.0) / expected).max(0.1);
        // Of the growing quarter one half is missing.
        let span = (self.calls as f64 / (rate * 0.875 + burst) * SECOND as f64) as Micros;
        let grown = span as f64 / 4.0;
        let mut calls = Vec::with_capacity(self.calls + 64);
        let takes = |random: &mut Random, function: usize| {
            (random.log_normal(medians[function], spread) * SECOND as f64).max(1.0) as Micros
        };
        let mut at = 0.0;
        loop {
            at += random.exponential(SECOND as f64 / rate);
            if at >= span as f64 {
                break;
            }
            if at < grown && random.unit() > at / grown {
                continue;
            }
            let function = popular.draw(&mut random);
            calls.push(Call {
                at: at as Micros,
                function: function as u32,
                takes: takes(&mut random, function),
            });
        }
        let mut random = Random::new(self.seed, 2);
        let pause = |random: &mut Random| match self.bursts {
            0 => f64::INFINITY,
            mean => random.exponential(mean as f64),
        };
        let mut at = pause(&mut random);
        let mut unpopular = false;
        while at < span as f64 {
            let function = if unpopular { random.below(count) } else { popular.draw(&mut random) };
            unpopular = !unpopular;
            for _ in 0..10 + random.below(41) {
                let at = (at + random.unit() * 0.2 * SECOND as f64) as Micros;
                calls.push(Call { at, function: function as u32, takes: takes(&mut random, function) });
            }
            at += pause(&mut random);
        }
        let title = format!("{count} functions, Zipf {}, {:.0} cores busy", self.skew, self.work);
        let mut trace = Trace { title, functions, calls, span };
        trace.sort();
        trace
    }
}

/// Short functions, for callers who make their next call, each always of the same function, when the one before is answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Again {
    /// Calls to make.
    pub calls: usize,
    /// What one takes in the middle.
    pub takes: Micros,
    /// What a launch takes in the middle.
    pub cold: Micros,
    /// The functions, as `app/function`.
    pub functions: &'static [&'static str],
    /// Repeats it.
    pub seed: u64,
}

impl Again {
    /// Makes it.
    #[must_use]
    pub fn trace(&self) -> Trace {
        let mut random = Random::new(self.seed, 3);
        let mut takes = || random.log_normal(self.takes as f64, 0.3).max(1.0) as Micros;
        let calls = (0..self.calls).map(|_| Call { at: 0, function: 0, takes: takes() }).collect();
        let function =
            |name: &&str| Function { name: (*name).to_owned(), memory: 16 * MIB as u64, cold: self.cold };
        let functions = self.functions.iter().map(function).collect();
        Trace { title: "short functions, again and again".to_owned(), functions, calls, span: 0 }
    }
}

/// Hours of a cloud as it was published for Azure Functions in 2019: nearly half of the functions are called less than once an
/// hour, four fifths less than once a minute, a sixth by timers, and a few make nearly all calls. Where keeping warm is tested.
#[derive(Debug, Clone, PartialEq)]
pub struct Cloud {
    /// Different functions.
    pub functions: usize,
    /// How long.
    pub span: Micros,
    /// Cores that shall be busy on average.
    pub work: f64,
    /// Repeats it.
    pub seed: u64,
}

impl Default for Cloud {
    fn default() -> Self {
        Self { functions: 2000, span: 4 * 3600 * SECOND, work: 40.0, seed: 1 }
    }
}

/// Periods of timers in minutes, and how many of a hundred have them.
const TIMERS: &[(u64, usize)] = &[(1, 20), (5, 35), (10, 10), (15, 10), (30, 5), (60, 20)];

impl Cloud {
    /// Makes it.
    #[must_use]
    pub fn trace(&self) -> Trace {
        let mut random = Random::new(self.seed, 3);
        let count = self.functions.max(1);
        let mut shapes = Vec::with_capacity(count);
        let mut functions = Vec::with_capacity(count);
        for n in 0..count {
            // Log-normal as published, cut where a node's patience ends.
            let takes = random.log_normal((-0.38_f64).exp(), 2.36).clamp(0.001, 60.0);
            let timer = random.unit() < 0.16;
            let rate = if timer {
                let mut nth = random.below(100);
                let found = TIMERS.iter().find(|(_, part)| {
                    let here = nth < *part;
                    nth = nth.saturating_sub(*part);
                    here
                });
                1.0 / (60.0 * found.map_or(60, |(minutes, _)| *minutes) as f64)
            } else {
                rate(random.unit())
            };
            // What is called often is short, or nobody could pay for it.
            let takes = takes / (rate * 60.0).max(1.0).sqrt();
            shapes.push((takes, timer, rate));
            functions.push(Function {
                name: format!("cloud/f{n}"),
                memory: (random.log_normal(170.0, 0.668).clamp(32.0, 2048.0) * MIB) as u64,
                cold: (random.log_normal(0.5, 0.6).clamp(0.05, 10.0) * SECOND as f64) as Micros,
            });
        }
        // The few busy ones are scaled to the work that was asked for.
        let busy = |rate: f64| rate > 1.0 / 60.0;
        let sum = |which: &dyn Fn(f64) -> bool| -> f64 {
            shapes.iter().filter(|(.., rate)| which(*rate)).map(|(takes, _, rate)| takes * rate).sum()
        };
        let (rare, often) = (sum(&|rate| !busy(rate)), sum(&busy));
        let factor = if often > 0.0 { ((self.work - rare) / often).max(0.0) } else { 0.0 };
        let mut calls = Vec::new();
        for (function, (takes, timer, rate)) in (0u32..).zip(&shapes) {
            let pause = SECOND as f64 / if busy(*rate) { rate * factor } else { *rate };
            let mut at = random.unit() * pause;
            if !timer {
                at = random.exponential(pause);
            }
            while at < self.span as f64 && calls.len() < super::MOST_CALLS {
                let takes =
                    (random.log_normal(*takes, 0.5) * SECOND as f64).clamp(1.0, 300.0 * SECOND as f64);
                // Timers stray a little.
                let stray = if *timer { random.unit() * 0.3 * SECOND as f64 } else { 0.0 };
                calls.push(Call { at: (at + stray) as Micros, function, takes: takes as Micros });
                at += if *timer { pause } else { random.exponential(pause) };
            }
        }
        let title = format!("a cloud of {count} functions, {:.0} cores busy", self.work);
        let mut trace = Trace { title, functions, calls, span: self.span };
        trace.sort();
        trace
    }
}

/// Calls a second of the function at this place of all, by the published quantiles.
fn rate(quantile: f64) -> f64 {
    // 45 % at most one an hour, 81 % at most one a minute; the busiest some hundred times more.
    const POINTS: &[(f64, f64)] = &[
        (0.0, 1.0 / 86_400.0),
        (0.45, 1.0 / 3600.0),
        (0.81, 1.0 / 60.0),
        (0.95, 0.5),
        (0.99, 5.0),
        (1.0, 50.0),
    ];
    let at = POINTS.partition_point(|(q, _)| *q < quantile).clamp(1, POINTS.len() - 1);
    let ((q0, r0), (q1, r1)) = (POINTS[at - 1], POINTS[at]);
    let part = (quantile - q0) / (q1 - q0);
    (r0.ln() + part * (r1.ln() - r0.ln())).exp()
}

/// Zipf's law over so many.
struct Zipf {
    sums: Vec<f64>,
}

impl Zipf {
    fn new(count: usize, skew: f64) -> Self {
        let mut sum = 0.0;
        let mut sums: Vec<f64> = (1..=count)
            .map(|rank| {
                sum += (rank as f64).powf(-skew);
                sum
            })
            .collect();
        sums.iter_mut().for_each(|part| *part /= sum);
        Self { sums }
    }

    fn part(&self, n: usize) -> f64 {
        self.sums[n] - n.checked_sub(1).map_or(0.0, |before| self.sums[before])
    }

    fn draw(&self, random: &mut Random) -> usize {
        let at = random.unit();
        self.sums.partition_point(|sum| *sum < at).min(self.sums.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_trace_keeps_as_many_cores_busy_as_it_was_told() {
        let trace = Steady { calls: 60_000, ..Steady::default() }.trace();
        let late = trace.calls.iter().filter(|call| call.at > trace.span / 4);
        let work = late.map(|call| call.takes as f64).sum::<f64>() / (trace.span as f64 * 0.75);
        assert!((work / 192.0 - 1.0).abs() < 0.15, "{work}");
        assert!(trace.calls.is_sorted_by_key(|call| call.at));
        assert_eq!(trace, Steady { calls: 60_000, ..Steady::default() }.trace());
        assert_ne!(trace, Steady { calls: 60_000, seed: 2, ..Steady::default() }.trace());
    }

    #[test]
    fn a_cloud_has_the_published_shape() {
        let cloud = Cloud { functions: 4000, ..Cloud::default() };
        let trace = cloud.trace();
        let mut counts = vec![0usize; trace.functions.len()];
        trace.calls.iter().for_each(|call| counts[call.function as usize] += 1);
        counts.sort_unstable();
        let hours = 4;
        let seldom = counts.iter().filter(|count| **count <= hours).count() as f64 / 4000.0;
        assert!((0.30..0.55).contains(&seldom), "{seldom} of the functions at most once an hour");
        let top: usize = counts.iter().rev().take(4000 * 186 / 1000).sum();
        let part = top as f64 / trace.calls.len() as f64;
        assert!(part > 0.8, "{part} of the calls are of the busiest");
        let mut memory: Vec<_> = trace.functions.iter().map(|f| f.memory >> 20).collect();
        memory.sort_unstable();
        assert!((150..190).contains(&memory[2000]) && (340..470).contains(&memory[3600]), "{memory:?}");
    }
}
