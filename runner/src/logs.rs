//! What functions wrote: bounded rings, one a function, lines attributed to calls, and the last lines of a container for
//! the errors that need them. Writers never wait for readers; what a reader missed is counted. The same lines go to the collector of
//! telemetry, where there is one, each with the trace of its call.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use stoker_core::error::MAX_LOG_TAIL;
use stoker_core::function::FunctionName;
use stoker_core::{CallId, ContainerId};
use stoker_runtime::telemetry::{Labels, Record, Recorder, Severity, Spot, names};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::{broadcast, watch};

/// Lines kept of one function, and their bytes.
const RING_LINES: usize = 1000;
const RING_BYTES: usize = 512 * 1024;
/// Longest line; longer ones are split.
const MAX_LINE: usize = 16 * 1024;
/// Lines that a follower may lag behind before it misses some.
const FOLLOW: usize = 1024;

/// Where a line was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Stdout,
    Stderr,
    /// By a process beside the function's own, to either.
    Extension,
    /// Nowhere: the runner says it about the function.
    Platform,
}

/// One line.
#[derive(Debug, Clone)]
pub struct Line {
    pub time: SystemTime,
    pub source: Source,
    pub text: Bytes,
    pub call: Option<CallId>,
    pub container: ContainerId,
    /// Its number among the function's lines here, from 1.
    pub sequence: u64,
}

/// Of all functions of this runner.
#[derive(Debug, Default)]
pub struct Logs {
    functions: Mutex<HashMap<FunctionName, Arc<Ring>>>,
    recorder: Recorder,
}

impl Logs {
    /// Whose lines go there too.
    pub fn collected(recorder: Recorder) -> Self {
        Self { functions: Mutex::default(), recorder }
    }

    /// The ring of a function, made if there is none.
    pub fn ring(&self, function: &FunctionName) -> Arc<Ring> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || Arc::new(Ring::new(function.clone(), self.recorder.clone()));
        functions.entry(function.clone()).or_insert_with(made).clone()
    }
}

/// Of one function.
#[derive(Debug)]
pub struct Ring {
    function: FunctionName,
    kept: Mutex<Kept>,
    follow: broadcast::Sender<Arc<Line>>,
    recorder: Recorder,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<Arc<Line>>,
    bytes: usize,
    /// Lines that ever came.
    count: u64,
}

impl Ring {
    fn new(function: FunctionName, recorder: Recorder) -> Self {
        Self { function, kept: Mutex::default(), follow: broadcast::channel(FOLLOW).0, recorder }
    }

    fn push(&self, mut line: Line) {
        let mut guard = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let Kept { lines, bytes, count } = &mut *guard;
        *count += 1;
        line.sequence = *count;
        let line = Arc::new(line);
        *bytes += line.text.len();
        lines.push_back(line.clone());
        while lines.len() > RING_LINES || *bytes > RING_BYTES {
            match lines.pop_front() {
                Some(old) => *bytes -= old.text.len(),
                None => break,
            }
        }
        // Under the lock, so that a new follower sees each line once. Nobody listening is no error.
        _ = self.follow.send(line);
    }

    /// What is kept, and what comes from then on.
    pub fn read(&self) -> (Vec<Arc<Line>>, broadcast::Receiver<Arc<Line>>) {
        let guard = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (guard.lines.iter().cloned().collect(), self.follow.subscribe())
    }
}

/// Of one container.
#[derive(Debug)]
pub struct ContainerLog {
    id: ContainerId,
    ring: Arc<Ring>,
    /// What the collector is told of each line.
    labels: Labels,
    state: Mutex<State>,
    /// Pipes that are still open.
    open: watch::Sender<usize>,
    tap: Mutex<Option<Tap>>,
}

/// Who gets a container's lines too.
#[derive(Clone)]
struct Tap(Arc<Listener>);

type Listener = dyn Fn(Source, &[u8]) + Send + Sync;

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tap")
    }
}

/// A call, and where it is in its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    call: CallId,
    spot: Option<Spot>,
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<Owner>,
    /// The one that ended last, if it had the container to itself: what is read now was written for it.
    last: Option<Owner>,
    /// Several ran at once since nobody did.
    shared: bool,
    tail: Tail,
}

/// The last lines of one call, with those of the start before it where it is the first. What others wrote is none of its caller's business, nor
/// what may have been another's: lines that come while several run are nobody's here.
#[derive(Debug, Default)]
struct Tail {
    bytes: VecDeque<u8>,
    /// Whose they are; of the start alone before the first call.
    of: Option<CallId>,
    /// Calls that have begun.
    begun: u64,
}

impl Tail {
    /// A call begins, beside others or alone.
    fn begin(&mut self, call: CallId, alone: bool) {
        if self.begun > 0 {
            self.bytes.clear();
        }
        self.begun += 1;
        if alone {
            self.of = Some(call);
        }
    }

