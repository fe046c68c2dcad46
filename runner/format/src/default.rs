//! `default`: one process per call. The request's body is its STDIN, its STDOUT is the answer, its environment the rest; what
//! its end means is the exit status, which the carrier knows.

use bytes::BytesMut;
use stoker_core::ResponseHead;
use stoker_core::call::Headers;

use crate::{After, Event, Request, rfc3339_seconds};

/// Most bytes of one `FN_HEADER_…` variable: the kernel takes no string over 128 KiB.
const MAX_VALUE: usize = 120 * 1024;

/// The variables that only the call knows.
#[must_use]
pub fn environment(request: &Request<'_>) -> Vec<(String, String)> {
    let mut env = vec![
        ("FN_CALL_ID".to_owned(), request.call.to_string()),
        ("FN_DEADLINE".to_owned(), rfc3339_seconds(request.deadline)),
        ("FN_METHOD".to_owned(), request.head.method.clone()),
        ("FN_REQUEST_URL".to_owned(), request.head.url.clone()),
    ];
    if !request.trace.parent.is_empty() {
        env.push(("TRACEPARENT".to_owned(), request.trace.parent.clone()));
    }
    if !request.trace.state.is_empty() {
        env.push(("TRACESTATE".to_owned(), request.trace.state.clone()));
    }
    let fixed = env.len();
    for header in &request.head.headers.0 {
        let key = format!("FN_HEADER_{}", variable(&header.name));
        let value = String::from_utf8_lossy(&header.value);
        match env[fixed..].iter_mut().find(|(k, _)| *k == key) {
            Some((_, old)) if old.len() + value.len() < MAX_VALUE => {
                old.push_str(", ");
                old.push_str(&value);
            }
            Some(_) => {}
            None => env.push((key, value.into_owned())),
        }
    }
    env
}

/// `Content-Type` → `CONTENT_TYPE`.
fn variable(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

/// One call.
#[derive(Debug, Default)]
pub struct Exchange {
    headed: bool,
    ended: bool,
}

impl Exchange {
    /// Before anything was read.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// See [`crate::Exchange::decode`].
    pub fn decode(&mut self, input: &mut BytesMut, eof: bool) -> Option<Event> {
        if self.ended || (input.is_empty() && !eof) {
            return None;
        }
        if !self.headed {
            self.headed = true;
            let mut headers = Headers::default();
            headers.push("Content-Type", content_type(input));
            return Some(Event::Head { head: ResponseHead { status: 200, headers }, length: None });
        }
        if !input.is_empty() {
            return Some(Event::Body(input.split().freeze()));
        }
        self.ended = true;
        Some(Event::End(After::Destroy))
    }
}

/// The function cannot say what it writes, so its first bytes do.
fn content_type(first: &[u8]) -> &'static str {
    let start = first.trim_ascii_start();
    if start.starts_with(b"{") || start.starts_with(b"[") {
        return "application/json; charset=utf-8";
    }
    // A character may be cut at the end of what was read.
    let text = match std::str::from_utf8(first) {
        Ok(_) => true,
        Err(error) => error.error_len().is_none(),
    };
    if text && !first.contains(&0) { "text/plain; charset=utf-8" } else { "application/octet-stream" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};
    use stoker_core::{CallId, RequestHead, TraceContext};

    #[test]
    fn the_environment_tells_the_call() {
        let mut head = RequestHead { method: "POST".into(), url: "/x?y".into(), ..Default::default() };
        head.headers.push("Content-Type", "a/b");
        head.headers.push("X-Two", "1");
        head.headers.push("x-two", "2");
        let call = CallId::new();
        let trace = TraceContext { parent: "00-1".into(), state: String::new() };
        let deadline = UNIX_EPOCH + Duration::from_millis(1_500);
        let env = environment(&Request { call, head: &head, deadline, trace: &trace, length: None });
        let expected: Vec<(String, String)> = [
            ("FN_CALL_ID", call.to_string().as_str()),
            ("FN_DEADLINE", "1970-01-01T00:00:01Z"),
            ("FN_METHOD", "POST"),
            ("FN_REQUEST_URL", "/x?y"),
            ("TRACEPARENT", "00-1"),
            ("FN_HEADER_CONTENT_TYPE", "a/b"),
            ("FN_HEADER_X_TWO", "1, 2"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
        assert_eq!(env, expected);
    }

    #[test]
    fn output_is_the_answer() {
        let mut exchange = Exchange::new();
        let mut input = BytesMut::from(&b"{}"[..]);
        let Some(Event::Head { head, .. }) = exchange.decode(&mut input, false) else { panic!("no head") };
        assert_eq!(head.headers.get("content-type"), Some("application/json; charset=utf-8"));
        assert_eq!(exchange.decode(&mut input, false), Some(Event::Body("{}".into())));
        assert_eq!(exchange.decode(&mut input, false), None);
        assert_eq!(exchange.decode(&mut input, true), Some(Event::End(After::Destroy)));
        assert_eq!(exchange.decode(&mut input, true), None);
    }

    #[test]
    fn no_output_is_an_empty_answer() {
        let mut exchange = Exchange::new();
        let mut input = BytesMut::new();
        assert!(matches!(exchange.decode(&mut input, true), Some(Event::Head { .. })));
        assert_eq!(exchange.decode(&mut input, true), Some(Event::End(After::Destroy)));
    }
}
