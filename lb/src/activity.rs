//! What the fleet and this balancer do, for those who watch: counters of calls, and one picture of everything, made when somebody
//! looks and shared by all who look at about that time.
//!
//! A call costs two additions when it ends, three where it failed or was cold. Rates and percentiles are made by whoever watches, from two
//! pictures: here nothing runs while nobody does.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use stoker_core::error::Blame;
use stoker_core::slots::{SLOTS, slot_of};
use stoker_proto::{convert, v1};

use crate::front::Door;
use crate::scaling;

/// Most functions in a picture.
pub const FUNCTIONS: usize = 200;

/// A picture is shown to all who look before it is so old.
const FRESH: Duration = Duration::from_millis(200);

/// What became of calls that ended.
pub struct Tally {
    failed: [AtomicU64; 3],
    cold: AtomicU64,
    /// Made at the first call: most functions of a large fleet are seldom called.
    times: OnceLock<Box<[AtomicU64; SLOTS]>>,
    /// How busy it was of late, and the calls up to the moment when that was found out.
    rank: AtomicU64,
    ranked: AtomicU64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            failed: [const { AtomicU64::new(0) }; 3],
            cold: AtomicU64::new(0),
            times: OnceLock::new(),
            rank: AtomicU64::new(0),
            ranked: AtomicU64::new(0),
        }
    }
}

