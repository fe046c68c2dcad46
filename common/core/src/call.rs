//! One call: its head, the head of its answer, its deadline, its times. Bodies travel beside them, in pieces.

use std::time::{Duration, Instant};

use bytes::Bytes;

/// Most bytes of a body that the first frame of a call carries, ahead of its start; also the longest piece for who has not said that it takes longer ones.
pub const CHUNK: usize = 64 * 1024;

/// Credit that a receiver of a body gives at first if nothing else was agreed, in bytes.
pub const LEAST_WINDOW: u32 = 256 * 1024;

/// Credit that we give at first where the other side knows of it, in bytes: one call holds no more than this in any one place. Four pieces, so that its end cuts
/// none in two.
pub const WINDOW: u32 = 4 * PIECE as u32;

/// The longest piece within a [`WINDOW`]. Each costs a frame, two or three system calls a hop and perhaps somebody woken, so it is long; and with what is around it, it
/// fits into two segments of TCP on one machine, which has 65,483 bytes for each: a third with the last few bytes would be another way through all of it.
pub const PIECE: usize = 127 * 1024;

/// The longest piece that may be sent to who gives such a window at first: a quarter of it.
#[must_use]
pub const fn longest_piece(window: u32) -> usize {
    if window >= WINDOW { PIECE } else { CHUNK }
}

/// A receiver gives credit anew when it has taken so much: two pieces of either length. Half of a window is enough for a sender to go on with meanwhile, and each time
/// is a frame, a write and perhaps somebody woken.
pub const REFILL: u32 = LEAST_WINDOW / 2;

/// What the receiver of a body took of it and has given no credit for yet, in bytes.
#[derive(Debug, Default)]
pub struct Taken(u32);

impl Taken {
    /// Adds so many bytes; gives the credit that is due now, if any is.
    #[must_use]
    pub fn add(&mut self, bytes: usize) -> Option<u32> {
        self.0 = self.0.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        (self.0 >= REFILL).then(|| std::mem::take(&mut self.0))
    }
}

/// Most bytes of names and values of a call's headers together.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Most headers.
pub const MAX_HEADERS: usize = 256;

/// The header in which a balancer tells the format `lambda` from which address a request came. No function sees it, and what a client by HTTP says
/// in it is not believed.
pub const SOURCE_IP: &str = "stoker-source-ip";

/// Most bytes of names and values of what follows a body.
pub const MAX_TRAILER_BYTES: usize = 16 * 1024;

/// A header. Names compare without regard to case; values are bytes without CR, LF and NUL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub name: String,
    pub value: Bytes,
}

/// Headers in the order in which they came; a name may stand several times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<Header>);

impl Headers {
    /// The first value of `name`, if it is text.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|h| h.name.eq_ignore_ascii_case(name))
            .and_then(|h| std::str::from_utf8(&h.value).ok())
    }

    /// Adds one at the end.
    pub fn push(&mut self, name: impl Into<String>, value: impl Into<Bytes>) {
        self.0.push(Header { name: name.into(), value: value.into() });
    }

    /// Bytes of all names and values.
    #[must_use]
    pub fn size(&self) -> usize {
        self.0.iter().map(|h| h.name.len() + h.value.len()).sum()
    }

    /// Checks names, values and limits.
    ///
    /// # Errors
    /// A sentence that names the header and what is wrong with it, and whether it is a matter of size.
    pub fn check(&self) -> Result<(), HeaderProblem> {
        self.check_up_to(MAX_HEADER_BYTES)
    }

    /// The same of what follows a body.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_trailers(&self) -> Result<(), HeaderProblem> {
        self.check_up_to(MAX_TRAILER_BYTES)
    }

    fn check_up_to(&self, most: usize) -> Result<(), HeaderProblem> {
        if self.0.len() > MAX_HEADERS {
            return Err(HeaderProblem::TooLarge(format!(
                "{} headers, at most {MAX_HEADERS} are allowed",
                self.0.len()
            )));
        }
        let size = self.size();
        if size > most {
            return Err(HeaderProblem::TooLarge(format!(
                "headers of {size} bytes, at most {most} are allowed"
            )));
        }
        for header in &self.0 {
            if !is_header_name(&header.name) {
                return Err(HeaderProblem::Invalid(format!("{:?} is not a header name", header.name)));
            }
            if header.value.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)) {
                return Err(HeaderProblem::Invalid(format!(
                    "the value of header {:?} has a line break",
                    header.name
                )));
            }
        }
        Ok(())
    }
}

