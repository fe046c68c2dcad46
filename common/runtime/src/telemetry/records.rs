//! Lines of logs on their way to the collector: what functions wrote, what is said about a call, and the process's own log.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::queue::Queue;
use super::span::Spot;
use super::wire::{Labels, RecordHead, cut};

/// Most bytes of a line.
const MAX_LINE: usize = 16 << 10;

/// How grave a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Nobody said.
    Unknown,
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

impl Severity {
    /// As OTLP numbers it.
    fn written(self) -> (u8, &'static str) {
        match self {
            Severity::Unknown => (0, ""),
            Severity::Trace => (1, "TRACE"),
            Severity::Debug => (5, "DEBUG"),
            Severity::Info => (9, "INFO"),
            Severity::Warn => (13, "WARN"),
            Severity::Error => (17, "ERROR"),
        }
    }
}

/// One line.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub at: SystemTime,
    pub severity: Severity,
    pub text: &'a str,
    /// The span that it was written in.
    pub spot: Option<Spot>,
}

/// Takes lines. Cheap to clone; never waits: what does not fit is dropped and counted.
#[derive(Debug, Clone, Default)]
pub struct Recorder(Option<Arc<Queue>>);

impl Recorder {
    /// Takes none.
    #[must_use]
    pub fn off() -> Self {
        Self(None)
    }

    pub(super) fn new(queue: Arc<Queue>) -> Self {
        Self(Some(queue))
    }

    pub(super) fn queue(&self) -> Option<&Arc<Queue>> {
        self.0.as_ref()
    }

    /// Whether lines go anywhere: what is costly need not be made otherwise.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Puts a line in, with what is said of it.
    pub fn put(&self, record: &Record<'_>, labels: &[&Labels]) {
        let Some(queue) = &self.0 else { return };
        let text = cut(record.text, MAX_LINE);
        let said: usize = labels.iter().map(|labels| labels.bytes().len()).sum();
        let mut bytes = Vec::with_capacity(96 + text.len() + said);
        let head = RecordHead {
            at: nanos(record.at),
            seen: nanos(SystemTime::now()),
            severity: record.severity.written(),
            body: text,
            spot: record.spot,
        };
        head.write(&mut bytes);
        labels.iter().for_each(|labels| bytes.extend_from_slice(labels.bytes()));
        queue.push(&bytes);
    }
}

/// Since 1970.
fn nanos(at: SystemTime) -> u64 {
    u64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}
