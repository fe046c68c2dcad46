//! Writes lines from a bounded queue, in a thread of its own.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait.
const LINES: usize = 4096;

/// The thread that writes, until [`Writer::stop`].
#[derive(Debug)]
pub(crate) struct Writer {
    lines: Lines,
    /// Disconnected once the thread has ended.
    ended: Receiver<()>,
}

/// Where lines are put. Never waits.
#[derive(Debug, Clone)]
pub(crate) struct Lines {
    queue: SyncSender<Told>,
    dropped: Arc<AtomicU64>,
}

enum Told {
    Line(Vec<u8>),
    /// Somebody waits until the lines before this are written.
    Flush(SyncSender<()>),
    Stop,
}

impl Writer {
    pub fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, told) = sync_channel(LINES);
        let (ending, ended) = sync_channel(1);
        let dropped = Arc::new(AtomicU64::new(0));
        let lines = Lines { queue, dropped: dropped.clone() };
        std::thread::Builder::new().name("log".to_owned()).spawn(move || {
            write(&told, &dropped, out);
            drop(ending);
        })?;
        Ok(Self { lines, ended })
    }

    pub fn lines(&self) -> Lines {
        self.lines.clone()
    }

    /// Waits until what has been put is written, for at most `limit`.
    pub fn flush(&self, limit: Duration) {
        let (written, done) = sync_channel(1);
        // As in `stop`.
        if self.lines.queue.try_send(Told::Flush(written)).is_ok() {
            done.recv_timeout(limit).ok();
        }
    }

    /// Writes what waits, for at most `limit`; a thread that hangs in a write is left behind.
    pub fn stop(self, limit: Duration) {
        // A full queue means that the other end does not read: there is nothing to wait for.
        if self.lines.queue.try_send(Told::Stop).is_ok() {
            self.ended.recv_timeout(limit).ok();
        }
    }
}

impl Lines {
    /// A whole line, with its end.
    pub fn put(&self, line: Vec<u8>) {
        if self.queue.try_send(Told::Line(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn write(told: &Receiver<Told>, dropped: &AtomicU64, mut out: impl Write) {
    let mut said = 0;
    loop {
        let line = match told.recv() {
            Ok(Told::Line(line)) => line,
            Ok(Told::Flush(waits)) => {
                out.flush().ok();
                // Who does not wait any more has dropped it.
                waits.try_send(()).ok();
                continue;
            }
            Ok(Told::Stop) | Err(_) => break,
        };
        let lost = dropped.load(Ordering::Relaxed);
        if lost > said {
            // Without the subscriber: its queue may be full again.
            let text =
                format!("{{\"level\":\"WARN\",\"message\":\"{} log lines were dropped\"}}\n", lost - said);
            out.write_all(text.as_bytes()).ok();
            said = lost;
        }
        // There is nobody to tell that STDERR is gone.
        out.write_all(&line).ok();
    }
    out.flush().ok();
}

impl<'w> MakeWriter<'w> for Lines {
    type Writer = Line;

    fn make_writer(&'w self) -> Line {
        Line { lines: self.clone(), text: Vec::new(), finish: std::convert::identity }
    }
}

/// One line; it leaves when it is dropped.
pub(crate) struct Line {
    lines: Lines,
    text: Vec<u8>,
    /// What is made of it before it leaves.
    finish: fn(Vec<u8>) -> Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let text = std::mem::take(&mut self.text);
        if !text.is_empty() {
            self.lines.put((self.finish)(text));
        }
    }
}

/// Lines for people, with colours of the log's own or without.
#[derive(Debug, Clone)]
pub(crate) struct ForPeople {
    pub lines: Lines,
    pub colours: bool,
}

impl<'w> MakeWriter<'w> for ForPeople {
    type Writer = Line;

    fn make_writer(&'w self) -> Line {
        let finish =
            if self.colours { |text| for_people(text, true) } else { |text| for_people(text, false) };
        Line { lines: self.lines.clone(), text: Vec::new(), finish }
    }
}

/// What follows on the first line is moved in, and what steers a terminal is left out, but for colours: what functions and clients wrote stands in errors, and
/// must not look like a line of the log, nor take others away.
pub(crate) fn for_people(text: Vec<u8>, colours: bool) -> Vec<u8> {
    let mut shown = Vec::with_capacity(text.len());
    let mut body = text.strip_suffix(b"\n").unwrap_or(&text);
    let end = &text[body.len()..];
    while let [byte, rest @ ..] = body {
        match byte {
            b'\n' => shown.extend_from_slice(b"\n    "),
            b'\t' => shown.push(b'\t'),
            0x1b if colours && is_colour(rest) => shown.push(0x1b),
            byte if byte.is_ascii_control() => {}
            byte => shown.push(*byte),
        }
        body = rest;
    }
    shown.extend_from_slice(end);
    shown
}

/// Whether an escape that is followed by this chooses a colour.
fn is_colour(rest: &[u8]) -> bool {
    let Some(numbers) = rest.strip_prefix(b"[") else { return false };
    let end = numbers.iter().position(|byte| !byte.is_ascii_digit() && *byte != b';');
    end.is_some_and(|end| numbers[end] == b'm')
}
