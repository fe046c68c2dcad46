//! How many runners a zone should have: for whoever adds and removes machines.
//!
//! The unit is one runner of the zone's mean size. What work holds now, and what work that waits or was refused would hold, is
//! divided by the share of a runner that should be in use. The answer is a target, not a step: asked again it is the same,
//! and as far away as the zone is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use stoker_core::resources::Resources;

/// The share of a zone that should be in use. Below it there is room for a burst while a machine starts; above it calls begin to wait
/// for each other (anchors: added latency grows steeply between a load of 0.6 and 0.8).
pub const TARGET: f64 = 0.7;

/// Work that waits should be gone in this time: capacity is wanted for as much of it as that takes. Shorter, and a burst of quick calls would ask for
/// machines that come when it is over; longer, and callers with a patience of ten seconds would give up first.
const DRAIN: Duration = Duration::from_secs(5);

/// How fast what was seen is believed: soon when it grows, since calls wait meanwhile (within five looks, so that one odd second is none); slowly
/// when it falls, since a machine that goes takes its warm containers along, and the next burst may be a minute away.
const UP: Duration = Duration::from_secs(5);
const DOWN: Duration = Duration::from_secs(60);

/// A zone without a runner is remembered for this long: work that waits may want one there. A day, for zones that are empty every night.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// In runners: less than this is what is left of a smoothed value, and no reason for a machine.
const NOTHING: f64 = 0.01;

/// The runners of one zone that take calls.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Zone {
    pub runners: u32,
    pub total: Resources,
    /// Of that, what neither is free nor would be given up by idle containers.
    pub held: Resources,
    /// Calls that run, and that wait on the runners.
    pub running: u32,
    pub waiting: u32,
}

impl Zone {
    /// In runners, what work holds: of memory, CPU and slots the one of which most is taken.
    fn used(&self) -> f64 {
        let share = |held: f64, total: f64| if total > 0.0 { (held / total).min(1.0) } else { 0.0 };
        let shares = [
            share(self.held.memory as f64, self.total.memory as f64),
            share(self.held.cpu_millis.into(), self.total.cpu_millis.into()),
            share(self.held.slots.into(), self.total.slots.into()),
        ];
        shares.into_iter().fold(0.0, f64::max) * f64::from(self.runners)
    }
}

/// Work of one balancer that has no runner.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Unserved {
    /// Calls that wait in the balancer.
    pub waiting: usize,
    /// Calls that left without a runner since the last observation.
    pub refused: u64,
    /// Mean time of a call on a runner, if any was seen.
    pub mean_call: Option<Duration>,
}

/// What a zone should have.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Desired {
    /// Runners that take calls now.
    pub runners: u32,
    /// In runners, what work there holds; the same for every balancer.
    pub used: f64,
    /// In runners, what work without a runner would hold there; this balancer's part.
    pub unserved: f64,
    /// Runners that both together want, at [`TARGET`].
    pub desired: u32,
}

#[derive(Debug, Clone, Copy)]
struct Smooth {
    used: f64,
    unserved: f64,
    seen: Instant,
}

/// Makes one answer out of many observations.
#[derive(Debug, Default)]
pub struct Scaler {
    zones: BTreeMap<String, Smooth>,
    last: Option<Instant>,
}

impl Scaler {
    /// Takes an observation. The first one is believed as it is.
    pub fn observe(
        &mut self,
        zones: &BTreeMap<String, Zone>,
        unserved: &Unserved,
        now: Instant,
    ) -> BTreeMap<String, Desired> {
        let span = self.last.replace(now).map(|last| now.saturating_duration_since(last));
        self.zones.retain(|_, zone| now.saturating_duration_since(zone.seen) < REMEMBERED);
        let fresh = |used| Smooth { used, unserved: 0.0, seen: now };
        for name in zones.keys() {
            self.zones.entry(name.clone()).or_insert_with(|| fresh(0.0)).seen = now;
        }
        let extra = extra(zones, unserved, span);
        if self.zones.is_empty() && extra > 0.0 {
            // Nothing is known of any zone, and somebody wants something.
            self.zones.insert(String::new(), fresh(0.0));
        }
        let all: f64 = zones.values().map(|zone| f64::from(zone.runners)).sum();
        let known = self.zones.len() as f64;
        let mut wanted = BTreeMap::new();
        for (name, smooth) in &mut self.zones {
            let zone = zones.get(name).copied().unwrap_or_default();
            // Where there is most, most can be added; where there is nothing at all, it is wanted everywhere.
            let share = if all > 0.0 { f64::from(zone.runners) / all } else { 1.0 / known };
            let queued = per_call(&zone) * drained(zone.waiting as f64, unserved.mean_call);
            smooth.used = moved(smooth.used, zone.used() + queued, span);
            smooth.unserved = moved(smooth.unserved, extra * share, span);
            let desired = (smooth.used + smooth.unserved) / TARGET;
            wanted.insert(
                name.clone(),
                Desired {
                    runners: zone.runners,
                    used: smooth.used,
                    unserved: smooth.unserved,
                    desired: (desired - NOTHING).ceil().max(0.0) as u32,
                },
            );
        }
        wanted
    }
}

