//! What others may see of a runner: one trace per call, and numbers. Without a tracer and without meters nothing is made and
//! nothing is counted.

mod seen;

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use stoker_core::call::TraceContext;
use stoker_core::function::FunctionSpec;
use stoker_core::{Code, Error, Refusal};
use stoker_proto::status;
use stoker_runtime::telemetry::names::{self, Name};
use stoker_runtime::telemetry::{Facts, Recorder, Span, SpanKind, Spot, TraceId, Tracer, Value};

use crate::container::{LaunchError, Launched};
use crate::metrics::Meters;
pub use seen::{Seen, labels};

/// Most bytes that an exception says of what its function wrote: the last ones.
const STACK: usize = 1024;

/// Who watches a runner.
#[derive(Debug, Clone, Default)]
pub struct Observer {
    /// Makes spans, where traces go somewhere.
    pub tracer: Option<Tracer>,
    pub meters: Option<Arc<Meters>>,
    /// Takes what functions write, where that goes somewhere.
    pub recorder: Recorder,
}

/// What is the same of all calls' spans.
static CALLS: LazyLock<Facts> = LazyLock::new(|| {
    Facts::default().with(names::RPC_SYSTEM, "grpc").with(names::RPC_METHOD, names::ENGAGE.as_str())
});

/// What is said of an execution by how it came to be.
static STARTS: LazyLock<[Facts; 4]> = LazyLock::new(|| {
    [(false, "other"), (false, "http"), (true, "other"), (true, "http")].map(|(cold, trigger)| {
        Facts::default().with(names::FAAS_COLDSTART, cold).with(names::FAAS_TRIGGER, trigger)
    })
});

/// What is said of an execution that waited for a launch, or that is a request's.
pub fn started(cold: bool, by_http: bool) -> &'static Facts {
    &STARTS[usize::from(cold) * 2 + usize::from(by_http)]
}

impl Observer {
    /// A launch that no call has been told of, as a trace of its own.
    pub fn launched(&self, ahead: bool, launched: &Launched, seen: &Seen) {
        if !seen.is_told() {
            self.alone(launched.began).launched(cause(ahead), launched, seen);
        }
    }

    /// A launch that failed, and that no call waits for.
    pub fn launch_failed(&self, began: Instant, function: &FunctionSpec, error: &LaunchError) {
        let mut launch = self.alone(began);
        launch.note(|span| {
            span.set(names::FAAS_NAME, function.name.as_str());
            span.set(names::CAUSE, cause(true));
        });
        launch.launch_failed(error);
    }

    /// A launch below no call.
    fn alone(&self, began: Instant) -> Trace {
        let start = |tracer: &Tracer| {
            tracer.start(names::LAUNCH, SpanKind::Internal, &TraceContext::default(), began)
        };
        Trace(self.tracer.as_ref().map(start))
    }

    /// The span of a call on this runner, below the balancer's.
    pub fn call(&self, parent: &TraceContext, since: Instant) -> Trace {
        Trace(self.tracer.as_ref().map(|tracer| {
            let mut span = tracer.start(names::ENGAGE, SpanKind::Server, parent, since);
            span.add(&CALLS);
            span
        }))
    }
}

/// A span, if somebody wants to see it.
#[derive(Debug, Default)]
pub struct Trace(Option<Span>);

impl Trace {
    /// A span below this one. Starts now, and ends when it is dropped.
    pub fn child(&self, name: Name, kind: SpanKind) -> Trace {
        self.child_since(name, kind, Instant::now())
    }

    fn child_since(&self, name: Name, kind: SpanKind, began: Instant) -> Trace {
        Trace(self.0.as_ref().filter(|span| span.is_recorded()).map(|span| span.child(name, kind, began)))
    }

    /// Something below this one that is over: when it began, and how long it took. Says when it ended.
    fn past(&self, name: Name, began: Instant, took: Duration) -> Instant {
        let ended = began + took;
        self.child_since(name, SpanKind::Internal, began).note(|span| span.end_at(ended));
        ended
    }

    /// Says more, if it goes anywhere.
    pub fn note(&mut self, note: impl FnOnce(&mut Span)) {
        if let Some(span) = self.0.as_mut().filter(|span| span.is_recorded()) {
            note(span);
        }
    }

    /// What is handed on from here, where it is not what came.
    pub fn context(&self) -> Option<TraceContext> {
        self.0.as_ref().map(|span| span.context())
    }

    /// For numbers that lead to their trace.
    pub fn exemplar(&self) -> Option<TraceId> {
        self.0.as_ref().and_then(|span| span.exemplar())
    }

