//! `http-stream`: HTTP/1.1 on a Unix socket, as Fn's development kits speak it.
//!
//! The status of the answer is a word between kit and platform, not the one for the client: 200 is handled, 502 the function
//! failed, 504 it noticed its deadline; the container lives on in all three. Any other status breaks the contract, and a
//! container that broke it is not trusted with another call. What an HTTP client shall see travels in `Fn-Http-*` headers.

use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};
use stoker_core::call::{Headers, Intent, is_hop_by_hop};
use stoker_core::moment::rfc3339_seconds;
use stoker_core::{Code, ResponseHead};

use crate::headers::is_one_of;
use crate::http1::{self, Found, Piece, line};
use crate::{After, Event, Fault, MAX_REASON, Request};

/// What the platform itself writes.
fn is_ours(name: &str) -> bool {
    is_one_of(name, &["host", "content-length", "fn-call-id", "fn-deadline"])
}

/// What stands before the name of a client's header.
fn prefix(intent: Intent) -> &'static str {
    match intent {
        Intent::Invoke => "",
        Intent::HttpRequest => "Fn-Http-H-",
    }
}

/// The name that a trailer has for the client: as that of a header, it has to say that it is meant for it.
fn for_client(name: &str, intent: Intent) -> Option<&str> {
    match intent {
        Intent::Invoke => Some(name),
        Intent::HttpRequest => strip(name, "fn-http-h-"),
    }
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
    Body(http1::Body),
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

    /// See [`crate::Exchange::frame`].
    pub fn frame(&self, length: usize, before: &mut BytesMut, after: &mut BytesMut) {
        http1::frame(length, self.chunked, before, after);
    }

    /// See [`crate::Exchange::encode_head`].
    pub fn encode_head(&mut self, request: &Request<'_>, out: &mut BytesMut) {
        let head = request.head;
        let http = self.intent == Intent::HttpRequest;
        let prefix = prefix(self.intent);
        out.extend_from_slice(b"POST /call HTTP/1.1\r\nHost: localhost\r\n");
        for header in &head.headers.0 {
            if is_hop_by_hop(&header.name) {
                http1::about_trailers(out, header, self.chunked, prefix);
                continue;
            }
            if is_ours(&header.name) {
                continue;
            }
            // What would speak for the platform may only come from it.
            if http && is_one_of(&header.name, &["fn-http-method", "fn-http-request-url", "fn-intent"]) {
                continue;
            }
            if !request.trace.parent.is_empty() && is_one_of(&header.name, &["traceparent", "tracestate"]) {
                continue;
            }
            if !header.name.eq_ignore_ascii_case("content-type") {
                out.extend_from_slice(prefix.as_bytes());
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
        http1::end_head(out, request.length);
    }

    /// See [`crate::Exchange::encode_body`].
    pub fn encode_body(&mut self, piece: &[u8], out: &mut BytesMut) {
        http1::piece(out, piece, self.chunked);
    }

    /// See [`crate::Exchange::encode_end`].
    pub fn encode_end(&mut self, trailers: &Headers, out: &mut BytesMut) {
        http1::end(out, self.chunked, trailers, prefix(self.intent));
    }

    /// See [`crate::Exchange::decode`].
    pub fn decode(&mut self, input: &mut BytesMut, eof: bool) -> Option<Event> {
        let found = self.step(input, eof);
        found.unwrap_or_else(|fault| Some(self.failed(fault)))
    }

    fn step(&mut self, input: &mut BytesMut, eof: bool) -> Result<Option<Event>, Fault> {
        loop {
            match &mut self.state {
                State::Ended => return Ok(None),
                State::Head => {
                    let intent = self.intent;
                    let head = match http1::head(input, eof, false, |fields| read(fields, intent))? {
                        Found::More => return Ok(None),
                        Found::Announced => continue,
                        Found::Head(head) => head,
                    };
                    self.keep_alive = head.keep_alive && !matches!(head.body, http1::Body::UntilEnd);
                    let length = head.body.length();
                    self.state = State::Body(head.body);
                    match head.status {
                        200 => return Ok(Some(Event::Head { head: head.read, length })),
                        502 => self.failure = Some((Code::FunctionFailed, Vec::new())),
                        504 => self.failure = Some((Code::FunctionTimeout, Vec::new())),
                        other => {
                            let why = format!(
                                "the function answered with status {other}; http-stream knows 200, 502 and 504"
                            );
                            return Err(Fault::new(Code::FunctionInvalidResponse, why));
                        }
                    }
                }
                State::Body(body) => match body.next(input, eof, "HTTP")? {
                    Piece::More => return Ok(None),
                    Piece::End => return Ok(Some(self.end(input))),
                    Piece::Trailers(found) => {
                        let intent = self.intent;
                        let kept = http1::trailers(&found, |name| for_client(name, intent));
                        if self.failure.is_none() && !kept.0.is_empty() {
                            return Ok(Some(Event::Trailers(kept)));
                        }
                    }
                    Piece::Data(piece) => {
                        if let Some(event) = self.body(piece) {
                            return Ok(Some(event));
                        }
                    }
                },
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

    fn failed(&mut self, fault: Fault) -> Event {
        self.state = State::Ended;
        fault.into_event()
    }
}

/// The client's status and headers, out of those on the wire.
fn read(fields: &http1::Fields<'_, '_>, intent: Intent) -> Result<ResponseHead, String> {
    let mut head = ResponseHead { status: 200, headers: Headers::default() };
    for (name, value) in fields.iter() {
        let copy = || Bytes::copy_from_slice(value);
        if intent == Intent::Invoke {
            head.headers.push(name, copy());
        } else if name.eq_ignore_ascii_case("fn-http-status") {
            let text = std::str::from_utf8(value).unwrap_or_default();
            head.status = text
                .trim()
                .parse()
                .ok()
                .filter(|s| (200..=599).contains(s))
                .ok_or_else(|| format!("its Fn-Http-Status is {text:?}"))?;
        } else if let Some(name) = strip(name, "fn-http-h-") {
            if !is_hop_by_hop(name) && !is_one_of(name, &["content-length", "content-type"]) {
                head.headers.push(name, copy());
            }
        } else if name.eq_ignore_ascii_case("content-type") {
            head.headers.push(name, copy());
        }
    }
    if let Some(names) = fields.announced(|name| for_client(name, intent)) {
        head.headers.push("Trailer", names);
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MAX_HEAD, MAX_HEADERS};
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
                Event::Trailers(trailers) => {
                    for h in trailers.0 {
                        _ = write!(text, "+{}={}", h.name, String::from_utf8_lossy(&h.value));
                    }
                }
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
                "200|hi!+T=x|Reuse",
            ),
            (
                Invoke,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, Host\r\n\r\n0\r\nX-Sum:  a b \r\nHost: h\r\n\r\n",
                "200 Trailer=X-Sum|+X-Sum=a b|Reuse",
            ),
            (
                HttpRequest,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Fn-Http-H-X-Sum, X-Own\r\n\r\n\
                 0\r\nfn-http-h-x-sum: 1\r\nX-Own: 2\r\nFn-Http-H-Set-Cookie: 3\r\n\r\n",
                "200 Trailer=X-Sum|+x-sum=1|Reuse",
            ),
            (
                Invoke,
                "HTTP/1.1 502 no\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 1\r\n\r\n",
                "!FunctionFailed Reuse",
            ),
            (
                Invoke,
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nno header\r\n\r\n",
                "200|!FunctionInvalidResponse Destroy",
            ),
            (Invoke, "HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nContent-Length: 0\r\n\r\n", "200||Reuse"),
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
            exchange.encode_end(&Headers::default(), &mut out);
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

    #[test]
    fn what_follows_the_body_of_a_request_is_written_where_it_can_be() {
        for (intent, prefix) in [(Intent::Invoke, ""), (Intent::HttpRequest, "Fn-Http-H-")] {
            let mut head = RequestHead { intent, ..Default::default() };
            for (name, value) in [("te", "gzip, trailers"), ("trailer", "x-sum, host"), ("connection", "te")]
            {
                head.headers.push(name, value);
            }
            let mut trailers = Headers::default();
            for (name, value) in [("x-sum", "7\r\nx: y"), ("content-length", "9")] {
                trailers.push(name, value);
            }
            let written = |length| {
                with(&head, length, |request| {
                    let (mut exchange, mut out) = (Exchange::new(&request), BytesMut::new());
                    exchange.encode_head(&request, &mut out);
                    exchange.encode_end(&trailers, &mut out);
                    String::from_utf8_lossy(&out).into_owned()
                })
            };
            let text = written(None);
            assert!(text.contains(&format!("TE: trailers\r\nTrailer: {prefix}x-sum\r\n")), "{text}");
            assert!(text.ends_with(&format!("\r\n\r\n0\r\n{prefix}x-sum: 7  x: y\r\n\r\n")), "{text}");
            let text = written(Some(0));
            assert!(text.contains("TE: trailers\r\n") && !text.contains("x-sum"), "{text}");
        }
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
