//! AWS Lambda's HTTP API, for callers of its SDKs with another `endpoint_url`.
//!
//! Two rules of theirs are not ours. A function that failed is a success of the call: 200, with `X-Amz-Function-Error` and the
//! function's own words as the body, for callers would send it again otherwise. And everything else that a caller can do about
//! an error is in its name, which stands in a header.

mod functions;
pub mod stream;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use serde_json::{Value, json};
use stoker_core::error::{Blame, Code, Error, Report};
use stoker_core::ids::CallId;
use stoker_proto::runner::v1::StreamLogsRequest;
use stoker_proto::runner::v1::runner_service_client::RunnerServiceClient;
use stoker_proto::{status, v1};

use self::stream::{Events, Log};
use super::{AnswerBody, CALL_ID, Door, decoded, header, pieces, retry_after, url};
use crate::call::{Answer, Input, Pieces};
use crate::directory::{Known, Named};
use crate::observe::Watch;

/// The one version that a function has here.
const VERSION: &str = "$LATEST";

/// Most bytes of an event, as AWS has it.
const LARGEST_EVENT: usize = 6 << 20;

/// Most bytes of an answer that is not streamed, as AWS has it.
const LARGEST_ANSWER: usize = (6 << 20) + 100;

/// Most bytes of a client's context, in base64.
const LARGEST_CONTEXT: usize = 3583;

/// How long a request may take to come, beside the time of its call.
const SLOWEST: Duration = Duration::from_secs(30);

/// How long runners may take to say what a function wrote, which is no part of its answer.
const LOG_PATIENCE: Duration = Duration::from_secs(2);

/// Most bytes of log that go with an answer.
const LOG_TAIL: usize = 4096;

/// Of a function without one.
const UNKNOWN: &str = "Unknown application error occurred";

const REQUEST_ID: HeaderName = HeaderName::from_static("x-amzn-requestid");
const ERROR_TYPE: HeaderName = HeaderName::from_static("x-amzn-errortype");
const FUNCTION_ERROR: HeaderName = HeaderName::from_static("x-amz-function-error");
const EXECUTED_VERSION: HeaderName = HeaderName::from_static("x-amz-executed-version");
const LOG_RESULT: HeaderName = HeaderName::from_static("x-amz-log-result");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Whether a path is one of this API: they begin with the date of a version.
pub fn is_path(path: &str) -> bool {
    let date = path.as_bytes();
    date.len() > 12
        && date[..12].iter().zip(b"/0000-00-00/").all(|(is, shape)| match shape {
            b'0' => is.is_ascii_digit(),
            other => is == other,
        })
}

/// Why a request is refused, and what AWS calls that where the error alone does not say it.
#[derive(Debug)]
struct Refused {
    error: Error,
    aws: Option<(u16, &'static str)>,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self { error, aws: None }
    }
}

impl Refused {
    fn aws(status: u16, name: &'static str, error: Error) -> Self {
        Self { error, aws: Some((status, name)) }
    }

    fn parameter(text: impl Into<String>) -> Self {
        Self::from(Error::new(Code::InvalidRequest, text))
    }

    fn content(text: impl Into<String>) -> Self {
        Self::aws(400, "InvalidRequestContentException", Error::new(Code::InvalidRequest, text))
    }

    /// Status and name. What may have started must not be sent again, which SDKs do by themselves with every status from 500 on.
    fn name(&self) -> (u16, &'static str) {
        match self.error.code {
            _ if self.aws.is_some() => self.aws.unwrap_or_default(),
            Code::NotFound => (404, "ResourceNotFoundException"),
            Code::RequestTooLarge => (413, "RequestTooLargeException"),
            Code::Overloaded => (429, "TooManyRequestsException"),
            Code::MethodNotAllowed => (405, "MethodNotAllowedException"),
            _ if self.error.may_have_started => (409, "InvocationMayHaveStartedException"),
            Code::InvalidRequest | Code::HeadersTooLarge | Code::ResourcesImpossible | Code::Cancelled => {
                (400, "InvalidParameterValueException")
            }
            Code::Internal => (500, "ServiceException"),
            _ => (503, "ServiceException"),
        }
    }

