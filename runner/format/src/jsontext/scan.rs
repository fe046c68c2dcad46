//! The grammar of one value, followed across any pieces.

use super::{MAX_DEPTH, Malformed};
use crate::reply::excerpt;

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
    pub(super) fn at(&self, why: &'static str, at: usize, input: &[u8]) -> Malformed {
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
pub(super) fn plain(text: &[u8]) -> usize {
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
