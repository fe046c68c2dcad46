//! An event in its two shapes, one JSON object or headers and a body: what is right in each, and each made of the other.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue};
use serde_json::{Map, Value, json};
use stoker_core::call::media_type;
use stoker_core::error::{Code, Error};
use stoker_core::text::escape_attribute;
use stoker_proto::v1;

use crate::front::http::decoded;

pub const STRUCTURED: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch+json";

/// What every event has.
const REQUIRED: [&str; 4] = ["specversion", "id", "source", "type"];

/// How a request holds its event.
pub enum Mode {
    Binary,
    Structured,
    Batch,
}

impl Mode {
    /// By the `Content-Type`.
    ///
    /// # Errors
    /// Events are not read in that form.
    pub fn of(headers: &HeaderMap) -> Result<Self, Error> {
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = media_type(kind).to_ascii_lowercase();
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

/// The error of a request that has no event.
pub fn no_event(why: impl std::fmt::Display) -> Error {
    Error::new(Code::InvalidRequest, format!("the request is not a valid CloudEvent: {why}"))
}

/// Whether headers are those of an event.
///
/// # Errors
/// The first that is missing or wrong.
pub fn check_binary(headers: &HeaderMap) -> Result<(), Error> {
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

/// An event out of its JSON, checked.
///
/// # Errors
/// What it is instead.
pub fn read(text: &[u8]) -> Result<Map<String, Value>, Error> {
    checked(serde_json::from_slice(text).map_err(no_event)?)
}

/// The same of a value.
///
/// # Errors
/// What it is instead.
pub fn checked(event: Value) -> Result<Map<String, Value>, Error> {
    let Value::Object(event) = event else { return Err(no_event("it is no JSON object")) };
    let text = |name: &str| event.get(name).and_then(Value::as_str).unwrap_or_default();
    if let Some(missing) = REQUIRED.iter().find(|name| text(name).is_empty()) {
        return Err(no_event(format!("`{missing}` is missing, or no text")));
    }
    version(text("specversion"))?;
    if event.contains_key("data") && event.contains_key("data_base64") {
        return Err(no_event("it has `data` and `data_base64`, of which an event has one"));
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
pub fn to_binary(event: Map<String, Value>) -> Result<(Vec<v1::Header>, Bytes), Error> {
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
            (_, Value::String(text)) => headers.push(header(format!("ce-{name}"), escape_attribute(&text))),
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
    let kind = media_type(kind).to_ascii_lowercase();
    kind.ends_with("/json") || kind.ends_with("+json")
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
    decoded(&value).map_or_else(|_| value.clone(), std::borrow::Cow::into_owned)
}

/// An event out of headers and a body.
pub fn to_structured(headers: &HeaderMap, body: &[u8]) -> Value {
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
        let (headers, body) = to_binary(checked(text).unwrap()).unwrap();
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
            let (headers, body) = to_binary(checked(event).unwrap()).unwrap();
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
        assert!(check_binary(&HeaderMap::new()).unwrap_err().message.contains("ce-specversion is missing"));
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
            assert_eq!(check_binary(&headers).is_ok(), good, "{name}: {value}");
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
        let event = to_structured(&headers, b"{\"a\":1}");
        assert_eq!((&event["subject"], &event["data"]["a"]), (&json!("a b"), &json!(1)));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("image/png"));
        assert_eq!(to_structured(&headers, &[0, 0xff])["data_base64"], "AP8=");
    }
}
