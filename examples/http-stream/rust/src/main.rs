//! A hot function in plain Rust, with nothing but the standard library: an HTTP/1.1 server on a Unix socket that is started once
//! and then takes call after call. It answers with the body that it was given.
//!
//! The contract is in three parts: `FN_LISTENER` names the socket; who listens does so under another name and then links to
//! it, so that nobody sees a socket that is not ready; and every request on a connection is a call.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

/// A body whose length was said is read in one piece up to this size.
const LARGEST: u64 = 256 << 20;

fn main() -> std::io::Result<()> {
    let listener = std::env::var("FN_LISTENER").unwrap_or_else(|_| "unix:/tmp/iofs/lsnr.sock".to_owned());
    let path = PathBuf::from(listener.strip_prefix("unix:").unwrap_or(&listener));
    let own = path.with_file_name("echo.sock");
    let server = UnixListener::bind(&own)?;
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o666))?;
    symlink("echo.sock", &path)?;
    // STDERR is the function's log.
    eprintln!("listening on {}", path.display());
    for connection in server.incoming() {
        let connection = connection?;
        // With `concurrency` above 1 there are several connections at once. One that breaks concerns no other.
        std::thread::spawn(move || serve(connection));
    }
    Ok(())
}

/// The calls of one connection, one after the other, until it is closed.
fn serve(mut out: UnixStream) -> std::io::Result<()> {
    let mut input = BufReader::with_capacity(64 << 10, out.try_clone()?);
    let mut body = Vec::new();
    let mut answer = Vec::new();
    while let Some(kind) = read_head(&mut input)? {
        body.clear();
        match kind {
            Body::Length(length) if length > LARGEST => return Err(std::io::ErrorKind::FileTooLarge.into()),
            Body::Length(length) => read_exactly(&mut input, length, &mut body)?,
            Body::Chunked => read_chunks(&mut input, &mut body)?,
        }
        answer.clear();
        write!(
            answer,
            "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )?;
        if body.len() <= 16 << 10 {
            // Head and body in one write: one system call less.
            answer.extend_from_slice(&body);
            out.write_all(&answer)?;
        } else {
            out.write_all(&answer)?;
            out.write_all(&body)?;
        }
    }
    Ok(())
}

/// How the length of a body is known.
enum Body {
    Length(u64),
    Chunked,
}

/// Reads a request's head; `None` at the end of the connection.
fn read_head(input: &mut BufReader<UnixStream>) -> std::io::Result<Option<Body>> {
    let mut line = Vec::new();
    if input.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    let mut body = Body::Length(0);
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let text = line.trim_ascii_end();
        if text.is_empty() {
            return Ok(Some(body));
        }
        let Some(colon) = text.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&text[..colon], text[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
            body = Body::Length(length.ok_or(std::io::ErrorKind::InvalidData)?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            body = Body::Chunked;
        }
    }
}

fn read_exactly(input: &mut BufReader<UnixStream>, length: u64, body: &mut Vec<u8>) -> std::io::Result<()> {
    if input.take(length).read_to_end(body)? as u64 == length {
        return Ok(());
    }
    Err(std::io::ErrorKind::UnexpectedEof.into())
}

fn read_chunks(input: &mut BufReader<UnixStream>, body: &mut Vec<u8>) -> std::io::Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        input.read_line(&mut line)?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).map_err(std::io::Error::other)?;
        read_exactly(input, size, body)?;
        // The line end behind the piece; after the last one, of size 0, the end of the body.
        line.clear();
        input.read_line(&mut line)?;
        if size == 0 {
            return Ok(());
        }
        if body.len() as u64 > LARGEST {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
    }
}
