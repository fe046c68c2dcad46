//! The process's own log on its way to the collector, beside STDERR.

use std::fmt::{self, Write as _};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::telemetry::{Labels, Record, Recorder, Severity, Spot, names};

/// Lines about the way to the collector do not go there: each would be followed by another.
const ITSELF: &str = "stoker_runtime::telemetry";

/// Hands lines on once there is somebody to hand them to.
#[derive(Debug, Clone, Default)]
pub(super) struct Collected(Arc<OnceLock<Recorder>>);

impl Collected {
    /// From now on lines go there too. Only the first is asked.
    pub fn start(&self, recorder: Recorder) {
        if recorder.is_on() {
            self.0.set(recorder).ok();
        }
    }
}

impl<S: Subscriber> Layer<S> for Collected {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some(recorder) = self.0.get() else { return };
        let about = event.metadata();
        if about.target().starts_with(ITSELF) {
            return;
        }
        let mut line = Line::default();
        line.labels = line.labels.with(names::LOG_SOURCE, "process").with(names::LOG_TARGET, about.target());
        event.record(&mut line);
        let severity = match *about.level() {
            Level::ERROR => Severity::Error,
            Level::WARN => Severity::Warn,
            Level::INFO => Severity::Info,
            Level::DEBUG => Severity::Debug,
            Level::TRACE => Severity::Trace,
        };
        let record = Record { at: SystemTime::now(), severity, text: &line.message, spot: line.spot };
        recorder.put(&record, &[&line.labels]);
    }
}

/// What a line says.
#[derive(Default)]
struct Line {
    message: String,
    labels: Labels,
    spot: Option<Spot>,
}

impl Line {
    fn field(&mut self, name: &str, text: &str) {
        match name {
            "message" => self.message.push_str(text),
            "trace_id" => self.spot = Spot::in_trace(text),
            "call_id" => self.labels = std::mem::take(&mut self.labels).with(names::FAAS_INVOCATION, text),
            name => self.labels = std::mem::take(&mut self.labels).field(name, text),
        }
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, text: &str) {
        self.field(field.name(), text);
    }

    fn record_i64(&mut self, field: &Field, number: i64) {
        self.labels = std::mem::take(&mut self.labels).field(field.name(), number);
    }

    fn record_u64(&mut self, field: &Field, number: u64) {
        match i64::try_from(number) {
            Ok(number) => self.record_i64(field, number),
            Err(_) => self.field(field.name(), &number.to_string()),
        }
    }

    fn record_bool(&mut self, field: &Field, truth: bool) {
        self.labels = std::mem::take(&mut self.labels).field(field.name(), truth);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = String::new();
        // Only memory could fail it.
        write!(text, "{value:?}").ok();
        self.field(field.name(), &text);
    }
}
