//! `POST /ce/{app}/{fn}`: CloudEvents 1.0 over HTTP, in all three modes of their binding, for functions of every format.
//!
//! A function of the format `cloudevent` gets the event as it came, one of `lambda` or `mless`, whose requests are JSON, the event in JSON. Any
//! other gets it in binary mode, whichever way it came: its attributes as `ce-` headers, its data as the body. What the function answers is
//! the answer: an event where it says so by its headers, else what it is. A batch is as many calls, and its answer says of each what became of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
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

use super::triggers::escaped;
use super::unread::RequestBody;
use super::{AnswerBody, CALL_ID, Door, header, request_headers, response_headers, url};
use crate::call::{Answer, Input};
use crate::directory::Known;
use crate::front::{carried, event_trace, http_trace};
use crate::observe::{Asked, Watch};

const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

/// Bytes of an event, and of a batch: what a function of the format `cloudevent` takes at most.
const LARGEST: usize = 6 << 20;

/// Events of a batch, and how many of them are called at once.
const MOST: usize = 1000;
const AT_ONCE: usize = 16;

/// How long an event may take to come.
const SLOWEST: Duration = Duration::from_secs(30);

/// What every event has.
const REQUIRED: [&str; 4] = ["specversion", "id", "source", "type"];

/// The function that a path names, if it is one of these.
pub fn function_of(path: &str) -> Option<&str> {
    path.strip_prefix("/ce/").filter(|function| !function.is_empty())
}

/// How a request holds its event.
enum Mode {
    Binary,
    Structured,
    Batch,
}

impl Mode {
    fn of(headers: &HeaderMap) -> Result<Self, Error> {
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match kind.as_str() {
            STRUCTURED => Ok(Mode::Structured),
            BATCH => Ok(Mode::Batch),
            other if other.starts_with("application/cloudevents") => {
                let text = format!("events are read as JSON, {STRUCTURED} or {BATCH}, and not as {other}");
                Err(Error::new(Code::InvalidRequest, text))
            }
            _ => Ok(Mode::Binary),
        }
    }
}

/// Serves one request.
pub async fn handle(
    door: &Arc<Door>,
    id: CallId,
    request: Request<RequestBody>,
    watch: &mut Watch,
) -> Result<Response<AnswerBody>, Error> {
    let (parts, body) = request.into_parts();
    if parts.method != Method::POST {
        return Err(Error::new(Code::MethodNotAllowed, "events are sent with POST"));
    }
    let path = super::decoded(parts.uri.path())?;
    let function = door.named(function_of(&path).unwrap_or_default())?;
    let mode = Mode::of(&parts.headers)?;
    // In memory as a whole from here on: a batch too has one place while it is read.
    let place = door.admission.enter()?;
    let body = tokio::time::timeout(SLOWEST, Limited::new(body, LARGEST).collect()).await;
    let body = body.map_err(|_| Error::new(Code::DeadlineExceeded, "the event did not come in time"))?;
    let body = body.map_err(|error| match error.is::<http_body_util::LengthLimitError>() {
        true => Error::new(Code::RequestTooLarge, format!("the event has more than {LARGEST} bytes")),
        false => Error::new(Code::Cancelled, "the request's body broke off: the client went away"),
    })?;
    let body = body.to_bytes();
    let (headers, body) = match mode {
        Mode::Binary => {
            binary(&parts.headers)?;
            if parts.headers.contains_key("traceparent") {
                watch.caused_by(&event_trace(&parts.headers));
            }
            match function.spec.format {
                Format::Lambda | Format::Mless => {
                    in_json(in_structured(&parts.headers, &body), &parts.headers)
                }
                _ => (request_headers(&parts.headers), body),
            }
        }
        Mode::Structured => {
            let event = event(&body)?;
            watch.caused_by(&told_trace(&event));
            shaped(&function.spec, event, &parts.headers)?
        }
        Mode::Batch => {
            drop(place);
            return batch(door, id, &function, &parts, &body, watch).await;
        }
    };
    let head = head(&parts, headers);
    let call = door.admit_to(place, id, function, head, None, watch)?;
    let answer = door.dispatch.call(call, Input::whole(body), watch).await?;
    let body = AnswerBody::new(answer.first, answer.rest).of_length(answer.length);
    let mut response = Response::new(body);
    *response.status_mut() = status_of(answer.head.status);
    response_headers(response.headers_mut(), answer.head.headers, false);
    response.headers_mut().insert(CALL_ID, header(&id.to_string()));
    Ok(response)
}

