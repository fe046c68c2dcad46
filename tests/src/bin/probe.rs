//! The function that misbehaves on demand: an `http-stream` server of the standard library alone, with blocking threads, so
//! that a fault in it is a fault in what it was told and in nothing else.
//!
//! Before it listens it does what the variable `PROBE_START` says (several words, separated by commas); on each call it does
//! what the header `Probe` says, or else the JSON string `do` of the body. Both may carry a number after a colon.
//!
//! | `PROBE_START`     |                                                                        |
//! |-------------------|------------------------------------------------------------------------|
//! | `exit:N`          | writes two lines to STDERR and exits with N                            |
//! | `never-listen`    | says so on STDERR and waits for ever                                   |
//! | `wait:MS`         | is slow to start                                                       |
//! | `gate`            | waits for a byte from the pipe that `PROBE_GATE` names                 |
//! | `ignore-sigterm`  | goes on after SIGTERM                                                  |
//! | `bad-link`        | makes the listener a link out of its directory                         |
//! | `no-socket`       | makes the listener a plain file                                        |
//!
//! A call with a header `Record` is written into the pipe that the variable `PROBE_RECORD` names, in one line, before anything is done
//! with it: what its client called it, the process and its count, and the variable `PROBE_VERSION`.
//!
//! | `Probe`           |                                                                        |
//! |-------------------|------------------------------------------------------------------------|
//! | `echo`            | answers with the body, as it comes (the default)                       |
//! | `report`          | answers with JSON: pid, parent, user, cwd, environment, headers, calls |
//! | `sleep:MS`        | answers `slept` after that                                             |
//! | `counted:MS`      | the same, and records its end too, before it answers                   |
//! | `exit:N`          | exits in the middle of the call                                        |
//! | `abort`           | dies of a signal in the middle of the call                             |
//! | `half`            | promises 100 bytes, sends 10 and exits                                 |
//! | `memory:MIB`      | takes and touches that much memory                                     |
//! | `forks`           | forks without end, and answers with how many it got                    |
//! | `garbage`         | answers with what is no HTTP                                           |
//! | `stderr:MIB`      | floods STDERR, then answers                                            |
//! | `early`           | answers before it reads the body, then reads it                        |
//! | `excess`          | answers, then keeps writing on the connection                          |
//! | `large:BYTES`     | answers with that many bytes                                           |
//! | `headers:BYTES`   | answers with headers of that size                                      |
//! | `status:N`        | answers with that status of the format                                 |
//! | `http-status:N`   | answers with that status for the HTTP client                           |
//! | `hang`            | reads the call, says so on STDERR and never answers                    |
//! | `spin:MS`         | computes                                                               |
//! | `version:MS`      | answers `PROBE_VERSION`, as it was at the call's start, after that     |

#![expect(clippy::disallowed_methods, reason = "a test function may well block: it has threads of its own")]
#![allow(unsafe_code, reason = "signals and fork, which the standard library does not have")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Calls so far in this process, to tell a reused container from a new one.
static CALLS: AtomicU64 = AtomicU64::new(0);

fn main() -> std::io::Result<()> {
    let listener = std::env::var("FN_LISTENER").unwrap_or_else(|_| "unix:/tmp/iofs/lsnr.sock".to_owned());
    let path = PathBuf::from(listener.strip_prefix("unix:").unwrap_or(&listener));
    for word in std::env::var("PROBE_START").unwrap_or_default().split(',').filter(|word| !word.is_empty()) {
        before_listening(word, &path)?;
    }
    let server = listen(&path)?;
    for connection in server.incoming() {
        let connection = connection?;
        std::thread::spawn(move || serve(connection));
    }
    Ok(())
}

/// `word:7` is `("word", 7)`.
fn split(word: &str) -> (&str, u64) {
    match word.split_once(':') {
        Some((name, number)) => (name, number.parse().unwrap_or_default()),
        None => (word, 0),
    }
}

