//! `json-http`: a head in JSON, a blank line, the body. The Open Function Format named it and left out how one call ends and the
//! next begins; `docs/formats.md` says how it is here.

use std::fmt::Write as _;

use bytes::{Buf as _, BytesMut};
use stoker_core::call::Headers;
use stoker_core::moment::rfc3339_millis;
use stoker_core::{Code, ResponseHead};

use crate::chunked::Chunked;
use crate::headers::{self, Given};
use crate::http1::{self, Body, Piece};
use crate::jsontext::{self, Scanner};
use crate::reply::{broken, excerpt, settle, trim};
use crate::{Event, Fault, MAX_HEAD, Request, default, url};

/// Most bytes of space from the end of the head to the body.
const MAX_GAP: usize = 64;

/// One call.
#[derive(Debug)]
pub struct Exchange {
    chunked: bool,
    written: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    Head {
        scanner: Scanner,
        seen: usize,
    },
    /// The head is complete and stands at the start of the input, so long.
    Gap {
        head: usize,
    },
    Body(Body),
    /// One call per process: the answer is all that comes.
    Bare(default::Exchange),
}

impl Exchange {
    /// Before anything was written. `cold`: the process has no other call.
    #[must_use]
    pub fn new(request: &Request<'_>, cold: bool) -> Self {
        let state = if cold {
            State::Bare(default::Exchange::new())
        } else {
            State::Head { scanner: Scanner::default(), seen: 0 }
        };
        Self { chunked: request.length.is_none() && !cold, written: false, state }
    }

    /// See [`crate::Exchange::frame`].
    pub fn frame(&self, length: usize, before: &mut BytesMut, after: &mut BytesMut) {
        http1::frame(length, self.chunked, before, after);
    }

    /// See [`crate::Exchange::encode_head`].
    pub fn encode_head(&mut self, request: &Request<'_>, out: &mut BytesMut) {
        out.extend_from_slice(b"{\"request_url\":");
        jsontext::string(request.head.url.as_bytes(), out);
        out.extend_from_slice(b",\"params\":{");
        for (at, (name, value)) in url::parameters(&request.head.url).iter().enumerate() {
            out.extend_from_slice(if at == 0 { b"" } else { b"," });
            jsontext::string(name.as_bytes(), out);
            out.extend_from_slice(b":");
            jsontext::string(value.as_bytes(), out);
        }
        out.extend_from_slice(b"},\"method\":");
        jsontext::string(request.head.method.as_bytes(), out);
        out.extend_from_slice(b",\"headers\":");
        headers::write(&headers::told(request), out);
        let deadline = rfc3339_millis(request.deadline);
        _ = write!(out, ",\"call_id\":\"{}\",\"deadline\":\"{deadline}\"", request.call);
        match request.length {
            Some(length) => _ = write!(out, ",\"body_length\":{length}"),
            None if self.chunked => out.extend_from_slice(b",\"chunked\":true"),
            None => {}
        }
        out.extend_from_slice(b"}\n\n");
    }

    /// See [`crate::Exchange::encode_body`].
    pub fn encode_body(&mut self, piece: &[u8], out: &mut BytesMut) {
        http1::piece(out, piece, self.chunked);
    }

    /// See [`crate::Exchange::encode_end`].
    pub fn encode_end(&mut self, out: &mut BytesMut) {
        http1::end(out, self.chunked, &Headers::default(), "");
        self.written = true;
    }

