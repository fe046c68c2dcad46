//! What the tests and the fuzzer share: calls to encode, answers to decode, and what must hold for every one of them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use stoker_core::call::{Intent, RequestHead, TraceContext};
use stoker_core::function::{CloudEvents, Format, FormatOptions, FunctionName, FunctionSpec};
use stoker_core::{CallId, Code};
use stoker_format::{After, Codec, Event, Exchange, Fault, Limits, Request, quiet};

/// A call to a function of some format.
#[derive(Debug, Clone)]
pub struct Row {
    /// Unique within the format; names the golden files.
    pub name: &'static str,
    pub format: Format,
    pub options: FormatOptions,
    pub head: RequestHead,
    pub trace: TraceContext,
    pub body: Vec<u8>,
    /// The whole body is there at the start.
    pub whole: bool,
}

impl Row {
    pub fn codec(&self) -> Codec {
        let name = FunctionName::new("demo", "echo").expect("both are names");
        let mut spec = FunctionSpec::new(name, vec!["echo".to_owned()], "/".into());
        (spec.format, spec.format_options) = (self.format, self.options.clone());
        Codec::new(&spec).expect("it has one")
    }

    pub fn with<R>(&self, run: impl FnOnce(&Request<'_>) -> R) -> R {
        let call = CallId::parse("0190163d-8694-739b-aea5-966c26f8ad91").expect("it is an id");
        run(&Request {
            call,
            head: &self.head,
            deadline: deadline(),
            trace: &self.trace,
            length: self.whole.then_some(self.body.len() as u64),
        })
    }

    /// What is written for it, its body cut at these places, and the exchange that waits for the answer.
    pub fn encode(&self, codec: &Codec, cuts: &[usize]) -> (Exchange, BytesMut) {
        self.with(|request| {
            let mut exchange = codec.begin(request);
            let mut out = BytesMut::new();
            exchange.encode_head(request, &mut out);
            for piece in pieces(&self.body, cuts) {
                exchange.encode_body(piece, &mut out);
            }
            exchange.encode_end(&mut out);
            (exchange, out)
        })
    }

    pub fn file(&self, end: &str) -> PathBuf {
        golden(self.format).join(format!("{}.{end}", self.name))
    }
}

fn deadline() -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)
}

pub fn golden(format: Format) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format.as_str())
}

/// The pieces between these places.
pub fn pieces<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    let mut cuts: Vec<_> = cuts.iter().map(|c| (*c).min(bytes.len())).chain([0, bytes.len()]).collect();
    cuts.sort_unstable();
    cuts.windows(2).map(|w| &bytes[w[0]..w[1]]).collect()
}

/// What an exchange makes of an answer: its events, with the body in one piece, since how it is cut is no part of the answer.
pub fn decode(exchange: &mut Exchange, answer: &[u8], cuts: &[usize], eof: bool) -> Vec<Event> {
    decode_from(exchange, &mut BytesMut::new(), answer, cuts, eof)
}

/// The same, and what it did not take stays in the input.
fn decode_from(
    exchange: &mut Exchange,
    input: &mut BytesMut,
    answer: &[u8],
    cuts: &[usize],
    eof: bool,
) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    let mut take = |input: &mut BytesMut, eof: bool| {
        while let Some(event) = exchange.decode(input, eof) {
            match (&event, events.last_mut()) {
                (Event::Body(new), Some(Event::Body(old))) => *old = [&old[..], &new[..]].concat().into(),
                _ => events.push(event),
            }
        }
    };
    for piece in pieces(answer, cuts) {
        input.extend_from_slice(piece);
        take(input, false);
    }
    if eof {
        take(input, true);
    }
    events
}

pub fn render(events: &[Event]) -> String {
    let mut text = String::new();
    for event in events {
        match event {
            Event::Head { head, length } => {
                let length = length.map_or("unknown".to_owned(), |n| n.to_string());
                _ = writeln!(text, "head {} length {length}", head.status);
                for header in &head.headers.0 {
                    _ = writeln!(text, "  {}: {}", header.name, header.value.escape_ascii());
                }
            }
            Event::Body(body) => _ = writeln!(text, "body {}", body.escape_ascii()),
            Event::Trailers(trailers) => {
                for h in &trailers.0 {
                    _ = writeln!(text, "trailer {}: {}", h.name, h.value.escape_ascii());
                }
            }
            Event::End(after) => _ = writeln!(text, "end {after:?}"),
            Event::Failed { code, message, after } => {
                _ = writeln!(text, "failed {code:?} {after:?}\n  {message}")
            }
        }
    }
    text
}

