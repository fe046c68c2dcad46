//! What is read is bounded, whatever a function or a caller sends.

use bytes::BytesMut;
use stoker_core::Code;
use stoker_core::function::Format;
use stoker_format::{After, Event, Limits, MAX_HEAD, MAX_REASON};

use crate::kit::{Row, decode, rows};

fn row(format: Format, name: &str) -> Row {
    rows().into_iter().find(|r| r.format == format && r.name == name).unwrap()
}

fn failed(events: &[Event]) -> Option<Code> {
    match events.last() {
        Some(Event::Failed { code, after: After::Destroy, .. }) => Some(*code),
        _ => None,
    }
}

/// An answer of so many bytes in each format that keeps it whole.
fn whole(format: Format, bytes: usize) -> Vec<u8> {
    let (start, end) = match format {
        Format::Json => ("{\"body\":\"", "\"}"),
        Format::CloudEvent => ("{\"contentType\":\"text/plain\",\"data\":\"", "\"}"),
        Format::Mless => ("{\"invokeid\":\"0190163d8694739baea5966c26f8ad91\",\"result\":\"", "\"}"),
        _ => unreachable!("{format} keeps nothing whole"),
    };
    let mut text = start.as_bytes().to_vec();
    text.resize(bytes - end.len(), b'x');
    text.extend_from_slice(end.as_bytes());
    text
}

#[test]
fn whole_answers_are_limited_to_the_byte() {
    for (format, name) in
        [(Format::Json, "plain"), (Format::CloudEvent, "0.1-json"), (Format::Mless, "plain")]
    {
        let row = row(format, name);
        let codec = row.codec().limits(Limits { message: 1000, ..Default::default() });
        let run =
            |bytes| decode(&mut row.encode(&codec, &[]).0, &whole(format, bytes), &[10, 500, 999], false);
        assert!(matches!(run(1000).last(), Some(Event::End(After::Reuse))), "{format}");
        assert_eq!(failed(&run(1001)), Some(Code::ResponseTooLarge), "{format}");
        // One that never ends is over long before.
        let endless = &whole(format, 5000)[..4000];
        let events = decode(&mut row.encode(&codec, &[]).0, endless, &[1000, 1001], false);
        assert_eq!(failed(&events), Some(Code::ResponseTooLarge), "{format}");
    }
}