    fn response(&self, id: CallId) -> Response<AnswerBody> {
        let (status, name) = self.name();
        let user = status < 500;
        let mut body = json!({"Type": if user { "User" } else { "Service" }});
        if name == "TooManyRequestsException" {
            body["Reason"] = "ConcurrentInvocationLimitExceeded".into();
            body["message"] = "Rate Exceeded.".into();
        } else {
            body["Message"] = self.error.message.as_str().into();
            // Some kits read the one, some the other.
            body["message"] = self.error.message.as_str().into();
        }
        let mut response = plain(status, Bytes::from(body.to_string()), id);
        response.headers_mut().insert(ERROR_TYPE, HeaderValue::from_static(name));
        retry_after(response.headers_mut(), self.error.retry);
        response
    }
}

fn plain(status: u16, body: Bytes, id: CallId) -> Response<AnswerBody> {
    with_body(status, AnswerBody::whole(body), id)
}

fn with_body(status: u16, body: AnswerBody, id: CallId) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(REQUEST_ID, header(&request_id(id)));
    headers.insert(CALL_ID, header(&id.to_string()));
    response
}

/// A call's id as AWS writes ids.
fn request_id(id: CallId) -> String {
    let text = id.to_string();
    [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| text.get(part).unwrap_or_default()).join("-")
}

fn arn(name: &str, qualifier: Option<&str>) -> String {
    let end = qualifier.map(|qualifier| format!(":{qualifier}")).unwrap_or_default();
    format!("arn:aws:lambda:us-east-1:012345678912:function:{name}{end}")
}

/// The function's own words on its failure, or ours in the same form.
fn report(error: &Error) -> Report {
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

/// Serves one request.
pub async fn serve(
    door: Arc<Door>,
    id: CallId,
    request: Request<Incoming>,
    mut watch: Watch,
) -> Response<AnswerBody> {
    let mut log = None;
    let handled = handle(&door, id, request, &mut watch, &mut log);
    let handled = door.dispatch.fleet.panics.catch(handled).await;
    match handled.unwrap_or_else(|panicked| Err(panicked.into())) {
        Ok(mut response) => {
            watch.http_status(response.status().as_u16());
            response.body_mut().watched(watch);
            response
        }
        Err(refused) => {
            let error = &refused.error;
            let of_function = error.blame() == Blame::Function && error.code != Code::ResourcesImpossible;
            let response = match of_function && refused.aws.is_none() {
                true => failed(error, id, log.as_deref()),
                false => refused.response(id),
            };
            watch.end(Err(error));
            response
        }
    }
}

/// A function's failure, which is a success of the call.
fn failed(error: &Error, id: CallId, log: Option<&str>) -> Response<AnswerBody> {
    let report = report(error);
    let mut response = plain(200, report.body, id);
    executed(&mut response, log);
    let headers = response.headers_mut();
    headers.insert(FUNCTION_ERROR, HeaderValue::from_static("Unhandled"));
    if let Ok(kind) = HeaderValue::try_from(report.content_type) {
        headers.insert(CONTENT_TYPE, kind);
    }
    response
}

fn executed(response: &mut Response<AnswerBody>, log: Option<&str>) {
    response.headers_mut().insert(EXECUTED_VERSION, HeaderValue::from_static(VERSION));
    if let Some(log) = log {
        response.headers_mut().insert(LOG_RESULT, header(log));
    }
}

async fn handle(
    door: &Arc<Door>,
    id: CallId,
    request: Request<Incoming>,
    watch: &mut Watch,
    log: &mut Option<String>,
) -> Result<Response<AnswerBody>, Refused> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    let none = || {
        let text = format!("{} {path} is not in this version of Stoker", parts.method);
        Refused::aws(501, "NotImplementedException", Error::new(Code::InvalidRequest, text))
    };
    match (&parts.method, &segments[..]) {
        (&Method::POST, ["2015-03-31", "functions", name, "invocations"]) => {
            let asked = Asked::new(door, &parts, name, None)?;
            invoke(door, id, &parts, body, asked, watch, log).await
        }
        (&Method::POST, ["2021-11-15", "functions", name, "response-streaming-invocations"]) => {
            let asked = Asked::new(door, &parts, name, None)?;
            invoke_streaming(door, id, &parts, body, asked, watch).await
        }
        (&Method::POST, ["2014-11-13", "functions", name, "invoke-async"]) => {
            Err(Asked::new(door, &parts, name, Some("Event")).err().unwrap_or_else(none))
        }
        (&Method::GET, ["2015-03-31", "functions"]) => {
            let list = functions::list(
                door,
                query(&parts, "MaxItems").as_deref(),
                query(&parts, "Marker").as_deref(),
            )?;
            Ok(plain(200, list.to_string().into(), id))
        }
        (&Method::GET, ["2015-03-31", "functions", name]) => {
            let (name, known) = named(door, &parts, name)?;
            Ok(plain(200, functions::description(&name, &known).to_string().into(), id))
        }
        (&Method::GET, ["2015-03-31", "functions", name, "configuration"]) => {
            let (name, known) = named(door, &parts, name)?;
            Ok(plain(200, functions::configuration(&name, &known).to_string().into(), id))
        }
        (&Method::PUT, ["2015-03-31", "functions", name, "configuration"]) => {
            let (name, known) = named(door, &parts, name)?;
            let body = event(body, &SLOWEST).await?;
            let spec = functions::updated(&known, &body)?;
            let updated = Known::new(Arc::new(spec.clone()));
            door.registry.apply_functions(vec![spec]).await.map_err(|error| Error::from(&error))?;
            Ok(plain(200, functions::configuration(&name, &updated).to_string().into(), id))
        }
        (&Method::DELETE, ["2015-03-31", "functions", name]) => {
            let (_, known) = named(door, &parts, name)?;
            door.registry.delete_function(&known.spec.name).await.map_err(|error| Error::from(&error))?;
            Ok(plain(204, Bytes::new(), id))
        }
        _ => Err(none()),
    }
}

