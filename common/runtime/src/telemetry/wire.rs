//! OTLP's protobuf, as far as a span or a line of a log needs it: what a span is told is written at once in the form in which it travels.
//!
//! The kit's way is a tree of values for each span, turned into a tree of messages, turned into bytes, on another thread: that
//! costs more than the balancer's whole work on a call. Here a fact is its bytes from the beginning. What is made once for a
//! process or a batch goes by the messages that OpenTelemetry publishes; tests read all of it with those.

use stoker_core::{CallId, TraceContext};

use super::context;
use super::names::{Attribute, Event, LOG_FIELD};
use super::span::Spot;

/// Most bytes of a text in a span; longer ones are cut.
pub(super) const MAX_TEXT: usize = 1024;

/// The value of a fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    Text(&'a str),
    Number(i64),
    Truth(bool),
    /// Bytes that are shown in hexadecimal.
    Id(&'a [u8; 16]),
}

/// What can be noted in a span.
pub trait Fact {
    fn value(&self) -> Value<'_>;
}

impl Fact for &str {
    fn value(&self) -> Value<'_> {
        Value::Text(self)
    }
}

impl Fact for String {
    fn value(&self) -> Value<'_> {
        Value::Text(self)
    }
}

impl Fact for i64 {
    fn value(&self) -> Value<'_> {
        Value::Number(*self)
    }
}

impl Fact for bool {
    fn value(&self) -> Value<'_> {
        Value::Truth(*self)
    }
}

impl Fact for CallId {
    fn value(&self) -> Value<'_> {
        Value::Id(self.as_bytes())
    }
}

/// Facts that many messages of a kind share, written once. `FIELD` is where that kind has its attributes.
#[derive(Debug, Clone, Default)]
pub struct Written<const FIELD: u8> {
    bytes: Vec<u8>,
    count: u32,
    links: u32,
}

/// Facts that many spans share.
pub type Facts = Written<ATTRIBUTE>;

/// Facts that many log records share.
pub type Labels = Written<RECORD_ATTRIBUTE>;

impl<const FIELD: u8> Written<FIELD> {
    /// With one more.
    #[must_use]
    pub fn with(mut self, name: Attribute, value: impl Fact) -> Self {
        fact(&mut self.bytes, FIELD, name.as_str(), value.value());
        self.count += 1;
        self
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }
}

impl Labels {
    /// With a field of a log line, which may be called anything.
    #[must_use]
    pub fn field(mut self, name: &str, value: impl Fact) -> Self {
        fact(
            &mut self.bytes,
            RECORD_ATTRIBUTE,
            &format!("{LOG_FIELD}{}", cut(name, MAX_TEXT)),
            value.value(),
        );
        self.count += 1;
        self
    }
}

impl Facts {
    /// With a pointer to a span; as before where it names none.
    #[must_use]
    pub fn linked(mut self, to: &TraceContext) -> Self {
        if let Some(to) = context::read(to) {
            let state = to.state.as_deref().unwrap_or_default();
            link(&mut self.bytes, to.trace.to_bytes(), to.span.to_bytes(), state, to.sampled);
            self.links += 1;
        }
        self
    }

    pub(super) fn links(&self) -> u32 {
        self.links
    }
}

// Fields of `Span`, with their kind of value.
const TRACE: u8 = 1 << 3 | LENGTH;
const SPAN: u8 = 2 << 3 | LENGTH;
const STATE: u8 = 3 << 3 | LENGTH;
const PARENT: u8 = 4 << 3 | LENGTH;
const NAME: u8 = 5 << 3 | LENGTH;
const KIND: u8 = 6 << 3;
const START: u8 = 7 << 3 | EIGHT_BYTES;
const END: u8 = 8 << 3 | EIGHT_BYTES;
pub const ATTRIBUTE: u8 = 9 << 3 | LENGTH;
const DROPPED_ATTRIBUTES: u8 = 10 << 3;
const EVENT: u8 = 11 << 3 | LENGTH;
const DROPPED_EVENTS: u8 = 12 << 3;
const LINK: u8 = 13 << 3 | LENGTH;
const DROPPED_LINKS: u8 = 14 << 3;
const STATUS: u8 = 15 << 3 | LENGTH;
/// The sixteenth field takes two bytes.
const FLAGS: [u8; 2] = [0x80 | FOUR_BYTES, 1];

const EIGHT_BYTES: u8 = 1;
const LENGTH: u8 = 2;
const FOUR_BYTES: u8 = 5;

/// Of the flags: bits for W3C's, one that says that the next is known, one for a parent in another process.
const REMOTE_IS_KNOWN: u32 = 0x100;
const REMOTE: u32 = 0x200;

