//! Requests and answers as they are written down, byte for byte. With `STOKER_BLESS=1` what comes out is written instead; then the
//! difference is to be read, not trusted.

use std::fmt::Write as _;
use std::path::Path;

use crate::kit::{answers, decode, golden, render, rows};

/// Compares, or writes.
fn same(path: &Path, now: &[u8], wrong: &mut String) {
    if std::env::var_os("STOKER_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, now).unwrap();
        return;
    }
    let before = std::fs::read(path).unwrap_or_default();
    if before != now {
        _ = writeln!(
            wrong,
            "{}\n--- was\n{}\n--- is\n{}",
            path.display(),
            before.escape_ascii(),
            now.escape_ascii()
        );
    }
}

#[test]
fn requests_and_answers_are_as_written_down() {
    let mut wrong = String::new();
    for row in rows() {
        let codec = row.codec();
        let env = row.with(|request| codec.environment(request));
        if !env.is_empty() {
            let text: String = env.iter().map(|(k, v)| format!("{k}={v}\n")).collect();
            same(&row.file("env"), text.as_bytes(), &mut wrong);
        }
        let (exchange, out) = row.encode(&codec, &[]);
        match exchange.fault() {
            None => same(&row.file("in"), &out, &mut wrong),
            Some(fault) => {
                let text = format!("{:?}\n{}\n", fault.code, fault.message);
                same(&row.file("fault"), text.as_bytes(), &mut wrong);
            }
        }
        for (name, answer) in answers(&row) {
            // An answer that leaves the container as it was must do so while the channel is open.
            let mut exchange = row.encode(&codec, &[]).0;
            let open = decode(&mut exchange, &answer, &[], false);
            let complete = matches!(
                open.last(),
                Some(stoker_format::Event::End(_) | stoker_format::Event::Failed { .. })
            );
            let (events, how) = if complete {
                (open, "")
            } else {
                (decode(&mut row.encode(&codec, &[]).0, &answer, &[], true), "after the end of the output\n")
            };
            let text = format!("{how}{}", render(&events));
            same(&golden(row.format).join(format!("{name}.events")), text.as_bytes(), &mut wrong);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
