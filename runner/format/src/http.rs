//! `http`: HTTP/1.1 requests on STDIN, HTTP/1.1 answers on STDOUT, one after the other. Unlike `http-stream` it is the client's
//! HTTP itself: its method and target, its status and headers.

use bytes::{Bytes, BytesMut};
use stoker_core::call::Headers;
use stoker_core::moment::rfc3339_millis;
use stoker_core::text::escape_blank;
use stoker_core::{Code, ResponseHead};

use crate::headers::Given;
use crate::http1::{self, Found, Piece, line};
use crate::reply::{broken, excerpt, settle, trim};
use crate::{Event, Fault, Request, default, headers, url};

/// One call.
#[derive(Debug)]
pub struct Exchange {
    chunked: bool,
    /// An answer to HEAD has no body, whatever its headers say.
    bodiless: bool,
    /// The variables of the Open Function Format as headers too.
    open: bool,
    written: bool,
    close: bool,
    body: Option<http1::Body>,
}

/// Names that the platform speaks with, in both spellings: Go's header of the variable `FN_CALL_ID` was `Fn_call_id`.
const OURS: [&str; 4] = ["call-id", "deadline", "method", "request-url"];

fn is_ours(name: &str) -> bool {
    let Some(rest) = name.get(..3).filter(|p| p.eq_ignore_ascii_case("fn-") || p.eq_ignore_ascii_case("fn_"))
    else {
        return false;
    };
    let rest = name[rest.len()..].replace('_', "-");
    headers::is_one_of(&rest, &OURS)
}

/// A method that can stand in a request line.
fn method(text: &str) -> &str {
    let fine = (1..=32).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if fine { text } else { "POST" }
}

impl Exchange {
    /// Before anything was written.
    #[must_use]
    pub fn new(request: &Request<'_>, open: bool) -> Self {
        Self {
            chunked: request.length.is_none(),
            bodiless: request.head.method.eq_ignore_ascii_case("head"),
            open,
            written: false,
            close: false,
            body: None,
        }
    }

    /// See [`crate::Exchange::frame`].
    pub fn frame(&self, length: usize, before: &mut BytesMut, after: &mut BytesMut) {
        http1::frame(length, self.chunked, before, after);
    }

    /// See [`crate::Exchange::encode_head`].
    pub fn encode_head(&mut self, request: &Request<'_>, out: &mut BytesMut) {
        let head = request.head;
        let method = method(&head.method);
        out.extend_from_slice(method.as_bytes());
        out.extend_from_slice(b" ");
        out.extend_from_slice(url::target(&head.url).as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        let host = url::split(&head.url).0.or_else(|| head.headers.get("host")).unwrap_or("localhost");
        line(out, "Host", escape_blank(host).as_bytes());
        for (name, value) in headers::told(request) {
            if !is_ours(&name) {
                line(out, &name, value);
            }
        }
        head.headers.0.iter().for_each(|header| http1::about_trailers(out, header, self.chunked, ""));
        let (call, deadline) = (request.call.to_string(), rfc3339_millis(request.deadline));
        let url = escape_blank(&head.url);
        for (old, new, value) in [
            ("Fn_call_id", "Fn-Call-Id", call.as_str()),
            ("Fn_deadline", "Fn-Deadline", &deadline),
            ("Fn_method", "Fn-Method", method),
            ("Fn_request_url", "Fn-Request-Url", &url),
        ] {
            line(out, old, value.as_bytes());
            line(out, new, value.as_bytes());
        }
        if self.open {
            line(out, "Task-ID", call.as_bytes());
            for (name, value) in default::open_function(request) {
                // Go's spelling of a header that was a variable: `Header_content_type`.
                let safe = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
                if safe {
                    line(out, &headers::canonical(&name), value.as_bytes());
                }
            }
        }
        http1::end_head(out, request.length);
    }

    /// See [`crate::Exchange::encode_body`].
    pub fn encode_body(&mut self, piece: &[u8], out: &mut BytesMut) {
        http1::piece(out, piece, self.chunked);
    }

    /// See [`crate::Exchange::encode_end`].
    pub fn encode_end(&mut self, trailers: &Headers, out: &mut BytesMut) {
        http1::end(out, self.chunked, trailers, "");
        self.written = true;
    }

    /// See [`crate::Exchange::decode`].
    ///
    /// # Errors
    /// The function's fault.
    pub fn decode(&mut self, input: &mut BytesMut, eof: bool) -> Result<Option<Event>, Fault> {
        let Some(body) = &mut self.body else { return self.head(input, eof) };
        loop {
            return Ok(match body.next(input, eof, "HTTP")? {
                Piece::Data(piece) => Some(Event::Body(piece)),
                Piece::More => None,
                Piece::Trailers(found) => match http1::trailers(&found, |name| Some(name)) {
                    kept if kept.0.is_empty() => continue,
                    kept => Some(Event::Trailers(kept)),
                },
                Piece::End => {
                    let settled = self.written && !self.close && !matches!(body, http1::Body::UntilEnd);
                    Some(Event::End(settle(input, eof, settled)))
                }
            });
        }
    }

    fn head(&mut self, input: &mut BytesMut, eof: bool) -> Result<Option<Event>, Fault> {
        let head = loop {
            trim(input);
            // The parser would read on for a while before it gives up on what is no HTTP.
            let start = &input[..input.len().min(5)];
            if !b"HTTP/".starts_with(start) {
                return Err(broken("HTTP", &format!("it is {}", excerpt(input))));
            }
            let read = |fields: &http1::Fields<'_, '_>| {
                let mut given = Given::default();
                for (name, value) in fields.iter() {
                    given.push(name, Bytes::copy_from_slice(value));
                }
                Ok((given, fields.announced(Some)))
            };
            match http1::head(input, eof, self.bodiless, read)? {
                Found::More => return Ok(None),
                Found::Announced => {}
                Found::Head(head) => break head,
            }
        };
        if !(200..=599).contains(&head.status) {
            let why =
                format!("the function answered with status {}, which is none from 200 to 599", head.status);
            return Err(Fault::new(Code::FunctionInvalidResponse, why));
        }
        // What HTTP/1.0 says by saying nothing is not taken for an announcement: the pipe is open.
        self.close = head.close;
        let length = head.body.length();
        self.body = Some(head.body);
        let (given, trailer) = head.read;
        let mut headers = given.checked()?;
        if let Some(names) = trailer {
            headers.push("Trailer", names);
        }
        let head = ResponseHead { status: head.status, headers };
        Ok(Some(Event::Head { head, length }))
    }
}
