//! OTLP by gRPC. A message is two pieces of memory, and leaves as they are: a codec would copy a batch of a megabyte into new memory each time.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream;
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body_util::{BodyExt as _, Limited, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use tower::{Service as _, ServiceExt as _};

use super::super::settings::Signal;
use super::dial::Dial;
use super::{AGENT, ANSWER, Failed, Message, Taken};

/// A connection to the collector: made when it is needed, and again when it broke or left a batch without an answer, as one to a machine that is
/// gone does for a quarter of an hour.
pub(super) struct Way {
    dial: Dial,
    endpoint: Endpoint,
    channel: Option<Channel>,
    headers: HeaderMap,
    method: &'static str,
}

impl Way {
    pub fn new(signal: Signal, dial: Dial, mut headers: HeaderMap, limit: Duration) -> Result<Self, String> {
        let unusable = |why: tonic::transport::Error| format!("the endpoint cannot be used: {why}");
        // What is above TLS needs not know of it.
        let endpoint = Endpoint::from_shared(format!("http://{}", dial.authority)).map_err(unusable)?;
        let endpoint = endpoint.user_agent(AGENT).map_err(unusable)?.connect_timeout(limit);
        let method = match signal {
            Signal::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Signal::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        };
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(TE, HeaderValue::from_static("trailers"));
        Ok(Self { dial, endpoint, channel: None, headers, method })
    }

    fn open(&self) -> Channel {
        let dial = self.dial.clone();
        let connect = tower::service_fn(move |_| {
            let dial = dial.clone();
            async move { dial.connect().await.map(TokioIo::new) }
        });
        self.endpoint.connect_with_connector_lazy(connect)
    }

    pub async fn send(&mut self, message: Message) -> Result<usize, Failed> {
        let mut request = Request::new(body(&message));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static(self.method);
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers.clone();
        let mut channel = self.channel.take().unwrap_or_else(|| self.open());
        let ready = channel.ready().await.map_err(|error| Failed::passing(Cause(&error)))?;
        let answer = ready.call(request).await.map_err(|error| Failed::passing(Cause(&error)))?;
        let taken = taken(answer).await;
        self.channel = Some(channel);
        match taken {
            Ok(taken) => Ok(taken.refused()),
            Err(status) => {
                let after = room_again(&status);
                let passing = is_passing(&status, after);
                Err(Failed { why: told(&status), passing, after: after.unwrap_or_default() })
            }
        }
    }
}

/// A message that is not compressed, with its length.
fn body(message: &Message) -> Body {
    struct Items(Arc<Vec<u8>>);

    impl AsRef<[u8]> for Items {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    let (head, items) = (message.head(), Bytes::from_owner(Items(message.items.clone())));
    let mut first = BytesMut::with_capacity(5 + head.len());
    first.put_u8(0);
    // Batches have two megabytes at most.
    first.put_u32((head.len() + items.len()) as u32);
    first.put_slice(&head);
    let frames = [first.freeze(), items].map(|piece| Ok::<_, Status>(Frame::data(piece)));
    Body::new(StreamBody::new(stream::iter(frames)))
}

/// What the collector answers.
async fn taken(answer: Response<Body>) -> Result<Taken, Status> {
    let (head, body) = answer.into_parts();
    if let Some(status) = Status::from_header_map(&head.headers).filter(|status| status.code() != Code::Ok) {
        return Err(status);
    }
    if !head.status.is_success() {
        let code = match head.status.as_u16() {
            429 | 502 | 503 | 504 => Code::Unavailable,
            _ => Code::Unknown,
        };
        return Err(Status::new(code, format!("HTTP status {}", head.status)));
    }
    let whole = Limited::new(body, ANSWER).collect().await;
    let whole = whole.map_err(|error| Status::unavailable(error.to_string()))?;
    let status = whole.trailers().or(Some(&head.headers)).and_then(Status::from_header_map);
    match status {
        Some(status) if status.code() == Code::Ok => {}
        Some(status) => return Err(status),
        None => return Err(Status::internal("the answer has no status")),
    }
    let bytes = whole.to_bytes();
    let message = bytes.get(5..).filter(|_| bytes[0] == 0);
    let message = message.ok_or_else(|| Status::internal("the answer is no message that we know"))?;
    Taken::decode(message).map_err(|error| Status::internal(format!("the answer is no OTLP: {error}")))
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
fn is_passing(why: &Status, room_again: Option<Duration>) -> bool {
    if std::error::Error::source(why).is_some() {
        return true;
    }
    use Code::{Aborted, Cancelled, DataLoss, DeadlineExceeded, OutOfRange, ResourceExhausted, Unavailable};
    match why.code() {
        Cancelled | DeadlineExceeded | Aborted | OutOfRange | Unavailable | DataLoss => true,
        // Only where it says when it may have room again.
        ResourceExhausted => room_again.is_some(),
        _ => false,
    }
}

/// When the collector may have room again, where it says so: `google.rpc.RetryInfo`, among the details of its status.
fn room_again(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}
