//! Many calls of one client on one stream.
//!
//! One task owns the stream: it reads frames and drives all calls of the session, so that a small warm call costs neither a
//! task nor a stream. The task ends with the client's stream, with a violation, or when the client is gone; whatever still runs
//! is then cancelled by being dropped.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt as _};
use hyper::body::Incoming;
use stoker_core::call::{CHUNK, LEAST_WINDOW, PIECE, Taken, WINDOW, longest_piece};
use stoker_core::error::{Code, Error, Retry};
use stoker_core::ids::CallId;
use stoker_proto::frames::Decoded;
use stoker_proto::v1::session_request::Frame as In;
use stoker_proto::v1::session_response::Frame as Out;
use stoker_proto::{convert, v1};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Status;

use super::Front;
use super::grpc::{misread, refused};
use super::http::fields;
use crate::auth::Caller;
use crate::call::{Input, Trailers};
use crate::link::outbox::{Outbox, Outgoing, outbox};
use crate::observe::{Door, Watch};

/// Frames of the client.
type Requests = Decoded<Incoming, v1::SessionRequest>;

type Sender = Outbox<Result<v1::SessionResponse, Status>>;

/// Frames for the client. Dropping them, which is what happens when the client goes, ends the session.
pub struct Frames {
    outgoing: Outgoing<Result<v1::SessionResponse, Status>>,
    _gone: DropGuard,
}

impl Stream for Frames {
    type Item = Result<v1::SessionResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.outgoing).poll_next(cx)
    }
}

/// Serves a session.
pub fn open(front: Arc<Front>, caller: Caller, stream: Requests) -> Frames {
    let (out, outgoing) = outbox();
    let gone = CancellationToken::new();
    let frames = Frames { outgoing, _gone: gone.clone().drop_guard() };
    let tasks = front.dispatch.tasks.clone();
    let open = front.observer.session();
    tasks.spawn(async move {
        let _open = open;
        let done = tokio::select! {
            done = front.dispatch.fleet.panics.call(run(&front, &caller, stream, &out)) => done,
            () = gone.cancelled() => Ok(()),
        };
        if let Err(error) = done {
            out.push(Err(refused(&error, "")));
        }
        out.close();
    });
    frames
}

/// One call as the reader of the stream sees it.
struct Running {
    shared: Arc<Shared>,
    complete: bool,
}

/// Bodies and credit of one call, between the reader of the stream and the call.
#[derive(Default)]
struct Shared(Mutex<Flow>);

#[derive(Default)]
struct Flow {
    pieces: VecDeque<Bytes>,
    last: bool,
    /// What is said behind the body goes there; made by whoever is first, the call or what is said.
    behind: Option<Trailers>,
    /// Of that which cannot go on.
    wrong: Option<Box<Error>>,
    /// Bytes that the client may still send.
    granted: u64,
    taken: Taken,
    asked: bool,
    /// Bytes of the answer that the client takes.
    credit: u64,
    /// The client's stream ended before the body.
    broken: bool,
    cancelled: bool,
    input: Option<Waker>,
    output: Option<Waker>,
    call: Option<Waker>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Flow> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rest of a request's body: asks the client for more as it is taken.
struct Uploaded {
    number: u64,
    shared: Arc<Shared>,
    out: Sender,
}

impl Stream for Uploaded {
    type Item = Result<Bytes, Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut flow = self.shared.lock();
        let mut credit = 0;
        if !flow.asked {
            // First read: the call has started, so that the client may send what is behind the first piece.
            flow.asked = true;
            credit = WINDOW;
        }
        let next = match flow.pieces.pop_front() {
            Some(piece) => {
                credit += flow.taken.add(piece.len()).unwrap_or_default();
                Poll::Ready(Some(Ok(piece)))
            }
            None if flow.last => Poll::Ready(flow.wrong.take().map(|error| Err(*error))),
            None if flow.broken => Poll::Ready(Some(Err(Error::new(
                Code::Cancelled,
                "the session ended in the middle of the body",
            )))),
            None => {
                flow.input = Some(cx.waker().clone());
                Poll::Pending
            }
        };
        flow.granted += u64::from(credit);
        let wanted = credit > 0 && !flow.last;
        drop(flow);
        if wanted {
            send(&self.out, self.number, Out::Credit(v1::SessionCredit { bytes: credit }));
        }
        next
    }
}

fn send(out: &Sender, call: u64, frame: Out) {
    out.push(Ok(v1::SessionResponse { call, frame: Some(frame) }));
}

