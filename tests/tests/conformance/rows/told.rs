//! What a function is told of its call, and what it finds.

use stoker_core::error::Code;
use stoker_tests::calls::Answer;

use super::{header, same, text};
use crate::columns::ALL;
use crate::columns::Column::{self, *};
use crate::table::Content::Is;
use crate::table::Next::*;
use crate::table::{Outcome, Row, answers, cell, do_, row};

const EVENT: &str = r#"{"cloudEventsVersion":"0.1","eventID":"e-1","source":"/there","eventType":"x.y",
    "contentType":"application/json","extensions":{"own":"kept"},"data":{"do":"report"}}"#;

const EVENT_1_0: &str = r#"{"specversion":"1.0","id":"e-1","source":"/there","type":"x.y","own":"kept",
    "datacontenttype":"application/json","data":{"do":"report"}}"#;

const EVENT_FOR_OTHERS: &str = r#"{"cloudEventsVersion":"0.1","eventID":"e-3",
    "source":"/there","eventType":"x.y",
    "contentType":"application/json","data":{"do":"report"}}"#;

pub static ROWS: &[Row] = &[
    row(
        "told",
        "is told the call's id, its deadline, its headers",
        do_("report").headers(&[("X-Two", "2")]),
        &[answers(ALL, Is(told))],
    ),
    row(
        "environment",
        "finds the environment of its format and its own",
        do_("report"),
        &[answers(ALL, Is(environment))],
    ),
    row(
        "client-context",
        "is told the client's context",
        do_("report")
            .headers(&[("X-Amz-Client-Context", "eyJjdXN0b20iOnsiZm9vIjoiYmFyIiwiYmF6IjoxMjN9fQ==")]),
        &[answers(
            &[Mless],
            Is(|answer, _| {
                let custom = &answer.json()["told"]["context"]["client_context"]["custom"];
                same(&custom.to_string(), r#"{"foo":"bar","baz":123}"#)
                    .or_else(|_| same(&custom.to_string(), r#"{"baz":123,"foo":"bar"}"#))
            }),
        )],
    ),
    row(
        "event-in",
        "is sent a whole event",
        text(EVENT, "application/cloudevents+json"),
        &[answers(
            &[Event01],
            Is(|answer, _| {
                header(answer, "content-type", "application/cloudevents+json")?;
                let told = &answer.json()["data"]["told"];
                let extensions = &told["extensions"];
                let seen =
                    [&told["eventID"], &told["source"], &extensions["own"], &extensions["protocol"]["type"]];
                same(
                    &format!("{seen:?}"),
                    r#"[String("e-1"), String("/there"), String("kept"), String("http")]"#,
                )
            }),
        )],
    ),
    row(
        "event-1.0-in",
        "is sent a whole event of version 1.0",
        text(EVENT_1_0, "application/cloudevents+json"),
        &[
            cell(&[Event01], Outcome::Error(Code::InvalidRequest, "0.1"), Untouched),
            answers(
                &[Event10],
                Is(|answer, _| {
                    header(answer, "content-type", "application/cloudevents+json")?;
                    let told = &answer.json()["data"]["told"];
                    let seen = [&told["id"], &told["source"], &told["type"], &told["own"]];
                    same(
                        &format!("{seen:?}"),
                        r#"[String("e-1"), String("/there"), String("x.y"), String("kept")]"#,
                    )
                }),
            ),
        ],
    ),
    row(
        "event-headers-in",
        "is sent an event whose attributes are headers",
        do_("report").headers(&[
            ("ce-specversion", "1.0"),
            ("ce-id", "e-2"),
            ("ce-source", "/there"),
            ("ce-type", "x.y"),
        ]),
        &[answers(
            &[Event10],
            Is(|answer, _| {
                header(answer, "ce-specversion", "1.0")?;
                header(answer, "ce-type", "test.answer")?;
                same(&answer.json()["told"]["id"].to_string(), "\"e-2\"")
            }),
        )],
    ),
    row(
        "event-by-content-type",
        "is of another format, and gets events as events because it asked for that",
        text(EVENT_FOR_OTHERS, "application/cloudevents+json"),
        &[answers(
            &[Default, Http, Json, JsonHttp, HttpStream],
            Is(|answer, _| {
                header(answer, "content-type", "application/cloudevents+json")?;
                let report = &answer.json()["data"];
                same(&report["env"]["FN_FORMAT"].to_string(), "\"cloudevent\"")?;
                same(&report["told"]["eventID"].to_string(), "\"e-3\"")
            }),
        )],
    )
    .by_content_type(),
];

fn environment(answer: &Answer, column: Column) -> Result<(), String> {
    let report = answer.json();
    let of = |key: &str| report["env"][key].as_str().unwrap_or("nothing").to_owned();
    let format = match column {
        Json | JsonBase64 => "json",
        JsonHttp | JsonHttpCold => "json-http",
        Event01 | Event10 => "cloudevent",
        other => other.name(),
    };
    for (key, value) in [
        ("MyEnv", "4=4"),
        ("FN_FORMAT", format),
        ("FN_MEMORY", "64"),
        ("FN_TYPE", "sync"),
        ("FN_PATH", "/invoke"),
        ("FN_APP_NAME", "t"),
        ("FN_NAME", "environment"),
        ("FN_FN_NAME", "environment"),
        ("HOME", "/tmp"),
    ] {
        same(&of(key), value).map_err(|why| format!("{key}: {why}"))?;
    }
    if of("FN_FN_ID").len() != 26 || of("FN_APP_ID").len() != 26 {
        return Err(format!("ids: {} {}", of("FN_FN_ID"), of("FN_APP_ID")));
    }
    match (column, of("FN_LISTENER").starts_with("unix:")) {
        (HttpStream, true) => Ok(()),
        (HttpStream, false) => Err("FN_LISTENER is missing".to_owned()),
        (_, false) => Ok(()),
        (_, true) => Err("FN_LISTENER is there".to_owned()),
    }
}

fn told(answer: &Answer, column: Column) -> Result<(), String> {
    let report = answer.json();
    let text = |key: &str| report[key].as_str().unwrap_or_default().to_owned();
    same(&text("call_id"), &answer.call_id)?;
    let deadline = text("deadline");
    let form = match column {
        Mless | Lambda => deadline.len() == 13 && deadline.bytes().all(|b| b.is_ascii_digit()),
        HttpStream => deadline.len() == 20 && deadline.ends_with('Z'),
        _ => deadline.len() == 24 && deadline.ends_with('Z') && deadline.as_bytes()[19] == b'.',
    };
    if !form {
        return Err(format!("the deadline is {deadline:?}"));
    }
    if !matches!(column, Mless | Lambda) {
        let seen = report["headers"].to_string().to_ascii_lowercase();
        if !seen.contains(r#"["x-two","2"]"#) {
            return Err(format!("the header is not in {seen}"));
        }
        same(&text("content_type"), "application/json")?;
    }
    Ok(())
}
