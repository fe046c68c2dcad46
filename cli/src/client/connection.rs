//! One HTTP/2 connection to a balancer.
//!
//! Not tonic's own channel, for two things that it cannot do. It ends a call at its deadline by itself, at the very moment at which
//! the balancer does, whose error says what the call was waiting for and whose fault that was; here the balancer has the word. And it
//! takes whatever answers for gRPC: here an answer of another kind is told by its type, so that the HTTP address given by mistake is
//! called that.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, USER_AGENT};
use http_body_util::BodyExt as _;
use http_body_util::combinators::MapErr;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use stoker_core::{Code, Error};
use stoker_proto::status::to_status;
use stoker_runtime::cork::Corked;
use stoker_runtime::net;
use stoker_runtime::tls::{Secured, Speaks};
use tonic::Status;
use tonic::body::Body;
use tonic::client::GrpcService;

use super::credentials;
use crate::failure::Failure;

/// A balancer that does not answer the connection for so long is away.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// A connection that says nothing is asked whether it lives after this, and given up after as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Bytes that may be on the way to us, for all calls together.
const CONNECTION_WINDOW: u32 = 16 << 20;

const AGENT: &str = concat!("stoker/", env!("CARGO_PKG_VERSION"));

/// See the module. Clones share it; it closes when the last one is dropped.
#[derive(Clone)]
pub struct Connection {
    sender: http2::SendRequest<Body>,
    origin: http::Uri,
    /// Who we are, as every request says it.
    authorization: Option<HeaderValue>,
    server: Arc<Server>,
}

/// Runs the tasks of a connection. The first of them is the one that reads and writes: requests that are made at once leave in one write when it rests.
#[derive(Clone)]
struct Tasks {
    stream: Corked<Secured>,
    begun: Arc<AtomicBool>,
}

impl Tasks {
    fn of(stream: &Corked<Secured>) -> Self {
        Self { stream: stream.clone(), begun: Arc::default() }
    }
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Tasks {
    fn execute(&self, task: F) {
        if self.begun.swap(true, Ordering::Relaxed) {
            tokio::spawn(task);
        } else {
            let stream = self.stream.clone();
            tokio::spawn(async move { stream.drive(pin!(task)).await });
        }
    }
}

struct Server {
    /// As the user named it.
    name: String,
    /// It has answered something: it speaks as we do.
    speaks: AtomicBool,
}

impl Connection {
    /// Connects to the balancer.
    pub async fn open(server: &str) -> Result<Self, Failure> {
        let origin = origin(server, "http://127.0.0.1:7070")?;
        let authorization = credentials::authorization(&origin)?;
        let tls = credentials::tls(&origin, Speaks::Http2)?;
        let away = |why: String| {
            Failure::away(
                format!("no balancer answers at {server}: {why}"),
                "start a fleet with `stoker up`, or name another with --server or STOKER_SERVER",
            )
        };
        let (host, port) = place(&origin);
        let connect = net::connect(host, port);
        let stream = match tokio::time::timeout(CONNECT_LIMIT, connect).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(away(error.to_string())),
            Err(_) => return Err(away(format!("no answer in {} s", CONNECT_LIMIT.as_secs()))),
        };
        let window = stoker_proto::stream_window(stream.peer_addr().ok());
        let stream = credentials::secured(tls, &origin, stream).await.map_err(|why| {
            Failure::away(
                format!("the balancer at {server} cannot be spoken to by TLS: {why}"),
                "check --ca, --cert and --cert-key; a balancer without TLS is written http://",
            )
        })?;
        let stream = Corked::new(stream);
        let handshake = http2::Builder::new(Tasks::of(&stream))
            .timer(TokioTimer::new())
            .initial_stream_window_size(window)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(stoker_proto::HTTP2_FRAME)
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.map_err(|error| away(reason(&error)))?;
        // Ends when the last sender is dropped; its error comes out of the requests that meet it.
        tokio::spawn(async move { _ = connection.await });
        let server = Arc::new(Server { name: server.to_owned(), speaks: AtomicBool::new(false) });
        Ok(Self { sender, origin, authorization, server })
    }

