//! Metrics whose series are known only when somebody looks: what is counted in any case, or for more than are shown, is told from there.

use std::fmt;

use super::define::{About, Kind};
use super::text::Writer;
use super::times::{Spread, Times};
use super::{Family, Metrics};

/// A metric whose series a callback writes when somebody looks, as those of OpenTelemetry that are called observable.
#[derive(Debug)]
pub struct Observable {
    pub about: About,
}

impl Observable {
    /// A counter.
    #[must_use]
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { about: About { name, kind: Kind::Counter, help, labels: &[] } }
    }

    /// A histogram of times; its name ends in `_seconds`.
    #[must_use]
    pub const fn times(name: &'static str, help: &'static str) -> Self {
        Self { about: About { name, kind: Kind::Histogram, help, labels: &[] } }
    }

    /// With these labels, each with what its values are.
    #[must_use]
    pub const fn labels(mut self, labels: &'static [(&'static str, &'static str)]) -> Self {
        self.about.labels = labels;
        self
    }
}

/// Where they are told.
pub struct Scrape<'w>(&'w mut Writer);

impl Scrape<'_> {
    /// From here on series of this metric are told.
    pub fn of(&mut self, metric: &'static Observable) -> Series<'_> {
        self.0.family(&metric.about);
        Series { writer: self.0, about: &metric.about }
    }
}

/// Where the series of one of them are told, each with the values of its labels.
pub struct Series<'w> {
    writer: &'w mut Writer,
    about: &'static About,
}

impl Series<'_> {
    /// A counter has come to this.
    pub fn counter(&mut self, labels: &[&str], count: u64) {
        let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        self.writer.samples(self.about, &labels).one("_total", count);
    }

    /// Times have come to this; `times` has their exemplars.
    pub fn times(&mut self, labels: &[&str], spread: &Spread, times: Option<&Times>) {
        let labels: Vec<String> = labels.iter().map(|label| (*label).to_owned()).collect();
        spread.write(times, &mut self.writer.samples(self.about, &labels));
    }
}

impl Metrics {
    /// These are told by `callback`, in this order.
    ///
    /// # Panics
    /// Like every declaration: if one was declared before.
    pub fn observe<const N: usize>(
        &self,
        metrics: [&'static Observable; N],
        callback: impl Fn(&mut Scrape<'_>) + Send + Sync + 'static,
    ) {
        self.add(metrics.map(|metric| metric.about.name), || Box::new(Callback(Box::new(callback))));
    }
}

struct Callback(Box<dyn Fn(&mut Scrape<'_>) + Send + Sync>);

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Callback")
    }
}

impl Family for Callback {
    fn write(&self, writer: &mut Writer) {
        (self.0)(&mut Scrape(writer));
    }
}
