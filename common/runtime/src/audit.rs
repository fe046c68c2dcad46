//! Who changed what, and who was not let in: a JSON object a line, in a file of its own or in the log.
//!
//! Lines go through a bounded queue to a thread that writes them, as the log's do. What is refused is noted only so often, since those who
//! are not let in must not fill a disk; what was left out is counted in the next line.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use stoker_core::moment;

use crate::logs::writer::{Lines, Writer};
use crate::metrics::{Listed, Metrics, Read};

static DROPPED: Read = Read::counter(
    "stoker_audit_lines_dropped",
    "Lines of the audit's file that could not be written; shown where there is such a file",
);

/// The metrics of the audit itself.
pub static LISTED: Listed = &[&DROPPED.about];

/// Refusals that are noted in one second.
const REFUSALS: u32 = 20;

/// Where it is noted. Cheap to share.
#[derive(Debug, Clone)]
pub struct Audit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    file: Option<(Lines, Arc<AtomicBool>)>,
    refusals: Mutex<Refusals>,
}

#[derive(Debug)]
struct Refusals {
    second: Instant,
    noted: u32,
    left_out: u64,
}

/// The thread that writes the file. To be stopped last.
#[derive(Debug)]
pub struct Keeper(Option<Writer>);

impl Keeper {
    /// Writes what waits, for at most `limit`.
    pub fn stop(self, limit: Duration) {
        if let Some(writer) = self.0 {
            writer.stop(limit);
        }
    }
}

/// A change, or the attempt of one.
#[derive(Debug, Clone, Copy)]
pub struct Event<'a> {
    /// `apply`, `delete`, `drain`, …
    pub what: &'a str,
    /// Whom it was done by; empty where nobody is asked.
    pub identity: &'a str,
    /// Where from; empty if that is not known.
    pub remote: &'a str,
    /// The function or runner, or several.
    pub on: &'a [String],
    /// `ok`, or the name of the error.
    pub outcome: &'a str,
}

impl Audit {
    /// Into the log.
    #[must_use]
    pub fn into_log() -> Self {
        Self::new(None)
    }

    /// Into a file, which only this user can read; lines are added at its end.
    ///
    /// # Errors
    /// The file cannot be opened, or the thread not started.
    pub fn into_file(path: &Path) -> io::Result<(Self, Keeper)> {
        let again = Arc::new(AtomicBool::new(false));
        let out = Reopened { path: path.to_owned(), file: open(path)?, again: again.clone() };
        let writer = Writer::start(out)?;
        let audit = Self::new(Some((writer.lines(), again)));
        Ok((audit, Keeper(Some(writer))))
    }

    fn new(file: Option<(Lines, Arc<AtomicBool>)>) -> Self {
        let refusals = Mutex::new(Refusals { second: Instant::now(), noted: 0, left_out: 0 });
        Self(Arc::new(Inner { file, refusals }))
    }

    /// Opens the file anew before the next line, for those who move it away.
    pub fn reopen(&self) {
        if let Some((_, again)) = &self.0.file {
            again.store(true, Ordering::Relaxed);
        }
    }

    /// Shows how many lines were dropped.
    pub fn measure(&self, metrics: &Metrics) {
        if let Some((lines, _)) = &self.0.file {
            let lines = lines.clone();
            metrics.read(&DROPPED, move || lines.dropped() as f64);
        }
    }

    /// Notes a change.
    pub fn note(&self, event: Event<'_>) {
        self.write(event, 0);
    }

    /// Notes that somebody was not let in.
    pub fn refused(&self, event: Event<'_>) {
        let left_out = {
            let mut refusals = self.0.refusals.lock().unwrap_or_else(PoisonError::into_inner);
            if refusals.second.elapsed() >= Duration::from_secs(1) {
                (refusals.second, refusals.noted) = (Instant::now(), 0);
            }
            if refusals.noted == REFUSALS {
                refusals.left_out += 1;
                return;
            }
            refusals.noted += 1;
            std::mem::take(&mut refusals.left_out)
        };
        self.write(event, left_out);
    }

    fn write(&self, event: Event<'_>, left_out: u64) {
        let Event { what, identity, remote, on, outcome } = event;
        match &self.0.file {
            None => {
                let on = on.join(",");
                tracing::info!(target: "audit", what, identity, remote, on, outcome, left_out, "audit");
            }
            Some((lines, _)) => {
                let time = moment::rfc3339_millis(SystemTime::now());
                let mut line = json!({ "time": time, "what": what, "on": on, "outcome": outcome });
                let mut more = |key: &str, value: Value| line[key] = value;
                if !identity.is_empty() {
                    more("identity", identity.into());
                }
                if !remote.is_empty() {
                    more("remote", remote.into());
                }
                if left_out > 0 {
                    more("refusals_left_out", left_out.into());
                }
                lines.put(format!("{line}\n").into_bytes());
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// A file that is opened anew when that is asked for.
struct Reopened {
    path: PathBuf,
    file: File,
    again: Arc<AtomicBool>,
}

impl Write for Reopened {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.again.swap(false, Ordering::Relaxed) {
            match open(&self.path) {
                Ok(file) => self.file = file,
                Err(error) => {
                    tracing::error!(%error, path = %self.path.display(), "the audit goes on in the old file")
                }
            }
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_an_object_a_moved_file_is_followed_by_another_and_refusals_are_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let (audit, keeper) = Audit::into_file(&path).unwrap();
        let event = |what, on| Event { what, identity: "ci", remote: "10.0.0.1:5", on, outcome: "ok" };
        let on = ["demo/hello\n\"x\"".to_owned()];
        audit.note(event("apply", &on));
        // Refusals of one second, however many; of a second that begins meanwhile some more.
        for _ in 0..1000 {
            audit.refused(event("token", &[]));
        }
        keeper.stop(Duration::from_secs(10));
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((&lines[0]["what"], &lines[0]["identity"]), (&json!("apply"), &json!("ci")));
        assert_eq!(lines[0]["on"], json!(on));
        assert!((21..1000).contains(&lines.len()), "{}", lines.len());

        let (audit, keeper) = Audit::into_file(&path).unwrap();
        std::fs::rename(&path, directory.path().join("old")).unwrap();
        audit.reopen();
        audit.note(event("delete", &[]));
        keeper.stop(Duration::from_secs(10));
        use std::os::unix::fs::PermissionsExt as _;
        assert!(std::fs::read_to_string(&path).unwrap().contains("delete"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
