//! The rows of the table: what a function does, and what comes of it.

use stoker_core::error::Code;
use stoker_tests::calls::Answer;

use crate::columns::Column::{self, *};
use crate::columns::{ALL, COLD, HOT, HOT_STDIO, HTTP, MANY, MESSAGES, STATUS, STREAMS};
use crate::table::Content::{About, Any, Bytes, Echo, Is, Json as JsonIs};
use crate::table::Flow::*;
use crate::table::Next::*;
use crate::table::{Ask, Body, Needs, Outcome, Row, answers, cell, do_, fails, leaves, row};

const BAD: Code = Code::FunctionInvalidResponse;
const CRASHED: Code = Code::FunctionCrashed;

const ALL_BYTES: [u8; 256] = {
    let mut bytes = [0; 256];
    let mut at = 0;
    while at < 256 {
        bytes[at] = at as u8;
        at += 1;
    }
    bytes
};

const EVENT: &str = r#"{"cloudEventsVersion":"0.1","eventID":"e-1","source":"/there","eventType":"x.y",
    "contentType":"application/json","extensions":{"own":"kept"},"data":{"do":"report"}}"#;
const EVENT_1_0: &str = r#"{"specversion":"1.0","id":"e-1","source":"/there","type":"x.y","own":"kept",
    "datacontenttype":"application/json","data":{"do":"report"}}"#;
const EVENT_FOR_OTHERS: &str = r#"{"cloudEventsVersion":"0.1","eventID":"e-3",
    "source":"/there","eventType":"x.y",
    "contentType":"application/json","data":{"do":"report"}}"#;

const fn text(body: &'static str, content_type: &'static str) -> Ask {
    Ask { body: Body::Text(body), content_type, headers: &[] }
}

const fn large(orders: &'static str) -> Ask {
    Ask { body: Body::Large(orders), content_type: "application/json", headers: &[] }
}

/// An answer that is none, in all formats that have this way to be wrong.
const fn invalid(
    id: &'static str,
    says: &'static str,
    orders: &'static str,
    cells: &'static [crate::table::Cell],
) -> Row {
    row(id, says, do_(orders), cells)
}

