//! gRPC for clients: `CallService`, and everything that is served beside it on the port.

mod operated;
mod stream;

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use hyper::body::Incoming;
use prost::Message;
use stoker_core::error::{Code, Error};
use stoker_core::ids::CallId;
use stoker_proto::frames::{self, Decoded, Encoded, Invoked, Whole};
use stoker_proto::{DESCRIPTORS, MAX_MESSAGE, status, v1};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::metadata::MetadataValue;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tower::Service as _;

use self::operated::{FLEET, FUNCTIONS, Operated};
use super::http::fields;
use super::until::Until;
use super::{Front, Health, later, session, trace};
use crate::auth::{Caller, Origin};
use crate::call::{Input, Pieces, Trailers};
use crate::observe::{Door, Watch};

/// Where a status says which of the function's revisions a call came to; an answer has a field for it.
const REVISION: &str = "stoker-revision";

/// Room for a head beside a body of the largest size.
pub(super) const MESSAGE: usize = MAX_MESSAGE + (256 << 10);

/// All that is served on this port.
const SERVED: [&str; 6] = [
    "stoker.v1.CallService",
    "stoker.v1.FunctionService",
    "stoker.v1.FleetService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// The gRPC services that are not ours.
fn routes(stop: CancellationToken, health: &Health) -> anyhow::Result<Routes> {
    let reflection = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        // The descriptors have what runners serve as well.
        SERVED.into_iter().fold(builder, |builder, service| builder.with_service_name(service))
    };
    let mut routes = Routes::builder();
    routes
        .add_service(Until { service: HealthServer::new(health.service()), stop: stop.clone() })
        .add_service(Until { service: reflection().build_v1()?, stop: stop.clone() })
        .add_service(Until { service: reflection().build_v1alpha()?, stop });
    Ok(routes.routes().prepare())
}

/// The services as what a connection wants.
#[derive(Clone)]
pub struct Served {
    routes: Routes,
    front: Arc<Front>,
    operated: Arc<Operated>,
    origin: Arc<Origin>,
}

impl Served {
    /// For connections whose origin is none yet.
    ///
    /// # Errors
    /// What is said of the services cannot be read.
    pub fn new(front: Arc<Front>, health: &Health) -> anyhow::Result<Self> {
        let routes = routes(front.stopping.clone(), health)?;
        let operated = Arc::new(Operated::new(front.clone()));
        Ok(Self { routes, front, operated, origin: Arc::default() })
    }

    /// For a connection from there.
    #[must_use]
    pub fn to(&self, origin: Arc<Origin>) -> Self {
        Self { origin, ..self.clone() }
    }
}

/// Whether a path is one that everybody may ask for: it says nothing of functions, nor of who is there.
fn is_open(path: &str) -> bool {
    path.starts_with("/grpc.health.v1.") || path.starts_with("/grpc.reflection.")
}

impl hyper::service::Service<Request<Incoming>> for Served {
    type Response = Response<Sent>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Sent>, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        if let Some(refused) = &self.origin.refused {
            let answer = status::to_status(refused, "").into_http();
            return Box::pin(async move { Ok(answer) });
        }
        let front = self.front.clone();
        let path = request.uri().path();
        if front.guard.is_open() || is_open(path) {
            let counted = front.guard.counted(&self.origin);
            counted.map(|caller| request.extensions_mut().insert(caller));
            let path = request.uri().path();
            if path.starts_with(CALLS) {
                return Box::pin(async move { Ok(answer(front, request).await) });
            }
            return Box::pin(routed(self.routes.clone(), self.operated.clone(), request));
        }
        let this = self.clone();
        Box::pin(async move {
            match front.guard.identify(request.headers_mut(), &this.origin).await {
                Ok(caller) => {
                    request.extensions_mut().insert(caller);
                    match request.uri().path().starts_with(CALLS) {
                        true => Ok(answer(front, request).await),
                        false => routed(this.routes, this.operated, request).await,
                    }
                }
                Err(error) => Ok(status::to_status(&error, "").into_http()),
            }
        })
    }
}

/// One request for what is not a method of `CallService`.
async fn routed(
    mut routes: Routes,
    operated: Arc<Operated>,
    request: Request<Incoming>,
) -> Result<Response<Sent>, Infallible> {
    let path = request.uri().path();
    if path.starts_with(FUNCTIONS) || path.starts_with(FLEET) {
        if !is_grpc(request.headers()) {
            return Ok(no_grpc());
        }
        let answer = async move { operated.answer(request).await.map(Sent::Other) };
        return Ok(told(Box::pin(answer).await));
    }
    let service = path.split('/').nth(1).unwrap_or_default();
    if !SERVED.contains(&service) {
        let service: String = service.chars().take(100).collect();
        return Ok(Status::unimplemented(format!("there is no service {service:?} here")).into_http());
    }
    Ok(routes.call(request).await?.map(Sent::Other))
}