/// What holds for every answer whatever it is: it ends, once, in the same way however it is cut; what went wrong is blamed on the
/// function; and no header goes on that no client may see. Gives what is made of it while the channel is open.
pub fn check_answer(row: &Row, limits: Limits, answer: &[u8], cuts: &[usize]) -> Result<Vec<Event>, String> {
    let codec = row.codec().limits(limits);
    if row.encode(&codec, &[]).0.fault().is_some() {
        // The limits are for its event too.
        return Ok(Vec::new());
    }
    // Excess that comes late is found by the look before the next call, instead of by the answer's end.
    let decode_with = |cuts: &[usize], eof: bool| {
        let mut input = BytesMut::new();
        let mut events = decode_from(&mut row.encode(&codec, &[]).0, &mut input, answer, cuts, eof);
        if !quiet(&mut input)
            && let Some(Event::End(after) | Event::Failed { after, .. }) = events.last_mut()
        {
            *after = After::Destroy;
        }
        events
    };
    let whole = decode_with(&[], true);
    let cut = decode_with(cuts, true);
    let (last, rest) = whole.split_last().ok_or("it has no event")?;
    let is_last = |e: &Event| matches!(e, Event::End(_) | Event::Failed { .. });
    if !is_last(last) || rest.iter().any(is_last) {
        return Err(format!("it does not end once:\n{}", render(&whole)));
    }
    if !rest.is_empty() && !matches!(rest[0], Event::Head { .. }) {
        return Err(format!("it does not begin with a head:\n{}", render(&whole)));
    }
    // An end of file that is seen at once and one that is seen later both end the container, but only the first is told here.
    let settled = |events: &[Event]| {
        let mut events = events.to_vec();
        if let Some(Event::End(after) | Event::Failed { after, .. }) = events.last_mut() {
            *after = After::Destroy;
        }
        // Where a limit ends an answer, more or less of it may have gone through before. The excerpt of what came instead of an
        // answer is as long as what was there.
        match events.last_mut() {
            Some(Event::Failed { code: Code::ResponseTooLarge, .. }) => events.split_off(events.len() - 1),
            Some(Event::Failed { code: Code::FunctionInvalidResponse, message, .. }) => {
                message.clear();
                events
            }
            _ => events,
        }
    };
    // Without a type the first bytes of a `default` answer are its type, so their number counts.
    let guessed = row.format == Format::Default || row.options.cold;
    if !guessed && settled(&whole) != settled(&cut) {
        return Err(format!("cuts change it:\n{}\n{}", render(&whole), render(&cut)));
    }
    if let Event::Failed { code, .. } = last {
        let fair = matches!(
            code,
            Code::FunctionInvalidResponse
                | Code::FunctionFailed
                | Code::FunctionTimeout
                | Code::ResponseTooLarge
                | Code::ResponseHeadersTooLarge
        );
        if !fair {
            return Err(format!("{code:?} is not the function's"));
        }
    }
    for event in rest {
        if let Event::Head { head, .. } = event
            && let Err(problem) = head.headers.check()
            && row.format != Format::HttpStream
        {
            return Err(format!("a header that no client may see: {problem:?}"));
        }
    }
    // While the channel is open the answer may not be over; once it is, the end of file adds nothing but that.
    let open = decode_with(cuts, false);
    if open.last().is_some_and(is_last) && settled(&open) != settled(&cut) {
        return Err(format!("the end changes it:\n{}\n{}", render(&open), render(&cut)));
    }
    Ok(open)
}

/// What holds for every request: how its body is cut changes nothing that the function sees, and a fault blames the caller.
pub fn check_request(row: &Row, cuts: &[usize]) -> Result<Option<Fault>, String> {
    let codec = row.codec();
    let (whole, text) = row.encode(&codec, &[]);
    let (cut, cut_text) = row.encode(&codec, cuts);
    let fault = whole.fault().cloned();
    if fault.is_some() != cut.fault().is_some() {
        return Err(format!("cuts change the fault: {fault:?}, {:?}", cut.fault()));
    }
    if let Some(fault) = &fault {
        return match fault.code {
            Code::InvalidRequest | Code::RequestTooLarge => Ok(Some(fault.clone())),
            other => Err(format!("{other:?} is not the caller's")),
        };
    }
    let chunked = !row.whole && matches!(row.format, Format::Http | Format::JsonHttp | Format::HttpStream);
    if !chunked && text != cut_text {
        return Err(format!("cuts change it:\n{}\n{}", text.escape_ascii(), cut_text.escape_ascii()));
    }
    let lines = text.iter().filter(|b| **b == b'\n').count();
    if matches!(row.format, Format::Json | Format::CloudEvent | Format::Mless) {
        if lines != 1 || text.last() != Some(&b'\n') {
            return Err(format!("it is not one line: {}", text.escape_ascii()));
        }
        let told = std::str::from_utf8(&text).map_err(|e| format!("{e}: {}", text.escape_ascii()))?;
        serde_json::from_str::<serde::de::IgnoredAny>(told).map_err(|e| format!("{e}: {told}"))?;
    }
    Ok(None)
}

