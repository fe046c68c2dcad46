//! A call as an invocation of AWS Lambda: whole in, as it comes out.

use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use stoker_core::call::{CHUNK, Intent, TraceContext, WINDOW};
use stoker_core::error::Report;
use stoker_core::{Code, Error, ResponseHead};
use stoker_lambda::{
    Bandwidth, Direct, Failure, Invocation, MAX_PAYLOAD, Over, Refused, Said, function_url, is_request_id,
};
use stoker_proto::runner::v1::{self as wire, engage_response::Frame};
use stoker_runtime::telemetry::to_amazon;

use super::answer::Answer;
use super::serve::cancelled;
use super::{Line, Lost, Offer};
use crate::container::{Container, Phase, lambda};

/// The call as an invocation needs it.
pub struct Invoke<'a> {
    pub line: &'a Line,
    pub offer: &'a Offer,
    pub trace: &'a TraceContext,
    /// What was there of the body, and whether that is all.
    pub first: Bytes,
    pub complete: bool,
    /// The container was started for it.
    pub cold: bool,
}

/// What becomes of its container.
pub enum After {
    /// It takes the next.
    Keep,
    /// It does when the function was started again in it, for this reason.
    Again(&'static str),
    End,
}

impl Invoke<'_> {
    /// Runs it.
    pub async fn run(
        mut self,
        container: &Container,
        answer: &mut Answer,
    ) -> Result<(Result<(), Error>, After), Lost> {
        // Of what fails here the function has seen nothing.
        let direct = match self.direct() {
            Ok(direct) => direct,
            Err(error) => return Ok((Err(error), After::Keep)),
        };
        let payload = match self.payload(container).await?.and_then(|payload| self.event(payload)) {
            Ok(payload) => payload,
            Err(error) => return Ok((Err(error), After::Keep)),
        };
        let (line, offer) = (self.line, self.offer);
        // A start that was a part of this call has taken some of its time.
        let spent = if self.cold { container.spent() } else { Duration::ZERO };
        let limit = offer.spec.timeout().saturating_sub(spent).min(offer.deadline.remaining());
        let invocation = self.invocation(payload, direct.as_ref(), limit);
        let id = invocation.request_id.clone();
        let api = container.lambda().expect("containers of this format have one");
        let mut said = match api.invoke(invocation) {
            Ok(said) => said,
            Err(refused) => {
                let unusable = matches!(refused, Refused::Busy | Refused::NotReady);
                return Ok((Err(refusal(refused)), if unusable { After::End } else { After::Keep }));
            }
        };
        container
            .log
            .note(offer.id, format!("START RequestId: {id} Version: {}", lambda::version(&offer.spec)));
        answer.started = Instant::now();
        let timeout = tokio::time::sleep_until((answer.started + limit).into());
        tokio::pin!(timeout);
        let cancel = line.cancelled();
        tokio::pin!(cancel);
        let mut exit = None;
        let mut shape = Shape::Plain(None);
        let mut answers_on = false;
        let (most, buffers) = direct.as_ref().map_or((None, false), |direct| (direct.most, !direct.streams));
        let mut size = 0;
        let result = loop {
            let next = tokio::select! {
                // An answer that is complete counts, however late it is.
                biased;
                next = said.next() => next,
                reason = &mut cancel => break Err(cancelled(reason)),
                () = &mut timeout => break Err(self.too_late()),
                // What the process had said by then is read to its end before it counts as unsaid.
                ended = container.wait(), if exit.is_none() => {
                    exit = Some(ended);
                    continue;
                }
                () = api.left_alone(), if exit.is_some() => None,
            };
            match (next, exit) {
                (Some(Said::Head { content_type, streams }), _) => {
                    answer.first_byte = answer.started.elapsed();
                    shape = self.shape(content_type, streams);
                    match &shape {
                        Shape::Plain(content_type) => {
                            answer.head = Some(self.plain(content_type, &id, direct.is_some()));
                        }
                        Shape::Whole(..) | Shape::Headed(_) => continue,
                    }
                    // What came as a whole goes on as that, where it fits.
                    if !streams || buffers {
                        continue;
                    }
                }
                (Some(Said::Piece(piece)), _) => {
                    size += piece.len();
                    if most.is_some_and(|most| size > most) {
                        break Err(oversized(most.unwrap_or(MAX_PAYLOAD)));
                    }
                    match &mut shape {
                        Shape::Plain(_) => answer.body.push(piece),
                        Shape::Whole(_, whole) => {
                            whole.extend_from_slice(&piece);
                            continue;
                        }
                        Shape::Headed(input) => {
                            input.extend_from_slice(&piece);
                            match function_url::streamed_head(input) {
                                None => continue,
                                Some(Err(why)) => {
                                    // The rest of it is still on its way.
                                    answers_on = true;
                                    break Err(no_response(&why));
                                }
                                Some(Ok(head)) => {
                                    answer.head = Some(head);
                                    answer.body.push(input.split().freeze());
                                    shape = Shape::Plain(None);
                                }
                            }
                        }
                    }
                    if buffers || (!answer.headed && answer.head.is_none() && answer.body.len() <= CHUNK) {
                        continue;
                    }
                }
                (Some(Said::End), _) => break self.complete(shape, answer),
                (Some(Said::Failed(failure)), _) => break Err(failed(failure)),
                (None, Some(exit)) => {
                    let error = container.exited(exit, Phase::Call).await.may_have_started();
                    break Err(error.report(lambda::exited(exit)));
                }
                (None, None) => {
                    break Err(Error::new(Code::Internal, "the Runtime API went away").may_have_started());
                }
            }
            tokio::select! {
                biased;
                flushed = answer.flush(line) => flushed?,
                // The caller may be slow to take it, or gone.
                reason = &mut cancel => break Err(cancelled(reason)),
                () = &mut timeout => break Err(self.too_late()),
            }
        };
        let took = answer.started.elapsed();
        let error = result.as_ref().err();
        if took >= LONG || error.is_some() {
            container.look().await;
        }
        let ended = error.and_then(|error| lambda::last(error, &id, offer.spec.timeout(), SystemTime::now()));
        for line in ended.iter().flat_map(|text| text.split('\n')) {
            container.log.note(offer.id, line.to_owned());
        }
        container.log.note(offer.id, format!("END RequestId: {id}"));
        container.log.note(offer.id, report_line(&id, offer, took, container, error));
        let well = exit.is_none()
            && !answers_on
            && match &error {
                None => true,
                // The function said so itself: its process is well.
                Some(error) => matches!(error.code, Code::FunctionFailed | Code::ResponseTooLarge),
            };
        let mut after = match error.map(|error| error.code) {
            _ if well => After::Keep,
            // Others may be at work in it.
            _ if offer.spec.concurrency > 1 => After::End,
            Some(Code::FunctionTimeout | Code::DeadlineExceeded) => After::Again("timeout"),
            Some(Code::FunctionCrashed) => After::Again("failure"),
            _ => After::End,
        };
        let result = result.map_err(|error| {
            let error = match error.code {
                Code::FunctionTimeout => error.log_tail(container.log.tail()),
                _ => error,
            };
            lambda::complete(error, &id, offer.spec.timeout())
        });
        let seen = api.over(
            &id,
            &Over {
                error: result.as_ref().err().map(|error| {
                    let kind = error.report.as_ref().map_or("Sandbox.Failure", |report| &report.kind);
                    (kind.to_owned(), error.message.clone())
                }),
                timeout: result.as_ref().is_err_and(|error| error.code == Code::FunctionTimeout),
                duration: took,
                memory_used: used(container),
                init: self.cold.then_some(container.launched.init),
                throttled: said.throttled(),
            },
        );
        if !seen && offer.spec.concurrency > 1 && exit.is_none() {
            // It waited for others, and nobody has seen anything of it.
            after = After::Keep;
        }
        Ok((result, after))
    }

