//! Numbers for Prometheus: counters, gauges and histograms with exemplars, in OpenMetrics text.
//!
//! A metric is declared once, at the start, and its handles are kept where they are used: using one is an atomic operation,
//! for a histogram a short lock. Label values that come from outside are bounded: [`Bounded`] keeps the handles of so many
//! functions, [`Labelled`] so many series, and all others share one that is called [`OTHER`].

mod process;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder,
};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::{MetricType, counter, gauge};
use prometheus_client::registry::Registry;

use crate::telemetry::TraceId;

/// The media type of [`Metrics::text`].
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The label value of all that there is no room for. No function has this name.
pub const OTHER: &str = "(other)";

/// Most series of one metric.
const MOST_SERIES: usize = 10_000;

/// In seconds: a warm call takes a fraction of a millisecond, a function may take a minute.
const TIMES: [f64; 18] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];

/// In bytes: from a small message to the largest bodies.
const SIZES: [f64; 7] = [256.0, 1024.0, 16_384.0, 65_536.0, 1_048_576.0, 16_777_216.0, 268_435_456.0];

/// All metrics of a process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Mutex<All>>);

#[derive(Debug, Default)]
struct All {
    registry: Registry,
    names: BTreeSet<&'static str>,
}

impl Metrics {
    /// A counter. Its name ends in its unit if it has one; `_total` is added.
    ///
    /// # Panics
    /// Like every declaration: if the name is taken.
    #[must_use]
    pub fn counter(&self, name: &'static str, help: &'static str) -> Counter {
        self.labelled(name, help, &[], Counter::default).with(&[])
    }

    /// A gauge.
    #[must_use]
    pub fn gauge(&self, name: &'static str, help: &'static str) -> Gauge {
        self.labelled(name, help, &[], Gauge::default).with(&[])
    }

    /// A histogram; `make` is [`Histogram::times`] for a name in `_seconds`, [`Histogram::sizes`] for one in `_bytes`.
    #[must_use]
    pub fn histogram(&self, name: &'static str, help: &'static str, make: fn() -> Histogram) -> Histogram {
        self.labelled(name, help, &[], make).with(&[])
    }

    /// A metric with labels.
    #[must_use]
    pub fn labelled<M: Metric>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        make: fn() -> M,
    ) -> Labelled<M> {
        Labelled { group: self.declare(name, help, labels, BTreeMap::new()), make }
    }

    /// A counter with one label, whose values are kept elsewhere and read when somebody looks.
    pub fn counted<R: Fn() -> u64 + Send + Sync + 'static>(
        &self,
        name: &'static str,
        help: &'static str,
        label: &'static [&'static str; 1],
        values: impl IntoIterator<Item = (&'static str, R)>,
    ) {
        let series =
            values.into_iter().map(|(value, read)| (vec![value.to_owned()], Counted(Arc::new(read))));
        self.declare(name, help, label, series.collect());
    }

    /// A counter of seconds that are kept elsewhere and read when somebody looks.
    fn seconds(
        &self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        self.declare(name, help, &[], BTreeMap::from([(Vec::new(), Seconds(Arc::new(read)))]));
    }

    /// A gauge whose value is kept elsewhere and read when somebody looks.
    pub fn gauged(
        &self,
        name: &'static str,
        help: &'static str,
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        self.declare(name, help, &[], BTreeMap::from([(Vec::new(), Gauged(Arc::new(read)))]));
    }

    /// What this program is, as labels of a gauge that is 1, and what the kernel says of the process.
    pub fn describe_process(&self, program: &'static str, version: &'static str) {
        let group =
            self.labelled("stoker_build_info", "What runs here", &["program", "version"], Gauge::default);
        group.with(&[program, version]).set(1);
        process::declare(self);
    }

    /// All of them, as [`MEDIA_TYPE`].
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        prometheus_client::encoding::text::encode(&mut out, &self.all().registry).ok();
        out
    }

    fn declare<M: Metric>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        series: BTreeMap<Vec<String>, M>,
    ) -> Arc<Group<M>> {
        let group = Arc::new(Group { name, help, labels, series: RwLock::new(series) });
        let mut all = self.all();
        assert!(all.names.insert(name), "two metrics are called {name}");
        all.registry.register_collector(Box::new(group.clone()));
        group
    }

    fn all(&self) -> std::sync::MutexGuard<'_, All> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What can be a series.
pub trait Metric: EncodeMetric + Clone + fmt::Debug + Send + Sync + 'static {}

impl<M: EncodeMetric + Clone + fmt::Debug + Send + Sync + 'static> Metric for M {}

/// The series of one name.
#[derive(Debug)]
struct Group<M> {
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    series: RwLock<BTreeMap<Vec<String>, M>>,
}

