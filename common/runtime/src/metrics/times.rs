//! How long things take: counted in fine bins, shown in coarser buckets.
//!
//! Who watches a fleet wants percentiles that are right within a tenth, Prometheus wants few buckets: both come from one count, since the bounds of
//! the buckets are ends of bins. Noting a time is two additions, and no lock that somebody waits for.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use stoker_core::histogram::{self, BINS, bin_of};

use super::series::{Handle, fraction};
use super::text::Samples;
use crate::telemetry::TraceId;

/// Upper bounds of buckets, in microseconds, each the end of a bin: a warm call takes some tenths of a millisecond, a function may take a minute.
pub const BOUNDS: [u64; 26] = [
    50, 100, 150, 200, 300, 400, 500, 700, 1_000, 2_000, 3_000, 5_000, 10_000, 20_000, 30_000, 50_000,
    100_000, 200_000, 300_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// And one for what lies beyond.
const BUCKETS: usize = BOUNDS.len() + 1;

/// Times that are counted whether or not somebody shows them as a metric.
pub struct Times {
    bins: [AtomicU64; BINS],
    /// In whole nanoseconds, so that adding is one instruction.
    sum: AtomicU64,
    /// Made with the first of them.
    exemplars: OnceLock<Box<[Place; BUCKETS]>>,
}

/// Where the exemplar of a bucket stands.
#[derive(Debug, Default)]
struct Place {
    /// One was noted that nobody has seen yet: until then no other is, so that noting them costs next to nothing.
    noted: AtomicBool,
    exemplar: Mutex<Option<Exemplar>>,
}

/// A value, and the trace that it leads to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exemplar {
    pub trace: TraceId,
    pub value: f64,
    pub at: SystemTime,
}

impl Default for Times {
    fn default() -> Self {
        Self { bins: [const { AtomicU64::new(0) }; BINS], sum: AtomicU64::new(0), exemplars: OnceLock::new() }
    }
}

impl fmt::Debug for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.so_far().fmt(f)
    }
}

impl Times {
    /// Notes a time. The trace of a call that is recorded may become the exemplar of its bucket.
    pub fn note(&self, time: Duration, exemplar: Option<TraceId>) {
        self.bins[bin_of(time)].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Some(trace) = exemplar {
            self.example(time, trace);
        }
    }

    #[inline(never)]
    fn example(&self, time: Duration, trace: TraceId) {
        let places = self.exemplars.get_or_init(|| Box::new(std::array::from_fn(|_| Place::default())));
        let place = &places[bucket_of(bin_of(time))];
        if !place.noted.load(Ordering::Relaxed)
            // Whoever has it notes another, or is looking: either way this one is not missed.
            && let Ok(mut exemplar) = place.exemplar.try_lock()
        {
            *exemplar = Some(Exemplar { trace, value: time.as_secs_f64(), at: SystemTime::now() });
            place.noted.store(true, Ordering::Relaxed);
        }
    }

    /// What it has come to.
    #[must_use]
    pub fn so_far(&self) -> Spread {
        Spread {
            counts: self.bins.each_ref().map(|count| count.load(Ordering::Relaxed)),
            sum: self.sum.load(Ordering::Relaxed),
        }
    }

    fn exemplar(&self, bucket: usize) -> Option<Exemplar> {
        let place = &self.exemplars.get()?[bucket];
        let exemplar = *place.exemplar.lock().unwrap_or_else(PoisonError::into_inner);
        place.noted.store(false, Ordering::Relaxed);
        exemplar
    }
}

/// The first bucket whose bound is not below that of a bin.
fn bucket_of(bin: usize) -> usize {
    let Some(end) = histogram::end(bin) else { return BOUNDS.len() };
    BOUNDS.partition_point(|bound| *bound < end)
}

/// What times have come to: how many there are in each bin, and their sum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spread {
    pub counts: [u64; BINS],
    /// In nanoseconds.
    pub sum: u64,
}

impl Default for Spread {
    fn default() -> Self {
        Self { counts: [0; BINS], sum: 0 }
    }
}

impl Spread {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// These too.
    pub fn add(&mut self, more: &Self) {
        self.counts.iter_mut().zip(more.counts).for_each(|(mine, more)| *mine += more);
        // As the counter itself does after some centuries.
        self.sum = self.sum.wrapping_add(more.sum);
    }

    /// Those that came after `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut new = self.clone();
        new.counts.iter_mut().zip(before.counts).for_each(|(mine, old)| *mine = mine.saturating_sub(old));
        new.sum = new.sum.wrapping_sub(before.sum);
        new
    }

    /// As a histogram with the exemplars of `times`.
    pub(super) fn write(&self, times: Option<&Times>, samples: &mut Samples<'_>) {
        let (mut count, mut bin) = (0, 0);
        for bucket in 0..BUCKETS {
            while bin < BINS && bucket_of(bin) == bucket {
                count += self.counts[bin];
                bin += 1;
            }
            let bound = BOUNDS.get(bucket).map_or(f64::INFINITY, |bound| *bound as f64 / 1e6);
            samples.bucket(bound, count, times.and_then(|times| times.exemplar(bucket)));
        }
        samples.one("_count", count);
        samples.one("_sum", fraction(self.sum as f64 / 1e9));
    }
}

/// How times are spread, as a metric of its own.
#[derive(Debug, Clone)]
pub struct Histogram(Option<Arc<Times>>);

impl Histogram {
    pub(super) fn new() -> Self {
        Self(Some(Arc::default()))
    }

    /// Notes a time, as [`Times::note`].
    pub fn observe_time(&self, time: Duration, exemplar: Option<TraceId>) {
        if let Some(times) = &self.0 {
            times.note(time, exemplar);
        }
    }
}

impl Handle for Histogram {
    fn off() -> Self {
        Self(None)
    }

    fn write(&self, samples: &mut Samples<'_>) {
        if let Some(times) = &self.0 {
            times.so_far().write(Some(times), samples);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bound_is_the_end_of_a_slot() {
        for (bucket, bound) in BOUNDS.iter().enumerate() {
            let bin = bin_of(Duration::from_micros(*bound));
            assert_eq!(histogram::end(bin), Some(*bound));
            assert_eq!((bucket_of(bin), bucket_of(bin + 1)), (bucket, bucket + 1), "{bound}");
        }
        assert!(BOUNDS.is_sorted());
        assert_eq!(bucket_of(BINS - 1), BOUNDS.len());
    }

    #[test]
    fn what_came_before_and_since_is_everything() {
        let times = Times::default();
        (0..50).for_each(|ms| times.note(Duration::from_millis(ms), None));
        let before = times.so_far();
        (0..70).for_each(|s| times.note(Duration::from_secs(s), None));
        let all = times.so_far();
        let since = all.since(&before);
        assert_eq!((before.count(), since.count()), (50, 70));
        assert_eq!(since.sum, (0..70).sum::<u64>() * 1_000_000_000);
        let mut sum = before;
        sum.add(&since);
        assert_eq!(sum, all);
    }
}
