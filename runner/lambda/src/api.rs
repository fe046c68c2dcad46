//! The HTTP side: paths, methods, headers and texts of the Runtime API; [`extension`] has those of the others.

mod extension;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use stoker_core::machine::Machine as _;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::extensions::Refusal;
use crate::fault::{self, CAUSE_TYPE, Cause};
use crate::machine::{Event, State};
use crate::telemetry::{self, Api};
use crate::{Failure, MAX_ERROR, MAX_PAYLOAD, Measured, Said, Shared};

const BASE: &str = "/2018-06-01";
/// Connections of one container at once: runtimes use one, extensions some.
const CONNECTIONS: usize = 64;
/// Bytes of the head of one request, and of its trailers: Python's client sends the cause of an error as a header of up to 1 MiB.
const MAX_HEAD: usize = 1280 * 1024;
/// Of an upload that is refused, this much is read all the same, so that a runtime comes to read its refusal.
const DRAINED: usize = 64 * 1024 * 1024;
/// Longest [`crate::RuntimeApi::release`].
const RELEASE: usize = 128;

const MODE: &str = "lambda-runtime-function-response-mode";
const ERROR_TYPE: &str = "lambda-runtime-function-error-type";
const ERROR_BODY: &str = "lambda-runtime-function-error-body";
const CAUSE: &str = "lambda-runtime-function-xray-error-cause";
const FEATURES: &str = "lambda-runtime-features";

type Reply = Response<Full<Bytes>>;

/// Accepts until it is stopped; then every connection ends where it is.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < CONNECTIONS => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of a runtime");
                // Descriptors are short: whoever holds some must come to run first.
                tokio::task::yield_now().await;
                continue;
            }
        };
        // Small answers at once; that it fails costs time only.
        _ = stream.set_nodelay(true);
        let shared = shared.clone();
        shared.lock().connections += 1;
        connections.spawn(async move {
            let service = service_fn(|request| {
                let shared = shared.clone();
                async move { Ok::<_, Infallible>(answer(&shared, request).await) }
            });
            // What breaks here is the runtime's connection, and its own business.
            _ = hyper::server::conn::http1::Builder::new()
                .max_buf_size(MAX_HEAD)
                .max_header_size(MAX_HEAD)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            shared.lock().connections -= 1;
            shared.changed.notify_waiters();
        });
    }
}

