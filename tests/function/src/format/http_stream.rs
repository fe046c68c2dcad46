//! `http-stream`: HTTP/1.1 on a socket. The status of an answer is a word to the platform, the one for the client is a header.

use std::io;

use super::{Format, invalid_http};
use crate::call::{Answer, Call};
use crate::channel::{Channel, Input};
use crate::http::{self, Length};

#[derive(Default)]
pub struct HttpStream {
    length: Option<Length>,
}

impl Format for HttpStream {
    fn head(&mut self, channel: &mut Channel) -> io::Result<Option<Call>> {
        let Some((mut call, length)) = http::head(&mut channel.input)? else { return Ok(None) };
        if (call.method.as_str(), call.url.as_str()) != ("POST", "/call") {
            return Err(io::Error::other(format!("{} {} is not POST /call", call.method, call.url)));
        }
        self.length = Some(length);
        // From a trigger, the client's own request is told in headers.
        call.method = call.header("Fn-Http-Method").unwrap_or("POST").to_owned();
        call.url = call.header("Fn-Http-Request-Url").unwrap_or_default().to_owned();
        let own: Vec<_> = call
            .headers
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix("Fn-Http-H-")?.to_owned(), value.clone())))
            .collect();
        call.headers.extend(own);
        Ok(Some(call))
    }

    fn body(&mut self, input: &mut Input, call: &mut Call) -> io::Result<()> {
        if let Some(length) = self.length.take() {
            call.body = http::body(input, length)?;
        }
        Ok(())
    }

    fn answer(&self, call: &Call, answer: &Answer) -> Vec<u8> {
        if answer.failed {
            return http::answer(answer, 502);
        }
        let mut answer = answer.clone();
        if call.header("Fn-Intent") == Some("httprequest") {
            for (name, _) in &mut answer.headers {
                *name = format!("Fn-Http-H-{name}");
            }
            answer.headers.push(("Fn-Http-Status".to_owned(), answer.status.to_string()));
        }
        http::answer(&answer, 200)
    }

    fn invalid(&self, _: &Call, way: &str) -> Option<Vec<u8>> {
        match way {
            "wire-status" => Some(b"HTTP/1.1 500 whatever\r\nContent-Length: 0\r\n\r\n".to_vec()),
            _ => invalid_http(way),
        }
    }
}
