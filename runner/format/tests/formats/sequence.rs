//! A container's life as its carrier sees it: the greeting, then one call after the other over the same bytes. What belongs to one
//! call never reaches another.

use std::collections::BTreeMap;

use bytes::BytesMut;
use stoker_core::Code;
use stoker_core::function::Format;
use stoker_format::{After, Codec, Event, Startup, quiet};

use crate::kit::{Row, rows};

fn hot() -> Vec<(Row, &'static str)> {
    let answer = |row: &Row| match row.format {
        Format::Http => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        Format::Json => "{\"body\":\"ok\"}\n",
        Format::JsonHttp => "{\"body_length\":2}\n\nok",
        Format::CloudEvent if row.name.starts_with('0') => {
            "{\"contentType\":\"text/plain\",\"data\":\"ok\"}\n"
        }
        Format::CloudEvent => {
            "{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/\",\"type\":\"t\",\"datacontenttype\":\"text/plain\",\"data\":\"ok\"}"
        }
        Format::Mless => "{\"invokeid\":\"0190163d8694739baea5966c26f8ad91\",\"result\":\"ok\"}\n\n",
        _ => unreachable!("it has no stream of calls on STDIN"),
    };
    let names = ["plain", "0.1-json", "1.0-json"];
    let rows = rows().into_iter().filter(|r| names.contains(&r.name) && r.format != Format::Default);
    rows.map(|row| {
        let answer = answer(&row);
        (row, answer)
    })
    .collect()
}

fn drain(row: &Row, codec: &Codec, input: &mut BytesMut, eof: bool) -> Vec<Event> {
    let (mut exchange, _) = row.encode(codec, &[]);
    std::iter::from_fn(|| exchange.decode(input, eof)).collect()
}

#[test]
fn one_call_after_the_other() {
    for (row, answer) in hot() {
        let codec = row.codec();
        let mut input = BytesMut::new();
        for _ in 0..3 {
            // Space that came meanwhile is not noise.
            input.extend_from_slice(b" \r\n");
            assert!(quiet(&mut input));
            input.extend_from_slice(answer.as_bytes());
            let events = drain(&row, &codec, &mut input, false);
            assert!(matches!(events.first(), Some(Event::Head { .. })), "{} {events:?}", row.format);
            assert_eq!(events.last(), Some(&Event::End(After::Reuse)), "{} {events:?}", row.format);
        }
        input.extend_from_slice(b"\n late");
        assert!(!quiet(&mut input));
    }
}

#[test]
fn a_container_whose_output_ended_takes_no_other_call() {
    for (row, answer) in hot() {
        let mut input = BytesMut::from(answer);
        let events = drain(&row, &row.codec(), &mut input, true);
        assert_eq!(events.last(), Some(&Event::End(After::Destroy)), "{} {events:?}", row.format);
    }
}

#[test]
fn what_comes_before_the_request_is_whole_answers_nothing() {
    for (row, answer) in hot() {
        let codec = row.codec();
        row.with(|request| {
            let mut exchange = codec.begin(request);
            let mut out = BytesMut::new();
            exchange.encode_head(request, &mut out);
            let mut input = BytesMut::from(answer);
            let events: Vec<_> = std::iter::from_fn(|| exchange.decode(&mut input, false)).collect();
            if matches!(row.format, Format::Http | Format::JsonHttp) {
                // Both stream, so a function may answer early; but what stands in its input then is not the next call.
                assert_eq!(events.last(), Some(&Event::End(After::Destroy)), "{} {events:?}", row.format);
            } else {
                let [Event::Failed { code, after, .. }] = &events[..] else {
                    panic!("{} {events:?}", row.format)
                };
                assert_eq!((*code, *after), (Code::FunctionInvalidResponse, After::Destroy));
            }
        });
    }
}

#[test]
fn a_request_that_cannot_be_written_says_so_and_writes_nothing() {
    let all = rows();
    let faulty = all
        .iter()
        .filter(|r| ["binary", "0.1-text", "1.0-binary-bad", "not-json", "1.0-earlier"].contains(&r.name));
    for row in faulty {
        let (mut exchange, out) = row.encode(&row.codec(), &[]);
        let fault = exchange.fault().cloned().unwrap();
        assert_eq!(fault.code, Code::InvalidRequest, "{}", row.name);
        // What was found in the head or the body left what was written before; a carrier that looks writes none of it.
        assert!(out.last() != Some(&b'\n'), "{}", row.name);
        let mut input = BytesMut::from("{\"body\":\"an answer to nothing\"}");
        let event = exchange.decode(&mut input, false);
        let expected = Event::Failed { code: fault.code, message: fault.message, after: After::Destroy };
        assert_eq!(event, Some(expected), "{}", row.name);
        assert_eq!(exchange.decode(&mut input, true), None);
    }
}

