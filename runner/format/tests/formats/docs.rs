//! The requests and answers that `docs/formats.md` shows are what the codecs write and read.
//!
//! A block's info string says what it is: its language, `request` or `answer`, and what tells several apart.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::BytesMut;
use stoker_core::function::{CloudEvents, Format, FormatOptions};
use stoker_core::{RequestHead, TraceContext};
use stoker_format::Startup;

use crate::kit::{Row, decode, render};

/// The blocks of the page: section and info string, and the text.
fn blocks() -> BTreeMap<(String, String), String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/formats.md");
    let page = std::fs::read_to_string(page).unwrap();
    let mut found = BTreeMap::new();
    let mut section = "";
    let mut open: Option<(&str, String)> = None;
    for line in page.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(info)) => open = Some((info, String::new())),
            (None, None) => {
                section = line.strip_prefix("## ").map_or(section, |title| title.trim_matches('`'));
            }
            (Some(_), Some(_)) => {
                let (info, text) = open.take().unwrap();
                let before = found.insert((section.to_owned(), info.to_owned()), text);
                assert_eq!(before, None, "{section} has two blocks `{info}`");
            }
            (Some((_, text)), None) => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    found
}

/// As it is on the wire: JSON is broken into lines on the page only, HTTP ends its lines in its own way, a body has no line break
/// behind it.
fn wire(info: &str, text: &str) -> String {
    let (head, body) = text.split_once("\n\n").map_or((text, None), |(head, body)| (head, Some(body)));
    let body = body.map(|body| body.trim_end_matches('\n'));
    match (info.split(' ').next(), body) {
        (Some("json"), None) => format!("{}\n", joined(head)),
        (Some("json"), Some(body)) => format!("{}\n\n{body}", joined(head)),
        (Some("http"), Some(body)) => format!("{}\r\n\r\n{body}", head.replace('\n', "\r\n")),
        _ => head.trim_end_matches('\n').to_owned(),
    }
}

fn joined(json: &str) -> String {
    json.lines().map(str::trim).collect()
}

/// The call of the page.
fn call(format: Format, change: impl FnOnce(&mut FormatOptions)) -> Row {
    let (kind, body) = match format {
        Format::CloudEvent | Format::Mless => ("application/json", r#"{"n":1}"#),
        _ => ("text/plain", "hello"),
    };
    let mut head = RequestHead {
        method: "POST".into(),
        url: "http://fleet.example:7080/t/demo/echo?name=Ada".into(),
        ..Default::default()
    };
    head.headers.push("content-type", kind);
    let mut options = FormatOptions::default();
    change(&mut options);
    Row {
        name: "page",
        format,
        options,
        head,
        trace: TraceContext::default(),
        body: body.into(),
        whole: true,
    }
}

/// What is written for it, as the page shows it.
fn written(row: &Row, info: &str) -> String {
    let codec = row.codec();
    if info.contains("environment") {
        let env = row.with(|request| codec.environment(request));
        // Without what the plain format has: the page says that one stands beside the other.
        let older = |name: &str| !name.starts_with("FN_");
        let wanted = env.iter().filter(|(name, _)| older(name) == row.options.open_function_variables);
        return wanted.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("\n");
    }
    let (exchange, out) = row.encode(&codec, &[]);
    assert_eq!(exchange.fault(), None, "{info}");
    String::from_utf8(out.to_vec()).unwrap()
}

#[test]
fn what_the_page_shows_is_what_functions_see() {
    let mut page = blocks();
    let mut take = |section: &str, info: &str| {
        let block = page.remove(&(section.to_owned(), info.to_owned()));
        wire(info, &block.unwrap_or_else(|| panic!("{section} has no block `{info}`")))
    };
    let plain = |format| call(format, |_| {});
    let base64 = || call(Format::Json, |o| o.base64_bodies = true);
    let events = || call(Format::CloudEvent, |o| o.cloudevents = CloudEvents::V1_0);
    let open = || call(Format::Default, |o| o.open_function_variables = true);
    for (row, info) in [
        (plain(Format::Default), "text request"),
        (plain(Format::Default), "text environment"),
        (open(), "text environment open_function_variables"),
        (plain(Format::Http), "http request"),
        (plain(Format::Json), "json request"),
        (base64(), "json request base64_bodies"),
        (plain(Format::JsonHttp), "json request"),
        (plain(Format::CloudEvent), "json request 0.1"),
        (events(), "json request 1.0"),
        (plain(Format::HttpStream), "http request"),
        (plain(Format::Mless), "json request"),
    ] {
        assert_eq!(written(&row, info), take(row.format.as_str(), info), "{} {info}", row.format);
    }

    let json = "Content-Type: application/json";
    let text = "Content-Type: text/plain";
    for (row, info, status, headers, body) in [
        (plain(Format::Http), "http answer", 201, vec![json], "{}"),
        (plain(Format::Json), "json answer", 201, vec!["X-A: 1", "X-A: 2", text], "hello, you"),
        (base64(), "json answer base64_bodies", 200, vec!["Content-Type: image/png"], r"\xff\x00\xff"),
        (plain(Format::JsonHttp), "json answer", 201, vec!["X-A: 1", text], "hello"),
        (plain(Format::CloudEvent), "json answer 0.1", 201, vec!["X-A: 1", text], "hello"),
        (events(), "json answer 1.0", 201, vec!["X-A: 1", text], "hello"),
        (plain(Format::Mless), "json answer", 200, vec![json], r#"{\"hello\":\"Ada\"}"#),
    ] {
        let answer = take(row.format.as_str(), info);
        let told = render(&decode(&mut row.encode(&row.codec(), &[]).0, answer.as_bytes(), &[], false));
        // How long the body is stands behind the status.
        let first = told.lines().next().unwrap();
        let mut expected = first.to_owned();
        assert!(first.starts_with(&format!("head {status} ")), "{} {info}: {told}", row.format);
        headers.iter().for_each(|header| expected += &format!("\n  {header}"));
        expected += &format!("\nbody {body}\nend Reuse\n");
        assert_eq!(told, expected, "{} {info}", row.format);
    }

    let env = BTreeMap::from([("GREETING".to_owned(), "hi".to_owned())]);
    let mut startup = Startup::new("func.handler", &env);
    assert_eq!(startup.encode(), take("mless", "json startup"));
    let mut answer = BytesMut::from(take("mless", "json started").as_bytes());
    assert_eq!(startup.decode(&mut answer, false), Some(Ok(())));

    assert!(page.is_empty(), "blocks that nothing compares: {:?}", page.keys());
}