/// What a path asks for.
enum Asked<'a> {
    Ping,
    Next,
    Response(&'a str),
    Error(&'a str),
    InitError,
    Extension(extension::Asked),
}

fn asked(path: &str) -> Option<(Method, Asked<'_>)> {
    let Some(rest) = path.strip_prefix(BASE) else {
        return extension::asked(path).map(|(method, asked)| (method, Asked::Extension(asked)));
    };
    Some(match rest {
        "/ping" => (Method::GET, Asked::Ping),
        "/runtime/invocation/next" => (Method::GET, Asked::Next),
        "/runtime/init/error" => (Method::POST, Asked::InitError),
        _ => {
            let (id, what) = rest.strip_prefix("/runtime/invocation/")?.split_once('/')?;
            match what {
                "response" => (Method::POST, Asked::Response(id)),
                "error" => (Method::POST, Asked::Error(id)),
                _ => return None,
            }
        }
    })
}

async fn answer(shared: &Shared, request: Request<Incoming>) -> Reply {
    remember_release(shared, request.headers());
    let path = request.uri().path().to_owned();
    let Some((method, asked)) = asked(&path) else {
        return text(StatusCode::NOT_FOUND, "404 page not found\n");
    };
    if method != request.method() {
        return text(StatusCode::METHOD_NOT_ALLOWED, "");
    }
    let (head, mut body) = request.into_parts();
    let done = match asked {
        Asked::Ping => return text(StatusCode::OK, "pong"),
        Asked::Next => return next(shared).await.unwrap_or_else(Problem::into_reply),
        Asked::Response(id) => response(shared, id, &head.headers, &mut body).await,
        Asked::Error(id) => error(shared, id, &head.headers, &mut body).await,
        Asked::InitError => init_error(shared, &head.headers, &mut body).await,
        Asked::Extension(asked) => match extension::answer(shared, asked, &head.headers, &mut body).await {
            Ok(reply) => return reply,
            Err(problem) => Err(problem),
        },
    };
    match done {
        Ok(()) => accepted(),
        Err(problem) => {
            // A connection with an unread upload on it would be closed, and the refusal perhaps never be read.
            drain(&mut body).await;
            problem.into_reply()
        }
    }
}

/// A refusal, in AWS's words.
enum Problem {
    State(State, Event),
    RequestId,
    Mode,
    Truncated,
    TooLarge(usize),
    Extension(Refusal),
    Subscription(telemetry::Refused),
}

impl Problem {
    fn into_reply(self) -> Reply {
        let (status, kind, message) = match self {
            Problem::State(from, event) => {
                let to = match event {
                    Event::Next => State::Ready,
                    Event::Handed => State::Running,
                    Event::Response => State::InvocationResponse,
                    Event::Error => State::InvocationErrorResponse,
                    Event::Sent => State::ResponseSent,
                    Event::InitError => State::InitError,
                };
                let text = format!(
                    "State transition from {} to {} failed for runtime. Error: State transition is not allowed",
                    from.name(),
                    to.name()
                );
                (StatusCode::FORBIDDEN, "InvalidStateTransition", text)
            }
            Problem::RequestId => {
                (StatusCode::BAD_REQUEST, "InvalidRequestID", "Invalid request ID".to_owned())
            }
            Problem::Mode => (
                StatusCode::BAD_REQUEST,
                "InvalidFunctionResponseMode",
                "Invalid function response mode".to_owned(),
            ),
            Problem::Truncated => (
                StatusCode::BAD_REQUEST,
                "TruncatedHTTPRequest",
                "HTTP request detected as truncated".to_owned(),
            ),
            Problem::TooLarge(most) => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "RequestEntityTooLarge",
                format!("Exceeded maximum allowed payload size ({most} bytes)."),
            ),
            Problem::Extension(refusal) => (StatusCode::FORBIDDEN, refusal.kind, refusal.message),
            Problem::Subscription(telemetry::Refused::Invalid(why)) => {
                (StatusCode::BAD_REQUEST, "ValidationError", why)
            }
            Problem::Subscription(telemetry::Refused::Closed(Api::Telemetry)) => (
                StatusCode::FORBIDDEN,
                "Telemetry.SubscriptionClosed",
                "Telemetry API subscription is closed already".to_owned(),
            ),
            Problem::Subscription(telemetry::Refused::Closed(Api::Logs)) => (
                StatusCode::FORBIDDEN,
                "Logs.SubscriptionClosed",
                "Logs API subscription is closed already".to_owned(),
            ),
        };
        let body = serde_json::json!({ "errorMessage": message, "errorType": kind });
        json(status, format!("{body}\n"))
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Problem::Extension(refusal)
    }
}

impl From<(State, Event)> for Problem {
    fn from((state, event): (State, Event)) -> Self {
        Problem::State(state, event)
    }
}

/// Waits for an invocation. A runtime that goes away while it waits takes nothing along: work leaves the shelf in the
/// moment in which it is written.
async fn next(shared: &Shared) -> Result<Reply, Problem> {
    shared.on(Event::Next)?;
    let mut fresh = false;
    let found = shared
        .until(|inner| {
            if inner.state == State::Ready
                && let Some(mut work) = inner.pending.take()
            {
                work.handed = Some(Instant::now());
                (inner.state, inner.current, fresh) = (State::Running, Some(work), true);
            }
            match inner.state {
                // The same again, for one that has lost it.
                State::Running => inner.current.as_ref().map(|w| Ok((w.headers.clone(), w.payload.clone()))),
                State::Ready => None,
                other => Some(Err((other, Event::Handed))),
            }
        })
        .await;
    let (headers, payload) = found?;
    if fresh {
        shared.handed();
    }
    shared.changed.notify_waiters();
    let mut reply = Response::new(Full::new(payload));
    *reply.headers_mut() = headers;
    Ok(reply)
}

/// The current invocation begins to be answered: whom to tell.
fn begin(shared: &Shared, id: &str, event: Event) -> Result<mpsc::Sender<Said>, Problem> {
    let mut inner = shared.lock();
    let say = match &inner.current {
        Some(work) if work.id == id && !id.is_empty() => work.say.clone(),
        _ => return Err(Problem::RequestId),
    };
    inner.state = inner.state.on(event).map_err(|_| (inner.state, event))?;
    Ok(say)
}