/// A parameter of the query, decoded.
fn query(parts: &Parts, key: &str) -> Option<String> {
    let query = parts.uri.query()?;
    let value = query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))?;
    decoded(&value.replace('+', " ")).ok().map(Cow::into_owned)
}

/// What a name in a path names: `name`, `name:qualifier`, `account:function:name`, or a whole ARN.
fn split(text: &str) -> Result<(String, Option<String>), Refused> {
    let wrong = || {
        Refused::parameter(format!("FunctionName {text:?} is none: write a name, name:qualifier or an ARN"))
    };
    let parts: Vec<&str> = text.split(':').collect();
    let (name, qualifier) = match parts[..] {
        ["arn", _, "lambda", _, _, "function", name]
        | [_, "function", name]
        | ["function", name]
        | [name] => (name, None),
        ["arn", _, "lambda", _, _, "function", name, qualifier]
        | [_, "function", name, qualifier]
        | ["function", name, qualifier]
        | [name, qualifier] => (name, Some(qualifier)),
        _ => return Err(wrong()),
    };
    let good = |text: &str, more: &str| {
        (1..=256).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c) || more.contains(c))
    };
    if !good(name, ".") || qualifier.is_some_and(|qualifier| !good(qualifier, "$.")) {
        return Err(wrong());
    }
    Ok((name.to_owned(), qualifier.map(str::to_owned)))
}

/// The function that a request is about, and its name as it was written.
fn named(door: &Door, parts: &Parts, segment: &str) -> Result<(String, Arc<Known>), Refused> {
    let (name, qualifier) = split(&decoded(segment)?)?;
    let asked = query(parts, "Qualifier");
    let qualifier = qualifier.or(asked);
    let missing = || {
        let whole = arn(&name, Some(qualifier.as_deref().unwrap_or(VERSION)));
        format!("Function not found: {whole}")
    };
    match door.directory.find_called(&name) {
        Named::One(known) if qualifier.as_deref().is_none_or(|qualifier| qualifier == VERSION) => {
            Ok((name, known))
        }
        Named::One(_) => Err(Error::new(Code::NotFound, missing()).into()),
        Named::None => Err(door.missing(missing).into()),
        Named::Several => {
            Err(Refused::parameter(format!("functions of several apps are called {name}: write app.{name}")))
        }
    }
}

/// An invocation, as far as its head tells.
struct Asked {
    function: Arc<Known>,
    headers: Vec<v1::Header>,
    tail: bool,
    /// Only what could be wrong is to be found out.
    dry: bool,
}

