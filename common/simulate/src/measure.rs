//! What is counted of a run, and what is made of it.

use hdrhistogram::Histogram;
use serde::Serialize;
use stoker_core::resources::Resources;

use crate::engine::Active;
use crate::engine::node::{Node, Start};
use crate::scenario::Scenario;
use crate::trace::{Micros, SECOND, Trace};

/// Longest time that is told apart: an hour.
const LONGEST: u64 = 3600 * SECOND;

/// A function's slowdown is a mean over at least so many calls.
const ENOUGH: u32 = 20;

/// Moments of one length that a run is cut into for its plots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Moment {
    /// Calls that were answered.
    pub calls: u32,
    /// Those of them that waited for a launch.
    pub cold: u32,
    /// Those that were lost.
    pub lost: u32,
    /// Milliseconds that the platform added to one of them on average.
    pub added_ms: f64,
}

/// What came of a run. Times are those that the platform added to the function's own.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// How calls found their runners.
    pub placer: &'static str,
    /// Calls that were measured.
    pub calls: u64,
    /// Of them, in percent: the first in a container that was launched because of waiting calls.
    pub cold_percent: f64,
    /// By the balancer that they came to.
    pub by_balancer: Vec<u64>,
    /// By their function, in the order of the trace.
    #[serde(skip)]
    pub by_function: Vec<u64>,
    /// Calls that were not answered: their runner was killed, or nobody had room for too long.
    pub lost: u64,
    /// Milliseconds added: half of the calls have less.
    pub added_p50_ms: f64,
    /// 99 of 100.
    pub added_p99_ms: f64,
    /// 999 of 1000.
    pub added_p999_ms: f64,
    /// Offers of a call on average.
    pub tries: f64,
    /// How far runners lie apart in the work that they did for each of their cores: deviation over mean.
    pub load_variation: f64,
    /// The slowdown of the function that fares worst over that of the one in the middle; of those with enough calls.
    pub unfairness: f64,
    /// Part of all memory that idle containers held on average, in percent.
    pub idle_memory_percent: f64,
    /// Containers launched a thousand calls.
    pub launches_per_1000: f64,
    /// Idle containers ended for others a thousand calls.
    pub evictions_per_1000: f64,
    /// Containers launched ahead, and how many of them were used.
    pub prewarmed: u64,
    /// Calls that found one.
    pub prewarm_hits: u64,
    /// Seconds after the first change until the added time was back to what it had been; none without a change.
    pub recovery_s: Option<f64>,
    /// It ended in more and more offers, and was given up.
    pub stormed: bool,
    /// Length of a moment in seconds.
    pub moment_s: f64,
    /// One after the other, from the beginning to the end of the trace, with the calls that were answered in each.
    pub moments: Vec<Moment>,
    /// Milliseconds added at the percentiles of [`QUANTILES`].
    pub curve: Vec<f64>,
}

/// Where the curve of added times is sampled.
pub const QUANTILES: [f64; 13] =
    [0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999];

#[derive(Default, Clone, Copy)]
struct PerFunction {
    calls: u32,
    slowdown: f64,
}

#[derive(Default, Clone, Copy)]
struct PerNode {
    work: f64,
    idle: f64,
    since: Micros,
    joined: Micros,
}

pub struct Meter {
    pub tries: u64,
    /// Calls that are over, measured or not.
    pub ended: u64,
    pub stormed: bool,
    from: usize,
    from_time: Micros,
    /// When the trace is over; the last calls are answered after that.
    end: Micros,
    measured_tries: u64,
    calls: u64,
    cold: u64,
    lost: u64,
    launches: u64,
    prewarmed: u64,
    prewarm_hits: u64,
    evictions: u64,
    added: Histogram<u64>,
    functions: Vec<PerFunction>,
    balancers: Vec<u64>,
    nodes: Vec<PerNode>,
    moment: Micros,
    moments: Vec<Moment>,
    change: Option<Micros>,
    last: Micros,
}

