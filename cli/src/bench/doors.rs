//! The doors, each as a closed loop: a caller sends its next call when the answer to the last one is complete, and after its
//! rest, if it takes one.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::try_join_all;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use stoker_core::call::{CHUNK, Taken, WINDOW, longest_piece};
use stoker_core::machine::Listed as _;
use stoker_core::{Code, Error};
use stoker_proto::v1;
use stoker_proto::v1::session_request::Frame as Send;
use stoker_proto::v1::session_response::Frame as Receive;
use stoker_proto::{convert, status};
use stoker_runtime::net;
use stoker_runtime::tls::Speaks;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_stream::wrappers::ReceiverStream;

use super::Load;
use super::calls::Calls;
use crate::args::Door;
use crate::client::{self, Connection};
use crate::failure::Failure;

/// A caller of the session: its call's number, when it began, and what came of the answer.
struct Caller {
    call: u64,
    began: Instant,
    bytes: usize,
    taken: Taken,
    /// Bytes of the body that are sent.
    sent: usize,
    /// Most bytes of one piece of it, once the first credit has told.
    longest: Option<usize>,
}

impl Caller {
    /// With this call, of whose body `sent` bytes go with its start.
    fn begins(call: u64, sent: usize) -> Self {
        Self { call, began: Instant::now(), bytes: 0, taken: Taken::default(), sent, longest: None }
    }
}

/// What goes out on the stream. Frames that find no room wait here and not in the loop, which must go on reading: two ends
/// that both only write would wait for each other for ever. Bounded by the credit of the calls that run.
struct Outbox {
    frames: mpsc::Sender<v1::SessionRequest>,
    waiting: VecDeque<v1::SessionRequest>,
}

impl Outbox {
    fn send(&mut self, call: u64, frame: Send) -> Result<(), Failure> {
        let request = v1::SessionRequest { call, frame: Some(frame) };
        if !self.waiting.is_empty() {
            self.waiting.push_back(request);
            return Ok(());
        }
        match self.frames.try_send(request) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(request)) => {
                self.waiting.push_back(request);
                Ok(())
            }
            Err(TrySendError::Closed(_)) => Err(ended()),
        }
    }

    /// Returns when there is room for one that waits; never, if none does.
    async fn room(&self) -> Result<mpsc::OwnedPermit<v1::SessionRequest>, Failure> {
        if self.waiting.is_empty() {
            return std::future::pending().await;
        }
        self.frames.clone().reserve_owned().await.map_err(|_| ended())
    }
}

/// All callers on one stream, driven by one loop: no task a call.
pub async fn session(connection: Connection, load: &Load) -> Result<(), Failure> {
    // A start each fits in before anything is read.
    let (frames, receiver) = mpsc::channel(load.concurrency * 2 + 16);
    let mut outbox = Outbox { frames, waiting: VecDeque::new() };
    let first = load.body.slice(..load.body.len().min(CHUNK));
    let start = |caller: &Caller| {
        Send::Start(v1::SessionStart {
            function: load.function.clone(),
            head: Some(v1::RequestHead::default()),
            body: first.clone(),
            complete: caller.sent == load.body.len(),
            window: WINDOW,
            ..Default::default()
        })
    };
    let mut callers = Vec::with_capacity(load.concurrency);
    for n in 0..load.concurrency {
        let caller = Caller::begins(n as u64, first.len());
        outbox.send(caller.call, start(&caller))?;
        callers.push(caller);
    }
    let mut stream = Calls::new(connection).session(ReceiverStream::new(receiver)).await?;
    let mut open = load.concurrency;
    // Callers that rest, in the order in which they go on, since all rest equally long.
    let mut resting: VecDeque<(Instant, usize)> = VecDeque::new();
    let next = |callers: &mut [Caller], at: usize, outbox: &mut Outbox| {
        let call = callers[at].call + load.concurrency as u64;
        callers[at] = Caller::begins(call, first.len());
        outbox.send(call, start(&callers[at]))
    };
    while open > 0 {
        let rested = async {
            match resting.front() {
                Some((until, _)) => tokio::time::sleep_until((*until).into()).await,
                None => std::future::pending().await,
            }
        };
        let response = tokio::select! {
            () = rested => {
                if let Some((_, at)) = resting.pop_front() {
                    if load.over() {
                        open -= 1;
                    } else {
                        next(&mut callers, at, &mut outbox)?;
                    }
                }
                continue;
            }
            permit = outbox.room() => {
                let permit = permit?;
                if let Some(request) = outbox.waiting.pop_front() {
                    permit.send(request);
                }
                continue;
            }
            response = stream.message() => response?.ok_or_else(ended)?,
        };
        // A call's number is its caller's, plus the number of callers for each call before it: numbers are never used again.
        let at = (response.call % load.concurrency as u64) as usize;
        let caller = &mut callers[at];
        if caller.call != response.call {
            continue;
        }
        match response.frame {
            Some(Receive::Body(piece)) => {
                caller.bytes += piece.data.len();
                if let Some(bytes) = caller.taken.add(piece.data.len()) {
                    outbox.send(caller.call, Send::Credit(v1::SessionCredit { bytes }))?;
                }
            }
            Some(Receive::Credit(credit)) => {
                let longest = *caller.longest.get_or_insert(longest_piece(credit.bytes));
                let end = load.body.len().min(caller.sent + credit.bytes as usize);
                while caller.sent < end {
                    let piece = load.body.slice(caller.sent..end.min(caller.sent + longest));
                    caller.sent += piece.len();
                    let last = caller.sent == load.body.len();
                    outbox.send(caller.call, Send::Body(v1::SessionBody { data: piece, last }))?;
                }
            }
            Some(Receive::Finished(finished)) => {
                match finished.error {
                    Some(error) => load.error(convert::call_error(error)),
                    None => {
                        let bytes = caller.bytes + finished.body.len();
                        load.success(caller.began, bytes, finished.timings.as_ref());
                    }
                }
                if load.over() {
                    open -= 1;
                } else if load.pause.is_zero() {
                    next(&mut callers, at, &mut outbox)?;
                } else {
                    resting.push_back((Instant::now() + load.pause, at));
                }
            }
            Some(Receive::Head(_)) | None => {}
        }
    }
    Ok(())
}

