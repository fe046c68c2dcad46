//! OTLP by gRPC.

use std::time::Duration;

use bytes::BufMut as _;
use http::HeaderMap;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::super::settings::Signal;
use super::dial::Dial;
use super::{AGENT, Failed, Message, Taken};

/// A connection to the collector: made when it is needed, and again when it broke.
pub(super) struct Way {
    client: Grpc<Channel>,
    headers: MetadataMap,
    method: PathAndQuery,
}

impl Way {
    pub fn new(signal: Signal, dial: Dial, headers: HeaderMap, limit: Duration) -> Result<Self, String> {
        let unusable = |why: tonic::transport::Error| format!("the endpoint cannot be used: {why}");
        // What is above TLS needs not know of it.
        let endpoint = Endpoint::from_shared(format!("http://{}", dial.authority)).map_err(unusable)?;
        let connect = tower::service_fn(move |_| {
            let dial = dial.clone();
            async move { dial.connect().await.map(TokioIo::new) }
        });
        let channel = endpoint
            .user_agent(AGENT)
            .map_err(unusable)?
            .connect_timeout(limit)
            .connect_with_connector_lazy(connect);
        let method = match signal {
            Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Signal::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        };
        Ok(Self {
            client: Grpc::new(channel),
            headers: MetadataMap::from_headers(headers),
            method: PathAndQuery::from_static(method),
        })
    }

    pub async fn send(&mut self, message: Message) -> Result<usize, Failed> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.headers.clone();
        self.client.ready().await.map_err(|error| Failed::passing(Cause(&error)))?;
        match self.client.unary(request, self.method.clone(), Ready).await {
            Ok(answer) => Ok(answer.into_inner().refused()),
            Err(status) => {
                Err(Failed { why: told(&status), passing: is_passing(&status), after: Duration::ZERO })
            }
        }
    }
}

/// What is in an error besides its first line: a connection that cannot be made says why further down.
struct Cause<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            write!(f, ": {cause}")?;
            next = cause.source();
        }
        Ok(())
    }
}

fn told(status: &Status) -> String {
    match std::error::Error::source(status) {
        Some(cause) => format!("{}: {}", status.code(), Cause(cause)),
        None => format!("{}: {}", status.code(), status.message()),
    }
}

/// Whether OTLP says to try again. What has a cause was not said by the collector: the connection broke.
fn is_passing(why: &Status) -> bool {
    if std::error::Error::source(why).is_some() {
        return true;
    }
    use Code::{Aborted, Cancelled, DataLoss, DeadlineExceeded, OutOfRange, ResourceExhausted, Unavailable};
    match why.code() {
        Cancelled | DeadlineExceeded | Aborted | OutOfRange | Unavailable | DataLoss => true,
        // Only where it says when it may have room again.
        ResourceExhausted => !why.details().is_empty(),
        _ => false,
    }
}

/// Messages that are ready out, OTLP's answer in.
struct Ready;

impl Codec for Ready {
    type Encode = Message;
    type Decode = Taken;
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
        let head = message.head();
        out.reserve(head.len() + message.items.len());
        out.put_slice(&head);
        out.put_slice(&message.items);
        Ok(())
    }
}

impl Decoder for Ready {
    type Item = Taken;
    type Error = Status;

    fn decode(&mut self, input: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let answer = Taken::decode(input);
        answer.map(Some).map_err(|error| Status::internal(format!("the answer is no OTLP: {error}")))
    }
}