/// What a span is from its start.
pub(super) struct Head<'a> {
    pub trace: [u8; 16],
    pub span: [u8; 8],
    pub state: &'a str,
    /// And whether it is in another process.
    pub parent: Option<([u8; 8], bool)>,
    pub name: &'a str,
    /// As OTLP numbers them.
    pub kind: u8,
    pub sampled: bool,
}

impl Head<'_> {
    /// Begins a span.
    pub fn write(&self, out: &mut Vec<u8>) {
        // What has the same length in all spans goes in one piece.
        let mut ids = [0; 18 + 10];
        ids[..2].copy_from_slice(&[TRACE, 16]);
        ids[2..18].copy_from_slice(&self.trace);
        ids[18..20].copy_from_slice(&[SPAN, 8]);
        ids[20..].copy_from_slice(&self.span);
        let mut flags = REMOTE_IS_KNOWN | u32::from(self.sampled);
        out.extend_from_slice(&ids);
        if let Some((parent, remote)) = self.parent {
            bytes(out, PARENT, &parent);
            if remote {
                flags |= REMOTE;
            }
        }
        if !self.state.is_empty() {
            text(out, STATE, self.state);
        }
        let [a, b, c, d] = flags.to_le_bytes();
        out.extend_from_slice(&[KIND, self.kind, FLAGS[0], FLAGS[1], a, b, c, d]);
        text(out, NAME, self.name);
    }
}

/// What a span is at its end.
pub(super) struct Tail<'a> {
    /// In nanoseconds since 1970, like all times.
    pub start: u64,
    pub end: u64,
    pub dropped_attributes: u32,
    pub dropped_events: u32,
    pub dropped_links: u32,
    /// Why it failed, if it did.
    pub failed: Option<&'a str>,
}

impl Tail<'_> {
    /// Ends a span.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut times = [0; 18];
        (times[0], times[9]) = (START, END);
        times[1..9].copy_from_slice(&self.start.to_le_bytes());
        times[10..].copy_from_slice(&self.end.to_le_bytes());
        out.extend_from_slice(&times);
        for (field, count) in [
            (DROPPED_ATTRIBUTES, self.dropped_attributes),
            (DROPPED_EVENTS, self.dropped_events),
            (DROPPED_LINKS, self.dropped_links),
        ] {
            if count > 0 {
                out.push(field);
                number(out, count.into());
            }
        }
        const MESSAGE: u8 = 2 << 3 | LENGTH;
        const FAILED: [u8; 2] = [3 << 3, 2];
        match self.failed.map(|why| cut(why, MAX_TEXT)) {
            // Some who read it want to be told that nothing is told.
            None => out.extend_from_slice(&[STATUS, 0]),
            Some(why) => {
                out.push(STATUS);
                number(out, (text_length(why) + FAILED.len()) as u64);
                text(out, MESSAGE, why);
                out.extend_from_slice(&FAILED);
            }
        }
    }
}

/// A fact, as the field of a message.
pub(super) fn fact(out: &mut Vec<u8>, field: u8, name: &str, value: Value<'_>) {
    const KEY: u8 = 1 << 3 | LENGTH;
    const VALUE: u8 = 2 << 3 | LENGTH;
    // Fields of the value itself.
    const TEXT: u8 = 1 << 3 | LENGTH;
    const TRUTH: u8 = 2 << 3;
    const NUMBER: u8 = 3 << 3;
    let value = match value {
        Value::Text(long) => Value::Text(cut(long, MAX_TEXT)),
        value => value,
    };
    let inside = match value {
        Value::Text(value) => text_length(value),
        Value::Number(n) => 1 + number_length(n as u64),
        Value::Truth(_) => 2,
        Value::Id(_) => 34,
    };
    let length = text_length(name) + 1 + number_length(inside as u64) + inside;
    out.reserve(length + 4);
    out.push(field);
    number(out, length as u64);
    text(out, KEY, name);
    out.push(VALUE);
    number(out, inside as u64);
    match value {
        Value::Text(value) => text(out, TEXT, value),
        Value::Number(n) => {
            out.push(NUMBER);
            number(out, n as u64);
        }
        Value::Truth(truth) => out.extend_from_slice(&[TRUTH, u8::from(truth)]),
        Value::Id(id) => bytes(out, TEXT, &hex::<16, 32>(id)),
    }
}

