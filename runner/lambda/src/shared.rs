//! What the connections of one container share: its state, its invocations, and what is told of them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Value, json};
use stoker_core::machine::Machine as _;
use stoker_core::moment::rfc3339_millis;
use tokio::sync::{Notify, mpsc};

use crate::extensions::Extensions;
use crate::handover::Places;
use crate::machine::{Event, State};
use crate::telemetry::{Api, Telemetry, ms, tracing};
use crate::{About, Failure, Over, Said};

/// Invocations that ran out of time and are remembered as that, where several are under way at once.
const LATE: usize = 1000;

/// An invocation that is to be handed over, or was.
#[derive(Debug)]
pub(crate) struct Work {
    pub id: String,
    pub headers: HeaderMap,
    pub payload: Bytes,
    pub say: mpsc::Sender<Said>,
    pub trace: String,
    pub tenant: String,
    pub handed: Option<Instant>,
    /// Its end was told to those who subscribed.
    pub told: bool,
    /// Where it is, where several are under way at once.
    pub state: State,
    /// How its answer came.
    pub measured: Option<Measured>,
}

/// How an answer came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub first: Instant,
    pub bytes: usize,
    pub streams: bool,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub state: State,
    /// Wait for `next`, in this order.
    pub pending: VecDeque<Work>,
    /// Were handed over. The one of a runtime that takes one at a time stays until it asks for the next, so that a second answer is
    /// told from one to an invocation that never was.
    pub current: Vec<Work>,
    /// Names of those that ran out of time.
    pub late: VecDeque<String>,
    pub init_error: Option<Failure>,
    pub release: Option<String>,
    pub extensions: Extensions,
    /// Connections of the runtime.
    pub connections: usize,
}

impl Inner {
    /// A move of the invocation that has this name.
    pub fn step(&mut self, id: &str, event: Event, several: bool) -> Result<(), (State, Event)> {
        let state = match several {
            true => match self.current.iter_mut().find(|work| work.id == id) {
                Some(work) => &mut work.state,
                // Its caller has gone: nobody minds.
                None => return Ok(()),
            },
            false => &mut self.state,
        };
        *state = state.on(event).map_err(|_| (*state, event))?;
        Ok(())
    }
}

