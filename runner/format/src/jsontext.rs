//! JSON text without a tree: where a value ends, its members, its strings. Answers come in pieces and may be megabytes, of which
//! the platform wants three members; requests are laid into messages as they pass. Both need the grammar, not the values.

use std::borrow::Cow;

use bytes::BytesMut;

use crate::reply::excerpt;

/// Deepest nesting; what follows is refused, not followed.
pub const MAX_DEPTH: u32 = 128;

/// Why a text is not JSON, and where, as far as that is one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    why: &'static str,
    /// Bytes before it, and what stands there.
    place: Option<(usize, String)>,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some((at, near)) = &self.place else { return f.write_str(self.why) };
        write!(f, "{}, at byte {at}: {near}", self.why)
    }
}

impl From<&'static str> for Malformed {
    fn from(why: &'static str) -> Self {
        Self { why, place: None }
    }
}

/// Follows the grammar of one value, across any pieces.
#[derive(Debug, Clone)]
pub struct Scanner {
    state: State,
    depth: u32,
    /// Bytes of the pieces before.
    seen: usize,
    /// A bit for each open container, the innermost lowest: set for objects.
    objects: u128,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Value,
    FirstElement,
    FirstKey,
    Key,
    Colon,
    After,
    Text { key: bool },
    Escape { key: bool },
    Hex { key: bool, left: u8 },
    Word(&'static [u8]),
    Number(Number),
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Whole,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigits,
}

impl Number {
    fn on(self, byte: u8) -> Option<Self> {
        use Number::*;
        match (self, byte) {
            (Minus, b'0') => Some(Zero),
            (Minus, b'1'..=b'9') | (Whole, b'0'..=b'9') => Some(Whole),
            (Zero | Whole, b'.') => Some(Point),
            (Point | Fraction, b'0'..=b'9') => Some(Fraction),
            (Zero | Whole | Fraction, b'e' | b'E') => Some(Exponent),
            (Exponent, b'+' | b'-') => Some(ExponentSign),
            (Exponent | ExponentSign | ExponentDigits, b'0'..=b'9') => Some(ExponentDigits),
            _ => None,
        }
    }

    fn may_end(self) -> bool {
        matches!(self, Self::Zero | Self::Whole | Self::Fraction | Self::ExponentDigits)
    }
}

impl Default for Scanner {
    fn default() -> Self {
        Self { state: State::Value, depth: 0, seen: 0, objects: 0 }
    }
}

impl Scanner {
    /// The value is complete.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Nothing of the value was seen.
    pub fn is_new(&self) -> bool {
        self.state == State::Value && self.depth == 0
    }

    /// Says that nothing more comes, which is how a bare number ends. True when the value is complete.
    pub fn finish(&mut self) -> bool {
        if let (State::Number(number), 0) = (self.state, self.depth)
            && number.may_end()
        {
            self.state = State::Done;
        }
        self.is_done()
    }

    /// Goes on with the next piece, up to the end of the value. `out` gets all of it but the space between tokens.
    ///
    /// # Errors
    /// What no JSON has. The scanner is of no use then.
    pub fn scan(&mut self, input: &[u8], out: impl FnMut(&[u8])) -> Result<usize, Malformed> {
        let mut at = 0;
        let scanned = self.follow(input, &mut at, out);
        if let Err(why) = scanned {
            return Err(self.at(why, at, input));
        }
        self.seen += at;
        Ok(at)
    }

    /// What is wrong at this place of the piece that is being scanned.
    fn at(&self, why: &'static str, at: usize, input: &[u8]) -> Malformed {
        Malformed { why, place: Some((self.seen + at, excerpt(input.get(at..).unwrap_or_default()))) }
    }

