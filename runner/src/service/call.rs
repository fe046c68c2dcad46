//! One call, in its one task: from the offer to its one outcome.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use stoker_core::call::{CHUNK, RequestHead, Timings, TraceContext, WINDOW};
use stoker_core::function::{Digest, Format, FunctionSpec};
use stoker_core::{CallId, Code, Deadline, Error, Refusal, ResponseHead};
use stoker_format::{After, Event as Said, Exchange, Request};
use stoker_proto::convert;
use stoker_proto::runner::v1::{self as wire, engage_response::Frame};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::line::{Line, Lost, Word};
use super::state::Event;
use crate::container::{Container, LaunchError, Phase, Pipes, endpoint};
use crate::pool::{Acquired, Lease, Pools};
use crate::report::Report;

/// Answers of a `default` function up to this size, and this long, are held back: its exit status may still make an error
/// of them.
const LINGER: Duration = Duration::from_millis(20);

/// What the balancer offered, checked.
pub struct Offer {
    pub id: CallId,
    pub digest: Digest,
    pub spec: Arc<FunctionSpec>,
    pub head: RequestHead,
    pub trace: TraceContext,
    pub deadline: Deadline,
    pub arrived: Instant,
}

/// How a call that reached a container ended.
struct Ended {
    result: Result<(), Error>,
    /// The container takes another call.
    keep: bool,
}

/// Runs it. Ends when the call has its outcome, or the session is lost and the container is taken care of.
pub async fn run(line: Arc<Line>, offer: Offer, pools: Arc<Pools>, report: Arc<Report>) {
    if let Err(Lost) = drive(&line, &offer, &pools, &report).await {
        tracing::debug!(call = %offer.id, "the session ended before the call");
    }
}

async fn drive(line: &Line, offer: &Offer, pools: &Arc<Pools>, report: &Report) -> Result<(), Lost> {
    let refuse = |reason: Refusal, detail: String, retry_after: Option<Duration>| {
        line.say(
            Event::Refuse,
            Frame::Refused(wire::Refused {
                call: line.number,
                reason: convert::to_refusal(reason).into(),
                detail,
                retry_after: retry_after.map(convert::to_duration),
                warmth: Some(convert::to_warmth(&offer.digest, pools.warmth(&offer.digest))),
                capacity: Some(convert::to_capacity(&report.now())),
            }),
        )
    };
    let remaining = offer.deadline.remaining();
    if remaining.is_zero() {
        return refuse(Refusal::Expired, "the deadline has passed".to_owned(), None).await;
    }
    let mut waited = false;
    let lease = match pools.acquire(offer.digest, &offer.spec, offer.id, remaining) {
        Acquired::Now(lease) => lease,
        Acquired::Refused { reason, detail, retry_after } => {
            return refuse(reason, detail, retry_after).await;
        }
        Acquired::Wait { ticket, expected } => {
            waited = true;
            let accepted =
                wire::Accepted { call: line.number, expected_wait: Some(convert::to_duration(expected)) };
            line.say(Event::Accept, Frame::Accepted(accepted)).await?;
            let lease = tokio::select! {
                lease = ticket.wait() => lease,
                _ = line.cancelled() => return refuse(Refusal::Expired, "cancelled while it waited".to_owned(), None).await,
                () = tokio::time::sleep_until(offer.deadline.0.into()) => {
                    return refuse(Refusal::Expired, "the deadline passed while it waited".to_owned(), None).await;
                }
            };
            let lease = match lease {
                Ok(lease) => lease,
                Err(error) => return launch_failed(line, offer, pools, report, error).await,
            };
            line.say(Event::Ready, Frame::Ready(wire::Ready { call: line.number })).await?;
            tokio::select! {
                word = line.word() => if let Word::Cancelled(_) = word {
                    drop(lease);
                    return refuse(Refusal::Expired, "cancelled while it waited".to_owned(), None).await;
                },
                () = tokio::time::sleep_until(offer.deadline.0.into()) => {
                    drop(lease);
                    return refuse(Refusal::Expired, "the deadline passed while it waited".to_owned(), None).await;
                }
            }
            lease
        }
    };
    line.step(Event::Begin);
    serve(line, offer, pools, report, lease, waited).await
}