impl Meter {
    pub fn new(scenario: &Scenario, trace: &Trace) -> Self {
        let from = (trace.calls.len() as f64 * scenario.warm_up.clamp(0.0, 0.99)) as usize;
        let span = trace.span.max(1);
        Self {
            tries: 0,
            ended: 0,
            stormed: false,
            from,
            from_time: trace.calls.get(from).map_or(0, |call| call.at),
            // A trace without times of its own lasts as long as its callers take.
            end: if trace.span == 0 { Micros::MAX } else { trace.span },
            measured_tries: 0,
            calls: 0,
            cold: 0,
            lost: 0,
            launches: 0,
            prewarmed: 0,
            prewarm_hits: 0,
            evictions: 0,
            added: Histogram::new_with_max(LONGEST, 3).expect("these bounds are valid"),
            functions: vec![PerFunction::default(); trace.functions.len()],
            balancers: vec![0; scenario.balancers.max(1)],
            nodes: Vec::new(),
            // About two hundred of them, of whole seconds.
            moment: (span / 200).div_ceil(SECOND).max(1) * SECOND,
            moments: Vec::new(),
            change: None,
            last: 0,
        }
    }

    pub fn added(&mut self) {
        self.nodes.push(PerNode { since: self.last, joined: self.last, ..PerNode::default() });
    }

    fn moment(&mut self, now: Micros) -> &mut Moment {
        let at = (now / self.moment) as usize;
        if self.moments.len() <= at {
            self.moments.resize(at + 1, Moment::default());
        }
        &mut self.moments[at]
    }

    /// What a runner's idle containers have held up to now; told before it changes.
    pub fn idle(&mut self, node: u32, runner: &Node, now: Micros) {
        let known = &mut self.nodes[node as usize];
        let from = known.since.max(self.from_time);
        known.idle += runner.idle_memory() as f64 * now.min(self.end).saturating_sub(from) as f64;
        known.since = now;
        self.last = self.last.max(now);
    }

    pub fn worked(&mut self, node: u32, nth: usize, took: Micros) {
        if nth >= self.from {
            self.nodes[node as usize].work += took as f64;
        }
    }

    pub fn answered(&mut self, call: &Active, now: Micros, added: Micros) {
        let Active { nth, function, takes, tries, start, .. } = *call;
        self.ended += 1;
        let moment = self.moment(now);
        moment.calls += 1;
        moment.cold += u32::from(start == Start::Cold);
        moment.added_ms += added as f64 / 1000.0;
        if nth < self.from {
            return;
        }
        self.calls += 1;
        self.balancers[call.balancer as usize] += 1;
        self.measured_tries += u64::from(tries);
        self.cold += u64::from(start == Start::Cold);
        self.prewarm_hits += u64::from(start == Start::Ahead);
        self.added.saturating_record(added.max(1));
        let function = &mut self.functions[function as usize];
        function.calls += 1;
        function.slowdown += (added + takes) as f64 / takes as f64;
    }

    pub fn lost(&mut self, nth: usize) {
        self.ended += 1;
        let now = self.last;
        self.moment(now).lost += 1;
        self.lost += u64::from(nth >= self.from);
    }

    fn counts(&self) -> bool {
        self.last >= self.from_time
    }

    pub fn launched(&mut self) {
        self.launches += u64::from(self.counts());
    }

    pub fn prewarmed(&mut self) {
        self.prewarmed += u64::from(self.counts());
    }

    pub fn evicted(&mut self, count: u32) {
        self.evictions += if self.counts() { u64::from(count) } else { 0 };
    }

    pub fn changed(&mut self, now: Micros) {
        self.change.get_or_insert(now);
    }

