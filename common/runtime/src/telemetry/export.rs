//! The way to the collector: batches that are bytes already, by gRPC.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes};
use http::uri::PathAndQuery;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::{Config, wire};

/// The method of OTLP's service.
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// How long to wait before a batch is sent again: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MOST_PAUSE: Duration = Duration::from_secs(5);

/// A connection to the collector: made when it is needed, and again when it broke.
pub(super) struct Exporter {
    client: Grpc<Channel>,
    headers: MetadataMap,
    limit: Duration,
    /// Who speaks, as a field of the message.
    resource: Bytes,
    /// What the spans were made with, as a field of the message.
    scope: Bytes,
}

impl Exporter {
    /// Must be made on the runtime that it is used on, where the task of its connection lives.
    ///
    /// # Errors
    /// The endpoint or a header cannot be used.
    pub fn new(config: &Config, endpoint: &str) -> Result<Self, String> {
        let mut headers = http::HeaderMap::new();
        for (name, value) in &config.headers {
            let wrong = || format!("`{name}` is not a header that can be sent");
            headers.insert(
                http::HeaderName::try_from(name).map_err(|_| wrong())?,
                http::HeaderValue::try_from(value).map_err(|_| wrong())?,
            );
        }
        let unusable = |why: tonic::transport::Error| format!("`{endpoint}` is not an endpoint: {why}");
        let endpoint = Endpoint::from_shared(endpoint.to_owned()).map_err(unusable)?;
        if endpoint.uri().scheme() == Some(&http::uri::Scheme::HTTPS) {
            return Err(format!("`{}` asks for TLS, which collectors are not spoken to by", endpoint.uri()));
        }
        let channel = endpoint
            .user_agent(concat!("stoker/", env!("CARGO_PKG_VERSION")))
            .map_err(unusable)?
            .connect_timeout(config.timeout)
            .connect_lazy();
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
            client: Grpc::new(channel),
            headers: MetadataMap::from_headers(headers),
            limit: config.timeout,
            resource: first_field(&resource.encode_to_vec()),
            scope: first_field(&scope.encode_to_vec()),
        })
    }

    /// Sends spans, and again while the collector cannot be reached or asks for it. Says how many of them it would not have.
    ///
    /// # Errors
    /// It did not take them in the time that it has.
    pub async fn export(&mut self, spans: &Arc<Vec<u8>>) -> Result<usize, Status> {
        let began = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let why = match tokio::time::timeout_at(began + self.limit, self.once(spans)).await {
                Ok(Ok(refused)) => return Ok(refused),
                Ok(Err(why)) => why,
                Err(_) => return Err(Status::deadline_exceeded("the collector took too long")),
            };
            // Those who lost the same collector should not come back at the same time.
            let share = RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64;
            let until = Instant::now() + pause.mul_f64(0.5 + share / 2.0);
            if !is_passing(&why) || until >= began + self.limit {
                return Err(why);
            }
            tokio::time::sleep_until(until).await;
            pause = (pause * 2).min(MOST_PAUSE);
        }
    }

    async fn once(&mut self, spans: &Arc<Vec<u8>>) -> Result<usize, Status> {
        let message =
            Message { resource: self.resource.clone(), scope: self.scope.clone(), spans: spans.clone() };
        let mut request = Request::new(message);
        *request.metadata_mut() = self.headers.clone();
        self.client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let answer = self.client.unary(request, PathAndQuery::from_static(EXPORT), Ready).await?;
        let refused = answer.into_inner().partial_success.map_or(0, |partial| partial.rejected_spans);
        Ok(usize::try_from(refused).unwrap_or(0))
    }
}

/// Whether OTLP says to try again.
fn is_passing(why: &Status) -> bool {
    use Code::{Aborted, Cancelled, DataLoss, DeadlineExceeded, OutOfRange, ResourceExhausted, Unavailable};
    match why.code() {
        Cancelled | DeadlineExceeded | Aborted | OutOfRange | Unavailable | DataLoss => true,
        // Only where it says when it may have room again.
        ResourceExhausted => !why.details().is_empty(),
        _ => false,
    }
}

/// The first field of each message above the spans is a message.
fn first_field(message: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(message.len() + 4);
    wire::bytes(&mut out, FIRST, message);
    out.into()
}

const FIRST: u8 = 1 << 3 | 2;
const SECOND: u8 = 2 << 3 | 2;

/// One `ExportTraceServiceRequest`: of one resource, all by one scope.
struct Message {
    resource: Bytes,
    scope: Bytes,
    spans: Arc<Vec<u8>>,
}

/// Messages that are ready out, OTLP's answer in.
struct Ready;

impl Codec for Ready {
    type Encode = Message;
    type Decode = ExportTraceServiceResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Ready {
    type Item = Message;
    type Error = Status;

    fn encode(&mut self, message: Message, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let Message { resource, scope, spans } = message;
        let mut head = Vec::with_capacity(24 + resource.len() + scope.len());
        let in_scope = scope.len() + spans.len();
        let in_resource = resource.len() + 1 + wire::number_length(in_scope as u64) + in_scope;
        head.push(FIRST);
        wire::number(&mut head, in_resource as u64);
        head.extend_from_slice(&resource);
        head.push(SECOND);
        wire::number(&mut head, in_scope as u64);
        head.extend_from_slice(&scope);
        out.reserve(head.len() + spans.len());
        out.put_slice(&head);
        out.put_slice(&spans);
        Ok(())
    }
}

impl Decoder for Ready {
    type Item = ExportTraceServiceResponse;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let answer = ExportTraceServiceResponse::decode(input);
        answer.map(Some).map_err(|error| Status::internal(format!("the answer is no OTLP: {error}")))
    }
}
