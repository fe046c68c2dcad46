//! `json`: an object each way.

use std::io;

use super::{Format, invalid_json};
use crate::base64;
use crate::call::{Answer, Call};
use crate::channel::Channel;
use crate::http::{headers_from_json, protocol};
use crate::json::{self, object, string};

pub struct Json;

impl Format for Json {
    fn head(&mut self, channel: &mut Channel) -> io::Result<Option<Call>> {
        let Some(text) = json::read(&mut channel.input)? else { return Ok(None) };
        let told = json::parse(&text).ok_or_else(|| io::Error::other("what came is no JSON"))?;
        let mut call = Call {
            id: told.text_of("call_id"),
            deadline: told.text_of("deadline"),
            content_type: told.text_of("content_type"),
            body: told.text_of("body").into_bytes(),
            ..Call::default()
        };
        if told.text_of("body_encoding") == "base64" {
            let body = base64::decode(&told.text_of("body"));
            call.body = body.ok_or_else(|| io::Error::other("the body is no base64"))?;
        }
        if let Some(protocol) = told.get("protocol") {
            call.method = protocol.text_of("method");
            call.url = protocol.text_of("request_url");
            call.headers = headers_from_json(protocol.get("headers"));
        }
        call.told = told;
        Ok(Some(call))
    }

    fn answer(&self, call: &Call, answer: &Answer) -> Vec<u8> {
        let mut members = vec![];
        if call.told.get("body_encoding").is_some() {
            members.push(("body_encoding", string("base64")));
            members.push(("body", string(base64::encode(&answer.body))));
        } else {
            members.push(("body", string(String::from_utf8_lossy(&answer.body))));
        }
        members.push(("content_type", string(&answer.content_type)));
        members.push(("protocol", protocol(answer)));
        (object(members).to_text() + "\n").into_bytes()
    }

    fn invalid(&self, _: &Call, way: &str) -> Option<Vec<u8>> {
        Some(match way {
            "body-type" => b"{\"body\":5}\n".to_vec(),
            "status" => b"{\"body\":\"\",\"protocol\":{\"status_code\":\"fine\"}}\n".to_vec(),
            "low-status" => b"{\"body\":\"\",\"protocol\":{\"status_code\":99}}\n".to_vec(),
            "headers" => b"{\"body\":\"\",\"protocol\":{\"headers\":[1]}}\n".to_vec(),
            "protocol" => b"{\"body\":\"\",\"protocol\":7}\n".to_vec(),
            "split-header" => {
                b"{\"body\":\"\",\"protocol\":{\"headers\":{\"A\":[\"b\\r\\nC: d\"]}}}\n".to_vec()
            }
            "control" => b"{\"body\":\"a\x01b\"}\n".to_vec(),
            _ => return invalid_json(way),
        })
    }
}
