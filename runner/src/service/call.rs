//! One call, in its one task: from the offer to its one outcome.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::BytesMut;
use stoker_core::call::{CHUNK, Intent, RequestHead, Timings, TraceContext, WINDOW};
use stoker_core::function::{Digest, Format, FunctionSpec};
use stoker_core::{CallId, Code, Deadline, Error, Refusal, ResponseHead};
use stoker_format::{After, Event as Said, Exchange, Request};
use stoker_proto::convert;
use stoker_proto::runner::v1::{self as wire, engage_response::Frame};
use stoker_runtime::telemetry::SpanKind;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::Shared;
use super::line::{Line, Lost, Word};
use super::pieces::Pieces;
use super::state::Event;
use crate::container::{Container, LaunchError, Phase, Pipes, endpoint};
use crate::observe::Trace;
use crate::pool::{Acquired, Lease, Ticket};

/// Answers of a `default` function up to this size, and this long, are held back: its exit status may still make an error
/// of them.
const LINGER: Duration = Duration::from_millis(20);

/// A function's timeout that was put off for a reader that stood still is looked at again no sooner.
const GRAIN: Duration = Duration::from_millis(100);

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

/// What a call is handled with.
struct Call<'a> {
    line: &'a Line,
    offer: &'a Offer,
    shared: &'a Shared,
    /// Its span here.
    trace: Trace,
}

/// Runs it. Ends when the call has its outcome, or the session is lost and the container is taken care of.
pub async fn run(line: Arc<Line>, offer: Offer, shared: Arc<Shared>) {
    let mut trace = shared.observer.call(&offer.trace, offer.arrived);
    trace.note(|span| {
        span.set("faas.name", offer.spec.name.to_string());
        span.set("faas.invocation_id", offer.id.to_string());
    });
    let mut call = Call { line: &line, offer: &offer, shared: &shared, trace };
    if let Err(Lost) = call.drive().await {
        call.trace.note(|span| span.fail("the session ended before the call"));
        tracing::debug!(call = %offer.id, "the session ended before the call");
    }
}