impl<M: Metric> Collector for Group<M> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let series = self.series.read().unwrap_or_else(PoisonError::into_inner);
        let Some(kind) = series.values().next().map(EncodeMetric::metric_type) else { return Ok(()) };
        let mut encoder = encoder.encode_descriptor(self.name, self.help, None, kind)?;
        for (values, metric) in series.iter() {
            if values.is_empty() {
                return metric.encode(encoder);
            }
            let labels: Vec<(&str, &str)> =
                self.labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
            metric.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// A metric with labels. Keep what [`Labelled::with`] gives: finding it takes a lock and a search.
#[derive(Debug, Clone)]
pub struct Labelled<M> {
    group: Arc<Group<M>>,
    make: fn() -> M,
}

impl<M: Metric> Labelled<M> {
    /// The series with these label values, in the order of the labels.
    #[must_use]
    pub fn with(&self, values: &[&str]) -> M {
        debug_assert_eq!(values.len(), self.group.labels.len(), "labels of {}", self.group.name);
        let mut key: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        let mut series = self.group.series.write().unwrap_or_else(PoisonError::into_inner);
        if series.len() >= MOST_SERIES && !series.contains_key(&key) {
            key = vec![OTHER.to_owned(); key.len()];
        }
        series.entry(key).or_insert_with(self.make).clone()
    }
}

/// The handles of each of a bounded number of names, such as functions; those beyond share the ones of [`OTHER`].
pub struct Bounded<T> {
    most: usize,
    make: Box<dyn Fn(&str) -> T + Send + Sync>,
    known: RwLock<HashMap<Box<str>, Arc<T>>>,
}

impl<T> Bounded<T> {
    /// Handles for `most` names; `make` gets them for a name, from a [`Labelled`] each.
    pub fn new(most: usize, make: impl Fn(&str) -> T + Send + Sync + 'static) -> Self {
        Self { most, make: Box::new(make), known: RwLock::default() }
    }

    /// The handles of a name: one short lock for all of a call's metrics.
    #[must_use]
    pub fn get(&self, name: &str) -> Arc<T> {
        {
            let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
            let full = known.len() >= self.most;
            if let Some(handles) = known.get(name).or_else(|| known.get(OTHER).filter(|_| full)) {
                return handles.clone();
            }
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let name = if known.len() >= self.most && !known.contains_key(name) { OTHER } else { name };
        known.entry(name.into()).or_insert_with(|| Arc::new((self.make)(name))).clone()
    }
}

impl<T> fmt::Debug for Bounded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bounded").field("most", &self.most).finish_non_exhaustive()
    }
}

/// Counts up.
#[derive(Debug, Clone, Default)]
pub struct Counter(counter::Counter);

impl Counter {
    /// One more.
    pub fn add_one(&self) {
        self.0.inc();
    }

    /// So many more.
    pub fn add(&self, more: u64) {
        self.0.inc_by(more);
    }
}

/// Goes up and down.
#[derive(Debug, Clone, Default)]
pub struct Gauge(gauge::Gauge);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: i64) {
        self.0.set(value);
    }

    /// One more, until what is returned is dropped.
    #[must_use]
    pub fn enter(&self) -> Entered {
        self.0.inc();
        Entered(self.0.clone())
    }
}

/// Goes up and down in fractions.
#[derive(Debug, Clone, Default)]
pub struct Level(gauge::Gauge<f64, AtomicU64>);

impl Level {
    /// Sets it.
    pub fn set(&self, value: f64) {
        self.0.set(value);
    }
}

/// Something that a [`Gauge`] counts as long as this lives.
#[derive(Debug)]
pub struct Entered(gauge::Gauge);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The trace that a value leads to. Written as text only when somebody looks.
#[derive(Debug, Clone)]
struct Exemplar(TraceId);

impl EncodeLabelSet for Exemplar {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        [("trace_id", self.0.to_string())].encode(encoder)
    }
}

/// How values are spread.
#[derive(Debug, Clone)]
pub struct Histogram(HistogramWithExemplars<Exemplar>);

impl Histogram {
    /// Of times in seconds.
    #[must_use]
    pub fn times() -> Self {
        Self(HistogramWithExemplars::new(TIMES.into_iter()))
    }

    /// Of sizes in bytes.
    #[must_use]
    pub fn sizes() -> Self {
        Self(HistogramWithExemplars::new(SIZES.into_iter()))
    }

    /// Notes a value. The trace of a call that is recorded becomes the exemplar of its bucket.
    pub fn observe(&self, value: f64, exemplar: Option<TraceId>) {
        let at = exemplar.is_some().then(SystemTime::now);
        self.0.observe(value, exemplar.map(Exemplar), at);
    }

    /// Notes a time.
    pub fn observe_time(&self, time: Duration, exemplar: Option<TraceId>) {
        self.observe(time.as_secs_f64(), exemplar);
    }
}

/// A counter that is kept elsewhere.
#[derive(Clone)]
struct Counted(Arc<dyn Fn() -> u64 + Send + Sync>);

/// A counter of seconds that is kept elsewhere.
#[derive(Clone)]
struct Seconds(Arc<dyn Fn() -> f64 + Send + Sync>);

/// A gauge that is kept elsewhere.
#[derive(Clone)]
struct Gauged(Arc<dyn Fn() -> f64 + Send + Sync>);

/// What is read when somebody looks has nothing to show before.
macro_rules! shown_by_name {
    ($($reading:ident),+) => {$(
        impl fmt::Debug for $reading {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($reading))
            }
        }
    )+};
}

shown_by_name!(Counted, Seconds, Gauged);

/// How each is written, and as what.
macro_rules! encoded {
    ($($metric:ty, $kind:ident, $of:ident => $inner:expr;)+) => {$(
        impl EncodeMetric for $metric {
            fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
                let $of = self;
                $inner.encode(encoder)
            }

            fn metric_type(&self) -> MetricType {
                MetricType::$kind
            }
        }
    )+};
}

encoded! {
    Counter, Counter, of => of.0;
    Gauge, Gauge, of => of.0;
    Level, Gauge, of => of.0;
    Histogram, Histogram, of => of.0;
    Counted, Counter, of => ConstCounter::new((of.0)());
    Seconds, Counter, of => ConstCounter::new((of.0)());
    Gauged, Gauge, of => ConstGauge::new((of.0)());
}