/// What [`Headers::check`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderProblem {
    /// A name or a value that no header can have.
    Invalid(String),
    /// Over a limit.
    TooLarge(String),
}

/// Whether a header belongs to one connection and goes no further (RFC 9110, section 7.6.1; `Expect` is answered by the
/// first who reads it).
pub fn is_hop_by_hop(name: &str) -> bool {
    const NAMES: [&str; 10] = [
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    NAMES.iter().any(|hop| name.eq_ignore_ascii_case(hop))
}

/// Whether a field may follow a body (RFC 9110, section 6.5.1). None that says how the message is to be read, where it goes, who sends it or how it
/// is to be treated: whoever needs to know that has acted by then. And none of the platform's own words.
#[must_use]
pub fn may_trail(name: &str) -> bool {
    const NAMES: [&str; 26] = [
        "age",
        "authorization",
        "cache-control",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "expires",
        "host",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "location",
        "max-forwards",
        "pragma",
        "range",
        "retry-after",
        "set-cookie",
        "traceparent",
        "tracestate",
        "vary",
        "www-authenticate",
    ];
    const OURS: [&str; 4] = ["access-control-", "fn-", "fn_", "stoker-"];
    let begins = |with: &str| name.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    !is_hop_by_hop(name)
        && !NAMES.iter().any(|other| name.eq_ignore_ascii_case(other))
        && !OURS.iter().any(|ours| begins(ours))
}

/// Whether a value of `TE` says that its sender reads what follows a body.
#[must_use]
pub fn reads_trailers(te: &[u8]) -> bool {
    te.split(|b| *b == b',').any(|word| word.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// The names in a value of `Trailer`.
pub fn announced(trailer: &[u8]) -> impl Iterator<Item = &str> {
    let text = std::str::from_utf8(trailer).unwrap_or_default();
    text.split(',').map(str::trim).filter(|name| is_header_name(name))
}

/// What a value of `Content-Type` says ahead of its parameters.
#[must_use]
pub fn media_type(content_type: &str) -> &str {
    content_type.split_once(';').map_or(content_type, |(kind, _)| kind).trim()
}

/// Whether a header can have this name.
#[must_use]
pub fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Through which kind of door a call came: formats tell functions so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Intent {
    /// A function was invoked by its name or id; headers are for the function as they are.
    #[default]
    Invoke,
    /// An HTTP request to a trigger; status and headers of the answer are for the HTTP client.
    HttpRequest,
}

/// Everything of a request but its body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestHead {
    pub intent: Intent,
    /// HTTP method, `POST` unless the door says otherwise.
    pub method: String,
    /// The URL as the client sent it; may be empty for doors that have none.
    pub url: String,
    pub headers: Headers,
}

/// Everything of an answer but its body.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResponseHead {
    /// HTTP status; 200 where the function's format has none.
    pub status: u16,
    pub headers: Headers,
}

/// W3C trace context, handed on as it came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// `traceparent`, empty if there is none.
    pub parent: String,
    /// `tracestate`, empty if there is none.
    pub state: String,
}

/// When a call must be over. Travels as remaining time and becomes absolute at each door, so that no clock is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(pub Instant);

impl Deadline {
    /// `remaining` from now.
    #[must_use]
    pub fn after(remaining: Duration) -> Self {
        Self(Instant::now() + remaining.min(MAX_REMAINING))
    }

