//! Metrics as text, in the two forms that scrapers ask for: OpenMetrics 1.0, which has exemplars and units, and the older one of
//! Prometheus, which everybody reads.

use std::fmt::{self, Write as _};
use std::time::UNIX_EPOCH;

use super::define::{About, Kind};
use super::times::Exemplar;

/// The form of a scrape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    OpenMetrics,
    Prometheus,
}

impl Form {
    /// What a client gets that accepts this. Who does not name the newer form may not know it: a parser of the older one takes its exemplars for mistakes.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Its media type.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Form::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Form::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Writes families, one after the other.
pub(super) struct Writer {
    out: String,
    form: Form,
}

impl Writer {
    pub fn new(form: Form) -> Self {
        Self { out: String::new(), form }
    }

    /// A family begins.
    pub fn family(&mut self, about: &About) {
        let (name, help, kind) = (about.name, about.help, about.kind.as_str());
        let suffix = match (self.form, about.kind) {
            (Form::Prometheus, Kind::Counter) => "_total",
            _ => "",
        };
        self.put(format_args!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n"));
        if let (Form::OpenMetrics, Some(unit)) = (self.form, about.unit()) {
            self.put(format_args!("# UNIT {name} {unit}\n"));
        }
    }

    /// Where a series of it writes its samples.
    pub fn samples<'a>(&'a mut self, about: &'a About, values: &'a [String]) -> Samples<'a> {
        Samples { writer: self, about, values }
    }

    /// The whole text.
    pub fn end(mut self) -> String {
        if self.form == Form::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }

    fn put(&mut self, text: fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        self.out.write_fmt(text).ok();
    }

    /// Begins a label, the first or another.
    fn label(&mut self, first: &mut bool, name: &str, value: &str) {
        self.out.push(if std::mem::take(first) { '{' } else { ',' });
        self.out.push_str(name);
        self.out.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => self.out.push_str("\\\\"),
                '"' => self.out.push_str("\\\""),
                '\n' => self.out.push_str("\\n"),
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// Where a series writes what it has.
pub struct Samples<'a> {
    writer: &'a mut Writer,
    about: &'a About,
    values: &'a [String],
}

impl Samples<'_> {
    /// A sample; the name of the family is followed by `suffix`.
    pub(super) fn one(&mut self, suffix: &str, value: impl fmt::Display) {
        self.name(suffix, None);
        self.writer.put(format_args!(" {value}\n"));
    }

    /// So many values were not above `bound`.
    pub(super) fn bucket(&mut self, bound: f64, count: u64, exemplar: Option<Exemplar>) {
        let bound = if bound.is_finite() { format!("{bound:?}") } else { "+Inf".to_owned() };
        self.name("_bucket", Some(&bound));
        self.writer.put(format_args!(" {count}"));
        if let (Form::OpenMetrics, Some(Exemplar { trace, value, at })) = (self.writer.form, exemplar) {
            let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            self.writer.put(format_args!(" # {{trace_id=\"{trace}\"}} {value} {at:.3}"));
        }
        self.writer.out.push('\n');
    }

    fn name(&mut self, suffix: &str, bound: Option<&str>) {
        self.writer.put(format_args!("{}{suffix}", self.about.name));
        let mut first = true;
        for ((name, _), value) in self.about.labels.iter().zip(self.values) {
            self.writer.label(&mut first, name, value);
        }
        if let Some(bound) = bound {
            self.writer.label(&mut first, "le", bound);
        }
        if !first {
            self.writer.out.push('}');
        }
    }
}