impl Asked {
    fn new(door: &Door, parts: &Parts, segment: &str, kind: Option<&str>) -> Result<Self, Refused> {
        let said =
            |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (name, function) = named(door, parts, segment)?;
        let dry = match kind.unwrap_or(said("x-amz-invocation-type")) {
            "" | "RequestResponse" => false,
            "DryRun" => true,
            "Event" => {
                let text =
                    "Event: this version of Stoker keeps no calls for later; invoke with RequestResponse";
                return Err(Refused::parameter(text));
            }
            other => {
                let text = format!("InvocationType {other:?} is none of RequestResponse, Event, DryRun");
                return Err(Refused::parameter(text));
            }
        };
        let tail = match said("x-amz-log-type") {
            "" | "None" => false,
            "Tail" => true,
            other => return Err(Refused::parameter(format!("LogType {other:?} is none of None, Tail"))),
        };
        let context = said("x-amz-client-context");
        if context.len() > LARGEST_CONTEXT {
            return Err(Refused::content(format!("ClientContext has more than {LARGEST_CONTEXT} bytes")));
        }
        let context = BASE64.decode(context).ok().filter(|context| {
            context.is_empty()
                || serde_json::from_slice::<Value>(context).is_ok_and(|value| value.is_object())
        });
        let context = context
            .ok_or_else(|| Refused::content("Client context must be a valid Base64-encoded JSON object."))?;
        let qualifier = segment.contains(VERSION) || query(parts, "Qualifier").is_some();
        let arn = arn(&name, qualifier.then_some(VERSION));
        let own = [
            ("content-type", Bytes::from_static(b"application/json")),
            ("lambda-runtime-invoked-function-arn", arn.into()),
            // A line break is space in JSON, and nothing that a header can hold.
            (
                "lambda-runtime-client-context",
                String::from_utf8_lossy(&context).replace(['\r', '\n'], " ").into(),
            ),
            ("lambda-runtime-aws-tenant-id", said("x-amz-tenant-id").to_owned().into()),
            ("x-amzn-trace-id", said("x-amzn-trace-id").to_owned().into()),
        ];
        let headers = own
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| v1::Header { name: name.to_owned(), value })
            .collect();
        Ok(Self { function, headers, tail, dry })
    }

    /// Places the call and follows it to the head of its answer.
    async fn call(
        self,
        door: &Door,
        id: CallId,
        parts: &Parts,
        body: Incoming,
        watch: &mut Watch,
    ) -> Result<Answer, Refused> {
        let mut headers = self.headers;
        let request_id = request_id(id).into();
        headers.push(v1::Header { name: "lambda-runtime-aws-request-id".to_owned(), value: request_id });
        let place = door.admission.enter()?;
        let mut event = event(body, &SLOWEST).await?;
        if event.is_empty() {
            event = Bytes::from_static(b"{}");
        }
        serde_json::from_slice::<serde::de::IgnoredAny>(&event).map_err(|error| {
            Refused::content(format!(
                "Could not parse request body into json: Could not parse payload into json: {error}"
            ))
        })?;
        let head = v1::RequestHead {
            intent: v1::Intent::Invoke.into(),
            method: "POST".to_owned(),
            url: url(&parts.uri, &parts.headers),
            headers,
        };
        let call = door.admit_to(place, id, self.function, head, None, watch)?;
        Ok(door.dispatch.call(call, Input::whole(event), watch).await?)
    }
}

/// All of a request's body, in time and within the limit.
async fn event(body: Incoming, time: &Duration) -> Result<Bytes, Refused> {
    let fits = |length: usize| match length <= LARGEST_EVENT {
        true => Ok(()),
        false => {
            let text = format!(
                "Request must be smaller than {LARGEST_EVENT} bytes for the InvokeFunction operation"
            );
            Err(Refused::from(Error::new(Code::RequestTooLarge, text)))
        }
    };
    fits(usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX))?;
    let read = async {
        let mut pieces: Pieces = pieces(body);
        let mut event = BytesMut::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            fits(event.len() + piece.len())?;
            event.extend_from_slice(&piece);
        }
        Ok(event.freeze())
    };
    let late = || Refused::from(Error::new(Code::DeadlineExceeded, "the request did not come in time"));
    tokio::time::timeout(*time, read).await.unwrap_or_else(|_| Err(late()))
}

/// `Invoke`: the answer in one.
async fn invoke(
    door: &Arc<Door>,
    id: CallId,
    parts: &Parts,
    body: Incoming,
    asked: Asked,
    watch: &mut Watch,
    log: &mut Option<String>,
) -> Result<Response<AnswerBody>, Refused> {
    if asked.dry {
        return Ok(plain(204, Bytes::new(), id));
    }
    let (function, tail) = (asked.function.clone(), asked.tail);
    let mut ran_on = String::new();
    let whole = async {
        let answer = asked.call(door, id, parts, body, watch).await?;
        ran_on.clone_from(&answer.end.runner);
        Ok(whole(answer).await?)
    };
    let whole: Result<Bytes, Refused> = whole.await;
    if tail {
        *log = Some(logged(door.clone(), function, id, ran_on).await);
    }
    let mut response = plain(200, whole?, id);
    executed(&mut response, log.as_deref());
    Ok(response)
}

