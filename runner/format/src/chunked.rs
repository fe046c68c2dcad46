//! HTTP/1.1 chunked bodies, read piece by piece.

use bytes::{Buf, Bytes, BytesMut};
use stoker_core::call::{Headers, MAX_HEADERS, MAX_TRAILER_BYTES, is_header_name};

/// Longest line of a chunk's size with its extensions, and of one trailer.
const MAX_LINE: usize = 4096;

/// Where in the body the reader stands.
#[derive(Debug)]
pub enum Chunked {
    Size,
    Data(u64),
    DataEnd,
    Trailers(Headers),
    Done,
}

/// What [`Chunked::next`] found.
#[derive(Debug)]
pub enum Step {
    Data(Bytes),
    /// What follows the body. Once, where there is something.
    Trailers(Headers),
    End,
    More,
    Broken(&'static str),
}

impl Chunked {
    pub fn next(&mut self, input: &mut BytesMut) -> Step {
        loop {
            match self {
                Self::Size => match line(input) {
                    Line::None => return Step::More,
                    Line::TooLong => return Step::Broken("a chunk's size line is too long"),
                    Line::Text(text) => match size(&text) {
                        None => return Step::Broken("a chunk's size is not a number"),
                        Some(0) => *self = Self::Trailers(Headers::default()),
                        Some(n) => *self = Self::Data(n),
                    },
                },
                Self::Data(left) => {
                    if input.is_empty() {
                        return Step::More;
                    }
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                    *left -= take as u64;
                    if *left == 0 {
                        *self = Self::DataEnd;
                    }
                    return Step::Data(input.split_to(take).freeze());
                }
                Self::DataEnd => {
                    if input.first() == Some(&b'\n') {
                        input.advance(1);
                    } else if input.len() < 2 && input.first().is_none_or(|b| *b == b'\r') {
                        return Step::More;
                    } else if input.starts_with(b"\r\n") {
                        input.advance(2);
                    } else {
                        return Step::Broken("a chunk is longer than its size says");
                    }
                    *self = Self::Size;
                }
                Self::Trailers(found) => match line(input) {
                    Line::None => return Step::More,
                    Line::TooLong => return Step::Broken("a trailer is too long"),
                    Line::Text(text) if text.is_empty() => {
                        let found = std::mem::take(found);
                        *self = Self::Done;
                        if !found.0.is_empty() {
                            return Step::Trailers(found);
                        }
                    }
                    Line::Text(text) => {
                        let Some((name, value)) = field(&text) else {
                            return Step::Broken("a trailer is no header");
                        };
                        if found.size() + text.len() > MAX_TRAILER_BYTES || found.0.len() == MAX_HEADERS {
                            return Step::Broken("the trailers are too long");
                        }
                        found.push(name, Bytes::copy_from_slice(value));
                    }
                },
                Self::Done => return Step::End,
            }
        }
    }
}

enum Line {
    None,
    TooLong,
    Text(BytesMut),
}

/// A line without its end.
fn line(input: &mut BytesMut) -> Line {
    match input.iter().take(MAX_LINE).position(|b| *b == b'\n') {
        Some(at) => {
            let mut text = input.split_to(at + 1);
            text.truncate(at);
            if text.last() == Some(&b'\r') {
                text.truncate(at - 1);
            }
            Line::Text(text)
        }
        None if input.len() >= MAX_LINE => Line::TooLong,
        None => Line::None,
    }
}

/// Name and value of a header's line.
fn field(line: &[u8]) -> Option<(&str, &[u8])> {
    let at = line.iter().position(|b| *b == b':')?;
    let name = std::str::from_utf8(&line[..at]).ok().filter(|name| is_header_name(name))?;
    let value = line[at + 1..].trim_ascii();
    (!value.iter().any(|b| matches!(b, b'\r' | 0))).then_some((name, value))
}

fn size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|b| *b == b';').next()?.trim_ascii();
    if digits.is_empty() || digits.len() > 15 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}
