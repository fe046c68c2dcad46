//! Answers of every kind.

use stoker_core::error::Code;
use stoker_tests::calls::Answer;

use super::{header, large, same, text};
use crate::columns::Column::*;
use crate::columns::{ALL, COLD, MESSAGES, STATUS, STREAMS};
use crate::table::Content::{About, Any, Bytes, Echo, Is, Json as JsonIs};
use crate::table::Flow::*;
use crate::table::Next::*;
use crate::table::{Ask, Body, Outcome, Row, answers, cell, do_, fails, row};

const ALL_BYTES: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut at = 0;
    while at < 256 {
        bytes[at] = at as u8;
        at += 1;
    }
    bytes
};

pub static ROWS: &[Row] = &[
    row("echo", "answers with what it got", do_("echo"), &[answers(ALL, Echo)]),
    row("many", "answers a hundred calls, one after the other", do_("echo"), &[answers(ALL, Echo)])
        .flow(Many(100)),
    row("at-once", "answers ten calls at once", do_("echo"), &[answers(ALL, Echo)]).flow(AtOnce(10)),
    row(
        "escapes",
        "answers with quotes, line breaks, and characters of all lengths",
        text("{\"text\":\"\\\"\\\\\\n\\u0001\u{e9}\u{2028}\u{1f600}\"}", "application/json"),
        &[answers(ALL, JsonIs("{\"text\":\"\\\"\\\\\\n\\u0001\u{e9}\u{2028}\u{1f600}\"}"))],
    ),
    row(
        "no-body-in",
        "answers a call without a body with its body",
        text("", ""),
        &[answers(&[Mless, Lambda], JsonIs("{}")), answers(ALL, Bytes(b""))],
    ),
    row(
        "no-body-out",
        "answers with nothing",
        do_("empty"),
        &[answers(&[Mless], JsonIs("null")), answers(ALL, Bytes(b""))],
    ),
    row(
        "text",
        "echoes text that is not JSON",
        text("hello, you", "text/plain"),
        &[
            cell(&[Event01, Mless, Lambda], Outcome::Error(Code::InvalidRequest, "not JSON"), Untouched),
            answers(ALL, Bytes(b"hello, you")),
        ],
    ),
    row(
        "bytes-in",
        "echoes bytes that are no text",
        Ask { body: Body::Bytes(&ALL_BYTES), content_type: "application/octet-stream", headers: &[] },
        &[
            cell(&[Json], Outcome::Error(Code::InvalidRequest, "UTF-8"), Untouched),
            cell(&[Event01, Mless, Lambda], Outcome::Error(Code::InvalidRequest, "not JSON"), Untouched),
            answers(ALL, Bytes(&ALL_BYTES)),
        ],
    ),
    row(
        "bytes-out",
        "answers with bytes that are no text",
        do_("bytes:256"),
        &[answers(
            &[Default, Http, JsonBase64, JsonHttp, JsonHttpCold, Event10, HttpStream, Lambda],
            Bytes(&ALL_BYTES),
        )],
    ),
    row(
        "large-in",
        "is called with a body of more than a megabyte, of no known length",
        large("report"),
        &[answers(
            ALL,
            Is(|answer, _| {
                let length = answer.json()["body_length"].as_u64().unwrap_or_default();
                if length > 1_200_000 { Ok(()) } else { Err(format!("it read {length} bytes")) }
            }),
        )],
    ),
    row("large-out", "answers with 4 MB", do_("large:4000000"), &[answers(ALL, About(4_000_000))]),
    row(
        "too-large-out",
        "answers with 7 MB",
        do_("large:7000000"),
        &[
            fails(MESSAGES, Code::ResponseTooLarge, "6291456"),
            cell(&[Lambda], Outcome::Error(Code::ResponseTooLarge, "6291556"), Same),
            answers(STREAMS, About(7_000_000)),
        ],
    ),
    row(
        "chunked",
        "answers in chunks",
        do_("chunked,calls"),
        &[answers(&[Http, JsonHttp, HttpStream], JsonIs("{\"calls\":1}"))],
    ),
    row(
        "status",
        "sets a status and a header",
        do_("status:201,header:X-A=one,calls"),
        &[
            cell(STATUS, Outcome::Answer(201, Is(|answer, _| header(answer, "x-a", "one"))), Same),
            answers(&[HttpStream], Is(|answer, _| header(answer, "x-a", "one"))),
        ],
    ),
    row(
        "status-500",
        "answers with the status 500, which is an answer",
        do_("status:500,calls"),
        &[cell(STATUS, Outcome::Answer(500, Any), Same)],
    ),
    row(
        "no-content",
        "answers with the status 204",
        do_("empty,status:204"),
        &[cell(STATUS, Outcome::Answer(204, Bytes(b"")), Same)],
    ),
    row(
        "two-headers",
        "sends two headers of one name",
        do_("header:X-A=one,header:X-A=two,calls"),
        &[cell(
            &[Http, Json, JsonBase64, JsonHttp, Event01, Event10, HttpStream],
            Outcome::Answer(
                200,
                Is(|answer, _| {
                    let values: Vec<_> = answer
                        .headers
                        .iter()
                        .filter(|(n, _)| n.eq_ignore_ascii_case("x-a"))
                        .map(|(_, v)| &v[..])
                        .collect();
                    if values == [b"one", b"two"] { Ok(()) } else { Err(format!("{values:?}")) }
                }),
            ),
            Same,
        )],
    ),
    row(
        "content-type",
        "says what its answer is",
        do_("plain:some text"),
        &[answers(
            &[Http, Json, JsonBase64, JsonHttp, Event01, Event10, HttpStream, Lambda],
            Is(|answer, _| {
                header(answer, "content-type", "text/plain")?;
                same(&answer.text(), "some text")
            }),
        )],
    ),
    row(
        "trigger",
        "is called by a trigger, and sets a status and a header",
        do_("status:202,header:X-A=one,report"),
        &[
            cell(
                &[Http, Json, JsonBase64, JsonHttp, Event01, Event10, HttpStream],
                Outcome::Answer(
                    202,
                    Is(|answer, _| {
                        header(answer, "x-a", "one")?;
                        asked(answer)
                    }),
                ),
                Same,
            ),
            answers(COLD, Is(|answer, _| asked(answer))),
        ],
    )
    .flow(Trigger),
    row(
        "hop-headers",
        "is sent headers of the connection, and sends some",
        do_("header:Keep-Alive=timeout=5,header:X-A=one,report")
            .headers(&[("Keep-Alive", "timeout=5"), ("X-In", "two")]),
        &[answers(
            &[Http, Json, JsonBase64, JsonHttp, Event01, Event10, HttpStream],
            Is(|answer, _| {
                header(answer, "x-a", "one")?;
                let told = answer.json()["headers"].to_string().to_ascii_lowercase();
                match (answer.header("keep-alive"), told.contains("keep-alive"), told.contains("x-in")) {
                    (None, false, true) => Ok(()),
                    other => Err(format!("{other:?}: {told}")),
                }
            }),
        )],
    ),
];

/// Of a call by a trigger: what the client asked for.
fn asked(answer: &Answer) -> Result<(), String> {
    let report = answer.json();
    let (method, url) =
        (report["method"].as_str().unwrap_or_default(), report["url"].as_str().unwrap_or_default());
    if method == "PUT" && url.ends_with("?name=Ada") {
        Ok(())
    } else {
        Err(format!("it was asked {method} {url}"))
    }
}
