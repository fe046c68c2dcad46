//! Invocations: their heads, their events, and what becomes of their answers.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::Response;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::request::Parts;
use serde_json::{Value, json};
use stoker_core::error::{Blame, Code, Error, Report, Retry};
use stoker_core::ids::CallId;
use stoker_core::{Format, FunctionSpec};
use stoker_proto::runner::v1::StreamLogsRequest;
use stoker_proto::runner::v1::runner_service_client::RunnerServiceClient;
use stoker_proto::{status, v1};

use super::super::{AnswerBody, Front, header, url};
use super::stream::{self, Events, Log};
use super::{
    EXECUTED_VERSION, FUNCTION_ERROR, LATEST, LOG_RESULT, Refused, Target, arn, plain, request_id, said,
    with_body,
};
use crate::admission::Admitted;
use crate::call::{Answer, Input, Rest};
use crate::directory::Known;
use crate::later::Submit;
use crate::observe::Watch;

/// Most bytes of an answer that is not streamed, as AWS has it.
const LARGEST_ANSWER: usize = (6 << 20) + 100;

/// Most bytes of a client's context, in base64.
const LARGEST_CONTEXT: usize = 3583;

/// How long runners may take to say what a function wrote, which is no part of its answer.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// Most bytes of log that go with an answer.
const LOG_TAIL: usize = 4096;

/// Of a function without one.
const UNKNOWN: &str = "Unknown application error occurred";

/// When the caller wants to hear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The answer.
    Now,
    /// That it will be done.
    Event,
    /// Only what could be wrong.
    Dry,
}

/// An invocation, as far as its head tells.
pub struct Asked {
    target: Target,
    headers: Vec<v1::Header>,
    tail: bool,
    kind: Kind,
}

/// What is known of an invocation beside its answer, whatever becomes of it.
#[derive(Default)]
pub struct Trail {
    /// The end of what the function wrote, in base64.
    log: Option<String>,
    /// The newest revision, where the caller named none.
    latest: Option<u64>,
}

impl Asked {
    /// # Errors
    /// What is wrong with the head.
    pub fn new(target: Target, parts: &Parts, kind: Option<&str>) -> Result<Self, Refused> {
        let kind = match kind.unwrap_or(said(parts, "x-amz-invocation-type")) {
            "" | "RequestResponse" => Kind::Now,
            "DryRun" => Kind::Dry,
            "Event" => Kind::Event,
            other => {
                let text = format!("InvocationType {other:?} is none of RequestResponse, Event, DryRun");
                return Err(Refused::parameter(text));
            }
        };
        let tail = match said(parts, "x-amz-log-type") {
            "" | "None" => false,
            "Tail" => true,
            other => return Err(Refused::parameter(format!("LogType {other:?} is none of None, Tail"))),
        };
        let context = context(said(parts, "x-amz-client-context"))?;
        let headers = told(parts, &target, &context);
        Ok(Self { target, headers, tail, kind })
    }

    /// Asks for the answer as a whole.
    fn as_a_whole(&mut self) {
        self.headers.extend(buffered(&self.target.known.spec));
    }

    /// Places the call and follows it to the head of its answer.
    async fn call(
        self,
        front: &Front,
        id: CallId,
        parts: &Parts,
        place: Admitted,
        event: Bytes,
        watch: &mut Watch,
    ) -> Result<Answer, Refused> {
        let event = checked(event)?;
        let head = head(id, parts, self.headers);
        let limited = self.target.known.gate.is_limited();
        let refused = |error: Error| match limited && error.code == Code::Overloaded {
            true => Refused::from(error).over_reserved(),
            false => error.into(),
        };
        let call = front.admit_to(place, id, self.target.known, head, None, watch).map_err(refused)?;
        front.dispatch.call(call, Input::whole(event), watch).await.map_err(refused)
    }
}