async fn launch_failed(
    line: &Line,
    offer: &Offer,
    pools: &Pools,
    report: &Report,
    error: LaunchError,
) -> Result<(), Lost> {
    match error {
        LaunchError::Function(error) => {
            let finished = wire::Finished {
                call: line.number,
                error: Some(convert::to_call_error(&error)),
                timings: Some(convert::to_timings(&Timings {
                    wait: offer.arrived.elapsed(),
                    ..Default::default()
                })),
                warmth: Some(convert::to_warmth(&offer.digest, pools.warmth(&offer.digest))),
                ..Default::default()
            };
            line.say(Event::Finish, Frame::Finished(finished)).await
        }
        LaunchError::Platform(detail) => {
            let refused = wire::Refused {
                call: line.number,
                reason: convert::to_refusal(Refusal::LaunchFailed).into(),
                detail,
                retry_after: None,
                warmth: Some(convert::to_warmth(&offer.digest, pools.warmth(&offer.digest))),
                capacity: Some(convert::to_capacity(&report.now())),
            };
            line.say(Event::Refuse, Frame::Refused(refused)).await
        }
    }
}

/// The answer on its way: what was not sent yet, and what was.
struct Answer {
    head: Option<ResponseHead>,
    length: Option<u64>,
    headed: bool,
    body: BytesMut,
    started: Instant,
    first_byte: Duration,
    /// The function closed its end.
    closed: bool,
}

impl Answer {
    /// All of it will go into one frame, as far as one can tell.
    fn fits(&self) -> bool {
        !self.headed && self.length.is_some_and(|n| n <= CHUNK as u64) && self.body.len() <= CHUNK
    }

    /// Sends what is there, as far as credit allows.
    async fn flush(&mut self, line: &Line) -> Result<(), Lost> {
        if let Some(head) = self.head.take() {
            self.headed = true;
            let head = Some(convert::to_response_head(head));
            line.send(Frame::Head(wire::Head { call: line.number, head })).await?;
        }
        while !self.body.is_empty() {
            let some = line.take_credit(self.body.len().min(CHUNK)).await;
            let data = self.body.split_to(some).freeze();
            line.send(Frame::Body(wire::Body { call: line.number, data, last: false })).await?;
        }
        Ok(())
    }
}

