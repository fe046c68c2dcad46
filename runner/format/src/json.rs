//! `json`: an object for the call on STDIN, an object for the answer on STDOUT. The body is a string in it, so it is text, unless
//! the function asked for base64.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use stoker_core::moment::rfc3339_millis;
use stoker_core::{Code, ResponseHead};

use crate::headers::{self, Given};
use crate::jsontext::{self, Lines, Utf8};
use crate::reply::{Reply, Said, broken};
use crate::{Event, Fault, Request};

/// One call.
#[derive(Debug)]
pub struct Exchange {
    text: Text,
    written: bool,
    reply: Reply,
}

/// How a body becomes the inside of a string.
#[derive(Debug)]
pub enum Text {
    Utf8(Utf8, Lines),
    /// With the bytes that do not make three yet.
    Base64(Vec<u8>),
}

impl Text {
    pub fn new(base64: bool) -> Self {
        if base64 {
            Text::Base64(Vec::with_capacity(3))
        } else {
            Text::Utf8(Utf8::default(), Lines::default())
        }
    }

    /// Writes a piece; false when it cannot be text.
    pub fn push(&mut self, mut piece: &[u8], out: &mut BytesMut) -> bool {
        match self {
            Text::Utf8(utf8, lines) => {
                let fine = utf8.push(piece);
                if fine {
                    jsontext::escape(piece, lines, out);
                }
                fine
            }
            Text::Base64(held) => {
                if !held.is_empty() {
                    let take = piece.len().min(3 - held.len());
                    held.extend_from_slice(&piece[..take]);
                    piece = &piece[take..];
                    if held.len() < 3 {
                        return true;
                    }
                    base64(held, out);
                    held.clear();
                }
                let (whole, rest) = piece.split_at(piece.len() / 3 * 3);
                base64(whole, out);
                held.extend_from_slice(rest);
                true
            }
        }
    }

    /// Writes what is left; false when a character is cut.
    pub fn finish(&mut self, out: &mut BytesMut) -> bool {
        match self {
            Text::Utf8(utf8, _) => utf8.is_whole(),
            Text::Base64(held) => {
                base64(held, out);
                held.clear();
                true
            }
        }
    }
}

fn base64(bytes: &[u8], out: &mut BytesMut) {
    let start = out.len();
    out.resize(start + bytes.len().div_ceil(3) * 4, 0);
    let written = BASE64.encode_slice(bytes, &mut out[start..]).expect("the room is that of the encoding");
    debug_assert_eq!(start + written, out.len(), "base64 is as long as it is");
}

/// What a base64 string of an answer holds.
pub fn from_base64(text: &[u8]) -> Option<Bytes> {
    BASE64.decode(text).ok().map(Bytes::from)
}

fn not_text() -> Fault {
    let why =
        "the request's body is not UTF-8, and format json takes text: the function may ask for base64_bodies";
    Fault::new(Code::InvalidRequest, why)
}

impl Exchange {
    /// Before anything was written. `limit`: the most bytes of an answer.
    #[must_use]
    pub fn new(base64: bool, limit: usize) -> Self {
        Self { text: Text::new(base64), written: false, reply: Reply::new(limit) }
    }

    /// See [`crate::Exchange::encode_head`].
    pub fn encode_head(&mut self, request: &Request<'_>, out: &mut BytesMut) {
        let deadline = rfc3339_millis(request.deadline);
        _ = write!(out, "{{\"call_id\":\"{}\",\"deadline\":\"{deadline}\",\"content_type\":", request.call);
        jsontext::string(request.head.headers.get("content-type").unwrap_or_default().as_bytes(), out);
        out.extend_from_slice(b",\"protocol\":{");
        protocol(request, out);
        out.extend_from_slice(b"}");
        if matches!(self.text, Text::Base64(_)) {
            out.extend_from_slice(b",\"body_encoding\":\"base64\"");
        }
        // The body last, so that it can pass by.
        out.extend_from_slice(b",\"body\":\"");
    }

    /// See [`crate::Exchange::encode_body`].
    ///
    /// # Errors
    /// When the body is not text and the function asked for text.
    pub fn encode_body(&mut self, piece: &[u8], out: &mut BytesMut) -> Result<(), Fault> {
        if self.text.push(piece, out) { Ok(()) } else { Err(not_text()) }
    }

    /// See [`crate::Exchange::encode_end`].
    ///
    /// # Errors
    /// As [`Self::encode_body`].
    pub fn encode_end(&mut self, out: &mut BytesMut) -> Result<(), Fault> {
        if !self.text.finish(out) {
            return Err(not_text());
        }
        out.extend_from_slice(b"\"}\n");
        self.written = true;
        Ok(())
    }