/// The path of each method of `CallService`. It is served by hand, and in front of the router: the generated service would copy each body
/// twice on its way in and twice on its way out, and the router puts boxes around what every call sends and gets.
const CALLS: &str = "/stoker.v1.CallService/";

/// What goes back to a client.
pub enum Sent {
    Whole(Whole),
    Session(Encoded<session::Frames>),
    Other(Body),
}

impl Default for Sent {
    fn default() -> Self {
        Self::Other(Body::empty())
    }
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match &mut *self {
            Self::Whole(body) => Pin::new(body).poll_frame(cx),
            Self::Session(body) => Pin::new(body).poll_frame(cx),
            Self::Other(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Session(body) => body.is_end_stream(),
            Self::Other(body) => body.is_end_stream(),
        }
    }
}

/// The type of every request and answer.
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// `grpc-timeout`, if the client set one.
///
/// # Errors
/// Text that is none.
pub fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let wrong =
        || Error::new(Code::InvalidRequest, "grpc-timeout is not up to 8 digits and one of H, M, S, m, u, n");
    let text = value.to_str().map_err(|_| wrong())?;
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let n: u64 = digits.parse().map_err(|_| wrong())?;
    Ok(Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return Err(wrong()),
    }))
}

/// Whether a request is one of gRPC.
fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(GRPC.as_bytes()))
}

/// The answer to one that is not.
fn no_grpc() -> Response<Sent> {
    let mut wrong = Response::new(Sent::default());
    *wrong.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    wrong
}

fn no_method(service: &str, method: &str) -> Status {
    let method: String = method.chars().take(100).collect();
    Status::unimplemented(format!("there is no method {method:?} in {service}"))
}

/// An answer, or what is said in place of one.
fn told(answered: Result<Sent, Status>) -> Response<Sent> {
    match answered {
        Ok(body) => {
            let mut response = Response::new(body);
            response.headers_mut().insert(CONTENT_TYPE, GRPC);
            response
        }
        Err(status) => status.into_http(),
    }
}

/// The one message of a request.
///
/// # Errors
/// There is none, or it is nothing that could be understood.
pub(super) async fn message<M: Message + Default>(body: Incoming, most: usize) -> Result<M, Error> {
    match Decoded::request(body, most).message().await {
        Ok(Some(message)) => Ok(message),
        Ok(None) => Err(Error::new(Code::InvalidRequest, "there is no message")),
        Err(status) => Err(misread(&status)),
    }
}

/// One request for a method of `CallService`.
async fn answer(front: Arc<Front>, request: Request<Incoming>) -> Response<Sent> {
    if !is_grpc(request.headers()) {
        return no_grpc();
    }
    let (parts, body) = request.into_parts();
    let caller = Caller::of(&parts.extensions);
    let method = &parts.uri.path()[CALLS.len()..];
    let answered = match method {
        "Invoke" => invoke(&front, caller, &parts.headers, body).await.map(Sent::Whole),
        "InvokeStream" => {
            let frames = stream::invoke_stream(&front, caller, &parts.headers, body).await;
            frames.map(|frames| Sent::Other(Body::new(frames)))
        }
        "Session" => {
            let frames = session::open(front, caller, Decoded::request(body, MESSAGE));
            Ok(Sent::Session(Encoded::answer(frames)))
        }
        "Submit" | "GetCall" | "WaitCall" | "CancelCall" | "RedriveCall" | "ListCalls" => {
            Box::pin(later::answer(&front, Request::from_parts(parts, body))).await.map(Sent::Other)
        }
        _ => Err(no_method(CALLS, method)),
    };
    told(answered)
}

async fn invoke(front: &Front, caller: Caller, headers: &HeaderMap, body: Incoming) -> Result<Whole, Status> {
    let invoked = frames::invoke_request(body, MESSAGE).await.map_err(|status| unread(&status))?;
    let id = CallId::new();
    let mut watch = front.observer.grpc(Door::Invoke, id, &trace(headers));
    watch.by(caller);
    let answer = {
        let call = pin!(invoke_one(front, id, headers, invoked, &mut watch));
        front.dispatch.fleet.panics.call(call).await
    };
    let revision = watch.revision();
    watch.end(answer.as_ref().map(|_| ()));
    answer.map_err(|error| failed(&error, id, revision))
}

