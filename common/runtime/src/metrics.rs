//! Numbers for Prometheus: counters, gauges and histograms with exemplars, as text.
//!
//! A metric is [defined](Def) once, as a static beside the code that counts, and listed in its crate's table: what is scraped, what
//! `docs/metrics.md` says and what dashboards ask for all come from there. Handles of its series are kept where they are used: using one
//! is an atomic operation or two. Label values that come from outside are bounded: [`Bounded`] gives so many functions series of
//! their own, [`Labelled`] so many in all, and all others share one that is called [`OTHER`].
//!
//! The text is written here and not by a client library: those have histograms behind locks where they have exemplars, and one form each.

mod bounded;
mod define;
pub mod etcd;
mod observable;
mod process;
mod series;
#[cfg(test)]
mod tests;
mod text;
mod times;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

pub use self::bounded::Bounded;
pub use self::define::{About, Def, Kind, Listed, Read};
pub use self::observable::{Observable, Scrape};
pub use self::process::LISTED;
use self::series::Reading;
pub use self::series::{Counter, Counts, Entered, Gauge, Handle, Level};
pub use self::text::Form;
use self::text::Writer;
pub use self::times::{BOUNDS, Histogram, Spread, Times};
use crate::config::kind::{COUNT, TRUTH};
use crate::config::{Key, Settings, Table};

static ENABLED: Key<bool> =
    Key::new("metrics.enabled", TRUTH, "true", "Count what /metrics shows; off, that page is empty");
static FUNCTIONS: Key<usize> = Key::new(
    "metrics.functions",
    COUNT,
    "200",
    "Functions with numbers of their own, the busy ones; all others share one name, (other)",
);

/// What a program can be told of its metrics.
pub static KEYS: Table = &[&ENABLED, &FUNCTIONS];

/// The label value of all that there is no room for. No function has this name.
pub const OTHER: &str = "(other)";

/// Most series of one metric.
const MOST_SERIES: usize = 10_000;

/// All metrics of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Nothing where nothing is counted.
    all: Option<Arc<Mutex<All>>>,
    functions: usize,
}

#[derive(Debug, Default)]
struct All {
    names: BTreeSet<&'static str>,
    families: Vec<Box<dyn Family>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { all: Some(Arc::default()), functions: 200 }
    }
}

impl Metrics {
    /// As the settings that [`KEYS`] declare say.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let all = settings.get(&ENABLED).then(Arc::default);
        Self { all, functions: settings.get(&FUNCTIONS) }
    }

    /// A metric without labels.
    ///
    /// # Panics
    /// Like every declaration: if it was declared before.
    #[must_use]
    pub fn one<M: Handle>(&self, def: &'static Def<M>) -> M {
        self.labelled(def).with(&[])
    }

    /// A metric with labels.
    #[must_use]
    pub fn labelled<M: Handle>(&self, def: &'static Def<M>) -> Labelled<M> {
        let group = self.declare(&def.about, BTreeMap::new());
        Labelled { group, make: if self.all.is_some() { def.make } else { M::off } }
    }

    /// A metric whose value is kept elsewhere and read when somebody looks.
    pub fn read(&self, read: &'static Read, value: impl Fn() -> f64 + Send + Sync + 'static) {
        self.readings(read, [(Vec::new(), value)]);
    }

    /// The same with one label, of which these are the values.
    pub fn read_each<R: Fn() -> f64 + Send + Sync + 'static>(
        &self,
        read: &'static Read,
        values: impl IntoIterator<Item = (&'static str, R)>,
    ) {
        self.readings(read, values.into_iter().map(|(value, read)| (vec![value.to_owned()], read)));
    }

    fn readings<R: Fn() -> f64 + Send + Sync + 'static>(
        &self,
        read: &'static Read,
        values: impl IntoIterator<Item = (Vec<String>, R)>,
    ) {
        let suffix = if read.about.kind == Kind::Counter { "_total" } else { "" };
        let series =
            values.into_iter().map(|(values, read)| (values, Reading { suffix, read: Arc::new(read) }));
        self.declare(&read.about, series.collect());
    }

    /// Handles for as many functions as have numbers of their own: `make` gets those of a function, `forget` gives them up.
    #[must_use]
    pub fn functions<T>(
        &self,
        make: impl Fn(&str) -> T + Send + Sync + 'static,
        forget: impl Fn(&str) + Send + Sync + 'static,
    ) -> Bounded<T> {
        Bounded::new(self.functions, make, forget)
    }

    /// How many functions have numbers of their own.
    #[must_use]
    pub fn most_functions(&self) -> usize {
        self.functions
    }

    /// What this program is, as labels of a gauge that is 1, and what the kernel says of the process.
    pub fn describe_process(&self, program: &'static str, version: &'static str) {
        process::declare(self, program, version);
    }

    /// All of them, as [`Form::OpenMetrics`].
    #[must_use]
    pub fn text(&self) -> String {
        self.text_as(Form::OpenMetrics)
    }

    /// All of them, in this form.
    #[must_use]
    pub fn text_as(&self, form: Form) -> String {
        let mut writer = Writer::new(form);
        if let Some(all) = &self.all {
            let all = all.lock().unwrap_or_else(PoisonError::into_inner);
            all.families.iter().for_each(|family| family.write(&mut writer));
        }
        writer.end()
    }

    fn declare<M: Handle>(&self, about: &'static About, series: BTreeMap<Vec<String>, M>) -> Arc<Group<M>> {
        let group = Arc::new(Group { about, series: RwLock::new(series) });
        self.add([about.name], || Box::new(group.clone()));
        group
    }

    fn add<const N: usize>(&self, names: [&'static str; N], family: impl FnOnce() -> Box<dyn Family>) {
        let Some(all) = &self.all else { return };
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            assert!(all.names.insert(name), "two metrics are called {name}");
        }
        all.families.push(family());
    }
}

/// What can be written as a whole.
trait Family: fmt::Debug + Send + Sync {
    fn write(&self, writer: &mut Writer);
}

/// The series of one name.
#[derive(Debug)]
struct Group<M> {
    about: &'static About,
    series: RwLock<BTreeMap<Vec<String>, M>>,
}

impl<M: Handle> Family for Arc<Group<M>> {
    fn write(&self, writer: &mut Writer) {
        let series = self.series.read().unwrap_or_else(PoisonError::into_inner);
        // Without series, too, so that who looks for a name finds it.
        writer.family(self.about);
        for (values, metric) in series.iter() {
            metric.write(&mut writer.samples(self.about, values));
        }
    }
}

/// A metric with labels. Keep what [`Labelled::with`] gives: finding it takes a lock and a search.
#[derive(Debug, Clone)]
pub struct Labelled<M> {
    group: Arc<Group<M>>,
    make: fn() -> M,
}

impl<M: Handle> Labelled<M> {
    /// The series with these label values, in the order of the labels.
    #[must_use]
    pub fn with(&self, values: &[&str]) -> M {
        debug_assert_eq!(values.len(), self.group.about.labels.len(), "labels of {}", self.group.about.name);
        let mut key: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        let mut series = self.group.series.write().unwrap_or_else(PoisonError::into_inner);
        if series.len() >= MOST_SERIES && !series.contains_key(&key) {
            key = vec![OTHER.to_owned(); key.len()];
        }
        series.entry(key).or_insert_with(self.make).clone()
    }

    /// Shows no series any more whose first label has this value.
    pub fn forget(&self, first: &str) {
        let mut series = self.group.series.write().unwrap_or_else(PoisonError::into_inner);
        series.retain(|values, _| values.first().is_none_or(|value| value != first));
    }
}