fn before_listening(word: &str, path: &Path) -> std::io::Result<()> {
    match split(word) {
        ("exit", code) => {
            eprintln!("probe: first line\nprobe: exiting with {code}");
            std::process::exit(code as i32);
        }
        ("never-listen", _) => {
            eprintln!("probe: not listening");
            for_ever();
        }
        ("wait", ms) => std::thread::sleep(Duration::from_millis(ms)),
        ("gate", _) => {
            // Opening it waits for whoever is to write.
            let pipe = std::env::var("PROBE_GATE").unwrap_or_default();
            std::fs::File::open(pipe)?.read_exact(&mut [0])?;
        }
        ("ignore-sigterm", _) => {
            // SAFETY: SIG_IGN is a disposition that any signal may have; no handler runs.
            unsafe { libc::signal(libc::SIGTERM, libc::SIG_IGN) };
        }
        ("bad-link", _) => {
            symlink("/etc/passwd", path)?;
            for_ever();
        }
        ("no-socket", _) => {
            std::fs::write(path, "not a socket")?;
            for_ever();
        }
        (other, _) => {
            eprintln!("probe: {other:?} is not in the table of PROBE_START");
            std::process::exit(64);
        }
    }
    Ok(())
}

fn for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

/// Listens beside the name, then links to it: the order that the format asks for.
fn listen(path: &Path) -> std::io::Result<UnixListener> {
    let own = path.with_file_name("probe.sock");
    let server = UnixListener::bind(&own)?;
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o666))?;
    symlink("probe.sock", path)?;
    Ok(server)
}

/// A call's head, and its body still to be read.
struct Call {
    headers: Vec<(String, String)>,
    body: Body,
}

/// A body of this length is not held: the function has little memory.
const LONG: u64 = 1 << 20;

enum Body {
    Length(u64),
    Chunked,
}

impl Call {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

type Input = BufReader<UnixStream>;

/// One connection: calls, one after the other. A broken one concerns nobody but its other end.
fn serve(connection: UnixStream) {
    let Ok(mut out) = connection.try_clone() else { return };
    let mut input = BufReader::new(connection);
    while let Ok(Some(call)) = read_head(&mut input) {
        let count = CALLS.fetch_add(1, Ordering::Relaxed);
        let start = |key: &str| format!("start {key} {}-{count} {}\n", std::process::id(), version());
        if record(&call, start).is_err() {
            return;
        }
        if answer(&call, &mut input, &mut out).is_err() {
            return;
        }
    }
}

/// Says something of a call that is here. A line this short is written whole.
fn record(call: &Call, line: impl FnOnce(&str) -> String) -> std::io::Result<()> {
    static PIPE: OnceLock<std::fs::File> = OnceLock::new();
    let (Some(key), Ok(path)) = (call.header("Record"), std::env::var("PROBE_RECORD")) else { return Ok(()) };
    let pipe = match PIPE.get() {
        Some(pipe) => pipe,
        None => {
            let pipe = std::fs::File::options().write(true).open(path)?;
            PIPE.get_or_init(|| pipe)
        }
    };
    (&mut &*pipe).write_all(line(key).as_bytes())
}

fn version() -> String {
    std::env::var("PROBE_VERSION").unwrap_or_else(|_| "-".to_owned())
}

fn read_head(input: &mut Input) -> std::io::Result<Option<Call>> {
    let mut line = String::new();
    if input.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut headers = Vec::new();
    loop {
        line.clear();
        if input.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.push((name.to_owned(), value.trim().to_owned())),
            None => break,
        }
    }
    let mut call = Call { headers, body: Body::Length(0) };
    if call.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
        call.body = Body::Chunked;
    } else if let Some(length) = call.header("content-length") {
        call.body = Body::Length(length.parse().unwrap_or_default());
    }
    Ok(Some(call))
}

