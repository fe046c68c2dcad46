//! Traces: the only place that names OpenTelemetry.
//!
//! A span of the data plane is a plain value that its owner fills and drops; nothing is looked up, no context is global. That
//! is what makes it cheap: a call that nobody samples pays a copy of its trace context, and what a sampled one notes is written
//! at once as the bytes that the collector gets ([`wire`]). Spans that end go into a bounded queue and are sent by one thread with
//! a runtime of its own, so that a slow or absent collector costs the data plane nothing: what does not fit is dropped and
//! counted.
//!
//! Without an endpoint no span is recorded, and the trace context of a call passes through as it came.

mod clock;
mod context;
mod export;
mod queue;
mod sampling;
mod span;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use opentelemetry::trace::{SpanKind, TraceId};
pub use span::{Span, Tracer};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::clock::Clock;
use self::export::Exporter;
use self::queue::Queue;
pub use self::sampling::Sampler;
use self::sampling::Sampling;
use self::span::Shared;
pub use self::wire::{Fact, Facts, Value};
use crate::config::kind::{COUNT, DURATION, MAP, RATIO, TEXT, URL};
use crate::config::{Key, Maybe, Settings, Table};
use crate::metrics::Metrics;

static ENDPOINT: Maybe<String> = Key::required(
    "telemetry.endpoint",
    URL,
    "Where traces go by OTLP over gRPC, like http://collector:4317; without it none are made",
)
.variables(&["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"])
.optional();
static HEADERS: Key<BTreeMap<String, String>> =
    Key::new("telemetry.headers", MAP, "", "Headers for the collector, such as a token")
        .variables(&["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"])
        .secret();
static TIMEOUT: Key<Duration> =
    Key::new("telemetry.timeout", DURATION, "10s", "How long the collector may take for one batch");
static QUEUE: Key<usize> = Key::new(
    "telemetry.queue",
    COUNT,
    "8192",
    "Spans that may wait to be sent; more are dropped and counted",
);
static SERVICE: Maybe<String> = Key::required("telemetry.service", TEXT, "The service's name in traces")
    .variables(&["OTEL_SERVICE_NAME"])
    .optional();
static ATTRIBUTES: Key<BTreeMap<String, String>> =
    Key::new("telemetry.attributes", MAP, "", "What else is said of this process in traces")
        .variables(&["OTEL_RESOURCE_ATTRIBUTES"]);
static SAMPLER: Key<Sampler> =
    Key::new("telemetry.sampler", sampling::SAMPLER, "parentbased_traceidratio", "Which calls are traced")
        .variables(&["OTEL_TRACES_SAMPLER"]);
static SHARE: Key<f64> = Key::new(
    "telemetry.ratio",
    RATIO,
    "1",
    "Share of calls that a sampler with `traceidratio` takes, where the caller has not decided",
)
.variables(&["OTEL_TRACES_SAMPLER_ARG"]);

/// What a program can be told of its traces. The standard `OTEL_…` variables stand below ours.
pub static KEYS: Table = &[&ENDPOINT, &HEADERS, &TIMEOUT, &QUEUE, &SERVICE, &ATTRIBUTES, &SAMPLER, &SHARE];

/// Who speaks, in traces.
#[derive(Debug, Clone)]
pub struct Identity {
    /// `service.name`, unless the settings say another.
    pub service: &'static str,
    /// `service.version`.
    pub version: &'static str,
    /// `service.instance.id`: this process among those of its service.
    pub instance: String,
}

/// Where spans go, and how many.
#[derive(Debug, Clone)]
pub struct Config {
    /// `http://host:port`; none makes no spans.
    pub endpoint: Option<String>,
    pub headers: BTreeMap<String, String>,
    pub timeout: Duration,
    pub queue: usize,
    pub sampler: Sampler,
    /// For samplers with a ratio.
    pub ratio: f64,
    /// What is said of this process: at least `service.name`.
    pub resource: BTreeMap<String, String>,
}