pub static ROWS: &[Row] = &[
    // Answers.
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
    // What it is told.
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
    // Endings.
    row(
        "exit",
        "ends with 7 in the call",
        do_("exit:7"),
        &[fails(COLD, Code::FunctionFailed, "status 7"), fails(ALL, CRASHED, "status 7")],
    )
    .tail("exiting with 7"),
    row(
        "exit-0",
        "ends with 0 and has not answered",
        do_("exit:0"),
        &[answers(COLD, Bytes(b"")), fails(ALL, CRASHED, "status 0")],
    ),
    row("abort", "aborts", do_("abort"), &[fails(ALL, CRASHED, "signal 6")]),
    row("segv", "touches memory that is not there", do_("segv"), &[fails(ALL, CRASHED, "signal 11")]),
    row(
        "exit-after",
        "answers, and ends",
        do_("exit-after:0,calls"),
        &[leaves(MANY, JsonIs("{\"calls\":1}")), answers(COLD, JsonIs("{\"calls\":1}"))],
    )
    .flow(Leaves),
    row(
        "exit-3-after",
        "answers, and ends with 3",
        do_("exit-after:3,calls"),
        &[leaves(MANY, JsonIs("{\"calls\":1}")), fails(COLD, Code::FunctionFailed, "status 3")],
    )
    .flow(Leaves),
    row(
        "fails",
        "says that it failed",
        do_("empty,fail"),
        &[
            fails(COLD, Code::FunctionFailed, "status 3"),
            cell(&[HttpStream, Mless, Lambda], Outcome::Error(Code::FunctionFailed, ""), Same),
        ],
    ),
    row(
        "half-exit",
        "ends in the middle of its answer",
        do_("large:1000,half-exit:3"),
        &[
            fails(COLD, Code::FunctionFailed, "status 3"),
            // Its end and that of its connection come in any order.
            cell(&[Lambda], Outcome::Either(CRASHED, BAD), New),
            fails(ALL, CRASHED, "status 3"),
        ],
    )
    .flow(Half),
    row(
        "half-close",
        "closes the channel in the middle of its answer, and stays",
        do_("large:1000,half-close"),
        &[fails(COLD, Code::FunctionTimeout, "in time"), fails(ALL, BAD, "")],
    )
    .flow(Half)
    .timeout(2000),
    row(
        "close",
        "closes the channel instead of an answer, and stays",
        do_("close-output,hang"),
        &[
            fails(&[Lambda], Code::FunctionTimeout, "2s"),
            fails(COLD, Code::FunctionTimeout, "in time"),
            fails(ALL, BAD, ""),
        ],
    )
    .timeout(2000),
    row(
        "close-input",
        "takes no more calls, and answers this one",
        do_("close-input,calls"),
        &[leaves(HOT_STDIO, JsonIs("{\"calls\":1}")), answers(COLD, JsonIs("{\"calls\":1}"))],
    ),
    row(
        "fork",
        "leaves a process that holds its channel, and answers",
        do_("fork,calls"),
        &[answers(ALL, JsonIs("{\"calls\":1}"))],
    ),
    row(
        "fork-exit",
        "leaves a process that holds its channel, and ends without an answer",
        do_("fork,exit:0"),
        &[answers(COLD, Bytes(b"")), fails(ALL, CRASHED, "status 0")],
    ),
    // Time.
    row("hang", "never answers", do_("hang"), &[fails(ALL, Code::FunctionTimeout, "2s")])
        .tail("hanging")
        .timeout(2000),
    row(
        "half-hang",
        "never ends its answer",
        do_("large:1000,half-hang"),
        &[fails(ALL, Code::FunctionTimeout, "2s")],
    )
    .flow(Half)
    .timeout(2000),
    row(
        "late-answer",
        "answers after its time",
        do_("sleep:4000,echo"),
        &[fails(ALL, Code::FunctionTimeout, "2s")],
    )
    .timeout(2000),
    row(
        "deaf",
        "reads nothing",
        large("calls"),
        &[fails(&[Lambda], Code::FunctionInitTimeout, "500ms"), fails(ALL, Code::FunctionTimeout, "2s")],
    )
    .init_timeout(500)
    .timeout(2000)
    .always("deaf")
    .flow(Alone),
    row(
        "unread-hang",
        "reads the head and no more, and never answers",
        large("").headers(&[("Do", "unread-hang")]),
        &[fails(STREAMS, Code::FunctionTimeout, "2s")],
    )
    .timeout(2000),
    row(
        "deadline",
        "works longer than the caller waits",
        do_("hang"),
        &[fails(ALL, Code::DeadlineExceeded, "")],
    )
    .flow(Deadline),
    row("abandoned", "works when the caller goes away", do_("hang"), &[fails(ALL, Code::Cancelled, "")])
        .flow(Abandoned),
    row(
        "slow-write",
        "answers in sixteen pieces, with pauses",
        do_("calls,slow-write:3"),
        &[answers(ALL, JsonIs("{\"calls\":1}"))],
    ),
    row(
        "slow-read",
        "reads seven bytes at a time, with pauses",
        do_("calls"),
        &[answers(ALL, JsonIs("{\"calls\":1}"))],
    )
    .always("slow-read:1"),
    row("spin", "computes", do_("spin:50,calls"), &[answers(ALL, JsonIs("{\"calls\":1}"))]),
    // Output that is none of its business.
    row("excess", "writes an answer and more", do_("calls,excess"), &[leaves(HOT, JsonIs("{\"calls\":1}"))]),
    row("twice", "writes its answer twice", do_("calls,twice"), &[leaves(HOT, JsonIs("{\"calls\":1}"))]),
    row(
        "space-after",
        "writes an answer and space",
        do_("calls,space-after"),
        &[answers(HOT_STDIO, JsonIs("{\"calls\":1}"))],
    ),
    row(
        "space-before",
        "writes space before its answer",
        do_("calls,space"),
        &[answers(HOT_STDIO, JsonIs("{\"calls\":1}"))],
    ),
    row("noise", "writes something else before its answer", do_("noise,calls"), &[fails(HOT, BAD, "")]),
    row(
        "late",
        "writes something after its answer was delivered",
        do_("calls,late"),
        &[leaves(HOT, JsonIs("{\"calls\":1}"))],
    )
    .flow(Late),
    row(
        "late-next",
        "writes something when the next call arrives",
        do_("calls,late-next"),
        &[leaves(HOT, JsonIs("{\"calls\":1}"))],
    )
    .flow(SpoilsTheNext),
    row(
        "nothing",
        "waits for the next call, and has not answered this one",
        do_("nothing"),
        &[answers(COLD, Bytes(b"")), fails(ALL, Code::FunctionTimeout, "2s")],
    )
    .timeout(2000),
    // Reading.
    row(
        "early",
        "answers before it reads the body",
        large("").headers(&[("Do", "early")]),
        &[
            leaves(&[Http, JsonHttp], JsonIs("{\"early\":true}")),
            answers(STREAMS, JsonIs("{\"early\":true}")),
        ],
    ),
    row(
        "unread",
        "answers, and never reads the body",
        large("").headers(&[("Do", "unread")]),
        &[
            leaves(&[Http, JsonHttp], JsonIs("{\"early\":true}")),
            answers(&[HttpStream], JsonIs("{\"early\":true}")),
        ],
    ),
    // Answers that are none.
    invalid("invalid-garbage", "answers with garbage", "invalid:garbage", &[fails(HOT, BAD, "")]),
    invalid(
        "invalid-array",
        "answers with a list",
        "invalid:array",
        &[fails(MESSAGES, BAD, ""), fails(&[JsonHttp], BAD, "")],
    ),
    invalid(
        "invalid-syntax",
        "answers with broken JSON",
        "invalid:syntax",
        &[fails(MESSAGES, BAD, ""), fails(&[JsonHttp], BAD, "")],
    ),
    invalid("invalid-utf8", "answers with what is not UTF-8", "invalid:utf8", &[fails(MESSAGES, BAD, "")]),
    invalid(
        "invalid-control",
        "answers with a bare control character in a string",
        "invalid:control",
        &[fails(MESSAGES, BAD, "")],
    ),
    invalid(
        "invalid-deep",
        "answers with JSON five hundred deep",
        "invalid:deep",
        &[fails(MESSAGES, BAD, ""), fails(&[JsonHttp], BAD, "")],
    ),
    invalid(
        "invalid-status",
        "sets a status that is no number",
        "invalid:status",
        &[fails(STATUS, BAD, ""), fails(HTTP, BAD, "")],
    ),
    invalid(
        "invalid-low-status",
        "sets the status 99",
        "invalid:low-status",
        &[fails(&[Json, JsonBase64, JsonHttp], BAD, "")],
    ),
    invalid(
        "invalid-headers",
        "sends headers that are none",
        "invalid:headers",
        &[fails(&[Json, JsonBase64, JsonHttp, Event01, Event10], BAD, "")],
    ),
    invalid(
        "invalid-split-header",
        "sends a header with a line break",
        "invalid:split-header",
        &[fails(&[Json, JsonBase64, JsonHttp], BAD, "")],
    ),
    invalid(
        "invalid-body-type",
        "answers with a body that is a number",
        "invalid:body-type",
        &[fails(&[Json, JsonBase64], BAD, "")],
    ),
    invalid(
        "invalid-protocol",
        "answers with a protocol that is a number",
        "invalid:protocol",
        &[fails(&[Json, JsonBase64], BAD, "")],
    ),
    invalid(
        "invalid-version",
        "speaks another version",
        "invalid:version",
        &[fails(HTTP, BAD, ""), fails(&[Event10], BAD, "")],
    ),
    invalid("invalid-header", "sends a header without a colon", "invalid:header", &[fails(HTTP, BAD, "")]),
    invalid(
        "invalid-length",
        "sends a length that is none",
        "invalid:length",
        &[fails(HTTP, BAD, ""), fails(&[JsonHttp], BAD, "")],
    ),
    invalid(
        "invalid-two-lengths",
        "sends two lengths",
        "invalid:two-lengths",
        &[fails(HTTP, BAD, ""), fails(&[JsonHttp], BAD, "")],
    ),
    invalid("invalid-no-length", "sends no length", "invalid:no-length", &[fails(&[JsonHttp], BAD, "")]),
    invalid(
        "invalid-no-blank-line",
        "sends no blank line behind the head",
        "invalid:no-blank-line",
        &[fails(&[JsonHttp], BAD, "")],
    ),
    invalid(
        "invalid-chunk",
        "sends a chunk whose size is none",
        "invalid:chunk",
        &[fails(HTTP, BAD, ""), fails(&[JsonHttp], BAD, "")],
    ),
    invalid(
        "invalid-cut-chunk",
        "sends more in a chunk than it said",
        "invalid:cut-chunk",
        &[fails(HTTP, BAD, "")],
    ),
    invalid(
        "invalid-wire-status",
        "answers with a status that its format does not have",
        "invalid:wire-status",
        &[fails(&[HttpStream], BAD, "")],
    ),
    invalid("invalid-no-id", "answers without an id", "invalid:no-id", &[fails(&[Event10, Mless], BAD, "")]),
    invalid("invalid-other-id", "answers another request", "invalid:other-id", &[fails(&[Mless], BAD, "")]),
    invalid(
        "invalid-errors",
        "says neither that it failed nor that it did not",
        "invalid:errors-type",
        &[fails(&[Mless], BAD, "")],
    ),
    invalid(
        "invalid-data",
        "answers with an object that it calls text",
        "invalid:data-type",
        &[fails(&[Event01, Event10], BAD, "")],
    ),
    invalid(
        "invalid-content-type",
        "answers with data of a type that its format does not have",
        "invalid:content-type",
        &[fails(&[Event01], BAD, "")],
    ),
    invalid("invalid-two-data", "answers with data twice", "invalid:two-data", &[fails(&[Event10], BAD, "")]),
    invalid(
        "invalid-base64",
        "answers with base64 that is none",
        "invalid:base64",
        &[fails(&[Event10], BAD, "")],
    ),
    invalid(
        "invalid-attribute",
        "answers with an attribute whose name is none",
        "invalid:attribute",
        &[fails(&[Event10], BAD, "")],
    ),
    row(
        "wide",
        "answers with a hundred headers of a kilobyte",
        do_("headers:100,calls"),
        &[
            fails(STATUS, Code::ResponseHeadersTooLarge, ""),
            fails(&[HttpStream], Code::ResponseHeadersTooLarge, ""),
        ],
    ),
    // What it has.
    row(
        "log",
        "writes to STDERR: lines, a huge one, one without end, what is no text",
        do_("log-lines:2000,log-line:300,log-bytes,log-open:open,calls"),
        &[answers(ALL, JsonIs("{\"calls\":1}"))],
    ),
    row(
        "last-words",
        "says on STDERR why it ends",
        do_("log:last words,exit:9"),
        &[fails(COLD, Code::FunctionFailed, "status 9"), fails(ALL, CRASHED, "status 9")],
    )
    .tail("last words"),
    row(
        "print",
        "prints where its format lets it",
        do_("print:some text,calls"),
        &[answers(MANY, JsonIs("{\"calls\":1}"))],
    ),
    row(
        "memory",
        "takes more memory than it has",
        do_("memory:300,calls"),
        &[fails(ALL, Code::FunctionOutOfMemory, "64MiB")],
    )
    .needs(Needs::MemoryLimit),
    row("leak", "keeps a part of its memory", do_("leak:8,calls"), &[answers(ALL, JsonIs("{\"calls\":1}"))]),
    row(
        "leak-files",
        "opens files until it may not",
        do_("leak-fds:100000,calls"),
        &[answers(ALL, JsonIs("{\"calls\":1}"))],
    ),
    row(
        "threads",
        "starts threads that never end",
        do_("threads:20,calls"),
        &[answers(ALL, JsonIs("{\"calls\":1}"))],
    ),
    row(
        "root",
        "writes to the root directory",
        do_("write-root"),
        &[answers(ALL, JsonIs("{\"written\":false}"))],
    )
    .needs(Needs::Isolation),
    row(
        "tmp",
        "fills its temporary directory",
        do_("fill-tmp:100000"),
        &[answers(
            ALL,
            Is(|answer, _| {
                let mebibytes = answer.json()["mebibytes"].as_u64();
                if mebibytes.is_some_and(|m| m < 100_000) { Ok(()) } else { Err(format!("{mebibytes:?}")) }
            }),
        )],
    )
    // What it fills counts as its memory.
    .memory(256)
    .needs(Needs::Isolation),
    row(
        "tmp-new",
        "writes a file and ends; the next finds none",
        do_("tmp-write:kept,exit:1"),
        &[fails(COLD, Code::FunctionFailed, "status 1"), fails(HOT, CRASHED, "status 1")],
    )
    .file("null")
    .needs(Needs::Isolation),
    row(
        "tmp-kept",
        "writes a file; the same process finds it",
        do_("tmp-write:kept,calls"),
        &[answers(MANY, JsonIs("{\"calls\":1}"))],
    )
    .file("\"kept\""),
    // Starts.
    row(
        "start-exit",
        "ends with 3 before it takes a call",
        do_("calls"),
        &[fails(COLD, Code::FunctionFailed, "status 3"), fails(ALL, Code::FunctionInitFailed, "status 3")],
    )
    .tail("exiting with 3 at its start")
    .starts("exit:3")
    .flow(Alone),
    row(
        "start-abort",
        "aborts before it takes a call",
        do_("calls"),
        &[fails(COLD, CRASHED, "signal 6"), fails(ALL, Code::FunctionInitFailed, "signal 6")],
    )
    .starts("abort")
    .flow(Alone),
    row(
        "start-never",
        "is never ready",
        do_("calls"),
        &[
            fails(&[HttpStream, Mless, Lambda], Code::FunctionInitTimeout, "600ms"),
            fails(ALL, Code::FunctionTimeout, "700ms"),
        ],
    )
    .starts("never")
    .timeout(700)
    .init_timeout(600)
    .flow(Alone),
    row(
        "start-slow",
        "needs some time before it is ready",
        do_("calls"),
        &[answers(ALL, JsonIs("{\"calls\":1}"))],
    )
    .starts("delay:200"),
    row(
        "start-banner",
        "prints before it takes a call",
        do_("calls"),
        &[
            cell(&[Mless], Outcome::Error(Code::FunctionInitFailed, ""), New),
            // It depends on which of the two is first: the call, or what the function prints.
            cell(HOT_STDIO, Outcome::Either(Code::FunctionInitFailed, BAD), New),
            answers(&[HttpStream, Lambda], JsonIs("{\"calls\":1}")),
        ],
    )
    .starts("banner")
    .flow(Alone),
    row(
        "start-refused",
        "says that it cannot start",
        do_("calls"),
        &[fails(&[Mless], Code::FunctionInitFailed, "runner initialization failed")],
    )
    .starts("refuse")
    .flow(Alone),
    row(
        "start-no-ok",
        "answers the greeting with something else",
        do_("calls"),
        &[fails(&[Mless], Code::FunctionInitFailed, "ok")],
    )
    .starts("no-ok")
    .flow(Alone),
    row(
        "start-garbage",
        "answers the greeting with garbage",
        do_("calls"),
        &[fails(&[Mless], Code::FunctionInitFailed, "")],
    )
    .starts("garbage")
    .flow(Alone),
    row(
        "start-more",
        "answers the greeting twice",
        do_("calls"),
        &[fails(&[Mless], Code::FunctionInitFailed, "")],
    )
    .starts("more")
    .flow(Alone),
    row(
        "start-unasked",
        "greets before it was greeted",
        do_("calls"),
        &[answers(&[Mless], JsonIs("{\"calls\":1}"))],
    )
    .starts("unasked"),
    row(
        "start-error",
        "says by the Runtime API that it cannot start",
        do_("calls"),
        &[fails(&[Lambda], Code::FunctionInitFailed, "it failed")],
    )
    .starts("init-error")
    .flow(Alone),
    row(
        "invalid-mode",
        "answers in a mode that the Runtime API does not have",
        do_("invalid:mode"),
        &[fails(&[Lambda], BAD, "")],
    ),
    row(
        "start-bad-link",
        "makes its socket a link to elsewhere",
        do_("calls"),
        &[fails(&[HttpStream], Code::FunctionInitFailed, "socket")],
    )
    .starts("bad-link")
    .flow(Alone),
    row(
        "start-no-socket",
        "makes a file where its socket should be",
        do_("calls"),
        &[fails(&[HttpStream], Code::FunctionInitFailed, "socket")],
    )
    .starts("no-socket")
    .flow(Alone),
];

fn same(is: &str, should: &str) -> Result<(), String> {
    if is == should { Ok(()) } else { Err(format!("{is} instead of {should}")) }
}

fn header(answer: &Answer, name: &str, value: &str) -> Result<(), String> {
    same(answer.header(name).unwrap_or("nothing"), value).map_err(|why| format!("{name}: {why}"))
}

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