fn row(format: Format, name: &'static str, method: &str, url: &str, kind: &str, body: &[u8]) -> Row {
    let mut head = RequestHead { method: method.into(), url: url.into(), ..Default::default() };
    if !kind.is_empty() {
        head.headers.push("content-type", kind.to_owned());
    }
    Row {
        name,
        format,
        options: FormatOptions::default(),
        head,
        trace: TraceContext::default(),
        body: body.to_vec(),
        whole: true,
    }
}

impl Row {
    fn options(mut self, change: impl FnOnce(&mut FormatOptions)) -> Self {
        change(&mut self.options);
        self
    }

    fn header(mut self, name: &str, value: &'static str) -> Self {
        self.head.headers.push(name, value);
        self
    }

    fn streamed(mut self) -> Self {
        self.whole = false;
        self
    }

    fn traced(mut self) -> Self {
        self.trace.parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into();
        self.trace.state = "a=b".into();
        self.header("traceparent", "00-forged").header("tracestate", "forged")
    }
}

const URL: &str = "http://fleet.example:7080/t/demo/echo?name=Ada&name=Bob&greeting=hi%20there";
const JSON: &str = "application/json";
const EVENT: &str = "application/cloudevents+json; charset=utf-8";

/// Every call whose bytes are written down under `tests/golden`.
pub fn rows() -> Vec<Row> {
    use Format::*;
    let v1 = |o: &mut FormatOptions| o.cloudevents = CloudEvents::V1_0;
    let event_1_0 =
        br#" { "specversion" : "1.0", "id":"A-1", "source":"/ci", "type":"build.done", "subject":"x y",
        "time":"2026-01-02T03:04:05Z", "myext":7, "fncallid":"forged", "traceparent":"of the event",
        "data": {"n": 1.50, "u": "\u00e9"} } "#;
    let event_0_1 = br#"{"cloudEventsVersion":"0.1","eventID":"A-1","source":"/ci","eventType":"build.done",
        "extensions":{"mine":[1], "deadline":"forged"}, "contentType":"application/json", "data":{"n":1}}"#;
    let trigger = |mut row: Row| {
        row.head.intent = Intent::HttpRequest;
        row
    };
    vec![
        row(Default, "plain", "POST", URL, JSON, b"{}").header("x-two", "1").header("X-Two", "2"),
        row(Default, "open", "GET", URL, "text/plain", b"").options(|o| o.open_function_variables = true),
        row(Http, "plain", "PUT", URL, "text/plain", b"hello")
            .header("x-two", "1")
            .header("X-Two", "2")
            .header("connection", "close")
            .header("content-length", "999")
            .header("fn-call-id", "forged")
            .header("FN_DEADLINE", "forged")
            .header("fn-mine", "kept")
            .traced(),
        row(Http, "head", "HEAD", "/x", "", b""),
        row(Http, "chunked", "POST", "", "application/octet-stream", b"\x00\x01\xff").streamed(),
        row(Http, "odd", "P OST", "/a b\r\nX-Injected: 1", "", b"").header("host", "from.header"),
        row(Http, "open", "POST", URL, JSON, b"{}").options(|o| o.open_function_variables = true),
        row(Json, "plain", "POST", URL, "text/plain", "a \"quoted\" line\nand ünïcode\u{1}".as_bytes())
            .header("x-two", "1")
            .header("X-Two", "2")
            .header("te", "trailers")
            .traced(),
        row(Json, "empty", "GET", "", "", b""),
        row(Json, "streamed", "POST", "/", JSON, br#"{"a":1}"#).streamed(),
        row(Json, "base64", "POST", "/", "image/png", b"\x89PNG\r\n").options(|o| o.base64_bodies = true),
        row(Json, "binary", "POST", "/", "image/png", b"\x89PNG\r\n"),
        row(JsonHttp, "plain", "POST", URL, JSON, b"{}").header("X-One", "1"),
        row(JsonHttp, "chunked", "POST", "/", "", b"0123456789abcdef!").streamed(),
        row(JsonHttp, "cold", "POST", URL, JSON, b"{}").streamed().options(|o| o.cold = true),
        row(CloudEvent, "0.1-json", "POST", URL, JSON, b" {\"a\" : [1, 2]}\n").header("x-one", "1"),
        row(CloudEvent, "0.1-empty", "GET", "/", "", b""),
        row(CloudEvent, "0.1-text", "POST", "/", "text/plain", b"not JSON"),
        row(CloudEvent, "0.1-event", "POST", URL, EVENT, event_0_1),
        row(CloudEvent, "0.1-later", "POST", URL, EVENT, event_1_0),
        row(CloudEvent, "1.0-json", "POST", URL, JSON, b" {\"a\" : [1, 2]}\n")
            .header("x-one", "1")
            .traced()
            .options(v1),
        row(CloudEvent, "1.0-empty", "GET", "", "", b"").options(v1),
        row(CloudEvent, "1.0-text", "POST", "/a b", "text/plain; charset=utf-8", "grüße".as_bytes())
            .streamed()
            .options(v1),
        row(CloudEvent, "1.0-bytes", "POST", "/", "", b"\x00\xff").options(v1),
        row(CloudEvent, "1.0-event", "POST", URL, EVENT, event_1_0).traced().options(v1),
        row(CloudEvent, "1.0-earlier", "POST", URL, EVENT, event_0_1).options(v1),
        row(CloudEvent, "1.0-binary", "POST", URL, JSON, b"{\"a\":1}")
            .header("CE-SpecVersion", "1.0")
            .header("ce-id", "A-1")
            .header("ce-source", "/ci")
            .header("ce-type", "build.done")
            .header("ce-subject", "gr%C3%BC%C3%9Fe")
            .header("ce-quoted", "\"a \\\"b\\\"\"")
            .header("x-one", "1")
            .options(v1),
        row(CloudEvent, "1.0-binary-bad", "POST", URL, JSON, b"{}")
            .header("ce-specversion", "1.0")
            .header("ce-id", "A-1")
            .options(v1),
        row(HttpStream, "invoke", "POST", URL, JSON, b"{}").header("x-one", "1").traced(),
        trigger(row(HttpStream, "trigger", "PUT", URL, JSON, b"{}").streamed().header("x-one", "1")),
        row(Mless, "plain", "POST", "", JSON, b" {\"a\": 1}").options(|o| o.handler = "func.handler".into()),
        row(Mless, "empty", "POST", "", "", b"").options(|o| o.handler = "func.handler".into()),
        row(Mless, "context", "POST", "", JSON, b"[1]")
            .header("lambda-runtime-aws-request-id", "8476a536-e9f4-11e8-9739-2dfe598c3fcd")
            .header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:eu-west-1:1:function:f")
            .header("X-Amz-Client-Context", "eyJjdXN0b20iOiB7ImsiOiAidiJ9fQ==")
            .header(
                "Lambda-Runtime-Cognito-Identity",
                "{\"cognitoIdentityId\": \"i\", \"cognitoIdentityPoolId\": \"p\"}",
            )
            .traced()
            .options(|o| o.handler = "func.handler".into()),
        row(Mless, "not-json", "POST", "", JSON, b"{").options(|o| o.handler = "func.handler".into()),
        row(Mless, "latin-1", "POST", "", JSON, b"{\"a\":\"\xe9\"}")
            .options(|o| o.handler = "func.handler".into()),
        row(Mless, "more", "POST", "", JSON, b"{} {}")
            .streamed()
            .options(|o| o.handler = "func.handler".into()),
    ]
}

/// Answers that are written down for a row: name and bytes, in the order of their names.
pub fn answers(row: &Row) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(golden(row.format)).expect("the format has golden files") {
        let path = entry.expect("the folder can be read").path();
        let name = path.file_name().and_then(|n| n.to_str()).expect("names are text").to_owned();
        let answer = name.strip_suffix(".out").and_then(|n| n.split_once('+'));
        if answer.is_some_and(|(of, _)| of == row.name) {
            found.push((name[..name.len() - 4].to_owned(), std::fs::read(&path).expect("files can be read")));
        }
    }
    found.sort();
    found
}