fn head(parts: &http::request::Parts, headers: Vec<v1::Header>) -> v1::RequestHead {
    v1::RequestHead {
        intent: v1::Intent::Invoke.into(),
        method: "POST".to_owned(),
        url: url(&parts.uri, &parts.headers),
        headers,
    }
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
            let (mut headers, body) = in_binary(event)?;
            headers.extend(others(besides));
            Ok((headers, body))
        }
    }
}

fn in_json(event: Value, besides: &HeaderMap) -> (Vec<v1::Header>, Bytes) {
    let kind = v1::Header { name: "content-type".to_owned(), value: STRUCTURED.into() };
    (others(besides).chain([kind]).collect(), event.to_string().into())
}

fn status_of(status: u32) -> StatusCode {
    let status = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok());
    status.filter(|status| !status.is_informational()).unwrap_or(StatusCode::OK)
}

fn no_event(why: impl std::fmt::Display) -> Error {
    Error::new(Code::InvalidRequest, format!("the request is not a valid CloudEvent: {why}"))
}

/// Whether headers are those of an event.
fn binary(headers: &HeaderMap) -> Result<(), Error> {
    let value = |name: &str| headers.get(format!("ce-{name}")).map_or(&[][..], HeaderValue::as_bytes);
    if let Some(missing) = REQUIRED.iter().find(|name| value(name).is_empty()) {
        let modes = format!("send it as {STRUCTURED}, as {BATCH}, or with its attributes as headers");
        return Err(no_event(format!("the header ce-{missing} is missing; {modes}")));
    }
    version(std::str::from_utf8(value("specversion")).unwrap_or_default())?;
    headers.keys().filter_map(|name| name.as_str().strip_prefix("ce-")).try_for_each(named)?;
    headers.get("ce-time").map_or(Ok(()), |time| timed(&unescaped(time)))
}

fn version(text: &str) -> Result<(), Error> {
    match text {
        "1.0" => Ok(()),
        other => Err(no_event(format!("specversion is {other:?}, and 1.0 is what is taken here"))),
    }
}