    /// What the caller asked for by the headers of a direct invoke.
    fn direct(&self) -> Result<Option<Direct>, Error> {
        let head = &self.offer.head;
        if head.intent == Intent::HttpRequest {
            return Ok(None);
        }
        Direct::read(|name| head.headers.get(name), || lambda::version(&self.offer.spec)).map_err(|name| {
            let text = format!("the headers of the invoke are wrong: {name}");
            let (kind, content_type) = (name.to_owned(), String::new());
            Error::new(Code::InvalidRequest, text.clone()).report(Report {
                kind,
                content_type,
                body: text.into(),
            })
        })
    }

    /// All of the body.
    async fn payload(&mut self, container: &Container) -> Result<Result<Bytes, Error>, Lost> {
        let too_large = |size: usize| {
            let text =
                format!("the event has {size} bytes or more, and an invocation may have {MAX_PAYLOAD}");
            Error::new(Code::RequestTooLarge, text)
        };
        if self.complete {
            return Ok(match self.first.len() {
                size if size > MAX_PAYLOAD => Err(too_large(size)),
                _ => Ok(std::mem::take(&mut self.first)),
            });
        }
        let mut whole = BytesMut::from(&self.first[..]);
        let started = wire::Started { call: self.line.number, container: container.id.as_str().to_owned() };
        self.line.send(Frame::Started(started)).await?;
        self.line.allow(WINDOW).await?;
        loop {
            let (piece, last) = tokio::select! {
                next = self.line.next_body() => next,
                reason = self.line.cancelled() => return Ok(Err(cancelled(reason))),
                () = tokio::time::sleep_until(self.offer.deadline.0.into()) => {
                    let text = "the caller's deadline passed before all of the event had come";
                    return Ok(Err(Error::new(Code::DeadlineExceeded, text)));
                }
            };
            whole.extend_from_slice(&piece);
            if whole.len() > MAX_PAYLOAD {
                return Ok(Err(too_large(whole.len())));
            }
            if last {
                return Ok(Ok(whole.freeze()));
            }
            self.line.allow(u32::try_from(piece.len()).unwrap_or(WINDOW)).await?;
        }
    }