async fn serve(
    line: &Line,
    offer: &Offer,
    pools: &Arc<Pools>,
    report: &Report,
    mut lease: Lease,
    waited: bool,
) -> Result<(), Lost> {
    let mut timings =
        Timings { wait: if waited { offer.arrived.elapsed() } else { Duration::ZERO }, ..Default::default() };
    let container = lease.container.clone();
    if lease.cold {
        let launched = container.launched;
        (timings.cold, timings.create, timings.start, timings.init) =
            (true, launched.create, launched.start, launched.init);
    }
    match container.thaw().await {
        Ok(took) => timings.thaw = took,
        Err(error) => {
            lease.touch();
            drop(lease);
            let error = LaunchError::Platform(format!("thaw a container: {error}"));
            return launch_failed(line, offer, pools, report, error).await;
        }
    }
    let deadline = SystemTime::now() + offer.spec.timeout().min(offer.deadline.remaining());
    let (first, complete) = line.first_body();
    let length = complete.then_some(first.len() as u64);
    let request = Request { call: offer.id, head: &offer.head, deadline, trace: &offer.trace, length };
    let mut exchange = Exchange::new(offer.spec.format, &request);
    let mut out = BytesMut::with_capacity(1024 + first.len());
    exchange.encode_head(&request, &mut out);
    exchange.encode_body(&first, &mut out);
    if complete {
        exchange.encode_end(&mut out);
    }
    lease.touch();
    let mut answer = Answer {
        head: None,
        length: None,
        headed: false,
        body: BytesMut::new(),
        started: Instant::now(),
        first_byte: Duration::ZERO,
        closed: false,
    };
    let mut connection = None;
    // A session that is lost from here on drops the lease, which ends the container: it runs what nobody wants.
    let Ended { result, keep } = match offer.spec.format {
        Format::HttpStream => {
            let mut stream = match stream_for(&mut lease).await {
                Ok(stream) => stream,
                // Nothing of the call was written: another container, or another runner, may serve it.
                Err(why) => {
                    drop(lease);
                    return launch_failed(line, offer, pools, report, LaunchError::Platform(why)).await;
                }
            };
            begin(line, &container, complete).await?;
            answer.started = Instant::now();
            let (read, write) = stream.split();
            let end = converse(line, offer, &mut exchange, &mut answer, out, complete, read, write).await?;
            let (result, after) = match end {
                End::Answered(after) => (Ok(()), after),
                End::Failed { error, after } => {
                    (Err(explain(&container, error, after, answer.closed).await), after)
                }
            };
            connection = (after == After::Reuse).then_some(stream);
            Ended { result, keep: after != After::Destroy }
        }
        Format::Default => {
            let begun = Instant::now();
            match container.start(stoker_format::default::environment(&request)).await {
                Err(LaunchError::Function(error)) => Ended { result: Err(error), keep: false },
                Err(error @ LaunchError::Platform(_)) => {
                    drop(lease);
                    return launch_failed(line, offer, pools, report, error).await;
                }
                Ok(Pipes { stdin, stdout }) => {
                    timings.start = begun.elapsed();
                    begin(line, &container, complete).await?;
                    answer.started = Instant::now();
                    match converse(line, offer, &mut exchange, &mut answer, out, complete, stdout, stdin)
                        .await?
                    {
                        End::Answered(_) => judge(line, offer, &container).await,
                        End::Failed { error, after } => {
                            Ended { result: Err(explain(&container, error, after, false).await), keep: false }
                        }
                    }
                }
            }
        }
    };
    timings.first_byte = answer.first_byte;
    timings.execution = answer.started.elapsed();
    let warmth = lease.finish(keep, connection);
    let mut finished = wire::Finished {
        call: line.number,
        timings: Some(convert::to_timings(&timings)),
        container: container.id.as_str().to_owned(),
        warmth: Some(convert::to_warmth(&offer.digest, warmth)),
        ..Default::default()
    };
    match result {
        Ok(()) => {
            if answer.body.len() > CHUNK || !line.try_credit(answer.body.len()) {
                // The reader may be slow, or gone.
                tokio::select! {
                    flushed = answer.flush(line) => flushed?,
                    _ = line.cancelled() => {
                        let error = Error::new(Code::Cancelled, "the caller went away").may_have_started();
                        finished.error = Some(convert::to_call_error(&error));
                        return line.say(Event::Finish, Frame::Finished(finished)).await;
                    }
                }
            }
            finished.head = answer.head.take().map(convert::to_response_head);
            finished.body = answer.body.split().freeze();
        }
        Err(error) => finished.error = Some(convert::to_call_error(&error)),
    }
    line.say(Event::Finish, Frame::Finished(finished)).await
}

/// Says that input reaches the function now, and asks for the rest of it. An offer that was complete needs neither.
async fn begin(line: &Line, container: &Container, complete: bool) -> Result<(), Lost> {
    if complete {
        return Ok(());
    }
    let started = wire::Started { call: line.number, container: container.id.as_str().to_owned() };
    line.send(Frame::Started(started)).await?;
    line.allow(WINDOW).await
}

/// A connection that stands: the one that came with the lease, or a new one.
async fn stream_for(lease: &mut Lease) -> Result<tokio::net::UnixStream, String> {
    if let Some(stream) = lease.connection.take() {
        match endpoint::look(&stream) {
            endpoint::Idle::Fine => return Ok(stream),
            endpoint::Idle::Closed => {}
            endpoint::Idle::Noise => {
                return Err("the function wrote to its connection without being asked".to_owned());
            }
        }
    }
    lease.container.connect().await.map_err(|why| format!("connect to the function: {why}"))
}