/// In runners, what one running call holds.
fn per_call(zone: &Zone) -> f64 {
    if zone.running > 0 { zone.used() / f64::from(zone.running) } else { 0.0 }
}

/// How many at once have to run for so many that wait to be gone in [`DRAIN`]: no more than they are.
fn drained(waiting: f64, mean_call: Option<Duration>) -> f64 {
    waiting * mean_call.map_or(1.0, |mean| (mean.as_secs_f64() / DRAIN.as_secs_f64()).min(1.0))
}

/// In runners, what work without a runner would hold. Where nothing runs that could be a measure, one runner is a beginning.
fn extra(zones: &BTreeMap<String, Zone>, unserved: &Unserved, span: Option<Duration>) -> f64 {
    let span = span.map_or(1.0, |span| span.as_secs_f64().max(0.001));
    let mean = unserved.mean_call.unwrap_or(Duration::from_secs(1)).as_secs_f64();
    // What is refused so and so often a second would have run for so long each (Little).
    let at_once =
        drained(unserved.waiting as f64, unserved.mean_call) + unserved.refused as f64 / span * mean;
    let running: u32 = zones.values().map(|zone| zone.running).sum();
    let used: f64 = zones.values().map(Zone::used).sum();
    match (at_once > 0.0, running) {
        (false, _) => 0.0,
        (true, 0) => 1.0,
        (true, running) => at_once * used / f64::from(running),
    }
}