impl Config {
    /// From the settings that [`KEYS`] declare.
    #[must_use]
    pub fn new(settings: &Settings, identity: &Identity) -> Self {
        let mut resource: BTreeMap<String, String> = [
            ("service.namespace", "stoker"),
            ("service.name", identity.service),
            ("service.version", identity.version),
            ("service.instance.id", &identity.instance),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        resource.extend(settings.get(&ATTRIBUTES));
        resource.extend(settings.maybe(&SERVICE).map(|name| ("service.name".to_owned(), name)));
        Self {
            endpoint: settings.maybe(&ENDPOINT),
            headers: settings.get(&HEADERS),
            timeout: settings.get(&TIMEOUT),
            queue: settings.get(&QUEUE),
            sampler: settings.get(&SAMPLER),
            ratio: settings.get(&SHARE),
            resource,
        }
    }
}

/// The sender of spans; its [`Tracer`] makes them.
#[derive(Debug)]
pub struct Telemetry {
    tracer: Tracer,
    sender: Option<Sender>,
}

/// The thread that sends. Ends when it was told to and the queue is empty, at once when it is dropped.
#[derive(Debug)]
struct Sender {
    calm: CancellationToken,
    now: DropGuard,
    ended: oneshot::Receiver<()>,
}

impl Telemetry {
    /// Makes no spans.
    #[must_use]
    pub fn off() -> Self {
        Self { tracer: Tracer::off(), sender: None }
    }

    /// Starts the thread that sends, if there is somewhere to send to. Does not wait for the collector: it may come later.
    ///
    /// # Errors
    /// The endpoint or a header cannot be used, or the thread cannot be started.
    pub fn start(config: &Config) -> io::Result<Self> {
        let Some(endpoint) = &config.endpoint else { return Ok(Self::off()) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let exporter = {
            // The connection's task lives there, not on the runtime of the data plane.
            let _there = runtime.enter();
            Exporter::new(config, endpoint)
        };
        let exporter = match exporter {
            Ok(exporter) => exporter,
            Err(why) => {
                // The caller may be async, where a runtime must not be dropped.
                runtime.shutdown_background();
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
        };
        let shared = Arc::new(Shared {
            sampling: Sampling::new(config.sampler, config.ratio),
            queue: Queue::new(config.queue),
            clock: Clock::new(),
        });
        let (calm, now) = (CancellationToken::new(), CancellationToken::new());
        let (ending, ended) = oneshot::channel();
        let run = queue::send(shared.clone(), exporter, endpoint.clone(), calm.clone(), now.clone());
        std::thread::Builder::new().name("telemetry".to_owned()).spawn(move || {
            runtime.block_on(run);
            runtime.shutdown_background();
            // Nobody listens if nobody waits for the end.
            ending.send(()).ok();
        })?;
        Ok(Self { tracer: Tracer::new(shared), sender: Some(Sender { calm, now: now.drop_guard(), ended }) })
    }

    /// What makes spans. Those that end after [`Telemetry::stop`] are dropped and counted.
    #[must_use]
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Shows how many spans were sent, dropped because the queue was full, and lost because the collector did not take them.
    pub fn measure(&self, metrics: &Metrics) {
        let Some(shared) = self.tracer.shared() else { return };
        metrics.counted(
            "stoker_telemetry_spans",
            "Spans by what became of them",
            &["outcome"],
            queue::OUTCOMES.map(|outcome| {
                let shared = shared.clone();
                (outcome, move || shared.queue.count(outcome))
            }),
        );
    }

    /// Sends what waits, for at most `limit`. Says whether all of it was sent or given up by then.
    pub async fn stop(self, limit: Duration) -> bool {
        let Some(Sender { calm, now, mut ended }) = self.sender else { return true };
        calm.cancel();
        let in_time = tokio::time::timeout(limit, &mut ended).await.is_ok();
        drop(now);
        if !in_time {
            // The thread drops what it has and ends: by then every span is counted.
            ended.await.ok();
        }
        in_time
    }
}