impl Tally {
    /// One that took so long, and failed by this fault if it did.
    pub fn count(&self, took: Duration, failed: Option<Blame>, cold: bool) {
        let times = self.times.get_or_init(|| Box::new([const { AtomicU64::new(0) }; SLOTS]));
        times[slot_of(took)].fetch_add(1, Ordering::Relaxed);
        if let Some(blame) = failed {
            self.failed[blame as usize].fetch_add(1, Ordering::Relaxed);
        }
        if cold {
            self.cold.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn calls(&self) -> u64 {
        self.times.get().map_or(0, |times| times.iter().map(|count| count.load(Ordering::Relaxed)).sum())
    }

    /// How busy it has been: the calls since this was asked last count whole, those before less and less.
    fn rank(&self) -> u64 {
        let (calls, rank) = (self.calls(), self.rank.load(Ordering::Relaxed));
        let new = calls.saturating_sub(self.ranked.swap(calls, Ordering::Relaxed));
        let rank = rank - rank.div_ceil(8) + new;
        self.rank.store(rank, Ordering::Relaxed);
        rank
    }

    fn tell(&self) -> v1::CallTally {
        let [caller, function, platform] = self.failed.each_ref().map(|count| count.load(Ordering::Relaxed));
        let mut tally = v1::CallTally {
            caller_errors: caller,
            function_errors: function,
            platform_errors: platform,
            cold: self.cold.load(Ordering::Relaxed),
            ..Default::default()
        };
        for (slot, count) in self.times.get().into_iter().flat_map(|times| times.iter().enumerate()) {
            let count = count.load(Ordering::Relaxed);
            if count > 0 {
                tally.calls += count;
                tally.slots.push(slot as u32);
                tally.counts.push(count);
            }
        }
        tally
    }
}

/// Of one balancer.
pub struct Activity {
    /// Of all functions.
    pub total: Tally,
    began: Instant,
    last: Mutex<Option<(Instant, Arc<v1::WatchActivityResponse>)>>,
}

impl Default for Activity {
    fn default() -> Self {
        Self { total: Tally::default(), began: Instant::now(), last: Mutex::default() }
    }
}

impl Activity {
    /// Everything, as it is now or was a moment ago.
    pub fn now(&self, door: &Door) -> Arc<v1::WatchActivityResponse> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some((at, picture)) = &*last
            && now.saturating_duration_since(*at) < FRESH
        {
            return picture.clone();
        }
        let picture = Arc::new(self.look(door));
        *last = Some((now, picture.clone()));
        picture
    }

    fn look(&self, door: &Door) -> v1::WatchActivityResponse {
        let fleet = &door.dispatch.fleet;
        let (functions, left_out) = functions(door);
        v1::WatchActivityResponse {
            balancer: Some(v1::BalancerActivity {
                name: fleet.name.clone(),
                instance: fleet.instance,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                up: Some(convert::to_duration(self.began.elapsed())),
                calls: Some(self.total.tell()),
                in_flight: small(door.admission.inside()),
                queued: small(fleet.queue.len()),
                queued_bytes: fleet.queue.bytes() as u64,
                unserved: fleet.unserved(),
                later: door.later.activity(),
            }),
            runners: fleet
                .runners()
                .iter()
                .map(|runner| v1::RunnerActivity {
                    runner: Some(runner.describe()),
                    calls: runner.calls(),
                    in_flight: runner.in_flight(),
                })
                .collect(),
            functions,
            functions_left_out: small(left_out),
            zones: scaling::describe(&fleet.wanted.load()),
        }
    }
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The busiest functions, and how many others there are.
fn functions(door: &Door) -> (Vec<v1::FunctionActivity>, usize) {
    #[derive(Default, Clone, Copy)]
    struct Warm {
        idle: u32,
        busy: u32,
        waiting: u32,
        runners: u32,
    }
    let all = door.directory.all();
    // Whose a version is: asked once for each that a runner has, in place of once for each that there is.
    let whose: HashMap<_, _> = all
        .iter()
        .enumerate()
        .flat_map(|(at, known)| known.versions().into_iter().map(move |version| (version.digest, at)))
        .collect();
    let mut warm = vec![Warm::default(); all.len()];
    for runner in door.dispatch.fleet.runners().iter() {
        for (digest, warmth) in &runner.capacity().0.functions {
            let Some(warm) = whose.get(digest).and_then(|at| warm.get_mut(*at)) else { continue };
            warm.idle = warm.idle.saturating_add(warmth.idle);
            warm.busy = warm.busy.saturating_add(warmth.busy);
            warm.waiting = warm.waiting.saturating_add(warmth.waiting);
            warm.runners += u32::from(warmth.idle + warmth.busy > 0);
        }
    }
    let mut order: Vec<_> = all.into_iter().zip(warm).collect();
    order.sort_by_cached_key(|(known, warm)| {
        (Reverse((known.gate.tally.rank(), warm.busy + warm.waiting, warm.idle)), known.spec.name.clone())
    });
    let left_out = order.len().saturating_sub(FUNCTIONS);
    order.truncate(FUNCTIONS);
    let told = order.into_iter().map(|(known, warm)| v1::FunctionActivity {
        function: known.spec.name.as_str().to_owned(),
        calls: Some(known.gate.tally.tell()),
        idle: warm.idle,
        busy: warm.busy,
        waiting: warm.waiting,
        runners: warm.runners,
        format: known.spec.format.as_str().to_owned(),
        memory: known.spec.memory,
    });
    (told.collect(), left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_is_told_once() {
        let tally = Tally::default();
        assert_eq!(tally.tell(), v1::CallTally::default());
        tally.count(Duration::from_micros(3), None, false);
        tally.count(Duration::from_micros(3), Some(Blame::Function), true);
        tally.count(Duration::from_secs(1), Some(Blame::Platform), false);
        tally.count(Duration::MAX, Some(Blame::Caller), false);
        let told = tally.tell();
        assert_eq!((told.calls, told.cold), (4, 1));
        assert_eq!((told.caller_errors, told.function_errors, told.platform_errors), (1, 1, 1));
        assert_eq!(told.slots, [3, 75, SLOTS as u32 - 1]);
        assert_eq!(told.counts, [2, 1, 1]);
    }

    #[test]
    fn who_was_busy_once_is_overtaken_by_who_is_busy_now() {
        let (once, now) = (Tally::default(), Tally::default());
        (0..1000).for_each(|_| once.count(Duration::ZERO, None, false));
        assert!(once.rank() > now.rank());
        let mut looks = 0;
        while once.rank() >= now.rank() {
            (0..10).for_each(|_| now.count(Duration::ZERO, None, false));
            looks += 1;
        }
        assert!(looks < 50, "{looks}");
        (0..100).for_each(|_| _ = once.rank());
        assert_eq!(once.rank(), 0, "it is forgotten altogether");
    }
}
