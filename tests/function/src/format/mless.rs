//! `mless`: a greeting, then a request and a reply at a time.

use std::io::{self, Write as _};

use super::{Format, invalid_json};
use crate::call::{Answer, Call};
use crate::channel::Channel;
use crate::http::headers_from_json;
use crate::json::{self, Value, number, object, string};

pub struct Mless;

impl Format for Mless {
    fn greet(&mut self, channel: &mut Channel, start: &str) -> io::Result<()> {
        if start == "unasked" {
            // As the runtime for Node did: it never reads what it is told first, so here that is the first thing it reads.
            channel.output.write_all(b"{\"OK\":true}\n")?;
            json::read(&mut channel.input)?;
            return Ok(());
        }
        let Some(text) = json::read(&mut channel.input)? else { return Ok(()) };
        let told = json::parse(&text).ok_or_else(|| io::Error::other("the startup message is no JSON"))?;
        let (handler, env) = (told.text_of("handler"), told.get("env"));
        if handler.is_empty() || !matches!(env, Some(Value::Object(_))) {
            return Err(io::Error::other("the startup message names no handler or no environment"));
        }
        let answer: &[u8] = match start {
            "refuse" => b"{\"ok\":false}\n",
            "no-ok" => b"{\"fine\":true}\n",
            "garbage" => b"good morning\n",
            "more" => b"{\"ok\":true}\n{\"ok\":true}\n",
            _ => b"{\"ok\":true}\n",
        };
        channel.output.write_all(answer)
    }

    fn head(&mut self, channel: &mut Channel) -> io::Result<Option<Call>> {
        let Some(text) = json::read(&mut channel.input)? else { return Ok(None) };
        let told = json::parse(&text).ok_or_else(|| io::Error::other("what came is no JSON"))?;
        let context = told.get("context").ok_or_else(|| io::Error::other("there is no context"))?;
        let event = told.get("event").ok_or_else(|| io::Error::other("there is no event"))?;
        let Some(Value::Number(deadline)) = told.get("deadline") else {
            return Err(io::Error::other("there is no deadline"));
        };
        Ok(Some(Call {
            id: context.text_of("aws_request_id"),
            deadline: deadline.clone(),
            method: "POST".to_owned(),
            content_type: "application/json".to_owned(),
            body: event.to_text().into_bytes(),
            headers: headers_from_json(context.get("client_context").and_then(|c| c.get("custom"))),
            told,
            ..Call::default()
        }))
    }

    fn answer(&self, call: &Call, answer: &Answer) -> Vec<u8> {
        let result = json::parse(&answer.body).unwrap_or_else(|| match answer.body.is_empty() {
            true => Value::Null,
            false => string(String::from_utf8_lossy(&answer.body)),
        });
        let billing = object([("duration", number(12.5)), ("memory", string("64")), ("used", number(31))]);
        let reply = object([
            ("result", result),
            ("errortype", string(if answer.failed { "TestError" } else { "" })),
            ("invokeid", string(&call.id)),
            ("errors", Value::Bool(answer.failed)),
            ("billing", billing),
        ]);
        (reply.to_text() + "\n\n").into_bytes()
    }

    fn invalid(&self, call: &Call, way: &str) -> Option<Vec<u8>> {
        Some(match way {
            "other-id" => b"{\"result\":1,\"invokeid\":\"another\",\"errors\":false}\n".to_vec(),
            "no-id" => b"{\"result\":1,\"errors\":false}\n".to_vec(),
            "errors-type" => {
                let reply = object([
                    ("result", number(1)),
                    ("invokeid", string(&call.id)),
                    ("errors", string("perhaps")),
                ]);
                (reply.to_text() + "\n").into_bytes()
            }
            _ => return invalid_json(way),
        })
    }
}