    fn follow(
        &mut self,
        input: &[u8],
        at: &mut usize,
        mut out: impl FnMut(&[u8]),
    ) -> Result<(), &'static str> {
        let mut run = 0;
        while *at < input.len() && self.state != State::Done {
            let byte = input[*at];
            match self.state {
                State::Text { key } => {
                    *at += plain(&input[*at..]);
                    match input.get(*at) {
                        None => break,
                        Some(b'"') => self.state = if key { State::Colon } else { self.closed() },
                        Some(b'\\') => self.state = State::Escape { key },
                        Some(_) => return Err("a string has a control character"),
                    }
                    *at += 1;
                }
                State::Escape { key } => {
                    self.state = match byte {
                        b'u' => State::Hex { key, left: 4 },
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => State::Text { key },
                        _ => return Err("a string has an unknown escape"),
                    };
                    *at += 1;
                }
                State::Hex { key, left } => {
                    if !byte.is_ascii_hexdigit() {
                        return Err("a string has a \\u without four digits");
                    }
                    self.state =
                        if left == 1 { State::Text { key } } else { State::Hex { key, left: left - 1 } };
                    *at += 1;
                }
                State::Word(rest) => {
                    if rest.first() != Some(&byte) {
                        return Err("a word is none of true, false and null");
                    }
                    self.state = if rest.len() == 1 { self.closed() } else { State::Word(&rest[1..]) };
                    *at += 1;
                }
                State::Number(number) => match number.on(byte) {
                    Some(next) => {
                        self.state = State::Number(next);
                        *at += 1;
                    }
                    None if number.may_end() => self.state = self.closed(),
                    None => return Err("a number is cut"),
                },
                _ if is_space(byte) => {
                    out(&input[run..*at]);
                    *at += 1;
                    run = *at;
                }
                _ => {
                    self.token(byte)?;
                    *at += 1;
                }
            }
        }
        out(&input[run..*at]);
        Ok(())
    }

    /// A byte outside of strings, numbers and words.
    fn token(&mut self, byte: u8) -> Result<(), &'static str> {
        let in_object = self.objects & 1 == 1;
        self.state = match (self.state, byte) {
            (State::FirstElement, b']') | (State::FirstKey, b'}') => self.close(),
            (State::After, b']') if !in_object => self.close(),
            (State::After, b'}') if in_object => self.close(),
            (State::After, b',') => {
                if in_object {
                    State::Key
                } else {
                    State::Value
                }
            }
            (State::After, _) => return Err("a comma or a closing bracket is missing"),
            (State::FirstKey | State::Key, b'"') => State::Text { key: true },
            (State::FirstKey | State::Key, _) => return Err("a key is not a string"),
            (State::Colon, b':') => State::Value,
            (State::Colon, _) => return Err("a key has no colon"),
            (_, b'{') => return self.open(true),
            (_, b'[') => return self.open(false),
            (_, b'"') => State::Text { key: false },
            (_, b't') => State::Word(b"rue"),
            (_, b'f') => State::Word(b"alse"),
            (_, b'n') => State::Word(b"ull"),
            (_, b'-') => State::Number(Number::Minus),
            (_, b'0') => State::Number(Number::Zero),
            (_, b'1'..=b'9') => State::Number(Number::Whole),
            _ => return Err("a value starts with what starts none"),
        };
        Ok(())
    }

    fn open(&mut self, object: bool) -> Result<(), &'static str> {
        if self.depth == MAX_DEPTH {
            return Err("it is nested too deeply");
        }
        self.depth += 1;
        self.objects = (self.objects << 1) | u128::from(object);
        self.state = if object { State::FirstKey } else { State::FirstElement };
        Ok(())
    }

    fn close(&mut self) -> State {
        self.depth -= 1;
        self.objects >>= 1;
        self.closed()
    }

    fn closed(&self) -> State {
        if self.depth == 0 { State::Done } else { State::After }
    }
}

