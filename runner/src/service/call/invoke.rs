//! A call as an invocation of AWS Lambda: whole in, as it comes out.

mod follow;
mod outcome;

use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use stoker_core::call::{Intent, Taken, TraceContext, WINDOW};
use stoker_core::error::Report;
use stoker_core::ids::CallId;
use stoker_core::{Code, Error};
use stoker_lambda::{Bandwidth, Direct, Invocation, MAX_PAYLOAD, Over, Refused, function_url, is_request_id};
use stoker_proto::runner::v1::{self as wire, engage_response::Frame};
use stoker_runtime::telemetry::to_xray;

use self::follow::{Follow, Heard};
use self::outcome::{refusal, report_line, used};
use super::answer::Answer;
use super::carry::cancelled;
use super::{Lost, Offer, Strand};
use crate::container::{Container, lambda};

/// An invocation that took longer may have taken memory that nobody has seen, and is long beside a look.
const LONG: Duration = Duration::from_millis(5);

/// The call as an invocation needs it.
pub struct Invoke<'a> {
    pub strand: &'a Strand,
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

/// What the runtime is to be given, and how its caller wants the answer.
struct Ready {
    invocation: Invocation,
    /// There where the caller said so by the headers of a direct invoke.
    direct: Option<Direct>,
    /// What the function may take.
    limit: Duration,
}

impl Invoke<'_> {
    /// Runs it.
    pub async fn run(
        mut self,
        container: &Container,
        answer: &mut Answer,
    ) -> Result<(Result<(), Error>, After), Lost> {
        // Of what fails here the function has seen nothing.
        let Ready { invocation, direct, limit } = match self.gather(container).await? {
            Ok(ready) => ready,
            Err(error) => return Ok((Err(error), After::Keep)),
        };
        let id = invocation.request_id.clone();
        let api = container.lambda().expect("containers of this format have one");
        let said = match api.invoke(invocation) {
            Ok(said) => said,
            Err(refused) => {
                let unusable = matches!(refused, Refused::Busy | Refused::NotReady);
                return Ok((Err(refusal(refused)), if unusable { After::End } else { After::Keep }));
            }
        };
        self.note(container, format!("START RequestId: {id} Version: {}", lambda::version(&self.offer.spec)));
        answer.started = Instant::now();
        let follow = Follow::new(self.strand, self.offer, container, &api, said, direct.as_ref(), &id);
        let mut heard = follow.until_over(answer, limit).await?;
        let took = answer.started.elapsed();
        let mut after = self.judge(&heard);
        self.tell(container, &id, took, heard.result.as_ref().err()).await;
        heard.result = heard.result.map_err(|error| {
            let error = match error.code {
                Code::FunctionTimeout => error.log_tail(container.log.tail(Some(self.offer.id))),
                _ => error,
            };
            lambda::complete(error, &id, self.offer.spec.timeout())
        });
        let seen = api.over(&id, &self.over(&heard, took, container));
        if !seen && self.offer.spec.concurrency > 1 && !heard.exited {
            // It waited for others, and nobody has seen anything of it.
            after = After::Keep;
        }
        Ok((heard.result, after))
    }

    /// Makes the invocation of the call: its head is read, and all of its body.
    async fn gather(&mut self, container: &Container) -> Result<Result<Ready, Error>, Lost> {
        let direct = match self.direct() {
            Ok(direct) => direct,
            Err(error) => return Ok(Err(error)),
        };
        let payload = match self.payload(container).await?.and_then(|payload| self.event(payload)) {
            Ok(payload) => payload,
            Err(error) => return Ok(Err(error)),
        };
        // A start that was a part of this call has taken some of its time.
        let spent = if self.cold { container.spent() } else { Duration::ZERO };
        let limit = self.offer.spec.timeout().saturating_sub(spent).min(self.offer.deadline.remaining());
        let invocation = self.invocation(payload, direct.as_ref(), limit);
        Ok(Ok(Ready { invocation, direct, limit }))
    }

    /// What its end means for the container.
    fn judge(&self, heard: &Heard) -> After {
        let code = heard.result.as_ref().err().map(|error| error.code);
        // The function said so itself: its process is well.
        let said_so = matches!(code, None | Some(Code::FunctionFailed | Code::ResponseTooLarge));
        match code {
            _ if said_so && !heard.exited && !heard.answers_on => After::Keep,
            // Others may be at work in it.
            _ if self.offer.spec.concurrency > 1 => After::End,
            Some(Code::FunctionTimeout | Code::DeadlineExceeded) => After::Again("timeout"),
            Some(Code::FunctionCrashed) => After::Again("failure"),
            _ => After::End,
        }
    }

    /// Writes the last lines of its log. `took`: from when the function was asked.
    async fn tell(&self, container: &Container, id: &str, took: Duration, error: Option<&Error>) {
        if took >= LONG || error.is_some() {
            container.look().await;
        }
        let ended =
            error.and_then(|error| lambda::last(error, id, self.offer.spec.timeout(), SystemTime::now()));
        for line in ended.iter().flat_map(|text| text.split('\n')) {
            self.note(container, line.to_owned());
        }
        self.note(container, format!("END RequestId: {id}"));
        self.note(container, report_line(id, self.offer, took, self.init(container), container, error));
    }

    /// How long the container took to initialise, where that was for this call.
    fn init(&self, container: &Container) -> Option<Duration> {
        self.cold.then_some(container.launched.init)
    }

    fn note(&self, container: &Container, line: String) {
        container.log.note(self.offer.id, line);
    }

    /// The end as those who subscribe to telemetry are told it.
    fn over(&self, heard: &Heard, took: Duration, container: &Container) -> Over {
        let error = heard.result.as_ref().err();
        Over {
            error: error.map(|error| {
                let kind = error.report.as_ref().map_or("Sandbox.Failure", |report| &report.kind);
                (kind.to_owned(), error.message.clone())
            }),
            timeout: error.is_some_and(|error| error.code == Code::FunctionTimeout),
            duration: took,
            memory_used: used(container),
            init: self.init(container),
            throttled: heard.throttled,
        }
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
        let started = wire::Started { call: self.strand.number, container: container.id.as_str().to_owned() };
        self.strand.send(Frame::Started(started)).await?;
        self.strand.allow(WINDOW).await?;
        let mut taken = Taken::default();
        loop {
            let (piece, last) = tokio::select! {
                next = self.strand.next_body() => next,
                reason = self.strand.cancelled() => return Ok(Err(cancelled(reason))),
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
            if let Some(due) = taken.add(piece.len()) {
                self.strand.allow(due).await?;
            }
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
            trace: told_trace(
                self.trace,
                head.headers.get("x-amzn-trace-id").filter(|said| !said.is_empty()),
                &self.offer.id,
            ),
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
}

/// The trace as the function is told of it. Where nobody makes one there is one all the same, by the call's own name and not recorded: so it is on
/// AWS, and handlers read their variable without a look whether it is there.
fn told_trace(trace: &TraceContext, said: Option<&str>, id: &CallId) -> String {
    let told = to_xray(trace, said);
    if !told.is_empty() {
        return told;
    }
    let id = id.to_string();
    format!("Root=1-{}-{};Parent={};Sampled=0", &id[..8], &id[8..], &id[16..])
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