    fn add(&mut self, text: &[u8], owner: Option<CallId>) {
        match (self.of, owner) {
            (None, None) => {}
            (Some(_), None) => return,
            (of, owner) if of == owner => {}
            (_, owner) => {
                self.bytes.clear();
                self.of = owner;
            }
        }
        self.bytes.extend(text);
        self.bytes.push_back(b'\n');
        let excess = self.bytes.len().saturating_sub(MAX_LOG_TAIL);
        self.bytes.drain(..excess);
    }
}

impl ContainerLog {
    pub fn new(id: ContainerId, ring: Arc<Ring>) -> Arc<Self> {
        let open = watch::Sender::new(0);
        let labels = crate::observe::labels(&id, ring.function.as_str());
        Arc::new(Self { id, ring, labels, state: Mutex::default(), open, tap: Mutex::default() })
    }

    /// From now on `tap` gets every line that is written, too, and nobody else. It must not wait.
    pub fn tap(&self, tap: impl Fn(Source, &[u8]) + Send + Sync + 'static) {
        *self.tap.lock().unwrap_or_else(PoisonError::into_inner) = Some(Tap(Arc::new(tap)));
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lines belong to this call from now on, as long as it is the only one, and until the next begins: an answer may overtake
    /// the lines that were written before it, since they come by another pipe.
    pub fn begin(&self, call: CallId) {
        let mut state = self.state();
        let alone = state.calls.is_empty();
        state.shared |= !alone;
        state.last = None;
        state.tail.begin(call, alone);
        state.calls.push(Owner { call, spot: None });
    }

    /// What is written for the call belongs there in its trace; asked for only where somebody collects lines.
    pub fn traced(&self, call: CallId, spot: impl FnOnce() -> Option<Spot>) {
        if self.ring.recorder.is_on()
            && let Some(owner) = self.state().calls.iter_mut().find(|owner| owner.call == call)
        {
            owner.spot = spot();
        }
    }

    /// The call is over.
    pub fn end(&self, call: CallId) {
        let mut state = self.state();
        let Some(at) = state.calls.iter().position(|owner| owner.call == call) else { return };
        let owner = state.calls.remove(at);
        if state.calls.is_empty() {
            state.last = (!std::mem::take(&mut state.shared)).then_some(owner);
        }
    }

    /// A line of the runner's own about a call.
    pub fn note(&self, call: CallId, text: String) {
        let owner = {
            let state = self.state();
            state.calls.iter().chain(&state.last).find(|owner| owner.call == call).copied()
        };
        self.push(Source::Platform, text.into(), Some(owner.unwrap_or(Owner { call, spot: None })));
    }

    /// The last lines of a call, as far as they are certainly its; without one those of a start, as long as there was one call at most.
    pub fn tail(&self, call: Option<CallId>) -> String {
        let tail = &self.state().tail;
        let is_its = match call {
            Some(_) => tail.of == call,
            None => tail.begun <= 1,
        };
        let bytes: Vec<u8> = tail.bytes.iter().copied().filter(|_| is_its).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns when every pipe was read to its end. The caller bounds it: a child of the function may keep one open.
    pub async fn drained(&self) {
        // The sender lives in `self`.
        _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }

    /// Reads a pipe to its end in a task of its own, which ends with the pipe: when the container has.
    pub fn follow(self: &Arc<Self>, source: Source, pipe: impl AsyncRead + Send + Unpin + 'static) {
        self.open.send_modify(|open| *open += 1);
        let log = self.clone();
        tokio::spawn(async move {
            log.read(source, pipe).await;
            log.open.send_modify(|open| *open -= 1);
        });
    }

    async fn read(&self, source: Source, mut pipe: impl AsyncRead + Unpin) {
        let mut buffer = BytesMut::with_capacity(MAX_LINE);
        loop {
            let end = !matches!(pipe.read_buf(&mut buffer).await, Ok(n) if n > 0);
            while let Some(text) = split(&mut buffer, end) {
                self.line(source, &text);
            }
            if end {
                return;
            }
            buffer.reserve(4096);
        }
    }

    fn line(&self, source: Source, text: &[u8]) {
        let tap = self.tap.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(Tap(tap)) = tap {
            tap(source, text);
        }
        let owner = {
            let mut state = self.state();
            let owner = match state.calls.as_slice() {
                [] => state.last,
                [one] => Some(*one),
                _ => None,
            };
            state.tail.add(text, owner.map(|owner| owner.call));
            owner
        };
        self.push(source, Bytes::copy_from_slice(text), owner);
    }

    fn push(&self, source: Source, text: Bytes, owner: Option<Owner>) {
        let (time, container) = (SystemTime::now(), self.id.clone());
        if self.ring.recorder.is_on() {
            self.collect(time, source, &text, owner);
        }
        let call = owner.map(|owner| owner.call);
        self.ring.push(Line { time, source, text, call, container, sequence: 0 });
    }
}

impl ContainerLog {
    /// For the collector.
    fn collect(&self, at: SystemTime, source: Source, text: &[u8], owner: Option<Owner>) {
        let (who, stream) = match source {
            Source::Stdout => ("function", Some("stdout")),
            Source::Stderr => ("function", Some("stderr")),
            Source::Extension => ("extension", None),
            Source::Platform => ("platform", None),
        };
        let mut own = Labels::default().with(names::LOG_SOURCE, who);
        if let Some(stream) = stream {
            own = own.with(names::LOG_STREAM, stream);
        }
        if let Some(Owner { call, .. }) = owner {
            own = own.with(names::FAAS_INVOCATION, call);
        }
        // What a function writes says nothing of how grave it is.
        let severity = if source == Source::Platform { Severity::Info } else { Severity::Unknown };
        let text = String::from_utf8_lossy(text);
        let record = Record { at, severity, text: &text, spot: owner.and_then(|owner| owner.spot) };
        self.ring.recorder.put(&record, &[&self.labels, &own]);
    }
}

/// The next line without its end; what is too long, or last, counts as one.
fn split(buffer: &mut BytesMut, end: bool) -> Option<BytesMut> {
    match buffer.iter().take(MAX_LINE).position(|b| *b == b'\n') {
        Some(at) => {
            let mut line = buffer.split_to(at + 1);
            line.truncate(at);
            if line.last() == Some(&b'\r') {
                line.truncate(at - 1);
            }
            Some(line)
        }
        None if buffer.len() >= MAX_LINE => Some(buffer.split_to(MAX_LINE)),
        None if end && !buffer.is_empty() => Some(buffer.split()),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stoker_core::Incarnation;

    #[tokio::test]
    async fn lines_are_kept_split_and_attributed() {
        let logs = Logs::default();
        let name = FunctionName::parse("a/b").unwrap();
        let log = ContainerLog::new(ContainerId::new(Incarnation(1), 1), logs.ring(&name));
        let call = CallId::new();
        log.begin(call);
        let text = [&b"one\r\n\n"[..], &[b'x'; MAX_LINE + 1], b"\nlast"].concat();
        log.follow(Source::Stderr, std::io::Cursor::new(text));
        log.drained().await;
        let (lines, _) = logs.ring(&name).read();
        let lengths: Vec<_> = lines.iter().map(|l| l.text.len()).collect();
        assert_eq!(lengths, [3, 0, MAX_LINE, 1, 4]);
        assert_eq!(lines.iter().map(|l| l.sequence).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert!(lines.iter().all(|l| l.call == Some(call)));
        assert!(log.tail(Some(call)).ends_with("x\nlast\n"));
        assert!(log.tail(Some(call)).len() <= MAX_LOG_TAIL);
    }

    #[tokio::test]
    async fn an_error_has_the_lines_of_its_own_call() {
        let name = FunctionName::parse("a/b").unwrap();
        let log = ContainerLog::new(ContainerId::new(Incarnation(1), 1), Logs::default().ring(&name));
        let (one, other) = (CallId::new(), CallId::new());
        log.line(Source::Stderr, b"start");
        assert_eq!(log.tail(None), "start\n");
        log.begin(one);
        log.line(Source::Stderr, b"one");
        assert_eq!((log.tail(Some(one)), log.tail(Some(other))), ("start\none\n".to_owned(), String::new()));
        log.end(one);
        log.line(Source::Stderr, b"late");
        assert_eq!(log.tail(Some(one)), "start\none\nlate\n");
        log.begin(other);
        assert_eq!((log.tail(Some(one)), log.tail(Some(other))), (String::new(), String::new()));
        log.line(Source::Stderr, b"other");
        assert_eq!(log.tail(Some(other)), "other\n");
        // Of what is written while both run neither is told.
        log.begin(one);
        log.line(Source::Stderr, b"whose?");
        assert_eq!((log.tail(Some(one)), log.tail(Some(other))), (String::new(), String::new()));
        log.end(other);
        log.line(Source::Stderr, b"one");
        assert_eq!((log.tail(Some(one)), log.tail(Some(other))), ("one\n".to_owned(), String::new()));
    }

    #[tokio::test]
    async fn a_line_that_comes_late_is_still_its_calls() {
        let name = FunctionName::parse("a/b").unwrap();
        let logs = Logs::default();
        let log = ContainerLog::new(ContainerId::new(Incarnation(1), 1), logs.ring(&name));
        let (one, other) = (CallId::new(), CallId::new());
        log.line(Source::Stderr, b"start");
        log.begin(one);
        log.end(one);
        log.line(Source::Stderr, b"late");
        log.begin(other);
        log.line(Source::Stderr, b"next");
        log.begin(one);
        log.line(Source::Stderr, b"whose?");
        log.end(other);
        log.line(Source::Stderr, b"alone");
        log.end(one);
        log.line(Source::Stderr, b"whose, again?");
        let calls: Vec<_> = logs.ring(&name).read().0.iter().map(|line| line.call).collect();
        assert_eq!(calls, [None, Some(one), Some(other), None, Some(one), None]);
    }
}
