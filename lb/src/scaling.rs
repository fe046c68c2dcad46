//! How many runners each zone should have, as metrics and for those who watch the fleet.
//!
//! The decision is [`stoker_policy::scaling`]'s; here the facts are gathered once a second, since an average over time needs times. What
//! every balancer sees alike (what runners hold) and what only this one knows (calls that wait in it or were refused) are shown apart, so
//! that several balancers can be added up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stoker_core::capacity::RunnerState;
use stoker_core::resources::Resources;
use stoker_policy::scaling::{Desired, Scaler, Unserved, Zone};
use stoker_proto::v1;
use stoker_runtime::metrics::{Labelled, Level, Metrics};
use tokio_util::sync::CancellationToken;

use crate::fleet::{Fleet, Link};
use crate::metrics::{ZONE_DESIRED, ZONE_RUNNERS, ZONE_UNSERVED, ZONE_USED};

/// How often it looks.
const BEAT: Duration = Duration::from_secs(1);

/// Part of what ended before that counts at the next look at which something has: the last ten or so make the mean.
const KEPT: f64 = 0.9;

/// What is wanted now, by zone.
pub type Wanted = BTreeMap<String, Desired>;

/// The gauges.
struct Shown {
    runners: Labelled<Level>,
    used: Labelled<Level>,
    unserved: Labelled<Level>,
    desired: Labelled<Level>,
}

impl Shown {
    fn new(metrics: &Metrics) -> Self {
        Self {
            runners: metrics.labelled(&ZONE_RUNNERS),
            used: metrics.labelled(&ZONE_USED),
            unserved: metrics.labelled(&ZONE_UNSERVED),
            desired: metrics.labelled(&ZONE_DESIRED),
        }
    }

    fn show(&self, zone: &str, wanted: &Desired) {
        for (gauge, value) in [
            (&self.runners, f64::from(wanted.runners)),
            (&self.used, wanted.used),
            (&self.unserved, wanted.unserved),
            (&self.desired, f64::from(wanted.desired)),
        ] {
            gauge.with(&[zone]).set(value);
        }
    }
}

/// Looks once a second until `stop`.
pub async fn run(fleet: Arc<Fleet>, metrics: Metrics, stop: CancellationToken) {
    let shown = Shown::new(&metrics);
    let (mut scaler, mut refused, mut calls) = (Scaler::default(), fleet.unserved(), Calls::default());
    let mut beat = tokio::time::interval(BEAT);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = beat.tick() => {}
        }
        let all = fleet.unserved();
        let unserved = Unserved {
            waiting: fleet.queue.len(),
            refused: all.saturating_sub(std::mem::replace(&mut refused, all)),
            mean_call: calls.mean(fleet.run()),
        };
        let now = scaler.observe(&zones(&fleet), &unserved, Instant::now());
        for (zone, desired) in &now {
            shown.show(zone, desired);
        }
        let before = fleet.wanted.swap(Arc::new(now));
        let now = fleet.wanted.load();
        // A zone that is forgotten is nothing from now on.
        let gone = before.keys().filter(|zone| !now.contains_key(*zone));
        gone.for_each(|zone| shown.show(zone, &Desired::default()));
        let same =
            |one: &Desired, other: &Desired| (one.runners, one.desired) == (other.runners, other.desired);
        let all_same = before.len() == now.len()
            && now.iter().all(|(zone, now)| before.get(zone).is_some_and(|before| same(now, before)));
        if !all_same {
            fleet.changed();
        }
    }
}

/// How long calls run, by what those took that ended of late.
#[derive(Default)]
struct Calls {
    /// Ended, and ran so long together, since the balancer started.
    before: (u64, Duration),
    /// The same, of which a part is forgotten with every look.
    ended: f64,
    seconds: f64,
}

impl Calls {
    /// The mean after another look at both sums; that of before where nothing has ended since.
    fn mean(&mut self, now: (u64, Duration)) -> Option<Duration> {
        let before = std::mem::replace(&mut self.before, now);
        let (ended, ran) = (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1));
        if ended > 0 {
            self.ended = self.ended * KEPT + ended as f64;
            self.seconds = self.seconds * KEPT + ran.as_secs_f64();
        }
        (self.ended > 0.0).then(|| Duration::from_secs_f64((self.seconds / self.ended).min(86_400.0)))
    }
}

/// The runners that take calls of ours, added up.
fn zones(fleet: &Fleet) -> BTreeMap<String, Zone> {
    let mut zones = BTreeMap::<String, Zone>::new();
    for runner in fleet.runners().iter().filter(|runner| runner.links.iter().any(Link::is_open)) {
        let record = &runner.capacity().0;
        if record.state != RunnerState::Ready {
            continue;
        }
        let zone = zones.entry(record.zone.clone()).or_default();
        let left =
            |total: u64, free: u64, reclaimable: u64| total.saturating_sub(free).saturating_sub(reclaimable);
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let of = |pick: fn(&Resources) -> u64| {
            left(pick(&record.total), pick(&record.free), pick(&record.reclaimable))
        };
        let held = Resources {
            memory: of(|r| r.memory),
            cpu_millis: small(of(|r| r.cpu_millis.into())),
            slots: small(of(|r| r.slots.into())),
        };
        zone.runners += 1;
        zone.total = zone.total.checked_add(record.total).unwrap_or(zone.total);
        zone.held = zone.held.checked_add(held).unwrap_or(zone.held);
        zone.running = zone.running.saturating_add(record.in_flight);
        zone.waiting = zone.waiting.saturating_add(record.waiting);
    }
    zones
}

/// The same for those who watch.
pub fn describe(wanted: &Wanted) -> Vec<v1::ZoneCapacity> {
    wanted
        .iter()
        .map(|(zone, wanted)| v1::ZoneCapacity {
            zone: zone.clone(),
            runners: wanted.runners,
            used: wanted.used,
            unserved: wanted.unserved,
            desired_runners: wanted.desired,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_is_that_of_calls_that_ended_of_late() {
        let mut calls = Calls::default();
        let ms = Duration::from_millis;
        assert_eq!(calls.mean((0, Duration::ZERO)), None);
        assert_eq!(calls.mean((80, ms(8_000))), Some(ms(100)));
        // However long nothing ends.
        assert!((0..3600).all(|_| calls.mean((80, ms(8_000))) == Some(ms(100))));
        // From now on they take ten times as long.
        let later = (1..=30).map(|n| calls.mean((80 + n * 80, ms(8_000 + n * 80_000))));
        let last = later.last().flatten().expect("many ended");
        assert!((ms(900)..ms(1000)).contains(&last), "{last:?}");
    }
}
