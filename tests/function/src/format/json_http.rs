//! `json-http`: a head in JSON, a blank line, the body.

use std::io::{self, BufRead as _, Read as _};

use super::{Format, default, invalid_json};
use crate::call::{Answer, Call};
use crate::channel::{Channel, Input};
use crate::http::{self, Length, chunks, headers_from_json, headers_to_json};
use crate::json::{self, Value, number, object, string};

pub struct JsonHttp {
    /// One call per process: STDIN ends behind the body, and the answer is bare.
    cold: bool,
    taken: bool,
    length: Option<Length>,
}

impl JsonHttp {
    pub fn new(cold: bool) -> Self {
        Self { cold, taken: false, length: None }
    }
}

impl Format for JsonHttp {
    fn head(&mut self, channel: &mut Channel) -> io::Result<Option<Call>> {
        if self.cold && std::mem::replace(&mut self.taken, true) {
            return Ok(None);
        }
        let Some(text) = json::read(&mut channel.input)? else { return Ok(None) };
        let told = json::parse(&text).ok_or_else(|| io::Error::other("what came is no JSON"))?;
        for _ in 0..2 {
            let mut line = Vec::new();
            channel.input.read_until(b'\n', &mut line)?;
            if line != b"\n" {
                return Err(io::Error::other("there is no blank line behind the head"));
            }
        }
        let mut call = if self.cold { default::call_of_environment() } else { Call::default() };
        call.id = told.text_of("call_id");
        call.deadline = told.text_of("deadline");
        call.method = told.text_of("method");
        call.url = told.text_of("request_url");
        call.headers = headers_from_json(told.get("headers"));
        call.content_type = call.header("Content-Type").unwrap_or_default().to_owned();
        self.length = match (told.get("body_length"), told.get("chunked")) {
            (Some(Value::Number(length)), None) => {
                Some(Length::Known(length.parse().map_err(io::Error::other)?))
            }
            (None, Some(Value::Bool(true))) => Some(Length::Chunked),
            (None, None) if self.cold => None,
            both => return Err(io::Error::other(format!("the body's length is {both:?}"))),
        };
        call.told = told;
        Ok(Some(call))
    }

    fn body(&mut self, input: &mut Input, call: &mut Call) -> io::Result<()> {
        match self.length.take() {
            _ if self.cold => {
                input.read_to_end(&mut call.body)?;
            }
            Some(length) => call.body = http::body(input, length)?,
            None => {}
        }
        Ok(())
    }

    fn answer(&self, _: &Call, answer: &Answer) -> Vec<u8> {
        if self.cold {
            return answer.body.clone();
        }
        let length = match answer.chunked {
            true => ("chunked", Value::Bool(true)),
            false => ("body_length", number(answer.body.len())),
        };
        let head = object([
            ("status_code", number(answer.status)),
            ("headers", headers_to_json(&answer.headers)),
            ("content_type", string(&answer.content_type)),
            length,
        ]);
        let mut out = (head.to_text() + "\n\n").into_bytes();
        if answer.chunked {
            chunks(&answer.body, &mut out)
        } else {
            out.extend_from_slice(&answer.body)
        }
        out
    }

    fn invalid(&self, _: &Call, way: &str) -> Option<Vec<u8>> {
        if self.cold {
            return None;
        }
        Some(match way {
            "no-length" => b"{\"status_code\":200}\n\n".to_vec(),
            "two-lengths" => b"{\"body_length\":1,\"chunked\":true}\n\na".to_vec(),
            "length" => b"{\"body_length\":-1}\n\n".to_vec(),
            "no-blank-line" => b"{\"body_length\":3}\nabc\n".to_vec(),
            "chunk" => b"{\"chunked\":true}\n\nxyz\r\nabc\r\n0\r\n\r\n".to_vec(),
            "status" => b"{\"status_code\":\"fine\",\"body_length\":0}\n\n".to_vec(),
            "low-status" => b"{\"status_code\":99,\"body_length\":0}\n\n".to_vec(),
            "headers" => b"{\"headers\":[1],\"body_length\":0}\n\n".to_vec(),
            "split-header" => b"{\"headers\":{\"A\":[\"b\\r\\nC: d\"]},\"body_length\":0}\n\n".to_vec(),
            _ => return invalid_json(way),
        })
    }

    fn is_cold(&self) -> bool {
        self.cold
    }
}
