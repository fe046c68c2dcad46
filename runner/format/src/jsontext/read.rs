//! What stands in a text that was scanned: members, elements, and what strings and numbers mean.

use std::borrow::Cow;

use bytes::BytesMut;

use super::scan::{is_space, plain};

/// Turns the inside of a string into what it means, in its place, and says how long that is. Half a surrogate pair becomes
/// U+FFFD, as in Go.
pub fn unescape(text: &mut [u8]) -> usize {
    let Some(mut from) = text.iter().position(|b| *b == b'\\') else { return text.len() };
    let mut to = from;
    while from < text.len() {
        if text[from] != b'\\' {
            let run = text[from..].iter().position(|b| *b == b'\\').unwrap_or(text.len() - from);
            text.copy_within(from..from + run, to);
            (from, to) = (from + run, to + run);
            continue;
        }
        let meant = match text.get(from + 1) {
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let first = hex(text, from + 2);
                let second = match first {
                    0xD800..=0xDBFF if text[from + 6..].starts_with(b"\\u") => hex(text, from + 8),
                    _ => 0,
                };
                from += 4;
                if (0xDC00..=0xDFFF).contains(&second) {
                    from += 6;
                    let code = 0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00);
                    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
                } else {
                    char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER)
                }
            }
            Some(other) => char::from(*other),
            None => break,
        };
        from += 2;
        // An escape is never shorter than its character.
        to += meant.encode_utf8(&mut text[to..]).len();
    }
    to
}

/// Four digits; a text that was scanned has them.
fn hex(text: &[u8], at: usize) -> u32 {
    let digits = text.get(at..at + 4).unwrap_or_default();
    digits.iter().fold(0, |sum, b| sum * 16 + char::from(*b).to_digit(16).unwrap_or(0))
}

/// What a raw value means, if it is a string.
pub fn text(raw: &[u8]) -> Option<Cow<'_, str>> {
    let inside = raw.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if !inside.contains(&b'\\') {
        return std::str::from_utf8(inside).ok().map(Cow::Borrowed);
    }
    let mut copy = inside.to_vec();
    let length = unescape(&mut copy);
    copy.truncate(length);
    String::from_utf8(copy).ok().map(Cow::Owned)
}

pub fn is_null(raw: &[u8]) -> bool {
    raw == b"null"
}

/// A whole number, also where it is written with a fraction of zero, as languages with one kind of number do.
pub fn whole(raw: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(raw).ok()?;
    if let Ok(number) = text.parse() {
        return Some(number);
    }
    let number: f64 = text.parse().ok().filter(|_| raw.first().is_some_and(|b| *b != b'"'))?;
    // Exact up to here, so the cast loses nothing.
    (number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64)
}

/// A member of an object, raw.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    key: &'a [u8],
    /// The value's text.
    pub value: &'a [u8],
    /// Where the value stands in the object's text.
    pub at: usize,
}

impl<'a> Member<'a> {
    /// The key's name.
    pub fn key(&self) -> Cow<'a, str> {
        // It was scanned, so it is text.
        text(self.key).unwrap_or_default()
    }

    /// Key and value as they stand.
    pub fn write(&self, out: &mut BytesMut) {
        out.extend_from_slice(self.key);
        out.extend_from_slice(b":");
        out.extend_from_slice(self.value);
    }
}

/// The members of an object whose text was scanned; `None` for any other value.
pub fn members(object: &[u8]) -> Option<Members<'_>> {
    (object.first() == Some(&b'{')).then_some(Members { text: object, at: 1 })
}

/// See [`members`].
#[derive(Debug)]
pub struct Members<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Members<'a> {
    type Item = Member<'a>;

    fn next(&mut self) -> Option<Member<'a>> {
        let start = skip(self.text, self.at);
        if self.text.get(start) != Some(&b'"') {
            return None;
        }
        let key_end = end_of(self.text, start);
        let value = skip(self.text, key_end);
        let value_end = end_of(self.text, value);
        self.at = skip(self.text, value_end);
        Some(Member { key: &self.text[start..key_end], value: &self.text[value..value_end], at: value })
    }
}

/// The elements of an array whose text was scanned; `None` for any other value.
pub fn elements(array: &[u8]) -> Option<impl Iterator<Item = &[u8]>> {
    (array.first() == Some(&b'[')).then(|| {
        let mut at = 1;
        std::iter::from_fn(move || {
            let start = skip(array, at);
            if array.get(start).is_none_or(|b| *b == b']') {
                return None;
            }
            let end = end_of(array, start);
            at = end;
            Some(&array[start..end])
        })
    })
}

/// Over space and the one comma or colon between two tokens.
fn skip(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    at + rest.iter().position(|b| !is_space(*b) && *b != b',' && *b != b':').unwrap_or(rest.len())
}

/// Behind the value that starts at `at`.
fn end_of(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    match rest.first() {
        Some(b'"') => end_of_string(text, at),
        Some(b'{' | b'[') => {
            let (mut depth, mut here) = (0, at);
            while let Some(byte) = text.get(here) {
                match byte {
                    b'"' => {
                        here = end_of_string(text, here);
                        continue;
                    }
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' if depth == 1 => return here + 1,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                here += 1;
            }
            text.len()
        }
        _ => at + rest.iter().position(|b| is_space(*b) || b",]}".contains(b)).unwrap_or(rest.len()),
    }
}

/// Behind the string that starts at `at`.
fn end_of_string(text: &[u8], at: usize) -> usize {
    let mut here = at + 1;
    while here < text.len() {
        here += plain(&text[here..]);
        match text.get(here) {
            Some(b'\\') => here += 2,
            _ => break,
        }
    }
    (here + 1).min(text.len())
}