async fn run(front: &Front, caller: &Caller, stream: Requests, out: &Sender) -> Result<(), Error> {
    let mut running = HashMap::new();
    let ended = read(front, caller, stream, out, &mut running).await;
    // Calls that end with their session have no outcome of their own, which would say it.
    ended.map_err(|error| if running.is_empty() { error } else { error.may_have_started() })
}

async fn read(
    front: &Front,
    caller: &Caller,
    mut stream: Requests,
    out: &Sender,
    running: &mut HashMap<u64, Running>,
) -> Result<(), Error> {
    let violation = |text: String| Error::new(Code::InvalidRequest, text);
    let mut calls = FuturesUnordered::new();
    let (mut open, mut stopping) = (true, false);
    loop {
        if calls.is_empty() && !open {
            return Ok(());
        }
        if calls.is_empty() && stopping {
            // A call whose start is on its way to us has not begun, and only this tells its client.
            let text =
                "this balancer is stopping: calls of this session that have no outcome were not started";
            return Err(Error::new(Code::Unavailable, text).retry(Retry::Elsewhere));
        }
        // A client that does not take its answers is not asked for more calls.
        let message = async {
            out.room().await;
            stream.message().await
        };
        tokio::select! {
            Some(number) = calls.next(), if !calls.is_empty() => { running.remove(&number); }
            // New calls are refused from here on, and those that run go on.
            () = front.stopping.cancelled(), if !stopping => stopping = true,
            message = message, if open => match message {
                Ok(Some(v1::SessionRequest { call, frame: Some(In::Start(start)) })) => {
                    if running.contains_key(&call) {
                        return Err(violation(format!("start: call {call} runs already")));
                    }
                    if start.body.len() > CHUNK {
                        return Err(violation(format!(
                            "start: call {call} begins with {} bytes, at most {CHUNK} are allowed",
                            start.body.len()
                        )));
                    }
                    let entry = Running { shared: Arc::default(), complete: start.complete };
                    entry.shared.lock().credit = given_at_first(&start).into();
                    calls.push(one(front, caller, call, start, entry.shared.clone(), out));
                    running.insert(call, entry);
                }
                // A call that has just ended may still be spoken of: what the client sent before it knew is dropped.
                Ok(Some(v1::SessionRequest { call, frame: Some(frame) })) => {
                    if let Some(entry) = running.get_mut(&call) {
                        entry.take(call, frame).map_err(violation)?;
                    }
                }
                Ok(Some(v1::SessionRequest { frame: None, .. })) => {}
                Ok(None) => {
                    open = false;
                    running.values().for_each(Running::end);
                }
                Err(status) => {
                    // Too large, or not to be understood: the client learns what was wrong. One that is gone reads nothing.
                    tracing::debug!(%status, "a session broke off");
                    return Err(misread(&status));
                }
            },
        }
    }
}