fn ended() -> Failure {
    Failure::platform("the balancer ended the session", "see its log")
}

/// A unary call after the other, by each caller, on one connection.
pub async fn invoke(connection: Connection, load: &Load) -> Result<(), Failure> {
    let calls = Calls::new(connection);
    let callers = (0..load.concurrency).map(|_| {
        let mut calls = calls.clone();
        async move {
            loop {
                let began = Instant::now();
                let request = v1::InvokeRequest {
                    function: load.function.clone(),
                    head: Some(v1::RequestHead::default()),
                    ..Default::default()
                };
                match calls.invoke(request, load.body.clone()).await {
                    Ok((answer, body)) => {
                        let bytes = body.iter().map(Bytes::len).sum();
                        load.success(began, bytes, answer.timings.as_ref());
                    }
                    Err(refused) => load.error(status::from_status(&refused)),
                }
                if goes_on(load).await.is_none() {
                    return Ok::<_, Failure>(());
                }
            }
        }
    });
    try_join_all(callers).await.map(drop)
}

/// A call for later after the other, by each caller, on one connection. Nobody waits for their ends.
pub async fn submit(connection: Connection, load: &Load) -> Result<(), Failure> {
    let callers = (0..load.concurrency).map(|_| {
        let mut client = client::calls(connection.clone());
        async move {
            loop {
                let began = Instant::now();
                let request = v1::SubmitRequest {
                    function: load.function.clone(),
                    body: load.body.clone(),
                    ..Default::default()
                };
                match client.submit(request).await {
                    Ok(_) => load.success(began, 0, None),
                    Err(refused) => load.error(status::from_status(&refused)),
                }
                if goes_on(load).await.is_none() {
                    return Ok::<_, Failure>(());
                }
            }
        }
    });
    try_join_all(callers).await.map(drop)
}

/// Rests; `None` when the run is over.
async fn goes_on(load: &Load) -> Option<()> {
    if load.over() {
        return None;
    }
    if !load.pause.is_zero() {
        tokio::time::sleep(load.pause).await;
    }
    (!load.over()).then_some(())
}

/// Whom HTTP requests go to.
pub struct Target {
    place: Place,
    path: String,
    host: String,
    name: &'static str,
}

enum Place {
    /// The URL of a balancer.
    Balancer(http::Uri),
    /// The socket of a function.
    Socket(PathBuf),
}

impl Target {
    /// By the door `http`, or by that of AWS Lambda.
    pub fn balancer(server: &str, door: Door, function: &str) -> Result<Self, Failure> {
        let url = client::origin(server, "http://127.0.0.1:7080")?;
        let authority = url.authority().map(ToString::to_string).unwrap_or_default();
        let host = match url.port_u16() {
            Some(_) => authority,
            None => format!("{authority}:{}", client::place(&url).1),
        };
        let (path, name) = match door {
            Door::Lambda => {
                // A function of ours as that API names it; its own names have no slash.
                let function = function.replacen('/', ".", 1);
                (format!("/2015-03-31/functions/{function}/invocations"), "lambda")
            }
            _ => (format!("/invoke/{function}"), "http"),
        };
        Ok(Self { place: Place::Balancer(url), path, host, name })
    }