    /// A body as what the function gets: nothing is an empty event, an HTTP request is a part of its event.
    fn event(&self, body: Bytes) -> Result<Bytes, Error> {
        if self.offer.head.intent != Intent::HttpRequest {
            return Ok(if body.is_empty() { Bytes::from_static(b"{}") } else { body });
        }
        let request = function_url::Request {
            head: &self.offer.head,
            request_id: &request_id(self.offer),
            account: lambda::ACCOUNT,
            api: &self.offer.spec.name.id(),
            at: SystemTime::now(),
            body: &body,
        };
        let event = request.event();
        match event.len() <= MAX_PAYLOAD {
            true => Ok(event.into()),
            false => {
                let text = format!(
                    "the request is {} bytes as an event, and an invocation may have {MAX_PAYLOAD}",
                    event.len()
                );
                Err(Error::new(Code::RequestTooLarge, text))
            }
        }
    }

    /// How the answer is to be read: those to HTTP requests say what their response shall be.
    fn shape(&self, content_type: Option<String>, streams: bool) -> Shape {
        match (self.offer.head.intent, streams, content_type) {
            (Intent::HttpRequest, false, content_type) => Shape::Whole(content_type, BytesMut::new()),
            (Intent::HttpRequest, true, Some(said)) if said == function_url::WITH_HEAD => {
                Shape::Headed(BytesMut::new())
            }
            (_, _, content_type) => Shape::Plain(content_type),
        }
    }

    /// All of the answer is there.
    fn complete(&self, shape: Shape, answer: &mut Answer) -> Result<(), Error> {
        match shape {
            Shape::Plain(_) => Ok(()),
            Shape::Whole(content_type, whole) => {
                let response = function_url::response(content_type.as_deref(), whole.freeze());
                let (head, body) = response.map_err(|why| no_response(&why))?;
                answer.head = Some(head);
                answer.body.push(body);
                Ok(())
            }
            Shape::Headed(_) => Err(no_response("it ended within its head")),
        }
    }

