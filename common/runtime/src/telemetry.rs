//! Traces and logs for a collector: the only place that names OpenTelemetry.
//!
//! A span of the data plane is a plain value that its owner fills and drops; nothing is looked up, no context is global. That
//! is what makes it cheap: a call that nobody samples pays a copy of its trace context, and what a sampled one notes is written
//! at once as the bytes that the collector gets ([`wire`]). So is a line of a log. Spans that end and lines go into a bounded queue each and are sent by
//! one thread with a runtime of its own, so that a slow or absent collector costs the data plane nothing: what does not fit is
//! dropped and counted.
//!
//! Without an endpoint no span is recorded and no line is kept for it, and the trace context of a call passes through as it came. What may be said in
//! spans and lines is in [`names`].

mod clock;
mod context;
mod export;
pub mod names;
mod queue;
mod records;
mod sampling;
mod settings;
mod span;
mod tail_sampling;
#[cfg(test)]
mod tests;
mod wire;
mod xray;

use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use opentelemetry::trace::{SpanKind, TraceId};
pub use span::{Span, Spot, Tracer};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::clock::Clock;
use self::export::Exporter;
pub use self::queue::Bounds;
use self::queue::Queue;
pub use self::records::{Record, Recorder, Severity};
use self::sampling::Sampling;
pub use self::sampling::{Keep, Sampler};
use self::settings::Signal;
pub use self::settings::{Config, Identity, KEYS, Protocol, Trust};
use self::span::Shared;
pub use self::wire::{Fact, Facts, Labels, Value};
pub use self::xray::{from_xray, to_xray};
use crate::metrics::{Listed, Metrics, Read};

const OUTCOME: (&str, &str) =
    ("outcome", "`sent`, `dropped` (the queue was full), `failed` (the collector did not take them)");

static SPANS: Read =
    Read::counter("stoker_telemetry_spans", "Spans by what became of them; shown where traces go somewhere")
        .label(&[OUTCOME]);
static LOG_RECORDS: Read = Read::counter(
    "stoker_telemetry_log_records",
    "Lines of logs for the collector by what became of them; shown where logs go somewhere",
)
.label(&[OUTCOME]);

/// The metrics of telemetry itself.
pub static LISTED: Listed = &[&SPANS.about, &LOG_RECORDS.about];

/// The sender of spans and lines; its [`Tracer`] makes the ones, its [`Recorder`] takes the others.
#[derive(Debug)]
pub struct Telemetry {
    tracer: Tracer,
    recorder: Recorder,
    sender: Option<Sender>,
}

/// The thread that sends. Ends when it was told to and the queues are empty, at once when it is dropped.
#[derive(Debug)]
struct Sender {
    calm: CancellationToken,
    now: DropGuard,
    ended: oneshot::Receiver<()>,
}

impl Telemetry {
    /// Sends nothing.
    #[must_use]
    pub fn off() -> Self {
        Self { tracer: Tracer::off(), recorder: Recorder::off(), sender: None }
    }

    /// Starts the thread that sends, if there is somewhere to send to. Does not wait for the collector: it may come later.
    ///
    /// # Errors
    /// An endpoint, a header or a certificate cannot be used, or the thread cannot be started.
    pub fn start(config: &Config) -> io::Result<Self> {
        let (traces, logs) = (config.to(Signal::Traces), config.to(Signal::Logs));
        if traces.is_none() && logs.is_none() {
            return Ok(Self::off());
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let ways = {
            // The connections' tasks live there, not on the runtime of the data plane.
            let _there = runtime.enter();
            let way = |signal, to: Option<String>| to.map(|to| Exporter::new(config, signal, to)).transpose();
            way(Signal::Traces, traces).and_then(|traces| Ok((traces, way(Signal::Logs, logs)?)))
        };
        let (traces, logs) = match ways {
            Ok(ways) => ways,
            Err(why) => {
                // The caller may be async, where a runtime must not be dropped.
                runtime.shutdown_background();
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
        };
        let (calm, now) = (CancellationToken::new(), CancellationToken::new());
        let queue = || Arc::new(Queue::new(config.bounds));
        let (mut tracer, mut recorder) = (Tracer::off(), Recorder::off());
        let mut runs = Vec::new();
        if let Some(exporter) = traces {
            let queue = queue();
            runs.push(queue::send(queue.clone(), exporter, calm.clone(), now.clone()));
            tracer = Tracer::new(Arc::new(Shared {
                sampling: Sampling::new(config.sampler, config.ratio),
                keep: if config.sampler == Sampler::AlwaysOff { Keep::default() } else { config.keep },
                queue,
                clock: Clock::new(),
            }));
        }
        if let Some(exporter) = logs {
            let queue = queue();
            runs.push(queue::send(queue.clone(), exporter, calm.clone(), now.clone()));
            recorder = Recorder::new(queue);
        }
        let (ending, ended) = oneshot::channel();
        std::thread::Builder::new().name("telemetry".to_owned()).spawn(move || {
            runtime.block_on(futures_util::future::join_all(runs));
            runtime.shutdown_background();
            // Nobody listens if nobody waits for the end.
            ending.send(()).ok();
        })?;
        Ok(Self { tracer, recorder, sender: Some(Sender { calm, now: now.drop_guard(), ended }) })
    }

    /// What makes spans. Those that end after [`Telemetry::stop`] are dropped and counted.
    #[must_use]
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// What takes lines of logs. Those that come after [`Telemetry::stop`] are dropped and counted.
    #[must_use]
    pub fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// Shows how many spans and lines were sent, dropped because the queue was full, and lost because the collector did not take them.
    pub fn measure(&self, metrics: &Metrics) {
        let count = |queue: &Arc<Queue>| {
            queue::OUTCOMES.map(|outcome| {
                let queue = queue.clone();
                (outcome, move || queue.count(outcome) as f64)
            })
        };
        if let Some(shared) = self.tracer.shared() {
            let counts = count(&shared.queue);
            metrics.read_each(&SPANS, counts);
        }
        if let Some(queue) = self.recorder.queue() {
            metrics.read_each(&LOG_RECORDS, count(queue));
        }
    }

    /// Sends what waits, for at most `limit`. Says whether all of it was sent or given up by then.
    pub async fn stop(self, limit: Duration) -> bool {
        let Some(Sender { calm, now, mut ended }) = self.sender else { return true };
        calm.cancel();
        let in_time = tokio::time::timeout(limit, &mut ended).await.is_ok();
        drop(now);
        if !in_time {
            // The thread drops what it has and ends: by then everything is counted.
            ended.await.ok();
        }
        in_time
    }
}
