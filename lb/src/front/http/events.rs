//! `POST /ce/{app}/{fn}`: CloudEvents 1.0 over HTTP, in all three modes of their binding, for functions of every format.
//!
//! A function of the format `cloudevent` gets the event as it came, one of `lambda` or `mless`, whose requests are JSON, the event in JSON. Any
//! other gets it in binary mode, whichever way it came: its attributes as `ce-` headers, its data as the body. What the function answers is
//! the answer: an event where it says so by its headers, else what it is. A batch is as many calls, and its answer says of each what became of it.

mod event;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde_json::{Map, Value, json};
use stoker_core::call::TraceContext;
use stoker_core::error::{Code, Error};
use stoker_core::function::{CloudEvents, Format, FunctionSpec};
use stoker_core::ids::CallId;
use stoker_proto::{status, v1};
use stoker_runtime::telemetry::Facts;

use self::event::{Mode, STRUCTURED, check_binary, checked, no_event, read, to_binary, to_structured};
use super::unread::RequestBody;
use super::{AnswerBody, CALL_ID, Front, header, request_headers, response_headers, status_of, url};
use crate::call::{Answer, Input};
use crate::directory::Known;
use crate::front::{carried, event_trace, http_trace};
use crate::observe::{Asked, Watch};

/// Bytes of an event, and of a batch: what a function of the format `cloudevent` takes at most.
const LARGEST: usize = 6 << 20;

/// Events of a batch, and how many of them are called at once.
const MOST: usize = 1000;
const AT_ONCE: usize = 16;

/// How long an event may take to come.
const SLOWEST: Duration = Duration::from_secs(30);

/// The function that a path names, if it is one of these.
pub fn function_of(path: &str) -> Option<&str> {
    path.strip_prefix("/ce/").filter(|function| !function.is_empty())
}

/// Serves one request.
pub async fn handle(
    front: &Arc<Front>,
    id: CallId,
    request: Request<RequestBody>,
    watch: &mut Watch,
) -> Result<Response<AnswerBody>, Error> {
    let (parts, body) = request.into_parts();
    if parts.method != Method::POST {
        return Err(Error::new(Code::MethodNotAllowed, "events are sent with POST"));
    }
    let path = super::decoded(parts.uri.path())?;
    let function = front.named(function_of(&path).unwrap_or_default())?;
    let mode = Mode::of(&parts.headers)?;
    // In memory as a whole from here on: a batch too has one place while it is read.
    let place = front.admission.enter(watch.caller())?;
    let body = tokio::time::timeout(SLOWEST, Limited::new(body, LARGEST).collect()).await;
    let body = body.map_err(|_| Error::new(Code::DeadlineExceeded, "the event did not come in time"))?;
    let body = body.map_err(|error| match error.is::<http_body_util::LengthLimitError>() {
        true => Error::new(Code::RequestTooLarge, format!("the event has more than {LARGEST} bytes")),
        false => Error::new(Code::Cancelled, "the request's body broke off: the client went away"),
    })?;
    let body = body.to_bytes();
    let (headers, body) = match mode {
        Mode::Binary => {
            check_binary(&parts.headers)?;
            if parts.headers.contains_key("traceparent") {
                watch.caused_by(&event_trace(&parts.headers));
            }
            match function.spec.format {
                Format::Lambda | Format::Mless => {
                    in_json(to_structured(&parts.headers, &body), &parts.headers)
                }
                _ => (request_headers(&parts.headers), body),
            }
        }
        Mode::Structured => {
            let event = read(&body)?;
            watch.caused_by(&told_trace(&event));
            shaped(&function.spec, event, &parts.headers)?
        }
        Mode::Batch => {
            drop(place);
            return batch(front, id, &function, &parts, &body, watch).await;
        }
    };
    let head = head(&parts, headers);
    let call = front.admit_to(place, id, function, head, None, watch)?;
    let answer = front.dispatch.call(call, Input::whole(body), watch).await?;
    let body = AnswerBody::new(answer.first, answer.rest).of_length(answer.length);
    let mut response = Response::new(body);
    *response.status_mut() = status_of(answer.head.status);
    response_headers(response.headers_mut(), answer.head.headers, false);
    response.headers_mut().insert(CALL_ID, header(&id.to_string()));
    Ok(response)
}

fn head(parts: &http::request::Parts, headers: Vec<v1::Header>) -> v1::RequestHead {
    v1::RequestHead { intent: v1::Intent::Invoke.into(), method: "POST".to_owned(), url: url(parts), headers }
}

/// An event in JSON as functions of a format get it, with what else the request has.
fn shaped(
    spec: &FunctionSpec,
    event: Map<String, Value>,
    besides: &HeaderMap,
) -> Result<(Vec<v1::Header>, Bytes), Error> {
    let whole = match spec.format {
        // One that speaks an older version gets an event of its own around the data.
        Format::CloudEvent => spec.format_options.cloudevents == CloudEvents::V1_0,
        format => matches!(format, Format::Lambda | Format::Mless),
    };
    match whole {
        true => Ok(in_json(event.into(), besides)),
        false => {
            let (mut headers, body) = to_binary(event)?;
            headers.extend(others(besides));
            Ok((headers, body))
        }
    }
}

