//! `cloudevent`: an event each way, in the version in which the call came.

use std::io;

use super::{Format, invalid_json};
use crate::base64;
use crate::call::{Answer, Call};
use crate::channel::Channel;
use crate::http::{headers_from_json, headers_to_json, protocol};
use crate::json::{self, Value, number, object, string};

pub struct CloudEvent;

fn is_json(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    kind.is_empty() || kind == "application/json" || kind.ends_with("+json")
}

/// Data as a body: a string of a type that is not JSON is what it says.
fn body(data: Option<&Value>, content_type: &str) -> Vec<u8> {
    match data {
        None => Vec::new(),
        Some(Value::String(text)) if !is_json(content_type) => text.clone().into_bytes(),
        Some(value) => value.to_text().into_bytes(),
    }
}

/// A body as data.
fn data(answer: &Answer) -> Value {
    let value = is_json(&answer.content_type).then(|| json::parse(&answer.body)).flatten();
    value.unwrap_or_else(|| string(String::from_utf8_lossy(&answer.body)))
}

fn is_old(told: &Value) -> bool {
    told.get("specversion").is_none()
}

impl Format for CloudEvent {
    fn head(&mut self, channel: &mut Channel) -> io::Result<Option<Call>> {
        let Some(text) = json::read(&mut channel.input)? else { return Ok(None) };
        let told = json::parse(&text).ok_or_else(|| io::Error::other("what came is no JSON"))?;
        let mut call = Call::default();
        if is_old(&told) {
            if told.text_of("cloudEventsVersion") != "0.1" {
                return Err(io::Error::other("what came is no CloudEvent of a version that is known"));
            }
            call.content_type = told.text_of("contentType");
            call.body = body(told.get("data"), &call.content_type);
            if let Some(extensions) = told.get("extensions") {
                call.deadline = extensions.text_of("deadline");
                if let Some(protocol) = extensions.get("protocol") {
                    call.method = protocol.text_of("method");
                    call.url = protocol.text_of("request_url");
                    call.headers = headers_from_json(protocol.get("headers"));
                }
            }
            let header = call.header("Fn-Call-Id").map(str::to_owned);
            call.id = header.unwrap_or_else(|| told.text_of("eventID"));
        } else {
            call.id = told.text_of("fncallid");
            call.deadline = told.text_of("fndeadline");
            call.method = told.text_of("fnmethod");
            call.url = told.text_of("fnrequesturl");
            call.content_type = told.text_of("datacontenttype");
            let headers = json::parse(told.text_of("fnheaders").as_bytes());
            call.headers = headers_from_json(headers.as_ref());
            call.body = match told.get("data_base64").and_then(Value::text) {
                Some(text) => {
                    base64::decode(text).ok_or_else(|| io::Error::other("data_base64 is no base64"))?
                }
                None => body(told.get("data"), &call.content_type),
            };
        }
        call.told = told;
        Ok(Some(call))
    }

    fn answer(&self, call: &Call, answer: &Answer) -> Vec<u8> {
        let event = if is_old(&call.told) {
            let mut members = vec![
                ("cloudEventsVersion", string("0.1")),
                ("eventID", string(format!("answer-{}", call.id))),
                ("source", string("stoker-test-function")),
                ("eventType", string("test.answer")),
                ("contentType", string(&answer.content_type)),
                ("extensions", object([("protocol", protocol(answer))])),
            ];
            if !answer.body.is_empty() {
                members.push(("data", data(answer)));
            }
            object(members)
        } else {
            let mut members = vec![
                ("specversion", string("1.0")),
                ("id", string(format!("answer-{}", call.id))),
                ("source", string("stoker-test-function")),
                ("type", string("test.answer")),
                ("fnstatuscode", number(answer.status)),
                ("fnheaders", string(headers_to_json(&answer.headers).to_text())),
            ];
            if !answer.body.is_empty() {
                members.push(("datacontenttype", string(&answer.content_type)));
                if is_json(&answer.content_type) || answer.content_type.starts_with("text/") {
                    members.push(("data", data(answer)));
                } else {
                    members.push(("data_base64", string(base64::encode(&answer.body))));
                }
            }
            object(members)
        };
        (event.to_text() + "\n").into_bytes()
    }

    fn invalid(&self, call: &Call, way: &str) -> Option<Vec<u8>> {
        let (old, new) = match way {
            "status" => (
                r#"{"cloudEventsVersion":"0.1","extensions":{"protocol":{"status_code":"fine"}}}"#,
                r#"{"specversion":"1.0","id":"1","source":"/","type":"t","fnstatuscode":"fine"}"#,
            ),
            "headers" => (
                r#"{"cloudEventsVersion":"0.1","extensions":{"protocol":{"headers":[1]}}}"#,
                r#"{"specversion":"1.0","id":"1","source":"/","type":"t","fnheaders":"{\"a\":7}"}"#,
            ),
            "data-type" => (
                r#"{"cloudEventsVersion":"0.1","contentType":"text/plain","data":{"a":1}}"#,
                r#"{"specversion":"1.0","id":"1","source":"/","type":"t","datacontenttype":"text/plain","data":{"a":1}}"#,
            ),
            "content-type" => (r#"{"cloudEventsVersion":"0.1","contentType":"image/png","data":"x"}"#, ""),
            "no-id" => ("", r#"{"specversion":"1.0","source":"/","type":"t"}"#),
            "version" => ("", r#"{"specversion":"0.3","id":"1","source":"/","type":"t"}"#),
            "two-data" => (
                "",
                r#"{"specversion":"1.0","id":"1","source":"/","type":"t","data":1,"data_base64":"YQ=="}"#,
            ),
            "base64" => ("", r#"{"specversion":"1.0","id":"1","source":"/","type":"t","data_base64":"!"}"#),
            "attribute" => ("", r#"{"specversion":"1.0","id":"1","source":"/","type":"t","Not_A_Name":"x"}"#),
            _ => return invalid_json(way),
        };
        let event = if is_old(&call.told) { old } else { new };
        (!event.is_empty()).then(|| format!("{event}\n").into_bytes())
    }
}