async fn response(
    shared: &Shared,
    id: &str,
    headers: &HeaderMap,
    body: &mut Incoming,
) -> Result<(), Problem> {
    let say = begin(shared, id, Event::Response)?;
    let mut measured = Measured { first: Instant::now(), bytes: 0 };
    let content_type = header(headers, "content-type");
    let streams = match headers.get(MODE).map(http::HeaderValue::as_bytes) {
        None | Some(b"") => false,
        Some(b"streaming") => true,
        Some(_) => {
            let failure = Failure::broken("Runtime.InvalidResponseModeHeader", Bytes::new());
            tell(shared, &say, Said::Failed(failure), None).await;
            return Err(Problem::Mode);
        }
    };
    let (last, done) = match streams {
        true => pass_on(&say, content_type, body, &mut measured).await,
        false => match whole(body, MAX_PAYLOAD).await {
            Ok(payload) => {
                measured.bytes = payload.len();
                _ = say.send(Said::Head { content_type, streams }).await;
                if !payload.is_empty() {
                    _ = say.send(Said::Piece(payload)).await;
                }
                (Said::End, Ok(()))
            }
            Err(Problem::TooLarge(most)) => {
                let message =
                    format!("Response payload size exceeded maximum allowed payload size ({most} bytes).");
                let text = serde_json::json!({ "errorMessage": message, "errorType": "Function.ResponseSizeTooLarge" });
                let failure = Failure::new("Function.ResponseSizeTooLarge", text.to_string().into());
                (Said::Failed(failure), Err(Problem::TooLarge(most)))
            }
            Err(problem) => {
                let text = fault::body("Runtime.TruncatedResponse", id, "The runtime's response was cut off");
                (Said::Failed(Failure::broken("Runtime.TruncatedResponse", text.into())), Err(problem))
            }
        },
    };
    tell(shared, &say, last, Some(measured)).await;
    shared.on(Event::Sent)?;
    done
}

/// The last word on an invocation. Nobody listens any more when sending fails: the container is about to be ended, and what it gets to
/// hear matters little.
async fn tell(shared: &Shared, say: &mpsc::Sender<Said>, last: Said, measured: Option<Measured>) {
    shared.runtime_done(&last, measured);
    _ = say.send(last).await;
}

/// An answer that comes as it is made. Gives its end.
async fn pass_on(
    say: &mpsc::Sender<Said>,
    content_type: Option<String>,
    body: &mut Incoming,
    measured: &mut Measured,
) -> (Said, Result<(), Problem>) {
    _ = say.send(Said::Head { content_type, streams: true }).await;
    let mut trailers = HeaderMap::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            let failure = Failure::broken("Runtime.TruncatedResponse", Bytes::new());
            return (Said::Failed(failure), Err(Problem::Truncated));
        };
        match frame.into_data() {
            Ok(piece) if piece.is_empty() => {}
            Ok(piece) => {
                measured.bytes += piece.len();
                _ = say.send(Said::Piece(piece)).await;
            }
            Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
        }
    }
    let last = match trailers.get(ERROR_TYPE) {
        None => Said::End,
        Some(kind) => {
            let kind = fault::scrub(kind.to_str().unwrap_or_default());
            let text = trailers.get(ERROR_BODY).map(|text| STANDARD.decode(text)).and_then(Result::ok);
            Said::Failed(Failure::new(kind, text.unwrap_or_default().into()))
        }
    };
    (last, Ok(()))
}

async fn error(shared: &Shared, id: &str, headers: &HeaderMap, body: &mut Incoming) -> Result<(), Problem> {
    let say = begin(shared, id, Event::Error)?;
    let (failure, done) = match failure(headers, body).await {
        Ok(failure) => (failure, Ok(())),
        Err(problem @ Problem::TooLarge(_)) => {
            let text = fault::body(
                "Function.ResponseSizeTooLarge",
                id,
                "The error that the function reported is too large",
            );
            (Failure::new("Function.ResponseSizeTooLarge", text.into()), Err(problem))
        }
        Err(problem) => (Failure::broken("Runtime.TruncatedResponse", Bytes::new()), Err(problem)),
    };
    tell(shared, &say, Said::Failed(failure), None).await;
    shared.on(Event::Sent)?;
    done
}