/// A client's context out of its base64: an object, or nothing.
fn context(text: &str) -> Result<Vec<u8>, Refused> {
    if text.len() > LARGEST_CONTEXT {
        return Err(Refused::content(format!("ClientContext has more than {LARGEST_CONTEXT} bytes")));
    }
    let context = BASE64.decode(text).ok().filter(|context| {
        context.is_empty() || serde_json::from_slice::<Value>(context).is_ok_and(|value| value.is_object())
    });
    context.ok_or_else(|| Refused::content("Client context must be a valid Base64-encoded JSON object."))
}

/// What the runtime is told of a call.
pub fn told(parts: &Parts, target: &Target, context: &[u8]) -> Vec<v1::Header> {
    let own = [
        ("content-type", Bytes::from_static(b"application/json")),
        ("lambda-runtime-invoked-function-arn", arn(&target.name, target.qualifier.as_deref()).into()),
        // A line break is space in JSON, and nothing that a header can hold.
        ("lambda-runtime-client-context", String::from_utf8_lossy(context).replace(['\r', '\n'], " ").into()),
        ("lambda-runtime-aws-tenant-id", said(parts, "x-amz-tenant-id").to_owned().into()),
        ("x-amzn-trace-id", said(parts, "x-amzn-trace-id").to_owned().into()),
    ];
    let own = own.into_iter().filter(|(_, value)| !value.is_empty());
    own.map(|(name, value)| v1::Header { name: name.to_owned(), value }).collect()
}

/// Says that the answer is wanted as a whole, of a function that may stream: what is waited for to its end is not slowed down on the way, and
/// what is too large for that is not sent here to be counted.
pub fn buffered(spec: &FunctionSpec) -> Option<v1::Header> {
    let (name, value) = ("invokeresponsemode".to_owned(), Bytes::from_static(b"Buffered"));
    (spec.format == Format::Lambda).then_some(v1::Header { name, value })
}

/// The head of a call.
pub fn head(id: CallId, parts: &Parts, mut headers: Vec<v1::Header>) -> v1::RequestHead {
    let request_id = request_id(id).into();
    headers.push(v1::Header { name: "lambda-runtime-aws-request-id".to_owned(), value: request_id });
    v1::RequestHead { intent: v1::Intent::Invoke.into(), method: "POST".to_owned(), url: url(parts), headers }
}

/// An event that is JSON; nothing is an empty object.
fn checked(event: Bytes) -> Result<Bytes, Refused> {
    if event.is_empty() {
        return Ok(Bytes::from_static(b"{}"));
    }
    match serde_json::from_slice::<serde::de::IgnoredAny>(&event) {
        Ok(_) => Ok(event),
        Err(error) => Err(Refused::content(format!(
            "Could not parse request body into json: Could not parse payload into json: {error}"
        ))),
    }
}

/// `Invoke`: the answer in one.
pub async fn invoke(
    front: &Arc<Front>,
    id: CallId,
    parts: &Parts,
    place: Admitted,
    event: Bytes,
    mut asked: Asked,
    watch: &mut Watch,
    trail: &mut Trail,
) -> Result<Response<AnswerBody>, Refused> {
    trail.latest = asked.target.latest();
    match asked.kind {
        Kind::Dry => return Ok(plain(204, Bytes::new(), id)),
        Kind::Event => {
            // Keeping a call has a place of its own.
            drop(place);
            return later(front, id, parts, event, asked, watch).await;
        }
        Kind::Now => asked.as_a_whole(),
    }
    let (function, tail) = (asked.target.known.clone(), asked.tail);
    let mut ran_on = String::new();
    let whole = async {
        let answer = asked.call(front, id, parts, place, event, watch).await?;
        ran_on.clone_from(&answer.end.runner);
        Ok(whole(answer).await?)
    };
    let whole: Result<Bytes, Refused> = whole.await;
    if tail {
        // One that never began has written nothing of its own.
        let last = whole.as_ref().err().map(|refused| refused.error.log_tail.clone()).unwrap_or_default();
        trail.log = Some(logged(front.clone(), function, id, ran_on, last).await);
    }
    let mut response = plain(200, whole?, id);
    executed(&mut response, trail, watch);
    Ok(response)
}