    /// See [`crate::Exchange::decode`].
    ///
    /// # Errors
    /// The function's fault.
    pub fn decode(&mut self, input: &mut BytesMut, eof: bool) -> Result<Option<Event>, Fault> {
        let base64 = matches!(self.text, Text::Base64(_));
        self.reply.decode(input, eof, self.written, |object| read(object, base64))
    }
}

/// Writes the members of `protocol`, as Fn has them in every format of JSON.
pub fn protocol(request: &Request<'_>, out: &mut BytesMut) {
    out.extend_from_slice(b"\"type\":\"http\",\"method\":");
    jsontext::string(request.head.method.as_bytes(), out);
    out.extend_from_slice(b",\"request_url\":");
    jsontext::string(request.head.url.as_bytes(), out);
    out.extend_from_slice(b",\"headers\":");
    headers::write(&headers::told(request), out);
}

/// Reads `protocol` of an answer: its status, and its headers into `given`.
///
/// # Errors
/// What is wrong with it.
pub fn read_protocol(raw: Option<&[u8]>, given: &mut Given) -> Result<u16, String> {
    let Some(raw) = raw.filter(|raw| !jsontext::is_null(raw)) else { return Ok(200) };
    let members = jsontext::members(raw).ok_or("protocol is not an object")?;
    let (mut status, mut headers) = (None, None);
    for member in members {
        let key = member.key();
        if key.eq_ignore_ascii_case("status_code") {
            status = Some(member.value);
        } else if key.eq_ignore_ascii_case("headers") {
            headers = Some(member.value);
        }
    }
    if let Some(headers) = headers {
        given.read(headers)?;
    }
    headers::status(status)
}

/// Go read these keys in any case, and took the last of several.
fn read(mut message: BytesMut, base64: bool) -> Result<Said, Fault> {
    let invalid = |why: &str| broken("JSON", why);
    let (mut body, mut kind, mut protocol, mut encoding) = (None, None, None, None);
    for member in jsontext::members(&message).ok_or_else(|| invalid("it is no object"))? {
        let key = member.key();
        let slot = match () {
            () if key.eq_ignore_ascii_case("body") => {
                body = Some((member.at, member.value.len()));
                continue;
            }
            () if key.eq_ignore_ascii_case("content_type") => &mut kind,
            () if key.eq_ignore_ascii_case("protocol") => &mut protocol,
            // Only who asked for it knows this key.
            () if base64 && key.eq_ignore_ascii_case("body_encoding") => &mut encoding,
            () => continue,
        };
        *slot = Some(member.value).filter(|raw| !jsontext::is_null(raw));
    }
    let mut given = Given::default();
    let status = read_protocol(protocol, &mut given).map_err(|why| invalid(&why))?;
    if let Some(kind) = kind {
        let kind = jsontext::text(kind).ok_or_else(|| invalid("content_type is not a string"))?;
        if !kind.is_empty() {
            given.content_type(kind.into_owned());
        }
    }
    let encoded = match encoding.map(jsontext::text) {
        None => false,
        Some(Some(word)) if word == "base64" => true,
        Some(Some(word)) if word.is_empty() => false,
        Some(_) => return Err(invalid("body_encoding is not base64")),
    };
    let head = ResponseHead { status, headers: given.checked()? };
    let body = match body {
        None => Bytes::new(),
        Some((at, length)) => {
            let raw = cut(&mut message, at, length);
            if jsontext::is_null(&raw) {
                Bytes::new()
            } else {
                inside(raw).ok_or_else(|| invalid("body is not a string"))?
            }
        }
    };
    if encoded {
        let bytes = from_base64(&body).ok_or_else(|| invalid("body is not base64"))?;
        return Ok(Said::Answer(head, bytes));
    }
    Ok(Said::Answer(head, body))
}

/// A part of a message, without a copy.
pub fn cut(message: &mut BytesMut, at: usize, length: usize) -> BytesMut {
    let mut part = message.split_off(at);
    part.truncate(length);
    part
}

/// What a raw string means, in its place; `None` for any other value.
pub fn inside(mut raw: BytesMut) -> Option<Bytes> {
    if raw.len() < 2 || raw[0] != b'"' {
        return None;
    }
    let mut text = raw.split_off(1);
    text.truncate(text.len() - 1);
    let length = jsontext::unescape(&mut text);
    text.truncate(length);
    Some(text.freeze())
}