    pub fn socket(path: PathBuf) -> Self {
        let (path, place) = ("/call".to_owned(), Place::Socket(path));
        Self { place, path, host: "localhost".to_owned(), name: "socket" }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    fn request(&self, body: &Bytes) -> Result<http::Request<Full<Bytes>>, Failure> {
        // The length is said for an empty body as well, as a runner does.
        let mut request = http::Request::post(self.path.as_str())
            .header(http::header::HOST, &self.host)
            .header(http::header::CONTENT_LENGTH, body.len());
        match &self.place {
            Place::Socket(_) => {
                // What a runner would say; kits insist on it.
                request = request
                    .header("Fn-Call-Id", "00000000-0000-7000-8000-000000000000")
                    .header("Fn-Deadline", "2100-01-01T00:00:00Z");
            }
            Place::Balancer(url) => {
                if let Some(authorization) = client::authorization(url)? {
                    request = request.header(http::header::AUTHORIZATION, authorization);
                }
            }
        }
        request.body(Full::new(body.clone())).map_err(|error| {
            Failure::usage(format!("cannot call {}: {error}", self.path), "check the function's name")
        })
    }

    async fn connect(&self) -> Result<Sender, Failure> {
        match &self.place {
            Place::Balancer(url) => {
                let away = |error: &dyn std::fmt::Display| {
                    Failure::platform(
                        format!(
                            "no balancer answers at {}://{}: {error}",
                            url.scheme_str().unwrap_or("http"),
                            self.host
                        ),
                        "start a fleet with `stoker up`, or name another with --http or STOKER_HTTP",
                    )
                };
                let tls = client::tls(url, Speaks::Http1)?;
                let (host, port) = client::place(url);
                let stream = net::connect(host, port).await.map_err(|error| away(&error))?;
                let stream = client::secured(tls, url, stream).await.map_err(|error| away(&error))?;
                handshake(stream).await.map_err(|error| away(&error))
            }
            Place::Socket(path) => {
                let away = |error: &dyn std::fmt::Display| {
                    Failure::usage(
                        format!("no function listens on {}: {error}", path.display()),
                        "start it with FN_LISTENER=unix:PATH in its environment",
                    )
                };
                let stream = tokio::net::UnixStream::connect(path).await.map_err(|error| away(&error))?;
                handshake(stream).await.map_err(|error| away(&error))
            }
        }
    }
}

type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

async fn handshake<S>(stream: S) -> Result<Sender, hyper::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + std::marker::Send + 'static,
{
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends when its sender is dropped; its error comes out of the request that met it.
    tokio::spawn(async move { _ = connection.await });
    Ok(sender)
}

/// An HTTP request after the other, by each caller, on a connection of its own that is kept.
pub async fn http(target: &Target, load: &Load) -> Result<(), Failure> {
    let callers = (0..load.concurrency).map(|_| async move {
        let mut connection = None;
        loop {
            let began = Instant::now();
            let mut sender = match connection.take() {
                Some(sender) => sender,
                None => target.connect().await?,
            };
            match exchange(&mut sender, target.request(&load.body)?).await {
                Ok((head, count, beginning)) => {
                    if head.status.is_success() && !head.headers.contains_key(FUNCTION_ERROR) {
                        load.success(began, count, None);
                    } else {
                        refused(load, &head, &beginning);
                    }
                    if !sender.is_closed() {
                        connection = Some(sender);
                    }
                }
                Err(error) => load.failure("CONNECTION", Error::new(Code::Unavailable, error.to_string())),
            }
            if goes_on(load).await.is_none() {
                return Ok::<_, Failure>(());
            }
        }
    });
    try_join_all(callers).await.map(drop)
}

/// What AWS Lambda's API says of an answer that is the function's failure.
const FUNCTION_ERROR: &str = "x-amz-function-error";

/// What it says of an error that is the platform's or the caller's.
const ERROR_TYPE: &str = "x-amzn-errortype";

/// Notes an answer that is no success: one of the balancer's errors, or else what a function answered.
fn refused(load: &Load, head: &http::response::Parts, beginning: &[u8]) {
    let told: serde_json::Value = serde_json::from_slice(beginning).unwrap_or_default();
    let text = |key: &str| told[key].as_str().unwrap_or_default();
    let known = Code::ALL.iter().find(|code| status::row(**code).reason == text("code"));
    match known {
        Some(code) => load.error(Error::new(*code, text("message"))),
        None => {
            let named = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
            let status = head.status.as_u16();
            let (reason, code) = match (named(FUNCTION_ERROR), named(ERROR_TYPE)) {
                (Some(name), _) => (name.to_owned(), Code::FunctionFailed),
                (None, Some(name)) if status == 429 => (name.to_owned(), Code::Overloaded),
                (None, Some(name)) if status < 500 => (name.to_owned(), Code::InvalidRequest),
                (None, Some(name)) => (name.to_owned(), Code::Unavailable),
                (None, None) => (format!("HTTP {status}"), Code::FunctionFailed),
            };
            load.failure(&reason, Error::new(code, String::from_utf8_lossy(beginning)));
        }
    }
}

/// One request, its answer read to the end: its head, the bytes, and the beginning of what they are.
async fn exchange(
    sender: &mut Sender,
    request: http::Request<Full<Bytes>>,
) -> Result<(http::response::Parts, usize, Bytes), hyper::Error> {
    sender.ready().await?;
    let (head, mut body) = sender.send_request(request).await?.into_parts();
    let (mut count, mut beginning) = (0, Bytes::new());
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame?.into_data() else { continue };
        if count == 0 {
            beginning = piece.slice(..piece.len().min(1024));
        }
        count += piece.len();
    }
    Ok((head, count, beginning))
}

#[cfg(test)]
mod tests;
