//! How an answer on STDOUT is told from what is not one. The rule is the same in every format that keeps its container:
//!
//! - space between answers (blanks, tabs, line breaks) means nothing;
//! - anything else behind a complete answer: it is delivered, and the container destroyed;
//! - anything else before the request was there to be answered is late output of an earlier call: it is nobody's answer;
//! - an answer that breaks off, breaks the format or exceeds a limit is the function's fault, and the container is destroyed.

use bytes::{Buf as _, Bytes, BytesMut};
use stoker_core::{Code, ResponseHead};

use crate::jsontext::{Scanner, is_space};
use crate::{After, Event, Fault};

/// Takes the space at the start away.
pub fn trim(input: &mut BytesMut) {
    let space = input.iter().take_while(|b| is_space(**b)).count();
    input.advance(space);
}

/// What follows an answer that is complete. `settled`: the request was written whole, and the function did not say that it ends.
pub fn settle(input: &mut BytesMut, eof: bool, settled: bool) -> After {
    trim(input);
    if settled && input.is_empty() && !eof { After::Reuse } else { After::Destroy }
}

/// An answer that breaks its format.
pub fn broken(kind: &str, why: &str) -> Fault {
    Fault::new(Code::FunctionInvalidResponse, format!("the function's answer is not valid {kind}: {why}"))
}

/// What a function wrote instead of an answer, short enough for a message.
pub fn excerpt(input: &[u8]) -> String {
    const MOST: usize = 40;
    let text = String::from_utf8_lossy(&input[..input.len().min(MOST)]);
    let more = if input.len() > MOST { "…" } else { "" };
    format!("{text:?}{more}")
}

/// Reads an answer that is one JSON object.
#[derive(Debug, Default)]
pub struct Whole {
    scanner: Scanner,
    seen: usize,
}

impl Whole {
    /// The object's text, once it is complete: JSON and UTF-8. `asked`: the request was written whole. `limit`: its most bytes.
    ///
    /// # Errors
    /// The function's fault.
    pub fn next(
        &mut self,
        input: &mut BytesMut,
        eof: bool,
        asked: bool,
        limit: usize,
    ) -> Result<Option<BytesMut>, Fault> {
        if self.seen == 0 {
            trim(input);
        }
        match input.first() {
            None if eof => {
                let why = "the function ended its output without an answer";
                return Err(Fault::new(Code::FunctionInvalidResponse, why));
            }
            None => return Ok(None),
            Some(_) if !asked => {
                let why = format!("the function wrote before the call had reached it: {}", excerpt(input));
                return Err(Fault::new(Code::FunctionInvalidResponse, why));
            }
            Some(b'{') => {}
            Some(_) => return Err(broken("JSON", &format!("it is no object but {}", excerpt(input)))),
        }
        // No further than it may go, however much is there.
        let rest = input.get(self.seen..input.len().min(limit + 1)).unwrap_or_default();
        self.seen += self.scanner.scan(rest, |_| {}).map_err(|why| broken("JSON", &why.to_string()))?;
        if self.seen > limit {
            let why = format!("the function's answer exceeds {limit} bytes");
            return Err(Fault::new(Code::ResponseTooLarge, why));
        }
        if !self.scanner.is_done() {
            return if eof { Err(broken("JSON", "it ends early")) } else { Ok(None) };
        }
        let whole = input.split_to(self.seen);
        if std::str::from_utf8(&whole).is_err() {
            return Err(broken("JSON", "it is not UTF-8"));
        }
        Ok(Some(whole))
    }
}

/// What an answer that is one JSON object says.
#[derive(Debug)]
pub enum Said {
    Answer(ResponseHead, Bytes),
    /// The function failed, and says so in a valid way.
    Failure(String),
}

/// Reads such an answer and tells of it in events.
#[derive(Debug)]
pub struct Reply {
    whole: Whole,
    limit: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting,
    Body(Bytes),
}

impl Reply {
    /// `limit`: the most bytes of the object.
    pub fn new(limit: usize) -> Self {
        Self { whole: Whole::default(), limit, state: State::Waiting }
    }

    /// See [`crate::Exchange::decode`]. `read` understands the object.
    ///
    /// # Errors
    /// The function's fault.
    pub fn decode(
        &mut self,
        input: &mut BytesMut,
        eof: bool,
        asked: bool,
        read: impl FnOnce(BytesMut) -> Result<Said, Fault>,
    ) -> Result<Option<Event>, Fault> {
        let body = match &mut self.state {
            State::Waiting => {
                let Some(object) = self.whole.next(input, eof, asked, self.limit)? else { return Ok(None) };
                return Ok(Some(match read(object)? {
                    Said::Answer(head, body) => {
                        let length = Some(body.len() as u64);
                        self.state = State::Body(body);
                        Event::Head { head, length }
                    }
                    Said::Failure(message) => {
                        Event::Failed { code: Code::FunctionFailed, message, after: settle(input, eof, true) }
                    }
                }));
            }
            State::Body(body) => std::mem::take(body),
        };
        Ok(Some(if body.is_empty() { Event::End(settle(input, eof, true)) } else { Event::Body(body) }))
    }
}
