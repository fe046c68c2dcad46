//! What a program can be told of its telemetry.
//!
//! A setting of ours wins over OpenTelemetry's variable for the same thing, wherever it was given; of those the one for a single signal wins
//! over the one for all.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use stoker_core::units;

use super::queue::Bounds;
use super::sampling::{self, Keep, Sampler};
use crate::config::kind::{COUNT, DURATION, MAP, PATH, RATIO, SERVER, TEXT, TRUTH};
use crate::config::{Key, Kind, Maybe, Settings, Table};

static ENDPOINT: Maybe<String> = Key::required(
    "telemetry.endpoint",
    SERVER,
    "Where traces and logs go by OTLP, like http://collector:4317; without it none are made",
)
.variables(&["OTEL_EXPORTER_OTLP_ENDPOINT"])
.optional();
static TRACES_ENDPOINT: Maybe<String> =
    Key::required("telemetry.traces_endpoint", SERVER, "Where traces go, if not to telemetry.endpoint")
        .variables(&["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
        .optional();
static LOGS_ENDPOINT: Maybe<String> =
    Key::required("telemetry.logs_endpoint", SERVER, "Where logs go, if not to telemetry.endpoint")
        .variables(&["OTEL_EXPORTER_OTLP_LOGS_ENDPOINT"])
        .optional();
static TRACES: Key<bool> = Key::new("telemetry.traces", EXPORTER, "otlp", "Whether traces are sent")
    .variables(&["OTEL_TRACES_EXPORTER"]);
static LOGS: Key<bool> = Key::new(
    "telemetry.logs",
    EXPORTER,
    "otlp",
    "Whether logs are sent: what functions write, and what this process writes to its own log",
)
.variables(&["OTEL_LOGS_EXPORTER"]);
static PROTOCOL: Key<Protocol> =
    Key::new("telemetry.protocol", PROTOCOLS, "grpc", "How the collector is spoken to")
        .variables(&["OTEL_EXPORTER_OTLP_PROTOCOL"]);
static HEADERS: Key<BTreeMap<String, String>> =
    Key::new("telemetry.headers", MAP, "", "Headers for the collector, such as a token")
        .variables(&["OTEL_EXPORTER_OTLP_HEADERS"])
        .secret();
static CERTIFICATE: Maybe<PathBuf> = Key::required(
    "telemetry.ca",
    PATH,
    "The certificate of the authority that signed the collector's, for https://; without it those of the system are trusted",
)
.variables(&["OTEL_EXPORTER_OTLP_CERTIFICATE"])
.optional();
static CLIENT_CERTIFICATE: Maybe<PathBuf> =
    Key::required("telemetry.certificate", PATH, "Our certificate, where the collector asks for one")
        .variables(&["OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"])
        .optional();
static CLIENT_KEY: Maybe<PathBuf> = Key::required("telemetry.key", PATH, "The key of telemetry.certificate")
    .variables(&["OTEL_EXPORTER_OTLP_CLIENT_KEY"])
    .optional();
static TIMEOUT: Key<Duration> = Key::new(
    "telemetry.timeout",
    TIME,
    "10s",
    "How long the collector may take for one batch, with all that is sent again; a number alone is milliseconds",
)
.variables(&["OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_BSP_EXPORT_TIMEOUT"]);
static QUEUE: Key<usize> = Key::new(
    "telemetry.queue",
    COUNT,
    "8192",
    "Spans that may wait to be sent, and as many lines of logs; more are dropped and counted",
)
.variables(&["OTEL_BSP_MAX_QUEUE_SIZE"]);
static BATCH: Key<usize> =
    Key::new("telemetry.batch", COUNT, "2048", "Most spans, or lines of logs, in one message")
        .variables(&["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"]);
static DELAY: Key<Duration> = Key::new(
    "telemetry.delay",
    TIME,
    "1s",
    "How long the first of a batch waits for others; a number alone is milliseconds",
)
.variables(&["OTEL_BSP_SCHEDULE_DELAY"]);
static SERVICE: Maybe<String> =
    Key::required("telemetry.service", TEXT, "The service's name in traces and logs")
        .variables(&["OTEL_SERVICE_NAME"])
        .optional();
static ATTRIBUTES: Key<BTreeMap<String, String>> =
    Key::new("telemetry.attributes", MAP, "", "What else is said of this process in traces and logs")
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
static KEEP_FAILED: Key<bool> = Key::new(
    "telemetry.keep_failed",
    TRUTH,
    "true",
    "Whether a call that failed here is sent though the sampler did not take it; not with always_off",
);
static KEEP_SLOW: Maybe<Duration> = Key::required(
    "telemetry.keep_slow",
    DURATION,
    "A call that takes longer here is sent though the sampler did not take it; not with always_off",
)
.optional();

/// The standard `OTEL_…` variables stand below ours.
pub static KEYS: Table = &[
    &ENDPOINT,
    &TRACES_ENDPOINT,
    &LOGS_ENDPOINT,
    &TRACES,
    &LOGS,
    &PROTOCOL,
    &HEADERS,
    &CERTIFICATE,
    &CLIENT_CERTIFICATE,
    &CLIENT_KEY,
    &TIMEOUT,
    &QUEUE,
    &BATCH,
    &DELAY,
    &SERVICE,
    &ATTRIBUTES,
    &SAMPLER,
    &SHARE,
    &KEEP_FAILED,
    &KEEP_SLOW,
];

/// Whether a signal is sent, as the standard variables have it.
const EXPORTER: Kind<bool> = Kind::choice("otlp|none", &[("otlp", true), ("none", false)]);

const PROTOCOLS: Kind<Protocol> = Kind::choice(
    "grpc|http/protobuf",
    &[("grpc", Protocol::Grpc), ("http/protobuf", Protocol::HttpProtobuf)],
);

/// A time, with a unit or as the standard variables have it.
const TIME: Kind<Duration> = Kind::one("TIME", |text| match text.parse() {
    Ok(millis) => Ok(Duration::from_millis(millis)),
    Err(_) => units::parse_duration(text),
});

/// How OTLP travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Grpc,
    HttpProtobuf,
}

/// Who speaks, in traces and logs.
#[derive(Debug, Clone)]
pub struct Identity {
    /// `service.name`, unless the settings say another.
    pub service: &'static str,
    /// `service.version`.
    pub version: &'static str,
    /// `service.instance.id`: this process among those of its service.
    pub instance: String,
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    Traces,
    Logs,
}

/// PEM files, for a collector with TLS.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// Who signed the collector's certificate; without it those whom the system trusts.
    pub ca: Option<PathBuf>,
    /// Ours, and its key.
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// Where spans and logs go, and how many.
#[derive(Debug, Clone)]
pub struct Config {
    /// `http://host:port`; without one, and without one of its own, a signal goes nowhere and is not made.
    pub endpoint: Option<String>,
    pub traces_endpoint: Option<String>,
    pub logs_endpoint: Option<String>,
    pub traces: bool,
    pub logs: bool,
    pub protocol: Protocol,
    pub headers: BTreeMap<String, String>,
    pub trust: Trust,
    pub timeout: Duration,
    pub bounds: Bounds,
    pub sampler: Sampler,
    /// For samplers with a ratio.
    pub ratio: f64,
    /// What is sent all the same.
    pub keep: Keep,
    /// What is said of this process: at least `service.name`.
    pub resource: BTreeMap<String, String>,
}

impl Default for Config {
    /// Sends nothing anywhere.
    fn default() -> Self {
        Self {
            endpoint: None,
            traces_endpoint: None,
            logs_endpoint: None,
            traces: true,
            logs: true,
            protocol: Protocol::Grpc,
            headers: BTreeMap::new(),
            trust: Trust::default(),
            timeout: Duration::from_secs(10),
            bounds: Bounds::default(),
            sampler: Sampler::ParentOrRatio,
            ratio: 1.0,
            keep: Keep::default(),
            resource: BTreeMap::new(),
        }
    }
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
            ("telemetry.sdk.name", "stoker"),
            ("telemetry.sdk.language", "rust"),
            ("telemetry.sdk.version", identity.version),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        resource.extend(crate::server::host_name().ok().map(|name| ("host.name".to_owned(), name)));
        resource.extend(settings.get(&ATTRIBUTES));
        resource.extend(settings.maybe(&SERVICE).map(|name| ("service.name".to_owned(), name)));
        Self {
            endpoint: settings.maybe(&ENDPOINT),
            traces_endpoint: settings.maybe(&TRACES_ENDPOINT),
            logs_endpoint: settings.maybe(&LOGS_ENDPOINT),
            traces: settings.get(&TRACES),
            logs: settings.get(&LOGS),
            protocol: settings.get(&PROTOCOL),
            headers: settings.get(&HEADERS),
            trust: Trust {
                ca: settings.maybe(&CERTIFICATE),
                certificate: settings.maybe(&CLIENT_CERTIFICATE),
                key: settings.maybe(&CLIENT_KEY),
            },
            timeout: settings.get(&TIMEOUT),
            bounds: Bounds {
                queue: settings.get(&QUEUE),
                batch: settings.get(&BATCH),
                delay: settings.get(&DELAY),
            },
            sampler: settings.get(&SAMPLER),
            ratio: settings.get(&SHARE),
            keep: Keep { failed: settings.get(&KEEP_FAILED), slow: settings.maybe(&KEEP_SLOW) },
            resource,
        }
    }

    /// Whether traces go anywhere.
    #[must_use]
    pub fn sends_traces(&self) -> bool {
        self.to(Signal::Traces).is_some()
    }

    /// Where a signal goes, if anywhere. An endpoint of its own is taken as it is; by HTTP the common one is where its path hangs.
    pub(super) fn to(&self, signal: Signal) -> Option<String> {
        let (wanted, own, path) = match signal {
            Signal::Traces => (self.traces, &self.traces_endpoint, "v1/traces"),
            Signal::Logs => (self.logs, &self.logs_endpoint, "v1/logs"),
        };
        let common = || {
            let base = self.endpoint.as_deref()?;
            Some(match self.protocol {
                Protocol::Grpc => base.to_owned(),
                Protocol::HttpProtobuf => format!("{}/{path}", base.trim_end_matches('/')),
            })
        };
        own.clone().or_else(common).filter(|_| wanted)
    }
}