/// All of an answer. A function that says so in its status failed, in formats that have one.
async fn whole(answer: Answer) -> Result<Bytes, Error> {
    let too_large = || {
        let text =
            format!("Response payload size exceeded maximum allowed payload size ({LARGEST_ANSWER} bytes).");
        let kind = "Function.ResponseSizeTooLarge".to_owned();
        let body = json!({"errorMessage": text, "errorType": kind}).to_string().into();
        let report = Report { kind, content_type: "application/json".to_owned(), body };
        Error::new(Code::ResponseTooLarge, text).may_have_started().report(report)
    };
    let mut body = answer.first;
    if let Some(mut rest) = answer.rest {
        let mut joined = BytesMut::from(body);
        while let Some(piece) = rest.next().await {
            let piece = piece?;
            if joined.len() + piece.len() > LARGEST_ANSWER {
                return Err(too_large());
            }
            joined.extend_from_slice(&piece);
        }
        body = joined.freeze();
    }
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
async fn invoke_streaming(
    door: &Arc<Door>,
    id: CallId,
    parts: &Parts,
    body: Incoming,
    asked: Asked,
    watch: &mut Watch,
) -> Result<Response<AnswerBody>, Refused> {
    if asked.dry {
        return Ok(plain(204, Bytes::new(), id));
    }
    let (function, tail) = (asked.function.clone(), asked.tail);
    let log = |runner: String| -> Option<Log> {
        tail.then(|| Box::pin(logged(door.clone(), function.clone(), id, runner)) as Log)
    };
    let body = match asked.call(door, id, parts, body, watch).await {
        Ok(answer) => {
            let mut body = AnswerBody::new(answer.first, answer.rest);
            body.events = Some(Box::new(Events::new(log(answer.end.runner))));
            body
        }
        Err(Refused { error, aws: None })
            if error.blame() == Blame::Function && error.code != Code::ResourcesImpossible =>
        {
            let mut events = Events::new(log(String::new()));
            events.fail(&error);
            let mut body = AnswerBody::whole(Bytes::new());
            body.events = Some(Box::new(events));
            body
        }
        Err(refused) => return Err(refused),
    };
    let mut response = with_body(200, body, id);
    executed(&mut response, None);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(stream::MEDIA_TYPE));
    Ok(response)
}

/// The end of what the function wrote in this call, in base64. Of a call that failed nobody says where it ran: all are asked.
async fn logged(door: Arc<Door>, function: Arc<Known>, id: CallId, ran_on: String) -> String {
    let ask = StreamLogsRequest {
        app: function.spec.name.app().to_owned(),
        function: function.spec.name.function().to_owned(),
        call_id: id.to_string(),
        follow: false,
    };
    let runners = door.dispatch.fleet.runners();
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
        Vec::new()
    };
    let text = tokio::time::timeout(LOG_PATIENCE, found).await.unwrap_or_default();
    BASE64.encode(&text[text.len().saturating_sub(LOG_TAIL)..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_this_api_begin_with_a_date() {
        for path in ["/2015-03-31/functions/", "/2021-11-15/functions/f/response-streaming-invocations"] {
            assert!(is_path(path), "{path}");
        }
        for path in ["/", "/invoke/a/f", "/t/2015-03-31/functions", "/2015-3-31/functions", "/2015-03-31/"] {
            assert!(!is_path(path), "{path}");
        }
    }

    #[test]
    fn functions_are_named_in_every_way_of_aws() {
        let of = |text: &str| split(text).map_err(|refused| refused.name().1);
        let plain = || Ok(("f.x".to_owned(), None));
        for text in ["f.x", "function:f.x", "012345678912:function:f.x", "arn:aws:lambda:eu-1:1:function:f.x"]
        {
            assert_eq!(of(text), plain(), "{text}");
            let qualified = format!("{text}:$LATEST");
            assert_eq!(of(&qualified), Ok(("f.x".to_owned(), Some(VERSION.to_owned()))), "{qualified}");
        }
        for text in ["", "a b", "a/b", "arn:aws:s3:r:1:function:f", "a:b:c:d:e", "é", "f:"] {
            assert_eq!(of(text), Err("InvalidParameterValueException"), "{text}");
        }
    }

    #[test]
    fn what_may_have_started_is_not_sent_again_by_itself() {
        use stoker_core::machine::Listed as _;
        for code in Code::ALL {
            let error = Error::new(*code, "x").may_have_started();
            let (status, _) = Refused::from(error).name();
            let again = status >= 500 || status == 429;
            // An overload is said before anything has started.
            assert!(!again || *code == Code::Overloaded, "{code:?}: {status}");
        }
    }
}
