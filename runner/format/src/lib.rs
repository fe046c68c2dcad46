//! Function formats as pure codecs: a call becomes bytes, bytes become events. No I/O, no clock.
//!
//! An [`Exchange`] lives as long as one call. A carrier writes what it encodes, feeds it what it read, and acts on the
//! events; so that a format is tested without a process, and a new one touches no carrier.

pub mod default;
pub mod http_stream;

mod chunked;
mod time;

use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use stoker_core::function::Format;
use stoker_core::{CallId, Code, RequestHead, ResponseHead, TraceContext};

pub use time::rfc3339_seconds;

/// Most bytes of an answer's head, before they are understood.
pub const MAX_HEAD: usize = 64 * 1024;

/// Most headers of an answer.
pub const MAX_HEADERS: usize = 256;

/// What a format tells a function about a call, besides the body.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub call: CallId,
    pub head: &'a RequestHead,
    /// When the function is stopped, by the wall clock, since functions know no other.
    pub deadline: SystemTime,
    pub trace: &'a TraceContext,
    /// The length of the whole body, where all of it is there.
    pub length: Option<u64>,
}

/// What became of the container's side when an answer was complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// The same channel carries the next call.
    Reuse,
    /// The container is fine, its channel is not.
    Reconnect,
    /// More came than belonged to the answer, or the format has no next call: the container must go.
    Destroy,
}

/// What a function said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The head of the answer. Once, first.
    Head {
        head: ResponseHead,
        /// Bytes that the body will have, where the function said so.
        length: Option<u64>,
    },
    /// A piece of the body.
    Body(Bytes),
    /// The answer is complete. Last.
    End(After),
    /// The function did not succeed. Last.
    Failed { code: Code, message: String, after: After },
}

/// One call in one format.
#[derive(Debug)]
pub enum Exchange {
    /// See [`default`].
    Default(default::Exchange),
    /// See [`http_stream`].
    HttpStream(http_stream::Exchange),
}

impl Exchange {
    /// For a call of this format.
    #[must_use]
    pub fn new(format: Format, request: &Request<'_>) -> Self {
        match format {
            Format::Default => Self::Default(default::Exchange::new()),
            Format::HttpStream => Self::HttpStream(http_stream::Exchange::new(request)),
        }
    }

    /// Writes what stands before the body.
    pub fn encode_head(&mut self, request: &Request<'_>, out: &mut BytesMut) {
        match self {
            Self::Default(_) => {}
            Self::HttpStream(exchange) => exchange.encode_head(request, out),
        }
    }

    /// Writes a piece of the body.
    pub fn encode_body(&mut self, piece: &[u8], out: &mut BytesMut) {
        match self {
            Self::Default(_) => out.extend_from_slice(piece),
            Self::HttpStream(exchange) => exchange.encode_body(piece, out),
        }
    }

    /// Writes what stands after the body.
    pub fn encode_end(&mut self, out: &mut BytesMut) {
        match self {
            Self::Default(_) => {}
            Self::HttpStream(exchange) => exchange.encode_end(out),
        }
    }

    /// Takes the next event out of what was read; `None` when more must be read first. `eof`: nothing more will come. An
    /// `eof` ends in an event, always.
    pub fn decode(&mut self, input: &mut BytesMut, eof: bool) -> Option<Event> {
        match self {
            Self::Default(exchange) => exchange.decode(input, eof),
            Self::HttpStream(exchange) => exchange.decode(input, eof),
        }
    }
}