    /// What requests are addressed to.
    pub fn origin(&self) -> http::Uri {
        self.origin.clone()
    }
}

/// Where the balancer of this URL listens.
pub fn place(url: &http::Uri) -> (&str, u16) {
    let usual = if url.scheme_str() == Some("https") { 443 } else { 80 };
    (url.host().unwrap_or_default().trim_matches(['[', ']']), url.port_u16().unwrap_or(usual))
}

/// An address of a balancer as a URL; `host:port` will do.
pub fn origin(server: &str, example: &str) -> Result<http::Uri, Failure> {
    if server.contains('@') {
        return Err(Failure::usage(
            "the address has a user or a password in it, which would be shown in errors",
            format!("write it like {example}; a token is --token-file FILE or STOKER_TOKEN"),
        ));
    }
    let url = if server.contains("://") { server.to_owned() } else { format!("http://{server}") };
    let wrong =
        || Failure::usage(format!("`{server}` is not an address"), format!("write it like {example}"));
    let uri: http::Uri = url.parse().map_err(|_| wrong())?;
    let plain = matches!(uri.path(), "" | "/") && uri.query().is_none();
    match (uri.scheme_str(), uri.host()) {
        (Some("http" | "https"), Some(host)) if !host.is_empty() && plain => Ok(uri),
        _ => Err(wrong()),
    }
}

/// What lies at the bottom of an error: the outer ones say only that there was one.
fn reason(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(inner) = last.source() {
        last = inner;
    }
    last.to_string()
}

/// Why there will be no answer; of a call only the balancer knew whether it had started.
fn broken(server: &Server, is_call: bool, why: &dyn std::error::Error) -> Status {
    let (name, why) = (&server.name, reason(why));
    let clear = !name.starts_with("https://");
    // What TLS and HTTP/1 answer to a client that speaks neither is, read as HTTP/2, the head of a frame that is too large.
    if clear && why.contains("frame with invalid size") {
        let text = format!(
            "what answers at {name} speaks no HTTP/2 in the clear: a balancer with TLS is written https://, and its gRPC port is 7070 by default"
        );
        return to_status(&Error::new(Code::InvalidRequest, text), "");
    }
    let mut text = format!("the balancer at {name} went away before it had answered: {why}");
    // They also hang up, and that may overtake what they answered.
    if clear && !server.speaks.load(Ordering::Relaxed) {
        text.push_str("; one with TLS is written https://");
    }
    let error = Error::new(Code::Unavailable, text);
    to_status(&if is_call { error.may_have_started() } else { error }, "")
}

/// What answers there is something else.
fn not_grpc(server: &str, status: http::StatusCode) -> Status {
    let text = format!(
        "what answers at {server} is no gRPC (HTTP status {}): is it the balancer's HTTP address? Its gRPC port is 7070 by default",
        status.as_u16()
    );
    to_status(&Error::new(Code::InvalidRequest, text), "")
}

type Broken = Box<dyn FnMut(hyper::Error) -> Status + Send>;

impl GrpcService<Body> for Connection {
    type ResponseBody = MapErr<Incoming, Broken>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Self::ResponseBody>, Status>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        // Nothing was sent yet.
        self.sender.poll_ready(context).map_err(|error| broken(&self.server, false, &error))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization.clone());
        }
        let is_call = request.uri().path().starts_with("/stoker.v1.CallService/");
        let server = self.server.clone();
        let answer = self.sender.send_request(request);
        Box::pin(async move {
            let answer = answer.await.map_err(|error| broken(&server, is_call, &error))?;
            let kind = answer.headers().get(CONTENT_TYPE);
            if !kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
                return Err(not_grpc(&server.name, answer.status()));
            }
            server.speaks.store(true, Ordering::Relaxed);
            let broken: Broken = Box::new(move |error| broken(&server, is_call, &error));
            Ok(answer.map(|body| body.map_err(broken)))
        })
    }
}

#[cfg(test)]
mod tests;