/// Bytes at the start that a string may hold as they are. By blocks, in which the compiler compares all bytes at once.
fn plain(text: &[u8]) -> usize {
    let special = |b: &u8| *b < 0x20 || *b == b'"' || *b == b'\\';
    let clean = text
        .chunks_exact(16)
        .take_while(|block| !block.iter().fold(false, |hit, b| hit | special(b)))
        .count();
    let rest = &text[clean * 16..];
    clean * 16 + rest.iter().position(special).unwrap_or(rest.len())
}

pub fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | b'\n')
}

/// Lays a JSON text that passes by into a message: checked, and without the space between its tokens, so that no message has a
/// line break.
#[derive(Debug)]
pub struct Inlay {
    scanner: Scanner,
    utf8: Utf8,
    lines: Lines,
    before: &'static str,
}

impl Inlay {
    /// `before` goes ahead of the value, if there is one.
    pub fn new(before: &'static str) -> Self {
        Self { scanner: Scanner::default(), utf8: Utf8::default(), lines: Lines::default(), before }
    }

    /// The next piece.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn push(&mut self, piece: &[u8], out: &mut BytesMut) -> Result<(), Malformed> {
        if !self.utf8.push(piece) {
            return Err("it is not UTF-8".into());
        }
        if self.scanner.is_new() && piece.iter().any(|b| !is_space(*b)) {
            out.extend_from_slice(self.before.as_bytes());
        }
        let used = self.scanner.scan(piece, |run| self.lines.write(run, out))?;
        match piece[used..].iter().position(|b| !is_space(*b)) {
            // What was scanned is counted already.
            Some(more) => Err(self.scanner.at("more follows the value", more, &piece[used..])),
            None => Ok(()),
        }
    }

    /// The end. False when there was no value.
    ///
    /// # Errors
    /// When the value is not complete.
    pub fn finish(&mut self) -> Result<bool, Malformed> {
        if self.scanner.is_new() {
            Ok(false)
        } else if self.scanner.finish() {
            Ok(true)
        } else {
            Err("it ends early".into())
        }
    }
}

/// A whole JSON text without the space between its tokens.
///
/// # Errors
/// What is wrong with it.
pub fn compact(text: &[u8]) -> Result<BytesMut, Malformed> {
    let mut out = BytesMut::with_capacity(text.len());
    let mut inlay = Inlay::new("");
    inlay.push(text, &mut out)?;
    if inlay.finish()? { Ok(out) } else { Err("it is empty".into()) }
}

/// Checks UTF-8 across pieces.
#[derive(Debug, Default)]
pub struct Utf8 {
    held: [u8; 4],
    len: usize,
}

impl Utf8 {
    /// False when the text up to here is surely not UTF-8.
    pub fn push(&mut self, mut piece: &[u8]) -> bool {
        while self.len > 0 {
            let Some((first, rest)) = piece.split_first() else { return true };
            self.held[self.len] = *first;
            self.len += 1;
            piece = rest;
            match std::str::from_utf8(&self.held[..self.len]) {
                Ok(_) => self.len = 0,
                Err(error) if error.error_len().is_some() => return false,
                Err(_) => {}
            }
        }
        match std::str::from_utf8(piece) {
            Ok(_) => true,
            Err(error) if error.error_len().is_some() => false,
            Err(error) => {
                let tail = &piece[error.valid_up_to()..];
                self.held[..tail.len()].copy_from_slice(tail);
                self.len = tail.len();
                true
            }
        }
    }

    /// No character is cut.
    pub fn is_whole(&self) -> bool {
        self.len == 0
    }
}

/// Writes U+2028 and U+2029 as escapes, across pieces, as Go's encoder does: in JSON they stand in strings only, and what reads
/// line by line may take them for the end of one.
#[derive(Debug, Default)]
pub struct Lines {
    /// How many of their first two bytes are held back.
    held: usize,
}

impl Lines {
    const START: [u8; 2] = [0xe2, 0x80];

