//! The formats, each as much of its contract as a function sees.
//!
//! A format is one [`Format`]: the same `perform::turn` serves those that are given their calls and the one that asks for them.

pub mod cloudevent;
pub mod default;
pub mod http;
pub mod http_stream;
pub mod json;
pub mod json_http;
pub mod lambda;
pub mod mless;

use std::io;

use crate::call::{Answer, Call};
use crate::channel::{Channel, Input};

/// What a function needs to know of a format.
pub trait Format {
    /// What stands before the first call. `start`: what the function was told to do wrong.
    fn greet(&mut self, _channel: &mut Channel, _start: &str) -> io::Result<()> {
        Ok(())
    }

    /// The next call, without its body where the body comes behind; `None` when there is none.
    fn head(&mut self, channel: &mut Channel) -> io::Result<Option<Call>>;

    /// The body of a call whose head was read.
    fn body(&mut self, _input: &mut Input, _call: &mut Call) -> io::Result<()> {
        Ok(())
    }

    /// An answer, in bytes.
    fn answer(&self, call: &Call, answer: &Answer) -> Vec<u8>;

    /// Waits until the platform has said that it has the answer, where the format has such a word.
    fn acknowledged(&self, _input: &mut Input) -> io::Result<()> {
        Ok(())
    }

    /// What is no answer, in this way; `None` when the format has no such way.
    fn invalid(&self, call: &Call, way: &str) -> Option<Vec<u8>>;

    /// The process ends with its call.
    fn is_cold(&self) -> bool {
        false
    }
}

/// The format of this name.
pub fn of(name: &str) -> Option<Box<dyn Format>> {
    Some(match name {
        "default" | "" => Box::new(default::Default::new()),
        "http" => Box::new(http::Http::default()),
        "json" => Box::new(json::Json),
        "json-http" => Box::new(json_http::JsonHttp::new(std::env::var_os("TEST_COLD").is_some())),
        "cloudevent" => Box::new(cloudevent::CloudEvent),
        "http-stream" => Box::new(http_stream::HttpStream::default()),
        "lambda" => Box::new(lambda::Lambda::default()),
        "mless" => Box::new(mless::Mless),
        _ => return None,
    })
}

/// Ways to be wrong that all formats of HTTP have.
fn invalid_http(way: &str) -> Option<Vec<u8>> {
    Some(match way {
        "garbage" => b"this is no answer\n".to_vec(),
        "status" => b"HTTP/1.1 2x0 whatever\r\nContent-Length: 0\r\n\r\n".to_vec(),
        "version" => b"HTTP/3.7 200 whatever\r\nContent-Length: 0\r\n\r\n".to_vec(),
        "header" => b"HTTP/1.1 200 whatever\r\nno colon\r\nContent-Length: 0\r\n\r\n".to_vec(),
        "length" => b"HTTP/1.1 200 whatever\r\nContent-Length: many\r\n\r\n".to_vec(),
        "two-lengths" => {
            b"HTTP/1.1 200 whatever\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".to_vec()
        }
        "chunk" => {
            b"HTTP/1.1 200 whatever\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n".to_vec()
        }
        "cut-chunk" => {
            b"HTTP/1.1 200 whatever\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n0\r\n\r\n".to_vec()
        }
        _ => return None,
    })
}

/// Ways to be wrong that all formats of JSON have.
fn invalid_json(way: &str) -> Option<Vec<u8>> {
    Some(match way {
        "garbage" => b"this is no answer\n".to_vec(),
        "array" => b"[{}]\n".to_vec(),
        "syntax" => b"{\"body\" \"no colon\"}\n".to_vec(),
        "utf8" => b"{\"body\":\"\xff\xfe\",\"data\":\"\xff\",\"result\":\"\xff\"}\n".to_vec(),
        "deep" => [b"{\"body\":".repeat(500), b"1".to_vec(), b"}".repeat(500)].concat(),
        "control" => b"{\"body\":\"a\x01b\"}\n".to_vec(),
        _ => return None,
    })
}
