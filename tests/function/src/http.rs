//! HTTP/1.1 messages: requests read, answers written.

use std::io::{self, BufRead, Read as _};

use crate::call::{Answer, Call};
use crate::json::{Value, number, object, string};

/// How long the body of a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    Known(u64),
    Chunked,
}

fn wrong(what: &str) -> io::Error {
    io::Error::other(format!("what came is no HTTP: {what}"))
}

fn line(input: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    if input.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    line.pop_if(|b| *b == b'\n').ok_or(io::ErrorKind::UnexpectedEof)?;
    line.pop_if(|b| *b == b'\r').ok_or_else(|| wrong("a line ends without CR"))?;
    String::from_utf8(line).map(Some).map_err(|_| wrong("a line is not UTF-8"))
}

/// The head of the next request; `None` when there is none.
pub fn head(input: &mut impl BufRead) -> io::Result<Option<(Call, Length)>> {
    let Some(start) = line(input)? else { return Ok(None) };
    let mut words = start.split(' ');
    let (Some(method), Some(target), Some("HTTP/1.1"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(wrong(&format!("{start:?}")));
    };
    let call = Call { method: method.to_owned(), url: target.to_owned(), ..Call::default() };
    fields(input, call, start).map(Some)
}

/// The head of an answer to a request of ours: its status is where a request has its target.
pub fn response(input: &mut impl BufRead) -> io::Result<(Call, Length)> {
    let start = line(input)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut words = start.split(' ');
    let (Some("HTTP/1.1"), Some(status)) = (words.next(), words.next()) else {
        return Err(wrong(&format!("{start:?}")));
    };
    let call = Call { url: status.to_owned(), ..Call::default() };
    fields(input, call, start)
}

/// The headers of a message.
fn fields(input: &mut impl BufRead, mut call: Call, start: String) -> io::Result<(Call, Length)> {
    loop {
        let line = line(input)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| wrong(&format!("{line:?}")))?;
        call.headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let of = |name: &str| call.header(name).unwrap_or_default().to_owned();
    (call.id, call.deadline, call.content_type) = (of("Fn-Call-Id"), of("Fn-Deadline"), of("Content-Type"));
    call.told = object([("line", string(start))]);
    let length = match (call.header("Transfer-Encoding"), call.header("Content-Length")) {
        (Some("chunked"), None) => Length::Chunked,
        (None, Some(length)) => Length::Known(length.parse().map_err(|_| wrong(length))?),
        (None, None) => Length::Known(0),
        (encoding, length) => return Err(wrong(&format!("its length is {encoding:?} and {length:?}"))),
    };
    Ok((call, length))
}

/// The body of a request whose head was read.
pub fn body(input: &mut impl BufRead, length: Length) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    match length {
        Length::Known(length) => {
            if input.take(length).read_to_end(&mut body)? as u64 != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Length::Chunked => loop {
            let size = line(input)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let size = u64::from_str_radix(&size, 16).map_err(|_| wrong(&size))?;
            if size > 0 && input.take(size).read_to_end(&mut body)? as u64 != size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let end = line(input)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if !end.is_empty() {
                return Err(wrong(&end));
            }
            if size == 0 {
                break;
            }
        },
    }
    Ok(body)
}

/// An answer of this status.
pub fn answer(answer: &Answer, status: u16) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 {status} whatever\r\n");
    if !answer.content_type.is_empty() {
        out.push_str(&format!("Content-Type: {}\r\n", answer.content_type));
    }
    for (name, value) in &answer.headers {
        out.push_str(&format!("{name}: {value}\r\n"));
    }
    if matches!(status, 204 | 304) {
        out.push_str("\r\n");
        return out.into_bytes();
    }
    if answer.chunked {
        out.push_str("Transfer-Encoding: chunked\r\n\r\n");
        let mut out = out.into_bytes();
        chunks(&answer.body, &mut out);
        return out;
    }
    out.push_str(&format!("Content-Length: {}\r\n\r\n", answer.body.len()));
    let mut out = out.into_bytes();
    out.extend_from_slice(&answer.body);
    out
}

/// A body in chunks, a third each.
pub fn chunks(body: &[u8], out: &mut Vec<u8>) {
    for chunk in body.chunks(body.len().div_ceil(3).max(1)) {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
}

/// Headers as the formats of JSON have them: lists of values.
pub fn headers_to_json(headers: &[(String, String)]) -> Value {
    let mut members: Vec<(String, Value)> = Vec::new();
    for (name, value) in headers {
        match members.iter_mut().find(|(n, _)| n == name) {
            Some((_, Value::Array(values))) => values.push(string(value)),
            _ => members.push((name.clone(), Value::Array(vec![string(value)]))),
        }
    }
    Value::Object(members)
}

/// And back.
pub fn headers_from_json(value: Option<&Value>) -> Vec<(String, String)> {
    let Some(Value::Object(members)) = value else { return Vec::new() };
    let each = members.iter().flat_map(|(name, value)| match value {
        Value::Array(values) => {
            values.iter().filter_map(|v| Some((name.clone(), v.text()?.to_owned()))).collect()
        }
        Value::String(value) => vec![(name.clone(), value.clone())],
        _ => Vec::new(),
    });
    each.collect()
}

/// The member `protocol` of an answer.
pub fn protocol(answer: &Answer) -> Value {
    object([("status_code", number(answer.status)), ("headers", headers_to_json(&answer.headers))])
}