/// Adds what the container knows. A channel that was closed early usually means that the process ended, which says more.
async fn explain(container: &Container, error: Error, after: After, closed: bool) -> Error {
    match error.code {
        Code::FunctionInvalidResponse if closed && after == After::Destroy => {
            match container.exit_soon().await {
                Some(exit) => container.exited(exit, Phase::Call).await.may_have_started(),
                None => error.log_tail(container.log.tail()),
            }
        }
        Code::FunctionInvalidResponse | Code::FunctionFailed | Code::FunctionTimeout => {
            error.log_tail(container.log.tail())
        }
        _ => error,
    }
}

/// What the end of a `default` process means.
async fn judge(line: &Line, offer: &Offer, container: &Container) -> Ended {
    use stoker_sandbox::ExitCause;
    let limit = offer.spec.timeout().min(offer.deadline.remaining());
    let exit = tokio::select! {
        exit = container.wait() => exit,
        _ = line.cancelled() => {
            let error = Error::new(Code::Cancelled, "the caller went away").may_have_started();
            return Ended { result: Err(error), keep: false };
        }
        () = tokio::time::sleep(limit) => {
            let text = "the function closed its STDOUT but did not end in time";
            let error = Error::new(Code::FunctionTimeout, text).may_have_started().log_tail(container.log.tail());
            return Ended { result: Err(error), keep: false };
        }
    };
    let result = match exit.cause {
        ExitCause::Code(0) if !exit.out_of_memory => Ok(()),
        ExitCause::Code(code) if !exit.out_of_memory => {
            let exited = container.exited(exit, Phase::Call).await;
            let text = format!("the function exited with status {code}");
            Err(Error::new(Code::FunctionFailed, text).may_have_started().log_tail(exited.log_tail))
        }
        _ => Err(container.exited(exit, Phase::Call).await.may_have_started()),
    };
    Ended { result, keep: false }
}

/// How a conversation with a function ended.
enum End {
    Answered(After),
    Failed { error: Error, after: After },
}

impl End {
    fn not_reusable(self) -> Self {
        let less = |after| if after == After::Reuse { After::Reconnect } else { after };
        match self {
            End::Answered(after) => End::Answered(less(after)),
            End::Failed { error, after } => End::Failed { error, after: less(after) },
        }
    }
}

/// Input goes in and the answer comes out, both at once, until the answer is complete or there is none to expect.
async fn converse<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    line: &Line,
    offer: &Offer,
    exchange: &mut Exchange,
    answer: &mut Answer,
    out: BytesMut,
    complete: bool,
    mut read: R,
    write: W,
) -> Result<End, Lost> {
    // Both directions encode and decode with the one exchange, but never at the same time, and never across an await.
    let exchange = std::sync::Mutex::new(exchange);
    let input = feed(line, &exchange, out, complete, write);
    tokio::pin!(input);
    let output = answer_of(line, offer, &exchange, answer, &mut read);
    tokio::pin!(output);
    let cancelled = line.cancelled();
    tokio::pin!(cancelled);
    let mut fed = false;
    let mut limit = offer.deadline.0;
    let timer = tokio::time::sleep_until(limit.into());
    tokio::pin!(timer);
    let may_have_started = |code, text: String| Error::new(code, text).may_have_started();
    loop {
        tokio::select! {
            // In this order: nothing can be read before it was asked for, and an answer that is complete counts, however
            // late it is.
            biased;
            lost = &mut input, if !fed => {
                lost?;
                fed = true;
                // The function's time begins when it has the input.
                limit = limit.min(Instant::now() + offer.spec.timeout());
                timer.as_mut().reset(limit.into());
            }
            // A connection with half a request on it carries no other.
            end = &mut output => return end.map(|end| if fed { end } else { end.not_reusable() }),
            reason = &mut cancelled => {
                let error = match reason {
                    wire::CancelReason::Deadline => {
                        may_have_started(Code::DeadlineExceeded, "the caller's deadline passed".to_owned())
                    }
                    _ => may_have_started(Code::Cancelled, "the caller went away".to_owned()),
                };
                return Ok(End::Failed { error, after: After::Destroy });
            }
            () = &mut timer => {
                let error = if limit >= offer.deadline.0 {
                    may_have_started(Code::DeadlineExceeded, "the caller's deadline passed while the function ran".to_owned())
                } else {
                    may_have_started(
                        Code::FunctionTimeout,
                        format!("the function took longer than its timeout of {:?}", offer.spec.timeout()),
                    )
                };
                return Ok(End::Failed { error, after: After::Destroy });
            }
        }
    }
}

