//! `default`: one process per call. The request's body is its STDIN, its STDOUT is the answer, its environment the rest; what
//! its end means is the exit status, which the carrier knows.

use bytes::BytesMut;
use stoker_core::ResponseHead;
use stoker_core::call::Headers;
use stoker_core::moment::rfc3339_millis;

use crate::headers::canonical;
use crate::{After, Event, Request, url};

/// Most bytes of one `FN_HEADER_…` variable: the kernel takes no string over 128 KiB.
const MAX_VALUE: usize = 120 * 1024;

/// The variables that only the call knows, as Fn names them. Headers stand under two names: the one that Fn's documents promise,
/// and the one that its code wrote.
#[must_use]
pub fn environment(request: &Request<'_>) -> Vec<(String, String)> {
    let mut env = vec![
        ("FN_CALL_ID".to_owned(), request.call.to_string()),
        ("FN_DEADLINE".to_owned(), rfc3339_millis(request.deadline)),
        ("FN_METHOD".to_owned(), request.head.method.clone()),
        ("FN_REQUEST_URL".to_owned(), request.head.url.clone()),
    ];
    if !request.trace.parent.is_empty() {
        env.push(("TRACEPARENT".to_owned(), request.trace.parent.clone()));
    }
    if !request.trace.state.is_empty() {
        env.push(("TRACESTATE".to_owned(), request.trace.state.clone()));
    }
    for (name, value) in joined(request, ", ") {
        let (spoken, written) = (format!("FN_HEADER_{}", variable(&name)), format!("FN_HEADER_{name}"));
        if spoken != written {
            add(&mut env, written, value.clone(), ", ");
        }
        add(&mut env, spoken, value, ", ");
    }
    env.iter_mut().for_each(|(_, value)| value.retain(|c| c != '\0'));
    env
}

/// The variables of the Open Function Format: the route is the URL's path, its parameters are those of the query.
#[must_use]
pub fn open_function(request: &Request<'_>) -> Vec<(String, String)> {
    let url = &request.head.url;
    let mut env = vec![
        ("METHOD".to_owned(), request.head.method.clone()),
        ("ROUTE".to_owned(), url::path(url).to_owned()),
        ("REQUEST_URL".to_owned(), url.clone()),
    ];
    for (name, value) in url::parameters(url) {
        add(&mut env, format!("PARAM_{}", variable(&name)), value, " ");
    }
    for (name, value) in joined(request, " ") {
        add(&mut env, format!("HEADER_{}", variable(&name)), value, " ");
    }
    env.iter_mut().for_each(|(_, value)| value.retain(|c| c != '\0'));
    env
}

/// Each header once, in Go's spelling, its values joined.
fn joined(request: &Request<'_>, by: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for header in &request.head.headers.0 {
        let name = canonical(&header.name).into_owned();
        add(&mut found, name, String::from_utf8_lossy(&header.value).into_owned(), by);
    }
    found
}

/// Two names may fold into one variable: it has both values, as far as the kernel takes them.
fn add(env: &mut Vec<(String, String)>, name: String, value: String, by: &str) {
    match env.iter_mut().find(|(n, _)| *n == name) {
        None => env.push((name, value)),
        Some((_, old)) if old.len() + value.len() < MAX_VALUE => {
            old.push_str(by);
            old.push_str(&value);
        }
        Some(_) => {}
    }
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
            ("FN_DEADLINE", "1970-01-01T00:00:01.500Z"),
            ("FN_METHOD", "POST"),
            ("FN_REQUEST_URL", "/x?y"),
            ("TRACEPARENT", "00-1"),
            ("FN_HEADER_Content-Type", "a/b"),
            ("FN_HEADER_CONTENT_TYPE", "a/b"),
            ("FN_HEADER_X-Two", "1, 2"),
            ("FN_HEADER_X_TWO", "1, 2"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
        assert_eq!(env, expected);
    }

    #[test]
    fn the_older_variables_are_there_for_who_asks() {
        let url = "http://h/blogs/x?page=2&page=3&b-c=d%20e";
        let mut head = RequestHead { method: "GET".into(), url: url.into(), ..Default::default() };
        head.headers.push("x-two", "1");
        head.headers.push("X-Two", "2");
        let trace = TraceContext::default();
        let request =
            Request { call: CallId::new(), head: &head, deadline: UNIX_EPOCH, trace: &trace, length: None };
        let env = open_function(&request);
        let env: Vec<_> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(
            env,
            [
                ("METHOD", "GET"),
                ("ROUTE", "/blogs/x"),
                ("REQUEST_URL", url),
                ("PARAM_PAGE", "2"),
                ("PARAM_B_C", "d e"),
                ("HEADER_X_TWO", "1 2")
            ]
        );
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
