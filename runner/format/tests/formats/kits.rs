//! The formats held against kits that others wrote, from their registries and unchanged: the CloudEvents kits of PyPI and npm, and
//! Fn's old kits for functions on STDIN. `scripts/test` installs them; without them these tests say that they were left out.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bytes::BytesMut;
use stoker_core::function::Format;
use stoker_format::{After, Event, quiet};

use crate::kit::{Row, decode, golden, rows};

/// A file of a kit, or `None` (said on STDOUT) where the kit is not installed.
fn installed(kit: &str, file: &str) -> Option<PathBuf> {
    let kits = std::env::var_os("STOKER_TEST_KITS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-kits"), PathBuf::from);
    let path = kits.join(kit).join(file);
    let there = path.exists();
    if !there {
        println!("left out: {} is not there: run scripts/test", path.display());
    }
    there.then_some(path)
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kits").join(name)
}

/// The kit reads what we write, and we read what it writes.
fn events(program: &Path, folder: &Path, name: &str) {
    let run = |mode: &str, golden: &Path| {
        let out = Command::new(program)
            .arg(script(name))
            .args([mode.as_ref(), golden])
            .current_dir(folder)
            .output()
            .unwrap();
        assert!(out.status.success(), "{mode}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let read = run("check", &golden(Format::CloudEvent));
    assert_eq!(read.lines().filter(|l| l.starts_with("ok ")).count(), 6, "{read}");
    let own = std::env::temp_dir().join(format!("stoker-format-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&own).unwrap();
    run("write", &own);
    let mut written = 0;
    for entry in std::fs::read_dir(&own).unwrap() {
        let path = entry.unwrap().path();
        let of = path.file_name().unwrap().to_str().unwrap().split('+').next().unwrap().to_owned();
        let row = rows().into_iter().find(|r| r.format == Format::CloudEvent && r.name == of).unwrap();
        let answer = std::fs::read(&path).unwrap();
        let events = decode(&mut row.encode(&row.codec(), &[]).0, &answer, &[], false);
        assert_eq!(events.last(), Some(&Event::End(After::Reuse)), "{}: {events:?}", path.display());
        written += 1;
    }
    std::fs::remove_dir_all(&own).unwrap();
    assert_eq!(written, 6);
}

#[test]
fn the_events_are_those_of_the_kit_for_python() {
    if let Some(python) = installed("cloudevents-python", ".venv/bin/python") {
        events(&python, &std::env::temp_dir(), "python.py");
    }
}

#[test]
fn the_events_are_those_of_the_kit_for_node() {
    if let Some(kit) = installed("cloudevents-node", "node_modules/cloudevents") {
        events(Path::new("node"), kit.parent().unwrap().parent().unwrap(), "node.mjs");
    }
}

/// Ends with the test, however that ends.
struct Function(Child);

impl Drop for Function {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// A function with an old kit of Fn answers three calls, one after the other, in one process.
fn converse(kit: &str, row: &Row, expected: &str) {
    let Some(python) = installed(kit, ".venv/bin/python") else { return };
    let mut function = Function(
        Command::new(python)
            .arg(script("echo.py"))
            .env("FN_FORMAT", row.format.as_str())
            .env("FN_APP_NAME", "demo")
            .env("FN_PATH", "/echo")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut stdin = function.0.stdin.take().unwrap();
    let mut stdout = function.0.stdout.take().unwrap();
    let mut input = BytesMut::new();
    let codec = row.codec();
    for _ in 0..3 {
        assert!(quiet(&mut input));
        let (mut exchange, out) = row.encode(&codec, &[]);
        stdin.write_all(&out).unwrap();
        let mut body = Vec::new();
        let last = loop {
            match exchange.decode(&mut input, false) {
                Some(Event::Head { head, .. }) => assert_eq!(head.status, 200),
                Some(Event::Body(piece)) => body.extend_from_slice(&piece),
                Some(last) => break last,
                None => {
                    let mut piece = [0; 4096];
                    let count = stdout.read(&mut piece).unwrap();
                    assert_ne!(count, 0, "the function ended");
                    input.extend_from_slice(&piece[..count]);
                }
            }
        };
        assert_eq!(last, Event::End(After::Reuse));
        assert_eq!(String::from_utf8_lossy(&body), expected);
    }
}

fn row(format: Format, name: &str) -> Row {
    rows().into_iter().find(|r| r.format == format && r.name == name).unwrap()
}

#[test]
fn old_functions_in_json_run_unchanged() {
    converse("fdk-json", &row(Format::Json, "streamed"), r#"{"echo":"{\"a\":1}"}"#);
}

#[test]
fn old_functions_in_cloudevents_run_unchanged() {
    converse("fdk-json", &row(Format::CloudEvent, "0.1-json"), r#""{\"echo\":{\"a\":[1,2]}}""#);
}

#[test]
fn old_functions_in_http_run_unchanged() {
    converse("fdk-http", &row(Format::Http, "plain"), r#"{"echo":"hello"}"#);
    let mut chunked = row(Format::Http, "chunked");
    chunked.body = b"in chunks".to_vec();
    converse("fdk-http", &chunked, r#"{"echo":"in chunks"}"#);
}
