//! `http`: HTTP/1.1 on STDIN and STDOUT.

use std::io;

use super::{Format, invalid_http};
use crate::call::{Answer, Call};
use crate::channel::{Channel, Input};
use crate::http::{self, Length};

#[derive(Default)]
pub struct Http {
    length: Option<Length>,
}

impl Format for Http {
    fn head(&mut self, channel: &mut Channel) -> io::Result<Option<Call>> {
        let Some((mut call, length)) = http::head(&mut channel.input)? else { return Ok(None) };
        self.length = Some(length);
        let whole = call.header("Fn-Request-Url").map(str::to_owned);
        call.url = whole.unwrap_or(call.url);
        Ok(Some(call))
    }

    fn body(&mut self, input: &mut Input, call: &mut Call) -> io::Result<()> {
        if let Some(length) = self.length.take() {
            call.body = http::body(input, length)?;
        }
        Ok(())
    }

    fn answer(&self, _: &Call, answer: &Answer) -> Vec<u8> {
        http::answer(answer, answer.status)
    }

    fn invalid(&self, _: &Call, way: &str) -> Option<Vec<u8>> {
        invalid_http(way)
    }
}
