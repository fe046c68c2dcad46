//! Function formats as pure codecs: a call becomes bytes, bytes become events. No I/O, no clock.
//!
//! A [`Codec`] is what a function's containers speak. Where the format has a greeting it gives a [`Startup`] for a container that is
//! new, and for each call an [`Exchange`], which lives as long as that call. A carrier writes what it encodes, feeds it what it
//! read, and acts on the events; so that a format is tested without a process, and a new one touches no carrier.
//!
//! A carrier of a format on STDIN and STDOUT keeps one buffer of input for the life of the container:
//!
//! 1. before each call, what is there already must be [`quiet`]; noise is late output: another container takes the call;
//! 2. [`Codec::begin`], then encode head, body and end. When [`Exchange::fault`] stands before anything was written, the call ends
//!    with it and the container is untouched;
//! 3. write, and meanwhile read and [`Exchange::decode`], up to the one event that is last;
//! 4. act on its [`After`]. An answer that was complete before the request was written whole leaves a container that is not where
//!    the next call would start: it is destroyed, whatever is said here.

pub mod cloudevent;
pub mod default;
pub mod http;
pub mod http_stream;
pub mod json;
pub mod json_http;
pub mod mless;

mod chunked;
mod headers;
mod http1;
mod jsontext;
mod reply;
pub mod url;

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use stoker_core::call::Headers;
use stoker_core::function::Format;
use stoker_core::{CallId, Code, FormatOptions, FunctionSpec, RequestHead, ResponseHead, TraceContext};

pub use mless::Startup;
pub use reply::excerpt;

/// Most bytes of an answer's head, before they are understood.
pub const MAX_HEAD: usize = 64 * 1024;

/// Most headers of an answer.
pub const MAX_HEADERS: usize = 256;

/// Most bytes kept of what a function says about its failure.
pub const MAX_REASON: usize = 4096;

/// The most that is kept of one answer, or let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a message that is kept until it is whole: an answer in JSON, an event.
    pub message: usize,
    /// Bytes of the body of any answer.
    pub body: u64,
}

impl Default for Limits {
    /// Lambda's limit for whole messages; bodies that pass by have none.
    fn default() -> Self {
        Self { message: 6 * 1024 * 1024, body: u64::MAX }
    }
}

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
    /// What follows the body, as far as the client may see it. Once, behind the body, where there is something.
    Trailers(Headers),
    /// The answer is complete. Last.
    End(After),
    /// The function did not succeed. Last.
    Failed { code: Code, message: String, after: After },
}

/// Why a request cannot be written, or an answer not be understood. The channel is of no more use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub code: Code,
    /// One sentence for people.
    pub message: String,
}

impl Fault {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    fn into_event(self) -> Event {
        Event::Failed { code: self.code, message: self.message, after: After::Destroy }
    }
}

/// Whether a container said nothing since its last answer: space means nothing, and is taken off. Not for `http-stream`, whose
/// connections have their own rule.
#[must_use]
pub fn quiet(input: &mut BytesMut) -> bool {
    reply::trim(input);
    input.is_empty()
}

/// How the containers of one function are spoken to.
#[derive(Debug, Clone)]
pub struct Codec {
    format: Format,
    /// See [`FunctionSpec::is_hot`].
    hot: bool,
    /// Its name within its app.
    function: String,
    options: FormatOptions,
    limits: Limits,
}

impl Codec {
    /// For the containers of this function. `None` for the format `lambda`, whose functions fetch their calls themselves.
    #[must_use]
    pub fn new(spec: &FunctionSpec) -> Option<Self> {
        (spec.format != Format::Lambda).then(|| Self {
            format: spec.format,
            hot: spec.is_hot(),
            function: spec.name.function().to_owned(),
            options: spec.format_options.clone(),
            limits: Limits::default(),
        })
    }

