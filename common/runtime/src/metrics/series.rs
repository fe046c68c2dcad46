//! Handles of single series. Using one is an atomic operation or two, never a lock that somebody waits for; a handle of metrics that are
//! off is nothing at all.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::text::Samples;

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

/// Counts of so many and fewer have a bucket each: most calls have one attempt.
const MOST: usize = 16;

/// Which of them are shown.
const SHOWN: [usize; 7] = [1, 2, 3, 4, 6, 9, MOST];

/// How small counts are spread.
#[derive(Debug, Clone)]
pub struct Counts(Option<Arc<Cells>>);

#[derive(Debug, Default)]
struct Cells {
    exactly: [AtomicU64; MOST + 1],
    /// How many were more, and what they come to.
    beyond: AtomicU64,
    beyond_sum: AtomicU64,
}

impl Counts {
    pub(super) fn new() -> Self {
        Self(Some(Arc::default()))
    }

    /// Notes a count.
    pub fn observe(&self, count: u32) {
        let Some(cells) = &self.0 else { return };
        match cells.exactly.get(count as usize) {
            Some(cell) => _ = cell.fetch_add(1, Ordering::Relaxed),
            None => {
                cells.beyond.fetch_add(1, Ordering::Relaxed);
                cells.beyond_sum.fetch_add(count.into(), Ordering::Relaxed);
            }
        }
    }
}

impl Handle for Counts {
    fn off() -> Self {
        Self(None)
    }

    fn write(&self, samples: &mut Samples<'_>) {
        let Some(cells) = &self.0 else { return };
        let exactly = cells.exactly.each_ref().map(|cell| cell.load(Ordering::Relaxed));
        for bound in SHOWN {
            samples.bucket(bound as f64, exactly[..=bound].iter().sum(), None);
        }
        let all = exactly.iter().sum::<u64>() + cells.beyond.load(Ordering::Relaxed);
        let sum: u64 = (0..).zip(exactly).map(|(count, times)| count * times).sum();
        samples.bucket(f64::INFINITY, all, None);
        samples.one("_count", all);
        samples.one("_sum", sum + cells.beyond_sum.load(Ordering::Relaxed));
    }
}

/// As scrapers read it.
pub(super) fn fraction(value: f64) -> String {
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