/// Something that happened at a moment.
pub(super) fn event(out: &mut Vec<u8>, at: u64, name: Event, facts: &[(Attribute, Value<'_>)]) {
    const AT: u8 = 1 << 3 | EIGHT_BYTES;
    const NAME: u8 = 2 << 3 | LENGTH;
    const FACT: u8 = 3 << 3 | LENGTH;
    let mut inside = Vec::with_capacity(128);
    inside.push(AT);
    inside.extend_from_slice(&at.to_le_bytes());
    text(&mut inside, NAME, name.as_str());
    facts.iter().for_each(|(name, value)| fact(&mut inside, FACT, name.as_str(), *value));
    bytes(out, EVENT, &inside);
}

/// A pointer to another span.
pub(super) fn link(out: &mut Vec<u8>, trace: [u8; 16], span: [u8; 8], state: &str, sampled: bool) {
    const FLAGS: u8 = 6 << 3 | FOUR_BYTES;
    let mut inside = Vec::with_capacity(128);
    bytes(&mut inside, TRACE, &trace);
    bytes(&mut inside, SPAN, &span);
    if !state.is_empty() {
        text(&mut inside, STATE, state);
    }
    inside.push(FLAGS);
    inside.extend_from_slice(&(REMOTE_IS_KNOWN | REMOTE | u32::from(sampled)).to_le_bytes());
    bytes(out, LINK, &inside);
}

// Fields of `LogRecord`.
const RECORD_TIME: u8 = 1 << 3 | EIGHT_BYTES;
const RECORD_SEVERITY: u8 = 2 << 3;
const RECORD_LEVEL: u8 = 3 << 3 | LENGTH;
const RECORD_BODY: u8 = 5 << 3 | LENGTH;
pub const RECORD_ATTRIBUTE: u8 = 6 << 3 | LENGTH;
const RECORD_FLAGS: u8 = 8 << 3 | FOUR_BYTES;
const RECORD_TRACE: u8 = 9 << 3 | LENGTH;
const RECORD_SPAN: u8 = 10 << 3 | LENGTH;
const RECORD_SEEN: u8 = 11 << 3 | EIGHT_BYTES;

/// What a line of a log is, but for its attributes.
pub(super) struct RecordHead<'a> {
    /// In nanoseconds since 1970.
    pub at: u64,
    pub seen: u64,
    /// As OTLP numbers it, and its name; 0 for lines that have none.
    pub severity: (u8, &'static str),
    pub body: &'a str,
    pub spot: Option<Spot>,
}

impl RecordHead<'_> {
    /// Begins a record; its attributes follow.
    pub fn write(&self, out: &mut Vec<u8>) {
        /// The field of a value that is text.
        const TEXT: u8 = 1 << 3 | LENGTH;
        out.push(RECORD_TIME);
        out.extend_from_slice(&self.at.to_le_bytes());
        out.push(RECORD_SEEN);
        out.extend_from_slice(&self.seen.to_le_bytes());
        if self.severity.0 > 0 {
            out.extend_from_slice(&[RECORD_SEVERITY, self.severity.0]);
            text(out, RECORD_LEVEL, self.severity.1);
        }
        out.push(RECORD_BODY);
        number(out, text_length(self.body) as u64);
        text(out, TEXT, self.body);
        if let Some(Spot { trace, span, sampled }) = &self.spot {
            bytes(out, RECORD_TRACE, trace);
            if let Some(span) = span {
                bytes(out, RECORD_SPAN, span);
            }
            out.push(RECORD_FLAGS);
            out.extend_from_slice(&u32::from(*sampled).to_le_bytes());
        }
    }
}

/// A field of some bytes.
#[inline]
pub(super) fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    out.push(field);
    number(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn text(out: &mut Vec<u8>, field: u8, value: &str) {
    bytes(out, field, value.as_bytes());
}

/// Of a field with this text.
fn text_length(value: &str) -> usize {
    1 + number_length(value.len() as u64) + value.len()
}

/// In groups of seven bits, the lowest first.
#[inline]
pub(super) fn number(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Bytes that [`number`] takes.
pub(super) fn number_length(n: u64) -> usize {
    ((64 - (n | 1).leading_zeros()) as usize).div_ceil(7)
}

/// At most so many bytes of it.
pub(super) fn cut(text: &str, most: usize) -> &str {
    if text.len() <= most {
        return text;
    }
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

/// Bytes in hexadecimal, two digits each.
pub(super) fn hex<const N: usize, const D: usize>(bytes: &[u8; N]) -> [u8; D] {
    const { assert!(D == 2 * N) }
    const PAIRS: [[u8; 2]; 256] = {
        let digits = b"0123456789abcdef";
        let mut pairs = [[0; 2]; 256];
        let mut n = 0;
        while n < 256 {
            pairs[n] = [digits[n >> 4], digits[n & 0xf]];
            n += 1;
        }
        pairs
    };
    let mut out = [0; D];
    for (pair, byte) in out.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&PAIRS[usize::from(*byte)]);
    }
    out
}