async fn init_error(shared: &Shared, headers: &HeaderMap, body: &mut Incoming) -> Result<(), Problem> {
    let state = shared.lock().state;
    state.on(Event::InitError).map_err(|_| (state, Event::InitError))?;
    let mut failure = failure(headers, body).await?;
    failure.content_type = match serde_json::from_slice::<serde::de::IgnoredAny>(&failure.payload) {
        Ok(_) => "application/json".to_owned(),
        Err(_) => "application/octet-stream".to_owned(),
    };
    let mut inner = shared.lock();
    inner.state = inner.state.on(Event::InitError).map_err(|_| (inner.state, Event::InitError))?;
    inner.init_error = Some(failure);
    drop(inner);
    shared.changed.notify_waiters();
    Ok(())
}

/// What a runtime reports as an error.
async fn failure(headers: &HeaderMap, body: &mut Incoming) -> Result<Failure, Problem> {
    let payload = whole(body, MAX_ERROR).await?;
    let said = headers.get(ERROR_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let content_type = header(headers, "content-type").unwrap_or_else(|| "application/json".to_owned());
    let mut failure = Failure { content_type, ..Failure::new(fault::scrub(said), payload) };
    let cause = headers.get(CAUSE).and_then(|cause| Cause::read(cause.as_bytes()));
    failure.cause = cause.as_ref().map(Cause::write);
    if failure.content_type == CAUSE_TYPE {
        match fault::split(&failure.payload) {
            Some((body, cause)) => {
                failure.payload = body.into();
                failure.cause = cause.as_ref().map(Cause::write);
                failure.content_type = "application/json".to_owned();
            }
            None => {
                failure.payload = Bytes::from_static(b"\"Invalid error body\"");
                failure.content_type = "application/octet-stream".to_owned();
            }
        }
    }
    Ok(failure)
}

impl Failure {
    fn new(kind: &str, payload: Bytes) -> Self {
        let content_type = "application/json".to_owned();
        Self { kind: kind.to_owned(), payload, content_type, cause: None, broken: false }
    }

    fn broken(kind: &str, payload: Bytes) -> Self {
        Self { broken: true, ..Self::new(kind, payload) }
    }
}

/// A body that is kept as a whole.
async fn whole(body: &mut Incoming, most: usize) -> Result<Bytes, Problem> {
    let mut first = None;
    let mut more = BytesMut::new();
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(|_| Problem::Truncated)?.into_data() else { continue };
        size += piece.len();
        if size > most {
            return Err(Problem::TooLarge(most));
        } else if first.is_none() && more.is_empty() {
            // Small ones come in one piece, and are passed on as that.
            first = Some(piece);
        } else {
            if let Some(first) = first.take() {
                more.extend_from_slice(&first);
            }
            more.extend_from_slice(&piece);
        }
    }
    Ok(first.unwrap_or_else(|| more.freeze()))
}

/// Reads what is left of an upload and forgets it, up to a bound.
async fn drain(body: &mut Incoming) {
    let mut size = 0;
    while let Some(Ok(frame)) = body.frame().await {
        size += frame.data_ref().map_or(0, Bytes::len);
        if size > DRAINED {
            return;
        }
    }
}

fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?;
    Some(value.to_owned()).filter(|value| !value.is_empty())
}

fn remember_release(shared: &Shared, headers: &HeaderMap) {
    let mut inner = shared.lock();
    if inner.release.is_some() {
        return;
    }
    let agent = header(headers, "user-agent").unwrap_or_default();
    let Some(first) = agent.split_whitespace().next() else { return };
    let mut release = first.to_owned();
    if let Some(features) = header(headers, FEATURES) {
        release = format!("{release} ({})", features.replace(['(', ')'], ""));
    }
    release.truncate(release.floor_char_boundary(RELEASE));
    inner.release = Some(release);
}

fn accepted() -> Reply {
    json(StatusCode::ACCEPTED, "{\"status\":\"OK\"}\n".into())
}

fn text(status: StatusCode, body: &'static str) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *reply.status_mut() = status;
    if !body.is_empty() {
        let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
        reply.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    }
    reply
}

fn json(status: StatusCode, body: String) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    let kind = http::HeaderValue::from_static("application/json");
    reply.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    reply
}