/// `Invoke` with `Event`: the call is kept, and will be made.
async fn later(
    front: &Front,
    id: CallId,
    parts: &Parts,
    event: Bytes,
    asked: Asked,
    watch: &mut Watch,
) -> Result<Response<AnswerBody>, Refused> {
    let submit = Submit {
        qualifier: match asked.target.latest() {
            Some(_) => String::new(),
            None => asked.target.qualifier.unwrap_or_default(),
        },
        function: asked.target.known,
        head: head(id, parts, asked.headers),
        input: Input::whole(checked(event)?),
        key: String::new(),
        delay: None,
    };
    front.later.submit(front, id, submit, watch).await.map_err(|error| match (error.code, error.retry) {
        // Where nothing is kept, nothing will be at the next attempt either, which kits make by themselves.
        (Code::Unavailable, Retry::Never) => Refused::parameter(error.message),
        _ => error.into(),
    })?;
    Ok(plain(202, Bytes::new(), id))
}

/// All of the body of an answer, within AWS's limit.
pub async fn collected(first: Bytes, rest: Option<Rest>) -> Result<Bytes, Error> {
    let too_large = || {
        let text =
            format!("Response payload size exceeded maximum allowed payload size ({LARGEST_ANSWER} bytes).");
        let kind = "Function.ResponseSizeTooLarge".to_owned();
        let body = json!({"errorMessage": text, "errorType": kind}).to_string().into();
        let report = Report { kind, content_type: "application/json".to_owned(), body };
        Error::new(Code::ResponseTooLarge, text).may_have_started().report(report)
    };
    let Some(mut rest) = rest else { return Ok(first) };
    let mut joined = BytesMut::from(first);
    while let Some(piece) = rest.next().await {
        let piece = piece?;
        if joined.len() + piece.len() > LARGEST_ANSWER {
            return Err(too_large());
        }
        joined.extend_from_slice(&piece);
    }
    Ok(joined.freeze())
}

/// All of an answer. A function that says so in its status failed, in formats that have one.
pub async fn whole(answer: Answer) -> Result<Bytes, Error> {
    let body = collected(answer.first, answer.rest).await?;
    if answer.head.status < 400 {
        return Ok(body);
    }
    let kind = format!("Function.Status{}", answer.head.status);
    let content_type = answer.head.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-type"));
    let content_type =
        content_type.and_then(|h| String::from_utf8(h.value.to_vec()).ok()).unwrap_or_default();
    let text = format!("the function answered with status {}", answer.head.status);
    Err(Error::new(Code::FunctionFailed, text).may_have_started().report(Report { kind, content_type, body }))
}

/// `InvokeWithResponseStream`: the answer as it comes.
pub async fn invoke_streaming(
    front: &Arc<Front>,
    id: CallId,
    parts: &Parts,
    place: Admitted,
    event: Bytes,
    asked: Asked,
    watch: &mut Watch,
) -> Result<Response<AnswerBody>, Refused> {
    let trail = Trail { log: None, latest: asked.target.latest() };
    match asked.kind {
        Kind::Dry => return Ok(plain(204, Bytes::new(), id)),
        Kind::Event => {
            return Err(Refused::parameter("InvocationType Event has no answer that could be streamed"));
        }
        Kind::Now => {}
    }
    let (function, tail) = (asked.target.known.clone(), asked.tail);
    let log = |runner: String, last: String| -> Option<Log> {
        tail.then(|| Box::pin(logged(front.clone(), function.clone(), id, runner, last)) as Log)
    };
    let body = match asked.call(front, id, parts, place, event, watch).await {
        Ok(answer) => {
            let events = Events::new(log(answer.end.runner, String::new()));
            AnswerBody::new(answer.first, answer.rest).events(events)
        }
        Err(refused) if is_of_function(&refused) => {
            let mut events = Events::new(log(String::new(), refused.error.log_tail.clone()));
            events.fail(&refused.error);
            AnswerBody::whole(Bytes::new()).events(events)
        }
        Err(refused) => return Err(refused),
    };
    let mut response = with_body(200, body, id);
    executed(&mut response, &trail, watch);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(stream::MEDIA_TYPE));
    Ok(response)
}