    fn invocation(&self, payload: Bytes, direct: Option<&Direct>, limit: Duration) -> Invocation {
        let head = &self.offer.head;
        let said = |name: &str| head.headers.get(name).unwrap_or_default().to_owned();
        let or = |text: String, other: &dyn Fn() -> String| if text.is_empty() { other() } else { text };
        let by = |said: &dyn Fn(&Direct) -> String| direct.map(said).unwrap_or_default();
        let arn =
            or(by(&|d| d.arn.clone().unwrap_or_default()), &|| said("lambda-runtime-invoked-function-arn"));
        let options = &self.offer.spec.format_options;
        let own = (options.stream_rate > 0).then_some(Bandwidth {
            rate: options.stream_rate,
            burst: match options.stream_burst {
                0 => Bandwidth::DEFAULT.burst,
                burst => burst,
            },
        });
        // A caller may have less than the function allows, not more. One who takes the answer as a whole has it at once.
        let bandwidth = match (own, direct.and_then(|direct| direct.bandwidth)) {
            _ if direct.is_some_and(|direct| !direct.streams) => None,
            (Some(own), Some(asked)) => Some(own.least(asked)),
            (own, asked) => own.or(asked),
        };
        Invocation {
            request_id: direct
                .and_then(|direct| direct.request_id.clone())
                .unwrap_or_else(|| request_id(self.offer)),
            deadline: Some(SystemTime::now() + limit),
            arn: or(arn, &|| lambda::arn(&self.offer.spec)),
            trace: to_amazon(self.trace, head.headers.get("x-amzn-trace-id").filter(|said| !said.is_empty())),
            client_context: or(by(&|d| d.client_context.clone()), &|| said("lambda-runtime-client-context")),
            identity: or(by(&|d| d.identity.clone()), &|| said("lambda-runtime-cognito-identity")),
            bandwidth,
            tenant: said("lambda-runtime-aws-tenant-id"),
            // A request is within its event, which is JSON.
            content_type: match head.intent {
                Intent::HttpRequest => String::new(),
                Intent::Invoke => said("content-type"),
            },
            payload,
        }
    }

    /// The head of an answer that is itself. A direct invoke is told what it was.
    fn plain(&self, content_type: &Option<String>, id: &str, direct: bool) -> ResponseHead {
        let mut head = ResponseHead { status: 200, ..ResponseHead::default() };
        let content_type = content_type.as_deref().unwrap_or("application/json");
        head.headers.push("content-type", content_type.to_owned());
        if direct {
            head.headers.push("invoked-function-version", lambda::version(&self.offer.spec));
            head.headers.push("invoke-id", id.to_owned());
            head.headers.push("reservation-token", self.offer.id.to_string());
            let tenant = self.offer.head.headers.get("lambda-runtime-aws-tenant-id").unwrap_or_default();
            if !tenant.is_empty() {
                head.headers.push("tenant-id", tenant.to_owned());
            }
        }
        head
    }

    fn too_late(&self) -> Error {
        let timeout = self.offer.spec.timeout();
        let error = match self.offer.deadline.remaining().is_zero() {
            true => Error::new(Code::DeadlineExceeded, "the caller's deadline passed while the function ran"),
            false => {
                let text = format!("the function took longer than its timeout of {timeout:?}");
                Error::new(Code::FunctionTimeout, text)
            }
        };
        error.may_have_started()
    }
}

/// What an answer is for its caller.
enum Shape {
    /// Itself, with this type.
    Plain(Option<String>),
    /// A response in JSON.
    Whole(Option<String>, BytesMut),
    /// A stream whose head is still to come.
    Headed(BytesMut),
}

