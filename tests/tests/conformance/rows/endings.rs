//! Calls that end in another way than by an answer, time that passes, and what is said and read beside the answer.

use stoker_core::error::Code;

use super::{BAD, CRASHED, large};
use crate::columns::Column::*;
use crate::columns::{ALL, COLD, HOT, HOT_STDIO, MANY, STREAMS};
use crate::table::Content::{Bytes, Json as JsonIs};
use crate::table::Flow::*;
use crate::table::Next::*;
use crate::table::{Outcome, Row, answers, cell, do_, fails, leaves, row};

pub static ROWS: &[Row] = &[
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
];
