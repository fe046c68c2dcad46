//! What a function has, and what it fills.

use stoker_core::error::Code;

use super::CRASHED;
use crate::columns::{ALL, COLD, HOT, MANY};
use crate::table::Content::{Is, Json as JsonIs};
use crate::table::{Needs, Row, answers, do_, fails, row};

pub static ROWS: &[Row] = &[
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
    // What it fills counts as its memory, and functions of the format lambda have 512 MiB of it.
    .memory(640)
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
];