    /// It ended with this error. In a span of what we serve (`own`) a caller's mistake is no failure; in one of what was asked of
    /// another everything is that did not succeed.
    pub fn failed(&mut self, code: Code, message: &str, own: bool) {
        self.note(|span| {
            use tonic::Code as G;
            let row = status::row(code);
            span.set(names::ERROR_TYPE, row.reason);
            span.set(names::BLAME, code.blame().as_str());
            // What the conventions take for a failure of a server, and what is lost with its runner.
            let serious = matches!(
                row.grpc,
                G::Unknown
                    | G::DeadlineExceeded
                    | G::Unimplemented
                    | G::Internal
                    | G::Unavailable
                    | G::Aborted
            );
            if serious || !own {
                span.fail(message.to_owned());
            }
        });
    }

    /// Where lines of logs belong that are written meanwhile.
    pub fn spot(&self) -> Option<Spot> {
        self.0.as_ref().and_then(Span::spot)
    }

    /// A launch that was done for this call.
    pub fn launch(&self, launched: &Launched, seen: &Seen) {
        self.child_since(names::LAUNCH, SpanKind::Internal, launched.began).launched(
            cause(false),
            launched,
            seen,
        );
    }

    /// The span of a launch that is over, with its phases.
    fn launched(mut self, cause: &'static str, launched: &Launched, seen: &Seen) {
        let mut at = launched.began;
        for (name, took) in [
            (names::IMAGE, launched.image),
            (names::CREATE, launched.create),
            (names::START, launched.start),
            (names::INIT, launched.init),
        ] {
            if !took.is_zero() {
                at = self.past(name, at, took);
            }
        }
        self.note(|span| {
            span.add(seen.facts());
            span.set(names::CAUSE, cause);
            span.end_at(at);
        });
        // What is not sent is nothing to point to.
        seen.told(self.0.filter(|span| span.exemplar().is_some()).map(|span| span.context()));
    }

    /// The launch that it waited for, or that it is, failed.
    pub fn launch_failed(&mut self, error: &LaunchError) {
        let (reason, message) = match error {
            LaunchError::Function(error) => (status::row(error.code).reason, error.message.as_str()),
            LaunchError::Platform(text) => ("launch_failed", text.as_str()),
            LaunchError::Impossible(text) => ("too_large", text.as_str()),
            // Nothing is wrong with it.
            LaunchError::Full { .. } | LaunchError::Late(_) | LaunchError::Stopping => return,
        };
        self.note(|span| {
            span.set(names::ERROR_TYPE, reason);
            if let Some(blame) = error.blame() {
                span.set(names::BLAME, blame.as_str());
            }
            span.fail(message);
        });
    }

    /// The container was thawed for this call.
    pub fn thawed(&mut self, took: Duration, seen: &Seen) {
        let (now, frozen) = (Instant::now(), seen.thawed());
        self.note(|span| {
            if let Some(frozen) = frozen {
                span.event(frozen, names::FREEZE, &[]);
            }
            let micros = i64::try_from(took.as_micros()).unwrap_or(i64::MAX);
            span.event(now, names::THAW, &[(names::THAW_TIME, Value::Number(micros))]);
        });
    }

    /// How the function failed, in its own words where it had some.
    pub fn exception(&mut self, error: &Error) {
        self.note(|span| {
            let kind = error.report.as_ref().map_or(status::row(error.code).reason, |report| &report.kind);
            let tail = error.log_tail.len().saturating_sub(STACK);
            let tail =
                (tail..=error.log_tail.len()).find(|at| error.log_tail.is_char_boundary(*at)).unwrap_or(0);
            let facts = [
                (names::EXCEPTION_TYPE, Value::Text(kind)),
                (names::EXCEPTION_MESSAGE, Value::Text(&error.message)),
                (names::EXCEPTION_STACK, Value::Text(&error.log_tail[tail..])),
            ];
            let facts = if error.log_tail.is_empty() { &facts[..2] } else { &facts };
            span.event(Instant::now(), names::EXCEPTION, facts);
        });
    }
}

/// Why a container is launched, for spans.
fn cause(ahead: bool) -> &'static str {
    if ahead { "ahead" } else { "call" }
}

/// How a reason is called.
pub fn refusal(reason: Refusal) -> &'static str {
    match reason {
        Refusal::Full => "full",
        Refusal::Draining => "draining",
        Refusal::TooLarge => "too_large",
        Refusal::Expired => "expired",
        Refusal::LaunchFailed => "launch_failed",
        Refusal::NoneIdle => "none_idle",
    }
}
