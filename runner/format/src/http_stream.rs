//! `http-stream`: HTTP/1.1 on a Unix socket, as Fn's development kits speak it.
//!
//! The status of the answer is a word between kit and platform, not the one for the client: 200 is handled, 502 the function
//! failed, 504 it noticed its deadline; the container lives on in all three. Any other status breaks the contract, and a
//! container that broke it is not trusted with another call. What an HTTP client shall see travels in `Fn-Http-*` headers.

use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};
use stoker_core::call::{Headers, Intent};
use stoker_core::{Code, ResponseHead};

use crate::chunked::{Chunked, Step};
use crate::{After, Event, MAX_HEAD, MAX_HEADERS, Request, rfc3339_seconds};

/// Most bytes kept of what a function says about its failure.
const MAX_REASON: usize = 4096;

/// Headers that belong to a connection, and those that the platform itself writes.
fn belongs_to_the_hop(name: &str) -> bool {
    const NAMES: [&str; 10] = [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "expect",
    ];
    NAMES.iter().any(|n| name.eq_ignore_ascii_case(n))
}

fn is_ours(name: &str) -> bool {
    const NAMES: [&str; 4] = ["host", "content-length", "fn-call-id", "fn-deadline"];
    NAMES.iter().any(|n| name.eq_ignore_ascii_case(n))
}

fn strip<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = name.split_at_checked(prefix.len())?;
    (start.eq_ignore_ascii_case(prefix) && !rest.is_empty()).then_some(rest)
}

/// One call.
#[derive(Debug)]
pub struct Exchange {
    intent: Intent,
    chunked: bool,
    state: State,
    keep_alive: bool,
    /// What a 502 or 504 said.
    failure: Option<(Code, Vec<u8>)>,
}

#[derive(Debug)]
enum State {
    Head,
    Length(u64),
    Chunked(Chunked),
    UntilEnd,
    Ended,
}

impl Exchange {
    /// Before anything was written.
    #[must_use]
    pub fn new(request: &Request<'_>) -> Self {
        Self {
            intent: request.head.intent,
            chunked: request.length.is_none(),
            state: State::Head,
            keep_alive: true,
            failure: None,
        }
    }

    /// See [`crate::Exchange::encode_head`].
    pub fn encode_head(&mut self, request: &Request<'_>, out: &mut BytesMut) {
        let head = request.head;
        let http = self.intent == Intent::HttpRequest;
        out.extend_from_slice(b"POST /call HTTP/1.1\r\nHost: localhost\r\n");
        for header in &head.headers.0 {
            if belongs_to_the_hop(&header.name) || is_ours(&header.name) {
                continue;
            }
            // What would speak for the platform may only come from it.
            let spoken_for = ["fn-http-method", "fn-http-request-url", "fn-intent"];
            if http && spoken_for.iter().any(|n| header.name.eq_ignore_ascii_case(n)) {
                continue;
            }
            let trace = !request.trace.parent.is_empty()
                && ["traceparent", "tracestate"].iter().any(|n| header.name.eq_ignore_ascii_case(n));
            if trace {
                continue;
            }
            if http && !header.name.eq_ignore_ascii_case("content-type") {
                out.extend_from_slice(b"Fn-Http-H-");
            }
            line(out, &header.name, &header.value);
        }
        if http {
            line(out, "Fn-Http-Method", head.method.as_bytes());
            line(out, "Fn-Http-Request-Url", head.url.as_bytes());
            line(out, "Fn-Intent", b"httprequest");
        }
        if !request.trace.parent.is_empty() {
            line(out, "traceparent", request.trace.parent.as_bytes());
            if !request.trace.state.is_empty() {
                line(out, "tracestate", request.trace.state.as_bytes());
            }
        }
        let deadline = rfc3339_seconds(request.deadline);
        _ = write!(out, "Fn-Call-Id: {}\r\nFn-Deadline: {deadline}\r\n", request.call);
        match request.length {
            Some(length) => _ = write!(out, "Content-Length: {length}\r\n\r\n"),
            None => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n"),
        }
    }