#[test]
fn an_endless_answer_is_not_kept() {
    // A carrier reads on while there is no event: none may hold more than its limit and one read.
    for (format, name, start, most) in [
        (Format::Http, "plain", "HTTP/1.1 200 OK\r\nX: ", MAX_HEAD),
        (Format::HttpStream, "invoke", "HTTP/1.1 200 OK\r\nX: ", MAX_HEAD),
        (Format::Http, "plain", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", 4096),
        (Format::Http, "plain", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nT: ", 4096),
        (Format::JsonHttp, "plain", "{\"x\":\"", MAX_HEAD),
        (Format::Json, "plain", "{\"body\":\"", 6 << 20),
        (Format::CloudEvent, "0.1-json", "{\"data\":\"", 6 << 20),
        (Format::Mless, "plain", "{\"result\":\"", 6 << 20),
    ] {
        let row = row(format, name);
        let mut exchange = row.encode(&row.codec(), &[]).0;
        let mut input = BytesMut::from(start);
        let read = [b'a'; 8192];
        let ended = std::iter::repeat_with(|| {
            input.extend_from_slice(&read);
            let held = input.len();
            let mut last = None;
            while let Some(event) = exchange.decode(&mut input, false) {
                last = Some(event);
            }
            (last, held)
        })
        .take(2000)
        .find(|(last, held)| {
            assert!(*held <= most + start.len() + 2 * read.len(), "{format} {start} holds {held}");
            matches!(last, Some(Event::Failed { .. }))
        });
        assert!(ended.is_some(), "{format} {start} never ends");
    }
}

#[test]
fn space_is_not_kept() {
    for (format, name) in [(Format::Http, "plain"), (Format::JsonHttp, "plain"), (Format::Json, "plain")] {
        let row = row(format, name);
        let mut exchange = row.encode(&row.codec(), &[]).0;
        let mut input = BytesMut::from(&[b'\n'; 100_000][..]);
        assert_eq!(exchange.decode(&mut input, false), None);
        assert!(input.is_empty(), "{format} keeps {} bytes of space", input.len());
    }
}

#[test]
fn bodies_are_limited_where_that_is_asked() {
    let limits = Limits { body: 10, ..Default::default() };
    for (format, name, fits, over) in [
        (
            Format::Http,
            "plain",
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789",
            "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n",
        ),
        (
            Format::Http,
            "plain",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n0123456789\r\n1\r\n0",
        ),
        (Format::JsonHttp, "plain", "{\"body_length\":10}\n\n0123456789", "{\"body_length\":11}\n\n"),
        (Format::Json, "plain", "{\"body\":\"0123456789\"}", "{\"body\":\"01234567890\"}"),
        (
            Format::HttpStream,
            "invoke",
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789",
            "HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n",
        ),
    ] {
        let row = row(format, name);
        let codec = row.codec().limits(limits);
        let run = |text: &str| decode(&mut row.encode(&codec, &[]).0, text.as_bytes(), &[], false);
        assert!(matches!(run(fits).last(), Some(Event::End(After::Reuse))), "{format} {fits}");
        assert_eq!(failed(&run(over)), Some(Code::ResponseTooLarge), "{format} {over}");
    }
}

#[test]
fn headers_are_limited() {
    let many = r#""X":["a"],"#.repeat(300);
    let large = format!(r#""X":["{}"],"#, "a".repeat(MAX_HEAD));
    let event = r#"{"specversion":"1.0","id":"1","source":"/","type":"t","fnheaders":"#;
    for headers in [&many, &large] {
        let object = format!("{{{}}}", headers.trim_end_matches(','));
        let text = serde_json::to_string(&object).unwrap();
        for (format, name, answer) in [
            (Format::Json, "plain", format!("{{\"protocol\":{{\"headers\":{object}}}}}")),
            (
                Format::CloudEvent,
                "0.1-json",
                format!("{{\"extensions\":{{\"protocol\":{{\"headers\":{object}}}}}}}"),
            ),
            (Format::CloudEvent, "1.0-json", format!("{event}{text}}}")),
            (Format::JsonHttp, "plain", format!("{{\"body_length\":0,\"headers\":{object}}}\n\n")),
        ] {
            let row = row(format, name);
            let events = decode(&mut row.encode(&row.codec(), &[]).0, answer.as_bytes(), &[], false);
            assert_eq!(failed(&events), Some(Code::ResponseHeadersTooLarge), "{format} {name}");
        }
    }
}

#[test]
fn what_a_failure_says_is_cut() {
    let row = row(Format::Mless, "plain");
    let answer = format!(
        "{{\"invokeid\":\"0190163d8694739baea5966c26f8ad91\",\"errors\":true,\"result\":\"{}\"}}",
        "é".repeat(MAX_REASON)
    );
    let mut exchange = row.encode(&row.codec(), &[]).0;
    let events = decode(&mut exchange, answer.as_bytes(), &[], false);
    let [Event::Failed { code: Code::FunctionFailed, message, after: After::Reuse }] = &events[..] else {
        panic!("{events:?}");
    };
    assert!(message.len() <= MAX_REASON && message.len() > MAX_REASON - 4, "{}", message.len());
}

#[test]
fn events_that_come_whole_are_limited_on_their_way_in() {
    let mut row = row(Format::CloudEvent, "1.0-event");
    row.body = vec![b' '; 2000];
    let codec = row.codec().limits(Limits { message: 1000, ..Default::default() });
    let (exchange, out) = row.encode(&codec, &[600, 1200]);
    assert_eq!(exchange.fault().map(|f| f.code), Some(Code::RequestTooLarge));
    assert!(out.is_empty());
    // Names are looked up among each other, so their number is bounded as well.
    row.body =
        format!("{{{}}}", (0..300).map(|n| format!("\"a{n}\":1")).collect::<Vec<_>>().join(",")).into();
    let (exchange, _) = row.encode(&row.codec(), &[]);
    assert_eq!(exchange.fault().map(|f| f.code), Some(Code::InvalidRequest));
}

#[test]
fn depth_is_limited() {
    let deep = format!("{{\"x\":{}1{}}}", "[".repeat(200), "]".repeat(200));
    for (format, name) in [
        (Format::Json, "plain"),
        (Format::JsonHttp, "plain"),
        (Format::CloudEvent, "0.1-json"),
        (Format::Mless, "plain"),
    ] {
        let row = row(format, name);
        let events = decode(&mut row.encode(&row.codec(), &[]).0, deep.as_bytes(), &[], false);
        assert_eq!(failed(&events), Some(Code::FunctionInvalidResponse), "{format}");
    }
    let mut row = row(Format::Mless, "plain");
    row.body = deep.into_bytes();
    assert_eq!(row.encode(&row.codec(), &[]).0.fault().map(|f| f.code), Some(Code::InvalidRequest));
}

/// Many read line by line, and some take U+2028 and U+2029 for the end of one.
#[test]
fn a_request_is_one_line_to_any_reader() {
    let text = "a\u{2028}b\u{2029}c\u{2030}\u{2028}".to_owned();
    for (format, name, quoted) in [
        (Format::Json, "plain", false),
        (Format::CloudEvent, "0.1-json", true),
        (Format::CloudEvent, "1.0-json", true),
        (Format::CloudEvent, "1.0-text", false),
        (Format::CloudEvent, "1.0-event", true),
        (Format::Mless, "plain", true),
    ] {
        let mut row = row(format, name);
        row.body = match name {
            _ if !quoted => text.clone(),
            "1.0-event" => format!(
                "{{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/\",\"type\":\"t\",\"data\":\"{text}\"}}"
            ),
            _ => format!("\"{text}\""),
        }
        .into_bytes();
        row.head.headers.push("x-two", text.clone());
        for at in 0..=row.body.len() {
            let (exchange, out) = row.encode(&row.codec(), &[at]);
            assert_eq!(exchange.fault(), None);
            let out = std::str::from_utf8(&out).unwrap();
            assert!(!out.contains(['\u{2028}', '\u{2029}']), "{out}");
            assert!(out.contains("a\\u2028b\\u2029c\u{2030}\\u2028\""), "{at}: {out}");
        }
    }
}
