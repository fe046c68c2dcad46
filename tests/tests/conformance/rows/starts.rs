//! How a function comes up, or does not.

use stoker_core::error::Code;

use super::{BAD, CRASHED};
use crate::columns::Column::*;
use crate::columns::{ALL, COLD, HOT_STDIO};
use crate::table::Content::Json as JsonIs;
use crate::table::Flow::*;
use crate::table::Next::*;
use crate::table::{Outcome, Row, answers, cell, do_, fails, row};

pub static ROWS: &[Row] = &[
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