    /// See [`crate::Exchange::encode_body`].
    pub fn encode_body(&mut self, piece: &[u8], out: &mut BytesMut) {
        if !self.chunked {
            out.extend_from_slice(piece);
        } else if !piece.is_empty() {
            // An empty chunk would be the end.
            _ = write!(out, "{:x}\r\n", piece.len());
            out.extend_from_slice(piece);
            out.extend_from_slice(b"\r\n");
        }
    }

    /// See [`crate::Exchange::encode_end`].
    pub fn encode_end(&mut self, out: &mut BytesMut) {
        if self.chunked {
            out.extend_from_slice(b"0\r\n\r\n");
        }
    }

    /// See [`crate::Exchange::decode`].
    pub fn decode(&mut self, input: &mut BytesMut, eof: bool) -> Option<Event> {
        loop {
            let piece = match &mut self.state {
                State::Ended => return None,
                State::Head => match self.head(input, eof) {
                    Found::Event(event) => return Some(event),
                    Found::More => return None,
                    Found::Again => continue,
                },
                State::Length(0) => return Some(self.end(input)),
                State::Length(left) => {
                    if input.is_empty() {
                        let left = *left;
                        return eof.then(|| self.broken(format!("its body ended {left} bytes early")));
                    }
                    let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                    *left -= take as u64;
                    input.split_to(take).freeze()
                }
                State::Chunked(chunked) => match chunked.next(input) {
                    Step::Data(piece) => piece,
                    Step::End => return Some(self.end(input)),
                    Step::More if eof => return Some(self.broken("its body ended early".to_owned())),
                    Step::More => return None,
                    Step::Broken(why) => return Some(self.broken(why.to_owned())),
                },
                State::UntilEnd => {
                    if input.is_empty() {
                        return eof.then(|| self.end(input));
                    }
                    input.split().freeze()
                }
            };
            if let Some(event) = self.body(piece) {
                return Some(event);
            }
        }
    }

    /// A piece goes on to the client, or into the reason of a failure.
    fn body(&mut self, piece: Bytes) -> Option<Event> {
        match &mut self.failure {
            None => Some(Event::Body(piece)),
            Some((_, reason)) => {
                let room = MAX_REASON.saturating_sub(reason.len());
                reason.extend_from_slice(&piece[..piece.len().min(room)]);
                None
            }
        }
    }

    fn end(&mut self, input: &BytesMut) -> Event {
        self.state = State::Ended;
        let after = match (input.is_empty(), self.keep_alive) {
            (false, _) => After::Destroy,
            (true, true) => After::Reuse,
            (true, false) => After::Reconnect,
        };
        match self.failure.take() {
            None => Event::End(after),
            Some((code, reason)) => {
                let mut message = match code {
                    Code::FunctionTimeout => "the function ran out of time".to_owned(),
                    _ => "the function failed".to_owned(),
                };
                let reason = String::from_utf8_lossy(&reason);
                let reason = reason.trim();
                if !reason.is_empty() {
                    _ = write!(message, ": {reason}");
                }
                Event::Failed { code, message, after }
            }
        }
    }

    fn broken(&mut self, why: String) -> Event {
        self.failed(Code::FunctionInvalidResponse, format!("the function's answer is not valid HTTP: {why}"))
    }

    fn failed(&mut self, code: Code, message: String) -> Event {
        self.state = State::Ended;
        Event::Failed { code, message, after: After::Destroy }
    }