pub(crate) struct Shared {
    pub about: About,
    pub born: Instant,
    pub telemetry: Arc<Telemetry>,
    inner: Mutex<Inner>,
    /// State, or work that waits, changed.
    pub changed: Notify,
    pub places: Places,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Shared {
    pub fn new(about: About, telemetry: Arc<Telemetry>) -> Self {
        let inner = Inner {
            state: State::Started,
            pending: VecDeque::new(),
            current: Vec::new(),
            late: VecDeque::new(),
            init_error: None,
            release: None,
            extensions: Extensions::new(about.external.clone(), about.concurrency > 1),
            connections: 0,
        };
        let (born, inner, changed) = (Instant::now(), Mutex::new(inner), Notify::new());
        Self { about, born, telemetry, inner, changed, places: Places::default() }
    }

    /// Invocations need not come one after the other.
    pub fn several(&self) -> bool {
        self.about.concurrency > 1
    }

    /// What is told of a start.
    pub fn start_record(&self) -> Value {
        json!({
            "initializationType": self.about.kind.as_str(),
            "phase": self.about.phase(),
            "functionName": self.about.function,
            "functionVersion": self.about.version,
            "instanceId": self.about.log_stream,
            "instanceMaxMemory": self.about.memory,
        })
    }

    pub fn init_start(&self) {
        self.telemetry.platform(Some(Api::Telemetry), "platform.initStart", || self.start_record());
    }

    pub fn init_done(&self, failure: Option<&Failure>) {
        for extension in self.lock().extensions.all() {
            self.telemetry.platform(None, "platform.extension", || {
                json!({
                    "name": extension.name, "state": extension.state.name(), "events": extension.events()
                })
            });
        }
        let record = |more: Value| {
            let mut record =
                json!({ "initializationType": self.about.kind.as_str(), "phase": self.about.phase() });
            if let (Value::Object(record), Value::Object(more)) = (&mut record, more) {
                record.extend(more);
            }
            record
        };
        let status = if failure.is_none() { "success" } else { "error" };
        self.telemetry.platform(Some(Api::Telemetry), "platform.initRuntimeDone", || match failure {
            Some(failure) => record(json!({ "status": status, "errorType": failure.kind })),
            None => record(json!({ "status": status })),
        });
        self.telemetry.platform(Some(Api::Telemetry), "platform.initReport", || {
            record(json!({ "metrics": { "durationMs": ms(self.born.elapsed()) } }))
        });
        self.telemetry.close();
    }

    /// An invocation was handed over.
    pub fn handed(&self, id: &str) {
        let inner = self.lock();
        let Some(work) = inner.current.iter().find(|work| work.id == id) else { return };
        self.telemetry
            .platform(None, "platform.start", || work.record(json!({ "version": self.about.version })));
    }

    /// The runtime has said its last word on an invocation.
    pub fn runtime_done(&self, id: &str, last: &Said, measured: Option<Measured>) {
        let (status, kind) = match last {
            Said::Failed(failure) if failure.broken => ("failure", Some(failure.kind.as_str())),
            Said::Failed(failure) => ("error", Some(failure.kind.as_str())),
            _ => ("success", None),
        };
        if let Some(work) = self.lock().current.iter_mut().find(|work| work.id == id) {
            work.tell_done(&self.telemetry, status, kind, measured);
        }
    }

    /// An invocation is over for its caller. `true` if the runtime was given it.
    pub fn over(&self, id: &str, over: &Over) -> bool {
        let mut inner = self.lock();
        let seen = inner.current.iter().any(|work| work.id == id);
        let Inner { pending, current, late, .. } = &mut *inner;
        let waiting = pending.iter().position(|work| work.id == id);
        let mut gone = None;
        let work = match waiting {
            Some(at) if self.several() => gone.insert(pending.remove(at).expect("it was found")),
            Some(at) => &mut pending[at],
            None => match current.iter().position(|work| work.id == id) {
                Some(at) if self.several() => gone.insert(current.swap_remove(at)),
                Some(at) => &mut current[at],
                None => return false,
            },
        };
        self.tell_over(work, over);
        if self.several() && seen && over.timeout {
            late.push_back(id.to_owned());
            if late.len() > LATE {
                late.pop_front();
            }
        }
        seen
    }

    fn tell_over(&self, work: &mut Work, over: &Over) {
        let kind = over.error.as_ref().map(|(kind, _)| kind.as_str());
        let status = match (over.timeout, kind) {
            (true, _) => "timeout",
            (false, None) => "success",
            (false, Some(kind)) if kind.starts_with("Runtime.Unknown") || kind.starts_with("Function.") => {
                "error"
            }
            (false, Some(_)) => "failure",
        };
        work.tell_done(&self.telemetry, status, kind, None);
        if let Some((kind, message)) = &over.error
            && status != "error"
        {
            self.telemetry.platform(Some(Api::Logs), "platform.fault", || {
                json!(format!("RequestId: {} Error: {message}\n{kind}\n", work.id))
            });
        }
        self.telemetry.platform(Some(Api::Logs), "platform.end", || json!({ "requestId": work.id }));
        self.telemetry.platform(None, "platform.report", || {
            let billed = u64::try_from(over.duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
            let mut metrics = json!({
                "durationMs": ms(over.duration),
                "billedDurationMs": billed,
                "memorySizeMB": self.about.memory >> 20,
                "maxMemoryUsedMB": over.memory_used,
            });
            if let Some(init) = over.init {
                metrics["initDurationMs"] = ms(init);
            }
            work.streaming(&mut metrics, over);
            let mut record = json!({ "status": status, "metrics": metrics });
            if let Some(kind) = kind {
                record["errorType"] = json!(kind);
            }
            work.record(record)
        });
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds something. It is asked after every change.
    pub async fn until<T>(&self, mut look: impl FnMut(&mut Inner) -> Option<T>) -> T {
        let changed = self.changed.notified();
        tokio::pin!(changed);
        loop {
            // Enlisted before the look, so that no change falls between the two.
            changed.as_mut().enable();
            if let Some(found) = look(&mut self.lock()) {
                return found;
            }
            changed.as_mut().await;
            changed.set(self.changed.notified());
        }
    }

    pub fn on(&self, event: Event) -> Result<(), (State, Event)> {
        let mut inner = self.lock();
        let to = inner.state.on(event).map_err(|_| (inner.state, event))?;
        inner.state = to;
        drop(inner);
        self.changed.notify_waiters();
        Ok(())
    }

    /// Where an extension has ended the function: the invocations that are under way end with it.
    pub async fn fall(&self) {
        let told: Vec<_> = {
            let mut inner = self.lock();
            let Some(fatal) = inner.extensions.fatal.clone() else { return };
            let Inner { pending, current, .. } = &mut *inner;
            let say = |work: &Work| (work.say.clone(), work.id.clone(), Failure::extension(&fatal, &work.id));
            let told = pending.iter().chain(&*current).map(say).collect();
            pending.clear();
            told
        };
        self.changed.notify_waiters();
        for (say, id, failure) in told {
            let last = Said::Failed(failure);
            self.runtime_done(&id, &last, None);
            // One that was answered already has nobody who listens.
            _ = say.send(last).await;
        }
    }

    /// All of an answer has arrived.
    pub fn sent(&self, id: &str) -> Result<(), (State, Event)> {
        self.lock().step(id, Event::Sent, self.several())?;
        self.changed.notify_waiters();
        Ok(())
    }
}

impl Work {
    /// A record about it, with what every one of them has.
    fn record(&self, mut record: Value) -> Value {
        record["requestId"] = json!(self.id);
        if !self.tenant.is_empty() {
            record["tenantId"] = json!(self.tenant);
        }
        if !self.trace.is_empty() {
            record["tracing"] = tracing(&self.trace);
        }
        record
    }

    /// What is measured of an answer that streamed.
    fn streaming(&self, metrics: &mut Value, over: &Over) {
        let (Some(handed), Some(Measured { first, bytes, streams: true })) = (self.handed, self.measured)
        else {
            return;
        };
        metrics["producedBytes"] = json!(bytes);
        metrics["responseLatencyMs"] = ms(first - handed);
        let took = over.duration.saturating_sub(first - handed).as_millis();
        // As AWS counts: of less than a millisecond nothing can be said.
        if let Some(a_second) = (bytes as u128 * 1000).checked_div(took) {
            metrics["throughputBps"] = json!(a_second);
        }
        if let Some(throttled) = over.throttled {
            metrics["throttledMs"] = ms(throttled);
        }
    }

    /// Tells that the runtime is done with it, once.
    fn tell_done(
        &mut self,
        telemetry: &Telemetry,
        status: &str,
        kind: Option<&str>,
        measured: Option<Measured>,
    ) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        self.measured = measured;
        let handed = self.handed;
        telemetry.platform(None, "platform.runtimeDone", || {
            let mut record = json!({ "status": status });
            if let Some(kind) = kind {
                record["errorType"] = json!(kind);
            }
            if let (Some(handed), Some(Measured { first, bytes, .. })) = (handed, measured) {
                let span = |name: &str, from: Instant, took: Duration| {
                    let start = rfc3339_millis(SystemTime::now() - from.elapsed());
                    json!({ "name": name, "start": start, "durationMs": ms(took) })
                };
                record["metrics"] = json!({ "durationMs": ms(handed.elapsed()), "producedBytes": bytes });
                record["spans"] = json!([
                    span("responseLatency", handed, first - handed),
                    span("responseDuration", first, first.elapsed()),
                ]);
            }
            self.record(record)
        });
    }
}