    pub fn report(mut self, scenario: &Scenario, trace: &Trace, sizes: &[Resources]) -> Report {
        for moment in &mut self.moments {
            moment.added_ms /= f64::from(moment.calls.max(1));
        }
        let measured = (trace.span.max(self.from_time + 1) - self.from_time) as f64;
        let calls = self.calls.max(1) as f64;
        let ms = |quantile: f64| self.added.value_at_quantile(quantile) as f64 / 1000.0;
        let per_1000 = |count: u64| count as f64 * 1000.0 / calls;
        let loads: Vec<f64> = self
            .nodes
            .iter()
            .zip(sizes)
            .filter(|(node, _)| node.joined <= self.from_time)
            .map(|(node, size)| node.work / f64::from(size.cpu_millis.max(1)))
            .collect();
        let memory: f64 = sizes.iter().map(|size| size.memory as f64).sum();
        let idle: f64 = self.nodes.iter().map(|node| node.idle).sum();
        let recovery_s = self.recovery();
        // Of the few that are answered when no more come no shares are made.
        self.moments.truncate(usize::try_from(self.end.div_ceil(self.moment)).unwrap_or(usize::MAX));
        Report {
            placer: scenario.placer.as_str(),
            calls: self.calls,
            by_balancer: std::mem::take(&mut self.balancers),
            by_function: self.functions.iter().map(|function| function.calls.into()).collect(),
            cold_percent: self.cold as f64 * 100.0 / calls,
            lost: self.lost,
            added_p50_ms: ms(0.5),
            added_p99_ms: ms(0.99),
            added_p999_ms: ms(0.999),
            tries: self.measured_tries as f64 / calls,
            load_variation: variation(&loads),
            unfairness: self.unfairness(),
            idle_memory_percent: idle * 100.0 / (memory * measured).max(1.0),
            launches_per_1000: per_1000(self.launches),
            evictions_per_1000: per_1000(self.evictions),
            prewarmed: self.prewarmed,
            prewarm_hits: self.prewarm_hits,
            recovery_s,
            stormed: self.stormed,
            moment_s: self.moment as f64 / SECOND as f64,
            curve: QUANTILES.iter().map(|quantile| ms(*quantile)).collect(),
            moments: self.moments,
        }
    }

    fn unfairness(&self) -> f64 {
        let known = self.functions.iter().filter(|function| function.calls >= ENOUGH);
        let mut slow: Vec<f64> = known.map(|f| f.slowdown / f64::from(f.calls)).collect();
        slow.sort_by(f64::total_cmp);
        match (slow.last(), slow.get(slow.len() / 2)) {
            (Some(worst), Some(middle)) => worst / middle,
            _ => 1.0,
        }
    }

    /// Until three moments in a row add no more than half as much again as those before the change did.
    fn recovery(&self) -> Option<f64> {
        let change = (self.change? / self.moment) as usize;
        let before = self.moments.get(change.saturating_sub(20)..change)?;
        let calls: f64 = before.iter().map(|moment| f64::from(moment.calls)).sum();
        let usual = before.iter().map(|m| m.added_ms * f64::from(m.calls)).sum::<f64>() / calls.max(1.0);
        let after = &self.moments[change..];
        let well = |moments: &[Moment]| moments.iter().all(|moment| moment.added_ms <= usual * 1.5 + 1.0);
        let found = after.windows(3).position(well).unwrap_or(after.len());
        Some(found as f64 * self.moment as f64 / SECOND as f64)
    }
}

fn variation(values: &[f64]) -> f64 {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    let spread = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    if mean > 0.0 { spread.sqrt() / mean } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use stoker_core::resources::Resources;

    use crate::trace::{Call, Function, SECOND, Trace};
    use crate::{Kind, Scenario, run};

    /// Of two functions one has a call that goes on for a minute when the trace is over, and the other rests meanwhile.
    #[test]
    fn what_comes_after_the_trace_is_not_measured() {
        let function = |name: &str| Function { name: name.to_owned(), memory: 64 << 20, cold: SECOND / 10 };
        let call = |at, function, takes| Call { at, function, takes };
        let mut calls: Vec<_> = (0..9).map(|nth| call(nth * SECOND, 0, SECOND / 10)).collect();
        calls.push(call(9 * SECOND, 1, 60 * SECOND));
        let trace = Trace {
            title: String::new(),
            functions: vec![function("a/short"), function("a/long")],
            calls,
            span: 10 * SECOND,
        };
        let size = Resources { memory: 128 << 20, cpu_millis: 4000, slots: 16 };
        let report = run(&Scenario { runners: vec![Kind { count: 1, size }], ..Scenario::default() }, &trace);
        assert!(report.idle_memory_percent <= 50.0, "{}", report.idle_memory_percent);
        assert_eq!((report.calls, report.moments.len()), (8, 10));
    }
}