    fn head(&mut self, input: &mut BytesMut, eof: bool) -> Found {
        let mut fields = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut fields);
        let (used, raw) = match response.parse(input) {
            Ok(httparse::Status::Complete(used)) if used > MAX_HEAD => {
                return Found::Event(self.head_too_large());
            }
            Ok(httparse::Status::Complete(used)) => {
                let status = response.code.unwrap_or(0);
                (used, read(status, response.version.unwrap_or(1), response.headers, self.intent))
            }
            Ok(httparse::Status::Partial) if input.len() > MAX_HEAD => {
                return Found::Event(self.head_too_large());
            }
            Ok(httparse::Status::Partial) if eof && input.is_empty() => {
                let message = "the function closed the connection without an answer".to_owned();
                return Found::Event(self.failed(Code::FunctionInvalidResponse, message));
            }
            Ok(httparse::Status::Partial) if eof => {
                return Found::Event(self.broken("its head ended early".to_owned()));
            }
            Ok(httparse::Status::Partial) => return Found::More,
            Err(httparse::Error::TooManyHeaders) => return Found::Event(self.head_too_large()),
            Err(error) => return Found::Event(self.broken(error.to_string())),
        };
        let raw = match raw {
            Ok(raw) => raw,
            Err(why) => return Found::Event(self.broken(why)),
        };
        _ = input.split_to(used);
        // 1xx only announce; 101 would change the protocol.
        if (100..200).contains(&raw.status) && raw.status != 101 {
            return Found::Again;
        }
        self.keep_alive = raw.keep_alive;
        self.state = match raw.length {
            Length::Chunked => State::Chunked(Chunked::Size),
            Length::Known(n) => State::Length(n),
            Length::UntilEnd => {
                self.keep_alive = false;
                State::UntilEnd
            }
        };
        match raw.status {
            200 => {
                let length = match raw.length {
                    Length::Known(n) => Some(n),
                    _ => None,
                };
                Found::Event(Event::Head { head: raw.head, length })
            }
            502 => {
                self.failure = Some((Code::FunctionFailed, Vec::new()));
                Found::Again
            }
            504 => {
                self.failure = Some((Code::FunctionTimeout, Vec::new()));
                Found::Again
            }
            other => Found::Event(self.failed(
                Code::FunctionInvalidResponse,
                format!("the function answered with status {other}; http-stream knows 200, 502 and 504"),
            )),
        }
    }

    fn head_too_large(&mut self) -> Event {
        let message =
            format!("the headers of the function's answer exceed {MAX_HEADERS} or {MAX_HEAD} bytes");
        self.failed(Code::ResponseHeadersTooLarge, message)
    }
}

enum Found {
    Event(Event),
    More,
    Again,
}

enum Length {
    Known(u64),
    Chunked,
    UntilEnd,
}

struct Raw {
    status: u16,
    head: ResponseHead,
    length: Length,
    keep_alive: bool,
}