impl Call<'_> {
    async fn drive(&mut self) -> Result<(), Lost> {
        let (line, offer, pools) = (self.line, self.offer, &self.shared.pools);
        // Left when the outcome has been said: a drain waits for that.
        let Some(_pass) = pools.gate.enter() else {
            return self.refuse(Refusal::Draining, "the runner is stopping".to_owned(), None).await;
        };
        if pools.is_cordoned() {
            return self.refuse(Refusal::Draining, "the runner was drained".to_owned(), None).await;
        }
        let remaining = offer.deadline.remaining();
        if remaining.is_zero() {
            return self.refuse(Refusal::Expired, "the deadline has passed".to_owned(), None).await;
        }
        let mut waited = false;
        let lease = match pools.acquire(offer.digest, &offer.spec, offer.id, remaining) {
            Acquired::Now(lease) => lease,
            Acquired::Refused { reason, detail, retry_after } => {
                return self.refuse(reason, detail, retry_after).await;
            }
            Acquired::Wait { ticket, expected } => {
                waited = true;
                match self.wait(ticket, expected).await? {
                    Some(lease) => lease,
                    None => return Ok(()),
                }
            }
        };
        line.step(Event::Begin);
        self.serve(lease, waited).await
    }

    /// In the line, and then for the balancer's permission. `None` if the call had its outcome.
    async fn wait(&mut self, ticket: Ticket, expected: Duration) -> Result<Option<Lease>, Lost> {
        let (line, offer) = (self.line, self.offer);
        let wait = self.trace.child("wait", SpanKind::Internal);
        let accepted =
            wire::Accepted { call: line.number, expected_wait: Some(convert::to_duration(expected)) };
        line.say(Event::Accept, Frame::Accepted(accepted)).await?;
        let given = tokio::select! {
            given = ticket.wait() => given,
            _ = line.cancelled() => {
                self.refuse(Refusal::Expired, "cancelled while it waited".to_owned(), None).await?;
                return Ok(None);
            }
            () = tokio::time::sleep_until(offer.deadline.0.into()) => {
                self.refuse(Refusal::Expired, "the deadline passed while it waited".to_owned(), None).await?;
                return Ok(None);
            }
        };
        let lease = match given {
            Ok(lease) => lease,
            Err(error) => {
                drop(wait);
                self.launch_failed(error).await?;
                return Ok(None);
            }
        };
        if lease.cold {
            wait.launch(&lease.container.launched);
        }
        drop(wait);
        line.say(Event::Ready, Frame::Ready(wire::Ready { call: line.number })).await?;
        let why = tokio::select! {
            word = line.word() => match word {
                Word::Start => return Ok(Some(lease)),
                Word::Cancelled(_) => "cancelled while it waited",
            },
            () = tokio::time::sleep_until(offer.deadline.0.into()) => "the deadline passed while it waited",
        };
        drop(lease);
        self.refuse(Refusal::Expired, why.to_owned(), None).await?;
        Ok(None)
    }

    /// A promise: nothing of it reached the function.
    async fn refuse(
        &mut self,
        reason: Refusal,
        detail: String,
        retry_after: Option<Duration>,
    ) -> Result<(), Lost> {
        let Shared { pools, report, observer, .. } = self.shared;
        if let Some(meters) = &observer.meters {
            meters.refused(reason);
        }
        self.trace.note(|span| {
            span.set("stoker.refused", format!("{reason:?}"));
            if reason == Refusal::LaunchFailed {
                span.fail(detail.clone());
            }
        });
        let refused = wire::Refused {
            call: self.line.number,
            reason: convert::to_refusal(reason).into(),
            detail,
            retry_after: retry_after.map(convert::to_duration),
            warmth: Some(convert::to_warmth(&self.offer.digest, pools.warmth(&self.offer.digest))),
            capacity: Some(convert::to_capacity(&report.now())),
        };
        self.line.say(Event::Refuse, Frame::Refused(refused)).await
    }

    async fn launch_failed(&mut self, error: LaunchError) -> Result<(), Lost> {
        match error {
            LaunchError::Function(error) => {
                let warmth = self.shared.pools.warmth(&self.offer.digest);
                let finished = wire::Finished {
                    call: self.line.number,
                    error: Some(convert::to_call_error(&error)),
                    timings: Some(convert::to_timings(&Timings {
                        wait: self.offer.arrived.elapsed(),
                        ..Default::default()
                    })),
                    warmth: Some(convert::to_warmth(&self.offer.digest, warmth)),
                    ..Default::default()
                };
                self.finish(finished, Some(&error)).await
            }
            LaunchError::Platform(detail) => self.refuse(Refusal::LaunchFailed, detail, None).await,
            LaunchError::Impossible(detail) => self.refuse(Refusal::TooLarge, detail, None).await,
            LaunchError::Full { retry_after } => {
                let detail = "no memory, CPU or slot came free in the time that was expected".to_owned();
                self.refuse(Refusal::Full, detail, Some(retry_after)).await
            }
            LaunchError::Stopping => {
                self.refuse(Refusal::Draining, "the runner is stopping".to_owned(), None).await
            }
        }
    }

    /// The one outcome of a call that was not refused.
    async fn finish(&mut self, finished: wire::Finished, error: Option<&Error>) -> Result<(), Lost> {
        if let Some(meters) = &self.shared.observer.meters {
            meters.finished(&self.offer.spec.name, error.map(|error| error.code));
        }
        if let Some(error) = error {
            self.trace.failed(error.code, &error.message, true);
        }
        self.line.say(Event::Finish, Frame::Finished(finished)).await
    }
}

/// The answer on its way: what was not sent yet, and what was.
struct Answer {
    head: Option<ResponseHead>,
    length: Option<u64>,
    headed: bool,
    body: Pieces,
    started: Instant,
    first_byte: Duration,
    /// The function closed its end.
    closed: bool,
}

impl Answer {
    /// Makes room for what is left in the last frame. An error, if the caller does not take it.
    async fn rest(&mut self, line: &Line, offer: &Offer) -> Result<Result<(), Error>, Lost> {
        if self.body.len() <= CHUNK && line.try_credit(self.body.len()) {
            return Ok(Ok(()));
        }
        // The reader may be slow, or gone.
        tokio::select! {
            flushed = self.flush(line) => flushed.map(Ok),
            reason = line.cancelled() => Ok(Err(cancelled(reason))),
            () = tokio::time::sleep_until(offer.deadline.0.into()) => {
                let text = "the caller's deadline passed before all of the answer was taken";
                Ok(Err(Error::new(Code::DeadlineExceeded, text).may_have_started()))
            }
        }
    }

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
            let some = line.take_credit(self.body.front().min(CHUNK)).await;
            let data = self.body.take(some);
            line.send(Frame::Body(wire::Body { call: line.number, data, last: false })).await?;
        }
        Ok(())
    }
}

