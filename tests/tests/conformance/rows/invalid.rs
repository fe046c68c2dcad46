//! Answers that are none.

use stoker_core::error::Code;

use super::BAD;
use crate::columns::Column::*;
use crate::columns::{HOT, HTTP, MESSAGES, STATUS};
use crate::table::{Cell, Row, do_, fails, row};

/// An answer that is none, in all formats that have this way to be wrong.
const fn invalid(id: &'static str, says: &'static str, orders: &'static str, cells: &'static [Cell]) -> Row {
    row(id, says, do_(orders), cells)
}

pub static ROWS: &[Row] = &[
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
];