    pub fn write(&mut self, mut text: &[u8], out: &mut BytesMut) {
        loop {
            if self.held == 0 {
                let (clean, rest) = text.split_at(until(text, Self::START[0]));
                out.extend_from_slice(clean);
                let Some((_, rest)) = rest.split_first() else { return };
                (self.held, text) = (1, rest);
            }
            let Some((byte, rest)) = text.split_first() else { return };
            match (self.held, byte) {
                (1, 0x80) => self.held = 2,
                (2, 0xa8 | 0xa9) => {
                    self.held = 0;
                    out.extend_from_slice(if *byte == 0xa8 { b"\\u2028" } else { b"\\u2029" });
                }
                _ => {
                    out.extend_from_slice(&Self::START[..std::mem::take(&mut self.held)]);
                    continue;
                }
            }
            text = rest;
        }
    }
}

/// Bytes at the start that are another than this. By blocks, as [`plain`].
fn until(text: &[u8], byte: u8) -> usize {
    let clean = text
        .chunks_exact(16)
        .take_while(|block| !block.iter().fold(false, |hit, b| hit | (*b == byte)))
        .count();
    let rest = &text[clean * 16..];
    clean * 16 + rest.iter().position(|b| *b == byte).unwrap_or(rest.len())
}

/// Writes text as the inside of a string, piece by piece.
pub fn escape(mut text: &[u8], lines: &mut Lines, out: &mut BytesMut) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    loop {
        let (clean, rest) = text.split_at(plain(text));
        lines.write(clean, out);
        let Some((byte, rest)) = rest.split_first() else { return };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            other => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(other >> 4)], HEX[usize::from(other & 15)]]);
            }
        }
        text = rest;
    }
}