/// A value on its way to another.
fn moved(from: f64, to: f64, span: Option<Duration>) -> f64 {
    let Some(span) = span else { return to };
    let slow = if to > from { UP } else { DOWN };
    from + (to - from) * (1.0 - (-span.as_secs_f64() / slow.as_secs_f64()).exp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn zone(runners: u32, busy: u32) -> Zone {
        let one = |n: u32| Resources { memory: u64::from(n) << 30, cpu_millis: n * 1000, slots: n * 10 };
        // Each call holds a tenth of the slots of a runner and less of the rest.
        let held = Resources { memory: 0, cpu_millis: 0, slots: busy };
        Zone { runners, total: one(runners), held, running: busy, waiting: 0 }
    }

    fn zones(all: &[(&str, Zone)]) -> BTreeMap<String, Zone> {
        all.iter().map(|(name, zone)| ((*name).to_owned(), *zone)).collect()
    }

    /// What it comes to when everything stays as it is.
    fn settled(all: &[(&str, Zone)], unserved: &Unserved) -> BTreeMap<String, Desired> {
        let (mut scaler, start) = (Scaler::default(), Instant::now());
        let mut last = BTreeMap::new();
        for n in 0..600 {
            last = scaler.observe(&zones(all), unserved, start + n * SECOND);
        }
        last
    }

    #[test]
    fn what_is_used_is_seven_tenths_of_what_is_wanted() {
        for (busy, desired) in [(0, 0), (1, 1), (7, 1), (21, 3), (22, 4), (70, 10)] {
            let wanted = settled(&[("a", zone(10, busy))], &Unserved::default());
            assert_eq!((wanted["a"].desired, wanted["a"].runners), (desired, 10), "{busy} busy");
        }
        // The resource of which most is taken decides.
        let mut tight = zone(10, 7);
        tight.held.memory = tight.total.memory / 100 * 70;
        assert_eq!(settled(&[("a", tight)], &Unserved::default())["a"].desired, 10);
    }

    #[test]
    fn zones_are_counted_apart_and_share_what_has_no_runner() {
        let unserved = Unserved { waiting: 50, refused: 0, mean_call: Some(10 * SECOND) };
        let wanted = settled(&[("a", zone(3, 30)), ("b", zone(1, 10))], &unserved);
        // Forty calls hold four runners, so fifty more would hold five.
        assert!((wanted["a"].unserved - 3.75).abs() < 0.01 && (wanted["b"].unserved - 1.25).abs() < 0.01);
        assert_eq!([wanted["a"].desired, wanted["b"].desired], [10, 4]);
    }

    #[test]
    fn short_calls_that_wait_want_less_than_long_ones_and_refused_ones_count() {
        let of = |waiting, refused, mean: Duration| {
            let unserved = Unserved { waiting, refused, mean_call: Some(mean) };
            settled(&[("a", zone(1, 10))], &unserved)["a"].unserved
        };
        assert!(
            (of(100, 0, SECOND / 20) - 0.1).abs() < 0.01,
            "a hundred of 50 ms are gone in 5 s by one at a time"
        );
        assert!((of(100, 0, 20 * SECOND) - 10.0).abs() < 0.01);
        assert!(
            (of(0, 20, SECOND / 2) - 1.0).abs() < 0.01,
            "twenty a second of half a second each are ten at once"
        );
        assert!(of(0, 0, SECOND) == 0.0);
    }

    #[test]
    fn where_nothing_is_one_is_a_beginning() {
        let unserved = Unserved { waiting: 3, ..Unserved::default() };
        let wanted = settled(&[], &unserved);
        assert_eq!(
            wanted.iter().map(|(zone, wanted)| (zone.as_str(), wanted.desired)).collect::<Vec<_>>(),
            [("", 2)]
        );
        // A zone whose last runner went.
        let (mut scaler, start) = (Scaler::default(), Instant::now());
        scaler.observe(&zones(&[("a", zone(1, 0))]), &Unserved::default(), start);
        let mut last = BTreeMap::new();
        for n in 1..60 {
            last = scaler.observe(&zones(&[]), &unserved, start + n * SECOND);
        }
        assert_eq!((last["a"].runners, last["a"].desired), (0, 2));
        last = scaler.observe(&zones(&[]), &Unserved::default(), start + REMEMBERED * 2);
        assert!(last.is_empty());
    }

    #[test]
    fn it_goes_up_in_seconds_and_down_in_minutes() {
        let (mut scaler, start) = (Scaler::default(), Instant::now());
        let mut at = |busy, second: u32| {
            scaler.observe(&zones(&[("a", zone(100, busy))]), &Unserved::default(), start + second * SECOND)["a"].used
        };
        assert!((at(100, 0) - 10.0).abs() < 1e-9);
        assert!((15.0..20.0).contains(&at(200, 5)));
        (6..60).for_each(|second| _ = at(200, second));
        assert!((19.9..20.0).contains(&at(200, 60)));
        assert!((18.0..20.0).contains(&at(0, 65)));
        (66..360).for_each(|second| _ = at(0, second));
        assert!(at(0, 360) < 0.2);
    }

    proptest! {
        /// More work never wants less, however often it is looked at, and all of it is finite.
        #[test]
        fn more_work_never_wants_less(
            busy in 0u32..100, more in 0u32..100, waiting in 0usize..1000, refused in 0u64..100, pause in 1u64..5000,
        ) {
            let unserved = Unserved { waiting, refused, mean_call: Some(SECOND) };
            let mut last = 0.0;
            for (busy, unserved) in [(busy, Unserved::default()), (busy, unserved), (busy + more, unserved)] {
                let (mut scaler, start) = (Scaler::default(), Instant::now());
                let mut wanted = Desired::default();
                for n in 0..20u32 {
                    let now = start + n * Duration::from_millis(pause);
                    // So many a second, however long ago the last look was.
                    let refused = unserved.refused * pause / 1000;
                    let unserved = Unserved { refused, ..unserved };
                    wanted = scaler.observe(&zones(&[("a", zone(20, busy))]), &unserved, now)["a"];
                }
                let sum = wanted.used + wanted.unserved;
                prop_assert!(sum.is_finite() && sum >= last - 1e-6, "{} after {}", sum, last);
                prop_assert!(f64::from(wanted.desired) * TARGET + 0.01 >= sum);
                last = if busy == 0 { 0.0 } else { sum };
            }
        }
    }
}