/// Gives the body on, piece by piece, as it comes.
fn read_body(
    call: &Call,
    input: &mut Input,
    mut each: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    match call.body {
        Body::Length(length) => read_exactly(input, length, &mut each),
        Body::Chunked => loop {
            let mut line = String::new();
            input.read_line(&mut line)?;
            let size = line.trim_end().split(';').next().unwrap_or_default();
            let size = u64::from_str_radix(size, 16).map_err(std::io::Error::other)?;
            if size == 0 {
                // The trailers, up to the empty line.
                loop {
                    line.clear();
                    if input.read_line(&mut line)? == 0 || line.trim_end().is_empty() {
                        return Ok(());
                    }
                }
            }
            read_exactly(input, size, &mut each)?;
            input.read_line(&mut String::new())?;
        },
    }
}

fn read_exactly(
    input: &mut Input,
    mut left: u64,
    each: &mut impl FnMut(&[u8]) -> std::io::Result<()>,
) -> std::io::Result<()> {
    while left > 0 {
        let piece = input.fill_buf()?;
        if piece.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let piece = &piece[..piece.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
        let length = piece.len();
        each(piece)?;
        input.consume(length);
        left -= length as u64;
    }
    Ok(())
}

fn whole_body(call: &Call, input: &mut Input) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    read_body(call, input, |piece| {
        body.extend_from_slice(piece);
        Ok(())
    })?;
    Ok(body)
}