/// Writes a string with its quotes. What is not UTF-8 is replaced, as Go does: headers are bytes, JSON is text.
pub fn string(text: &[u8], out: &mut BytesMut) {
    out.extend_from_slice(b"\"");
    escape(String::from_utf8_lossy(text).as_bytes(), &mut Lines::default(), out);
    out.extend_from_slice(b"\"");
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn scan(text: &[u8]) -> Option<usize> {
        let mut scanner = Scanner::default();
        let used = scanner.scan(text, |_| {}).ok()?;
        scanner.finish().then_some(used)
    }

    #[test]
    fn the_grammar_is_jsons() {
        for good in [
            "{}",
            "[]",
            "null",
            "true",
            "false",
            "0",
            "-0.5e+3",
            "12E-1",
            r#""""#,
            r#"" \u00e9\"""#,
            r#"{"a":[1,{"b":null}],"c":"d"}"#,
            " [ 1 , 2 ] ",
        ] {
            assert!(scan(good.as_bytes()).is_some(), "{good}");
            let value: Value = serde_json::from_str(good).unwrap();
            let compacted = compact(good.as_bytes()).unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&compacted).unwrap(), value, "{good}");
        }
        for bad in [
            "",
            " ",
            "nul",
            "nulL",
            "01",
            "-",
            "1.",
            "1e",
            "+1",
            ".5",
            "{",
            "[1",
            "[1,]",
            "[,1]",
            "{\"a\"}",
            "{\"a\":}",
            "{a:1}",
            "{\"a\":1,}",
            "[1}",
            "{\"a\":1]",
            "\"\n\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "'a'",
            "[1 2]",
        ] {
            assert!(compact(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(scan(b"{}x"), Some(2));
        assert_eq!(scan(b"12 "), Some(2));
        assert!(compact(b"1 2").is_err());
        let deep = |n: usize| [vec![b'['; n], vec![b']'; n]].concat();
        assert!(compact(&deep(MAX_DEPTH as usize)).is_ok());
        assert!(compact(&deep(MAX_DEPTH as usize + 1)).is_err());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (pieces, says) in [
            (&["{'body':1}"][..], "a key is not a string, at byte 1: \"'body':1}\""),
            (&["{\"n\":", "NaN}"], "a value starts with what starts none, at byte 5: \"NaN}\""),
            (&["{\"a\":\"b\"", "\n[1"], "a comma or a closing bracket is missing, at byte 9: \"[1\""),
            (&["{}", " x"], "more follows the value, at byte 3: \"x\""),
            (&["[1"], "it ends early"),
            (&["\"\\u00", "g\""], "a string has a \\u without four digits, at byte 5: \"g\\\"\""),
        ] {
            let (mut inlay, mut out) = (Inlay::new(""), BytesMut::new());
            let pushed = pieces.iter().try_for_each(|piece| inlay.push(piece.as_bytes(), &mut out));
            let said = pushed.and_then(|()| inlay.finish().map(|_| ())).unwrap_err();
            assert_eq!(said.to_string(), says);
        }
    }

    #[test]
    fn strings_mean_what_go_says() {
        for (raw, meant) in [
            (r#""a\/b\n\t\"\\""#, "a/b\n\t\"\\"),
            (r#""\u00e9\ud83d\ude00!""#, "é😀!"),
            (r#""\ud83d!""#, "\u{fffd}!"),
            (r#""\ud83d\u0041\ude00""#, "\u{fffd}A\u{fffd}"),
            (r#""\ud83d\ud83d\ude00""#, "\u{fffd}😀"),
        ] {
            assert_eq!(text(raw.as_bytes()).as_deref(), Some(meant), "{raw}");
        }
        assert_eq!(text(b"12"), None);
        for (raw, number) in [
            ("7", Some(7)),
            ("200.0", Some(200)),
            ("2e2", Some(200)),
            ("1.5", None),
            ("\"7\"", None),
            ("1e300", None),
        ] {
            assert_eq!(whole(raw.as_bytes()), number, "{raw}");
        }
    }

    #[test]
    fn utf8_is_checked_across_pieces() {
        let whole = "aé€😀".as_bytes();
        for cut in 0..=whole.len() {
            for second in cut..=whole.len() {
                let mut utf8 = Utf8::default();
                assert!(
                    utf8.push(&whole[..cut]) && utf8.push(&whole[cut..second]) && utf8.push(&whole[second..])
                );
                assert!(utf8.is_whole());
            }
        }
        let mut cut = Utf8::default();
        assert!(cut.push(b"\xf0\x9f") && !cut.is_whole() && !cut.push(b"a"));
        assert!(!Utf8::default().push(b"\xff"));
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<i32>().prop_map(|n| Value::from(f64::from(n) / 8.0)),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((".{0,6}", inner), 0..6)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn members_are_those_of_a_tree(tree in tree(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_vec_pretty(&tree) } else { serde_json::to_vec(&tree) }.unwrap();
            prop_assert_eq!(scan(&text), Some(text.len()));
            prop_assert_eq!(compact(&text).unwrap(), serde_json::to_vec(&tree).unwrap());
            if let Value::Object(map) = &tree {
                let mut seen = serde_json::Map::new();
                for member in members(&text).unwrap() {
                    prop_assert_eq!(&text[member.at..member.at + member.value.len()], member.value);
                    seen.insert(member.key().into_owned(), serde_json::from_slice(member.value).unwrap());
                }
                prop_assert_eq!(&seen, map);
            }
            if let Value::Array(items) = &tree {
                let seen: Vec<Value> = elements(&text).unwrap().map(|raw| serde_json::from_slice(raw).unwrap()).collect();
                prop_assert_eq!(&seen, items);
            }
        }

        #[test]
        fn it_accepts_what_serde_accepts(text in r#"[\[\]{}:,"\\a01.eE+\- nulltruefalse]{0,14}"#) {
            let ours = compact(text.as_bytes()).is_ok();
            let theirs = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(ours, theirs, "{}", text);
        }

        #[test]
        fn strings_come_back(meant in any::<String>()) {
            let mut out = BytesMut::new();
            string(meant.as_bytes(), &mut out);
            let back = text(&out).map(Cow::into_owned);
            prop_assert_eq!(back.as_deref(), Some(meant.as_str()));
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), meant);
        }
    }
}