    /// What is left; zero once it has passed.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// Longest remaining time that any door takes; longer ones are cut to it.
pub const MAX_REMAINING: Duration = Duration::from_secs(24 * 3600);

/// Where the time of a call went on the runner. Phases that did not happen are zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// From the offer's arrival to a slot.
    pub wait: Duration,
    /// Of `wait`: the function's image was fetched, or found.
    pub image: Duration,
    /// Of `wait`: the sandbox was prepared (namespaces, mounts, limits).
    pub create: Duration,
    /// Of `wait`: the process was started, until its `exec`.
    pub start: Duration,
    /// Of `wait`: the function made itself ready.
    pub init: Duration,
    /// The frozen container was thawed.
    pub thaw: Duration,
    /// From the first byte of input to the head of the answer.
    pub first_byte: Duration,
    /// From the first byte of input to the end of the answer.
    pub execution: Duration,
    /// The call's own launch served it: it was a cold start, and this is why.
    pub cold: Option<Cold>,
}

/// Why a call found no container that was ready on its runner, and waited for a launch of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cold {
    /// Nothing of its version was there before.
    First,
    /// Those that are there had calls, or were being launched for others.
    Busy,
    /// The last one had no call for longer than its function says.
    Expired,
    /// The last one made room for others.
    Evicted,
    /// The last one ended by itself, or was not trusted after a call.
    Broken,
    /// Its format has a process a call.
    Once,
    /// The last one ended since the runner was drained, or the secrets or files of its function were replaced.
    Drained,
}

impl Cold {
    /// All of them, in their order.
    pub const ALL: [Cold; 7] =
        [Cold::First, Cold::Busy, Cold::Expired, Cold::Evicted, Cold::Broken, Cold::Once, Cold::Drained];

    /// What each is called in numbers and spans.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Cold::First => "first",
            Cold::Busy => "busy",
            Cold::Expired => "expired",
            Cold::Evicted => "evicted",
            Cold::Broken => "broken",
            Cold::Once => "once",
            Cold::Drained => "drained",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_checked() {
        let one = |name: &str, value: &'static str| {
            let mut headers = Headers::default();
            headers.push(name, value);
            headers
        };
        assert_eq!(one("X-Ok", "fine").check(), Ok(()));
        assert_eq!(one("X-Ok", "fine").get("x-ok"), Some("fine"));
        for (name, value) in [("", "x"), ("a b", "x"), ("a:", "x"), ("a", "x\ny"), ("a", "x\0"), ("é", "x")]
        {
            assert!(matches!(one(name, value).check(), Err(HeaderProblem::Invalid(_))), "{name:?} {value:?}");
        }
        let mut many = Headers::default();
        (0..=MAX_HEADERS).for_each(|_| many.push("a", "b"));
        assert!(matches!(many.check(), Err(HeaderProblem::TooLarge(_))));
        let mut large = Headers::default();
        large.push("a", vec![b'x'; MAX_HEADER_BYTES]);
        assert!(matches!(large.check(), Err(HeaderProblem::TooLarge(_))));
    }

    #[test]
    fn what_may_follow_a_body() {
        for name in ["x-sum", "Server-Timing", "ETag", "digest", "grpc-status"] {
            assert!(may_trail(name), "{name}");
        }
        for name in
            ["Content-Length", "TE", "set-cookie", "Host", "Fn-Call-Id", "fn_x", "Stoker-Revision", "Trailer"]
        {
            assert!(!may_trail(name), "{name}");
        }
        assert_eq!(announced(b"X-Sum, a b,, Md5").collect::<Vec<_>>(), ["X-Sum", "Md5"]);
        assert!(reads_trailers(b"gzip, Trailers") && !reads_trailers(b"gzip"));
        let mut long = Headers::default();
        long.push("x", vec![b'x'; MAX_TRAILER_BYTES]);
        assert!(long.check().is_ok() && long.check_trailers().is_err());
    }

    #[test]
    fn deadlines_pass() {
        assert_eq!(Deadline::after(Duration::ZERO).remaining(), Duration::ZERO);
        assert!(Deadline::after(Duration::MAX).remaining() <= MAX_REMAINING);
    }
}