impl Call<'_> {
    /// The span of the execution, whose context the function is told.
    fn execution(&self, lease: &Lease) -> Trace {
        let (offer, mut trace) = (self.offer, self.trace.child("execution", SpanKind::Client));
        trace.note(|span| {
            let name = offer.spec.name.as_str();
            span.set("faas.name", name.to_owned());
            span.set("faas.invocation_id", offer.id.to_string());
            span.set("faas.instance", lease.container.id.as_str().to_owned());
            span.set("faas.coldstart", lease.cold);
            span.set("faas.max_memory", i64::try_from(offer.spec.memory).unwrap_or(i64::MAX));
            let trigger = match offer.head.intent {
                Intent::HttpRequest => "http",
                Intent::Invoke => "other",
            };
            span.set("faas.trigger", trigger);
            // Draws the function as a node of its own; by its old name for those that do not know the new one.
            span.set("service.peer.name", name.to_owned());
            span.set("peer.service", name.to_owned());
        });
        trace
    }

    async fn serve(&mut self, mut lease: Lease, waited: bool) -> Result<(), Lost> {
        let (line, offer, shared) = (self.line, self.offer, self.shared);
        let wait = if waited { offer.arrived.elapsed() } else { Duration::ZERO };
        let mut timings = Timings { wait, ..Default::default() };
        let container = lease.container.clone();
        if lease.cold {
            let launched = container.launched;
            (timings.cold, timings.create, timings.start, timings.init) =
                (true, launched.create, launched.start, launched.init);
            if let Some(meters) = &shared.observer.meters {
                meters.cold_start(&offer.spec.name);
            }
        }
        match container.thaw().await {
            Ok(took) => timings.thaw = took,
            Err(error) => {
                lease.touch();
                drop(lease);
                let error = LaunchError::Platform(format!("thaw a container: {error}"));
                return self.launch_failed(error).await;
            }
        }
        if !timings.thaw.is_zero() {
            self.trace.past("thaw", Instant::now() - timings.thaw, timings.thaw);
            if let Some(meters) = &shared.observer.meters {
                meters.thaws.add_one();
            }
        }
        let mut execution = self.execution(&lease);
        let told = execution.context().or_else(|| self.trace.context());
        let deadline = SystemTime::now() + offer.spec.timeout().min(offer.deadline.remaining());
        let (first, complete) = line.first_body();
        let length = complete.then_some(first.len() as u64);
        let trace = told.as_ref().unwrap_or(&offer.trace);
        let request = Request { call: offer.id, head: &offer.head, deadline, trace, length };
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
            body: Pieces::default(),
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
                        return self.launch_failed(LaunchError::Platform(why)).await;
                    }
                };
                begin(line, &container, complete).await?;
                answer.started = Instant::now();
                let (read, write) = stream.split();
                let end =
                    converse(line, offer, &mut exchange, &mut answer, out, complete, read, write).await?;
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
                    Err(error) => {
                        drop(lease);
                        return self.launch_failed(error).await;
                    }
                    Ok(Pipes { stdin, stdout }) => {
                        timings.start = begun.elapsed();
                        begin(line, &container, complete).await?;
                        answer.started = Instant::now();
                        match converse(line, offer, &mut exchange, &mut answer, out, complete, stdout, stdin)
                            .await?
                        {
                            End::Answered(_) => judge(line, offer, &container).await,
                            End::Failed { error, after } => Ended {
                                result: Err(explain(&container, error, after, false).await),
                                keep: false,
                            },
                        }
                    }
                }
            }
        };
        // What we ended ourselves is no crash.
        let result = result.map_err(|error| {
            let ended = matches!(error.code, Code::FunctionCrashed | Code::FunctionInvalidResponse);
            match ended && shared.pools.stopping() {
                true => Error::new(Code::RunnerLost, "the runner stopped while the function ran")
                    .may_have_started(),
                false => error,
            }
        });
        timings.first_byte = answer.first_byte;
        timings.execution = answer.started.elapsed();
        if let Some(meters) = &shared.observer.meters {
            meters.executed(timings.execution, execution.exemplar());
        }
        if let Err(error) = &result {
            execution.failed(error.code, &error.message, false);
        }
        execution.note(|span| span.since(answer.started));
        drop(execution);
        if !keep {
            // The last word on it; one that lives on is looked at by its keeper, since a look costs as much as a small call.
            container.look().await;
        }
        let usage = container.used().map(|used| wire::Usage {
            memory_peak: used.memory_peak,
            cpu_us: u64::try_from(used.cpu.as_micros()).unwrap_or(u64::MAX),
        });
        let warmth = lease.finish(keep, connection);
        let mut finished = wire::Finished {
            call: line.number,
            usage,
            timings: Some(convert::to_timings(&timings)),
            container: container.id.as_str().to_owned(),
            warmth: Some(convert::to_warmth(&offer.digest, warmth)),
            ..Default::default()
        };
        let result = match result {
            Ok(()) => answer.rest(line, offer).await?,
            Err(error) => Err(error),
        };
        match &result {
            Ok(()) => {
                finished.head = answer.head.take().map(convert::to_response_head);
                finished.body = answer.body.whole();
            }
            Err(error) => finished.error = Some(convert::to_call_error(error)),
        }
        self.finish(finished, result.err().as_ref()).await
    }
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