/// More came than the caller takes, of an answer that was to be a whole.
fn oversized(most: usize) -> Error {
    let kind = "Function.ResponseSizeTooLarge";
    let message = format!("Response payload size exceeded maximum allowed payload size ({most} bytes).");
    let body = format!(r#"{{"errorMessage":"{message}","errorType":"{kind}"}}"#);
    let text = format!("the function's answer is larger than the {most} bytes that its caller takes");
    let (kind, content_type) = (kind.to_owned(), "application/json".to_owned());
    Error::new(Code::ResponseTooLarge, text).may_have_started().report(Report {
        kind,
        content_type,
        body: body.into(),
    })
}

fn no_response(why: &str) -> Error {
    let text = format!("the function's answer is no HTTP response: {why}");
    Error::new(Code::FunctionInvalidResponse, text).may_have_started()
}

/// By what name a call is known to its function.
fn request_id(offer: &Offer) -> String {
    match offer.head.headers.get("lambda-runtime-aws-request-id") {
        Some(said) if is_request_id(said) => said.to_owned(),
        _ => offer.id.to_string(),
    }
}

/// The error of a start with the body that AWS's callers know.
pub fn start_failed(error: Error, offer: &Offer) -> Error {
    // It was tried a second time, with the time of a call.
    lambda::complete(error, &request_id(offer), offer.spec.timeout())
}

fn refusal(refused: Refused) -> Error {
    match refused {
        Refused::Header(name) => Error::new(
            Code::InvalidRequest,
            format!("what is said for {name} has characters that no HTTP header can carry"),
        ),
        Refused::TooLarge => Error::new(Code::RequestTooLarge, "the event is too large"),
        Refused::Twice => {
            let text = "an invocation with this request id is under way in this container";
            let (kind, content_type) = ("Client.DuplicatedInvokeId".to_owned(), String::new());
            Error::new(Code::InvalidRequest, text).report(Report { kind, content_type, body: text.into() })
        }
        Refused::NotJson => Error::new(Code::InvalidRequest, "the event is not JSON"),
        Refused::Busy | Refused::NotReady => {
            Error::new(Code::Internal, "the container was given a call that it cannot take")
        }
    }
}

fn failed(failure: Failure) -> Error {
    let told = failure.told();
    let error = match (failure.broken, &*failure.kind) {
        (true, "Extension.InitError" | "Extension.ExitError" | "Extension.Crash") => {
            Error::new(Code::FunctionCrashed, format!("an extension ended the function: {told}"))
        }
        (true, _) => Error::new(
            Code::FunctionInvalidResponse,
            format!("the function's runtime broke its contract: {told}"),
        ),
        (false, "Function.ResponseSizeTooLarge") => {
            let text =
                format!("the function's answer is larger than {MAX_PAYLOAD} bytes and was not streamed");
            Error::new(Code::ResponseTooLarge, text)
        }
        (false, _) => Error::new(Code::FunctionFailed, format!("the function failed: {told}")),
    };
    error.may_have_started().report(lambda::report(failure))
}

/// An invocation that took longer may have taken memory that nobody has seen, and is long beside a look.
const LONG: Duration = Duration::from_millis(5);

/// The most memory that is known of it, in MiB.
fn used(container: &Container) -> u64 {
    container.used().map_or(0, |used| used.memory_peak >> 20)
}

fn report_line(
    id: &str,
    offer: &Offer,
    took: Duration,
    container: &Container,
    error: Option<&Error>,
) -> String {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let used = used(container);
    let mut line = format!(
        "REPORT RequestId: {id}\tDuration: {:.2} ms\tBilled Duration: {} ms\tMemory Size: {} MB\tMax Memory Used: {used} MB",
        ms(took),
        took.as_nanos().div_ceil(1_000_000),
        offer.spec.memory >> 20,
    );
    match error.map(|error| error.code) {
        None | Some(Code::FunctionFailed) => {}
        Some(Code::FunctionTimeout) => line.push_str("\tStatus: timeout"),
        Some(_) => {
            let kind = error.and_then(|e| e.report.as_ref()).map_or("Runtime.Unknown", |report| &report.kind);
            line.push_str(&format!("\tStatus: error\tError Type: {kind}"));
        }
    }
    line
}