/// Whether this names an attribute.
fn named(name: &str) -> Result<(), Error> {
    let good = (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let wrong = || no_event(format!("{name:?} is no name of an attribute: 1 to 64 of a-z and 0-9"));
    if good { Ok(()) } else { Err(wrong()) }
}

/// Whether the attribute `time` says one.
fn timed(text: &str) -> Result<(), Error> {
    let wrong = |_| no_event(format!("`time` is {text:?}, and no time like 2026-01-02T03:04:05Z (RFC 3339)"));
    chrono::DateTime::parse_from_rfc3339(text).map(|_| ()).map_err(wrong)
}

/// An event in JSON.
fn event(text: &[u8]) -> Result<Map<String, Value>, Error> {
    checked(serde_json::from_slice(text).map_err(no_event)?)
}

fn checked(event: Value) -> Result<Map<String, Value>, Error> {
    let Value::Object(event) = event else { return Err(no_event("it is no JSON object")) };
    let text = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default();
    if let Some(missing) = REQUIRED.iter().find(|name| text(name).is_empty()) {
        return Err(no_event(format!("`{missing}` is missing, or no text")));
    }
    version(text("specversion"))?;
    if event.contains_key("data") && event.contains_key("data_base64") {
        return Err(no_event("it has `data` and `data_base64`"));
    }
    for (name, value) in event.iter().filter(|(name, _)| *name != "data") {
        match (name.as_str(), value) {
            ("data_base64", Value::String(text)) => _ = bytes(text)?,
            ("data_base64", _) => return Err(no_event("`data_base64` is no text")),
            // An attribute that is null is not there.
            (_, Value::Null) => named(name)?,
            ("time", Value::String(text)) => timed(text)?,
            (name @ ("time" | "datacontenttype" | "dataschema" | "subject"), value) if !value.is_string() => {
                return Err(no_event(format!("`{name}` is no text")));
            }
            (name, Value::Array(_) | Value::Object(_)) => {
                let text = format!("`{name}` is neither a text nor a number nor true or false");
                return Err(no_event(text));
            }
            (name, _) => named(name)?,
        }
    }
    Ok(event)
}

fn bytes(text: &str) -> Result<Bytes, Error> {
    STANDARD.decode(text).map(Bytes::from).map_err(|why| no_event(format!("data_base64: {why}")))
}

/// An event that was [checked], as headers and a body.
fn in_binary(event: Map<String, Value>) -> Result<(Vec<v1::Header>, Bytes), Error> {
    let header = |name: String, value: String| v1::Header { name, value: value.into() };
    let (mut headers, mut body, mut kind) = (Vec::new(), Bytes::new(), None);
    let mut data = None;
    for (name, value) in event {
        match (name.as_str(), value) {
            ("data", value) => data = Some(value),
            ("data_base64", Value::String(text)) => body = bytes(&text)?,
            (_, Value::Null) => {}
            ("datacontenttype", Value::String(text)) => kind = Some(text),
            // What a header cannot hold is escaped, as the binding has it.
            (_, Value::String(text)) => headers.push(header(format!("ce-{name}"), escaped(&text))),
            (_, value) => headers.push(header(format!("ce-{name}"), value.to_string())),
        }
    }
    if let Some(value) = data {
        let json = kind.as_deref().is_none_or(is_json);
        body = match value {
            Value::String(text) if !json => text.into(),
            value => value.to_string().into(),
        };
        kind.get_or_insert_with(|| "application/json".to_owned());
    }
    headers.extend(kind.map(|kind| header("content-type".to_owned(), kind)));
    Ok((headers, body))
}

fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind.ends_with("/json") || kind.ends_with("+json")
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
    door: &Arc<Door>,
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
            let mut watch = door.observer.http(id, &asked, &trace);
            if trace != came {
                watch.caused_by(&came);
            }
            watch.by(caller);
            let done = one(door, id, function.clone(), parts, event, &mut watch).await;
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
    door: &Arc<Door>,
    id: CallId,
    function: Arc<Known>,
    parts: &http::request::Parts,
    event: Map<String, Value>,
    watch: &mut Watch,
) -> Result<(StatusCode, Option<Value>), Error> {
    let (headers, body) = shaped(&function.spec, event, &parts.headers)?;
    let call = door.admit(id, function, head(parts, headers), None, watch)?;
    let answer = door.dispatch.call(call, Input::whole(body), watch).await?;
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
    if binary(&headers).is_err() {
        return Ok(None);
    }
    Ok(Some(in_structured(&headers, &body)))
}

/// What a header says: UTF-8, or, as it is where kits escape nothing, Latin-1.
fn text(value: &HeaderValue) -> String {
    match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => text.to_owned(),
        Err(_) => value.as_bytes().iter().copied().map(char::from).collect(),
    }
}

/// The same without its escapes; one whose `%` escapes nothing is taken as it stands.
fn unescaped(value: &HeaderValue) -> String {
    let value = text(value);
    super::decoded(&value).map_or_else(|_| value.clone(), std::borrow::Cow::into_owned)
}

