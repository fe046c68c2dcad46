//! The HTTP side: paths, methods, headers and texts of the Runtime API; [`extension`] has those of the others.

mod answer;
mod extension;

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Kind;
use crate::extensions::Refusal;
use crate::handover::{Again, Asks, Place};
use crate::machine::{Event, State};
use crate::shared::{Inner, Shared};
use crate::telemetry::{self, Api};
pub(crate) use extension::ID as EXTENSION;

const BASE: &str = "/2018-06-01";
const CREDENTIALS: &str = "/2021-04-23/credentials";
/// Connections of one container at once, besides two for each invocation that it takes at once: runtimes use one, extensions some.
const CONNECTIONS: usize = 64;
/// Bytes of the head of one request, and of its trailers: Python's client sends the cause of an error as a header of up to 1 MiB.
const MAX_HEAD: usize = 1280 * 1024;
/// Of an upload that is refused, this much is read all the same, so that a runtime comes to read its refusal.
const DRAINED: usize = 64 * 1024 * 1024;
/// Longest [`crate::RuntimeApi::release`].
const RELEASE: usize = 128;

const FEATURES: &str = "lambda-runtime-features";

type Reply = Response<Full<Bytes>>;

/// Accepts until it is stopped; then every connection ends where it is.
pub(crate) async fn serve(
    listener: Arc<TcpListener>,
    shared: Arc<Shared>,
    stop: CancellationToken,
    former: Vec<Again>,
) {
    let mut connections = JoinSet::new();
    for stream in former {
        connections.spawn(connected(stream, shared.clone()));
    }
    let most = CONNECTIONS + 2 * shared.about.concurrency as usize;
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept(), if connections.len() < most => accepted,
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
        connections.spawn(connected(stream, shared.clone()));
    }
}

