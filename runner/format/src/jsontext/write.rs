//! Text on its way into a message: values as they pass, and strings.

use bytes::BytesMut;

use super::Malformed;
use super::scan::{Scanner, is_space, plain};

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