impl Running {
    /// No more frames come.
    fn end(&self) {
        let mut flow = self.shared.lock();
        flow.broken = true;
        let waker = flow.input.take();
        drop(flow);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn take(&mut self, number: u64, frame: In) -> Result<(), String> {
        let mut flow = self.shared.lock();
        let waker = match frame {
            In::Body(body) => {
                if self.complete {
                    return Err(format!("body: the body of call {number} was complete"));
                }
                let len = body.data.len() as u64;
                if body.data.len() > PIECE || len > flow.granted {
                    return Err(format!(
                        "body: a piece of {len} bytes of call {number} is over its credit or {PIECE}"
                    ));
                }
                flow.granted -= len;
                if len > 0 {
                    flow.pieces.push_back(body.data);
                }
                flow.last = body.last;
                self.complete = body.last;
                flow.input.take()
            }
            In::Trailers(said) => {
                if self.complete {
                    return Err(format!("trailers: the body of call {number} was complete"));
                }
                match fields::said_behind(said.trailers) {
                    Ok(said) => flow.behind.get_or_insert_default().came(said),
                    Err(error) => flow.wrong = Some(Box::new(error)),
                }
                flow.last = true;
                self.complete = true;
                flow.input.take()
            }
            In::Credit(credit) => {
                flow.credit = flow.credit.saturating_add(credit.bytes.into());
                flow.output.take()
            }
            In::Cancel(_) => {
                flow.cancelled = true;
                flow.call.take()
            }
            In::Start(_) => None,
        };
        drop(flow);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}

/// One call from its start to its one `finished`.
async fn one(
    front: &Front,
    caller: &Caller,
    number: u64,
    mut start: v1::SessionStart,
    shared: Arc<Shared>,
    out: &Sender,
) -> u64 {
    let id = CallId::new();
    let trace = super::carried(std::mem::take(&mut start.traceparent), std::mem::take(&mut start.tracestate));
    let mut watch = front.observer.grpc(Door::Session, id, &trace);
    watch.by(caller.clone());
    let outcome = {
        let call = pin!(follow(front, number, id, start, &shared, out, &mut watch));
        let mut call = pin!(front.dispatch.fleet.panics.call(call));
        poll_fn(|cx| {
            let mut flow = shared.lock();
            if flow.cancelled {
                let error = Error::new(Code::Cancelled, "the client cancelled the call");
                return Poll::Ready(Err(error.may_have_started()));
            }
            flow.call = Some(cx.waker().clone());
            drop(flow);
            call.as_mut().poll(cx)
        })
        .await
    };
    let revision = watch.revision().unwrap_or_default();
    watch.end(outcome.as_ref().map(|_| ()));
    let finished = outcome.unwrap_or_else(|error| v1::SessionFinished {
        error: Some(convert::to_call_error(&error)),
        ..v1::SessionFinished::default()
    });
    let finished = v1::SessionFinished { call_id: id.to_string(), revision, ..finished };
    send(out, number, Out::Finished(Box::new(finished)));
    number
}

async fn follow(
    front: &Front,
    number: u64,
    id: CallId,
    start: v1::SessionStart,
    shared: &Arc<Shared>,
    out: &Sender,
    watch: &mut Watch,
) -> Result<v1::SessionFinished, Error> {
    if front.stopping.is_cancelled() {
        // Other doors end with their connections, which take what was under way when they were told to close.
        return Err(super::stopping());
    }
    let function = front.named(&start.function)?;
    let longest = longest_piece(given_at_first(&start));
    let timeout = (start.timeout_ms > 0).then(|| Duration::from_millis(start.timeout_ms));
    let followed = fields::is_followed(function.spec.format);
    let call = front.admit(id, function, start.head.unwrap_or_default(), timeout, watch)?;
    let until: Instant = call.deadline.0.into();
    let mut input = Input::begun(start.body, None);
    if !start.complete {
        input.rest = Some(Box::pin(Uploaded { number, shared: shared.clone(), out: out.clone() }));
        input.trailers = followed.then(|| shared.lock().behind.get_or_insert_default().clone());
    }
    let answer = front.dispatch.call(call, input, watch).await?;
    let Some(mut rest) = answer.rest else {
        return Ok(v1::SessionFinished {
            head: Some(answer.head),
            body: answer.first,
            timings: answer.end.timings,
            runner: answer.end.runner,
            trailers: answer.end.trailers,
            ..v1::SessionFinished::default()
        });
    };
    send(out, number, Out::Head(v1::SessionHead { call_id: id.to_string(), head: Some(answer.head) }));
    let mut piece = answer.first;
    loop {
        while !piece.is_empty() {
            let patience = Instant::now() + front.send_timeout;
            let credit = tokio::time::timeout_at(until.min(patience), credit(shared)).await;
            let credit = credit.map_err(|_| match until <= patience {
                true => left(
                    Code::DeadlineExceeded,
                    "the deadline passed while the client took no more of the answer",
                ),
                false => left(
                    Code::Cancelled,
                    format!(
                        "the client took no more of the answer for {:?} (`send_timeout`)",
                        front.send_timeout
                    ),
                ),
            })?;
            let part = piece.split_to(piece.len().min(longest).min(credit));
            shared.lock().credit -= part.len() as u64;
            send(out, number, Out::Body(v1::SessionBody { data: part, last: false }));
        }
        match rest.next().await {
            Some(next) => piece = next?,
            None => break,
        }
    }
    let end = rest.end();
    Ok(v1::SessionFinished {
        timings: end.timings,
        runner: end.runner,
        trailers: end.trailers,
        ..v1::SessionFinished::default()
    })
}

/// Bytes of the answer that the client takes before it gives credit.
fn given_at_first(start: &v1::SessionStart) -> u32 {
    if start.window == 0 { LEAST_WINDOW } else { start.window.min(WINDOW) }
}

/// The end of an answer that its client left.
fn left(code: Code, text: impl Into<String>) -> Error {
    Error::new(code, text).may_have_started()
}

/// Waits until the client takes more of an answer.
async fn credit(shared: &Shared) -> usize {
    poll_fn(|cx| {
        let mut flow = shared.lock();
        if flow.credit > 0 {
            return Poll::Ready(usize::try_from(flow.credit).unwrap_or(usize::MAX));
        }
        flow.output = Some(cx.waker().clone());
        Poll::Pending
    })
    .await
}