/// An event out of headers and a body.
fn in_structured(headers: &HeaderMap, body: &[u8]) -> Value {
    let mut event = BTreeMap::new();
    for (name, value) in headers {
        if let Some(name) = name.as_str().strip_prefix("ce-") {
            event.insert(name.to_owned(), Value::from(unescaped(value)));
        }
    }
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if let Some(kind) = kind {
        event.insert("datacontenttype".to_owned(), kind.into());
    }
    if !body.is_empty() {
        let json = kind.is_some_and(is_json).then(|| serde_json::from_slice(body).ok()).flatten();
        let text =
            || std::str::from_utf8(body).ok().filter(|_| kind.is_some_and(|kind| kind.starts_with("text/")));
        let (key, data) = match (json, text()) {
            (Some(value), _) => ("data", value),
            (None, Some(text)) => ("data", text.into()),
            (None, None) => ("data_base64", STANDARD.encode(body).into()),
        };
        event.insert(key.to_owned(), data);
    }
    json!(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header<'a>(headers: &'a [v1::Header], name: &str) -> Option<&'a str> {
        let header = headers.iter().find(|header| header.name == name)?;
        std::str::from_utf8(&header.value).ok()
    }

    #[test]
    fn an_event_becomes_headers_and_a_body() {
        let text = json!({"specversion": "1.0", "id": "1", "source": "/a", "type": "t", "subject": "a b\u{20ac}%\"",
            "sequence": 7, "flag": true, "none": null, "datacontenttype": "text/plain", "data": "hi"});
        let (headers, body) = in_binary(checked(text).unwrap()).unwrap();
        assert_eq!(header(&headers, "ce-subject"), Some("a%20b%E2%82%AC%25%22"));
        assert_eq!((header(&headers, "ce-sequence"), header(&headers, "ce-flag")), (Some("7"), Some("true")));
        assert_eq!(
            (header(&headers, "ce-none"), header(&headers, "content-type")),
            (None, Some("text/plain"))
        );
        assert_eq!(body, "hi");
        for (data, kind, wanted) in [
            (json!({"data": {"a": 1}}), Some("application/json"), &b"{\"a\":1}"[..]),
            (json!({"data": "x"}), Some("application/json"), b"\"x\""),
            (json!({"data_base64": "AP8=", "datacontenttype": "x/y"}), Some("x/y"), &[0, 0xff]),
            (json!({}), None, b""),
        ] {
            let mut event = json!({"specversion": "1.0", "id": "1", "source": "/a", "type": "t"});
            event.as_object_mut().unwrap().extend(data.as_object().unwrap().clone());
            let (headers, body) = in_binary(checked(event).unwrap()).unwrap();
            assert_eq!((header(&headers, "content-type"), &body[..]), (kind, wanted));
        }
    }

    #[test]
    fn what_is_no_event_is_told_so() {
        for (event, says) in [
            (json!([]), "no JSON object"),
            (json!({"specversion": "1.0", "id": "1", "source": "/a"}), "`type` is missing"),
            (json!({"specversion": "0.3", "id": "1", "source": "/a", "type": "t"}), "specversion is \"0.3\""),
            (
                json!({"specversion": "1.0", "id": "1", "source": "/a", "type": "t", "data": 1, "data_base64": ""}),
                "`data` and",
            ),
        ] {
            let error = checked(event).unwrap_err();
            assert!(error.message.contains(says), "{error}");
        }
        for (name, value, says) in [
            ("Upper", json!(1), "\"Upper\" is no name"),
            ("my-ext", json!(null), "\"my-ext\" is no name"),
            ("nested", json!({"a": 1}), "`nested` is neither"),
            ("time", json!("yesterday"), "`time` is \"yesterday\""),
            ("time", json!(7), "`time` is no text"),
            ("subject", json!(true), "`subject` is no text"),
            ("data_base64", json!("?"), "data_base64: "),
            ("data_base64", json!(1), "`data_base64` is no text"),
        ] {
            let mut event = json!({"specversion": "1.0", "id": "1", "source": "/a", "type": "t"});
            event[name] = value;
            let error = checked(event).unwrap_err();
            assert!(error.message.contains(says), "{error}");
        }
        assert!(binary(&HeaderMap::new()).unwrap_err().message.contains("ce-specversion is missing"));
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "/a"),
            ("ce-type", "t"),
            ("ce-sequence", "7"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        for (name, value, good) in [
            ("ce-time", "2018-04-05T17:31:00.5+02:00", true),
            ("ce-time", "2018-04-05T17%3A31%3A00Z", true),
            ("ce-time", "2018-04-05", false),
            ("ce-my-ext", "1", false),
        ] {
            let mut headers = headers.clone();
            headers.insert(name, HeaderValue::from_static(value));
            assert_eq!(binary(&headers).is_ok(), good, "{name}: {value}");
        }
    }

    #[test]
    fn an_answer_in_binary_mode_is_the_same_event_in_json() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-subject", "a%20b"),
            ("content-type", "application/json"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let event = in_structured(&headers, b"{\"a\":1}");
        assert_eq!((&event["subject"], &event["data"]["a"]), (&json!("a b"), &json!(1)));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("image/png"));
        assert_eq!(in_structured(&headers, &[0, 0xff])["data_base64"], "AP8=");
    }
}
