//! Handles of single series. Using one is an atomic operation or two, never a lock that somebody waits for; a handle of metrics that are
//! off is nothing at all.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::text::Samples;
use crate::telemetry::TraceId;

/// What can be a series.
pub trait Handle: Clone + fmt::Debug + Send + Sync + 'static {
    /// One that counts nothing.
    fn off() -> Self;

    /// Writes what it has come to.
    fn write(&self, samples: &mut Samples<'_>);
}

/// Counts up.
#[derive(Debug, Clone)]
pub struct Counter(Option<Arc<AtomicU64>>);

impl Counter {
    pub(super) fn new() -> Self {
        Self(Some(Arc::default()))
    }

    /// One more.
    pub fn add_one(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, more: u64) {
        if let Some(count) = &self.0 {
            count.fetch_add(more, Ordering::Relaxed);
        }
    }

    /// How far it is.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.as_ref().map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

impl Handle for Counter {
    fn off() -> Self {
        Self(None)
    }

    fn write(&self, samples: &mut Samples<'_>) {
        samples.one("_total", self.get());
    }
}

/// Goes up and down.
#[derive(Debug, Clone)]
pub struct Gauge(Option<Arc<AtomicI64>>);

impl Gauge {
    pub(super) fn new() -> Self {
        Self(Some(Arc::default()))
    }

    /// Sets it.
    pub fn set(&self, value: i64) {
        if let Some(gauge) = &self.0 {
            gauge.store(value, Ordering::Relaxed);
        }
    }

    /// One more, until what is returned is dropped.
    #[must_use]
    pub fn enter(&self) -> Entered {
        if let Some(gauge) = &self.0 {
            gauge.fetch_add(1, Ordering::Relaxed);
        }
        Entered(self.0.clone())
    }
}

impl Handle for Gauge {
    fn off() -> Self {
        Self(None)
    }

    fn write(&self, samples: &mut Samples<'_>) {
        samples.one("", self.0.as_ref().map_or(0, |gauge| gauge.load(Ordering::Relaxed)));
    }
}

/// Something that a [`Gauge`] counts as long as this lives.
#[derive(Debug)]
pub struct Entered(Option<Arc<AtomicI64>>);

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(gauge) = &self.0 {
            gauge.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Goes up and down in fractions.
#[derive(Debug, Clone)]
pub struct Level(Option<Arc<AtomicU64>>);

impl Level {
    pub(super) fn new() -> Self {
        Self(Some(Arc::default()))
    }

    /// Sets it.
    pub fn set(&self, value: f64) {
        if let Some(level) = &self.0 {
            level.store(value.to_bits(), Ordering::Relaxed);
        }
    }
}

impl Handle for Level {
    fn off() -> Self {
        Self(None)
    }

    fn write(&self, samples: &mut Samples<'_>) {
        let bits = self.0.as_ref().map_or(0, |level| level.load(Ordering::Relaxed));
        samples.one("", fraction(f64::from_bits(bits)));
    }
}

/// In nanoseconds: a warm call takes a fraction of a millisecond, a function may take a minute.
const TIMES: [u64; 18] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
];

/// Of attempts: most calls have one.
const COUNTS: [u64; 7] = [1, 2, 3, 4, 6, 9, 16];

/// How values are spread.
#[derive(Debug, Clone)]
pub struct Histogram(Option<Arc<Cells>>);

#[derive(Debug)]
struct Cells {
    /// Upper bounds, in parts of a unit.
    bounds: &'static [u64],
    /// How many parts a unit has.
    parts: f64,
    /// One for each bound, and one for what lies beyond.
    buckets: Box<[Bucket]>,
    sum: AtomicU64,
}

#[derive(Debug, Default)]
struct Bucket {
    count: AtomicU64,
    /// An exemplar was noted that nobody has seen yet: until then no other is, so that noting them costs next to nothing.
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

impl Histogram {
    pub(super) fn times() -> Self {
        Self::new(&TIMES, 1e9)
    }

    pub(super) fn counts() -> Self {
        Self::new(&COUNTS, 1.0)
    }

    fn new(bounds: &'static [u64], parts: f64) -> Self {
        let buckets = (0..=bounds.len()).map(|_| Bucket::default()).collect();
        Self(Some(Arc::new(Cells { bounds, parts, buckets, sum: AtomicU64::new(0) })))
    }

    /// Notes a time. The trace of a call that is recorded may become the exemplar of its bucket.
    pub fn observe_time(&self, time: Duration, exemplar: Option<TraceId>) {
        self.observe(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), exemplar);
    }

    /// Notes a count.
    pub fn observe_count(&self, count: u64) {
        self.observe(count, None);
    }

    fn observe(&self, value: u64, exemplar: Option<TraceId>) {
        let Some(cells) = &self.0 else { return };
        let at = cells.bounds.iter().position(|bound| value <= *bound).unwrap_or(cells.bounds.len());
        let bucket = &cells.buckets[at];
        bucket.count.fetch_add(1, Ordering::Relaxed);
        cells.sum.fetch_add(value, Ordering::Relaxed);
        if let Some(trace) = exemplar
            && !bucket.noted.load(Ordering::Relaxed)
            // Whoever has it notes another, or is looking: either way this one is not missed.
            && let Ok(mut slot) = bucket.exemplar.try_lock()
        {
            *slot = Some(Exemplar { trace, value: value as f64 / cells.parts, at: SystemTime::now() });
            bucket.noted.store(true, Ordering::Relaxed);
        }
    }
}

impl Handle for Histogram {
    fn off() -> Self {
        Self(None)
    }

    fn write(&self, samples: &mut Samples<'_>) {
        let Some(cells) = &self.0 else { return };
        let mut count = 0;
        for (at, bucket) in cells.buckets.iter().enumerate() {
            count += bucket.count.load(Ordering::Relaxed);
            let bound = cells.bounds.get(at).map_or(f64::INFINITY, |bound| *bound as f64 / cells.parts);
            let exemplar = *bucket.exemplar.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.noted.store(false, Ordering::Relaxed);
            samples.bucket(bound, count, exemplar);
        }
        samples.one("_count", count);
        samples.one("_sum", fraction(cells.sum.load(Ordering::Relaxed) as f64 / cells.parts));
    }
}

/// As scrapers read it.
fn fraction(value: f64) -> String {
    match value {
        f64::INFINITY => "+Inf".to_owned(),
        f64::NEG_INFINITY => "-Inf".to_owned(),
        value => value.to_string(),
    }
}

/// A value that is kept elsewhere.
#[derive(Clone)]
pub(super) struct Reading {
    pub suffix: &'static str,
    pub read: Arc<dyn Fn() -> f64 + Send + Sync>,
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reading")
    }
}

impl Handle for Reading {
    fn off() -> Self {
        Self { suffix: "", read: Arc::new(|| 0.0) }
    }

    fn write(&self, samples: &mut Samples<'_>) {
        samples.one(self.suffix, fraction((self.read)()));
    }
}
