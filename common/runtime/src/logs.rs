//! The process's own log: lines for people or JSON, on STDERR.
//!
//! Lines go through a bounded queue to a thread that writes them, so that a pipe nobody reads holds up no call. What does not
//! fit is dropped and counted, and a line says how much that was once there is room again. Lines about a call carry its ids as
//! the fields `call_id` and `trace_id`; in JSON the fields of an event stand at the top of its object.
//!
//! The same lines go to the [collector](crate::telemetry), where there is one.

mod collected;
pub(crate) mod writer;

use std::io::IsTerminal as _;
use std::time::Duration;

use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, fmt, reload};

use self::collected::Collected;
use self::writer::{ForPeople, Writer};
use crate::config::{Key, Kind, Settings, Table};
use crate::metrics::{Listed, Metrics, Read};
use crate::telemetry::Recorder;

static DROPPED: Read =
    Read::counter("stoker_log_lines_dropped", "Lines of the log that nobody read in time, and that are lost");

/// The metrics of the log itself.
pub static LISTED: Listed = &[&DROPPED.about];

static FORMAT: Key<Style> = Key::new(
    "log.format",
    Kind::choice(
        "auto|pretty|json",
        &[("auto", Style::Auto), ("pretty", Style::Pretty), ("json", Style::Json)],
    ),
    "auto",
    "How log lines look; auto is pretty on a terminal and JSON elsewhere",
);
static LEVEL: Key<Filter> = Key::new(
    "log.level",
    Kind::one("FILTER", filter),
    "info",
    "What is logged, like info or info,stoker_lb=debug",
)
.live();

/// What a program can be told of its log.
pub static KEYS: Table = &[&FORMAT, &LEVEL];

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// For people on a terminal, else JSON.
    Auto,
    /// Lines for people; colours on a terminal unless `NO_COLOR` is set.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// What is logged: a level, and others for single targets.
#[derive(Debug, Clone)]
pub struct Filter(Targets);

fn filter(text: &str) -> Result<Filter, String> {
    let wrong = || {
        format!(
            "`{text}` is not a filter: write error, warn, info, debug, trace or off, or like info,stoker_lb=debug"
        )
    };
    let part = |part: &str| {
        let (target, level) = part.split_once('=').unwrap_or(("", part));
        // The parser takes a word that is no level for a target with everything.
        !level.is_empty() && level.parse::<LevelFilter>().is_ok() && (target.is_empty() != part.contains('='))
    };
    if !text.split(',').all(|text| part(text.trim())) {
        return Err(wrong());
    }
    text.parse().map(Filter).map_err(|_| wrong())
}

/// The log. Keep it until the process ends, and [`Logs::stop`] it last: lines that still wait are then written.
#[derive(Debug)]
pub struct Logs {
    writer: Writer,
    collected: Collected,
    filter: reload::Handle<Targets, Registry>,
}

impl Logs {
    /// Sends the log to STDERR, as the settings that [`KEYS`] declare say. An embedding program or a test may have its own
    /// subscriber: it keeps it.
    ///
    /// # Errors
    /// The thread that writes cannot be started.
    pub fn start(settings: &Settings) -> std::io::Result<Self> {
        let (style, Filter(targets)) = (settings.get(&FORMAT), settings.get(&LEVEL));
        let stderr = std::io::stderr();
        let terminal = stderr.is_terminal();
        let writer = Writer::start(stderr)?;
        let lines = writer.lines();
        let layer = match style {
            Style::Auto if terminal => pretty(lines, terminal).boxed(),
            Style::Pretty => pretty(lines, terminal).boxed(),
            Style::Auto | Style::Json => json(lines).boxed(),
        };
        let collected = Collected::default();
        let layer = layer.and_then(collected.clone());
        let (targets, filter) = reload::Layer::new(targets);
        if tracing_subscriber::registry().with(layer.with_filter(targets)).try_init().is_err() {
            tracing::debug!("a log subscriber was installed before");
        }
        Ok(Self { writer, collected, filter })
    }

    /// From here on lines go to the collector too.
    pub fn collect(&self, recorder: Recorder) {
        self.collected.start(recorder);
    }

    /// From here on what is logged is what these settings say.
    pub fn reload(&self, settings: &Settings) {
        // Fails where another subscriber is installed, which decides for itself.
        self.filter.reload(settings.get(&LEVEL).0).ok();
    }

    /// Shows how many lines were dropped.
    pub fn measure(&self, metrics: &Metrics) {
        let lines = self.writer.lines();
        metrics.read(&DROPPED, move || lines.dropped() as f64);
    }

    /// Waits until what was logged is written, for at most `limit`.
    pub fn flush(&self, limit: Duration) {
        self.writer.flush(limit);
    }

    /// Writes what waits, for at most `limit`.
    pub fn stop(self, limit: Duration) {
        self.writer.stop(limit);
    }
}

fn pretty<S>(lines: writer::Lines, terminal: bool) -> impl tracing_subscriber::Layer<S> + Send + Sync
where
    S: tracing::Subscriber + for<'s> tracing_subscriber::registry::LookupSpan<'s>,
{
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    fmt::layer().with_writer(ForPeople { lines, colours }).with_ansi(colours)
}

fn json<S>(lines: writer::Lines) -> impl tracing_subscriber::Layer<S> + Send + Sync
where
    S: tracing::Subscriber + for<'s> tracing_subscriber::registry::LookupSpan<'s>,
{
    fmt::layer().json().flatten_event(true).with_current_span(false).with_writer(lines)
}

#[cfg(test)]
mod tests;
