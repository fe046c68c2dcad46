//! What is known of a metric besides its values: said once, beside the code that counts, and read by that code, by the documentation and
//! by whoever draws dashboards.

use super::{Counter, Counts, Gauge, Handle, Histogram, Level};

/// What kind of numbers it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, and begins again with the process.
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    /// As scrapes have it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// The units that names may end in.
const UNITS: [&str; 3] = ["seconds", "bytes", "cores"];

/// A metric.
#[derive(Debug)]
pub struct About {
    /// Of the family: a counter's series have `_total` behind it, a histogram's `_bucket`, `_count` and `_sum`.
    pub name: &'static str,
    pub kind: Kind,
    /// What it means, for those who have not read the source.
    pub help: &'static str,
    /// Each with what its values are.
    pub labels: &'static [(&'static str, &'static str)],
}

impl About {
    /// Its unit, if it does not count things.
    #[must_use]
    pub fn unit(&self) -> Option<&'static str> {
        let last = self.name.rsplit('_').next()?;
        UNITS.into_iter().find(|unit| *unit == last)
    }

    /// Names of its series, as queries have them.
    #[must_use]
    pub fn series(&self) -> Vec<String> {
        let suffixes: &[&str] = match self.kind {
            Kind::Counter => &["_total"],
            Kind::Gauge => &[""],
            Kind::Histogram => &["_bucket", "_count", "_sum"],
        };
        suffixes.iter().map(|suffix| format!("{}{suffix}", self.name)).collect()
    }

    /// Whether its series have this label.
    #[must_use]
    pub fn has(&self, label: &str) -> bool {
        self.labels.iter().any(|(name, _)| *name == label)
    }
}

/// Metrics that belong together, in the order in which one reads about them.
pub type Listed = &'static [&'static About];

/// A metric whose values are counted by who has its handles.
#[derive(Debug)]
pub struct Def<M: 'static> {
    pub about: About,
    pub(super) make: fn() -> M,
}

impl<M: Handle> Def<M> {
    const fn new(name: &'static str, kind: Kind, help: &'static str, make: fn() -> M) -> Self {
        Self { about: About { name, kind, help, labels: &[] }, make }
    }

    /// With these labels, each with what its values are. The first of them names what may be forgotten ([`super::Bounded`]).
    #[must_use]
    pub const fn labels(mut self, labels: &'static [(&'static str, &'static str)]) -> Self {
        self.about.labels = labels;
        self
    }
}

impl Def<Counter> {
    /// A counter; its name ends in its unit, if it has one.
    #[must_use]
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Counter, help, Counter::new)
    }
}

impl Def<Gauge> {
    /// A gauge of whole numbers.
    #[must_use]
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Gauge, help, Gauge::new)
    }
}

impl Def<Level> {
    /// A gauge of fractions.
    #[must_use]
    pub const fn level(name: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Gauge, help, Level::new)
    }
}

impl Def<Histogram> {
    /// A histogram of times; its name ends in `_seconds`.
    #[must_use]
    pub const fn times(name: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Histogram, help, Histogram::new)
    }
}

impl Def<Counts> {
    /// A histogram of small counts, such as attempts.
    #[must_use]
    pub const fn counts(name: &'static str, help: &'static str) -> Self {
        Self::new(name, Kind::Histogram, help, Counts::new)
    }
}

/// A metric whose values are kept elsewhere and read when somebody looks.
#[derive(Debug)]
pub struct Read {
    pub about: About,
}

impl Read {
    /// A counter.
    #[must_use]
    pub const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { about: About { name, kind: Kind::Counter, help, labels: &[] } }
    }

    /// A gauge.
    #[must_use]
    pub const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { about: About { name, kind: Kind::Gauge, help, labels: &[] } }
    }

    /// With this label, and what its values are.
    #[must_use]
    pub const fn label(mut self, label: &'static [(&'static str, &'static str); 1]) -> Self {
        self.about.labels = label;
        self
    }
}