/// A connection that stands: the one that came with the lease, or a new one. The look at it is the one system call of a warm call
/// beside its write and its read: what the last call left in the socket must not become this one's answer.
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

fn cancelled(reason: wire::CancelReason) -> Error {
    match reason {
        wire::CancelReason::Deadline => Error::new(Code::DeadlineExceeded, "the caller's deadline passed"),
        _ => Error::new(Code::Cancelled, "the caller went away"),
    }
    .may_have_started()
}

/// What the end of a `default` process means.
async fn judge(line: &Line, offer: &Offer, container: &Container) -> Ended {
    use stoker_sandbox::ExitCause;
    let limit = offer.deadline.0.min(Instant::now() + offer.spec.timeout());
    let exit = tokio::select! {
        exit = container.wait() => exit,
        reason = line.cancelled() => return Ended { result: Err(cancelled(reason)), keep: false },
        () = tokio::time::sleep_until(limit.into()) => {
            let error = match limit >= offer.deadline.0 {
                true => Error::new(Code::DeadlineExceeded, "the caller's deadline passed before the function ended"),
                false => Error::new(Code::FunctionTimeout, "the function closed its STDOUT but did not end in time"),
            };
            let error = error.may_have_started().log_tail(container.log.tail());
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
    let cancel = line.cancelled();
    tokio::pin!(cancel);
    let mut fed: Option<Instant> = None;
    let mut stood = Duration::ZERO;
    let mut limit = offer.deadline.0;
    let timer = tokio::time::sleep_until(limit.into());
    tokio::pin!(timer);
    let may_have_started = |code, text: String| Error::new(code, text).may_have_started();
    loop {
        tokio::select! {
            // In this order: nothing can be read before it was asked for, and an answer that is complete counts, however
            // late it is.
            biased;
            lost = &mut input, if fed.is_none() => {
                lost?;
                // The function's time begins when it has the input.
                let now = *fed.insert(Instant::now());
                stood = line.stood();
                limit = limit.min(now + offer.spec.timeout());
                timer.as_mut().reset(limit.into());
            }
            // A connection with half a request on it carries no other.
            end = &mut output => return end.map(|end| if fed.is_some() { end } else { end.not_reusable() }),
            reason = &mut cancel => {
                return Ok(End::Failed { error: cancelled(reason), after: After::Destroy });
            }
            () = &mut timer => {
                // A reader that stands still is not the function's fault: its time does not pass meanwhile, the caller's does.
                let due = fed.map(|fed| fed + offer.spec.timeout() + line.stood().saturating_sub(stood));
                if let Some(due) = due.filter(|due| limit < offer.deadline.0 && *due > limit) {
                    // Not at shorter and shorter steps while it stands.
                    limit = offer.deadline.0.min(due.max(Instant::now() + GRAIN));
                    timer.as_mut().reset(limit.into());
                    continue;
                }
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
    // Grows with what comes at once: a small answer needs little, a long one should not cost a system call every few KiB.
    let mut room = 8 * 1024;
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
                    answer.body.push(piece);
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
        input.reserve(room);
        let spare = input.capacity() - input.len();
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
        if matches!(count, Ok(n) if n == spare) {
            room = (room * 2).min(CHUNK);
        }
        // A connection that breaks ends like one that is closed.
        eof = !matches!(count, Ok(n) if n > 0);
        answer.closed = eof;
    }
}