/// Whether it is the function that failed, which is a success of the call.
pub fn is_of_function(refused: &Refused) -> bool {
    let error = &refused.error;
    error.blame() == Blame::Function && error.code != Code::ResourcesImpossible && !refused.is_named()
}

/// The answer of a call whose function failed.
pub fn failed(error: &Error, id: CallId, trail: &Trail, watch: &Watch) -> Response<AnswerBody> {
    let report = report(error);
    let mut response = plain(200, report.body, id);
    executed(&mut response, trail, watch);
    let headers = response.headers_mut();
    headers.insert(FUNCTION_ERROR, HeaderValue::from_static("Unhandled"));
    if let Ok(kind) = HeaderValue::try_from(report.content_type) {
        headers.insert(CONTENT_TYPE, kind);
    }
    response
}

/// The function's own words on its failure, or ours in the same form.
pub fn report(error: &Error) -> Report {
    match &error.report {
        Some(report) => Report::clone(report),
        None => {
            let kind = format!("Stoker.{}", status::row(error.code).reason);
            let message = if error.message.is_empty() { UNKNOWN } else { error.message.as_str() };
            let body = json!({"errorType": kind, "errorMessage": message}).to_string().into();
            Report { kind, content_type: "application/json".to_owned(), body }
        }
    }
}

/// Says which version ran, and what it wrote.
fn executed(response: &mut Response<AnswerBody>, trail: &Trail, watch: &Watch) {
    let version = match watch.revision() {
        Some(revision) if trail.latest != Some(revision) => header(&revision.to_string()),
        _ => HeaderValue::from_static(LATEST),
    };
    response.headers_mut().insert(EXECUTED_VERSION, version);
    if let Some(log) = &trail.log {
        response.headers_mut().insert(LOG_RESULT, header(log));
    }
}

/// The end of what the function wrote in this call, in base64; where it wrote nothing in it, the last words that came with its error. Of a call
/// that failed nobody says where it ran: all are asked.
async fn logged(front: Arc<Front>, function: Arc<Known>, id: CallId, ran_on: String, last: String) -> String {
    let ask = StreamLogsRequest {
        app: function.spec.name.app().to_owned(),
        function: function.spec.name.function().to_owned(),
        call_id: id.to_string(),
        follow: false,
    };
    let runners = front.dispatch.fleet.runners();
    let asked = runners.iter().filter(|runner| ran_on.is_empty() || runner.name == ran_on);
    let mut logs: FuturesUnordered<_> = asked
        .filter_map(|runner| runner.channel())
        .map(|channel| {
            let ask = ask.clone();
            async move {
                let mut text = Vec::new();
                let mut lines = RunnerServiceClient::new(channel).stream_logs(ask).await?.into_inner();
                while let Some(message) = lines.message().await? {
                    for line in message.lines {
                        text.extend_from_slice(&line.text);
                        text.push(b'\n');
                    }
                }
                Ok::<_, tonic::Status>(text)
            }
        })
        .collect();
    let found = async {
        while let Some(text) = logs.next().await {
            if let Ok(text) = text
                && !text.is_empty()
            {
                return text;
            }
        }
        last.into_bytes()
    };
    let text = tokio::time::timeout(LOG_PATIENCE, found).await.unwrap_or_default();
    BASE64.encode(&text[text.len().saturating_sub(LOG_TAIL)..])
}
