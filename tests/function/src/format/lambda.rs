//! `lambda`: the Runtime API. A call is the answer to a `GET`, an answer a `POST`.

use std::io::{self, BufRead as _, Write as _};

use super::Format;
use crate::call::{Answer, Call};
use crate::channel::{Channel, Input};
use crate::http;
use crate::json::{object, string};

const API: &str = "/2018-06-01/runtime";

#[derive(Default)]
pub struct Lambda {
    /// A `POST` was sent, and its answer not read yet.
    posted: bool,
}

fn post(path: &str, headers: &str, answer: &Answer) -> Vec<u8> {
    let mut out = format!("POST {API}{path} HTTP/1.1\r\nHost: runtime\r\n{headers}").into_bytes();
    if !answer.content_type.is_empty() {
        out.extend_from_slice(format!("Content-Type: {}\r\n", answer.content_type).as_bytes());
    }
    out.extend_from_slice(format!("Content-Length: {}\r\n\r\n", answer.body.len()).as_bytes());
    out.extend_from_slice(&answer.body);
    out
}

/// The failure of an invocation, or of the start.
fn failure() -> Answer {
    Answer::json(&object([("errorMessage", string("it failed")), ("errorType", string("TestError"))]))
}

const FAILED: &str = "Lambda-Runtime-Function-Error-Type: Function.TestError\r\n";

impl Format for Lambda {
    fn greet(&mut self, channel: &mut Channel, start: &str) -> io::Result<()> {
        if start == "init-error" {
            channel.output.write_all(&post("/init/error", FAILED, &failure()))?;
            http::response(&mut channel.input)?;
            eprintln!("test function: said that it cannot start");
            crate::perform::for_ever();
        }
        Ok(())
    }

    fn head(&mut self, channel: &mut Channel) -> io::Result<Option<Call>> {
        if std::mem::take(&mut self.posted) {
            self.acknowledged(&mut channel.input)?;
        }
        let next = format!("GET {API}/invocation/next HTTP/1.1\r\nHost: runtime\r\n\r\n");
        channel.output.write_all(next.as_bytes())?;
        if channel.input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let (mut call, length) = http::response(&mut channel.input)?;
        if call.url != "200" {
            return Err(io::Error::other(format!("the next invocation is {}", call.url)));
        }
        call.body = http::body(&mut channel.input, length)?;
        (call.method, call.url) = ("POST".to_owned(), String::new());
        let of = |name: &str| call.header(name).unwrap_or_default().to_owned();
        (call.id, call.deadline) = (of("Lambda-Runtime-Aws-Request-Id"), of("Lambda-Runtime-Deadline-Ms"));
        self.posted = true;
        Ok(Some(call))
    }

    fn answer(&self, call: &Call, answer: &Answer) -> Vec<u8> {
        match answer.failed {
            true => post(&format!("/invocation/{}/error", call.id), FAILED, &failure()),
            false => post(&format!("/invocation/{}/response", call.id), "", answer),
        }
    }

    fn acknowledged(&self, input: &mut Input) -> io::Result<()> {
        let (told, length) = http::response(input)?;
        http::body(input, length)?;
        if told.url != "202" {
            eprintln!("test function: its answer was answered with {}", told.url);
        }
        Ok(())
    }

    fn invalid(&self, call: &Call, way: &str) -> Option<Vec<u8>> {
        let answer = failure();
        Some(match way {
            "mode" => {
                let mode = "Lambda-Runtime-Function-Response-Mode: perhaps\r\n";
                post(&format!("/invocation/{}/response", call.id), mode, &answer)
            }
            _ => return None,
        })
    }
}
