//! The test function: it speaks every format, and does on request whatever a function can do wrong. It shares no code with
//! Stoker and has no dependency, so that it is the other side of each contract; build it for any sandbox with
//! `RUSTFLAGS="-C target-feature=+crt-static" cargo build -p stoker-test-function --release --target x86_64-unknown-linux-gnu`.
//!
//! `stoker-test-function [FORMAT]`; without the argument the format is that of `FN_FORMAT`. `TEST_COLD` set: `json-http` with one call
//! per process.
//!
//! What a call is to do are orders, separated by commas and carried out in their order: `do` in the body, when that is a JSON
//! object; else the header `Do`, where the format has headers before the body; else the variable `TEST_DO`. None: echo.
//!
//! | order | the function |
//! |---|---|
//! | `echo` | answers with the request's body and type |
//! | `calls` | `{"calls": N}`: calls seen by this process |
//! | `report` | all it knows: call, headers, environment, what it was told, user, directory, what `tmp-write` left |
//! | `text` | the member `text` of the request's body |
//! | `plain:TEXT`, `large:N`, `bytes:N`, `empty` | that text; N bytes in JSON; N bytes of all values; nothing |
//! | `status:N`, `header:NAME=VALUE`, `headers:N` | that status, that header, N headers of a kilobyte |
//! | `chunked` | answers in chunks, where the format has them |
//! | `fail` | says that it failed, in the way of the format (`default`: it ends with 3) |
//! | `sleep:MS`, `spin:MS`, `hang` | waits, computes, never answers |
//! | `exit:N`, `exit-after:N`, `abort`, `segv` | ends: without an answer, after it, by a signal |
//! | `memory:N`, `leak:N`, `leak-fds:N`, `threads:N` | takes N MiB for the call, N MiB for good, descriptors, threads |
//! | `log:TEXT`, `log-lines:N`, `log-line:KIB`, `log-open:TEXT`, `log-bytes` | STDERR: a line, many, a huge one, one without end, no text |
//! | `print:TEXT` | prints where the format lets a function print |
//! | `noise`, `space` | writes garbage, or space, before its answer |
//! | `fork` | starts a process that holds STDIN, STDOUT and STDERR for ever |
//! | `close-input`, `close-output` | closes that side |
//! | `tmp-write:TEXT`, `fill-tmp:N`, `write-root` | writes to its temporary directory, N MiB there, into the root directory |
//! | `slow-write:MS` | sixteen pieces, a pause before each |
//! | `half-exit:N`, `half-hang`, `half-close` | half an answer, and then this |
//! | `excess`, `space-after`, `twice` | an answer and garbage, space, the answer again |
//! | `late` | the answer, and garbage after a byte from the pipe that `TEST_GATE` names |
//! | `late-next` | the answer, and garbage when the next call arrives |
//! | `nothing` | takes the next call without having answered this one |
//! | `invalid:WAY` | what is no answer; the ways are those of the format |
//!
//! Only in the header `Do`, since they come before the body: `early` answers and then reads the body, `unread` answers and never
//! reads it, `unread-hang` does neither, `slow-read:MS` reads a kilobyte at a time. Only in `TEST_DO`: `deaf` reads nothing at all,
//! `slow-read:MS` reads also the head slowly.
//!
//! Before its first call it does what `TEST_START` says: `exit:N`, `abort`, `never`, `delay:MS`, `banner` (garbage on STDOUT), and what only one
//! format has: `mless` `refuse`, `no-ok`, `garbage`, `more`, `unasked`; `http-stream` `bad-link`, `no-socket`; `lambda` `init-error`.

#![expect(clippy::disallowed_methods, reason = "a test function may well block: it has no more to do")]

mod base64;
mod call;
mod channel;
mod format;
mod http;
mod json;
mod perform;

use std::io;
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::channel::{Channel, Pipe};

fn main() -> io::Result<()> {
    let argument = std::env::args().nth(1);
    if argument.as_deref() == Some("--hold") {
        perform::for_ever();
    }
    let name = argument.or_else(|| std::env::var("FN_FORMAT").ok()).unwrap_or_default();
    let Some(format) = format::of(&name) else {
        perform::misunderstood(&format!("{name:?} is no format"));
    };
    match name.as_str() {
        "http-stream" => serve_socket(),
        "lambda" => serve_runtime_api(format),
        _ => serve_stdio(format),
    }
}

fn serve_stdio(mut format: Box<dyn format::Format>) -> io::Result<()> {
    let mut channel = Channel::stdio()?;
    let start = perform::start(Some(&mut channel))?;
    format.greet(&mut channel, &start)?;
    while perform::turn(format.as_mut(), &mut channel)? {
        if format.is_cold() {
            break;
        }
    }
    Ok(())
}

/// Asks for its calls.
fn serve_runtime_api(mut format: Box<dyn format::Format>) -> io::Result<()> {
    let start = perform::start(None)?;
    let api = std::env::var("AWS_LAMBDA_RUNTIME_API").unwrap_or_default();
    let mut channel = Channel::connection(Pipe::Tcp(TcpStream::connect(api)?))?;
    format.greet(&mut channel, &start)?;
    while perform::turn(format.as_mut(), &mut channel)? {}
    Ok(())
}

/// Listens beside the name, then links to it: the order that the format asks for.
fn serve_socket() -> io::Result<()> {
    let listener = std::env::var("FN_LISTENER").unwrap_or_default();
    let Some(path) = listener.strip_prefix("unix:").map(Path::new) else {
        perform::misunderstood("FN_LISTENER names no socket");
    };
    let start = perform::start(None)?;
    match start.as_str() {
        "bad-link" => {
            symlink("/etc/passwd", path)?;
            perform::for_ever();
        }
        "no-socket" => {
            std::fs::write(path, "no socket")?;
            perform::for_ever();
        }
        _ => {}
    }
    let own = path.with_file_name("test-function.sock");
    let server = UnixListener::bind(&own)?;
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o666))?;
    symlink("test-function.sock", path)?;
    for connection in server.incoming() {
        let mut channel = Channel::connection(Pipe::Socket(connection?))?;
        std::thread::spawn(move || {
            let mut format = format::http_stream::HttpStream::default();
            // What breaks a connection concerns nobody but its other end.
            while let Ok(true) = perform::turn(&mut format, &mut channel) {}
        });
    }
    Ok(())
}