fn in_json(event: Value, besides: &HeaderMap) -> (Vec<v1::Header>, Bytes) {
    let kind = v1::Header { name: "content-type".to_owned(), value: STRUCTURED.into() };
    (others(besides).chain([kind]).collect(), event.to_string().into())
}

/// What a request has besides its event.
fn others(headers: &HeaderMap) -> impl Iterator<Item = v1::Header> {
    let others = request_headers(headers).into_iter();
    others
        .filter(|header| !header.name.eq_ignore_ascii_case("content-type") && !header.name.starts_with("ce-"))
}

/// Where an event came to be, by its own attributes.
fn told_trace(event: &Map<String, Value>) -> TraceContext {
    let text = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    carried(text("traceparent"), text("tracestate"))
}

/// As many calls as there are events; what became of each, in their order.
async fn batch(
    front: &Arc<Front>,
    id: CallId,
    function: &Arc<Known>,
    parts: &http::request::Parts,
    body: &[u8],
    watch: &mut Watch,
) -> Result<Response<AnswerBody>, Error> {
    let events: Vec<Value> = serde_json::from_slice(body).map_err(no_event)?;
    if events.len() > MOST {
        let text = format!("a batch has at most {MOST} events, and this one {}", events.len());
        return Err(Error::new(Code::RequestTooLarge, text));
    }
    // All of them are read before one is called.
    let events = events.into_iter().enumerate().map(|(at, event)| {
        checked(event).map_err(|error| Error { message: format!("event {at}: {}", error.message), ..error })
    });
    let events = events.collect::<Result<Vec<_>, _>>()?;
    let caller = watch.caller().clone();
    watch.function(function);
    let trace = http_trace(&parts.headers);
    let calls = events.into_iter().map(|event| {
        let name = |key: &str| event.get(key).cloned().unwrap_or_default();
        let (event_id, source) = (name("id"), name("source"));
        let (id, caller, came) = (CallId::new(), caller.clone(), told_trace(&event));
        let trace = if trace.parent.is_empty() { &came } else { &trace }.clone();
        async move {
            let (path, version, origin) = (parts.uri.path(), parts.version, &Facts::default());
            let asked = Asked { method: &parts.method, path, version, origin };
            let mut watch = front.observer.http(id, &asked, &trace);
            if trace != came {
                watch.caused_by(&came);
            }
            watch.by(caller);
            let done = one(front, id, function.clone(), parts, event, &mut watch).await;
            watch.end(done.as_ref().map(|_| ()));
            let mut told = json!({"id": event_id, "source": source, "call_id": id.to_string()});
            match done {
                Ok((status, answer)) => {
                    told["status"] = status.as_u16().into();
                    told["event"] = answer.unwrap_or_default();
                }
                Err(error) => {
                    let row = status::row(error.code);
                    told["status"] = row.http.into();
                    told["message"] = error.message.into();
                    told["code"] = row.reason.into();
                }
            }
            told
        }
    });
    let results: Vec<Value> = futures_util::stream::iter(calls).buffered(AT_ONCE).collect().await;
    let worst = results.iter().filter_map(|result| result["status"].as_u64()).max().unwrap_or(200).max(200);
    let mut response = Response::new(AnswerBody::whole(json!(results).to_string().into()));
    *response.status_mut() = if worst < 400 { StatusCode::OK } else { StatusCode::MULTI_STATUS };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CALL_ID, header(&id.to_string()));
    Ok(response)
}

/// One event of a batch: the status of its answer, and the answer where it is an event.
async fn one(
    front: &Arc<Front>,
    id: CallId,
    function: Arc<Known>,
    parts: &http::request::Parts,
    event: Map<String, Value>,
    watch: &mut Watch,
) -> Result<(StatusCode, Option<Value>), Error> {
    let (headers, body) = shaped(&function.spec, event, &parts.headers)?;
    let call = front.admit(id, function, head(parts, headers), None, watch)?;
    let answer = front.dispatch.call(call, Input::whole(body), watch).await?;
    let status = status_of(answer.head.status);
    Ok((status, answered(answer).await?))
}

/// An answer in JSON, where it is an event.
async fn answered(answer: Answer) -> Result<Option<Value>, Error> {
    let mut headers = HeaderMap::new();
    response_headers(&mut headers, answer.head.headers.clone(), false);
    let body = Limited::new(AnswerBody::new(answer.first, answer.rest), LARGEST).collect().await;
    let body = body.map_err(|error| match error.downcast::<Error>() {
        // The call's own end, which came behind a part of its answer.
        Ok(error) => *error,
        Err(_) => {
            let text = format!("the answer to one event of a batch has more than {LARGEST} bytes");
            Error::new(Code::ResponseTooLarge, text).may_have_started()
        }
    })?;
    let body = body.to_bytes();
    if let Ok(Mode::Structured) = Mode::of(&headers) {
        return Ok(serde_json::from_slice(&body).ok());
    }
    if check_binary(&headers).is_err() {
        return Ok(None);
    }
    Ok(Some(to_structured(&headers, &body)))
}
