//! HTTP/1.1 as functions answer it: the head with its framing, and the body piece by piece. What an answer's status and headers
//! mean is the business of the formats.

use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};
use stoker_core::Code;
use stoker_core::call::{Header, Headers, announced, is_hop_by_hop, may_trail, reads_trailers};

use crate::chunked::{Chunked, Step};
use crate::headers::is_one_of;
use crate::reply::{broken, excerpt};
use crate::{Fault, MAX_HEAD, MAX_HEADERS};

/// A body on its way.
#[derive(Debug)]
pub enum Body {
    Length(u64),
    Chunked(Chunked),
    /// It ends with the connection.
    UntilEnd,
}

/// What [`Body::next`] found.
#[derive(Debug)]
pub enum Piece {
    Data(Bytes),
    /// What follows the body. Once, where there is something.
    Trailers(Headers),
    End,
    More,
}

impl Body {
    /// Bytes that it will have, where that is known.
    pub fn length(&self) -> Option<u64> {
        match self {
            Body::Length(n) => Some(*n),
            _ => None,
        }
    }

    /// The next piece of it.
    ///
    /// # Errors
    /// When it breaks off or breaks its framing.
    pub fn next(&mut self, input: &mut BytesMut, eof: bool, kind: &str) -> Result<Piece, Fault> {
        match self {
            Body::Length(0) => Ok(Piece::End),
            Body::Length(left) if input.is_empty() && eof => {
                Err(broken(kind, &format!("its body ended {left} bytes early")))
            }
            Body::Length(_) | Body::UntilEnd if input.is_empty() && !eof => Ok(Piece::More),
            Body::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= take as u64;
                Ok(Piece::Data(input.split_to(take).freeze()))
            }
            Body::Chunked(chunked) => match chunked.next(input) {
                Step::Data(piece) => Ok(Piece::Data(piece)),
                Step::Trailers(found) => Ok(Piece::Trailers(found)),
                Step::End => Ok(Piece::End),
                Step::More if eof => Err(broken(kind, "its body ended early")),
                Step::More => Ok(Piece::More),
                Step::Broken(why) => Err(broken(kind, why)),
            },
            Body::UntilEnd if input.is_empty() => Ok(Piece::End),
            Body::UntilEnd => Ok(Piece::Data(input.split().freeze())),
        }
    }
}

/// An answer's head.
#[derive(Debug)]
pub struct Head<T> {
    pub status: u16,
    pub body: Body,
    /// `Connection: close` stands there.
    pub close: bool,
    /// By the rules of its version the connection goes on.
    pub keep_alive: bool,
    /// What the format made of the fields.
    pub read: T,
}

/// The fields that are for the client.
#[derive(Debug)]
pub struct Fields<'a, 'b> {
    all: &'a [httparse::Header<'b>],
    /// Names that `Connection` claims for itself.
    named: Vec<&'b str>,
    /// Something may follow the body.
    chunked: bool,
}

impl<'a, 'b: 'a> Fields<'a, 'b> {
    /// Name and value of all that belong neither to the connection nor to the framing.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        self.all.iter().map(|f| (f.name, f.value)).filter(|(name, _)| {
            !is_hop_by_hop(name)
                && !name.eq_ignore_ascii_case("content-length")
                && !is_one_of(name, &self.named)
        })
    }

    /// What says which trailers will come, under the names that they have for the client: `None` of `name` is for nobody.
    pub fn announced(&self, name: impl Fn(&'a str) -> Option<&'a str>) -> Option<String> {
        let told = self.all.iter().filter(|f| self.chunked && f.name.eq_ignore_ascii_case("trailer"));
        let names: Vec<_> =
            told.flat_map(|f| announced(f.value)).filter_map(name).filter(|n| may_trail(n)).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }
}

/// Trailers that a client may see, under the names that they have for it.
pub fn trailers(found: &Headers, name: impl Fn(&str) -> Option<&str>) -> Headers {
    let mut kept = Headers::default();
    for trailer in &found.0 {
        if let Some(name) = name(&trailer.name).filter(|name| may_trail(name)) {
            kept.push(name, trailer.value.clone());
        }
    }
    kept
}

/// What [`head`] found.
#[derive(Debug)]
pub enum Found<T> {
    More,
    /// A 1xx, which only announces: the head is still to come.
    Announced,
    Head(Head<T>),
}

