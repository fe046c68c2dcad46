//! The three doors, each as a closed loop: a caller sends its next call when the answer to the last one is complete.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::try_join_all;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use stoker_core::call::CHUNK;
use stoker_proto::v1;
use stoker_proto::v1::session_request::Frame as Send;
use stoker_proto::v1::session_response::Frame as Receive;
use stoker_proto::{convert, status};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::Load;
use crate::client;
use crate::failure::Failure;

/// A caller of the session: its call's number, when it began, and what came of the answer.
struct Caller {
    call: u64,
    began: Instant,
    bytes: usize,
    /// Bytes of the body that are sent.
    sent: usize,
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
pub async fn session(channel: Channel, load: &Load) -> Result<(), Failure> {
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
            ..Default::default()
        })
    };
    let mut callers = Vec::with_capacity(load.concurrency);
    for n in 0..load.concurrency {
        let caller = Caller { call: n as u64, began: Instant::now(), bytes: 0, sent: first.len() };
        outbox.send(caller.call, start(&caller))?;
        callers.push(caller);
    }
    let mut stream = client::calls(channel).session(ReceiverStream::new(receiver)).await?.into_inner();
    let mut open = load.concurrency;
    while open > 0 {
        let response = tokio::select! {
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
        let caller = &mut callers[(response.call % load.concurrency as u64) as usize];
        if caller.call != response.call {
            continue;
        }
        match response.frame {
            Some(Receive::Body(piece)) => {
                caller.bytes += piece.data.len();
                let bytes = piece.data.len() as u32;
                outbox.send(caller.call, Send::Credit(v1::SessionCredit { bytes }))?;
            }
            Some(Receive::Credit(credit)) => {
                let end = load.body.len().min(caller.sent + credit.bytes as usize);
                while caller.sent < end {
                    let piece = load.body.slice(caller.sent..end.min(caller.sent + CHUNK));
                    caller.sent += piece.len();
                    let last = caller.sent == load.body.len();
                    outbox.send(caller.call, Send::Body(v1::SessionBody { data: piece, last }))?;
                }
            }
            Some(Receive::Finished(finished)) => {
                match finished.error {
                    Some(error) => load.error(&convert::call_error(error)),
                    None => {
                        let bytes = caller.bytes + finished.body.len();
                        load.success(caller.began, bytes, finished.timings.as_ref());
                    }
                }
                if load.over() {
                    open -= 1;
                } else {
                    let call = caller.call + load.concurrency as u64;
                    *caller = Caller { call, began: Instant::now(), bytes: 0, sent: first.len() };
                    outbox.send(call, start(caller))?;
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
pub async fn invoke(channel: Channel, load: &Load) -> Result<(), Failure> {
    let callers = (0..load.concurrency).map(|_| {
        let mut client = client::calls(channel.clone());
        async move {
            while !load.over() {
                let began = Instant::now();
                let request = v1::InvokeRequest {
                    function: load.function.clone(),
                    head: Some(v1::RequestHead::default()),
                    body: load.body.clone(),
                };
                match client.invoke(request).await {
                    Ok(answer) => {
                        let answer = answer.into_inner();
                        load.success(began, answer.body.len(), answer.timings.as_ref());
                    }
                    Err(refused) => load.error(&status::from_status(&refused)),
                }
            }
            Ok::<_, Failure>(())
        }
    });
    try_join_all(callers).await.map(drop)
}

/// An HTTP request after the other, by each caller, on a connection of its own that is kept.
pub async fn http(server: &str, load: &Load) -> Result<(), Failure> {
    let wrong = || {
        Failure::usage(format!("`{server}` is not an HTTP address"), "write it like http://127.0.0.1:7080")
    };
    let url: http::Uri = server.parse().map_err(|_| wrong())?;
    let authority = url.authority().ok_or_else(wrong)?.clone();
    let address = match authority.port_u16() {
        Some(_) => authority.to_string(),
        None => format!("{authority}:80"),
    };
    let path = format!("/invoke/{}", load.function);
    let callers = (0..load.concurrency).map(|_| {
        let (address, path) = (&address, &path);
        async move {
            let mut connection = None;
            while !load.over() {
                let began = Instant::now();
                let mut sender = match connection.take() {
                    Some(sender) => sender,
                    None => connect(address).await?,
                };
                let request = http::Request::post(path.as_str())
                    .header(http::header::HOST, address.as_str())
                    .body(Full::new(load.body.clone()))
                    .map_err(|error| {
                        Failure::usage(format!("cannot call {path}: {error}"), "check the function's name")
                    })?;
                match exchange(&mut sender, request).await {
                    Ok((status, body)) => {
                        if status.is_success() {
                            load.success(began, body.len(), None);
                        } else {
                            load.failure(
                                &format!("HTTP {}", status.as_u16()),
                                &String::from_utf8_lossy(&body),
                            );
                        }
                        if !sender.is_closed() {
                            connection = Some(sender);
                        }
                    }
                    Err(error) => load.failure("CONNECTION", &error.to_string()),
                }
            }
            Ok::<_, Failure>(())
        }
    });
    try_join_all(callers).await.map(drop)
}

type Sender = hyper::client::conn::http1::SendRequest<Full<Bytes>>;

async fn connect(address: &str) -> Result<Sender, Failure> {
    let away = |error: &dyn std::fmt::Display| {
        Failure::platform(
            format!("no balancer answers at http://{address}: {error}"),
            "start a fleet with `stoker up`, or name another with --http or STOKER_HTTP",
        )
    };
    let stream = tokio::net::TcpStream::connect(address).await.map_err(|error| away(&error))?;
    stream.set_nodelay(true).map_err(|error| away(&error))?;
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| away(&error))?;
    // Ends when its sender is dropped; its error comes out of the request that met it.
    tokio::spawn(async move { _ = connection.await });
    Ok(sender)
}

async fn exchange(
    sender: &mut Sender,
    request: http::Request<Full<Bytes>>,
) -> Result<(http::StatusCode, Bytes), hyper::Error> {
    sender.ready().await?;
    let (head, body) = sender.send_request(request).await?.into_parts();
    Ok((head.status, body.collect().await?.to_bytes()))
}

#[cfg(test)]
mod tests;