fn startup() -> Startup {
    let row = hot().into_iter().find(|(r, _)| r.format == Format::Mless).unwrap().0;
    let env = BTreeMap::from([("A".to_owned(), "b \"c\"".to_owned()), ("D".to_owned(), String::new())]);
    row.codec().startup(&env).unwrap()
}

#[test]
fn mless_greets_first() {
    let mut greeting = startup();
    let text = greeting.encode();
    assert_eq!(
        text,
        "{\"handler\":\"func.handler\",\"env\":{\"A\":\"b \\\"c\\\"\",\"D\":\"\"}}\n".as_bytes()
    );
    for (said, result) in [
        ("{\"ok\":true}\n", Some(Ok(()))),
        (" {\"OK\": true, \"x\": 1}\r\n\r\n", Some(Ok(()))),
        ("{\"ok\":", None),
        ("", None),
        ("{\"ok\":false}", Some(Err("runner initialization failed"))),
        ("{\"ok\":1}", Some(Err("the function's startup answer has no `ok` that is true or false"))),
        ("{}", Some(Err("the function's startup answer has no `ok` that is true or false"))),
        ("{\"ok\":true}{", Some(Err("the function wrote more than its startup answer: \"{\""))),
        (
            "hello",
            Some(Err("at its start: the function's answer is not valid JSON: it is no object but \"hello\"")),
        ),
    ] {
        let mut input = BytesMut::from(said);
        let found = startup().decode(&mut input, false);
        let found = found.map(|r| {
            r.map_err(|f| {
                assert_eq!(f.code, Code::FunctionInitFailed);
                f.message
            })
        });
        assert_eq!(found, result.map(|r| r.map_err(str::to_owned)), "{said}");
    }
    let mut cut = startup();
    let mut input = BytesMut::new();
    for byte in b"{\"ok\":true" {
        input.extend_from_slice(&[*byte]);
        assert_eq!(cut.decode(&mut input, false), None);
    }
    assert!(matches!(cut.decode(&mut input, true), Some(Err(_))));
    for other in hot().iter().filter(|(r, _)| r.format != Format::Mless) {
        assert!(other.0.codec().startup(&BTreeMap::new()).is_none());
    }
}

#[test]
fn mless_tells_what_a_call_cost() {
    let row = hot().into_iter().find(|(r, _)| r.format == Format::Mless).unwrap().0;
    let (mut exchange, _) = row.encode(&row.codec(), &[]);
    assert!(exchange.report().is_none());
    let mut input = BytesMut::from(
        "{\"invokeid\":\"0190163d8694739baea5966c26f8ad91\",\"errors\":true,\"errortype\":\"Oops\",\"result\":{\"m\":1},\
         \"billing\":{\"duration\":100.0,\"memory\":\"128\",\"Used\":31}}",
    );
    let event = exchange.decode(&mut input, false);
    let expected =
        Event::Failed { code: Code::FunctionFailed, message: "{\"m\":1}".to_owned(), after: After::Reuse };
    assert_eq!(event, Some(expected));
    let id = "0190163d8694739baea5966c26f8ad91";
    assert_eq!(
        exchange.report().unwrap().lines(),
        [
            format!(
                "REPORT RequestId: {id} Duration: 100.00 ms Billed Duration: 200 ms Memory Size: 128 MB Max Memory Used: 31 MB"
            ),
            "{\"m\":1} (Oops)".to_owned(),
        ]
    );
}

/// The usual function of events changes the one that it got, and gives it back: with what the platform told in it.
#[test]
fn an_event_that_comes_back_says_nothing_that_it_was_told() {
    for name in ["1.0-json", "1.0-binary"] {
        let row = rows().into_iter().find(|r| r.format == Format::CloudEvent && r.name == name).unwrap();
        let (mut exchange, out) = row.encode(&row.codec(), &[]);
        let mut input = out.clone();
        let event = exchange.decode(&mut input, false);
        let Some(Event::Head { head, .. }) = event else { panic!("{event:?}") };
        let names: Vec<_> = head.headers.0.iter().map(|h| h.name.to_ascii_lowercase()).collect();
        assert!(names.contains(&"content-type".to_owned()), "{names:?}");
        assert!(!names.iter().any(|n| n == "x-one" || n.starts_with("ce-fn")), "{name} {names:?}");
    }
}