/// One connection, from its beginning to its end.
async fn connected(stream: impl AsyncRead + AsyncWrite + AsFd + Unpin, shared: Arc<Shared>) {
    let connection = match Connection::new(shared, stream.as_fd()) {
        Ok(connection) => connection,
        Err(error) => {
            tracing::warn!(%error, "cannot keep a connection of a runtime");
            return;
        }
    };
    let service = service_fn(|request| {
        let connection = &connection;
        async move {
            connection.place.busy(true);
            let reply = reply(connection, request).await;
            connection.place.busy(false);
            Ok::<_, Infallible>(reply)
        }
    });
    // What breaks here is the runtime's connection, and its own business.
    _ = hyper::server::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .max_header_size(MAX_HEAD)
        // As AWS writes them: scripts look for names as they read them in its manual.
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// One that stands. It counts as the runtime's unless its last request was an extension's.
struct Connection {
    shared: Arc<Shared>,
    counts: AtomicBool,
    place: Arc<Place>,
}

impl Connection {
    fn new(shared: Arc<Shared>, socket: BorrowedFd<'_>) -> io::Result<Self> {
        let place = shared.places.enter(socket)?;
        let connection = Self { shared, counts: AtomicBool::new(false), place };
        connection.count(true);
        Ok(connection)
    }

    fn count(&self, counts: bool) {
        if self.counts.swap(counts, Ordering::Relaxed) == counts {
            return;
        }
        let mut inner = self.shared.lock();
        if counts {
            inner.connections += 1;
            return;
        }
        inner.connections -= 1;
        drop(inner);
        self.shared.changed.notify_waiters();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.places.leave(&self.place);
        self.count(false);
    }
}

/// What a path asks for.
enum Asked<'a> {
    Ping,
    Next,
    Response(&'a str),
    Error(&'a str),
    InitError,
    RestoreNext,
    RestoreError,
    Credentials,
    Extension(extension::Asked),
}

fn asked(path: &str) -> Option<(Method, Asked<'_>)> {
    let Some(rest) = path.strip_prefix(BASE) else {
        if path == CREDENTIALS {
            return Some((Method::GET, Asked::Credentials));
        }
        return extension::asked(path).map(|(method, asked)| (method, Asked::Extension(asked)));
    };
    Some(match rest {
        "/ping" => (Method::GET, Asked::Ping),
        "/runtime/invocation/next" => (Method::GET, Asked::Next),
        "/runtime/init/error" => (Method::POST, Asked::InitError),
        "/runtime/restore/next" => (Method::GET, Asked::RestoreNext),
        "/runtime/restore/error" => (Method::POST, Asked::RestoreError),
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

impl Asked<'_> {
    /// What concerns restores is there where there are some, what concerns extensions where they are allowed.
    fn is_there(&self, shared: &Shared) -> bool {
        match self {
            Asked::RestoreNext | Asked::RestoreError | Asked::Credentials => {
                shared.about.kind == Kind::SnapStart
            }
            Asked::Extension(_) => !shared.about.no_extensions,
            _ => true,
        }
    }
}

async fn reply(connection: &Connection, request: Request<Incoming>) -> Reply {
    let shared = &*connection.shared;
    remember_release(shared, request.headers());
    let path = request.uri().path().to_owned();
    let Some((method, asked)) = asked(&path).filter(|(_, asked)| asked.is_there(shared)) else {
        return text(StatusCode::NOT_FOUND, "404 page not found\n");
    };
    if method != request.method() {
        let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, "");
        let allowed = HeaderValue::from_str(method.as_str()).expect("a method is ASCII");
        reply.headers_mut().insert(http::header::ALLOW, allowed);
        return reply;
    }
    connection.count(!matches!(asked, Asked::Extension(_)));
    let (head, mut body) = request.into_parts();
    let done = match asked {
        Asked::Ping => return text(StatusCode::OK, "pong"),
        Asked::Next => {
            connection.place.waits(Asks::Runtime);
            return next(shared).await.unwrap_or_else(Problem::into_reply);
        }
        Asked::RestoreNext => return restored(shared).await.unwrap_or_else(Problem::into_reply),
        Asked::Credentials => return credentials(shared, &head.headers),
        Asked::Response(id) => answer::response(shared, id, &head.headers, &mut body).await,
        Asked::Error(id) => answer::error(shared, id, &head.headers, &mut body).await,
        Asked::InitError => answer::init_error(shared, Event::InitError, &head.headers, &mut body).await,
        Asked::RestoreError => {
            answer::init_error(shared, Event::RestoreError, &head.headers, &mut body).await
        }
        Asked::Extension(asked) => {
            if let (extension::Asked::Next, Some(id)) = (&asked, header(&head.headers, EXTENSION)) {
                connection.place.waits(Asks::Extension(id));
            }
            match extension::answer(shared, asked, &head.headers, &mut body).await {
                Ok(reply) => return reply,
                Err(problem) => Err(problem),
            }
        }
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
    /// Of an invocation that is not the only one.
    Twice(State),
    RequestId,
    /// Its time is over.
    Late,
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
                    Event::RestoreNext => State::RestoreReady,
                    Event::Restored => State::Restoring,
                    Event::RestoreError => State::RestoreError,
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
            Problem::Twice(from) => {
                let kind = match from {
                    State::InvocationResponse => "Runtime.InvokeResponseInProgress",
                    State::InvocationErrorResponse => "Runtime.ErrorResponseInProgress",
                    _ => "Runtime.InvokeResponseWasSent",
                };
                (StatusCode::BAD_REQUEST, kind, "The invocation is being answered, or was".to_owned())
            }
            Problem::Late => (StatusCode::GONE, "InvokeTimeout", "Invoke timeout".to_owned()),
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
    let mut fresh = None;
    let found = shared.until(|inner| hand_over(inner, shared.several(), &mut fresh)).await;
    let (headers, payload) = found?;
    if let Some(id) = fresh {
        shared.handed(&id);
    }
    shared.changed.notify_waiters();
    let mut reply = Response::new(Full::new(payload));
    *reply.headers_mut() = headers;
    Ok(reply)
}

/// What a runtime that asks is given; in `fresh` the name of what it was not given before.
fn hand_over(
    inner: &mut Inner,
    several: bool,
    fresh: &mut Option<String>,
) -> Option<Result<(HeaderMap, Bytes), (State, Event)>> {
    if inner.state == State::Ready
        && let Some(mut work) = inner.pending.pop_front()
    {
        work.handed = Some(Instant::now());
        *fresh = Some(work.id.clone());
        let given = (work.headers.clone(), work.payload.clone());
        if !several {
            inner.state = State::Running;
            inner.current.clear();
        }
        inner.current.push(work);
        return Some(Ok(given));
    }
    match inner.state {
        // The same again, for one that has lost it.
        State::Running => inner.current.last().map(|work| Ok((work.headers.clone(), work.payload.clone()))),
        State::Ready => None,
        other => Some(Err((other, Event::Handed))),
    }
}

/// Waits until it is told that it was restored.
async fn restored(shared: &Shared) -> Result<Reply, Problem> {
    shared.on(Event::RestoreNext)?;
    shared
        .until(|inner| match inner.state {
            State::RestoreReady => None,
            State::Restoring => Some(Ok(())),
            other => Some(Err((other, Event::Restored))),
        })
        .await?;
    Ok(json(StatusCode::OK, String::new()))
}

fn credentials(shared: &Shared, headers: &HeaderMap) -> Reply {
    let said = headers.get(http::header::AUTHORIZATION).and_then(|said| said.to_str().ok());
    match shared.about.credentials.as_ref().and_then(|credentials| credentials.for_bearer(said)) {
        Some(body) => json(StatusCode::OK, body.to_string()),
        None => text(StatusCode::NOT_FOUND, "cannot get credentials for the provided token\n"),
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
        let kind = HeaderValue::from_static("text/plain; charset=utf-8");
        reply.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    }
    if status == StatusCode::NOT_FOUND {
        reply.headers_mut().insert(http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
    reply
}

fn json(status: StatusCode, body: String) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    reply.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    reply
}