/// Takes a head off the input. `bodiless`: the request was one whose answers have no body, whatever they say.
///
/// # Errors
/// The function's fault.
pub fn head<T>(
    input: &mut BytesMut,
    eof: bool,
    bodiless: bool,
    read: impl FnOnce(&Fields<'_, '_>) -> Result<T, String>,
) -> Result<Found<T>, Fault> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut fields);
    let (used, head) = match response.parse(input) {
        Ok(httparse::Status::Complete(used)) if used > MAX_HEAD => return Err(too_large()),
        Ok(httparse::Status::Complete(used)) => {
            let status = response.code.unwrap_or(0);
            let version = response.version.unwrap_or(1);
            let head = framed(status, version, response.headers, bodiless, read)
                .map_err(|why| broken("HTTP", &why))?;
            (used, head)
        }
        Ok(httparse::Status::Partial) if input.len() > MAX_HEAD => return Err(too_large()),
        Ok(httparse::Status::Partial) if eof && input.is_empty() => {
            let why = "the function closed the connection without an answer";
            return Err(Fault::new(Code::FunctionInvalidResponse, why));
        }
        Ok(httparse::Status::Partial) if eof => return Err(broken("HTTP", "its head ended early")),
        Ok(httparse::Status::Partial) => return Ok(Found::More),
        Err(httparse::Error::TooManyHeaders) => return Err(too_large()),
        // Go, and with it Fn, took headers that are spread over lines.
        Err(httparse::Error::HeaderName) if unfold(input) => return head(input, eof, bodiless, read),
        Err(error) => {
            return Err(broken("HTTP", &format!("{error}: {}", excerpt(offending(input)))));
        }
    };
    _ = input.split_to(used);
    // 101 would change the protocol.
    let announced = (100..200).contains(&head.status) && head.status != 101;
    Ok(if announced { Found::Announced } else { Found::Head(head) })
}

/// Puts headers on one line that go on behind a line's end and a blank. Whether there were any.
fn unfold(input: &mut [u8]) -> bool {
    let mut lines = input.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
    let Some(mut before) = lines.next() else { return false };
    // What follows the status is no part of it.
    let mut folds = Vec::new();
    for end in lines {
        if matches!(input[before + 1..end], [] | [b'\r']) {
            break;
        }
        if matches!(input.get(end + 1), Some(b' ' | b'\t')) {
            folds.push(end);
        }
        before = end;
    }
    for end in &folds {
        input[*end] = b' ';
        if input[end - 1] == b'\r' {
            input[end - 1] = b' ';
        }
    }
    !folds.is_empty()
}

/// The line of a head that cannot be read.
fn offending(input: &[u8]) -> &[u8] {
    let mut lines = input.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.next().unwrap_or_default();
    let status = httparse::Response::new(&mut []).parse(&[first, b"\r\n\r\n"].concat()).is_ok();
    let is_header = |line: &&[u8]| {
        let mut field = [httparse::EMPTY_HEADER; 1];
        httparse::parse_headers(&[*line, b"\r\n\r\n"].concat(), &mut field).is_ok()
    };
    let wrong = lines.take_while(|line| !line.is_empty()).find(|line| !is_header(line));
    wrong.filter(|_| status).unwrap_or(first)
}

fn too_large() -> Fault {
    let why = format!("the headers of the function's answer exceed {MAX_HEADERS} or {MAX_HEAD} bytes");
    Fault::new(Code::ResponseHeadersTooLarge, why)
}