/// Writes the request. A function that does not want the rest of it closes its end, and that is its right.
async fn feed<W: AsyncWrite + Unpin>(
    line: &Line,
    exchange: &std::sync::Mutex<&mut Exchange>,
    mut out: BytesMut,
    mut complete: bool,
    mut write: W,
) -> Result<(), Lost> {
    if write.write_all(&out).await.is_err() {
        return Ok(());
    }
    while !complete {
        let (piece, last) = line.next_body().await;
        out.clear();
        {
            let mut exchange = exchange.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            exchange.encode_body(&piece, &mut out);
            if last {
                exchange.encode_end(&mut out);
            }
        }
        complete = last;
        if write.write_all(&out).await.is_err() {
            return Ok(());
        }
        line.allow(u32::try_from(piece.len()).unwrap_or(WINDOW)).await?;
    }
    Ok(())
}

/// Reads the answer and passes it on.
async fn answer_of<R: AsyncRead + Unpin>(
    line: &Line,
    offer: &Offer,
    exchange: &std::sync::Mutex<&mut Exchange>,
    answer: &mut Answer,
    read: &mut R,
) -> Result<End, Lost> {
    let mut input = BytesMut::with_capacity(8 * 1024);
    let default = offer.spec.format == Format::Default;
    let mut held_since: Option<Instant> = None;
    let mut eof = false;
    loop {
        loop {
            let said = {
                let mut exchange = exchange.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                exchange.decode(&mut input, eof)
            };
            match said {
                None => break,
                Some(Said::Head { head, length }) => {
                    answer.first_byte = answer.started.elapsed();
                    answer.head = Some(head);
                    answer.length = length;
                    held_since = Some(Instant::now());
                }
                Some(Said::Body(piece)) => {
                    push(&mut answer.body, piece);
                    if answer.body.len() > CHUNK {
                        answer.flush(line).await?;
                    }
                }
                Some(Said::End(after)) => return Ok(End::Answered(after)),
                Some(Said::Failed { code, message, after }) => {
                    let error = Error::new(code, message).may_have_started();
                    return Ok(End::Failed { error, after });
                }
            }
        }
        if eof {
            let error = Error::new(Code::Internal, "the answer ended without an end").may_have_started();
            return Ok(End::Failed { error, after: After::Destroy });
        }
        input.reserve(8 * 1024);
        let pending = answer.head.is_some() || !answer.body.is_empty();
        let hold = answer.fits() || !pending;
        let count = if hold {
            read.read_buf(&mut input).await
        } else if default && !answer.headed {
            let until = held_since.unwrap_or_else(Instant::now) + LINGER;
            match tokio::time::timeout_at(until.into(), read.read_buf(&mut input)).await {
                Ok(count) => count,
                Err(_) => {
                    answer.flush(line).await?;
                    continue;
                }
            }
        } else {
            // What is there goes out unless more is there already.
            tokio::select! {
                biased;
                count = read.read_buf(&mut input) => count,
                () = std::future::ready(()) => {
                    answer.flush(line).await?;
                    continue;
                }
            }
        };
        // A connection that breaks ends like one that is closed.
        eof = !matches!(count, Ok(n) if n > 0);
        answer.closed = eof;
    }
}

/// The first piece of a body is taken as it is.
fn push(body: &mut BytesMut, piece: Bytes) {
    if body.is_empty() {
        *body = piece.into();
    } else {
        body.extend_from_slice(&piece);
    }
}