    /// With other limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// What the process of one call finds in its environment, where a process has one call.
    #[must_use]
    pub fn environment(&self, request: &Request<'_>) -> Vec<(String, String)> {
        if self.hot {
            return Vec::new();
        }
        let mut env = default::environment(request);
        if self.options.open_function_variables {
            env.extend(default::open_function(request));
        }
        env
    }

    /// The greeting of a container that is new, where the format has one. `env`: the function's own.
    #[must_use]
    pub fn startup(&self, env: &BTreeMap<String, String>) -> Option<Startup> {
        (self.format == Format::Mless).then(|| Startup::new(&self.options.handler, env))
    }

    /// The next call.
    #[must_use]
    pub fn begin(&self, request: &Request<'_>) -> Exchange {
        let (options, limit) = (&self.options, self.limits.message);
        let kind = match self.format {
            // No codec is made for the second.
            Format::Default | Format::Lambda => Kind::Default(default::Exchange::new()),
            Format::Http => Kind::Http(http::Exchange::new(request, options.open_function_variables)),
            Format::Json => Kind::Json(json::Exchange::new(options.base64_bodies, limit)),
            Format::JsonHttp => Kind::JsonHttp(json_http::Exchange::new(request, options.cold)),
            Format::CloudEvent => {
                Kind::CloudEvent(cloudevent::Exchange::new(options.cloudevents, request, limit))
            }
            Format::HttpStream => Kind::HttpStream(http_stream::Exchange::new(request)),
            Format::Mless => Kind::Mless(mless::Exchange::new(request, &self.function, limit)),
        };
        Exchange { kind, fault: None, trailers: Headers::default(), ended: false, room: self.limits.body }
    }
}

/// One call in one format.
#[derive(Debug)]
pub struct Exchange {
    kind: Kind,
    /// Why the request could not be written.
    fault: Option<Fault>,
    /// What follows the body of the request.
    trailers: Headers,
    ended: bool,
    /// Bytes that the body may still have.
    room: u64,
}

#[derive(Debug)]
enum Kind {
    Default(default::Exchange),
    Http(http::Exchange),
    Json(json::Exchange),
    JsonHttp(json_http::Exchange),
    CloudEvent(cloudevent::Exchange),
    HttpStream(http_stream::Exchange),
    Mless(mless::Exchange),
}

impl Exchange {
    /// Writes what stands before the body.
    pub fn encode_head(&mut self, request: &Request<'_>, out: &mut BytesMut) {
        self.encode(out, |kind, out| {
            match kind {
                Kind::Default(_) => {}
                Kind::Http(exchange) => exchange.encode_head(request, out),
                Kind::Json(exchange) => exchange.encode_head(request, out),
                Kind::JsonHttp(exchange) => exchange.encode_head(request, out),
                Kind::CloudEvent(exchange) => exchange.encode_head(request, out)?,
                Kind::HttpStream(exchange) => exchange.encode_head(request, out),
                Kind::Mless(exchange) => exchange.encode_head(request, out)?,
            }
            Ok(())
        });
    }

    /// Writes a piece of the body.
    pub fn encode_body(&mut self, piece: &[u8], out: &mut BytesMut) {
        self.encode(out, |kind, out| {
            match kind {
                Kind::Default(_) => out.extend_from_slice(piece),
                Kind::Http(exchange) => exchange.encode_body(piece, out),
                Kind::Json(exchange) => exchange.encode_body(piece, out)?,
                Kind::JsonHttp(exchange) => exchange.encode_body(piece, out),
                Kind::CloudEvent(exchange) => exchange.encode_body(piece, out)?,
                Kind::HttpStream(exchange) => exchange.encode_body(piece, out),
                Kind::Mless(exchange) => exchange.encode_body(piece, out)?,
            }
            Ok(())
        });
    }

    /// What follows the body of the request: written with its end by formats that have a place for it.
    pub fn trailers(&mut self, trailers: Headers) {
        self.trailers = trailers;
    }