    /// See [`crate::Exchange::decode`].
    ///
    /// # Errors
    /// The function's fault.
    pub fn decode(&mut self, input: &mut BytesMut, eof: bool) -> Result<Option<Event>, Fault> {
        loop {
            match &mut self.state {
                State::Bare(bare) => return Ok(bare.decode(input, eof)),
                State::Head { scanner, seen } => {
                    if *seen == 0 {
                        trim(input);
                    }
                    match input.first() {
                        None if eof => {
                            let why = "the function ended its output without an answer";
                            return Err(Fault::new(Code::FunctionInvalidResponse, why));
                        }
                        None => return Ok(None),
                        Some(b'{') => {}
                        Some(_) => {
                            return Err(broken("json-http", &format!("it begins with {}", excerpt(input))));
                        }
                    }
                    // No further than a head may go, however much is there.
                    let rest = input.get(*seen..input.len().min(MAX_HEAD + 1)).unwrap_or_default();
                    *seen +=
                        scanner.scan(rest, |_| {}).map_err(|why| broken("json-http", &why.to_string()))?;
                    if *seen > MAX_HEAD {
                        let why = format!("the head of the function's answer exceeds {MAX_HEAD} bytes");
                        return Err(Fault::new(Code::ResponseHeadersTooLarge, why));
                    }
                    if !scanner.is_done() {
                        return if eof { Err(broken("json-http", "its head ends early")) } else { Ok(None) };
                    }
                    self.state = State::Gap { head: *seen };
                }
                State::Gap { head } => {
                    let head = *head;
                    let Some(gap) = gap(input.get(head..).unwrap_or_default(), eof)
                        .map_err(|why| broken("json-http", why))?
                    else {
                        return Ok(None);
                    };
                    let text = input.split_to(head);
                    input.advance(gap);
                    let (head, body) = read(&text)?;
                    let length = body.length();
                    self.state = State::Body(body);
                    return Ok(Some(Event::Head { head, length }));
                }
                State::Body(body) => {
                    return Ok(match body.next(input, eof, "json-http")? {
                        Piece::Data(piece) => Some(Event::Body(piece)),
                        Piece::More => None,
                        // Its heads have no word for what would come.
                        Piece::Trailers(_) => continue,
                        Piece::End => Some(Event::End(settle(input, eof, self.written))),
                    });
                }
            }
        }
    }
}

/// The rest of the head's line and the blank line after it; `None` while they are not there.
fn gap(input: &[u8], eof: bool) -> Result<Option<usize>, &'static str> {
    let mut lines = 0;
    for (at, byte) in input.iter().take(MAX_GAP).enumerate() {
        match byte {
            b'\n' if lines == 1 => return Ok(Some(at + 1)),
            b'\n' => lines = 1,
            b' ' | b'\t' | b'\r' => {}
            _ => return Err("its head is not followed by a blank line"),
        }
    }
    if eof || input.len() >= MAX_GAP { Err("its head is not followed by a blank line") } else { Ok(None) }
}

fn read(text: &[u8]) -> Result<(ResponseHead, Body), Fault> {
    let invalid = |why: &str| broken("json-http", why);
    if std::str::from_utf8(text).is_err() {
        return Err(invalid("its head is not UTF-8"));
    }
    let mut given = Given::default();
    let (mut status, mut kind, mut headers, mut length, mut chunked) = (None, None, None, None, None);
    for member in jsontext::members(text).ok_or_else(|| invalid("its head is no object"))? {
        let slot = match member.key().as_ref() {
            "status_code" => &mut status,
            "content_type" => &mut kind,
            "headers" => &mut headers,
            "body_length" => &mut length,
            "chunked" => &mut chunked,
            _ => continue,
        };
        *slot = Some(member.value).filter(|raw| !jsontext::is_null(raw));
    }
    let status = headers::status(status).map_err(|why| invalid(&why))?;
    if let Some(headers) = headers {
        given.read(headers).map_err(|why| invalid(&why))?;
    }
    if let Some(kind) = kind {
        let kind = jsontext::text(kind).ok_or_else(|| invalid("content_type is not a string"))?;
        given.content_type(kind.into_owned());
    }
    let chunked = match chunked {
        None | Some(b"false") => false,
        Some(b"true") => true,
        Some(_) => return Err(invalid("chunked is neither true nor false")),
    };
    let body = match (length, chunked) {
        (Some(raw), false) => {
            let length = jsontext::whole(raw).and_then(|n| u64::try_from(n).ok());
            Body::Length(length.ok_or_else(|| invalid("body_length is not a number of bytes"))?)
        }
        (None, true) => Body::Chunked(Chunked::Size),
        (None, false) => return Err(invalid("its head has neither body_length nor chunked")),
        (Some(_), true) => return Err(invalid("its head has both body_length and chunked")),
    };
    Ok((ResponseHead { status, headers: given.checked()? }, body))
}
