//! `default`: the body on STDIN, everything else in the environment, the answer on STDOUT, and the end of the process.

use std::io::{self, Read as _};

use super::Format;
use crate::call::{Answer, Call};
use crate::channel::{Channel, Input};

/// One call.
pub struct Default {
    taken: bool,
}

impl Default {
    pub fn new() -> Self {
        Self { taken: false }
    }
}

/// What a process of one call finds in its environment.
pub fn call_of_environment() -> Call {
    let of = |name: &str| std::env::var(name).unwrap_or_default();
    let headers: Vec<_> = std::env::vars()
        .filter_map(|(key, value)| Some((key.strip_prefix("FN_HEADER_")?.replace('_', "-"), value)))
        .collect();
    Call {
        id: of("FN_CALL_ID"),
        deadline: of("FN_DEADLINE"),
        method: of("FN_METHOD"),
        url: of("FN_REQUEST_URL"),
        content_type: of("FN_HEADER_CONTENT_TYPE"),
        headers,
        ..Call::default()
    }
}

impl Format for Default {
    fn head(&mut self, _: &mut Channel) -> io::Result<Option<Call>> {
        Ok((!std::mem::replace(&mut self.taken, true)).then(call_of_environment))
    }

    fn body(&mut self, input: &mut Input, call: &mut Call) -> io::Result<()> {
        input.read_to_end(&mut call.body)?;
        Ok(())
    }

    fn answer(&self, _: &Call, answer: &Answer) -> Vec<u8> {
        answer.body.clone()
    }

    fn invalid(&self, _: &Call, _: &str) -> Option<Vec<u8>> {
        None
    }

    fn is_cold(&self) -> bool {
        true
    }
}