fn framed<T>(
    status: u16,
    version: u8,
    fields: &[httparse::Header<'_>],
    bodiless: bool,
    read: impl FnOnce(&Fields<'_, '_>) -> Result<T, String>,
) -> Result<Head<T>, String> {
    let mut length: Option<u64> = None;
    let (mut chunked, mut close, mut keep) = (false, false, version == 1);
    let mut named = Vec::new();
    for field in fields {
        let text = || std::str::from_utf8(field.value).unwrap_or_default();
        if field.name.eq_ignore_ascii_case("content-length") {
            let value = text().trim();
            let number = value.parse().ok().filter(|_| value.bytes().all(|b| b.is_ascii_digit()));
            match (number, length) {
                (None, _) => return Err("its Content-Length is not a number".to_owned()),
                (Some(n), Some(before)) if n != before => return Err("it has two lengths".to_owned()),
                (number, _) => length = number,
            }
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            if !text().trim().eq_ignore_ascii_case("chunked") {
                return Err(format!("its Transfer-Encoding is {:?}", text()));
            }
            chunked = true;
        } else if field.name.eq_ignore_ascii_case("connection") {
            for word in text().split(',').map(str::trim) {
                if word.eq_ignore_ascii_case("close") {
                    close = true;
                } else if word.eq_ignore_ascii_case("keep-alive") {
                    keep = true;
                } else {
                    named.push(word);
                }
            }
        }
    }
    if chunked && length.is_some() {
        return Err("it has both a Content-Length and chunks".to_owned());
    }
    let bodiless = bodiless || status == 204 || status == 304;
    let read = read(&Fields { all: fields, named, chunked: chunked && !bodiless })?;
    let body = match (chunked, length) {
        _ if bodiless => Body::Length(0),
        (true, _) => Body::Chunked(Chunked::Size),
        (false, Some(n)) => Body::Length(n),
        (false, None) => Body::UntilEnd,
    };
    Ok(Head { status, body, close, keep_alive: keep && !close, read })
}

/// Writes a header's line. A value never ends it, wherever it came from.
pub fn line(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    let start = out.len();
    out.extend_from_slice(value);
    for byte in &mut out[start..] {
        if matches!(byte, b'\r' | b'\n' | 0) {
            *byte = b' ';
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes the line that frames the body, and the end of the head.
pub fn end_head(out: &mut BytesMut, length: Option<u64>) {
    match length {
        Some(length) => _ = write!(out, "Content-Length: {length}\r\n\r\n"),
        None => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n"),
    }
}

/// Writes a piece of a body: as a chunk, where its length was not told ahead.
pub fn piece(out: &mut BytesMut, piece: &[u8], chunked: bool) {
    let mut after = BytesMut::new();
    frame(piece.len(), chunked, out, &mut after);
    out.extend_from_slice(piece);
    out.extend_from_slice(&after);
}

/// Writes what stands around a piece of this length.
pub fn frame(length: usize, chunked: bool, before: &mut BytesMut, after: &mut BytesMut) {
    // An empty chunk would be the end.
    if chunked && length > 0 {
        _ = write!(before, "{length:x}\r\n");
        after.extend_from_slice(b"\r\n");
    }
}

/// Passes on what a header of the client says of trailers, if it is one that does: that it reads them, and which it will send.
pub fn about_trailers(out: &mut BytesMut, header: &Header, chunked: bool, prefix: &str) {
    if header.name.eq_ignore_ascii_case("te") && reads_trailers(&header.value) {
        line(out, "TE", b"trailers");
    } else if chunked && header.name.eq_ignore_ascii_case("trailer") {
        let names = announced(&header.value).filter(|name| may_trail(name));
        let names: Vec<_> = names.map(|name| format!("{prefix}{name}")).collect();
        if !names.is_empty() {
            line(out, "Trailer", names.join(", ").as_bytes());
        }
    }
}

/// Writes the end of a body, and what follows it, with `prefix` before its names.
pub fn end(out: &mut BytesMut, chunked: bool, trailers: &Headers, prefix: &str) {
    if !chunked {
        return;
    }
    out.extend_from_slice(b"0\r\n");
    for trailer in trailers.0.iter().filter(|trailer| may_trail(&trailer.name)) {
        out.extend_from_slice(prefix.as_bytes());
        line(out, &trailer.name, &trailer.value);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<(String, String)>, String> {
        let mut input = BytesMut::from(text);
        let fields = |fields: &Fields<'_, '_>| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            Ok(fields.iter().map(|(name, value)| (name.to_owned(), text(value))).collect())
        };
        match head(&mut input, false, false, fields) {
            Ok(Found::Head(head)) => Ok(head.read),
            Ok(other) => Err(format!("{other:?}")),
            Err(fault) => Err(fault.message),
        }
    }

    #[test]
    fn a_header_may_go_on_in_the_next_line() {
        let text =
            "HTTP/1.1 200 OK\r\nX-Fold: a\r\n b\r\n\tc\r\nX-B: 1\nX-C: 2\n d\r\n\r\nbody\r\n that stays";
        let read = read(text).unwrap();
        let values: Vec<_> =
            read.iter().map(|(_, value)| value.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(values, [vec!["a", "b", "c"], vec!["1"], vec!["2", "d"]], "{read:?}");
        let mut input = BytesMut::from(text);
        unfold(&mut input);
        assert!(input.ends_with(b"body\r\n that stays"), "what follows the head is as it was");
    }

    #[test]
    fn what_cannot_be_read_is_quoted() {
        for (text, says) in [
            ("hello\n", "invalid HTTP version: \"hello\""),
            ("HTTP/1.1 2x0 OK\r\nX-A: 1\r\n\r\n", "invalid response status: \"HTTP/1.1 2x0 OK\""),
            ("HTTP/1.1 200 OK\r\nX-A: 1\r\nX B: 2\r\n\r\n", "invalid header name: \"X B: 2\""),
            ("HTTP/1.1 200 OK\r\nX-A: \u{1}\r\n\r\n", "invalid header value: \"X-A: \\u{1}\""),
            ("HTTP/1.1 200 OK\r\n folded: 1\r\n\r\n", "invalid header name: \" folded: 1\""),
        ] {
            let said = read(text).unwrap_err();
            assert!(said.ends_with(says), "{said}");
        }
    }
}
