//! The way to the collector: batches that are bytes already, by gRPC or by HTTP, and again where OTLP says so.

mod dial;
mod grpc;
mod http;

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use tokio::time::Instant;

use self::dial::Dial;
use super::settings::{Config, Protocol, Signal};
use super::wire;

/// How long to wait before a batch is sent again: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MOST_PAUSE: Duration = Duration::from_secs(5);

/// Most bytes of an answer: it says little.
const ANSWER: usize = 64 << 10;

/// What we say that we are.
const AGENT: &str = concat!("stoker/", env!("CARGO_PKG_VERSION"));

/// A way to the collector for one signal.
pub(super) struct Exporter {
    signal: Signal,
    to: String,
    way: Way,
    limit: Duration,
    /// Who speaks, as a field of the message.
    resource: Bytes,
    /// What the spans were made with, as a field of the message.
    scope: Bytes,
}

enum Way {
    Grpc(grpc::Way),
    Http(http::Way),
}

/// Why the collector did not take a batch.
#[derive(Debug)]
pub(super) struct Failed {
    pub why: String,
    /// OTLP says to try again.
    pub passing: bool,
    /// Not before so long.
    pub after: Duration,
}

impl Failed {
    fn passing(why: impl ToString) -> Self {
        Self { why: why.to_string(), passing: true, after: Duration::ZERO }
    }

    fn for_good(why: impl ToString) -> Self {
        Self { why: why.to_string(), passing: false, after: Duration::ZERO }
    }
}

/// What the collector says of a batch that it took; the same for all signals.
#[derive(Clone, PartialEq, prost::Message)]
struct Taken {
    #[prost(message, optional, tag = "1")]
    partial: Option<Partial>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Partial {
    /// Of the spans or the records.
    #[prost(int64, tag = "1")]
    refused: i64,
}

impl Taken {
    /// How many it would not have.
    fn refused(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| usize::try_from(partial.refused).unwrap_or(0))
    }
}

impl Exporter {
    /// A way for a signal to its endpoint. Must be made on the runtime that it is used on, where the task of its connection lives.
    ///
    /// # Errors
    /// The endpoint, a header or a certificate cannot be used.
    pub fn new(config: &Config, signal: Signal, to: String) -> Result<Self, String> {
        let mut headers = ::http::HeaderMap::new();
        for (name, value) in &config.headers {
            let wrong = || format!("`{name}` is not a header that can be sent");
            headers.insert(
                ::http::HeaderName::try_from(name).map_err(|_| wrong())?,
                ::http::HeaderValue::try_from(value).map_err(|_| wrong())?,
            );
        }
        let dial = Dial::new(&to, config)?;
        let way = match config.protocol {
            Protocol::Grpc => Way::Grpc(grpc::Way::new(signal, dial, headers, config.timeout)?),
            Protocol::HttpProtobuf => Way::Http(http::Way::new(dial, headers)),
        };
        let attributes = config.resource.iter().map(|(key, value)| KeyValue {
            key: key.clone(),
            value: Some(AnyValue { value: Some(any_value::Value::StringValue(value.clone())) }),
            ..KeyValue::default()
        });
        let resource = Resource { attributes: attributes.collect(), ..Resource::default() };
        let scope = InstrumentationScope {
            name: "stoker".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        Ok(Self {
            signal,
            to,
            way,
            limit: config.timeout,
            resource: first_field(&resource.encode_to_vec()),
            scope: first_field(&scope.encode_to_vec()),
        })
    }

    pub fn signal(&self) -> Signal {
        self.signal
    }

    /// For people.
    pub fn to(&self) -> &str {
        &self.to
    }

    /// Sends a batch, and again while the collector cannot be reached or asks for it. Says how many it would not have.
    ///
    /// # Errors
    /// It did not take them in the time that it has.
    pub async fn export(&mut self, items: &Arc<Vec<u8>>) -> Result<usize, Failed> {
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let failed = match tokio::time::timeout_at(began + self.limit, self.once(items)).await {
                Ok(Ok(refused)) => return Ok(refused),
                Ok(Err(failed)) => failed,
                Err(_) => return Err(Failed::for_good("the collector took too long")),
            };
            // Those who lost the same collector should not come back at the same time.
            let share = RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64;
            let until = Instant::now() + pause.mul_f64(0.5 + share / 2.0).max(failed.after);
            if !failed.passing || until >= began + self.limit {
                return Err(failed);
            }
            tokio::time::sleep_until(until).await;
            pause = (pause * 2).min(MOST_PAUSE);
        }
    }

    async fn once(&mut self, items: &Arc<Vec<u8>>) -> Result<usize, Failed> {
        let message =
            Message { resource: self.resource.clone(), scope: self.scope.clone(), items: items.clone() };
        match &mut self.way {
            Way::Grpc(way) => way.send(message).await,
            Way::Http(way) => way.send(message).await,
        }
    }
}

impl Signal {
    pub fn what(self) -> &'static str {
        match self {
            Signal::Traces => "spans",
            Signal::Logs => "log records",
        }
    }
}

/// The first field of each message above the spans and the records is a message.
fn first_field(message: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(message.len() + 4);
    wire::bytes(&mut out, FIRST, message);
    out.into()
}

const FIRST: u8 = 1 << 3 | 2;
const SECOND: u8 = 2 << 3 | 2;

/// One `ExportTraceServiceRequest` or `ExportLogsServiceRequest`, whose fields have the same numbers: of one resource, all by one scope.
struct Message {
    resource: Bytes,
    scope: Bytes,
    items: Arc<Vec<u8>>,
}

impl Message {
    /// All of it but the items, which follow.
    fn head(&self) -> Vec<u8> {
        let Self { resource, scope, items } = self;
        let mut head = Vec::with_capacity(24 + resource.len() + scope.len());
        let in_scope = scope.len() + items.len();
        let in_resource = resource.len() + 1 + wire::number_length(in_scope as u64) + in_scope;
        head.push(FIRST);
        wire::number(&mut head, in_resource as u64);
        head.extend_from_slice(resource);
        head.push(SECOND);
        wire::number(&mut head, in_scope as u64);
        head.extend_from_slice(scope);
        head
    }
}