fn read(status: u16, version: u8, fields: &[httparse::Header<'_>], intent: Intent) -> Result<Raw, String> {
    let mut length: Option<u64> = None;
    let (mut chunked, mut keep_alive) = (false, version == 1);
    let mut named = Vec::new();
    let mut client_status = 200;
    for field in fields {
        let text = || std::str::from_utf8(field.value).unwrap_or_default();
        if field.name.eq_ignore_ascii_case("content-length") {
            let value = text().trim();
            let number = value.parse().ok().filter(|_| value.bytes().all(|b| b.is_ascii_digit()));
            match (number, length) {
                (None, _) => return Err("its Content-Length is not a number".to_owned()),
                (Some(n), Some(before)) if n != before => return Err("it has two lengths".to_owned()),
                (number, _) => length = number,
            }
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            if !text().trim().eq_ignore_ascii_case("chunked") {
                return Err(format!("its Transfer-Encoding is {:?}", text()));
            }
            chunked = true;
        } else if field.name.eq_ignore_ascii_case("connection") {
            for word in text().split(',').map(str::trim) {
                if word.eq_ignore_ascii_case("close") {
                    keep_alive = false;
                } else if word.eq_ignore_ascii_case("keep-alive") {
                    keep_alive |= version == 0;
                } else {
                    named.push(word.to_owned());
                }
            }
        } else if intent == Intent::HttpRequest && field.name.eq_ignore_ascii_case("fn-http-status") {
            client_status = text()
                .trim()
                .parse()
                .ok()
                .filter(|s| (200..=599).contains(s))
                .ok_or_else(|| format!("its Fn-Http-Status is {:?}", text()))?;
        }
    }
    if chunked && length.is_some() {
        return Err("it has both a Content-Length and chunks".to_owned());
    }
    let mut headers = Headers::default();
    for field in fields {
        let value = Bytes::copy_from_slice(field.value);
        let hop = belongs_to_the_hop(field.name) || named.iter().any(|n| n.eq_ignore_ascii_case(field.name));
        match intent {
            _ if hop || field.name.eq_ignore_ascii_case("content-length") => {}
            Intent::Invoke => headers.push(field.name, value),
            Intent::HttpRequest => {
                if let Some(name) = strip(field.name, "fn-http-h-") {
                    let framing =
                        ["content-length", "content-type"].iter().any(|n| name.eq_ignore_ascii_case(n));
                    if !belongs_to_the_hop(name) && !framing {
                        headers.push(name, value);
                    }
                } else if field.name.eq_ignore_ascii_case("content-type") {
                    headers.push(field.name, value);
                }
            }
        }
    }
    // A status in the wire's head is never the client's.
    let length = match (chunked, length) {
        (true, _) => Length::Chunked,
        (false, Some(n)) => Length::Known(n),
        (false, None) if status == 204 || status == 304 => Length::Known(0),
        (false, None) => Length::UntilEnd,
    };
    Ok(Raw { status, head: ResponseHead { status: client_status, headers }, length, keep_alive })
}

fn line(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, UNIX_EPOCH};
    use stoker_core::{CallId, RequestHead, TraceContext};

    fn with<R>(head: &RequestHead, length: Option<u64>, run: impl FnOnce(Request<'_>) -> R) -> R {
        let trace = TraceContext::default();
        let deadline = UNIX_EPOCH + Duration::from_secs(1);
        run(Request { call: CallId::new(), head, deadline, trace: &trace, length })
    }

    fn exchange(intent: Intent) -> Exchange {
        with(&RequestHead { intent, ..Default::default() }, Some(0), |r| Exchange::new(&r))
    }

    fn all(intent: Intent, pieces: &[&[u8]]) -> Vec<Event> {
        let mut exchange = exchange(intent);
        let mut input = BytesMut::new();
        let mut events = Vec::new();
        for piece in pieces {
            input.extend_from_slice(piece);
            while let Some(event) = exchange.decode(&mut input, false) {
                events.push(event);
            }
        }
        while let Some(event) = exchange.decode(&mut input, true) {
            events.push(event);
        }
        events
    }

    fn shape(intent: Intent, answer: &str) -> String {
        let mut text = String::new();
        for event in all(intent, &[answer.as_bytes()]) {
            match event {
                Event::Head { head, .. } => {
                    _ = write!(text, "{}", head.status);
                    for h in head.headers.0 {
                        _ = write!(text, " {}={}", h.name, String::from_utf8_lossy(&h.value));
                    }
                    text.push('|');
                }
                Event::Body(body) => text.push_str(&String::from_utf8_lossy(&body)),
                Event::End(after) => _ = write!(text, "|{after:?}"),
                Event::Failed { code, after, .. } => _ = write!(text, "!{code:?} {after:?}"),
            }
        }
        text
    }

    #[test]
    fn answers_mean_what_fn_says() {
        use Intent::{HttpRequest, Invoke};
        for (intent, answer, expected) in [
            (Invoke, "HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 2\r\n\r\nhi", "200 X-A=1|hi|Reuse"),
            (Invoke, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiX", "200|hi|Destroy"),
            (
                Invoke,
                "HTTP/1.1 200 OK\r\nConnection: close, X-B\r\nX-B: 1\r\nContent-Length: 0\r\n\r\n",
                "200||Reconnect",
            ),
            (
                Invoke,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n1;x=y\r\n!\r\n0\r\nT: x\r\n\r\n",
                "200|hi!|Reuse",
            ),
            (Invoke, "HTTP/1.1 200 OK\r\n\r\nhi", "200|hi|Reconnect"),
            (Invoke, "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "200||Reconnect"),
            (
                Invoke,
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                "200||Reuse",
            ),
            (
                Invoke,
                "HTTP/1.1 200 OK\r\nFn-Http-Status: 404\r\nContent-Length: 0\r\n\r\n",
                "200 Fn-Http-Status=404||Reuse",
            ),
            (
                HttpRequest,
                "HTTP/1.1 200 OK\r\nFn-Http-Status: 404\r\nFn-Http-H-Set-Cookie: a\r\nfn-http-h-set-cookie: b\r\nX-Drop: 1\r\n\
                 Content-Type: t/p\r\nContent-Length: 0\r\n\r\n",
                "404 Set-Cookie=a set-cookie=b Content-Type=t/p||Reuse",
            ),
            (Invoke, "HTTP/1.1 502 no\r\nContent-Length: 4\r\n\r\nboom", "!FunctionFailed Reuse"),
            (Invoke, "HTTP/1.1 504 late\r\nContent-Length: 0\r\n\r\n", "!FunctionTimeout Reuse"),
            (Invoke, "HTTP/1.1 500 odd\r\nContent-Length: 0\r\n\r\n", "!FunctionInvalidResponse Destroy"),
            (Invoke, "rubbish\r\n\r\n", "!FunctionInvalidResponse Destroy"),
            (Invoke, "", "!FunctionInvalidResponse Destroy"),
            (
                Invoke,
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi",
                "200|hi!FunctionInvalidResponse Destroy",
            ),
            (Invoke, "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "!FunctionInvalidResponse Destroy"),
            (
                Invoke,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                "200|!FunctionInvalidResponse Destroy",
            ),
        ] {
            assert_eq!(shape(intent, answer), expected, "{answer:?}");
        }
    }

    #[test]
    fn heads_are_limited() {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "a".repeat(MAX_HEAD));
        assert_eq!(shape(Intent::Invoke, &long), "!ResponseHeadersTooLarge Destroy");
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(shape(Intent::Invoke, &many), "!ResponseHeadersTooLarge Destroy");
    }

    #[test]
    fn requests_are_written_as_fn_writes_them() {
        let mut head = RequestHead {
            intent: Intent::HttpRequest,
            method: "PUT".into(),
            url: "http://h/t/a/b?c".into(),
            ..Default::default()
        };
        for (name, value) in [
            ("Content-Type", "a/b"),
            ("X-Y", "z"),
            ("Connection", "close"),
            ("Fn-Call-Id", "forged"),
            ("Content-Length", "9"),
        ] {
            head.headers.push(name, value);
        }
        with(&head, None, |request| {
            let mut exchange = Exchange::new(&request);
            let mut out = BytesMut::new();
            exchange.encode_head(&request, &mut out);
            exchange.encode_body(b"hello", &mut out);
            exchange.encode_body(b"", &mut out);
            exchange.encode_end(&mut out);
            let expected = format!(
                "POST /call HTTP/1.1\r\nHost: localhost\r\nContent-Type: a/b\r\nFn-Http-H-X-Y: z\r\n\
                 Fn-Http-Method: PUT\r\nFn-Http-Request-Url: http://h/t/a/b?c\r\nFn-Intent: httprequest\r\n\
                 Fn-Call-Id: {}\r\nFn-Deadline: 1970-01-01T00:00:01Z\r\n\
                 Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                request.call
            );
            assert_eq!(String::from_utf8_lossy(&out), expected);
        });
    }

    /// Adjacent pieces of a body as one, since how it is cut is not part of the answer.
    fn joined(events: Vec<Event>) -> Vec<Event> {
        let mut out: Vec<Event> = Vec::new();
        for event in events {
            if let (Event::Body(new), Some(Event::Body(old))) = (&event, out.last_mut()) {
                *old = [&old[..], &new[..]].concat().into();
            } else {
                out.push(event);
            }
        }
        out
    }

    proptest! {
        #[test]
        fn how_it_is_cut_changes_nothing(body in prop::collection::vec(any::<u8>(), 0..300), chunk in 1usize..50, cuts in prop::collection::vec(0usize..600, 0..12)) {
            let mut answer = b"HTTP/1.1 200 OK\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for piece in body.chunks(chunk) {
                answer.extend_from_slice(format!("{:X}\r\n", piece.len()).as_bytes());
                answer.extend_from_slice(piece);
                answer.extend_from_slice(b"\r\n");
            }
            answer.extend_from_slice(b"0\r\n\r\n");
            let mut cuts: Vec<_> = cuts.into_iter().map(|c| c.min(answer.len())).collect();
            cuts.extend([0, answer.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|w| &answer[w[0]..w[1]]).collect();
            prop_assert_eq!(joined(all(Intent::Invoke, &pieces)), joined(all(Intent::Invoke, &[&answer])));
        }

        /// Whatever comes, it ends, once, and without a panic.
        #[test]
        fn garbage_ends_in_one_event(start in prop::sample::select(vec!["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 502 x\r\n\r\n"]), rest in prop::collection::vec(any::<u8>(), 0..400)) {
            let events = all(Intent::HttpRequest, &[start.as_bytes(), &rest]);
            let last = events.iter().filter(|e| matches!(e, Event::End(_) | Event::Failed { .. })).count();
            prop_assert_eq!(last, 1);
        }
    }
}