fn reply(out: &mut impl Write, status: u64, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<()> {
    let mut text = format!("HTTP/1.1 {status} Probe\r\nContent-Length: {}\r\n", body.len());
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    let mut message = text.into_bytes();
    message.extend_from_slice(body);
    out.write_all(&message)
}

/// Starts an answer of unknown length.
fn begin_chunked(out: &mut impl Write) -> std::io::Result<()> {
    out.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
}

fn chunk(out: &mut impl Write, piece: &[u8]) -> std::io::Result<()> {
    let mut message = format!("{:x}\r\n", piece.len()).into_bytes();
    message.extend_from_slice(piece);
    message.extend_from_slice(b"\r\n");
    out.write_all(&message)
}

fn answer(call: &Call, input: &mut Input, out: &mut UnixStream) -> std::io::Result<()> {
    let mut body = None;
    let word = match call.header("Probe") {
        Some(word) => word.to_owned(),
        // Clients without headers of their own say it in the body; only a short one can be meant.
        None if matches!(call.body, Body::Length(1..=4096)) => {
            let bytes = whole_body(call, input)?;
            let told = serde_json::from_slice::<Value>(&bytes).ok();
            let word = told.as_ref().and_then(|value| value.get("do")?.as_str()).unwrap_or("echo").to_owned();
            body = Some(bytes);
            word
        }
        None => "echo".to_owned(),
    };
    let (name, number) = split(&word);
    if name == "early" {
        begin_chunked(out)?;
        chunk(out, b"early")?;
        let mut count = body.as_ref().map_or(0, |body| body.len() as u64);
        if body.is_none() {
            read_body(call, input, |piece| {
                count += piece.len() as u64;
                Ok(())
            })?;
        }
        chunk(out, format!(", then {count} bytes").as_bytes())?;
        return out.write_all(b"0\r\n\r\n");
    }
    if name == "echo" && body.is_none() && matches!(call.body, Body::Chunked | Body::Length(LONG..)) {
        begin_chunked(out)?;
        read_body(call, input, |piece| chunk(out, piece))?;
        return out.write_all(b"0\r\n\r\n");
    }
    let body = match body {
        Some(body) => body,
        None => whole_body(call, input)?,
    };
    match name {
        "echo" => reply(out, 200, &[], &body),
        "report" => {
            reply(out, 200, &[("Content-Type", "application/json")], report(call).to_string().as_bytes())
        }
        "sleep" => {
            std::thread::sleep(Duration::from_millis(number));
            reply(out, 200, &[], b"slept")
        }
        "counted" => {
            std::thread::sleep(Duration::from_millis(number));
            record(call, |key| format!("end {key}\n"))?;
            reply(out, 200, &[], b"slept")
        }
        "version" => {
            let version = version();
            std::thread::sleep(Duration::from_millis(number));
            reply(out, 200, &[], version.as_bytes())
        }
        "spin" => {
            let until = Instant::now() + Duration::from_millis(number);
            let mut turns = 0u64;
            while Instant::now() < until {
                turns = std::hint::black_box(turns + 1);
            }
            reply(out, 200, &[], turns.to_string().as_bytes())
        }
        "exit" => {
            eprintln!("probe: exiting with {number} in a call");
            std::process::exit(number as i32);
        }
        "abort" => {
            eprintln!("probe: aborting in a call");
            std::process::abort();
        }
        "half" => {
            out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n0123456789")?;
            std::process::exit(0);
        }
        "memory" => reply(out, 200, &[], take_memory(number).to_string().as_bytes()),
        "forks" => reply(out, 200, &[], fork_without_end().to_string().as_bytes()),
        "garbage" => out.write_all(b"\x00\x01 this is not HTTP\r\n\r\n"),
        "stderr" => {
            let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
            let mut stderr = std::io::stderr().lock();
            for _ in 0..number * 1024 {
                stderr.write_all(&line)?;
            }
            reply(out, 200, &[], b"flooded")
        }
        "excess" => {
            // In one piece with the first of what is too much, so that nobody can see the one without the other.
            let mut message = Vec::new();
            reply(&mut message, 200, &[], b"complete")?;
            // Until the other end has had enough.
            loop {
                message.extend_from_slice(b"and more");
                out.write_all(&message)?;
                message.clear();
            }
        }
        "large" => large(out, number),
        "headers" => {
            let value = "v".repeat(1000);
            let names: Vec<_> = (0..number / 1000).map(|n| format!("X-Probe-{n}")).collect();
            let headers: Vec<_> = names.iter().map(|name| (name.as_str(), value.as_str())).collect();
            reply(out, 200, &headers, b"headers")
        }
        "status" => reply(out, number, &[], b"status"),
        "http-status" => reply(
            out,
            200,
            &[("Fn-Http-Status", &number.to_string()), ("Fn-Http-H-X-Probe", "seen"), ("X-Plain", "plain")],
            b"http-status",
        ),
        "hang" => {
            eprintln!("probe: hanging");
            for_ever()
        }
        other => reply(out, 502, &[], format!("{other:?} is not in the table of Probe").as_bytes()),
    }
}

/// Who and where it is.
fn report(call: &Call) -> Value {
    let user = std::fs::metadata("/proc/self").map_or(0, |me| me.uid());
    json!({
        "pid": std::process::id(),
        "parent": std::os::unix::process::parent_id(),
        "user": user,
        "cwd": std::env::current_dir().unwrap_or_default(),
        "env": std::env::vars().collect::<BTreeMap<_, _>>(),
        "headers": call.headers,
        "calls": CALLS.load(Ordering::Relaxed),
        // Time since the machine started, so that a test can tell one process from another of the same number.
        "uptime": std::fs::read_to_string("/proc/uptime").unwrap_or_default().trim(),
    })
}

/// Takes memory and writes to every page of it, so that it is really there.
fn take_memory(mebibytes: u64) -> usize {
    let mut held: Vec<Vec<u8>> = Vec::new();
    for _ in 0..mebibytes {
        let mut block = vec![0u8; 1 << 20];
        block.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        held.push(std::hint::black_box(block));
    }
    held.len()
}

/// Forks until the system refuses. The children wait to be killed with the container.
fn fork_without_end() -> u64 {
    let mut children = 0;
    loop {
        // SAFETY: the child calls nothing but `pause`, which is safe after a fork in a process with threads.
        match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: takes no arguments and touches no memory.
                unsafe { libc::pause() };
            },
            -1 => return children,
            _ => children += 1,
        }
    }
}

fn large(out: &mut UnixStream, bytes: u64) -> std::io::Result<()> {
    write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n")?;
    std::io::copy(&mut std::io::repeat(b'l').take(bytes), out).map(drop)
}