/// Why the rest of a body does not come.
fn broken(status: &Status) -> Error {
    Error::new(Code::Cancelled, format!("the request's body broke off: {}", status.message()))
}

/// Why a request could not be read, with what a client can make of it.
fn unread(status: &Status) -> Status {
    let mut error = misread(status);
    if error.code == Code::RequestTooLarge {
        error.message.push_str(": InvokeStream, Session and HTTP take bodies in pieces");
    }
    refused(&error, "")
}

/// Why a message of a client could not be read: what it did wrong, or what became of its stream.
pub(super) fn misread(status: &Status) -> Error {
    match status.code() {
        tonic::Code::OutOfRange => Error::new(Code::RequestTooLarge, status.message()),
        // It is compressed.
        tonic::Code::Unimplemented => Error::new(Code::Unsupported, status.message()),
        _ => status::from_status(status),
    }
}

/// An error as a client is told it.
pub(super) fn refused(error: &Error, call_id: &str) -> Status {
    let mut status = status::to_status(error, call_id);
    if error.code == Code::Unsupported {
        // So gRPC has it said what is spoken instead.
        status.metadata_mut().insert("grpc-accept-encoding", MetadataValue::from_static("identity"));
    }
    status
}

/// Why a call has no result, and which revision it came to.
fn failed(error: &Error, id: CallId, revision: Option<u64>) -> Status {
    let mut status = refused(error, &id.to_string());
    if let Some(revision) = revision {
        status.metadata_mut().insert(REVISION, revision.into());
    }
    status
}

async fn invoke_one(
    front: &Front,
    id: CallId,
    headers: &HeaderMap,
    invoked: Invoked<Incoming>,
    watch: &mut Watch,
) -> Result<Whole, Error> {
    let Invoked { call: message, length, begun, rest } = invoked;
    let function = front.named(&message.function)?;
    if length > MAX_MESSAGE {
        let text =
            format!("the body has {length} bytes, at most {MAX_MESSAGE} go with Invoke: use InvokeStream");
        return Err(Error::new(Code::RequestTooLarge, text));
    }
    let rest =
        rest.map(|rest| -> Pieces { Box::pin(rest.map(|piece| piece.map_err(|status| broken(&status)))) });
    let mut input = Input::pieces(begun, rest).of_length(Some(length as u64));
    if !message.trailers.is_empty() && fields::is_followed(function.spec.format) {
        let behind = Trailers::default();
        behind.came(fields::said_behind(message.trailers)?);
        input = input.followed_by(Some(behind));
    }
    let call = front.admit(id, function, message.head.unwrap_or_default(), timeout(headers)?, watch)?;
    front.dispatch.fits(&call.function.spec, length as u64)?;
    let revision = call.function.revision;
    let mut answer = front.dispatch.call(call, input, watch).await?;
    let mut end = answer.end;
    let mut length = answer.first.len();
    let mut body = vec![answer.first];
    let mut fits = |more: usize| {
        length += more;
        if length <= MAX_MESSAGE {
            return Ok(());
        }
        let text = format!("the answer has more than {MAX_MESSAGE} bytes: use InvokeStream for it");
        Err(Error::new(Code::ResponseTooLarge, text).may_have_started())
    };
    fits(0)?;
    if let Some(mut rest) = answer.rest.take() {
        while let Some(piece) = rest.next().await {
            let piece = piece?;
            fits(piece.len())?;
            body.push(piece);
        }
        end = rest.end();
    }
    let answer = v1::InvokeResponse {
        call_id: id.to_string(),
        head: Some(answer.head),
        body: Bytes::new(),
        timings: end.timings,
        runner: end.runner,
        revision,
        trailers: end.trailers,
    };
    Ok(Whole::answer(answer, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().expect("a header value"));
            timeout(&headers).map_err(|error| error.code)
        };
        assert_eq!(timeout(&HeaderMap::new()), Ok(None));
        assert_eq!(read("250m"), Ok(Some(Duration::from_millis(250))));
        assert_eq!(read("99999999H"), Ok(Some(Duration::from_secs(99_999_999 * 3600))));
        for wrong in ["", "m", "5", "-5m", "123456789S", "5x", "5 m"] {
            assert_eq!(read(wrong), Err(Code::InvalidRequest), "{wrong:?}");
        }
    }
}