    /// Writes what stands after the body.
    pub fn encode_end(&mut self, out: &mut BytesMut) {
        let trailers = std::mem::take(&mut self.trailers);
        self.encode(out, |kind, out| {
            match kind {
                Kind::Default(_) => {}
                Kind::Http(exchange) => exchange.encode_end(&trailers, out),
                Kind::Json(exchange) => exchange.encode_end(out)?,
                Kind::JsonHttp(exchange) => exchange.encode_end(out),
                Kind::CloudEvent(exchange) => exchange.encode_end(out)?,
                Kind::HttpStream(exchange) => exchange.encode_end(&trailers, out),
                Kind::Mless(exchange) => exchange.encode_end(out)?,
            }
            Ok(())
        });
    }

    /// After a fault nothing more is written, and nothing of the step in which it was found.
    fn encode(
        &mut self,
        out: &mut BytesMut,
        step: impl FnOnce(&mut Kind, &mut BytesMut) -> Result<(), Fault>,
    ) {
        if self.fault.is_some() {
            return;
        }
        let start = out.len();
        if let Err(fault) = step(&mut self.kind, out) {
            out.truncate(start);
            self.fault = Some(fault);
        }
    }

    /// Why the request cannot be written in this format. If none of it was, the container has seen nothing of the call.
    #[must_use]
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// Where pieces of the body pass as they are, a carrier may write them itself and spare a copy: this writes what stands around
    /// one of this length, and is true. Else it writes nothing, and [`Self::encode_body`] must.
    pub fn frame(&self, length: usize, before: &mut BytesMut, after: &mut BytesMut) -> bool {
        match &self.kind {
            Kind::Default(_) => {}
            Kind::Http(exchange) => exchange.frame(length, before, after),
            Kind::JsonHttp(exchange) => exchange.frame(length, before, after),
            Kind::HttpStream(exchange) => exchange.frame(length, before, after),
            Kind::Json(_) | Kind::CloudEvent(_) | Kind::Mless(_) => return false,
        }
        true
    }

    /// Takes the next event out of what was read; `None` when more must be read first. `eof`: nothing more will come. An
    /// `eof` ends in an event, always.
    pub fn decode(&mut self, input: &mut BytesMut, eof: bool) -> Option<Event> {
        if self.ended {
            return None;
        }
        let found = match (&self.fault, &mut self.kind) {
            (Some(fault), _) => Err(fault.clone()),
            (None, Kind::Default(exchange)) => Ok(exchange.decode(input, eof)),
            (None, Kind::Http(exchange)) => exchange.decode(input, eof),
            (None, Kind::Json(exchange)) => exchange.decode(input, eof),
            (None, Kind::JsonHttp(exchange)) => exchange.decode(input, eof),
            (None, Kind::CloudEvent(exchange)) => exchange.decode(input, eof),
            (None, Kind::HttpStream(exchange)) => Ok(exchange.decode(input, eof)),
            (None, Kind::Mless(exchange)) => exchange.decode(input, eof),
        };
        let found = found.and_then(|event| self.bounded(event));
        let event = found.unwrap_or_else(|fault| Some(fault.into_event()));
        self.ended = matches!(event, Some(Event::End(_) | Event::Failed { .. }));
        event
    }

    fn bounded(&mut self, event: Option<Event>) -> Result<Option<Event>, Fault> {
        let (said, come) = match &event {
            Some(Event::Head { length: Some(length), .. }) => (*length, 0),
            Some(Event::Body(piece)) => (piece.len() as u64, piece.len() as u64),
            _ => return Ok(event),
        };
        if said > self.room {
            return Err(Fault::new(Code::ResponseTooLarge, "the body of the function's answer is too large"));
        }
        self.room -= come;
        Ok(event)
    }

    /// What an `mless` reply said besides the result.
    #[must_use]
    pub fn report(&self) -> Option<&mless::Report> {
        match &self.kind {
            Kind::Mless(exchange) => exchange.report(),
            _ => None,
        }
    }
}
